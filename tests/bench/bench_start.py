"""Measure from "enqueue" to the experiment's first own line: this site's worker beside a stock agent.

    .venv/bin/python tests/bench/bench_start.py [--worker local-1] [--runs 5] [--json FILE]

Needs a deployed site (`make up`) with a free worker on this machine, and root for its files and the Docker socket.
The stock peer is the same clearml-agent with its own default settings in docker mode: it looks every 5 s, installs
its packages by apt and pip into a plain Debian image with Python and git, and builds a virtual environment.  Both run
the same experiment, in turn, on the same server; both have had one run before that is not counted, so that the
stock agent's package caches are warm.  The time is the one that the experiment's own first statement reads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench_lite import Api, Row, show
from pyhocon import ConfigFactory

SCRIPT = 'import time; print("FIRST LINE", time.time(), flush=True)\n'
LINE = re.compile(r"FIRST LINE ([0-9.]+)")
TIMEOUT_SEC = 240
ENDED = ("completed", "published", "closed", "failed", "stopped")
CA_TARGET = "/etc/trainyard/site-ca.pem"


def read_env(path: Path) -> dict[str, str]:
    """Read a worker's env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


class Site:
    """The deployed site: its API with the node's own key."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.env = read_env(folder / f"{worker}.env")
        config = ConfigFactory.parse_string((folder / "clearml.conf").read_text())
        self.api_config: dict[str, Any] = config["api"].as_plain_ordered_dict()
        keys = self.api_config["credentials"]
        url = urlsplit(self.api_config["api_server"])
        self.api = Api(url.port or 80, keys["access_key"], keys["secret_key"], url.hostname or "127.0.0.1")
        self.tasks: list[str] = []

    def queue(self, name: str, *, create: bool = False) -> str:
        """Give the id of a queue."""
        found = self.api.call("queues.get_all", {"name": f"^{re.escape(name)}$"})["queues"]
        if found or not create:
            return str(found[0]["id"])
        return str(self.api.call("queues.create", {"name": name})["id"])

    def run(self, queue: str, name: str) -> float:
        """Run the experiment once; answers the seconds from enqueue to its first line."""
        script = {
            "binary": "python3", "repository": "", "entry_point": "first_line.py", "working_dir": ".", "diff": SCRIPT,
            "requirements": {"pip": "clearml\n"},
        }  # fmt: skip
        task = str(self.api.call("tasks.create", {"name": name, "type": "testing", "script": script})["id"])
        self.tasks.append(task)
        begin = time.time()
        self.api.call("tasks.enqueue", {"task": task, "queue": queue})
        while time.time() - begin < TIMEOUT_SEC:
            events = self.api.call("events.get_task_log", {"task": task, "batch_size": 5000})["events"]
            for event in events:
                if match := LINE.search(event.get("msg", "")):
                    self._wait_for_end(task)
                    return float(match[1]) - begin
            status = self.api.call("tasks.get_by_id", {"task": task})["task"]["status"]
            if status in ENDED:
                raise RuntimeError(f"{name}: {status}\n" + "\n".join(event.get("msg", "") for event in events[:40]))
            time.sleep(0.25)
        console = "\n".join(event.get("msg", "") for event in events[:30])
        raise RuntimeError(f"{name}: no first line within {TIMEOUT_SEC} s; the last that it said:\n{console}")

    def _wait_for_end(self, task: str) -> None:
        for _ in range(TIMEOUT_SEC * 2):
            status = self.api.call("tasks.get_by_id", {"task": task})["task"]["status"]
            if status in ENDED:
                return
            time.sleep(0.5)
        raise RuntimeError("the experiment does not end")

    def clean(self) -> None:
        """Delete the experiments."""
        for task in self.tasks:
            self.api.call("tasks.delete", {"task": task, "force": True})


class StockAgent:
    """A clearml-agent in a container, with the settings that it comes with."""

    def __init__(self, site: Site, image: str, queue: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-stock-"))
        self.name = f"bench-stock-{secrets.token_hex(4)}"
        cache = self.folder / "cache"
        cache.mkdir()
        # Only the way to the server and, where the site has one, its certificate authority are ours.
        extra: list[str] = []
        mounts: list[str] = []
        bundle = site.env.get("CLEARML_AGENT_CA_BUNDLE", "")
        if bundle:
            mounts = ["-v", f"{bundle}:{CA_TARGET}:ro"]
            extra += mounts
            for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"):
                extra += ["-e", f"{variable}={CA_TARGET}"]
        (self.folder / "clearml.conf").write_text(
            json.dumps({"api": site.api_config, "agent": {"extra_docker_arguments": extra}}, indent=2)
        )
        subprocess.run(
            ["docker", "run", "-d", "--name", self.name, "--init",
             "-v", "/var/run/docker.sock:/var/run/docker.sock", "-v", f"{cache}:/root/.clearml",
             "-v", f"{self.folder / 'clearml.conf'}:/root/clearml.conf:ro", *mounts,
             "-e", f"CLEARML_AGENT_DOCKER_HOST_MOUNT={cache}:/root/.clearml",
             "-e", f"CLEARML_WORKER_ID={self.name}",
             site.env["CLEARML_AGENT_IMAGE"],
             "daemon", "--foreground", "--cpu-only", "--docker", image, "--queue", queue],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def close(self) -> None:
        """Stop the agent and remove what it left."""
        subprocess.run(["docker", "rm", "-f", self.name], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(self.folder)


def main() -> int:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", default="local-1")
    parser.add_argument("--agent-dir", type=Path, default=Path("/opt/clearml/agent"))
    parser.add_argument("--stock-image", default="trainyard/base:bookworm", help="a plain image with Python and git")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the measurements to this file too")
    arguments = parser.parse_args()
    site = Site(arguments.agent_dir, arguments.worker)
    stock_queue = f"bench-stock-{secrets.token_hex(4)}"
    queues = {"trainyard": site.queue(arguments.worker), "stock": site.queue(stock_queue, create=True)}
    times: dict[str, list[float]] = {name: [] for name in queues}
    stock = StockAgent(site, arguments.stock_image, stock_queue)
    try:
        for number in range(arguments.runs + 1):
            for name, queue in queues.items():
                took = site.run(queue, f"bench start {name} {number}")
                print(f"{name} {'warm-up' if number == 0 else number}: {took:.1f} s", flush=True)
                if number:
                    times[name].append(took)
    finally:
        stock.close()
        site.clean()
        site.api.call("queues.delete", {"queue": queues["stock"], "force": True})
    ours, theirs = (statistics.median(times[name]) for name in ("trainyard", "stock"))
    poll = site.env.get("CLEARML_AGENT_POLL_SECONDS", "?")
    rows = [
        Row(f"enqueue to first own line, poll {poll} s, median of {arguments.runs}", "< 6", ours, "s", ours < 6),
        Row("  slowest", "", max(times["trainyard"]), "s"),
        Row(f"the same with stock agent settings, median of {arguments.runs}", "", theirs, "s"),
        Row("  ratio", "", theirs / ours, "times"),
    ]
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    show(f"start of an experiment ({machine})", rows, arguments.json, {"machine": machine, "times": times})
    return 0


if __name__ == "__main__":
    sys.exit(main())
