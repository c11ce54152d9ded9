"""What runs in an experiment's container in place of ``python -m clearml_agent``: the agent, whose checkout is proved.

The worker hands this text to the container's Python (``-c``), so it needs nothing but clearml-agent 3.0 beside it, and
is Python 3.8. An experiment runs the recorded commit with the recorded changes, or fails with the reason as its status.
What clearml-agent does of itself, and what is different here:

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
import os
import re
import subprocess
import sys
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


class Worker(upstream.Worker):  # type: ignore[misc]
    """clearml-agent's worker, as it is in an experiment's container."""

    def run_one_task(self, queue: str, task_id: str, worker_args: Any = None, **options: Any) -> Any:
        """Run an experiment as a service: in a process of its own, which is this program again."""
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        worker_args.program_invocation = [os.fsdecode(word) for word in words[: words.index(b"-c") + 2]]
        return super().run_one_task(queue, task_id, worker_args=worker_args, **options)

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
