"""``projects.*``: nested folders of tasks and models."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from .. import _errors as errors
from .._clock import ago, now
from .._collections import MODELS, PROJECTS, TASKS
from .._patterns import check_pattern, matches, time_limit
from .._refs import expand, split_references
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc
from ..domain.life import STATUSES, erase_tasks
from ..domain.projects import (
    check_project,
    descendants,
    find_or_create_project,
    find_project,
    name_parts,
    touch_project,
)

_REFS = {"company": "company", "user": "user", "parent": "project"}
_STATS_ARGUMENTS = (
    "include_stats", "include_stats_filter", "stats_with_children", "stats_for_state", "include_dataset_stats",
    "check_own_contents", "shallow_search", "children_type", "children_tags", "children_tags_filter", "active_users",
    "filters", "search_hidden", "allow_public", "own_tasks", "parent", "non_public", "include_sub_projects",
)  # fmt: skip


class CreateRequest(Request):
    """A project: its full name, parents separated by ``/``."""

    name: str | None = None
    description: str = ""
    tags: list[str] = []
    system_tags: list[str] = []
    default_output_destination: str | None = None


@endpoint("projects.create")
def create(call: Call, request: CreateRequest) -> Doc:
    """Create a project and the parents that are missing."""
    if not request.name:
        raise errors.MISSING_REQUIRED_FIELDS(missing=("name",))
    with call.db.write() as db:
        full = "/".join(name_parts(request.name))
        if find_project(db, full):
            raise errors.EXPECTED_UNIQUE_DATA(
                replacement="Project with the same name already exists", name=full, company=COMPANY_ID
            )
        fields: Doc = {"tags": sorted(request.tags), "system_tags": sorted(request.system_tags)}
        if request.default_output_destination is not None:
            fields["default_output_destination"] = request.default_output_destination
        return {"id": find_or_create_project(db, call.identity.user, full, request.description, **fields)}


class ProjectRequest(Request):
    """Which project."""

    project: str


@endpoint("projects.get_by_id")
def get_by_id(call: Call, request: ProjectRequest) -> Doc:
    """Read one project."""
    return {"project": check_project(call.db.read(), request.project)}


def _find(call: Call, args: Doc, *, ex: bool = False) -> list[Doc]:
    db = call.db.read()
    where: list[str] = []
    values: list[Any] = []
    if not args.get("search_hidden") and not args.get("id"):
        where.append("NOT EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'hidden')")
    if args.get("shallow_search") and not args.get("parent"):
        where.append("parent IS NULL")
    if parents := args.get("parent"):
        parents = [parents] if isinstance(parents, str) else parents
        if not isinstance(parents, list):
            raise errors.FIELDS_TYPE_ERROR("a list of project ids is expected", field="parent")
        if parents == [None]:
            where.append("parent IS NULL")
        elif args.get("shallow_search"):
            where.append(f"parent IN ({', '.join('?' * len(parents))})")
            values += parents
        else:
            marks = ", ".join("?" * len(parents))
            where.append(f"EXISTS (SELECT 1 FROM json_each(doc, '$.path') WHERE value IN ({marks}))")
            values += parents
    only = PROJECTS.only_fields(args)
    own, targets = split_references(only, _REFS)
    return _expand(
        db,
        PROJECTS.find(
            db,
            {**args, "only_fields": own, "projection": None},
            where=" AND ".join(where) or "1",
            values=values,
            default_order=("name",) if not args.get("order_by") else (),
            ignore=_STATS_ARGUMENTS,
        ),
        targets,
        ex,
    )


def _expand(db: sqlite3.Connection, docs: list[Doc], targets: dict[str, list[str]], ex: bool) -> list[Doc]:
    if ex:
        expand(db, docs, _REFS, targets)
    return docs


@endpoint("projects.get_all")
def get_all(call: Call, request: OpenRequest) -> Doc:
    """List projects."""
    return {"projects": _find(call, request.args())}


@endpoint("projects.get_all_ex", since="2.0")
def get_all_ex(call: Call, request: OpenRequest) -> Doc:
    """List projects with statistics and references.

    ``active_users``, ``children_type`` and their like narrow the official page's lists; lite refuses them.
    """
    args = request.args()
    for name in ("active_users", "children_type", "children_tags", "children_tags_filter", "include_stats_filter"):
        if args.get(name):
            raise errors.NOT_IMPLEMENTED(f"projects.get_all_ex: lite does not know {name}")
    projects = _find(call, args, ex=True)
    db = call.db.read()
    if args.get("include_stats") or args.get("check_own_contents"):
        with_children = args.get("stats_with_children", True)
        for project in projects:
            ids = descendants(db, [project["id"]]) if with_children else [project["id"]]
            if args.get("include_stats"):
                project["stats"] = {"active": _stats(db, ids)}
                rows = db.execute(
                    "SELECT id, name FROM project WHERE EXISTS"
                    " (SELECT 1 FROM json_each(doc, '$.path') WHERE value = ?) ORDER BY name",
                    (project["id"],),
                )
                project["sub_projects"] = [dict(row) for row in rows]
            if args.get("check_own_contents"):
                project["own_tasks"] = TASKS.count(db, "project = ?", (project["id"],))
                project["own_models"] = MODELS.count(db, "project = ?", (project["id"],))
    if args.get("include_dataset_stats"):
        for project in projects:
            project["dataset_stats"] = _dataset_stats(db, project["id"])
    return {"projects": projects}


def _stats(db: sqlite3.Connection, ids: Sequence[str]) -> Doc:
    marks = ", ".join("?" * len(ids))
    visible = (
        f"project IN ({marks}) AND NOT EXISTS"
        " (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value IN ('archived', 'hidden'))"
    )
    counts = dict.fromkeys(STATUSES, 0)
    counts |= dict(db.execute(f"SELECT status, count(*) FROM task WHERE {visible} GROUP BY status", ids).fetchall())
    row = db.execute(
        "SELECT coalesce(sum(active_duration), 0), coalesce(sum(completed > ?), 0), max(started) FROM task"
        f" WHERE {visible}",
        (ago(86400), *ids),
    ).fetchone()
    return {
        "status_count": counts,
        "total_tasks": sum(counts.values()),
        "total_runtime": row[0],
        "completed_tasks_24h": row[1],
        "last_task_run": row[2],
    }


def _dataset_stats(db: sqlite3.Connection, id_: str) -> Doc | None:
    row = db.execute(
        "SELECT json_extract(doc, '$.runtime.ds_file_count'), json_extract(doc, '$.runtime.ds_total_size') FROM task"
        " WHERE project = ? AND EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'dataset')"
        " ORDER BY last_update DESC LIMIT 1",
        (id_,),
    ).fetchone()
    return {"file_count": row[0] or 0, "total_size": row[1] or 0} if row else None


class UpdateRequest(Request):
    """What changes of a project."""

    project: str
    name: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    default_output_destination: str | None = None


@endpoint("projects.update")
def update(call: Call, request: UpdateRequest) -> Doc:
    """Change a project; a new name renames what is below it too."""
    with call.db.write() as db:
        project = check_project(db, request.project)
        fields: Doc = request.model_dump(exclude={"project"}, exclude_none=True)
        for key in ("tags", "system_tags"):
            if key in fields:
                fields[key] = sorted(set(fields[key]))
        name = fields.pop("name", None)
        project |= fields
        if name is not None:
            parts = name_parts(name)
            if "/".join(parts[:-1]) != project["name"].rpartition("/")[0]:
                raise errors.CANNOT_UPDATE_PROJECT_LOCATION(name=name)
            fields |= {"name": "/".join(parts), "basename": parts[-1]}
            taken = find_project(db, fields["name"])
            if taken and taken["id"] != project["id"]:
                raise errors.EXPECTED_UNIQUE_DATA(
                    replacement="Project with the same name already exists", name=name, company=COMPANY_ID
                )
            _rename(db, project, fields["name"])
        project["last_update"] = now()
        PROJECTS.put(db, project)
    return {"updated": 1, "fields": {**fields, "last_update": project["last_update"]}}


def _rename(db: sqlite3.Connection, project: Doc, name: str) -> None:
    old = project["name"]
    for id_ in descendants(db, [project["id"]]):
        child = PROJECTS.get(db, id_)
        if child is not None and id_ != project["id"]:
            child["name"] = name + child["name"][len(old) :]
            PROJECTS.put(db, child)
    project |= {"name": name, "basename": name.rpartition("/")[2]}


class MoveRequest(Request):
    """Which project, and the new parent's full name; empty moves it to the top."""

    project: str
    new_location: str | None = None


@endpoint("projects.move", since="2.13")
def move(call: Call, request: MoveRequest) -> Doc:
    """Move a project with all that is below it."""
    with call.db.write() as db:
        project = check_project(db, request.project)
        location = (request.new_location or "").strip("/ ")
        if location == project["name"].rpartition("/")[0]:
            raise errors.PROJECT_SOURCE_AND_DESTINATION_ARE_THE_SAME(location=location)
        if location == project["name"] or location.startswith(project["name"] + "/"):
            raise errors.PROJECT_CANNOT_BE_MOVED_UNDER_ITSELF(project=request.project)
        name = f"{location}/{project['basename']}" if location else project["basename"]
        if find_project(db, name):
            raise errors.EXPECTED_UNIQUE_DATA(
                replacement="Project with the same name already exists", name=name, company=COMPANY_ID
            )
        parent = PROJECTS.get(db, find_or_create_project(db, call.identity.user, location)) if location else None
        path = [*parent["path"], parent["id"]] if parent else []
        below = [id_ for id_ in descendants(db, [project["id"]]) if id_ != project["id"]]
        _rename(db, project, name)
        depth = len(project["path"])
        project |= {"path": path, "last_update": now()}
        project.pop("parent", None)
        if parent:
            project["parent"] = parent["id"]
        PROJECTS.put(db, project)
        for id_ in below:
            child = PROJECTS.get(db, id_)
            if child is not None:
                child["path"] = path + child["path"][depth:]
                PROJECTS.put(db, child)
    return {"moved": 1 + len(below)}


class MergeRequest(Request):
    """From which project into which."""

    project: str
    destination_project: str


@endpoint("projects.merge", since="2.13")
def merge(call: Call, request: MergeRequest) -> Doc:
    """Move all tasks and models of a project into another, and delete it; projects below it are refused."""
    with call.db.write() as db:
        source, target = check_project(db, request.project), check_project(db, request.destination_project)
        if source["id"] == target["id"]:
            raise errors.PROJECT_SOURCE_AND_DESTINATION_ARE_THE_SAME(project=request.project)
        if source["id"] in target["path"]:
            raise errors.PROJECT_CANNOT_BE_MERGED_INTO_ITS_CHILD(project=request.project)
        if len(descendants(db, [source["id"]])) > 1:
            raise errors.NOT_IMPLEMENTED("projects.merge: lite does not merge projects with projects below them")
        moved = 0
        for collection in (TASKS, MODELS):
            for doc in collection.select(db, "project = ?", (source["id"],)):
                collection.put(db, doc | {"project": target["id"]})
                moved += 1
        PROJECTS.delete(db, [source["id"]])
        touch_project(db, target["id"])
    return {"moved_entities": moved, "moved_projects": 0}


def _contents(db: sqlite3.Connection, ids: Sequence[str]) -> Doc:
    marks = ", ".join("?" * len(ids))
    live = "NOT EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'archived')"
    dataset = "EXISTS (SELECT 1 FROM json_each(doc, '$.system_tags') WHERE value = 'dataset')"
    return {
        "tasks": TASKS.count(db, f"project IN ({marks})", ids),
        "non_archived_tasks": TASKS.count(db, f"project IN ({marks}) AND {live}", ids),
        "models": MODELS.count(db, f"project IN ({marks})", ids),
        "non_archived_models": MODELS.count(db, f"project IN ({marks}) AND {live}", ids),
        "datasets": TASKS.count(db, f"project IN ({marks}) AND {dataset}", ids),
        "pipelines": 0,
        "reports": 0,
        "non_archived_reports": 0,
    }


@endpoint("projects.validate_delete", since="2.14")
def validate_delete(call: Call, request: ProjectRequest) -> Doc:
    """Count what a delete would meet."""
    db = call.db.read()
    check_project(db, request.project)
    return _contents(db, descendants(db, [request.project]))


class DeleteRequest(Request):
    """``force`` deletes a project that is not empty; ``delete_contents`` its tasks and models too."""

    project: str
    force: bool = False
    delete_contents: bool = False
    delete_external_artifacts: bool = True


@endpoint("projects.delete")
def delete(call: Call, request: DeleteRequest) -> Doc:
    """Delete a project and those below it.

    Without ``delete_contents`` its tasks and models stay, without a project.
    """
    with call.db.write() as db:
        check_project(db, request.project)
        ids = descendants(db, [request.project])
        contents = _contents(db, ids)
        if not request.force:
            if contents["non_archived_tasks"]:
                raise errors.PROJECT_HAS_TASKS("use force=true", id=request.project)
            if contents["non_archived_models"]:
                raise errors.PROJECT_HAS_MODELS("use force=true", id=request.project)
        marks = ", ".join("?" * len(ids))
        tasks = TASKS.select(db, f"project IN ({marks})", ids)
        models = MODELS.select(db, f"project IN ({marks})", ids)
        urls: Doc | None = None
        if request.delete_contents:
            urls = erase_tasks(db, [task["id"] for task in tasks])
            MODELS.delete(db, [model["id"] for model in models])
            urls["model_urls"] += [model["uri"] for model in models if model.get("uri")]
        else:
            for collection, docs in ((TASKS, tasks), (MODELS, models)):
                for doc in docs:
                    doc.pop("project", None)
                    collection.put(db, doc)
        deleted = PROJECTS.delete(db, ids)
    return {
        "deleted": deleted,
        "disassociated_tasks": 0 if request.delete_contents else len(tasks),
        "deleted_tasks": len(tasks) if request.delete_contents else 0,
        "deleted_models": len(models) if request.delete_contents else 0,
        "urls": urls,
    }


class TagsRequest(Request):
    """Of which projects (all if none), and whether system tags too."""

    projects: list[str] | None = None
    include_system: bool = False
    filter: dict[str, Any] | None = None


def _tags(call: Call, table: str, request: TagsRequest) -> Doc:
    if request.filter:
        raise errors.NOT_IMPLEMENTED("lite does not know the argument filter of the tag lists")
    db = call.db.read()
    where, values = "1", []
    if request.projects and table != "project":
        values = descendants(db, request.projects)
        where = f"project IN ({', '.join('?' * len(values))})"
    answer: Doc = {}
    for field in ("tags", "system_tags") if request.include_system or table == "project" else ("tags",):
        rows = db.execute(
            f"SELECT DISTINCT value FROM {table}, json_each(doc, '$.{field}') WHERE {where} ORDER BY value", values
        )
        answer[field] = [row[0] for row in rows]
    return answer


@endpoint("projects.get_task_tags", since="2.8")
def get_task_tags(call: Call, request: TagsRequest) -> Doc:
    """List the tags of tasks."""
    return _tags(call, "task", request)


@endpoint("projects.get_model_tags", since="2.8")
def get_model_tags(call: Call, request: TagsRequest) -> Doc:
    """List the tags of models."""
    return _tags(call, "model", request)


@endpoint("projects.get_project_tags", since="2.17")
def get_project_tags(call: Call, request: TagsRequest) -> Doc:
    """List the tags of projects."""
    return _tags(call, "project", request)


def _task_scope(db: sqlite3.Connection, project: str | None, with_children: bool = True) -> tuple[str, list[Any]]:
    if not project:
        return "1", []
    check_project(db, project)
    ids = descendants(db, [project]) if with_children else [project]
    return f"project IN ({', '.join('?' * len(ids))})", list(ids)


class MetricVariantsRequest(Request):
    """Of which project (all if none)."""

    project: str | None = None
    include_subprojects: bool = True
    model_metrics: bool = False
    ids: list[str] | None = None


@endpoint("projects.get_unique_metric_variants", since="2.13")
def get_unique_metric_variants(call: Call, request: MetricVariantsRequest) -> Doc:
    """List the metrics that tasks reported."""
    db = call.db.read()
    where, values = _task_scope(db, request.project, request.include_subprojects)
    if request.ids:
        where, values = f"{where} AND id IN ({', '.join('?' * len(request.ids))})", [*values, *request.ids]
    found: dict[tuple[str, str], Doc] = {}
    for doc in (MODELS if request.model_metrics else TASKS).select(db, where, values):
        for metric_hash, variants in (doc.get("last_metrics") or {}).items():
            for variant_hash, last in variants.items():
                if not isinstance(last, dict) or not all(isinstance(last.get(k), str) for k in ("metric", "variant")):
                    continue
                found[last["metric"], last["variant"]] = {
                    "metric": last["metric"],
                    "metric_hash": metric_hash,
                    "variant": last["variant"],
                    "variant_hash": variant_hash,
                }
    return {"metrics": [found[key] for key in sorted(found)]}


class HyperParametersRequest(Request):
    """Of which project, and which page."""

    project: str | None = None
    include_subprojects: bool = True
    page: int = Field(default=0, ge=0)
    page_size: int = Field(default=500, ge=1)


def _all_parameters(db: sqlite3.Connection, where: str, values: list[Any]) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for doc in TASKS.select(db, where, values):
        for section, params in (doc.get("hyperparams") or {}).items():
            for name, param in params.items():
                found[section, name].add(str(param.get("value", "")))
    return found


@endpoint("projects.get_hyper_parameters", since="2.9")
def get_hyper_parameters(call: Call, request: HyperParametersRequest) -> Doc:
    """List the hyperparameters that tasks have."""
    db = call.db.read()
    names = sorted(_all_parameters(db, *_task_scope(db, request.project, request.include_subprojects)))
    start = request.page * request.page_size
    page = names[start : start + request.page_size]
    return {
        "total": len(names),
        "remaining": max(0, len(names) - start - len(page)),
        "parameters": [{"section": section, "name": name} for section, name in page],
    }


class HyperparamValuesRequest(Request):
    """Of which parameter in which projects."""

    section: str
    name: str
    projects: list[str] | None = None
    include_subprojects: bool = True
    allow_public: bool = True
    pattern: str | None = None
    page: int = Field(default=0, ge=0)
    page_size: int = Field(default=500, ge=1)


@endpoint("projects.get_hyperparam_values", since="2.13")
def get_hyperparam_values(call: Call, request: HyperparamValuesRequest) -> Doc:
    """List the values that a hyperparameter had."""
    db = call.db.read()
    where, values = "1", []
    if request.projects:
        ids = descendants(db, request.projects) if request.include_subprojects else request.projects
        where, values = f"project IN ({', '.join('?' * len(ids))})", list(ids)
    found = sorted(_all_parameters(db, where, values)[request.section, request.name])
    if request.pattern:
        pattern = check_pattern(request.pattern, "pattern")
        with time_limit():
            found = [value for value in found if matches(pattern, value)]
    start = request.page * request.page_size
    return {"total": len(found), "values": found[start : start + request.page_size]}


class ScopeRequest(Request):
    """Which projects (all if none)."""

    projects: list[str] | None = None
    include_subprojects: bool = True
    tasks_state: str | None = None
    task_name: str | None = None


def _ids_in(db: sqlite3.Connection, request: ScopeRequest) -> tuple[str, list[Any]]:
    if not request.projects:
        return "1", []
    ids = descendants(db, request.projects) if request.include_subprojects else request.projects
    return f"project IN ({', '.join('?' * len(ids))})", list(ids)


@endpoint("projects.get_task_parents", since="2.12")
def get_task_parents(call: Call, request: ScopeRequest) -> Doc:
    """List the parents that tasks have."""
    db = call.db.read()
    where, values = _ids_in(db, request)
    parents = TASKS.select(db, f"id IN (SELECT parent FROM task WHERE {where})", values, "ORDER BY name")
    names = {p["id"]: p["name"] for p in PROJECTS.select(db)}
    return {
        "parents": [
            {"id": p["id"], "name": p["name"]}
            | ({"project": {"id": p["project"], "name": names.get(p["project"])}} if p.get("project") else {})
            for p in parents
        ]
    }


@endpoint("projects.get_user_names", since="2.19")
def get_user_names(call: Call, request: ScopeRequest) -> Doc:
    """List the users who have tasks."""
    db = call.db.read()
    where, values = _ids_in(db, request)
    rows = db.execute(
        f"SELECT id, name FROM user WHERE id IN (SELECT user FROM task WHERE {where}) ORDER BY name", values
    )
    return {"users": [dict(row) for row in rows]}
