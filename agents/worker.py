"""The worker's entry point: clearml-agent 3.0, with what a fleet of nodes needs beside it.

``python3 worker.py daemon ...`` takes clearml-agent's own arguments. What it adds:

drain
    While the file ``drain`` is in the worker's state folder, no experiment is pulled. The worker tells the server by
    its tag: ``draining`` while an experiment still runs, ``drained`` when it holds none. The second is only set where
    the next experiment would be asked for, so nothing can be pulled and lost between the wish and the answer.
adoption
    A worker that ends, however, leaves its experiment running, and the one that starts in its place goes on with it:
    console, abort, end. An experiment that ended meanwhile is settled by its container's exit status. For this,
    containers of experiments are not removed by Docker but by the worker.
settling
    An experiment that died with its worker, by a reboot say, goes back to its queue or fails (settle.py). Its container
    and the record of it go only when the server knows its fate; while the server is away the worker waits, and pulls
    nothing else.
watchdog
    A worker that hangs ends itself (watchdog.py); Docker starts it again, and it goes on with its experiment. A server
    that is away is not a reason, nor is an experiment that runs for days.
refusal
    An experiment that asks for an image or for arguments of docker run that the site does not allow fails, and its
    console says why (policy.py). The command is made here, not by clearml-agent, which leaves arguments out in silence:
    the experiment's words stay as they are, come last, just before the image, and ``${CLEARML_...}`` in them is not
    filled in. Its text comes from the experiment's own fields after everything was checked, and from the node's
    configuration, key included.
checkout
    In an experiment's container, too, runs more than clearml-agent: recorded code that is not to be had, changes that
    do not apply say, is a failure with the reason, and never a run of something else (checkout.py).
console
    An experiment's console begins with what runs where, and goes on with the script. What the agent prints before is
    in this program's log, and in the console only where the preparation failed or has a setup script of the experiment.
image
    Which image an experiment really ran in, by its id and digest, is noted in its runtime properties; one that asks
    for an image by these (`clearml-client reproduce` does) is refused where the name means another image by now.
services
    With a limit, no more experiments at once; clearml-agent asks an API for it that the open server does not have.

Environment:

TRAINYARD_STATE             the worker's state folder, /var/lib/trainyard
TRAINYARD_LOST              requeue (default) or fail: what becomes of an experiment that died with its worker
TRAINYARD_MAX_REQUEUES      how often an experiment goes back before it fails, 2
TRAINYARD_WATCHDOG_SECONDS  how long the worker may make no progress before it ends itself, 1800
TRAINYARD_SERVICES_LIMIT    experiments at once in services mode, 0: as many as come
TRAINYARD_TASK_ARGUMENTS    arguments of docker run that this worker's experiments get besides those of clearml.conf

Signals: SIGTERM ends the worker and leaves its experiment alone; SIGINT stops the experiment, tells the server, ends.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import policy
import settle
from checkout import Quiet
from clearml_agent.commands import worker as upstream
from clearml_agent.errors import Sigterm
from clearml_agent.helper.process import Argv, ExitStatus
from clearml_agent.helper.resource_monitor import ResourceMonitor
from urllib3.connectionpool import HTTPConnectionPool
from watchdog import Watchdog

STATE = Path(os.environ.get("TRAINYARD_STATE", "/var/lib/trainyard"))
LOST = os.environ.get("TRAINYARD_LOST") or "requeue"
MAX_REQUEUES = int(os.environ.get("TRAINYARD_MAX_REQUEUES") or 2)
PATIENCE = float(os.environ.get("TRAINYARD_WATCHDOG_SECONDS") or 1800)
WATCHDOG = Watchdog(PATIENCE, "the worker")
WATCHER = Watchdog(PATIENCE, "the worker's look after its experiment")
SERVICES_LIMIT = int(os.environ.get("TRAINYARD_SERVICES_LIMIT") or 0)
# Files in the state folder.
DRAIN, RECORD = STATE / "drain", STATE / "task.json"
TASK_ARGUMENTS = shlex.split(os.environ.get("TRAINYARD_TASK_ARGUMENTS", ""))
# What clearml.conf makes of agent.docker_container_name_format.
CONTAINER_NAME = re.compile(r"clearml-id-([0-9a-f]{32})-")
# A variable whose value nobody should read in a console: the site may give its experiments a token, say.
SECRET = re.compile(r"(?is)^((?:-e=?|--env=)?[a-z0-9_]*(?:key|token|pass|secret|credential)[a-z0-9_]*=).+")
# The user, and the password, of an address.
LOGIN = re.compile("//[^/]*@")
# What clearml-agent runs last in an experiment's container, and what runs in its place: checkout.py, as it is here.
START = "$LOCAL_PYTHON -u -m clearml_agent "
CHECKOUT = base64.b64encode((Path(__file__).parent / "checkout.py").read_bytes()).decode()
PROVED_START = f'$LOCAL_PYTHON -u -c "$(echo {CHECKOUT} | base64 -d)" '
# The container was killed (SIGKILL, SIGTERM), or its host went down under it (255).
KILLED = {137, 143, 255}
# Runtime properties of an experiment: the image that it ran in, and the id of the one that it must run in.
IMAGE, IMAGE_ID, IMAGE_DIGEST = "trainyard_image", "trainyard_image_id", "trainyard_image_digest"
IMAGE_WANTED = "trainyard_image_wanted"
LOOK_SECONDS = 2.0
OWNER_LOOK_SECONDS = 30.0
# From which silence on the daemon has another socket by now.
DAEMON_SECONDS = 30.0
# Between two tries of what must not be left undone.
RETRY_SECONDS = 5.0
# How often the server may say no to a settlement before the worker leaves it to the reapers.
REFUSALS = 5

T = TypeVar("T")


class RefusedError(Exception):
    """The site does not allow an experiment to run as it asks; the text says why, for its console."""


class Current:
    """What this process holds: the worker, and the experiment that it runs."""

    worker: upstream.Worker | None = None
    task: str = ""
    started: str = ""
    """When the server says that the experiment was started; another time means that another worker runs it now."""
    taken: bool = False
    """Another worker runs the experiment now: its status is none of ours any more."""
    interrupted: bool = False
    noted: str = ""
    """The experiment whose image the server knows."""


def docker(*words: str) -> str:
    """Run the Docker client; return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=120).stdout


class ServerRefusedError(settle.RefusedError, OSError):
    """The server answered, and said no."""


def call(worker: upstream.Worker, service: str, action: str, **arguments: object) -> dict[str, Any]:
    """Ask the server as the agent does.

    Raises:
        ServerRefusedError: the server said no.
        OSError: the server sent no answer, or had a fault.
    """
    result = worker._session.send_request(service, action, json=arguments, method="post")
    if not result.ok:
        # 401 and 429 pass: a key that is being rotated, a login that has to wait.
        error = ServerRefusedError if result.status_code in (400, 403, 404) else OSError
        raise error(f"{service}.{action}: {result.status_code} {result.text[:300]}")
    return dict(result.json()["data"])


class Server:
    """The API, as settle.py wants it."""

    def __init__(self, worker: upstream.Worker) -> None:
        self._worker = worker

    def call(self, endpoint: str, /, **arguments: Any) -> dict[str, Any]:
        """Call an endpoint and return its data.

        Raises:
            ServerRefusedError: the server said no.
            OSError: there was no answer.
        """
        service, action = endpoint.split(".")
        return call(self._worker, service, action, **arguments)

    def log(self, task: str, text: str) -> None:
        """Write a line to an experiment's console."""
        self._worker.send_logs(task, [text + "\n"], level="WARNING")


def get_task(worker: upstream.Worker, task: str) -> dict[str, Any]:
    """Return what the server knows of an experiment; empty when it knows none."""
    found = call(worker, "tasks", "get_all", id=[task], only_fields=list(settle.FIELDS), search_hidden=True)["tasks"]
    return dict(found[0]) if found else {}


def is_own(worker: upstream.Worker, known: dict[str, Any]) -> bool:
    """Return whether an experiment that this worker pulled, or whose container it has, is still this worker's."""
    last, own = known.get("last_worker"), worker.worker_id
    if known.get("status") == "queued" or last in (None, "", own, f"{own}:service:{known['id']}"):
        return True
    # Whoever ran it before was the last to report: nobody has since this start.
    return (known.get("last_worker_report") or "") < (known.get("started") or "")


def until_done(what: str, step: Callable[[], T]) -> T | None:
    """Do what must not be left undone, again and again while the server or Docker is away.

    Ends the process when Docker does not answer for long: its socket may be another one by now, which only a container
    that is started again sees. The record stays, so the next process goes on.

    Returns:
        What ``step`` returned; None when the server keeps saying no.
    """
    refusals, failures = 0, 0
    while True:
        WATCHDOG.beat()
        try:
            return step()
        except ServerRefusedError as error:
            refusals += 1
            print(f"{what}: the server refuses it ({error})", flush=True)
            if refusals >= REFUSALS:
                print(f"{what}: given up after {refusals} refusals", flush=True)
                return None
        except (OSError, subprocess.SubprocessError) as error:
            failures = failures + 1 if isinstance(error, subprocess.SubprocessError) else 0
            reason = getattr(error, "stderr", None) or error
            print(f"{what}: not possible yet, tried again in {RETRY_SECONDS:.0f} s ({reason})", flush=True)
            if failures * RETRY_SECONDS >= DAEMON_SECONDS:
                print(f"{what}: Docker fails for {DAEMON_SECONDS:.0f} s, the worker is started again", flush=True)
                os._exit(1)
        time.sleep(RETRY_SECONDS)


# ---------------------------------------------------------------- drain, and whether to pull at all


def show(worker: upstream.Worker, *tags: str) -> None:
    """Let the server know the worker's state by its tags."""
    monitor = worker.monitor
    if monitor is not None and list(monitor._worker_tags or []) != list(tags):
        monitor._worker_tags = list(tags)
        monitor.send_report()


def services() -> int:
    """Return how many experiments of this services worker run."""
    label = f"label=clearml-parent-worker-id={Current.worker.worker_id}" if Current.worker else ""
    return len(docker("ps", "--quiet", "--filter", label).split())


def stop_services(worker: upstream.Worker) -> None:
    """Stop the experiments of a services worker, which run beside it."""
    label = f"label=clearml-parent-worker-id={worker.worker_id}"
    for line in docker("ps", "--filter", label, "--format", "{{.ID}} {{.Names}}").splitlines():
        container, _, name = line.partition(" ")
        match = CONTAINER_NAME.match(name)
        if match:
            stopped = partial(call, worker, "tasks", "stopped", task=match[1], force=True)
            until_done(f"stop experiment {match[1]}", partial(stopped, status_reason="its worker was stopped"))
        docker("rm", "--force", "--volumes", container)


pull = upstream.get_next_task


def next_task(session: object, queue: str, get_task_info: bool = False) -> dict[str, Any]:
    """Ask a queue for an experiment, unless the worker may have none; takes the place of clearml-agent's own."""
    worker = Current.worker
    WATCHDOG.beat()
    if worker is None:  # cannot be: run_tasks_loop sets it
        return {}
    if Current.interrupted:
        raise Sigterm
    if DRAIN.exists():
        show(worker, "drained")
        return {}
    show(worker)
    if SERVICES_LIMIT and services() >= SERVICES_LIMIT:
        return {}
    answer: dict[str, Any] = pull(session, queue=queue, get_task_info=get_task_info)
    if (answer.get("entry") or {}).get("task"):
        record(answer["entry"]["task"], queue)
    return answer


def record(task: str, queue: str, *, preparing: bool = True) -> None:
    """Note what was pulled, before anything else can go wrong; and whether its console waits for its script."""
    values = {"task": task, "queue": queue, "pulled": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(values | ({"preparing": "yes"} if preparing else {}))
    handle, name = tempfile.mkstemp(dir=STATE, prefix=".task.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(RECORD)
    folder = os.open(STATE, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the name is lost with the power
    finally:
        os.close(folder)


def recorded() -> dict[str, str]:
    """Return what was pulled and not settled yet; empty when there is nothing."""
    try:
        return dict(json.loads(RECORD.read_text()))
    except (OSError, ValueError):
        return {}


def note_image(worker: upstream.Worker, task: str) -> None:
    """Note in which image an experiment runs: its name may mean another one tomorrow."""
    for container, found in containers(worker, running=True):
        if found == task:
            name, image = docker("inspect", "--format", "{{.Config.Image}} {{.Image}}", container).split()
            digests = json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", image))
            values = {IMAGE: name, IMAGE_ID: image, IMAGE_DIGEST: digests[0] if digests else ""}
            call(worker, "tasks", "edit_runtime", task=task, force=True, add_or_update=values, remove=[])
            Current.noted = task


def watch() -> None:
    """Look after the running experiment, beside clearml-agent's own loop: drain wishes, and who owns it."""
    looked = time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        WATCHER.beat()
        worker, task = Current.worker, Current.task
        if worker is None or not task:
            looked = time.monotonic()
            continue
        try:
            show(worker, *(["draining"] if DRAIN.exists() else []))
            if Current.noted != task:
                note_image(worker, task)
            if time.monotonic() - looked < OWNER_LOOK_SECONDS:
                continue
            looked = time.monotonic()
            started = str(get_task(worker, task).get("started") or "")
            if task != Current.task:
                continue
            if Current.started and started and started != Current.started:
                print(f"experiment {task} was started anew at {started} elsewhere: its container here is stopped")
                Current.taken = True
                for container, found in containers(worker, running=True):
                    if found == task:
                        docker("stop", "--time", "10", container)
            Current.started = Current.started or started
        except Exception as error:  # a look that failed is no reason to end
            print(f"look after experiment {task}: {error}")


# ---------------------------------------------------------------- adoption and settling


def containers(worker: upstream.Worker, *, running: bool = False) -> list[tuple[str, str]]:
    """Return container and experiment of what this worker has started."""
    some = [] if running else ["--all"]
    label = f"label=clearml-worker-id={worker.worker_id}"
    lines = docker("ps", *some, "--filter", label, "--format", "{{.ID}} {{.Names}}").splitlines()
    found = ((line.split(" ", 1)[0], CONTAINER_NAME.match(line.split(" ", 1)[1])) for line in lines)
    return [(container, match[1]) for container, match in found if match]


@contextmanager
def holding(worker: upstream.Worker, task: str) -> Iterator[None]:
    """Hold an experiment for as long as this lasts; what is left of it goes when the server knows its fate."""
    Current.worker, Current.task, Current.started, Current.taken = worker, task, "", False
    yield
    if not Current.taken:
        until_done(f"settle experiment {task}", partial(settle_rest, worker, task))
    Current.task = ""
    until_done(f"remove the container of experiment {task}", partial(remove_containers, worker, task))
    RECORD.unlink(missing_ok=True)


def settle_rest(worker: upstream.Worker, task: str) -> None:
    """Settle an experiment that this worker has done with, and of which the server does not know an end."""
    known = get_task(worker, task)
    if known.get("status") not in ("queued", "in_progress") or not is_own(worker, known):
        return
    if Current.started and known.get("started") != Current.started:
        return
    if Current.interrupted:
        call(worker, "tasks", "stopped", task=task, status_reason="its worker was stopped")
    else:
        lose(worker, task, f"worker {worker.worker_id} could not run it to its end")


def remove_containers(worker: upstream.Worker, task: str) -> None:
    """Remove what Docker has of an experiment."""
    for container, found in containers(worker):
        if found == task:
            docker("rm", "--force", "--volumes", container)


def is_preparing(task: str) -> bool:
    """Return whether the console of an experiment still waits for its script."""
    left = recorded()
    return left.get("task") == task and "preparing" in left


def since(worker: upstream.Worker, task: str) -> str:
    """Return when the console was told last, in seconds; what came a little earlier is told twice rather than never."""
    if is_preparing(task):
        return "0"
    events = call(worker, "events", "get_task_log", task=task, batch_size=1, navigate_earlier=True)["events"]
    return f"{events[0]['timestamp'] / 1000 - worker._polling_interval:.3f}" if events else "0"


def settle_leftovers(worker: upstream.Worker, queues: list[str]) -> None:
    """Go on with what an earlier process of this worker has left, or bring it to its end."""
    left = recorded()
    for container, task in until_done("list the containers", partial(containers, worker)) or []:
        until_done(f"go on with experiment {task}", partial(settle_container, worker, queues, container, task))
        if left.get("task") == task:
            left = {}
            RECORD.unlink(missing_ok=True)
    if left:
        # Pulled, and there is no container of it (any more).
        why = f"worker {worker.worker_id} went down with it"
        until_done(f"settle experiment {left['task']}", partial(lose, worker, left["task"], why))
        RECORD.unlink(missing_ok=True)


def settle_service(worker: upstream.Worker) -> None:
    """Settle an experiment that a services worker had pulled when it ended; one that has a container goes on alone."""
    left = recorded()
    if not left:
        return
    label = f"label=clearml-parent-worker-id={worker.worker_id}"
    names = until_done(
        "list the containers", lambda: docker("ps", "--all", "--filter", label, "--format", "{{.Names}}")
    )
    if not any(name.startswith(f"clearml-id-{left['task']}-") for name in (names or "").split()):
        why = f"worker {worker.worker_id} went down before it started"
        until_done(f"settle experiment {left['task']}", partial(lose, worker, left["task"], why))
    RECORD.unlink(missing_ok=True)


def settle_container(worker: upstream.Worker, queues: list[str], container: str, task: str) -> None:
    """Go on with an experiment that has a container, or bring it to its end."""
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    known = get_task(worker, task)
    if known.get("status") != "in_progress" or not is_own(worker, known):
        # Put back by a reaper, aborted, deleted; or it ended, and its container was not removed yet.
        if (
            known.get("status") == "stopped"
        ):  # what somebody began to put back; queued ones may be another worker's by now
            lose(worker, task, f"worker {worker.worker_id} went down with it")
        print(f"experiment {task} is {known.get('status', 'gone')}: its container is removed")
        docker("rm", "--force", "--volumes", container)
    elif state["Running"]:
        with holding(worker, task):
            Current.started = str(known.get("started") or "")
            adopt(worker, queues, container, task, known["execution"].get("queue"))
    elif state["ExitCode"] in KILLED and not state["OOMKilled"]:
        lose(worker, task, f"worker {worker.worker_id} went down with it")
        docker("rm", "--force", "--volumes", container)
    else:
        with holding(worker, task):
            finish(worker, container, task, state["ExitCode"])


def adopt(worker: upstream.Worker, queues: list[str], container: str, task: str, queue: str | None) -> None:
    """Go on with an experiment that runs: its console, its abort, its end."""
    print(f"experiment {task} still runs: the worker goes on with it")
    worker.report_monitor(ResourceMonitor.StatusReport(queues=queues, queue=queue, task=task))
    start = since(worker, task)
    worker.send_logs(
        task, [f"Worker {worker.worker_id} was restarted and goes on with this experiment\n"], level="INFO"
    )
    if is_preparing(task):
        worker.hold(task)
    # The exit status comes from a second client, because the one that shows the console knows none.
    script = (
        'exec 3< <(docker wait "$1"); docker logs --follow --since "$2" "$1"; read -r status <&3; exit "${status:-255}"'
    )
    signals = upstream.TaskStopSignal(
        command=worker, session=worker._session, events_service=worker.get_service(upstream.Events), task_id=task
    )
    status, reason = ExitStatus.interrupted, upstream.TaskStopSignal.default
    handle, console = tempfile.mkstemp(prefix=".clearml_agent_out.", suffix=".txt")
    os.close(handle)
    try:
        status, reason = worker._log_command_output(
            task_id=task,
            cmd=Argv("bash", "-c", script, "adopt", container, start),
            stdout_path=console,
            daemon=True,
            stop_signal=signals,
            session=worker._session,
        )
    except KeyboardInterrupt:
        worker.handle_user_abort(task, session=worker._session)
    worker.release()
    worker.handle_task_termination(task, status, reason, session=worker._session)
    worker.report_monitor(ResourceMonitor.StatusReport(queues=queues))


def lost(worker: upstream.Worker, task: str, status: int) -> bool:
    """Tell whether it was not the experiment that ended with this status but the Docker client that showed it."""
    deadline = time.monotonic() + DAEMON_SECONDS
    while True:
        try:
            for container, found in containers(worker):
                if found == task:
                    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
                    return bool(state["Running"] or state["ExitCode"] != status)
            return False
        except subprocess.SubprocessError:  # the daemon does not answer
            if time.monotonic() > deadline:
                return True
            time.sleep(1)


def finish(worker: upstream.Worker, container: str, task: str, status: int) -> None:
    """Bring an experiment to the end that it had while no worker looked."""
    print(f"experiment {task} ended while the worker was away, with status {status}")
    done = subprocess.run(
        ["docker", "logs", "--since", since(worker, task), container],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
        check=True,
    )
    if is_preparing(task):
        worker.hold(task)
    worker.send_logs(task, done.stdout.splitlines(keepends=True))
    worker.release()
    worker.handle_task_termination(task, status, upstream.TaskStopReason.no_stop, session=worker._session)


def lose(worker: upstream.Worker, task: str, why: str) -> None:
    """Settle an experiment that this worker had and that nobody runs now; one that is somebody's is left alone.

    Raises:
        ServerRefusedError: the server said no.
        OSError: there was no answer.
    """
    policy_ = settle.Policy(LOST == "requeue", MAX_REQUEUES)
    outcome = settle.settle(Server(worker), task, why=why, policy=policy_, lost=partial(is_own, worker))
    if outcome.how != "none":
        print(f"experiment {task}: {outcome.why} ({outcome.how})", flush=True)


# ---------------------------------------------------------------- clearml-agent's own, with the above


class Worker(Quiet):
    """clearml-agent's worker, with drain, adoption and settling."""

    @staticmethod
    def register_signal_handler() -> None:
        """Leave a running experiment alone on SIGTERM, and stop it on SIGINT."""

        def leave(*_: object) -> None:
            if Current.task:
                print(f"the worker ends and leaves experiment {Current.task} running", flush=True)
                os._exit(0)
            raise Sigterm

        def interrupt(*_: object) -> None:
            Current.interrupted = True
            raise KeyboardInterrupt if Current.task else Sigterm

        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, interrupt)

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        own = list(getattr(self, "_extra_docker_arguments", None) or [])
        self._extra_docker_arguments = [*own, *TASK_ARGUMENTS]
        self._own_command: list[str] = []
        self._image = ""
        self._queue = ""

    def run_tasks_loop(self, queues: list[str], *words: Any, **options: Any) -> None:
        """Settle what is left, then pull and run."""
        Current.worker, Current.task = self, ""
        WATCHDOG.start()
        WATCHER.start()
        if self._services_mode:
            settle_service(self)
        else:
            settle_leftovers(self, queues)
        try:
            super().run_tasks_loop(queues, *words, **options)
        except Sigterm:
            if Current.interrupted and self._services_mode:
                stop_services(self)
            raise

    def get_worker_properties(self, queue_ids: list[str]) -> Any:
        """Return what the server says of the queues; asked in each round, also while all of them are paused."""
        WATCHDOG.beat()
        return super().get_worker_properties(queue_ids)

    def run_one_task(self, queue: str, task_id: str, *words: Any, **options: Any) -> int | None:
        """Run an experiment that was pulled, in a container that outlives this process."""
        refused = until_done(f"check experiment {task_id}", partial(self.refused, task_id))
        if refused is None:  # the server does not let us look: it was deleted, say
            why = f"worker {self.worker_id} could not read it"
            until_done(f"settle experiment {task_id}", partial(lose, self, task_id, why))
        if refused is not False:
            RECORD.unlink(missing_ok=True)
            return None
        if self._services_mode:
            status = self.run_allowed(queue, task_id, *words, **options)
            RECORD.unlink(missing_ok=True)
            return status
        with holding(self, task_id):
            return self.run_allowed(queue, task_id, *words, **options)

    def refused(self, task: str) -> bool:
        """Fail an experiment that must not run here."""
        return self.refuse(task) or self.refuse_image(task)

    def run_allowed(self, queue: str, task_id: str, *words: Any, **options: Any) -> int | None:
        """Run an experiment, or let it fail where the site does not allow its container."""
        self._queue = queue
        self.hold(task_id)
        try:
            return super().run_one_task(queue, task_id, *words, **options)  # type: ignore[no-any-return]
        except RefusedError as refused:
            self.release()
            self.fail(task_id, "container refused", str(refused))
            return None
        finally:
            self.release()

    def introduce(self, task: str) -> None:
        """Begin an experiment's console with what runs where."""
        known = call(self, "tasks", "get_by_id", task=task)["task"]
        script = known.get("script") or {}
        queues = call(self, "queues", "get_all", id=[self._queue], search_hidden=True)["queues"] if self._queue else []
        code = "the script in the experiment"
        if script.get("repository"):
            commit = script.get("version_num") or script.get("tag") or f"branch {script.get('branch') or 'by default'}"
            changes = ", with uncommitted changes" if (script.get("diff") or "").strip() else ""
            code = f"{LOGIN.sub('//', script['repository'])} at {commit}{changes}"
        folder = script.get("working_dir") or "."
        gpus = os.environ.get("NVIDIA_VISIBLE_DEVICES") or "all"
        lines = [
            f"Worker {self.worker_id} runs experiment {task}",
            f"  queue   {queues[0]['name'] if queues else self._queue or 'none'}",
            f"  GPUs    {gpus}",
            f"  image   {self._image}",
            f"  code    {code}",
            f"  script  {script.get('entry_point') or '-'}{'' if folder == '.' else f' in {folder}'}",
        ]
        self.say(task, lines)
        if ((known.get("container") or {}).get("setup_shell_script") or "").strip():
            # What it prints is its author's, and comes before the script: nothing is held back.
            self._note_start()
            self.release()

    def _note_start(self) -> None:
        left = recorded()
        if left.get("task") == self._preparing:
            with suppress(OSError):  # a full disk, which must not end the experiment
                record(left["task"], left.get("queue", ""), preparing=False)

    def prepared(self, text: str, session: Any = None) -> None:
        """Let the script have the console, also if this process ends before it does."""
        self._note_start()
        super().prepared(text, session)

    def log_of_agent(self) -> str:
        """Return where this program's log is, for a message."""
        name = socket.gethostname()
        with suppress(OSError, subprocess.SubprocessError):
            name = docker("inspect", "--format", "{{.Name}}", name).strip().lstrip("/")
        return f"the log of worker {self.worker_id} (docker logs {name}, on its node)"

    def get_docker_config_cmd(self, docker_args: list[str] | None, *words: Any, **options: Any) -> Any:
        """Take the image for experiments that name none, which must be one reference.

        Raises:
            SystemExit: it is not, or an argument for every experiment's container has a template.
        """
        made = super().get_docker_config_cmd(docker_args, *words, **options)
        problem = policy.image_problem(" ".join(docker_args or [self._docker_image]))
        if problem:
            sys.exit(f"worker {self.worker_id}: {problem} (clearml_agent_default_docker_image, or the worker's image)")
        for word in [*(self._extra_docker_arguments or []), *(self._docker_arguments or [])]:
            if "${CLEARML_" in str(word):
                sys.exit(
                    f"worker {self.worker_id}: the argument {word} of docker run has a template, and experiments "
                    "choose what is filled in: write the value itself (clearml_agent_extra_docker_arguments)"
                )
        return made

    def _get_docker_cmd(self, *words: Any, docker_arguments: Any = None, **parts: Any) -> list[str]:
        """Make the command that runs an experiment.

        Raises:
            RefusedError: the site does not allow it.
        """
        own = [str(word) for word in super()._get_docker_cmd(*words, docker_arguments=None, **parts)]
        # Its own --rm stands before the image; without it the container outlives this process.
        if not self._services_mode and own[-5] == "--rm":
            del own[-5]
        if own[-1].endswith(START):
            own[-1] = own[-1][: -len(START)] + PROVED_START
        asked = policy.split(docker_arguments) if isinstance(docker_arguments, str) else docker_arguments or []
        self._own_command, self._image = own, str(parts["docker_image"])
        command = policy.command_of(own, map(str, asked))
        problem = self.refusal(command)
        if problem:
            raise RefusedError(problem)
        return command

    def _log_command_output(self, task_id: str, cmd: Any, *words: Any, **options: Any) -> Any:
        """Run a command and report what it prints; an experiment's is checked once more, as it goes to Docker."""
        command = [str(word) for word in cmd]
        problem = self.refusal(command) if command[:2] == ["docker", "run"] else None
        if problem:
            self.release()
            self.send_logs(task_id, [problem + "\n"], level="ERROR")
            return ExitStatus.failure, upstream.TaskStopReason.no_stop
        if command[:2] == ["docker", "run"]:
            with suppress(OSError):
                self.introduce(task_id)
        return super()._log_command_output(task_id, cmd, *words, **options)

    def refusal(self, command: list[str]) -> str | None:
        """Say why an experiment's command must not run; None when it may."""
        own = self._own_command
        if own and command and command[-1].startswith(own[-1]):  # the agent has added which experiment to execute
            own = [*own[:-1], command[-1]]
        config = self._session.config
        rules = policy.Rules(
            filters=tuple(pattern.pattern for pattern in self._docker_args_filters),
            forbidden=frozenset(config.get("agent.forbidden_docker_args", [])),
            protected=frozenset(config.get("agent.protected_docker_extra_args", [])),
            given=tuple(map(str, self._docker_arguments or [])),
        )
        problem = policy.refusal(command, own, self._image, rules)
        return problem and f"Worker {self.worker_id} refuses this experiment: {problem}"

    def refuse(self, task: str) -> bool:
        """Fail an experiment whose container cannot be read; clearml-agent would take the default image instead."""
        container = call(self, "tasks", "get_by_id", task=task)["task"].get("container") or {}
        problem = policy.image_problem(container["image"].strip()) if container.get("image") else None
        try:
            policy.split(container.get("arguments") or "")
        except policy.MalformedError as error:
            problem = problem or f"its container's arguments cannot be split into words: {error}; close each quote"
        if problem:
            message = f"Worker {self.worker_id} refuses this experiment: {problem}. Change it and enqueue it again."
            self.fail(task, "container refused", message)
        return bool(problem)

    def refuse_image(self, task: str) -> bool:
        """Fail an experiment that wants an image of which this node has another build under the same name."""
        wanted = (call(self, "tasks", "get_by_id", task=task)["task"].get("runtime") or {}).get(IMAGE_WANTED)
        image = upstream.get_task_container(self._session, task).get("image") or self._docker_image
        if not wanted or not image:
            return False
        try:
            here = docker("image", "inspect", "--format", "{{.Id}}", image).strip()
        except subprocess.CalledProcessError:
            return False  # not here yet: Docker pulls it, and says what it cannot
        if here == wanted:
            return False
        message = (
            f"Worker {self.worker_id} refuses this experiment: it must run in the build {wanted} of the image {image}, "
            f"and this node has {here}. Put the old build back (docker pull or docker load), or run a plain clone."
        )
        self.fail(task, "another image", message)
        return True

    def fail(self, task: str, reason: str, message: str) -> None:
        """Let an experiment that never ran fail, with a message that its owner reads in the console."""
        self.send_logs(task, [message + "\n"], level="ERROR")
        failed = partial(call, self, "tasks", "failed", task=task, force=True)
        until_done(f"fail experiment {task}", partial(failed, status_reason=reason, status_message=message))

    def handle_task_termination(self, task_id: str, exit_code: int, stop_reason: Any, **options: Any) -> None:
        """Tell the server how an experiment ended, unless another worker runs it now, or it has not ended at all."""
        if task_id == Current.task:
            if Current.taken:
                return
            if stop_reason == upstream.TaskStopReason.no_stop and exit_code and lost(self, task_id, exit_code):
                print(f"Docker went away under experiment {task_id}: the worker starts anew, with it", flush=True)
                os._exit(1)  # Docker starts it again, with the socket of today; settle_leftovers does the rest
        super().handle_task_termination(task_id, exit_code, stop_reason, **options)
        if task_id == Current.task or self._services_mode:
            until_done(
                f"report the end of experiment {task_id}", partial(self.confirm, task_id, exit_code, stop_reason)
            )

    def confirm(self, task: str, exit_code: int, stop_reason: Any) -> None:
        """See that the server knows the end of an experiment; clearml-agent tells it once, and goes on if that fails.

        Raises:
            OSError: it does not know it yet.
        """
        reasons = upstream.TaskStopReason
        known = get_task(self, task)
        if known.get("status") != "in_progress" or not is_own(self, known):
            return
        if stop_reason in (reasons.no_stop, reasons.stopped):
            super().handle_task_termination(task, exit_code, stop_reason)
            if get_task(self, task).get("status") == "in_progress":
                raise OSError("the server does not have its end")
        elif stop_reason == reasons.exception:  # clearml-agent reports nothing then
            why = "the worker could not follow the experiment, and has stopped it"
            call(self, "tasks", "failed", task=task, status_reason=why, status_message=why)


class Literal(upstream.DockerArgsTemplateResolver):  # type: ignore[misc]
    """Leaves templates as they are; takes the place of clearml-agent's own, which fills them in."""

    def resolve_from_docker_cmd(self, full_docker_cmd: list[str]) -> list[str]:
        """Return the words unchanged."""
        return full_docker_cmd


class Sanitizer(upstream.DockerArgsSanitizer):  # type: ignore[misc]
    """Hides secrets where a command is shown, and ends no worker over words that it cannot read."""

    @classmethod
    def sanitize_docker_command(cls, session: object, docker_command: list[str]) -> list[str]:
        """Return the words to show."""
        try:
            shown = super().sanitize_docker_command(session, docker_command)
        except (IndexError, ValueError):  # -e at the end; an address with half of an IPv6 one
            return ["(not shown)"]
        return [SECRET.sub(r"\1********", word.replace(CHECKOUT, "...")) for word in shown]


class StopSignal(upstream.TaskStopSignal):  # type: ignore[misc]
    """Looked at in every round of the loop that follows an experiment."""

    def test(self) -> Any:
        """Return whether the experiment is to be stopped."""
        WATCHDOG.beat()
        return super().test()


def counted(urlopen: Callable[..., T]) -> Callable[..., T]:
    """Return urllib3's way to send a request so that each try is progress: we do not hang while the server is away.

    clearml-agent tries without end where there is no answer, and where the server answers that it is in maintenance.
    """

    def send(*words: Any, **options: Any) -> T:
        thread = threading.current_thread()
        if thread is threading.main_thread():
            WATCHDOG.beat()
        elif thread.name == watch.__name__:
            WATCHER.beat()
        return urlopen(*words, **options)

    return send


def main() -> int:
    """Run clearml-agent."""
    from clearml_agent import __main__ as program
    from clearml_agent import commands

    upstream.get_next_task = next_task
    upstream.DockerArgsTemplateResolver = Literal
    upstream.TaskStopSignal = StopSignal
    HTTPConnectionPool.urlopen = counted(HTTPConnectionPool.urlopen)  # type: ignore[method-assign]
    upstream.DockerArgsSanitizer = Sanitizer
    commands.Worker = Worker
    threading.Thread(target=watch, name=watch.__name__, daemon=True).start()
    return int(program.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
