"""Datasets by the SDK and by the `clearml-data` command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from harness import Platform

PROJECT = "tests/datasets"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "deep" / "two.bin").write_bytes(bytes(range(256)) * 40)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_lives(sdk: ModuleType, files: Path) -> None:
    name = "by the SDK"
    first = sdk.Dataset.create(dataset_project=PROJECT, dataset_name=name, dataset_version="1.0.0")
    first.add_files(str(files))
    first.upload()
    first.finalize()
    before = contents(files)

    second = sdk.Dataset.create(
        dataset_project=PROJECT, dataset_name=name, dataset_version="1.1.0", parent_datasets=[first.id]
    )
    (files / "three.txt").write_text("three")
    (files / "one.txt").write_text("one, changed")
    second.sync_folder(str(files))
    second.upload()
    second.finalize()

    assert contents(Path(sdk.Dataset.get(dataset_id=first.id).get_local_copy())) == before
    newest = sdk.Dataset.get(dataset_project=PROJECT, dataset_name=name)
    assert (newest.id, newest.version) == (second.id, "1.1.0")
    assert contents(Path(newest.get_local_copy())) == contents(files)
    assert newest.get_dependency_graph()[second.id] == [first.id]
    asked = sdk.Dataset.get(dataset_project=PROJECT, dataset_name=name, dataset_version="1.0.0")
    assert asked.id == first.id

    listed = sdk.Dataset.list_datasets(dataset_project=PROJECT, partial_name=name, only_completed=True)
    assert {entry["id"] for entry in listed} == {first.id, second.id}

    sdk.Dataset.delete(dataset_project=PROJECT, dataset_name=name, entire_dataset=True, force=True)
    assert not sdk.Dataset.list_datasets(dataset_project=PROJECT, partial_name=name, only_completed=False)


class Command:
    """`clearml-data`, with a home of its own, because it keeps the current dataset there."""

    def __init__(self, config: Path, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLEARML_")}
        self._environment = {**kept, "CLEARML_CONFIG_FILE": str(config), "HOME": str(home)}
        self._home = home

    def __call__(self, *words: str | Path) -> str:
        program = Path(sys.executable).parent / "clearml-data"
        done = subprocess.run(
            [program, *words],
            env=self._environment,
            cwd=self._home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"clearml-data {words}\n{done.stdout}"
        return done.stdout


def dataset_id(text: str) -> str:
    found = re.search(r"id=([0-9a-f]{32})", text)
    assert found, text
    return found[1]


def test_the_command_does_the_same(platform: Platform, files: Path, tmp_path: Path) -> None:
    data = Command(platform.sdk_config(), tmp_path)
    name = "by the command"
    first = dataset_id(data("create", "--project", PROJECT, "--name", name, "--version", "1.0.0"))
    data("add", "--id", first, "--files", files)
    data("upload", "--id", first)
    data("close", "--id", first)

    second = dataset_id(data("create", "--project", PROJECT, "--name", name, "--version", "2.0.0", "--parents", first))
    (files / "three.txt").write_text("three")
    # It uploads and closes too: with --skip-close the SDK forgets what it found.
    data("sync", "--id", second, "--folder", files)

    assert "three.txt" in data("list", "--id", second)
    assert "three.txt" not in data("list", "--id", first)
    copy = tmp_path / "copy"
    data("get", "--id", second, "--copy", copy)
    assert contents(copy) == contents(files)
    assert first in data("search", "--project", PROJECT, "--name", name)

    data("delete", "--id", second)
    data("delete", "--id", first)
    assert first not in data("search", "--project", PROJECT, "--name", name)


def test_what_root_in_a_container_edits_is_not_served(platform: Platform, files: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = {**os.environ, "CLEARML_CONFIG_FILE": str(platform.sdk_config()), "CLEARML_CLIENT_CACHE": str(cache)}

    def data(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clearml_client", "data", *map(str, words), "--project", PROJECT]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    uploaded = data("upload", files, "edited", "--version", "1.1.0")
    assert uploaded.returncode == 0, uploaded.stderr
    for number, edit in enumerate(
        (
            "echo edited >> content/one.txt",
            "touch -r content/one.txt /tmp/t && printf 1wo > content/one.txt && touch -r /tmp/t content/one.txt",
            "rm content/deep/two.bin",
            "truncate -s 1 seal.json content/one.txt",
            "mv content/deep content/other",
        )
    ):
        target = tmp_path / f"copy{number}"
        assert data("download", "edited@1.1.0", target, "--copy").returncode == 0
        assert contents(target) == contents(files)
        (tree,) = (cache / "trees").iterdir()
        container = ["docker", "run", "--rm", "--mount", f"type=bind,source={cache},target={cache}"]
        command = [*container, "--entrypoint", "sh", "trainyard/lite:0.1.0", "-euc", f"cd {tree}; {edit}"]
        subprocess.run([*command[:3], "--user", "0:0", *command[3:]], check=True)
        found = data("verify", "edited@1.1.0")
        assert found.returncode == 1, found.stdout
        assert "fetched again" in found.stdout
        assert "were not what was published" in found.stderr
    after = data("download", "edited@1.1.0", tmp_path / "last", "--copy")
    assert after.returncode == 0, after.stderr
    assert contents(tmp_path / "last") == contents(files)
    assert data("verify", "edited@1.1.0").returncode == 0
