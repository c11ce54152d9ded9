"""The tables' versions: what leads from one to the next.

A change of the tables is a new step at the end, never a change of an old one.  A step sees the tables as the step
before left them, and runs in a transaction (no VACUUM, no PRAGMA journal_mode).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import orjson

from ._bounds import check_arguments, dumps, load_object
from ._data import Step, run_script
from ._errors import ApiError

__all__ = ["make_steps"]

_META = "CREATE TABLE IF NOT EXISTS lite_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);"


def make_steps(scripts: Sequence[str]) -> list[Step]:
    """Return the steps; ``scripts`` are the tables of version 1, as the services declare them.

    Version 0 is a database of before there were versions: it has the same tables.
    """

    def first(db: sqlite3.Connection) -> None:
        for script in (*scripts, _META):
            run_script(db, script)
        _mend(db)

    return [first]


def _mend(db: sqlite3.Connection) -> None:
    """Rewrite documents that no JSON reader takes whole: too deep, numbers without end, half characters.

    Lists answer documents as they are stored, unread, so that such a one would break the list for everybody.
    """
    for table in ("task", "model", "project", "queue"):
        for (id_,) in db.execute(f"SELECT id FROM {table}").fetchall():
            (text,) = db.execute(f"SELECT doc FROM {table} WHERE id = ?", (id_,)).fetchone()
            if not _is_sound(text, id_):
                mended = dumps(load_object(text) | {"id": id_}).decode()
                db.execute(f"UPDATE {table} SET doc = ? WHERE id = ?", (mended, id_))


def _is_sound(text: str, id_: str) -> bool:
    try:
        doc = orjson.loads(text)
        check_arguments({"doc": doc}, "mend", longest=len(text))
    except (orjson.JSONDecodeError, ApiError):
        return False
    return isinstance(doc, dict) and doc.get("id") == id_
