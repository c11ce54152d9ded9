"""The envelope and what a malformed request meets: never a 500, never a write."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from test_lite_auth import write_config
from trainyard_lite import _http
from trainyard_lite._app import create_state
from trainyard_lite._errors import ApiError
from trainyard_lite._http import create_api
from trainyard_lite._rpc import ENDPOINTS, Call, State, invoke
from trainyard_lite._settings import load_settings

AUTH = ("AGENTKEY", "AGENTSECRET")


SYSTEM = ("SYSKEY", "SYSSECRET")


@pytest.fixture
def state(tmp_path: Path) -> State:
    return create_state(load_settings(write_config(tmp_path / "config"), tmp_path / "data"))


@pytest.fixture
def api(state: State) -> TestClient:
    return TestClient(create_api(state))


def test_envelope(api: TestClient) -> None:
    body = api.get("/v2.5/debug.ping").json()
    assert set(body) == {"meta", "data"}
    assert body["meta"]["endpoint"] == {"name": "debug.ping", "requested_version": "2.5", "actual_version": "2.1"}
    assert (body["meta"]["result_code"], body["meta"]["result_subcode"]) == (200, 0)
    assert body["meta"]["result_msg"] == "OK"


def test_the_api_version_is_announced(api: TestClient) -> None:
    assert api.get("/server.endpoints", auth=AUTH).json()["data"]["max_version"].startswith("2.3")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v2.30/tasks.fly", 404, "Unable to find endpoint for name tasks.fly and version 2.30"),
        ("/tasks.fly", 404, "tasks.fly"),
        ("/", 400, "Invalid request path"),
        ("/v2.30/tasks", 400, "Invalid request path"),
        ("/vX/tasks.get_all", 400, "Invalid request path"),
        ("/../../etc/passwd", 400, "Invalid request path"),
        ("/v1.0/auth.login", 404, "auth.login"),
    ],
)
def test_unknown_paths_are_named(api: TestClient, path: str, status: int, words: str) -> None:
    answer = api.post(path, auth=AUTH, json={})
    assert answer.status_code == status
    assert words in answer.json()["meta"]["result_msg"]


@pytest.mark.parametrize(
    "body", [b"{", b"[1]", b'"text"', b"12", b"\xff\xfe", b"[" * 60_000, b'{"a": \x00}', b"{'a': 1}"]
)
def test_a_body_that_is_no_object_is_refused(api: TestClient, body: bytes) -> None:
    answer = api.post("/auth.get_credentials", auth=AUTH, content=body)
    assert answer.status_code == 400
    assert answer.json()["meta"]["result_msg"].startswith("Bad request (the body")


def test_an_unknown_argument_is_named(api: TestClient) -> None:
    meta = api.post("/auth.create_credentials", auth=AUTH, json={"lable": "x"}).json()["meta"]
    assert (meta["result_code"], meta["result_subcode"]) == (400, 14)
    assert "auth.create_credentials does not know lable" in meta["result_msg"]


def test_the_method_that_the_sdk_sends_along_is_no_argument(api: TestClient) -> None:
    assert api.request("GET", "/auth.get_credentials", auth=AUTH, json={"method": "get"}).status_code == 200
    assert api.post("/auth.get_credentials", auth=AUTH, json={"method": "fly"}).status_code == 400


def test_missing_and_wrong_arguments_are_named(api: TestClient) -> None:
    meta = api.post("/users.get_by_id", auth=AUTH, json={}).json()["meta"]
    assert (meta["result_code"], meta["result_subcode"], meta["error_data"]) == (400, 12, {"missing": ["user"]})
    meta = api.post("/users.get_by_id", auth=AUTH, json={"user": ["x"]}).json()["meta"]
    assert (meta["result_code"], meta["result_subcode"]) == (400, 12)
    assert "'user':" in meta["result_msg"]


def test_compressed_bodies_are_refused_as_upstream(api: TestClient) -> None:
    answer = api.post("/users.get_all", auth=AUTH, content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


def test_impersonation_is_refused_not_ignored(api: TestClient) -> None:
    answer = api.post("/users.get_all", auth=SYSTEM, headers={"X-Clearml-Act-As": "__agent_a__"})
    assert (answer.status_code, answer.json()["meta"]["result_subcode"]) == (400, 6)


NASTY = [
    None, True, -1, 2**70, 1.5, "", "\x00", "\ud800", "x" * 5000, "' OR 1=1 --", "../../etc/passwd", [], [[]], {},
    {"a": {"b": [None]}}, [None], ["__$all"], ["__$not"], [1, 2], {"any": 1}, "(?", "$.a", 'a"b',
]  # fmt: skip
OPEN = [
    "id",
    "name",
    "status",
    "tags",
    "created",
    "order_by",
    "page",
    "page_size",
    "scroll_id",
    "size",
    "only_fields",
    "search_text",
    "filters",
    "_any_",
    "last_update",
    "task",
    "queue",
    "project",
    "worker",
    "model",
    "tasks",
    "ids",
]


SERVICES = [
    "auth",
    "debug",
    "events",
    "login",
    "models",
    "organization",
    "projects",
    "queues",
    "server",
    "tasks",
    "users",
    "workers",
]


@pytest.mark.parametrize("service", SERVICES)
def test_no_argument_makes_a_500(state: State, service: str) -> None:
    """Every endpoint is given every kind of nonsense in every argument that it names."""
    call = Call(state=state, identity=state.auth.check_secret(*SYSTEM))
    failures = []
    for name, target in sorted(ENDPOINTS.items()):
        if not name.startswith(service + "."):
            continue
        fields = sorted(set(target.request.model_fields) | set(OPEN if not target.request.model_fields else ()))
        for field, value in itertools.product(fields, NASTY):
            body = json.dumps({field: value}).encode()
            try:
                invoke(call, target, _http._loads(body))
            except ApiError as error:
                if error.code >= 500 and error.subcode != 9999:  # 9999: "not implemented", said by name
                    failures.append(f"{name} {body[:80]!r}: {error.message}")
            except Exception as error:
                failures.append(f"{name} {body[:80]!r}: {type(error).__name__} {error}")
    assert not failures, f"{len(failures)}:\n" + "\n".join(failures[:20])
