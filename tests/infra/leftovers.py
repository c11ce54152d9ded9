"""Files that the official server does not delete with their experiments."""

from __future__ import annotations

import re
from collections.abc import Iterable


def left_files(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the files by experiment, of names that the official server's deleter does not find.

    It takes a + for a blank and ends a path at # and ?; of models it decodes %41 once too often.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        task = re.search(r"[.]([0-9a-f]{32})/", path)
        if task and (re.search(r"[+#?]", path) or (re.search(r"[.][0-9a-f]{32}/models/", path) and "%" in path)):
            found.setdefault(task[1], []).append(path)
    return found
