"""Show what changed in the locks, package by package, since HEAD: python3 docker/locks/changes.py [REVISION]."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


def changes(before: str, after: str) -> list[str]:
    """Say how two locks differ: "numpy 2.4.5 -> 2.4.6", "+ shapely 2.1.0", "- seaborn 0.13.2"."""
    old, new = dict(PIN.findall(before)), dict(PIN.findall(after))
    said = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            said.append(f"+ {name} {new[name]}")
        elif name not in new:
            said.append(f"- {name} {old[name]}")
        elif old[name] != new[name]:
            said.append(f"{name} {old[name]} -> {new[name]}")
    return said


def git(*arguments: str) -> str:
    """Ask git; a file that a revision does not have is empty."""
    return subprocess.run(("git", *arguments), capture_output=True, text=True).stdout  # noqa: S603, S607


def main() -> int:
    """Run the command."""
    revision = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    root = Path(git("rev-parse", "--show-toplevel").strip() or ".")
    # What changed in several locks is said once, with their names.
    where: defaultdict[str, list[str]] = defaultdict(list)
    locks = [
        *sorted((root / "docker/locks").glob("*.txt")),
        root / "agents/requirements.txt",
        root / "lite/requirements.txt",
    ]
    for lock in locks:
        name = str(lock.relative_to(root))
        for change in changes(git("show", f"{revision}:{name}"), lock.read_text()):
            where[change].append(name if lock.parent.name != "locks" else lock.stem)
    for change, names in sorted(where.items(), key=lambda item: item[0].lstrip("+- ")):
        print(f"{change:60} {'all perception images' if len(names) == 12 else ', '.join(names)}")
    print(f"{len(where)} changes in {len({name for names in where.values() for name in names})} locks since {revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
