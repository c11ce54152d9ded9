"""What an experiment's page shows of a run in the queue: its console from its first line, and what it ran with."""

from __future__ import annotations

import re

import pytest
from clearml_api import ClearmlApi, Json
from harness import TASK_IMAGE, Platform, Worker, console, create, enqueue, get, run, wait_for, wait_for_status

FIRST = "the script's first line"
# Lines of the agent's configuration and of git's advice.
DUMP = ("agent.package_manager.type = pip", "detached HEAD", "Executing: ['docker'")
ASKED = "# Python 3.9.1\nnumpy >= 1.20\n"


@pytest.fixture(scope="module")
def plain(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a script that uses neither the SDK nor the client."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "run.py").write_text(f"import sys\nprint({FIRST!r})\nprint(sys.version.split()[0], sys.prefix)\n")
    return platform.add_repository(folder, "plain")


def ask(api: ClearmlApi, name: str, repository: str, pip: str = ASKED) -> str:
    """Create an experiment that asks for packages."""
    task = create(api, name, repository, "run.py")
    api.call("tasks.set_requirements", task=task, requirements={"pip": pip})
    return task


def requirements(api: ClearmlApi, task: str) -> Json:
    return dict(get(api, task)["script"]["requirements"])


@pytest.fixture(scope="module")
def ran(platform: Platform, worker: Worker, plain: str) -> str:
    """An experiment that ran in an image that has the agent."""
    with platform.api() as api:
        task = ask(api, "plain", plain)
        enqueue(api, task, worker.queues[0])
        wait_for_status(api, task, "completed", 120)
        wait_for("its last line", lambda: "/usr" in console(api, task).partition(FIRST)[2], 20)
    return task


def test_the_console_begins_with_what_runs_and_goes_on_with_the_script(
    platform: Platform, worker: Worker, api: ClearmlApi, plain: str, ran: str
) -> None:
    before, _, after = console(api, ran).partition(FIRST)
    told = [line for line in before.splitlines() if line.strip()]
    assert len(told) <= 15, before
    commit = run("git", "-C", platform.repositories / "plain.git", "rev-parse", "HEAD").strip()
    for words in (worker.name, worker.queues[0], "none", TASK_IMAGE, plain, "branch main", "run.py"):
        assert words in before, (words, before)
    assert not [words for words in DUMP if words in before + after]
    log = worker.logs(2000)
    assert [words for words in (*DUMP, commit) if words not in log] == [], "the worker's log has the rest"
    name = re.search(r"docker logs (\S+),", before)
    assert name, before
    assert DUMP[0] in run("docker", "logs", name[1]), "the command that the console names"


def test_a_preparation_that_fails_is_in_the_console_in_full(api: ClearmlApi, worker: Worker, plain: str) -> None:
    task = ask(api, "no such commit", plain)
    script = {**get(api, task)["script"], "version_num": "0" * 40}
    api.call("tasks.edit", task=task, script=script, force=True)
    enqueue(api, task, worker.queues[0])
    wait_for("it has failed", lambda: get(api, task)["status"] == "failed", 60)
    wait_for("the reason", lambda: "push it, then enqueue the experiment again" in console(api, task), 20)
    told = console(api, task)
    assert [words for words in (DUMP[0], DUMP[2], "0" * 40) if words not in told] == []


def test_an_image_that_is_not_to_be_had_is_in_the_console(api: ClearmlApi, worker: Worker, plain: str) -> None:
    task = ask(api, "no such image", plain)
    api.call("tasks.edit", task=task, container={"image": "127.0.0.1:9/none:1"}, force=True)
    enqueue(api, task, worker.queues[0])
    wait_for("it has failed", lambda: get(api, task)["status"] == "failed", 60)
    wait_for("the reason", lambda: "Unable to find image '127.0.0.1:9/none:1' locally" in console(api, task), 20)


def test_the_packages_are_those_of_the_python_that_ran(api: ClearmlApi, ran: str) -> None:
    recorded = requirements(api, ran)
    version, prefix = console(api, ran).partition(FIRST)[2].split()[:2]
    head, mark, *lines = recorded["pip"].splitlines()
    assert head == f"# Python {version}, {prefix}/bin/python3"
    assert mark.startswith(f"# {len(lines)} packages of the image {TASK_IMAGE}, ")
    image = ("docker", "run", "--rm", "--entrypoint", "/usr/bin/python3", TASK_IMAGE)
    freeze = run(*image, "-m", "pip", "freeze", "--all").splitlines()
    elsewhere = [line.partition(" @ file:")[0] for line in freeze if " @ file:" in line]
    listed = [line for line in lines if not line.startswith("#")]
    assert sorted(listed) == sorted(line for line in freeze if " @ file:" not in line)
    assert [line[2:].partition("==")[0] for line in lines if line.startswith("#")] == elsewhere
    assert recorded["org_pip"] == ASKED


def test_a_clone_runs_and_keeps_what_was_asked_for(api: ClearmlApi, worker: Worker, ran: str) -> None:
    clone = str(api.call("tasks.clone", task=ran)["id"])
    enqueue(api, clone, worker.queues[0])
    wait_for_status(api, clone, "completed", 120)
    assert requirements(api, clone) == requirements(api, ran)

    edited = str(api.call("tasks.clone", task=ran)["id"])
    text = requirements(api, ran)["pip"].replace("numpy==", "numpy>=")
    api.call("tasks.set_requirements", task=edited, requirements={"pip": text, "org_pip": ASKED})
    enqueue(api, edited, worker.queues[0])
    wait_for_status(api, edited, "completed", 120)
    recorded = requirements(api, edited)
    assert recorded == {"pip": requirements(api, ran)["pip"], "org_pip": text}, "an edited list is asked for"
