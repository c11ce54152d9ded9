"""Queues: order, and that a task goes to one worker and to no other, whatever happens."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import Lite, make_lite
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard_lite.domain.workers import expire_workers

MOVES = st.tuples(st.sampled_from(["forward", "backward", "to_front", "to_back"]), st.integers(0, 7), st.integers(0, 9))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 8), moves=st.lists(MOVES, max_size=25))
def test_moves_keep_the_order_of_a_list(count: int, moves: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lite = make_lite(Path(folder))
        queue = lite("queues.create", name="a queue")["id"]
        model = [lite.task(f"task {n}") for n in range(count)]
        for task in model:
            lite("tasks.enqueue", task=task, queue=queue)
        for move, which, by in moves:
            task = model[which % count]
            place = model.index(task)
            model.remove(task)
            target = {
                "forward": max(0, place - by),
                "backward": min(len(model), place + by),
                "to_front": 0,
                "to_back": len(model),
            }[move]
            model.insert(target, task)
            args = {"count": by} if move in ("forward", "backward") else {}
            assert lite(f"queues.move_task_{move}", queue=queue, task=task, **args) == {"position": target}
        taken = [lite("queues.get_next_task", queue=queue)["entry"]["task"] for _ in range(count)]
        assert taken == model
        assert lite("queues.get_next_task", queue=queue) == {}
        lite.state.db.close()


def test_many_workers_take_each_task_once_while_others_enqueue(lite: Lite) -> None:
    queue = lite("queues.create", name="a queue")["id"]
    total, producers, consumers = 240, 3, 8
    tasks = [lite.task(f"task {n}") for n in range(total)]
    taken: Counter[str] = Counter()
    lock, problems = threading.Lock(), []

    def produce(mine: list[str]) -> None:
        for task in mine:
            lite("tasks.enqueue", task=task, queue=queue)

    def consume(worker: str) -> None:
        deadline = time.monotonic() + 60
        while sum(taken.values()) < total:
            if time.monotonic() > deadline:
                problems.append("not all tasks came")
                return
            entry = lite("queues.get_next_task", worker, queue=queue).get("entry")
            if entry:
                with lock:
                    taken[entry["task"]] += 1
                lite("tasks.started", task=entry["task"])

    threads = [threading.Thread(target=produce, args=(tasks[n::producers],)) for n in range(producers)]
    threads += [threading.Thread(target=consume, args=(f"w:{n}",)) for n in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert taken == Counter(tasks)


@pytest.fixture
def taken(lite: Lite) -> tuple[Lite, str, str, str]:
    """A task that a worker took and has not started, before another that waits."""
    queue = lite("queues.create", name="a queue")["id"]
    first, second = lite.task("first"), lite.task("second")
    for task in (first, second):
        lite("tasks.enqueue", task=task, queue=queue)
    lite("workers.register", worker="w:0", queues=[queue], timeout=600)
    assert lite("queues.get_next_task", "w:0", queue=queue)["entry"]["task"] == first
    return lite, queue, first, second


def waiting(lite: Lite, queue: str) -> list[str]:
    return [entry["task"] for entry in lite("queues.get_by_id", queue=queue)["queue"]["entries"]]


def test_a_task_whose_worker_left_goes_back_to_the_front(taken: tuple[Lite, str, str, str]) -> None:
    lite, queue, first, second = taken
    lite("workers.unregister", worker="w:0")
    assert waiting(lite, queue) == [first, second]
    assert lite.status(first) == "queued"


def test_a_task_whose_worker_died_goes_back_after_the_timeout(taken: tuple[Lite, str, str, str]) -> None:
    lite, queue, first, second = taken
    assert expire_workers(lite.state) == 0
    assert waiting(lite, queue) == [second]  # the worker lives: nobody else gets its task
    with lite.state.db.write() as db:  # an hour later
        db.execute("UPDATE worker SET last_seen = '2020-01-01T00:00:00.000000+00:00'")
        db.execute("UPDATE queue_lease SET taken = '2020-01-01T00:00:00.000000+00:00'")
    lite.state.db.opened = "2020-01-01T00:00:00.000000+00:00"  # all of it while the server was up
    assert expire_workers(lite.state) == 1
    assert waiting(lite, queue) == [first, second]
    assert lite("workers.get_all")["workers"] == []


def test_a_task_that_was_started_does_not_go_back(taken: tuple[Lite, str, str, str]) -> None:
    lite, queue, first, second = taken
    lite("tasks.started", task=first)
    lite("workers.unregister", worker="w:0")
    assert waiting(lite, queue) == [second]
    assert lite.status(first) == "in_progress"


def test_a_restart_remembers_order_and_leases(taken: tuple[Lite, str, str, str], tmp_path: Path) -> None:
    lite, queue, first, second = taken
    lite.state.db.close()
    again = make_lite(tmp_path)
    assert waiting(again, queue) == [second]
    again("workers.unregister", worker="w:0")
    assert waiting(again, queue) == [first, second]


def test_a_queue_in_use_is_not_deleted_by_mistake(lite: Lite) -> None:
    queue = lite("queues.create", name="a queue")["id"]
    task = lite.task()
    lite("tasks.enqueue", task=task, queue=queue)
    assert lite.error("queues.delete", queue=queue) == (400, 702)
    assert lite("queues.delete", queue=queue, force=True) == {"deleted": 1}
    assert lite.status(task) == "created"


def test_workers_tell_what_is_free(lite: Lite) -> None:
    queue = lite("queues.create", name="a queue")["id"]
    task = lite.task()
    stats = {"cpu_usage": [10.0, 30.0], "memory_used": 1024.0}
    for worker, runs in (("node-1:gpu0", task), ("node-2:gpu1", None)):
        lite(
            "workers.status_report",
            worker=worker,
            timestamp=1_700_000_000_000,
            queues=[queue],
            machine_stats=stats,
            **({"task": runs} if runs else {}),
        )
    busy, free = lite("workers.get_all")["workers"]
    assert (busy["id"], busy["task"]["id"]) == ("node-1:gpu0", task)
    assert "task" not in free
    assert [q["name"] for q in free["queues"]] == ["a queue"]
    series = lite(
        "workers.get_stats",
        from_date=1_699_999_000,
        to_date=1_700_001_000,
        interval=60,
        items=[{"key": "cpu_usage", "aggregation": "avg"}],
        worker_ids=["node-1:gpu0"],
    )
    assert series["workers"][0]["metrics"][0]["stats"][0]["values"] == [20.0]
    assert lite.error("workers.status_report", worker="w:0", timestamp=1, task="nosuch") == (400, 101)
