"""What a fleet asks of its workers: none loses an experiment, and one that is drained takes none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from clearml_api import ClearmlApi, Json
from harness import (
    TASK_IMAGE,
    Platform,
    Proxy,
    Worker,
    console,
    create,
    enqueue,
    epochs_of,
    get,
    project_id,
    queue_id,
    run,
    wait_for,
    wait_for_epoch,
    wait_for_status,
)

EPOCHS = 120
QUEUE = "fleet"


@pytest.fixture(scope="module")
def worker(platform: Platform) -> Iterator[Worker]:
    """A worker that may be ended and started again."""
    made = platform.add_worker("fleet", QUEUE)
    yield made
    made.remove()


def pid(worker: Worker) -> int:
    """Return the process that Docker started, by its number on the host."""
    (container,) = worker.compose("ps", "--quiet").split()
    return int(run("docker", "inspect", "--format", "{{.State.Pid}}", container))


def tags(api: ClearmlApi, worker: Worker) -> list[str] | None:
    """Return the worker's tags; None when the server does not list it."""
    for seen in api.call("workers.get_all", last_seen=60)["workers"]:
        if seen["id"] == worker.name:
            return list(seen.get("tags") or [])
    return None


def start(api: ClearmlApi, digits: str, name: str) -> str:
    """Let the worker train, and wait until it does."""
    task = create(api, name, digits, "train.py", epochs=EPOCHS)
    enqueue(api, task, QUEUE)
    wait_for_epoch(api, task, 5, 120)
    return task


def check_whole(api: ClearmlApi, task: str) -> None:
    """Check that it ran once, from its start to its end, and that the console has every line."""
    whole = list(range(1, EPOCHS + 1))
    for curve, points in epochs_of(api, task).items():
        assert points == whole, curve
    lines = [
        int(line.split()[1].split("/")[0]) for line in console(api, task).splitlines() if line.startswith("epoch ")
    ]
    assert sorted(set(lines)) == whole, "every line; some may be told twice around the restart"


def test_an_agent_that_is_killed_goes_on_with_its_experiment(api: ClearmlApi, worker: Worker, digits: str) -> None:
    task = start(api, digits, "agent killed")
    containers = worker.experiments()
    os.kill(pid(worker), signal.SIGKILL)
    wait_for("the agent is back and says so", lambda: "goes on with this experiment" in console(api, task), 60)
    assert worker.experiments() == containers, "the same container"
    assert wait_for_status(api, task, "completed", 180)["last_worker"] == worker.name
    check_whole(api, task)
    wait_for("its container is gone", lambda: not worker.experiments(), 30)


def test_an_experiment_that_ends_without_its_agent_is_settled(api: ClearmlApi, worker: Worker, digits: str) -> None:
    task = start(api, digits, "agent away")
    worker.compose("stop")
    (container,) = worker.experiments()
    run("docker", "wait", container, timeout=180)
    assert get(api, task)["status"] == "in_progress", "nobody was there to tell"
    worker.start()
    wait_for_status(api, task, "completed", 60)
    check_whole(api, task)


def test_an_experiment_that_was_taken_over_can_be_aborted(api: ClearmlApi, worker: Worker, digits: str) -> None:
    task = start(api, digits, "aborted after")
    os.kill(pid(worker), signal.SIGKILL)
    wait_for("the agent is back", lambda: "goes on with this experiment" in console(api, task), 60)
    api.call("tasks.stop", task=task, force=False)
    wait_for("it is stopped", lambda: get(api, task)["status"] == "stopped", 60)
    wait_for("its container is gone", lambda: not worker.experiments(), 60)


def test_an_experiment_that_went_down_with_its_worker_goes_back_to_its_queue(
    api: ClearmlApi, worker: Worker, digits: str
) -> None:
    task = start(api, digits, "power cut")
    worker.kill()
    worker.start()
    wait_for("its console tells", lambda: "goes back to the front of its queue" in console(api, task), 60)
    ended = wait_for_status_again(api, task)
    assert ended["runtime"]["trainyard_requeues"] == 1
    assert ended["last_worker"] == worker.name


def test_a_settlement_that_fails_in_the_middle_is_finished_and_an_end_that_is_not_heard_is_told_again(
    platform: Platform, api: ClearmlApi, digits: str
) -> None:
    queue, proxy = "faults", Proxy(platform.server)
    address = {"clearml_agent_api_url": proxy.url}
    worker = platform.add_worker(queue, queue, config=dict(address), CLEARML_AGENT_API_URL=proxy.url)
    try:
        task = create(api, "settled in two tries", digits, "train.py", epochs=40)
        enqueue(api, task, queue)
        wait_for_epoch(api, task, 3, 120)
        proxy.faults += ["tasks.enqueue", "tasks.completed"]
        worker.kill()
        worker.start()
        ended = wait_for_status_again(api, task)
        assert ended["runtime"]["trainyard_requeues"] == 1
        assert proxy.faults == [], "both calls failed once"
        wait_for("its container is gone", lambda: not worker.experiments(), 30)
        wait_for("its record is gone", lambda: not (worker.state / "task.json").exists(), 30)
    finally:
        worker.remove()
        proxy.stop()


def wait_for_status_again(api: ClearmlApi, task: str) -> Json:
    """Wait for the end of an experiment that is stopped in between."""

    def look() -> Json | None:
        seen = get(api, task)
        assert seen["status"] != "failed", console(api, task)
        return seen if seen["status"] == "completed" else None

    return wait_for("it is completed", look, 180)


def test_a_drained_worker_pulls_nothing(api: ClearmlApi, worker: Worker, digits: str) -> None:
    first = start(api, digits, "before the drain")
    wish = worker.state / "drain"
    wish.touch()
    second = create(api, "after the drain", digits, "train.py", epochs=2)
    enqueue(api, second, QUEUE)
    wait_for("it says that it drains", lambda: tags(api, worker) == ["draining"], 30)
    wait_for_status(api, first, "completed", 180)
    wait_for("it says that it holds nothing", lambda: tags(api, worker) == ["drained"], 30)
    assert get(api, second)["status"] == "queued"
    os.kill(pid(worker), signal.SIGKILL)  # the wish outlives the agent
    wait_for("the new one says so too", lambda: tags(api, worker) == ["drained"], 60)
    assert get(api, second)["status"] == "queued"
    wish.unlink()
    wait_for_status(api, second, "completed", 120)
    wait_for("it says that it works again", lambda: tags(api, worker) == [], 30)


def test_an_experiment_that_asks_for_the_host_is_refused_and_told_why(
    api: ClearmlApi, worker: Worker, digits: str
) -> None:
    task = str(
        api.call(
            "tasks.create",
            name="wants all",
            type="training",
            project=project_id(api),
            script={"repository": digits, "branch": "main", "entry_point": "train.py", "working_dir": "."},
            container={"image": TASK_IMAGE, "arguments": "--privileged -e A=1 --pid=host"},
        )["id"]
    )
    enqueue(api, task, QUEUE)
    wait_for("it has failed", lambda: get(api, task)["status"] == "failed", 60)
    assert "asks for --privileged --pid=host, which this site does not allow" in console(api, task)
    assert worker.experiments() == []


def test_an_experiment_notes_its_image_and_another_build_of_it_is_refused(
    api: ClearmlApi, worker: Worker, digits: str
) -> None:
    build = run("docker", "image", "inspect", "--format", "{{.Id}}", TASK_IMAGE).strip()
    first = start(api, digits, "notes its image")
    wait_for("its image is noted", lambda: get(api, first).get("runtime", {}).get("trainyard_image_id") == build, 30)
    assert get(api, first)["runtime"]["trainyard_image"] == TASK_IMAGE
    api.call("tasks.stop", task=first, force=False)
    wait_for("its container is gone", lambda: not worker.experiments(), 60)

    second = create(api, "wants another build", digits, "train.py")
    other = "sha256:" + "0" * 64
    api.call("tasks.edit_runtime", task=second, add_or_update={"trainyard_image_wanted": other}, remove=[], force=True)
    enqueue(api, second, QUEUE)
    wait_for("it has failed", lambda: get(api, second)["status"] == "failed", 60)
    assert f"must run in the build {other} of the image {TASK_IMAGE}, and this node has {build}" in console(api, second)


def test_an_interrupt_stops_the_experiment_and_the_worker(api: ClearmlApi, worker: Worker, digits: str) -> None:
    task = start(api, digits, "interrupted")
    (container,) = worker.compose("ps", "--quiet").split()
    run("docker", "kill", "--signal", "INT", container)
    wait_for("it is stopped", lambda: get(api, task)["status"] == "stopped", 60)
    wait_for("its container is gone", lambda: not worker.experiments(), 60)


def test_a_services_worker_runs_some_at_once_and_no_more(platform: Platform, api: ClearmlApi, digits: str) -> None:
    queue = "two-at-once"
    services = platform.add_worker(
        queue,
        queue,
        CLEARML_AGENT_DEVICES="--cpu-only --services-mode",
        CLEARML_AGENT_SERVICES_LIMIT="2",
    )
    tasks = [create(api, f"service {number}", digits, "train.py", epochs=400) for number in range(3)]
    for task in tasks:
        enqueue(api, task, queue)
    wait_for("two run", lambda: len(services.experiments()) == 2, 90)
    wait_for_epoch(api, tasks[0], 5, 90)
    wait_for_epoch(api, tasks[1], 5, 90)
    assert get(api, tasks[2])["status"] == "queued"
    assert len(api.call("queues.get_by_id", queue=queue_id(api, queue))["queue"]["entries"]) == 1
    (container,) = services.compose("ps", "--quiet").split()
    run("docker", "kill", "--signal", "INT", container)
    wait_for("both are stopped", lambda: {get(api, task)["status"] for task in tasks[:2]} == {"stopped"}, 60)
    services.remove()
