"""The shared copy of an output: a folder of links into DVC's cache."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH110, PTH211
import hashlib
import os
from pathlib import Path
from typing import Optional

from .._cache import find_tree, is_changed
from .._errors import ClearmlClientError
from ._fetch import fetch
from ._objects import is_trusted, list_entries, no_part, object_path
from ._repository import Output
from ._settings import Site

__all__ = ["find_shared", "inside", "is_broken", "make_tree", "tree_key"]

# So many links of a tree are tried before it is handed out: DVC's cache may have been emptied under it.
TRIED_LINKS = 16


def tree_key(output: Output, below: str, site: Site) -> str:
    """Return the name of a tree; what has another content or leads elsewhere has another."""
    key = f"dvc-{output.md5}"
    if output.legacy:
        key += "-dos2unix"
    if below:
        key += "-" + hashlib.sha256(below.encode()).hexdigest()[:16]
    if site.private:
        # Its links die with the repository, so no other one must meet them.
        key += "-" + hashlib.sha256(str(site.cache).encode()).hexdigest()[:8]
    return key


def find_shared(output: Output, site: Site) -> Optional[Path]:
    """Return the shared copy of a whole output, if there is a good one on this machine."""
    whole = find_tree(tree_key(output, "", site))
    return whole if whole is not None and not is_broken(whole) else None


def inside(content: Path, output: Output, below: str) -> Path:
    """Return an output, or a part of it, in a tree.

    Raises:
        ClearmlClientError: if the output has no such part.
    """
    if not output.folder:
        if below:
            raise ClearmlClientError(f"{output.path} is a tracked file, so it has no {below!r}: pull {output.path}")
        return content / "file"
    if below and not (content / below).exists():
        raise no_part(output, below, sorted(entry.name for entry in os.scandir(str(content))))
    return content / below if below else content


def is_broken(content: Path) -> bool:
    """Tell whether a tree was changed, or its links lead nowhere, by a few of them: those that are listed first."""
    if is_changed(content):
        return True
    left = TRIED_LINKS
    folders = [str(content)]
    while folders and left:
        try:
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                if not os.path.exists(entry.path):
                    return True
                left -= 1
                if not left:
                    break
        except FileNotFoundError:
            return True
    return False


def make_tree(folder: Path, output: Output, below: str, site: Site, remote: Optional[str]) -> None:
    """Fill a folder with links into DVC's cache, where everything is and was verified."""
    objects = site.objects(output.legacy)
    entries = list_entries(output, below, site)
    # What is read-only was verified when it came; the rest is what a killed process left, which DVC hashes.
    if entries is None or not all(is_trusted(object_path(objects, entry.md5)) for entry in entries):
        fetch(folder.parent, output, below, site, remote)
        entries = list_entries(output, below, site)
    if entries is None:
        raise ClearmlClientError(f"the list of the files of {output.path} did not come from its remote")
    if not output.folder:
        (folder / "file").symlink_to(object_path(objects, output.md5))
        return
    made = set()
    for entry in entries:
        above = entry.path.rpartition("/")[0]
        if above and above not in made:
            (folder / above).mkdir(parents=True, exist_ok=True)
            made.add(above)
        # Absolute, because DVC's cache has the same path in all containers of a node, and this one too.
        os.symlink(object_path(objects, entry.md5), f"{folder}/{entry.path}")
