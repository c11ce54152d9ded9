"""``tasks.*``: hyperparameters, configuration, requirements, and what a run notes about itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from ..._rpc import Call, Request, endpoint
from ..._store import Doc
from ...domain.tasks import get_task
from ._fields import TasksRequest, check_writable, save


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
        check_writable(task, force)


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
        save(db, task, call.identity.user)
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
        save(db, task, call.identity.user)
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
        check_writable(task, request.force)
        items = {item.name: item.model_dump(exclude_none=True) for item in request.configuration}
        task["configuration"] = items if request.replace_configuration else task["configuration"] | items
        save(db, task, call.identity.user)
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
        check_writable(task, request.force)
        for name in request.configuration:
            task["configuration"].pop(name, None)
        save(db, task, call.identity.user)
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
        save(db, task, call.identity.user)
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
        check_writable(task, request.force, also=("in_progress",))
        changes = {**(request.runtime or {}), **(request.add_or_update or {})}
        if not changes and not request.remove:
            return {"updated": 0}
        kept = {k: v for k, v in task["runtime"].items() if k not in (request.remove or ())}
        task["runtime"] = kept | changes
        save(db, task, call.identity.user)
    return {"updated": 1}
