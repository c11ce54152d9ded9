"""Measure the lite server: start, memory, events, lists, curves and polling agents.

    .venv/bin/python tests/bench/bench_lite.py [--json FILE] [--only start,events,lists,curves,agents]

It starts its own server on free ports with its own data, and talks to it over HTTP from several processes, as
training scripts, pages and agents do.  It prints a table of goals and measurements; it asserts nothing.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import multiprocessing
import os
import platform
import secrets
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

START_RUNS = 5
CLIENTS = 4
EVENTS_PER_BATCH = 500
BATCHES_PER_CLIENT = 100
TASKS = 10_000
PAGE = 500
LIST_CALLS = 60
POINTS = 100_000
READS = 15
AGENTS = 64
AGENT_PROCESSES = 4
POLL_SEC = 5.0
REPORT_SEC = 30.0  # how often an agent sends its machine's figures
AGENT_WINDOW_SEC = 30.0
QUEUES_PER_AGENT = 3

LIST_FIELDS = [
    "id", "name", "type", "status", "project", "user", "tags", "system_tags", "created", "started", "completed",
    "last_update", "last_iteration", "last_worker", "status_message", "active_duration",
]  # fmt: skip

console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass
class Row:
    """One line of the table."""

    what: str
    goal: str
    measured: float
    unit: str
    met: bool | None = None


class Api:
    """One client with one connection that it keeps."""

    def __init__(self, port: int, key: str, secret: str, host: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=120)
        basic = base64.b64encode(f"{key}:{secret}".encode()).decode()
        token = self.call("auth.login", {}, headers={"Authorization": f"Basic {basic}"})["token"]
        self._headers = {"Authorization": f"Bearer {token}"}

    def send(self, name: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Send a call whose body is ready; answers status and body."""
        if headers is None:
            headers = self._headers
        self._connection.request("POST", f"/v2.30/{name}", body, {"Content-Type": "application/json", **headers})
        if self._connection.sock:
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def call(self, name: str, data: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Make a call; answers its data."""
        status, body = self.send(name, json.dumps(data).encode(), headers)
        answer = json.loads(body)
        if status != 200:
            raise RuntimeError(f"{name}: {status} {answer['meta']['result_msg']}")
        data = answer["data"]
        assert isinstance(data, dict)
        return data

    def batch(self, lines: bytes) -> int:
        """Send events; answers how many were added."""
        headers = {**self._headers, "Content-Type": "application/json-lines"}
        status, body = self.send("events.add_batch", lines, headers)
        if status != 200:
            raise RuntimeError(f"events.add_batch: {status} {body[:300]!r}")
        return int(json.loads(body)["data"]["added"])


class Server:
    """A lite server of our own: a subprocess, free ports, a data folder that goes with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-lite-"))
        self.key, self.secret = "BENCHKEY" + secrets.token_hex(6), "s" + secrets.token_hex(16)
        self.ports = _free_ports(3)
        config = self.folder / "config"
        config.mkdir()
        (config / "apiserver.conf").write_text("auth { fixed_users { enabled: true, pass_hashed: true, users: [] } }\n")
        (config / "secure.conf").write_text(
            f'http {{ session_secret {{ apiserver: "{secrets.token_hex(16)}" }} }}\n'
            f'auth {{ token_secret: "{secrets.token_hex(16)}" }}\n'
            "credentials {\n"
            f'  apiserver {{ role: "system", user_key: "SYS{secrets.token_hex(6)}", user_secret: "x{self.secret}" }}\n'
            f'  bench {{ role: "user", display_name: "bench", user_key: "{self.key}", user_secret: "{self.secret}" }}\n'
            "}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start the process; answers the seconds until the API answers."""
        api, web, files = self.ports
        command = [
            sys.executable, "-m", "trainyard_lite", "serve", "--host", "127.0.0.1",
            "--config-dir", str(self.folder / "config"), "--data-dir", str(self.folder / "data"),
            "--api-port", str(api), "--web-port", str(web), "--files-port", str(files),
        ]  # fmt: skip
        log = (self.folder / "log").open("ab")
        begin = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while time.perf_counter() - begin < 60:
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            if all(_answers(port, path) for port, path in ((api, "/debug.ping"), (files, "/"), (web, "/"))):
                return time.perf_counter() - begin
            time.sleep(0.01)
        raise RuntimeError("the server does not answer")

    def stop(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stop, and remove the data."""
        self.stop()
        shutil.rmtree(self.folder)

    def api(self) -> Api:
        """Make a client."""
        return Api(self.ports[0], self.key, self.secret)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        (found,) = (self.folder / "data").rglob("lite.db")
        return found

    def cpu_sec(self) -> float:
        """Give the processor time used so far."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Give the resident memory."""
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 400
    except OSError:
        return False
    finally:
        connection.close()


def percentile(values: Sequence[float], share: float) -> float:
    """Give the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run_processes(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> tuple[list[Any], float]:
    """Run a function in processes that begin together; answers what they put, and the seconds that they took.

    The function gets a barrier, a queue for its result, and its arguments.
    """
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(len(arguments) + 1), context.Queue()
    processes = [context.Process(target=target, args=(barrier, results, *rest)) for rest in arguments]
    for process in processes:
        process.start()
    barrier.wait(120)
    begin = time.perf_counter()
    found = [results.get(timeout=300) for _ in processes]
    took = time.perf_counter() - begin
    for process in processes:
        process.join(30)
    return found, took


# Events


def _scalar_lines(task: str, first: int, count: int, series: int) -> bytes:
    lines = []
    for number in range(first, first + count):
        iteration, metric = divmod(number, series)
        event = {
            "model_event": False, "task": task, "type": "training_stats_scalar", "metric": f"metric {metric // 2}",
            "variant": ("train", "validation")[metric % 2], "iter": iteration, "value": 1.0 / (iteration + 1) + metric,
            "timestamp": 1_700_000_000_000 + iteration * 20,
        }  # fmt: skip
        lines.append(json.dumps(event))
    return "\n".join(lines).encode()


def _event_client(barrier: Any, results: Any, server: Server, task: str, size: int, batches: int) -> None:
    api = server.api()
    bodies = [_scalar_lines(task, number * size, size, 10) for number in range(batches)]
    barrier.wait(120)
    added, times = 0, []
    for body in bodies:
        begin = time.perf_counter()
        added += api.batch(body)
        times.append(time.perf_counter() - begin)
    results.put((added, times))


def bench_events(server: Server) -> list[Row]:
    """Send scalars from several processes, each for its own task."""
    rows = []
    for size, batches, goal in ((EVENTS_PER_BATCH, BATCHES_PER_CLIENT, 5000), (20, 100, None)):
        api = server.api()
        tasks = [new_task(api, f"events {size} {number}") for number in range(CLIENTS)]
        cpu = server.cpu_sec()
        found, took = run_processes(_event_client, [(server, task, size, batches) for task in tasks])
        cpu = server.cpu_sec() - cpu
        added = sum(number for number, _ in found)
        assert added == CLIENTS * size * batches
        for task in tasks:  # nothing is lost
            curves = api.call("events.scalar_metrics_iter_histogram", {"task": task, "samples": 6000})
            assert sum(len(c["x"]) for variants in curves.values() for c in variants.values()) == size * batches
        rate = added / took
        what = f"scalar events/s, {CLIENTS} clients, batches of {size}"
        rows.append(Row(what, f">= {goal}" if goal else "", rate, "events/s", rate >= goal if goal else None))
        times = [t * 1000 for _, some in found for t in some]
        rows.append(Row(f"  one batch of {size}, p95", "", percentile(times, 0.95), "ms"))
        rows.append(Row("  server processor time for an event", "", cpu / added * 1e6, "us"))
    return rows


def new_task(api: Api, name: str, **more: Any) -> str:
    """Create a task."""
    return str(api.call("tasks.create", {"name": name, "type": "training", **more})["id"])


# Lists


def seed_tasks(server: Server) -> None:
    """Fill the table with copies of a task that went through the API, as large as real ones are."""
    api = server.api()
    names = [f"bench/project {number}" for number in range(20)]
    projects = [str(api.call("projects.create", {"name": name, "description": ""})["id"]) for name in names]
    parameters = {
        section: {
            f"parameter_{n}": {"section": section, "name": f"parameter_{n}", "value": str(n * 0.37), "type": "float"}
            for n in range(20)
        }
        for section in ("Args", "General")
    }
    script = {
        "repository": "https://git.example/perception/detectors.git", "branch": "main", "version_num": "a" * 40,
        "entry_point": "train.py", "working_dir": ".", "binary": "python3", "diff": "",
        "requirements": {"pip": "\n".join(f"package-{n} == 1.{n}.0" for n in range(40))},
    }  # fmt: skip
    task = new_task(api, "template", project=projects[0], hyperparams=parameters, script=script, tags=["bench"])
    for _ in range(1):
        api.batch(_scalar_lines(task, 0, 2000, 20))
    with sqlite3.connect(server.database, timeout=60) as db:
        (text,) = db.execute("SELECT doc FROM task WHERE id = ?", (task,)).fetchone()
        doc = json.loads(text)
        statuses = ("created", "queued", "in_progress", "stopped", "published", "completed", "failed")
        for number in range(TASKS - db.execute("SELECT count(*) FROM task").fetchone()[0]):
            moment = f"2026-01-{1 + number % 28:02d}T{number % 24:02d}:{number % 60:02d}:00.000000+00:00"
            doc |= {
                "id": uuid.uuid4().hex, "name": f"experiment {number}", "project": projects[number % len(projects)],
                "status": statuses[number % len(statuses)], "last_update": moment, "created": moment,
            }  # fmt: skip
            db.execute("INSERT INTO task (id, doc) VALUES (?, ?)", (doc["id"], json.dumps(doc)))
    console.print(f"{TASKS} tasks of {len(text) / 1000:.1f} kB each")


def timed(api: Api, name: str, requests: Sequence[Any]) -> list[float]:
    """Make calls; answers the milliseconds of each."""
    times = []
    for request in requests:
        body = json.dumps(request).encode()
        begin = time.perf_counter()
        status, answer = api.send(name, body)
        times.append((time.perf_counter() - begin) * 1000)
        if status != 200:
            raise RuntimeError(f"{name}: {status} {answer[:300]!r}")
    return times


def bench_lists(server: Server) -> list[Row]:
    """List 500 of 10,000 tasks in the ways the SDK and pages do."""
    seed_tasks(server)
    api = server.api()
    projects = [p["id"] for p in api.call("projects.get_all", {"only_fields": ["id"], "page_size": 20})["projects"]]
    base = {"page_size": PAGE, "order_by": ["-last_update"]}
    pages = TASKS // PAGE
    variants: list[tuple[str, str, Callable[[int], Any]]] = [
        ("tasks.get_all, whole tasks", "tasks.get_all", lambda n: base | {"page": n % pages}),
        (
            "tasks.get_all, only_fields",
            "tasks.get_all",
            lambda n: base | {"page": n % pages, "only_fields": LIST_FIELDS},
        ),
        (
            "tasks.get_all_ex, project, not archived, only_fields",
            "tasks.get_all_ex",
            lambda n: (
                base
                | {
                    "page": 0,
                    "project": [projects[n % len(projects)]],
                    "system_tags": ["-archived"],
                    "only_fields": [*LIST_FIELDS, "project.name", "user.name"],
                }
            ),
        ),
    ]
    rows = []
    for what, name, make in variants:
        times = timed(api, name, [make(number) for number in range(LIST_CALLS)])
        p95 = percentile(times, 0.95)
        rows.append(Row(f"{what}: p50", "", statistics.median(times), "ms"))
        rows.append(Row(f"{what}: p95", "< 150", p95, "ms", p95 < 150))
    return rows


# Curves


def bench_curves(server: Server) -> list[Row]:
    """Read 100,000 points, as a curve and raw."""
    api = server.api()
    rows = []
    for series in (1, 10):
        task = new_task(api, f"curves {series}")
        for first in range(0, POINTS, 5000):
            api.batch(_scalar_lines(task, first, 5000, series))
        for axis in ("iter", "timestamp"):
            times = timed(api, "events.scalar_metrics_iter_histogram", [{"task": task, "key": axis}] * READS)
            p95 = percentile(times, 0.95)
            what = f"{POINTS} points in {series} series, curve over {axis}: p95"
            rows.append(Row(what, "< 300", p95, "ms", p95 < 300))
        if series == 1:
            request = {"task": task, "metric": {"metric": "metric 0"}, "batch_size": POINTS}
            p95 = percentile(timed(api, "events.scalar_metrics_iter_raw", [request] * READS), 0.95)
            rows.append(Row(f"{POINTS} points raw: p95", "< 300", p95, "ms", p95 < 300))
    return rows


# Agents


def _agents(barrier: Any, results: Any, server: Server, first: int, count: int, queues: list[list[str]]) -> None:
    deadline: list[float] = []
    failures: list[str] = []
    calls = [0]

    def agent(number: int, api: Api) -> None:
        worker = f"BENCH-{number}:gpu{number % 8}"
        stats = {
            "cpu_usage": [12.5, 3.0], "cpu_temperature": [], "memory_used": 9000, "memory_free": 7000,
            "network_rx": 1.0, "network_tx": 1.0, "disk_free_home": 90.0, "disk_read": 0.0, "disk_write": 0.0,
            "gpu_usage": [97.0], "gpu_temperature": [60.0], "gpu_memory_used": [9000.0], "gpu_memory_free": [2000.0],
        }  # fmt: skip
        begin = time.monotonic() + POLL_SEC * (number - first) / count
        next_report = begin + REPORT_SEC * (number - first) / count
        due = begin
        while due < deadline[0]:
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                api.call("queues.get_all", {"id": queues[number - first], "only_fields": ["id", "tags"]})
                for queue in queues[number - first]:
                    api.call("queues.get_next_task", {"queue": queue})
                calls[0] += 1 + QUEUES_PER_AGENT
                if time.monotonic() >= next_report:
                    next_report += REPORT_SEC
                    report = {"worker": worker, "timestamp": int(time.time() * 1000), "machine_stats": stats}
                    api.call("workers.status_report", report | {"queues": queues[number - first], "is_daemon": True})
                    calls[0] += 1
            except Exception as error:
                failures.append(str(error))
                return
            due += POLL_SEC

    apis = [server.api() for _ in range(count)]
    for number, api in enumerate(apis, first):
        worker = {"worker": f"BENCH-{number}:gpu{number % 8}", "queues": queues[number - first], "timeout": 600}
        api.call("workers.register", worker)
    barrier.wait(120)
    deadline.append(time.monotonic() + AGENT_WINDOW_SEC + 2 * POLL_SEC)
    threads = [threading.Thread(target=agent, args=(n, api)) for n, api in enumerate(apis, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((calls[0], failures))


def bench_agents(server: Server) -> list[Row]:
    """Let 64 idle agents poll; none of their queues holds a task."""
    api = server.api()
    shared = str(api.call("queues.create", {"name": "bench all"})["id"])
    queues: list[list[str]] = []
    for number in range(AGENTS):
        own = str(api.call("queues.create", {"name": f"bench {number}"})["id"])
        node = queues[-1][1] if number % 8 else str(api.call("queues.create", {"name": f"bench node {number}"})["id"])
        queues.append([own, node, shared])
    share = AGENTS // AGENT_PROCESSES
    used: list[float] = []

    def watch() -> None:
        time.sleep(POLL_SEC)  # until all of them poll
        before = server.cpu_sec()
        time.sleep(AGENT_WINDOW_SEC)
        used.append((server.cpu_sec() - before) / AGENT_WINDOW_SEC * 100)

    # Before the processes fork there must be no thread: the watch begins in a process of its own start.
    arguments = [(server, n * share, share, queues[n * share : (n + 1) * share]) for n in range(AGENT_PROCESSES)]
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(AGENT_PROCESSES + 1), context.Queue()
    processes = [context.Process(target=_agents, args=(barrier, results, *rest)) for rest in arguments]
    for process in processes:
        process.start()
    barrier.wait(120)
    watch()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    failures = [text for _, some in found for text in some]
    if failures:
        raise RuntimeError(failures[0])
    calls = sum(number for number, _ in found)
    rate = calls / (AGENT_WINDOW_SEC + 2 * POLL_SEC)
    return [
        Row(f"{AGENTS} agents polling at {POLL_SEC:.0f} s: share of a core", "< 10", used[0], "%", used[0] < 10),
        Row("  their calls", "", rate, "calls/s"),
    ]


def bench_start(server: Server) -> list[Row]:
    """Start the server on its (empty) data, and let it sit idle."""
    times = []
    for _ in range(START_RUNS):
        times.append(server.start())
        server.stop()
    server.start()
    time.sleep(3)
    memory, median = server.memory_mb(), statistics.median(times)
    server.stop()
    return [
        Row(f"start until all three ports answer, median of {START_RUNS}", "< 2", median, "s", median < 2),
        Row("idle memory", "< 150", memory, "MB", memory < 150),
    ]


def show(title: str, rows: Sequence[Row], file: Path | None, more: dict[str, Any]) -> None:
    """Print the table, and write it to a file when one is named."""
    table = Table(title=title)
    for heading, justify in (
        ("what", "left"),
        ("goal", "right"),
        ("measured", "right"),
        ("unit", "left"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        verdict = "" if row.met is None else "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, row.goal, f"{row.measured:,.1f}", row.unit, verdict)
    console.print(table)
    if file:
        file.write_text(json.dumps({**more, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


BENCHES: dict[str, Callable[[Server], list[Row]]] = {
    "start": bench_start,
    "events": bench_events,
    "curves": bench_curves,
    "lists": bench_lists,
    "agents": bench_agents,
}


def main() -> int:
    """Run the chosen benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the measurements to this file too")
    parser.add_argument("--only", default=",".join(BENCHES), help="comma-separated parts: " + ", ".join(BENCHES))
    arguments = parser.parse_args()
    rows: list[Row] = []
    server = Server()
    try:
        for name in arguments.only.split(","):
            console.print(f"{name} ...")
            if name == "start":
                rows += bench_start(server)
                continue
            server.start()
            rows += BENCHES[name](server)
            if name == "lists":
                rows.append(Row("memory after the lists", "", server.memory_mb(), "MB"))
            server.stop()
    finally:
        server.close()
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    show(f"lite server ({machine})", rows, arguments.json, {"machine": machine})
    return 0


if __name__ == "__main__":
    sys.exit(main())
