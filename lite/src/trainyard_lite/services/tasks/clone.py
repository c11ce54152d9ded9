"""``tasks.clone`` and ``tasks.move``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ..._collections import TASKS
from ..._refs import DELETED
from ..._rpc import Call, Request, endpoint
from ..._store import Doc
from ...domain.projects import find_or_create_project, project_for, touch_project
from ...domain.tasks import ARCHIVED, DEVELOPMENT, get_task, new_task
from ._fields import CreateRequest, Params, TaskFields, clean_fields, save


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
        task = new_task(call.identity.user, clean_fields(db, created))
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
    with call.db.write() as db:
        project = project_for(db, call.identity.user, request.project, request.project_name)
        for task in [get_task(db, id_) for id_ in request.ids]:
            touch_project(db, task.get("project"))
            task["project"] = project
            save(db, task, call.identity.user, touch=False)
        touch_project(db, project)
    return {"project_id": project}
