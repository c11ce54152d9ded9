"""``tasks.*_many``: a step in the life of many tasks at once, and the archive."""

from __future__ import annotations

import sqlite3

from pydantic import Field

from ..._rpc import Call, Request, endpoint, for_each
from ..._store import Doc
from ...domain import life
from ...domain.tasks import ARCHIVED, get_task
from ...domain.workers import is_served
from ._fields import save
from .life import (
    DeleteOptions,
    DequeueOptions,
    EnqueueOptions,
    PublishOptions,
    ResetOptions,
    StatusOptions,
    delete_task,
    dequeue_task,
    enqueue_task,
    publish_task,
    reset_task,
    stop_task,
)


class ManyRequest(StatusOptions):
    """Which tasks."""

    ids: list[str] = Field(min_length=1)


class EnqueueManyRequest(ManyRequest, EnqueueOptions):
    """As in ``tasks.enqueue``."""

    validate_tasks: bool = False


@endpoint("tasks.enqueue_many", since="2.13")
def enqueue_many(call: Call, request: EnqueueManyRequest) -> Doc:
    """Put tasks into a queue, in the order given."""
    target: list[str] = []

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = enqueue_task(db, call, task, request)
        target.append(task["execution"]["queue"])
        return {"queued": True, **result}

    answer = for_each(call, request.ids, get_task, one)
    if request.verify_watched_queue:
        answer["queue_watched"] = bool(target) and is_served(call.db.read(), target[0])
    return answer


class DequeueManyRequest(ManyRequest, DequeueOptions):
    """As in ``tasks.dequeue``."""


@endpoint("tasks.dequeue_many", since="2.16")
def dequeue_many(call: Call, request: DequeueManyRequest) -> Doc:
    """Take tasks out of their queues."""
    return for_each(
        call,
        request.ids,
        get_task,
        lambda db, task: {"dequeued": True, **dequeue_task(db, call, task, request)},
    )


class StopManyRequest(ManyRequest):
    """As in ``tasks.stop``."""

    include_pipeline_steps: bool = False


@endpoint("tasks.stop_many", since="2.13")
def stop_many(call: Call, request: StopManyRequest) -> Doc:
    """Stop tasks."""
    return for_each(call, request.ids, get_task, lambda db, task: stop_task(db, call, task, request))


class PublishManyRequest(ManyRequest, PublishOptions):
    """As in ``tasks.publish``."""


@endpoint("tasks.publish_many", since="2.13")
def publish_many(call: Call, request: PublishManyRequest) -> Doc:
    """Publish tasks."""
    return for_each(call, request.ids, get_task, lambda db, task: publish_task(db, call, task, request))


class ResetManyRequest(ManyRequest, ResetOptions):
    """As in ``tasks.reset``."""


@endpoint("tasks.reset_many", since="2.13")
def reset_many(call: Call, request: ResetManyRequest) -> Doc:
    """Make drafts of tasks again."""

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = reset_task(db, call, task, request)
        return {**result, "dequeued": bool(result["dequeued"])}

    return for_each(call, request.ids, get_task, one)


class DeleteManyRequest(ManyRequest, DeleteOptions):
    """As in ``tasks.delete``."""


@endpoint("tasks.delete_many", since="2.13")
def delete_many(call: Call, request: DeleteManyRequest) -> Doc:
    """Delete tasks."""
    return for_each(call, request.ids, get_task, lambda db, task: {"deleted": True, **delete_task(db, task, request)})


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
    return for_each(call, request.ids, get_task, lambda db, task: _archive(db, task, call.identity.user, *text))


@endpoint("tasks.unarchive_many", since="2.13")
def unarchive_many(call: Call, request: ArchiveManyRequest) -> Doc:
    """Take tasks out of the archive."""
    text = (request.status_reason, request.status_message)
    return for_each(call, request.ids, get_task, lambda db, task: _unarchive(db, task, call.identity.user, *text))
