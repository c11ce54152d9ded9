"""Whatever is sent or stored: an answer below 500, and the lists of others are there."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Lite, make_lite
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from test_lite_auth import PASSWORD
from test_lite_data import unversioned
from trainyard_lite import services  # noqa: F401 (registers the endpoints)
from trainyard_lite._bounds import MAX_DOCUMENT, MAX_NAME, check_arguments, dumps, loads, whole_number
from trainyard_lite._clock import parse_time, read_time
from trainyard_lite._errors import ApiError
from trainyard_lite._http import create_api
from trainyard_lite._patterns import MAX_PATTERN, check_pattern, contains_pattern, matches, time_limit, wildcard_pattern
from trainyard_lite._rpc import ENDPOINTS
from trainyard_lite.web import create_web

Json = dict[str, Any]
AGENT = ("AGENTKEY", "AGENTSECRET")
LISTS: list[tuple[str, Json]] = [
    ("tasks.get_all", {}),
    ("tasks.get_all", {"only_fields": ["name", "project", "tags", "models", "execution", "hyperparams"]}),
    ("tasks.get_all_ex", {}),
    ("tasks.get_all_ex", {"only_fields": ["name", "project.name", "models.input.model.name", "execution.queue.name"]}),
    ("tasks.get_all", {"search_text": "a", "page_size": 10, "order_by": ["-last_metrics.a.b.value"]}),
    ("tasks.get_all", {"scroll_id": None, "size": 5}),
    ("models.get_all", {}),
    ("models.get_all_ex", {"include_stats": True}),
    ("projects.get_all", {}),
    ("projects.get_all_ex", {"include_stats": True, "include_dataset_stats": True, "check_own_contents": True}),
    ("projects.get_unique_metric_variants", {}),
    ("projects.get_hyper_parameters", {}),
    ("projects.get_task_tags", {"include_system": True}),
    ("projects.get_task_parents", {}),
    ("projects.get_user_names", {}),
    ("queues.get_all", {}),
    ("queues.get_all_ex", {}),
    ("workers.get_all", {}),
    ("workers.get_count", {}),
    ("workers.get_metric_keys", {}),
    ("organization.get_tags", {"include_system": True}),
    ("tasks.get_types", {}),
    ("models.get_frameworks", {}),
    ("users.get_all", {}),
]
PAGES = ["/", "/tasks", "/projects", "/workers", "/settings", "/tasks?q=a&status=created", "/tasks?page=1"]
TABS = [
    "output/log", "output/metrics/scalar", "output/metrics/plots", "output/debugImages", "hyper-params", "artifacts",
    "info",
]  # fmt: skip


class Site:
    """A server with something in it, through its API and its pages."""

    def __init__(self, folder: Path) -> None:
        self.lite: Lite = make_lite(folder)
        self.api = TestClient(create_api(self.lite.state), raise_server_exceptions=False)
        self.web = TestClient(create_web(self.lite.state), raise_server_exceptions=False)
        answer = self.web.post("/login", data={"username": "admin", "password": PASSWORD, "next": "/tasks"})
        assert answer.status_code == 200
        lite = self.lite
        self.project = str(lite("projects.create", name="team/detector")["id"])
        self.queue = str(lite("queues.create", name="a queue")["id"])
        self.task = str(
            lite(
                "tasks.create", name="a task", type="training", project=self.project,
                hyperparams={"Args": {"lr": {"value": "1"}}}, configuration={"c": {"value": "x"}},
            )["id"]
        )  # fmt: skip
        self.model = str(lite("models.create", name="a model", uri="http://h/m", project=self.project)["id"])
        lite("tasks.add_or_update_model", task=self.task, name="in", model=self.model, type="input")
        lite("workers.register", worker="node:gpu0", queues=[self.queue])
        lite("workers.status_report", worker="node:gpu0", timestamp=1, task=self.task)
        event = {"task": self.task, "metric": "m", "variant": "v", "iter": 1}
        lite("events.add", type="training_stats_scalar", value=1.5, **event)
        lite("events.add", type="plot", plot_str="{}", **event)
        lite("events.add", type="training_debug_image", url="http://h/i.png", **event)
        lite("events.add", type="log", msg="line", task=self.task)

    def call(self, name: str, body: bytes) -> tuple[int, str]:
        answer = self.api.post(f"/{name}", content=body, headers={"content-type": "application/json"}, auth=AGENT)
        code: int = answer.status_code
        if answer.headers["content-type"] != "application/json":  # a file
            return code, ""
        meta = answer.json()["meta"]
        assert meta["result_code"] == code
        if meta["result_subcode"] == 9999:  # "not implemented", by name
            code = 400
        return code, meta["result_msg"]

    def insert(self, table: str, **columns: Any) -> None:
        """Write past every check, as an older lite or a person with sqlite3 may have done."""
        db = sqlite3.connect(self.lite.state.settings.database, isolation_level=None)
        marks = ", ".join("?" * len(columns))
        db.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})", tuple(columns.values()))
        db.close()

    def check(self, *, tasks: tuple[str, ...] = ()) -> None:
        """Assert that the lists and pages of everybody are there."""
        problems = []
        for name, args in LISTS:
            code, message = self.call(name, json.dumps(args).encode())
            if code != 200:
                problems.append(f"{name} {args}: {code} {message}")
        paths = list(PAGES)
        for task in (self.task, *tasks):
            paths += [f"/projects/*/tasks/{task}/{tab}" for tab in TABS]
            paths += [f"/data/tasks/{task}/log", f"/data/tasks/{task}/scalars"]
        paths.append(f"/projects/*/models/{self.model}/general")
        for path in paths:
            answer = self.web.get(path)
            if answer.status_code != 200:
                problems.append(f"{path}: {answer.status_code} {answer.text[-300:]}")
        assert not problems, "\n".join(problems)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("values"))
    yield site
    site.lite.state.db.close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# Patterns


def test_a_pattern_that_backtracks_does_not_block(site: Site) -> None:
    site.lite.task("a" * 40 + "!")
    for name, args in [
        ("tasks.get_all", {"name": "(a+)+$"}),
        ("tasks.get_all_ex", {"_any_": {"fields": ["name", "comment"], "pattern": "(a|a)*$"}}),
        ("tasks.get_all", {"name": "(a|aa)+$", "search_text": "(a+)+$"}),
        ("projects.get_all", {"name": "(.*a){20}$"}),
        ("projects.get_all_ex", {"basename": "(.*a){20}$"}),
        ("models.get_all", {"name": "(x+x+)+y"}),
        ("queues.get_all", {"name": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
        ("workers.get_all", {"worker_pattern": "*a" * 200}),
        ("projects.get_hyperparam_values", {"section": "Args", "name": "lr", "pattern": "(1+)+$"}),
        ("organization.get_entities_count", {"tasks": {"name": "(a+)+$"}}),
    ]:
        assert site.call(name, json.dumps(args).encode())[0] == 200, name


@pytest.mark.parametrize("pattern", ["^(?!x)", "(?=a)", "(?<=a)b", r"(a)\1", "a++", "[", "(?P<n", "a{2000}", "\\Z"])
def test_a_pattern_that_re2_has_not_is_answered_with_a_sentence(site: Site, pattern: str) -> None:
    for args in ({"name": pattern}, {"_any_": {"fields": ["name"], "pattern": pattern}}):
        code, message = site.call("tasks.get_all", json.dumps(args).encode())
        assert code == 400
        assert "write it in RE2 syntax" in message


@pytest.mark.parametrize(
    "name",
    ["a b", "a-b (1)", "a.b+c*", "Größe", "日本", "tab\there", "two\nlines", "\\", "#1 & ~2", "$^", "q?", "{x}", "'\""],
)
def test_what_the_sdk_escapes_finds_its_name_alone(site: Site, name: str) -> None:
    import re  # the SDK's own

    name = f"name {name}"
    mine = site.lite.task(name)
    site.lite.task(f"{name} and more")
    found = site.lite("tasks.get_all", name=f"^{re.escape(name)}$")["tasks"]
    assert [task["id"] for task in found] == [mine]
    found = site.lite("tasks.get_all", name=rf"^{re.escape(name)}( #[0-9]+)*$")["tasks"]  # PipelineController
    assert [task["id"] for task in found] == [mine]
    assert site.lite("tasks.get_all", search_text=name)["tasks"]


def test_case_counts_in_a_name_and_not_in_any(site: Site) -> None:
    site.lite.task("Detector")
    assert len(site.lite("tasks.get_all", name="Detector")["tasks"]) == 1
    assert not site.lite("tasks.get_all", name="detector")["tasks"]
    assert site.lite("tasks.get_all", name="(?i)detector")["tasks"]
    assert site.lite("tasks.get_all", _any_={"fields": ["name"], "pattern": "detector"})["tasks"]
    assert site.lite("tasks.get_all", search_text="dETECTOR")["tasks"]
    assert not site.lite("tasks.get_all", search_text="D.tector")["tasks"]


@pytest.mark.parametrize(
    ("pattern", "worker", "expected"),
    [("node*", "node:gpu0", True), ("*gpu?", "node:gpu0", True), ("node", "node:gpu0", False), ("*.gpu0", "nodexgpu0",
    False),
     ("*", "a\nb", True)],
)  # fmt: skip
def test_worker_patterns(pattern: str, worker: str, expected: bool) -> None:
    assert matches(wildcard_pattern(pattern, "worker_pattern"), worker) is expected


def test_patterns_have_limits() -> None:
    with pytest.raises(ApiError, match=f"longer than {MAX_PATTERN}"):
        check_pattern("a" * (MAX_PATTERN + 1), "name")
    with pytest.raises(ApiError, match="pattern too large"):
        check_pattern("\\pL{100}" * 50, "name")
    with pytest.raises(ApiError, match="lone surrogate"):
        check_pattern("\ud800", "name")
    for value in (5, None, [], {}):
        with pytest.raises(ApiError, match="string expected"):
            contains_pattern(value, "search_text")
    assert matches("^a", "\ud800") is False
    assert matches("5", 15) is True


def test_a_call_that_spends_too_long_in_patterns_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard_lite._patterns._LIMIT_SEC", -1.0)
    code, message = site.call("tasks.get_all", b'{"name": "a"}')
    assert code == 400
    assert "write a simpler one" in message
    with pytest.raises(ApiError, match="simpler"), time_limit():
        matches("a", "a")
    monkeypatch.undo()
    assert site.call("tasks.get_all", b'{"name": "a"}')[0] == 200


# What is sent

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([
        2**63, -(2**63) - 1, 2**64, 10**400, -1, 0, 500, 2**31, float("nan"), float("inf"), "\x00", "²", "http://[::1",
        "x" * 5000, "x" * 40_000, "(a+)+$", "%", "_", "\\", "'", '"', "$.a", "-", "__$all", "__$not", "__$any",
        "9999-99-99",
        "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:00", "1e400", "__DELETED__x", "*", "a.b", "a" * 50 + ".b", "[1]",
    ]),
)  # fmt: skip
_KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["name", "id", "value", "key", "model", "section", "type", "fields", "pattern", "datetime", "any", "all",
        "include",
         "exclude", "op", "metric", "variant", "variants", "task", "artifacts", "queue", "uri", "input", "output",
         "pip"]
    ),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4)),
    max_leaves=12,
)
_OPEN = [
    "id", "name", "status", "tags", "system_tags", "created", "order_by", "page", "page_size", "scroll_id", "size",
    "start",
    "only_fields", "search_text", "filters", "_any_", "_all_", "last_update", "status_changed", "task", "queue",
    "project",
    "worker", "model", "tasks", "ids", "type", "hyperparams.Args.lr", "last_metrics.a.b.value", "execution.queue",
    "runtime.x", "uri", "parent", "models.input.model", "last_iteration", "active_duration", "include_subprojects",
    "max_task_entries", "refresh_scroll", "search_hidden", "metadata.x", "path", "featured", "msg", "metric", "variant",
    "iter", "value", "plot_str", "url", "timestamp", "ts", "level", "key", "values", "x_axis_label",
]  # fmt: skip
_NAMES = sorted(
    n for n in ENDPOINTS if n not in ("auth.logout", "debug.hang") and not n.startswith(("auth.", "login."))
)


def _fields(name: str) -> list[str]:
    known = sorted(ENDPOINTS[name].request.model_fields)
    return known or _OPEN


@st.composite
def _calls(draw: st.DrawFn) -> tuple[str, Json]:
    name = draw(st.sampled_from(_NAMES))
    fields = _fields(name)
    args: Json = {field: draw(_VALUES) for field in draw(st.lists(st.sampled_from(fields), max_size=3, unique=True))}
    for field in fields:  # so that the call gets as far as the rest of its arguments
        if field not in args and draw(st.integers(0, 3)):
            args[field] = f"<{field}>"
    return name, args


def _known(site: Site, name: str, args: Json) -> Json:
    """Put what there is where a call needs it."""
    known: Json = {
        "task": site.task, "model": site.model, "queue": site.queue, "project": site.project, "worker": "node:gpu0",
        "tasks": [site.task], "ids": [site.model if name.startswith("models.") else site.task], "name": "a new name",
        "type": "training", "uri": "http://h/x", "force": True, "timestamp": 1, "section": "Args", "key": "iter",
        "metric": {"metric": "m"} if name == "events.scalar_metrics_iter_raw" else "m", "variant": "v",
    }  # fmt: skip
    if name.startswith("events."):
        known |= {"type": "plot", "metrics": [{"task": site.task, "metric": "m"}]}
    return {
        field: known.get(field) if value == f"<{field}>" else value
        for field, value in args.items()
        if value != f"<{field}>" or field in known
    }


@settings(
    max_examples=350, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
)  # fmt: skip
@given(call=_calls())
def test_any_json_in_any_argument_is_answered_below_500(shared: Site, call: tuple[str, Json]) -> None:
    name, args = call
    if name in (
        "tasks.delete",
        "tasks.delete_many",
        "models.delete",
        "models.delete_many",
        "projects.delete",
        "queues.delete",
    ):
        args = {**args, "task": None, "ids": None, "model": None, "project": None, "queue": None}
    body = json.dumps(_known(shared, name, args)).encode()
    code, message = shared.call(name, body)
    assert code < 500, f"{name} {body[:500]!r}: {code} {message}"


def test_afterwards_the_lists_are_there(shared: Site) -> None:
    """Runs after the test above, on what it left."""
    shared.check()


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "' + b"x" * 5_000_000 + b'", "type": "training"}',
        b'{"name": ' + b"9" * 5000 + b', "type": "training"}',
        b'{"name": "abc", "type": "training", "comment": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"name": "abc", "type": "training", "execution": {"a": ' + b"[" * 120 + b"]" * 120 + b"}}",
        b'{"name": "abc", "type": "training", "tags": [{"a": 1}]}',
        b'{"name": "abc", "type": "training", "tags": ["' + b"t" * 5000 + b'"]}',
        b'{"name": "abc", "type": "training", "hyperparams": {"' + b"s" * 5000 + b'": {}}}',
        b'{"name": "abc", "type": "training", "parent": 5}',
        b'{"name": "abc", "type": "training", "execution": {"queue": ' + b"9" * 400 + b"}}",
        b'{"name": "abc\\ud800", "type": "training"}',
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_field(site: Site, body: bytes) -> None:
    assert site.call("tasks.create", body)[0] == 400
    site.check()


@pytest.mark.parametrize(
    "args",
    [
        {"script": 5}, {"models": {"input": [{"a": 1}, {"model": None}, {"name": "x"}]}},
        {"container": {"image": {"a": []}}},
        {"execution": {"artifacts": [{"key": "k", "uri": "http://[::1", "content_size": "big", "hash": 5}]}},
        {"execution": {"artifacts": [{"key": "k", "uri": 5, "content_size": -1, "type": {"a": 1}}]}},
        {"hyperparams": {"²/\x00'\"$.": {"a.b/'\"": {"value": float("nan")}}, "": {"": {}}}},
        {"configuration": {"x": {"name": {"a": 1}, "value": [1]}}}, {"runtime": {"a": float("inf"), "": {"": []}}},
        {"script": {"requirements": ["a"], "diff": {"a": 1}, "repository": 5, "entry_point": [], "branch": None}},
        {"script": {"requirements": {"pip": {"a": 1}}}, "comment": "\x00\x1b"}, {"output_dest": "http://[::1"},
    ],
)  # fmt: skip
def test_odd_values_of_one_leave_the_pages_of_others(site: Site, args: Json) -> None:
    body = json.dumps({"name": "odd one", "type": "training", **args}).encode()
    code, _ = site.call("tasks.create", body)
    assert code in (200, 400)
    tasks = site.lite("tasks.get_all", name="odd one")["tasks"]
    assert len(tasks) == (code == 200)
    site.check(tasks=tuple(task["id"] for task in tasks))


def test_a_document_has_a_limit(site: Site) -> None:
    part = "x" * (MAX_DOCUMENT // 2)
    site.lite("tasks.edit", task=site.task, comment=part)
    with pytest.raises(ApiError, match=f"the limit is {MAX_DOCUMENT}"):
        site.lite("tasks.edit", task=site.task, script={"diff": part})
    site.lite("tasks.started", task=site.task)


def test_what_is_longer_than_a_limit_may_still_live_on(site: Site) -> None:
    doc = {"id": "huge", "name": "n" * 5_000_000, "status": "created", "comment": "c" * MAX_DOCUMENT}
    site.insert("task", id="huge", doc=json.dumps(doc))
    site.lite("tasks.started", task="huge")
    site.lite("tasks.failed", task="huge")
    site.check(tasks=("huge",))


# What is stored already

_BROKEN: list[Any] = [
    {}, {"id": 5, "name": None}, {"name": {"a": [1]}, "status": 5, "tags": {"a": 1}, "system_tags": "x"}, [], "text",
    5, None,
    {"name": "x", "execution": None, "models": None, "script": None, "hyperparams": None, "output": None},
    {"name": "x", "execution": 5, "models": [], "script": "s", "hyperparams": "h", "configuration": [1],
    "container": 7},
    {"name": "x", "models": {"input": [None, 5, {}, {"model": 5}, {"model": {"id": {}}}], "output": "x"}},
    {"name": "x", "execution": {"artifacts": [None, {}, {"key": 5, "uri": ["x"]}, "x"], "queue": [1]}},
    {"name": "x", "execution": {"artifacts": {"k": {"key": "k"}}}},
    {"name": "x", "hyperparams": {"a": None, "b": {"c": None, "d": {}, "e": {"value": {"f": 1}}}, "g": [1]}},
    {"name": "x", "last_metrics": {"a": 5, "b": {"c": None, "d": {}, "e": {"metric": 5, "variant": None,
    "value": {}}}}},
    {"name": "x", "last_metrics": [1], "metric_stats": 5, "last_iteration": "many", "active_duration": "long"},
    {"name": "x", "started": "yesterday", "completed": 5, "status": "in_progress", "last_update": {}, "created": []},
    {"name": "x", "started": "2026-01-01T00:00:00", "status": "in_progress", "status_changed": "²", "last_worker": 5},
    {"name": "x", "project": 5, "parent": [], "user": {"id": 1}, "comment": ["x"], "type": None, "runtime": "r"},
    {"name": "x", "project": "nowhere", "parent": "nowhere", "user": "nobody", "execution": {"queue": "none"}},
    {"name": "x\x00y", "tags": [None, 5, {"a": 1}, ["x"]], "unique_metrics": {"a": 1}, "uri": "http://[::1"},
    {"name": "x", "labels": [1], "design": "d", "metadata": {"a": 5}, "ready": "maybe", "framework": {"a": 1},
    "task": 5},
    {"name": "x", "path": {"a": 1}, "basename": 5, "description": [], "featured": "no"},
    {"name": "x", "path": [None, 5], "display_name": {}, "metadata": [1], "entries": 5},
]  # fmt: skip
_RAW = [
    '{"id": "broken", "name": "x", "runtime": {"a": 1e999}, "last_iteration": 1e999}',
    '{"id": "broken", "name": "x", "runtime": {"a": ' + "9" * 5000 + "}}",
    '{"id": "broken", "name": "x\\ud800", "comment": "\\udfff"}',
    '{"id": "broken", "name": "x", "runtime": {"a": ' + "[" * 250 + "]" * 250 + "}}",
    '{"id": "broken", "name": "x", "runtime": {"a": ' + "[" * 600 + "]" * 600 + "}}",
    '{"id": "broken", "name": "x", "runtime": {"a": ' + "[" * 1500 + "]" * 1500 + "}}",
]


@pytest.mark.parametrize("table", ["task", "model", "project", "queue"])
def test_documents_of_any_form_break_no_list(site: Site, table: str) -> None:
    for number, doc in enumerate(_BROKEN):
        site.insert(table, id=f"broken{number}", doc=json.dumps(doc))
    broken = tuple(f"broken{n}" for n in range(len(_BROKEN)))
    site.check(tasks=broken if table == "task" else ())
    for id_ in broken:
        if table == "model":
            assert site.web.get(f"/projects/*/models/{id_}/general").status_code == 200
        name = {"task": "tasks", "model": "models", "project": "projects", "queue": "queues"}[table]
        assert site.call(f"{name}.get_by_id", json.dumps({table: id_}).encode())[0] == 200
    if table == "task":  # and they can be worked with
        for id_ in broken:
            for call, more in [
                ("tasks.edit", {"comment": "x", "force": True}), ("tasks.clone", {}), ("tasks.enqueue",
                {"force": True}),
                ("tasks.started", {"force": True}), ("tasks.ping", {}), ("tasks.stopped", {"force": True}),
                ("tasks.get_hyper_params", {"tasks": [id_]}), ("tasks.reset", {"force": True}),
                ("tasks.get_configuration_names", {"tasks": [id_]}), ("tasks.delete", {"force": True}),
            ]:  # fmt: skip
                code, message = site.call(call, json.dumps({"task": id_, **more}).encode())
                assert code < 500, f"{call} {id_}: {message}"
    site.check()


def test_documents_that_no_client_can_read_are_mended_with_the_tables(tmp_path: Path) -> None:
    old = unversioned(tmp_path / "data/lite.db")
    for table in ("task", "model", "project", "queue"):
        for number, doc in enumerate([*_RAW, "5", "[]", "{}", '"x"']):
            old.execute(f"INSERT INTO {table} (id, doc) VALUES (?, ?)", (f"raw{number}", doc))
    old.close()
    site = Site(tmp_path)
    site.check(tasks=tuple(f"raw{n}" for n in range(len(_RAW))))
    for task in site.lite("tasks.get_all")["tasks"]:
        assert orjson.loads(dumps(task))["id"]
    for name in ("tasks", "models", "projects", "queues"):
        answer = site.api.post(f"/{name}.get_all", json={}, auth=AGENT)
        assert all(isinstance(doc, dict) and doc["id"] for doc in answer.json()["data"][name])


def test_events_of_any_form_break_no_page(site: Site) -> None:
    db = site.lite.state.db.read()
    series = {row["kind"]: row["id"] for row in db.execute("SELECT id, kind FROM event_series").fetchall()}
    odd = ["{}", "[]", "5", "not JSON", '{"plot_str": 5}', '{"plot_str": "{\\"data\\":[null]}"}',
    '{"url": "http://[::1"}',
           '{"iter": 1e999}', '{"a": ' + "[" * 600 + "]" * 600 + "}", '{"variant": "\\ud800"}']  # fmt: skip
    for kind in (3, 4):
        for number, doc in enumerate(odd):
            site.insert(
                "event_doc", series=series[kind], iter=number + 10, key="", time=2**60, url="http://[::1", doc=doc
            )
    site.insert("event_log", series=series[5], time=2**60, digest=1, lag=2**60, worker=99, msg="\x00", extra="{")
    site.insert("event_log", series=series[5], time=-5, digest=2, lag=0, worker=99, msg=None, level=5)
    site.insert("event_scalar", series=series[1], iter=2, value="text", time=2**62, lag=2**62, worker=99, extra="x")
    site.insert("event_scalar", series=series[1], iter=3, value=b"\xff", time=1, lag=1, worker=99)
    site.check()
    for name, args in [
        ("events.get_task_plots", {"task": site.task, "iters": 100}), ("events.get_task_events", {"task": site.task}),
        ("events.get_multi_task_plots", {"tasks": [site.task], "iters": 100}), ("events.get_task_log",
        {"task": site.task}),
        ("events.debug_images", {"metrics": [{"task": site.task}], "iters": 100}),
        ("events.plots", {"metrics": [{"task": site.task}], "iters": 100}),
        ("events.scalar_metrics_iter_histogram", {"task": site.task, "key": "iso_time"}),
        ("events.get_scalar_metric_data", {"task": site.task, "metric": "m"}),
        ("events.scalar_metrics_iter_raw", {"task": site.task, "metric": {"metric": "m"}}),
        ("events.get_task_latest_scalar_values", {"task": site.task}),
        ("events.get_plot_sample", {"task": site.task, "metric": "m"}),
        ("tasks.delete", {"task": site.task, "force": True, "return_file_urls": True}),
    ]:  # fmt: skip
        code, message = site.call(name, json.dumps(args).encode())
        assert code == 200, f"{name}: {message}"


@pytest.mark.parametrize("text", ["not JSON", "5", "null", "{}", '[5, null, {"a": 1}]', '"x"', "[" * 600 + "]" * 600])
def test_workers_of_any_form_break_no_list(site: Site, text: str) -> None:
    site.insert(
        "worker", id="odd", user="x", ip="", queues=text, tags=text, system_tags=text, registered="²", timeout="long",
        last_seen="9999-01-01", last_report="²", task=site.task, queue="none", stats=text,
    )  # fmt: skip
    site.insert(
        "worker", id="odd2", user="x", ip="", queues="[]", tags="[]", system_tags="[]", registered="", timeout=1,
        last_seen="9999-01-01", stats='{"cpu_usage": "x", "gpu_usage": [null, {}], "memory_used": "much"}',
    )  # fmt: skip
    site.insert("task", id="t2", doc=json.dumps({"name": "t2", "status": "in_progress", "started": "²"}))
    site.insert("queue_entry", task="gone", queue=site.queue, position="first", added="²")
    site.check()
    for args in ({"tags": ["a"]}, {"tags": ["-a"]}, {"worker_pattern": "*"}, {"system_tags": ["a"]}):
        assert site.call("workers.get_all", json.dumps(args).encode())[0] == 200


def test_a_page_shows_a_placeholder_for_what_it_cannot_show(site: Site) -> None:
    doc = {"name": "x", "type": "training", "status": "created", "script": {"requirements": {"pip": 5}}}
    site.insert("task", id="odd", doc=json.dumps(doc))
    answer = site.web.get("/projects/*/tasks/odd/info")
    assert answer.status_code == 200
    assert "cannot be shown" in answer.text
    assert "Last sign of life" in answer.text


# Small parts


def test_whole_numbers() -> None:
    assert whole_number("12") == 12
    for text in ("²", "\u0661", "", "-1", "1.5", "9" * 5000, "1" * 20, "x", " 1"):
        assert whole_number(text) is None, text


@pytest.mark.parametrize(
    "query", ["page=²", f"page={'9' * 5000}", "page=-1", "status=²", "q=%00", "q=" + "x" * 3000, "project=²"]
)
def test_the_query_of_a_page_may_be_anything(site: Site, query: str) -> None:
    assert site.web.get(f"/tasks?{query}").status_code < 500
    assert site.web.get(f"/data/tasks/{site.task}/log?from={query}").status_code < 500


def test_stored_json_is_read_and_written_whatever_it_holds() -> None:
    for text in ("[" * 5000, "{", "", "\x00", "nul"):
        assert loads(text) is None
    assert loads('[1e999, NaN, "\\ud800"]') == [None, None, "\ud800"]
    assert json.loads(dumps({"a": "\ud800", "b": 2**70, "c": float("nan"), 5: {1, 2}.__class__})) is not None
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    assert json.loads(dumps({"a": deep, "b": 1}))["b"] == 1
    with pytest.raises(ApiError, match=f"the limit is {MAX_NAME}"):
        check_arguments({"a": {"name": "x" * (MAX_NAME + 1)}}, "tasks.create")
    check_arguments({"comment": "x" * 1_000_000}, "tasks.create")


def test_times_out_of_range() -> None:
    for text in ("0001-01-01", "9999-12-31T23:59:59-23:00", "²", "", 5, None, "2026-13-01"):
        with pytest.raises((ValueError, OverflowError)):
            parse_time(text)
        read_time(text)
    assert read_time("2026-01-01") is not None
