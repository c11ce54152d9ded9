"""What an operator types: the list of targets, the check of an inventory, and the times of stages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Two plays with a handler: Ansible tells callbacks of handlers with one argument less than of tasks.
PLAYBOOK = """\
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - name: Change something
      ansible.builtin.command: "true"
      changed_when: true
      notify: Handle it
  handlers:
    - name: Handle it
      ansible.builtin.command: "true"
      changed_when: false
"""


def make(*words: str, **variables: str) -> str:
    done = subprocess.run(
        ["make", *words], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_help_lists_what_operators_and_developers_type() -> None:
    shown = make("help")
    groups = dict(re.findall(r"(?m)^(\w[\w ]+)\n((?:  make .*\n)+)", shown))
    assert list(groups) == ["Operate a site", "Develop Trainyard"]
    operate, develop = (re.findall(r"(?m)^  make (\S+)", text) for text in groups.values())
    assert operate[:2] == ["up", "preflight"]
    assert "destroy" in operate
    assert "molecule" in develop
    targets = re.findall(r"(?m)^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text())
    # These two are only ever part of another one.
    assert sorted(operate + develop) == sorted(set(targets) - {"help", "known-site", "browser"})


def test_the_times_of_stages_with_a_handler(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    stages = tmp_path / "stages.json"
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", tmp_path / "play.yml"],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
            "ANSIBLE_CALLBACKS_ENABLED": "trainyard_stages",
            "TRAINYARD_STAGES": str(stages),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RUNNING HANDLER" in done.stdout
    assert "WARNING" not in done.stdout + done.stderr
    assert json.loads(stages.read_text())["playbook"] > 0


@pytest.mark.parametrize(
    ("chromium", "status", "said"),
    [(sys.executable, 0, ""), ("/nowhere/chromium", 1, "E2E_CHROMIUM is /nowhere/chromium, which is no program")],
)
def test_a_browser_is_named_or_refused(chromium: str, status: int, said: str) -> None:
    done = subprocess.run(
        ["bash", "ansible/tools/browser.sh"],
        cwd=ROOT,
        env={**os.environ, "E2E_CHROMIUM": chromium},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert said in done.stderr


def test_a_removed_nodes_logins_end() -> None:
    """A token outlives its key pair on the official server: what was made with the node's ends after it is gone."""
    typed = make("-n", "remove-node", "ARGS=-l gpu-07")
    first, second = typed.index("remove_node.yml -l gpu-07"), typed.index("end_logins.yml")
    assert first < second
    assert "end_logins.yml -l" not in typed
