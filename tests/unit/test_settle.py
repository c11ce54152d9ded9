"""An experiment that lost its worker is settled once, whatever fails meanwhile: on a real lite server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import settle
from conftest import Lite, make_lite
from test_lite_durability import Process
from trainyard_lite._errors import ApiError

AGENTS = Path(__file__).resolve().parents[2] / "agents"

Json = dict[str, Any]
REQUEUE, FAIL = settle.Policy(True, 2), settle.Policy(False, 2)


class LostError(Exception):
    """No answer came."""


class Died(BaseException):
    """The process is gone: nothing in it catches this."""


class Server:
    """The API below HTTP; ``fault`` may act before and after each call that changes something."""

    def __init__(self, lite: Lite) -> None:
        self.lite = lite
        self.console: list[str] = []
        self.changes: list[str] = []
        self.fault: Callable[[str, str], None] = lambda when, endpoint: None

    def call(self, endpoint: str, /, **arguments: Any) -> Json:
        changes = not endpoint.startswith(("tasks.get", "queues.get"))
        if changes:
            self.changes.append(endpoint)
            self.fault("before", endpoint)
        try:
            answer = self.lite(endpoint, **arguments)
        except ApiError as error:
            raise settle.RefusedError(f"{endpoint}: {error.message}") from error
        if changes:
            self.fault("after", endpoint)
        return answer

    def log(self, task: str, text: str) -> None:
        self.console.append(text)


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Lite:
    """One for all: each test has tasks and a queue of its own."""
    return make_lite(tmp_path_factory.mktemp("lite"))


@pytest.fixture
def server(lite: Lite) -> Server:
    return Server(lite)


def queue_of(lite: Lite) -> str:
    return str(lite("queues.create", name=f"queue {uuid.uuid4().hex}")["id"])


def lose(lite: Lite, queue: str, *, start: bool = True) -> str:
    """Let a worker take an experiment, and go away."""
    task = lite.task()
    lite("tasks.enqueue", task=task, queue=queue)
    pull(lite, queue, start=start)
    return task


def pull(lite: Lite, queue: str, *, start: bool = True) -> str:
    task = str(lite("queues.get_next_task", queue=queue)["entry"]["task"])
    if start:
        lite("tasks.started", task=task, force=True)
    return task


def waiting(lite: Lite, queue: str) -> list[str]:
    return [entry["task"] for entry in lite("queues.get_by_id", queue=queue)["queue"]["entries"]]


def requeues(lite: Lite, task: str) -> int:
    runtime = lite("tasks.get_by_id", task=task)["task"]["runtime"]
    return int(runtime.get(settle.REQUEUES, 0))


STEPS = ["tasks.edit_runtime", "tasks.stopped", "tasks.enqueue", "queues.move_task_to_front"]


def break_once(server: Server, step: int, when: str, error: BaseException) -> None:
    """Let one of the calls of a settlement fail, before or after the server did it."""
    count = 0

    def fault(moment: str, endpoint: str) -> None:
        nonlocal count
        if moment == when:
            if count == step:
                server.fault = lambda _when, _endpoint: None
                count += 1
                raise error
            count += 1

    server.fault = fault


@pytest.mark.parametrize("start", [True, False], ids=["started", "only pulled"])
@pytest.mark.parametrize("error", [LostError(), Died(), settle.RefusedError("no")], ids=["lost", "died", "refused"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", range(5))
def test_each_call_may_fail_and_the_experiment_is_queued_once(
    server: Server, step: int, when: str, error: BaseException, start: bool
) -> None:
    lite = server.lite
    queue = queue_of(lite)
    task = lose(lite, queue, start=start)
    later = lite.task("later")
    lite("tasks.enqueue", task=later, queue=queue)
    break_once(server, step, when, error)
    for _ in range(3):  # the program starts again, or its next pass comes
        try:
            settle.settle(server, task, why="its worker went down", policy=REQUEUE)
        except (LostError, Died, settle.RefusedError):
            continue
    assert lite.status(task) in {"queued", "failed"}
    if lite.status(task) == "queued":
        assert sorted(waiting(lite, queue)) == sorted([task, later]), "once"
        assert requeues(lite, task) == 1, "one death counts once"
        assert pull(lite, queue) in (task, later)
    else:
        assert isinstance(error, settle.RefusedError), "only what the server refuses makes it fail"
        assert "its worker went down" in lite("tasks.get_by_id", task=task)["task"]["status_reason"]
        assert waiting(lite, queue) == [later]


@pytest.mark.parametrize("error", [LostError(), Died()], ids=["lost", "died"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("start", [True, False], ids=["started", "only pulled"])
@pytest.mark.parametrize("step", range(2))
def test_each_call_may_fail_and_the_experiment_fails_once(
    server: Server, step: int, when: str, error: BaseException, start: bool
) -> None:
    lite = server.lite
    queue = queue_of(lite)
    task = lose(lite, queue, start=start)
    break_once(server, step, when, error)
    for _ in range(3):
        try:
            settle.settle(server, task, why="its worker went down", policy=FAIL)
        except (LostError, Died):
            continue
    now = lite("tasks.get_by_id", task=task)["task"]
    assert (now["status"], waiting(lite, queue)) == ("failed", [])
    assert now["status_reason"] == "its worker went down"


def test_the_calls_are_these_and_no_more(server: Server) -> None:
    queue = queue_of(server.lite)
    task = lose(server.lite, queue)
    outcome = settle.settle(server, task, why="it went down", policy=REQUEUE, sign="[me]")
    assert (outcome.how, outcome.number) == ("requeue", 1)
    assert server.changes == [*STEPS, "tasks.edit_runtime"]
    assert server.console == ["[me] it went down: it goes back to the front of its queue (time 1 of at most 2)"]
    server.changes.clear()
    assert settle.settle(server, task, why="again", policy=REQUEUE).how == "none"
    assert server.changes == [], "what waits is left alone"


def test_each_death_counts_and_the_last_one_fails(server: Server) -> None:
    queue = queue_of(server.lite)
    task = lose(server.lite, queue)
    for number in (1, 2):
        assert settle.settle(server, task, why="it went down", policy=REQUEUE).number == number
        pull(server.lite, queue)
    assert settle.settle(server, task, why="it went down", policy=REQUEUE).how == "fail"
    reason = server.lite("tasks.get_by_id", task=task)["task"]["status_reason"]
    assert reason == "it went down; it was put back 2 time(s) already"


def test_two_settlers_at_once_queue_it_once(server: Server) -> None:
    """The worker that comes back and another node's reaper, at every pair of steps."""
    lite = server.lite
    queue = queue_of(lite)
    for step in range(5):
        task = lose(lite, queue)
        other = Server(lite)

        def meanwhile(moment: str, _endpoint: str, task: str = task, other: Server = other, step: int = step) -> None:
            if moment == "before" and len(server.changes) == step + 1:
                settle.settle(other, task, why="seen by the other", policy=REQUEUE)

        server.changes.clear()
        server.fault = meanwhile
        settle.settle(server, task, why="seen by one", policy=REQUEUE)
        assert waiting(lite, queue) == [task], f"the other came before call {step}"
        assert requeues(lite, task) == 1
        pull(lite, queue)
        lite("tasks.completed", task=task)


def test_many_settlers_in_threads_queue_it_once(server: Server) -> None:
    lite = server.lite
    queue = queue_of(lite)
    for _ in range(5):
        task = lose(lite, queue)
        threads = [
            threading.Thread(
                target=settle.settle, args=(Server(lite), task), kwargs={"why": "it went down", "policy": REQUEUE}
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert waiting(lite, queue) == [task]
        assert requeues(lite, task) == 1
        pull(lite, queue)
        lite("tasks.completed", task=task)


def test_a_run_that_another_worker_began_meanwhile_is_left_alone(server: Server) -> None:
    """The other settler put it back, and it was pulled and started, before this one came to its enqueue."""
    lite = server.lite
    queue = queue_of(lite)
    task = lose(lite, queue)

    def meanwhile(moment: str, endpoint: str) -> None:
        if (moment, endpoint) == ("before", "tasks.enqueue"):
            settle.settle(Server(lite), task, why="seen by the other", policy=REQUEUE)
            pull(lite, queue)

    server.fault = meanwhile
    settle.settle(server, task, why="seen by one", policy=REQUEUE)
    assert (lite.status(task), waiting(lite, queue)) == ("in_progress", [])


@pytest.mark.parametrize("status", ["completed", "failed", "stopped"])
def test_what_has_ended_stays(server: Server, status: str) -> None:
    queue = queue_of(server.lite)
    task = lose(server.lite, queue)
    server.lite(f"tasks.{status}", task=task)
    assert settle.settle(server, task, why="it went down", policy=REQUEUE).how == "none"
    assert server.lite.status(task) == status


def test_a_deleted_experiment_is_no_error(server: Server) -> None:
    task = lose(server.lite, queue_of(server.lite))
    server.lite("tasks.delete", task=task, force=True)
    assert settle.settle(server, task, why="it went down", policy=REQUEUE).how == "none"


@pytest.mark.parametrize("start", [True, False], ids=["started", "only pulled"])
def test_a_queue_that_is_gone_is_the_reason(server: Server, start: bool) -> None:
    lite = server.lite
    queue = queue_of(lite)
    task = lose(lite, queue, start=start)
    lite("queues.delete", queue=queue)
    settle.settle(server, task, why="it went down", policy=REQUEUE)
    now = lite("tasks.get_by_id", task=task)["task"]
    assert now["status"] == "failed"
    assert f"it cannot go back into its queue {queue}" in now["status_reason"]


def test_the_official_servers_way_back_from_a_failed_enqueue_is_known() -> None:
    """It sets the status back, with a reason of its own and no message."""
    task = {"status": "stopped", "status_message": "", "status_reason": "failed enqueueing"}
    assert settle.is_half_done({**task, "runtime": {settle.PUT_BACK: "yes"}})
    assert not settle.is_half_done({**task, "runtime": {}})


PROGRAM = """
import base64, json, os, signal, sys, urllib.request
sys.path.insert(0, sys.argv[1])
import settle
url, task, at = sys.argv[2], sys.argv[3], int(sys.argv[4])

class Server:
    count = 0
    def call(self, endpoint, /, **arguments):
        changes = not endpoint.startswith(("tasks.get", "queues.get"))
        if changes and Server.count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        headers = {"Content-Type": "application/json"}
        headers["Authorization"] = "Basic " + base64.b64encode(b"SYSKEY:SYSSECRET").decode()
        request = urllib.request.Request(f"{url}/{endpoint}", json.dumps(arguments).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            data = json.load(answer)["data"]
        if changes:
            Server.count += 1
        return data
    def log(self, task, text):
        pass

print(json.dumps(settle.settle(Server(), task, why="it went down", policy=settle.Policy()).how))
"""


def test_a_settler_that_is_killed_at_any_call_is_followed_by_one_that_finishes(tmp_path: Path) -> None:
    server = Process(tmp_path)
    server.start()
    try:
        queue = server.call("queues.create", name="a queue")["id"]
        for at in range(5):
            task = str(server.call("tasks.create", name="a task", type="training")["id"])
            server.call("tasks.enqueue", task=task, queue=queue)
            server.call("queues.get_next_task", queue=queue)
            server.call("tasks.started", task=task)
            command = [sys.executable, "-c", PROGRAM, str(AGENTS), f"http://127.0.0.1:{server.api}", task]
            killed = subprocess.run([*command, str(at)], check=False, timeout=60)
            assert killed.returncode == -signal.SIGKILL
            done = subprocess.run([*command, "-1"], capture_output=True, text=True, check=True, timeout=60)
            assert json.loads(done.stdout) in ("requeue", "none")
            entries = server.call("queues.get_by_id", queue=queue)["queue"]["entries"]
            assert [entry["task"] for entry in entries] == [task]
            now = server.call("tasks.get_by_id", task=task)["task"]
            assert (now["status"], now["runtime"][settle.REQUEUES]) == ("queued", 1)
            server.call("tasks.dequeue", task=task)
    finally:
        server.stop()
