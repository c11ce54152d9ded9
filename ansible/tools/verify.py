"""Prove that a site trains: queue the example, wait for it, read everything back, and say how the site is used.

Exit status: 0 only if the training completed and its metrics, plots, images, model and artifacts could be read
back through the API; 1 if not, with the reason; 2 for wrong input; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from ansible.parsing.vault import AnsibleVaultError
from clearml_api import ApiError, ClearmlApi, Json
from login import vault_values
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PROJECT = "examples/training"
SCRIPT = "train.py"
BRANCH = "main"
PASSWORD_KEY = "vault_clearml_admin_password"  # noqa: S105  the name of a variable
PIXELS = 64  # of one scan: the first layer's inputs
DIGITS = 10
CONSOLE_LINES = 20
MAX_SAMPLES = 6000  # the most that the API takes: curves come whole up to there
POLL_SEC = 1.0
AGENT_GRACE_SEC = 60.0  # agents that were just started take some seconds to register
SCALARS = {("loss", "train"), ("loss", "validation"), ("accuracy", "train"), ("accuracy", "validation")}
ARTIFACTS = {"weights", "classification report"}
ENDED = ("completed", "published", "closed", "failed", "stopped")


class VerifyError(Exception):
    """The site does not train, or not completely; the text says what was seen and what to do."""


class InputError(Exception):
    """An option or a file that this program was given is wrong."""


@dataclass(frozen=True)
class Site:
    """What the playbook says about the site."""

    web_url: str
    api_url: str
    files_url: str
    user: str
    queue: str
    repository: str
    ca_file: str = ""  # of a site whose certificates are its own authority's


@dataclass(frozen=True)
class Options:
    """The command line."""

    site_file: Path
    stages: Path | None
    vault_file: Path
    vault_password_file: Path
    repository: str | None
    queue: str | None
    timeout: float
    epochs: int


@dataclass(frozen=True)
class Look:
    """One look at the running experiment."""

    status: str
    worker: str = ""
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    last_line: str = ""


@dataclass
class Run:
    """The experiment, and what became of it."""

    task: str
    project: str
    queue: str
    queued_at: float
    started_at: float | None = None
    accuracy: float | None = None
    checks: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- input


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--site-file", type=Path, required=True, help="JSON: web_url, api_url, files_url, user ...")
    parser.add_argument("--stages", type=Path, help="JSON: seconds by stage, to show in the summary")
    parser.add_argument("--vault-file", type=Path, required=True, help=f"vaulted YAML that holds {PASSWORD_KEY}")
    parser.add_argument("--vault-password-file", type=Path, required=True)
    parser.add_argument("--repository", help="git URL of the example, as the workers reach it (default: site file)")
    parser.add_argument("--queue", help="queue to send the example to (default: site file)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until the training must have ended")
    parser.add_argument("--epochs", type=int, default=30)
    return Options(**vars(parser.parse_args(arguments)))


def read_site(path: Path, repository: str | None, queue: str | None) -> Site:
    """Read the site file; options win over it."""
    values = read_json(path)
    values.update({key: value for key, value in (("repository", repository), ("queue", queue)) if value})
    needed = Site.__dataclass_fields__.keys() - {"ca_file"}
    missing = [key for key in sorted(needed) if not isinstance(values.get(key), str) or not values[key]]
    if missing:
        raise InputError(f"{path}: no value for {', '.join(missing)}; run `make up`, which writes the file")
    return Site(**{key: values[key] for key in Site.__dataclass_fields__ if key in values})


def read_stages(path: Path | None) -> dict[str, float]:
    """Read how long the stages before this one took; no file, no stages."""
    if path is None or not path.exists():
        return {}
    stages = read_json(path)
    wrong = [name for name, seconds in stages.items() if not isinstance(seconds, int | float)]
    if wrong:
        raise InputError(f"{path}: not a number of seconds: {', '.join(wrong)}")
    return {name: float(seconds) for name, seconds in stages.items()}


def read_json(path: Path) -> Json:
    """Read a JSON object."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; run `make up`, which writes it") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def read_password(vault_file: Path, password_file: Path) -> str:
    """Return the administrator's password from the site's vaulted file."""
    for path in (vault_file, password_file):
        if not path.is_file():
            raise InputError(f"cannot read {path}: no such file; run `make up`, which generates the site's secrets")
    try:
        password = vault_values(vault_file, password_file).get(PASSWORD_KEY)
    except AnsibleVaultError as error:
        raise InputError(f"cannot decrypt {vault_file} with the key in {password_file}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{vault_file}: not a vaulted file of variables") from error
    if not password:
        raise InputError(f"{vault_file}: no {PASSWORD_KEY}")
    return str(password)


def head_of(repository: str) -> str:
    """Return the commit that the branch points to: the experiment is pinned to it.

    Empty for a folder that only the nodes have: the agent takes the branch's newest commit, and notes which.
    """
    if repository.startswith("file://") and not Path(repository.removeprefix("file://")).exists():
        return ""
    command = ["git", "ls-remote", repository, f"refs/heads/{BRANCH}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    if done.returncode != 0:
        raise VerifyError(f"cannot read {repository}: {done.stderr.strip() or 'git ls-remote failed'}")
    if not done.stdout.strip():
        raise VerifyError(f"{repository} has no branch {BRANCH}")
    return done.stdout.split()[0]


# ---------------------------------------------------------------- display


class Display(Protocol):
    """Shows how the experiment gets on."""

    def show(self, look: Look) -> None:
        """Show the newest look."""


class LiveDisplay:
    """One line that rewrites itself, with the last console line below: for terminals."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._row = self._progress.add_task("starting", total=None, detail="")
        self._live = Live(self._progress, console=console, transient=True, refresh_per_second=8)

    @contextmanager
    def running(self) -> Iterator[LiveDisplay]:
        """Take the terminal's last lines while the block runs."""
        with self._live:
            yield self

    def show(self, look: Look) -> None:
        """Redraw."""
        self._progress.update(
            self._row,
            description=phase(look),
            total=look.epochs if look.epoch else None,
            completed=look.epoch,
            detail=detail(look),
        )


class PlainDisplay:
    """A line when the phase changes and at each fifth of the training: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: tuple[str, int] | None = None

    @contextmanager
    def running(self) -> Iterator[PlainDisplay]:
        """Do nothing around the block."""
        yield self

    def show(self, look: Look) -> None:
        """Print if there is something new to say."""
        step = (phase(look), look.epoch * 5 // look.epochs if look.epochs else 0)
        if step != self._shown:
            self._shown = step
            self._console.print(f"{phase(look)} {detail(look)}".rstrip(), markup=False, highlight=False)


def phase(look: Look) -> str:
    """Say in words what the experiment is doing."""
    if look.status == "queued":
        return "waiting in the queue"
    if look.status == "in_progress":
        return f"training on {look.worker}" if look.worker else "training"
    return look.status


def detail(look: Look) -> str:
    """Say how far it is: the epoch and accuracy, and before the first epoch the last console line."""
    if look.epoch:
        accuracy = "" if look.accuracy is None else f", validation accuracy {look.accuracy:.4f}"
        return f"epoch {look.epoch}/{look.epochs}{accuracy}"
    return look.last_line[:80]


# ---------------------------------------------------------------- the experiment


def queue_id(api: ClearmlApi, name: str) -> str:
    """Return the id of a queue."""
    queues: list[Json] = api.call("queues.get_all", only_fields=["id", "name"])["queues"]
    for queue in queues:
        if queue["name"] == name:
            return str(queue["id"])
    known = ", ".join(sorted(queue["name"] for queue in queues)) or "none"
    raise VerifyError(f"there is no queue {name!r}; queues: {known}")


def serving(api: ClearmlApi, queue: str) -> tuple[list[str], list[str]]:
    """Return the workers that serve a queue, and all workers with their queues, as text."""
    workers: list[Json] = api.call("workers.get_all")["workers"]
    served = {worker["id"]: [entry.get("name", "?") for entry in worker.get("queues") or []] for worker in workers}
    every = [f"{name} ({', '.join(queues) or 'no queue'})" for name, queues in sorted(served.items())]
    return [name for name, queues in served.items() if queue in queues], every


def submit(api: ClearmlApi, site: Site, epochs: int) -> Run:
    """Create the experiment, pinned to a commit, and queue it."""
    commit = head_of(site.repository)
    queue = queue_id(api, site.queue)
    project = project_id(api)
    task = api.call(
        "tasks.create",
        name="digits",
        type="training",
        project=project,
        tags=["example", "verify"],
        script={
            "repository": site.repository,
            "branch": BRANCH,
            **({"version_num": commit} if commit else {}),
            "entry_point": SCRIPT,
            "working_dir": ".",
            "binary": "python3",
        },
        hyperparams={
            "Args": {"epochs": {"section": "Args", "name": "epochs", "value": str(epochs), "type": "int"}},
        },
    )["id"]
    api.call("tasks.enqueue", task=task, queue=queue)
    return Run(task=task, project=project, queue=site.queue, queued_at=time.monotonic())


def project_id(api: ClearmlApi) -> str:
    """Return the id of the example's project; create it the first time."""
    found = api.call("projects.get_all", name=f"^{re.escape(PROJECT)}$", only_fields=["id"])["projects"]
    if found:
        return str(found[0]["id"])
    return str(api.call("projects.create", name=PROJECT, description="Examples that prove the site trains")["id"])


def watch(api: ClearmlApi, run: Run, epochs: int, timeout: float, display: Display) -> Look:
    """Follow the experiment until it ends."""
    while True:
        look = look_at(api, run.task, epochs)
        display.show(look)
        waited = time.monotonic() - run.queued_at
        if look.status != "queued" and run.started_at is None:
            run.started_at = time.monotonic()
        if look.status in ENDED:
            return look
        if look.status == "queued" and waited > AGENT_GRACE_SEC:
            require_worker(api, run.queue, waited)
        if waited > timeout:
            raise VerifyError(f"not finished after {waited:.0f} s: {phase(look)} {detail(look)}")
        time.sleep(POLL_SEC)


def require_worker(api: ClearmlApi, queue: str, waited: float) -> None:
    """Fail if nobody serves the queue; busy workers are worth waiting for."""
    names, every = serving(api, queue)
    if not names:
        raise VerifyError(
            f"nobody serves queue {queue!r}: {waited:.0f} s after the experiment was queued no worker of it has "
            f"reported; workers: {'; '.join(every) or 'none'}. Look at the agents' logs: `docker ps --filter "
            f"name=clearml-agent`, `docker logs NAME`"
        )


def look_at(api: ClearmlApi, task: str, epochs: int) -> Look:
    """Ask the server how the experiment gets on."""
    values = api.call("tasks.get_by_id", task=task)["task"]
    metrics = {
        (entry["metric"], entry["variant"]): entry
        for variants in (values.get("last_metrics") or {}).values()
        for entry in variants.values()
    }
    accuracy = metrics.get(("accuracy", "validation"))
    epoch = int(values.get("last_iteration") or 0) if accuracy else 0
    lines = [] if epoch else console_lines(api, task, 1)
    return Look(
        status=str(values["status"]),
        worker=str(values.get("last_worker") or ""),
        epoch=epoch,
        epochs=epochs,
        accuracy=float(accuracy["value"]) if accuracy else None,
        last_line=lines[-1] if lines else "",
    )


def console_lines(api: ClearmlApi, task: str, count: int) -> list[str]:
    """Return the last console lines, oldest first."""
    events = api.call("events.get_task_log", task=task, batch_size=max(count, 10))["events"]
    events.sort(key=lambda event: event.get("timestamp") or 0)
    text = "\n".join(str(event.get("msg", "")) for event in events)
    return [line for line in text.splitlines() if line.strip()][-count:]


# ---------------------------------------------------------------- reading back


def read_back(api: ClearmlApi, run: Run, epochs: int) -> None:
    """Read everything that the training reported, and compare it with what it must be."""
    task = api.call("tasks.get_by_id", task=run.task)["task"]
    checks: list[Callable[[], str]] = [
        lambda: check_scalars(api, run, epochs),
        lambda: check_plot(api, run.task),
        lambda: check_images(api, run.task),
        lambda: check_console(api, run.task),
        lambda: check_model(api, task),
        lambda: check_artifacts(api, task),
    ]
    for check in checks:
        run.checks.append(check())


def check_scalars(api: ClearmlApi, run: Run, epochs: int) -> str:
    """One point per epoch and curve, and the final accuracy."""
    curves = api.call("events.scalar_metrics_iter_histogram", task=run.task, samples=MAX_SAMPLES)
    for metric, variant in sorted(SCALARS):
        points = curves.get(metric, {}).get(variant, {}).get("x", [])
        if points != list(range(1, epochs + 1)):
            raise VerifyError(f"scalar {metric}/{variant}: expected epochs 1 to {epochs}, got {shortened(points)}")
    run.accuracy = final_accuracy(api, run.task)
    last = curves["accuracy"]["validation"]["y"][-1]
    if abs(last - run.accuracy) > 1e-6:
        raise VerifyError(f"the final accuracy is {run.accuracy}, but its curve ends with {last}")
    return f"{len(SCALARS)} curves of {epochs} points"


def final_accuracy(api: ClearmlApi, task: str) -> float:
    """Return the single value that the training reports at its end."""
    tasks = api.call("events.get_task_single_value_metrics", tasks=[task])["tasks"]
    for value in (value for entry in tasks for value in entry["values"]):
        if value["variant"] == "accuracy":
            return float(value["value"])
    raise VerifyError("no single value 'accuracy' was reported")


def shortened(points: list[object]) -> str:
    """Write a list of points in at most a line."""
    return f"{points}" if len(points) <= DIGITS else f"{len(points)} points, {points[0]} to {points[-1]}"


def check_plot(api: ClearmlApi, task: str) -> str:
    """The confusion matrix, as a plot of ten by ten numbers."""
    plots = [p for p in api.call("events.get_task_plots", task=task)["plots"] if p["metric"] == "confusion matrix"]
    if not plots:
        raise VerifyError("no plot 'confusion matrix' was reported")
    matrix = np.array(json.loads(plots[0]["plot_str"])["data"][0]["z"], dtype=float)
    if matrix.shape != (DIGITS, DIGITS) or matrix.sum() <= 0:
        raise VerifyError(f"the confusion matrix holds {matrix.shape} numbers, sum {matrix.sum()}")
    return f"confusion matrix of {matrix.sum():.0f} scans"


def check_images(api: ClearmlApi, task: str) -> str:
    """The debug samples, each one a picture that opens."""
    metrics = api.call("events.debug_images", metrics=[{"task": task}])["metrics"]
    events = [event for metric in metrics for iteration in metric["iterations"] for event in iteration["events"]]
    if not events:
        raise VerifyError("no debug samples were reported")
    for event in events:
        try:
            with Image.open(io.BytesIO(api.download(event["url"]))) as image:
                image.load()
        except OSError as error:
            raise VerifyError(f"debug sample {event['variant']!r} is not a picture: {error}") from error
    return f"{len(events)} debug samples"


def check_console(api: ClearmlApi, task: str) -> str:
    """The console text, to its last line."""
    lines = console_lines(api, task, 500)
    if not any("final validation accuracy" in line for line in lines):
        raise VerifyError(f"the console does not hold the script's last line; it ends with: {lines[-3:]}")
    return f"{len(lines)} console lines"


def check_model(api: ClearmlApi, task: Json) -> str:
    """The model: its weights load, fit to each other, and are numbers."""
    models = (task.get("models") or {}).get("output") or []
    if not models:
        raise VerifyError("no output model was registered")
    model = api.call("models.get_by_id", model=models[-1]["model"])["model"]
    count = check_weights(api.download(model["uri"]), f"model {model['name']!r}")
    return f"model of {count:,} weights"


def check_weights(content: bytes, what: str) -> int:
    """Load weights without pickle; return how many numbers they are."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise VerifyError(f"the weights of {what} are not an .npz file")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise VerifyError(f"the weights of {what} do not load: {error}") from error
    layers = sorted(name for name in arrays if name.startswith("weights_"))
    sizes = [PIXELS, *(int(arrays[name].shape[-1]) for name in layers)]
    shapes = [arrays[name].shape for name in layers]
    if not layers or shapes != list(pairwise(sizes)) or sizes[-1] != DIGITS:
        raise VerifyError(f"the weights of {what} do not lead from {PIXELS} pixels to {DIGITS} digits: {shapes}")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise VerifyError(f"the weights of {what} are not all finite")
    return sum(int(array.size) for array in arrays.values())


def check_artifacts(api: ClearmlApi, task: Json) -> str:
    """The artifacts: what is stored has the size and hash that were reported."""
    artifacts = {artifact["key"]: artifact for artifact in (task.get("execution") or {}).get("artifacts") or []}
    missing = sorted(ARTIFACTS - set(artifacts))
    if missing:
        raise VerifyError(f"artifacts that were not reported: {', '.join(missing)}")
    for name, artifact in artifacts.items():
        content = api.download(artifact["uri"])
        if len(content) != artifact["content_size"] or hashlib.sha256(content).hexdigest() != artifact["hash"]:
            raise VerifyError(f"artifact {name!r}: the stored file is not the one that was reported")
    return f"{len(artifacts)} artifacts with the right hash"


# ---------------------------------------------------------------- summary


def page_of(site: Site, run: Run) -> str:
    """Return the address of the experiment's page."""
    return f"{site.web_url.rstrip('/')}/projects/{run.project}/tasks/{run.task}/output/log"


def summarize(console: Console, api: ClearmlApi, site: Site, run: Run, stages: dict[str, float]) -> None:
    """Print what a newcomer needs next."""
    for name, value in (
        ("web", site.web_url),
        ("api", site.api_url),
        ("files", site.files_url),
        ("login", f"{site.user}, its password: make login"),
        ("experiment", page_of(site, run)),
        ("accuracy", f"{run.accuracy:.4f} of the validation scans" if run.accuracy is not None else "unknown"),
        ("read back", ", ".join(run.checks)),
    ):
        # Whole lines, whatever the terminal's width: addresses are there to be clicked and copied.
        console.print(f"{name:<12}{value}", markup=False, highlight=False, soft_wrap=True)
    console.print(workers_table(api.call("workers.get_all")["workers"]))
    console.print(queues_table(api.call("queues.get_all_ex")["queues"]))
    console.print(stages_table(stages))


def workers_table(workers: list[Json]) -> Table:
    """Say which workers there are, and which are free."""
    table = Table("worker", "queues", "state", title="Workers", title_justify="left")
    for worker in sorted(workers, key=lambda worker: str(worker["id"])):
        queues = [str(queue.get("name", "?")) for queue in worker.get("queues") or []]
        running = worker.get("task") or {}
        table.add_row(str(worker["id"]), " ".join(queues), f"runs {running['name']}" if running else "free")
    return table


def queues_table(queues: list[Json]) -> Table:
    """Say what waits where."""
    table = Table("queue", "waiting", title="Queues", title_justify="left")
    for queue in sorted(queues, key=lambda queue: str(queue["name"])):
        table.add_row(str(queue["name"]), str(len(queue.get("entries") or [])))
    return table


def stages_table(stages: dict[str, float]) -> Table:
    """Say how long each stage took."""
    table = Table("stage", "seconds", title="Stages", title_justify="left")
    table.columns[1].justify = "right"
    for name, seconds in stages.items():
        table.add_row(name, f"{seconds:.1f}")
    table.add_row("all", f"{sum(stages.values()):.1f}")
    return table


# ---------------------------------------------------------------- the whole


def withdraw(api: ClearmlApi, run: Run) -> str:
    """Take the experiment out of the queue if nobody has started it; leave a running one alone."""
    status = api.call("tasks.get_by_id", task=run.task)["task"]["status"]
    if status != "queued":
        return "the experiment was left as it is"
    api.call("tasks.dequeue", task=run.task)
    return "the experiment was taken out of the queue"


def follow(console: Console, api: ClearmlApi, site: Site, run: Run, options: Options) -> None:
    """Wait for the experiment to end, and fail unless it completed."""
    display = LiveDisplay(console) if console.is_terminal else PlainDisplay(console)
    try:
        with display.running():
            look = watch(api, run, options.epochs, options.timeout, display)
    except (VerifyError, KeyboardInterrupt):
        console.print(f"{withdraw(api, run)}: {page_of(site, run)}", markup=False, highlight=False, soft_wrap=True)
        raise
    if look.status != "completed":
        lines = "\n".join(f"  {line}" for line in console_lines(api, run.task, CONSOLE_LINES))
        raise VerifyError(
            f"the training ended as {look.status!r}, not 'completed'; its last console lines:\n{lines or '  (none)'}\n"
            f"experiment: {page_of(site, run)}"
        )


def verify(console: Console, options: Options) -> None:
    """Run the whole proof; raise when something is missing."""
    site = read_site(options.site_file, options.repository, options.queue)
    if site.ca_file:
        os.environ["REQUESTS_CA_BUNDLE"] = site.ca_file
    stages = read_stages(options.stages)
    password = read_password(options.vault_file, options.vault_password_file)
    with ClearmlApi(site.api_url, site.files_url, site.user, password) as api:
        run = submit(api, site, options.epochs)
        console.print(f"experiment queued in {site.queue}: {page_of(site, run)}", highlight=False, soft_wrap=True)
        follow(console, api, site, run, options)
        ended_at = time.monotonic()
        read_back(api, run, options.epochs)
        started_at = run.started_at or ended_at
        stages["verify: wait in the queue"] = started_at - run.queued_at
        stages["verify: train"] = ended_at - started_at
        stages["verify: read back"] = time.monotonic() - ended_at
        summarize(console, api, site, run, stages)


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn what went wrong into one message and an exit status."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        verify(console, options)
    except InputError as error:
        errors.print(f"verify: {error}", markup=False)
        return 2
    except (VerifyError, ApiError) as error:
        errors.print(f"verify: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("verify: interrupted", markup=False)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
