"""A tiny training of each kind that the named groups can do; fails when nothing is learned."""

import sys


def core():
    """Least squares, an image through OpenCV, one through albumentations, a table through Parquet."""
    import io

    import albumentations
    import cv2
    import numpy
    import pandas
    from PIL import Image
    from skimage.metrics import structural_similarity

    random = numpy.random.RandomState(0)
    points, right = random.rand(200, 4), numpy.array([1.0, -2.0, 3.0, 0.5])
    weights = numpy.zeros(4)
    losses = []
    for _ in range(400):
        error = points @ weights - points @ right
        losses.append(float((error**2).mean()))
        weights -= 0.3 * points.T @ error / len(points)
    assert losses[-1] < losses[0] / 100, losses[::100]
    picture = numpy.full((64, 48, 3), 90, numpy.uint8)
    cv2.circle(picture, (24, 30), 12, (250, 20, 100), -1)
    good, packed = cv2.imencode(".png", picture)
    assert good
    assert (cv2.imdecode(packed, cv2.IMREAD_COLOR) == picture).all()
    assert Image.open(io.BytesIO(packed.tobytes())).size == (48, 64)
    flipped = albumentations.Compose([albumentations.HorizontalFlip(p=1.0)])(image=picture)["image"]
    assert (flipped == picture[:, ::-1]).all()
    assert structural_similarity(picture, picture, channel_axis=2) == 1.0
    table = pandas.DataFrame({"loss": losses})
    stored = io.BytesIO()
    table.to_parquet(stored)
    assert pandas.read_parquet(stored).equals(table)


def evaluation():
    """A classifier of digits, a figure of its confusion, masks and polygons."""
    import io

    import matplotlib
    import numpy
    from pycocotools import mask
    from shapely.geometry import Polygon
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import confusion_matrix

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data, target = load_digits(return_X_y=True)
    model = SGDClassifier(random_state=0).fit(data[:1200], target[:1200])
    score = model.score(data[1200:], target[1200:])
    assert score > 0.8, score
    pyplot.imshow(confusion_matrix(target[1200:], model.predict(data[1200:])))
    stored = io.BytesIO()
    pyplot.savefig(stored, format="png")
    assert stored.tell() > 1000
    square = numpy.zeros((20, 20), numpy.uint8, order="F")
    square[5:15, 5:15] = 1
    assert mask.area(mask.encode(square)) == 100
    assert Polygon([(0, 0), (2, 0), (2, 2), (0, 2)]).area == 4


def lidar():
    """A cloud through a LAZ and a PCD file, and a shift that registration finds again."""
    import tempfile
    from pathlib import Path

    import laspy
    import numpy
    import small_gicp
    from pypcd4 import PointCloud

    random = numpy.random.RandomState(0)
    grid = numpy.stack(numpy.meshgrid(range(40), range(40)), -1).reshape(-1, 2) / 8.0
    height = numpy.sin(grid[:, :1]) + numpy.cos(grid[:, 1:] * 1.3)
    cloud = numpy.hstack([grid, height]) + random.normal(0, 0.001, (1600, 3))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cloud.las", "cloud.laz"):
            file = laspy.create(point_format=3, file_version="1.2")
            file.header.scales = [0.0001] * 3
            file.x, file.y, file.z = cloud.T
            file.write(str(Path(folder, name)))
            read = laspy.read(str(Path(folder, name)))
            assert numpy.allclose(numpy.asarray(read.xyz), cloud, atol=0.001), name
        path = str(Path(folder, "cloud.pcd"))
        PointCloud.from_xyz_points(cloud.astype(numpy.float32)).save(path)
        assert numpy.allclose(PointCloud.from_path(path).numpy(("x", "y", "z")), cloud, atol=0.001)
    shift = numpy.array([0.12, -0.08, 0.05])
    found = small_gicp.align(cloud, cloud - shift, downsampling_resolution=0.05).T_target_source
    assert numpy.allclose(found[:3, 3], shift, atol=0.02), found


def torch():
    """20 steps of a small network on the processor."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    points = torch.rand(64, 8)
    losses = []
    for _ in range(20):
        loss = ((model(points) - points.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.1, 0.0, 2.0, 2.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]


for group in sys.argv[1:]:
    {"core": core, "eval": evaluation, "lidar": lidar, "torch": torch}[group]()
    print(group, "trained")
