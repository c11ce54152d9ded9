"""What the calls of tasks have in common: how a task is described, checked and saved."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from ... import _errors as errors
from ..._clock import now
from ..._collections import TASKS
from ..._refs import DELETED, check_reference
from ..._rpc import Request
from ..._store import Doc
from ...domain.tasks import TYPES

RUNNING = ("created", "in_progress")  # in which a task may get results
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


def check_type(kind: str | None) -> None:
    """Check a type of tasks; None is none.

    Raises:
        ApiError: 400 for a type that ClearML does not have.
    """
    if kind is not None and kind not in TYPES:
        raise errors.VALIDATION_ERROR(f"error for field 'type': value '{kind}' is not a valid choice.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def clean_fields(db: sqlite3.Connection, request: TaskFields, old: Doc | None = None) -> Doc:
    """Check what a client says of a task, and bring it into the document's form.

    Args:
        db: the database.
        request: what the client sent.
        old: the task that it changes, if there is one.

    Raises:
        ApiError: 400 for a field that is not valid.
    """
    fields = request.model_dump(exclude_unset=True, exclude_none=True, exclude={"task", "force"})
    old = old or {}
    if "name" in fields:
        fields["name"] = fields["name"].strip()
        if len(fields["name"]) < 3:
            raise errors.DATA_VALIDATION_ERROR(name="String value is too short")
    check_type(fields.get("type"))
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
            fields["execution"]["artifacts"] = merge_artifacts([], _parse_artifacts(artifacts))
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


def merge_artifacts(old: Sequence[Doc], new: Iterable[Doc]) -> list[Doc]:
    """Return the artifacts sorted by key; a new one replaces that of its key and mode."""
    merged = {(a["key"], a.get("mode", "output")): a for a in old}
    for artifact in new:
        merged[artifact["key"], artifact.setdefault("mode", "output")] = artifact
    return [merged[key] for key in sorted(merged)]


class TaskRequest(Request):
    """Which task."""

    task: str


def check_writable(task: Doc, force: bool, also: Sequence[str] = ()) -> None:
    """Check that a task may change.

    Args:
        task: the document.
        force: one that waits or runs may change too.
        also: further statuses in which it may change.

    Raises:
        ApiError: 400 ``invalid task status``.
    """
    allowed = ["created", *also, *(("queued", "in_progress") if force else ())]
    if task["status"] not in allowed:
        raise errors.INVALID_TASK_STATUS(expected="created", status=task["status"])


def save(db: sqlite3.Connection, task: Doc, user: str, *, touch: bool = True) -> Doc:
    """Save a changed task; return the fields that say when and by whom. ``touch`` counts as a sign of life."""
    moment = now()
    stamp = {"last_change": moment, "last_changed_by": user} | ({"last_update": moment} if touch else {})
    task |= stamp
    TASKS.put(db, task)
    return stamp


class TasksRequest(Request):
    """Which tasks."""

    tasks: list[str] = Field(min_length=1)
