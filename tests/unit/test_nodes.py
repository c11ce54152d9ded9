"""What a node has at the server: its account, its queues, its place in the list of workers. On a real lite server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from test_lite_durability import Process

ROOT = Path(__file__).resolve().parents[2]
# Runs a module as Ansible does on a host, without the second that Ansible itself takes.
MODULE = """
import runpy, sys
import ansible.module_utils
from ansible.module_utils import basic
ansible.module_utils.__path__.append(sys.argv[1] + "/module_utils")
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.stdin.buffer.read(), "legacy"
runpy.run_path(sys.argv[1] + f"/modules/{sys.argv[2]}.py", run_name="__main__")
"""


class Site:
    """A lite server, and Ansible's modules that call it."""

    def __init__(self, folder: Path) -> None:
        self.server = Process(folder)
        self.server.start()
        self.api = f"http://127.0.0.1:{self.server.api}"

    def call(self, endpoint: str, /, **arguments: Any) -> dict[str, Any]:
        return self.server.call(endpoint, **arguments)

    def module(self, name: str, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        connection = {"api_url": self.api, "access_key": "SYSKEY", "secret_key": "SYSSECRET", "timeout": 0}
        given = {"ANSIBLE_MODULE_ARGS": {**connection, **arguments, "_ansible_check_mode": check}}
        command = [sys.executable, "-c", MODULE, str(ROOT / "ansible/plugins"), name]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False, timeout=60)
        result: dict[str, Any] = json.loads(done.stdout)
        assert not result.get("failed"), result
        return result

    def key(self, pair: tuple[str, str] = ("", ""), **arguments: Any) -> dict[str, Any]:
        current = {"current_access_key": pair[0], "current_secret_key": pair[1]}
        return self.module("clearml_node_key", node="gpu01", **current, **arguments)

    def whose(self, pair: tuple[str, str]) -> str | None:
        answer = requests.post(f"{self.api}/users.get_current_user", json={}, auth=pair, timeout=20)
        return str(answer.json()["data"]["user"]["name"]) if answer.status_code == 200 else None

    def queues(self) -> list[str]:
        return sorted(queue["name"] for queue in self.call("queues.get_all")["queues"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.server.stop()


def pair_of(result: dict[str, Any]) -> tuple[str, str]:
    return result["access_key"], result["secret_key"]


def test_a_node_gets_an_account_and_keeps_its_pair(site: Site) -> None:
    assert site.key(check=True)["changed"]
    made = site.key()
    assert (made["changed"], made["state"]) == (True, "made")
    pair = pair_of(made)
    assert site.whose(pair) == "agent gpu01"
    kept = site.key(pair)
    assert (kept["changed"], kept["state"], pair_of(kept)) == (False, "kept", ("", ""))
    assert site.whose(pair) == "agent gpu01"


def test_a_node_that_was_installed_anew_gets_another_pair_of_the_same_account(site: Site) -> None:
    old = pair_of(site.key())
    new = pair_of(site.key())
    assert new != old
    assert site.whose(old) == site.whose(new) == "agent gpu01", "experiments may still run with the old one"
    assert site.key(new)["changed"]
    assert site.whose(old) is None
    assert not site.key(new)["changed"]


def test_a_rotation_revokes_the_old_pair_when_no_experiment_holds_it(site: Site) -> None:
    old = pair_of(site.key())
    rotated = site.key(old, rotate=True, revoke=False)
    new = pair_of(rotated)
    assert rotated["state"] == "rotated"
    busy = site.key(new, revoke=False)
    assert (busy["changed"], busy["others"]) == (False, 1)
    assert site.whose(old) == "agent gpu01"
    free = site.key(new)
    assert (free["changed"], free["others"]) == (True, 0)
    assert site.whose(old) is None
    assert site.whose(new) == "agent gpu01"


def test_a_node_that_leaves_has_no_key_and_no_worker(site: Site) -> None:
    pair = pair_of(site.key())
    requests.post(f"{site.api}/workers.register", json={"worker": "gpu01-1:gpu0"}, auth=pair, timeout=20)
    site.call("workers.register", worker="other-1")
    gone = site.key(state="absent")
    assert (gone["changed"], gone["state"]) == (True, "removed")
    assert site.whose(pair) is None
    assert [worker["id"] for worker in site.call("workers.get_all")["workers"]] == ["other-1"]
    assert not site.key(state="absent")["changed"]


def test_queues_that_left_are_told_and_deleted_only_when_empty_and_asked(site: Site) -> None:
    site.module("clearml_queues", queues={"gpu01": "a node", "old": "gone", "full": "gone", "served": "gone"})
    site.call("queues.create", name="of people")
    ids = {queue["name"]: queue["id"] for queue in site.call("queues.get_all")["queues"]}
    site.call("workers.register", worker="somebody", queues=[ids["served"]])
    task = site.call("tasks.create", name="waits", type="training")["id"]
    site.call("tasks.enqueue", task=task, queue=ids["full"])
    told = site.module("clearml_queues", known=["gpu01"])
    assert not told["changed"]
    assert sorted((queue["name"], queue["waiting"]) for queue in told["left"]) == [("full", 1), ("old", 0)]
    assert site.module("clearml_queues", known=["gpu01"], remove=["*"], check=True)["changed"]
    assert "old" in site.queues()
    assert site.module("clearml_queues", known=["gpu01"], remove=["*"])["changed"]
    assert site.queues() == ["full", "gpu01", "of people", "served"]


def test_a_worker_that_ended_is_taken_off_the_list(site: Site) -> None:
    site.call("workers.register", worker="gpu01-1")
    assert site.module("clearml_worker", ids=["gpu01-1", "never"], check=True)["unregistered"] == ["gpu01-1"]
    assert site.module("clearml_worker", ids=["gpu01-1", "never"])["changed"]
    assert site.call("workers.get_all")["workers"] == []
    assert not site.module("clearml_worker", ids=["gpu01-1"])["changed"]
