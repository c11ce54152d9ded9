"""Prove on a live site that every worker trains on its own GPUs, and on no other.

    .venv/bin/python tests/e2e/gpu_pin.py --site team

It sends one CUDA training to each worker's own queue, all at the same time, and compares the UUIDs of the GPUs that
each trained on with those that its worker is pinned to. Run it on the node: only the node's own nvidia-smi says which
UUID an index is. Workers of other nodes are judged by the index that Docker gave their containers, and by that nobody
shares.

Exit status: 0 when every worker is proven; 1 when one trained on another GPU, on one that a second one trained on too,
on none, or had no time; 2 for wrong input; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The first goes first: the second has a clearml_api of its own, for modules.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ansible" / "tools"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "ansible" / "plugins" / "module_utils"))

from clearml_api import ApiError, ClearmlApi, Json
from gpu_probe import Probes, pin
from rich.console import Console
from rich.table import Table
from verify import InputError, read_password, read_site

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "agents" / "probe.py"
TRAIN_SEC = 30.0


@dataclass(frozen=True)
class Options:
    """The command line."""

    site: str
    worker: list[str]
    image: str
    timeout: float
    seconds: float
    simulated: bool


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--site", default="local", help="a folder below inventory/ (default: local)")
    parser.add_argument("--worker", action="append", default=[], help="name or id; repeat it (default: all workers)")
    parser.add_argument("--image", default="", help="with Python and clearml (default: each worker's own)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until all trainings must have ended")
    parser.add_argument("--seconds", type=float, default=TRAIN_SEC, help="how long each trains")
    parser.add_argument(
        "--simulated", action="store_true", help="train nothing: ask NVIDIA_VISIBLE_DEVICES and a fake nvidia-smi only"
    )
    options = Options(**vars(parser.parse_args(arguments)))
    if options.seconds <= 0:
        parser.error(f"--seconds is {options.seconds:g}; write more than 0, e.g. 30")
    return options


def log_in(site: str) -> tuple[ClearmlApi, str]:
    """Open a session with a site, as its operator; give it and the page's address."""
    told = read_site(ROOT / "build" / f"site-{site}.json", None, None)
    if told.ca_file:
        os.environ["REQUESTS_CA_BUNDLE"] = told.ca_file
    folder = ROOT / "inventory" / site
    password = read_password(folder / "group_vars" / "all" / "vault.yml", folder / ".vault_password")
    return ClearmlApi(told.api_url, told.files_url, told.user, password), told.web_url


# ---------------------------------------------------------------- workers


def name_of(worker: str) -> str:
    """Give a worker's name: its id without its GPUs."""
    return worker.split(":")[0]


def gpus_of(worker: str) -> list[str]:
    """Give the indexes of the GPUs in a worker's id."""
    found = re.search(r":d?gpu([^:]+)$", worker)
    return found[1].split(",") if found else []


def chosen(workers: list[Json], names: Sequence[str]) -> list[Json]:
    """Give the workers that were asked for."""
    known = sorted(str(worker["id"]) for worker in workers)
    for name in names:
        if name not in known and name not in map(name_of, known):
            raise InputError(
                f"--worker is {name!r}, which the server does not know; known: {', '.join(known) or 'none'}"
            )
    if not workers:
        raise InputError("the server knows no worker; run `make deploy`")
    return [worker for worker in workers if not names or {worker["id"], name_of(worker["id"])} & set(names)]


def own_queue(worker: Json, workers: list[Json]) -> str:
    """Give the queue that only this worker serves."""
    served = {other["id"]: [str(queue.get("name")) for queue in other.get("queues") or []] for other in workers}
    mine = served[worker["id"]]
    own = [queue for queue in mine if sum(queue in queues for queues in served.values()) == 1]
    if not own:
        raise InputError(
            f"worker {worker['id']} serves no queue alone ({', '.join(mine) or 'none'}): nothing could be sent to it; "
            "give it one in clearml_agent_workers, or choose others with --worker"
        )
    return name_of(worker["id"]) if name_of(worker["id"]) in own else own[0]


def run(*command: str) -> list[str]:
    """Give the lines of a program's output; none without the program."""
    if shutil.which(command[0]) is None:
        return []
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def uuids_here() -> dict[str, str]:
    """Give this host's GPUs: UUIDs by index, in the driver's order."""
    lines = run("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
    return {index.strip(): uuid.strip() for index, _, uuid in (line.partition(",") for line in lines)}


def workers_here() -> set[str]:
    """Give the ids of the workers that run on this host."""
    label = "trainyard.worker"
    return set(run("docker", "ps", "--filter", f"label={label}", "--format", f'{{{{.Label "{label}"}}}}'))


def described(workers: list[Json], names: Sequence[str]) -> list[Json]:
    """Say of each chosen worker its queue and its GPUs."""
    uuids, local = uuids_here(), workers_here()
    result = []
    for worker in chosen(workers, names):
        gpus = gpus_of(worker["id"])
        known = worker["id"] in local and set(gpus) <= set(uuids)
        result.append(
            {
                "id": worker["id"],
                "queue": own_queue(worker, workers),
                "gpus": gpus,
                "uuids": [uuids[gpu] for gpu in gpus] if known else [],
            }
        )
    return sorted(result, key=lambda worker: str(worker["id"]))


# ---------------------------------------------------------------- result


def table(rows: list[Json], simulated: bool) -> Table:
    """Show what was seen."""
    title = "GPU pinning (SIMULATED: nothing was trained)" if simulated else "GPU pinning"
    shown = Table("worker", "pinned to", "trained on", "its nvidia-smi", "verdict", title=title, title_justify="left")
    for row in rows:
        report = row["report"]
        smi = [gpu["uuid"] for gpu in report.get("smi") or []]
        trained = report.get("cuda") or report.get("torch") or []
        verdict = {"ok": f"ok, by {row['proof']}" if row["gpus"] else "ok", "waiting": row["message"]}
        shown.add_row(
            row["worker"],
            pin(row),
            " ".join(trained) or "nothing",
            " ".join(smi) or "nothing",
            verdict.get(row["state"], row["state"].upper()),
        )
    return shown


def apart(rows: list[Json]) -> list[str]:
    """Name the workers whose trainings did not all run in the same moment: how they share was not tried."""
    spans = [(row["worker"], row["report"].get("trained")) for row in rows if row["report"].get("trained")]
    if not spans:
        return []
    first_end = min(span["to"] for _, span in spans)
    return [worker for worker, span in spans if span["from"] >= first_end]


def prove(console: Console, errors: Console, options: Options) -> bool:
    """Send the trainings and show what they saw; tell whether every worker is proven."""
    api, web_url = log_in(options.site)
    with api:
        probes = Probes(
            lambda endpoint, arguments: api.call(endpoint, **arguments),
            ApiError,
            web_url,
            train_seconds=0.0 if options.simulated else options.seconds,
        )
        workers = described(api.call("workers.get_all")["workers"], options.worker)
        rows = probes.run(workers, SCRIPT.read_text(), options.image, options.timeout)
    console.print(table(rows, options.simulated))
    for row in rows:
        if row["state"] not in ("ok", "waiting"):
            errors.print(f"gpu_pin: {row['message']}", markup=False)
    late = apart(rows)
    if late:
        errors.print(
            f"gpu_pin: {', '.join(late)} trained when others had ended already; give more --seconds", markup=False
        )
    return all(row["state"] == "ok" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and turn what went wrong into one message and an exit status."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return 0 if prove(console, errors, options) else 1
    except InputError as error:
        errors.print(f"gpu_pin: {error}", markup=False)
        return 2
    except ApiError as error:
        errors.print(f"gpu_pin: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("gpu_pin: interrupted", markup=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())
