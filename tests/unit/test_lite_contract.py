"""The API's contract: what the official server (2.3, API 2.34) answered when it was asked the same, as plain values.

Every expectation here was read off the real server.  Where lite is stricter on purpose (it refuses
what the official server ignores or fails on), that is said beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from test_lite_auth import write_config
from trainyard_lite._app import create_state
from trainyard_lite._http import create_api
from trainyard_lite._settings import load_settings

Doc = dict[str, Any]
AGENT = ("AGENTKEY", "AGENTSECRET")
DATE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00$")
HEX = re.compile(r"^[0-9a-f]{32}$")
T0 = 1_700_000_000_000


class Api:
    """Calls endpoints and tells what came back."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.names = iter(range(100_000))

    def raw(self, name: str, /, **args: Any) -> tuple[int, int, str, Doc]:
        answer = self.client.post(f"/{name}", json=args, auth=AGENT)
        body = answer.json()
        assert answer.status_code == body["meta"]["result_code"]
        return body["meta"]["result_code"], body["meta"]["result_subcode"], body["meta"]["result_msg"], body["data"]

    def __call__(self, name: str, /, **args: Any) -> Doc:
        code, subcode, message, data = self.raw(name, **args)
        assert code == 200, f"{name} {args}: {code}/{subcode} {message}"
        return data

    def error(self, name: str, /, **args: Any) -> tuple[int, int]:
        code, subcode, message, data = self.raw(name, **args)
        assert code != 200, f"{name} {args} was accepted"
        assert data == {}
        assert message[0].isupper()
        return code, subcode

    def events(self, *events: Doc) -> tuple[int, int, str, Doc]:
        content = "\n".join(json.dumps(event) for event in events)
        answer = self.client.post(
            "/events.add_batch", content=content, headers={"content-type": "application/json-lines"}, auth=AGENT
        )
        meta = answer.json()["meta"]
        return meta["result_code"], meta["result_subcode"], meta["result_msg"], answer.json()["data"]

    def unique(self, stem: str = "thing") -> str:
        return f"{stem}-{next(self.names)}"

    def task(self, status: str = "created", **args: Any) -> str:
        task = str(self("tasks.create", **{"name": self.unique("task"), "type": "training", **args})["id"])
        if status == "queued":
            self("tasks.enqueue", task=task, queue_name="contract queue")
        elif status != "created":
            self("tasks.started", task=task)
            if status == "published":
                self("tasks.completed", task=task)
                self("tasks.publish", task=task)
            elif status != "in_progress":
                self(f"tasks.{status}", task=task)
        return task

    def get(self, task: str) -> Doc:
        return dict(self("tasks.get_by_id", task=task)["task"])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("contract")
    state = create_state(load_settings(write_config(folder / "config"), folder / "data"))
    yield Api(TestClient(create_api(state)))
    state.db.close()


# The life of a task: rows are operations, columns the status before; a word is the status after, a number the subcode.
STATUSES = ("created", "queued", "in_progress", "stopped", "completed", "failed", "published")
LIFE: dict[str, tuple[str | int, ...]] = {
    "started":   ("in_progress", "in_progress", "in_progress", "in_progress", "in_progress", 110, 110),
    "stop":      (110, "stopped", "stopped", "stopped", 110, "stopped", 110),
    "stopped":   (110, "stopped", "stopped", "stopped", 110, "stopped", 110),
    "completed": (110, 110, "completed", "completed", "completed", 110, 110),
    "failed":    (110, 110, "failed", "failed", 110, "failed", 110),
    "publish":   (110, 110, 110, "published", "published", "published", 110),
    "reset":     ("created", "created", "created", "created", "created", "created", 110),
    "close":     (110, 110, 110, "closed", 110, 110, 110),
    "delete":    ("gone", 123, 123, 123, 123, 123, 123),
    "edit":      ("created", 110, 110, 110, 110, 110, 110),
}  # fmt: skip


@pytest.mark.parametrize("operation", LIFE)
@pytest.mark.parametrize("status", STATUSES)
def test_the_life_of_a_task(api: Api, operation: str, status: str) -> None:
    expected = LIFE[operation][STATUSES.index(status)]
    task = api.task(status)
    extra = {"script": {"diff": "x"}} if operation == "edit" else {}
    code, subcode, _, _ = api.raw(f"tasks.{operation}", task=task, **extra)
    if isinstance(expected, int):
        assert (code, subcode) == (400, expected)
        assert api.get(task)["status"] == status
    elif expected == "gone":
        assert code == 200
        assert api.error("tasks.get_by_id", task=task) == (400, 101)
    else:
        assert code == 200
        assert api.get(task)["status"] == expected


@pytest.mark.parametrize(
    ("operation", "status"), [("completed", "created"), ("publish", "created"), ("started", "failed")]
)
def test_force_allows_any_transition(api: Api, operation: str, status: str) -> None:
    task = api.task(status)
    api(f"tasks.{operation}", task=task, force=True)
    assert (
        api.get(task)["status"]
        == {"completed": "completed", "publish": "published", "started": "in_progress"}[operation]
    )


@pytest.mark.parametrize(
    ("status", "allowed"), [("created", True), ("in_progress", True), ("completed", False), ("published", False)]
)
def test_results_may_be_added_while_a_task_runs(api: Api, status: str, allowed: bool) -> None:
    task = api.task(status)
    calls: list[tuple[str, Doc]] = [
        ("tasks.add_or_update_artifacts", {"artifacts": [{"key": "a", "type": "custom"}]}),
        ("tasks.edit_runtime", {"runtime": {"x": 1}}),
    ]
    for name, args in calls:
        code, subcode, _, _ = api.raw(name, task=task, **args)
        assert (code, subcode) == ((200, 0) if allowed else (400, 110)), name
    api("tasks.update", task=task, comment="in every status")


@pytest.mark.parametrize("status", ["in_progress", "completed", "published"])
def test_a_forced_edit_works_in_every_status(api: Api, status: str) -> None:
    task = api.task(status)
    for change in ({"system_tags": ["archived"]}, {"runtime": {"a": 1}}):  # the SDK does this to closed tasks
        assert api("tasks.edit", task=task, force=True, **change)["updated"] == 1
    assert api.get(task)["system_tags"] == ["archived"]
    api("tasks.set_requirements", task=task, requirements={"pip": "x"})


def test_a_clone_knows_where_it_comes_from(api: Api) -> None:
    parent = api.task()
    first = api("tasks.clone", task=parent, new_task_name="a clone")["id"]
    second = api("tasks.clone", task=first, new_task_name="a clone's clone")["id"]
    assert [api.get(task)["parent"] for task in (first, second)] == [parent, parent]
    assert api.get(first)["status"] == "created"


def test_answers_of_the_life_cycle(api: Api) -> None:
    task = api.task()
    started = api("tasks.started", task=task)
    assert (started["updated"], started["started"]) == (1, 1)
    fields = started["fields"]
    assert fields["status"] == "in_progress"
    assert fields["last_changed_by"] == "__agent_a__"
    assert "started" in fields
    assert "started" not in api("tasks.started", task=task)["fields"]
    stopped = api("tasks.stopped", task=task, status_reason="why", status_message="because")["fields"]
    assert (stopped["status_reason"], stopped["status_message"]) == ("why", "because")
    assert "completed" in stopped
    done = api("tasks.completed", task=task)
    assert (done["updated"], done["published"]) == (1, 0)
    assert api("tasks.reset", task=task).keys() >= {"deleted_models", "dequeued", "fields", "updated"}
    doc = api.get(task)
    assert (doc["status"], doc["status_reason"]) == ("created", "reset")
    child = api.task(parent=task)
    assert api("tasks.delete", task=task).items() >= {"deleted": True, "updated_children": 1}.items()
    assert api.get(child)["parent"] == f"__DELETED__{task}"


def test_a_fresh_task(api: Api) -> None:
    doc = api.get(api.task())
    assert doc.items() >= {
        "status": "created", "type": "training", "user": "__agent_a__", "tags": [], "system_tags": [],
        "last_iteration": 0, "last_metrics": {}, "hyperparams": {}, "configuration": {}, "runtime": {},
        "models": {"input": [], "output": []}, "container": {}, "output": {},
    }.items()  # fmt: skip
    assert doc["execution"]["artifacts"] == []
    assert doc["script"].items() >= {"binary": "python", "repository": "", "entry_point": ""}.items()
    assert DATE.match(doc["created"])
    assert DATE.match(doc["last_update"])
    assert HEX.match(doc["id"])
    assert not {"started", "completed", "project", "parent", "status_changed"} & doc.keys()


@pytest.mark.parametrize(
    ("name", "args", "subcode"),
    [
        ("tasks.get_by_id", {"task": "nosuch"}, 101),
        ("tasks.get_by_id", {}, 12),
        ("tasks.get_by_id", {"task": None}, 12),
        ("tasks.get_by_id", {"task": 5}, 12),
        ("tasks.get_by_id", {"task": "x", "zzz": 1}, 14),  # the official server ignores zzz
        ("tasks.create", {"type": "training"}, 12),
        ("tasks.create", {"name": "abc"}, 12),
        ("tasks.create", {"name": "abc", "type": "nosuch"}, 12),
        ("tasks.create", {"name": "ab", "type": "training"}, 800),
        ("tasks.create", {"name": "abc", "type": "training", "project": "nosuch"}, 16),
        ("tasks.create", {"name": "abc", "type": "training", "parent": "nosuch"}, 16),
        ("tasks.stopped", {"task": "nosuch"}, 101),
        ("tasks.enqueue", {}, 12),
        ("tasks.enqueue", {"task": "nosuch", "queue_name": "some queue"}, 101),
        ("tasks.archive", {"tasks": ["nosuch"]}, 101),
        ("tasks.delete_many", {"ids": []}, 12),
        ("tasks.delete_many", {}, 12),
        ("tasks.clone", {"task": "nosuch"}, 101),
        ("queues.create", {}, 12),
        ("queues.create", {"name": 5}, 12),
        ("queues.create", {"name": "ab"}, 800),
        ("queues.get_by_id", {"queue": "nosuch"}, 701),
        ("queues.get_next_task", {"queue": "nosuch"}, 701),
        ("queues.get_next_task", {}, 12),
        ("queues.delete", {"queue": "nosuch"}, 701),
        ("queues.get_all", {"name": "("}, 21),
        ("workers.register", {}, 12),
        ("workers.register", {"worker": "w", "queues": ["nosuch"]}, 701),
        ("workers.status_report", {}, 12),
        ("workers.status_report", {"worker": "w", "timestamp": "x"}, 12),
        ("workers.status_report", {"worker": "w", "timestamp": T0, "task": "nosuch"}, 101),
        ("workers.get_stats", {}, 12),
        ("events.get_task_log", {"task": "nosuch"}, 101),
        ("events.scalar_metrics_iter_histogram", {"task": "nosuch"}, 101),
        ("events.scalar_metrics_iter_histogram", {}, 12),
        ("events.debug_images", {"metrics": []}, 12),
        ("models.create", {"name": "abc"}, 12),
        ("models.create", {"uri": "file:///x"}, 12),
        ("models.create", {"uri": "file:///x", "name": "abc", "task": "nosuch"}, 101),
        ("models.get_by_id", {"model": "nosuch"}, 201),
        ("models.update", {"model": "nosuch", "name": "abc"}, 201),
        ("models.delete", {"model": "nosuch"}, 201),
        ("projects.create", {"name": "ab", "description": ""}, 12),
        ("projects.create", {"name": "long enough//x", "description": ""}, 12),
        ("projects.get_by_id", {"project": "nosuch"}, 401),
        ("projects.update", {"project": "nosuch", "description": "x"}, 401),
        ("projects.delete", {"project": "nosuch"}, 401),
        ("users.get_by_id", {"user": "nosuch"}, 301),
    ],
)
def test_bad_input(api: Api, name: str, args: Doc, subcode: int) -> None:
    assert api.error(name, **args) == (400, subcode)


def test_many(api: Api) -> None:
    good, queued = api.task(), api.task("queued")
    answer = api("tasks.archive_many", ids=[good, "nosuch"])
    assert [one["id"] for one in answer["succeeded"]] == [good]
    assert answer["succeeded"][0]["archived"] is True
    (failure,) = answer["failed"]
    assert failure["id"] == "nosuch"
    assert failure["error"]["codes"] == [400, 101]
    assert failure["error"]["msg"].startswith("Invalid task id")
    assert "archived" in api.get(good)["system_tags"]
    assert api("tasks.unarchive_many", ids=[good])["succeeded"][0]["unarchived"] is True
    answer = api("tasks.enqueue_many", ids=[good, queued], queue_name="contract queue")
    assert answer["succeeded"][0].items() >= {"id": good, "queued": True, "updated": 1}.items()
    assert answer["failed"][0]["error"]["codes"] == [400, 706]
    assert api("tasks.dequeue_many", ids=[good])["succeeded"][0]["dequeued"] is True
    assert api("tasks.delete_many", ids=[good])["succeeded"][0]["deleted"] is True
    assert api("tasks.stop_many", ids=[queued])["succeeded"][0]["updated"] == 1


# Queues


def test_a_queue(api: Api) -> None:
    name = api.unique("queue")
    queue = api("queues.create", name=name)["id"]
    assert api.error("queues.create", name=name) == (400, 801)
    tasks = [api.task() for _ in range(4)]
    for task in tasks:
        answer = api("tasks.enqueue", task=task, queue=queue)
        assert answer["queued"] == 1
        assert answer["fields"].items() >= {
            "status": "queued", "enqueue_status": "created", "execution.queue": queue,
        }.items()  # fmt: skip
    assert api.error("tasks.enqueue", task=tasks[0], queue=queue) == (400, 706)
    assert api.error("queues.add_task", task=tasks[0], queue=queue) == (400, 706)
    doc = api("queues.get_by_id", queue=queue)["queue"]
    assert [entry["task"] for entry in doc["entries"]] == tasks
    assert api("queues.get_num_entries", queue=queue) == {"num": 4}
    assert api("queues.peek_task", queue=queue) == {"task": tasks[0]}
    # 0 is the next to go
    assert api("queues.move_task_to_back", queue=queue, task=tasks[0]) == {"position": 3}
    assert api("queues.move_task_to_front", queue=queue, task=tasks[2]) == {"position": 0}
    assert api("queues.move_task_forward", queue=queue, task=tasks[0], count=2) == {"position": 1}
    assert api("queues.move_task_backward", queue=queue, task=tasks[0]) == {"position": 2}
    assert api("queues.move_task_forward", queue=queue, task=tasks[0], count=100) == {"position": 0}
    assert api.error("queues.move_task_forward", queue=queue, task="nosuch") == (400, 703)
    (listed,) = api("queues.get_all_ex", id=[queue])["queues"]
    assert listed["entries"][0]["task"].keys() == {"id", "name"}
    assert listed["workers"] == []
    entry = api("queues.get_next_task", queue=queue)["entry"]
    assert entry["task"] == tasks[0]
    assert DATE.match(entry["added"])
    assert api.get(tasks[0])["status"] == "queued"  # until the agent says it started
    assert api("queues.remove_task", queue=queue, task=tasks[3]) == {"removed": 1}
    assert api.error("queues.remove_task", queue=queue, task=tasks[3]) == (400, 703)
    assert api.error("queues.delete", queue=queue) == (400, 702)
    api("queues.get_next_task", queue=queue)
    api("queues.get_next_task", queue=queue)
    assert api("queues.get_next_task", queue=queue) == {}
    assert api("queues.delete", queue=queue) == {"deleted": 1}


def test_a_forced_delete_gives_the_tasks_back(api: Api) -> None:
    queue = api("queues.create", name=api.unique("queue"))["id"]
    task = api.task()
    api("tasks.enqueue", task=task, queue=queue)
    api("queues.delete", queue=queue, force=True)
    doc = api.get(task)
    assert doc["status"] == "created"
    assert "queue" not in doc["execution"]


def test_enqueue_makes_the_named_queue_and_uses_the_default_one(api: Api) -> None:
    name = api.unique("made by enqueue")
    api("tasks.enqueue", task=api.task(), queue_name=name)
    assert [q["name"] for q in api("queues.get_all", name=f"^{name}$")["queues"]] == [name]
    task = api.task(system_tags=["development"])
    queue = api("tasks.enqueue", task=task)["fields"]["execution.queue"]
    assert api("queues.get_default") == {"id": queue, "name": "default"}
    assert api.get(task)["system_tags"] == []
    assert api("tasks.dequeue", task=task)["fields"]["status"] == "created"


def test_workers(api: Api) -> None:
    worker, queue = api.unique("worker") + ":gpu0", api("queues.create", name=api.unique("queue"))["id"]
    assert api("workers.register", worker=worker, queues=[queue], timeout=60, tags=["a"]) == {}
    task = api.task("in_progress")
    stats = {"cpu_usage": [1.5, 2.5], "gpu_usage": [50], "memory_used": 10, "memory_free": 20}
    report = {"worker": worker, "queues": [queue], "queue": queue, "task": task, "machine_stats": stats}
    assert api("workers.status_report", timestamp=T0, **report) == {}
    (seen,) = [w for w in api("workers.get_all")["workers"] if w["id"] == worker]
    assert seen["queue"].items() >= {"id": queue, "num_tasks": 0}.items()
    assert [q["id"] for q in seen["queues"]] == [queue]
    assert seen["task"]["id"] == task
    assert seen["tags"] == ["a"]
    assert seen["register_timeout"] == 60
    assert api.get(task)["last_worker"] == worker
    (listed,) = api("queues.get_all_ex", id=[queue])["queues"]
    assert [w["name"] for w in listed["workers"]] == [worker]
    assert {c["name"] for c in api("workers.get_metric_keys", worker_ids=[worker])["categories"]} == {
        "cpu", "gpu", "memory",
    }  # fmt: skip
    # an agent that the server forgot is taken back by its next report; a stranger may leave too
    assert api("workers.unregister", worker=worker) == {}
    assert api("workers.unregister", worker=worker) == {}
    assert api("workers.status_report", timestamp=T0, worker=worker, queues=[queue]) == {}
    assert api("workers.status_report", timestamp=T0, worker=worker, machine_stats={"of_a_newer_agent": 1}) == {}
    api("workers.unregister", worker=worker)
    assert api.raw("workers.get_runtime_properties", worker=worker)[0] == 404


# Filters


@pytest.fixture(scope="module")
def six(api: Api) -> Doc:
    project = api("projects.create", name="six tasks", description="")["id"]
    parent = api.task()
    ids = [
        api.task(
            name=f"f{n}-six",
            project=project,
            tags=["even" if n % 2 == 0 else "odd"] + (["three"] if n % 3 == 0 else []),
            type="training" if n < 4 else "testing",
            system_tags=["archived"] if n == 5 else [],
            comment=f"cmt{n}",
            hyperparams={"Args": {"lr": {"section": "Args", "name": "lr", "value": str(n)}}},
            **({"parent": parent} if n == 2 else {}),
        )
        for n in range(6)
    ]
    for task in ids[:3]:
        api("tasks.started", task=task)
    api("tasks.completed", task=ids[0])
    return {"project": [project], "parent": parent, "ids": ids}


ALL = "012345"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ALL),
        ({"tags": ["even"]}, "024"),
        ({"tags": "even"}, "024"),
        ({"tags": ["even", "three"]}, "0234"),
        ({"tags": ["__$and", "even", "three"]}, "0"),
        ({"tags": ["__$all", "even", "three"]}, "0"),
        ({"tags": ["-even"]}, "135"),
        ({"tags": ["__$not", "even"]}, "135"),
        ({"tags": ["three", "-even"]}, "3"),
        ({"tags": ["__$and", "three", "__$not", "even"]}, "3"),
        ({"tags": ["__$or", "even", "__$not", "three"]}, "01245"),
        ({"tags": []}, ALL),
        ({"tags": [None]}, ""),
        ({"id": []}, ALL),
        ({"id": ["nosuch"]}, ""),
        ({"filters": {"tags": {"any": {"include": ["even"], "exclude": ["three"]}}}}, "01245"),
        ({"filters": {"tags": {"all": {"include": ["even", "three"]}}}}, "0"),
        ({"filters": {"tags": {"op": "or", "any": {"include": ["odd"]}, "all": {"include": ["even", "three"]}}}},
         "0135"),
        ({"status": ["in_progress"]}, "12"),
        ({"status": ["in_progress", "completed"]}, "012"),
        ({"status": ["-created"]}, "012"),
        ({"type": ["testing"]}, "45"),
        ({"name": "^f[12]-"}, "12"),
        ({"name": "3-"}, "3"),
        ({"name": "F3-"}, ""),
        ({"comment": "cmt4"}, "4"),
        ({"_any_": {"pattern": "f3|cmt1", "fields": ["name", "comment"]}}, "13"),
        ({"_all_": {"pattern": "cmt1", "fields": ["comment"]}}, "1"),
        ({"user": ["__agent_a__"]}, ALL),
        ({"user": ["nobody"]}, ""),
        ({"parent": [None]}, "01345"),
        ({"created": ["2020-01-01", "2100-01-01"]}, ALL),
        ({"last_update": [">=2020-01-01T00:00:00"]}, ALL),
        ({"status_changed": [">2020-01-01"]}, "012"),
        ({"last_iteration": [0, 5]}, ALL),
        ({"last_iteration": [None, 5]}, ALL),
        ({"hyperparams.Args.lr.value": ["1", "2"]}, "12"),
        ({"hyperparams.Args.lr.value": ["-1"]}, "02345"),
        ({"system_tags": ["archived"]}, "5"),
        ({"system_tags": ["-archived"]}, "01234"),
        ({"system_tags": ["__$all", "archived", "__$not", "hidden"]}, "5"),
        ({"search_text": "f3-"}, "3"),
        ({"page": 0, "page_size": 2}, "01"),
        ({"page": 1, "page_size": 2}, "23"),
        ({"page": 9, "page_size": 2}, ""),
        ({"page_size": 2}, "01"),
        ({"start": 1, "size": 2}, "12"),
        ({"order_by": ["-name"]}, "543210"),
        ({"order_by": ["type", "-name"]}, "543210"),
        ({"order_by": ["-hyperparams.Args.lr.value"]}, "543210"),
        ({"order_by": ["-created"]}, "543210"),
    ],
)  # fmt: skip
def test_filters(api: Api, six: Doc, filters: Doc, expected: str) -> None:
    args: Doc = {"order_by": ["name"], "only_fields": ["name"], "project": six["project"], **filters}
    found = api("tasks.get_all_ex", **args)["tasks"]
    assert "".join(task["name"][1] for task in found) == expected
    assert all(task.keys() == {"id", "name"} for task in found)


@pytest.mark.parametrize(
    ("args", "subcode"),
    [
        ({"tags": ["__$zzz", "even"]}, 16),
        ({"project": 5}, 16),
        ({"_any_": {"pattern": "x", "fields": ["zzz"]}}, 14),
        ({"_any_": {"zzz": "x", "fields": ["name"]}}, 16),
        ({"created": [">=2020-01-01T00:00:00"]}, 12),
        ({"order_by": ["zzz"]}, 14),
        ({"page": -1, "page_size": 2}, 12),
        ({"page": 0, "page_size": 0}, 12),
        ({"only_fields": ["zzz"]}, 14),
        ({"name": "("}, 21),
        ({"zzz": 1}, 14),  # the official server ignores it
    ],
)
def test_bad_filters(api: Api, args: Doc, subcode: int) -> None:
    assert api.error("tasks.get_all_ex", **args) == (400, subcode)


def test_parent_filter(api: Api, six: Doc) -> None:
    for value in (six["parent"], [six["parent"]]):
        assert [t["name"] for t in api("tasks.get_all_ex", parent=value)["tasks"]] == ["f2-six"]


def test_scroll(api: Api, six: Doc) -> None:
    args: Doc = {"project": six["project"], "order_by": ["name"], "only_fields": ["name"], "size": 4}
    first = api("tasks.get_all_ex", scroll_id=None, **args)
    assert [task["name"][1] for task in first["tasks"]] == list("0123")
    second = api("tasks.get_all_ex", scroll_id=first["scroll_id"], **args)
    assert [task["name"][1] for task in second["tasks"]] == list("45")
    third = api("tasks.get_all_ex", scroll_id=second["scroll_id"], **args)
    assert third["tasks"] == []
    assert third["scroll_id"]


def test_references_are_ids_or_objects(api: Api, six: Doc) -> None:
    task = six["ids"][2]
    plain = api.get(task)
    assert (plain["project"], plain["user"], plain["parent"]) == (six["project"][0], "__agent_a__", six["parent"])
    (rich,) = api("tasks.get_by_id_ex", id=[task])["tasks"]
    assert rich["project"] == {"id": six["project"][0]}
    assert rich["user"] == {"id": "__agent_a__"}
    only = ["project.name", "user.name", "parent.name", "status", "hyperparams.Args.lr.value"]
    (named,) = api("tasks.get_by_id_ex", id=[task], only_fields=only)["tasks"]
    assert named["project"] == {"id": six["project"][0], "name": "six tasks"}
    assert named["user"] == {"id": "__agent_a__", "name": "agent a"}
    assert named["parent"]["id"] == six["parent"]
    assert named["hyperparams"] == {"Args": {"lr": {"value": "2"}}}
    assert api("tasks.get_by_id_ex", id=["nosuch"]) == {"tasks": []}


# Events


@pytest.fixture(scope="module")
def measured(api: Api) -> str:
    task = api.task("in_progress")
    base = {"task": task, "type": "training_stats_scalar"}
    events: list[Doc] = []
    for n in range(50):
        one = {**base, "iter": n, "timestamp": T0 + n * 1000}
        events.append({**one, "metric": "loss", "variant": "train", "value": 1 / (n + 1)})
        events.append({**one, "metric": "acc.top", "variant": "v $1", "value": n / 50})
    events.append({**base, "metric": "Summary", "variant": "final", "value": 0.5, "iter": -(2**31), "timestamp": T0})
    log = {"task": task, "type": "log", "level": "info", "worker": "w1"}
    events += [{**log, "msg": f"line {n}", "timestamp": T0 + n} for n in range(30)]
    events += [
        {"task": task, "type": "plot", "metric": "cm", "variant": "v", "iter": n, "timestamp": T0, "plot_str": "{}"}
        for n in range(3)
    ]
    events += [
        {"task": task, "type": "training_debug_image", "metric": "img", "variant": v, "iter": n, "timestamp": T0 + n,
         "key": f"k{n}", "url": f"http://files/{v}{n}.png"}
        for n in range(5) for v in ("cat", "dog")
    ]  # fmt: skip
    events += [
        {"task": task, "type": "training_stats_vector", "metric": "vec", "variant": "v", "iter": n, "timestamp": T0,
         "values": [1, 2, 3]}
        for n in range(3)
    ]  # fmt: skip
    code, _, _, data = api.events(*events)
    assert (code, data) == (200, {"added": len(events), "errors": 0, "errors_info": {}})
    return task


def test_metrics_are_kept_on_the_task(api: Api, measured: str) -> None:
    doc = api.get(measured)
    assert doc["last_iteration"] == 49
    kept = {m["metric"]: m for variants in doc["last_metrics"].values() for m in variants.values()}
    assert kept["loss"].items() >= {
        "variant": "train", "value": 0.02, "min_value": 0.02, "min_value_iteration": 49,
        "max_value": 1.0, "max_value_iteration": 0,
    }.items()  # fmt: skip
    # the keys are md5 of the names
    assert doc["last_metrics"]["81513effdf5790b79549208838404407"].keys() == {"61b3a8faa9c1091806675c230a9abe64"}


def test_scalars(api: Api, measured: str) -> None:
    curves = api("events.scalar_metrics_iter_histogram", task=measured)
    assert curves.keys() == {"loss", "acc.top"}  # single values are no curves
    assert curves["loss"]["train"]["name"] == "train"
    assert curves["loss"]["train"]["x"] == list(range(50))
    assert curves["acc.top"]["v $1"]["y"][10] == 0.2
    few = api("events.scalar_metrics_iter_histogram", task=measured, samples=10)
    assert 2 <= len(few["loss"]["train"]["x"]) <= 20
    multi = api("events.multi_task_scalar_metrics_iter_histogram", tasks=[measured])
    assert multi["metrics"]["loss"]["train"][measured]["x"] == list(range(50))
    (single,) = api("events.get_task_single_value_metrics", tasks=[measured])["tasks"]
    assert single["task"] == measured
    assert single["values"] == [{"metric": "Summary", "variant": "final", "value": 0.5, "timestamp": T0}]
    latest = api("events.get_task_latest_scalar_values", task=measured)
    assert [m["name"] for m in latest["metrics"]] == ["Summary", "acc.top", "loss"]
    assert latest["metrics"][2]["variants"][0].items() >= {"name": "train", "last_value": 0.02}.items()
    assert latest["last_iter"] == 49
    names = api("events.get_scalar_metrics_and_variants", task=measured)["metrics"]
    assert names == {"Summary": ["final"], "acc.top": ["v $1"], "loss": ["train"]}
    vectors = api("events.vector_metrics_iter_histogram", task=measured, metric="vec", variant="v")
    assert vectors == {"metric": "vec", "variant": "v", "vectors": [[1, 2, 3]] * 3, "iterations": [0, 1, 2]}


@pytest.mark.parametrize(
    ("args", "lines", "total"),
    [
        ({"batch_size": 3}, [29, 28, 27], 30),
        ({"batch_size": 3, "order": "asc", "navigate_earlier": False}, [0, 1, 2], 30),
        ({"batch_size": 3, "navigate_earlier": False, "from_timestamp": T0 + 5}, [6, 7, 8], 30),
        ({"batch_size": 3, "navigate_earlier": True, "from_timestamp": T0 + 5}, [4, 3, 2], 30),
    ],
)
def test_log(api: Api, measured: str, args: Doc, lines: list[int], total: int) -> None:
    answer = api("events.get_task_log", task=measured, **args)
    assert [event["msg"] for event in answer["events"]] == [f"line {n}" for n in lines]
    assert (answer["returned"], answer["total"]) == (3, total)
    assert answer["events"][0].items() >= {"type": "log", "worker": "w1", "level": "info", "task": measured}.items()


def test_plots_and_images(api: Api, measured: str) -> None:
    plots = api("events.get_task_plots", task=measured)["plots"]
    assert [(p["metric"], p["iter"]) for p in plots] == [("cm", 2)]
    assert len(api("events.get_task_plots", task=measured, iters=2)["plots"]) == 2
    pages = api("events.debug_images", metrics=[{"task": measured, "metric": "img"}], iters=2)
    (metric,) = pages["metrics"]
    assert [page["iter"] for page in metric["iterations"]] == [4, 3]
    assert {event["variant"] for event in metric["iterations"][0]["events"]} == {"cat", "dog"}
    earlier = api(
        "events.debug_images", metrics=[{"task": measured, "metric": "img"}], iters=2, scroll_id=pages["scroll_id"]
    )
    assert [page["iter"] for page in earlier["metrics"][0]["iterations"]] == [2, 1]
    sample = api("events.get_debug_image_sample", task=measured, metric="img", variant="cat")
    assert (sample["event"]["iter"], sample["min_iteration"], sample["max_iteration"]) == (4, 0, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "nosuch"}, "Invalid task id nosuch"),
        ({"type": "zzz"}, "Invalid event type zzz"),
        ({"type": None}, "type"),
        ({"task": None}, "task"),
    ],
)
def test_bad_events(api: Api, measured: str, change: Doc, words: str) -> None:
    event = {"type": "log", "task": measured, "msg": "x", "timestamp": T0, **change}
    event = {key: value for key, value in event.items() if value is not None}
    code, subcode, message, _ = api.events(event)
    assert (code, subcode) == (400, 131)
    assert message.startswith("Events not added")
    assert words in message


def test_good_events_of_a_mixed_batch_are_kept(api: Api) -> None:
    task = api.task("in_progress")
    good = {"type": "log", "task": task, "msg": "x", "timestamp": T0}
    code, _, _, data = api.events(good, {**good, "task": "nosuch"})
    assert (code, data["added"], data["errors"]) == (200, 1, 1)
    assert data["errors_info"] == {"Invalid task id nosuch": 1}
    assert api.events()[:2] == (400, 17)
    published = api.task("published")
    assert api.events({**good, "task": published})[:2] == (400, 131)


# Models, projects and the rest


def test_a_model(api: Api) -> None:
    task = api.task("in_progress")
    made = api("models.create", uri="file:///w", name="the model", labels={"cat": 1}, framework="PyTorch", task=task)
    assert made.items() >= {"created": True}.items()
    model = made["id"]
    doc = api("models.get_by_id", model=model)["model"]
    assert doc.items() >= {
        "name": "the model", "uri": "file:///w", "labels": {"cat": 1}, "ready": True, "task": task, "tags": [],
        "metadata": {},
    }.items()  # fmt: skip
    assert api("models.edit", model=model, comment="c")["updated"] == 1
    assert api("models.add_or_update_metadata", model=model, metadata=[{"key": "k", "type": "str", "value": "v"}]) == {
        "updated": 1
    }
    assert api("models.get_by_id", model=model)["model"]["metadata"]["k"]["value"] == "v"
    assert api.error("models.set_ready", model=model) == (400, 203)
    api("tasks.add_or_update_model", task=task, name="in", model=model, type="input")
    assert api.error("models.delete", model=model) == (400, 205)
    assert api("models.delete", model=model, force=True).items() >= {"deleted": True, "url": "file:///w"}.items()
    assert api.get(task)["models"]["input"][0]["model"] == f"__DELETED__{model}"


def test_projects(api: Api) -> None:
    top = api.unique("top")
    child = api("projects.create", name=f"{top}/middle/bottom", description="")["id"]
    doc = api("projects.get_by_id", project=child)["project"]
    assert (doc["name"], doc["basename"]) == (f"{top}/middle/bottom", "bottom")
    assert len(doc["path"]) == 2
    (parent,) = api("projects.get_all", name=f"^{top}$")["projects"]
    assert api.error("projects.create", name=top, description="") == (400, 801)
    done = api.task(project=child, tags=["x"])
    api("tasks.started", task=done)
    api("tasks.completed", task=done)
    api.task(project=parent["id"], tags=["y"])
    (listed,) = api("projects.get_all_ex", id=[parent["id"]], include_stats=True)["projects"]
    stats = listed["stats"]["active"]
    assert stats["total_tasks"] == 2
    assert (stats["status_count"]["completed"], stats["status_count"]["created"]) == (1, 1)
    assert [p["name"] for p in listed["sub_projects"]] == [f"{top}/middle", f"{top}/middle/bottom"]
    assert api("projects.get_task_tags", projects=[parent["id"]])["tags"] == ["x", "y"]
    assert {"x", "y"} <= set(api("organization.get_tags")["tags"])
    found = api("projects.get_all_ex", parent=[parent["id"]], only_fields=["name"])["projects"]
    assert len(found) == 2  # grandchildren too
    assert api.error("projects.update", project=child, name=f"{top}/elsewhere/bottom") == (400, 408)
    assert api("projects.update", project=child, description="d")["updated"] == 1
    assert api.error("projects.delete", project=parent["id"]) == (400, 402)
    gone = api("projects.delete", project=parent["id"], force=True)
    assert gone.items() >= {"deleted": 3, "disassociated_tasks": 2}.items()
    assert "project" not in api.get(done)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("server.info", {"version", "api_version", "build", "commit"}),
        ("login.supported_modes", {"basic", "sso", "sso_providers", "authenticated", "server_errors"}),
        ("users.get_current_user", {"user", "getting_started", "settings"}),
        ("organization.get_tags", {"tags"}),
        ("workers.get_count", {"count"}),
        ("tasks.get_types", {"types"}),
        ("models.get_frameworks", {"frameworks"}),
    ],
)
def test_shapes(api: Api, name: str, keys: set[str]) -> None:
    assert api(name).keys() >= keys


def test_the_door(api: Api) -> None:
    client: Callable[..., Any] = api.client.post
    answers = {
        "no token": client("/tasks.get_all", json={}),
        "no token, no JSON": client("/tasks.get_all", content=b"{"),
        "no such endpoint, no token": client("/tasks.fly", json={}),
        "wrong key": client("/tasks.get_all", json={}, auth=("nobody", "nothing")),
        "form": client("/tasks.get_by_id", data={"task": "nosuch"}, auth=AGENT),
        "version without a minor": client("/v2/tasks.get_all", json={}, auth=AGENT),
        "null": client("/tasks.get_by_id", content=b"null", auth=AGENT),
    }
    codes = {k: (a.status_code, a.json()["meta"]["result_subcode"]) for k, a in answers.items()}
    assert codes == {
        "no token": (401, 20),
        "no token, no JSON": (401, 20),
        "no such endpoint, no token": (404, 0),
        "wrong key": (401, 22),
        "form": (400, 101),
        "version without a minor": (400, 0),
        "null": (400, 12),
    }
