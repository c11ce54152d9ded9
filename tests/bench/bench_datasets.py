"""Measure datasets: upload and download against the stock SDK, the second use, and looking into a million files.

    .venv/bin/python tests/bench/bench_datasets.py [--files 2000] [--megabytes 500] [--entries 1000000] [--json FILE]

It starts its own lite server on free ports with its own data. Every measurement is a fresh process that has imported
the SDK and logged in before its clock starts, as an experiment has, with the disk's queue empty. It prints a table of
goals; it asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_lite import Row, Server, console, show

PROJECT = "bench"
_FOLDERS = 20
_PROGRAM = """
import json, os, sys, time
from pathlib import Path
sys.stdout = sys.stderr
import clearml.backend_api, clearml_client.datasets
from clearml_client.datasets import ClearmlStore, open_dataset
project = "{project}"
asked = json.loads(sys.argv[1])
clearml.backend_api.Session()  # as in an experiment: the SDK has read its configuration and knows the server
begin = time.perf_counter()
{body}
seconds = time.perf_counter() - begin
print(json.dumps([seconds, answer]), file=sys.__stdout__)
"""

STOCK_UPLOAD = """
dataset = clearml.Dataset.create(dataset_project=project, dataset_name="stock", dataset_version=asked["version"])
dataset.add_files(asked["folder"])
dataset.upload(show_progress=False, preview=False)
dataset.finalize()
answer = dataset.id
"""
STOCK_GET = """
dataset = clearml.Dataset.get(dataset_project=project, dataset_name="stock")
answer = dataset.get_local_copy()
"""
OUR_UPLOAD = """
answer = ClearmlStore(project).upload(Path(asked["folder"]), "ours", version=asked["version"]).id
"""
OUR_GET = """
answer = str(open_dataset("ours", project=project))
"""
TREE = """
found = ClearmlStore(project).tree("million", **asked)
answer = [found.total, found.files]
"""
MILLION = """
import hashlib
from clearml_client.datasets import _claims, _upload
from clearml_client.datasets._remote import artifact_uri, connect
from clearml_client.datasets.index import Entry, Source, write_index
server = connect()
server.make_project(project + "/.datasets", ["hidden"])
hidden = project + "/.datasets/million"
place = server.make_project(hidden, ["hidden", "dataset"])
task = _claims.claim(
    server, project_id=place, name="million", version="1.0.0", tags=[], parents=[], comment=""
)
count = asked["entries"]
def entry(number):
    path = f"drive-{{number // 20_000:04d}}/camera-{{number // 2_000 % 10}}/{{number:08d}}.png"
    digest = hashlib.sha256(path.encode()).hexdigest()
    return Entry(path, 100_000 + number % 5_000, digest, Source(task.id, _claims.pack_key(number // 2_500)))
entries = sorted(entry(number) for number in range(count))
begin_index = time.perf_counter()
file = Path(asked["folder"]) / "index.zip"
graph = {{task.id: []}}
write_index(file, entries, {{"id": task.id, "parents": [], "graph": graph, "metadata": {{"sensor": "camera"}}}})
writing = time.perf_counter() - begin_index
uri = server.files.upload(file, artifact_uri(server.files_address, hidden, "million", task.id, "index", "index.zip"))
server.add_artifact(task.id, "index", uri, size=file.stat().st_size, sha256="", preview="")
begin_state = time.perf_counter()
if asked["state"]:
    _upload._finalize(task.id, entries, graph, {{"files added": count}}, 0)
else:
    server.call("tasks.completed", task=task.id, force=True)
server.call("tasks.update", task=task.id, system_tags=["dataset"])
answer = [writing, file.stat().st_size, time.perf_counter() - begin_state]
"""


class Bench:
    """A server, and processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        self.server.start()
        api, web, files = self.server.ports
        urls = {"api": api, "web": web, "files": files}
        settings = {
            "api": {
                **{f"{name}_server": f"http://127.0.0.1:{port}" for name, port in urls.items()},
                "credentials": {"access_key": self.server.key, "secret_key": self.server.secret},
            },
            "sdk": {"storage": {"cache": {"default_base_dir": str(folder / "sdk")}}},
        }
        (folder / "clearml.conf").write_text(json.dumps(settings))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLEARML_")}
        self.environment = {
            **kept,
            "CLEARML_CONFIG_FILE": str(folder / "clearml.conf"),
            "CLEARML_CLIENT_CACHE": str(folder / "cache"),
        }

    def run(self, body: str, **asked: Any) -> tuple[float, Any]:
        """Run a program's body in a process of its own; answers its seconds and its result."""
        os.sync()
        program = _PROGRAM.format(project=PROJECT, body=body.replace("{{", "{").replace("}}", "}"))
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(asked)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        seconds, answer = json.loads(done.stdout.splitlines()[-1])
        return float(seconds), answer

    def command(self, *words: str) -> float:
        """Run ``clearml-client data``, its start included; answers the seconds."""
        os.sync()
        begin = time.perf_counter()
        command = [sys.executable, "-m", "clearml_client.cli.data", *words, "--project", PROJECT]
        subprocess.run(command, env=self.environment, capture_output=True, check=True)
        return time.perf_counter() - begin

    def forget(self) -> None:
        """Empty the node's caches."""
        for name in ("sdk", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def make_files(folder: Path, count: int, megabytes: int) -> int:
    """Make pictures (noise, as compressed ones are) and a label beside each; answers their bytes."""
    dice = random.Random(1)
    each = megabytes * 1_000_000 * 2 // count
    total = 0
    for number in range(count // 2):
        place = folder / f"drive-{number % _FOLDERS:02d}"
        place.mkdir(parents=True, exist_ok=True)
        picture = os.urandom(max(1, each + dice.randrange(-each // 3, each // 3)))
        boxes = [{"class": "car", "box": [dice.randrange(1000) for _ in range(4)]} for _ in range(10)]
        (place / f"{number:06d}.png").write_bytes(picture)
        (place / f"{number:06d}.json").write_text(json.dumps(boxes))
        total += len(picture)
    return total


def bench_transfer(bench: Bench, count: int, megabytes: int) -> list[Row]:
    source = bench.folder / "source"
    make_files(source, count, megabytes)
    stock_up = min(bench.run(STOCK_UPLOAD, folder=str(source), version=f"1.0.{number}")[0] for number in range(2))
    our_up = min(bench.run(OUR_UPLOAD, folder=str(source), version=f"1.0.{number}")[0] for number in range(2))
    stock_get = our_get = float("inf")
    for _ in range(2):
        bench.forget()
        stock_get = min(stock_get, bench.run(STOCK_GET)[0])
        seconds, place = bench.run(OUR_GET)
        our_get = min(our_get, seconds)
    copying = _timed(lambda: shutil.copytree(source, bench.folder / "copy"))
    before = _disk(bench.folder)
    second = min(bench.run(OUR_GET)[0] for _ in range(5))
    added = _disk(bench.folder) - before
    same = subprocess.run(["diff", "-r", str(source), place], check=False).returncode == 0
    label = f"{count:,} files, {megabytes} MB"
    return [
        Row(f"upload, stock SDK ({label})", "", stock_up, "s"),
        Row("upload, clearml_client", "<= stock", our_up, "s", our_up <= stock_up),
        Row("  ratio", "", stock_up / our_up, "x"),
        Row("fresh get, stock SDK", "", stock_get, "s"),
        Row("fresh get, clearml_client (each hash checked)", "<= stock", our_get, "s", our_get <= stock_get),
        Row("  ratio", "", stock_get / our_get, "x"),
        Row("the files are the same", "1", float(same), "", same),
        Row("plain copy of the folder", "", copying, "s"),
        Row("second use, clearml_client", "", second * 1000, "ms"),
        Row("  against a fresh stock get", ">= 50", stock_get / second, "x", stock_get / second >= 50),
        Row("  against a plain copy", ">= 50", copying / second, "x", copying / second >= 50),
        Row("  disk that it takes", "0", float(added), "bytes", added == 0),
    ]


def bench_million(bench: Bench, entries: int, *, state: bool) -> list[Row]:
    bench.forget()
    (bench.folder / "million").mkdir()
    _, (writing, size, publishing) = bench.run(
        MILLION, entries=entries, folder=str(bench.folder / "million"), state=state
    )
    label = f"{entries:,} entries"
    rows = [Row(f"writing the index ({label})", "", writing, "s"), Row("  its size", "", size / 1e6, "MB")]
    if state:
        rows.append(Row("  the SDK's state and tables", "", publishing, "s"))
    for what, asked in (
        ("tree, 2 levels", {"depth": 2}),
        ("ls -l of one folder", {"folder": "drive-0007/camera-3", "files": True}),
        ("ls --glob '*777.png'", {"glob": "*777.png"}),
        ("ls -l of all, page 3,000", {"files": True, "depth": None, "page": min(3_000, entries // 200)}),
    ):
        bench.forget()
        fresh, _ = bench.run(TREE, **asked)
        again, _ = bench.run(TREE, **asked)
        rows.append(Row(f"{what}, fetch included", "<= 2.0", fresh, "s", fresh <= 2.0))
        rows.append(Row("  again", "", again, "s"))
    bench.forget()
    whole = bench.command("tree", "million", "--depth", "1")
    rows.append(Row("the command `tree`, start of Python included", "<= 2.0", whole, "s", whole <= 2.0))
    return rows


def _timed(call: Callable[[], object]) -> float:
    os.sync()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _disk(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_dir())


def main() -> int:
    """Run the benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the measurements to this file too")
    parser.add_argument("--files", type=int, default=2_000, help="files of the transfer (default %(default)s)")
    parser.add_argument("--megabytes", type=int, default=500, help="their size (default %(default)s)")
    parser.add_argument("--entries", type=int, default=1_000_000, help="files of the listing (default %(default)s)")
    parser.add_argument("--state", action="store_true", help="let the SDK write the listing's state too")
    parser.add_argument("--only", default="transfer,million", help="comma-separated parts: transfer, million")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-datasets-", dir=arguments.folder))
    bench = Bench(folder)
    rows: list[Row] = []
    try:
        if "transfer" in arguments.only:
            console.print("transfer ...")
            rows += bench_transfer(bench, arguments.files, arguments.megabytes)
        if "million" in arguments.only:
            console.print("million ...")
            rows += bench_million(bench, arguments.entries, state=arguments.state)
    finally:
        bench.server.close()
        shutil.rmtree(folder, ignore_errors=True)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    show(f"datasets ({machine})", rows, arguments.json, {"machine": machine})
    return 0


if __name__ == "__main__":
    sys.exit(main())
