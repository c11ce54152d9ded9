"""``tasks.*``: artifacts and models."""

from __future__ import annotations

from pydantic import Field

from ..._clock import now
from ..._rpc import Call, Request, endpoint
from ..._store import Doc
from ...domain.tasks import get_task
from ._fields import RUNNING, Artifact, Mode, check_writable, merge_artifacts, save


class ArtifactsRequest(Request):
    """Artifacts to add or replace."""

    task: str
    force: bool = False
    artifacts: list[Artifact] = Field(min_length=1)


@endpoint("tasks.add_or_update_artifacts", since="2.10")
def add_or_update_artifacts(call: Call, request: ArtifactsRequest) -> Doc:
    """Add artifacts; one of the same key and mode is replaced."""
    new = [artifact.model_dump(exclude_none=True) for artifact in request.artifacts]
    with call.db.write() as db:
        task = get_task(db, request.task)
        check_writable(task, request.force, also=RUNNING)
        task["execution"]["artifacts"] = merge_artifacts(task["execution"]["artifacts"], new)
        save(db, task, call.identity.user)
    return {"updated": 1}


class ArtifactKey(Request):
    """Which artifact."""

    key: str
    mode: Mode = "output"


class DeleteArtifactsRequest(Request):
    """Artifacts to forget; their files stay."""

    task: str
    force: bool = False
    artifacts: list[ArtifactKey] = Field(min_length=1)


@endpoint("tasks.delete_artifacts", since="2.10")
def delete_artifacts(call: Call, request: DeleteArtifactsRequest) -> Doc:
    """Forget artifacts."""
    gone = {(a.key, a.mode) for a in request.artifacts}
    with call.db.write() as db:
        task = get_task(db, request.task)
        check_writable(task, request.force, also=RUNNING)
        kept = [a for a in task["execution"]["artifacts"] if (a["key"], a.get("mode", "output")) not in gone]
        task["execution"]["artifacts"] = kept
        save(db, task, call.identity.user)
    return {"deleted": 1}


class ModelRequest(Request):
    """A model by the name that the task gives it."""

    task: str
    name: str = Field(min_length=1)
    model: str
    type: Mode
    iteration: int | None = Field(default=None, ge=-(2**31), le=2**53)


@endpoint("tasks.add_or_update_model", since="2.13")
def add_or_update_model(call: Call, request: ModelRequest) -> Doc:
    """Link a model to a task."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        check_writable(task, True, also=RUNNING)
        items = [m for m in task["models"][request.type] if m.get("name") != request.name]
        task["models"][request.type] = [*items, {"name": request.name, "model": request.model, "updated": now()}]
        if request.iteration is not None:
            task["last_iteration"] = max(task["last_iteration"], request.iteration)
        save(db, task, call.identity.user)
    return {"updated": 1}


class ModelKey(Request):
    """Which link."""

    name: str
    type: Mode


class DeleteModelsRequest(Request):
    """Links to forget; the models stay."""

    task: str
    models: list[ModelKey] = Field(min_length=1)


@endpoint("tasks.delete_models", since="2.13")
def delete_models(call: Call, request: DeleteModelsRequest) -> Doc:
    """Unlink models."""
    with call.db.write() as db:
        task = get_task(db, request.task)
        check_writable(task, True, also=RUNNING)
        for key in request.models:
            task["models"][key.type] = [m for m in task["models"][key.type] if m.get("name") != key.name]
        save(db, task, call.identity.user)
    return {"updated": 1}
