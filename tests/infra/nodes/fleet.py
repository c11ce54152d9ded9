"""The laboratory's fleet: trainings that end on a sign, limits that grow with the load, and all put back."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import testinfra
from audit import Play, play
from clearml_api import ApiError, ClearmlApi, Json
from testinfra.host import Host

NODES = {"gpu-01": "lab-gpu-01", "gpu-02": "lab-gpu-02"}
WORKERS = [f"{node}-{gpu + 1}:gpu{gpu}" for node in NODES for gpu in range(4)]
SERVICES = "gpu-01-services"
"""The site's services worker, which runs controllers and not these trainings."""
PROJECT = "tests/fleet"
STATE = "/opt/clearml/agent/state"
ENDED = {"completed", "published", "closed", "failed", "stopped"}
END = "may end"
"""The tag that lets a training end."""
USUAL = 20.0
"""Seconds from enqueue to end of an experiment that does nothing, on two free cores (measured: 11 to 16)."""

# Says which GPU it was given, and trains until it is told to end. The server may be out of reach meanwhile.
SCRIPT = f"""\
import os, time
from clearml import Task
task = Task.init(auto_connect_frameworks=False, auto_resource_monitoring=False)
print("RAN", os.environ["TRAINYARD_GPUS"], time.time(), flush=True)
step, tags = 0, []
while "{END}" not in tags:
    step += 1
    task.get_logger().report_scalar("progress", "step", step, step)
    print("STEP", step, flush=True)
    time.sleep(1)
    try:
        task.reload()
        tags = task.get_tags()
    except Exception as error:
        print("the server is away:", error, flush=True)
"""

T = TypeVar("T")


class Fleet:
    """Two nodes with four simulated GPUs each, one worker per GPU, and what the tests gave them to do."""

    def __init__(self, login: Callable[[], ClearmlApi], api: ClearmlApi, inventory: Path) -> None:
        self._login = login
        self.api = api
        self.inventory = inventory
        self._given: list[str] = []
        self._slowness = 1.0

    # ------------------------------------------------------------ waiting

    def measure(self) -> None:
        """Learn how slow this machine is, by one experiment that does nothing."""
        started = time.monotonic()
        task = self.submit("how fast is this machine", "all_gpus")
        while self.get(task)[0]["status"] not in ENDED:
            assert time.monotonic() - started < 1800, "an experiment that does nothing does not end"
            time.sleep(0.5)
        self._slowness = max(1.0, (time.monotonic() - started) / USUAL)
        print(
            f"one experiment took {time.monotonic() - started:.1f} s: limits are {self._slowness:.1f} times the usual"
        )

    def slowness(self) -> float:
        """How many times longer than on a free machine things may take now."""
        return max(self._slowness, os.getloadavg()[0] / (os.cpu_count() or 1))

    def until(self, what: str, look: Callable[[], T], seconds: float, every: float = 1.0) -> T:
        """Look until there is something to see. The seconds are a free machine's."""
        started = time.monotonic()
        while True:
            seen = look()
            if seen:
                return seen
            waited = time.monotonic() - started
            assert waited < seconds * self.slowness(), f"waited {waited:.0f} s in vain: {what}"
            time.sleep(every)

    # ------------------------------------------------------------ the server

    def queues(self) -> dict[str, Json]:
        return {queue["name"]: queue for queue in self.api.call("queues.get_all")["queues"]}

    def workers(self) -> dict[str, Json]:
        """Return the workers that train, by id."""
        seen = {worker["id"]: worker for worker in self.api.call("workers.get_all", last_seen=60)["workers"]}
        return {id_: worker for id_, worker in seen.items() if id_ != SERVICES}

    def submit(self, name: str, queue: str, *, held: bool = False) -> str:
        """Send a training to a queue: one that ends at once, or a held one, which trains until ``release``."""
        projects = self.api.call("projects.get_all", name=f"^{PROJECT}$")["projects"]
        project = projects[0]["id"] if projects else self.api.call("projects.create", name=PROJECT)["id"]
        script = {"binary": "python3", "entry_point": "train.py", "working_dir": ".", "repository": "", "diff": SCRIPT}
        task = str(
            self.api.call(
                "tasks.create",
                name=name,
                type="training",
                project=project,
                script=script,
                tags=[] if held else [END],
            )["id"]
        )
        self._given.append(task)
        self.api.call("tasks.enqueue", task=task, queue=self.queues()[queue]["id"])
        return task

    def release(self, *tasks: str) -> None:
        """Let trainings end."""
        for task in tasks:
            self.api.call("tasks.update", task=task, tags=[END])

    def get(self, *tasks: str) -> list[Json]:
        """Return what the server knows, in the order asked."""
        # Of no ids the server would return every task.
        found = {task["id"]: task for task in self.api.call("tasks.get_all", id=list(tasks))["tasks"]} if tasks else {}
        return [found[task] for task in tasks]

    def console(self, task: str) -> list[str]:
        events = self.api.call("events.get_task_log", task=task, batch_size=2000)["events"]
        ordered = sorted(events, key=lambda event: event["timestamp"])
        return "".join(str(event.get("msg", "")) + "\n" for event in ordered).splitlines()

    def completed(self, *tasks: str) -> bool:
        """Tell whether all are completed; none may have ended otherwise."""
        found = self.get(*tasks)
        for task in found:
            about = (task["name"], task["status"], task.get("status_reason"), self.console_if_ended(task))
            assert task["status"] in {"queued", "in_progress", "completed"}, about
        return all(task["status"] == "completed" for task in found)

    def console_if_ended(self, task: Json) -> list[str]:
        return self.console(task["id"]) if task["status"] in ENDED else []

    def trains(self, *tasks: str) -> bool:
        return all(any(line.startswith("STEP") for line in self.console(task)) for task in tasks)

    def runs(self, task: str) -> set[str]:
        """Return the first words of each run. Around an agent's restart a line may be told twice: it is one run."""
        return {line for line in self.console(task) if line.startswith("RAN")}

    def check_ran_once(self, *tasks: str) -> None:
        for task in tasks:
            assert len(self.runs(task)) == 1, (task, self.runs(task))

    def gpu_seen(self, task: str) -> str:
        (line,) = self.runs(task)
        return line.split()[1]

    @contextmanager
    def load(self, queue: str, waiting: int = 3) -> Iterator[list[str]]:
        """Keep some experiments waiting in a queue meanwhile; yields all that were sent, which end by themselves.

        Few: that none is ever without work is enough, and the playbook needs the processors too.
        """
        sent: list[str] = []
        done = threading.Event()

        def feed() -> None:
            # A session of its own: one is for one thread.
            with self._login() as session:
                feeder = Fleet(self._login, session, self.inventory)
                while not done.is_set():
                    for _ in range(waiting - len(feeder.queues()[queue].get("entries") or [])):
                        sent.append(feeder.submit(f"load {len(sent)}", queue))
                    done.wait(2)

        with ThreadPoolExecutor() as pool:
            fed = pool.submit(feed)
            try:
                yield sent
            finally:
                done.set()
                wait([fed])
                self._given += sent
            fed.result()

    # ------------------------------------------------------------ the nodes

    def node(self, name: str) -> Host:
        return testinfra.get_host(f"docker://{NODES[name]}")

    def agents(self, name: str) -> dict[str, str]:
        """Return the containers of a node's workers that train by worker: another id, another container."""
        template = '{{.Label "trainyard.worker"}} {{.ID}}'
        said = self.node(name).run_expect([0], f"docker ps --filter label=trainyard.worker --format '{template}'")
        return dict(line.split() for line in said.stdout.splitlines() if line.split()[0] != SERVICES)

    def experiments(self, name: str) -> list[str]:
        """Return the containers of experiments that run on a node."""
        return str(self.node(name).run("docker ps --quiet --filter label=clearml-worker-id").stdout).split()

    def wish(self, name: str, *workers: str, drained: bool) -> None:
        """Drain workers as drain.yml does, or let them go on."""
        for worker in workers:
            path = f"{STATE}/{worker}/drain"
            self.node(name).run_expect([0], f"touch {path}" if drained else f"rm -f {path}")

    def play(self, playbook: str, *arguments: str, **extra: object) -> str:
        return play(self.inventory, playbook, *arguments, **extra)

    def play_on(self, node: str, playbook: str, **extra: object) -> str:
        return play(self.inventory, playbook, "--limit", NODES[node], **extra)

    def play_beside(self, playbook: str, *arguments: str, **extra: object) -> Play:
        """Start a playbook, and go on."""
        return Play(self.inventory, playbook, *arguments, **extra)

    # ------------------------------------------------------------ putting it back

    def wrong(self) -> list[str]:
        """Tell what is not as the inventory says, or is not free."""
        seen = self.workers()
        found = [f"{worker} is away" for worker in WORKERS if worker not in seen]
        for worker, about in sorted(seen.items()):
            name, node = worker.split(":")[0], worker.split(":")[0].rpartition("-")[0]
            if worker not in WORKERS:
                found.append(f"{worker} is not of the inventory")
            if about["tags"]:
                found.append(f"{worker} is {about['tags']}")
            if about.get("task"):
                found.append(f"{worker} trains {about['task']['name']!r}")
            if [queue["name"] for queue in about["queues"]] != [name, node, "all_gpus"]:
                found.append(f"{worker} serves {about['queues']}")
        return found + [f"{name} has containers of experiments" for name in NODES if self.experiments(name)]

    def put_back(self) -> None:
        """Make the fleet what the inventory says, free and with no wish left, whatever a test left of it."""
        self._stop_all()
        for name, container in NODES.items():
            subprocess.run(["docker", "start", container], check=True, capture_output=True)
            place = self.node(name)
            self.until(f"{name} has Docker", lambda place=place: place.run("docker ps").rc == 0, 120)
            for route in place.run("ip route show type blackhole").stdout.splitlines():
                place.run(f"ip route del {route}")
        drained = [name for name in NODES if self.node(name).run(f"ls {STATE}/*/drain").rc == 0]
        there = [worker for worker in WORKERS if worker in self.agents(worker.rpartition("-")[0])]
        if drained or there != WORKERS:
            self.play("undrain.yml")
        self.until("the fleet is free and whole", lambda: not self.wrong() or self._tell(), 180)

    def _tell(self) -> bool:
        self._stop_all()
        print("not yet:", "; ".join(self.wrong()))
        return False

    def _stop_all(self) -> None:
        """End what was given and has not ended."""
        left = [task for task in self.get(*self._given) if task["status"] not in {*ENDED, "created"}]
        for task in left:
            # It may end in this moment by itself.
            with suppress(ApiError):
                if task["status"] == "queued":
                    self.api.call("tasks.dequeue", task=task["id"])
                self.api.call("tasks.stop", task=task["id"], force=True)
