"""DVC's cache: its objects, and the lists of what is in a folder."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH116
import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from .._errors import ClearmlClientError
from ._repository import MD5, Output
from ._settings import Site

__all__ = ["Entry", "hash_is", "is_trusted", "list_entries", "no_part", "object_path"]

CHUNK_BYTES = 2**20


class Entry(NamedTuple):
    """A file of an output."""

    path: str  # below the output; "" for an output that is a file
    md5: str


def no_part(output: Output, below: str, known: Sequence[str]) -> ClearmlClientError:
    near = difflib.get_close_matches(below, known, n=3, cutoff=0.5) or list(known[:5])
    return ClearmlClientError(f"{output.path} is tracked, and has no {below!r} in it; it has {', '.join(near)}")


def list_entries(output: Output, below: str, site: Site) -> Optional[List[Entry]]:
    """Return the files of an output, or of a part of it; None where its list is not in the cache.

    Raises:
        ClearmlClientError: if the list is not one, or has no such part.
    """
    if not output.folder:
        return [Entry("", output.md5)]
    listing = site.objects(output.legacy) / output.md5[:2] / f"{output.md5[2:]}.dir"
    try:
        text = listing.read_bytes()
        if hashlib.md5(text).hexdigest() != output.md5:  # noqa: S324 - DVC names its objects so
            if not is_trusted(str(listing)):
                return None  # DVC will see it too, and fetch it
            raise ValueError("its hash does not verify")
        told = json.loads(text)
        entries = [Entry(str(item["relpath"]), str(item["md5"])) for item in told]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClearmlClientError(f"{listing} is no list of files ({error}): delete it, and pull again") from error
    for entry in entries:
        if not MD5.match(entry.md5) or entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise ClearmlClientError(f"{listing} has an entry that leads elsewhere: {entry.path!r}")
    if below:
        part = [entry for entry in entries if entry.path == below or entry.path.startswith(below + "/")]
        if not part:
            raise no_part(output, below, sorted({entry.path.split("/")[0] for entry in entries}))
        return part
    return entries


def object_path(objects: Path, md5: str) -> str:
    return f"{objects}/{md5[:2]}/{md5[2:]}"


def is_trusted(path: str) -> bool:
    try:
        return not os.stat(path).st_mode & 0o222
    except OSError:
        return False


def hash_is(path: Path, md5: str, legacy: bool) -> bool:
    """Hash a file, in the way of DVC 2 if that made the hash."""
    plain, unix = hashlib.md5(), hashlib.md5()  # noqa: S324 - DVC names its objects so
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                break
            plain.update(chunk)
            if legacy:
                unix.update(chunk.replace(b"\r\n", b"\n"))
    return md5 == plain.hexdigest() or (legacy and md5 == unix.hexdigest())
