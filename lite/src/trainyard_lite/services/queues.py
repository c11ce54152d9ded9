"""``queues.*``: where experiments wait.

The entries live in a table of their own, a row per waiting task, ordered by ``position``.  A task that a worker took
leaves the row and gets a lease instead: if the worker dies before it started the task, the task goes back to the front.
Agents tell their host's name with ``get_next_task``, not their worker id; the first status report that names the task
tells whose the lease is.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from pydantic import Field

from .. import _errors as errors
from .._clock import now
from .._collections import QUEUES, TASKS
from .._refs import expand, split_references
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc, new_id

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
_REFS = {"company": "company", "user": "user"}


def get_queue(db: sqlite3.Connection, id_: str) -> Doc:
    """Read a queue.

    Raises:
        ApiError: 400 if there is none.
    """
    queue = QUEUES.get(db, id_)
    if queue is None:
        raise errors.INVALID_QUEUE_ID(id=id_, company=COMPANY_ID)
    return queue


def _check_name(db: sqlite3.Connection, name: str, own: str = "") -> str:
    name = name.strip()
    if len(name) < 3:
        raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    if QUEUES.count(db, "name = ? AND id <> ?", (name, own)):
        raise errors.EXPECTED_UNIQUE_DATA(name=name, company=COMPANY_ID)
    return name


def _create(db: sqlite3.Connection, name: str, **fields: Any) -> Doc:
    name = _check_name(db, name)
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
        return _create(db, name)
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
    return _create(db, "default", system_tags=["default"])


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
    _touch(db, queue_id)


def remove_task(db: sqlite3.Connection, task_id: str) -> str | None:
    """Take a task out of whatever queue it waits in; answers that queue's id."""
    db.execute("DELETE FROM queue_lease WHERE task = ?", (task_id,))
    row = db.execute("DELETE FROM queue_entry WHERE task = ? RETURNING queue", (task_id,)).fetchone()
    return row[0] if row else None


def _put_back(db: sqlite3.Connection, task: Doc, queue_id: str, added: str) -> bool:
    """Return a task to the front of its queue, or, if that is gone, make it what it was before."""
    from .tasks import leave_queue

    if QUEUES.get(db, queue_id) is None:
        leave_queue(db, task["id"], task.get("last_changed_by") or "", "The queue was deleted")
        return False
    done = db.execute(
        "INSERT OR IGNORE INTO queue_entry (task, queue, position, added) VALUES (?, ?, ?, ?)",
        (task["id"], queue_id, _edge(db, queue_id, "min") - 1, added),
    )
    _touch(db, queue_id)
    return done.rowcount == 1


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


def _touch(db: sqlite3.Connection, queue_id: str) -> None:
    queue = QUEUES.get(db, queue_id)
    if queue is not None:
        queue["last_update"] = now()
        QUEUES.put(db, queue)


def _entries(db: sqlite3.Connection, queue: str, limit: int = -1) -> list[Doc]:
    rows = db.execute("SELECT task, added FROM queue_entry WHERE queue = ? ORDER BY position LIMIT ?", (queue, limit))
    return [dict(row) for row in rows]


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
        return {"id": _create(db, request.name, **fields)["id"]}


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
    return {"queue": {**queue, "entries": _entries(db, queue["id"], limit)}}


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
            queue["entries"] = _entries(db, queue["id"], -1 if limit is None else limit)
    if ex:
        _describe(db, queues)
    return {"queues": queues, **({"scroll_id": scroll["scroll_id"]} if scroll else {})}


def _describe(db: sqlite3.Connection, queues: list[Doc]) -> None:
    """Name the waiting tasks and the workers of queues."""
    from .workers import workers_by_queue

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
            fields["name"] = _check_name(db, fields["name"], own=queue["id"])
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
        if _entries(db, queue["id"], 1) and not request.force:
            raise errors.QUEUE_NOT_EMPTY("use force=true to delete", id=queue["id"])
        _clear(db, queue["id"], call.identity.user, "Queue was deleted")
        return {"deleted": QUEUES.delete(db, [queue["id"]])}


def _clear(db: sqlite3.Connection, queue: str, user: str, reason: str) -> list[str]:
    from .tasks import leave_queue

    ids = [entry["task"] for entry in _entries(db, queue)]
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
        _touch(db, queue["id"])
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
        task = TASKS.get(db, request.task)
        if task is None:
            raise errors.INVALID_TASK_ID(id=request.task, company=COMPANY_ID)
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
    from .tasks import leave_queue

    with call.db.write() as db:
        queue = get_queue(db, request.queue)
        if not _position(db, queue["id"], request.task):
            raise errors.INVALID_QUEUE_OR_TASK_NOT_QUEUED(task=request.task, id=queue["id"], company=COMPANY_ID)
        remove_task(db, request.task)
        if request.update_task_status:
            leave_queue(db, request.task, call.identity.user, f"Task was removed from the queue {queue['id']}")
        _touch(db, queue["id"])
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
    if not _entries(db, request.queue, 1):
        return {}
    with call.db.write() as db:
        while True:
            row = db.execute(
                "DELETE FROM queue_entry WHERE task ="
                " (SELECT task FROM queue_entry WHERE queue = ?1 ORDER BY position LIMIT 1)"
                " AND (?2 IS NULL OR task = ?2) RETURNING task, added",
                (request.queue, request.task),
            ).fetchone()
            if row is None:
                return {}
            task = TASKS.get(db, row["task"])
            if task is not None:
                break
        if task["status"] == "stopped":  # stopped while it was put here: the official server mends it so too
            task["status"] = "queued"
            TASKS.put(db, task)
        worker = call.worker if call.worker and call.worker != "<unknown>" else ""
        db.execute(
            "INSERT OR REPLACE INTO queue_lease (task, queue, worker, user, taken, added) VALUES (?, ?, ?, ?, ?, ?)",
            (row["task"], request.queue, worker, call.identity.user, now(), row["added"]),
        )
        _touch(db, request.queue)
    answer: Doc = {"entry": {"task": row["task"], "added": row["added"]}}
    if request.get_task_info:
        answer["task_info"] = {"company": COMPANY_ID, "user": task.get("user")}
    return answer


@endpoint("queues.peek_task", since="2.15")
def peek_task(call: Call, request: QueueRequest) -> Doc:
    """Tell the first task of a queue."""
    db = call.db.read()
    entries = _entries(db, get_queue(db, request.queue)["id"], 1)
    return {"task": entries[0]["task"] if entries else None}


@endpoint("queues.get_num_entries", since="2.4")
def get_num_entries(call: Call, request: QueueRequest) -> Doc:
    """Count the tasks that wait."""
    db = call.db.read()
    queue = get_queue(db, request.queue)["id"]
    row = db.execute("SELECT count(*) FROM queue_entry WHERE queue = ?", (queue,)).fetchone()
    return {"num": row[0]}


def _position(db: sqlite3.Connection, queue: str, task: str) -> tuple[int, float] | None:
    row = db.execute(
        "SELECT position, (SELECT count(*) FROM queue_entry AS e WHERE e.queue = q.queue AND e.position < q.position)"
        " FROM queue_entry AS q WHERE queue = ? AND task = ?",
        (queue, task),
    ).fetchone()
    return (row[1], row[0]) if row else None


class MoveRequest(Request):
    """Which task in which queue, and by how many places."""

    queue: str
    task: str
    count: int = Field(default=1, ge=0, le=2**31)


def _move(call: Call, request: MoveRequest, to: str) -> Doc:
    with call.db.write() as db:
        queue = get_queue(db, request.queue)["id"]
        place = _position(db, queue, request.task)
        if place is None:
            raise errors.INVALID_QUEUE_OR_TASK_NOT_QUEUED(task=request.task, id=queue, company=COMPANY_ID)
        order = [entry["task"] for entry in _entries(db, queue)]
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
        _touch(db, queue)
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
