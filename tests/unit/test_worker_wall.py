"""The worker's part of the node's wall, on a stand-in for clearml-agent; tests/e2e/test_wall.py has the real one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "site/train:1"
CONFIG = {
    "agent.forbidden_docker_args": ["privileged"],
    "agent.protected_docker_extra_args": ["network"],
}


class Upstream:
    """What worker.py takes from clearml-agent's Worker."""

    def __init__(self, services: bool = False, image: str = IMAGE) -> None:
        self._session = SimpleNamespace(config=CONFIG)
        self._docker_args_filters = [SimpleNamespace(pattern="^-e$")]
        self._docker_arguments: list[str] = []
        self._docker_image = image
        self._services_mode = services
        self._extra_docker_arguments = ["--network=bridge"]
        self.worker_id = "node-1:gpu0"
        self.ran: list[list[str]] = []
        self.console: list[str] = []

    def _get_docker_cmd(self, *, docker_image: str, docker_arguments: object) -> list[str]:
        assert docker_arguments is None, "nothing of the experiment goes through clearml-agent's own filters"
        return ["docker", "run", "-t", *self._extra_docker_arguments, "--rm", docker_image, "bash", "-c", "agent "]

    def get_docker_config_cmd(self, words: object) -> str:
        return "made"

    def run_one_task(self, queue: str, task: str, image: str, arguments: object) -> int:
        command = self._get_docker_cmd(docker_image=image, docker_arguments=arguments)  # type: ignore[arg-type]
        command[-1] += f"execute --id {task}"
        return int(self._log_command_output(task, command)[0])

    def _log_command_output(self, task: str, command: list[str]) -> tuple[int, None]:
        self.ran.append(list(command))
        return 0, None

    def send_logs(self, task: str, lines: list[str], level: str = "INFO", session: object = None) -> int:
        self.console += lines
        return len(lines)


class Sanitizer:
    @classmethod
    def sanitize_docker_command(cls, session: object, words: list[str]) -> list[str]:
        if "half" in words:
            raise ValueError
        return words


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, on top of the stand-in."""
    upstream = ModuleType("clearml_agent.commands.worker")
    for name, value in {
        "Worker": Upstream,
        "LiteralScriptManager": SimpleNamespace(write=None),
        "clone_repository_cached": None,
        "DockerArgsTemplateResolver": object,
        "DockerArgsSanitizer": Sanitizer,
        "TaskStopReason": SimpleNamespace(no_stop="no_stop"),
        "TaskStopSignal": object,
        "get_next_task": None,
    }.items():
        setattr(upstream, name, value)
    names = {
        "clearml_agent": {"__main__": None},
        "clearml_agent.commands": {"worker": upstream},
        "clearml_agent.commands.worker": vars(upstream),
        "clearml_agent.errors": {"Sigterm": KeyboardInterrupt, "CommandFailedError": RuntimeError},
        "clearml_agent.helper": {},
        "clearml_agent.helper.repo": {"Git": SimpleNamespace(checkout=None)},
        "clearml_agent.helper.process": {"Argv": None, "ExitStatus": SimpleNamespace(failure=1)},
        "clearml_agent.helper.resource_monitor": {"ResourceMonitor": None},
    }
    for name, values in names.items():
        module = upstream if name.endswith("commands.worker") else ModuleType(name)
        for key, value in values.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROOT / "agents"))
    for name in ("worker", "checkout", "policy", "settle", "watchdog"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    made = importlib.import_module("worker")
    monkeypatch.setattr(made.Worker, "introduce", lambda self, task: None)
    yield made
    for name in ("worker", "checkout", "policy", "settle", "watchdog"):
        sys.modules.pop(name, None)


def run(worker: Any, arguments: object, image: str = IMAGE, *, services: bool = False) -> Any:
    """Let an experiment run as clearml-agent does; return its worker."""
    made = worker.Worker(services=services)
    made.failed = []
    made.fail = lambda task, reason, message: made.failed.append(message)
    made.run_allowed("queue", "0" * 32, image, arguments)
    return made


@pytest.mark.parametrize("arguments", [None, "", []])
def test_an_experiment_that_asks_for_nothing_runs(worker: Any, arguments: object) -> None:
    (command,) = run(worker, arguments).ran
    assert command == ["docker", "run", "-t", "--network=bridge", IMAGE, "bash", "-c", f"agent execute --id {'0' * 32}"]


def test_what_an_experiment_asks_for_comes_last_and_unchanged(worker: Any) -> None:
    for arguments in (["-e", "A=--rm", "-e", "B= x "], "-e A=--rm -e 'B= x '"):
        (command,) = run(worker, arguments).ran
        assert command[3:-3] == ["--network=bridge", "-e", "A=--rm", "-e", "B= x ", IMAGE]


def test_a_services_worker_keeps_its_own_rm(worker: Any) -> None:
    assert run(worker, ["-e", "A=1"], services=True).ran[0][3:-3] == ["--network=bridge", "--rm", "-e", "A=1", IMAGE]


@pytest.mark.parametrize("services", [False, True])
@pytest.mark.parametrize("arguments", [["--rm"], ["-v", "/:/host"], ["-e"], ["--privileged"], ["-e", "--rm"]])
def test_what_is_not_allowed_never_gets_to_docker(worker: Any, arguments: list[str], services: bool) -> None:
    made = run(worker, arguments, services=services)
    assert made.ran == []
    assert "Worker node-1:gpu0 refuses this experiment: " in made.failed[0]


def test_a_command_that_changed_after_the_check_is_stopped(worker: Any) -> None:
    made = run(worker, None)
    made.ran.clear()
    own = made._own_command
    for command in (
        [*own[:-4], "-v", "/:/host", *own[-4:]],
        [*own[:-4], "--volume=/:/host", *own[-3:]],
        ["docker", "run", "--privileged", IMAGE],
    ):
        assert made._log_command_output("0" * 32, command) == (1, "no_stop")
    assert made.ran == []
    assert all("refuses this experiment" in line for line in made.console)
    assert made._log_command_output("0" * 32, ["docker", "pull", IMAGE]) == (0, None)


def test_a_worker_before_its_first_experiment_runs_no_container(worker: Any) -> None:
    made = worker.Worker()
    assert made._log_command_output("0" * 32, ["docker", "run", IMAGE]) == (1, "no_stop")


@pytest.mark.parametrize("words", [["--volume=/:/host"], ["ubuntu", "--privileged"], ["Ubuntu"]])
def test_a_worker_with_a_default_image_that_is_none_does_not_start(worker: Any, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="which is not the name of"):
        worker.Worker().get_docker_config_cmd(words)


def test_a_worker_whose_site_writes_templates_does_not_start(worker: Any) -> None:
    made = worker.Worker()
    assert made.get_docker_config_cmd([IMAGE]) == "made"
    made._extra_docker_arguments = ["--label=who=${CLEARML_TASK.user}"]
    with pytest.raises(SystemExit, match="has a template"):
        made.get_docker_config_cmd([IMAGE])


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"image": "--volume=/:/host"}, "which is not the name of an image"),
        ({"image": IMAGE, "arguments": "-e 'A=1"}, "close each quote"),
        ({"image": f" {IMAGE} ", "arguments": "-e A=1"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_container_that_cannot_be_read_is_refused_at_once(
    worker: Any, monkeypatch: pytest.MonkeyPatch, container: object, words: str | None
) -> None:
    monkeypatch.setattr(worker, "call", lambda *_, **__: {"task": {"container": container}})
    made = worker.Worker()
    failed: list[str] = []
    made.fail = lambda task, reason, message: failed.append(message)
    assert made.refuse("0" * 32) is bool(words)
    assert [words in message for message in failed] == ([True] if words else [])


def test_the_console_hides_secrets_and_no_word_ends_the_worker(worker: Any) -> None:
    words = ["docker", "-e", "WANDB_API_KEY=x", "-eHF_TOKEN=x", "--env=A_PASSWORD=x", "-e", "A=token=1", "echo token=1"]
    shown = worker.Sanitizer.sanitize_docker_command(None, words)
    assert shown == [
        *("docker", "-e", "WANDB_API_KEY=********", "-eHF_TOKEN=********", "--env=A_PASSWORD=********"),
        *("-e", "A=token=1", "echo token=1"),
    ]
    assert worker.Sanitizer.sanitize_docker_command(None, ["half"]) == ["(not shown)"]


def test_templates_stay_as_they_are(worker: Any) -> None:
    words = ["-e", "A=${CLEARML_TASK.name}"]
    assert worker.Literal().resolve_from_docker_cmd(words) == words
