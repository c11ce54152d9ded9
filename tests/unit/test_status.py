"""What is free: the module on a real lite server, and the playbook as an operator meets it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import yaml
from test_lite_auth import PASSWORD
from test_lite_durability import Process
from test_roles import load
from test_users import environment, tool

ROOT = Path(__file__).resolve().parents[2]
# Runs the module as Ansible does on a host, without the second that Ansible itself takes, and notes its calls.
MODULE = """
import runpy, sys
import ansible.module_utils
from ansible.module_utils import basic, urls
def noted(url, *arguments, called=urls.open_url, **options):
    print("CALL", url.rsplit("/", 1)[1], file=sys.stderr)
    return called(url, *arguments, **options)
urls.open_url = noted
ansible.module_utils.__path__.append(sys.argv[1] + "/module_utils")
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.stdin.buffer.read(), "legacy"
runpy.run_path(sys.argv[1] + "/modules/clearml_status.py", run_name="__main__")
"""

trainyard = load("ansible/plugins/filter/trainyard.py")


def load_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the module for a test of its parts."""
    import ansible.module_utils

    folders = [*ansible.module_utils.__path__, str(ROOT / "ansible/plugins/module_utils")]
    monkeypatch.setattr(ansible.module_utils, "__path__", folders)
    return load("ansible/plugins/modules/clearml_status.py")


def node(name: str, gpus: list[int], unreachable: bool = False) -> dict[str, Any]:
    """Describe a node as the role clearml_agent does."""
    settings = {"node": name, "gpus": gpus, "queue_descriptions": {}}
    workers = trainyard.trainyard_workers(settings, [], ["all_gpus"], [])["workers"]
    return {
        "host": f"{name.lower()}.example.org",
        "node": name,
        "unreachable": unreachable,
        "workers": [] if unreachable else workers,
    }


class Site:
    """A lite server, the agents and people who call it, and the module that tells about them."""

    def __init__(self, folder: Path) -> None:
        self.server = Process(folder)
        self.server.start()
        self.queues: dict[str, str] = {}
        self.calls: list[str] = []

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.server.api}"

    def call(self, endpoint: str, /, **arguments: Any) -> dict[str, Any]:
        return self.server.call(endpoint, **arguments)

    def queue(self, name: str) -> str:
        if name not in self.queues:
            self.queues[name] = self.call("queues.create", name=name)["id"]
        return self.queues[name]

    def worker(self, id_: str, *queues: str, tags: tuple[str, ...] = ()) -> None:
        self.call("workers.register", worker=id_, queues=[self.queue(name) for name in queues], tags=list(tags))

    def task(self, name: str) -> str:
        """Make an experiment as a person does, so that it has an owner."""
        answer = requests.post(
            f"{self.api}/tasks.create", json={"name": name, "type": "training"}, auth=("admin", PASSWORD), timeout=20
        )
        return str(answer.json()["data"]["id"])

    def run(self, id_: str, name: str) -> str:
        """Let a worker run an experiment."""
        task = self.task(name)
        self.call("tasks.started", task=task, force=True)
        self.call("workers.status_report", worker=id_, timestamp=0, task=task)
        return task

    def wait_in(self, queue: str, name: str) -> str:
        task = self.task(name)
        self.call("tasks.enqueue", task=task, queue=self.queue(queue))
        return task

    def edit(self, statement: str, *values: Any) -> None:
        """Change what only the passing of time would."""
        with sqlite3.connect(self.server.folder / "data/lite.db", timeout=20) as db:
            assert db.execute(statement, values).rowcount == 1

    def ask(self, *nodes: dict[str, Any], check: bool = False, **changes: Any) -> dict[str, Any]:
        arguments = {
            "api_url": self.api,
            "access_key": "SYSKEY",
            "secret_key": "SYSSECRET",
            "nodes": list(nodes),
            **changes,
        }
        given = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}})
        command = [sys.executable, "-c", MODULE, str(ROOT / "ansible/plugins")]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        self.calls = re.findall(r"^CALL (.*)$", done.stderr, re.MULTILINE)
        for secret in ("SYSSECRET", "WRONGSECRET", "Traceback"):
            assert secret not in done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def status(self, *nodes: dict[str, Any], **changes: Any) -> dict[str, Any]:
        result = self.ask(*nodes, **changes)
        assert result.get("changed") is False, result
        return dict(result["status"])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "server")
    yield site
    site.server.stop()


def ago(**units: float) -> str:
    return (datetime.now(UTC) - timedelta(**units)).isoformat(timespec="milliseconds").replace("+00:00", "000+00:00")


def states(status: dict[str, Any]) -> dict[str, str]:
    return {worker["id"]: worker["state"] for worker in status["workers"]}


def named(entries: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    (entry,) = [entry for entry in entries if entry[key] == value]
    return entry


# --- workers ---------------------------------------------------------------------------------------------------------


def test_every_state_is_told(site: Site) -> None:
    for number in range(1, 7):
        site.worker(f"BIG-{number}:gpu{number - 1}", f"BIG-{number}", "BIG", "all_gpus")
    trained = site.run("BIG-2:gpu1", "a detector")
    site.worker("BIG-3:gpu2", "BIG-3", "BIG", "all_gpus", tags=("other", "drained"))
    site.worker("BIG-4:gpu3", "BIG-4", "BIG", "all_gpus", tags=("drained",))
    site.run("BIG-4:gpu3", "the last one")
    site.edit("UPDATE worker SET last_seen = ?, tags = ? WHERE id = ?", ago(seconds=90), '["drained"]', "BIG-5:gpu4")
    site.edit("UPDATE worker SET last_seen = ? WHERE id = ?", ago(seconds=40), "BIG-6:gpu5")
    site.worker("laptop", "all_gpus", tags=("drained",))
    site.run("BIG-1:gpu0", "over")
    site.call("workers.status_report", worker="BIG-1:gpu0", timestamp=0)

    status = site.status(node("BIG", [0, 1, 2, 3, 4, 5, 9]), node("SMALL", []))
    assert states(status) == {
        "BIG-1:gpu0": "free",
        "BIG-2:gpu1": "training",
        "BIG-3:gpu2": "drained",
        "BIG-4:gpu3": "draining",
        "BIG-5:gpu4": "stale",
        "BIG-6:gpu5": "free",
        "BIG-10:gpu9": "stale",
        "SMALL-1": "stale",
        "laptop": "foreign",
    }
    assert status["summary"] == {
        "free": 2, "training": 1, "draining": 1, "drained": 1, "stale": 3, "foreign": 1, "waiting": 0,
    }  # fmt: skip
    worker = named(status["workers"], "id", "BIG-2:gpu1")
    assert (worker["host"], worker["node"], worker["worker"]) == ("big.example.org", "BIG", "BIG-2")
    assert (worker["gpus"], worker["queues"], worker["ip"]) == ([1], ["BIG-2", "BIG", "all_gpus"], "127.0.0.1")
    assert (worker["experiment"]["id"], worker["experiment"]["name"]) == (trained, "a detector")
    assert 88 <= named(status["workers"], "id", "BIG-5:gpu4")["heard_seconds"] <= 110
    unknown = named(status["workers"], "id", "BIG-10:gpu9")
    assert (unknown["heard_seconds"], unknown["ip"], unknown["experiment"]) == (None, None, None)
    assert unknown["queues"] == ["BIG-10", "BIG", "all_gpus"], "the inventory tells, when the server does not"
    alien = named(status["workers"], "id", "laptop")
    assert (alien["host"], alien["node"], alien["worker"], alien["gpus"]) == (None, None, "laptop", [])


def test_a_services_workers_experiments_are_its_own(site: Site) -> None:
    helpers = node("BIG", [0])
    helpers["workers"].append({"id": "BIG-services", "name": "BIG-services", "gpus": [], "queues": ["services"]})
    site.worker("BIG-1:gpu0", "BIG-1")
    site.worker("BIG-services", "services")
    for number in (1, 2):
        site.worker(f"BIG-services:service:{number}")
    task = site.run("BIG-services:service:1", "a pipeline")
    status = site.status(helpers)
    assert states(status) == {"BIG-1:gpu0": "free", "BIG-services": "free", "BIG-services:service:1": "training"}
    controller = named(status["workers"], "id", "BIG-services:service:1")
    assert (controller["worker"], controller["node"], controller["experiment"]["id"]) == ("BIG-services", "BIG", task)
    assert named(status["queues"], "name", "services")["workers"] == ["BIG-services"]


def test_an_experiment_is_told_with_owner_and_age(site: Site) -> None:
    site.worker("one-1", "one")
    task = site.run("one-1", "{{ 7 * 6 }}\x1b[31m\nred")
    site.edit("UPDATE task SET doc = json_set(doc, '$.started', ?) WHERE id = ?", ago(days=2, hours=3, minutes=1), task)
    result = site.ask(node("one", []))
    (worker,) = result["status"]["workers"]
    told = worker["experiment"]
    assert (told["owner"], told["age"], told["id"]) == ("Ad Min", "2 d 3 h", task)
    assert 183_650 <= told["age_seconds"] <= 183_680
    assert told["started"].startswith(ago(days=2, hours=3, minutes=1)[:10])
    (line,) = [line for line in result["table"] if task in line]
    assert re.split(r"\s{2,}", line) == [
        "one", "one-1", "cpu", "training", "2 d 3 h", "Ad Min", "{{ 7 * 6 }}?[31m?red", task, "one",
    ]  # fmt: skip

    # Taken and not started yet; then deleted under the worker.
    site.edit("UPDATE task SET doc = json_remove(doc, '$.started') WHERE id = ?", task)
    (worker,) = site.status(node("one", []))["workers"]
    assert (worker["state"], worker["experiment"]["age"]) == ("training", None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (3660, "1 h 1 min"), (86_400, "1 d 0 h"), (None, None)],
)
def test_ages_for_people(seconds: int | None, text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_module(monkeypatch).age(seconds) == text


def test_the_official_servers_ways_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lite never answers: times without a zone, a worker under two accounts, experiments that are gone."""

    class Official:
        date = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)

        def call(self, endpoint: str, data: dict[str, Any]) -> dict[str, Any]:
            queue = {"id": "q", "name": "one"}
            old = {"id": "one-1", "queues": [queue], "last_activity_time": "2026-05-01T11:50:00", "tags": None}
            new = {
                **old,
                "last_activity_time": "2026-05-01T11:59:30.123456",
                "task": {"id": "gone", "name": "was here"},
            }
            entries = [{"task": "deleted", "added": "2026-05-01T11:00:00Z"}]
            return {
                "workers.get_all": {"workers": [old, new, old]},
                "queues.get_all_ex": {"queues": [{**queue, "entries": entries}]},
                "tasks.get_all_ex": {"tasks": []},
            }[endpoint]

    status = load_module(monkeypatch).describe_site(Official(), [node("one", [])], True)
    (worker,) = status["workers"]
    assert (worker["state"], worker["heard_seconds"]) == ("training", 29)
    assert worker["experiment"] == {
        "id": "gone", "name": "was here", "owner": None, "started": None, "age_seconds": None, "age": None,
    }  # fmt: skip
    assert (status["queues"][0]["oldest"], status["queues"][0]["workers"]) == ("1 h 0 min", ["one-1"])
    assert status["queues"][0]["first"] == [{"id": "deleted", "name": ""}]


def test_a_node_that_cannot_be_asked_gets_the_workers_of_its_name(site: Site) -> None:
    for id_ in ("gpu-1:gpu0", "gpu-10:gpu9", "gpu-2:gpu1", "gpu-b-1:gpu0", "gpu-b-7:gpu6", "gpux-1"):
        site.worker(id_, "all_gpus")
    site.edit("UPDATE worker SET last_seen = ? WHERE id = ?", ago(seconds=90), "gpu-2:gpu1")
    result = site.ask(node("gpu", [], unreachable=True), node("gpu-b", [0]), node("lost", [], unreachable=True))
    status = result["status"]
    assert [(worker["worker"], worker["node"], worker["state"]) for worker in status["workers"]] == [
        ("gpu-1", "gpu", "free"),
        ("gpu-2", "gpu", "stale"),
        ("gpu-10", "gpu", "free"),
        ("gpu-b-1", "gpu-b", "free"),
        ("gpu-b-7:gpu6", None, "foreign"),
        ("gpux-1", None, "foreign"),
    ]
    assert status["workers"][2]["gpus"] == [9]
    assert [entry["unreachable"] for entry in status["nodes"]] == [True, False, True]
    rows = [line.split()[:4] for line in result["table"]]
    assert ["gpu", "-", "-", "unreachable"] in rows
    assert rows.index(["lost", "-", "-", "unreachable"]) < rows.index(["127.0.0.1", "gpux-1", "cpu", "foreign"])
    assert rows.index(["gpu", "-", "-", "unreachable"]) + 1 == rows.index(["gpu", "gpu-1", "0", "free"])


def test_some_nodes_alone_show_nothing_of_the_others(site: Site) -> None:
    site.worker("one-1", "one-1", "one", "all_gpus", tags=("drained",))
    site.worker("two-1", "two-1", "two", "all_gpus")
    site.wait_in("two", "not asked for")
    status = site.status(node("one", []), foreign=False)
    assert states(status) == {"one-1": "drained"}
    assert [queue["name"] for queue in status["queues"]] == ["all_gpus", "one", "one-1"]
    assert status["queues"][0]["workers"] == ["two-1"], "who else takes from it is not left out"
    assert status["summary"]["waiting"] == 0


def test_the_servers_clock_counts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is wrong by an hour must not see stale workers everywhere."""
    site.worker("one-1", "one")
    wrong = "import datetime as d\nclass Late(d.datetime):\n    @classmethod\n    def now(cls, tz=None):\n"
    wrong += "        return super().now(tz) + d.timedelta(hours=1)\nd.datetime = Late\n"
    monkeypatch.setattr(sys.modules[__name__], "MODULE", wrong + MODULE)
    assert states(site.status(node("one", []))) == {"one-1": "free"}


# --- queues ----------------------------------------------------------------------------------------------------------


def test_queues_tell_who_waits_and_who_serves(site: Site) -> None:
    site.worker("BIG-1:gpu0", "BIG-1", "all_gpus")
    site.worker("BIG-2:gpu1", "all_gpus")
    site.worker("BIG-3:gpu2", "all_gpus", tags=("drained",))
    site.worker("BIG-4:gpu3", "all_gpus")
    site.edit("UPDATE worker SET last_seen = ? WHERE id = ?", ago(seconds=90), "BIG-4:gpu3")
    site.worker("laptop", "all_gpus")
    waiting = [site.wait_in("all_gpus", f"try {number}") for number in range(5)]
    site.wait_in("orphan", "alone")
    site.edit("UPDATE queue_entry SET added = ? WHERE task = ?", ago(hours=5, minutes=2, seconds=30), waiting[1])

    result = site.ask(node("BIG", [0, 1, 2, 3]))
    status = result["status"]
    assert [queue["name"] for queue in status["queues"]] == ["BIG-1", "all_gpus", "orphan"]
    queue = named(status["queues"], "name", "all_gpus")
    assert (queue["id"], queue["waiting"], queue["oldest"]) == (site.queues["all_gpus"], 5, "5 h 2 min")
    assert queue["workers"] == ["BIG-1", "BIG-2", "laptop"], "neither drained nor stale ones take anything"
    assert queue["first"] == [{"id": waiting[number], "name": f"try {number}"} for number in range(3)]
    empty = named(status["queues"], "name", "BIG-1")
    assert (empty["waiting"], empty["oldest_seconds"], empty["oldest"], empty["first"]) == (0, None, None, [])
    assert named(status["queues"], "name", "orphan")["workers"] == []
    assert status["summary"]["waiting"] == 6
    assert result["table"][0].startswith("2 free, 1 drained, 1 stale, 1 foreign; 6 waiting. http://127.0.0.1:")
    rows = [re.split(r"\s{2,}", line) for line in result["table"]]
    assert ["all_gpus", "5", "5 h 2 min", "BIG-1, BIG-2, laptop", "try 0, try 1, try 2"] in rows
    assert ["BIG-1", "0", "-", "BIG-1", "-"] in rows
    assert [row[3:] for row in rows if row[0] == "orphan"] == [["nobody", "alone"]]


def test_many_workers_and_experiments_need_few_calls(site: Site) -> None:
    for number in range(64):
        site.worker(f"BIG-{number + 1}:gpu{number}", f"BIG-{number + 1}", "BIG", "all_gpus")
        site.run(f"BIG-{number + 1}:gpu{number}", f"run {number}")
    for number in range(200):
        site.wait_in("all_gpus", f"try {number}")
    status = site.status(node("BIG", list(range(64))))
    assert site.calls == ["auth.login", "workers.get_all", "queues.get_all_ex", "tasks.get_all_ex"]
    assert status["summary"]["training"] == 64
    assert {worker["experiment"]["owner"] for worker in status["workers"]} == {"Ad Min"}
    assert [worker["worker"] for worker in status["workers"]][:11][-2:] == ["BIG-10", "BIG-11"]
    queue = named(status["queues"], "name", "all_gpus")
    assert (queue["waiting"], len(queue["workers"]), len(status["queues"])) == (200, 64, 66)


def test_more_than_a_page_of_queues_is_read_whole(site: Site) -> None:
    with sqlite3.connect(site.server.folder / "data/lite.db", timeout=20) as db:
        made = json.loads(db.execute("SELECT doc FROM queue WHERE id = ?", (site.queue("queue-0"),)).fetchone()[0])
        docs = [{**made, "id": f"{number:032}", "name": f"queue-{number}"} for number in range(1, 503)]
        db.executemany("INSERT INTO queue (id, doc) VALUES (?, ?)", [(doc["id"], json.dumps(doc)) for doc in docs])
    status = site.status()
    assert [queue["name"] for queue in status["queues"]] == [f"queue-{number}" for number in range(503)]
    assert site.calls == ["auth.login", "workers.get_all", "queues.get_all_ex", "queues.get_all_ex"]


# --- the shape, and failures -----------------------------------------------------------------------------------------


def shape(value: Any, told: dict[str, Any], at: str) -> None:
    """Compare a value with its description in RETURN."""
    kinds = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}
    assert told["description"], at
    if value is None:
        assert "null" in str(told["description"]) or at.endswith((".age", ".age_seconds", ".oldest")), at
        return
    assert isinstance(value, kinds[told["type"]]), at
    if "contains" in told:
        for entry in value if told["type"] == "list" else [value]:
            assert set(entry) == set(told["contains"]), at
            for key, part in entry.items():
                shape(part, told["contains"][key], f"{at}.{key}")


def test_the_module_documents_what_it_gives(site: Site) -> None:
    site.worker("one-1", "one")
    site.worker("laptop", "one")
    site.run("one-1", "a run")
    site.wait_in("one", "a wait")
    result = site.ask(node("one", []), node("two", [0]), node("three", [], unreachable=True), check=True)
    documented = yaml.safe_load(load_text("RETURN"))
    for key in ("status", "table"):
        shape(result[key], documented[key], key)
    assert set(result) - {"changed", "invocation"} == set(documented)
    assert all(line == line.rstrip() and line.isprintable() for line in result["table"])


def load_text(name: str) -> str:
    source = (ROOT / "ansible/plugins/modules/clearml_status.py").read_text()
    found = re.search(rf'^{name} = r"""\n(.*?)"""', source, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_a_place_where_nothing_can_be_written_is_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told = site.ask(path=str(tmp_path / "file/status"))
    assert told["failed"]
    assert f"path is {tmp_path}/file/status, where nothing can be written: " in told["msg"]


def test_a_server_that_is_down_or_refuses_is_told(site: Site) -> None:
    told = site.ask(secret_key="WRONGSECRET")
    assert told["failed"]
    assert f"the server at {site.api} refuses to tell: auth.login: " in told["msg"]
    assert "run make deploy" in told["msg"]
    site.server.stop()
    told = site.ask()
    assert told["failed"]
    assert f"the server at {site.api} does not answer: " in told["msg"]
    assert "make up starts it" in told["msg"]
    assert f"curl {site.api}/debug.ping" in told["msg"]
    site.server.start()


# --- the playbook ----------------------------------------------------------------------------------------------------


class Play:
    """An inventory with a node here and one that cannot be reached."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.inventory = folder / "team"
        self.notes = folder / "notes"
        (self.inventory / "group_vars/all").mkdir(parents=True)
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        lost = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_common_args": "-o ConnectTimeout=2"}
        hosts = {
            "here.example.org": {**here, "clearml_agent_gpus": [0, 1], "clearml_node_name": "here"},
            "lost.example.org": {**lost, "clearml_node_name": "lost"},
            "told.example.org": {**lost, "clearml_node_name": "told", "clearml_agent_gpus": []},
        }
        groups = {"clearml_server": {"hosts": {"server.example.org": lost}}, "clearml_nodes": {"hosts": hosts}}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
        variables = {
            "site_name": "no-such-site",  # nothing was deployed from here
            "clearml_agent_node_name": "{{ clearml_node_name | default(inventory_hostname) }}",
            "clearml_agent_api_url": site.api,
            "clearml_agent_system_access_key": "SYSKEY",
            "clearml_agent_system_secret_key": "SYSSECRET",
        }
        (self.inventory / "group_vars/all/site.yml").write_text(yaml.safe_dump(variables))

    def run(self, *arguments: str) -> tuple[int, str]:
        given = ["-i", str(self.inventory), "-e", f"status_folder={self.notes}", *arguments]
        done = tool("ansible-playbook", "-vv", str(ROOT / "ansible/status.yml"), *given)
        said = done.stdout + done.stderr
        assert "SYSSECRET" not in said
        return done.returncode, said

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.notes / "status-team.json").read_text()))


@pytest.fixture
def play(tmp_path: Path, site: Site) -> Play:
    return Play(tmp_path, site)


def test_the_playbook_shows_it_and_changes_nothing(site: Site, play: Play) -> None:
    site.worker("here-1:gpu0", "here-1", "here", "all_gpus")
    task = site.run("here-1:gpu0", "größer {{ 7 * 6 }}")
    site.worker("lost-3:gpu2", "lost", "all_gpus")
    site.worker("told-1", "told", "all_gpus")
    site.worker("laptop", "all_gpus")
    code, said = play.run()
    assert code == 0, said
    assert not re.search(r"(changed|failed)=[1-9]", said)
    expected = {
        "here-1:gpu0": "training", "here-2:gpu1": "stale", "lost-3:gpu2": "free", "told-1": "free", "laptop": "foreign",
        "here-services": "stale",
    }  # fmt: skip
    assert states(play.status) == expected
    unreachable = {entry["node"]: entry["unreachable"] for entry in play.status["nodes"]}
    assert unreachable == {"here": False, "lost": True, "told": False}
    assert play.status["workers"][0]["experiment"]["name"] == "größer {{ 7 * 6 }}"
    table = (play.notes / "status-team.txt").read_text()
    assert "größer {{ 7 * 6 }}" in table
    assert task in table
    assert all(line in said for line in table.splitlines())

    # In a check too, and for some nodes alone, without the server's host.
    shutil.rmtree(play.notes)
    code, said = play.run("--check", "-l", "told.example.org")
    assert code == 0, said
    assert states(play.status) == {"told-1": "free"}
    code, said = play.run("-l", "server.example.org")
    assert code != 0
    assert "-l is server.example.org, where no host of clearml_nodes is" in " ".join(said.split())


def test_the_playbook_tells_a_server_that_is_down(site: Site, play: Play) -> None:
    site.server.stop()
    code, said = play.run("-l", "here.example.org")
    site.server.start()
    assert code != 0
    assert f"the server at {site.api} does not answer" in " ".join(said.split())
    assert not play.notes.exists()


def test_make_prints_the_table_or_the_json_alone(tmp_path: Path) -> None:
    """With a playbook that stands in: what make adds is that nothing else is printed."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", root / "Makefile")
    fake = root / "bin/ansible-playbook"
    fake.write_text(
        "#!/bin/sh\necho PLAY; echo warning >&2\n"
        "echo '{\"a\": 1}' > build/status-team.json; echo free > build/status-team.txt\n"
    )
    fake.chmod(0o755)

    def make(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "-o", "tools", "-o", "known-site", "status", "SITE=team", f"BIN={root}/bin", *arguments]
        return subprocess.run(
            command, cwd=root, env={**environment(), **changes}, capture_output=True, text=True, check=False, timeout=60
        )

    assert make().stdout == "free\n"
    assert make("JSON=yes").stdout == '{"a": 1}\n'
    fake.write_text("#!/bin/sh\necho PLAY; echo warning >&2; exit ${FAIL:-0}\n")
    failed = make("JSON=yes", FAIL="2")
    assert failed.returncode != 0
    assert failed.stdout == ""
    assert "PLAY\nwarning" in failed.stderr
    assert make().stdout == "", "nothing of an earlier moment"
