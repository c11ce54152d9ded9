"""A fleet of two nodes with four simulated GPUs each, as its operator meets it over the years.

Only for test hosts: it kills, drains, removes and reboots. Each test leaves the site as the inventory tells.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import testinfra
from audit import changed_tasks, play
from clearml_api import ApiError, ClearmlApi, Json
from conftest import ROOT
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

NODES = {"gpu-01": "lab-gpu-01", "gpu-02": "lab-gpu-02"}
WORKERS = [f"{node}-{gpu + 1}:gpu{gpu}" for node in NODES for gpu in range(4)]
PROJECT = "tests/fleet"
# Says which GPU it was given, and trains for a while.
SCRIPT = """\
import os, time
from clearml import Task
task = Task.init(auto_connect_frameworks=False, auto_resource_monitoring=False)
print("RAN", os.environ["TRAINYARD_GPUS"], time.time(), flush=True)
for step in range(SECONDS):
    task.get_logger().report_scalar("progress", "step", step, step)
    print("STEP", step, flush=True)
    time.sleep(1)
"""


@pytest.fixture(scope="module")
def node() -> Callable[[str], Host]:
    """Return the host of a node."""
    return lambda name: testinfra.get_host(f"docker://{NODES[name]}")


@pytest.fixture(scope="module")
def api(host: Host, variables: dict[str, Any]) -> Iterator[ClearmlApi]:
    """The administrator's session."""
    if variables.get("ansible_connection") != "docker":
        pytest.skip("a live site is left alone")
    address = host.run_expect([0], "hostname -i").stdout.split()[0]
    password = variables["vault_clearml_admin_password"]
    with ClearmlApi(f"http://{address}:8008", f"http://{address}:8081", "admin", password) as session:
        yield session


def until(what: str, look: Callable[[], Any], seconds: float, every: float = 1.0) -> Any:
    """Look until there is something to see."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(every)


def queues(api: ClearmlApi) -> dict[str, Json]:
    return {queue["name"]: queue for queue in api.call("queues.get_all")["queues"]}


def workers(api: ClearmlApi) -> dict[str, Json]:
    return {worker["id"]: worker for worker in api.call("workers.get_all", last_seen=60)["workers"]}


def submit(api: ClearmlApi, name: str, queue: str, seconds: int) -> str:
    """Send a training to a queue."""
    projects = api.call("projects.get_all", name=f"^{PROJECT}$")["projects"]
    project = projects[0]["id"] if projects else api.call("projects.create", name=PROJECT)["id"]
    script = {"binary": "python3", "entry_point": "train.py", "working_dir": ".", "repository": ""}
    script["diff"] = SCRIPT.replace("SECONDS", str(seconds))
    task = str(api.call("tasks.create", name=name, type="training", project=project, script=script)["id"])
    api.call("tasks.enqueue", task=task, queue=queues(api)[queue]["id"])
    return task


def get(api: ClearmlApi, *tasks: str) -> list[Json]:
    """Return what the server knows, in the order asked."""
    found = {task["id"]: task for task in api.call("tasks.get_all", id=list(tasks))["tasks"]}
    return [found[task] for task in tasks]


def console(api: ClearmlApi, task: str) -> list[str]:
    events = api.call("events.get_task_log", task=task, batch_size=2000)["events"]
    text = "".join(str(event.get("msg", "")) + "\n" for event in sorted(events, key=lambda event: event["timestamp"]))
    return text.splitlines()


def ended(api: ClearmlApi, *tasks: str) -> bool:
    found = get(api, *tasks)
    for task in found:
        assert task["status"] in {"queued", "in_progress", "completed"}, (
            task["name"],
            task["status"],
            console(api, task["id"]),
        )
    return all(task["status"] == "completed" for task in found)


def training(api: ClearmlApi, task: str) -> bool:
    return any(line.startswith("STEP") for line in console(api, task))


def check_ran_once(api: ClearmlApi, *tasks: str) -> None:
    for task in tasks:
        # Around the restart of an agent a line may be told twice, but no other run has the same time.
        lines = {line for line in console(api, task) if line.startswith("RAN")}
        assert len(lines) == 1, (task, lines)


def gpu_seen(api: ClearmlApi, task: str) -> str:
    (line,) = {line for line in console(api, task) if line.startswith("RAN")}
    return line.split()[1]


def agents(node: Host) -> dict[str, str]:
    """Return the containers of a node's workers by worker: another id, another container."""
    template = '{{.Label "trainyard.worker"}} {{.ID}}'
    lines = node.run_expect([0], f"docker ps --filter label=trainyard.worker --format '{template}'").stdout.splitlines()
    return dict(line.split() for line in lines)


def experiments(node: Host) -> list[str]:
    return node.run("docker ps --quiet --filter label=clearml-worker-id").stdout.split()


@contextmanager
def undisturbed(*hosts: Host) -> Iterator[None]:
    """Check that no container of these hosts was started anew."""

    def running() -> list[str]:
        command = "docker ps --quiet | xargs docker inspect --format '{{.Name}} {{.State.StartedAt}} {{.RestartCount}}'"
        found = [host.run_expect([0], command).stdout.splitlines() for host in hosts]
        return sorted(line for lines in found for line in lines if not line.startswith("/clearml-id-"))

    before = running()
    yield
    assert running() == before


def limited(inventory: Path, playbook: str, node: str, **extra: object) -> str:
    return play(inventory, playbook, "--limit", NODES[node], **extra)


def test_every_worker_is_there_with_its_queues(api: ClearmlApi) -> None:
    seen = workers(api)
    assert sorted(seen) == WORKERS
    for worker, about in seen.items():
        name, node = worker.split(":")[0], worker.split(":")[0].rpartition("-")[0]
        assert [queue["name"] for queue in about["queues"]] == [name, node, "all_gpus"]


def test_each_worker_trains_on_its_gpu_alone(api: ClearmlApi) -> None:
    tasks = {worker: submit(api, f"on {worker}", worker.split(":")[0], 1) for worker in WORKERS}
    until("all have trained", lambda: ended(api, *tasks.values()), 240)
    for worker, task in tasks.items():
        assert gpu_seen(api, task) == worker[-1]
        assert get(api, task)[0]["last_worker"] == worker


def wish(node: Host, *names: str, drained: bool) -> None:
    """Drain workers as drain.yml does, or let them go on."""
    for name in names:
        path = f"/opt/clearml/agent/state/{name}/drain"
        node.run_expect([0], f"touch {path}" if drained else f"rm -f {path}")


def test_the_first_of_three_queues_goes_first(api: ClearmlApi, node: Callable[[str], Host]) -> None:
    names = {name: [f"{name}-{number}" for number in (1, 2, 3, 4)] for name in NODES}
    try:
        for name, all_names in names.items():
            wish(node(name), *all_names, drained=True)
        until("all are drained", lambda: all(worker["tags"] == ["drained"] for worker in workers(api).values()), 60)
        tasks = [submit(api, f"from {queue}", queue, 1) for queue in ("all_gpus", "gpu-01", "gpu-01-1")]
        wish(node("gpu-01"), "gpu-01-1", drained=False)
        until("all three have trained", lambda: ended(api, *tasks), 180)
        started = [task["started"] for task in get(api, *tasks)]
        assert started == sorted(started, reverse=True), "its own, the node's, everybody's"
    finally:
        for name, all_names in names.items():
            wish(node(name), *all_names, drained=False)


def test_many_experiments_run_once_each(api: ClearmlApi) -> None:
    tasks = [submit(api, f"many {number}", "all_gpus", 1) for number in range(64)]
    started = time.monotonic()
    until("all have trained", lambda: ended(api, *tasks), 900, every=3)
    print(f"64 experiments over 8 workers: {time.monotonic() - started:.0f} s")
    check_ran_once(api, *tasks)
    assert {task["last_worker"] for task in get(api, *tasks)} == set(WORKERS)


def test_a_second_run_under_load_changes_nothing(api: ClearmlApi, inventory: Path, node: Callable[[str], Host]) -> None:
    task = submit(api, "undisturbed", "gpu-01-1", 40)
    until("it trains", lambda: training(api, task), 90)
    with undisturbed(node("gpu-01"), node("gpu-02")):
        assert not changed_tasks(play(inventory, "workers.yml"))
    until("it is done", lambda: ended(api, task), 120)


def test_a_node_is_drained_under_load_and_put_back(
    api: ClearmlApi, inventory: Path, node: Callable[[str], Host]
) -> None:
    running = [submit(api, f"before the drain {number}", f"gpu-02-{number}", 30) for number in (1, 2)]
    until("both train", lambda: all(training(api, task) for task in running), 120)
    with ThreadPoolExecutor() as pool:
        drain = pool.submit(limited, inventory, "drain.yml", "gpu-02")
        until("the node is told", lambda: node("gpu-02").file("/opt/clearml/agent/state/gpu-02-3/drain").exists, 60)
        later = [submit(api, f"after the drain {number}", "all_gpus", 1) for number in range(6)]
        said = drain.result()
    assert "lab-gpu-02: waits: gpu-02-1 runs 'before the drain 1'" in said
    assert ended(api, *running), "drained is when they are done"
    check_ran_once(api, *running)
    until("the others have trained", lambda: ended(api, *later), 180)
    assert {task["last_worker"].rpartition("-")[0] for task in get(api, *later)} == {"gpu-01"}
    assert agents(node("gpu-02")) == {}
    assert not [worker for worker in workers(api) if worker.startswith("gpu-02")]
    waiting = submit(api, "waits for the node", "gpu-02", 1)
    # A run of the whole playbook does not put it back by oversight.
    limited(inventory, "workers.yml", "gpu-02")
    until(
        "its workers say so",
        lambda: {tuple(w["tags"]) for i, w in workers(api).items() if i.startswith("gpu-02")} == {("drained",)},
        60,
    )
    assert get(api, waiting)[0]["status"] == "queued"
    limited(inventory, "undrain.yml", "gpu-02")
    until("it has trained", lambda: ended(api, waiting), 120)


def test_a_drain_has_a_time_limit_and_says_what_it_waits_for(api: ClearmlApi, inventory: Path) -> None:
    task = submit(api, "long", "gpu-02-1", 60)
    until("it trains", lambda: training(api, task), 90)
    with pytest.raises(AssertionError) as refused:
        limited(inventory, "drain.yml", "gpu-02", drain_seconds=5)
    said = " ".join(str(refused.value).split())
    assert f"gpu-02-1 runs 'long' ({task}) of Administrator" in said
    limited(inventory, "undrain.yml", "gpu-02")
    until("it is done", lambda: ended(api, task), 180)
    check_ran_once(api, task)


def test_the_fleet_is_upgraded_under_load(api: ClearmlApi, inventory: Path, node: Callable[[str], Host]) -> None:
    before = {name: agents(node(name)) for name in NODES}
    tasks = [submit(api, f"upgrade {number}", "all_gpus", 5 + number) for number in range(24)]
    until("some train", lambda: any(training(api, task) for task in tasks), 90)
    play(inventory, "workers.yml", clearml_agent_poll_seconds=3, clearml_agent_drain_seconds=600)
    for name in NODES:
        after = agents(node(name))
        assert set(after) == set(before[name])
        assert not set(after.values()) & set(before[name].values()), "all are new"
    until("all have trained", lambda: ended(api, *tasks), 600, every=3)
    check_ran_once(api, *tasks)
    assert {tuple(worker["tags"]) for worker in workers(api).values()} == {()}
    play(inventory, "workers.yml")


def test_keys_are_rotated_under_a_training(api: ClearmlApi, inventory: Path, node: Callable[[str], Host]) -> None:
    key = "grep -o 'access_key: .*' /opt/clearml/agent/clearml.conf"
    before = node("gpu-01").run_expect([0], key).stdout
    task = submit(api, "rotated under", "gpu-01-1", 45)
    until("it trains", lambda: training(api, task), 90)
    said = limited(inventory, "workers.yml", "gpu-01", clearml_agent_rotate_keys=True)
    assert node("gpu-01").run_expect([0], key).stdout != before
    assert "keeps its old settings" in said
    until("it is done", lambda: ended(api, task), 150)
    check_ran_once(api, task)
    limited(inventory, "workers.yml", "gpu-01")
    assert not changed_tasks(limited(inventory, "workers.yml", "gpu-01"))


def test_an_agent_and_the_docker_daemon_are_killed(api: ClearmlApi, node: Callable[[str], Host]) -> None:
    # The agent of the first was killed before; the second's sees only the daemon go.
    task, other = submit(api, "survives both", "gpu-01-1", 60), submit(api, "survives the daemon", "gpu-01-2", 60)
    until("they train", lambda: training(api, task) and training(api, other), 120)
    place = node("gpu-01")
    agent = agents(place)["gpu-01-1:gpu0"]
    place.run_expect([0], f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' {agent})")
    until("the agent is back", lambda: any("goes on with this experiment" in line for line in console(api, task)), 60)
    place.run_expect([0], "systemctl kill --kill-who=main --signal=KILL docker")
    until("Docker is back", lambda: place.run("docker ps").rc == 0, 60)
    until("they are done", lambda: ended(api, task, other), 180)
    check_ran_once(api, task, other)
    until("all workers are there", lambda: sorted(workers(api)) == WORKERS, 120)


def test_a_node_that_dies_loses_no_experiment(api: ClearmlApi) -> None:
    task = submit(api, "its node dies", "all_gpus", 20)
    until("it trains", lambda: training(api, task), 90)
    worker = get(api, task)[0]["last_worker"]
    dead = NODES[worker.rpartition("-")[0]]
    subprocess.run(["docker", "kill", dead], check=True, capture_output=True)
    started = time.monotonic()
    try:
        until("another node trains it", lambda: other(api, task, worker), 600, every=3)
        print(f"a dead node's experiment ran again after {time.monotonic() - started:.0f} s")
        until("it is done", lambda: get(api, task)[0]["status"] == "completed", 180)
        assert any("goes back to the front of its queue" in line for line in console(api, task))
    finally:
        subprocess.run(["docker", "start", dead], check=True, capture_output=True)
    until("all workers are there again", lambda: sorted(workers(api)) == WORKERS, 180)


def other(api: ClearmlApi, task: str, worker: str) -> bool:
    (seen,) = get(api, task)
    return bool(seen["status"] in {"in_progress", "completed"} and seen["last_worker"] != worker)


def test_a_rebooted_node_takes_up_what_it_had(api: ClearmlApi) -> None:
    task = submit(api, "rebooted under", "gpu-02-1", 20)
    until("it trains", lambda: training(api, task), 90)
    subprocess.run(["docker", "restart", "--time", "30", NODES["gpu-02"]], check=True, capture_output=True)
    until("it is done", lambda: get(api, task)[0]["status"] == "completed", 300)
    (seen,) = get(api, task)
    assert seen["last_worker"] == "gpu-02-1:gpu0"
    assert seen["runtime"]["trainyard_requeues"] == 1


def test_a_node_that_is_cut_off_does_not_train_twice(api: ClearmlApi, node: Callable[[str], Host]) -> None:
    task = submit(api, "cut off", "all_gpus", 200)
    until("it trains", lambda: training(api, task), 90)
    worker = get(api, task)[0]["last_worker"]
    place = node(worker.rpartition("-")[0])
    server = place.run_expect([0], "grep -o 'api_server: .*' /opt/clearml/agent/clearml.conf").stdout
    address = server.split("//")[1].split(":")[0]
    place.run_expect([0], f"ip route add blackhole {address}")
    try:
        until("another worker trains it", lambda: other(api, task, worker), 600, every=3)
    finally:
        place.run_expect([0], f"ip route del blackhole {address}")
    until("the first has let go", lambda: not experiments(place) or other_node(api, task, worker), 180)
    api.call("tasks.stop", task=task, force=True)
    until("it is stopped", lambda: get(api, task)[0]["status"] == "stopped", 90)
    until("no container is left", lambda: not experiments(place), 120)


def other_node(api: ClearmlApi, task: str, worker: str) -> bool:
    return bool(get(api, task)[0]["last_worker"].rpartition("-")[0] == worker.rpartition("-")[0])


def test_a_node_is_removed_and_added_while_others_train(
    api: ClearmlApi, inventory: Path, host: Host, node: Callable[[str], Host]
) -> None:
    task = submit(api, "undisturbed", "gpu-01-1", 120)
    until("it trains", lambda: training(api, task), 90)
    with undisturbed(host, node("gpu-01")):
        limited(inventory, "remove_node.yml", "gpu-02")
        assert sorted(workers(api)) == [worker for worker in WORKERS if worker.startswith("gpu-01")]
        assert not [name for name in queues(api) if name.startswith("gpu-02")]
        assert node("gpu-02").run("docker ps --all --quiet").stdout == ""
        assert not node("gpu-02").file("/opt/clearml/agent").exists
        said = limited(inventory, "nodes.yml", "gpu-02")
    assert sorted(workers(api)) == WORKERS
    assert "failed=0" in said
    said = " ".join(said.split())  # Ansible folds long lines
    assert (
        "New workers of lab-gpu-02: gpu-02-1, gpu-02-2, gpu-02-3, gpu-02-4; queues: gpu-02-1, gpu-02, all_gpus" in said
    )
    assert len(re.findall(r"gpu-02-[1-4]:gpu\d GPU \d = \S+ \d \S+ ok,", said)) == 4, said
    again = submit(api, "on the new node", "gpu-02-4", 1)
    until("both are done", lambda: ended(api, task, again), 240)
    assert gpu_seen(api, again) == "3"


def test_a_queue_that_left_the_inventory_is_told_and_deleted_when_asked(api: ClearmlApi, inventory: Path) -> None:
    play(inventory, "workers.yml", clearml_agent_common_queues=["all_gpus", "night"])
    assert "night" in queues(api)
    said = play(inventory, "workers.yml")
    assert "The queue night has left the inventory" in said
    assert "night" in queues(api)
    play(inventory, "workers.yml", clearml_agent_remove_queues=["night"])
    assert "night" not in queues(api)


def test_status_tells_it_all(api: ClearmlApi, inventory: Path) -> None:
    task = submit(api, "shown", "gpu-01-1", 30)
    until("it trains", lambda: training(api, task), 90)
    play(inventory, "status.yml")
    status = json.loads((ROOT / f"build/status-{inventory.name}.json").read_text())
    states = {worker["id"]: worker["state"] for worker in status["workers"]}
    assert states == {worker: "training" if worker == "gpu-01-1:gpu0" else "free" for worker in WORKERS}
    with suppress(ApiError):
        api.call("tasks.stop", task=task, force=True)
