"""The four kinds of documents, with the fields that calls filter and sort by."""

from __future__ import annotations

from ._store import Collection, Filters

__all__ = ["MODELS", "PROJECTS", "QUEUES", "SCHEMA", "TASKS"]

TASKS = Collection(
    "task",
    columns={
        "name": "name",
        "type": "type",
        "status": "status",
        "project": "project",
        "parent": "parent",
        "user": "user",
        "comment": "comment",
        "created": "created",
        "started": "started",
        "completed": "completed",
        "status_changed": "status_changed",
        "last_update": "last_update",
        "last_change": "last_change",
        "last_worker": "last_worker",
        "last_iteration": "last_iteration",
        "active_duration": "active_duration",
        "queue": "execution.queue",
    },
    list_paths=("tags", "system_tags", "models.input", "models.output", "execution.artifacts"),
    filters=Filters(
        pattern=("name", "comment", "report"),
        lists=(
            "id", "user", "tags", "system_tags", "type", "status", "project", "parent", "hyperparams.*",
            "execution.queue", "models.input.model",
        ),
        dates=("status_changed", "last_update", "last_change"),
        ranges=("created", "started", "active_duration", "last_metrics.*", "last_iteration"),
        equal=("runtime.*",),
    ),
    indexed=("project, last_update", "status, last_update", "last_update", "last_change", "parent", "name", "created"),
)  # fmt: skip

MODELS = Collection(
    "model",
    columns={
        "name": "name",
        "project": "project",
        "task": "task",
        "user": "user",
        "created": "created",
        "last_update": "last_update",
        "last_change": "last_change",
        "framework": "framework",
        "uri": "uri",
        "ready": "ready",
        "comment": "comment",
    },
    list_paths=("tags", "system_tags", "labels"),
    filters=Filters(
        pattern=("name", "comment"),
        lists=("id", "user", "tags", "system_tags", "framework", "uri", "project", "task", "parent", "metadata.*"),
        dates=("last_update", "last_change"),
        ranges=("created", "last_metrics.*", "last_iteration"),
        equal=("ready",),
    ),
    indexed=("project, last_update", "task", "name", "uri", "last_update", "created"),
)

PROJECTS = Collection(
    "project",
    columns={
        "name": "name",
        "basename": "basename",
        "parent": "parent",
        "user": "user",
        "created": "created",
        "last_update": "last_update",
        "description": "description",
    },
    list_paths=("tags", "system_tags", "path"),
    filters=Filters(
        pattern=("name", "basename", "description"),
        lists=("id", "tags", "system_tags", "path", "parent", "featured", "user"),
        dates=("last_update", "created"),
    ),
    indexed=("parent", "last_update", "name"),
)

QUEUES = Collection(
    "queue",
    columns={"name": "name", "created": "created", "last_update": "last_update", "display_name": "display_name"},
    filters=Filters(
        pattern=("name",), lists=("id", "tags", "system_tags", "metadata.*"), ranges=("created", "last_update")
    ),
    indexed=("name",),
)

SCHEMA = "".join(collection.schema for collection in (TASKS, MODELS, PROJECTS, QUEUES))
