"""What runs in an experiment's container in place of ``python -m clearml_agent``: the agent, whose checkout is proved.

The worker hands this text to the container's Python (``-c``), so it needs nothing but clearml-agent 3.0 beside it, and
is Python 3.8. An experiment runs the recorded commit with the recorded changes, or fails with the reason as its status.
What clearml-agent does of itself, and what is different here:

console
    It begins with 200 lines of the agent's configuration. Here what the agent prints is held back until the script
    starts, and stays in the worker's log; where the preparation fails, the console gets all of it (Quiet, which
    worker.py has too).
packages
    In an image that has the agent nothing is installed, and the experiment keeps the list of the machine that sent it.
    Here it gets the list of the Python that runs it; what was asked for stays beside it (Packages).
commit
    One that no branch or tag has any more (force-pushed, say) is fetched by its hash, where the remote gives it out.
submodules
    Those that the default branch does not have stay empty, and a commit of one that cannot be fetched is passed over.
    Here all are fetched as the commit names them, or the experiment fails.
changes
    What does not begin like a diff is taken for a script, and ignored where the script is in the repository: colours
    around it, or the SDK's remark that it was too large. Here the experiment fails.
LFS
    Without git-lfs in the image, files are pointers of three lines. Here the experiment fails, unless it sets git-lfs's
    own variable GIT_LFS_SKIP_SMUDGE.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clearml_agent import __main__ as program
from clearml_agent import commands
from clearml_agent.commands import worker as upstream
from clearml_agent.errors import CommandFailedError
from clearml_agent.helper.repo import Git

POINTER = b"version https://git-lfs.github.com/spec/"
# Changes that begin with a colour or a remark, and the remark that the SDK leaves in place of large ones.
NO_SCRIPT = re.compile(r"(?m)^(\x1b\[[0-9;]*m)*diff --git |\A# WARNING! git diff too large")
HASH = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
# Characters of a message; its owner reads the rest in the console.
LONGEST = 1000
# The last words of clearml-agent before the script has the console. A line may arrive in two parts, each made a line.
STARTS = re.compile("(?m)^" + r"\n?".join(map(re.escape, "Starting Task Execution:")) + r"\s+")
# Seconds after which the console hears that a preparation goes on, for the first time; then after twice as long.
PATIENCE = 10.0
# The head of a list of packages that was recorded here; it ends with a hash of the list.
RECORDED = re.compile(r"(?m)^# \d+ packages (of the image|of the environment in) .*\(([0-9a-f]{16})\)$")
# Prints the packages of the Python that runs it. A package of a folder is a remark: no index has it.
LIST = r"""
import json, re, sys
from importlib.metadata import distributions
from urllib.parse import urlsplit
found = {}
for one in distributions():
    name = one.metadata["Name"]
    if not name or re.sub(r"[-_.]+", "-", name).lower() in found:
        continue  # what comes later on the path is not what is imported
    line = "%s==%s" % (name, one.version)
    told = json.loads(one.read_text("direct_url.json") or "{}")
    url = told.get("url", "")
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):  # no user, no token
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    place = str(one.locate_file("")).rstrip("/")
    if url.startswith("file:") or not (url or place.endswith("-packages") or place.endswith(".zip")):
        line = "# %s is of %s" % (line, url or place)
    elif "vcs_info" in told:
        line = "%s @ %s+%s@%s" % (name, told["vcs_info"]["vcs"], url, told["vcs_info"]["commit_id"])
        line += "#subdirectory=" + told["subdirectory"] if told.get("subdirectory") else ""
    elif url:
        line = "%s @ %s" % (name, url)
    found[re.sub(r"[-_.]+", "-", name).lower()] = line
print("# Python %s, %s" % (sys.version.split()[0], sys.executable))
print("\n".join(found[name] for name in sorted(found)))
"""


class CheckoutError(Exception):
    """The code of an experiment cannot be had as it was recorded; the text says why."""


def why(error: BaseException) -> str:
    """Return what git complained of, in one line."""
    told = getattr(error, "output", None) or getattr(error, "stderr", None) or str(error)
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    if text.startswith(("b'", 'b"')):  # as clearml-agent makes a text of bytes
        with contextlib.suppress(SyntaxError, ValueError):
            text = ast.literal_eval(text).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-1:]
    return chosen[0] if chosen else type(error).__name__


def lines_of(folder: str, *words: str) -> list[str]:
    """Return what git prints with ``-z``.

    Raises:
        CheckoutError: it failed.
    """
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, check=False)
    if done.returncode:
        raise CheckoutError("git {}: {}".format(words[0], done.stderr.decode("utf-8", "replace").strip()))
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def checkout(self: Any) -> None:
    """Check out the recorded commit with its submodules; takes the place of clearml-agent's own.

    Raises:
        CheckoutError: it, or a submodule, is not to be had.
    """
    revision = self._revision
    try:
        agents_checkout(self)
    except subprocess.CalledProcessError as error:
        if not isinstance(revision, str) or not HASH.fullmatch(revision):
            raise CheckoutError(f"{revision} is not in {self.url}") from error
        print(f"commit {revision} is in no branch or tag of {self.url}: fetching it by its hash")
        try:
            self.get_stderr("fetch", "--no-tags", "origin", revision, cwd=self.location)
            agents_checkout(self)
        except subprocess.CalledProcessError as second:
            raise CheckoutError(
                f"commit {revision} is not in {self.url}: push it, then enqueue the experiment again ({why(second)})"
            ) from error
    fetch_submodules(self)


def fetch_submodules(vcs: Any) -> None:
    """Have all submodules as the commit names them.

    Raises:
        CheckoutError: one is not to be had.
    """
    if not (Path(vcs.location) / ".gitmodules").is_file():
        return
    try:
        vcs.get_stderr("submodule", "sync", "--quiet", "--recursive", cwd=vcs.location)
        vcs.get_stderr("submodule", "update", "--quiet", "--init", "--recursive", "--force", cwd=vcs.location)
    except subprocess.CalledProcessError as error:
        raise CheckoutError(f"a submodule of {vcs.url} cannot be fetched: {why(error)}") from error


def write(task: Any, directory: str, entry_point: str | None = None) -> str:
    """Write an experiment's script; takes the place of clearml-agent's own, which leaves one alone that is there.

    Raises:
        CheckoutError: the text is not a script but changes that git would not apply.
    """
    text = task.script.diff
    path = Path(directory) / entry_point if entry_point else None
    ignored = path is not None and path.exists() and path.read_bytes() != text.encode("utf-8", "surrogatepass")
    if task.script.repository and text.strip() and (ignored or NO_SCRIPT.search(text)):
        raise CheckoutError(
            f"the recorded changes are not a diff that git applies, they begin {text.strip()[:60]!r}: run it again, "
            "with clearml_client, from where it was changed, or clear them to run the commit alone"
        )
    return str(agents_write(task, directory, entry_point))


def pointers(folder: str) -> list[str]:
    """Return the files of a checkout that are pointers of LFS, where the files themselves were expected."""
    if os.environ.get("GIT_LFS_SKIP_SMUDGE", "").lower() in ("1", "true", "yes", "on"):
        return []
    found = []
    for name in lines_of(folder, "ls-files", "-z", "--", ":(attr:filter=lfs)"):
        path = Path(folder) / name
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 1024
        if small and path.read_bytes().startswith(POINTER):
            found.append(name)
    return found


class Quiet(upstream.Worker):  # type: ignore[misc]
    """clearml-agent's worker, whose own output does not come between an experiment and its console.

    From ``hold`` on until the script starts, lines stay in the worker's log. ``release`` sends them: the preparation
    has failed.
    """

    _preparing = ""
    """The experiment that is being prepared; empty when there is none."""
    _held = ""

    def hold(self, task: str) -> None:
        """Hold back what is printed of an experiment until its script starts."""
        self._preparing, self._held = task, ""
        self._began, self._patience = time.monotonic(), PATIENCE

    def release(self) -> None:
        """Send what was held back, if the script has not started."""
        task, self._preparing = self._preparing, ""
        if task and self._held:
            super().send_logs(task, self._held.splitlines(keepends=True))

    def send_logs(self, task_id: str, lines: list[str], level: str = "DEBUG", session: Any = None) -> int:
        """Send lines to an experiment's console, or hold them back; return how many need not be sent again."""
        if task_id != self._preparing or level not in ("DEBUG", "INFO"):
            return int(super().send_logs(task_id, lines, level=level, session=session))
        self._held += "".join(lines)
        start = STARTS.search(self._held)
        if start:
            self.prepared(self._held[: start.end()], session)
            super().send_logs(task_id, self._held[start.end() :].splitlines(keepends=True), session=session)
        elif time.monotonic() - self._began > self._patience:
            last = [line.strip() for line in self._held.splitlines() if line.strip()][-1:]
            text = "Preparing for {:.0f} s: {}".format(self._patience, *(last or ["nothing printed yet"]))
            self.say(task_id, [text[:LONGEST]], session)
            self._patience *= 2
        return len(lines)

    def prepared(self, text: str, session: Any = None) -> None:
        """Leave what was held back in this program's log: the script starts."""
        task, self._preparing = self._preparing, ""
        print(text, end="", flush=True)
        line = "Prepared in {:.0f} s; the agent's own output, {} lines, is in {}".format(
            time.monotonic() - self._began, text.count("\n"), self.log_of_agent()
        )
        self.say(task, [line, ""], session)

    def say(self, task: str, lines: list[str], session: Any = None) -> None:
        """Write lines to an experiment's console, also while others are held back."""
        super().send_logs(task, [line + "\n" for line in lines], level="INFO", session=session)

    def log_of_agent(self) -> str:
        """Return where this program's log is, for a message."""
        return f"the log of its container (docker logs {socket.gethostname()})"

    def _log_command_output(self, task_id: str, *words: Any, **options: Any) -> Any:
        status, reason = super()._log_command_output(task_id, *words, **options)
        if reason is None:  # a service, which reports for itself from here on
            print(self._held, end="", flush=True)
            self._preparing = ""
        elif status != 0:  # the image was pulled, say, and the container comes next
            self.release()
        return status, reason


class Packages:
    """The packages of an experiment on the server: what it ran with (pip), and what was asked for (org_pip)."""

    @staticmethod
    def text(requirements: Any, key: str = "pip") -> str:
        """Return a list as text."""
        told = (requirements or {}).get(key) or ""
        return told if isinstance(told, str) else "\n".join(told)

    @staticmethod
    def hash(text: str) -> str:
        """Return what changes with the packages of a list, and not with its remarks."""
        lines = [line.strip() for line in text.splitlines()]
        kept = "\n".join(line for line in lines if line and not line.startswith("#"))
        return hashlib.sha256(kept.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @classmethod
    def kind(cls, text: str) -> str:
        """Return of what a list was recorded here; empty for one of somebody else, or edited since."""
        mark = RECORDED.search(text)
        return mark[1] if mark and mark[2] == cls.hash(text) else ""

    @classmethod
    def asked(cls, requirements: Any) -> str:
        """Return what was asked for."""
        text = cls.text(requirements)
        return cls.text(requirements, "org_pip") if cls.kind(text) else text

    @classmethod
    def recorded(cls, requirements: Any, python: str, lines: list[str], of: str) -> Any:
        """Return the record with a list of what runs."""
        image = os.environ.get("CLEARML_DOCKER_IMAGE") or "this container"
        body = "".join(line + "\n" for line in lines)
        mark = f"# {len(lines)} packages {of} {image}, as they were when this ran ({cls.hash(body)})"
        return {**(requirements or {}), "pip": f"{python}\n{mark}\n{body}", "org_pip": cls.asked(requirements)}


class Worker(Quiet):
    """clearml-agent's worker, as it is in an experiment's container."""

    _requirements: Any = None
    """What the experiment had recorded when it was taken."""
    _listed = False

    def run_one_task(self, queue: str, task_id: str, worker_args: Any = None, **options: Any) -> Any:
        """Run an experiment as a service: in a process of its own, which is this program again."""
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        worker_args.program_invocation = [os.fsdecode(word) for word in words[: words.index(b"-c") + 2]]
        self.hold(task_id)
        try:
            return super().run_one_task(queue, task_id, worker_args=worker_args, **options)
        finally:
            self.release()

    def get_execution_info(self, task: Any) -> Any:
        """Read what an experiment runs, and what it needs: never all of another image."""
        found = super().get_execution_info(task)
        self._requirements = task.script.requirements
        if self.installs() and Packages.kind(Packages.text(self._requirements)) == "of the image":
            self._requirements = {**self._requirements, "pip": Packages.asked(self._requirements)}
            task.script.requirements = dict(self._requirements)
            # The agent reads it once more, to keep it beside what it has installed.
            self.set_requirements(task.id, self._requirements)
        return found

    @staticmethod
    def installs() -> bool:
        """Return whether the agent makes an environment for the experiment; else the image has all it needs."""
        return not upstream.ENV_AGENT_SKIP_PYTHON_ENV_INSTALL.get()

    def freeze_task_environment(self, task_id: Any = None, *words: Any, **options: Any) -> Any:
        """List what was installed, and record it."""
        freeze = super().freeze_task_environment(task_id, *words, **options)
        if task_id and options.get("update_requirements") and set(freeze or {}) == {"pip"}:
            self.record(task_id, "of the environment in", list(freeze["pip"]))
        return freeze

    def _get_job_os_envs(self, task: Any, *words: Any) -> Any:
        """Return the variables of the script's process, which is about to start: what it runs with is settled."""
        if not (self._listed or self.installs() or self._get_node_rank()):
            self.record(task.id, "of the image")
        return super()._get_job_os_envs(task, *words)

    def record(self, task: str, of: str, lines: list[str] | None = None) -> None:
        """Record the packages of the Python that runs the script; a run does not fail because they cannot be listed."""
        self._listed = True
        try:
            command = [str(self.package_api.bin), "-c", LIST]
            done = subprocess.run(command, capture_output=True, check=True, timeout=120)
            text = done.stdout.decode()
            python, *found = text[text.index("# Python ") :].splitlines()
            self.set_requirements(task, Packages.recorded(self._requirements, python, lines or found, of))
        except Exception as error:
            told = getattr(error, "stderr", None) or error
            print(f"The packages that this runs with are not recorded: {why(Exception(told))}")

    def set_requirements(self, task: str, requirements: Any) -> None:
        """Write the packages of an experiment.

        Raises:
            OSError: the server did not take them.
        """
        arguments = {"task": task, "requirements": requirements}
        result = self._session.send_request("tasks", "set_requirements", json=arguments, method="post")
        if not result.ok:
            raise OSError(f"the server answered {result.status_code} to tasks.set_requirements")

    def get_repo_info(self, execution: Any, task: Any, venv_folder: str) -> Any:
        """Have an experiment's code, or let the experiment fail with the reason."""
        try:
            return super().get_repo_info(execution, task, venv_folder)
        except CheckoutError as error:
            self.fail(task, str(error))

    def apply_diff(self, task: Any, vcs: Any, execution_info: Any, repo_info: Any) -> None:
        """Apply the recorded changes.

        Raises:
            CheckoutError: they do not apply, or files are missing.
        """
        told: list[str] = []
        call = vcs.call_with_stdin

        def listening(*words: Any, **options: Any) -> Any:
            code, errors = call(*words, **options)
            told.append(why(Exception(errors)))
            return code, errors

        vcs.call_with_stdin = listening
        try:
            super().apply_diff(task, vcs, execution_info, repo_info)
        except ValueError as error:
            reason = told[-1] if told else why(error)
            raise CheckoutError(f"its uncommitted changes do not apply to {repo_info.commit}: {reason}") from error
        missing = pointers(str(repo_info.root))
        if missing:
            raise CheckoutError(
                "{} is stored in LFS, and the image has no git-lfs: install it there, or run with the container "
                "argument -e GIT_LFS_SKIP_SMUDGE=1 if the run does not need it".format(", ".join(missing[:5]))
            )

    def _get_repo_info(self, execution: Any, task: Any, venv_folder: str) -> Any:
        Clone.error = None
        try:
            return super()._get_repo_info(execution, task, venv_folder)
        except CommandFailedError as error:
            raise CheckoutError(why(Clone.error or error)) from error

    def fail(self, task: Any, message: str) -> None:
        """Let an experiment fail with a message.

        Raises:
            CommandFailedError: always; clearml-agent ends with it.
        """
        text = f"This experiment's code cannot be had as it was recorded: {message}"[:LONGEST]
        arguments = {"task": task.id, "force": True, "status_reason": text, "status_message": text}
        self._session.send_request("tasks", "failed", json=arguments, method="post")
        raise CommandFailedError(text)

    def handle_task_process_termination(self, task_id: str, exit_code: int, **options: Any) -> None:
        """Tell the server how an experiment's process ended, unless the experiment has failed already, with the reason.

        A service's process lets it fail; the one that watches it interrupts that process, and would call it an abort.
        """
        failed = False
        with contextlib.suppress(Exception):  # what cannot be asked is told as clearml-agent would
            answer = self._session.send_request("tasks", "get_by_id", json={"task": task_id}, method="post")
            failed = answer.json()["data"]["task"]["status"] == "failed"
        if not failed:
            super().handle_task_process_termination(task_id, exit_code, **options)


class Clone:
    """What went wrong while a repository was cloned; clearml-agent's own message does not say it."""

    error: BaseException | None = None


def listened(clone: Callable[..., Any]) -> Callable[..., Any]:
    """Return clearml-agent's way to clone, which keeps what goes wrong."""

    def keep(*words: Any, **options: Any) -> Any:
        try:
            return clone(*words, **options)
        except Exception as error:
            Clone.error = error
            raise

    return keep


agents_checkout = Git.checkout
agents_write = upstream.LiteralScriptManager.write


def main() -> int:
    """Run clearml-agent."""
    Git.checkout = checkout
    upstream.LiteralScriptManager.write = staticmethod(write)
    upstream.clone_repository_cached = listened(upstream.clone_repository_cached)
    commands.Worker = Worker
    return int(program.main() or 0)


if __name__ == "__main__":
    sys.exit(main())
