"""What is decided before an endpoint runs: how much is read, from whom, for whose page, and how often one may guess."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest
from conftest import Lite
from starlette.testclient import TestClient
from test_lite_auth import PASSWORD, write_config
from trainyard_lite import _body
from trainyard_lite._app import create_state
from trainyard_lite._auth import Throttle
from trainyard_lite._body import KB, MAX_DEPTH, MAX_NODES, MB, check_depth, check_nodes
from trainyard_lite._errors import ApiError
from trainyard_lite._files import create_files
from trainyard_lite._http import body_limit, create_api
from trainyard_lite._rpc import ENDPOINTS, State, is_read
from trainyard_lite._settings import ConfigError, load_settings, proxies
from trainyard_lite.web import create_web

AGENT = ("AGENTKEY", "AGENTSECRET")
MANY = "&".join(f"a{n}=1" for n in range(2000))
COOKIE = "clearml_token_basic"
FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://[::1"},
    {"origin": "http://testserver.evil.example"},
    {"origin": "http://evil.example/testserver"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.fixture
def api(lite: Lite) -> TestClient:
    return TestClient(create_api(lite.state))


@pytest.fixture
def token(lite: Lite) -> str:
    return lite.state.auth.make_token(lite.state.auth.check_secret("admin", PASSWORD))


def basic(name: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


# How much is read


def chunks(block: bytes, count: int) -> Iterator[bytes]:
    """Make a body without a declared length."""
    yield from [block] * count


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer x"}, basic("admin", "wrong"), {"cookie": f"{COOKIE}=x"}]
)
def test_nothing_is_read_from_a_stranger(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr(_body.Bodies, "read", lambda *_: pytest.fail("the body was read"))
    headers = headers | {"content-type": "application/json-lines"}
    assert api.post("/events.add_batch", content=b"{}\n" * 1000, headers=headers).status_code in (401, 403)


@pytest.mark.parametrize("name", ["debug.ping", "login.supported_modes", "auth.fixed_users_mode"])
def test_without_a_login_little_is_read(api: TestClient, name: str) -> None:
    answer = api.post(f"/{name}", content=b'{"a":[' + b"[]," * 40_000 + b"[]]}")
    assert (answer.status_code, answer.json()["meta"]["result_code"]) == (413, 413)
    assert "limit_bytes=65536" in answer.json()["meta"]["result_msg"]
    assert api.post(f"/{name}", content=chunks(b" " * 10_000, 100)).status_code == 413


@pytest.mark.parametrize("length", ["65537", "9" * 400, "0" * 400 + "65537"])
def test_a_declared_length_is_refused_at_once(api: TestClient, length: str) -> None:
    assert api.post("/debug.ping", content=chunks(b" ", 3), headers={"content-length": length}).status_code == 413


def test_limits_of_endpoints() -> None:
    limits = {name: body_limit(target) for name, target in ENDPOINTS.items()}
    assert {name for name in limits if limits[name] > 16 * MB} == {n for n in limits if n.startswith("events.")}
    assert all(limits[name] <= 64 * KB for name, target in ENDPOINTS.items() if not target.auth)
    # what the SDK sends: 15 MB of events in a call, configurations and changes of several MB with a task
    assert limits["events.add_batch"] >= 2 * 15 * MB
    assert limits["tasks.edit"] >= 16 * MB
    assert limits["queues.create"] == 1 * MB


def test_a_task_with_a_large_configuration_is_kept(api: TestClient) -> None:
    wish = {"name": "large", "type": "training", "script": {"diff": "+ x\n" * 500_000}}
    answer = api.post("/tasks.create", auth=AGENT, json=wish)
    assert answer.status_code == 200, answer.text[:300]


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":[' + b"[]," * MAX_NODES + b"[]]}",
        b'{"a":[' + b"{}," * MAX_NODES + b"{}]}",
        b'{"a":[' + b"1," * MAX_NODES + b"1]}",
        b'{"a":[' + b'"",' * MAX_NODES + b'""]}',
        b'{"a":' * MAX_NODES,
    ],
)
def test_values_are_counted_before_parsing(body: bytes) -> None:
    with pytest.raises(ApiError, match="values: send it in parts"):
        check_nodes(body)


def test_what_is_in_strings_does_not_count() -> None:
    plot = json.dumps({"data": [{"x": list(range(600_000)), "name": 'a"b\\'}]})
    check_nodes(json.dumps({"plot_str": plot}).encode())
    check_depth(json.dumps({"text": "[{" * 1000 + '\\"' + "[" * 1000}).encode())


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth(open_: str, close: str) -> None:
    levels = MAX_DEPTH // (open_.count("[") + open_.count("{"))
    check_depth((open_ * levels + "1" + close * levels).encode())
    check_depth(f"[{','.join(['[]'] * 1000)}]".encode())  # wide, not deep
    with pytest.raises(ApiError, match="nested deeper than 64 levels"):
        check_depth((open_ * (levels + 1) + "1" + close * (levels + 1)).encode())


def test_lines_are_bounded_too(lite: Lite, api: TestClient) -> None:
    headers = {"content-type": "application/json-lines"}
    deep = b'{"a":' + b"[" * 65 + b"]" * 65 + b"}"
    answer = api.post("/events.add_batch", auth=AGENT, content=deep, headers=headers)
    assert answer.status_code == 400  # of a batch only the deep event: see test_lite_events
    wide = b'{"a":[' + b"[]," * 1000 + b"[]]}\n"
    answer = api.post("/events.add_batch", auth=AGENT, content=wide * 1000, headers=headers)
    assert (answer.status_code, "values" in answer.text) == (400, True)


@pytest.mark.parametrize(
    "query",
    ["id=%C2%B2", "id=" + "1" * 5000, "id=1." + "1" * 5000, "id=%00", "id=%ff%fe", "id=%ed%a0%80", MANY,
     "=", "id=.", "id=%D9%A2"],
)  # fmt: skip
def test_arguments_in_the_url_make_no_500(api: TestClient, query: str) -> None:
    assert api.get(f"/tasks.get_all?{query}", auth=AGENT).status_code in (200, 400)
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert api.post("/tasks.get_all", auth=AGENT, content=query, headers=form).status_code in (200, 400)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Basic " + base64.b64encode(b"\xff\xfe:\x00").decode()},
        {"authorization": "Basic " + base64.b64encode(b"a\x00b:c\x00d").decode()},
        {"authorization": "Basic " + base64.b64encode(b"admin:" + b"x" * 5000).decode()},
        {"authorization": b"Basic \xff\xff"},
        {"authorization": b"Bearer \xff\xff"},
        {"authorization": "Bearer " + base64.urlsafe_b64encode(b"[" * 20_000).decode() + ".e30.x"},
        {"authorization": "Bearer " + base64.urlsafe_b64encode(b'{"alg":' + b"1" * 5000 + b"}").decode() + ".e30.x"},
        {"authorization": "Basic"},
        {"authorization": " "},
        {"cookie": f"{COOKIE}=" + "x" * 100_000},
        {"cookie": "=;=;;" * 1000},
    ],
)
def test_malformed_credentials_make_no_500(lite: Lite, api: TestClient, headers: dict[str, str]) -> None:
    assert api.post("/tasks.get_all", headers=headers).status_code == 401
    files = TestClient(create_files(lite.state))
    assert files.get("/x", headers=headers).status_code == 401
    page = TestClient(create_web(lite.state), follow_redirects=False)
    assert page.get("/tasks", headers=headers).status_code == 303


@pytest.mark.parametrize("version", ["1" * 5000, "٢.٢", "2." + "9" * 5000, "²"])
def test_versions_make_no_500(api: TestClient, version: str) -> None:
    answer = api.get(f"/v{version}/debug.ping")
    assert answer.status_code == 400
    assert len(answer.text) < 2000


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "a/b", "", "http://[::1"])
def test_host_headers_make_no_500(lite: Lite, api: TestClient, host: str) -> None:
    assert api.get("/debug.ping", headers={"host": host}).status_code == 200
    assert TestClient(create_files(lite.state)).get("/", headers={"host": host}).status_code == 200


def test_a_message_with_half_a_character_is_an_answer(api: TestClient) -> None:
    line = b'{"type":"log","task":"\\ud800","msg":"x"}'
    answer = api.post("/events.add_batch", auth=AGENT, content=line, headers={"content-type": "application/json-lines"})
    assert answer.status_code in (200, 400)
    assert answer.json()["meta"]


# Whose page


def new_task(lite: Lite) -> str:
    return str(lite("tasks.create", name="a task", type="training")["id"])


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
def test_a_page_of_another_site_changes_nothing_by_the_cookie(
    lite: Lite, api: TestClient, token: str, method: str
) -> None:
    task = new_task(lite)
    api.cookies.set(COOKIE, token)
    for headers in ({}, *FOREIGN):
        delete(api, method, task, headers)
    assert lite.status(task) == "created"


def delete(api: TestClient, method: str, task: str, headers: dict[str, str]) -> None:
    answer = api.request(method, f"/tasks.delete?task={task}&force=true", headers=headers)
    assert answer.status_code in (400, 403)
    body = json.dumps({"task": task, "force": True})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json", "multipart/form-data"):
        content = f"task={task}&force=true" if "form-url" in kind else body
        answer = api.request(method, "/tasks.delete", content=content, headers={"content-type": kind} | headers)
        assert answer.status_code in (400, 403), kind


def test_an_own_page_may_use_the_cookie(lite: Lite, api: TestClient, token: str) -> None:
    api.cookies.set(COOKIE, token)
    for headers in ({"origin": "http://testserver"}, {"sec-fetch-site": "same-origin"}):
        answer = api.post("/tasks.delete", json={"task": new_task(lite)}, headers=headers)
        assert answer.status_code == 200, answer.text
    lite.state.settings.web_url = "https://app.lab.example"
    answer = api.post("/tasks.delete", json={"task": new_task(lite)}, headers={"origin": "https://app.lab.example"})
    assert answer.status_code == 200


def test_the_sdk_may_send_get_with_a_body(lite: Lite, api: TestClient, token: str) -> None:
    """Its default: GET, JSON, Authorization header, and cookies that its session keeps from auth.login."""
    api.cookies.set(COOKIE, token)
    wish = {"task": new_task(lite), "method": "get"}
    answer = api.request("GET", "/v2.23/tasks.delete", json=wish, headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text


def test_get_with_arguments_in_the_url_is_for_reading(lite: Lite, api: TestClient) -> None:
    task = new_task(lite)
    answer = api.get(f"/tasks.delete?task={task}", auth=AGENT)
    assert answer.status_code == 400
    assert "tasks.delete changes data: send its arguments in the body" in answer.json()["meta"]["result_msg"]
    assert lite.status(task) == "created"
    assert api.get(f"/tasks.get_by_id?task={task}", auth=AGENT).json()["data"]["task"]["id"] == task


@pytest.mark.parametrize("headers", FOREIGN)
def test_nobody_is_logged_in_or_out_by_another_site(
    lite: Lite, api: TestClient, token: str, headers: dict[str, str]
) -> None:
    answer = api.get("/auth.login", headers=headers | basic(*AGENT))  # http://key:secret@api/auth.login as a link
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    api.cookies.set(COOKIE, token)
    for method in ("GET", "POST"):
        assert api.request(method, "/auth.logout", headers=headers).status_code == 403
    assert lite.state.auth.read_token(token)
    page = TestClient(create_web(lite.state), follow_redirects=False, cookies={COOKIE: token})
    for path in ("/login", "/logout", "/settings", f"/tasks/{new_task(lite)}/archive"):
        assert page.post(path, headers=headers, data={"username": "admin", "password": PASSWORD}).status_code == 403
    assert page.get("/logout").status_code == 405
    assert lite.state.auth.read_token(token)


def test_files_change_by_a_token_only(lite: Lite, token: str) -> None:
    files = TestClient(create_files(lite.state))
    bearer = {"authorization": f"Bearer {token}"}
    assert files.post("/", files={"a/b.txt": b"text"}, headers=bearer).status_code == 200
    files.cookies.set(COOKIE, token)
    assert files.get("/a/b.txt").text == "text"
    for headers in ({}, {"origin": "http://testserver"}):
        assert files.delete("/a/b.txt", headers=headers).status_code == 401
        assert files.post("/", files={"a/b.txt": b"evil"}, headers=headers).status_code == 401
        assert files.post("/delete_many", json={"files": ["a/b.txt"]}, headers=headers).status_code == 401
    assert files.get("/a/b.txt").text == "text"
    assert files.delete("/a/b.txt", headers=bearer).status_code == 200


def test_no_other_origin_may_read_answers(lite: Lite) -> None:
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for app in (create_api(lite.state), create_files(lite.state), create_web(lite.state)):
        client = TestClient(app)
        for answer in (client.options("/debug.ping", headers=asks), client.get("/debug.ping", headers=asks)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


READS = set(
    """
auth.fixed_users_mode auth.get_credentials auth.validate_token debug.ping login.supported_modes
events.debug_images events.download_task_log events.get_debug_image_sample events.get_multi_task_metrics
events.get_multi_task_plots events.get_plot_sample events.get_scalar_metric_data events.get_scalar_metrics_and_variants
events.get_task_events events.get_task_latest_scalar_values events.get_task_log events.get_task_metrics
events.get_task_plots events.get_task_single_value_metrics events.get_vector_metrics_and_variants
events.multi_task_scalar_metrics_iter_histogram events.next_debug_image_sample events.next_plot_sample events.plots
events.scalar_metrics_iter_histogram events.scalar_metrics_iter_raw events.vector_metrics_iter_histogram
models.get_all models.get_all_ex models.get_by_id models.get_by_id_ex models.get_by_task_id models.get_frameworks
organization.get_entities_count organization.get_tags organization.get_user_companies
projects.get_all projects.get_all_ex projects.get_by_id projects.get_hyper_parameters projects.get_hyperparam_values
projects.get_model_tags projects.get_project_tags projects.get_task_parents projects.get_task_tags
projects.get_unique_metric_variants projects.get_user_names projects.validate_delete
queues.get_all queues.get_all_ex queues.get_by_id queues.get_num_entries queues.get_queue_metrics
queues.peek_task server.config server.endpoints server.info
tasks.get_all tasks.get_all_ex tasks.get_by_id tasks.get_by_id_ex tasks.get_configuration_names tasks.get_configurations
tasks.get_hyper_params tasks.get_types tasks.validate
users.get_all users.get_all_ex users.get_by_id users.get_current_user users.get_preferences
workers.get_activity_report workers.get_all workers.get_count workers.get_metric_keys workers.get_stats
""".split()  # noqa: SIM905 (one list, many lines)
)


def test_which_endpoints_a_link_may_open() -> None:
    """A new endpoint that only reads is added here; what is not named needs a header."""
    assert {name for name in ENDPOINTS if is_read(name)} == READS


# How often one may guess


def client(state: State, address: str) -> TestClient:
    return TestClient(create_api(state), client=(address, 40_000))


def login(api: TestClient, name: str, secret: str, **headers: str) -> int:
    api.cookies.clear()
    return api.post("/auth.login", headers=basic(name, secret) | headers).status_code


def test_others_guesses_do_not_lock_a_person_out(lite: Lite) -> None:
    guesser, person = client(lite.state, "10.0.0.66"), client(lite.state, "10.0.0.7")
    statuses = [login(guesser, "admin", f"guess {n}") for n in range(8)]
    assert (statuses[:5], 429 in statuses) == ([401] * 5, True)
    assert login(person, "admin", PASSWORD) == 200


def test_a_key_pair_or_token_never_waits(lite: Lite, token: str) -> None:
    api = client(lite.state, "10.0.0.66")
    for n in range(8):
        login(api, "admin", f"guess {n}")
        login(api, AGENT[0], f"guess {n}")
    assert login(api, AGENT[0], "another guess") == 429
    assert login(api, *AGENT) == 200
    api.cookies.clear()
    assert api.post("/users.get_all", headers={"authorization": f"Bearer {token}"}).status_code == 200


@pytest.fixture
def behind(tmp_path: Path) -> State:
    settings = load_settings(write_config(tmp_path / "config"), tmp_path / "data")
    return create_state(replace(settings, trusted_proxies=("10.0.0.1", "172.20.0.0/16", "fd00::/8")))


def test_behind_a_proxy_each_client_has_its_own_count(behind: State) -> None:
    proxy = client(behind, "10.0.0.1")
    for n in range(8):
        last = login(proxy, "admin", f"guess {n}", **{"x-forwarded-for": "203.0.113.66"})
    assert last == 429
    assert login(proxy, "admin", PASSWORD, **{"x-forwarded-for": "203.0.113.7"}) == 200
    page = TestClient(create_web(behind), client=("10.0.0.1", 1), follow_redirects=False)
    form = {"username": "admin", "password": PASSWORD}
    assert page.post("/login", data=form, headers={"x-forwarded-for": "203.0.113.66"}).status_code == 429
    assert page.post("/login", data=form, headers={"x-forwarded-for": "203.0.113.7"}).status_code == 303


def test_a_client_cannot_choose_its_address(behind: State) -> None:
    direct, proxy = client(behind, "203.0.113.66"), client(behind, "10.0.0.1")
    for n in range(8):
        last = login(direct, "admin", f"guess {n}", **{"x-forwarded-for": f"198.51.100.{n}"})
    assert last == 429, "X-Forwarded-For from who is no proxy counts for nothing"
    for n in range(8):  # the proxy appends what it saw; what stands to the left is the client's own claim
        last = login(proxy, "admin", f"guess {n}", **{"x-forwarded-for": f"198.51.100.{n}, 203.0.113.67"})
    assert last == 429
    for n in range(8):  # two proxies in a row
        last = login(proxy, "admin", f"guess {n}", **{"x-forwarded-for": f"198.51.100.{n}, 203.0.113.68, 172.20.3.4"})
    assert last == 429
    for n in range(8):
        last = login(proxy, "admin", f"guess {n}", **{"x-forwarded-for": f"{n}.example, unknown"})
    assert last == 429


def test_a_host_of_many_addresses_is_one(behind: State) -> None:
    for n in range(8):
        last = login(client(behind, f"2001:db8::{n + 1:x}"), "admin", f"guess {n}")
    assert last == 429


def test_names_of_proxies_are_resolved(tmp_path: Path) -> None:
    settings = load_settings(write_config(tmp_path / "config"), tmp_path / "data")
    state = create_state(replace(settings, trusted_proxies=("localhost", "no-such-host.invalid")))
    assert state.proxies.names == ["localhost", "no-such-host.invalid"]
    state.proxies.resolve()
    api = client(state, "127.0.0.1")
    for n in range(8):
        login(api, "admin", f"guess {n}", **{"x-forwarded-for": "203.0.113.66"})
    assert login(api, "admin", PASSWORD, **{"x-forwarded-for": "203.0.113.7"}) == 200


@pytest.mark.parametrize("text", ["10.0.0.999", "10.0.0.0/33", "http://proxy:3128", "a b", "proxy:80", "*", "-x"])
def test_a_wrong_proxy_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="TRAINYARD_LITE_TRUSTED_PROXIES"):
        proxies(f"10.0.0.1,{text}")
    assert proxies(" caddy, 10.0.0.5 ,fd00::1,172.20.0.0/16,") == ("caddy", "10.0.0.5", "fd00::1", "172.20.0.0/16")


def test_known_and_unknown_names_are_alike(lite: Lite, api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer after the same work: one bcrypt of the same cost."""
    costs: list[bytes] = []
    check = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> bool:
        costs.append(stored.split(b"$")[2])
        return check(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    answers = []
    for name in ("admin", "nobody", AGENT[0], "SYSKEY", "", "ä" * 100):
        costs.clear()
        answer = api.post("/auth.login", headers=basic(name, "wrong")).json()
        answers.append((answer["meta"]["result_msg"], answer["meta"]["result_subcode"], answer["data"], list(costs)))
    assert len({json.dumps(answer, default=str) for answer in answers}) == 1, answers
    assert len(answers[0][3]) == 1


def test_plain_passwords_take_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "config")
    (config / "apiserver.conf").write_text(
        "auth { fixed_users { enabled: true, pass_hashed: false, users: [ "
        '{username: "a", password: "plain-password"} ] } }'
    )
    auth = create_state(load_settings(config, tmp_path / "data")).auth
    calls: list[bytes] = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, stored: calls.append(stored) or False)
    assert auth.check_secret("a", "plain-password").name == "a"
    for name in ("a", "b"):
        with pytest.raises(ApiError):
            auth.check_secret(name, "")
    assert len(calls) == 3
    assert len(set(calls)) == 1


def test_few_passwords_are_checked_at_a_time(lite: Lite, monkeypatch: pytest.MonkeyPatch) -> None:
    """While 100 guesses wait, tokens and key pairs are answered, and one address fills only its own turns."""
    go, running, most = threading.Event(), [0], [0]
    lock = threading.Lock()

    def slow(password: bytes, stored: bytes) -> bool:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        assert go.wait(30)
        with lock:
            running[0] -= 1
        return False

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    with TestClient(create_api(lite.state), client=("10.0.0.66", 1)) as api, ThreadPoolExecutor(40) as pool:
        guesses = [
            pool.submit(lambda n=n: api.post("/auth.login", headers=basic(f"u{n}", "x")).status_code) for n in range(40)
        ]
        refused = 0
        while refused < 32:  # ends: eight wait, the others are refused
            refused = sum(guess.done() for guess in guesses)
        assert api.post("/users.get_all", headers=basic(*AGENT)).status_code == 200
        go.set()
        statuses = [guess.result() for guess in guesses]
    assert (statuses.count(401), statuses.count(429)) == (8, 32)
    assert 1 <= most[0] <= 4


def test_what_is_remembered_of_guesses_is_bounded() -> None:
    throttle = Throttle()
    for n in range(12_000):
        throttle.failed(f"10.0.{n // 250}.{n % 250}", "x" * 1000 + str(n))
    assert len(throttle._failures) == 10_000
    assert max(map(len, throttle._failures)) == 16
