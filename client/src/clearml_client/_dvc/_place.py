"""Where the script looks: links to shared copies, or files of one's own."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH110, PTH115, PTH116, PTH118
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterable, List, Optional

from .._cache import cache_root, check_space
from .._errors import ClearmlClientError
from ._objects import Entry, hash_is, object_path
from ._settings import Site

__all__ = ["Ours", "clear_way", "is_checkout", "leads_to", "materialise", "swap"]


class Ours:
    """Tells links of ours and of DVC, which may be replaced, from what people put there."""

    def __init__(self, cache: Path) -> None:
        self._starts = tuple(f"{folder}/" for folder in (cache_root() / "trees", cache))

    def is_link(self, path: Path) -> bool:
        """Tell whether a path is a link to shared copies."""
        if not path.is_symlink():
            return False
        target = os.readlink(str(path))
        # Of a cache that was at another place before.
        return (
            target.startswith(self._starts)
            or re.search(r"/trees/dvc-[0-9a-f]{32}[^/]*/content(/|\Z)", target) is not None
        )

    def only_links(self, folder: Path) -> bool:
        """Tell whether a folder holds nothing but such links, so that nothing is lost with it."""
        if folder.is_symlink() or not folder.is_dir():
            return False
        for entry in os.scandir(str(folder)):
            path = Path(entry.path)
            if not (self.only_links(path) if entry.is_dir(follow_symlinks=False) else self.is_link(path)):
                return False
        return True


def clear_way(root: Path, target: Path, ours: Ours) -> None:
    """Make the folders above a path; a link of ours among them that does not lead to it gives way to a folder."""
    root.mkdir(parents=True, exist_ok=True)
    above = root
    for part in target.relative_to(root).parts[:-1]:
        above = above / part
        if ours.is_link(above):
            # Never write through it into a shared copy.
            above.unlink()
        above.mkdir(exist_ok=True)


def leads_to(target: Path, content: Path) -> bool:
    """Tell whether a path is the shared copy already."""
    if not os.path.exists(str(target)):
        return False
    if target.is_symlink() and os.readlink(str(target)) == str(content):
        return True
    # Through a link to the whole of which it is a part.
    above = os.path.join(os.path.realpath(str(target.parent)), target.name)
    return above == os.path.join(os.path.realpath(str(content.parent)), content.name)


def is_checkout(target: Path, entries: Optional[List[Entry]], legacy: bool, site: Site, below: str) -> bool:
    """Tell whether exactly the tracked files are there, as DVC's own checkout puts them."""
    if entries is None:
        return False
    objects = site.objects(legacy)
    start = len(below) + 1 if below else 0
    wanted = {str(target / entry.path[start:]) if entry.path[start:] else str(target): entry.md5 for entry in entries}
    there = (
        {str(target)}
        if target.is_file()
        else {os.path.join(f, n) for f, _, names in os.walk(str(target)) for n in names}
    )
    return there == set(wanted) and all(_holds(Path(path), md5, objects, legacy) for path, md5 in wanted.items())


def _holds(path: Path, md5: str, objects: Path, legacy: bool) -> bool:
    try:
        there = path.stat()
        with contextlib.suppress(OSError):
            kept = os.stat(object_path(objects, md5))
            if (there.st_dev, there.st_ino) == (kept.st_dev, kept.st_ino):
                return True
            if there.st_size != kept.st_size:
                return False
        return hash_is(path, md5, legacy)
    except OSError:
        return False


def swap(target: Path, make: Callable[[Path], Any]) -> None:
    """Make something beside a path and give it the name in one step where that was a link or nothing."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=str(target.parent)))
    try:
        new = beside / "new"
        make(new)
        if not target.is_symlink() and target.is_dir():
            # Links only, or empty: checked by the caller.
            target.rename(beside / "old")
        elif target.is_symlink() and not new.is_symlink() and new.is_dir():
            target.unlink()
        new.rename(target)
    except FileExistsError:
        # Another process was faster.
        if not target.exists():
            raise
    finally:
        shutil.rmtree(str(beside), ignore_errors=True)


def materialise(content: Path, new: Path, hard: bool) -> None:
    """Give files of one's own instead of links; hard links share their content, copies may be changed."""

    def put(source: str, target: str) -> None:
        real = os.path.realpath(source)
        if hard:
            try:
                os.link(real, target)
            except OSError as error:
                raise ClearmlClientError(
                    f"{target} cannot be a hard link to {real} ({error.strerror}): use link='symlink' or link='copy'"
                ) from error
        else:
            shutil.copyfile(real, target)

    if content.is_file():
        put(str(content), str(new))
        return
    if not hard:
        check_space(new.parent, sum(size for size in _sizes(content)))
    new.mkdir()
    for folder, _, names in os.walk(str(content)):
        below = new / os.path.relpath(folder, str(content))
        below.mkdir(exist_ok=True)
        for name in names:
            put(os.path.join(folder, name), str(below / name))


def _sizes(content: Path) -> Iterable[int]:
    for folder, _, names in os.walk(str(content)):
        for name in names:
            yield os.stat(os.path.join(folder, name)).st_size
