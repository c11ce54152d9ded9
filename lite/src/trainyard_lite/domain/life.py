"""The life of a task: which status may follow which, and what each step changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from .. import _errors as errors
from .._clock import ago, now, read_time
from .._collections import MODELS, TASKS
from .._refs import DELETED
from .._rpc import State
from .._store import Doc
from .events.store import delete_task_events, task_event_urls
from .projects import touch_project
from .queues import find_queue, put_task, remove_task
from .tasks import ARCHIVED, DEVELOPMENT, new_task

__all__ = [
    "STATUSES",
    "change_status",
    "delete",
    "dequeue",
    "enqueue",
    "erase_tasks",
    "leave_queue",
    "publish",
    "reset",
    "stop",
    "watchdog",
]

# Each status, in the order of the page's list, and what may follow it without force: the official server's table.
_NEXT: dict[str, frozenset[str]] = {
    "created": frozenset({"queued", "in_progress"}),
    "queued": frozenset({"created", "in_progress", "stopped"}),
    "in_progress": frozenset({"stopped", "failed", "created", "completed"}),
    "completed": frozenset({"published", "in_progress", "created"}),
    "published": frozenset(),
    "stopped": frozenset(
        {"closed", "created", "failed", "queued", "in_progress", "published", "publishing", "completed"}
    ),
    "failed": frozenset({"created", "stopped", "published", "queued"}),
    "closed": frozenset({"created", "failed", "published", "publishing", "stopped"}),
    "publishing": frozenset({"published"}),
    "unknown": frozenset(),
}
STATUSES = tuple(_NEXT)
STOPPING = "stopping"  # status message that tells a worker to stop the task that it runs
_REPORT_FRESH_SEC = 600  # a worker that reported a task this recently runs it


def check_transition(task: Doc, status: str, force: bool = False) -> None:
    """Refuse a step that the life cycle has not.

    Raises:
        ApiError: 400 ``invalid task status`` with both statuses.
    """
    current = task["status"]
    if not force and status != current and status not in _NEXT.get(current, ()):
        raise errors.INVALID_TASK_STATUS("Invalid status change", current_status=current, new_status=status)


def change_status(
    db: sqlite3.Connection,
    task: Doc,
    status: str,
    user: str,
    *,
    reason: str = "",
    message: str = "",
    force: bool = False,
    **fields: Any,
) -> Doc:
    """Move a task to another status and save it; answers what changed, as the API tells it.

    Args:
        db: the open write transaction.
        task: the document, changed in place.
        status: the new one.
        user: who does it.
        reason: for people.
        message: for people; workers read ``stopping``.
        force: whatever the life cycle says.
        fields: further fields to set (dotted names are told as they are).

    Raises:
        ApiError: 400 for a step that the life cycle has not.
    """
    check_transition(task, status, force)
    moment = now()
    times = [time for name in ("started", "status_changed") if (time := read_time(task.get(name)))]
    if task["status"] == "in_progress" and status != "in_progress" and read_time(task.get("started")):
        seconds = int((datetime.now(UTC) - max(times)).total_seconds())
        task["active_duration"] = (task.get("active_duration") or 0) + max(0, seconds)
    if status == "queued":
        task["system_tags"] = [tag for tag in task["system_tags"] if tag != DEVELOPMENT]
    changes: Doc = {
        "status": status,
        "status_reason": reason,
        "status_message": message,
        "status_changed": moment,
        "last_update": moment,
        "last_change": moment,
        "last_changed_by": user,
        **fields,
    }
    task |= changes
    TASKS.put(db, task)
    touch_project(db, task.get("project"))
    return {"updated": 1, "fields": changes}


def enqueue(
    db: sqlite3.Connection,
    task: Doc,
    user: str,
    *,
    queue: str | None,
    queue_name: str | None,
    reason: str = "",
    message: str = "",
    force: bool = False,
    update_execution_queue: bool = True,
) -> Doc:
    """Put a task into a queue (the default one when none is named)."""
    if queue and queue_name:
        raise errors.VALIDATION_ERROR("Either queue id or queue name should be provided")
    if not update_execution_queue and not (task["status"] == "queued" and task["execution"].get("queue")):
        raise errors.VALIDATION_ERROR(
            "Cannot skip setting execution queue for a task that is not enqueued or does not have execution queue set"
        )
    target = find_queue(db, id=queue, name=queue_name, create=True, user=user)
    before = task.get("enqueue_status") or task["status"] if task["status"] == "queued" else task["status"]
    check_transition(task, "queued", force)
    waiting = db.execute("SELECT queue FROM queue_entry WHERE task = ?", (task["id"],)).fetchone()
    if waiting and waiting[0] != target["id"]:
        remove_task(db, task["id"])  # a task waits in one queue only
    put_task(db, target["id"], task["id"])
    changed = change_status(
        db, task, "queued", user, reason=reason, message=message, force=force, enqueue_status=before
    )
    if update_execution_queue:
        task["execution"]["queue"] = target["id"]
        TASKS.put(db, task)
        changed["fields"]["execution.queue"] = target["id"]
    return changed


def dequeue(
    db: sqlite3.Connection, task: Doc, user: str, *, reason: str = "", message: str = "", new_status: str | None = None
) -> Doc:
    """Take a task out of its queue; a queued one becomes what it was before."""
    if new_status and new_status not in STATUSES:
        raise errors.VALIDATION_ERROR(f"Invalid task status: {new_status}")
    remove_task(db, task["id"])
    if task["status"] != "queued":
        return {"updated": 0, "fields": {}}
    status = new_status or task.get("enqueue_status") or "created"
    return change_status(db, task, status, user, reason=reason, message=message, force=True, enqueue_status=None)


def leave_queue(db: sqlite3.Connection, task_id: str, user: str, reason: str) -> None:
    """Tell a task that its queue put it out."""
    task = TASKS.get(db, task_id)
    if task is not None and task["status"] == "queued":
        status = task.get("enqueue_status") or "created"
        task["execution"].pop("queue", None)
        change_status(db, task, status, user, reason=reason, force=True, enqueue_status=None)


def runs_at_worker(task: Doc) -> bool:
    """Tell whether a worker reported lately that it runs the task."""
    return bool(task.get("last_worker")) and (task.get("last_worker_report") or "") > ago(_REPORT_FRESH_SEC)


def stop(db: sqlite3.Connection, task: Doc, user: str, user_name: str, *, reason: str = "", force: bool = False) -> Doc:
    """Stop a task: at once if no worker runs it, else by telling the worker, which stops it and reports so."""
    queued = task["status"] == "queued"
    if queued:
        remove_task(db, task["id"])
    if queued or DEVELOPMENT in task["system_tags"] or not runs_at_worker(task):
        return change_status(db, task, "stopped", user, reason=reason, message=f"Stopped by {user_name}", force=force)
    check_transition(task, "stopped", force)
    return change_status(db, task, task["status"], user, reason=reason, message=STOPPING, force=True)


def _models_of(db: sqlite3.Connection, ids: list[str]) -> list[Doc]:
    return MODELS.select(db, f"task IN ({', '.join('?' * len(ids))})", ids)


def _artifact_urls(task: Doc) -> list[str]:
    artifacts = task.get("execution", {}).get("artifacts") or []
    return [a["uri"] for a in artifacts if a.get("mode", "output") == "output" and a.get("uri")]


def clean(db: sqlite3.Connection, task: Doc, *, force: bool, delete_output_models: bool) -> Doc:
    """Delete what a task produced: events and draft models; answers counts and the addresses of its files."""
    models = _models_of(db, [task["id"]])
    ready = [model for model in models if model.get("ready")]
    if ready and not force:
        raise errors.TASK_CANNOT_BE_DELETED("has output models, use force=True", task=task["id"], models=len(ready))
    drafts = [model for model in models if not model.get("ready")] if delete_output_models else []
    urls = {
        "model_urls": [model["uri"] for model in drafts if model.get("uri")],
        "event_urls": task_event_urls(db, [task["id"]]),
        "artifact_urls": _artifact_urls(task),
    }
    MODELS.delete(db, [model["id"] for model in drafts])
    kept = [model for model in models if model not in drafts]
    for model in kept:
        MODELS.put(db, model | {"task": f"{DELETED}{task['id']}"})
    delete_task_events(db, [task["id"]])
    return {"deleted_models": len(drafts), "updated_models": len(kept), "urls": urls}


def delete(db: sqlite3.Connection, task: Doc, *, force: bool, delete_output_models: bool) -> Doc:
    """Delete a task with what it produced.

    Raises:
        ApiError: 400 unless it is a draft, archived, or forced.
    """
    if task["status"] != "created" and ARCHIVED not in task["system_tags"] and not force:
        raise errors.TASK_CANNOT_BE_DELETED(
            "due to status, use force=True", task=task["id"], expected="created", current=task["status"]
        )
    remove_task(db, task["id"])
    result = clean(db, task, force=force, delete_output_models=delete_output_models)
    children = TASKS.select(db, "parent = ?", (task["id"],))
    for child in children:
        TASKS.put(db, child | {"parent": f"{DELETED}{task['id']}"})
    TASKS.delete(db, [task["id"]])
    touch_project(db, task.get("project"))
    return {"updated_children": len(children), **result}


def reset(
    db: sqlite3.Connection, task: Doc, user: str, *, force: bool, clear_all: bool, delete_output_models: bool
) -> Doc:
    """Make a draft of a task again: its results are deleted, its description stays."""
    if task["status"] == "published" and not force:
        raise errors.INVALID_TASK_STATUS(task_id=task["id"], status=task["status"])
    check_transition(task, "created", force)
    dequeued = {"removed": 1} if remove_task(db, task["id"]) else {}
    cleaned = clean(db, task, force=True, delete_output_models=delete_output_models)
    for name in (
        "last_worker", "last_worker_report", "started", "completed", "published", "active_duration", "enqueue_status",
    ):  # fmt: skip
        task.pop(name, None)
    for name in ("result", "error"):
        task["output"].pop(name, None)
    task |= {"last_iteration": 0, "last_metrics": {}, "unique_metrics": [], "metric_stats": {}, "runtime": {}}
    task["models"]["output"] = []
    if clear_all:
        blank = new_task(user, {})
        task |= {"execution": blank["execution"], "script": blank["script"]}
    else:
        task["execution"].pop("queue", None)
        task["execution"]["artifacts"] = [a for a in task["execution"]["artifacts"] if a.get("mode") == "input"]
    # its duration begins anew: change_status must not count the run that is thrown away
    changed = change_status(db, task, "created", user, reason="reset", message="reset", force=True)
    return {**changed, "dequeued": dequeued, "cleaned": cleaned}


def publish(
    db: sqlite3.Connection,
    task: Doc,
    user: str,
    *,
    force: bool,
    publish_model: bool,
    reason: str = "",
    message: str = "",
) -> Doc:
    """Publish a task, which freezes it, and its last output model."""
    if task["status"] == "published" and not force:
        raise errors.INVALID_TASK_STATUS("Invalid status change", current_status="published", new_status="published")
    check_transition(task, "published", force)
    outputs = task["models"].get("output") or []
    model = MODELS.get(db, outputs[-1].get("model") or "") if publish_model and outputs else None
    if model is not None and not model.get("ready"):
        MODELS.put(db, model | {"ready": True, "last_update": now(), "last_change": now()})
    return change_status(
        db,
        task,
        "published",
        user,
        reason=reason,
        message=message,
        force=force,
        published=now(),
        output=task["output"],
    )


def erase_tasks(db: sqlite3.Connection, ids: Iterable[str]) -> Doc:
    """Delete tasks whatever their status; answers the addresses of their files."""
    urls: dict[str, list[str]] = {"model_urls": [], "event_urls": [], "artifact_urls": []}
    for id_ in ids:
        task = TASKS.get(db, id_)
        if task is not None:
            result = delete(db, task, force=True, delete_output_models=True)
            for kind, found in result["urls"].items():
                urls[kind] += found
    return urls


def watchdog(state: State) -> int:
    """Fail tasks that should run but gave no sign of life for the set time; answers how many.

    The official server marks them stopped; a dead training is no wish of its owner, so here it is failed.  Either way
    it can be enqueued again.
    """
    horizon = ago(state.settings.watchdog_threshold_sec)
    with state.db.write() as db:
        dead = TASKS.select(db, "status = 'in_progress' AND last_update < ?", (horizon,))
        for task in dead:
            text = "Forced stop (non-responsive)"
            change_status(db, task, "failed", "__apiserver__", reason=text, message=text, force=True, completed=now())
            db.execute("UPDATE worker SET task = NULL, queue = NULL WHERE task = ?", (task["id"],))
    return len(dead)
