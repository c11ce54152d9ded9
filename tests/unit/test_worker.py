"""A worker and the fate of its experiments: on a real lite server, with stand-ins for clearml-agent and Docker.

The stand-in of clearml-agent swallows what the server says at an experiment's end, as the real one does. What the real
ones do together is in tests/e2e.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import Lite, make_lite
from trainyard_lite._errors import ApiError

AGENTS = Path(__file__).resolve().parents[2] / "agents"
QUIET = ("tasks.get", "queues.get_by", "events.get")
# More than any of the sequences has; those above the real number simply never fail.
CALLS = range(8)

Json = dict[str, Any]


class Died(BaseException):
    """The process is gone: nothing in it catches this."""


class StopReason:
    no_stop, exception, stopped, reset, status_changed, not_found = range(6)


class StopSignal:
    def test(self) -> int:
        return StopReason.no_stop


class Agent:
    """What worker.py needs of clearml-agent's worker."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.worker_id, self._services_mode, self._polling_interval = "node-1", False, 0.0
        self._session = self
        self.console: list[str] = []

    def send_request(self, service: str, action: str, **options: Any) -> SimpleNamespace:
        status, body = self.node.request(f"{service}.{action}", options.get("json") or {})
        return SimpleNamespace(ok=status == 200, status_code=status, text=str(body), json=lambda: {"data": body})

    def send_logs(self, _task: str, lines: list[str], **_options: Any) -> int:
        self.console += lines
        return len(lines)

    def tell(self, endpoint: str, task: str) -> None:
        service, action = endpoint.split(".")
        assert self.send_request(service, action, json={"task": task}).ok

    def handle_task_termination(self, task: str, status: int, reason: int, **_options: Any) -> None:
        ends = {StopReason.no_stop: "failed" if status else "completed", StopReason.stopped: "stopped"}
        try:
            if reason in ends:
                self.tell(f"tasks.{ends[reason]}", task)
        except Exception as error:
            print(error)

    def run_one_task(self, _queue: str, task: str) -> int:
        self.tell("tasks.started", task)
        self.node.trained.append(task)
        status = self.node.docker.run(task)
        self.handle_task_termination(task, status, self.node.reason)
        return status

    def get_worker_properties(self, queues: list[str]) -> str:
        return f"of {queues}"


@dataclass
class Docker:
    """Containers of experiments."""

    lite: Lite
    found: dict[str, Json] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    status: int = 0
    removed_at: list[str] = field(default_factory=list)
    fails: bool = False

    def run(self, task: str) -> int:
        container = f"c{len(self.tasks)}"
        self.found[container] = {"Running": False, "ExitCode": self.status, "OOMKilled": False}
        self.tasks[container] = task
        return self.status

    def __call__(self, *words: str) -> str:
        if self.fails:
            raise subprocess.CalledProcessError(1, "docker", stderr="no daemon")
        if words[0] == "ps":
            return "\n".join(f"{name} clearml-id-{self.tasks[name]}-abc" for name in self.found)
        if words[0] == "inspect":
            return json.dumps(self.found[words[-1]])
        assert words[0] == "rm", words
        self.found.pop(words[-1])
        self.removed_at.append(self.lite.status(self.tasks[words[-1]]))
        return ""


class Node:
    """A node with one worker; ``restart`` is what Docker does when its process ended."""

    def __init__(self, lite: Lite, module: ModuleType) -> None:
        self.lite, self.module, self.docker = lite, module, Docker(lite)
        self.queue = str(lite("queues.create", name="a queue")["id"])
        self.trained: list[str] = []
        self.changes: list[str] = []
        self.reason = StopReason.no_stop
        self.fault: Callable[[str, str], int | None] = lambda when, endpoint: None
        self.restart()

    def restart(self) -> None:
        current = self.module.Current
        current.task = current.started = current.noted = ""
        current.taken = current.interrupted = False
        self.worker = self.module.Worker.__new__(self.module.Worker)
        Agent.__init__(self.worker, self)
        self.worker.refuse_image = lambda task: False
        current.worker = self.worker

    def request(self, endpoint: str, arguments: Json) -> tuple[int, Json]:
        status = self.fault("before", endpoint)
        if not status:
            self.changes += [] if endpoint.startswith(QUIET) else [endpoint]
            try:
                answer = self.lite(endpoint, **arguments)
            except ApiError as error:
                return 400, {"error": error.message}
            status = self.fault("after", endpoint)
        return (status, {}) if status else (200, answer)

    def break_call(self, step: int, when: str, kind: str) -> None:
        """Let one of the next calls fail; counts those that change something and those that read."""
        seen = 0

        def fault(moment: str, _endpoint: str) -> int | None:
            nonlocal seen
            if moment != when:
                return None
            seen += 1
            if seen != step + 1:
                return None
            if kind == "died":
                raise Died
            if kind == "lost":
                raise ConnectionError("connection lost")
            return {"fault": 500, "refused": 400, "busy": 429}[kind]

        self.fault = fault

    def pull(self) -> str:
        task = str(self.lite("queues.get_next_task", queue=self.queue)["entry"]["task"])
        self.module.record(task, self.queue)
        return task

    def until_it_lives(self, step: Callable[[], object]) -> None:
        """Run it; when the process dies, Docker starts the worker again, which settles what it finds."""
        try:
            step()
        except Died:
            for _ in range(3):
                self.restart()
                try:
                    self.module.settle_leftovers(self.worker, [self.queue])
                except Died:
                    continue
                break

    def waiting(self) -> list[str]:
        return [entry["task"] for entry in self.lite("queues.get_by_id", queue=self.queue)["queue"]["entries"]]

    def task(self, task: str) -> Json:
        return dict(self.lite("tasks.get_by_id", task=task)["task"])


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Return worker.py, with a stand-in for clearml-agent."""
    upstream = ModuleType("clearml_agent.commands.worker")
    upstream.__dict__.update(Worker=Agent, TaskStopReason=StopReason, TaskStopSignal=StopSignal, get_next_task=None)
    upstream.__dict__.update(DockerArgsTemplateResolver=object, DockerArgsSanitizer=object, Events=object)
    upstream.__dict__.update(LiteralScriptManager=SimpleNamespace(write=None), clone_repository_cached=None)
    names = {
        "clearml_agent": {"__main__": None},
        "clearml_agent.commands": {"worker": upstream},
        "clearml_agent.commands.worker": {},
        "clearml_agent.errors": {"Sigterm": SystemExit, "CommandFailedError": RuntimeError},
        "clearml_agent.helper": {},
        "clearml_agent.helper.repo": {"Git": SimpleNamespace(checkout=None)},
        "clearml_agent.helper.process": {"Argv": list, "ExitStatus": SimpleNamespace(interrupted=-2, failure=1)},
        "clearml_agent.helper.resource_monitor": {"ResourceMonitor": object},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in names.items():
            stand_in = ModuleType(name)
            stand_in.__dict__.update(values)
            patch.setitem(sys.modules, name, stand_in)
        patch.setitem(sys.modules, "clearml_agent.commands.worker", upstream)
        patch.setenv("TRAINYARD_STATE", str(tmp_path_factory.mktemp("state")))
        patch.syspath_prepend(str(AGENTS))
        for name in ("worker", "checkout"):
            patch.delitem(sys.modules, name, raising=False)
        made = importlib.import_module("worker")
        for name in ("worker", "checkout"):
            patch.delitem(sys.modules, name)
        patch.setattr(made, "RETRY_SECONDS", 0.0)
        yield made


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Lite:
    return make_lite(tmp_path_factory.mktemp("lite"))


@pytest.fixture
def node(lite: Lite, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(lite, module)
    monkeypatch.setattr(module, "docker", made.docker)
    done = SimpleNamespace(stdout="")
    fake = SimpleNamespace(run=lambda *_, **__: done, PIPE=-1, STDOUT=-2)
    fake.SubprocessError, fake.CalledProcessError = subprocess.SubprocessError, subprocess.CalledProcessError
    monkeypatch.setattr(module, "subprocess", fake)
    module.RECORD.unlink(missing_ok=True)
    yield made
    lite("queues.delete", queue=made.queue, force=True)


def waiting_task(node: Node) -> str:
    task = node.lite.task()
    node.lite("tasks.enqueue", task=task, queue=node.queue)
    return task


def train_rest(node: Node) -> None:
    """Let the worker train all that waits."""
    node.fault = lambda when, endpoint: None
    while node.waiting():
        node.worker.run_one_task(node.queue, node.pull())


def check_clean(node: Node) -> None:
    assert node.docker.found == {}, "no container is left"
    assert not node.module.RECORD.exists(), "no record is left"


KINDS = [(when, kind) for when in ("before", "after") for kind in ("died", "lost", "fault", "refused", "busy")]


@pytest.mark.parametrize(("when", "kind"), KINDS)
@pytest.mark.parametrize("container", [True, False], ids=["with its container", "only pulled"])
def test_a_power_cut_costs_one_requeue_whatever_call_fails(node: Node, container: bool, when: str, kind: str) -> None:
    for step in CALLS:
        task = waiting_task(node)
        node.pull()
        if container:
            node.lite("tasks.started", task=task)
            node.docker.status = 137
            node.docker.run(task)
        node.restart()
        node.break_call(step, when, kind)
        node.until_it_lives(lambda: node.module.settle_leftovers(node.worker, [node.queue]))
        check_clean(node)
        if kind == "refused" and node.lite.status(task) == "failed":  # by its queue
            assert "went down with it; it cannot go back into its queue" in node.task(task)["status_reason"]
            assert node.waiting() == []
            continue
        assert node.waiting() == [task], f"queued once: call {step}"
        assert node.task(task)["runtime"]["trainyard_requeues"] == 1
        node.docker.status = 0
        train_rest(node)
        assert (node.lite.status(task), node.trained.count(task)) == ("completed", 1)
        check_clean(node)


@pytest.mark.parametrize(("when", "kind"), KINDS)
@pytest.mark.parametrize(("status", "end"), [(0, "completed"), (3, "failed")])
def test_an_end_is_not_lost_whatever_call_fails(node: Node, status: int, end: str, when: str, kind: str) -> None:
    for step in CALLS:
        task = waiting_task(node)
        node.pull()
        node.docker.status = status
        run = node.docker.run

        def ran(task: str, step: int = step, run: Callable[[str], int] = run) -> int:
            node.break_call(step, when, kind)  # from its end on
            return run(task)

        node.docker.run = ran  # type: ignore[method-assign]
        node.until_it_lives(partial(node.worker.run_one_task, node.queue, task))
        node.docker.run = run  # type: ignore[method-assign]
        node.fault = lambda when, endpoint: None
        assert node.lite.status(task) == end, f"call {step}"
        assert node.trained.count(task) == 1
        check_clean(node)
    assert set(node.docker.removed_at) == {end}, "a container goes when the server knows the end"


def test_while_the_server_is_away_the_worker_waits_and_pulls_nothing(node: Node) -> None:
    first, later = waiting_task(node), waiting_task(node)
    node.pull()
    node.lite("tasks.started", task=first)
    node.docker.status = 137
    node.docker.run(first)
    asked: list[str] = []

    def away(moment: str, endpoint: str) -> int | None:
        if moment == "before":
            asked.append(endpoint)
        return 502 if len(asked) < 40 else None

    node.fault = away
    node.module.settle_leftovers(node.worker, [node.queue])
    assert "queues.get_next_task" not in asked
    assert node.waiting() == [first, later], "in front"
    check_clean(node)


def test_an_experiment_that_is_refused_fails_though_the_server_was_away(node: Node) -> None:
    for step in range(5):
        task = str(
            node.lite("tasks.create", name="a task", type="training", container={"image": "--privileged x"})["id"]
        )
        node.lite("tasks.enqueue", task=task, queue=node.queue)
        node.pull()
        node.break_call(step, "before", "fault")
        node.worker.run_one_task(node.queue, task)
        assert (node.lite.status(task), node.trained) == ("failed", [])
        check_clean(node)


def test_an_experiment_that_was_deleted_after_it_was_pulled_is_forgotten(node: Node) -> None:
    task = waiting_task(node)
    node.pull()
    node.lite("tasks.delete", task=task, force=True)
    node.worker.run_one_task(node.queue, task)
    assert node.trained == []
    check_clean(node)


def test_an_experiment_that_cannot_be_followed_fails_with_a_reason(node: Node) -> None:
    """clearml-agent reports nothing when its own loop broke."""
    task = waiting_task(node)
    node.pull()
    node.reason = StopReason.exception
    node.worker.run_one_task(node.queue, task)
    assert node.lite.status(task) == "failed"
    assert "could not follow the experiment" in node.task(task)["status_reason"]
    check_clean(node)


@pytest.mark.parametrize("status", ["completed", "failed", "stopped", "published", "closed"])
def test_what_ended_while_the_worker_was_down_stays(node: Node, status: str) -> None:
    task = waiting_task(node)
    node.pull()
    node.lite("tasks.started", task=task)
    for step in {"published": ("completed", "publish"), "closed": ("stopped", "close")}.get(status, (status,)):
        node.lite(f"tasks.{step}", task=task)
    node.docker.status = 137
    node.docker.run(task)
    node.module.settle_leftovers(node.worker, [node.queue])
    assert (node.lite.status(task), node.waiting()) == (status, [])
    check_clean(node)


@pytest.mark.parametrize("container", [True, False])
def test_an_experiment_of_another_worker_by_now_is_left_alone(node: Node, container: bool) -> None:
    """The reaper put it back, and another node took it, before this worker came back."""
    task = waiting_task(node)
    node.pull()
    node.lite("tasks.started", task=task)
    if container:
        node.docker.status = 137
        node.docker.run(task)
    node.lite("tasks.stopped", task=task)
    node.lite("tasks.enqueue", task=task, queue=node.queue)
    node.lite("queues.get_next_task", queue=node.queue)
    node.lite("tasks.started", "node-2", task=task)
    node.lite("workers.register", worker="node-2")
    now = datetime.now(UTC).timestamp()
    node.lite("workers.status_report", worker="node-2", task=task, queue=node.queue, timestamp=int(now * 1000))
    node.module.settle_leftovers(node.worker, [node.queue])
    assert (node.lite.status(task), node.waiting()) == ("in_progress", [])
    check_clean(node)


def test_a_docker_that_stays_away_ends_the_process_and_keeps_the_record(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(status: int) -> None:
        raise Died(status)

    monkeypatch.setattr(node.module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(node.module, "DAEMON_SECONDS", 0.05)
    monkeypatch.setattr(node.module.os, "_exit", end)
    task = waiting_task(node)
    node.pull()
    node.docker.fails = True
    with pytest.raises(Died):
        node.module.settle_leftovers(node.worker, [node.queue])
    assert node.module.recorded()["task"] == task
    node.docker.fails = False
    node.module.settle_leftovers(node.worker, [node.queue])
    assert node.waiting() == [task]


def test_an_interrupted_services_worker_stops_its_experiments_when_the_server_is_back(node: Node) -> None:
    task = waiting_task(node)
    node.pull()
    node.lite("tasks.started", task=task)
    node.docker.run(task)
    node.break_call(0, "before", "fault")
    node.module.stop_services(node.worker)
    assert (node.lite.status(task), node.docker.removed_at) == ("stopped", ["stopped"])


def test_what_is_not_a_hang_counts_as_progress(node: Node) -> None:
    """Paused queues, of which nothing is pulled, and a server that does not answer."""
    watchdog = node.module.WATCHDOG
    before = watchdog._beats
    assert node.worker.get_worker_properties(["q"]) == "of ['q']"
    assert watchdog._beats > before
    before = watchdog._beats
    assert node.module.StopSignal().test() == StopReason.no_stop, "a training that runs for days"
    assert watchdog._beats > before
    before = watchdog._beats
    assert node.module.counted(lambda: "sent")() == "sent"
    assert watchdog._beats > before
