"""A platform of its own for the tests: a lite server, workers as containers, and repositories for them to run.

Everything is real: the server is the program that is deployed, a worker is `agents/compose.yaml` with the template's
`clearml.conf`, and experiments run in the perception image. Names and ports are the test run's own.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import bcrypt
import jinja2
from clearml_api import ApiError, ClearmlApi, Json

ROOT = Path(__file__).parents[2]
AGENT_IMAGE = os.environ.get("E2E_AGENT_IMAGE", "trainyard/agent:0.1.0")
TASK_IMAGE = os.environ.get("E2E_TASK_IMAGE", "trainyard/perception:3.11-cpu")
USER = "admin"
PROJECT = "tests/end to end"
# A status of these is an end.
ENDED = ("completed", "published", "closed", "failed", "stopped")

T = TypeVar("T")


def run(*command: str | Path, timeout: float = 120, **options: object) -> str:
    """Run a program; its whole output is in the error when it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}"
    return str(done.stdout)


def wait_for(what: str, look: Callable[[], T | None], timeout: float, every: float = 0.5) -> T:
    """Look until there is something to see."""
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s in vain: {what}"
        time.sleep(every)


def host_address() -> str:
    """Return an address of this host that containers on the default bridge reach."""
    template = "{{(index .IPAM.Config 0).Gateway}} {{(index .IPAM.Config 0).Subnet}}"
    *gateway, subnet = run("docker", "network", "inspect", "bridge", "--format", template).split()
    # An engine that has made its bridge itself names no gateway before its next start; it takes the first address.
    return gateway[0] if gateway else str(next(ipaddress.ip_network(subnet).hosts()))


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("0.0.0.0", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def secret() -> str:
    return f"s{secrets.token_hex(20)}"


class Server:
    """The lite server as a process of its own, which may be killed and started again.

    ``address`` is where its clients find it: for containers ``host_address()``.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.config, self.data, self.log = folder / "config", folder / "data", folder / "server.log"
        self.address = address
        self.api_port, self.web_port, self.files_port = free_ports(3)
        self.password, self.key, self.secret = secret(), secret(), secret()
        self._process: subprocess.Popen[bytes] | None = None
        self.config.mkdir(parents=True)
        self.data.mkdir()
        self._write_users()
        self.set_watchdog(threshold_sec=7200, interval_sec=900)

    @property
    def urls(self) -> dict[str, str]:
        ports = {"web": self.web_port, "api": self.api_port, "files": self.files_port}
        return {name: f"http://{self.address}:{port}" for name, port in ports.items()}

    def _write_users(self) -> None:
        hashed = base64.b64encode(bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(rounds=4))).decode()
        user = {"username": USER, "password": hashed, "name": "Administrator"}
        users = {"auth": {"fixed_users": {"enabled": True, "pass_hashed": True, "users": [user]}}}
        system = {"role": "system", "user_key": secret(), "user_secret": secret()}
        account = {"role": "user", "display_name": "e2e", "user_key": self.key, "user_secret": self.secret}
        secure = {
            "http": {"session_secret": {"apiserver": secret()}},
            "auth": {"token_secret": secret()},
            "credentials": {"apiserver": system, "e2e": account},
        }
        for name, values in (("apiserver.conf", users), ("secure.conf", secure)):
            (self.config / name).write_text(json.dumps(values))

    def set_watchdog(self, threshold_sec: int, interval_sec: int) -> None:
        """Say from which silence on a task is dead; holds from the next start on."""
        watchdog = {"enabled": True, "threshold_sec": threshold_sec, "watch_interval_sec": interval_sec}
        settings = {"tasks": {"non_responsive_tasks_watchdog": watchdog}}
        (self.config / "services.conf").write_text(json.dumps(settings))

    def start(self) -> None:
        command = [sys.executable, "-m", "trainyard_lite", "serve", "--config-dir", str(self.config)]
        command += ["--data-dir", str(self.data), "--host", "0.0.0.0"]
        for name, port in (("api", self.api_port), ("web", self.web_port), ("files", self.files_port)):
            command += [f"--{name}-port", str(port), f"--{name}-url", self.urls[name]]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for("the server answers", self._answers, 30, every=0.1)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended:\n{self.tail()}"
        try:
            with socket.create_connection((self.address, self.files_port), timeout=1):
                self.login().close()
        except (OSError, ApiError):
            return False
        return True

    def end(self, number: signal.Signals) -> None:
        """End the server with a signal, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=30)

    def login(self) -> ClearmlApi:
        return ClearmlApi(self.urls["api"], self.urls["files"], USER, self.password)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Proxy:
    """Stands between a worker and the API, and answers in its place with a fault: once to each of ``faults``."""

    def __init__(self, server: Server) -> None:
        self.faults: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                endpoint = self.path.partition("?")[0].rsplit("/", 1)[-1]
                if endpoint in proxy.faults:
                    proxy.faults.remove(endpoint)
                    status, kind, answer = 500, "application/json", b'{"meta": {"result_msg": "a fault of the test"}}'
                else:
                    status, kind, answer = self.forward(body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_GET  # noqa: N815

            def forward(self, body: bytes) -> tuple[int, str, bytes]:
                there = http.client.HTTPConnection(server.address, server.api_port, timeout=60)
                with closing(there):
                    dropped = {"host", "connection", "content-length", "transfer-encoding"}
                    headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
                    there.request(self.command, self.path, body, headers)
                    answer = there.getresponse()
                    return answer.status, answer.getheader("Content-Type") or "application/json", answer.read()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((server.address, 0), Handler)
        self.url = f"http://{server.address}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Worker:
    """One agent, as the roles run it: a compose project with an env file."""

    name: str
    queues: list[str]
    folder: Path
    api_url: str
    config: Path
    cache: Path
    settings: dict[str, str]
    project: str = field(init=False)
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        self.project = f"e2e-{self.name}"
        self.state = self.folder / f"{self.name}-state"
        self.state.mkdir()
        values = {
            "CLEARML_AGENT_PROJECT": self.project,
            "CLEARML_AGENT_IMAGE": AGENT_IMAGE,
            "CLEARML_AGENT_WORKER_NAME": self.name,
            "CLEARML_AGENT_WORKER_ID": self.name,
            "CLEARML_AGENT_DEVICES": "--cpu-only",
            "CLEARML_AGENT_QUEUES": " ".join(self.queues),
            "CLEARML_AGENT_DEFAULT_DOCKER_IMAGE": TASK_IMAGE,
            "CLEARML_AGENT_POLL_SECONDS": "1",
            "CLEARML_AGENT_API_URL": self.api_url,
            "CLEARML_AGENT_CACHE": str(self.cache),
            "CLEARML_AGENT_STATE": str(self.state),
            "CLEARML_AGENT_CONFIG": str(self.config),
            **self.settings,
        }
        self.env_file = self.folder / f"{self.name}.env"
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def start(self) -> None:
        self.compose("up", "--detach", "--pull", "never")

    def kill(self) -> None:
        """Take the power away: from the agent, and from the experiment on the same node."""
        agent, experiments = self.compose("ps", "--quiet").split(), self.experiments()
        assert len(agent) == len(experiments) == 1, (agent, experiments)
        run("docker", "kill", "--signal", "KILL", *agent, *experiments)

    def remove(self) -> None:
        self.compose("down", "--timeout", "1", "--volumes")
        left = self.experiments()
        if left:
            run("docker", "rm", "--force", "--volumes", *left)

    def experiments(self) -> list[str]:
        """Return the containers in which this worker's experiments run."""
        return run("docker", "ps", "--quiet", "--filter", f"label=clearml-parent-worker-id={self.name}").split()

    def logs(self, lines: int = 60) -> str:
        try:
            return self.compose("logs", "--no-color", "--no-log-prefix", "--tail", str(lines))
        except AssertionError as error:  # a report of another failure must not fail
            return str(error)

    def compose(self, *words: str) -> str:
        file = ROOT / "agents" / "compose.yaml"
        return run(
            "docker", "compose", "--project-name", self.project, "--env-file", self.env_file, "--file", file, *words
        )


class Platform:
    """A server, the folders that nodes share with experiments, and the workers that are started by and by."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = secrets.token_hex(3)
        self.server = Server(folder / "server", host_address())
        self.repositories = folder / "repositories"
        self.runs = folder / "runs"  # writable from every experiment
        self.cache = folder / "cache"
        for path in (self.repositories, self.runs, self.cache):
            path.mkdir()
        self.workers: list[Worker] = []
        self._agent_config = folder / "agent.conf"

    def start(self) -> None:
        self.server.start()
        self._agent_config.write_text(self._render_agent_config())

    def stop(self) -> None:
        with ExitStack() as stack:  # one that cannot be removed does not keep the others
            stack.callback(self.server.end, signal.SIGTERM)
            for worker in self.workers:
                stack.callback(worker.remove)

    @contextmanager
    def api(self) -> Iterator[ClearmlApi]:
        with self.server.login() as session:
            yield session

    def add_worker(self, name: str, *queues: str, config: dict[str, object] | None = None, **settings: str) -> Worker:
        """Start a worker that serves these queues, in this order.

        ``config`` are variables of its clearml.conf that differ from the other workers', ``settings``
        lines of its env file.
        """
        path = self._agent_config
        if config:
            path = self.folder / f"{name}.conf"
            path.write_text(self._render_agent_config(**config))
        with self.api() as api:
            for queue in queues:
                queue_id(api, queue)
        worker = Worker(
            f"{name}-{self.id}",
            list(queues),
            self.folder,
            self.server.urls["api"],
            path,
            self.cache,
            settings,
        )
        self.workers.append(worker)
        worker.start()
        return worker

    def add_repository(self, source: Path, name: str) -> str:
        """Make a bare repository of a folder's files; return its address, which holds in experiments too."""
        tree, bare = self.folder / f"{name}-tree", self.repositories / f"{name}.git"
        shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__"))
        git = ("git", "-c", "user.name=e2e", "-c", "user.email=e2e@localhost", "-C", tree)
        run(*git, "init", "--quiet", "--initial-branch=main")
        run(*git, "add", ".")
        run(*git, "commit", "--quiet", "--message=Start")
        run("git", "clone", "--quiet", "--bare", tree, bare)
        return f"file://{bare}"

    def sdk_config(self) -> Path:
        """Write the clearml.conf of somebody who uses this platform."""
        urls = self.server.urls
        path = self.folder / "sdk.conf"
        values = {
            "api": {
                **{f"{name}_server": url for name, url in urls.items()},
                "credentials": {"access_key": self.server.key, "secret_key": self.server.secret},
            },
            "sdk": {"storage": {"cache": {"default_base_dir": str(self.folder / "sdk-cache")}}},
        }
        path.write_text(json.dumps(values))
        return path

    def report(self) -> str:
        """Return the last lines of every log."""
        parts = [f"----- server\n{self.server.tail()}"]
        parts += [f"----- worker {worker.name}\n{worker.logs()}" for worker in self.workers]
        return "\n".join(parts)

    def _render_agent_config(self, **changes: object) -> str:
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        environment.filters["to_json"] = json.dumps
        template = environment.from_string((ROOT / "agents" / "clearml.conf.j2").read_text())
        urls = self.server.urls
        mounts = ["-v", f"{self.repositories}:{self.repositories}:ro", "-v", f"{self.runs}:{self.runs}"]
        values = {
            "clearml_agent_api_url": urls["api"],
            "clearml_agent_web_url": urls["web"],
            "clearml_agent_files_url": urls["files"],
            "clearml_agent_access_key": self.server.key,
            "clearml_agent_secret_key": self.server.secret,
            "clearml_agent_disable_ssh_mount": True,
            "clearml_agent_git_user": "",
            "clearml_agent_git_token": "",
            "clearml_agent_git_ssh_key": "",
            "clearml_agent_task_python": "/usr/bin/python3",
            "clearml_agent_extra_index_urls": [],
            "clearml_agent_default_docker_image": TASK_IMAGE,
            "clearml_agent_default_docker_arguments": [],
            "clearml_agent_docker_args_filters": ["^-e$"],
            "clearml_agent_forbidden_docker_args": ["entrypoint", "privileged"],
            "__clearml_agent_task_arguments": ["--network=bridge", *mounts],
        }
        return template.render(values | changes)


# ---------------------------------------------------------------- experiments


def queue_id(api: ClearmlApi, name: str) -> str:
    """Return a queue's id; create the queue if it is new."""
    for queue in api.call("queues.get_all")["queues"]:
        if queue["name"] == name:
            return str(queue["id"])
    return str(api.call("queues.create", name=name)["id"])


def project_id(api: ClearmlApi) -> str:
    for project in api.call("projects.get_all")["projects"]:
        if project["name"] == PROJECT:
            return str(project["id"])
    return str(api.call("projects.create", name=PROJECT)["id"])


def create(api: ClearmlApi, name: str, repository: str, script: str, **parameters: object) -> str:
    """Create an experiment of a script in a repository, with parameters for its arguments."""
    values = {key: {"section": "Args", "name": key, "value": str(value)} for key, value in parameters.items()}
    return str(
        api.call(
            "tasks.create",
            name=name,
            type="training",
            project=project_id(api),
            script={
                "repository": repository,
                "branch": "main",
                "entry_point": script,
                "working_dir": ".",
                "binary": "python3",
            },
            hyperparams={"Args": values},
        )["id"]
    )


def enqueue(api: ClearmlApi, task: str, queue: str) -> None:
    api.call("tasks.enqueue", task=task, queue=queue_id(api, queue))


def get(api: ClearmlApi, task: str) -> Json:
    return dict(api.call("tasks.get_by_id", task=task)["task"])


def wait_for_status(api: ClearmlApi, task: str, status: str, timeout: float) -> Json:
    """Wait until an experiment is in a status; ending in another one fails at once, with its last console lines."""

    def look() -> Json | None:
        seen = get(api, task)
        if seen["status"] == status:
            return seen
        told = f"{seen['status']}, not {status}: {seen.get('status_reason')}"
        assert seen["status"] not in ENDED, f"{told}\n{console(api, task)}"
        return None

    return wait_for(f"experiment {task} is {status}", look, timeout)


def wait_for_epoch(api: ClearmlApi, task: str, epoch: int, timeout: float) -> None:
    """Wait until an experiment has reported an epoch."""

    def look() -> bool:
        seen = get(api, task)
        assert seen["status"] in {"queued", "in_progress"}, f"{seen['status']}\n{console(api, task)}"
        return bool(seen.get("last_iteration", 0) >= epoch and curves(api, task).get("accuracy"))

    wait_for(f"experiment {task} reports epoch {epoch}", look, timeout)


def curves(api: ClearmlApi, task: str) -> Json:
    """Return all points of all scalars."""
    return api.call("events.scalar_metrics_iter_histogram", task=task, samples=6000)


def epochs_of(api: ClearmlApi, task: str) -> dict[str, list[int]]:
    """Return the epochs that each of the training's curves has a point for."""
    return {
        f"{metric}/{variant}": points["x"]
        for metric, variants in curves(api, task).items()
        if metric in {"loss", "accuracy"}
        for variant, points in variants.items()
    }


def console(api: ClearmlApi, task: str) -> str:
    """Return the console's text."""
    events = api.call("events.get_task_log", task=task, batch_size=1000)["events"]
    return "\n".join(str(event.get("msg", "")) for event in sorted(events, key=lambda event: event["timestamp"]))
