"""``tasks.*``: the life of a task: run, stop, enqueue, publish, reset, delete."""

from __future__ import annotations

import sqlite3
from typing import Any

from ..._clock import now
from ..._collections import TASKS
from ..._rpc import Call, Request, endpoint
from ..._store import Doc
from ...domain import life
from ...domain.queues import remove_task
from ...domain.tasks import get_task
from ...domain.workers import is_served
from ._fields import TaskRequest


class StatusOptions(Request):
    """Why, and whether the life cycle counts."""

    force: bool = False
    status_reason: str = ""
    status_message: str = ""


class StatusRequest(StatusOptions):
    """Which task."""

    task: str


@endpoint("tasks.started")
def started(call: Call, request: StatusRequest) -> Doc:
    """Say that a task runs."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        first = {} if task["status"] == "in_progress" and task.get("started") else {"started": now()}
        remove_task(db, task["id"])
        result = _step(db, task, "in_progress", call, request, **first)
    return {**result, "started": 1}


def _step(db: sqlite3.Connection, task: Doc, status: str, call: Call, request: StatusRequest, **fields: Any) -> Doc:
    return life.change_status(
        db,
        task,
        status,
        call.identity.user,
        reason=request.status_reason,
        message=request.status_message,
        force=request.force,
        **fields,
    )


@endpoint("tasks.stopped")
def stopped(call: Call, request: StatusRequest) -> Doc:
    """Say that a task was stopped."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        result = _step(db, task, "stopped", call, request, completed=now())
        remove_task(db, task["id"])
    return result


@endpoint("tasks.failed")
def failed(call: Call, request: StatusRequest) -> Doc:
    """Say that a task failed."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        return _step(db, task, "failed", call, request, completed=now())


@endpoint("tasks.close")
def close(call: Call, request: StatusRequest) -> Doc:
    """Close a stopped task."""
    with call.db.write() as db:
        return _step(db, get_task(db, request.task), "closed", call, request)


class CompletedRequest(StatusRequest):
    """``publish`` publishes the task right away."""

    publish: bool = False


@endpoint("tasks.completed", since="2.2")
def completed(call: Call, request: CompletedRequest) -> Doc:
    """Say that a task is done."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        result = _step(db, task, "completed", call, request, completed=now())
        result["published"] = 0
        if request.publish:
            published = life.publish(db, task, call.identity.user, force=request.force, publish_model=True)
            result = {
                **result,
                "fields": {**result["fields"], **published["fields"]},
                "published": published["updated"],
            }
    return result


@endpoint("tasks.ping")
def ping(call: Call, request: TaskRequest) -> Doc:
    """Say that a task is alive."""
    with call.db.write() as db:
        task = TASKS.get(db, request.task)
        if task is not None and task["status"] == "in_progress":
            task["last_update"] = now()
            TASKS.put(db, task)
    return {}


class StopRequest(StatusRequest):
    """``include_pipeline_steps`` is not known to lite, which has no pipelines."""

    include_pipeline_steps: bool = False


def stop_task(db: sqlite3.Connection, call: Call, task: Doc, request: StatusOptions) -> Doc:
    """Stop a task; return what the API tells of it."""
    who = call.identity
    return life.stop(db, task, who.user, who.name, reason=request.status_reason, force=request.force)


@endpoint("tasks.stop")
def stop(call: Call, request: StopRequest) -> Doc:
    """Stop a task; one that a worker runs is stopped by that worker, within seconds."""
    with call.db.write() as db:
        return stop_task(db, call, get_task(db, request.task), request)


class EnqueueOptions(StatusOptions):
    """Into which queue, by id or by name (which is created when there is none); the default queue otherwise."""

    queue: str | None = None
    queue_name: str | None = None
    verify_watched_queue: bool = False


class EnqueueRequest(StatusRequest, EnqueueOptions):
    """Which task, and where."""

    update_execution_queue: bool = True


def enqueue_task(
    db: sqlite3.Connection, call: Call, task: Doc, request: EnqueueOptions, *, update_execution_queue: bool = True
) -> Doc:
    """Put a task into a queue; return what the API tells of it."""
    return life.enqueue(
        db,
        task,
        call.identity.user,
        queue=request.queue,
        queue_name=request.queue_name,
        reason=request.status_reason,
        message=request.status_message,
        force=request.force,
        update_execution_queue=update_execution_queue,
    )


@endpoint("tasks.enqueue")
def enqueue(call: Call, request: EnqueueRequest) -> Doc:
    """Put a task into a queue."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        result = enqueue_task(db, call, task, request, update_execution_queue=request.update_execution_queue)
        answer = {"queued": 1, **result}
        if request.verify_watched_queue:
            answer["queue_watched"] = is_served(db, task["execution"]["queue"])
    return answer


class DequeueOptions(StatusOptions):
    """A task waits in one queue only, so ``remove_from_all_queues`` is of no account."""

    remove_from_all_queues: bool = False
    new_status: str | None = None


class DequeueRequest(StatusRequest, DequeueOptions):
    """Which task."""


def dequeue_task(db: sqlite3.Connection, call: Call, task: Doc, request: DequeueOptions) -> Doc:
    """Take a task out of its queue; return what the API tells of it."""
    return life.dequeue(
        db,
        task,
        call.identity.user,
        reason=request.status_reason,
        message=request.status_message,
        new_status=request.new_status,
    )


@endpoint("tasks.dequeue")
def dequeue(call: Call, request: DequeueRequest) -> Doc:
    """Take a task out of its queue."""
    with call.db.write() as db:
        return {"dequeued": 1, **dequeue_task(db, call, get_task(db, request.task), request)}


class PublishOptions(StatusOptions):
    """``publish_model`` publishes the last output model too."""

    publish_model: bool = True


class PublishRequest(StatusRequest, PublishOptions):
    """Which task."""


def publish_task(db: sqlite3.Connection, call: Call, task: Doc, request: PublishOptions) -> Doc:
    """Publish a task; return what the API tells of it."""
    return life.publish(
        db,
        task,
        call.identity.user,
        force=request.force,
        publish_model=request.publish_model,
        reason=request.status_reason,
        message=request.status_message,
    )


@endpoint("tasks.publish")
def publish(call: Call, request: PublishRequest) -> Doc:
    """Publish a task."""
    with call.db.write() as db:
        return publish_task(db, call, get_task(db, request.task), request)


class ResetOptions(Request):
    """``clear_all`` forgets script and execution too; ``return_file_urls`` tells what files there were.

    Files stay until the client deletes them: lite deletes none behind its back (``delete_external_artifacts``).
    """

    force: bool = False
    clear_all: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True


class ResetRequest(StatusRequest, ResetOptions):
    """Which task, and what goes."""


def reset_task(db: sqlite3.Connection, call: Call, task: Doc, request: ResetOptions) -> Doc:
    """Make a draft of a task again; return what the API tells of it."""
    result = life.reset(
        db,
        task,
        call.identity.user,
        force=request.force,
        clear_all=request.clear_all,
        delete_output_models=request.delete_output_models,
    )
    cleaned = result.pop("cleaned")
    urls = cleaned["urls"] if request.return_file_urls else {}
    return {**result, "deleted_models": cleaned["deleted_models"], "urls": urls, "events": {}}


@endpoint("tasks.reset")
def reset(call: Call, request: ResetRequest) -> Doc:
    """Make a draft of a task again."""
    with call.db.write() as db:
        return reset_task(db, call, get_task(db, request.task), request)


class DeleteOptions(Request):
    """``return_file_urls`` tells what files there were; they stay until the client deletes them."""

    force: bool = False
    move_to_trash: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True
    include_pipeline_steps: bool = False


class DeleteRequest(StatusRequest, DeleteOptions):
    """Which task, and what goes with it."""


def delete_task(db: sqlite3.Connection, task: Doc, request: DeleteOptions) -> Doc:
    """Delete a task; return what the API tells of it."""
    result = life.delete(db, task, force=request.force, delete_output_models=request.delete_output_models)
    if not request.return_file_urls:
        result["urls"] = None
    return result


@endpoint("tasks.delete")
def delete(call: Call, request: DeleteRequest) -> Doc:
    """Delete a task."""
    with call.db.write() as db:
        return {"deleted": True, **delete_task(db, get_task(db, request.task), request)}
