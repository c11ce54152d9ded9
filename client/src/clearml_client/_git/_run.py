"""Running git so that its answers depend on the repository alone, and not on who asks.

What a person or a repository has configured (colours, prefixes, external diffs, a ``GIT_DIR`` that a hook has set) must
not change what is recorded of an experiment. What opens a remote (credentials, ``insteadOf``, proxies, SSH's command)
is left as it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

__all__ = ["TIMEOUT", "Done", "git", "names", "own_repository", "remote_environment", "run"]

TIMEOUT = 60.0
"""Seconds for one call of git."""
_CONNECT_SECONDS = 8
"""Seconds that SSH waits for a remote."""
_LEADING = (
    # As `git rev-parse --local-env-vars` prints them: each leads git to another repository, index or store. Those that
    # carry configuration stay: credentials and insteadOf come so in a CI.
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INDEX_VERSION",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
    # These change what a diff looks like, or how paths are read.
    "GIT_DIFF_OPTS",
    "GIT_EXTERNAL_DIFF",
    "GIT_GLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_LITERAL_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
)
_FIXED = (
    # A monitor may be late, and without ctime an edit that keeps size and time is not seen.
    "core.fsmonitor=false",
    "core.trustctime=true",
    "core.checkStat=default",
    "core.ignoreStat=false",
    "core.splitIndex=false",
    "core.safecrlf=false",
    "color.ui=false",
    # post-index-change, say, is for the repository's own index.
    "core.hooksPath=" + os.devnull,
)


class Done(NamedTuple):
    """How a call of git ended."""

    code: int
    """Exit status; -1 when git was not there or took too long."""
    out: bytes
    told: str
    """What it complained of, in one line."""


def run(
    folder: Path,
    *words: str,
    data: Optional[bytes] = None,
    timeout: float = TIMEOUT,
    interactive: bool = False,
    more: Optional[Mapping[str, str]] = None,
    alone: bool = False,
) -> Done:
    """Run git in a folder.

    Args:
        folder: Where; it need not be in a repository.
        words: Command and arguments.
        data: What git reads.
        timeout: Seconds; then git is ended, with the programs that it started.
        interactive: Whether it may ask for a password at the terminal.
        more: Variables of its environment.
        alone: Whether nobody's configuration counts, neither the machine's nor the person's.
    """
    environment = _environment(alone=alone, folder=folder)
    environment.update(more or {})
    if not interactive:
        environment["GIT_TERMINAL_PROMPT"] = "0"
    command = ["git", "-C", str(folder)]
    for setting in _FIXED:
        command += ["-c", setting]
    try:
        process = subprocess.Popen(
            [*command, *words],
            env=environment,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # In a group of its own: what git has started holds our pipes open, and has to end with it.
            start_new_session=not interactive,
        )
    except FileNotFoundError:
        return Done(-1, b"", "there is no git on this machine: install it")
    try:
        out, complaint = process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process, group=not interactive)
        return Done(-1, b"", "git {} took more than {:g} s".format(_command(words), timeout))
    except BaseException:
        _end(process, group=not interactive)
        raise
    return Done(process.returncode, out, _line(complaint, _command(words)) if process.returncode else "")


def git(folder: Path, *words: str) -> Optional[str]:
    """Run git in a folder; return what it printed, ``None`` when it failed, took too long or asked for a password."""
    done = run(folder, *words)
    return os.fsdecode(done.out).strip("\n") if done.code == 0 else None


def names(out: bytes) -> List[str]:
    """Return the paths that git printed with ``-z``; they need not be UTF-8."""
    return [os.fsdecode(name) for name in out.split(b"\0") if name]


@contextmanager
def own_repository() -> Iterator[None]:
    """Keep variables that lead git elsewhere out of this process's environment, for code that runs git itself."""
    fixed = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0"}
    before = {name: os.environ.get(name) for name in (*_LEADING, *fixed)}
    for name in _LEADING:
        os.environ.pop(name, None)
    os.environ.update(fixed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def remote_environment(folder: Path, *, interactive: bool = False) -> Dict[str, str]:
    """Return variables with which git does not wait for a remote, or for somebody who types a passphrase."""
    if "GIT_SSH" in os.environ:  # a program of somebody's own, which may not know the options
        return {}
    ssh = os.environ.get("GIT_SSH_COMMAND") or git(folder, "config", "core.sshCommand") or "ssh"
    batch = "" if interactive else " -o BatchMode=yes"
    return {"GIT_SSH_COMMAND": "{}{} -o ConnectTimeout={}".format(ssh, batch, _CONNECT_SECONDS)}


def _environment(*, alone: bool, folder: Path) -> Dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _LEADING}
    environment.update(
        LC_ALL="C", GIT_OPTIONAL_LOCKS="0", GIT_NO_REPLACE_OBJECTS="1", GIT_PAGER="cat", GIT_EDITOR="true"
    )
    if alone:
        for name in [name for name in environment if name.startswith("GIT_CONFIG")]:
            del environment[name]
        # A git before 2.32 does not know the second, and looks into HOME.
        environment.update(
            GIT_CONFIG_NOSYSTEM="1",
            GIT_CONFIG_GLOBAL=os.devnull,
            GIT_ATTR_NOSYSTEM="1",
            HOME=str(folder),
            XDG_CONFIG_HOME=str(folder),
        )
    return environment


def _end(process: "subprocess.Popen[bytes]", *, group: bool) -> None:
    try:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (OSError, AttributeError):  # it has ended, or this is no POSIX system
        process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()


def _command(words: Sequence[str]) -> str:
    """Return git's command, which stands behind settings (``-c``)."""
    start = 0
    while words[start] == "-c":
        start += 2
    return words[start]


def _line(complaint: bytes, command: str) -> str:
    """Return the line of a complaint that says the reason: the first ``fatal`` or ``error``, else the last."""
    lines = [line.strip() for line in complaint.decode("utf-8", "replace").splitlines() if line.strip()]
    chosen = [line for line in lines if line.startswith(("fatal:", "error:", "ssh:"))] or lines[-1:]
    return chosen[0] if chosen else "git {} failed".format(command)
