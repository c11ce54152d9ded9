"""A program of a node that hangs ends itself, and says where it stood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AGENTS = Path(__file__).resolve().parents[2] / "agents"


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys, time; sys.path.insert(0, {str(AGENTS)!r})\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_program_that_hangs_is_ended_and_says_where() -> None:
    done = run(
        "from watchdog import Watchdog\n"
        "def waits_for_nothing():\n"
        "    while True: time.sleep(0.05)\n"
        "Watchdog(0.4, 'the reaper').start()\n"
        "waits_for_nothing()\n"
    )
    assert done.returncode == 70
    assert done.stderr.startswith("the reaper has made no progress for 0 s and is ended, to be started again")
    assert "in waits_for_nothing" in done.stderr


@pytest.mark.parametrize(("module", "job"), [("reaper", "remove_orphans"), ("pruner", "run_pass")])
def test_a_pass_that_hangs_ends_reaper_and_pruner(tmp_path: Path, module: str, job: str) -> None:
    done = run(
        f"import {module} as module\n"
        "from pathlib import Path\n"
        "module.patience = lambda settings: 0.4\n"
        "def hangs():\n"
        "    while True: time.sleep(0.05)\n"
        f"program = module.{module.title()}(module.Settings(node='n', state=Path({str(tmp_path)!r})))\n"
        f"program.{job} = hangs\n"
        "program.run()\n"
    )
    assert done.returncode == 70, done.stderr
    assert "in hangs" in done.stderr


def test_a_program_that_makes_progress_is_left_alone() -> None:
    done = run(
        "import threading\n"
        "from watchdog import Watchdog\n"
        "watchdog = Watchdog(3, 'the reaper')\n"
        "watchdog.start()\n"
        "for _ in range(60):\n"  # twice as long as it has patience
        "    watchdog.beat()\n"
        "    time.sleep(0.1)\n"
        "print('done')\n"
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
