"""``tasks.*_many``: a step in the life of many tasks at once, and the archive."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from pydantic import Field

from ... import _errors as errors
from ..._rpc import Call, Request, endpoint
from ..._store import Doc
from ...domain import life
from ...domain.tasks import ARCHIVED, get_task
from ...domain.workers import is_served
from ._fields import save
from .life import DeleteOptions, ResetOptions, delete_task, reset_task


class ManyRequest(Request):
    """Which tasks."""

    ids: list[str] = Field(min_length=1)
    status_reason: str = ""
    status_message: str = ""
    force: bool = False


def _many(call: Call, ids: Sequence[str], operation: Callable[[sqlite3.Connection, Doc], Doc]) -> Doc:
    """Do something to each task; one that fails leaves the others alone."""
    succeeded, refused = [], []
    for id_ in ids:
        try:
            with call.db.write() as db:
                succeeded.append({"id": id_, **operation(db, get_task(db, id_))})
        except errors.ApiError as error:
            detail = {"codes": [error.code, error.subcode], "msg": error.message, "data": error.data}
            refused.append({"id": id_, "error": detail})
    return {"succeeded": succeeded, "failed": refused}


class EnqueueManyRequest(ManyRequest):
    """As in ``tasks.enqueue``."""

    queue: str | None = None
    queue_name: str | None = None
    validate_tasks: bool = False
    verify_watched_queue: bool = False


@endpoint("tasks.enqueue_many", since="2.13")
def enqueue_many(call: Call, request: EnqueueManyRequest) -> Doc:
    """Put tasks into a queue, in the order given."""
    target: list[str] = []

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = life.enqueue(
            db,
            task,
            call.identity.user,
            queue=request.queue,
            queue_name=request.queue_name,
            reason=request.status_reason,
            message=request.status_message,
            force=request.force,
        )
        target.append(task["execution"]["queue"])
        return {"queued": True, **result}

    answer = _many(call, request.ids, one)
    if request.verify_watched_queue:
        answer["queue_watched"] = bool(target) and is_served(call.db.read(), target[0])
    return answer


class DequeueManyRequest(ManyRequest):
    """As in ``tasks.dequeue``."""

    remove_from_all_queues: bool = False
    new_status: str | None = None


@endpoint("tasks.dequeue_many", since="2.16")
def dequeue_many(call: Call, request: DequeueManyRequest) -> Doc:
    """Take tasks out of their queues."""

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = life.dequeue(
            db,
            task,
            call.identity.user,
            reason=request.status_reason,
            message=request.status_message,
            new_status=request.new_status,
        )
        return {"dequeued": True, **result}

    return _many(call, request.ids, one)


class StopManyRequest(ManyRequest):
    """As in ``tasks.stop``."""

    include_pipeline_steps: bool = False


@endpoint("tasks.stop_many", since="2.13")
def stop_many(call: Call, request: StopManyRequest) -> Doc:
    """Stop tasks."""
    who = call.identity
    return _many(
        call,
        request.ids,
        lambda db, task: life.stop(db, task, who.user, who.name, reason=request.status_reason, force=request.force),
    )


class PublishManyRequest(ManyRequest):
    """As in ``tasks.publish``."""

    publish_model: bool = True


@endpoint("tasks.publish_many", since="2.13")
def publish_many(call: Call, request: PublishManyRequest) -> Doc:
    """Publish tasks."""
    return _many(
        call,
        request.ids,
        lambda db, task: life.publish(
            db,
            task,
            call.identity.user,
            force=request.force,
            publish_model=request.publish_model,
            reason=request.status_reason,
            message=request.status_message,
        ),
    )


class ResetManyRequest(ManyRequest, ResetOptions):
    """As in ``tasks.reset``."""


@endpoint("tasks.reset_many", since="2.13")
def reset_many(call: Call, request: ResetManyRequest) -> Doc:
    """Make drafts of tasks again."""

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = reset_task(db, call, task, request)
        return {**result, "dequeued": bool(result["dequeued"])}

    return _many(call, request.ids, one)


class DeleteManyRequest(ManyRequest, DeleteOptions):
    """As in ``tasks.delete``."""


@endpoint("tasks.delete_many", since="2.13")
def delete_many(call: Call, request: DeleteManyRequest) -> Doc:
    """Delete tasks."""
    return _many(call, request.ids, lambda db, task: {"deleted": True, **delete_task(db, task, request)})


class ArchiveRequest(Request):
    """Which tasks."""

    tasks: list[str] = Field(min_length=1)
    status_reason: str = ""
    status_message: str = ""
    include_pipeline_steps: bool = False


def _archive(db: sqlite3.Connection, task: Doc, user: str, reason: str, message: str) -> Doc:
    if task["status"] == "queued":
        life.dequeue(db, task, user, reason=reason, message=message)
    task["system_tags"] = sorted({*task["system_tags"], ARCHIVED})
    task |= {"status_reason": reason, "status_message": message}
    save(db, task, user, touch=False)
    return {"archived": True}


def _unarchive(db: sqlite3.Connection, task: Doc, user: str, reason: str, message: str) -> Doc:
    task["system_tags"] = [tag for tag in task["system_tags"] if tag != ARCHIVED]
    task |= {"status_reason": reason, "status_message": message}
    save(db, task, user, touch=False)
    return {"unarchived": True}


@endpoint("tasks.archive", since="2.12")
def archive(call: Call, request: ArchiveRequest) -> Doc:
    """Archive tasks: lists leave them out on request; one that waits leaves its queue."""
    with call.db.write() as db:
        for task in [get_task(db, id_) for id_ in request.tasks]:
            _archive(db, task, call.identity.user, request.status_reason, request.status_message)
    return {"archived": len(request.tasks)}


@endpoint("tasks.unarchive", since="2.12")
def unarchive(call: Call, request: ArchiveRequest) -> Doc:
    """Take tasks out of the archive."""
    with call.db.write() as db:
        for task in [get_task(db, id_) for id_ in request.tasks]:
            _unarchive(db, task, call.identity.user, request.status_reason, request.status_message)
    return {"unarchived": len(request.tasks)}


class ArchiveManyRequest(ManyRequest):
    """As in ``tasks.archive``."""

    include_pipeline_steps: bool = False


@endpoint("tasks.archive_many", since="2.13")
def archive_many(call: Call, request: ArchiveManyRequest) -> Doc:
    """Archive tasks."""
    text = (request.status_reason, request.status_message)
    return _many(call, request.ids, lambda db, task: _archive(db, task, call.identity.user, *text))


@endpoint("tasks.unarchive_many", since="2.13")
def unarchive_many(call: Call, request: ArchiveManyRequest) -> Doc:
    """Take tasks out of the archive."""
    text = (request.status_reason, request.status_message)
    return _many(call, request.ids, lambda db, task: _unarchive(db, task, call.identity.user, *text))
