"""Every value in an env file goes through one filter; `tests/e2e/test_env_files.py` asks the real Compose."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(path.relative_to(ROOT) for path in ROOT.glob("ansible/roles/*/templates/*env*.j2"))
SPEC = importlib.util.spec_from_file_location("trainyard_filters", ROOT / "ansible/plugins/filter/trainyard.py")
assert SPEC is not None
assert SPEC.loader is not None
FILTERS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FILTERS)
trainyard_env = FILTERS.trainyard_env


def test_the_templates_are_found() -> None:
    assert {path.name for path in TEMPLATES} == {
        "environment.j2",
        "pruner.env.j2",
        "reaper.env.j2",
        "registry.env.j2",
        "server.env.j2",
        "worker.env.j2",
    }


@pytest.mark.parametrize("path", TEMPLATES, ids=str)
def test_every_value_is_quoted_by_the_filter(path: Path) -> None:
    how = "trainyard_env(shell=true)" if path.name == "environment.j2" else "trainyard_env"
    for line in (ROOT / path).read_text().splitlines():
        if re.match(r"#|\{% .* %\}$", line):
            continue
        name, _, value = line.partition("=")
        assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name), line
        constant = re.fullmatch(r"[A-Za-z0-9_./:-]+", value)
        assert constant or re.fullmatch(r"\{\{ .* \| " + re.escape(how) + r" \}\}", value), line
        assert value.count("{{") <= 1, f"one expression a line: {line}"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "trainyard/agent:0.1.0",
        "/opt/clearml/agent",
        "http://proxy:3128",
        "gpu-01-1 gpu-01 all_gpus",
        "60g",
        "0.5",
        "a,b",
        "*.local",
    ],
)
def test_what_needs_no_quotes_stays_as_it_was(value: str) -> None:
    """So that an upgrade changes no file, and restarts nothing."""
    assert trainyard_env(value) == value


def test_numbers_and_truth() -> None:
    assert [trainyard_env(value) for value in (8008, 0.25, True)] == ["8008", "0.25", "True"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("http://svc:pa$w0rd@proxy:3128", '"http://svc:pa\\$w0rd@proxy:3128"'),
        ("a # b", '"a # b"'),
        (" a", '" a"'),
        ('say "a"', '"say \\"a\\""'),
        ("it's", '"it\'s"'),
        ("a\\b", '"a\\\\b"'),
    ],
)
def test_what_needs_quotes(value: str, written: str) -> None:
    assert trainyard_env(value) == written


# A shell keeps any text but NUL; systemd reads double quotes by the same rules.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("$'\"\\#`{}=% !~*\t\n"), max_size=30)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=30))
def test_a_shell_reads_any_value(values: list[str]) -> None:
    lines = [f"VALUE_{number}={trainyard_env(value, shell=True)}" for number, value in enumerate(values)]
    shown = [f'printf "%s\\0" "$VALUE_{number}"' for number in range(len(values))]
    done = subprocess.run(["sh", "-euc", "\n".join(lines + shown)], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == values
