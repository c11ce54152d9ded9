"""The shared copy of an output: a folder of links into DVC's cache."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH114, PTH115, PTH116, PTH211
import hashlib
import os
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from .._cache import Check, find_damage, find_tree, known_signs, sign_of
from .._errors import ClearmlClientError
from ._fetch import fetch
from ._objects import Entry, discard, is_trusted, list_entries, no_part, object_path, wrong_objects
from ._repository import Output
from ._settings import Site

__all__ = ["checker", "find_shared", "inside", "is_broken", "make_tree", "tree_key"]


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
    return whole if whole is not None and not is_broken(whole, output, "", site) else None


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


def is_broken(content: Path, output: Output, below: str, site: Site) -> bool:
    """Tell whether a tree, or an object that its links lead to, is not what was tracked."""
    return bool(find_damage(content, checker(output, below, site)))


def checker(output: Output, below: str, site: Site) -> Check:
    """Return what compares links of a tree with the list of its files, and hashes the objects that they lead to."""

    def check(content: Path, paths: Sequence[str]) -> List[str]:
        objects = site.objects(output.legacy)
        entries = list_entries(output, below, site) or []  # without the list it is made anew, which fetches that
        wanted = {entry.path if output.folder else "file": entry.md5 for entry in entries}
        by_target: Dict[Tuple[str, str], List[str]] = {}
        wrong = []
        for path in paths:
            md5 = wanted.get(path, "")
            place = f"{content}/{path}"
            if md5 and os.path.islink(place) and os.readlink(place) == object_path(objects, md5):
                by_target.setdefault((os.readlink(place), md5), []).append(path)
            else:
                wrong.append(path)
        failed = set(wrong_objects(list(by_target), output.legacy))
        for (target, _), linked in by_target.items():
            wrong += linked if target in failed else []
        return wrong

    return check


def _discard_wrong(objects: Path, entries: Sequence[Entry], legacy: bool, is_known: Callable[[str], bool]) -> bool:
    """Remove the objects of a list whose content is not their name; returns whether there were any."""
    asked = []
    for md5 in {entry.md5 for entry in entries}:
        path = object_path(objects, md5)
        try:
            # What is writable is hashed by DVC itself.
            if is_trusted(path) and not is_known(path):
                asked.append((path, md5))
        except OSError:
            continue  # it is not there
    wrong = wrong_objects(asked, legacy)
    for path in wrong:
        discard(path)
    return bool(wrong)


def make_tree(folder: Path, output: Output, below: str, site: Site, remote: Optional[str]) -> None:
    """Fill a folder with links into DVC's cache, where everything is and was verified."""
    objects = site.objects(output.legacy)
    entries = list_entries(output, below, site)
    # What is read-only was verified when it came; the rest is what a killed process left, which DVC hashes.
    begun = time.time_ns()
    if entries is not None:
        # Root may have edited an older object and left it read-only. What another tree knows is right.
        known = known_signs()
        _discard_wrong(objects, entries, output.legacy, lambda path: known.get(path) == sign_of(path))
    if entries is None or not all(is_trusted(object_path(objects, entry.md5)) for entry in entries):
        fetch(folder.parent, output, below, site, remote)
        listed = entries
        entries = list_entries(output, below, site)
        if listed is None and entries is not None:
            # Beside what has just come, verified, lie objects that other versions brought.
            known = known_signs()
            lost = _discard_wrong(
                objects,
                entries,
                output.legacy,
                lambda path: os.stat(path).st_ctime_ns >= begun or known.get(path) == sign_of(path),
            )
            if lost:
                fetch(folder.parent, output, below, site, remote)
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
