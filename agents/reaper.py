#!/usr/bin/env python3
"""The reaper of a node: does, once a minute, what no worker can do for itself.

A worker that lives adopts or settles its own experiments, also after a restart.  What is left is done here:

A. Orphans: experiment containers whose worker's container is gone or stopped are stopped and removed.
B. Dead workers: experiments that a queue gave to a worker which fell silent are put back into that queue, or failed.
C. Images: when Docker's disk gets full, images that nothing used for long are removed.
D. ``reaper.prom``: what was done, for Prometheus (node exporter's textfile collector).

Each job is isolated: one that fails is told and counted, and the others go on.

Environment
-----------
``CLEARML_REAPER_NODE`` (no default)
    The node, as in the label ``trainyard.node`` of its workers.
``CLEARML_REAPER_INTERVAL`` (60)
    Seconds between two passes.
``CLEARML_REAPER_ORPHAN_SECONDS`` (300)
    How long a worker's container must be away before its experiments' containers are removed.
``CLEARML_REAPER_DEAD_SECONDS`` (300)
    How long a worker and its experiment must both be silent before the experiment is settled; agents report every 30 s.
``CLEARML_REAPER_SETTLE`` (requeue)
    ``requeue`` puts the experiment back in front of its queue, ``fail`` marks it failed.
``CLEARML_REAPER_MAX_REQUEUES`` (2)
    How often one experiment is put back before it is failed.
``CLEARML_REAPER_IMAGE_DAYS`` (14)
    Images that no container used for so many days may go; 0 switches C off.
``CLEARML_REAPER_IMAGE_DISK_PERCENT`` (80)
    ... while Docker's disk is fuller than this, as ``df`` counts.
``CLEARML_REAPER_KEEP_IMAGES`` (empty)
    Images that stay whatever happens: names or patterns, by spaces, such as ``trainyard/agent:0.1.0 trainyard/*``.
``CLEARML_REAPER_DISK_PATH`` (/)
    A path on Docker's disk.  The root of any container is: its file system tells the numbers of the one below.
``CLEARML_REAPER_STATE`` (/var/lib/trainyard-reaper)
    Folder of ``reaper.json`` (memory and counters), ``images.json`` (last use of images) and ``reaper.prom``.
``CLEARML_REAPER_DRY_RUN`` (0)
    1 tells what would be done, once for each thing, and does nothing.
``CLEARML_CONFIG_FILE`` (/etc/clearml/clearml.conf)
    The node's clearml.conf: the API's address and the node's key.

Whose containers
----------------
Experiments of an agent that somebody runs by hand on this host look the same.  So a container counts as this node's
only if this reaper once saw the worker's own container (label ``trainyard.node``), or the worker's name begins with
``<node>-``, as the role names workers.

Who settles
-----------
Every node has a reaper.  The one with the alphabetically first live worker of the site settles what is dead in two
passes in a row; any other waits two passes more for each live worker before its own first, so it acts only if those
before it do not.  A node without a live worker settles nothing.  Time in which the server was out of reach does not
count: after an outage agents need a while to come back.

How an experiment gets back into its queue
------------------------------------------
settle.py, the same for worker and reaper. An experiment that another settler stopped for this and did not put back, and
one that a worker pulled and never started, are settled too, whoever left them: the server's state says what is left.

The official server's ``workers.unregister`` knows only the workers of the caller's own account: another node's dead
worker leaves its list by itself, after 10 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import requests
import settle
from watchdog import Watchdog

Json = dict[str, Any]

DAY = 86400
ALIVE = ("running", "restarting", "paused")
JOBS = ("orphans", "tasks", "images")
# Old endpoints all, so that older servers answer too.
API_VERSION = "v2.23"
COUNTERS = {
    "orphans_removed_total": "Experiment containers without a worker, or left over, that were removed.",
    'tasks_settled_total{how="requeue"}': "Experiments of dead workers that were settled.",
    'tasks_settled_total{how="fail"}': "",
    'tasks_settled_total{how="stop"}': "",
    "workers_unregistered_total": "Dead workers that were taken off the server's list.",
    "images_removed_total": "Images that were removed.",
    "image_bytes_freed_total": "Bytes that Docker's disk had more after images were removed.",
    **{f'errors_total{{job="{job}"}}': "" if n else "Things that failed, by job." for n, job in enumerate(JOBS)},
}


class ReaperError(Exception):
    """Something did not work, said in words for the log."""


class RefusedError(ReaperError, settle.RefusedError):
    """The server answered, and said no."""


class Stopped(BaseException):
    """SIGTERM came; not an Exception, so that no job takes it for a failure of its own."""


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the top of this file."""

    node: str
    interval: int = 60
    orphan_seconds: int = 300
    dead_seconds: int = 300
    settle: str = "requeue"
    max_requeues: int = 2
    image_days: int = 14
    image_disk_percent: int = 80
    keep_images: tuple[str, ...] = ()
    disk_path: Path = Path("/")
    state: Path = Path("/var/lib/trainyard-reaper")
    dry_run: bool = False
    config: Path = Path("/etc/clearml/clearml.conf")

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment.

        Raises:
            ReaperError: for a value that makes no sense.
        """
        given = {key: value.strip() for key, value in environment.items() if value.strip()}

        def text(name: str, default: str, allowed: tuple[str, ...] = ()) -> str:
            value = given.get(f"CLEARML_REAPER_{name}", default)
            if allowed and value not in allowed:
                raise ReaperError(f"CLEARML_REAPER_{name} is {value!r}; write {' or '.join(allowed)}")
            return value

        def number(name: str, default: int, low: int, high: int = 10**9) -> int:
            value = text(name, str(default))
            if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
                raise ReaperError(f"CLEARML_REAPER_{name} is {value!r}; write a whole number from {low} to {high}")
            return int(value)

        node = text("NODE", "")
        if not node:
            raise ReaperError(
                "CLEARML_REAPER_NODE is not set; write the node's name, as in trainyard.node of its workers"
            )
        return cls(
            node=node,
            interval=number("INTERVAL", cls.interval, 1),
            orphan_seconds=number("ORPHAN_SECONDS", cls.orphan_seconds, 1),
            dead_seconds=number("DEAD_SECONDS", cls.dead_seconds, 1),
            settle=text("SETTLE", cls.settle, ("requeue", "fail")),
            max_requeues=number("MAX_REQUEUES", cls.max_requeues, 0),
            image_days=number("IMAGE_DAYS", cls.image_days, 0),
            image_disk_percent=number("IMAGE_DISK_PERCENT", cls.image_disk_percent, 1, 100),
            keep_images=tuple(text("KEEP_IMAGES", "").split()),
            disk_path=Path(text("DISK_PATH", str(cls.disk_path))),
            state=Path(text("STATE", str(cls.state))),
            dry_run=text("DRY_RUN", "0", ("0", "1")) == "1",
            config=Path(given.get("CLEARML_CONFIG_FILE", str(cls.config))),
        )


@dataclass
class Memory:
    """What a pass must know of those before it; kept in ``reaper.json``.

    Attributes:
        last_pass: when the last pass ended.
        last_success: when the last pass ended in which nothing failed.
        watching_since: since when every pass reached the server; None: the last one did not.
        workers: ids of all workers of this node that were ever seen here.
        orphans: when each container without a worker was first seen so.
        dead: passes in a row in which a task was found dead, by task and its last sign of life.
        silent: the same of workers.
        counters: of ``reaper.prom``.
    """

    last_pass: float = 0
    last_success: float = 0
    watching_since: float | None = None
    workers: list[str] = field(default_factory=list)
    orphans: dict[str, float] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)
    silent: dict[str, int] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)

    def forget_server(self) -> None:
        """Begin anew to watch who is silent."""
        self.watching_since = None
        self.dead, self.silent = {}, {}


@dataclass(frozen=True)
class Container:
    """A container, as far as the reaper cares."""

    id: str
    name: str
    image: str
    status: str
    since: str
    labels: dict[str, str]

    @property
    def worker(self) -> str | None:
        """The worker whose agent this is."""
        return self.labels.get("trainyard.worker")

    @property
    def owner(self) -> str | None:
        """The worker whose experiment this is."""
        if self.worker or "clearml-worker-id" not in self.labels:
            return None
        # An experiment in services mode has a worker id of its own, <worker>:service:<task>.
        return (self.labels.get("clearml-parent-worker-id") or self.labels["clearml-worker-id"]).split(":service:")[0]


def docker(*arguments: str, timeout: int = 60, accept: tuple[str, ...] = ()) -> str:
    """Run the Docker client and give what it printed.

    Raises:
        ReaperError: if it fails, unless its message contains one of ``accept``.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments],  # where the image put it, or the test's stand-in
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReaperError(f"docker {arguments[0]}: {error}") from error
    if done.returncode != 0 and not any(words in done.stderr for words in accept):
        raise ReaperError(f"docker {' '.join(arguments[:2])}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout


def containers() -> list[Container]:
    """List all containers.  Not by ``docker ps`` alone: it joins labels by commas, which values may have too."""
    ids = docker("ps", "--all", "--quiet", "--no-trunc").split()
    if not ids:
        return []
    # One may be gone by now.
    printed = docker("inspect", "--type", "container", "--format", "{{json .}}", *ids, accept=("No such",))
    found = []
    for line in printed.splitlines():
        item = json.loads(line)
        state = item["State"]
        since = item["Created"] if state["Status"] == "created" else state["FinishedAt"]
        labels = item["Config"]["Labels"] or {}
        name = item["Name"].removeprefix("/")
        found.append(Container(item["Id"], name, item["Image"], state["Status"], since, labels))
    return found


def seconds_of(text: str | None) -> float:
    """Give a time of Docker (nanoseconds, Z) or of the API as seconds since 1970; 0 if there is none."""
    if not text:
        return 0
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


class Disk:
    """The disk of Docker's data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def free(self) -> int:
        """Count free bytes."""
        status = os.statvfs(self.path)
        return status.f_bfree * status.f_frsize

    def percent(self) -> float:
        """Tell how full it is, as ``df`` does: without what is reserved for root."""
        status = os.statvfs(self.path)
        used = status.f_blocks - status.f_bfree
        return 100 * used / max(1, used + status.f_bavail)


class Api:
    """The server, with the node's account."""

    def __init__(self, config: Path, name: str = "reaper") -> None:
        self._name = name
        try:  # the agent brings its own pyhocon
            hocon = importlib.import_module("clearml_agent.external.pyhocon")
        except ImportError:
            hocon = importlib.import_module("pyhocon")
        try:
            api = hocon.ConfigFactory.parse_file(str(config)).get_config("api")
            self._address = api.get_string("api_server").rstrip("/")
            pair = (api.get_string("credentials.access_key"), api.get_string("credentials.secret_key"))
        except Exception as error:  # pyhocon and pyparsing have no common root
            reason = " ".join(str(error).split())[:200]
            raise ReaperError(f"{config}: cannot read api.api_server and api.credentials: {reason}") from error
        self.time = time.time()
        self._session = requests.Session()
        self._session.auth = pair
        token = self.call("auth.login")["token"]
        self._session.auth = None
        self._session.headers["Authorization"] = f"Bearer {token}"

    def call(self, endpoint: str, /, **arguments: Any) -> Json:
        """Call an endpoint and give its data.

        Raises:
            RefusedError: if the server says no.
            ReaperError: if it gives no answer that makes sense.
        """
        return self._post(endpoint, json=arguments)

    def log(self, task: str, text: str) -> None:
        """Write a line to a task's console."""
        event: Json = {"type": "log", "task": task, "level": "warning", "worker": self._name, "msg": text + "\n"}
        event["timestamp"] = int(time.time() * 1000)
        self._post("events.add_batch", data=json.dumps(event), headers={"Content-Type": "application/json-lines"})

    def unsettled(self) -> list[Json]:
        """List the tasks that run or wait, whatever started them, and those that were stopped to be put back."""
        put_back = {"status": ["stopped"], f"runtime.{settle.PUT_BACK}": "yes"}
        return [*self._tasks(status=["in_progress", "queued"]), *filter(settle.is_half_done, self._tasks(**put_back))]

    def _tasks(self, **filters: Any) -> list[Json]:
        names = ["id", "name", "status", "started", "last_update", "last_worker", "last_worker_report", "system_tags"]
        names += ["execution.queue", "status_message", "status_reason", "runtime"]
        found: list[Json] = []
        for page in range(1000):
            tasks = self.call(
                "tasks.get_all",
                **filters,
                only_fields=names,
                search_hidden=True,
                order_by=["created"],
                page=page,
                page_size=500,
            )["tasks"]
            found += tasks
            if len(tasks) < 500:
                break
        return found

    def waiting(self) -> set[str]:
        """Return the tasks that have an entry in a queue."""
        queues = self.call("queues.get_all", only_fields=["id", "entries"], search_hidden=True)["queues"]
        return {entry["task"] for queue in queues for entry in queue.get("entries") or ()}

    def workers(self) -> dict[str, float]:
        """List all workers with the seconds since each was heard of, by the server's clock."""
        seen: dict[str, float] = {}
        for worker in self.call("workers.get_all", last_seen=0)["workers"]:
            # An id is listed once for each account that used it.
            age = self.time - seconds_of(worker.get("last_activity_time"))
            seen[worker["id"]] = min(age, seen.get(worker["id"], age))
        return seen

    def _post(self, endpoint: str, **options: Any) -> Json:
        url = f"{self._address}/{API_VERSION}/{endpoint}"
        try:
            answer = self._session.post(url, timeout=(5, 20), **options)
            body = answer.json()
            meta, data = body["meta"], body.get("data") or {}
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise ReaperError(f"{self._address} gives no answer to {endpoint}: {error}") from error
        with contextlib.suppress(KeyError, ValueError, TypeError):
            self.time = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        if answer.status_code != 200:
            message = f"{endpoint}: {answer.status_code} {meta.get('result_msg')}"
            # 401 and 429 pass: a key that is being rotated, a login that has to wait.
            raise (RefusedError if answer.status_code in (400, 403, 404) else ReaperError)(message)
        return dict(data)


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)  # node exporter reads it, as another user
    fresh.replace(path)


class Reaper:
    """Passes over a node."""

    def __init__(self, settings: Settings, disk: Disk | None = None) -> None:
        self.settings = settings
        self.disk = disk or Disk(settings.disk_path)
        self.memory = self._remember()
        self._acting = False
        self._ending = False
        self._failing: dict[str, str] = {}
        self._failures = 0
        self._would: set[str] = set()
        self._watchdog = Watchdog(patience(settings), "the reaper")

    # Passes

    def run(self) -> None:
        """Make passes until SIGTERM."""
        dry = ", dry run" if self.settings.dry_run else ""
        self._say(f"reaper of node {self.settings.node}: a pass every {self.settings.interval} s{dry}")
        self._watchdog.start()
        while True:
            self.run_pass()
            time.sleep(self.settings.interval)

    def run_pass(self) -> bool:
        """Do every job once; answers whether all worked."""
        begun = time.time()
        if begun - self.memory.last_pass > max(600, 3 * self.settings.interval):
            # What happened since is unknown, so nothing was away "all the time".
            self.memory.forget_server()
            self.memory.orphans = {}
        self._failures = 0
        jobs: Iterable[tuple[str, Callable[[], None]]]
        jobs = zip(JOBS, (self.remove_orphans, self.settle_dead, self.remove_images), strict=True)
        try:
            for name, job in jobs:
                self._watchdog.beat()
                self._isolated(name, job)
        finally:
            self.memory.last_pass = time.time()
            if not self._failures:
                self.memory.last_success = self.memory.last_pass
            try:
                self._save()
                write(self.settings.state / "reaper.prom", self.metrics(self.memory.last_pass - begun))
            except OSError as error:  # a full disk, say: that is when images must go
                self._say(f"cannot write into {self.settings.state}: {error}")
                self._failures += 1
        return not self._failures

    def _isolated(self, name: str, job: Callable[[], None]) -> None:
        failed = self._failures
        try:
            job()
        except Exception as error:  # whatever it is, the other jobs must go on
            self._fail(name, error)
        if self._failures == failed and self._failing.pop(name, ""):
            self._say(f"{name}: works again")

    def _fail(self, job: str, error: Exception) -> None:
        self._failures += 1
        self._count(f'errors_total{{job="{job}"}}')
        text = f"{job}: {error}" if isinstance(error, ReaperError) else f"{job}: {type(error).__name__}: {error}"
        if self._failing.get(job) != text:  # told once, counted each time
            self._say(text)
        self._failing[job] = text

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """End: at once, or after the action that is under way."""
        self._ending = True
        if not self._acting:
            raise Stopped

    @contextlib.contextmanager
    def _action(self, what: str) -> Iterator[bool]:
        """Guard an action from SIGTERM; gives False when it shall only be told."""
        if self.settings.dry_run:
            if what not in self._would:
                self._say(f"would {what}")
            self._would.add(what)
            yield False
            return
        self._acting = True
        self._watchdog.beat()
        try:
            yield True
        finally:
            self._acting = False
            if self._ending:
                raise Stopped

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    def _count(self, counter: str, by: float = 1) -> None:
        self.memory.counters[counter] = self.memory.counters.get(counter, 0) + by

    # Memory and metrics

    def _remember(self) -> Memory:
        path = self.settings.state / "reaper.json"
        names = {item.name for item in fields(Memory)}
        try:
            return Memory(**{key: value for key, value in json.loads(path.read_text()).items() if key in names})
        except FileNotFoundError:
            return Memory()
        except (OSError, ValueError, AttributeError) as error:
            self._say(f"{path}: cannot be read ({error}); counters begin at 0")
            return Memory()

    def _save(self) -> None:
        write(self.settings.state / "reaper.json", json.dumps(asdict(self.memory), indent=1) + "\n")

    def metrics(self, seconds: float) -> str:
        """Give ``reaper.prom``."""
        gauges = {
            "pass_seconds": ("Duration of the last pass.", seconds),
            "last_pass_timestamp_seconds": ("End of the last pass.", self.memory.last_pass),
            "last_success_timestamp_seconds": (
                "End of the last pass in which nothing failed.",
                self.memory.last_success,
            ),
            "dry_run": ("1 if nothing is done, only told.", float(self.settings.dry_run)),
        }
        lines = []
        for name, (text, value) in gauges.items():
            name = f"trainyard_reaper_{name}"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value:.3f}"]
        for key, text in COUNTERS.items():
            name = f"trainyard_reaper_{key.partition('{')[0]}"
            if text:
                lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines.append(f"trainyard_reaper_{key} {self.memory.counters.get(key, 0):.0f}")
        return "\n".join(lines) + "\n"

    # A. Orphans

    def _mine(self, worker: str) -> bool:
        return worker in self.memory.workers or worker.startswith(f"{self.settings.node}-")

    def _own_workers(self, found: list[Container]) -> set[str]:
        own = {c.worker for c in found if c.worker and c.labels.get("trainyard.node") == self.settings.node}
        self.memory.workers = sorted(own.union(self.memory.workers))
        return own

    def remove_orphans(self) -> None:
        """Remove experiments' containers that have no worker any more, and what others left over."""
        now = time.time()
        found = containers()
        self._own_workers(found)
        alive = {c.worker for c in found if c.worker and c.status in ALIVE}
        mine = [c for c in found if c.owner and self._mine(c.owner)]
        without = {c.id for c in mine if c.owner not in alive}
        self.memory.orphans = {id_: self.memory.orphans.get(id_, now) for id_ in without}
        # A worker keeps the container, which has the exit status, until the server knows the end.
        since = self.memory.watching_since
        reached = since is not None and now - since >= self.settings.orphan_seconds
        for container in mine:
            away = now - self.memory.orphans.get(container.id, now)
            if container.id in without and away >= self.settings.orphan_seconds:
                state = "stopped" if any(c.worker == container.owner for c in found) else "gone"
                self._remove(container, f"its worker {container.owner} is {state}")
            elif container.status not in ALIVE and now - seconds_of(container.since) > DAY and reached:
                self._remove(container, f"{container.status} for more than a day")

    def _remove(self, container: Container, why: str) -> None:
        with self._action(f"remove the experiment's container {container.name}: {why}") as act:
            if not act:
                return
            try:
                if container.id in self.memory.orphans and any(
                    c.worker == container.owner and c.status in ALIVE for c in containers()
                ):
                    return  # back at the last moment
                if container.status in ALIVE:
                    docker("stop", "-t", "10", container.id, accept=("No such container",))
                # In services mode they run with --rm, and are on their way already.
                docker("rm", "--volumes", container.id, accept=("No such container", "already in progress"))
            except ReaperError as error:
                self._fail("orphans", error)
                return
            self.memory.orphans.pop(container.id, None)
            self._count("orphans_removed_total")
            self._say(f"removed the experiment's container {container.name}: {why}")

    # B. Dead workers

    def settle_dead(self) -> None:
        """Settle the experiments of dead workers, and take these off the server's list."""
        try:
            own = self._own_workers(containers())
            api = Api(self.settings.config, self._me)
            tasks, ages = api.unsettled(), api.workers()
            waiting = api.waiting() if any(task["status"] == "queued" for task in tasks) else set()
        except Exception:
            self.memory.forget_server()
            raise
        now = time.time()
        if self.memory.watching_since is None:
            self.memory.watching_since = now
        watched = now - self.memory.watching_since
        dead = [task for task in tasks if self._is_dead(api, task, ages, watched, waiting)]
        silent = {worker for worker, age in ages.items() if min(age, watched) >= self.settings.dead_seconds}
        marks = [f"{task['id']} {task['status']} {task.get('last_worker')} {task['last_update']}" for task in dead]
        self.memory.dead = {mark: self.memory.dead.get(mark, 0) + 1 for mark in marks}
        self.memory.silent = {worker: self.memory.silent.get(worker, 0) + 1 for worker in silent}

        live = {worker for worker, age in ages.items() if age < self.settings.dead_seconds}
        if not own & live:
            return
        before = sum(":service:" not in worker and worker < min(own & live) for worker in live)
        turn = 2 + 2 * before
        due = [task for task, mark in zip(dead, marks, strict=True) if self.memory.dead[mark] >= turn]
        for task in due:
            self._try(self._settle, api, task, ages)
        busy = {task.get("last_worker") for task in tasks if task["status"] == "in_progress"}
        busy -= {task.get("last_worker") for task in due}
        self._unregister(api, {w for w in silent - busy if self.memory.silent[w] >= turn})

    def _try(self, step: Callable[..., object], *arguments: Any) -> None:
        try:
            step(*arguments)
        except ReaperError as error:
            self._fail("tasks", error)

    def _is_dead(self, api: Api, task: Json, ages: dict[str, float], watched: float, waiting: set[str]) -> bool:
        """Return whether nobody runs the task or will: its worker is dead, or it is between two states for long."""
        if settle.is_half_done(task):
            return True  # two passes in a row: who began this has gone away
        quiet = api.time - seconds_of(task.get("last_update"))
        if task["status"] == "queued":  # pulled, and not started; workers need moments for that
            return task["id"] not in waiting and min(quiet, watched) >= self.settings.dead_seconds
        worker = task.get("last_worker")
        if not worker or not settle.queue_of(task):
            return False
        # Somebody continues at his desk what a worker once ran: the worker did not report since this start.
        report = seconds_of(task.get("last_worker_report"))
        if report < seconds_of(task.get("started")) or "development" in (task.get("system_tags") or ()):
            return False
        return min(ages.get(worker, quiet), quiet, watched) >= self.settings.dead_seconds

    def _settle(self, api: Api, seen: Json, ages: dict[str, float]) -> None:
        def unchanged(task: Json) -> bool:
            return all(task.get(name) == seen.get(name) for name in ("status", "last_worker", "last_update"))

        id_, worker = seen["id"], seen.get("last_worker")
        quiet = api.time - seconds_of(seen["last_update"])
        if seen["status"] == "in_progress":
            last = f"silent for {ages[worker]:.0f} s" if worker in ages else "not listed any more"
            why = f"its worker {worker} is {last}, the experiment for {quiet:.0f} s"
        elif seen["status"] == "queued":
            why = f"a worker took it from its queue {quiet:.0f} s ago and never started it"
        else:
            why = "it was stopped to be put back into its queue, which did not happen"
        policy = settle.Policy(self.settings.settle == "requeue", self.settings.max_requeues)
        with self._action(f"settle the experiment {id_} ({seen.get('name')}), last run by {worker}") as act:
            if not act:
                return
            outcome = settle.settle(api, id_, why=why, policy=policy, sign=f"[{self._me}]", lost=unchanged)
        if outcome.how == "requeue":
            times = f"time {outcome.number} of at most {self.settings.max_requeues}"
            self._say(f"put the experiment {id_} back in front of its queue ({times}): {outcome.why}")
        elif outcome.how in ("fail", "stop"):
            done = {"fail": "failed", "stop": "stopped"}[outcome.how]
            self._say(f"{done} the experiment {id_}: {outcome.why}")
        if outcome.how != "none":
            self._count(f'tasks_settled_total{{how="{outcome.how}"}}')

    @property
    def _me(self) -> str:
        return f"reaper:{self.settings.node}"

    def _unregister(self, api: Api, workers: set[str]) -> None:
        asked = []
        for worker in sorted(workers):
            with self._action(f"take the dead worker {worker} off the server's list") as act:
                if act:
                    self._try(partial(api.call, "workers.unregister", worker=worker))
                    asked.append(worker)
        # The official server says yes, and keeps those of other accounts.
        still = api.workers() if asked else {}
        for worker in asked:
            if worker not in still:
                self.memory.silent.pop(worker, None)
                self._count("workers_unregistered_total")
                self._say(f"took the worker {worker} off the server's list: silent for {self.settings.dead_seconds} s")

    # C. Images

    def remove_images(self) -> None:
        """Remove images that nothing used for long, the longest first, while the disk is too full."""
        if not self.settings.image_days:
            return
        path = self.settings.state / "images.json"
        try:
            last_use: dict[str, float] = {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            last_use = {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            self._say(f"{path}: cannot be read ({error}); every image counts as used now")
            last_use = {}
        now = time.time()
        used = {container.image for container in containers()}
        images = self._images()
        last_use = {id_: now if id_ in used else last_use.get(id_, now) for id_ in images}
        with contextlib.suppress(OSError):  # a full disk must not keep images from going; the pass tells it anyway
            write(path, json.dumps(last_use, indent=1) + "\n")
        if self._full() and any(not names for names in images.values()):
            self._prune(images)
        for id_ in sorted(images, key=lambda id_: last_use[id_]):
            idle = int((now - last_use[id_]) / DAY)
            names = images[id_]
            if id_ in used or not names or idle < self.settings.image_days or self._kept(id_, names):
                continue
            if not self._full():
                break
            self._remove_image(id_, names, idle)

    def _full(self) -> bool:
        return self.disk.percent() > self.settings.image_disk_percent

    def _kept(self, id_: str, names: list[str]) -> bool:
        known = [id_, *names]
        return any(fnmatch.fnmatchcase(name, pattern) for name in known for pattern in self.settings.keep_images)

    @staticmethod
    def _images() -> dict[str, list[str]]:
        """List images with their names; one without is a dangling layer."""
        found: dict[str, list[str]] = {}
        for line in docker("image", "ls", "--no-trunc", "--format", "{{json .}}").splitlines():
            item = json.loads(line)
            names = found.setdefault(item["ID"], [])
            if item["Repository"] != "<none>" and item["Tag"] != "<none>":
                names.append(f"{item['Repository']}:{item['Tag']}")
            elif item["Repository"] != "<none>":
                names.append(item["ID"])  # pulled by its digest
        return found

    def _prune(self, images: dict[str, list[str]]) -> None:
        percent = self.settings.image_disk_percent
        with self._action(f"remove dangling layers: Docker's disk is fuller than {percent} %") as act:
            if act:
                free = self.disk.free()
                docker("image", "prune", "--force", timeout=300)
                gone = len(set(images) - set(self._images()))
                self._freed(gone, free)
                if gone:
                    self._say(f"removed {gone} dangling layer(s): Docker's disk was fuller than {percent} %")

    def _remove_image(self, id_: str, names: list[str], idle: int) -> None:
        percent = self.settings.image_disk_percent
        why = f"not used for {idle} days, and Docker's disk is fuller than {percent} %"
        label = id_ if names == [id_] else " ".join(names)
        with self._action(f"remove the image {label}") as act:
            if not act:
                return
            free = self.disk.free()
            try:
                docker("image", "rm", *names, timeout=300, accept=("No such image",))
            except ReaperError as error:
                self._fail("images", error)
                return
            self._freed(1, free)
            self._say(f"removed the image {label}: {why}")

    def _freed(self, images: int, before: int) -> None:
        self._count("images_removed_total", images)
        self._count("image_bytes_freed_total", max(0, self.disk.free() - before))


def patience(settings: Settings) -> float:
    """Return after how many seconds without progress the reaper is unhealthy, and ends itself."""
    return 5.0 * settings.interval + 300


def healthy(settings: Settings) -> bool:
    """Tell whether passes come, whatever their jobs say."""
    try:
        age = time.time() - (settings.state / "reaper.prom").stat().st_mtime
    except OSError:
        return False
    return age < patience(settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; answers the exit status: 0, 1 for a pass in which something failed, 2 for bad settings."""
    parser = argparse.ArgumentParser(description="The reaper of a Trainyard node; its settings are in its environment.")
    parser.add_argument("--once", action="store_true", help="make one pass, and answer by 0 or 1 whether all worked")
    parser.add_argument("--healthy", action="store_true", help="answer by 0 or 1 whether passes come")
    args = parser.parse_args(argv)
    try:
        settings = Settings.read(os.environ)
        if args.healthy:
            return 0 if healthy(settings) else 1
        settings.state.mkdir(parents=True, exist_ok=True)
        if shutil.which("docker") is None:
            raise ReaperError("there is no docker on PATH")
    except (ReaperError, OSError) as error:
        print(f"reaper: {error}", file=sys.stderr)
        return 2
    reaper = Reaper(settings)
    signal.signal(signal.SIGTERM, reaper.terminate)
    try:
        if args.once:
            return 0 if reaper.run_pass() else 1
        reaper.run()
    except (Stopped, KeyboardInterrupt):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
