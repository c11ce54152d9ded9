"""The five statuses of an experiment that has ended: programs that cannot import one another have the same list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from trainyard_lite.domain.life import STATUSES

ROOT = Path(__file__).resolve().parents[2]
GOES_ON = {"created", "queued", "in_progress", "publishing", "unknown"}
COPIES = [
    "client/src/clearml_client/_status.py",
    "ansible/tools/verify.py",
    "ansible/plugins/module_utils/gpu_probe.py",
    "tests/e2e/harness.py",
    "tests/bench/bench_start.py",
    "tests/infra/nodes/fleet.py",
]


def constant(path: str, name: str) -> set[str]:
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(at, ast.Name) and at.id == name for at in node.targets):
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no {name}")


@pytest.mark.parametrize("path", COPIES)
def test_every_program_that_waits_for_an_end_knows_all_ends(path: str) -> None:
    assert constant(path, "ENDED") == set(STATUSES) - GOES_ON


def test_there_is_no_other_list_of_ends() -> None:
    """A list that has failed and stopped and something else beside them is one: it goes into ENDED."""
    found = []
    for folder in ("agents", "ansible", "client", "tests/e2e", "tests/bench", "tests/infra"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            known = str(path.relative_to(ROOT)) in COPIES
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                    continue
                words = {item.value for item in node.elts if isinstance(item, ast.Constant)}
                if {"failed", "stopped"} < words and not words & GOES_ON and not (known and len(words) == 5):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
