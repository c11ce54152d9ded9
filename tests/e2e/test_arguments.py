"""Command lines travel into the queue: what a script parses on a real worker is what it was started with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import clearml_client
import pytest
from clearml_api import ClearmlApi
from harness import Platform, Worker, console, enqueue, run, wait_for, wait_for_status

QUEUE = "e2e"
ARGPARSE = """
import argparse, pathlib
from clearml_client import init_clearml

task = init_clearml("arguments", project="e2e tests/arguments")
parser = argparse.ArgumentParser()
parser.add_argument("--verbose", "-v", action="count", default=0)
commands = parser.add_subparsers(dest="cmd", required=True)
fit = commands.add_parser("fit")
fit.add_argument("--lr", type=float, required=True)
fit.add_argument("data", type=pathlib.Path, nargs="+")
commands.add_parser("eval")
print("GOT", sorted(vars(parser.parse_args()).items()))
"""
TYPER = """
from typing import List
import typer
from clearml_client import init_clearml

app = typer.Typer()

@app.command()
def fit(data: List[str], lr: float = 0.1, deep: bool = True):
    init_clearml("arguments", project="e2e tests/arguments")
    print("GOT", [data, lr, deep])

@app.command()
def check():
    pass

app()
"""


@pytest.fixture(scope="module")
def tree(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of a repository that has these scripts, and this client beside them."""
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "with_argparse.py").write_text(ARGPARSE)
    (folder / "with_typer.py").write_text(TYPER)
    # The image's client may be an older one.
    shutil.copytree(
        Path(clearml_client.__file__).parent, folder / "clearml_client", ignore=shutil.ignore_patterns("__pycache__")
    )
    address = platform.add_repository(folder, "arguments")
    target = tmp_path_factory.mktemp("clone") / "tree"
    run("git", "clone", "--quiet", address, target)
    return target


def sent(platform: Platform, api: ClearmlApi, tree: Path, *words: str) -> str:
    """Start a script here for the queue; return the experiment."""
    before = {task["id"] for task in api.call("tasks.get_all", name="arguments", only_fields=["id"])["tasks"]}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env={**os.environ, "CLEARML_CONFIG_FILE": str(platform.sdk_config()), "CLEARML_QUEUE": QUEUE},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "GOT" not in done.stdout, "it ran here"
    after = {task["id"] for task in api.call("tasks.get_all", name="arguments", only_fields=["id"])["tasks"]}
    (task,) = after - before
    return str(task)


def told(api: ClearmlApi, task: str, line: str) -> None:
    wait_for_status(api, task, "completed", 240)
    wait_for(f"the console says {line}", lambda: line in console(api, task), 30)


def test_subcommands_and_their_edits_reach_a_worker(
    platform: Platform, worker: Worker, api: ClearmlApi, tree: Path
) -> None:
    task = sent(platform, api, tree, "with_argparse.py", "-vv", "fit", "--lr", "0.5", "a b", "it's")
    data = "('data', [PosixPath('a b'), PosixPath(\"it's\")])"
    told(api, task, f"GOT [('cmd', 'fit'), {data}, ('lr', 0.5), ('verbose', 2)]")
    clone = str(api.call("tasks.clone", task=task)["id"])
    edit = {"section": "Args", "name": "lr", "value": "0.25"}
    api.call("tasks.edit_hyper_params", task=clone, hyperparams=[edit])
    enqueue(api, clone, QUEUE)
    told(api, clone, f"GOT [('cmd', 'fit'), {data}, ('lr', 0.25), ('verbose', 2)]")


def test_commands_of_typer_reach_a_worker(platform: Platform, worker: Worker, api: ClearmlApi, tree: Path) -> None:
    task = sent(platform, api, tree, "with_typer.py", "fit", "--lr", "0", "--no-deep", "a b", "")
    told(api, task, "GOT [['a b', ''], 0.0, False]")
