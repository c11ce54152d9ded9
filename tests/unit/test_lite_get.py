"""A link, an image or a form of a page of another site, opened in a browser that is logged in, changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient
from test_lite_auth import PASSWORD
from test_lite_values import PAGES, TABS, Site
from trainyard_lite._files import create_files
from trainyard_lite._rpc import ENDPOINTS

NOT_THERE = {"workers.get_activity_report"}  # "not yet implemented", which is a 500 of the API
COOKIE = "clearml_token_basic"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("get"))
    made.lite("tasks.enqueue", task=made.task, queue=made.queue)
    yield made
    made.lite.state.db.close()


@pytest.fixture(scope="module")
def token(site: Site) -> str:
    auth = site.lite.state.auth
    return auth.make_token(auth.check_secret("admin", PASSWORD))


def stored(site: Site) -> dict[str, list[str]]:
    """Return every row of every table."""
    with sqlite3.connect(site.lite.state.settings.database) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(repr(row) for row in db.execute(f'SELECT * FROM "{table}"')) for table in tables}


def arguments(site: Site, name: str) -> dict[str, Any]:
    """Return what would make a call do its work: everything that there is, in the fields that it knows."""
    known = {
        "task": site.task, "model": site.model, "queue": site.queue, "project": site.project, "worker": "node:gpu0",
        "tasks": site.task, "ids": site.model if name.startswith("models.") else site.task, "name": "changed by a link",
        "new_location": "elsewhere", "new_project_name": "elsewhere", "project_name": "elsewhere", "force": "true",
        "type": "training", "uri": "http://h/changed", "tags": "changed", "add_tags": "changed", "comment": "changed",
        "new_task_name": "a clone", "timestamp": "1", "section": "Args", "key": "changed", "value": "2",
        "msg": "changed",
        "metric": "m", "variant": "v", "iter": "7", "username": "admin", "label": "changed", "user": "__apiserver__",
        "email": "a@example.com", "status_reason": "changed", "status_message": "changed", "count": "1", "seconds": "1",
        "access_key": "AGENTKEY", "ready": "true", "model_name": "changed", "display_name": "changed",
    }  # fmt: skip
    fields = ENDPOINTS[name].request.model_fields
    return {field: value for field, value in known.items() if field in fields} if fields else known


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_endpoint_changes_anything_by_get(site: Site, token: str, method: str) -> None:
    site.api.cookies.set(COOKIE, token)
    before = stored(site)
    for name in sorted(set(ENDPOINTS) - {"debug.hang"}):
        args, fields = arguments(site, name), ENDPOINTS[name].request.model_fields
        few = {field: args[field] for field in args if field in fields and fields[field].is_required()}
        for query in {urlencode(args), urlencode(few), ""}:
            for headers in ({}, {"sec-fetch-site": "cross-site"}, {"origin": "http://testserver"}):
                answer = site.api.request(method, f"/v2.30/{name}?{query}", headers=headers)
                assert answer.status_code < 500 or name in NOT_THERE, (name, query, answer.text[:300])
                assert "set-cookie" not in answer.headers, name
        assert stored(site) == before, name
    site.api.cookies.clear()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_no_form_of_another_page_changes_anything(site: Site, token: str, kind: str) -> None:
    site.api.cookies.set(COOKIE, token)
    before = stored(site)
    for name in sorted(set(ENDPOINTS) - {"debug.hang"}):
        args = arguments(site, name)
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "same-site"}, {}):
            site.api.post(f"/{name}", content=urlencode(args), headers={"content-type": kind} | headers)
        assert stored(site) == before, name
    site.api.cookies.clear()


def test_no_page_changes_anything_by_get(site: Site, token: str) -> None:
    site.web.cookies.set(COOKIE, token)
    before = stored(site)
    paths = [*PAGES, "/login", "/logout", "/profile", f"/projects/{site.project}", f"/data/tasks/{site.task}/log"]
    paths += [f"/projects/{site.project}/models/{site.model}", f"/projects/{site.project}/models/{site.model}/general"]
    paths += [f"/projects/*/tasks/{site.task}/{tab}" for tab in TABS]
    paths += [f"/tasks/{site.task}/{action}" for action in ("archive", "abort", "enqueue", "delete", "reset", "clone")]
    query = f"task={site.task}&force=true&action=create&label=x&name=changed&username=admin&password={PASSWORD}"
    for path in paths:
        for method in ("GET", "HEAD"):
            for url in (path, f"{path}{'&' if '?' in path else '?'}{query}"):
                assert site.web.request(method, url, follow_redirects=False).status_code < 500, url
        assert stored(site) == before, path


def test_no_file_changes_by_get(site: Site, token: str) -> None:
    files = TestClient(create_files(site.lite.state))
    bearer = {"authorization": f"Bearer {token}"}
    assert files.post("/", files={"a/b.txt": b"text"}, headers=bearer).status_code == 200
    files.cookies.set(COOKIE, token)
    for path in ("/a/b.txt?delete=1", "/delete_many?files=a/b.txt", "/a/b.txt?_method=DELETE", "/?file=a/b.txt"):
        for headers in ({}, bearer, {"x-http-method-override": "DELETE"}):
            files.get(path, headers=headers)
    assert files.get("/a/b.txt").text == "text"
