"""Cut a lock of all groups into the list of one group, or of each: what the group names and all that it needs.

    python3 docker/locks/split.py docker/locks/3.11-cpu.txt --groups runtime core   # prints one list of both
    python3 docker/locks/split.py docker/locks/3.11-cpu.txt --folder lists          # writes lists/core.txt ...

All groups of one (Python, variant) are resolved together, so any choice of them fits together; the comments that uv
writes ("# via") tell who needs a package.  A group's list therefore changes only when the group does, and with it the
layer that the image has for it.  Runs on Python 3.8: it is a step of the build.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Iterable  # noqa: UP035 (Python 3.8)

_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==")
_GROUP = re.compile(r"^-r (?:\S*/)?([a-z0-9]+)\.in$")


def read(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return the packages of a lock: lines with hashes, and who needs each ("-r .../GROUP.in" for a group)."""
    packages: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in text.splitlines():
        found = _NAME.match(line)
        if found:
            name = found[1]
            packages[name] = ("", [])
        lines, parents = packages.get(name, ("", []))
        if name and line.startswith("    #"):
            parents.extend(filter(None, [line.strip(" #")[4:].strip() if "# via" in line else line.strip(" #")]))
        elif name:
            packages[name] = (lines + line + "\n", parents)
    return packages


def groups_of(packages: dict[str, tuple[str, list[str]]]) -> dict[str, set[str]]:
    """Return, for each package, the groups that need it, themselves or through other packages."""
    groups: dict[str, set[str]] = {name: set() for name in packages}
    changed = True
    while changed:
        changed = False
        for name, (_, parents) in packages.items():
            for parent in parents:
                found = _GROUP.match(parent)
                more = {found[1]} if found else groups.get(parent, set())
                if not more <= groups[name]:
                    groups[name] |= more
                    changed = True
    return groups


def cut(text: str, wanted: Iterable[str]) -> str:
    """Return the part of a lock that these groups need.

    Raises:
        ValueError: if the lock knows nothing of a group.
    """
    packages = read(text)
    groups = groups_of(packages)
    known = set().union(*groups.values()) if groups else set()
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise ValueError(f"the lock has no group {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return "".join(lines for name, (lines, _) in packages.items() if groups[name] & set(wanted))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Cut a lock of all groups into the lists of groups.")
    parser.add_argument("lock", type=Path)
    parser.add_argument("--groups", nargs="+", default=[])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    text = asked.lock.read_text()
    try:
        if asked.groups:
            sys.stdout.write(cut(text, asked.groups))
    except ValueError as error:
        print(f"{asked.lock}: {error}", file=sys.stderr)
        return 1
    if asked.folder:
        asked.folder.mkdir(parents=True, exist_ok=True)
        for group in set().union(*groups_of(read(text)).values()):
            (asked.folder / (group + ".txt")).write_text(cut(text, [group]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
