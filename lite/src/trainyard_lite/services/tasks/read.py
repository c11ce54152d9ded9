"""``tasks.*``: read and list tasks."""

from __future__ import annotations

from typing import Any

from ... import _errors as errors
from ..._collections import TASKS
from ..._refs import expand, split_references
from ..._rpc import Call, OpenRequest, Request, endpoint
from ..._store import Doc
from ...domain.projects import HIDDEN, descendants
from ._fields import TaskRequest, check_type

_REFS = {
    "company": "company",
    "user": "user",
    "project": "project",
    "parent": "task",
    "execution.queue": "queue",
    "models.input.model": "model",
    "models.output.model": "model",
}


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
                check_type(kind.removeprefix("-"))
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
