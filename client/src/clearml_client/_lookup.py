"""From a dataset to its models, and from a model to its datasets."""

from __future__ import annotations

import json
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from clearml import Task
from clearml.backend_api import Session

from ._errors import ClearmlClientError
from ._server import opened

__all__ = ["CONFIGURATION", "SECTION", "call", "datasets_of", "experiments_of", "models_of"]

SECTION = "Datasets"
"""Hyperparameter section with one parameter per dataset; its value is the version."""
CONFIGURATION = "datasets"
"""Configuration object with all that is known of each dataset, as a JSON list."""
PAGE = 500
"""Experiments per question."""
# A name with a dot or a dollar sign is written differently in a query from server to server.
_PLAIN = re.compile(r"^[A-Za-z0-9_-]+$")


def datasets_of(task_or_model: str) -> List[Dict[str, Any]]:
    """Return what is known of each dataset that an experiment, or the experiment that made a model, opened.

    Args:
        task_or_model: Id of an experiment or of a model.

    Raises:
        ClearmlClientError: There is neither.
    """
    task = _task_of(task_or_model)
    text = (task.data.configuration or {}).get(CONFIGURATION)
    if text is not None:
        return [dict(entry) for entry in json.loads(text.value)]
    named = (task.data.hyperparams or {}).get(SECTION) or {}
    return [{"name": name, "version": item.value} for name, item in named.items()]


def models_of(dataset: str) -> List[Dict[str, str]]:
    """Return the models whose experiments opened a dataset, the newest experiment first.

    Args:
        dataset: ``NAME`` for all versions, ``NAME@VERSION`` for one.

    Returns:
        For each model ``model``, ``model_id``, ``task``, ``task_id`` and ``dataset`` (``NAME@VERSION``).
    """
    name, _, version = dataset.partition("@")
    found = []
    for task in _users(name):
        used = str(task["hyperparams"][SECTION][name]["value"])
        if version and used != version:
            continue
        for model in (task.get("models") or {}).get("output") or []:
            found.append(
                {
                    "model": str(model.get("name") or ""),
                    "model_id": str(model.get("model") or ""),
                    "task": str(task.get("name") or ""),
                    "task_id": str(task["id"]),
                    "dataset": "{}@{}".format(name, used),
                }
            )
    return found


def experiments_of(
    dataset: str, wanted: Callable[[Dict[str, Any]], bool] = lambda task: True
) -> List[Tuple[str, str, str, List[str]]]:
    """Return id, name, status and names of the models of each experiment that opened ``NAME@VERSION``.

    Args:
        dataset: ``NAME@VERSION``.
        wanted: Chooses among them by what the server tells: id, name, status, started, completed.
    """
    name, _, version = dataset.rpartition("@")
    return [
        (
            str(task["id"]),
            str(task.get("name") or ""),
            str(task.get("status") or ""),
            [str(model.get("name") or "") for model in (task.get("models") or {}).get("output") or []],
        )
        for task in _users(name)
        if str(task["hyperparams"][SECTION][name]["value"]) == version and wanted(task)
    ]


def _users(name: str) -> Iterator[Dict[str, Any]]:
    """Yield the experiments that have a parameter of this name in the section, page by page."""
    condition: Dict[str, Any] = {}
    if _PLAIN.match(name):
        condition["hyperparams.{}.{}.section".format(SECTION, name)] = [SECTION]
    page = 0
    while True:
        tasks = call(
            "tasks",
            "get_all",
            only_fields=[
                "id",
                "name",
                "status",
                "started",
                "completed",
                "models.output",
                "hyperparams.{}".format(SECTION),
            ],
            order_by=["-created"],
            page=page,
            page_size=PAGE,
            search_hidden=True,
            **condition,
        )["tasks"]
        for task in tasks:
            if name in ((task.get("hyperparams") or {}).get(SECTION) or {}):
                yield task
        if len(tasks) < PAGE:
            return
        page += 1


def _task_of(task_or_model: str) -> Task:
    tasks = call("tasks", "get_all", id=[task_or_model], only_fields=["id"], search_hidden=True)["tasks"]
    task_id: Optional[str] = task_or_model if tasks else None
    if task_id is None:
        models = call("models", "get_all", id=[task_or_model], only_fields=["id", "task"])["models"]
        task_id = models[0].get("task") if models else None
    if task_id is None:
        raise ClearmlClientError(
            "neither a model nor an experiment has the id {!r}: write its 32 digits, as its page shows them".format(
                task_or_model
            )
        )
    task: Task = Task.get_task(task_id=task_id)
    return task


def call(service: str, action: str, **arguments: Any) -> Dict[str, Any]:
    """Ask the server.

    Raises:
        ClearmlClientError: It refused, or cannot be talked to.
    """
    answer = opened(
        lambda: Task._get_default_session().send_request(
            service, action, version=Session.max_api_version, json=arguments
        )
    )
    if not answer.ok:
        raise ClearmlClientError("{}.{}: the server says {}".format(service, action, answer.text[:300]))
    return dict(answer.json()["data"])
