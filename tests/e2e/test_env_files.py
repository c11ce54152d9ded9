"""What Ansible writes into env files, as the real Compose reads it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]


def filters() -> ModuleType:
    """Load the project's filters."""
    spec = importlib.util.spec_from_file_location("trainyard_filters", ROOT / "ansible/plugins/filter/trainyard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trainyard_env = filters().trainyard_env


def as_compose_reads(values: list[str]) -> list[str]:
    """Write values into an env file, one a line, and return what a service of Compose gets."""
    names = [f"VALUE_{number}" for number in range(len(values))]
    service = {"image": "none", "environment": {name: f"${{{name}}}" for name in names}}
    with tempfile.TemporaryDirectory() as folder:
        env, project = Path(folder) / "values.env", Path(folder) / "compose.yaml"
        env.write_text("".join(f"{name}={trainyard_env(value)}\n" for name, value in zip(names, values, strict=True)))
        project.write_text(json.dumps({"services": {"one": service}}))
        done = subprocess.run(
            ["docker", "compose", "--env-file", env, "--file", project, "config", "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, (values, done.stderr)
    seen = json.loads(done.stdout)["services"]["one"]["environment"]
    # `config` prints a project, in which a dollar is written twice.
    return [seen[name].replace("$$", "$") for name in names]


@pytest.mark.parametrize(
    "value",
    [
        "http://svc:pa$w0rd@proxy:3128",
        "${HOME}",
        "$$",
        "a # b",
        "#a",
        " a ",
        "'a'",
        '"a"',
        "it's",
        "a\\",
        "\\n",
        "two\nlines",
        "%41",
        "`id`",
        "$(id)",
        "a=b",
        "",
        "no",
        "é",
        "--gpus '\"device=0,1\"'",
    ],
)
def test_compose_reads_the_very_value(value: str) -> None:
    assert as_compose_reads([value, "and the next"]) == [value, "and the next"]


# No environment has a NUL. Compose takes a carriage return for the end of a line; preflight refuses control characters.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("$'\"\\#`{}=% \n\t"), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=40))
def test_compose_reads_any_value(values: list[str]) -> None:
    assert as_compose_reads(values) == values
