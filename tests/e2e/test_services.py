"""The queue `services`, with the SDK's own defaults: a pipeline, a schedule, a search."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from clearml_api import ClearmlApi, Json
from harness import PROJECT, ROOT, Platform, Worker, console, create, enqueue, run, wait_for, wait_for_status
from test_env_files import filters

QUEUE = "e2e"

PIPELINE = f"""
from clearml import PipelineController

def double(number):
    return number * 2

def add_one(number):
    print("THE RESULT IS", int(number) + 1, flush=True)

pipe = PipelineController("two steps", "{PROJECT}", "1.0.0", pool_frequency=0.05)
pipe.add_function_step("double", double, {{"number": 20}}, ["value"], execution_queue="{QUEUE}")
pipe.add_function_step("add one", add_one, {{"number": "${{double.value}}"}}, execution_queue="{QUEUE}")
pipe.start()
"""

SCHEDULE = f"""
from clearml.automation import TaskScheduler

scheduler = TaskScheduler(
    sync_frequency_minutes=1,
    force_create_task_project="{PROJECT}",
    force_create_task_name="each hour",
)
scheduler.add_task(schedule_task_id="BASE", queue="{QUEUE}", name="the job", hour=1, execute_immediately=True)
scheduler.start_remotely()
"""

SEARCH = f"""
from clearml import Task
from clearml.automation import DiscreteParameterRange, GridSearch, HyperParameterOptimizer

task = Task.init("{PROJECT}", "search", task_type=Task.TaskTypes.optimizer)
search = HyperParameterOptimizer(
    base_task_id="BASE",
    hyper_parameters=[DiscreteParameterRange("Args/factor", [2.0, 5.0])],
    objective_metric_title="product",
    objective_metric_series="three",
    objective_metric_sign="max",
    max_number_of_concurrent_tasks=2,
    optimizer_class=GridSearch,
    execution_queue="{QUEUE}",
    pool_period_min=0.05,
    total_max_jobs=2,
)
task.execute_remotely(queue_name="services")
search.set_report_period(0.1)
search.start()
search.wait()
print("THE BEST IS", search.get_top_experiments(1)[0].get_parameter("Args/factor"), flush=True)
search.stop()
"""


@pytest.fixture(scope="module")
def services(platform: Platform, worker: Worker) -> Iterator[Worker]:
    """The services worker that every site has by default, beside one that trains."""
    defaults = yaml.safe_load((ROOT / "ansible/roles/clearml_agent/defaults/main.yml").read_text())
    settings = {"services": defaults["clearml_agent_services"], "memory": defaults["clearml_agent_services_memory"]}
    node = {"node": "e2e", "gpus": [], "explicit": False, "queue_descriptions": {}, "services": settings}
    made = filters().trainyard_workers(node, [], [], [])["workers"][-1]
    started = platform.add_worker(
        made["name"],
        *made["queues"],
        CLEARML_AGENT_DEVICES=made["devices"],
        CLEARML_AGENT_SERVICES_LIMIT=str(made["services"]),
        CLEARML_AGENT_TASK_ARGUMENTS=filters().trainyard_task_arguments(made, {"shm_size": "1g"}),
    )
    yield started
    started.remove()


@pytest.fixture(scope="module")
def base(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An experiment to clone: it reports three times its factor."""
    folder = tmp_path_factory.mktemp("factor")
    (folder / "factor.py").write_text(
        "import argparse\n"
        "from clearml import Task\n"
        "task = Task.init(auto_resource_monitoring=False)\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--factor', type=float, default=2.0)\n"
        "factor = parser.parse_args().factor\n"
        "task.get_logger().report_scalar('product', 'three', value=3 * factor, iteration=1)\n"
    )
    with platform.api() as api:
        return create(api, "factor", platform.add_repository(folder, "factor"), "factor.py", factor=2.0)


def start(platform: Platform, folder: Path, text: str) -> str:
    """Run a script as its author does, on a machine of their own; it ends when its controller is in the queue."""
    script = folder / "controller.py"
    script.write_text(text)
    environment = {**os.environ, "CLEARML_CONFIG_FILE": str(platform.sdk_config())}
    return run(sys.executable, script, cwd=folder, env=environment)


def named(api: ClearmlApi, name: str) -> list[Json]:
    """Return the experiments of a name, the last made first."""
    fields = ["id", "name", "status", "parent", "last_worker"]
    found = api.call("tasks.get_all", name=f"^{name}$", only_fields=fields, search_hidden=True, order_by=["-created"])
    return list(found["tasks"])


def controller(api: ClearmlApi, name: str, services: Worker) -> str:
    """Return a controller that the services worker has started."""

    def look() -> str | None:
        found = named(api, name)
        return str(found[0]["id"]) if found and found[0]["status"] != "created" else None

    task = wait_for(f"{name} is in its queue", look, 30)
    wait_for(f"{name} has a worker", lambda: named(api, name)[0].get("last_worker"), 60)
    assert named(api, name)[0]["last_worker"].startswith(services.name)
    return task


def test_a_pipeline_runs_by_start_alone(platform: Platform, api: ClearmlApi, services: Worker, tmp_path: Path) -> None:
    start(platform, tmp_path, PIPELINE)
    pipeline = controller(api, "two steps", services)
    wait_for_status(api, pipeline, "completed", 300)
    (last,) = named(api, "add one")
    assert "THE RESULT IS 41" in console(api, last["id"])


def test_a_schedule_starts_its_job_and_goes_on(
    platform: Platform, api: ClearmlApi, services: Worker, base: str, tmp_path: Path
) -> None:
    start(platform, tmp_path, SCHEDULE.replace("BASE", base))
    schedule = controller(api, "each hour", services)
    # The clone has the name of the experiment, not of the job.
    clones = {"parent": [base], "only_fields": ["id"]}
    job = wait_for("the job is there", lambda: api.call("tasks.get_all", **clones)["tasks"], 180)[0]
    wait_for_status(api, job["id"], "completed", 180)
    assert services.experiments(), "the schedule goes on"
    api.call("tasks.stop", task=schedule)
    wait_for_status(api, schedule, "stopped", 90)
    wait_for("its container is gone", lambda: not services.experiments(), 60)


def test_a_search_runs_its_trials(
    platform: Platform, api: ClearmlApi, services: Worker, worker: Worker, base: str, tmp_path: Path
) -> None:
    # A search clones an experiment that has run.
    enqueue(api, base, QUEUE)
    wait_for_status(api, base, "completed", 180)
    start(platform, tmp_path, SEARCH.replace("BASE", base))
    search = controller(api, "search", services)
    wait_for_status(api, search, "completed", 300)
    assert "THE BEST IS 5.0" in console(api, search)
