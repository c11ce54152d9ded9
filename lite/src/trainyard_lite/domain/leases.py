"""Leases: tasks that a worker took and has not started yet.

A task that a worker took leaves its queue and gets a lease instead: if the worker dies before it started the task, the
task goes back to the front.  Agents tell their host's name with ``get_next_task``, not their worker id; the first
status report that names the task tells whose the lease is.
"""

from __future__ import annotations

import sqlite3

from .._clock import now
from .._collections import QUEUES, TASKS
from .._store import Doc
from .life import leave_queue
from .queues import put_task_first, touch_queue

__all__ = ["adopt_lease", "return_leases", "take_task"]


def take_task(
    db: sqlite3.Connection, queue_id: str, *, worker: str, user: str, only: str | None = None
) -> tuple[Doc, str] | None:
    """Take the first task of a queue, and note who has it.

    Args:
        db: the open write transaction.
        queue_id: the queue.
        worker: the name that the worker gives itself; empty if it gives none.
        user: who asks.
        only: take the first task only if it is this one.

    Returns:
        The task and when it came into the queue; None if there is nothing to take.
    """
    while True:
        row = db.execute(
            "DELETE FROM queue_entry WHERE task ="
            " (SELECT task FROM queue_entry WHERE queue = ?1 ORDER BY position LIMIT 1)"
            " AND (?2 IS NULL OR task = ?2) RETURNING task, added",
            (queue_id, only),
        ).fetchone()
        if row is None:
            return None
        task = TASKS.get(db, row["task"])
        if task is not None:
            break
    if task["status"] == "stopped":  # stopped while it was put here: the official server mends it so too
        task["status"] = "queued"
        TASKS.put(db, task)
    db.execute(
        "INSERT OR REPLACE INTO queue_lease (task, queue, worker, user, taken, added) VALUES (?, ?, ?, ?, ?, ?)",
        (row["task"], queue_id, worker, user, now(), row["added"]),
    )
    touch_queue(db, queue_id)
    return task, row["added"]


def _put_back(db: sqlite3.Connection, task: Doc, queue_id: str, added: str) -> bool:
    """Return a task to the front of its queue, or, if that is gone, make it what it was before."""
    if QUEUES.get(db, queue_id) is None:
        leave_queue(db, task["id"], task.get("last_changed_by") or "", "The queue was deleted")
        return False
    return put_task_first(db, queue_id, task["id"], added)


def adopt_lease(db: sqlite3.Connection, task_id: str, worker: str) -> None:
    """Note which worker has a task in hand: it says so in its reports."""
    db.execute("UPDATE queue_lease SET worker = ? WHERE task = ? AND worker <> ?", (worker, task_id, worker))


def return_leases(db: sqlite3.Connection, *, taken_before: str, opened: str = "", worker: str | None = None) -> int:
    """Put tasks back that were taken and never started; answers how many.

    Args:
        db: the open write transaction.
        taken_before: younger leases are left alone, unless ``worker`` is given.
        opened: since when the server runs: a lease is not older than that, for nobody could start a task before.
        worker: whose leases to return, for that worker is gone; None: all that no living worker has in hand.
    """
    leases = db.execute(
        "SELECT lease.*, worker.task AS doing FROM queue_lease AS lease LEFT JOIN worker ON worker.id = lease.worker"
        " WHERE ?1 IS NULL OR lease.worker = ?1 ORDER BY lease.added DESC",
        (worker,),
    ).fetchall()
    count = 0
    for lease in leases:
        task = TASKS.get(db, lease["task"])
        waits = task is not None and task["status"] in ("queued", "created")  # created: put there by queues.add_task
        in_hand = worker is None and (lease["doing"] == lease["task"] or max(lease["taken"], opened) >= taken_before)
        if waits and in_hand:
            continue
        db.execute("DELETE FROM queue_lease WHERE task = ?", (lease["task"],))
        if task is not None and waits:
            count += _put_back(db, task, lease["queue"], lease["added"])
    return count
