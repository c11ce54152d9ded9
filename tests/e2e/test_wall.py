"""Experiments that try to reach the node through their container's image and arguments, with the real agent.

Each prints a file of the host from its setup script, if Docker has mounted it, and the node's key, if it was handed
over.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from clearml_api import ClearmlApi
from harness import (
    ENDED,
    ROOT,
    TASK_IMAGE,
    Platform,
    Worker,
    console,
    enqueue,
    get,
    project_id,
    wait_for,
    wait_for_status,
)

QUEUE, SERVICES = "wall", "wall-services"
DEFAULTS = yaml.safe_load((ROOT / "ansible/roles/clearml_agent/defaults/main.yml").read_text())


@pytest.fixture(scope="module")
def workers(platform: Platform) -> Iterator[dict[str, Worker]]:
    """A worker and a services worker, with the roles' own rules for arguments."""
    name = "clearml_agent_docker_args_filters"
    config: dict[str, object] = {name: DEFAULTS[name]}
    made = {
        QUEUE: platform.add_worker("wall", QUEUE, config=config),
        SERVICES: platform.add_worker(
            "wall-services", SERVICES, config=config, CLEARML_AGENT_DEVICES="--cpu-only --services-mode"
        ),
    }
    yield made
    for worker in made.values():
        worker.remove()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host that no experiment may read."""
    path = tmp_path / "canary"
    path.write_text(secrets.token_hex(16))
    return path


def submit(
    api: ClearmlApi,
    digits: str,
    queue: str,
    *,
    script: str,
    image: str,
    arguments: str = "",
    name: str = "wall",
    **more: object,
) -> str:
    """Put an experiment with this container into a queue."""
    code = {"repository": digits, "branch": "main", "entry_point": "train.py", "working_dir": ".", "binary": "python3"}
    container = {"image": image, "arguments": arguments, "setup_shell_script": script}
    hyperparams = {"epochs": {"section": "Args", "name": "epochs", "value": "1"}, **dict(more.pop("args", {}))}  # type: ignore[call-overload]
    task = api.call(
        "tasks.create",
        name=name,
        type="training",
        project=project_id(api),
        script=code,
        container=container,
        hyperparams={"Args": hyperparams},
        **more,
    )
    enqueue(api, str(task["id"]), queue)
    return str(task["id"])


def refused(api: ClearmlApi, platform: Platform, task: str, canary: Path) -> str:
    """Wait until an experiment has failed without having run; return its console."""
    wait_for("it has ended", lambda: get(api, task)["status"] in ENDED, 120)
    text = console(api, task)
    assert canary.read_text() not in text, "it has read a file of the host"
    assert platform.server.key not in text, "it has the node's key"
    assert platform.server.secret not in text, "it has the node's key"
    assert get(api, task)["status"] == "failed", text
    assert "refuses this experiment" in text
    assert "Executing: " not in text, "it never came to docker run"
    return text


@pytest.mark.parametrize("queue", [QUEUE, SERVICES])
def test_an_image_that_is_an_option_is_refused(
    platform: Platform, workers: dict[str, Worker], api: ClearmlApi, digits: str, canary: Path, queue: str
) -> None:
    task = submit(api, digits, queue, script="cat /host/canary", image=f"--volume={canary.parent}:/host")
    text = refused(api, platform, task, canary)
    assert f"the image is '--volume={canary.parent}:/host', which is not the name of an image" in text
    assert "write one image, for example" in text
    assert workers[queue].experiments() == []


@pytest.mark.parametrize("queue", [QUEUE, SERVICES])
def test_templates_cannot_bring_in_an_option(
    platform: Platform, workers: dict[str, Worker], api: ClearmlApi, digits: str, canary: Path, queue: str
) -> None:
    task = submit(
        api,
        digits,
        queue,
        script="cat /host/canary",
        image=TASK_IMAGE,
        arguments="-e ${CLEARML_TASK.name} -e ${CLEARML_TASK.hyperparams.Args.b.value}",
        name="${CLEARML_TASK.comment}",
        comment="--rm",
        args={"b": {"section": "Args", "name": "b", "value": f"--volume={canary.parent}:/host"}},
    )
    text = refused(api, platform, task, canary)
    assert "-e=${CLEARML_TASK.name}: this site fills in no ClearML templates" in text
    assert workers[queue].experiments() == []


@pytest.mark.usefixtures("workers")
def test_templates_cannot_read_the_node_s_key(platform: Platform, api: ClearmlApi, digits: str, canary: Path) -> None:
    arguments = "-e X=${CLEARML_CONFIG.api.credentials.access_key} -e Y=${CLEARML_CONFIG.api.credentials.secret_key}"
    task = submit(api, digits, QUEUE, script="echo $X $Y", image=TASK_IMAGE, arguments=arguments)
    assert "this site fills in no ClearML templates" in refused(api, platform, task, canary)


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-e A=1 -tv{folder}:/host", "asks for -t -v={folder}:/host, which this site does not allow"),
        ("-e A=1 {image}", "for the image, not"),
        ("-e", "would take 'bash' for the image"),
        ("-e 'A=1", "close each quote"),
        ("-e A=http://[@ -e", "would take 'bash' for the image"),
        ("-e HTTP_PROXY", "write -e NAME=value"),
        ("--env-file=/etc/clearml/clearml.conf", "asks for --env-file=/etc/clearml/clearml.conf"),
    ],
)
def test_arguments_that_are_not_allowed_are_refused(
    platform: Platform, api: ClearmlApi, digits: str, canary: Path, arguments: str, words: str
) -> None:
    given = arguments.format(folder=canary.parent, image=TASK_IMAGE)
    task = submit(api, digits, QUEUE, script="cat /host/canary; env", image=TASK_IMAGE, arguments=given)
    assert words.format(folder=canary.parent) in refused(api, platform, task, canary)


@pytest.mark.usefixtures("workers")
def test_an_image_without_arguments_still_runs(api: ClearmlApi, digits: str) -> None:
    task = submit(api, digits, QUEUE, script="echo wall", image=TASK_IMAGE)
    wait_for_status(api, task, "completed", 180)


@pytest.mark.usefixtures("workers")
def test_what_is_allowed_still_runs(api: ClearmlApi, digits: str) -> None:
    task = submit(
        api,
        digits,
        QUEUE,
        script='echo "wall: $X, $Y, $(df --output=size /dev/shm | tail -n1) kB"',
        image=TASK_IMAGE,
        arguments="-e X=1 --env 'Y=a --rm b' -e Z=http://[@ --shm-size=256m",
    )
    wait_for_status(api, task, "completed", 180)
    text = console(api, task)
    assert "wall: 1, a --rm b, " in text
    assert " 262144 kB" in text


@pytest.mark.usefixtures("workers")
def test_a_setup_script_that_no_command_can_hold_is_refused(
    platform: Platform, api: ClearmlApi, digits: str, canary: Path
) -> None:
    task = submit(api, digits, QUEUE, script=f"echo {'x' * 140_000}", image=TASK_IMAGE)
    assert "keep it below 128 KiB" in refused(api, platform, task, canary)


@pytest.mark.usefixtures("workers")
def test_an_experiment_gets_the_node_s_key_and_no_more(platform: Platform, api: ClearmlApi, digits: str) -> None:
    """What docs/security.md lists; the worker's own settings stay with the worker."""
    script = 'echo "names: $(env | cut -d= -f1 | tr "\\n" " ")"; grep -oE "(access|secret)_key.*" /tmp/clearml.conf'
    task = submit(api, digits, QUEUE, script=script, image=TASK_IMAGE)
    wait_for_status(api, task, "completed", 180)
    text = console(api, task)
    (line,) = (line for line in text.splitlines() if line.startswith("names: "))
    ours = {name for name in line.split() if name.startswith(("CLEARML_", "TRAINYARD_", "NVIDIA_", "DOCKER_"))}
    known = {"AGENT_SKIP_PIP_VENV_INSTALL", "AGENT_SKIP_PYTHON_ENV_INSTALL", "CONFIG_FILE", "DOCKER_IMAGE", "TASK_ID"}
    assert ours == {f"CLEARML_{name}" for name in {*known, "WORKER_ID"}} | {"TRAINYARD_GPUS", "NVIDIA_VISIBLE_DEVICES"}
    assert platform.server.key in text
    assert platform.server.secret in text
    assert platform.server.password not in text
