"""What experiments report: written once however often it is sent, and read back whole."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from test_lite_auth import write_config
from trainyard_lite._app import create_state
from trainyard_lite._collections import MODELS, TASKS
from trainyard_lite._http import create_api
from trainyard_lite._rpc import ENDPOINTS, State
from trainyard_lite._settings import load_settings

AUTH = ("AGENTKEY", "AGENTSECRET")
TIME = 1_700_000_000_000
TASK, OTHER, PUBLISHED, MODEL, READY = "1" * 32, "2" * 32, "3" * 32, "4" * 32, "5" * 32
SINGLE = -(2**31)


class Server:
    """The API in this process, with a few tasks and models."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.api = TestClient(create_api(state))
        self.reset()

    def reset(self) -> None:
        with self.state.db.write() as db:
            for table in ("event_scalar", "event_log", "event_doc", "event_series"):
                db.execute(f"DELETE FROM {table}")
            for task, status in ((TASK, "in_progress"), (OTHER, "created"), (PUBLISHED, "published")):
                TASKS.put(db, {"id": task, "name": f"task {task[0]}", "status": status, "last_iteration": 0})
            for model, ready in ((MODEL, False), (READY, True)):
                MODELS.put(db, {"id": model, "name": f"model {model[0]}", "ready": ready})

    def meta(self, name: str, data: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        headers = {"X-ClearML-Worker": "w0"}
        if isinstance(data, list):
            lines = "\n".join(json.dumps(item) for item in data)
            headers["Content-Type"] = "application/json-lines"
            body = self.api.post(f"/{name}", auth=AUTH, content=lines, headers=headers).json()
        else:
            body = self.api.post(f"/{name}", auth=AUTH, content=json.dumps(data or {}), headers=headers).json()
        return body["meta"], body["data"]

    def call(self, name: str, data: Any = None) -> dict[str, Any]:
        meta, answer = self.meta(name, data)
        assert meta["result_code"] == 200, meta
        return answer

    def error(self, name: str, data: Any = None) -> tuple[int, int, str]:
        meta, _ = self.meta(name, data)
        assert meta["result_code"] != 200
        return meta["result_code"], meta["result_subcode"], meta["result_msg"]

    def task(self, task: str = TASK) -> dict[str, Any]:
        return TASKS.get(self.state.db.read(), task) or {}

    def metric(self, metric: str = "loss", variant: str = "train", task: str = TASK) -> dict[str, Any]:
        entries = [v for m in self.task(task).get("last_metrics", {}).values() for v in m.values()]
        (entry,) = [v for v in entries if (v["metric"], v["variant"]) == (metric, variant)]
        return entry

    def rows(self) -> int:
        tables = ("event_scalar", "event_log", "event_doc")
        return sum(self.state.db.read().execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("events")
    state = create_state(load_settings(write_config(path / "config"), path / "data"))
    yield Server(state)
    state.db.close()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.reset()
    return shared


def scalar(iteration: int, value: Any, metric: str = "loss", variant: str = "train", **more: Any) -> dict[str, Any]:
    event = {"type": "training_stats_scalar", "task": TASK, "iter": iteration, "value": value}
    return {**event, "metric": metric, "variant": variant, "timestamp": TIME + iteration, **more}


def line(text: str, moment: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "log", "task": TASK, "msg": text, "level": "INFO", "timestamp": TIME + moment, **more}


def plot(iteration: int, metric: str = "matrix", variant: str = "test", **more: Any) -> dict[str, Any]:
    event = {"type": "plot", "task": TASK, "iter": iteration, "metric": metric, "variant": variant}
    return {**event, "plot_str": json.dumps({"data": iteration}), "timestamp": TIME + iteration, **more}


def image(iteration: int, url: Any, metric: str = "digits", variant: str = "a", **more: Any) -> dict[str, Any]:
    event = {"type": "training_debug_image", "task": TASK, "iter": iteration, "metric": metric, "variant": variant}
    return {**event, "url": url, "key": url, "timestamp": TIME + iteration, **more}


# Written once


def test_a_batch_is_counted_and_summed_up_in_its_task(server: Server) -> None:
    values = [5.0, 3.0, 9.0, 1.0, 4.0]
    answer = server.call("events.add_batch", [scalar(i, v) for i, v in enumerate(values)])
    assert answer == {"added": 5, "errors": 0, "errors_info": {}}
    assert server.metric() == {
        "metric": "loss", "variant": "train", "value": 4.0, "count": 5, "mean_value": 4.4,
        "min_value": 1.0, "min_value_iteration": 3, "max_value": 9.0, "max_value_iteration": 2,
        "first_value": 5.0, "first_value_iteration": 0,
    }  # fmt: skip
    assert server.task()["last_iteration"] == 4


def test_a_batch_sent_again_changes_nothing(server: Server) -> None:
    batch = [scalar(i, i * 0.5) for i in range(100)] + [line(f"epoch {i}", i // 10) for i in range(100)]
    batch += [plot(i) for i in range(3)] + [image(i, f"http://f/{i}.png") for i in range(3)]
    server.call("events.add_batch", batch)
    before, rows = server.metric(), server.rows()
    for _ in range(3):
        assert server.call("events.add_batch", batch)["added"] == len(batch)
    assert server.rows() == rows == len(batch)
    assert server.metric() == before
    assert server.call("events.get_task_log", {"task": TASK})["total"] == 100


def test_a_part_sent_again_counts_only_what_is_new(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, 1) for i in range(60)])
    server.call("events.add_batch", [scalar(i, 1) for i in range(30, 90)])
    server.call("events.add_batch", [scalar(i, 1) for i in (5, 95)])
    assert (server.metric()["count"], server.metric()["mean_value"]) == (91, 1.0)


def test_a_value_reported_again_replaces_the_first(server: Server) -> None:
    server.call("events.add", scalar(7, 1.0))
    server.call("events.add", scalar(7, 3.0, timestamp=TIME + 50))
    assert server.call("events.scalar_metrics_iter_histogram", {"task": TASK})["loss"]["train"]["y"] == [3.0]
    assert (server.metric()["value"], server.metric()["count"], server.metric()["mean_value"]) == (3.0, 1, 3.0)


def test_a_late_batch_does_not_take_the_last_value_back(server: Server) -> None:
    old, new = [scalar(i, 10 - i) for i in range(5)], [scalar(i, 100 + i) for i in range(5, 9)]
    for batch in (old, new, old):
        server.call("events.add_batch", batch)
    assert server.metric()["value"] == 108
    assert server.task()["last_iteration"] == 8


def test_equal_lines_of_one_batch_are_all_kept(server: Server) -> None:
    batch = [line(".") for _ in range(5)]
    server.call("events.add_batch", batch)
    server.call("events.add_batch", batch)
    assert [e["msg"] for e in server.call("events.get_task_log", {"task": TASK})["events"]] == ["."] * 5


def test_lines_without_a_time_are_never_taken_for_repetitions(server: Server) -> None:
    event = {"type": "log", "task": TASK, "msg": "x"}
    for _ in range(3):
        server.call("events.add", event)
    assert server.call("events.get_task_log", {"task": TASK})["returned"] == 3


def test_clients_at_once_lose_and_double_nothing(server: Server) -> None:
    def client(number: int) -> None:
        for start in range(0, 200, 20):
            batch = [scalar(i, i, variant=f"v{number % 2}") for i in range(start, start + 20)]
            batch += [line(f"{number} {i}", i) for i in range(start, start + 20)]
            server.call("events.add_batch", batch)
            if start % 40:
                server.call("events.add_batch", batch)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    curves = server.call("events.scalar_metrics_iter_histogram", {"task": TASK})["loss"]
    assert {name: curve["y"] for name, curve in curves.items()} == {f"v{n}": list(range(200)) for n in (0, 1)}
    assert server.metric(variant="v0")["count"] == 200
    assert server.call("events.get_task_log", {"task": TASK})["total"] == 1200


# What is refused


BAD_EVENTS: list[Any] = [
    scalar(1, "high"), scalar(1, [1, 2]), scalar(1, {"a": 1}), scalar(1, True), scalar(1, float("nan")),
    scalar(1, float("inf")), scalar(1, 10**400), scalar(1, 1, metric=7), scalar(1, 1, variant=["a"]),
    scalar(1, 1, metric="m" * 40_000), scalar(1, 1, iter="x"), scalar(1, 1, iter=2**63), scalar(1, 1, iter=-(2**63)),
    scalar(1, 1, iter=10**30), scalar(1, 1, iter=[]), scalar(1, 1, iter=float("inf")), scalar(1, 1, timestamp="noon"),
    scalar(1, 1, timestamp=-5), scalar(1, 1, timestamp=10**30), scalar(1, 1, timestamp=[]), scalar(1, 1, worker=4),
    scalar(1, 1, x_axis_label=4), scalar(1, 1, type="training stats"), scalar(1, 1, type=None),
    scalar(1, 1, type=["log"]), scalar(1, 1, task=None), scalar(1, 1, task=5), scalar(1, 1, task=["a"]),
    scalar(1, 1, task={}), scalar(1, 1, task=""), scalar(1, 1, task="nobody"), scalar(1, 1, task="\x00"),
    scalar(1, 1, task=PUBLISHED), line("x", msg={"a": 1}), line("x", level=["a"]), line("x", model_event=True),
    plot(1, plot_str={"a": 1}), plot(1, key=[1]), image(1, 5), image(1, "u" * 40_000),
    {"type": "training_stats_vector", "task": TASK, "metric": "v", "values": [1, "x"]},
    {"type": "training_stats_vector", "task": TASK, "metric": "v", "values": [[1]]},
    scalar(1, 1, model_event=True), scalar(1, 1, task=MODEL), scalar(1, 1, task=READY, model_event=True),
    scalar(1, 1, extra=json.loads("[" * 300 + "]" * 300)), {},
]  # fmt: skip


@pytest.mark.parametrize("event", BAD_EVENTS, ids=range(len(BAD_EVENTS)))
def test_a_bad_event_is_counted_and_the_others_are_kept(server: Server, event: dict[str, Any]) -> None:
    meta, _ = server.meta("events.add", event)
    assert (meta["result_code"], meta["result_subcode"]) in ((400, 131), (400, 0)), meta  # 0: refused at the door
    assert server.rows() == 0
    if (event.get("task"), event.get("model_event")) == (TASK, True):
        return  # the batch would contradict itself
    answer = server.call("events.add_batch", [line("good"), event, scalar(2, 1.0, metric="good")])
    assert (answer["added"], answer["errors"], sum(answer["errors_info"].values())) == (2, 1, 1)
    assert server.rows() == 2


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (scalar(1, 1, task="nobody"), "Invalid task id nobody=1"),
        (scalar(1, 1, task="nobody", model_event=True), "Invalid model id nobody=1"),
        (scalar(1, 1, task=PUBLISHED), f"Invalid task id {PUBLISHED}=1"),
        (scalar(1, 1, type="fly"), "Invalid event type fly=1"),
        ({"task": TASK}, "Event must have a 'type' field=1"),
        ({"type": "log"}, "Event must have a 'task' field=1"),
        (scalar(1, float("nan")), "Invalid value: a finite number is expected=1"),
    ],
)
def test_the_error_says_what_is_wrong(server: Server, event: dict[str, Any], message: str) -> None:
    assert server.error("events.add", event) == (400, 131, f"Events not added: {message}")


def test_an_empty_batch_is_refused(server: Server) -> None:
    assert server.error("events.add_batch", [])[:2] == (400, 17)
    assert server.error("events.add_batch", {})[:2] == (400, 17)


def test_a_plain_object_is_a_batch_of_one(server: Server) -> None:
    assert server.call("events.add_batch", scalar(1, 1))["added"] == 1


def test_a_batch_that_contradicts_itself_is_refused_whole(server: Server) -> None:
    assert server.error("events.add_batch", [scalar(1, 1), scalar(2, 1, allow_locked=True)])[:2] == (400, 12)
    assert server.error("events.add_batch", [scalar(1, 1), scalar(2, 1, model_event=True)])[:2] == (400, 12)
    assert server.rows() == 0


def test_a_published_task_takes_events_only_when_asked(server: Server) -> None:
    event = scalar(1, 1, task=PUBLISHED)
    assert server.error("events.add", event)[:2] == (400, 131)
    assert server.call("events.add", event | {"allow_locked": True})["added"] == 1
    assert server.error("events.delete_for_task", {"task": PUBLISHED})[:2] == (400, 101)
    assert server.call("events.delete_for_task", {"task": PUBLISHED, "allow_locked": True}) == {"deleted": 1}


def test_lenient_forms_are_understood(server: Server) -> None:
    batch = [
        scalar(0, 1, iter="7"), scalar(0, 2, iter=8.9), scalar(0, 2**70, iter=9), scalar(0, None, iter=10),
        {"type": "training stats scalar", "task": TASK, "metric": "loss", "iter": 1, "value": 1, "ts": TIME},
        line("n", msg=5), line("half \ud800 character"), line("nul \x00"),
    ]  # fmt: skip
    assert server.call("events.add_batch", batch)["errors"] == 0
    curve = server.call("events.scalar_metrics_iter_histogram", {"task": TASK})["loss"]["train"]
    assert (curve["x"], curve["y"]) == ([7, 8, 9, 10], [1, 2, float(2**70), None])
    events = server.call("events.get_task_log", {"task": TASK})["events"]
    assert {e["msg"] for e in events} == {"5", "half ? character", "nul \x00"}


def test_machine_metrics_do_not_move_the_iteration(server: Server) -> None:
    server.call("events.add_batch", [scalar(3, 1), scalar(900, 1, metric=":monitor:machine")])
    assert server.task()["last_iteration"] == 3


def test_events_of_models(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, i, task=MODEL, model_event=True) for i in range(3)])
    server.call("events.add", scalar(3, 3, model_event=True) | {"task": "ignored", "model": MODEL})
    curve = server.call("events.scalar_metrics_iter_histogram", {"task": MODEL, "model_events": True})["loss"]["train"]
    assert curve["y"] == [0, 1, 2, 3]
    doc = MODELS.get(server.state.db.read(), MODEL) or {}
    assert doc["last_iteration"] == 3
    assert server.error("events.scalar_metrics_iter_histogram", {"task": MODEL})[:2] == (400, 101)
    assert server.error("events.delete_for_model", {"model": READY})[:2] == (400, 201)
    assert server.call("events.delete_for_model", {"model": MODEL}) == {"deleted": 4}


# Curves


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.dictionaries(st.integers(-5000, 50_000), st.floats(-1e6, 1e6), min_size=1, max_size=300),
    samples=st.integers(1, 400),
    axis=st.sampled_from(["iter", "timestamp"]),
)
def test_a_curve_is_the_mean_of_equal_intervals(
    shared: Server, points: dict[int, float], samples: int, axis: str
) -> None:
    shared.reset()
    moment = TIME // 10_000 * 10_000
    shared.call("events.add_batch", [scalar(i, v, timestamp=moment + i) for i, v in points.items()])
    request = {"task": TASK, "samples": samples, "key": axis}
    curve = shared.call("events.scalar_metrics_iter_histogram", request)["loss"]["train"]
    shift = 0 if axis == "iter" else moment
    low, high = min(points) + shift, max(points) + shift
    interval = 1 if len(points) < samples else max(1, -(-(high - low + 1) // samples))
    expected: dict[int, list[float]] = {}
    for iteration in sorted(points):
        expected.setdefault((iteration + shift) // interval * interval, []).append(points[iteration])
    assert curve["x"] == list(expected)
    assert curve["y"] == pytest.approx([sum(v) / len(v) for v in expected.values()], rel=1e-9, abs=1e-6)
    assert len(curve["x"]) <= samples + 1


def test_the_axis_of_time(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, i, x_axis_label="epochs") for i in range(3)])
    curve = server.call("events.scalar_metrics_iter_histogram", {"task": TASK, "key": "iso_time"})["loss"]["train"]
    assert curve["x"] == [f"2023-11-14T22:13:20.00{i}Z" for i in range(3)]
    assert (curve["name"], curve["x_axis_label"]) == ("train", "epochs")


def test_metrics_are_selected(server: Server) -> None:
    server.call("events.add_batch", [scalar(0, 1, m, v) for m in ("loss", "acc") for v in ("train", "test")])
    ask = {"task": TASK, "metrics": [{"metric": "loss", "variants": ["test"]}, {"metric": "acc"}, {"metric": "none"}]}
    drawn = server.call("events.scalar_metrics_iter_histogram", ask)
    assert {m: sorted(v) for m, v in drawn.items()} == {"loss": ["test"], "acc": ["test", "train"]}
    assert server.call("events.get_scalar_metrics_and_variants", {"task": TASK}) == {
        "metrics": {"acc": ["test", "train"], "loss": ["test", "train"]}
    }


def test_tasks_are_compared(server: Server) -> None:
    server.call("events.add_batch", [scalar(0, 1), scalar(0, 2, task=OTHER)])
    drawn = server.call("events.multi_task_scalar_metrics_iter_histogram", {"tasks": [TASK, OTHER]})["metrics"]
    assert drawn["loss"]["train"][OTHER] == {"name": "task 2", "x": [0], "y": [2]}
    assert server.error("events.multi_task_scalar_metrics_iter_histogram", {"tasks": [TASK, "no"]})[:2] == (400, 101)


def test_single_values_are_no_points_of_a_curve(server: Server) -> None:
    server.call("events.add_batch", [scalar(SINGLE, 0.93, "Summary", "accuracy", timestamp=TIME), scalar(1, 2)])
    assert list(server.call("events.scalar_metrics_iter_histogram", {"task": TASK})) == ["loss"]
    answer = server.call("events.get_task_single_value_metrics", {"tasks": [TASK, OTHER]})
    value = {"metric": "Summary", "variant": "accuracy", "value": 0.93, "timestamp": TIME}
    assert answer == {"tasks": [{"task": TASK, "task_name": "task 1", "values": [value]}]}
    assert server.task()["last_iteration"] == 1


def test_the_latest_values(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, -i) for i in range(5)])
    answer = server.call("events.get_task_latest_scalar_values", {"task": TASK})
    variant = {"name": "train", "last_value": -4, "last_10_value": -4}
    assert answer["metrics"] == [{"name": "loss", "variants": [variant]}]
    assert (answer["name"], answer["status"], answer["last_iter"]) == ("task 1", "in_progress", 4)


def test_points_are_read_raw(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, i * 2, variant=v) for i in range(50) for v in "ab"])
    found: dict[str, list[int]] = {"a": [], "b": []}
    request: dict[str, Any] = {"task": TASK, "metric": {"metric": "loss"}, "batch_size": 30, "count_total": True}
    while True:
        answer = server.call("events.scalar_metrics_iter_raw", request)
        assert answer["total"] == 100
        if not answer["returned"]:
            break
        for variant, points in answer["variants"].items():
            assert points["y"] == [2 * x for x in points["iter"]]
            found[variant] += points["iter"]
        request["scroll_id"] = answer["scroll_id"]
    assert found == {"a": list(range(50)), "b": list(range(50))}


def test_events_of_a_metric_are_scrolled_to_their_end(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, i) for i in range(1200)])
    iterations, scroll = [], None
    while scroll != "FFFF":
        request = {"task": TASK, "metric": "loss"} | ({"scroll_id": scroll} if scroll else {})
        answer = server.call("events.get_scalar_metric_data", request)
        iterations += [e["iter"] for e in answer["events"]]
        scroll = answer["scroll_id"]
    assert iterations == list(range(1199, -1, -1))
    event = server.call("events.get_scalar_metric_data", {"task": TASK, "metric": "loss", "no_scroll": True})
    assert event["scroll_id"] is None
    stamp = event["events"][0].pop("@timestamp")
    assert stamp.endswith("Z")
    assert event["events"][0] == {
        "type": "training_stats_scalar", "task": TASK, "iter": 1199, "metric": "loss", "variant": "train",
        "value": 1199, "timestamp": TIME + 1199, "worker": "w0", "model_event": False,
    }  # fmt: skip


def test_vectors(server: Server) -> None:
    event = {"type": "training_stats_vector", "task": TASK, "metric": "hist", "variant": "w"}
    server.call("events.add_batch", [event | {"iter": i, "values": [i, 0.5]} for i in (1, 0)])
    answer = server.call("events.vector_metrics_iter_histogram", {"task": TASK, "metric": "hist", "variant": "w"})
    assert (answer["iterations"], answer["vectors"]) == ([0, 1], [[0, 0.5], [1, 0.5]])
    assert server.call("events.get_vector_metrics_and_variants", {"task": TASK}) == {"metrics": {"hist": ["w"]}}


# Pages of events


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    iterations=st.lists(st.integers(0, 30), max_size=60),
    size=st.integers(1, 40),
    order=st.sampled_from(["asc", "desc"]),
)
def test_pages_hold_every_event_once(shared: Server, iterations: list[int], size: int, order: str) -> None:
    shared.reset()
    batch = [scalar(i, 1.0, variant=f"v{n % 3}") for n, i in enumerate(iterations)]
    batch += [plot(i, variant=f"p{n % 2}") for n, i in enumerate(iterations)]
    batch += [image(i, f"u{n}") for n, i in enumerate(iterations)] + [line(f"{n}", i) for n, i in enumerate(iterations)]
    if batch:
        shared.call("events.add_batch", batch)
    expected = shared.rows()
    request: dict[str, Any] = {"task": TASK, "batch_size": size, "order": order}
    events: list[dict[str, Any]] = []
    while True:
        answer = shared.call("events.get_task_events", request)
        assert answer["total"] == expected
        if not answer["events"]:
            break
        assert answer["returned"] == len(answer["events"]) <= size
        events += answer["events"]
        request = {"task": TASK, "scroll_id": answer["scroll_id"]}
    seen = {json.dumps({k: v for k, v in e.items() if k != "@timestamp"}, sort_keys=True) for e in events}
    assert len(seen) == len(events) == expected
    numbers = [e.get("iter", -1) for e in events]
    assert numbers == sorted(numbers, reverse=order == "desc")


def test_pages_of_one_kind(server: Server) -> None:
    server.call("events.add_batch", [scalar(i, i) for i in range(5)] + [plot(1)])
    request = {"task": TASK, "event_type": "training_stats_scalar", "order": "desc", "batch_size": 2}
    answer = server.call("events.get_task_events", request)
    assert ([e["iter"] for e in answer["events"]], answer["total"]) == ([4, 3], 5)
    ask = {"tasks": [TASK], "event_type": "*"}
    assert server.call("events.get_task_metrics", ask) == {"metrics": [{"task": TASK, "metrics": ["loss", "matrix"]}]}
    assert server.call("events.get_multi_task_metrics", {"tasks": [TASK, OTHER], "event_type": "plot"}) == {
        "metrics": [{"metric": "matrix", "variants": ["test"]}]
    }


# Console


@pytest.mark.parametrize("earlier", [True, False])
def test_the_console_is_walked_without_a_gap(server: Server, earlier: bool) -> None:
    lines = [line(f"{i}", i // 7) for i in range(200)]
    server.call("events.add_batch", lines)
    request: dict[str, Any] = {"task": TASK, "batch_size": 5, "navigate_earlier": earlier, "order": "asc"}
    found: list[str] = []
    while True:
        answer = server.call("events.get_task_log", request)
        assert answer["total"] == 200
        page = [e["msg"] for e in answer["events"]]
        if not page:
            break
        found = page + found if earlier else found + page
        request["from_timestamp"] = answer["events"][0 if earlier else -1]["timestamp"]
    assert found == [f"{i}" for i in range(200)]


def test_the_last_lines_as_the_sdk_asks_for_them(server: Server) -> None:
    server.call("events.add_batch", [line(f"{i}", i) for i in range(20)])
    request = {"task": TASK, "order": "asc", "navigate_earlier": True, "batch_size": 3}
    assert [e["msg"] for e in server.call("events.get_task_log", request)["events"]] == ["17", "18", "19"]


def test_the_console_is_downloaded(server: Server) -> None:
    server.call("events.add_batch", [line(f"line {i}", i, worker="w1") for i in range(2500)])
    text = server.api.post("/events.download_task_log", auth=AUTH, json={"task": TASK, "line_type": "text"}).text
    assert text.splitlines()[2499] == f"{TIME + 2499} w1 INFO line 2499"
    body = server.api.post("/events.download_task_log", auth=AUTH, json={"task": TASK}).text.splitlines()
    assert len(body) == 2500
    assert json.loads(body[0])["msg"] == "line 0"


@pytest.mark.parametrize("form", ["{foo}", "{msg.__class__}", "{0}", "{msg!r}", "{msg:>99999999}", "{", "{msg[0]}"])
def test_a_line_format_is_only_names(server: Server, form: str) -> None:
    request = {"task": TASK, "line_type": "text", "line_format": form}
    assert server.error("events.download_task_log", request)[:2] == (400, 16)


def test_the_console_is_cleared(server: Server) -> None:
    server.call(
        "events.add_batch", [line("old"), line("keep", metric="m"), {"type": "log", "task": TASK, "msg": "new"}]
    )
    assert server.call("events.clear_task_log", {"task": TASK, "threshold_sec": 60, "exclude_metrics": ["m"]}) == {
        "deleted": 1
    }
    assert server.call("events.get_task_log", {"task": TASK})["total"] == 2
    assert server.call("events.clear_task_log", {"task": TASK}) == {"deleted": 2}
    assert server.error("events.clear_task_log", {"task": PUBLISHED})[2].startswith("Cannot update events")


# Plots and images


def test_the_last_plots(server: Server) -> None:
    server.call("events.add_batch", [plot(i, variant=v) for i in range(4) for v in "ab"])
    answer = server.call("events.get_task_plots", {"task": TASK, "iters": 2})
    assert [(p["variant"], p["iter"]) for p in answer["plots"]] == [("a", 3), ("a", 2), ("b", 3), ("b", 2)]
    assert answer["plots"][0]["plot_str"] == '{"data": 3}'
    many = server.call("events.get_multi_task_plots", {"tasks": [TASK, OTHER]})
    entry = many["plots"]["matrix"]["a"][TASK]["3"]
    assert (entry["name"], len(entry["plots"])) == ("task 1", 1)
    assert many["total"] == 2
    last = server.call("events.get_multi_task_plots", {"tasks": [TASK], "scroll_id": many["scroll_id"]})
    assert (last["plots"], last["scroll_id"]) == ({}, "FFFF")


def test_images_whose_file_was_overwritten_are_not_shown(server: Server) -> None:
    server.call("events.add_batch", [image(i, f"http://f/{i % 3}.png") for i in range(8)])
    request: dict[str, Any] = {"metrics": [{"task": TASK, "metric": "digits", "variants": ["a"]}], "iters": 2}
    shown = []
    for _ in range(3):
        answer = server.call("events.debug_images", request)
        shown.append([i["iter"] for i in answer["metrics"][0]["iterations"]])
        request["scroll_id"] = answer["scroll_id"]
    assert shown == [[7, 6], [5], []]
    server.call("events.add_batch", [image(i, f"http://f/{i % 3}.png") for i in (8, 9)])
    later = server.call("events.debug_images", request | {"navigate_earlier": False})
    assert [i["iter"] for i in later["metrics"][0]["iterations"]] in ([7, 8], [9, 8], [7], [8, 7])
    assert server.call("events.debug_images", request | {"refresh": True})["metrics"][0]["iterations"][0]["iter"] == 9


def test_images_are_walked_one_by_one(server: Server) -> None:
    server.call("events.add_batch", [image(i, f"http://f/{v}{i}.png", variant=v) for i in range(3) for v in "ab"])
    ask = {"task": TASK, "metric": "digits", "variant": "b"}
    answer = server.call("events.get_debug_image_sample", ask)
    assert (answer["event"]["iter"], answer["min_iteration"], answer["max_iteration"]) == (2, 0, 2)
    steps = []
    for _ in range(6):
        step = {"task": TASK, "scroll_id": answer["scroll_id"], "navigate_earlier": True}
        event = server.call("events.next_debug_image_sample", step)["event"]
        steps.append(event and (event["iter"], event["variant"]))
    assert steps == [(2, "a"), (1, "b"), (1, "a"), (0, "b"), (0, "a"), None]
    step = {"task": TASK, "scroll_id": answer["scroll_id"], "navigate_earlier": False, "next_iteration": True}
    assert server.call("events.next_debug_image_sample", step)["event"]["iter"] == 1
    earlier = server.call("events.get_debug_image_sample", ask | {"iteration": 1})
    assert earlier["event"]["url"] == "http://f/b1.png"
    assert server.call("events.get_debug_image_sample", ask | {"variant": "none"})["event"] is None


def test_plots_are_walked_one_by_one(server: Server) -> None:
    server.call("events.add_batch", [plot(i, m, v) for i in range(3) for m in ("m", "n") for v in "ab"])
    ask = {"task": TASK, "metric": "n", "navigate_current_metric": False}
    answer = server.call("events.get_plot_sample", ask)
    assert [(e["metric"], e["variant"], e["iter"]) for e in answer["events"]] == [("n", "a", 2), ("n", "b", 2)]
    steps = []
    for _ in range(6):
        step = {"task": TASK, "scroll_id": answer["scroll_id"], "navigate_earlier": True}
        events = server.call("events.next_plot_sample", step)["events"]
        steps.append((events[0]["iter"], events[0]["metric"]) if events else None)
    assert steps == [(2, "m"), (1, "n"), (1, "m"), (0, "n"), (0, "m"), None]
    shown = server.call("events.plots", {"metrics": [{"task": TASK}], "iters": 1})["metrics"][0]["iterations"]
    assert [(i["iter"], len(i["events"])) for i in shown] == [(2, 4)]


# Nonsense


SCROLLED = [
    ("events.get_task_events", {}), ("events.get_scalar_metric_data", {"metric": "loss"}),
    ("events.scalar_metrics_iter_raw", {"metric": {"metric": "loss"}}),
    ("events.next_plot_sample", {}), ("events.next_debug_image_sample", {}),
]  # fmt: skip
STATES = [None, [], 5, {}, {"after": 5}, {"after": [1]}, {"after": [1, 2, 3, 2**70]}, {"after": ["a", "b", "c", "d"]}]


@pytest.mark.parametrize(("name", "data"), SCROLLED)
def test_a_foreign_scroll_id_is_refused(server: Server, name: str, data: dict[str, Any]) -> None:
    server.call("events.add", scalar(1, 1))
    ids = ["x", "FFFE", "ä", *(base64.urlsafe_b64encode(json.dumps(s).encode()).decode() for s in STATES)]
    for scroll_id in ids:
        meta, _ = server.meta(name, {"task": TASK, "scroll_id": scroll_id, **data})
        assert meta["result_code"] == 200 or meta["result_subcode"] == 1104, (scroll_id, meta)
        assert meta["result_code"] < 500


JUNK: list[Any] = [None, 5, -1, 2**70, 1.5, "", "x", "\x00", [], {}, [None], [{"task": 5}], {"metric": []}, True]
importlib.import_module("trainyard_lite.services.events")  # registers the endpoints
READS = sorted(name for name in ENDPOINTS if name.startswith("events.") and not name.startswith("events.add"))


@pytest.mark.parametrize("name", READS)
def test_wrong_arguments_are_never_our_fault(shared: Server, name: str) -> None:
    fields = ENDPOINTS[name].request.model_fields
    good: dict[str, Any] = {"task": TASK, "tasks": [TASK], "metric": "loss", "variant": "train", "model": MODEL}
    good |= {"event_type": "log", "metrics": [{"task": TASK, "metric": "loss"}]}
    if name == "events.scalar_metrics_iter_raw":
        good["metric"] = {"metric": "loss"}
    base = {key: value for key, value in good.items() if key in fields}
    for key in fields:
        for junk in JUNK:
            body = shared.api.post(f"/{name}", auth=AUTH, content=json.dumps(base | {key: junk}))
            assert body.status_code in (200, 400), (key, junk, body.text)
    assert shared.error(name, base | {"colour": "red"})[:2] == (400, 14)


# A crash


WRITER = """
import sys
from pathlib import Path
from trainyard_lite._app import create_state
from trainyard_lite._collections import TASKS
from trainyard_lite._settings import load_settings
from trainyard_lite.domain.events.store import add_events

state = create_state(load_settings(Path(sys.argv[1]), Path(sys.argv[2])))
with state.db.write() as db:
    TASKS.put(db, {"id": "t", "name": "t", "status": "in_progress"})
for number in range(100_000):
    scalars = [
        {"type": "training_stats_scalar", "task": "t", "metric": "m", "variant": "v", "iter": i, "value": i, "ts": i}
        for i in range(number * 50, number * 50 + 50)
    ]
    add_events(state.db, "u", [*scalars, {"type": "log", "task": "t", "msg": str(number), "timestamp": number}], "w")
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    config, data = write_config(tmp_path / "config"), tmp_path / "data"
    command = [sys.executable, "-c", WRITER, str(config), str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(40):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
    state = create_state(load_settings(config, data))
    db = state.db.read()
    (scalars,) = db.execute("SELECT count(*) FROM event_scalar").fetchone()
    (lines,) = db.execute("SELECT count(*) FROM event_log").fetchone()
    assert lines > acknowledged
    assert scalars == lines * 50  # whole batches only
    task = TASKS.get(db, "t") or {}
    (metric,) = (v for m in task["last_metrics"].values() for v in m.values())
    assert (metric["count"], metric["value"], task["last_iteration"]) == (scalars, scalars - 1, scalars - 1)
    state.db.close()
