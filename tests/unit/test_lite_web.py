"""The page: who may see it, the paths that the SDK prints, and that what people type stays text."""

from __future__ import annotations

import re

import pytest
from conftest import Lite
from starlette.testclient import TestClient
from test_lite_auth import PASSWORD
from trainyard_lite._errors import ApiError
from trainyard_lite.web import create_web

EVIL = '<script>alert("x")</script>'
TABS = [
    "",
    "/output/log",
    "/output/metrics/scalar",
    "/output/metrics/plots",
    "/output/debugImages",
    "/execution",
    "/hyper-params/hyper-param/Args",
    "/artifacts/output-model/x",
    "/info/general",
]


@pytest.fixture
def page(lite: Lite) -> TestClient:
    """A browser that is logged in."""
    client = TestClient(create_web(lite.state), follow_redirects=False)
    answer = client.post("/login", data={"username": "admin", "password": PASSWORD, "next": "/tasks"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/tasks")
    return client


def evil_task(lite: Lite) -> str:
    project = lite("projects.create", name=f"team/{EVIL.replace('/', '')}")["id"]
    task = str(
        lite(
            "tasks.create",
            name=EVIL,
            type="training",
            project=project,
            comment=EVIL,
            tags=[EVIL],
            hyperparams={EVIL: {EVIL: {"value": EVIL}}},
            configuration={EVIL: {"value": EVIL}},
            script={"repository": EVIL, "diff": EVIL, "requirements": {"pip": EVIL}},
        )["id"]
    )
    lite("tasks.started", task=task, status_message=EVIL)
    artifacts = [
        {"key": EVIL, "type": EVIL, "uri": "javascript:alert(1)"},
        {"key": "ok", "type": "x", "uri": "http://h/f"},
    ]
    lite("tasks.add_or_update_artifacts", task=task, artifacts=artifacts)
    lite("workers.status_report", worker=EVIL, timestamp=1, task=task)
    lite("queues.create", name=EVIL)
    event = {"task": task, "metric": EVIL, "variant": EVIL, "iter": 0}
    lite("events.add", type="plot", plot_str=f'{{"x": "{EVIL}"}}', **event)
    lite("events.add", type="training_debug_image", url="javascript:alert(1)", **event)
    lite("events.add", type="log", task=task, msg=f"{EVIL}\x1b[31mred\x1b[0m")
    return task


@pytest.mark.parametrize(
    "path", ["/", "/tasks", "/workers", "/projects", "/projects/*/tasks/x/output/log", "/data/tasks/x/log"]
)
def test_nobody_sees_a_page_without_login(lite: Lite, path: str) -> None:
    answer = TestClient(create_web(lite.state), follow_redirects=False).get(path)
    if path.startswith("/data/"):
        assert answer.status_code == 401
    else:
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=")


def test_a_wrong_password_is_said_and_slowed(lite: Lite) -> None:
    client = TestClient(create_web(lite.state))
    answers = [client.post("/login", data={"username": "admin", "password": "no"}) for _ in range(8)]
    assert answers[0].status_code == 401
    assert "Wrong user or password" in answers[0].text
    assert answers[-1].status_code == 429
    assert "Too many tries" in answers[-1].text


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", ""])
def test_login_leads_nowhere_else(lite: Lite, target: str) -> None:
    client = TestClient(create_web(lite.state), follow_redirects=False)
    answer = client.post("/login", data={"username": "admin", "password": PASSWORD, "next": target})
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("form", ["tasks", "experiments"])
@pytest.mark.parametrize("rest", TABS)
def test_the_paths_that_the_sdk_prints(lite: Lite, page: TestClient, form: str, rest: str) -> None:
    task = lite.task("a fine task")
    for project in ("*", "0123456789abcdef"):
        answer = page.get(f"/projects/{project}/{form}/{task}{rest}")
        assert answer.status_code == 200
        assert "a fine task" in answer.text
    assert page.get(f"/datasets/simple/x/{form}/{task}").status_code == 200
    assert page.get(f"/projects/*/{form}/nosuch{rest}").status_code == 404


def test_what_people_type_stays_text(lite: Lite, page: TestClient) -> None:
    task = evil_task(lite)
    pages = [
        "/tasks",
        "/tasks?q=" + EVIL,
        "/projects",
        "/workers",
        *(f"/projects/*/tasks/{task}{rest}" for rest in TABS),
    ]
    for path in pages:
        answer = page.get(path)
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text, path
        assert 'href="javascript:' not in answer.text, path
        assert 'src="javascript:' not in answer.text, path
    assert "&lt;script&gt;" in page.get("/tasks").text
    line = page.get(f"/data/tasks/{task}/log").json()["lines"][0]["text"]
    assert line == f"{EVIL}red"


def test_headers_allow_no_foreign_code(page: TestClient) -> None:
    headers = page.get("/tasks").headers
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "immutable" in page.get("/static/style.css").headers["cache-control"]


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_form_of_another_page_does_nothing(lite: Lite, page: TestClient, headers: dict[str, str]) -> None:
    task = lite.task()
    for action in ("enqueue", "clone", "archive", "abort"):
        assert page.post(f"/tasks/{task}/{action}", headers=headers).status_code == 403
    assert page.post(f"/tasks/{task}/parameters", headers=headers).status_code == 403
    assert page.post("/logout", headers=headers).status_code == 403
    assert lite.status(task) == "created"
    assert len(lite("tasks.get_all")["tasks"]) == 1
    assert page.get("/tasks").status_code == 200


def test_actions(lite: Lite, page: TestClient) -> None:
    task = lite.task()
    queue = lite("queues.create", name="the queue")["id"]
    assert page.post(f"/tasks/{task}/enqueue", data={"queue": queue}).status_code == 303
    assert lite.status(task) == "queued"
    assert page.post(f"/tasks/{task}/abort").status_code == 303
    assert lite.status(task) == "stopped"
    clone = page.post(f"/tasks/{task}/clone").headers["location"].split("/")[4]
    assert lite.status(clone) == "created"
    refused = page.post(f"/tasks/{clone}/abort")
    assert refused.status_code == 400
    assert "Invalid task status" in refused.text
    assert page.post(f"/tasks/{task}/archive").status_code == 303
    assert task not in page.get("/tasks").text


def test_a_key_pair_is_made_used_and_revoked(lite: Lite, page: TestClient) -> None:
    made = page.post("/settings", data={"label": EVIL}).text
    keys = dict(re.findall(r'(access_key|secret_key): "(\w+)"', made))
    assert lite.state.auth.check_secret(keys["access_key"], keys["secret_key"]).name == "Ad Min"
    again = page.get("/settings/workspace-configuration").text
    assert keys["access_key"] in again
    assert keys["secret_key"] not in again, "a secret is shown once"
    assert "<script>alert" not in again
    foreign = page.post("/settings", data={"revoke": keys["access_key"]}, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert keys["access_key"] not in page.post("/settings", data={"revoke": keys["access_key"]}).text
    with pytest.raises(ApiError):
        lite.state.auth.check_secret(keys["access_key"], keys["secret_key"])


def test_the_parameters_of_a_draft_are_changed_on_the_page(lite: Lite, page: TestClient) -> None:
    old = {"lr": {"value": "0.1", "type": "float"}, "text": {"value": "a\nb"}, "a/b": {"value": "1"}}
    params = {"Args": {name: {"section": "Args", "name": name, **param} for name, param in old.items()}}
    task = lite("tasks.create", name="draft", type="training", hyperparams=params)["id"]
    form = {"Args/lr": "0.2", "Args/text": "a\r\nb", "Args/a/b": "2", "Args/new": "no", "nonsense": "x"}
    assert page.post(f"/tasks/{task}/parameters", data=form).status_code == 303
    now = lite("tasks.get_by_id", task=task)["task"]["hyperparams"]["Args"]
    assert {name: param["value"] for name, param in now.items()} == {"lr": "0.2", "text": "a\nb", "a/b": "2"}
    assert now["lr"]["type"] == "float"
    lite("tasks.started", task=task)
    assert page.post(f"/tasks/{task}/parameters", data={"Args/lr": "9"}).status_code == 400
    assert "<input name=" not in page.get(f"/projects/*/tasks/{task}/hyper-params/hyper-param/Args").text


def test_logout(page: TestClient) -> None:
    assert page.post("/logout").status_code == 303
    assert page.get("/tasks").status_code == 303


def test_free_and_busy_workers(lite: Lite, page: TestClient) -> None:
    task = lite.task("the busy one")
    lite("workers.status_report", worker="node-1:gpu0", timestamp=1, task=task)
    lite("workers.status_report", worker="node-2:gpu1", timestamp=1)
    text = page.get("/workers").text
    assert "1 of 2 free now" in text
    assert "the busy one" in text


def test_an_empty_site_says_what_to_do(page: TestClient) -> None:
    assert "make verify" in page.get("/tasks").text
    assert "No worker is there" in page.get("/workers").text


def test_assets_are_there_and_nothing_else(page: TestClient) -> None:
    for name in ("vendor/uPlot.iife.min.js", "vendor/uPlot.min.css", "task.js", "plots.js", "style.css", "icon.svg"):
        assert page.get(f"/static/{name}").status_code == 200
    for path in ("/static/../_app.py", "/static/%2e%2e/_app.py", "/nosuch"):
        assert page.get(path).status_code in (303, 404)
