"""``models.*``: weights that experiments made or started from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from .. import _errors as errors
from .._clock import now
from .._collections import MODELS, PROJECTS, TASKS
from .._errors import ApiError
from .._refs import DELETED, expand, split_references
from .._rpc import Call, OpenRequest, Request, endpoint, for_each
from .._settings import COMPANY_ID
from .._store import Doc, new_id
from ..domain import life
from ..domain.events.store import delete_task_events
from ..domain.projects import HIDDEN, descendants, project_for, touch_project
from ..domain.tasks import ARCHIVED, get_task

_REFS = {"company": "company", "user": "user", "project": "project", "task": "task", "parent": "model"}


def get_model(db: sqlite3.Connection, id_: str) -> Doc:
    """Read a model.

    Raises:
        ApiError: 400 if there is none.
    """
    model = MODELS.get(db, id_)
    if model is None:
        raise errors.INVALID_MODEL_ID(company=COMPANY_ID, id=id_)
    return model


class ModelFields(Request):
    """What a client may say of a model; ``labels`` maps class names to integers."""

    name: str | None = None
    uri: str | None = None
    comment: str | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    framework: str | None = None
    design: dict[str, Any] | None = None
    labels: dict[str, int] | None = None
    ready: bool | None = None
    project: str | None = None
    parent: str | None = None
    task: str | None = None
    created: str | None = None
    metadata: dict[str, dict[str, Any]] | None = None


class CreateRequest(ModelFields):
    """A new model; ``public`` is not known in a site of one company."""

    name: str
    uri: str
    public: bool = False


def _clean(db: sqlite3.Connection, request: ModelFields, exclude: set[str]) -> Doc:
    fields = request.model_dump(exclude_unset=True, exclude_none=True, exclude=exclude)
    if "name" in fields and len(fields["name"].strip()) < 3:
        raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    if fields.get("project") and PROJECTS.get(db, fields["project"]) is None:
        raise errors.VALIDATION_ERROR("Invalid project ids", project=fields["project"])
    if fields.get("task") and not fields["task"].startswith(DELETED):
        get_task(db, fields["task"])
    for name in ("tags", "system_tags"):
        if name in fields:
            fields[name] = sorted(set(fields[name]))
    return fields


def _save(db: sqlite3.Connection, model: Doc, user: str) -> Doc:
    moment = now()
    stamp = {"last_update": moment, "last_change": moment, "last_changed_by": user}
    model |= stamp
    MODELS.put(db, model)
    touch_project(db, model.get("project"))
    return stamp


@endpoint("models.create")
def create(call: Call, request: CreateRequest) -> Doc:
    """Create a model."""
    with call.db.write() as db:
        fields = _clean(db, request, {"public"})
        task = TASKS.get(db, fields["task"]) if fields.get("task") else None
        model: Doc = {
            "id": new_id(),
            "company": COMPANY_ID,
            "user": call.identity.user,
            "created": now(),
            "tags": [],
            "system_tags": [],
            "design": {},
            "labels": {},
            "ready": True,
            "metadata": {},
            "last_iteration": 0,
            "last_metrics": {},
            **fields,
        }
        if task and task.get("project") and not model.get("project"):
            model["project"] = task["project"]
        _save(db, model, call.identity.user)
    return {"created": True, "id": model["id"]}


class ModelRequest(Request):
    """Which model."""

    model: str


@endpoint("models.get_by_id")
def get_by_id(call: Call, request: ModelRequest) -> Doc:
    """Read a model."""
    model = MODELS.get(call.db.read(), request.model)
    if model is None:
        raise errors.INVALID_MODEL_ID("no such public or company model", id=request.model, company=COMPANY_ID)
    return {"model": model}


@endpoint("models.get_by_task_id", since="2.0")
def get_by_task_id(call: Call, request: OpenRequest) -> Doc:
    """Refuse, as the official server does since API 2.13."""
    raise ApiError(301, 1, "This endpoint is no longer supported for the requested api version (use tasks.get_by_id)")


@endpoint("models.update_for_task", since="2.0")
def update_for_task(call: Call, request: OpenRequest) -> Doc:
    """Refuse, as the official server does since API 2.13."""
    raise ApiError(
        301, 1, "This endpoint is no longer supported for the requested api version (use tasks.add_or_update_model)"
    )


def _list(call: Call, args: Doc, *, ex: bool) -> Doc:
    db = call.db.read()
    where = "1"
    if not args.get("search_hidden") and not args.get("id"):
        where = f"NOT EXISTS (SELECT 1 FROM json_each(system_tags) WHERE value = '{HIDDEN}')"
    projects = args.get("project")
    if projects and args.get("include_subprojects"):
        projects = [projects] if isinstance(projects, str) else projects
        if not isinstance(projects, list) or not all(isinstance(p, str) for p in projects):
            raise errors.FIELDS_TYPE_ERROR("a list of project ids is expected", field="project")
        args = {**args, "project": descendants(db, projects) or projects}
    only = MODELS.only_fields(args)
    own, targets = split_references(only, _REFS)
    scroll: Doc = {}
    models = MODELS.find(
        db,
        {**args, "only_fields": own, "projection": None},
        where=where,
        default_order=("-last_update",),
        ignore=("include_subprojects", "allow_public", "include_stats"),
        scroll=scroll,
    )
    if ex:
        if args.get("include_stats"):
            for model in models:
                whole = MODELS.get(db, model["id"]) or {}
                model["stats"] = {"labels_count": len(whole.get("labels") or {})}
        expand(db, models, _REFS, targets)
    return {"models": models, **({"scroll_id": scroll["scroll_id"]} if "scroll_id" in scroll else {})}


@endpoint("models.get_all", since="2.0")
def get_all(call: Call, request: OpenRequest) -> Doc:
    """List models; references stay ids."""
    return _list(call, request.args(), ex=False)


@endpoint("models.get_all_ex", since="2.0")
def get_all_ex(call: Call, request: OpenRequest) -> Doc:
    """List models; references become objects with the fields asked for."""
    return _list(call, request.args(), ex=True)


@endpoint("models.get_by_id_ex", since="2.0")
def get_by_id_ex(call: Call, request: OpenRequest) -> Doc:
    """Read models by id, as ``get_all_ex`` does."""
    args = request.args()
    if not args.get("id"):
        raise errors.MISSING_REQUIRED_FIELDS(missing=("id",))
    return _list(call, args, ex=True)


class FrameworksRequest(Request):
    """Of which projects (all if none)."""

    projects: list[str] | None = None


@endpoint("models.get_frameworks", since="2.8")
def get_frameworks(call: Call, request: FrameworksRequest) -> Doc:
    """List the frameworks that models have."""
    db = call.db.read()
    where, values = "framework IS NOT NULL", []
    if request.projects:
        values = descendants(db, request.projects)
        where += f" AND project IN ({', '.join('?' * len(values))})"
    rows = db.execute(f"SELECT DISTINCT framework FROM model WHERE {where} ORDER BY framework", values)
    return {"frameworks": [row[0] for row in rows]}


class EditRequest(ModelFields):
    """What changes of a model; ``iteration`` moves the last iteration of the task that made it."""

    model: str
    iteration: int | None = Field(default=None, ge=-(2**31), le=2**53)


class UpdateRequest(EditRequest):
    """As ``models.edit``; ``ready`` changes by ``models.set_ready`` and ``models.edit`` alone."""


def _move_iteration(db: sqlite3.Connection, task_id: str | None, iteration: int | None) -> None:
    task = TASKS.get(db, task_id) if task_id and iteration is not None else None
    if task is not None and iteration is not None:
        task["last_iteration"] = max(task["last_iteration"], iteration)
        TASKS.put(db, task)


def _change(call: Call, request: EditRequest, exclude: set[str]) -> Doc:
    with call.db.write() as db:
        model = get_model(db, request.model)
        fields = _clean(db, request, {"model", "iteration", *exclude})
        _move_iteration(db, fields.get("task") or model.get("task"), request.iteration)
        if not fields:
            return {"updated": 0, "fields": {}}
        model |= fields
        stamp = _save(db, model, call.identity.user)
    return {"updated": 1, "fields": fields | stamp}


@endpoint("models.edit")
def edit(call: Call, request: EditRequest) -> Doc:
    """Change a model."""
    return _change(call, request, set())


@endpoint("models.update")
def update(call: Call, request: UpdateRequest) -> Doc:
    """Change a model, but not whether it is ready."""
    return _change(call, request, {"ready"})


class ReadyRequest(Request):
    """``publish_task`` publishes the task that made it too."""

    model: str
    publish_task: bool = False
    force_publish_task: bool = False


def _set_ready(db: sqlite3.Connection, model: Doc, user: str, *, publish_task: bool, force: bool) -> Doc:
    if model.get("ready"):
        raise errors.MODEL_IS_READY(company=COMPANY_ID, model=model["id"])
    answer: Doc = {"updated": 1}
    task = TASKS.get(db, model.get("task") or "") if publish_task else None
    if task is not None and task["status"] != "published":
        data = life.publish(db, task, user, force=force, publish_model=False)
        answer["published_task"] = {"id": task["id"], "data": data}
    _save(db, model | {"ready": True}, user)
    return answer


@endpoint("models.set_ready")
def set_ready(call: Call, request: ReadyRequest) -> Doc:
    """Publish a model."""
    with call.db.write() as db:
        return _set_ready(
            db,
            get_model(db, request.model),
            call.identity.user,
            publish_task=request.publish_task,
            force=request.force_publish_task,
        )


class DeleteRequest(Request):
    """``force`` deletes a model that tasks use; its file stays until the client deletes it."""

    model: str
    force: bool = False
    delete_external_artifacts: bool = True


def _delete(db: sqlite3.Connection, model: Doc, force: bool) -> Doc:
    users = TASKS.select(
        db, "EXISTS (SELECT 1 FROM json_each(doc, '$.models.input') AS m WHERE m.value ->> 'model' = ?)", (model["id"],)
    )
    if users and not force:
        raise errors.MODEL_IN_USE("as execution model, use force=True to delete", num_tasks=len(users))
    maker = TASKS.get(db, model.get("task") or "")
    if maker is not None and maker["status"] == "published" and model.get("ready") and not force:
        raise errors.MODEL_CREATING_TASK_EXISTS(
            "and published, use force=True to delete", model=model["id"], task=maker["id"]
        )
    for task in [*users, *([maker] if maker else [])]:
        for items in task["models"].values():
            for item in items:
                if item.get("model") == model["id"]:
                    item["model"] = f"{DELETED}{model['id']}"
        TASKS.put(db, task)
    delete_task_events(db, [model["id"]])
    MODELS.delete(db, [model["id"]])
    touch_project(db, model.get("project"))
    return {"deleted": True, "url": model.get("uri")}


@endpoint("models.delete")
def delete(call: Call, request: DeleteRequest) -> Doc:
    """Delete a model."""
    with call.db.write() as db:
        return _delete(db, get_model(db, request.model), request.force)


class ManyRequest(Request):
    """Which models."""

    ids: list[str] = Field(min_length=1)


class DeleteManyRequest(ManyRequest):
    """As in ``models.delete``."""

    force: bool = False
    delete_external_artifacts: bool = True


@endpoint("models.delete_many", since="2.13")
def delete_many(call: Call, request: DeleteManyRequest) -> Doc:
    """Delete models."""
    return for_each(call, request.ids, get_model, lambda db, model: _delete(db, model, request.force))


class PublishManyRequest(ManyRequest):
    """As in ``models.set_ready``."""

    publish_task: bool = False
    force_publish_task: bool = False


@endpoint("models.publish_many", since="2.13")
def publish_many(call: Call, request: PublishManyRequest) -> Doc:
    """Publish models."""
    return for_each(
        call,
        request.ids,
        get_model,
        lambda db, model: _set_ready(
            db, model, call.identity.user, publish_task=request.publish_task, force=request.force_publish_task
        ),
    )


def _set_archived(call: Call, db: sqlite3.Connection, model: Doc, archived: bool) -> Doc:
    tags = set(model["system_tags"])
    model["system_tags"] = sorted(tags | {ARCHIVED} if archived else tags - {ARCHIVED})
    _save(db, model, call.identity.user)
    return {"archived" if archived else "unarchived": True}


@endpoint("models.archive_many", since="2.13")
def archive_many(call: Call, request: ManyRequest) -> Doc:
    """Archive models."""
    return for_each(call, request.ids, get_model, lambda db, model: _set_archived(call, db, model, True))


@endpoint("models.unarchive_many", since="2.13")
def unarchive_many(call: Call, request: ManyRequest) -> Doc:
    """Take models out of the archive."""
    return for_each(call, request.ids, get_model, lambda db, model: _set_archived(call, db, model, False))


class MoveRequest(ManyRequest):
    """Into which project (by name: created when there is none)."""

    project: str | None = None
    project_name: str | None = None


@endpoint("models.move", since="2.12")
def move(call: Call, request: MoveRequest) -> Doc:
    """Move models into another project."""
    with call.db.write() as db:
        project = project_for(db, call.identity.user, request.project, request.project_name)
        for model in [get_model(db, id_) for id_ in request.ids]:
            touch_project(db, model.get("project"))
            _save(db, model | {"project": project}, call.identity.user)
    return {"project_id": project}


class TagsRequest(ManyRequest):
    """Which tags come and go."""

    add_tags: list[str] = []
    remove_tags: list[str] = []


@endpoint("models.update_tags", since="2.27")
def update_tags(call: Call, request: TagsRequest) -> Doc:
    """Add and remove tags."""
    if not request.add_tags and not request.remove_tags:
        raise errors.VALIDATION_ERROR("Either add_tags or remove_tags should be provided")
    with call.db.write() as db:
        for model in [get_model(db, id_) for id_ in request.ids]:
            model["tags"] = sorted(({*model["tags"]} | {*request.add_tags}) - {*request.remove_tags})
            _save(db, model, call.identity.user)
    return {"updated": len(request.ids)}


class MetadataItem(Request):
    """A note: key, value and the type that the SDK read it from, all text."""

    key: str = Field(min_length=1)
    type: str | None = None
    value: str | None = None


class MetadataRequest(Request):
    """Notes to set; ``replace_metadata`` drops all others."""

    model: str
    metadata: list[MetadataItem] = Field(min_length=1)
    replace_metadata: bool = False


@endpoint("models.add_or_update_metadata", since="2.13")
def add_or_update_metadata(call: Call, request: MetadataRequest) -> Doc:
    """Note something about a model."""
    items = {item.key: item.model_dump(exclude_none=True) for item in request.metadata}
    with call.db.write() as db:
        model = get_model(db, request.model)
        model["metadata"] = items if request.replace_metadata else model["metadata"] | items
        _save(db, model, call.identity.user)
    return {"updated": 1}


class DeleteMetadataRequest(Request):
    """Keys of notes to forget."""

    model: str
    keys: list[str] = Field(min_length=1)


def _without(items: Doc, keys: Iterable[str]) -> Doc:
    return {key: value for key, value in items.items() if key not in set(keys)}


@endpoint("models.delete_metadata", since="2.13")
def delete_metadata(call: Call, request: DeleteMetadataRequest) -> Doc:
    """Forget notes about a model."""
    with call.db.write() as db:
        model = get_model(db, request.model)
        model["metadata"] = _without(model["metadata"], request.keys)
        _save(db, model, call.identity.user)
    return {"updated": 1}
