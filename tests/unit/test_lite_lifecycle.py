"""The life of a task, step by step at random, against a table of what the official server allows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import Lite, make_lite
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

# Measured on the official server 2.3: per status the steps and where they lead; what is missing is refused.
STEPS = {
    "created": {"started": "in_progress", "reset": "created", "enqueue": "queued"},
    "queued": {"started": "in_progress", "stop": "stopped", "stopped": "stopped", "reset": "created"},
    "in_progress": {
        "started": "in_progress",
        "stop": "stopped",
        "stopped": "stopped",
        "completed": "completed",
        "failed": "failed",
        "reset": "created",
    },
    "stopped": {
        "started": "in_progress",
        "stop": "stopped",
        "stopped": "stopped",
        "completed": "completed",
        "failed": "failed",
        "publish": "published",
        "close": "closed",
        "reset": "created",
        "enqueue": "queued",
    },
    "completed": {
        "started": "in_progress",
        "completed": "completed",
        "publish": "published",
        "reset": "created",
    },
    "failed": {
        "stop": "stopped",
        "stopped": "stopped",
        "failed": "failed",
        "publish": "published",
        "reset": "created",
        "enqueue": "queued",
    },
    "closed": {
        "stop": "stopped",
        "stopped": "stopped",
        "failed": "failed",
        "publish": "published",
        "close": "closed",
        "reset": "created",
    },
    "published": {},
}
OPERATIONS = ["started", "stop", "stopped", "completed", "failed", "publish", "close", "reset", "enqueue"]


class LifeOfTasks(RuleBasedStateMachine):
    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.lite: Lite = make_lite(Path(self._folder.name))
        self.expected: dict[str, str] = {}
        self.queued: list[str] = []

    def teardown(self) -> None:
        self.lite.state.db.close()
        self._folder.cleanup()

    @rule(target=tasks)
    def create(self) -> str:
        task = self.lite.task()
        self.expected[task] = "created"
        return task

    @rule(task=tasks, operation=st.sampled_from(OPERATIONS))
    def step(self, task: str, operation: str) -> None:
        before = self.expected[task]
        after = STEPS[before].get(operation)
        args = {"queue_name": "the queue"} if operation == "enqueue" else {}
        if after is None:
            # enqueueing what waits already has an error of its own
            refusal = (400, 706) if (before, operation) == ("queued", "enqueue") else (400, 110)
            assert self.lite.error(f"tasks.{operation}", task=task, **args) == refusal, f"{operation} from {before}"
        else:
            self.lite(f"tasks.{operation}", task=task, **args)
            self.expected[task] = after
            if operation == "enqueue":
                self.queued.append(task)
            elif before == "queued":
                self.queued.remove(task)

    @rule(task=tasks)
    def force_stop(self, task: str) -> None:
        self.lite("tasks.stopped", task=task, force=True)
        if self.expected[task] == "queued":
            self.queued.remove(task)
        self.expected[task] = "stopped"

    @rule(task=tasks)
    def dequeue(self, task: str) -> None:
        self.lite("tasks.dequeue", task=task)
        if self.expected[task] == "queued":
            self.queued.remove(task)
            self.expected[task] = self.lite.status(task)
            assert self.expected[task] in ("created", "stopped", "failed")

    @rule(task=consumes(tasks))
    def delete(self, task: str) -> None:
        if self.expected[task] != "created":
            assert self.lite.error("tasks.delete", task=task) == (400, 123)
        self.lite("tasks.delete", task=task, force=True)
        assert self.lite.error("tasks.get_by_id", task=task) == (400, 101)
        if self.expected.pop(task) == "queued":
            self.queued.remove(task)

    @rule()
    def take_next(self) -> None:
        queues = self.lite("queues.get_all", name="^the queue$")["queues"]
        if not queues:
            return
        answer = self.lite("queues.get_next_task", "w:0", queue=queues[0]["id"])
        if not self.queued:
            assert answer == {}
            return
        task = self.queued.pop(0)
        assert answer["entry"]["task"] == task
        self.lite("tasks.started", task=task)
        self.expected[task] = "in_progress"

    @invariant()
    def statuses_are_as_expected(self) -> None:
        tasks = self.lite("tasks.get_all", only_fields=["id", "status"])["tasks"]
        assert {task["id"]: task["status"] for task in tasks} == self.expected

    @invariant()
    def the_queue_is_as_expected(self) -> None:
        queues = self.lite("queues.get_all", name="^the queue$")["queues"]
        waiting = [entry["task"] for queue in queues for entry in queue["entries"]]
        assert waiting == self.queued


LifeOfTasks.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLifeOfTasks = pytest.mark.filterwarnings("ignore::ResourceWarning")(LifeOfTasks.TestCase)
