"""Registering the experiment: the one call that every training script starts with."""

from __future__ import annotations

import os
from typing import Optional, Sequence, Union

from clearml import Task
from clearml.backend_api.session.defs import MissingConfigError
from clearml.backend_api.session.session import LoginError

from ._errors import ClearmlClientError
from ._offline import make_models_storable

__all__ = ["PROJECT_VARIABLE", "init_clearml"]

PROJECT_VARIABLE = "CLEARML_PROJECT"


def init_clearml(
    task_name: str,
    *,
    project: Optional[str] = None,
    tags: Sequence[str] = (),
    output_uri: Union[bool, str] = True,
) -> Task:
    """Register this run as an experiment and return its ClearML task.

    Call it before the script parses its arguments, so that they become hyperparameters.
    In a queue, the agent has already created the experiment: its project, name, parameters and
    output destination hold, and this call only attaches to it.

    Args:
        task_name: Name of the experiment, such as ``"digits"``. Several experiments may share one.
        project: Path of the project, by convention ``<team>/<kind>`` (``"perception/training"``).
            Without it, the environment variable ``CLEARML_PROJECT`` names it.
        tags: Labels to find the experiment by.
        output_uri: Where models and checkpoints go: ``True`` for the site's file server, a URL for
            another store, ``False`` to leave them on this machine.

    Returns:
        The task. A new run is always a new experiment: none is overwritten.

    Raises:
        ClearmlClientError: The name or the project is missing or malformed, ClearML is not configured
            on this machine, or the server refuses the keys.
    """
    remote = not Task.running_locally()
    name = _checked_name(task_name)
    labels = _checked_tags(tags)
    project_name = _checked_project(project, needed=not remote)
    try:
        task: Task = Task.init(
            project_name=project_name,
            task_name=name,
            tags=labels,
            reuse_last_task_id=False,
            output_uri=output_uri,
        )
    except MissingConfigError as error:
        raise ClearmlClientError(
            "ClearML is not configured on this machine: put the site's clearml.conf in your home directory, "
            "or set CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY "
            "(CLEARML_OFFLINE_MODE=1 runs without a server)"
        ) from error
    except LoginError as error:
        raise ClearmlClientError("the ClearML server refused the keys of this machine: {}".format(error)) from error
    if task.is_offline():
        make_models_storable()
    if remote and output_uri is not False and not task.output_uri:
        # The SDK ignores output_uri in a queue; without this an experiment that was created on the
        # server would leave its weights in the agent's container, which is deleted afterwards.
        task.output_uri = output_uri  # type: ignore[misc,assignment]  # the SDK's annotations miss the setter
    return task


def _checked_name(task_name: str) -> str:
    if not isinstance(task_name, str) or not task_name.strip():
        raise ClearmlClientError("task_name: expected a name, such as 'digits', got {!r}".format(task_name))
    return task_name.strip()


def _checked_tags(tags: Sequence[str]) -> Sequence[str]:
    if isinstance(tags, str):
        raise ClearmlClientError("tags: expected a list of strings, write [{!r}]".format(tags))
    wrong = [tag for tag in tags if not isinstance(tag, str) or not tag.strip()]
    if wrong:
        raise ClearmlClientError("tags: expected non-empty strings, got {!r}".format(wrong))
    return list(tags)


def _checked_project(project: Optional[str], *, needed: bool) -> Optional[str]:
    chosen = project if project is not None else os.environ.get(PROJECT_VARIABLE) or None
    if chosen is None:
        if needed:
            raise ClearmlClientError(
                "no project: pass project='<team>/<kind>' to init_clearml, such as 'perception/training', "
                "or set {}".format(PROJECT_VARIABLE)
            )
        return None
    if any(not part.strip() for part in chosen.split("/")):
        raise ClearmlClientError(
            "project: expected a path such as 'perception/training' with no empty part, got {!r}".format(chosen)
        )
    return chosen
