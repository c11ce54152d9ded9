"""The rules for paths that the inventory names."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "ansible/plugins/module_utils"))

from trainyard_paths import PARTS, overlap_problems, path_problem, removal_problem  # noqa: E402

EXAMPLE = "/opt/clearml/agent"
DEFAULTS = {
    "clearml_agent_cache": "/opt/clearml/agent/cache",
    "clearml_agent_root": "/opt/clearml/agent",
    "clearml_server_root": "/opt/clearml",
    "dataset_cache_clearml_path": "/clearml_cache",
    "dataset_cache_path": "/dvc_cache",
    "dataset_cache_pruner_root": "/opt/clearml/cache",
    "dataset_cache_sdk_path": "/opt/clearml/agent/cache/sdk-cache",
    "image_registry_root": "/opt/clearml/registry",
    "site_examples_repository": "/opt/clearml/examples",
}


@pytest.mark.parametrize(
    "path",
    [
        *DEFAULTS.values(),
        "/data/clearml",
        "/home/alice/clearml",
        "/tmp/site/agent",
        "/var/lib/clearml",
        "/srv/größe",
        "/mnt/disk-1/a_b.c+d@e",
        "/usrlocal",
        "/data/..clearml",
    ],
)
def test_a_folder_of_its_own_is_right(path: str) -> None:
    assert path_problem(path, EXAMPLE) is None
    assert removal_problem(path, EXAMPLE) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "data",
        "./data",
        "~/clearml",
        "/data/",
        "//data",
        "/data//clearml",
        "/data/./clearml",
        "/data/../etc",
        "/data/clearml/..",
        "/..",
        "/data/my clearml",
        " /data/clearml",
        "/data/clearml ",
        "/data/clearml\n",
        "/data/\tclearml",
        "/data/a:b",
        "/data/a,b",
        '/data/a"b',
        "/data/a'b",
        "/data/$HOME",
        "/data/`id`",
        "/data/*",
        "/data/a\\b",
        "/data/a;b",
        "/data/{{ x }}",
        "/data/#a",
        "/data/a\x00b",
        "/data/a\u200bb",
        "/data/a\u00a0b",
        "/data/" + "a" * 600,
        None,
        True,
        0,
        ["/data/clearml"],
        {"path": "/data/clearml"},
    ],
)
def test_what_is_not_an_absolute_and_clean_path_is_named(path: object) -> None:
    for rule in (path_problem, removal_problem):
        problem = rule(path, EXAMPLE)
        assert problem is not None
        assert problem.startswith("write an absolute path")
        assert problem.endswith(f"for example {EXAMPLE}")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/etc",
        "/etc/clearml",
        "/usr/local/clearml",
        "/root/clearml",
        "/var/lib/docker",
        "/var/lib/docker/x",
        "/dev/shm",
        "/proc/1",
        "/run/clearml",
        "/boot",
        "/var/log/clearml",
        "/lib64",
        "/sys/fs",
        "/var/run/clearml",
    ],
)
def test_a_folder_of_the_system_is_named(path: str) -> None:
    for rule in (path_problem, removal_problem):
        problem = rule(path, EXAMPLE)
        assert problem is not None
        assert "is or lies in a folder of the system" in problem


@pytest.mark.parametrize("path", ["/data", "/opt", "/srv", "/home", "/home/alice", "/mnt", "/tmp", "/var", "/var/lib"])
def test_a_folder_that_many_use_may_be_cleaned_of_ones_own_but_not_taken(path: str) -> None:
    problem = path_problem(path, EXAMPLE)
    assert problem is not None
    assert "other programs and people use this folder too" in problem
    assert removal_problem(path, EXAMPLE) is None


def test_the_defaults_do_not_overlap() -> None:
    assert overlap_problems(DEFAULTS) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"clearml_agent_root": "/opt/clearml"},
            "clearml_agent_root and clearml_server_root are both '/opt/clearml'",
        ),
        (
            {"clearml_agent_root": "/opt/clearml/data"},
            "clearml_agent_root is '/opt/clearml/data', which lies in '/opt/clearml' (clearml_server_root)",
        ),
        (
            {"image_registry_root": "/opt/clearml/data/registry"},
            "image_registry_root is '/opt/clearml/data/registry', which lies in '/opt/clearml' (clearml_server_root)",
        ),
        (
            {"dataset_cache_path": "/opt/clearml/agent/cache/dvc"},
            "dataset_cache_path is '/opt/clearml/agent/cache/dvc', which lies in '/opt/clearml/agent/cache' "
            "(clearml_agent_cache)",
        ),
        (
            {"clearml_agent_cache": "/opt/clearml/agent/state"},
            "clearml_agent_cache is '/opt/clearml/agent/state', which lies in '/opt/clearml/agent'",
        ),
        (
            {"clearml_agent_root": "/data/agent", "dataset_cache_path": "/data/agent/dvc_cache"},
            "dataset_cache_path is '/data/agent/dvc_cache', which lies in '/data/agent' (clearml_agent_root)",
        ),
        (
            {"clearml_server_root": "/dvc_cache/server"},
            "clearml_server_root is '/dvc_cache/server', which lies in '/dvc_cache' (dataset_cache_path)",
        ),
    ],
)
def test_one_folder_in_another_is_named_with_both_variables(changes: dict[str, str], told: str) -> None:
    problems = overlap_problems({**DEFAULTS, **changes})
    assert any(told in problem for problem in problems), problems


WRITTEN = re.compile(r"\{\{ (\w+_root) \}\}/([^\"'/\s)]+)(/|\b)")


@pytest.mark.parametrize("variable", sorted(PARTS))
def test_all_that_a_role_writes_into_its_folder_is_one_of_its_parts(variable: str) -> None:
    """Else destroy.yml would leave it, and call it somebody else's."""
    role = next(path for path in (ROOT / "ansible/roles").iterdir() if variable.startswith(path.name))
    texts = [path.read_text() for folder in ("tasks", "templates", "vars") for path in (role / folder).glob("*")]
    names = {match[2] for text in texts for match in WRITTEN.finditer(text) if match[1] == variable}
    folders = {name[:-1] for name in PARTS[variable] if name.endswith("/")}
    files = {name for name in PARTS[variable] if not name.endswith("/")}
    assert names, variable
    for name in names - {"{{"}:  # the name of a worker, or of an item that is spelt out below
        assert name in folders | files or any(fnmatch(name, pattern) for pattern in files), (variable, name)
    texts.append((role / "tasks/folders.yml").read_text())
    created = {name for text in texts for name in re.findall(r"'([a-z]+)[a-z_0-9/]*': '0[0-7]{3}'", text)}
    created |= set(re.findall(r"'(authority|compose|config|data|reaper|ssh|logs|secrets|tls)'", texts[-1]))
    assert created <= folders


def test_a_name_that_only_begins_alike_is_another_folder() -> None:
    assert overlap_problems({"dataset_cache_path": "/data/dvc", "dataset_cache_clearml_path": "/data/dvc2"}) == []
