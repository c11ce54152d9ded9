"""What the playbooks remove from a host, what they show before, and what they refuse: run for real, without Docker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MARK = ".trainyard-site"
MANAGED = "# Managed by Ansible (role clearml_agent).\n"
# Creates the folders of all roles.
FOLDERS = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: "{{ role }}", tasks_from: folders.yml}
      loop: [dataset_cache, clearml_agent, clearml_server, image_registry]
      loop_control: {loop_var: role}
    - site_folder:
        path: "{{ site_examples_repository | dirname }}"
        variable: site_examples_repository
        folders: [source, digits.git]
"""


class Hosts:
    """Hosts of a site: folders of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory/team"
        shutil.copytree(
            ROOT / "inventory/local/group_vars",
            self.inventory / "group_vars",
            ignore=shutil.ignore_patterns("vault.yml"),
        )
        self.hosts: dict[str, dict[str, Any]] = {}

    def root(self, host: str) -> Path:
        return self.folder / host / "clearml"

    def add(self, host: str, **variables: Any) -> Path:
        """Add a host that is everything; return the folder of its platform."""
        root = self.root(host)
        self.hosts[host] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "clearml_server_root": str(root),
            "clearml_agent_root": str(root / "agent"),
            "dataset_cache_pruner_root": str(root / "cache"),
            "dataset_cache_path": str(self.folder / host / "dvc_cache"),
            "dataset_cache_clearml_path": str(self.folder / host / "clearml_cache"),
            "dataset_cache_sdk_path": str(root / "agent/cache/sdk-cache"),
            "image_registry_root": str(root / "registry"),
            "site_examples_repository": str(root / "examples/digits.git"),
            **variables,
        }
        return root

    def play(self, playbook: str, *arguments: str) -> tuple[int, str]:
        """Run a playbook; return its exit status and all that it said."""
        groups = ("clearml_server", "clearml_nodes", "clearml_registry")
        content = {
            "hosts": self.hosts,
            "children": {group: {"hosts": {host: {} for host in self.hosts}} for group in groups},
        }
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": json.loads(json.dumps(content))}))
        if not playbook.endswith(".yml"):
            (self.folder / "play.yml").write_text(playbook)
            playbook = str(self.folder / "play.yml")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible/ansible.cfg"), ANSIBLE_NOCOLOR="1", COLUMNS="2000")
        # Stronger than the role's own and the inventory's.
        extra = {"site_name": "team", "__dataset_cache_dvc_config": str(self.folder / "xdg"), "ansible_become": False}
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                str(self.inventory),
                playbook,
                "-e",
                json.dumps(extra),
                *arguments,
            ],
            env=environment,
            cwd=ROOT / "ansible",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def names(self, host: str) -> list[str]:
        base = self.folder / host
        return sorted(str(path.relative_to(base)) for path in base.rglob("*"))


def fill(root: Path) -> None:
    """Write what the roles and their containers write."""
    for name, text in {
        "compose/ports.yaml": "services: {}\n",
        "data/lite/lite.db": "x" * 5000,
        "agent/compose.yaml": "name: ${CLEARML_AGENT_PROJECT:?}\n",
        "agent/clearml.conf": MANAGED,
        "agent/one-1.env": MANAGED,
        "agent/state/one-1/probed": "x",
        "agent/cache/pip-cache/x.whl": "x",
        "registry/data/docker/blob": "x",
        "examples/source/digits/train.py": "import clearml\n",
        "examples/digits.git/HEAD": "ref: refs/heads/main\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_a_site_is_removed_item_by_item_and_others_keep_theirs(site: Hosts) -> None:
    """The whole life: create, create again, show, ask, remove, remove again."""
    plain, shared = site.add("plain"), site.add("shared")
    code, said = site.play(FOLDERS)
    assert code == 0, said
    assert said.count("changed=5") == 2, said
    for root in (plain, shared):
        fill(root)
    for name in ("alice/thesis.tex", "agent/bob/weights.pt", "agent/cache-of-carol/x", "notes.txt", "agent/my.env"):
        (shared / name).parent.mkdir(exist_ok=True)
        (shared / name).write_text("mine")
    (site.folder / "shared/dvc_cache").mkdir()
    (shared / "agent/state/link").symlink_to(shared / "alice")
    before = {host: site.names(host) for host in ("plain", "shared")}

    # Without an answer nothing happens; with -l it is asked for too.
    code, said = site.play("destroy.yml", "-l", "shared")
    assert code != 0
    assert "nothing was stopped or removed: the answer was not yes" in said
    assert f"shared: removes {shared}/data (" in said, said
    assert f"shared: keeps {shared}/alice: no {MARK} in it says that the site team made it" in said
    assert f"shared: keeps the dataset cache {site.folder}/shared/dvc_cache" in said
    assert "[Stop the" not in said
    assert before == {host: site.names(host) for host in ("plain", "shared")}

    code, said = site.play("destroy.yml", "-e", "destroy_confirm=yes")
    assert code == 0, said
    for host in ("plain", "shared"):
        assert f"{host}: removes {site.root(host)}/data (" in said, "it is shown with CONFIRM=yes too"
    assert f"shared: keeps {shared}/agent/bob: no {MARK} in it" in said
    assert site.names("plain") == []
    assert [name for name in site.names("shared") if not name.endswith(MARK)] == [
        "clearml",
        "clearml/agent",
        "clearml/agent/bob",
        "clearml/agent/bob/weights.pt",
        "clearml/agent/cache-of-carol",
        "clearml/agent/cache-of-carol/x",
        "clearml/agent/my.env",
        "clearml/alice",
        "clearml/alice/thesis.tex",
        "clearml/notes.txt",
        "dvc_cache",
    ]


@pytest.mark.parametrize("playbook", ["destroy.yml", "remove_node.yml"])
def test_wrong_paths_and_folders_of_another_site_stop_everything_before_anything_is_stopped(
    site: Hosts, playbook: str
) -> None:
    wrong = {
        "top": "/",
        "system": "/etc",
        "relative": "data/agent",
        "dots": f"{site.folder}/dots/../../etc",
        "space": f"{site.folder}/my data",
    }
    for host, path in wrong.items():
        fill(site.add(host, clearml_agent_root=path, clearml_agent_cache=f"{site.folder}/cache"))
    fill(site.add("foreign"))
    (site.root("foreign") / "agent" / MARK).write_text('{"site": "vision", "folder": "clearml_agent_root"}\n')
    before = {host: site.names(host) for host in site.hosts}
    code, said = site.play(playbook, "-e", "destroy_confirm=yes", "-e", "remove_all_nodes=true")
    assert code != 0
    for host, path in wrong.items():
        assert f"clearml_agent_root is '{path}': " in said.replace("''", "'"), (host, said)
    assert "belongs to the site 'vision' (.trainyard-site in it), and this is the site 'team'" in said.replace(
        "''", "'"
    )
    for step in ("[Stop the", "Drain |", "Destroy |", "Revoke |"):
        assert step not in said, step
    assert before == {host: site.names(host) for host in site.hosts}


def test_what_is_not_marked_stays_and_is_shown_before_the_question(site: Hosts) -> None:
    old = site.add("old")
    site.add("gone")
    fill(old)
    before = site.names("old")
    (site.folder / "xdg").mkdir()
    config = site.folder / "xdg/config"
    config.write_text("[cache]\ndir = /elsewhere\nshared = group\ntype = symlink\n\n[core]\nremote = nas\n")
    code, said = site.play("destroy.yml", "-e", "destroy_confirm=yes")
    assert code == 0, said
    for host in ("old", "gone"):
        assert f"{host}: there is nothing to remove" in said
    assert f"old: keeps {old}: no {MARK} in it says that the site team made it" in said
    assert f"old: keeps {old}/agent/cache: no {MARK} in it" in said
    assert site.names("old") == before
    assert config.read_text().split() == ["[cache]", "dir", "=", "/elsewhere", "[core]", "remote", "=", "nas"]
