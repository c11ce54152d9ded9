"""``tasks.*``: experiments."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from .. import _errors as errors
from .._clock import now, parse_time
from .._collections import PROJECTS, TASKS
from .._refs import DELETED, check_reference, expand, split_references
from .._rpc import Call, OpenRequest, Request, endpoint, parse_request
from .._store import Doc
from ..domain import life
from ..domain.projects import HIDDEN, descendants, find_or_create_project, touch_project
from ..domain.queues import remove_task
from ..domain.tasks import ARCHIVED, DEVELOPMENT, TYPES, get_task, new_task
from ..domain.workers import is_served

_REFS = {
    "company": "company",
    "user": "user",
    "project": "project",
    "parent": "task",
    "execution.queue": "queue",
    "models.input.model": "model",
    "models.output.model": "model",
}
_RUNNING = ("created", "in_progress")
Mode = Literal["input", "output"]
Params = dict[str, dict[str, dict[str, Any]]]


class Artifact(Request):
    """A file or value that a task took or made; ``hash`` is its SHA-256, ``content_size`` bytes."""

    key: str = Field(min_length=1)
    type: str
    mode: Mode = "output"
    uri: str | None = None
    content_size: int | None = None
    hash: str | None = None
    timestamp: int | None = None
    type_data: dict[str, Any] | None = None
    display_data: list[Any] | None = None


class TaskFields(Request):
    """What a client may say of a task; ``output_dest`` becomes ``output.destination``."""

    tags: list[str] | None = None
    system_tags: list[str] | None = None
    comment: str | None = None
    parent: str | None = None
    project: str | None = None
    error: str | None = None
    input: dict[str, Any] | None = None
    models: dict[str, list[dict[str, Any]]] | None = None
    container: dict[str, Any] | None = None
    output_dest: str | None = None
    execution: dict[str, Any] | None = None
    hyperparams: Params | None = None
    configuration: dict[str, dict[str, Any]] | None = None
    script: dict[str, Any] | None = None
    runtime: dict[str, Any] | None = None


class CreateRequest(TaskFields):
    """A new task."""

    name: str
    type: str


def _check_type(kind: str | None) -> None:
    if kind is not None and kind not in TYPES:
        raise errors.VALIDATION_ERROR(f"error for field 'type': value '{kind}' is not a valid choice.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _clean_fields(db: sqlite3.Connection, request: TaskFields, old: Doc | None = None) -> Doc:
    """Check what a client says of a task, and bring it into the document's form."""
    fields = request.model_dump(exclude_unset=True, exclude_none=True, exclude={"task", "force"})
    old = old or {}
    if "name" in fields:
        fields["name"] = fields["name"].strip()
        if len(fields["name"]) < 3:
            raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    _check_type(fields.get("type"))
    if fields.get("project"):
        check_reference(db, "project", fields["project"], "project")
    if fields.get("parent") and not fields["parent"].startswith(DELETED):
        check_reference(db, "task", fields["parent"], "parent")
    for name in ("tags", "system_tags"):
        if name in fields:
            fields[name] = sorted(set(fields[name]))
    output = {}
    if "output_dest" in fields:
        output["destination"] = fields.pop("output_dest")
    if "error" in fields:
        output["error"] = fields.pop("error")
    if output:
        fields["output"] = old.get("output", {}) | output
    if "hyperparams" in fields:
        for section, params in fields["hyperparams"].items():
            for name, param in params.items():
                param |= {"section": section, "name": name, "value": _text(param.get("value"))}
    if "configuration" in fields:
        for name, item in fields["configuration"].items():
            item |= {"name": item.get("name") or name, "value": _text(item.get("value"))}
    if "execution" in fields:
        artifacts = fields["execution"].get("artifacts")
        if artifacts is not None:
            fields["execution"]["artifacts"] = _artifacts([], _parse_artifacts(artifacts))
    if "models" in fields:
        if set(fields["models"]) - {"input", "output"}:
            raise errors.VALIDATION_ERROR("models may have input and output", field="models")
        for items in fields["models"].values():
            for item in items:
                item["updated"] = now()
    # Parts of these say nothing of the parts that are not named.
    for name in ("execution", "script", "models"):
        if name in fields and name in old:
            fields[name] = old[name] | fields[name]
    return fields


def _parse_artifacts(items: Any) -> list[Doc]:
    if isinstance(items, dict):  # the official server stores them as an object, and tells them as a list
        items = list(items.values())
    if not isinstance(items, list) or not all(
        isinstance(i, dict) and isinstance(i.get("key"), str) and i.get("mode", "output") in ("input", "output")
        for i in items
    ):
        raise errors.VALIDATION_ERROR("execution.artifacts must be a list of artifacts with a key", field="execution")
    return items


def _artifacts(old: Sequence[Doc], new: Iterable[Doc]) -> list[Doc]:
    merged = {(a["key"], a.get("mode", "output")): a for a in old}
    for artifact in new:
        merged[artifact["key"], artifact.setdefault("mode", "output")] = artifact
    return [merged[key] for key in sorted(merged)]


@endpoint("tasks.create")
def create(call: Call, request: CreateRequest) -> Doc:
    """Create a task."""
    with call.db.write() as db:
        task = new_task(call.identity.user, _clean_fields(db, request))
        TASKS.put(db, task)
        touch_project(db, task.get("project"))
    return {"id": task["id"]}


@endpoint("tasks.validate")
def validate(call: Call, request: CreateRequest) -> Doc:
    """Check a task without creating it."""
    _clean_fields(call.db.read(), request)
    return {}


class TaskRequest(Request):
    """Which task."""

    task: str


class EditRequest(TaskFields):
    """What changes of a task that has not run; ``force`` allows it in every status (so the SDK archives)."""

    task: str
    force: bool = False
    name: str | None = None
    type: str | None = None


def _writable(task: Doc, force: bool, also: Sequence[str] = ()) -> None:
    allowed = ["created", *also, *(("queued", "in_progress") if force else ())]
    if task["status"] not in allowed:
        raise errors.INVALID_TASK_STATUS(expected="created", status=task["status"])


def _save(db: sqlite3.Connection, task: Doc, user: str, *, touch: bool = True) -> Doc:
    moment = now()
    stamp = {"last_change": moment, "last_changed_by": user} | ({"last_update": moment} if touch else {})
    task |= stamp
    TASKS.put(db, task)
    return stamp


@endpoint("tasks.edit")
def edit(call: Call, request: EditRequest) -> Doc:
    """Change a task's description."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        if not request.force:
            _writable(task, False)
        fields = _clean_fields(db, request, task)
        if not fields:
            return {"updated": 0, "fields": {}}
        moved = fields.get("project") not in (None, task.get("project"))
        if moved:
            touch_project(db, task.get("project"))
        task |= fields
        fields |= _save(db, task, call.identity.user)
        if moved:
            touch_project(db, task["project"])
    return {"updated": 1, "fields": fields}


class UpdateRequest(Request):
    """What may change in every status."""

    task: str
    name: str | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    comment: str | None = None
    project: str | None = None
    output__error: str | None = None
    created: str | None = None


def _update(db: sqlite3.Connection, request: UpdateRequest, user: str) -> Doc:
    task = get_task(db, request.task)
    fields = request.model_dump(exclude={"task"}, exclude_unset=True, exclude_none=True)
    if "name" in fields and len(fields["name"].strip()) < 3:
        raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    if fields.get("project"):
        check_reference(db, "project", fields["project"], "project")
    for name in ("tags", "system_tags"):
        if name in fields:
            fields[name] = sorted(set(fields[name]))
    if "created" in fields:
        try:
            fields["created"] = parse_time(fields["created"])
        except (ValueError, OverflowError) as error:
            raise errors.VALIDATION_ERROR(f"created: {fields['created']!r} is no time", field="created") from error
    if not fields:
        return {"updated": 0, "fields": {}}
    changes = dict(fields)
    if "output__error" in changes:
        task["output"]["error"] = changes.pop("output__error")
    task |= changes
    fields |= _save(db, task, user, touch=False)
    touch_project(db, task.get("project"))
    return {"updated": 1, "fields": fields}


@endpoint("tasks.update")
def update(call: Call, request: UpdateRequest) -> Doc:
    """Change name, tags, comment or project of a task in any status."""
    with call.db.write() as db:
        return _update(db, request, call.identity.user)


@endpoint("tasks.update_batch")
def update_batch(call: Call, request: OpenRequest) -> Doc:
    """Update many tasks: a JSON line for each."""
    if not call.batch:
        raise errors.BATCH_CONTAINS_NO_ITEMS()
    updated = 0
    with call.db.write() as db:
        for item in call.batch:
            parsed = parse_request(UpdateRequest, item, "tasks.update_batch")
            assert isinstance(parsed, UpdateRequest)
            updated += _update(db, parsed, call.identity.user)["updated"]
    return {"updated": updated}


# Reading


@endpoint("tasks.get_by_id")
def get_by_id(call: Call, request: TaskRequest) -> Doc:
    """Read a task whole."""
    task = TASKS.get(call.db.read(), request.task)
    if task is None:
        raise errors.INVALID_TASK_ID(ids=(request.task,))
    return {"task": _visible(task)}


def _visible(task: Doc) -> Doc:
    """Leave out fields that were unset: the official server tells no nulls."""
    return {key: value for key, value in task.items() if value is not None}


def _scope(call: Call, args: Doc) -> tuple[str, list[Any], Doc]:
    """Translate the arguments of a list that are no filters of one field."""
    args = dict(args)
    where: list[str] = []
    values: list[Any] = []
    tags = args.get("system_tags")
    tags = [tags] if isinstance(tags, str) else tags or []
    if not args.get("search_hidden") and not args.get("id") and HIDDEN not in tags:
        where.append(f"NOT EXISTS (SELECT 1 FROM json_each(system_tags) WHERE value = '{HIDDEN}')")
    projects = args.get("project")
    if projects and args.get("include_subprojects"):
        projects = [projects] if isinstance(projects, str) else projects
        if not isinstance(projects, list) or not all(isinstance(p, str) for p in projects):
            raise errors.FIELDS_TYPE_ERROR("a list of project ids is expected", field="project")
        args["project"] = descendants(call.db.read(), projects) or projects
    if (kinds := args.get("type")) is not None:
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if isinstance(kind, str) and not kind.startswith("__$"):
                _check_type(kind.removeprefix("-"))
    return " AND ".join(where) or "1", values, args


_IGNORED = ("include_subprojects", "allow_public")  # handled by _scope, or without a meaning in a site of one company


def _list(call: Call, args: Doc, *, ex: bool) -> Doc:
    where, values, args = _scope(call, args)
    db = call.db.read()
    only = TASKS.only_fields(args)
    own, targets = split_references(only, _REFS)
    if not ex and targets:
        name = next(f"{path}.{fields[0]}" for path, fields in targets.items())
        raise errors.FIELDS_LOOKUP_ERROR(err=f'Cannot resolve field "{name}"')
    scroll: Doc = {}
    tasks = TASKS.find(
        db,
        {**args, "only_fields": own, "projection": None},
        where=where,
        values=values,
        default_order=("-last_update",),
        ignore=_IGNORED,
        scroll=scroll,
        raw=call.raw and not ex,
    )
    tasks = [_visible(task) if isinstance(task, dict) else task for task in tasks]
    if ex:
        expand(db, tasks, _REFS, targets)
        if not only:
            for task in tasks:
                task.pop("unique_metrics", None)
    return {"tasks": tasks, **({"scroll_id": scroll["scroll_id"]} if "scroll_id" in scroll else {})}


@endpoint("tasks.get_all", since="2.0")
def get_all(call: Call, request: OpenRequest) -> Doc:
    """List tasks; references stay ids."""
    return _list(call, request.args(), ex=False)


@endpoint("tasks.get_all_ex", since="2.0")
def get_all_ex(call: Call, request: OpenRequest) -> Doc:
    """List tasks; references become objects with the fields asked for."""
    return _list(call, request.args(), ex=True)


@endpoint("tasks.get_by_id_ex", since="2.0")
def get_by_id_ex(call: Call, request: OpenRequest) -> Doc:
    """Read tasks by id, as ``get_all_ex`` does."""
    args = request.args()
    if not args.get("id"):
        raise errors.MISSING_REQUIRED_FIELDS(missing=("id",))
    return _list(call, args, ex=True)


class TypesRequest(Request):
    """Of which projects (all if none)."""

    projects: list[str] | None = None


@endpoint("tasks.get_types", since="2.8")
def get_types(call: Call, request: TypesRequest) -> Doc:
    """List the types that tasks have."""
    db = call.db.read()
    where, values = "1", []
    if request.projects:
        values = descendants(db, request.projects)
        where = f"project IN ({', '.join('?' * len(values))})"
    rows = db.execute(f"SELECT DISTINCT type FROM task WHERE {where} ORDER BY type", values)
    return {"types": [row[0] for row in rows]}


# The life of a task


class StatusRequest(Request):
    """Which task, why, and whether the life cycle counts."""

    task: str
    force: bool = False
    status_reason: str = ""
    status_message: str = ""


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


@endpoint("tasks.stop")
def stop(call: Call, request: StopRequest) -> Doc:
    """Stop a task; one that a worker runs is stopped by that worker, within seconds."""
    with call.db.write() as db:
        return life.stop(
            db,
            get_task(db, request.task),
            call.identity.user,
            call.identity.name,
            reason=request.status_reason,
            force=request.force,
        )


class EnqueueRequest(StatusRequest):
    """Into which queue, by id or by name (which is created when there is none); the default queue otherwise."""

    queue: str | None = None
    queue_name: str | None = None
    verify_watched_queue: bool = False
    update_execution_queue: bool = True


@endpoint("tasks.enqueue")
def enqueue(call: Call, request: EnqueueRequest) -> Doc:
    """Put a task into a queue."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        result = life.enqueue(
            db,
            task,
            call.identity.user,
            queue=request.queue,
            queue_name=request.queue_name,
            reason=request.status_reason,
            message=request.status_message,
            force=request.force,
            update_execution_queue=request.update_execution_queue,
        )
        answer = {"queued": 1, **result}
        if request.verify_watched_queue:
            answer["queue_watched"] = is_served(db, task["execution"]["queue"])
    return answer


class DequeueRequest(StatusRequest):
    """A task waits in one queue only, so ``remove_from_all_queues`` is of no account."""

    remove_from_all_queues: bool = False
    new_status: str | None = None


@endpoint("tasks.dequeue")
def dequeue(call: Call, request: DequeueRequest) -> Doc:
    """Take a task out of its queue."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        result = life.dequeue(
            db,
            task,
            call.identity.user,
            reason=request.status_reason,
            message=request.status_message,
            new_status=request.new_status,
        )
    return {"dequeued": 1, **result}


class PublishRequest(StatusRequest):
    """``publish_model`` publishes the last output model too."""

    publish_model: bool = True


@endpoint("tasks.publish")
def publish(call: Call, request: PublishRequest) -> Doc:
    """Publish a task."""
    with call.db.write() as db:
        return life.publish(
            db,
            get_task(db, request.task),
            call.identity.user,
            force=request.force,
            publish_model=request.publish_model,
            reason=request.status_reason,
            message=request.status_message,
        )


class ResetRequest(StatusRequest):
    """``clear_all`` forgets script and execution too; ``return_file_urls`` tells what files there were.

    Files stay until the client deletes them: lite deletes none behind its back (``delete_external_artifacts``).
    """

    clear_all: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True


def _reset(db: sqlite3.Connection, call: Call, task: Doc, request: ResetRequest | ResetManyRequest) -> Doc:
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
        return _reset(db, call, get_task(db, request.task), request)


class DeleteRequest(StatusRequest):
    """``return_file_urls`` tells what files there were; they stay until the client deletes them."""

    move_to_trash: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True
    include_pipeline_steps: bool = False


def _delete(db: sqlite3.Connection, task: Doc, request: DeleteRequest | DeleteManyRequest) -> Doc:
    result = life.delete(db, task, force=request.force, delete_output_models=request.delete_output_models)
    if not request.return_file_urls:
        result["urls"] = None
    return result


@endpoint("tasks.delete")
def delete(call: Call, request: DeleteRequest) -> Doc:
    """Delete a task."""
    with call.db.write() as db:
        return {"deleted": True, **_delete(db, get_task(db, request.task), request)}


# Many at once


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


class ResetManyRequest(ManyRequest):
    """As in ``tasks.reset``."""

    clear_all: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True


@endpoint("tasks.reset_many", since="2.13")
def reset_many(call: Call, request: ResetManyRequest) -> Doc:
    """Make drafts of tasks again."""

    def one(db: sqlite3.Connection, task: Doc) -> Doc:
        result = _reset(db, call, task, request)
        return {**result, "dequeued": bool(result["dequeued"])}

    return _many(call, request.ids, one)


class DeleteManyRequest(ManyRequest):
    """As in ``tasks.delete``."""

    move_to_trash: bool = False
    return_file_urls: bool = False
    delete_output_models: bool = True
    delete_external_artifacts: bool = True
    include_pipeline_steps: bool = False


@endpoint("tasks.delete_many", since="2.13")
def delete_many(call: Call, request: DeleteManyRequest) -> Doc:
    """Delete tasks."""
    return _many(call, request.ids, lambda db, task: {"deleted": True, **_delete(db, task, request)})


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
    _save(db, task, user, touch=False)
    return {"archived": True}


def _unarchive(db: sqlite3.Connection, task: Doc, user: str, reason: str, message: str) -> Doc:
    task["system_tags"] = [tag for tag in task["system_tags"] if tag != ARCHIVED]
    task |= {"status_reason": reason, "status_message": message}
    _save(db, task, user, touch=False)
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


# Clone and move


class InputModel(Request):
    """A model that a task starts from."""

    name: str | None = None
    model: str


class CloneRequest(Request):
    """Which task, and what is different in the copy."""

    task: str
    new_task_name: str | None = None
    new_task_comment: str | None = None
    new_task_tags: list[str] | None = None
    new_task_system_tags: list[str] | None = None
    new_task_parent: str | None = None
    new_task_project: str | None = None
    new_project_name: str | None = None
    new_task_hyperparams: Params | None = None
    new_task_configuration: dict[str, dict[str, Any]] | None = None
    new_task_container: dict[str, Any] | None = None
    new_task_input_models: list[InputModel] | None = None
    execution_overrides: dict[str, Any] | None = None
    validate_references: bool = False


@endpoint("tasks.clone", since="2.5")
def clone(call: Call, request: CloneRequest) -> Doc:
    """Copy a task's description into a new draft; its results stay behind."""
    with call.db.write() as db:
        source = get_task(db, request.task)
        answer: Doc = {}
        project = request.new_task_project or source.get("project")
        if not request.new_task_project and request.new_project_name:
            project = find_or_create_project(db, call.identity.user, request.new_project_name)
            answer["new_project"] = {"id": project, "name": request.new_project_name}
        execution = {k: v for k, v in source["execution"].items() if k != "queue"}
        execution["artifacts"] = [a for a in execution.get("artifacts", []) if a.get("mode") == "input"]
        execution |= request.execution_overrides or {}
        models = [m.model_dump(exclude_none=True) for m in request.new_task_input_models or []]
        system_tags = request.new_task_system_tags
        if system_tags is None:
            system_tags = [t for t in source["system_tags"] if t not in (ARCHIVED, DEVELOPMENT)]
        comment = request.new_task_comment if request.new_task_comment is not None else source.get("comment")
        parent = request.new_task_parent or source.get("parent")
        if not parent or parent.startswith(DELETED):
            parent = source["id"]
        fields = TaskFields(
            tags=request.new_task_tags if request.new_task_tags is not None else source["tags"],
            system_tags=system_tags,
            comment=comment,
            parent=parent,
            project=project,
            models={"input": models or source["models"]["input"], "output": []},
            container=request.new_task_container or source["container"],
            execution=execution,
            hyperparams=request.new_task_hyperparams or source["hyperparams"],
            configuration=request.new_task_configuration or source["configuration"],
            script=source["script"],
        )
        created = CreateRequest(
            name=request.new_task_name or f"Clone Of {source['name']}",
            type=source["type"],
            **fields.model_dump(exclude_none=True),
        )
        task = new_task(call.identity.user, _clean_fields(db, created))
        if destination := source["output"].get("destination"):
            task["output"]["destination"] = destination
        TASKS.put(db, task)
        touch_project(db, task.get("project"))
    return {"id": task["id"], **answer}


class MoveRequest(Request):
    """Which tasks, and into which project (by name: created when there is none)."""

    ids: list[str] = Field(min_length=1)
    project: str | None = None
    project_name: str | None = None


@endpoint("tasks.move", since="2.12")
def move(call: Call, request: MoveRequest) -> Doc:
    """Move tasks into another project."""
    if not request.project and not request.project_name:
        raise errors.MISSING_REQUIRED_FIELDS("project or project_name is required")
    with call.db.write() as db:
        project = request.project or find_or_create_project(db, call.identity.user, request.project_name or "")
        if PROJECTS.get(db, project) is None:
            raise errors.INVALID_PROJECT_ID(id=project)
        for task in [get_task(db, id_) for id_ in request.ids]:
            touch_project(db, task.get("project"))
            task["project"] = project
            _save(db, task, call.identity.user, touch=False)
        touch_project(db, project)
    return {"project_id": project}


class TagsRequest(Request):
    """Which tasks, and which tags come and go."""

    ids: list[str] = Field(min_length=1)
    add_tags: list[str] = []
    remove_tags: list[str] = []


@endpoint("tasks.update_tags", since="2.27")
def update_tags(call: Call, request: TagsRequest) -> Doc:
    """Add and remove tags."""
    if not request.add_tags and not request.remove_tags:
        raise errors.VALIDATION_ERROR("Either add_tags or remove_tags should be provided")
    with call.db.write() as db:
        for task in [get_task(db, id_) for id_ in request.ids]:
            task["tags"] = sorted(({*task["tags"]} | {*request.add_tags}) - {*request.remove_tags})
            _save(db, task, call.identity.user, touch=False)
    return {"updated": len(request.ids)}


# Parameters and configuration


class TasksRequest(Request):
    """Which tasks."""

    tasks: list[str] = Field(min_length=1)


@endpoint("tasks.get_hyper_params", since="2.9")
def get_hyper_params(call: Call, request: TasksRequest) -> Doc:
    """Read the hyperparameters of tasks."""
    db = call.db.read()
    answer = []
    for id_ in request.tasks:
        sections = get_task(db, id_)["hyperparams"]
        items = [sections[s][n] for s in sorted(sections) for n in sorted(sections[s])]
        answer.append({"task": id_, "hyperparams": items})
    return {"params": answer}


class HyperParam(Request):
    """A parameter; values are text."""

    section: str = Field(min_length=1)
    name: str = Field(min_length=1)
    value: str
    type: str | None = None
    description: str | None = None


class EditHyperParamsRequest(Request):
    """Parameters to set; ``replace_hyperparams`` first empties all (``all``) or the sections named (``section``)."""

    task: str
    force: bool = False
    hyperparams: list[HyperParam] = Field(min_length=1)
    replace_hyperparams: Literal["none", "section", "all"] = "none"


def _params_writable(task: Doc, sections: Iterable[str], force: bool) -> None:
    if set(sections) - {"properties"}:  # properties describe a task, they may change in every status
        _writable(task, force)


@endpoint("tasks.edit_hyper_params", since="2.9")
def edit_hyper_params(call: Call, request: EditHyperParamsRequest) -> Doc:
    """Set hyperparameters."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        named = {param.section for param in request.hyperparams}
        _params_writable(task, named, request.force)
        old = {} if request.replace_hyperparams == "all" else task["hyperparams"]
        if request.replace_hyperparams == "section":
            old = {section: params for section, params in old.items() if section not in named}
        for param in request.hyperparams:
            old.setdefault(param.section, {})[param.name] = param.model_dump(exclude_none=True)
        task["hyperparams"] = old
        _save(db, task, call.identity.user)
    return {"updated": 1}


class HyperParamKey(Request):
    """A parameter, or a whole section when no name is given."""

    section: str = Field(min_length=1)
    name: str | None = None


class DeleteHyperParamsRequest(Request):
    """Parameters to delete."""

    task: str
    force: bool = False
    hyperparams: list[HyperParamKey] = Field(min_length=1)


@endpoint("tasks.delete_hyper_params", since="2.9")
def delete_hyper_params(call: Call, request: DeleteHyperParamsRequest) -> Doc:
    """Delete hyperparameters."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _params_writable(task, {key.section for key in request.hyperparams}, request.force)
        for key in request.hyperparams:
            if key.name is None:
                task["hyperparams"].pop(key.section, None)
            else:
                task["hyperparams"].get(key.section, {}).pop(key.name, None)
        task["hyperparams"] = {section: params for section, params in task["hyperparams"].items() if params}
        _save(db, task, call.identity.user)
    return {"deleted": 1}


class ConfigurationsRequest(TasksRequest):
    """Which items (all if none)."""

    names: list[str] | None = None


@endpoint("tasks.get_configurations", since="2.9")
def get_configurations(call: Call, request: ConfigurationsRequest) -> Doc:
    """Read the configuration of tasks."""
    db = call.db.read()
    answer = []
    for id_ in request.tasks:
        items = get_task(db, id_)["configuration"]
        wanted = [items[name] for name in sorted(items) if not request.names or name in request.names]
        answer.append({"task": id_, "configuration": wanted})
    return {"configurations": answer}


class ConfigurationNamesRequest(TasksRequest):
    """``skip_empty`` leaves out items without a value."""

    skip_empty: bool = True


@endpoint("tasks.get_configuration_names", since="2.9")
def get_configuration_names(call: Call, request: ConfigurationNamesRequest) -> Doc:
    """List the names of configuration items."""
    db = call.db.read()
    answer = []
    for id_ in request.tasks:
        items = get_task(db, id_)["configuration"]
        names = sorted(n for n, item in items.items() if item.get("value") or not request.skip_empty)
        answer.append({"task": id_, "names": names})
    return {"configurations": answer}


class ConfigurationItem(Request):
    """A configuration item; values are text."""

    name: str = Field(min_length=1)
    value: str
    type: str | None = None
    description: str | None = None


class EditConfigurationRequest(Request):
    """Items to set; ``replace_configuration`` drops all others."""

    task: str
    force: bool = False
    configuration: list[ConfigurationItem] = Field(min_length=1)
    replace_configuration: bool = False


@endpoint("tasks.edit_configuration", since="2.9")
def edit_configuration(call: Call, request: EditConfigurationRequest) -> Doc:
    """Set configuration items."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, request.force)
        items = {item.name: item.model_dump(exclude_none=True) for item in request.configuration}
        task["configuration"] = items if request.replace_configuration else task["configuration"] | items
        _save(db, task, call.identity.user)
    return {"updated": 1}


class DeleteConfigurationRequest(Request):
    """Items to delete."""

    task: str
    force: bool = False
    configuration: list[str] = Field(min_length=1)


@endpoint("tasks.delete_configuration", since="2.9")
def delete_configuration(call: Call, request: DeleteConfigurationRequest) -> Doc:
    """Delete configuration items."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, request.force)
        for name in request.configuration:
            task["configuration"].pop(name, None)
        _save(db, task, call.identity.user)
    return {"deleted": 1}


class RequirementsRequest(Request):
    """Package lists by manager, such as ``{"pip": "numpy==2.1"}``."""

    task: str
    requirements: dict[str, Any]


@endpoint("tasks.set_requirements", since="2.1")
def set_requirements(call: Call, request: RequirementsRequest) -> Doc:
    """Set the packages that a task needs."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        task["script"]["requirements"] = request.requirements
        _save(db, task, call.identity.user)
    return {"updated": 1, "fields": {}}


class RuntimeRequest(Request):
    """Values to set (``runtime`` or ``add_or_update``) and keys to remove."""

    task: str
    force: bool = False
    runtime: dict[str, Any] | None = None
    add_or_update: dict[str, Any] | None = None
    remove: list[str] | None = None


@endpoint("tasks.edit_runtime", since="2.13")
def edit_runtime(call: Call, request: RuntimeRequest) -> Doc:
    """Change what a task noted about its run."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, request.force, also=("in_progress",))
        changes = {**(request.runtime or {}), **(request.add_or_update or {})}
        if not changes and not request.remove:
            return {"updated": 0}
        kept = {k: v for k, v in task["runtime"].items() if k not in (request.remove or ())}
        task["runtime"] = kept | changes
        _save(db, task, call.identity.user)
    return {"updated": 1}


# Artifacts and models


class ArtifactsRequest(Request):
    """Artifacts to add or replace."""

    task: str
    force: bool = False
    artifacts: list[Artifact] = Field(min_length=1)


@endpoint("tasks.add_or_update_artifacts", since="2.10")
def add_or_update_artifacts(call: Call, request: ArtifactsRequest) -> Doc:
    """Add artifacts; one of the same key and mode is replaced."""
    new = [artifact.model_dump(exclude_none=True) for artifact in request.artifacts]
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, request.force, also=_RUNNING)
        task["execution"]["artifacts"] = _artifacts(task["execution"]["artifacts"], new)
        _save(db, task, call.identity.user)
    return {"updated": 1}


class ArtifactKey(Request):
    """Which artifact."""

    key: str
    mode: Mode = "output"


class DeleteArtifactsRequest(Request):
    """Artifacts to forget; their files stay."""

    task: str
    force: bool = False
    artifacts: list[ArtifactKey] = Field(min_length=1)


@endpoint("tasks.delete_artifacts", since="2.10")
def delete_artifacts(call: Call, request: DeleteArtifactsRequest) -> Doc:
    """Forget artifacts."""
    gone = {(a.key, a.mode) for a in request.artifacts}
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, request.force, also=_RUNNING)
        kept = [a for a in task["execution"]["artifacts"] if (a["key"], a.get("mode", "output")) not in gone]
        task["execution"]["artifacts"] = kept
        _save(db, task, call.identity.user)
    return {"deleted": 1}


class ModelRequest(Request):
    """A model by the name that the task gives it."""

    task: str
    name: str = Field(min_length=1)
    model: str
    type: Mode
    iteration: int | None = Field(default=None, ge=-(2**31), le=2**53)


@endpoint("tasks.add_or_update_model", since="2.13")
def add_or_update_model(call: Call, request: ModelRequest) -> Doc:
    """Link a model to a task."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, True, also=_RUNNING)
        items = [m for m in task["models"][request.type] if m.get("name") != request.name]
        task["models"][request.type] = [*items, {"name": request.name, "model": request.model, "updated": now()}]
        if request.iteration is not None:
            task["last_iteration"] = max(task["last_iteration"], request.iteration)
        _save(db, task, call.identity.user)
    return {"updated": 1}


class ModelKey(Request):
    """Which link."""

    name: str
    type: Mode


class DeleteModelsRequest(Request):
    """Links to forget; the models stay."""

    task: str
    models: list[ModelKey] = Field(min_length=1)


@endpoint("tasks.delete_models", since="2.13")
def delete_models(call: Call, request: DeleteModelsRequest) -> Doc:
    """Unlink models."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        _writable(task, True, also=_RUNNING)
        for key in request.models:
            task["models"][key.type] = [m for m in task["models"][key.type] if m.get("name") != key.name]
        _save(db, task, call.identity.user)
    return {"updated": 1}
