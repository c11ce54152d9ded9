"""Tasks: their documents. ``life`` has what may become of them."""

from __future__ import annotations

import sqlite3

from .. import _errors as errors
from .._clock import now
from .._collections import TASKS
from .._settings import COMPANY_ID
from .._store import Doc, new_id

__all__ = ["ARCHIVED", "DEVELOPMENT", "TYPES", "get_task", "new_task"]

TYPES = (
    "training", "testing", "inference", "data_processing", "application", "monitor", "controller", "optimizer",
    "service", "qc", "custom", "report", "dataset_import", "annotation", "annotation_manual",
)  # fmt: skip
ARCHIVED = "archived"
DEVELOPMENT = "development"


def get_task(db: sqlite3.Connection, id_: str) -> Doc:
    """Read a task.

    Raises:
        ApiError: 400 if there is none.
    """
    task = TASKS.get(db, id_)
    if task is None:
        raise errors.INVALID_TASK_ID(id=id_, company=COMPANY_ID)
    return task


def new_task(user: str, fields: Doc) -> Doc:
    """Make a task's document; ``fields`` are what the client gave, already checked."""
    moment = now()
    task: Doc = {
        "id": new_id(),
        "company": COMPANY_ID,
        "user": user,
        "status": "created",
        "created": moment,
        "last_update": moment,
        "last_change": moment,
        "last_changed_by": user,
        "report_assets": [],
        "output": {},
        "tags": [],
        "system_tags": [],
        "last_iteration": 0,
        "last_metrics": {},
        "unique_metrics": [],
        "metric_stats": {},
        "hyperparams": {},
        "configuration": {},
        "runtime": {},
        "container": {},
        **fields,
    }
    task["execution"] = {
        "test_split": 0, "parameters": {}, "model_desc": {}, "model_labels": {}, "artifacts": [],
    } | (fields.get("execution") or {})  # fmt: skip
    task["script"] = {"binary": "python", "repository": "", "entry_point": "", "requirements": {}} | (
        fields.get("script") or {}
    )
    task["models"] = {"input": [], "output": []} | (fields.get("models") or {})
    return task
