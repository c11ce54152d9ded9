"""A version at a path of one's own: a link to the shared copy, or files that may be changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Callable, Set

from .. import _cache
from .._errors import ClearmlClientError

__all__ = ["place"]


def place(fetch: Callable[[], Path], target: Path, *, copy: bool, size: int) -> Path:
    """Put a version at a path.

    Args:
        fetch: Returns the shared copy; called when the place is known to be free.
        target: Where it goes; nothing is overwritten there but a link of this function.
        copy: Whether it shall be a copy instead of a symbolic link.
        size: Bytes that a copy needs, about.

    Raises:
        ClearmlClientError: Something else is there already, or a copy has no room.
    """
    target = Path(target).absolute()
    if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        target.rmdir()  # an empty folder is a place, not something to keep
    if target.exists() and not target.is_symlink():
        raise ClearmlClientError(f"{target} exists: name a path that is free, nothing is overwritten")
    if copy and target.is_symlink():
        raise ClearmlClientError(f"{target} is a link: name a path that is free, nothing is overwritten")
    if target.is_symlink() and not _is_ours(target):
        raise ClearmlClientError(f"{target} is a link to something else: name a path that is free")
    shared = fetch()
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        _cache.check_space(target.parent, size)
        _copy(shared, target)
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    temporary.symlink_to(shared)
    temporary.replace(target)
    return target


def _is_ours(link: Path) -> bool:
    return str(_cache.cache_root() / "trees") in os.readlink(link)  # noqa: PTH115 - Path.readlink is of 3.9


def _copy(source: Path, target: Path) -> None:
    """Copy a tree, writable, to where it appears whole or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".new", dir=target.parent))
    try:
        if source.is_file():
            shutil.copyfile(str(source), str(temporary / "file"))
            (temporary / "file").rename(target)
            return
        made: Set[Path] = set()
        for folder, _, files in os.walk(source):
            into = temporary / os.path.relpath(folder, source)
            into.mkdir(parents=True, exist_ok=True)
            made.add(into)
            for file in files:
                shutil.copyfile(str(Path(folder) / file), str(into / file))  # without its mode: read-only
        for folder_made in made:
            folder_made.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        raise ClearmlClientError(f"{target}: {error.strerror or error}: nothing was left there") from error
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)
