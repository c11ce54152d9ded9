"""Many tasks, two workers, two queues."""

from __future__ import annotations

from pathlib import Path

from clearml_api import ClearmlApi
from harness import ENDED, Platform, create, enqueue, get, wait_for

TASKS = 30
SCRIPT = """
import os
# One write of one short line to a file that is open for appending: no line is lost or torn.
with open({path!r}, "a") as file:
    file.write(os.environ["CLEARML_TASK_ID"] + "\\n")
"""


def test_two_workers_drain_two_queues(platform: Platform, api: ClearmlApi, tmp_path: Path) -> None:
    runs = platform.runs / "drained"
    (tmp_path / "tiny.py").write_text(SCRIPT.format(path=str(runs)))
    repository = platform.add_repository(tmp_path, "tiny")
    tasks = {"low": [], "high": []}  # type: dict[str, list[str]]
    for queue, created in tasks.items():
        for number in range(TASKS // 2):
            task = create(api, f"{queue} {number}", repository, "tiny.py")
            enqueue(api, task, queue)
            created.append(task)

    for name in ("drain-1", "drain-2"):
        platform.add_worker(name, "high", "low")
    every = tasks["high"] + tasks["low"]
    wait_for(
        "all tasks are done",
        lambda: all(get(api, task)["status"] in ENDED for task in every),
        300,
        every=2,
    )

    assert {task: get(api, task)["status"] for task in every} == dict.fromkeys(every, "completed")
    ran = runs.read_text().split()
    assert sorted(ran) == sorted(every), "each ran exactly once"
    workers = {get(api, task)["last_worker"] for task in every}
    assert len(workers) == 2, "both took part"
    # A worker looks into the second queue only when the first is empty. Two run at a time, so one that was taken
    # from the first may write its line after one from the second.
    first_low = next(place for place, task in enumerate(ran) if task in tasks["low"])
    assert len([task for task in ran[first_low:] if task in tasks["high"]]) <= 1
    # First in, first out; neighbours may change places.
    for created in tasks.values():
        order = [created.index(task) for task in ran if task in created]
        assert all(abs(place - number) <= 1 for place, number in enumerate(order))
