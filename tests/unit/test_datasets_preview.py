"""A look at some files: pictures, point clouds and tables, made for the test and stored at a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from clearml_client.datasets import preview
from clearml_client.datasets.index import Listed
from PIL import Image
from test_datasets_server import Site, Store, refused

CLOUD = numpy.array([[x, y, x / 10, 0.5] for x in range(-20, 21) for y in range(-10, 11)], dtype="<f4")


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB")).astype(int)


def pcd(kind: str) -> bytes:
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS intensity x y z\nSIZE 1 4 4 4\nTYPE U F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(CLOUD)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(CLOUD)}\nDATA {kind}\n"
    ).encode()
    if kind == "ascii":
        return head + "".join(f"7 {x} {y} {z}\n" for x, y, z, _ in CLOUD.tolist()).encode()
    record = numpy.dtype([("i", "u1"), ("x", "<f4"), ("y", "<f4"), ("z", "<f4")])
    rows = numpy.zeros(len(CLOUD), record)
    for column, name in enumerate("xyz"):
        rows[name] = CLOUD[:, column]
    return head + rows.tobytes()


def test_all_ways_to_write_a_cloud_show_the_same(tmp_path: Path) -> None:
    CLOUD.tofile(tmp_path / "kitti.bin")
    numpy.save(tmp_path / "array.npy", CLOUD)
    (tmp_path / "text.pcd").write_bytes(pcd("ascii"))
    (tmp_path / "binary.pcd").write_bytes(pcd("binary"))
    shown = []
    for number, name in enumerate(("kitti.bin", "array.npy", "text.pcd", "binary.pcd")):
        (made,) = preview._cloud(tmp_path, Listed(name, 1), tmp_path / f"{number}.png")
        assert "861 points, 40.0 across, heights -2.0 to 2.0" in made.text
        shown.append(pixels(tmp_path / f"{number}.png"))
    lit = (shown[0] > 60).any(axis=2)
    rows, columns = numpy.where(lit)
    assert columns.max() - columns.min() > 780, "forty metres fill the width"
    assert 380 < rows.max() - rows.min() < 420, "twenty metres half the height"
    assert shown[0][:, :200][lit[:, :200]][:, 2].mean() > shown[0][:, -200:][lit[:, -200:]][:, 2].mean(), "low is blue"
    assert all((other == shown[0]).all() for other in shown[1:])


def test_what_is_no_cloud_is_left_out(tmp_path: Path) -> None:
    numpy.save(tmp_path / "labels.npy", numpy.arange(10))
    numpy.save(tmp_path / "words.npy", numpy.array([["a", "b", "c"]]))
    (tmp_path / "odd.pcd").write_text("hello")
    (tmp_path / "nan.bin").write_bytes(numpy.full((4, 4), numpy.nan, dtype="<f4").tobytes())
    for name in ("labels.npy", "words.npy", "odd.pcd", "nan.bin"):
        assert preview._cloud(tmp_path, Listed(name, 1), tmp_path / "out.png") == []


def test_a_contact_sheet_has_each_picture(tmp_path: Path) -> None:
    colours = {"red.png": (255, 0, 0), "green.jpg": (0, 255, 0), "blue.bmp": (0, 0, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (640, 480), colour).save(tmp_path / name)
    depth = numpy.tile(numpy.arange(0, 6400, 10, dtype="uint16"), (480, 1))
    Image.fromarray(depth).save(tmp_path / "depth.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [Listed(name, 1) for name in (*colours, "depth.png", "broken.png")]
    made = preview._contact_sheet(tmp_path, files, tmp_path / "sheet.png")
    assert made.files == [*colours, "depth.png", "broken.png"]
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 228, 3 * 212, 3)
    for number, colour in enumerate(colours.values()):
        assert abs(sheet[106, number * 212 + 106] - colour).max() < 5
    assert sheet[228 + 106, 20].sum() < 100 < 600 < sheet[228 + 106, 190].sum(), "16 bits are stretched"


def test_the_head_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name;text\na;"one; two"\n' + "b;x\n" * 100)
    lines = preview._table(tmp_path, Listed("a.csv", 1)).text.splitlines()
    assert lines[:3] == ["name  text", "a     one; two", "b     x"]
    assert len(lines) == 11


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


def _preview(project: str, cache: str, out: str, named: dict[str, Any]) -> list[preview.Preview]:
    os.environ["CLEARML_CLIENT_CACHE"] = cache
    from clearml_client.datasets import ClearmlStore

    return preview.make_preview(ClearmlStore(project), "mixed", Path(out), **named)


def test_a_look_fetches_little_and_is_on_the_page(site: Site, tmp_path: Path) -> None:
    files, cache, out = tmp_path / "files", tmp_path / "cache", tmp_path / "out"
    files.mkdir()
    for number in range(40):
        noise = numpy.random.default_rng(number).integers(0, 255, (200, 200, 3), dtype="uint8")
        Image.fromarray(noise).save(files / f"{number:02d}.png")
    CLOUD.tofile(files / "cloud.bin")
    (files / "labels.csv").write_text("a,b\n1,2\n")
    (files / "large.dat").write_bytes(os.urandom(30_000_000))
    store = Store(site, "previews", cache)
    made = store.upload(files, "mixed", version="1.0.0")
    before = site.relay.bytes
    found = site.do(_preview, "previews", str(cache), str(out), {"count": 4})
    assert site.relay.bytes - before < 6_000_000, "of 35 MB in one pack"
    assert [one.kind for one in found] == ["images", "point cloud", "table"]
    assert found[0].files == ["00.png", "10.png", "20.png", "30.png"]
    assert all(one.picture is None or one.picture.is_file() for one in found)
    samples = site.server.call("events.debug_images", metrics=[{"task": made.id}])["metrics"][0]["iterations"]
    urls = [event["url"] for iteration in samples for event in iteration["events"]]
    assert sum(".png" in url for url in urls) == 2
    chosen = site.do(_preview, "previews", str(cache), str(out), {"glob": "0?.png", "count": 99, "report": False})
    assert [one.files for one in chosen] == [[f"0{number}.png" for number in range(10)]]
    nothing = {"glob": "*.dat"}
    refused(lambda: site.do(_preview, "previews", str(cache), str(out), nothing), "no image", "*.dat")
