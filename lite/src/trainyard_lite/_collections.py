"""The four kinds of documents, with the fields that calls filter and sort by."""

from __future__ import annotations

from ._bounds import EACH, NUMBER, PARTS, TEXT, TEXTS
from ._store import Collection, Filters

__all__ = ["MODELS", "PROJECTS", "QUEUES", "SCHEMA", "TASKS"]

_TIMES = dict.fromkeys(("created", "last_update", "last_change"), TEXT)
_PLACES = dict.fromkeys(("company", "user", "project", "parent", "comment"), TEXT)

TASKS = Collection(
    "task",
    shape={
        **_TIMES,
        **_PLACES,
        **dict.fromkeys(
            ("type", "status", "status_message", "status_reason", "status_changed", "started", "completed", "published",
             "last_changed_by", "last_worker", "last_worker_report", "enqueue_status"), TEXT
        ),
        "last_iteration": NUMBER,
        "active_duration": NUMBER,
        "execution": {"queue": TEXT, "artifacts": (PARTS, {"key": TEXT, "uri": TEXT, "content_size": NUMBER})},
        "models": {
            "input": (PARTS, {"name": TEXT, "model": TEXT}),
            "output": (PARTS, {"name": TEXT, "model": TEXT}),
        },
        "hyperparams": (EACH, (EACH, {"value": TEXT})),
        "configuration": (EACH, {"value": TEXT}),
        "last_metrics": (EACH, None),
        "metric_stats": (EACH, None),
        "output": {"destination": TEXT},
        "script": {},
        "container": {},
        "runtime": {},
    },
    blank={
        "status": "unknown", "type": "custom", "last_iteration": 0, "last_metrics": {}, "unique_metrics": [],
        "metric_stats": {}, "hyperparams": {}, "configuration": {}, "runtime": {}, "container": {}, "output": {},
        "execution": {"artifacts": []}, "script": {}, "models": {"input": [], "output": []},
    },
    fields=(
        "active_duration comment company completed configuration container created enqueue_status execution "
        "hyperparams id last_change last_changed_by last_iteration last_metrics last_update last_worker "
        "last_worker_report metric_stats models name output parent project published report report_assets "
        "runtime script started status status_changed status_message status_reason system_tags tags type "
        "unique_metrics user"
    ),
    columns={
        "tags": "tags",
        "system_tags": "system_tags",
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
    shape={
        **_TIMES,
        **_PLACES,
        **dict.fromkeys(("task", "framework", "uri"), TEXT),
        "last_iteration": NUMBER,
        "labels": {},
        "design": {},
        "metadata": (EACH, {}),
        "last_metrics": (EACH, None),
    },
    blank={"ready": False, "labels": {}, "design": {}, "metadata": {}, "last_iteration": 0, "last_metrics": {}},
    fields=(
        "comment company created design framework id labels last_change last_changed_by last_iteration "
        "last_metrics last_update metadata name parent project ready system_tags tags task unique_metrics uri "
        "user"
    ),
    columns={
        "tags": "tags",
        "system_tags": "system_tags",
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
    shape={**_TIMES, **_PLACES, "basename": TEXT, "description": TEXT, "path": TEXTS},
    blank={"path": []},
    fields=(
        "basename company created default_output_destination description featured id last_update name parent "
        "path system_tags tags user"
    ),
    columns={
        "tags": "tags",
        "system_tags": "system_tags",
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
    shape={**_TIMES, "display_name": TEXT, "metadata": (EACH, {})},
    blank={"metadata": {}},
    fields="company created display_name entries id last_update metadata name system_tags tags",
    columns={"name": "name", "created": "created", "last_update": "last_update", "display_name": "display_name"},
    filters=Filters(
        pattern=("name",), lists=("id", "tags", "system_tags", "metadata.*"), ranges=("created", "last_update")
    ),
    indexed=("name",),
)

SCHEMA = "".join(collection.schema for collection in (TASKS, MODELS, PROJECTS, QUEUES))
