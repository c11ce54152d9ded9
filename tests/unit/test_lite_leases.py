"""Leases and the edges of the queues: each task to one worker, and none lost whatever dies.

The plain course of a queue is in test_lite_queues.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Lite, make_lite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from trainyard_lite._clock import ago
from trainyard_lite._errors import ApiError
from trainyard_lite.domain.workers import expire_workers

HOST = "node-of-several-agents"  # agents send their host's name with get_next_task, not their worker id


class Server:
    """A lite server with names that do not repeat, so that many tests can share it."""

    def __init__(self, folder: Path) -> None:
        self.lite: Lite = make_lite(folder)
        self.state = self.lite.state
        self.names = iter(range(1_000_000))

    def __call__(self, name: str, /, **args: Any) -> Any:
        return self.lite(name, HOST, **args)

    def raw(self, name: str, /, **args: Any) -> tuple[int, int]:
        try:
            self(name, **args)
        except ApiError as error:
            return error.code, error.subcode
        return 200, 0

    def error(self, name: str, /, **args: Any) -> tuple[int, int]:
        return self.lite.error(name, **args)

    def queue(self, **args: Any) -> str:
        return str(self("queues.create", name=f"queue {next(self.names)}", **args)["id"])

    def task(self, queue: str | None = None) -> str:
        task = self.lite.task(f"task {next(self.names)}")
        if queue:
            self("tasks.enqueue", task=task, queue=queue)
        return task

    def take(self, queue: str, **args: Any) -> str | None:
        entry = self("queues.get_next_task", queue=queue, **args).get("entry")
        return entry and entry["task"]

    def waiting(self, queue: str) -> list[str]:
        return [entry["task"] for entry in self("queues.get_by_id", queue=queue)["queue"]["entries"]]

    def status(self, task: str) -> str:
        return self.lite.status(task)

    def pass_time(self, seconds: float) -> None:
        """Make what is noted older, as if the server had run for so long since."""
        with self.state.db.write() as db:
            db.execute("UPDATE queue_lease SET taken = ?", (ago(seconds),))
        self.state.db.opened = ago(seconds + 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("leases"))
    yield server
    server.state.db.close()


# Concurrency


@given(
    agents=st.integers(min_value=2, max_value=8),
    before=st.integers(min_value=0, max_value=12),
    during=st.integers(min_value=0, max_value=12),
    movers=st.integers(min_value=0, max_value=2),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_task_goes_to_one_agent(server: Server, agents: int, before: int, during: int, movers: int) -> None:
    queue = server.queue()
    tasks = [server.task() for _ in range(before + during)]
    for task in tasks[:before]:
        server("tasks.enqueue", task=task, queue=queue)
    start = threading.Barrier(agents + movers + 1)
    filled = threading.Event()
    taken: list[list[str]] = [[] for _ in range(agents)]
    failures: list[BaseException] = []

    def guarded(work: Any, *args: Any) -> None:
        try:
            start.wait()
            work(*args)
        except BaseException as error:
            failures.append(error)
            filled.set()
            raise

    def agent(number: int) -> None:
        while True:
            done = filled.is_set()  # asked first: what was put before it is found by the look that follows
            task = server.take(queue)
            if task:
                taken[number].append(task)
            elif done:
                return

    def fill() -> None:
        for task in tasks[before:]:
            server("tasks.enqueue", task=task, queue=queue)
        filled.set()

    def move() -> None:
        for task in tasks:  # one that is gone by now is refused, no more
            assert server.raw("queues.move_task_to_front", queue=queue, task=task)[0] in (200, 400)

    threads = [threading.Thread(target=guarded, args=(agent, n)) for n in range(agents)]
    threads += [threading.Thread(target=guarded, args=(fill,))]
    threads += [threading.Thread(target=guarded, args=(move,)) for _ in range(movers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert sorted(task for mine in taken for task in mine) == sorted(tasks)
    if not movers and not during:
        order = {task: number for number, task in enumerate(tasks)}
        for mine in taken:
            assert [order[t] for t in mine] == sorted(order[t] for t in mine)


def test_a_task_enters_one_queue_once_however_many_ask(server: Server) -> None:
    queue, task = server.queue(), server.task()
    answers: list[tuple[int, int]] = []
    barrier = threading.Barrier(6)

    def ask() -> None:
        barrier.wait()
        answers.append(server.raw("tasks.enqueue", task=task, queue=queue))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [(200, 0)] + [(400, 706)] * 5
    assert server.waiting(queue) == [task]


# Leases


class Agents(RuleBasedStateMachine):
    """Agents that take, report, start and die at any moment; a task is always somewhere, and in one place.

    Every rule that is drawn does something: who may act is chosen among those who can.
    """

    server: Server
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        Agents.runs += 1
        self.run = Agents.runs
        self.joined = 0
        self.queue = self.server.queue()
        self.agents: dict[str, str | None] = {}  # worker id -> the task that it reported to have in hand
        self.waiting = {self.server.task(self.queue)}
        self.adrift: set[str] = set()  # taken by an agent that told nobody

    def pick(self, choice: int, holding: bool | None = None) -> str:
        able = [w for w, task in self.agents.items() if holding is None or bool(task) is holding]
        return able[choice % len(able)]

    def idle(self) -> bool:
        return any(task is None for task in self.agents.values())

    def holding(self) -> bool:
        return any(self.agents.values())

    def report(self, worker: str, task: str | None) -> None:
        self.server("workers.status_report", worker=worker, timestamp=0, task=task, queues=[self.queue])
        self.agents[worker] = task

    @precondition(lambda self: len(self.agents) < 3)
    @rule()
    def join(self) -> None:
        self.joined += 1
        worker = f"run {self.run}:{self.joined}"
        self.server("workers.register", worker=worker, queues=[self.queue], timeout=600)
        self.agents[worker] = None

    @precondition(lambda self: len(self.waiting) < 4)
    @rule()
    def enqueue(self) -> None:
        self.waiting.add(self.server.task(self.queue))

    @precondition(lambda self: self.waiting and self.idle())
    @rule(choice=st.integers(0, 2))
    def take_and_report(self, choice: int) -> None:
        task = self.server.take(self.queue)
        assert task in self.waiting
        self.waiting.remove(task)
        self.report(self.pick(choice, holding=False), task)

    @precondition(lambda self: self.waiting)
    @rule()
    def take_and_die(self) -> None:
        task = self.server.take(self.queue)
        assert task in self.waiting
        self.waiting.remove(task)
        self.adrift.add(task)

    @precondition(lambda self: self.holding())
    @rule(choice=st.integers(0, 2))
    def start(self, choice: int) -> None:
        worker = self.pick(choice, holding=True)
        self.server("tasks.started", task=self.agents[worker], force=True)
        self.report(worker, None)

    @precondition(lambda self: self.holding())
    @rule(choice=st.integers(0, 2), how=st.sampled_from(["restart", "unregister", "expire"]))
    def die_with_a_task(self, choice: int, how: str) -> None:
        worker = self.pick(choice, holding=True)
        task = self.agents.pop(worker)
        assert task
        if how == "restart":
            self.server("workers.register", worker=worker, queues=[self.queue], timeout=600)
            self.agents[worker] = None
        elif how == "unregister":
            self.server("workers.unregister", worker=worker)
        else:
            with self.server.state.db.write() as db:
                db.execute("UPDATE worker SET last_seen = ? WHERE id = ?", (ago(3600), worker))
            self.server.state.db.opened = ago(3600)
            expire_workers(self.server.state)
        self.waiting.add(task)

    @rule()
    def time_passes(self) -> None:
        self.server.pass_time(120)
        expire_workers(self.server.state)
        self.waiting |= self.adrift
        self.adrift.clear()

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        entries = self.server.waiting(self.queue)
        assert len(entries) == len(set(entries))
        assert set(entries) == self.waiting


def test_no_task_is_lost_whatever_dies(server: Server) -> None:
    Agents.server = server
    limits = settings(max_examples=20, stateful_step_count=15, deadline=None)
    run_state_machine_as_test(Agents, settings=limits)  # type: ignore[no-untyped-call]


def test_a_task_in_the_hands_of_a_living_worker_stays_there(server: Server) -> None:
    queue = server.queue()
    task = server.task(queue)
    server("workers.register", worker="slow:0", queues=[queue])
    assert server.take(queue) == task
    server("workers.status_report", worker="slow:0", timestamp=0, task=task)
    server.pass_time(300)
    expire_workers(server.state)
    assert server.waiting(queue) == []
    server("workers.status_report", worker="slow:0", timestamp=0)  # it gave up
    server.pass_time(300)
    expire_workers(server.state)
    assert server.waiting(queue) == [task]


def test_the_time_that_the_server_was_down_does_not_count(server: Server) -> None:
    queue = server.queue()
    task = server.task(queue)
    server("workers.register", worker="patient:0", queues=[queue], timeout=30)
    server.take(queue)
    with server.state.db.write() as db:
        db.execute("UPDATE queue_lease SET taken = ?", (ago(3000),))
        db.execute("UPDATE worker SET last_seen = ? WHERE id = 'patient:0'", (ago(3000),))
    server.state.db.opened = ago(5)
    expire_workers(server.state)
    assert server.waiting(queue) == []
    assert "patient:0" in [w["id"] for w in server("workers.get_all", last_seen=0)["workers"]]
    server.state.db.opened = ago(100)
    expire_workers(server.state)
    assert server.waiting(queue) == [task]


def test_returned_tasks_keep_their_order(server: Server) -> None:
    queue = server.queue()
    tasks = [server.task(queue) for _ in range(4)]
    with server.state.db.write() as db:  # enqueued at different moments
        for number, task in enumerate(tasks):
            db.execute("UPDATE queue_entry SET added = ? WHERE task = ?", (ago(100 - number), task))
    assert [server.take(queue) for _ in range(3)] == tasks[:3]
    server.pass_time(120)
    expire_workers(server.state)
    assert server.waiting(queue) == tasks


def test_a_late_start_takes_the_returned_task_out_again(server: Server) -> None:
    queue = server.queue()
    task = server.task(queue)
    server.take(queue)
    server.pass_time(120)
    expire_workers(server.state)
    assert server.waiting(queue) == [task]
    server("tasks.started", task=task, force=True)
    assert server.take(queue) is None


@pytest.mark.parametrize("step", ["tasks.started", "tasks.dequeue", "tasks.reset", "tasks.stop"])
def test_a_task_that_moved_on_is_not_put_back(server: Server, step: str) -> None:
    queue = server.queue()
    task = server.task(queue)
    server.take(queue)
    server(step, task=task)
    server.pass_time(120)
    expire_workers(server.state)
    assert server.waiting(queue) == []


def test_a_taken_task_whose_queue_is_gone_is_a_draft_again(server: Server) -> None:
    queue = server.queue()
    task = server.task(queue)
    server.take(queue)
    server("queues.delete", queue=queue)
    server.pass_time(120)
    expire_workers(server.state)
    assert server.status(task) == "created"


# The rest of the service


def test_get_next_task(server: Server) -> None:
    queue = server.queue()
    first, second = server.task(queue), server.task(queue)
    assert server("queues.get_next_task", queue=queue, task=second) == {}  # only if it is the first
    answer = server("queues.get_next_task", queue=queue, task=first, get_task_info=True)
    assert answer["entry"]["task"] == first
    assert answer["task_info"].keys() == {"company", "user"}
    server("tasks.delete", task=second, force=True)
    assert server("queues.get_next_task", queue=queue) == {}
    assert server.error("queues.get_next_task", queue="none") == (400, 701)


def test_names_are_unique_and_trimmed(server: Server) -> None:
    name = f"named {next(server.names)}"
    queue = server("queues.create", name=f"  {name} ")["id"]
    assert server("queues.get_by_id", queue=queue)["queue"]["name"] == name
    assert server.error("queues.create", name=name) == (400, 801)
    other = server.queue()
    assert server.error("queues.update", queue=other, name=f"{name}  ") == (400, 801)
    assert server.error("queues.update", queue=other, name=" a ") == (400, 800)
    assert server("queues.update", queue=queue, name=name, display_name="Big")["fields"]["display_name"] == "Big"


def test_metadata(server: Server) -> None:
    item = {"key": "gpu", "type": "str", "value": "A100"}
    queue = server.queue(metadata={"gpu": item})
    server("queues.add_or_update_metadata", queue=queue, metadata=[{"key": "rack", "value": "7"}])
    assert server("queues.get_by_id", queue=queue)["queue"]["metadata"] == {
        "gpu": item, "rack": {"key": "rack", "value": "7"},
    }  # fmt: skip
    assert [q["id"] for q in server("queues.get_all", **{"metadata.rack.value": "7"})["queues"]] == [queue]
    server("queues.delete_metadata", queue=queue, keys=["gpu"])
    server("queues.update", queue=queue, metadata={})
    assert server("queues.get_by_id", queue=queue)["queue"]["metadata"] == {}
    assert server.error("queues.update", queue=queue, metadata={"a": 1}) == (400, 12)


def test_hidden_queues_are_found_by_those_who_look(server: Server) -> None:
    queue = server.queue(system_tags=["k8s-glue"])
    name = server("queues.get_by_id", queue=queue)["queue"]["name"]
    for call in ("queues.get_all", "queues.get_all_ex"):
        for args, seen in (
            ({}, False),
            ({"search_hidden": True}, True),
            ({"id": [queue]}, True),
            ({"name": name}, True),
        ):
            assert (queue in [q["id"] for q in server(call, **args)["queues"]]) is seen, (call, args)


def test_clear_and_forced_delete_give_the_tasks_back(server: Server) -> None:
    queue = server.queue()
    tasks = [server.task(queue) for _ in range(3)]
    assert server.error("queues.delete", queue=queue) == (400, 702)
    assert server("queues.clear_queue", queue=queue) == {"removed_tasks": tasks}
    assert {server.status(task) for task in tasks} == {"created"}
    server("tasks.enqueue", task=tasks[0], queue=queue)
    assert server("queues.delete", queue=queue, force=True) == {"deleted": 1}
    assert server.status(tasks[0]) == "created"


def test_the_entries_in_a_list_can_be_limited(server: Server) -> None:
    queue = server.queue()
    tasks = [server.task(queue) for _ in range(3)]
    for call in ("queues.get_all", "queues.get_all_ex"):
        (found,) = server(call, id=[queue], max_task_entries=2)["queues"]
        assert len(found["entries"]) == 2
    assert len(server("queues.get_by_id", queue=queue, max_task_entries=1)["queue"]["entries"]) == 1
    assert len(tasks) == 3


def test_what_lite_has_not_is_refused_by_name(server: Server) -> None:
    assert server.error("queues.get_queue_metrics", from_date=0, to_date=1, interval=1) == (500, 9999)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("queues.create", {}),
        ("queues.create", {"name": 5}),
        ("queues.create", {"name": ""}),
        ("queues.create", {"name": ["a", "b", "c"]}),
        ("queues.create", {"name": "abc", "tags": "x"}),
        ("queues.get_by_id", {"queue": {"a": 1}}),
        ("queues.get_by_id", {"queue": "none"}),
        ("queues.get_by_id", {"queue": "a\x00b"}),
        ("queues.get_by_id", {"queue": "none", "max_task_entries": 2**70}),
        ("queues.get_all", {"max_task_entries": 2**62}),
        ("queues.get_all", {"colour": "red"}),
        ("queues.get_all", {"id": [{}]}),
        ("queues.get_all", {"id": [["a"]]}),
        ("queues.get_next_task", {"queue": None}),
        ("queues.get_next_task", {"queue": "none", "task": 4}),
        ("queues.add_task", {"queue": "none", "task": "none"}),
        ("queues.remove_task", {"queue": "none", "task": "none"}),
        ("queues.move_task_forward", {"queue": "none", "task": "none", "count": -1}),
        ("queues.move_task_backward", {"queue": "none", "task": "none", "count": 2**63}),
        ("queues.delete", {"queue": 1}),
        ("queues.clear_queue", {"queue": "none"}),
        ("queues.add_or_update_metadata", {"queue": "none", "metadata": [{"value": "x"}]}),
        ("queues.update", {"queue": "none", "name": "abc"}),
    ],
)
def test_bad_input_is_refused(server: Server, name: str, args: dict[str, Any]) -> None:
    tables = ("queue", "queue_entry", "queue_lease")
    count = lambda: [server.state.db.read().execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables]  # noqa: E731
    before = count()
    assert server.error(name, **args)[0] == 400
    assert count() == before
