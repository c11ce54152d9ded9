"""Any experiment of the past can be raised again: with the same code, image and parameters, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clearml_api import ClearmlApi
from harness import Platform, Worker, create, enqueue, get, run, wait_for_status

QUEUE = "e2e"


def client(platform: Platform, *words: str) -> tuple[int, str, str]:
    """Run ``clearml-client``; return exit status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "clearml_client", *words],
        env={**os.environ, "CLEARML_CONFIG_FILE": str(platform.sdk_config())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def scaler(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a repository whose script reports a parameter."""
    folder = tmp_path_factory.mktemp("scaler")
    (folder / "scale.py").write_text(
        "import argparse\n"
        "from clearml import Task\n"
        "task = Task.init()\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--factor', type=float, default=2.0)\n"
        "factor = parser.parse_args().factor\n"
        "task.get_logger().report_scalar('product', 'three', value=3 * factor, iteration=1)\n"
    )
    return platform.add_repository(folder, "scaler")


@pytest.fixture(scope="module")
def original(platform: Platform, worker: Worker, scaler: str) -> str:
    """An experiment that ran from the queue."""
    with platform.api() as api:
        task = create(api, "scale", scaler, "scale.py", factor=2.0)
        enqueue(api, task, QUEUE)
        wait_for_status(api, task, "completed", 120)
    return task


def test_an_experiment_is_raised_again_with_another_parameter(
    platform: Platform, api: ClearmlApi, original: str
) -> None:
    code, out, err = client(platform, "reproduce", original, "--set", "Args/factor=5", "--json")
    assert code == 0, err
    told: dict[str, Any] = json.loads(out)
    assert told["status"] == "completed"
    assert {check["subject"]: check["found"] for check in told["checks"]} == dict.fromkeys(
        ("code", "image", "packages"), True
    )
    assert {"metric": "product", "variant": "three", "before": 6.0, "after": 15.0} in told["metrics"]
    before, after = get(api, original), get(api, told["clone"])
    assert after["parent"] == original
    assert after["script"]["version_num"] == before["script"]["version_num"] != ""
    assert after["runtime"]["trainyard_image_id"] == before["runtime"]["trainyard_image_id"]
    assert after["hyperparams"]["Args"]["factor"]["value"] == "5"


def test_without_waiting_a_table_is_not_promised(platform: Platform, api: ClearmlApi, original: str) -> None:
    code, out, err = client(platform, "reproduce", original, "--no-wait", "--name", "once more")
    assert code == 0, err
    assert "queued in e2e: http" in out
    (clone,) = api.call("tasks.get_all", name="^once more$", only_fields=["id"], parent=[original])["tasks"]
    wait_for_status(api, clone["id"], "completed", 120)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "Args/factr=1"], "no parameter 'Args/factr'; near to it: Args/factor"),
        (["--queue", "e2f"], "no queue 'e2f'; there is e2e"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_made(
    platform: Platform, api: ClearmlApi, original: str, words: list[str], told: str
) -> None:
    before = api.call("tasks.get_all", parent=[original], only_fields=["id"])["tasks"]
    code, _, err = client(platform, "reproduce", original, *words)
    assert code == 1
    assert told in err
    assert api.call("tasks.get_all", parent=[original], only_fields=["id"])["tasks"] == before


def test_a_word_that_is_no_assignment_is_a_mistake_of_the_command_line(platform: Platform, original: str) -> None:
    code, _, err = client(platform, "reproduce", original, "--set", "factor")
    assert code == 2
    assert "SECTION/NAME=VALUE" in err


def test_a_commit_that_is_gone_is_told_before_anything_is_queued(
    platform: Platform, api: ClearmlApi, original: str, scaler: str
) -> None:
    bare = Path(scaler.removeprefix("file://"))
    kept = bare.with_suffix(".kept")
    run("git", "clone", "--quiet", "--bare", bare, kept)
    try:
        git = ("git", "-C", bare, "-c", "user.name=e2e", "-c", "user.email=e2e@localhost")
        tree = run(*git, "rev-parse", "main^{tree}").strip()
        other = run(*git, "commit-tree", tree, "-m", "Rewritten").strip()
        run(*git, "update-ref", "refs/heads/main", other)
        run(*git, "reflog", "expire", "--expire=now", "--all")
        run(*git, "gc", "--quiet", "--prune=now")
        code, out, err = client(platform, "reproduce", original)
    finally:
        run("git", "-C", bare, "fetch", "--quiet", "--force", kept, "+main:main")
    assert code == 1
    assert "missing" in out
    assert "cannot be raised again" in err
    assert get(api, original)["script"]["version_num"] in err
