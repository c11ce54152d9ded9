"""Which GPUs an experiment sees: the probe itself, the module that sends it, and tests/e2e/gpu_pin.py.

The server is a real one. Threads play the agents: they take what is in their queue, and tell what they are told to.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import yaml
from test_lite_auth import PASSWORD
from test_lite_durability import AUTH, Process
from test_roles import load
from test_users import MODULE

ROOT = Path(__file__).resolve().parents[2]
A, B = ("GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002")
SCRIPT = (ROOT / "agents/probe.py").read_text()
Json = dict[str, Any]

gpu_probe = load("ansible/plugins/module_utils/gpu_probe.py")


@pytest.fixture
def probe() -> ModuleType:
    return load("agents/probe.py")


def program(folder: Path, name: str, text: str) -> Path:
    """Put a program onto a folder's PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


# --- the script ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (b"HOME=/root\0NVIDIA_VISIBLE_DEVICES=3\0", "3"),
        (b"NVIDIA_VISIBLE_DEVICES=all\0HOME=/root\0NVIDIA_VISIBLE_DEVICES=1,2\0", "1,2"),
        (b"NVIDIA_VISIBLE_DEVICES=\0", ""),
        (b"HOME=/root\0MY_NVIDIA_VISIBLE_DEVICES=7\0", None),
    ],
)
def test_what_docker_gave_the_container_counts_not_what_the_agent_gave_the_training(
    probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: bytes, told: str | None
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    probe.FIRST_PROCESS = tmp_path / "environ"
    assert probe.visible() == "all", "who may not look has the own environment only"
    probe.FIRST_PROCESS.write_bytes(environment)
    assert probe.visible() == told


def test_a_machine_without_any_gpu_software_answers_that_it_has_none(
    probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.FIRST_PROCESS = tmp_path / "none"
    probe.load_cuda = lambda: None
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    nothing = {"visible": None, "smi": None, "torch": None, "cuda": None, "trained": None, "errors": []}
    assert probe.look(5) == nothing


@pytest.mark.parametrize(
    ("text", "smi", "errors"),
    [
        (
            f"echo '0, {A}, NVIDIA A100, 80 GB'; echo '1, {B}, NVIDIA A100'",
            [{"index": "0", "uuid": A, "name": "NVIDIA A100, 80 GB"}, {"index": "1", "uuid": B, "name": "NVIDIA A100"}],
            [],
        ),
        ("echo 'No devices were found'; exit 6", [], []),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            None,
            ["nvidia-smi: exit status 18: Failed to initialize NVML: Driver/library version mismatch"],
        ),
    ],
)
def test_nvidia_smi_is_asked_and_its_failure_told(
    probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, smi: object, errors: list[str]
) -> None:
    probe.load_cuda = lambda: None
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin", "nvidia-smi", text)))
    seen = probe.look()
    assert (seen["smi"], seen["errors"]) == (smi, errors)


class Driver:
    """Plays libcuda for some GPUs; ``broken`` names a function that fails."""

    def __init__(self, *uuids: str, broken: str = "") -> None:
        self.uuids = [uuid.UUID(text).bytes for text in uuids]
        self.broken = broken
        self.memory: list[int] = []
        self.current = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            if name == self.broken:
                return 999
            played = getattr(type(self), f"do_{name}", None)  # what is not played does nothing, well
            return int((played and played(self, *arguments)) or 0)

        return function

    def do_cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self.uuids else 100

    def do_cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.uuids)

    def do_cuDeviceGet(self, device: Any, index: int) -> None:  # noqa: N802
        device._obj.value = index + 40

    def do_cuDeviceGetUuid_v2(self, raw: Any, device: int) -> None:  # noqa: N802
        ctypes.memmove(raw._obj, self.uuids[device - 40], 16)

    def do_cuMemAlloc_v2(self, memory: Any, size: Any) -> None:  # noqa: N802
        self.memory.append(0)
        memory._obj.value = len(self.memory)

    def do_cuMemsetD32_v2(self, memory: Any, value: Any, count: Any) -> None:  # noqa: N802
        self.memory[memory.value - 1] = value.value

    def do_cuMemcpyDtoH_v2(self, target: Any, memory: Any, size: Any) -> None:  # noqa: N802
        target._obj.value = self.memory[memory.value - 1]


def test_the_driver_tells_uuids_and_trains_on_every_gpu(probe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    driver = Driver(A[4:], B[4:])
    probe.load_cuda = lambda: probe.Cuda(driver)
    seen = probe.look(0.05)
    assert seen["cuda"] == [A[4:], B[4:]]
    assert seen["trained"]["with"] == "CUDA driver"
    assert driver.memory == [seen["trained"]["rounds"]] * 2
    assert seen["trained"]["to"] - seen["trained"]["from"] >= 0.05
    assert not seen["errors"]


@pytest.mark.parametrize(
    ("driver", "cuda", "errors"),
    [
        (Driver(), [], []),
        (Driver(A[4:], broken="cuInit"), None, ["libcuda: cuInit: CUDA error 999", "training: cuInit: CUDA error 999"]),
        (Driver(A[4:], broken="cuMemAlloc_v2"), [A[4:]], ["training: cuMemAlloc_v2: CUDA error 999"]),
    ],
)
def test_a_driver_without_gpus_or_with_errors_trains_nothing(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, driver: Driver, cuda: object, errors: list[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    probe.load_cuda = lambda: probe.Cuda(driver)
    seen = probe.look(0.01)
    assert (seen["cuda"], seen["trained"], seen["errors"]) == (cuda, None, errors)


def test_torch_is_asked_when_it_is_there(probe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(
        "class cuda:\n"
        "    device_count = staticmethod(lambda: 2)\n"
        f"    told = [{{}}, {{'uuid': '{A[4:]}'}}]\n"
        "    get_device_properties = staticmethod(lambda index: type('P', (), cuda.told[index]))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert probe.ask_torch() == ["", A[4:]]
    monkeypatch.delitem(sys.modules, "torch", raising=False)


# --- the verdict -----------------------------------------------------------------------------------------------------


def report(*uuids: str, **changes: Any) -> Json:
    """Give what a probe tells that sees these GPUs."""
    smi = [{"index": str(index), "uuid": uuid, "name": "NVIDIA A100"} for index, uuid in enumerate(uuids)]
    nothing: Json = {"visible": None, "smi": smi, "torch": None, "cuda": None, "trained": None, "errors": []}
    return {**nothing, **changes}


def judged(
    gpus: list[str], saw: Json, uuids: list[str] | None = None, *, trained: bool = False
) -> tuple[str, str, str]:
    row = gpu_probe.Probes._row({"id": "n-1:gpuX", "queue": "n-1", "gpus": gpus, "uuids": uuids})
    row["report"] = saw
    gpu_probe.judge(row, trained)
    return row["state"], row["proof"], row["message"]


@pytest.mark.parametrize(
    ("gpus", "uuids", "saw", "proof"),
    [
        (["0"], None, report(A, visible="0"), "index"),
        (["3", "2"], None, report(A, B, visible="2,3"), "index"),
        (["0"], [A], report(A, visible="0"), "UUID"),
        ([A], None, report(A, visible=A), "UUID"),
        # What CUDA and torch write without GPU-, and in another order, is the same GPU.
        (["0", "1"], [A, B], report(A, B, visible="0,1", cuda=[B[4:], A[4:]], torch=[A[4:].upper(), B[4:]]), "UUID"),
        (["0"], None, report(A, visible="0", torch=[""]), "index"),
        (["0"], None, report(A, visible="void"), "count"),
        ([], None, report(visible="none"), "none seen"),
        ([], None, report(visible=None, smi=None, cuda=[], errors=["nvidia-smi: no driver"]), "none seen"),
    ],
)
def test_a_worker_that_sees_its_gpus_is_right(gpus: list[str], uuids: list[str] | None, saw: Json, proof: str) -> None:
    assert judged(gpus, saw, uuids) == ("ok", proof, "")


@pytest.mark.parametrize(
    ("gpus", "uuids", "saw", "told"),
    [
        (["0"], None, report(A, visible="1"), f"(pinned to GPU 0): nvidia-smi sees {A}; NVIDIA_VISIBLE_DEVICES is 1"),
        (["0"], [A], report(B, visible="0"), f"(pinned to GPU 0 = {A}): nvidia-smi sees {B}"),
        ([A], None, report(B, visible="0"), f"(pinned to GPU {A}): nvidia-smi sees {B}"),
        (
            ["0"],
            None,
            report(A, B, visible="all"),
            f"saw 2 GPUs: nvidia-smi sees {A} {B}; NVIDIA_VISIBLE_DEVICES is all",
        ),
        (["0", "1"], None, report(A, visible="0,1"), "saw 1 GPUs"),
        (["0"], None, report(visible="0"), "saw no GPU (nvidia-smi); NVIDIA_VISIBLE_DEVICES is 0"),
        (
            ["0"],
            None,
            report(smi=None, visible="0"),
            "saw no GPU (the container has neither nvidia-smi nor torch nor lib",
        ),
        (["0"], None, report(A, visible="0", cuda=[]), f"not all see the same: nvidia-smi sees {A}, CUDA sees none"),
        (
            ["0"],
            None,
            report(A, visible="0", cuda=[B[4:]]),
            f"not all see the same: nvidia-smi sees {A}, CUDA sees {B[4:]}",
        ),
        (
            ["0"],
            None,
            report(visible="0", errors=["libcuda: cuInit: CUDA error 803"]),
            "libcuda: cuInit: CUDA error 803",
        ),
        ([], None, report(A, visible="none"), f"(pinned to no GPU): nvidia-smi sees {A}"),
        ([], None, report(visible="all"), "(pinned to no GPU): NVIDIA_VISIBLE_DEVICES is all"),
    ],
)
def test_a_worker_that_sees_anything_else_is_told(
    gpus: list[str], uuids: list[str] | None, saw: Json, told: str
) -> None:
    state, _, message = judged(gpus, saw, uuids)
    assert state == "wrong"
    assert told in message


def test_who_should_have_trained_and_did_not_is_wrong() -> None:
    state, _, message = judged(["0"], report(A, visible="0"), trained=True)
    assert state == "wrong"
    assert "did not train" in message
    assert judged(["0"], report(A, visible="0", trained={"with": "torch"}), trained=True)[0] == "ok"


# --- the module, on a real server ------------------------------------------------------------------------------------

Play = Callable[["Site", str, Json], None]


class Site:
    """A server with workers; each has a queue of its name and, when it is told what to do, an agent that serves it."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.queues: dict[str, str] = {}
        self.ids: dict[str, str] = {}
        self.agents: list[threading.Thread] = []
        self.problems: list[str] = []
        self.over = threading.Event()

    def __call__(self, endpoint: str, worker: str = "", /, **arguments: Any) -> Json:
        session = requests.Session()
        session.headers["X-ClearML-Worker"] = worker
        return self.server.call(endpoint, session, **arguments)

    def add(self, name: str, gpus: str = "", play: Play | None = None) -> Json:
        """Add a worker; give the module's argument for it."""
        worker = f"{name}:gpu{gpus}" if gpus else name
        self.queues[name], self.ids[name] = str(self("queues.create", name=name)["id"]), worker
        self("workers.register", worker=worker, queues=[self.queues[name]], timeout=600)
        if play is not None:
            agent = threading.Thread(target=self.serve, args=(name, play))
            self.agents.append(agent)
            agent.start()
        return {"id": worker, "name": name, "gpus": gpus.split(",") if gpus else []}

    def report(self, name: str, task: str | None = None) -> None:
        """Tell the server what a worker runs."""
        now = int(time.time() * 1000)
        running = {"task": task} if task else {}
        self("workers.status_report", worker=self.ids[name], timestamp=now, queues=[self.queues[name]], **running)

    def serve(self, name: str, play: Play) -> None:
        try:
            while not self.over.wait(0.05):
                entry = self("queues.get_next_task", self.ids[name], queue=self.queues[name]).get("entry")
                if entry:
                    task = self("tasks.get_by_id", task=entry["task"])["task"]
                    self("tasks.started", task=task["id"])
                    self.report(name, task["id"])
                    play(self, name, task)
                    self.report(name)
        except Exception as error:
            self.problems.append(f"{name}: {error!r}")

    def stop(self) -> None:
        self.over.set()
        for agent in self.agents:
            agent.join(timeout=30)
            assert not agent.is_alive(), "its experiment does not end"
        for worker in self("workers.get_all")["workers"]:
            self("workers.unregister", worker=worker["id"])
        for queue in self.queues.values():
            self("queues.delete", queue=queue, force=True)
        for task in self.tasks():
            self("tasks.delete", task=task["id"], force=True)
        for project in self("projects.get_all", name="^Trainyard$")["projects"]:  # with those in it
            self("projects.delete", project=project["id"], force=True)
        assert not self.problems

    def probe(self, *workers: Json, check: bool = False, **changes: Any) -> Json:
        arguments = {
            "api_url": f"http://127.0.0.1:{self.server.api}",
            "web_url": "http://page/",
            "access_key": AUTH[0],
            "secret_key": AUTH[1],
            "workers": list(workers),
            "script": SCRIPT,
            "timeout": 20,
            **changes,
        }
        given = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}})
        module = MODULE.replace("clearml_user_keys", "clearml_probe")
        command = [sys.executable, "-c", module, str(ROOT / "ansible/plugins")]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        assert AUTH[1] not in done.stdout.replace("VALUE_SPECIFIED_IN_NO_LOG_PARAMETER", "")
        result: Json = json.loads(done.stdout)
        assert not result.get("changed"), result
        return result

    def tasks(self) -> list[Json]:
        return list(self("tasks.get_all", only_fields=["id", "name", "status", "script", "type", "container"])["tasks"])

    def waiting(self) -> int:
        return sum(len(queue["entries"]) for queue in self("queues.get_all")["queues"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("server"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def site(server: Process) -> Iterator[Site]:
    """The server, with nothing on it before and after."""
    site = Site(server)
    yield site
    site.stop()


def tells(saw: Json) -> Play:
    """Play a probe that sees this and ends well; it reports as the SDK's set_user_properties does."""

    def play(site: Site, name: str, task: Json) -> None:
        value = {"section": "properties", "name": "gpus", "value": json.dumps(saw)}
        site("tasks.edit_hyper_params", task=task["id"], hyperparams=[value], replace_hyperparams="none")
        site("tasks.completed", task=task["id"])

    return play


def states(result: Json) -> dict[str, str]:
    return {row["worker"]: row["state"] for row in result["probes"]}


def test_every_worker_is_probed_at_once_and_nothing_stays(site: Site) -> None:
    together = threading.Barrier(3, timeout=15)
    taken: list[Json] = []

    def then(play: Play) -> Play:
        def wait(site: Site, name: str, task: Json) -> None:
            taken.append(task)
            together.wait()  # broken unless all three run at the same time
            play(site, name, task)

        return wait

    workers = [
        site.add("n-1", "0", then(tells(report(A, visible="0")))),
        {**site.add("n-2", "1", then(tells(report(B, visible="1")))), "uuids": [B]},
        site.add("cpu-1", "", then(tells(report(visible="none", smi=None)))),
    ]
    result = site.probe(*workers, image="my/image:1")
    assert states(result) == {"n-1:gpu0": "ok", "n-2:gpu1": "ok", "cpu-1": "ok"}, result
    assert [line.split() for line in result["summary"]][1:] == [
        ["n-1:gpu0", "GPU", "0", "0", A, "ok,", "by", "index"],
        ["n-2:gpu1", "GPU", "1", "=", B, "1", B, "ok,", "by", "UUID"],
        ["cpu-1", "no", "GPU", "none", "none", "ok"],
    ]
    for task in taken:
        assert task["type"] == "testing"
        assert task["container"]["image"] == "my/image:1"
        assert (task["script"]["diff"], task["script"]["entry_point"]) == (SCRIPT, "probe.py")
        assert not task["script"]["repository"]
    assert [project["name"] for project in site("projects.get_all", name="^Trainyard/probes$")["projects"]]
    assert (site.tasks(), site.waiting()) == ([], 0)


def test_what_is_wrong_is_told_and_stays_for_looking(site: Site) -> None:
    workers = [
        site.add("n-1", "0", tells(report(A, visible="1"))),
        site.add("n-2", "1", tells(report(B, visible="1"))),
        site.add("n-3", "2", tells(report(B, visible="2"))),
        site.add("n-4", "3", tells(report(A.replace("a", "c"), visible="3"))),
    ]
    result = site.probe(*workers)
    assert result["failed"]
    assert states(result) == {"n-1:gpu0": "wrong", "n-2:gpu1": "wrong", "n-3:gpu2": "wrong", "n-4:gpu3": "ok"}
    first, second, third = result["msg"].splitlines()
    assert first.startswith(
        f"n-1:gpu0 (pinned to GPU 0): nvidia-smi sees {A}; NVIDIA_VISIBLE_DEVICES is 1; look at http:"
    )
    assert f"n-2:gpu1 (pinned to GPU 1): saw {B}, which n-3:gpu2 saw too" in second
    assert f"n-3:gpu2 (pinned to GPU 2): saw {B}, which n-2:gpu1 saw too" in third
    (kept,) = [task for task in site.tasks() if task["name"] == "probe of n-1:gpu0"]
    (project,) = site("projects.get_all", name="^Trainyard/probes$")["projects"]
    assert first.endswith(f"look at http://page/projects/{project['id']}/tasks/{kept['id']}/output/log")
    assert len(site.tasks()) == 3
    assert [line.split()[-1] for line in result["summary"][1:4]] == ["WRONG"] * 3


def test_a_probe_that_does_not_end_well_fails_and_stays(site: Site) -> None:
    def fails(site: Site, name: str, task: Json) -> None:
        site("tasks.failed", task=task["id"])

    def silent(site: Site, name: str, task: Json) -> None:
        site("tasks.completed", task=task["id"])

    def hangs(site: Site, name: str, task: Json) -> None:
        while site("tasks.get_by_id", task=task["id"])["task"]["status"] == "in_progress":
            if "stopping" in site("tasks.get_by_id", task=task["id"])["task"].get("status_message", ""):
                site("tasks.stopped", task=task["id"])
            time.sleep(0.1)

    def elsewhere(site: Site, name: str, task: Json) -> None:
        site.ids[name] = "stranger:gpu7"
        site.report(name, task["id"])
        tells(report(A, visible="0"))(site, name, task)

    plays = {"n-1": fails, "n-2": silent, "n-3": hangs, "n-4": elsewhere}
    result = site.probe(*(site.add(name, "0", play) for name, play in plays.items()), timeout=3)
    assert result["failed"]
    told = result["msg"].splitlines()
    for line, text in zip(
        told,
        (
            "n-1:gpu0 (pinned to GPU 0): its probe ended as failed; look at http://page/projects/",
            "n-2:gpu0 (pinned to GPU 0): its probe ended without a report; look at",
            "n-3:gpu0 (pinned to GPU 0): its probe runs, but did not end within 3 s; look at",
            "n-4:gpu0 (pinned to GPU 0): stranger:gpu7 took its probe: the queue n-4 is not its own; look at",
        ),
        strict=True,
    ):
        assert text in line
    until = time.monotonic() + 10
    while "in_progress" in (found := [task["status"] for task in site.tasks()]):
        assert time.monotonic() < until, "the probe that hangs was not stopped"
        time.sleep(0.1)
    assert sorted(found) == ["completed", "completed", "failed", "stopped"]


def test_a_busy_worker_is_reported_and_its_probe_withdrawn(site: Site) -> None:
    busy = site.add("n-1", "0")
    site.report("n-1", str(site("tasks.create", name="a training", type="training")["id"]))
    paused = site.add("n-2", "1")
    site("queues.update", queue=site.queues["n-2"], tags=["force_workers:off"])
    drained = site.add("n-3", "2")
    site("workers.register", worker="n-3:gpu2", queues=[site.queues["n-3"]], timeout=600, tags=["drained"])
    result = site.probe(busy, paused, drained, timeout=2)
    assert not result.get("failed"), result
    assert set(states(result).values()) == {"waiting"}
    assert [line.split("  ")[-1].strip() for line in result["summary"][1:]] == [
        "not probed: busy",
        "not probed: the queue n-2 is paused (tag force_workers:off)",
        "not probed: drained",
    ]
    assert [task["name"] for task in site.tasks()] == ["a training"]
    assert site.waiting() == 0


def test_a_worker_that_is_free_and_takes_nothing_or_is_not_there_is_a_failure(site: Site) -> None:
    stranger = {"id": "n-9:gpu0", "name": "n-9", "queue": "n-1", "gpus": ["0"]}
    lost = {**site.add("n-2", "1"), "queue": "nowhere"}
    result = site.probe(site.add("n-1", "0"), stranger, lost, timeout=2)
    assert result["failed"]
    idle, unknown, nowhere = result["msg"].splitlines()
    assert (
        "n-1:gpu0 (pinned to GPU 0): it runs nothing, but did not take its probe from the queue n-1 within 2 s" in idle
    )
    assert "n-9:gpu0 (pinned to GPU 0): the server does not know it; look at: docker logs clearml-agent-n-9-" in unknown
    assert "n-2:gpu1 (pinned to GPU 1): there is no queue 'nowhere'" in nowhere
    assert site.waiting() == 0


def test_check_mode_sends_nothing_and_wrong_input_is_named(site: Site) -> None:
    worker = site.add("n-1", "0")
    result = site.probe(worker, check=True)
    assert result["summary"] == ["check mode: no worker was probed"]
    assert "n-1:gpu0 has 1 gpus and 2 uuids; write one UUID for each" in site.probe({**worker, "uuids": [A, B]})["msg"]
    assert "Unauthorized" in site.probe(worker, secret_key="wrong", timeout=0)["msg"]
    assert (site.tasks(), site("projects.get_all", name="probes")["projects"]) == ([], [])


# --- the proof for a live site ---------------------------------------------------------------------------------------


@pytest.fixture
def pin(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run gpu_pin for the server, on a host whose nvidia-smi lists two GPUs, and whose Docker runs n-1 and n-2."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests/e2e"), *sys.path])
    import gpu_pin

    monkeypatch.setattr(gpu_pin, "ROOT", tmp_path)
    urls = {f"{name}_url": f"http://127.0.0.1:{getattr(site.server, name)}" for name in ("api", "web", "files")}
    values = {"user": "admin", "queue": "any", "repository": "none", **urls}
    (tmp_path / "build").mkdir()
    (tmp_path / "build/site-team.json").write_text(json.dumps(values))
    vault = tmp_path / "inventory/team/group_vars/all/vault.yml"
    vault.parent.mkdir(parents=True)
    vault.write_text(yaml.safe_dump({"vault_clearml_admin_password": PASSWORD}))
    (tmp_path / "inventory/team/.vault_password").write_text("not needed: the file is plain\n")
    host = program(tmp_path / "host", "nvidia-smi", f"echo '0, {A}'; echo '1, {B}'")
    program(host, "docker", "echo n-1:gpu0; echo n-2:gpu1")
    monkeypatch.setenv("PATH", f"{host}:{os.environ['PATH']}")
    return lambda *arguments: int(gpu_pin.main(["--site", "team", "--timeout", "40", *arguments]))


def trains(*uuids: str, visible: str) -> Play:
    """Play a training on these GPUs, when one is asked for."""

    def play(site: Site, name: str, task: Json) -> None:
        assert task["hyperparams"]["probe"]["train_seconds"]["value"] == "30.0"
        span = {"with": "CUDA driver", "rounds": 9, "from": 1.0, "to": 31.0}
        saw = report(*uuids, visible=visible, cuda=[uuid[4:] for uuid in uuids], trained=span if uuids else None)
        tells(saw)(site, name, task)

    return play


def test_trainings_on_the_right_gpus_prove_the_site(
    site: Site, pin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("n-1", "0", trains(A, visible="0"))
    site.add("n-2", "1", trains(B, visible="1"))
    site.add("far-1", "0", trains(A.replace("a", "c"), visible="0"))
    site.add("cpu-1", "", trains(visible="none"))
    assert pin() == 0, capsys.readouterr()
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["cpu-1", "no GPU", "nothing", "nothing", "ok"],
        ["far-1:gpu0", "GPU 0", A.replace("a", "c")[4:], A.replace("a", "c"), "ok, by index"],
        ["n-1:gpu0", f"GPU 0 = {A}", A[4:], A, "ok, by UUID"],
        ["n-2:gpu1", f"GPU 1 = {B}", B[4:], B, "ok, by UUID"],
    ]
    assert "SIMULATED" not in out + err
    assert site.tasks() == []


def test_a_swap_a_shared_gpu_and_a_training_without_gpu_are_found(
    site: Site, pin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("n-1", "0", trains(B, visible="0"))  # Docker's number is right, the device is not
    site.add("n-2", "1", trains(B, visible="1"))
    site.add("far-1", "0", trains(visible="0"))
    assert pin() == 1
    _, err = capsys.readouterr()
    assert f"n-1:gpu0 (pinned to GPU 0 = {A}): nvidia-smi sees {B}, CUDA sees {B}" in err
    assert f"n-2:gpu1 (pinned to GPU 1 = {B}): saw {B}, which n-1:gpu0 saw too" in err
    assert "far-1:gpu0 (pinned to GPU 0): saw no GPU" in err
    assert pin("--worker", "n-2", "--worker", "far-1:gpu0") == 1
    _, err = capsys.readouterr()
    assert "n-1" not in err


def test_who_has_no_time_is_not_proven(site: Site, pin: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    site.add("n-1", "0")
    site.report("n-1", str(site("tasks.create", name="a training", type="training")["id"]))
    assert pin("--timeout", "1") == 1
    assert "not probed: busy" in capsys.readouterr().out


def test_an_interrupted_proof_leaves_nothing_in_the_queues(
    site: Site, pin: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        assert site.waiting() == 1
        raise KeyboardInterrupt

    clock = type("Clock", (), {"monotonic": staticmethod(time.monotonic), "sleep": staticmethod(interrupted)})
    monkeypatch.setattr("gpu_probe.time", clock)
    site.add("n-1", "0")
    assert pin() == 130
    assert (site.tasks(), site.waiting()) == ([], 0)


def test_what_cannot_be_sent_is_wrong_input(
    site: Site, pin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pin() == 2
    assert "the server knows no worker" in capsys.readouterr().err
    site.add("n-1", "0")
    assert pin("--worker", "n-3") == 2
    assert "--worker is 'n-3', which the server does not know; known: n-1:gpu0" in capsys.readouterr().err
    site("workers.register", worker="n-2:gpu1", queues=[site.queues["n-1"]], timeout=600)
    assert pin() == 2
    assert "worker n-1:gpu0 serves no queue alone (n-1)" in capsys.readouterr().err
    assert pin("--site", "other") == 2
    assert "site-other.json" in capsys.readouterr().err
    assert site.tasks() == []


def test_the_real_script_reports_through_the_real_sdk(
    site: Site, pin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs(site: Site, name: str, task: Json) -> None:
        """Run the stored script as the agent does, in a container that has a number and a fake nvidia-smi."""
        assert task["hyperparams"]["probe"]["train_seconds"]["value"] == "0.0"
        folder = program(tmp_path / name, "nvidia-smi", f"echo '0, {B}, fake'")
        first = folder / "environ"
        first.write_bytes(b"NVIDIA_VISIBLE_DEVICES=all\0NVIDIA_VISIBLE_DEVICES=1\0")
        script = folder / "probe.py"
        script.write_text(task["script"]["diff"].replace("/proc/1/environ", str(first)))
        keys = {"CLEARML_API_ACCESS_KEY": AUTH[0], "CLEARML_API_SECRET_KEY": AUTH[1]}
        hosts = {
            f"CLEARML_{kind.upper()}_HOST": f"http://127.0.0.1:{getattr(site.server, kind)}" for kind in ("api", "web")
        }
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "NVIDIA_VISIBLE_DEVICES": "all",
            "CLEARML_TASK_ID": task["id"],
            "CLEARML_FILES_HOST": f"http://127.0.0.1:{site.server.files}",
            "CLEARML_LOG_TASK_TO_BACKEND": "1",  # an agent runs it
            **keys,
            **hosts,
        }
        command = [sys.executable, str(script)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        site("tasks.completed", task=task["id"])

    site.add("n-2", "1", runs)
    assert pin("--simulated") == 0, (capsys.readouterr(), site.problems)
    out, _ = capsys.readouterr()
    assert "GPU pinning (SIMULATED: nothing was trained)" in out
    assert "ok, by UUID" in out


def test_two_nodes_that_are_added_at_once_share_the_project_of_the_probes() -> None:
    projects: list[Json] = []

    def call(endpoint: str, body: Json) -> Json:
        if endpoint == "projects.get_all":
            return {"projects": projects}
        projects.append({"id": "p1"})  # the other node's, between our look and our call
        raise LookupError("Project with the same name already exists")

    assert gpu_probe.Probes(call, LookupError, "http://x")._make_project() == "p1"
