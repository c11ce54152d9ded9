"""A fleet of two nodes with four simulated GPUs each, as its operator meets it over the years.

Only for test hosts: it kills, drains, removes and reboots. A training ends when its test says so (``fleet.release``),
and the fixture puts the fleet back after each test.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from audit import ROOT, changed_tasks
from fleet import NODES, SERVICES, STATE, WORKERS, Fleet
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]


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


def test_every_worker_is_there_with_its_queues(fleet: Fleet) -> None:
    seen = fleet.workers()
    assert sorted(seen) == WORKERS
    for worker, about in seen.items():
        name, node = worker.split(":")[0], worker.split(":")[0].rpartition("-")[0]
        assert [queue["name"] for queue in about["queues"]] == [name, node, "all_gpus"]


def test_each_worker_trains_on_its_gpu_alone(fleet: Fleet) -> None:
    tasks = {worker: fleet.submit(f"on {worker}", worker.split(":")[0]) for worker in WORKERS}
    fleet.until("all have trained", lambda: fleet.completed(*tasks.values()), 240)
    for worker, task in tasks.items():
        assert fleet.gpu_seen(task) == worker[-1]
        assert fleet.get(task)[0]["last_worker"] == worker


def test_the_first_of_three_queues_goes_first(fleet: Fleet) -> None:
    for name in NODES:
        fleet.wish(name, *[f"{name}-{number}" for number in (1, 2, 3, 4)], drained=True)
    fleet.until(
        "all are drained", lambda: all(worker["tags"] == ["drained"] for worker in fleet.workers().values()), 60
    )
    tasks = [fleet.submit(f"from {queue}", queue) for queue in ("all_gpus", "gpu-01", "gpu-01-1")]
    fleet.wish("gpu-01", "gpu-01-1", drained=False)
    fleet.until("all three have trained", lambda: fleet.completed(*tasks), 180)
    started = [task["started"] for task in fleet.get(*tasks)]
    assert started == sorted(started, reverse=True), "its own, the node's, everybody's"


def test_many_experiments_run_once_each(fleet: Fleet) -> None:
    tasks = [fleet.submit(f"many {number}", "all_gpus") for number in range(64)]
    started = time.monotonic()
    fleet.until("all have trained", lambda: fleet.completed(*tasks), 900, every=3)
    print(f"64 experiments over 8 workers: {time.monotonic() - started:.0f} s")
    fleet.check_ran_once(*tasks)
    assert {task["last_worker"] for task in fleet.get(*tasks)} == set(WORKERS)


def test_a_second_run_under_load_changes_nothing(fleet: Fleet) -> None:
    task = fleet.submit("undisturbed", "gpu-01-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    with undisturbed(fleet.node("gpu-01"), fleet.node("gpu-02")):
        assert not changed_tasks(fleet.play("workers.yml"))
    fleet.release(task)
    fleet.until("it is done", lambda: fleet.completed(task), 60)
    fleet.check_ran_once(task)


def test_a_node_is_drained_under_load_and_put_back(fleet: Fleet) -> None:
    running = [fleet.submit(f"before the drain {number}", f"gpu-02-{number}", held=True) for number in (1, 2)]
    fleet.until("both train", lambda: fleet.trains(*running), 120)
    drain = fleet.play_beside("drain.yml", "--limit", NODES["gpu-02"])
    fleet.until(
        "the drain waits for both",
        lambda: all(f"gpu-02-{number} runs 'before the drain {number}'" in drain.said() for number in (1, 2)),
        120,
    )
    later = [fleet.submit(f"after the drain {number}", "all_gpus") for number in range(6)]
    fleet.until("the others have trained", lambda: fleet.completed(*later), 180)
    assert {task["last_worker"].rpartition("-")[0] for task in fleet.get(*later)} == {"gpu-01"}
    assert drain.running(), "it waits for what runs"
    fleet.release(*running)
    drain.result()
    assert fleet.completed(*running), "drained is when they are done"
    fleet.check_ran_once(*running)
    assert fleet.agents("gpu-02") == {}
    assert not [worker for worker in fleet.workers() if worker.startswith("gpu-02")]
    waiting = fleet.submit("waits for the node", "gpu-02")
    # A run of the whole playbook does not put it back by oversight.
    fleet.play_on("gpu-02", "workers.yml")
    fleet.until(
        "its workers say so",
        lambda: {tuple(w["tags"]) for i, w in fleet.workers().items() if i.startswith("gpu-02")} == {("drained",)},
        60,
    )
    assert fleet.get(waiting)[0]["status"] == "queued"
    fleet.play_on("gpu-02", "undrain.yml")
    fleet.until("it has trained", lambda: fleet.completed(waiting), 120)


def test_a_drain_has_a_time_limit_and_says_what_it_waits_for(fleet: Fleet) -> None:
    task = fleet.submit("long", "gpu-02-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    with pytest.raises(AssertionError) as refused:
        fleet.play_on("gpu-02", "drain.yml", drain_seconds=5)
    said = " ".join(str(refused.value).split())
    assert f"gpu-02-1 runs 'long' ({task}) of Administrator" in said
    fleet.play_on("gpu-02", "undrain.yml")
    fleet.release(task)
    fleet.until("it is done", lambda: fleet.completed(task), 60)
    fleet.check_ran_once(task)


def test_the_fleet_is_upgraded_under_load(fleet: Fleet) -> None:
    before = {name: fleet.agents(name) for name in NODES}
    held = fleet.submit("upgraded under", "gpu-01-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(held), 90)
    with fleet.load("all_gpus") as sent:
        upgrade = fleet.play_beside("workers.yml", clearml_agent_poll_seconds=3, clearml_agent_drain_seconds=3600)
        fleet.until("its worker is told", lambda: fleet.node("gpu-01").file(f"{STATE}/gpu-01-1/drain").exists, 240)
        assert fleet.get(held)[0]["status"] == "in_progress"
        fleet.release(held)
        upgrade.result()
    for name in NODES:
        after = fleet.agents(name)
        assert set(after) == set(before[name])
        assert not set(after.values()) & set(before[name].values()), "all are new"
    fleet.until("all have trained", lambda: fleet.completed(held, *sent), 600, every=3)
    fleet.check_ran_once(held, *sent)
    assert {tuple(worker["tags"]) for worker in fleet.workers().values()} == {()}
    print(f"{len(sent)} experiments ran while 8 workers were upgraded")
    fleet.play("workers.yml")


def test_keys_are_rotated_under_a_training(fleet: Fleet) -> None:
    key = "grep -o 'access_key: .*' /opt/clearml/agent/clearml.conf"
    before = fleet.node("gpu-01").run_expect([0], key).stdout
    task = fleet.submit("rotated under", "gpu-01-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    said = fleet.play_on("gpu-01", "workers.yml", clearml_agent_rotate_keys=True)
    assert fleet.node("gpu-01").run_expect([0], key).stdout != before
    assert "keeps its old settings" in said
    fleet.release(task)
    fleet.until("it is done", lambda: fleet.completed(task), 60)
    fleet.check_ran_once(task)
    fleet.play_on("gpu-01", "workers.yml")
    assert not changed_tasks(fleet.play_on("gpu-01", "workers.yml"))


def test_an_agent_and_the_docker_daemon_are_killed(fleet: Fleet) -> None:
    # The agent of the first was killed before; the second's sees only the daemon go.
    task = fleet.submit("survives both", "gpu-01-1", held=True)
    other = fleet.submit("survives the daemon", "gpu-01-2", held=True)
    fleet.until("they train", lambda: fleet.trains(task, other), 120)
    place = fleet.node("gpu-01")
    agent = fleet.agents("gpu-01")["gpu-01-1:gpu0"]
    place.run_expect([0], f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' {agent})")
    fleet.until(
        "the agent is back", lambda: any("goes on with this experiment" in line for line in fleet.console(task)), 60
    )
    place.run_expect([0], "systemctl kill --kill-who=main --signal=KILL docker")
    fleet.until("Docker is back", lambda: place.run("docker ps").rc == 0, 60)
    steps = {each: len(fleet.console(each)) for each in (task, other)}
    fleet.until("both go on", lambda: all(len(fleet.console(each)) > steps[each] for each in steps), 60)
    fleet.release(task, other)
    fleet.until("they are done", lambda: fleet.completed(task, other), 180)
    fleet.check_ran_once(task, other)
    fleet.until("all workers are there", lambda: sorted(fleet.workers()) == WORKERS, 120)


def test_a_node_that_dies_loses_no_experiment(fleet: Fleet) -> None:
    task = fleet.submit("its node dies", "all_gpus", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    worker = fleet.get(task)[0]["last_worker"]
    dead = NODES[worker.rpartition("-")[0]]
    subprocess.run(["docker", "kill", dead], check=True, capture_output=True)
    started = time.monotonic()
    fleet.until("another node trains it", lambda: other(fleet, task, worker), 600, every=3)
    print(f"a dead node's experiment ran again after {time.monotonic() - started:.0f} s")
    fleet.release(task)
    fleet.until("it is done", lambda: fleet.get(task)[0]["status"] == "completed", 180)
    assert any("goes back to the front of its queue" in line for line in fleet.console(task))


def other(fleet: Fleet, task: str, worker: str) -> bool:
    (seen,) = fleet.get(task)
    return bool(seen["status"] in {"in_progress", "completed"} and seen["last_worker"] != worker)


def test_a_rebooted_node_takes_up_what_it_had(fleet: Fleet) -> None:
    task = fleet.submit("rebooted under", "gpu-02-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    subprocess.run(["docker", "restart", "--time", "30", NODES["gpu-02"]], check=True, capture_output=True)
    fleet.until("it trains again", lambda: len(fleet.runs(task)) == 2, 300)
    fleet.release(task)
    fleet.until("it is done", lambda: fleet.get(task)[0]["status"] == "completed", 120)
    (seen,) = fleet.get(task)
    assert seen["last_worker"] == "gpu-02-1:gpu0"
    assert seen["runtime"]["trainyard_requeues"] == 1


def test_a_node_that_is_cut_off_does_not_train_twice(fleet: Fleet) -> None:
    task = fleet.submit("cut off", "all_gpus", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    worker = fleet.get(task)[0]["last_worker"]
    name = worker.rpartition("-")[0]
    place = fleet.node(name)
    server = place.run_expect([0], "grep -o 'api_server: .*' /opt/clearml/agent/clearml.conf").stdout
    address = server.split("//")[1].split(":")[0]
    place.run_expect([0], f"ip route add blackhole {address}")
    fleet.until("another worker trains it", lambda: other(fleet, task, worker), 600, every=3)
    place.run_expect([0], f"ip route del blackhole {address}")
    fleet.until(
        "the first has let go", lambda: not fleet.experiments(name) or on_the_same_node(fleet, task, worker), 180
    )
    fleet.api.call("tasks.stop", task=task, force=True)
    fleet.until("it is stopped", lambda: fleet.get(task)[0]["status"] == "stopped", 90)
    fleet.until("no container is left", lambda: not fleet.experiments(name), 120)


def on_the_same_node(fleet: Fleet, task: str, worker: str) -> bool:
    return bool(fleet.get(task)[0]["last_worker"].rpartition("-")[0] == worker.rpartition("-")[0])


def test_a_node_is_removed_and_added_while_others_train(fleet: Fleet, host: Host) -> None:
    task = fleet.submit("undisturbed", "gpu-01-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    with undisturbed(host, fleet.node("gpu-01")):
        fleet.play_on("gpu-02", "remove_node.yml")
        assert sorted(fleet.workers()) == [worker for worker in WORKERS if worker.startswith("gpu-01")]
        assert not [name for name in fleet.queues() if name.startswith("gpu-02")]
        assert fleet.node("gpu-02").run("docker ps --all --quiet").stdout == ""
        assert not fleet.node("gpu-02").file("/opt/clearml/agent").exists
        said = fleet.play_on("gpu-02", "nodes.yml")
    assert sorted(fleet.workers()) == WORKERS
    assert "failed=0" in said
    said = " ".join(said.split())  # Ansible folds long lines
    assert (
        "New workers of lab-gpu-02: gpu-02-1, gpu-02-2, gpu-02-3, gpu-02-4; queues: gpu-02-1, gpu-02, all_gpus" in said
    )
    assert len(re.findall(r"gpu-02-[1-4]:gpu\d GPU \d = \S+ \d \S+ ok,", said)) == 4, said
    again = fleet.submit("on the new node", "gpu-02-4")
    fleet.release(task)
    fleet.until("both are done", lambda: fleet.completed(task, again), 240)
    fleet.check_ran_once(task)
    assert fleet.gpu_seen(again) == "3"


def test_a_queue_that_left_the_inventory_is_told_and_deleted_when_asked(fleet: Fleet) -> None:
    fleet.play("workers.yml", clearml_agent_common_queues=["all_gpus", "night"])
    assert "night" in fleet.queues()
    said = fleet.play("workers.yml")
    assert "The queue night has left the inventory" in said
    assert "night" in fleet.queues()
    fleet.play("workers.yml", clearml_agent_remove_queues=["night"])
    assert "night" not in fleet.queues()


def test_status_tells_it_all(fleet: Fleet) -> None:
    task = fleet.submit("shown", "gpu-01-1", held=True)
    fleet.until("it trains", lambda: fleet.trains(task), 90)
    fleet.play("status.yml")
    status = json.loads((ROOT / f"build/status-{fleet.inventory.name}.json").read_text())
    states = {worker["id"]: worker["state"] for worker in status["workers"]}
    assert states.pop(SERVICES) == "free"
    assert states == {worker: "training" if worker == "gpu-01-1:gpu0" else "free" for worker in WORKERS}
