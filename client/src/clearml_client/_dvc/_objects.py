"""DVC's cache: its objects, and the lists of what is in a folder."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH108, PTH116
import difflib
import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

from .._errors import ClearmlClientError
from ._repository import MD5, Output
from ._settings import Site

__all__ = ["Entry", "discard", "hash_is", "is_trusted", "list_entries", "no_part", "object_path", "wrong_objects"]

logger = logging.getLogger(__name__)

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
            # DVC trusts what is read-only without a look, so it must go before DVC fetches it again.
            discard(str(listing))
            return None
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


def discard(path: str) -> None:
    """Remove an object whose content is not its hash, so that DVC fetches it again.

    Raises:
        ClearmlClientError: this user may not; the message has the path.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ClearmlClientError(
            f"{path} is in DVC's cache with other content than its name says, and this user cannot remove it "
            f"({error.strerror}): remove it as its owner or as root, and pull again"
        ) from error
    logger.warning("%s was removed from DVC's cache: its content is not what its name says; it is fetched again", path)


def wrong_objects(objects: Sequence[Tuple[str, str]], legacy: bool) -> List[str]:
    """Hash objects of DVC, given as path and md5, and return the paths of those whose content is another."""

    def is_wrong(item: Tuple[str, str]) -> bool:
        try:
            return not hash_is(Path(item[0]), item[1], legacy)
        except OSError:
            return True

    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1))) as pool:
        return [item[0] for item, wrong in zip(objects, pool.map(is_wrong, objects)) if wrong]  # noqa: B905


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
