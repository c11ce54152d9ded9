"""Reads what can be read of a damaged database into a new one.

``sqlite3 lite.db .recover`` fails on these tables (their columns are computed from the documents).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._app import TABLES
from ._data import migrate
from ._schema import make_steps

__all__ = ["salvage"]

_FARTHEST = 2**62


def salvage(source: Path, target: Path) -> dict[str, tuple[int, int]]:
    """Copy every row that can be read.

    Args:
        source: the damaged file; it is only read.
        target: the new one, which must not exist.

    Returns:
        For each table how many rows were copied, and how many places could not be read.

    Raises:
        FileExistsError: if ``target`` exists.
        sqlite3.Error: if ``target`` cannot be written.
    """
    target.touch(exist_ok=False)
    new = sqlite3.connect(target, isolation_level=None)
    migrate(new, target, make_steps(TABLES))
    old = sqlite3.connect(f"file:{source}?mode=ro", uri=True, isolation_level=None)
    counts: dict[str, tuple[int, int]] = {}
    tables = new.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    for table, sql in tables.fetchall():
        if table == "lite_meta":
            continue
        columns = [row[1] for row in new.execute(f"PRAGMA table_xinfo({table})") if row[6] == 0]
        keys = [row[1] for row in new.execute(f"PRAGMA table_info({table})") if row[5]]
        problems: list[str] = []
        rows = _ordered(old, table, columns, keys, problems) if "WITHOUT ROWID" in sql else _numbered(
            old, table, columns, problems
        )  # fmt: skip
        marks = ", ".join("?" * len(columns))
        new.execute("BEGIN")
        before = new.total_changes
        insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        for row in rows:
            try:
                new.execute(insert, row)
            except sqlite3.Error as error:  # a row whose document is no JSON any more
                problems.append(str(error))
        new.execute("COMMIT")
        counts[table] = (new.total_changes - before, len(problems))
    old.close()
    new.close()
    return counts


def _numbered(db: sqlite3.Connection, table: str, columns: list[str], problems: list[str]) -> Iterator[Any]:
    """Read rows by their number; behind a place that cannot be read, look for the next that can."""
    at, step = -(2**63), 0
    while True:
        try:
            for row in db.execute(
                f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid", (at,)
            ):
                at, step = row[0], 0
                yield row[1:]
            return
        except (sqlite3.Error, UnicodeError) as error:
            if step == 0:
                problems.append(str(error))
            at = max(at, 0)
            step = step * 2 or 1
            if step > _FARTHEST - at:
                return
            at += step


def _ordered(
    db: sqlite3.Connection, table: str, columns: list[str], keys: list[str], problems: list[str]
) -> Iterator[Any]:
    """Read a table without numbers from both ends, and from both ends of each first key that is known."""
    starts: list[tuple[str, tuple[Any, ...]]] = [("1", ())]
    if table == "event_scalar":
        try:
            starts += [(f"{keys[0]} = ?", (row[0],)) for row in db.execute("SELECT id FROM event_series NOT INDEXED")]
        except sqlite3.Error as error:
            problems.append(str(error))
    for condition, values in starts:
        for direction in ("ASC", "DESC"):
            order = ", ".join(f"{key} {direction}" for key in keys)
            sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {condition} ORDER BY {order}"
            try:
                yield from db.execute(sql, values)
            except (sqlite3.Error, UnicodeError) as error:
                problems.append(str(error))
            else:
                if condition == "1":
                    return
                break
