"""The client against the real SDK in offline mode: no server, real sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import clearml_client
import pytest
from clearml_client import ClearmlClientError, init_clearml


def run(script: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter: a process has one main task."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_"))}
    environment |= {"HOME": str(home), "CLEARML_CACHE_DIR": str(home / "cache"), **variables}
    path = home / "script.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, str(path)], cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def offline(script: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    done = run(script, home, CLEARML_OFFLINE_MODE="1", **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def session(home: Path) -> zipfile.ZipFile:
    (archive,) = home.glob("cache/**/offline-*.zip")
    return zipfile.ZipFile(archive)


def recorded_task(home: Path) -> dict[str, object]:
    with session(home) as archive:
        task: dict[str, object] = json.loads(archive.read("task.json"))
    return task


def test_a_script_is_recorded_with_its_arguments(tmp_path: Path) -> None:
    offline(
        """
import argparse
from clearml_client import init_clearml
task = init_clearml("a name", project="team/training", tags=["one", "two"])
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float, default=0.5)
assert parser.parse_args().rate == 0.5
task.get_logger().report_scalar("loss", "train", value=1.0, iteration=1)
""",
        tmp_path,
    )
    task = recorded_task(tmp_path)
    assert task["name"] == "a name"
    assert sorted(task["tags"]) == ["one", "two"]
    assert task["hyperparams"]["Args"]["rate"]["value"] == "0.5"


def test_weights_can_be_stored_without_a_server(tmp_path: Path) -> None:
    offline(
        """
from pathlib import Path
from clearml import OutputModel
from clearml_client import init_clearml
task = init_clearml("a name", project="team/training")
Path("weights.bin").write_bytes(b"weights")
OutputModel(task=task, name="net").update_weights("weights.bin", auto_delete_file=False)
""",
        tmp_path,
    )
    with session(tmp_path) as archive:
        kept = {Path(name).name for name in archive.namelist()}
    assert "weights.bin" in kept


def test_the_project_may_come_from_the_environment(tmp_path: Path) -> None:
    offline(
        """
from clearml_client import init_clearml
task = init_clearml("a name")
Path = __import__("pathlib").Path
Path("project").write_text(task.get_project_name() or "")
""",
        tmp_path,
        CLEARML_PROJECT="team/hpo",
    )
    with session(tmp_path) as archive:
        assert "team/hpo" in archive.read("task.json").decode()


def test_without_configuration_the_error_says_what_to_set(tmp_path: Path) -> None:
    done = run(
        'from clearml_client import init_clearml\ninit_clearml("abc", project="b/c")\n',
        tmp_path,
        CLEARML_CONFIG_FILE=str(tmp_path / "none.conf"),
    )
    assert done.returncode != 0
    assert "clearml_client: ClearML is not configured on this machine" in done.stderr
    assert "CLEARML_API_HOST" in done.stderr


@pytest.mark.parametrize("name", ["", "  ", None, 3, "ab"])
def test_a_task_needs_a_name(name: object) -> None:
    with pytest.raises(ClearmlClientError, match="task_name"):
        init_clearml(name, project="a/b")  # type: ignore[arg-type]


@pytest.mark.parametrize("project", ["", "a//b", "/a", "a/", "a/ /b"])
def test_a_malformed_project_is_named(project: str) -> None:
    with pytest.raises(ClearmlClientError, match="project"):
        init_clearml("name", project=project)


def test_no_project_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEARML_PROJECT", raising=False)
    with pytest.raises(ClearmlClientError, match="CLEARML_PROJECT"):
        init_clearml("name")


@pytest.mark.parametrize("tags", ["lidar", [""], ["a", 3]])
def test_wrong_tags_are_named(tags: object) -> None:
    with pytest.raises(ClearmlClientError, match="tags"):
        init_clearml("name", project="a/b", tags=tags)  # type: ignore[arg-type]


def test_the_public_names_are_sorted_and_exist() -> None:
    assert sorted(clearml_client.__all__) == clearml_client.__all__
    assert all(hasattr(clearml_client, name) for name in clearml_client.__all__)
