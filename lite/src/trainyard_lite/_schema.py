"""The tables' versions: what leads from one to the next.

A change of the tables is a new step at the end, never a change of an old one.  A step sees the tables as the step
before left them, and runs in a transaction (no VACUUM, no PRAGMA journal_mode).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ._data import Step, run_script

__all__ = ["make_steps"]

_META = "CREATE TABLE IF NOT EXISTS lite_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);"


def make_steps(scripts: Sequence[str]) -> list[Step]:
    """Return the steps; ``scripts`` are the tables of version 1, as the services declare them.

    Version 0 is a database of before there were versions: it has the same tables.
    """

    def first(db: sqlite3.Connection) -> None:
        for script in (*scripts, _META):
            run_script(db, script)

    return [first]
