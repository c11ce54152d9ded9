"""The reaper of a node: on a real lite server over HTTP, a stand-in for the docker client, and the real engine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import uvicorn
from conftest import Lite, make_lite
from trainyard_lite._clock import ago
from trainyard_lite._collections import TASKS
from trainyard_lite._http import create_api

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "agents/reaper.py"
HOUR = 3600


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reaper", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["reaper"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reaper = load()

# Keeps its world in a file: {"containers": {id: ...}, "images": {id: [names]}, "said": [command lines], "down": text}
DOCKER = """
import json, os, sys
path = os.environ["FAKE_DOCKER"]
world = json.load(open(path))
command, rest = sys.argv[1], sys.argv[2:]
def fail(text):
    sys.exit(print(text, file=sys.stderr) or 1)
if world.get("down"):
    fail(world["down"])
containers, images, failed = world["containers"], world["images"], False
if command == "ps":
    print("\\n".join(containers))
elif command == "inspect":
    for id_ in rest[rest.index("{{json .}}") + 1:]:
        if id_ in containers:
            print(json.dumps({"Id": id_, **containers[id_]}))
        else:
            failed = True
    if failed:
        fail("Error: No such container: x")
else:
    world["said"].append(" ".join(sys.argv[1:]))
    if command == "stop":
        if rest[-1] not in containers:
            fail("Error response from daemon: No such container: x")
        containers[rest[-1]]["State"] = {"Status": "exited", "FinishedAt": "2024-01-01T00:00:00.123456789Z"}
    elif command == "rm":
        if not containers.pop(rest[-1], None):
            fail("Error: No such container: x")
    elif rest[0] == "ls":
        world["said"].pop()
        for id_, names in images.items():
            for name in names or ["<none>:<none>"]:
                repository, _, tag = name.rpartition(":")
                print(json.dumps({"ID": id_, "Repository": repository, "Tag": tag}))
    elif rest[0] == "prune":
        world["images"] = {id_: names for id_, names in images.items() if names}
    elif rest[0] == "rm":
        if rest[1] in world.get("stuck", ()):
            fail("Error response from daemon: conflict: unable to remove repository reference")
        world["images"] = {id_: names for id_, names in images.items() if not set(names) & set(rest)}
json.dump(world, open(path, "w"))
"""


class World:
    """A stand-in for the Docker of a node."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "world.json"
        self.set(containers={}, images={}, said=[])

    def get(self) -> dict[str, Any]:
        return dict(json.loads(self.path.read_text()))

    def set(self, **parts: Any) -> None:
        before = self.get() if self.path.exists() else {}
        self.path.write_text(json.dumps(before | parts))

    def run(
        self, name: str, *, image: str = "sha256:i", status: str = "running", ended: float = 0, **labels: str
    ) -> str:
        moment = (datetime.now(UTC) - timedelta(seconds=ended)).isoformat()
        item = {
            "Name": f"/{name}",
            "Image": image,
            "Created": moment,
            "State": {"Status": status, "FinishedAt": moment},
            "Config": {"Labels": {key.replace("__", "."): value for key, value in labels.items()}},
        }
        self.set(containers={**self.get()["containers"], name: item})
        return name

    def agent(self, worker: str, node: str = "gpu01", status: str = "running") -> str:
        return self.run(f"agent-{worker}", status=status, trainyard__worker=worker, trainyard__node=node)

    def experiment(self, worker: str, name: str = "clearml-id-1", parent: str | None = None, **more: Any) -> str:
        return self.run(
            name, **more, **{"clearml-worker-id": worker, "clearml-parent-worker-id": parent or worker}
        )  # fmt: skip

    def remove(self, *names: str) -> None:
        self.set(containers={id_: c for id_, c in self.get()["containers"].items() if id_ not in names})

    @property
    def names(self) -> set[str]:
        return set(self.get()["containers"])

    @property
    def said(self) -> list[str]:
        return list(self.get()["said"])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "docker").write_text(f"#!{sys.executable} -IS\n{DOCKER}")
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path / "world.json"))
    return World(tmp_path)


class Site:
    """A server of this process that answers over HTTP, and whose past can be changed."""

    def __init__(self, folder: Path) -> None:
        self.lite: Lite = make_lite(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(create_api(self.lite.state), port=self.port, log_config=None, lifespan="off")
        self.server = uvicorn.Server(config)
        self.server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def __call__(self, endpoint: str, /, **args: Any) -> Any:
        return self.lite(endpoint, **args)

    def clear(self) -> None:
        for worker in self("workers.get_all", last_seen=0)["workers"]:
            self("workers.unregister", worker=worker["id"])
        for task in self("tasks.get_all", search_hidden=True)["tasks"]:
            self("tasks.delete", task=task["id"], force=True)

    def queue(self) -> str:
        return str(self("queues.create", name=uuid.uuid4().hex)["id"])

    def report(self, worker: str, task: str | None = None) -> None:
        self("workers.status_report", worker=worker, timestamp=0, **({"task": task} if task else {}))

    def training(self, worker: str, queue: str | None = None) -> str:
        """Let a worker pull and start a task."""
        task = str(
            self(
                "tasks.create",
                name="a task",
                type="training",
                hyperparams={"Args": {"lr": {"value": "0.1"}}},
                container={"image": "an-image"},
                system_tags=["development"],  # the server takes it away when the task enters a queue
            )["id"]
        )
        if queue:
            self("tasks.enqueue", task=task, queue=queue)
            self.pull(worker, queue)
        else:
            self("tasks.started", task=task)
        return task

    def pull(self, worker: str, queue: str) -> str:
        task = str(self("queues.get_next_task", queue=queue)["entry"]["task"])
        self("tasks.started", task=task, status_message="pulled by agent", force=True)
        self.report(worker, task)
        return task

    def age(self, *ids: str, seconds: float = HOUR) -> None:
        """Let workers and tasks have been silent for so long."""
        with self.lite.state.db.write() as db:
            for id_ in ids:
                db.execute("UPDATE worker SET last_seen = ? WHERE id = ?", (ago(seconds), id_))
                task = TASKS.get(db, id_)
                if task:
                    times = ("started", "last_update", "last_worker_report")
                    TASKS.put(db, task | {name: ago(seconds) for name in times if task.get(name)})

    def status(self, id_: str) -> str:
        return self.lite.status(id_)

    def task(self, id_: str) -> dict[str, Any]:
        return dict(self("tasks.get_by_id", task=id_)["task"])

    def waiting(self, queue: str) -> list[str]:
        return [entry["task"] for entry in self("queues.get_by_id", queue=queue)["queue"]["entries"]]

    def console(self, task: str) -> list[str]:
        return [event["msg"] for event in self("events.get_task_log", task=task)["events"]]

    def workers(self) -> set[str]:
        return {worker["id"] for worker in self("workers.get_all", last_seen=0)["workers"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.server.should_exit = True
    site.thread.join(20)
    site.lite.state.db.close()


@pytest.fixture
def site(server: Site) -> Site:
    server.clear()
    return server


class Full:
    """A disk that gets emptier when the stand-in's images go: each fills a tenth."""

    def __init__(self, world: World, used: int = 0) -> None:
        self.world, self.used = world, used

    def free(self) -> int:
        return 1000 - 100 * (self.used + len(self.world.get()["images"]))

    def percent(self) -> float:
        return (1000 - self.free()) / 10


class Empty:
    """A disk with room."""

    def free(self) -> int:
        return 1000

    def percent(self) -> float:
        return 0


def write_conf(folder: Path, port: int) -> Path:
    path = folder / "clearml.conf"
    path.write_text(
        f'api {{\n api_server: "http://127.0.0.1:{port}"\n'
        ' credentials { access_key: "AGENTKEY", secret_key: "AGENTSECRET" }\n}\n'
    )
    return path


def make(folder: Path, port: int = 9, disk: Any = None, **changes: Any) -> Any:
    """A reaper that has watched for long."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = replace(reaper.Settings(node="gpu01"), state=folder, config=write_conf(folder, port), **changes)
    made = reaper.Reaper(settings, disk or Empty())
    if not (folder / "reaper.json").exists():
        made.memory.watching_since = time.time() - HOUR
        made.memory.last_pass = time.time()
    return made


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def metrics(folder: Path) -> dict[str, float]:
    text = (folder / "reaper.prom").read_text()
    pairs = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("trainyard_reaper_"): float(value) for name, value in pairs}


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NODE", "", "CLEARML_REAPER_NODE is not set; write the node's name"),
        ("SETTLE", "retry", "CLEARML_REAPER_SETTLE is 'retry'; write requeue or fail"),
        ("DEAD_SECONDS", "5m", "CLEARML_REAPER_DEAD_SECONDS is '5m'; write a whole number from 1"),
        ("INTERVAL", "0", "CLEARML_REAPER_INTERVAL is '0'"),
        ("IMAGE_DISK_PERCENT", "101", "write a whole number from 1 to 100"),
        ("DRY_RUN", "yes", "CLEARML_REAPER_DRY_RUN is 'yes'; write 0 or 1"),
    ],
)
def test_a_bad_setting_is_told_with_the_right_form(name: str, value: str, told: str) -> None:
    environment = {"CLEARML_REAPER_NODE": "gpu01", f"CLEARML_REAPER_{name}": value}
    with pytest.raises(reaper.ReaperError) as caught:
        reaper.Settings.read(environment)
    assert told in str(caught.value)


def test_every_setting_is_documented_and_reaches_the_container() -> None:
    read = set(re.findall(r"(?:text|number)\(\"([A-Z_]+)\"", SCRIPT.read_text()))
    assert set(re.findall(r"^``CLEARML_REAPER_([A-Z_]+)``", reaper.__doc__, re.M)) == read
    given = set(re.findall(r"^      CLEARML_REAPER_([A-Z_]+): ", (ROOT / "agents/reaper.yaml").read_text(), re.M))
    assert given == read - {"DISK_PATH"}, "the container's own root is on Docker's disk"


def test_settings_are_read() -> None:
    full = reaper.Settings.read(
        {"CLEARML_REAPER_NODE": "n", "CLEARML_REAPER_KEEP_IMAGES": " a  b ", "CLEARML_REAPER_DRY_RUN": "1"}
    )
    assert (full.keep_images, full.dry_run, full.settle, full.interval) == (("a", "b"), True, "requeue", 60)


# --- A: orphans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["gone", "stopped"])
def test_an_experiment_without_its_worker_is_removed_after_a_while(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], agent: str
) -> None:
    # no name that begins with the node's: it is known by what the reaper once saw
    world.agent("big:gpu0")
    kept = world.agent("gpu01-2:gpu1")
    lost = world.experiment("big:gpu0")
    other = world.experiment("gpu01-2:gpu1", "clearml-id-2")
    first = make(tmp_path / "s")
    first.remove_orphans()
    first._save()
    made = make(tmp_path / "s")  # another process remembers
    if agent == "gone":
        world.remove("agent-big:gpu0")
    else:
        world.agent("big:gpu0", status="exited")
    made.remove_orphans()
    assert lost in world.names
    made.memory.orphans[lost] -= 299
    made.remove_orphans()
    assert lost in world.names
    made.memory.orphans[lost] -= 1
    assert lines(capsys) == []
    made.remove_orphans()
    assert world.said == [f"stop -t 10 {lost}", f"rm --volumes {lost}"]
    assert {kept, other} <= world.names
    assert lines(capsys) == [f"removed the experiment's container {lost}: its worker big:gpu0 is {agent}"]
    assert made.memory.counters["orphans_removed_total"] == 1
    made.remove_orphans()
    assert lines(capsys) == []


def test_a_worker_that_comes_back_in_time_keeps_its_experiment(world: World, tmp_path: Path) -> None:
    lost = world.experiment("gpu01-1:gpu0")
    made = make(tmp_path / "s")
    made.remove_orphans()
    made.memory.orphans[lost] -= 299
    world.agent("gpu01-1:gpu0", status="restarting")
    made.remove_orphans()
    assert made.memory.orphans == {}
    world.remove("agent-gpu01-1:gpu0")
    made.remove_orphans()
    assert time.time() - made.memory.orphans[lost] < 10, "it counts from now on"
    assert world.said == []


def test_services_belong_to_their_parent(world: World, tmp_path: Path) -> None:
    world.agent("gpu01-1")
    kept = world.experiment("gpu01-1:service:t1", "kept", "gpu01-1")
    lost = world.experiment("gpu01-2:service:t2", "lost", "gpu01-2")
    made = make(tmp_path / "s")
    made.remove_orphans()
    made.memory.orphans = dict.fromkeys(made.memory.orphans, time.time() - HOUR)
    made.remove_orphans()
    assert kept in world.names
    assert lost not in world.names


def test_experiments_of_agents_that_are_not_ours_are_left_alone(world: World, tmp_path: Path) -> None:
    world.experiment("laptop:gpu0", "theirs")
    world.experiment("laptop:gpu0", "old", status="exited", ended=30 * 86400)
    world.run("gpu01-database")
    made = make(tmp_path / "s")
    made.remove_orphans()
    made.memory.orphans = {"theirs": 1.0, "old": 1.0, "gpu01-database": 1.0}
    made.remove_orphans()
    assert world.said == []


@pytest.mark.parametrize(
    ("status", "ended", "left"), [("exited", 90000, 0), ("created", 90000, 0), ("exited", 80000, 1)]
)
def test_leftovers_go_after_a_day(world: World, tmp_path: Path, status: str, ended: int, left: int) -> None:
    world.agent("gpu01-1:gpu0")
    old = world.experiment("gpu01-1:gpu0", status=status, ended=ended)
    made = make(tmp_path / "s")
    made.memory.watching_since = None
    made.remove_orphans()
    assert old in world.names, "the server was not reached, so its worker may still have to report the end"
    made.memory.watching_since = time.time() - HOUR
    made.remove_orphans()
    assert (old in world.names) == bool(left)
    assert world.said == ([] if left else [f"rm --volumes {old}"])


def test_a_long_pause_of_the_reaper_is_no_time_without_a_worker(world: World, tmp_path: Path, site: Site) -> None:
    lost = world.experiment("gpu01-1:gpu0")
    made = make(tmp_path / "s", site.port)
    made.memory.orphans[lost] = time.time() - HOUR
    made.memory.last_pass = time.time() - HOUR
    assert made.run_pass()
    assert lost in world.names


def test_the_real_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = "trainyard/base:bookworm"
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode
    ):
        pytest.skip(f"needs a Docker engine with the image {image}")
    node = f"reaper-test-{uuid.uuid4().hex[:8]}"
    worker = f"{node}-1:gpu0"

    def run(name: str, *labels: str) -> str:
        options = [part for label in labels for part in ("--label", label)]
        command = ["docker", "run", "--detach", "--init", "--name", f"{node}-{name}", "--network", "none", *options]
        return subprocess.check_output([*command, image, "sleep", "600"], text=True).strip()

    agent = run("agent", f"trainyard.worker={worker}", f"trainyard.node={node}", "a.list=x,clearml-worker-id=no")
    experiment = run("experiment", f"clearml-worker-id={worker}", f"clearml-parent-worker-id={worker}")
    try:
        made = make(tmp_path / "s", node=node)
        made.remove_orphans()
        assert made.memory.workers == [worker]
        assert made.memory.orphans == {}
        subprocess.run(["docker", "kill", agent], check=True, capture_output=True)
        made.remove_orphans()
        assert list(made.memory.orphans) == [experiment]
        made.memory.orphans[experiment] -= HOUR
        made.remove_orphans()
        assert lines(capsys) == [
            f"removed the experiment's container {node}-experiment: its worker {worker} is stopped"
        ]
        assert subprocess.run(["docker", "inspect", experiment], capture_output=True).returncode == 1
        assert reaper.containers(), "other containers are still there"
    finally:
        subprocess.run(["docker", "rm", "--force", agent, experiment], capture_output=True)


# --- B: dead workers -------------------------------------------------------------------------------------------------


@pytest.fixture
def node(world: World, site: Site) -> Site:
    """A site with the live worker gpu01-1:gpu0 of this node and the dead gpu02-1:gpu0 of another."""
    world.agent("gpu01-1:gpu0")
    site.report("gpu01-1:gpu0")
    site.report("gpu02-1:gpu0")
    return site


def test_the_experiment_of_a_dead_worker_goes_back_in_front_and_runs_again(
    node: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    artifact = {"key": "weights", "type": "custom", "uri": "http://files/weights"}
    node("tasks.add_or_update_artifacts", task=task, artifacts=[artifact], force=True)
    node("tasks.edit_runtime", task=task, add_or_update={"_exec_agent_hostname": "gpu02"}, force=True)
    later = node.task(node.lite.task("later"))["id"]
    node("tasks.enqueue", task=later, queue=queue)
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    made.settle_dead()
    assert node.task(task)["status"] == "in_progress", "the first pass only looks"
    assert lines(capsys) == []
    made.settle_dead()

    (put, taken) = lines(capsys)
    assert put.startswith(
        f"put the experiment {task} back in front of its queue (time 1 of at most 2): its worker gpu02-1"
    )
    assert taken == "took the worker gpu02-1:gpu0 off the server's list: silent for 300 s"
    assert node.workers() == {"gpu01-1:gpu0"}
    assert node.waiting(queue) == [task, later]
    now = node.task(task)
    assert (now["status"], now["execution"]["queue"]) == ("queued", queue)
    assert now["hyperparams"]["Args"]["lr"]["value"] == "0.1"
    assert now["container"] == {"image": "an-image"}
    assert [a["key"] for a in now["execution"]["artifacts"]] == ["weights"]
    assert now["runtime"].pop("trainyard_requeued_run").startswith("in_progress since ")
    assert now["runtime"] == {"_exec_agent_hostname": "gpu02", "trainyard_requeues": 1}
    (line,) = node.console(task)
    told = (
        r"\[reaper:gpu01\] its worker gpu02-1:gpu0 is silent for 3\d{3} s, the experiment for 3\d{3} s: it goes back "
    )
    assert re.match(told, line)
    assert now["status_reason"].startswith("[reaper:gpu01] its worker gpu02-1:gpu0")

    assert node.pull("gpu01-1:gpu0", queue) == task
    again = node.task(task)
    assert (again["status"], again["last_worker"]) == ("in_progress", "gpu01-1:gpu0")
    made.settle_dead()
    made.settle_dead()
    assert node.task(task)["status"] == "in_progress"
    assert lines(capsys) == []
    counters = made.memory.counters
    assert (counters['tasks_settled_total{how="requeue"}'], counters["workers_unregistered_total"]) == (1, 1)


def settle(made: Any) -> None:
    for _ in range(2):
        made.settle_dead()


def test_it_goes_back_at_most_so_often_then_it_fails(node: Site, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    made = make(tmp_path / "s", node.port)
    for number in (1, 2):
        node.age(task, "gpu02-1:gpu0")
        settle(made)
        assert node.task(task)["runtime"]["trainyard_requeues"] == number
        assert node.pull("gpu02-1:gpu0", queue) == task
    node.age(task, "gpu02-1:gpu0")
    settle(made)
    now = node.task(task)
    assert now["status"] == "failed"
    assert "it was put back 2 time(s) already" in now["status_reason"]
    assert sorted(line.split(": ")[-1][:6] for line in node.console(task)) == ["it goe", "it goe", "it has"]
    assert node.waiting(queue) == []
    node("tasks.reset", task=task)
    assert "trainyard_requeues" not in node.task(task)["runtime"], "a reset is a new start"


def test_fail_fails(node: Site, tmp_path: Path) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port, settle="fail")
    settle(made)
    now = node.task(task)
    assert (now["status"], now["status_message"][:15]) == ("failed", "[reaper:gpu01] ")
    assert made.memory.counters['tasks_settled_total{how="fail"}'] == 1


def test_an_experiment_whose_queue_is_gone_fails(node: Site, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node("queues.delete", queue=queue)
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    settle(made)
    assert node.task(task)["status"] == "failed"
    assert "cannot go back into its queue" in node.task(task)["status_reason"]


def test_a_worker_that_left_the_list_is_dead_too(node: Site, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node("workers.unregister", worker="gpu02-1:gpu0")
    node.age(task)
    settle(make(tmp_path / "s", node.port))
    assert node.waiting(queue) == [task]
    assert "not listed any more" in node.console(task)[0]


@pytest.mark.parametrize("sign", ["worker", "task"])
def test_any_sign_of_life_between_two_passes_saves_it(node: Site, tmp_path: Path, sign: str) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    made.settle_dead()
    if sign == "worker":
        node.report("gpu02-1:gpu0")
    else:
        node("tasks.ping", task=task)
    made.settle_dead()
    node.age(task, "gpu02-1:gpu0", seconds=2 * HOUR)
    made.settle_dead()
    assert node.task(task)["status"] == "in_progress", "two passes in a row, counted anew"
    made.settle_dead()
    assert node.task(task)["status"] == "queued"


@pytest.mark.parametrize("silent", ["worker", "task"])
def test_one_silence_alone_is_no_death(node: Site, tmp_path: Path, silent: str) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task if silent == "task" else "gpu02-1:gpu0")
    settle(make(tmp_path / "s", node.port))
    assert node.task(task)["status"] == "in_progress"
    assert "gpu02-1:gpu0" in node.workers(), "a worker whose experiment lives stays listed"


def test_what_people_run_is_left_alone(node: Site, tmp_path: Path) -> None:
    own = node.training("gpu02-1:gpu0")
    node.report("gpu02-1:gpu0", own)
    # at a desk, what a worker ran before: continue_last_task
    continued = node.training("gpu02-1:gpu0", node.queue())
    node("tasks.stopped", task=continued)
    node.age(continued, seconds=2 * HOUR)
    node("tasks.started", task=continued)
    report = node.task(continued)["last_worker_report"]
    node.age(own, "gpu02-1:gpu0")
    with node.lite.state.db.write() as db:
        task = TASKS.get(db, continued)
        assert task
        TASKS.put(db, task | {"started": ago(HOUR), "last_update": ago(HOUR), "last_worker_report": report})
    settle(make(tmp_path / "s", node.port))
    assert [node.task(task)["status"] for task in (own, continued)] == ["in_progress", "in_progress"]


def test_the_first_live_worker_decides_who_acts(node: Site, world: World, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node.report("gpu00-1:gpu0")
    node.report("gpu00-1:service:x")
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    settle(made)
    assert node.task(task)["status"] == "in_progress", "gpu00 goes first"
    made.settle_dead()
    assert node.task(task)["status"] == "in_progress"
    made.settle_dead()
    assert node.task(task)["status"] == "queued", "but when its reaper does nothing, another one does"


def test_a_node_without_a_live_worker_settles_nothing(node: Site, world: World, tmp_path: Path) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task, "gpu02-1:gpu0", "gpu01-1:gpu0")
    made = make(tmp_path / "s", node.port)
    for _ in range(5):
        made.settle_dead()
    assert node.task(task)["status"] == "in_progress"
    world.agent("gpu09-1:gpu0", node="gpu09")
    node.report("gpu09-1:gpu0")
    for _ in range(5):
        made.settle_dead()
    assert node.task(task)["status"] == "in_progress", "a live worker of another node on this Docker is not ours"


def test_time_without_the_server_does_not_count(node: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port, image_days=0)
    made.run_pass()
    write_conf(tmp_path / "s", 9)  # nobody answers there
    assert not made.run_pass()
    assert not made.run_pass()
    (told,) = lines(capsys)
    assert told.startswith("tasks: http://127.0.0.1:9 gives no answer to auth.login")
    write_conf(tmp_path / "s", node.port)
    for _ in range(4):
        assert made.run_pass()
    assert node.task(task)["status"] == "in_progress", "workers need time to come back after an outage"
    assert lines(capsys) == ["tasks: works again"]
    made.memory.watching_since -= HOUR
    for _ in range(2):
        made.run_pass()
    assert node.task(task)["status"] == "queued"
    found = metrics(tmp_path / "s")
    assert found['errors_total{job="tasks"}'] == 2
    assert found['tasks_settled_total{how="requeue"}'] == 1


def test_an_experiment_that_ends_at_the_last_moment_stays_ended(
    node: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = node.queue()
    task, second = node.training("gpu02-1:gpu0", queue), node.training("gpu02-1:gpu0", queue)
    node.age(task, second, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    made.settle_dead()
    call = reaper.Api.call

    def late(self: Any, endpoint: str, /, **args: Any) -> Any:
        if endpoint == "tasks.stopped" and args["task"] == task:
            node("tasks.completed", task=task)
        return call(self, endpoint, **args)

    monkeypatch.setattr(reaper.Api, "call", late)
    made.settle_dead()
    assert node.task(task)["status"] == "completed"
    assert node.task(second)["status"] == "queued"
    assert node.waiting(queue) == [second]
    assert [line for line in lines(capsys) if task in line] == [], "nothing was settled, and nothing failed"


def test_an_experiment_that_somebody_took_care_of_meanwhile_is_left_alone(
    node: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    made.settle_dead()
    lines(capsys)
    workers = reaper.Api.workers

    def late(self: Any) -> Any:  # after the tasks were listed
        if node.status(task) == "in_progress":
            node("tasks.stopped", task=task)
            node("tasks.enqueue", task=task, queue=queue)
        return workers(self)

    monkeypatch.setattr(reaper.Api, "workers", late)
    made.settle_dead()
    assert (node.waiting(queue), node.task(task)["runtime"], node.console(task)) == ([task], {}, [])


def test_what_a_broken_connection_left_half_done_is_finished(
    node: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port, image_days=0)
    made.run_pass()
    call = reaper.Api.call

    def broken(self: Any, endpoint: str, /, **args: Any) -> Any:
        if endpoint == "tasks.enqueue":
            raise reaper.ReaperError("the cable is out")
        return call(self, endpoint, **args)

    with monkeypatch.context() as patch:
        patch.setattr(reaper.Api, "call", broken)
        assert not made.run_pass()
    assert node.task(task)["status"] == "stopped"
    later = make(tmp_path / "s", node.port, image_days=0)  # even by another process
    assert later.run_pass()
    assert later.run_pass()
    assert node.waiting(queue) == [task]
    assert node.task(task)["runtime"]["trainyard_requeues"] == 1


@pytest.mark.parametrize("owner", ["reset", "abort", "delete"])
def test_what_its_owner_decided_meanwhile_stays(
    node: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node.age(task, "gpu02-1:gpu0")
    made = make(tmp_path / "s", node.port)
    made.settle_dead()
    call = reaper.Api.call

    def late(self: Any, endpoint: str, /, **args: Any) -> Any:
        answer = call(self, endpoint, **args)
        if endpoint == "tasks.stopped":
            if owner == "reset":
                node("tasks.reset", task=task, force=True)
            elif owner == "abort":
                node("tasks.stopped", task=task, status_message="Stopped by its owner")
            else:
                node("tasks.delete", task=task, force=True)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(reaper.Api, "call", late)
        made.settle_dead()
    for _ in range(3):
        made.settle_dead()
    assert node.waiting(queue) == []
    if owner != "delete":
        assert node.status(task) == {"reset": "created", "abort": "stopped"}[owner]


def test_an_experiment_that_was_pulled_and_never_started_goes_back(node: Site, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.lite.task()
    node("tasks.enqueue", task=task, queue=queue)
    node("queues.get_next_task", queue=queue)
    waits = node.lite.task()
    node("tasks.enqueue", task=waits, queue=queue)
    assert (node.status(task), node.waiting(queue)) == ("queued", [waits])
    node.age(task, waits)
    made = make(tmp_path / "s", node.port)
    settle(made)
    assert node.waiting(queue) == [task, waits]
    assert node.task(task)["runtime"]["trainyard_requeues"] == 1
    assert node.task(waits)["runtime"] == {}, "what waits is left alone"


def test_an_experiment_that_its_owner_aborts_on_a_dead_worker_is_stopped(node: Site, tmp_path: Path) -> None:
    queue = node.queue()
    task = node.training("gpu02-1:gpu0", queue)
    node("tasks.stop", task=task)
    assert node.task(task)["status_message"] == "stopping"
    node.age(task, "gpu02-1:gpu0")
    settle(make(tmp_path / "s", node.port))
    now = node.task(task)
    assert (now["status"], node.waiting(queue)) == ("stopped", [])
    assert "its owner had aborted it" in now["status_reason"]


def test_a_dry_run_tells_once_and_does_nothing(
    node: Site, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = node.training("gpu02-1:gpu0", node.queue())
    node.age(task, "gpu02-1:gpu0")
    before = node.task(task)
    lost = world.experiment("gpu01-7:gpu7")
    world.set(images={"sha256:a": ["old:1"], "sha256:b": []})
    made = make(tmp_path / "s", node.port, Full(world, 8), dry_run=True)
    made.memory.orphans[lost] = time.time() - HOUR
    (tmp_path / "s/images.json").write_text(json.dumps({"sha256:a": 1.0}))
    for _ in range(4):
        assert made.run_pass()
    assert node.task(task) == before
    assert world.said == []
    assert lines(capsys) == [
        f"would remove the experiment's container {lost}: its worker gpu01-7:gpu7 is gone",
        "would remove dangling layers: Docker's disk is fuller than 80 %",
        "would remove the image old:1",
        f"would settle the experiment {task} (a task), last run by gpu02-1:gpu0",
        "would take the dead worker gpu02-1:gpu0 off the server's list",
    ]
    found = metrics(tmp_path / "s")
    assert found["dry_run"] == 1
    assert sum(value for name, value in found.items() if "_total" in name) == 0


# --- C: images -------------------------------------------------------------------------------------------------------


def days_ago(days: float) -> float:
    return time.time() - days * 86400


@pytest.fixture
def shelf(world: World, tmp_path: Path) -> Path:
    """Five images: one in use, one kept, two old, one young, and a dangling layer."""
    world.set(
        images={
            "sha256:used": ["used:1"],
            "sha256:kept": ["trainyard/agent:1"],
            "sha256:older": ["older:1", "older:latest"],
            "sha256:old": ["old:1"],
            "sha256:young": ["young:1"],
            "sha256:layer": [],
        }
    )
    world.run("a-container", image="sha256:used", status="exited")
    (tmp_path / "s").mkdir()
    ages = {"used": 30, "kept": 30, "older": 20, "old": 15, "young": 13, "gone": 90}
    uses = {f"sha256:{name}": days_ago(days) for name, days in ages.items()}
    (tmp_path / "s/images.json").write_text(json.dumps(uses))
    return tmp_path / "s"


KEEP = {"keep_images": ("other", "trainyard/*")}


def test_images_go_oldest_first_until_there_is_room(
    world: World, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make(shelf, disk=Full(world, 4), **KEEP)  # 100 %; 90 without the layer, 80 without the older
    made.remove_images()
    assert world.said == ["image prune --force", "image rm older:1 older:latest"]
    assert lines(capsys) == [
        "removed 1 dangling layer(s): Docker's disk was fuller than 80 %",
        "removed the image older:1 older:latest: not used for 20 days, and Docker's disk is fuller than 80 %",
    ]
    assert made.memory.counters == {"images_removed_total": 2, "image_bytes_freed_total": 200}
    uses = json.loads((shelf / "images.json").read_text())
    assert time.time() - uses["sha256:used"] < 10
    assert time.time() - uses["sha256:layer"] < 10, "first seen counts as used"
    assert "sha256:gone" not in uses


def test_a_full_disk_takes_no_image_that_is_kept_used_or_young(world: World, shelf: Path) -> None:
    make(shelf, disk=Full(world, 90), **KEEP).remove_images()
    assert set(world.get()["images"]) == {"sha256:used", "sha256:kept", "sha256:young"}


def test_a_disk_with_room_keeps_everything_and_remembers_use(world: World, shelf: Path) -> None:
    make(shelf, disk=Full(world, 2), **KEEP).remove_images()
    assert world.said == []
    assert time.time() - json.loads((shelf / "images.json").read_text())["sha256:used"] < 10


def test_zero_days_switches_it_off(world: World, shelf: Path) -> None:
    make(shelf, disk=Full(world, 90), image_days=0).remove_images()
    assert world.said == []


def test_an_image_that_cannot_go_does_not_hold_up_the_next(world: World, shelf: Path) -> None:
    world.set(stuck=["older:1"])
    made = make(shelf, disk=Full(world, 90), **KEEP)
    made.remove_images()
    assert set(world.get()["images"]) == {"sha256:used", "sha256:kept", "sha256:young", "sha256:older"}
    assert made.memory.counters['errors_total{job="images"}'] == 1
    assert not any("--force" in line.split() and "rm" in line.split() for line in world.said)


def test_the_disk_is_counted_as_df_does() -> None:
    told = subprocess.check_output(["df", "--output=pcent", "/"], text=True).split()[-1]
    assert abs(reaper.Disk(Path("/")).percent() - int(told.rstrip("%"))) <= 1


# --- D and the process -----------------------------------------------------------------------------------------------


def test_jobs_are_isolated_and_counters_survive(
    site: Site, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.agent("gpu01-1:gpu0")
    old = world.experiment("gpu01-1:gpu0", status="exited", ended=2 * 86400)
    made = make(tmp_path / "s", port=9, disk=Full(world))  # no server
    assert not made.run_pass()
    assert old not in world.names
    world.set(down="Cannot connect to the Docker daemon")
    again = make(tmp_path / "s", site.port)
    assert not again.run_pass()
    told = lines(capsys)
    assert any(line == "orphans: docker ps --all: Cannot connect to the Docker daemon" for line in told)
    assert any(line.startswith("images: docker ps") for line in told)
    found = metrics(tmp_path / "s")
    assert found["orphans_removed_total"] == 1
    assert [found[f'errors_total{{job="{job}"}}'] for job in ("orphans", "tasks", "images")] == [1, 2, 1]
    assert found["last_success_timestamp_seconds"] == 0
    assert time.time() - found["last_pass_timestamp_seconds"] < 10
    assert 0 < found["pass_seconds"] < 10
    text = (tmp_path / "s/reaper.prom").read_text()
    assert text.count("# TYPE trainyard_reaper_tasks_settled_total counter") == 1
    assert (tmp_path / "s/reaper.prom").stat().st_mode & 0o777 == 0o644
    world.set(down="")
    assert make(tmp_path / "s", site.port, Full(world)).run_pass()
    assert metrics(tmp_path / "s")["last_success_timestamp_seconds"] > 0


def test_a_spoilt_memory_is_told_and_not_fatal(
    site: Site, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/reaper.json").write_text("[1")
    (tmp_path / "s/images.json").write_text("{")
    assert make(tmp_path / "s", site.port, Full(world)).run_pass()
    told = lines(capsys)
    assert len(told) == 2
    assert "reaper.json: cannot be read" in told[0]
    assert json.loads((tmp_path / "s/reaper.json").read_text())["last_pass"] > 0


def environment(folder: Path, port: int, **more: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {
        **os.environ,
        "CLEARML_REAPER_NODE": "gpu01",
        "CLEARML_REAPER_STATE": str(folder),
        "CLEARML_CONFIG_FILE": str(write_conf(folder, port)),
        **more,
    }


def program(folder: Path, port: int, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, env=environment(folder, port, **more), capture_output=True, text=True, check=False, timeout=30
    )


def test_once_answers_whether_all_worked(site: Site, world: World, tmp_path: Path) -> None:
    good = program(tmp_path / "s", site.port, "--once")
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert program(tmp_path / "s", site.port, "--healthy").returncode == 0
    bad = program(tmp_path / "s", 9, "--once")
    assert bad.returncode == 1
    assert bad.stdout.startswith("tasks: http://127.0.0.1:9 gives no answer")
    os.utime(tmp_path / "s/reaper.prom", (1, 1))
    assert program(tmp_path / "s", site.port, "--healthy").returncode == 1
    wrong = program(tmp_path / "s", site.port, "--once", CLEARML_REAPER_SETTLE="x")
    assert (wrong.returncode, wrong.stderr) == (2, "reaper: CLEARML_REAPER_SETTLE is 'x'; write requeue or fail\n")


def test_a_refused_key_or_a_broken_file_is_named_without_the_secret(site: Site, world: World, tmp_path: Path) -> None:
    made = make(tmp_path / "s", site.port)
    conf = tmp_path / "s/clearml.conf"
    conf.write_text(conf.read_text().replace("AGENTSECRET", "WRONGSECRET"))
    with pytest.raises(reaper.ReaperError, match=r"auth\.login: 401") as caught:
        made.settle_dead()
    assert "WRONGSECRET" not in str(caught.value)
    conf.write_text("api { api_server: x }")
    with pytest.raises(reaper.ReaperError, match=r"clearml.conf: cannot read api.api_server and api.credentials"):
        made.settle_dead()


def test_sigterm_ends_at_once_and_keeps_the_memory(site: Site, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)], env=environment(folder, site.port), stdout=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 20
        while not (folder / "reaper.prom").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert time.monotonic() - begun < 2
    assert process.returncode == 0
    assert output == "reaper of node gpu01: a pass every 60 s\n"
    assert json.loads((folder / "reaper.json").read_text())["last_success"] > 0


def test_an_action_under_way_is_finished_before_the_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [world.experiment("gpu01-1:gpu0", f"clearml-id-{n}") for n in range(3)]
    made = make(tmp_path / "s")
    made.memory.orphans = dict.fromkeys(names, time.time() - HOUR)
    docker = reaper.docker

    def interrupted(*arguments: str, **options: Any) -> str:
        if arguments[0] == "stop":
            made.terminate(signal.SIGTERM, None)
        return str(docker(*arguments, **options))

    monkeypatch.setattr(reaper, "docker", interrupted)
    with pytest.raises(reaper.Stopped):
        made.run_pass()
    assert len(world.names) == 2
    assert metrics(tmp_path / "s")["orphans_removed_total"] == 1


def test_the_server_is_asked_with_a_token_and_no_more_than_it_must(
    node: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    send = requests.Session.send

    def spy(self: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        asked.append((str(request.path_url), request.headers["Authorization"].split()[0]))
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", spy)
    make(tmp_path / "s", node.port).settle_dead()
    assert asked == [
        ("/v2.23/auth.login", "Basic"),
        ("/v2.23/tasks.get_all", "Bearer"),  # what runs or waits
        ("/v2.23/tasks.get_all", "Bearer"),  # what was stopped to be put back
        ("/v2.23/workers.get_all", "Bearer"),
    ]
