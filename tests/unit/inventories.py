"""Inventories like inventory/local, spoilt by a test, and what the check of their values says of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Before Ansible is loaded: it reads its settings once.
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible/ansible.cfg"))

from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import filter_loader, init_plugin_loader  # noqa: E402
from ansible.vars.hostvars import HostVars  # noqa: E402
from ansible.vars.manager import VariableManager  # noqa: E402


def load(path: str) -> Any:
    """Return a plugin as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_under_test", ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


init_plugin_loader()
# Those of roles are the action's own to find.
filter_loader.add_directory(str(ROOT / "ansible/plugins/filter"))
action = load("ansible/plugins/action/trainyard_values.py")
preflight = yaml.safe_load((ROOT / "ansible/roles/preflight/meta/argument_specs.yml").read_text())
GROUPS = {
    "clearml_server": ["preflight", "docker_engine", "perception_images", "clearml_server", "clearml_users"],
    "clearml_nodes": [
        "preflight",
        "docker_engine",
        "perception_images",
        "nvidia_container_toolkit",
        "dataset_cache",
        "clearml_agent",
    ],
    "clearml_registry": ["preflight", "docker_engine", "perception_images", "image_registry"],
}


def check(folder: Path, *, facts: bool = False) -> list[str]:
    """Return what is wrong with the values of the inventory in ``folder``, without ansible-playbook."""
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "ansible"))
    inventory = InventoryManager(loader=loader, sources=[str(folder)])
    manager = VariableManager(loader=loader, inventory=inventory)
    hostvars = HostVars(inventory, manager, loader)
    groups = inventory.get_groups_dict()
    hosts = list(dict.fromkeys(host for group in GROUPS for host in groups.get(group, [])))
    play = {
        "hostvars": hostvars,
        "ansible_play_hosts_all": hosts,
        "ansible_play_hosts": hosts,
        "ansible_check_mode": False,
        "ansible_playbook_python": sys.executable,
        "playbook_dir": str(ROOT / "ansible"),
    }
    return list(action.Checker(loader, play).site(GROUPS, groups, facts=facts))


def secrets() -> dict[str, Any]:
    """Return a vault's content as `make secrets` generates it."""
    content: dict[str, Any] = {}
    load("ansible/plugins/action/site_secrets.py").complete(content)
    return content


def write(folder: Path, hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]], vault: Any) -> None:
    """Write an inventory whose group_vars are those of inventory/local."""
    target = folder / "group_vars/all"
    target.mkdir(parents=True)
    for source in (ROOT / "inventory/local/group_vars/all").glob("*.yml"):
        if source.name != "vault.yml":
            (target / source.name).write_text(source.read_text())
    (target / "vault.yml").write_text(yaml.safe_dump(vault))
    children = {group: {"hosts": {name: {} for name in names}} for group, names in groups.items()}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": dict(hosts), "children": children}}))
