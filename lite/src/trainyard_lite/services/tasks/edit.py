"""``tasks.*``: create and change tasks."""

from __future__ import annotations

import sqlite3

from pydantic import Field

from ... import _errors as errors
from ..._clock import parse_time
from ..._collections import TASKS
from ..._refs import check_reference
from ..._rpc import Call, OpenRequest, Request, endpoint, parse_request
from ..._store import Doc
from ...domain.projects import touch_project
from ...domain.tasks import get_task, new_task
from ._fields import CreateRequest, TaskFields, check_writable, clean_fields, save


@endpoint("tasks.create")
def create(call: Call, request: CreateRequest) -> Doc:
    """Create a task."""
    with call.db.write() as db:
        task = new_task(call.identity.user, clean_fields(db, request))
        TASKS.put(db, task)
        touch_project(db, task.get("project"))
    return {"id": task["id"]}


@endpoint("tasks.validate")
def validate(call: Call, request: CreateRequest) -> Doc:
    """Check a task without creating it."""
    clean_fields(call.db.read(), request)
    return {}


class EditRequest(TaskFields):
    """What changes of a task that has not run; ``force`` allows it in every status (so the SDK archives)."""

    task: str
    force: bool = False
    name: str | None = None
    type: str | None = None


@endpoint("tasks.edit")
def edit(call: Call, request: EditRequest) -> Doc:
    """Change a task's description."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        if not request.force:
            check_writable(task, False)
        fields = clean_fields(db, request, task)
        if not fields:
            return {"updated": 0, "fields": {}}
        moved = fields.get("project") not in (None, task.get("project"))
        if moved:
            touch_project(db, task.get("project"))
        task |= fields
        fields |= save(db, task, call.identity.user)
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
    fields |= save(db, task, user, touch=False)
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
            save(db, task, call.identity.user, touch=False)
    return {"updated": len(request.ids)}
