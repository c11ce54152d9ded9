"""Queues: where experiments wait.

The entries live in a table of their own, a row per waiting task, ordered by ``position``.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from .. import _errors as errors
from .._clock import now
from .._collections import QUEUES
from .._settings import COMPANY_ID
from .._store import Doc, new_id

__all__ = [
    "SCHEMA",
    "check_name",
    "create_queue",
    "entries_of",
    "find_queue",
    "get_queue",
    "position_of",
    "put_task",
    "put_task_first",
    "remove_task",
    "touch_queue",
]

SCHEMA = """
CREATE TABLE IF NOT EXISTS queue_entry (
  task TEXT PRIMARY KEY, queue TEXT NOT NULL, position REAL NOT NULL, added TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_entry_order ON queue_entry (queue, position);
CREATE TABLE IF NOT EXISTS queue_lease (
  task TEXT PRIMARY KEY, queue TEXT NOT NULL, worker TEXT NOT NULL, user TEXT NOT NULL, taken TEXT NOT NULL,
  added TEXT NOT NULL
);
"""


def get_queue(db: sqlite3.Connection, id_: str) -> Doc:
    """Read a queue.

    Raises:
        ApiError: 400 if there is none.
    """
    queue = QUEUES.get(db, id_)
    if queue is None:
        raise errors.INVALID_QUEUE_ID(id=id_, company=COMPANY_ID)
    return queue


def check_name(db: sqlite3.Connection, name: str, own: str = "") -> str:
    """Return a name without the blanks around it.

    Args:
        db: the database.
        name: what the client wrote.
        own: id of the queue that has the name already, if any.

    Raises:
        ApiError: 400 if it is too short, or if another queue has it.
    """
    name = name.strip()
    if len(name) < 3:
        raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    if QUEUES.count(db, "name = ? AND id <> ?", (name, own)):
        raise errors.EXPECTED_UNIQUE_DATA(name=name, company=COMPANY_ID)
    return name


def create_queue(db: sqlite3.Connection, name: str, **fields: Any) -> Doc:
    """Create a queue and return its document; ``fields`` are already checked."""
    name = check_name(db, name)
    moment = now()
    queue: Doc = {
        "id": new_id(),
        "name": name,
        "company": COMPANY_ID,
        "created": moment,
        "last_update": moment,
        "tags": [],
        "system_tags": [],
        "metadata": {},
        **fields,
    }
    QUEUES.put(db, queue)
    return queue


def find_queue(
    db: sqlite3.Connection, *, id: str | None = None, name: str | None = None, create: bool = False, user: str = ""
) -> Doc:
    """Find a queue by id or by name; by neither, the default queue, which is made when there is none.

    Raises:
        ApiError: 400 for an unknown id, or an unknown name unless ``create``.
    """
    if id:
        return get_queue(db, id)
    if name:
        found = QUEUES.select(db, "name = ?", (name,))
        if found:
            return found[0]
        if not create:
            raise errors.INVALID_QUEUE_ID(name=name, company=COMPANY_ID)
        return create_queue(db, name)
    default = QUEUES.select(db, "EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'default')")
    if len(default) > 1:
        raise errors.MULTIPLE_DEFAULT_QUEUES(company=COMPANY_ID)
    if default:
        return default[0]
    named = QUEUES.select(db, "name = 'default'")
    if named:
        queue = named[0] | {"system_tags": [*named[0]["system_tags"], "default"]}
        QUEUES.put(db, queue)
        return queue
    return create_queue(db, "default", system_tags=["default"])


def _edge(db: sqlite3.Connection, queue: str, which: str) -> float:
    row = db.execute(f"SELECT {which}(position) FROM queue_entry WHERE queue = ?", (queue,)).fetchone()
    return float(row[0]) if row[0] is not None else 0.0


def put_task(db: sqlite3.Connection, queue_id: str, task_id: str) -> None:
    """Append a task to a queue.

    Raises:
        ApiError: 400 if it waits already.
    """
    db.execute("DELETE FROM queue_lease WHERE task = ?", (task_id,))
    try:
        db.execute(
            "INSERT INTO queue_entry (task, queue, position, added) VALUES (?, ?, ?, ?)",
            (task_id, queue_id, _edge(db, queue_id, "max") + 1, now()),
        )
    except sqlite3.IntegrityError as error:
        raise errors.TASK_ALREADY_QUEUED(task=task_id) from error
    touch_queue(db, queue_id)


def put_task_first(db: sqlite3.Connection, queue_id: str, task_id: str, added: str) -> bool:
    """Return a task to the front of a queue; answers whether it was not there. ``added`` is when it came first."""
    done = db.execute(
        "INSERT OR IGNORE INTO queue_entry (task, queue, position, added) VALUES (?, ?, ?, ?)",
        (task_id, queue_id, _edge(db, queue_id, "min") - 1, added),
    )
    touch_queue(db, queue_id)
    return done.rowcount == 1


def remove_task(db: sqlite3.Connection, task_id: str) -> str | None:
    """Take a task out of whatever queue it waits in; answers that queue's id."""
    db.execute("DELETE FROM queue_lease WHERE task = ?", (task_id,))
    row = db.execute("DELETE FROM queue_entry WHERE task = ? RETURNING queue", (task_id,)).fetchone()
    return row[0] if row else None


def touch_queue(db: sqlite3.Connection, queue_id: str) -> None:
    """Note that something in a queue changed."""
    queue = QUEUES.get(db, queue_id)
    if queue is not None:
        queue["last_update"] = now()
        QUEUES.put(db, queue)


def entries_of(db: sqlite3.Connection, queue: str, limit: int = -1) -> list[Doc]:
    """List the tasks that wait in a queue (``task``, ``added``), first to last; ``limit`` -1 means all."""
    rows = db.execute("SELECT task, added FROM queue_entry WHERE queue = ? ORDER BY position LIMIT ?", (queue, limit))
    return [dict(row) for row in rows]


def position_of(db: sqlite3.Connection, queue: str, task: str) -> tuple[int, float] | None:
    """Return how many tasks are before a task in its queue, and its ``position``; None if it does not wait there."""
    row = db.execute(
        "SELECT position, (SELECT count(*) FROM queue_entry AS e WHERE e.queue = q.queue AND e.position < q.position)"
        " FROM queue_entry AS q WHERE queue = ? AND task = ?",
        (queue, task),
    ).fetchone()
    return (row[1], row[0]) if row else None
