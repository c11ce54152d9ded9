"""``queues.*``: where experiments wait."""

from __future__ import annotations

import sqlite3

from pydantic import Field

from .. import _errors as errors
from .._clock import now
from .._collections import QUEUES, TASKS
from .._refs import expand, split_references
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc
from ..domain.leases import take_task
from ..domain.life import leave_queue
from ..domain.queues import (
    check_name,
    create_queue,
    entries_of,
    find_queue,
    get_queue,
    position_of,
    put_task,
    remove_task,
    touch_queue,
)
from ..domain.tasks import get_task
from ..domain.workers import workers_by_queue

_REFS = {"company": "company", "user": "user"}


class MetadataItem(Request):
    """Something noted about a queue."""

    key: str
    type: str | None = None
    value: str | None = None

    def doc(self) -> Doc:
        """Give it as it is stored."""
        return self.model_dump(exclude_none=True)


class CreateRequest(Request):
    """A queue: its name is unique."""

    name: str
    display_name: str | None = None
    tags: list[str] = []
    system_tags: list[str] = []
    metadata: dict[str, MetadataItem] = {}


@endpoint("queues.create", since="2.4")
def create(call: Call, request: CreateRequest) -> Doc:
    """Create a queue."""
    fields: Doc = {
        "tags": sorted(set(request.tags)),
        "system_tags": sorted(set(request.system_tags)),
        "metadata": {key: item.doc() for key, item in request.metadata.items()},
        "user": call.identity.user,
    }
    if request.display_name:
        fields["display_name"] = request.display_name
    with call.db.write() as db:
        return {"id": create_queue(db, request.name, **fields)["id"]}


class QueueRequest(Request):
    """Which queue."""

    queue: str


class GetByIdRequest(QueueRequest):
    """Which queue; ``max_task_entries`` limits the entries in the answer."""

    max_task_entries: int | None = Field(default=None, ge=0, le=2**31)


@endpoint("queues.get_by_id", since="2.4")
def get_by_id(call: Call, request: GetByIdRequest) -> Doc:
    """Read a queue with the tasks that wait in it."""
    db = call.db.read()
    queue = get_queue(db, request.queue)
    limit = -1 if request.max_task_entries is None else request.max_task_entries
    return {"queue": {**queue, "entries": entries_of(db, queue["id"], limit)}}


class DefaultRequest(Request):
    """No arguments."""


@endpoint("queues.get_default", since="2.4")
def get_default(call: Call, request: DefaultRequest) -> Doc:
    """Give the queue for those who name none."""
    with call.db.write() as db:
        queue = find_queue(db)
    return {"id": queue["id"], "name": queue["name"]}


def _find(call: Call, args: Doc, ex: bool) -> Doc:
    db = call.db.read()
    where = "1"
    if not any(args.get(name) for name in ("search_hidden", "id", "name")):
        where = "NOT EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'k8s-glue')"
    only = QUEUES.only_fields(args)
    own, targets = split_references([name for name in only if not name.startswith("workers")], _REFS)
    limit = args.get("max_task_entries")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < 2**31):
        raise errors.VALIDATION_ERROR("max_task_entries must be a non-negative integer", field="max_task_entries")
    scroll: Doc = {}
    queues = QUEUES.find(
        db,
        {**args, "only_fields": own, "projection": None},
        where=where,
        default_order=("name",),
        ignore=("max_task_entries",),
        scroll=scroll,
    )
    if ex:
        expand(db, queues, _REFS, targets)
    if not only or any(name.startswith("entries") for name in only):
        for queue in queues:
            queue["entries"] = entries_of(db, queue["id"], -1 if limit is None else limit)
    if ex:
        _describe(db, queues)
    return {"queues": queues, **({"scroll_id": scroll["scroll_id"]} if scroll else {})}


def _describe(db: sqlite3.Connection, queues: list[Doc]) -> None:
    """Name the waiting tasks and the workers of queues."""
    serving = workers_by_queue(db)
    ids = {entry["task"] for queue in queues for entry in queue.get("entries", ())}
    names: dict[str, str] = {}
    for id_ in ids:
        row = db.execute("SELECT name FROM task WHERE id = ?", (id_,)).fetchone()
        if row:
            names[id_] = row[0]
    for queue in queues:
        for entry in queue.get("entries", ()):
            entry["task"] = {"id": entry["task"], "name": names.get(entry["task"])}
        queue["workers"] = serving.get(queue["id"], [])


@endpoint("queues.get_all", since="2.4")
def get_all(call: Call, request: OpenRequest) -> Doc:
    """List queues."""
    return _find(call, request.args(), ex=False)


@endpoint("queues.get_all_ex", since="2.4")
def get_all_ex(call: Call, request: OpenRequest) -> Doc:
    """List queues with the tasks that wait and the workers that serve them."""
    return _find(call, request.args(), ex=True)


class UpdateRequest(Request):
    """What changes of a queue."""

    queue: str
    name: str | None = None
    display_name: str | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    metadata: dict[str, MetadataItem] | None = None


@endpoint("queues.update", since="2.4")
def update(call: Call, request: UpdateRequest) -> Doc:
    """Change a queue."""
    fields = request.model_dump(exclude={"queue", "metadata"}, exclude_none=True)
    if request.metadata is not None:
        fields["metadata"] = {key: item.doc() for key, item in request.metadata.items()}
    for key in ("tags", "system_tags"):
        if key in fields:
            fields[key] = sorted(set(fields[key]))
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        if "name" in fields:
            fields["name"] = check_name(db, fields["name"], own=queue["id"])
        if fields:
            fields["last_update"] = now()
            QUEUES.put(db, queue | fields)
    return {"updated": 1 if fields else 0, "fields": fields}


class DeleteRequest(Request):
    """``force`` deletes a queue in which tasks wait: they go back to what they were."""

    queue: str
    force: bool = False


@endpoint("queues.delete", since="2.4")
def delete(call: Call, request: DeleteRequest) -> Doc:
    """Delete a queue."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        if entries_of(db, queue["id"], 1) and not request.force:
            raise errors.QUEUE_NOT_EMPTY("use force=true to delete", id=queue["id"])
        _clear(db, queue["id"], call.identity.user, "Queue was deleted")
        return {"deleted": QUEUES.delete(db, [queue["id"]])}


def _clear(db: sqlite3.Connection, queue: str, user: str, reason: str) -> list[str]:
    ids = [entry["task"] for entry in entries_of(db, queue)]
    for id_ in ids:
        remove_task(db, id_)
        leave_queue(db, id_, user, reason)
    return ids


@endpoint("queues.clear_queue", since="2.27")
def clear_queue(call: Call, request: QueueRequest) -> Doc:
    """Take every task out of a queue."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        ids = _clear(db, queue["id"], call.identity.user, f"Queue {queue['id']} was cleared")
        touch_queue(db, queue["id"])
    return {"removed_tasks": ids}


class TaskRequest(Request):
    """Which task in which queue."""

    queue: str
    task: str
    update_execution_queue: bool = True


@endpoint("queues.add_task", since="2.4")
def add_task(call: Call, request: TaskRequest) -> Doc:
    """Append a task to a queue (``tasks.enqueue`` is what one usually wants)."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        task = get_task(db, request.task)
        put_task(db, queue["id"], request.task)
        if request.update_execution_queue:
            task.setdefault("execution", {})["queue"] = queue["id"]
            TASKS.put(db, task)
    return {"added": 1}


class RemoveTaskRequest(Request):
    """Which task in which queue; ``update_task_status`` makes it what it was before."""

    queue: str
    task: str
    update_task_status: bool = False


@endpoint("queues.remove_task", since="2.4")
def remove(call: Call, request: RemoveTaskRequest) -> Doc:
    """Take a task out of a queue."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        if not position_of(db, queue["id"], request.task):
            raise errors.INVALID_QUEUE_OR_TASK_NOT_QUEUED(task=request.task, id=queue["id"], company=COMPANY_ID)
        remove_task(db, request.task)
        if request.update_task_status:
            leave_queue(db, request.task, call.identity.user, f"Task was removed from the queue {queue['id']}")
        touch_queue(db, queue["id"])
    return {"removed": 1}


class NextTaskRequest(Request):
    """From which queue; ``get_task_info`` tells whose task it is; with ``task`` only if that task is the first."""

    queue: str
    get_task_info: bool = False
    task: str | None = None


@endpoint("queues.get_next_task", since="2.4")
def get_next_task(call: Call, request: NextTaskRequest) -> Doc:
    """Take the first task of a queue: it is given to one caller, never to two."""
    db = call.db.read()
    if QUEUES.get(db, request.queue) is None:
        raise errors.INVALID_QUEUE_ID(id=request.queue, company=COMPANY_ID)
    # A look first: most polls find nothing, and need no transaction.
    if not entries_of(db, request.queue, 1):
        return {}
    with call.db.write() as db:
        worker = call.worker if call.worker and call.worker != "<unknown>" else ""
        taken = take_task(db, request.queue, worker=worker, user=call.identity.user, only=request.task)
    if taken is None:
        return {}
    task, added = taken
    answer: Doc = {"entry": {"task": task["id"], "added": added}}
    if request.get_task_info:
        answer["task_info"] = {"company": COMPANY_ID, "user": task.get("user")}
    return answer


@endpoint("queues.peek_task", since="2.15")
def peek_task(call: Call, request: QueueRequest) -> Doc:
    """Tell the first task of a queue."""
    db = call.db.read()
    entries = entries_of(db, get_queue(db, request.queue)["id"], 1)
    return {"task": entries[0]["task"] if entries else None}


@endpoint("queues.get_num_entries", since="2.4")
def get_num_entries(call: Call, request: QueueRequest) -> Doc:
    """Count the tasks that wait."""
    db = call.db.read()
    queue = get_queue(db, request.queue)["id"]
    row = db.execute("SELECT count(*) FROM queue_entry WHERE queue = ?", (queue,)).fetchone()
    return {"num": row[0]}


class MoveRequest(Request):
    """Which task in which queue, and by how many places."""

    queue: str
    task: str
    count: int = Field(default=1, ge=0, le=2**31)


def _move(call: Call, request: MoveRequest, to: str) -> Doc:
    with call.db.write() as db:
        queue = get_queue(db, request.queue)["id"]
        place = position_of(db, queue, request.task)
        if place is None:
            raise errors.INVALID_QUEUE_OR_TASK_NOT_QUEUED(task=request.task, id=queue, company=COMPANY_ID)
        order = [entry["task"] for entry in entries_of(db, queue)]
        order.remove(request.task)
        index = {
            "front": 0,
            "back": len(order),
            "forward": max(0, place[0] - request.count),
            "backward": min(len(order), place[0] + request.count),
        }[to]
        order.insert(index, request.task)
        db.executemany(
            "UPDATE queue_entry SET position = ? WHERE task = ?", [(n, task) for n, task in enumerate(order)]
        )
        touch_queue(db, queue)
    return {"position": index}


@endpoint("queues.move_task_forward", since="2.4")
def move_task_forward(call: Call, request: MoveRequest) -> Doc:
    """Move a task towards the front."""
    return _move(call, request, "forward")


@endpoint("queues.move_task_backward", since="2.4")
def move_task_backward(call: Call, request: MoveRequest) -> Doc:
    """Move a task towards the back."""
    return _move(call, request, "backward")


@endpoint("queues.move_task_to_front", since="2.4")
def move_task_to_front(call: Call, request: MoveRequest) -> Doc:
    """Make a task the next one."""
    return _move(call, request, "front")


@endpoint("queues.move_task_to_back", since="2.4")
def move_task_to_back(call: Call, request: MoveRequest) -> Doc:
    """Make a task the last one."""
    return _move(call, request, "back")


class MetadataRequest(Request):
    """Which queue, and a list of ``{key, type, value}``."""

    queue: str
    metadata: list[MetadataItem]
    replace_metadata: bool = False


@endpoint("queues.add_or_update_metadata", since="2.13")
def add_or_update_metadata(call: Call, request: MetadataRequest) -> Doc:
    """Note something about a queue."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        old = {} if request.replace_metadata else queue.get("metadata", {})
        queue["metadata"] = old | {item.key: item.doc() for item in request.metadata}
        QUEUES.put(db, queue)
    return {"updated": 1}


class DeleteMetadataRequest(Request):
    """Which queue, which keys."""

    queue: str
    keys: list[str]


@endpoint("queues.delete_metadata", since="2.13")
def delete_metadata(call: Call, request: DeleteMetadataRequest) -> Doc:
    """Forget notes about a queue."""
    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        queue["metadata"] = {k: v for k, v in queue.get("metadata", {}).items() if k not in request.keys}
        QUEUES.put(db, queue)
    return {"updated": 1}


class MetricsRequest(Request):
    """Dates in seconds, ``interval`` in seconds."""

    from_date: float
    to_date: float
    interval: int
    queue_ids: list[str] | None = None
    refresh: bool = False


@endpoint("queues.get_queue_metrics", since="2.4")
def get_queue_metrics(call: Call, request: MetricsRequest) -> Doc:
    """Refuse: lite keeps no history of how long its queues were."""
    raise errors.NOT_IMPLEMENTED("queues.get_queue_metrics: lite keeps no history of queues")
