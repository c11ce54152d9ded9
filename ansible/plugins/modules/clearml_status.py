#!/usr/bin/python
# Part of Trainyard.
"""Tell what is free: the workers, what they run, and who waits in which queue."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import CONNECTION_ARGUMENTS, Api, ApiError

DOCUMENTATION = r"""
module: clearml_status
short_description: Tell what is free, which experiments run, and who waits in which queue
description:
  - Compares the workers of the inventory with those that the server knows. Changes nothing.
  - Makes four API calls; one more for each further 500 queues or running experiments.
options:
  api_url:
    description: Address of the API.
    type: str
    required: true
  access_key:
    description: The account's key.
    type: str
    required: true
  secret_key:
    description: The account's secret.
    type: str
    required: true
  ca_path:
    description: A PEM file with the authorities to trust.
    type: path
  timeout:
    description: Seconds to wait for a server that is just starting.
    type: int
    default: 0
  nodes:
    description: The nodes of the inventory.
    type: list
    elements: dict
    required: true
    suboptions:
      host:
        description: The node's name in the inventory.
        type: str
        required: true
      node:
        description: The node's name at the server, with which the names of its workers begin.
        type: str
        required: true
      unreachable:
        description:
          - Whether the node could not be asked for its GPUs, so that nobody knows which workers it should have.
          - The workers that the server knows by the node's name are then counted to it.
        type: bool
        default: false
      workers:
        description: Its workers, each with name, id, gpus and queues (names, the first goes first).
        type: list
        elements: dict
        default: []
  foreign:
    description:
      - Whether to show the workers that are not in O(nodes), and the queues that nobody in O(nodes) serves.
      - Say false when O(nodes) are only some of the site's.
    type: bool
    default: true
  path:
    description:
      - Where to write RV(status) as JSON, with C(.json) after it, and RV(table), with C(.txt) after it.
      - Without it nothing is written.
      - They are notes that tell of a moment; writing them is no change, and a check writes them too.
    type: path
"""

RETURN = r"""
status:
  description: What is free.
  type: dict
  returned: success
  contains:
    server: {description: Address of the API., type: str}
    time: {description: "The server's clock, ISO 8601.", type: str}
    summary:
      description: How many workers are in each state, all states are there; in C(waiting) how many experiments wait.
      type: dict
    nodes:
      description: In the inventory's order, each with host, node and unreachable, as in O(nodes).
      type: list
    workers:
      description: In the inventory's order, then the foreign ones.
      type: list
      contains:
        host: {description: The node's name in the inventory; null for a foreign worker., type: str}
        node: {description: The node's name at the server; null for a foreign worker., type: str}
        worker: {description: "The worker's name, for a foreign one its id.", type: str}
        id: {description: The worker's id at the server., type: str}
        ip: {description: Where it called the server from; null when the server does not know it., type: str}
        gpus: {description: Indexes of its GPUs; none for a CPU worker., type: list}
        queues: {description: "Names of the queues that it serves, the first goes first.", type: list}
        state:
          description:
            - free or training;
            - drained with the tag C(drained), by which the worker says that it holds nothing, and draining until then;
            - stale when the server has not heard from it for 60 s, or does not know it;
            - foreign when it is not in the inventory.
          type: str
        heard_seconds: {description: How long ago the server heard from it; null when it does not know it., type: int}
        experiment:
          description: What it runs, or null.
          type: dict
          contains:
            id: {description: Its id., type: str}
            name: {description: Its name., type: str}
            owner: {description: The name of the user who made it; null when it was deleted., type: str}
            started: {description: "When it started, ISO 8601; null when it has not yet.", type: str}
            age_seconds: {description: Seconds since then., type: int}
            age: {description: "The same for people, like C(2 d 3 h).", type: str}
    queues:
      description: By name.
      type: list
      contains:
        name: {description: Its name., type: str}
        id: {description: Its id., type: str}
        waiting: {description: How many experiments wait., type: int}
        oldest_seconds: {description: For how long the oldest has waited; null when none waits., type: int}
        oldest: {description: "The same for people.", type: str}
        workers: {description: Names of the workers that take experiments from it now., type: list}
        first: {description: "The next experiments, at most 3, each with id and name.", type: list}
table:
  description: The same for people, line by line.
  type: list
  returned: success
"""

DRAIN_TAGS = {"drained", "draining"}  # agents/worker.py
STATES = ("free", "training", "draining", "drained", "stale", "foreign")
SILENT_SECONDS = 60  # an agent reports every half minute
PAGE = 500  # the official server gives no more


def fetch_all(api: Api, endpoint: str, key: str, **arguments: Any) -> list[dict[str, Any]]:
    """Call a listing endpoint until it has told everything."""
    found: list[dict[str, Any]] = []
    for page in range(1000):
        part = api.call(endpoint, {**arguments, "order_by": ["id"], "page": page, "page_size": PAGE}).get(key) or []
        found += part
        if len(part) < PAGE:
            break
    return found


def moment(text: Any) -> datetime | None:
    """Read a time of the API; a naive one is UTC."""
    try:
        read = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    # A local site's own interpreter may be 3.10, which has no datetime.UTC.
    return read if read.tzinfo else read.replace(tzinfo=timezone.utc)  # noqa: UP017


def since(text: Any, now: datetime) -> int | None:
    """Give the seconds since a time of the API."""
    begun = moment(text)
    return max(0, int((now - begun).total_seconds())) if begun else None


def age(seconds: int | None) -> str | None:
    """Tell a duration by its two largest units, like ``2 d 3 h``."""
    if seconds is None:
        return None
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def by_number(name: str) -> list[tuple[int, str]]:
    """Sort ``gpu-2`` before ``gpu-10``."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def owner_of(worker: str, nodes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Give the unreachable node whose name the worker's name begins with; a longer node's name wins."""
    name = worker.split(":")[0]
    fitting = [node for node in nodes if name == node["node"] or name.startswith(node["node"] + "-")]
    best = max(fitting, key=lambda node: len(node["node"]), default=None)
    return best if best and best["unreachable"] else None


def gpus_of(worker: str) -> list[int]:
    """Read the GPUs' indexes from a worker's id, like ``big:gpu0,1``."""
    found = re.search(r":gpu(\d+(?:,\d+)*)\Z", worker)
    return [int(index) for index in found[1].split(",")] if found else []


def list_workers(nodes: list[dict[str, Any]], seen: set[str]) -> list[dict[str, Any]]:
    """List the inventory's workers by node, with those that the server knows of unreachable nodes; then the others."""
    listed: dict[str | None, list[dict[str, Any]]] = {None: []}
    for node in nodes:
        place = {"host": node["host"], "node": node["node"]}
        listed[node["host"]] = [{**worker, **place, "worker": worker["name"]} for worker in node["workers"]]
    known = {worker["id"] for workers in listed.values() for worker in workers}
    for id_ in sorted(seen - known, key=by_number):
        # A services worker's experiment calls as a worker of its own, <worker>:service:<experiment>.
        parent = id_.split(":service:")[0] if ":service:" in id_ else ""
        near = next((worker for workers in listed.values() for worker in workers if worker["id"] == parent), None)
        owner = near or owner_of(id_, nodes) or {"host": None, "node": None}
        name = id_.split(":")[0] if owner["host"] else id_
        place = {"host": owner["host"], "node": owner["node"]}
        listed[owner["host"]].append({**place, "id": id_, "worker": name, "gpus": gpus_of(id_), "queues": []})
    return [worker for node in nodes for worker in listed[node["host"]]] + listed[None]


def describe_worker(
    expected: dict[str, Any], seen: dict[str, Any] | None, tasks: dict[str, dict[str, Any]], now: datetime
) -> dict[str, Any]:
    """Put together what the inventory and the server say of a worker."""
    seen = seen or {}
    heard = max(filter(None, map(moment, (seen.get("last_activity_time"), seen.get("last_report_time")))), default=None)
    silent = since(heard, now)
    running = seen.get("task") or {}
    experiment = None
    if running.get("id"):
        task = tasks.get(running["id"], {})
        seconds = since(task.get("started"), now)
        experiment = {
            "id": running["id"],
            "name": task.get("name") or running.get("name") or "",
            "owner": (task.get("user") or {}).get("name"),
            "started": task.get("started"),
            "age_seconds": seconds,
            "age": age(seconds),
        }
    if expected["host"] is None:
        state = "foreign"
    elif silent is None or silent > SILENT_SECONDS:
        state = "stale"
    elif tags := DRAIN_TAGS & set(seen.get("tags") or []):
        state = "draining" if experiment or "drained" not in tags else "drained"
    else:
        state = "training" if experiment else "free"
    # What a worker serves now: a busy one keeps its old settings until it is free.
    queues = [queue.get("name") or queue["id"] for queue in seen.get("queues") or []]
    return {
        **{key: expected[key] for key in ("host", "node", "worker", "id")},
        "ip": seen.get("ip"),
        "gpus": expected["gpus"],
        "queues": queues or expected["queues"],
        "state": state,
        "heard_seconds": silent,
        "experiment": experiment,
    }


def describe_queue(queue: dict[str, Any], takers: dict[str, list[str]], now: datetime) -> dict[str, Any]:
    """Tell who waits in a queue and who serves it."""
    entries = queue.get("entries") or []
    waits = [seconds for entry in entries if (seconds := since(entry.get("added"), now)) is not None]
    # A deleted experiment is a bare id.
    tasks = [task if isinstance(task := entry.get("task"), dict) else {"id": task} for entry in entries[:3]]
    oldest = max(waits, default=None)
    return {
        "name": queue["name"],
        "id": queue["id"],
        "waiting": len(entries),
        "oldest_seconds": oldest,
        "oldest": age(oldest),
        "workers": takers.get(queue["name"], []),
        "first": [{"id": task.get("id"), "name": task.get("name") or ""} for task in tasks],
    }


def describe_site(api: Api, nodes: list[dict[str, Any]], foreign: bool) -> dict[str, Any]:
    """Ask the server, and put everything together but its address."""
    seen: dict[str, dict[str, Any]] = {}
    # Not only those of late: how long a stale one is silent is worth knowing. Two accounts may have had the same id.
    for worker in api.call("workers.get_all", {"last_seen": 0}).get("workers") or []:
        other = seen.get(worker["id"], {}).get("last_activity_time")
        if str(worker.get("last_activity_time")) >= str(other or ""):
            seen[worker["id"]] = worker
    queues = fetch_all(api, "queues.get_all_ex", "queues")
    running = sorted({worker["task"]["id"] for worker in seen.values() if (worker.get("task") or {}).get("id")})
    tasks = {}
    if running:
        fields = ["id", "name", "started", "user.name"]
        for task in fetch_all(api, "tasks.get_all_ex", "tasks", id=running, only_fields=fields, search_hidden=True):
            tasks[task["id"]] = task
    now = api.date or datetime.now(timezone.utc)  # noqa: UP017

    workers = [describe_worker(worker, seen.get(worker["id"]), tasks, now) for worker in list_workers(nodes, set(seen))]
    # A services worker's experiment that has ended is no worker that went silent.
    workers = [
        worker for worker in workers if ":service:" not in worker["id"] or worker["state"] in ("training", "foreign")
    ]
    takers: dict[str, list[str]] = {}
    for worker in workers:
        tagged = bool(DRAIN_TAGS & set(seen.get(worker["id"], {}).get("tags") or []))
        if not tagged and worker["heard_seconds"] is not None and worker["heard_seconds"] <= SILENT_SECONDS:
            for name in worker["queues"]:
                takers.setdefault(name, []).append(worker["worker"])
    if not foreign:
        workers = [worker for worker in workers if worker["host"] is not None]
    served = {name for worker in workers for name in worker["queues"]}
    described = [describe_queue(queue, takers, now) for queue in queues if foreign or queue["name"] in served]
    described.sort(key=lambda queue: by_number(queue["name"]))
    return {
        "time": now.isoformat(),
        "summary": {
            **{state: sum(worker["state"] == state for worker in workers) for state in STATES},
            "waiting": sum(queue["waiting"] for queue in described),
        },
        "nodes": [{key: node[key] for key in ("host", "node", "unreachable")} for node in nodes],
        "workers": workers,
        "queues": described,
    }


def cell(value: Any, limit: int = 40) -> str:
    """Make one cell of a table: names are people's, and may hold what a terminal would obey."""
    text = "".join(char if char.isprintable() else "?" for char in str("" if value is None else value))
    return (text if len(text) <= limit else text[: limit - 3] + "...") or "-"


def names(values: list[str], limit: int = 3) -> str:
    """Make one cell of several names."""
    shown = [cell(value) for value in values[:limit]]
    return ", ".join(shown) + (f" +{len(values) - limit}" if len(values) > limit else "")


def grid(rows: list[list[str]]) -> list[str]:
    """Put cells under each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]  # noqa: B905 - strict= needs 3.10
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]  # noqa: B905


def worker_row(worker: dict[str, Any]) -> list[str]:
    """Make the cells of a worker."""
    run = worker["experiment"] or {}
    told = [cell(run.get(key)) for key in ("age", "owner", "name", "id")]
    gpus = ",".join(map(str, worker["gpus"])) or "cpu"
    place = [cell(worker["node"] or worker["ip"]), cell(worker["worker"]), gpus, worker["state"]]
    return [*place, *told, names(worker["queues"], 6) or "-"]


def make_table(status: dict[str, Any]) -> list[str]:
    """Give the lines for people."""
    summary = status["summary"]
    counts = ", ".join(f"{summary[state]} {state}" for state in STATES if summary[state] or state == "free")
    lines = [f"{counts}; {summary['waiting']} waiting. {status['server']}, {status['time']}", ""]
    rows = [["NODE", "WORKER", "GPUS", "STATE", "AGE", "OWNER", "EXPERIMENT", "ID", "QUEUES"]]
    for node in [*status["nodes"], {"host": None, "unreachable": False}]:
        if node["unreachable"]:
            rows.append([cell(node["node"]), "-", "-", "unreachable", *"-----"])
        rows += [worker_row(worker) for worker in status["workers"] if worker["host"] == node["host"]]
    lines += [*grid(rows), ""]
    rows = [["QUEUE", "WAITING", "OLDEST", "WORKERS", "FIRST"]]
    for queue in status["queues"]:
        first = names([task["name"] or task["id"] for task in queue["first"]]) or "-"
        workers = names(queue["workers"]) or "nobody"
        rows.append([cell(queue["name"]), str(queue["waiting"]), cell(queue["oldest"]), workers, first])
    return lines + grid(rows)


def write(path: str, text: str) -> None:
    """Replace a file at once: somebody may read it."""
    temporary = Path(f"{path}.{os.getpid()}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Run the module."""
    worker = {"type": "list", "elements": "dict", "default": []}
    node = {
        "host": {"type": "str", "required": True},
        "node": {"type": "str", "required": True},
        "unreachable": {"type": "bool", "default": False},
        "workers": worker,
    }
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "timeout": {"type": "int", "default": 0},
            "nodes": {"type": "list", "elements": "dict", "required": True, "options": node},
            "foreign": {"type": "bool", "default": True},
            "path": {"type": "path"},
        },
        supports_check_mode=True,
    )
    url, path = module.params["api_url"], module.params["path"]
    try:
        status = {"server": url, **describe_site(Api(module.params), module.params["nodes"], module.params["foreign"])}
    except ApiError as error:
        if error.subcode:
            module.fail_json(
                msg=f"the server at {url} refuses to tell: {error}. If it does not know the account's key, "
                "the vault has another one than the server: run make deploy"
            )
        module.fail_json(
            msg=f"the server at {url} does not answer: {error}. On its own host, `docker ps --filter "
            "label=com.docker.compose.project=clearml-server` tells whether it runs; make up starts it. If it runs, "
            f"this machine cannot reach it: see `curl {url}/debug.ping`, and docs/operations.md, The page does not open"
        )
    table = make_table(status)
    if path:
        try:
            write(f"{path}.json", json.dumps(status, indent=2, ensure_ascii=False))
            write(f"{path}.txt", "\n".join(table))
        except OSError as error:
            module.fail_json(msg=f"path is {path}, where nothing can be written: {error}; write another one")
    module.exit_json(changed=False, status=status, table=table)


if __name__ == "__main__":
    main()
