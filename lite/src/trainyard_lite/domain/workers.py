"""Workers: the agents that are there, and what becomes of the tasks of those that went silent."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from .._bounds import load_texts
from .._clock import ago
from .._collections import TASKS
from .._rpc import State
from .._settings import COMPANY_ID
from .._store import Doc
from .leases import return_leases

__all__ = ["SCHEMA", "expire_workers", "is_served", "worker_key", "workers_by_queue"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS worker (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, ip TEXT NOT NULL, queues TEXT NOT NULL, tags TEXT NOT NULL,
  system_tags TEXT NOT NULL, registered TEXT NOT NULL, timeout INTEGER NOT NULL, last_seen TEXT NOT NULL,
  last_report TEXT, task TEXT, queue TEXT, stats TEXT
);
CREATE INDEX IF NOT EXISTS worker_task ON worker (task);
CREATE TABLE IF NOT EXISTS worker_stat (
  worker TEXT NOT NULL, time INTEGER NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (worker, metric, time)
) WITHOUT ROWID;
"""
_STATS_KEPT_MS = 7 * 86_400_000  # a week of machine statistics is kept
_LEASE_GRACE_SEC = 60  # an agent says at once that it started what it took, and reports every half minute


def expire_workers(state: State) -> int:
    """Forget workers that are silent for longer than their timeout; answers how many.

    A task that was taken and never started goes back to its queue when no living worker reports that it has it in hand.
    """
    opened = state.db.opened
    with state.db.write() as db:
        gone = [
            row["id"]
            for row in db.execute("SELECT id, last_seen, timeout FROM worker").fetchall()
            if max(str(row["last_seen"]), opened) < ago(_timeout(row["timeout"], state))
        ]
        for id_ in gone:
            db.execute("DELETE FROM worker WHERE id = ?", (id_,))
            return_leases(db, taken_before="", worker=id_)
        grace = min(_LEASE_GRACE_SEC, state.settings.worker_timeout_sec)
        return_leases(db, taken_before=ago(grace), opened=opened)
        horizon = int(datetime.now(UTC).timestamp() * 1000) - _STATS_KEPT_MS
        db.execute("DELETE FROM worker_stat WHERE time < ?", (horizon,))
    return len(gone)


def _timeout(value: object, state: State) -> int:
    return value if isinstance(value, int) and 0 < value <= 2**31 else state.settings.worker_timeout_sec


def workers_by_queue(db: sqlite3.Connection) -> dict[str, list[Doc]]:
    """List the workers that serve each queue."""
    serving: dict[str, list[Doc]] = {}
    for row in db.execute("SELECT * FROM worker ORDER BY id").fetchall():
        task = TASKS.get(db, row["task"]) if row["task"] else None
        worker = {
            "name": row["id"],
            "ip": row["ip"],
            "key": worker_key(row),
            "task": {"id": task["id"], "name": task["name"]} if task else None,
        }
        for queue in load_texts(row["queues"]):
            serving.setdefault(queue, []).append(worker)
    return serving


def worker_key(row: sqlite3.Row) -> str:
    """Return the key by which the official server keeps a worker."""
    return f"worker_{COMPANY_ID}_{row['user']}_{row['id']}"


def is_served(db: sqlite3.Connection, queue: str) -> bool:
    """Tell whether a worker serves a queue."""
    rows = db.execute("SELECT 1 FROM worker, json_each(worker.queues) WHERE value = ? LIMIT 1", (queue,))
    return rows.fetchone() is not None
