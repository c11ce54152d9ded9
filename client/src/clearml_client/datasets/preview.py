"""A look at some files of a version: pictures as a contact sheet, point clouds from above, tables by their first rows.

Only the chosen files are fetched, out of the middle of their packs where the store gives ranges.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from .._errors import ClearmlClientError
from ._interface import Store
from .index import Listed, compile_glob, escape
from .store import ClearmlStore

__all__ = ["Preview", "make_preview"]

_IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
_CLOUDS = frozenset((".pcd", ".bin", ".npy"))
_TABLES = frozenset((".csv", ".tsv", ".parquet"))
_MAX_FILE_BYTES = 256 * 1024 * 1024  # a look must not become a download
_THUMBNAIL = 200  # pixels
_CLOUD_PIXELS = 800
_TABLE_ROWS = 10
_KITTI_POINT_BYTES = 16  # x, y, z, reflectance as float32
_PCD_HEADER_BYTES = 4096


class Preview(NamedTuple):
    """What was made of some files."""

    kind: str  # "images", "point cloud" or "table"
    files: List[str]  # their paths in the version
    picture: Optional[Path]
    text: str


def make_preview(
    store: Store,
    reference: str,
    out: Path,
    *,
    count: int = 12,
    glob: Optional[str] = None,
    report: bool = True,
) -> List[Preview]:
    """Make pictures and heads of some files, spread evenly over a version.

    Args:
        store: Where the version is.
        reference: The version.
        out: Folder for the pictures; made if it is new.
        count: Pictures of the contact sheet; of point clouds and tables at most three are shown.
        glob: Choose among the files that match.
        report: Whether the dataset's page shows them as debug samples.

    Raises:
        ClearmlClientError: There is no such version, nothing that can be shown, or a library is missing.
    """
    version = store.find(reference)
    pattern = None if glob is None else compile_glob(glob)
    chosen = _choose(store.listing(version), pattern, count)
    if not any(chosen.values()):
        raise ClearmlClientError(
            f"{version}: there is no image, point cloud (.pcd, .bin, .npy) or table (.csv, .tsv, .parquet) to show"
            + (f" that matches {glob!r}" if glob else "")
        )
    paths = [file.path for files in chosen.values() for file in files]
    previews: List[Preview] = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store.read_files(version, paths, folder)
        if chosen["images"]:
            previews.append(_contact_sheet(folder, chosen["images"], out / "images.png"))
        for number, file in enumerate(chosen["clouds"]):
            previews += _cloud(folder, file, out / f"cloud-{number + 1}.png")
        for file in chosen["tables"]:
            previews.append(_table(folder, file))
    if not previews:
        raise ClearmlClientError(f"{version}: none of {', '.join(paths[:5])} is a point cloud: choose others by --glob")
    if report and isinstance(store, ClearmlStore):  # others have no page
        _report(version.id, previews)
    return previews


def _choose(files: Iterable[Listed], pattern: "Optional[re.Pattern[str]]", count: int) -> Dict[str, List[Listed]]:
    kinds: Dict[str, List[Listed]] = {"images": [], "clouds": [], "tables": []}
    for file in files:
        if pattern is not None and not pattern.match(f"{escape(file.path)}\t0"):
            continue
        ending = "." + file.path.rpartition(".")[2].lower()
        if file.size is None or 0 < file.size <= _MAX_FILE_BYTES:
            if ending in _IMAGES:
                kinds["images"].append(file)
            elif ending in _CLOUDS and (ending != ".bin" or not (file.size or 0) % _KITTI_POINT_BYTES):
                kinds["clouds"].append(file)
            elif ending in _TABLES:
                kinds["tables"].append(file)
    few = min(3, count)
    return {kind: _spread(found, count if kind == "images" else few) for kind, found in kinds.items()}


def _spread(files: Sequence[Listed], count: int) -> List[Listed]:
    """Take some, evenly: neighbours in a recording look alike."""
    if len(files) <= count:
        return list(files)
    return [files[number * len(files) // count] for number in range(count)]


def _need(library: str) -> Any:
    import importlib

    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ClearmlClientError(f"a preview needs {library}: install clearml-client[images]") from error


# ---------------------------------------------------------------- images


def _contact_sheet(folder: Path, files: Sequence[Listed], target: Path) -> Preview:
    image, draw = _need("PIL.Image"), _need("PIL.ImageDraw")
    columns = math.ceil(math.sqrt(len(files)))
    rows = math.ceil(len(files) / columns)
    cell, label = _THUMBNAIL + 12, 16
    sheet = image.new("RGB", (columns * cell, rows * (cell + label)), "white")
    pen = draw.Draw(sheet)
    for number, file in enumerate(files):
        x, y = number % columns * cell, number // columns * (cell + label)
        try:
            with image.open(folder / file.path) as picture:
                picture.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
                small = _visible(picture)
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
            pen.text((x + 6, y + 20), f"unreadable: {error}"[:32], fill="red")
        else:
            sheet.paste(small, (x + (cell - small.width) // 2, y + (cell - small.height) // 2))
        name = file.path.rpartition("/")[2].encode("ascii", "replace").decode()
        pen.text((x + 6, y + cell), name[-32:], fill="black")
    sheet.save(target)
    return Preview("images", [file.path for file in files], target, "")


def _visible(picture: Any) -> Any:
    """Return it with 8 bits; depth images have 16 and would be white all over."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        numpy, image = _need("numpy"), _need("PIL.Image")
        values = numpy.asarray(picture, dtype="float64")
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) / (high - low or 1.0) * 255
        return image.fromarray(scaled.astype("uint8")).convert("RGB")
    return picture.convert("RGB")


# ---------------------------------------------------------------- point clouds


def _cloud(folder: Path, file: Listed, target: Path) -> List[Preview]:
    """Draw a cloud from above, coloured by height; nothing for a file that only has the ending of one."""
    points = _read_cloud(folder / file.path)
    if points is None:
        return []
    numpy, image = _need("numpy"), _need("PIL.Image")
    points = points[numpy.isfinite(points).all(axis=1)]
    if not len(points):
        return []
    # the outermost hundredth are stray reflections, which would make all else small
    low, high = numpy.percentile(points[:, :2], (1, 99), axis=0)
    extent = float(max(high - low)) or 1.0
    scale = (_CLOUD_PIXELS - 1) / extent
    columns = ((points[:, 0] - low[0]) * scale).astype(int)
    rows = _CLOUD_PIXELS - 1 - ((points[:, 1] - low[1]) * scale).astype(int)
    inside = (columns >= 0) & (columns < _CLOUD_PIXELS) & (rows >= 0) & (rows < _CLOUD_PIXELS)
    bottom, top = numpy.percentile(points[:, 2], (2, 98))
    height = numpy.clip((points[:, 2] - bottom) / ((top - bottom) or 1.0), 0, 1)
    order = numpy.argsort(height[inside])  # the highest is seen from above
    colours = numpy.stack((40 + 215 * height, 90 + 100 * (1 - abs(2 * height - 1)), 255 - 215 * height), axis=1)
    canvas = numpy.full((_CLOUD_PIXELS, _CLOUD_PIXELS, 3), 16, dtype="uint8")
    canvas[rows[inside][order], columns[inside][order]] = colours[inside][order].astype("uint8")
    image.fromarray(canvas).save(target)
    text = f"  {len(points)} points, {extent:.1f} across, heights {float(bottom):.1f} to {float(top):.1f}"
    return [Preview("point cloud", [file.path], target, text)]


def _read_cloud(path: Path) -> Any:
    """Return an array of x, y, z; None when the file holds no cloud."""
    numpy = _need("numpy")
    if path.suffix.lower() == ".bin":
        return numpy.fromfile(path, dtype="<f4").reshape(-1, 4)[:, :3].astype("float64")
    if path.suffix.lower() == ".npy":
        try:
            values = numpy.load(path, allow_pickle=False)
        except ValueError:
            return None
        if values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind not in "fiu":
            return None
        return values[:, :3].astype("float64")
    return _read_pcd(path)


def _read_pcd(path: Path) -> Any:
    numpy = _need("numpy")
    data = path.read_bytes()
    head, found, _ = data[:_PCD_HEADER_BYTES].partition(b"\nDATA ")
    if not found:
        return None
    fields: Dict[str, List[str]] = {}
    for line in head.decode("ascii", "replace").splitlines():
        words = line.split()
        if words and not line.startswith("#"):
            fields[words[0]] = words[1:]
    names = fields.get("FIELDS", [])
    if not {"x", "y", "z"} <= set(names):
        return None
    line_end = data.index(b"\n", len(head) + len(found))
    kind, body = data[len(head) + len(found) : line_end].strip(), data[line_end + 1 :]
    counts = [int(count) for count in fields.get("COUNT", ["1"] * len(names))]
    if kind == b"ascii":
        starts = list(itertools.accumulate([0, *counts]))
        wanted = [starts[names.index(axis)] for axis in "xyz"]
        return numpy.loadtxt(io.BytesIO(body), usecols=wanted, ndmin=2)
    if kind == b"binary":
        kinds = {"F": "f", "I": "i", "U": "u"}
        columns = zip(names, fields["TYPE"], fields["SIZE"], counts)  # noqa: B905
        types: List[Tuple[Any, ...]] = [
            (f"{name}{number}", f"<{kinds[type_]}{size}", (count,))
            if count > 1
            else (f"{name}{number}", f"<{kinds[type_]}{size}")
            for number, (name, type_, size, count) in enumerate(columns)
        ]
        record = numpy.dtype(types)
        rows = numpy.frombuffer(body, dtype=record, count=len(body) // record.itemsize)
        return numpy.stack([rows[f"{axis}{names.index(axis)}"].astype("float64") for axis in "xyz"], axis=1)
    return None  # binary_compressed


# ---------------------------------------------------------------- tables


def _table(folder: Path, file: Listed) -> Preview:
    path = folder / file.path
    if path.suffix.lower() == ".parquet":
        pandas = _need("pandas")
        try:
            text = str(pandas.read_parquet(path).head(_TABLE_ROWS).to_string())
        except ImportError as error:
            raise ClearmlClientError(f"{file.path}: a look into parquet needs pyarrow: install it") from error
        return Preview("table", [file.path], None, text)
    with path.open(encoding="utf-8", errors="replace", newline="") as stream:
        sample = stream.read(8192)
        stream.seek(0)
        separator = "\t" if path.suffix.lower() == ".tsv" else _separator(sample)
        rows = [
            [cell[:40] for cell in row]
            for row in itertools.islice(csv.reader(stream, delimiter=separator), _TABLE_ROWS + 1)
        ]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]  # noqa: B905
    return Preview("table", [file.path], None, "\n".join(lines))


def _separator(sample: str) -> str:
    first = sample.partition("\n")[0]
    return max(",;\t|", key=first.count)


# ---------------------------------------------------------------- the dataset's page


def _report(task_id: str, previews: Sequence[Preview]) -> None:
    """Show pictures as debug samples of the dataset's task, and tables as text there."""
    from clearml import Task

    task: Any = Task.get_task(task_id=task_id)
    logger = task.get_logger()
    for preview in previews:
        series = "contact sheet" if preview.kind == "images" else preview.files[0]
        if preview.picture is not None:
            logger.report_image("preview", series, iteration=0, local_path=str(preview.picture))
        else:
            logger.report_media("preview", series, iteration=0, stream=io.StringIO(preview.text), file_extension=".txt")
    task.flush(wait_for_uploads=True)
