"""Registering the experiment: the one call that every training script starts with."""

from __future__ import annotations

import difflib
import os
import sys
from typing import List, Optional, Sequence, Union

from clearml import Task

from . import _command_line, _distributed
from ._config import Settings, image_for, load, script_folder
from ._errors import ClearmlClientError
from ._git import Code, read
from ._given import (
    PROJECT_VARIABLE,
    check_parts,
    checked_kind,
    checked_name,
    checked_output_uri,
    checked_project,
    checked_queue,
    checked_tags,
)
from ._images import check_image
from ._logging import calm_progress_bars, show_records
from ._offline import make_models_storable
from ._recorded import check_recorded
from ._sdk import correct
from ._server import check_server, told

__all__ = ["PROJECT_VARIABLE", "QUEUE_VARIABLE", "init_clearml"]

QUEUE_VARIABLE = "CLEARML_QUEUE"


def init_clearml(
    task_name: str,
    *,
    project: Optional[str] = None,
    queue: Optional[str] = None,
    image: Optional[str] = None,
    kind: Optional[str] = None,
    tags: Sequence[str] = (),
    output_uri: Union[bool, str] = True,
) -> Task:
    """Register this run as an experiment, and return its ClearML task.

    With a queue, the run goes there and this process ends: at once, or, when there are arguments that the script has
    still to parse by argparse, as soon as it has. Without one it runs here. In a queue the agent has already created
    the experiment: its project, name, parameters and image hold, and this call only attaches to it.

    Of several processes that one launcher started (``torchrun``), rank 0 registers the experiment and the others join.

    Args:
        task_name: Name of the experiment, such as ``"digits"``. Several experiments may share one.
        project: Path of the project. By convention it is ``<team>/<kind>`` of ``[tool.clearml_client]`` in
            ``pyproject.toml``; the environment variable ``CLEARML_PROJECT`` names it too.
        queue: Queue to run in. Without it ``CLEARML_QUEUE`` and ``[tool.clearml_client]`` name one, or none.
        image: Image to run in, in a queue. Without it ``[tool.clearml_client]`` or the site name one for the
            repository's Python version.
        kind: What the run is, the second part of the project: ``training``, ``hpo``, ...
        tags: Labels to find the experiment by.
        output_uri: Where models and checkpoints go: ``True`` for the site's file server, a URL for
            another store, ``False`` to leave them on this machine.

    Returns:
        The task. A new run is always a new experiment: none is overwritten.

    Raises:
        ClearmlClientError: A name, the project, the image or the queue is missing, malformed or unknown, the code
            cannot be reproduced in a queue, ClearML is not configured on this machine, or the server refuses the
            keys. Nothing has been registered then.
    """
    remote = not Task.running_locally()
    name = checked_name(task_name)
    labels = checked_tags(tags)
    output_uri = checked_output_uri(output_uri)
    queue = checked_queue(queue)
    settings = load()
    project_name = checked_project(project, checked_kind(kind), settings, needed=not remote)
    rank = _distributed.current_rank()
    code: Optional[Code] = None
    earlier: Optional[Task] = Task.current_task()
    if earlier is not None and not remote:
        _say("ClearML was used before init_clearml: this run stays the experiment {!r} ({})", earlier.name, earlier.id)
        return earlier
    if not remote and not Task.is_offline():
        check_server()
    if not remote and project_name is not None:
        check_parts(project_name)
    if rank is not None and rank.rank > 0:
        _distributed.join(rank, None if not remote else os.environ.get("CLEARML_TASK_ID"))
    elif not remote:
        queue = _chosen_queue(queue, settings)
        if image is not None:
            check_image("image", image)
        elif queue and not Task.is_offline():
            image = image_for(settings)
        code = _check_reproducible(queue)
        if queue:
            _command_line.check_can_travel()
    calm_progress_bars()
    try:
        task = _registered(project_name, name, labels, output_uri, code)
    except Exception as error:  # the SDK raises whatever the layer that failed does
        raise told(error, "did not register the run") from error
    if queue and code is not None and not task.is_offline():
        check_recorded(task, code, queue)
    if task.is_offline():
        make_models_storable()
    if remote and output_uri is not False and not task.output_uri:
        # The SDK ignores output_uri in a queue; without this an experiment that was created on the
        # server would leave its weights in the agent's container, which is deleted afterwards.
        task.output_uri = output_uri  # type: ignore[misc,assignment]  # the SDK's annotations miss the setter
    if rank is not None:
        # Above the SDK, which reads what is printed: the console tab has the labels too.
        _distributed.label_output(rank)
        if rank.rank == 0:
            _distributed.share(rank, task.id)
        else:
            _distributed.leave_watching_to_rank_0(task)
    if rank is None or rank.rank == 0:
        _tell_where(task, remote=remote, queue=None if remote else queue)
    show_records()
    if not remote and (rank is None or rank.rank == 0):
        _command_line.record(task)
    if queue and not remote and not task.is_offline() and (rank is None or rank.rank == 0):
        _send(task, queue, image)
    return task


def _registered(
    project: Optional[str], name: str, tags: Sequence[str], output_uri: Union[bool, str], code: Optional[Code]
) -> Task:
    correct(code)
    task: Task = Task.init(
        project_name=project, task_name=name, tags=tags, reuse_last_task_id=False, output_uri=output_uri
    )
    return task


# ---------------------------------------------------------------- to a queue


def _chosen_queue(given: Optional[str], settings: Settings) -> Optional[str]:
    """Return the queue that the run goes to, once it is known to be there."""
    name = given if given is not None else (os.environ.get(QUEUE_VARIABLE) or settings.queue)
    if not name:
        return None
    if Task.is_offline():
        _say("offline: the run does not go to the queue {!r}", name)
        return None
    names = _queue_names()
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    raise ClearmlClientError(
        "no queue {!r} on the server; {}".format(
            name,
            "did you mean {}?".format(" or ".join(near)) if near else "there is {}".format(", ".join(names) or "none"),
        )
    )


def _queue_names() -> List[str]:
    from ._lookup import call

    return sorted(str(queue["name"]) for queue in call("queues", "get_all", only_fields=["name"])["queues"])


def _check_reproducible(queue: Optional[str]) -> Optional[Code]:
    """Refuse code that an agent could not run; warn of it where the run stays here."""
    code, reasons = read(script_folder(), ask=bool(queue))
    reasons = reasons if code is None else code.reasons
    if reasons and queue:
        raise ClearmlClientError(
            "the run cannot go to the queue {!r}, agents could not run this code:\n- {}".format(
                queue, "\n- ".join(reasons)
            )
        )
    if reasons:
        _say("this run cannot be reproduced from git: {}", "; ".join(reasons))
    return code


def _send(task: Task, queue: str, image: Optional[str]) -> None:
    """Hand the run over: now, or when the script has read its arguments."""
    if image:
        task.set_base_docker(docker_image=image)
    if _command_line.hand_over_when_read(lambda: _hand_over(task, queue), _warn_of_words):
        _say("the run goes to the queue {!r} as soon as its arguments are parsed", queue)
    else:
        _hand_over(task, queue)


def _hand_over(task: Task, queue: str) -> None:
    """Send the run to its queue and end this process, once it is certain that the command line travels with it."""
    _command_line.record(task)
    try:
        _command_line.prove(task)
    except ClearmlClientError as error:
        reason = "the run does not go to the queue {!r}: {}".format(queue, error)
        task.mark_failed(force=True, status_reason="not sent to a queue", status_message=reason)
        raise ClearmlClientError(reason) from error
    task.execute_remotely(queue_name=queue)


def _warn_of_words() -> None:
    _say("this run stayed here: nothing read its command line")


# ---------------------------------------------------------------- words


def _tell_where(task: Task, *, remote: bool, queue: Optional[str]) -> None:
    """Say in one line where this run is."""
    if task.is_offline():
        _say(
            "offline: experiment {!r} is kept on this machine, clearml-task --import-offline-session sends it",
            task.name,
        )
        return
    page = task.get_output_log_web_page()
    if remote:
        _say("in the queue: experiment {!r}, {}", task.name, page)
    elif queue:
        _say("to the queue {!r}: experiment {!r}, {}", queue, task.name, page)
    else:
        _say("on this machine: experiment {!r}, {}", task.name, page)


def _say(text: str, *values: object) -> None:
    print("clearml_client: {}".format(text.format(*values)), file=sys.stderr, flush=True)
