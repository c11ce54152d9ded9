"""Measure what a fleet costs its operator: 16 simulated nodes of 4 workers each on this machine, in Ansible's time.

    .venv/bin/python tests/bench/bench_nodes.py [--nodes 16] [--json FILE]

Needs the images of `make up` and root. A lite server of its own; each node is a host of the inventory with a folder of
its own, all on this machine's Docker, whose agents are real and idle. Adding a node is `ansible-playbook
ansible/workers.yml -l NODE`; the modules of all nodes share this machine's processors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))
sys.path.insert(0, str(ROOT / "ansible/tools"))

from bench_lite import Row, show  # noqa: E402
from harness import Server, host_address, run  # noqa: E402

GPUS = 4


class Fleet:
    """An inventory of nodes that are all here, and the playbook on it."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.server = Server(folder / "server", host_address())
        self.nodes = [f"bench-{number:02}" for number in range(1, nodes + 1)]

    def start(self) -> None:
        self.server.start()
        secure = json.loads((self.server.config / "secure.conf").read_text())["credentials"]["apiserver"]
        hosts = {node: {"clearml_agent_root": str(self.folder / node)} for node in self.nodes}
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        variables = {
            "clearml_agent_gpus": list(range(GPUS)),
            "clearml_agent_check_gpus": False,
            "clearml_agent_probe_seconds": 0,
            "clearml_agent_poll_seconds": 30,
            **{f"clearml_agent_{name}_url": url for name, url in self.server.urls.items()},
            "clearml_agent_system_access_key": secure["user_key"],
            "clearml_agent_system_secret_key": secure["user_secret"],
            "nvidia_container_toolkit_enabled": False,
            "dataset_cache_path": "/dvc_cache",
            "dataset_cache_pruner_enabled": False,
        }
        groups = {"clearml_server": {"hosts": {"bench-server": None}}, "clearml_nodes": {"hosts": hosts}}
        (self.folder / "hosts.yml").write_text(
            yaml.safe_dump({"all": {"children": groups, "vars": {**here, **variables}}})
        )

    def play(self, *nodes: str) -> float:
        """Run the playbook on some nodes; return its seconds."""
        command = [ROOT / ".venv/bin/ansible-playbook", "-i", self.folder / "hosts.yml", ROOT / "ansible/workers.yml"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        started = time.monotonic()
        run(
            *command,
            "--limit",
            ",".join(nodes),
            env={**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")},
            timeout=3600,
        )
        return time.monotonic() - started

    def stop(self) -> None:
        for label in ("trainyard.node", "trainyard.reaper"):
            for node in self.nodes:
                found = subprocess.run(
                    ["docker", "ps", "--all", "--quiet", "--filter", f"label={label}={node}"],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()
                if found:
                    subprocess.run(["docker", "rm", "--force", "--volumes", *found], check=True, capture_output=True)
        self.server.end(signal.SIGTERM)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-nodes."))
    fleet = Fleet(folder, options.nodes)
    try:
        fleet.start()
        first, second, *middle, last = fleet.nodes
        fleet.play(first)
        add_second = fleet.play(second)
        fleet.play(*middle)
        add_last = fleet.play(last)
        idle_one = fleet.play(first)
        idle_all = fleet.play(*fleet.nodes)
    finally:
        fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)
    added, ran = add_last / add_second, idle_all / idle_one
    rows = [
        Row("add node 2", "", add_second, "s"),
        Row(f"add node {options.nodes}", "", add_last, "s"),
        Row("... beside node 2", "1.0", added, "times", added <= 1.1),
        Row("no-op over 1 node", "", idle_one, "s"),
        Row(f"no-op over {options.nodes} nodes", "", idle_all, "s"),
        Row("... beside 1 node", "3.0", ran, "times", ran <= 3),
    ]
    show(f"A fleet of {options.nodes} nodes with {GPUS} workers each", rows, options.json, {})


if __name__ == "__main__":
    main()
