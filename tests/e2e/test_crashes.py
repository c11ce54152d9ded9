"""Nothing that was reported is lost, and nothing hangs, when a part dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from clearml_api import ClearmlApi, Json
from conftest import QUEUE
from harness import (
    Platform,
    Worker,
    console,
    create,
    enqueue,
    epochs_of,
    get,
    wait_for,
    wait_for_epoch,
    wait_for_status,
)

EPOCHS = 120
SILENCE_SEC = 20


def test_the_server_dies_while_it_trains(platform: Platform, worker: Worker, digits: str) -> None:
    with platform.api() as api:
        task = create(api, "server dies", digits, "train.py", epochs=EPOCHS)
        enqueue(api, task, QUEUE)
        wait_for_epoch(api, task, 5, 120)
        seen = epochs_of(api, task)
        platform.server.end(signal.SIGKILL)
    time.sleep(3)  # the training goes on and has nobody to tell
    platform.server.start()
    with platform.api() as api:
        kept = epochs_of(api, task)
        assert all(set(points) <= set(kept[curve]) for curve, points in seen.items()), "what was answered is there"
        wait_for_status(api, task, "completed", 180)
        whole = list(range(1, EPOCHS + 1))
        assert epochs_of(api, task) == {
            f"{metric}/{variant}": whole for metric in ("loss", "accuracy") for variant in ("train", "validation")
        }
        lines = [line for line in console(api, task).splitlines() if line.startswith("epoch ")]
        assert [int(line.split()[1].split("/")[0]) for line in lines] == whole, "every line, once, in order"


@pytest.fixture
def watchful(platform: Platform) -> Iterator[None]:
    """The server takes a task for dead after a short silence."""
    platform.server.end(signal.SIGTERM)
    platform.server.set_watchdog(threshold_sec=SILENCE_SEC, interval_sec=2)
    platform.server.start()
    yield
    platform.server.end(signal.SIGTERM)
    platform.server.set_watchdog(threshold_sec=7200, interval_sec=900)
    platform.server.start()


@pytest.mark.usefixtures("watchful")
def test_a_worker_dies_while_it_trains(platform: Platform, api: ClearmlApi, digits: str) -> None:
    queue = "doomed"
    doomed = platform.add_worker("doomed", queue)
    task = create(api, "worker dies", digits, "train.py", epochs=EPOCHS)
    enqueue(api, task, queue)
    wait_for_epoch(api, task, 3, 120)
    doomed.kill()
    failed = wait_for_status_failed(api, task)
    assert "non-responsive" in failed["status_reason"]

    enqueue(api, task, queue)
    assert get(api, task)["status"] == "queued"
    heir = platform.add_worker("heir", queue)
    assert wait_for_status(api, task, "completed", 180)["last_worker"].startswith(heir.name)


def wait_for_status_failed(api: ClearmlApi, task: str) -> Json:
    def look() -> Json | None:
        seen = get(api, task)
        return None if seen["status"] == "in_progress" else seen

    ended = wait_for("the watchdog fails the task", look, SILENCE_SEC * 3)
    assert ended["status"] == "failed", ended
    return ended
