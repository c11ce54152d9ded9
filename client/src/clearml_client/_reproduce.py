"""Raise an experiment of the past again: the same code, image, packages and datasets, checked before it is queued."""

from __future__ import annotations

import difflib
import posixpath
import re
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from clearml import Task
from clearml.backend_api.session.client import APIClient
from clearml.config import config_obj

from . import _lookup
from ._dvc._repository import masked
from ._errors import ClearmlClientError
from ._images import is_image
from ._packages import look
from ._remote_code import missing_code
from ._requirements import read
from ._server import opened
from ._status import ENDED, WHOLE

__all__ = ["Again", "Check", "Comparison", "checks", "compare", "get_task", "reproduce", "wait"]

# Runtime properties that a worker of this site leaves on each experiment (agents/worker.py), and the one that it obeys.
IMAGE, IMAGE_ID, IMAGE_DIGEST = "trainyard_image", "trainyard_image_id", "trainyard_image_digest"
IMAGE_WANTED = "trainyard_image_wanted"

OF_IMAGE = re.compile(r"(?m)^# \d+ packages of the image .*\([0-9a-f]{16}\)$")
"""The second line of a list that a worker has recorded of an image (agents/checkout.py)."""


@dataclass(frozen=True)
class Check:
    """One thing that an experiment needs, and whether it is still there."""

    subject: str
    found: Optional[bool]
    """``None``: it cannot be told from here."""
    told: str


@dataclass(frozen=True)
class Again:
    """An experiment, its clone, and the queue that the clone is in."""

    task: Task
    clone: Task
    queue: str


@dataclass(frozen=True)
class Comparison:
    """The last value of one curve in two experiments."""

    metric: str
    variant: str
    before: Optional[float]
    after: Optional[float]


def get_task(task_id: str) -> Task:
    """Return an experiment.

    Raises:
        ClearmlClientError: There is none with this id, or the server cannot be talked to.
    """
    opened(Task._get_default_session)
    try:
        return Task.get_task(task_id=task_id)
    except ValueError as error:
        raise ClearmlClientError(
            "no experiment {!r}: write its id, 32 hexadecimal digits, as its page shows it".format(task_id)
        ) from error


def checks(task: Task) -> List[Check]:
    """Look for everything that the experiment was made of."""
    image = _image_check(task)
    return [_code_check(task), image, _packages_check(task, image), *_dataset_checks(task)]


def reproduce(
    task_id: str,
    *,
    queue: Optional[str] = None,
    overrides: Optional[Mapping[str, str]] = None,
    name: Optional[str] = None,
    on_check: Optional[Callable[[Check], None]] = None,
) -> Again:
    """Clone an experiment with all that it was made of, and put the clone in a queue.

    Args:
        task_id: The experiment.
        queue: Name of the queue; the experiment's own without it.
        overrides: New values of its parameters, such as ``{"Args/lr": "0.1"}``.
        name: Name of the clone; by default the experiment's own with ``(again)``.
        on_check: Is called with each thing that was looked for.

    Raises:
        ClearmlClientError: Something it needs is not there any more, or a parameter or queue is unknown.
            Nothing has been created then.
    """
    task = get_task(task_id)
    parameters = _checked_overrides(task, overrides or {})
    queue_id, queue_name = _queue(task, queue)
    missing = []
    for check in checks(task):
        if on_check is not None:
            on_check(check)
        if check.found is False:
            missing.append("{}: {}".format(check.subject, check.told))
    if missing:
        raise ClearmlClientError("{} cannot be raised again:\n{}".format(task_id, "\n".join(missing)))
    clone: Task = Task.clone(source_task=task, name=name or "{} (again)".format(task.name), parent=task.id)
    runtime = _runtime(task)
    if runtime.get(IMAGE_ID):
        _pin_image(clone, task, runtime)
    for key, value in parameters.items():
        clone.set_parameter(key, value)
    Task.enqueue(clone, queue_id=queue_id)
    return Again(task, clone, queue_name)


def wait(task: Task, on_progress: Optional[Callable[[str, int], None]] = None, every: float = 2.0) -> str:
    """Wait for the end of an experiment; return its last status.

    Args:
        task: The experiment.
        on_progress: Is called with status and last iteration.
        every: Seconds between two looks.
    """
    while True:
        task.reload()
        status = str(task.get_status())
        if on_progress is not None:
            on_progress(status, int(task.data.last_iteration or 0))
        if status in ENDED:
            return status
        time.sleep(every)


def compare(before: Task, after: Task) -> List[Comparison]:
    """Return the last values of all curves that either experiment has, sorted; monitored resources are left out."""
    one, other = _last_values(before), _last_values(after)
    return [
        Comparison(metric, variant, one.get((metric, variant)), other.get((metric, variant)))
        for metric, variant in sorted(set(one) | set(other))
        if not metric.startswith(":monitor:")
    ]


def _last_values(task: Task) -> Dict[Tuple[str, str], float]:
    metrics = task.get_last_scalar_metrics()
    return {(metric, variant): values["last"] for metric, row in metrics.items() for variant, values in row.items()}


def _runtime(task: Task) -> Dict[str, Any]:
    return dict(task.data.runtime or {})


def _code_check(task: Task) -> Check:
    script = task.data.script
    diff = (script.diff or "") if script else ""
    if script is None or not script.repository:
        if diff.strip():
            return Check("code", True, "the whole script is in the experiment")
        return Check("code", False, "the experiment has neither a repository nor a script")
    if not script.version_num:
        return Check(
            "code", False, "it names the branch {!r} and no commit; what ran is not known".format(script.branch or "")
        )
    path = posixpath.join(script.working_dir or ".", script.entry_point or "")
    told = missing_code(script.repository, script.version_num, diff, path)
    if told is not None:
        return Check("code", False, masked(told))
    changes = ", with its uncommitted changes" if diff.strip() else ""
    return Check("code", True, "{} at {}{}".format(masked(script.repository), script.version_num[:12], changes))


def _image_check(task: Task) -> Check:
    runtime = _runtime(task)
    named = (task.data.container or {}).get("image") or ""
    taken = (runtime.get(IMAGE_DIGEST) or runtime.get(IMAGE) or named) if runtime.get(IMAGE_ID) else named
    if taken and not is_image(taken):
        return Check("image", False, "{!r} is not the name of one image".format(taken))
    if not runtime.get(IMAGE_ID):
        if not named:
            return Check("image", None, "it did not run in a container; the queue's default image is taken")
        return Check("image", None, "{}; which build of it is not known".format(named))
    if runtime.get(IMAGE_DIGEST):
        return Check("image", True, "{}, taken by its digest".format(runtime[IMAGE_DIGEST]))
    return Check(
        "image",
        True,
        "{} build {}, which a node that has another one refuses".format(runtime.get(IMAGE), runtime[IMAGE_ID][7:19]),
    )


def _packages_check(task: Task, image: Check) -> Check:
    requirements = (task.data.script.requirements or {}) if task.data.script else {}
    recorded = requirements.get("pip") or ""
    text = "\n".join(recorded) if isinstance(recorded, list) else str(recorded)
    if not image.found and OF_IMAGE.search(text):
        # The image has them; what an agent would add to another one is what was asked for.
        text = str(requirements.get("org_pip") or "")
    if image.found:
        count = len(read(text).lines)
        return Check("packages", True, "{} recorded, as the image has them".format(count))
    found = look(text, python=_python(task), indexes=_site_indexes())
    told = ["{}: {}".format(line, why) for line, why in sorted(found.untold.items())]
    if found.missing:
        gone = ["{}: {}".format(line, why) for line, why in sorted(found.missing.items())]
        return Check("packages", False, "not to be had any more: {}".format("; ".join(gone + told)))
    if told:
        return Check("packages", None, "of {} recorded, it cannot be told of {}".format(found.count, "; ".join(told)))
    return Check("packages", True, "{} recorded, all to be had".format(found.count))


def _python(task: Task) -> Optional[str]:
    """Return the image's version of Python where its name tells it, or else the one that the experiment recorded."""
    image = str((task.data.container or {}).get("image") or "")
    tagged = re.search(r"(?:python|perception)[^/:]*:(?:[^:]*-)?(3\.\d+(?:\.\d+)?)(?![\d.])", image)
    if tagged:
        return tagged.group(1)
    binary = re.search(r"python(\d\.\d+)\Z", str((task.data.script.binary if task.data.script else None) or ""))
    return binary.group(1) if binary else None


def _site_indexes() -> List[str]:
    """Return the indexes that this machine's clearml.conf gives to agents, as the nodes' does."""
    told = config_obj.get("agent.package_manager.extra_index_url", None) or []
    return [told] if isinstance(told, str) else [str(one) for one in told]


def _dataset_checks(task: Task) -> List[Check]:
    return [_dataset_check(dataset) for dataset in _lookup.datasets_of(task.id)]


def _dataset_check(dataset: Mapping[str, Any]) -> Check:
    subject = "dataset {}@{}".format(dataset["name"], dataset["version"])
    if dataset.get("store") == "dvc":
        repository, revision = dataset.get("repository"), dataset.get("revision")
        if not repository or not revision:
            return Check(subject, None, "DVC path {}; it comes with the experiment's code".format(dataset.get("path")))
        told = missing_code(str(repository), str(revision))
        return Check(subject, told is None, masked(told or "{} at {}".format(repository, str(revision)[:12])))
    found = APIClient().tasks.get_all(id=[dataset["dataset_id"]], only_fields=["id", "status"], search_hidden=True)
    if not found:
        return Check(subject, False, "it was deleted from the server ({})".format(dataset["dataset_id"]))
    if str(found[0].status) not in WHOLE:
        return Check(subject, False, "its status is {}".format(found[0].status))
    return Check(subject, True, str(dataset["dataset_id"]))


def _checked_overrides(task: Task, overrides: Mapping[str, str]) -> Dict[str, str]:
    known = task.get_parameters() or {}
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
            raise ClearmlClientError(
                "the experiment has no parameter {!r}; {}".format(
                    key,
                    "near to it: {}".format(", ".join(near))
                    if near
                    else "it has {}".format(", ".join(known) or "none"),
                )
            )
    return dict(overrides)


def _queue(task: Task, name: Optional[str]) -> Tuple[str, str]:
    queues = {str(queue.id): str(queue.name) for queue in APIClient().queues.get_all(only_fields=["id", "name"])}
    if name is None:
        own = str((task.data.execution.queue if task.data.execution else None) or "")
        if own in queues:
            return own, queues[own]
        raise ClearmlClientError(
            "the experiment did not run from a queue that is still there: name one, such as {}".format(
                _some(queues.values())
            )
        )
    for queue_id, queue_name in queues.items():
        if queue_name == name:
            return queue_id, name
    near = difflib.get_close_matches(name, queues.values(), n=3, cutoff=0.4)
    raise ClearmlClientError("no queue {!r}; there is {}".format(name, _some(near or queues.values())))


def _some(names: Any) -> str:
    listed: Sequence[str] = sorted(names)
    return ", ".join(listed[:8]) + (" ..." if len(listed) > 8 else "") if listed else "none"


def _pin_image(clone: Task, task: Task, runtime: Mapping[str, Any]) -> None:
    """Let the clone run in the very image: by its digest where a registry gave one, else by its build."""
    container = task.data.container or {}
    clone.set_base_docker(
        docker_image=runtime.get(IMAGE_DIGEST) or runtime[IMAGE],
        docker_arguments=container.get("arguments") or None,
        docker_setup_bash_script=container.get("setup_shell_script") or None,
    )
    # The SDK has no public call for it; the worker reads it before it starts the container.
    clone._set_runtime_properties({IMAGE_WANTED: runtime[IMAGE_ID]})
