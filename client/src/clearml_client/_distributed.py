"""Trainings of several processes: one experiment, which every rank reports to.

``torchrun`` and its like start each rank as a process of its own, and each runs the whole script. Rank 0 registers the
experiment; the others wait for its id and join it as the SDK lets child processes join.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TextIO, cast

import clearml.task

from ._errors import ClearmlClientError

__all__ = ["Rank", "current_rank", "join", "label_output", "leave_watching_to_rank_0", "share"]

PATIENCE_SECONDS = 120.0
"""How long a rank waits for rank 0 to register the experiment."""
END_SECONDS = 60.0
"""How long rank 0 waits at its end for the other ranks of this machine to end."""
_KEY = "clearml_client/task"
# Launchers, by the variables that tell rank, processes, and processes on this machine: torchrun, Open MPI, srun.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
)


@dataclass(frozen=True)
class Rank:
    """This process among those of one training."""

    rank: int
    """From 0 to ``world - 1``."""
    world: int
    """Number of processes."""
    one_machine: bool
    """All of them are on this machine."""

    @property
    def label(self) -> str:
        """What each line of this process begins with."""
        return "[rank {}] ".format(self.rank)


def current_rank() -> Optional[Rank]:
    """Return which of several processes this is; ``None`` when it is alone."""
    for rank, world, local_world in _LAUNCHERS:
        try:
            number, count = int(os.environ[rank]), int(os.environ[world])
        except (KeyError, ValueError):
            continue
        if count > 1:
            here = os.environ.get(local_world, "")
            return Rank(number, count, not here.isdigit() or int(here) >= count)
    return None


def share(rank: Rank, task_id: str) -> None:
    """Let the other ranks know the experiment; rank 0 calls this."""
    if not rank.one_machine:
        store = _store()
        if store is not None:
            store.set(_KEY, task_id)
    path = _meeting_point()
    handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=path.name)
    with os.fdopen(handle, "w") as file:
        json.dump({"task": task_id, "pid": os.getpid()}, file)
    Path(name).replace(path)
    atexit.register(_remove, path, os.getpid())
    if os.name == "posix":
        # Registered after the SDK's own end, so run before it: that one closes the experiment.
        atexit.register(_wait_for_others, os.getpid())


def join(rank: Rank, running: Optional[str]) -> str:
    """Make this process a part of rank 0's experiment, and return the experiment's id.

    Args:
        rank: This process.
        running: The experiment's id where it is known already, because an agent runs it.

    Raises:
        ClearmlClientError: Rank 0 did not register one in time.
    """
    task_id = running or _wait(rank)
    if rank.one_machine and os.name == "posix":
        import fcntl

        # Held as long as this process lives, however it ends: rank 0 waits for it.
        fcntl.flock(_members(), fcntl.LOCK_SH)
    # What the SDK sets for the children of a process with an experiment: "<pid of the main process>:<experiment>".
    os.environ["CLEARML_PROC_MASTER_ID"] = "{}:{}".format(os.getppid(), task_id)
    # Where TORCHELASTIC_RUN_ID is set the SDK reads the id beside TORCHELASTIC_ERROR_FILE instead, which not every
    # launcher sets, and rank 0 may be another's; without one it registers a second experiment.
    clearml.task.get_torch_distributed_anchor_task_id = lambda timeout=None: task_id  # type: ignore[attr-defined]
    return task_id


def leave_watching_to_rank_0(task: Any) -> None:
    """Stop the SDK's watch on the experiment's status in another rank than 0.

    It kills its process when the experiment has ended, and that it has when rank 0 ends a moment before the others.
    An abort still ends rank 0, and with it the launcher ends the rest.
    """
    if task._dev_worker is not None:
        task._dev_worker.unregister()
        task._dev_worker = None


def label_output(rank: Rank) -> None:
    """Begin every line that this process prints with its rank, on the terminal and in the console tab."""
    label = rank.label
    sys.stdout = cast(TextIO, _Labelled(sys.stdout, label))
    sys.stderr = cast(TextIO, _Labelled(sys.stderr, label))


class _Labelled:
    """A stream that puts a label before each line."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label, self._at_start = stream, label, True

    def write(self, text: str) -> int:
        if text:
            start = self._label if self._at_start else ""
            self._at_start = text.endswith(("\n", "\r"))
            body, end = (text[:-1], text[-1]) if self._at_start else (text, "")
            body = body.replace("\n", "\n" + self._label).replace("\r", "\r" + self._label)
            self._stream.write(start + body + end)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _wait(rank: Rank) -> str:
    look: Callable[[], Optional[str]] = _read
    if not rank.one_machine:
        store = _store()
        if store is None:
            raise ClearmlClientError(
                "rank {} of {} is on another machine than rank 0 and cannot ask it for the experiment: "
                "install torch, or set CLEARML_TASK_ID for all ranks".format(rank.rank, rank.world)
            )
        look = lambda: store.get(_KEY).decode()  # noqa: E731 - waits by itself
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        task_id = look()
        if task_id:
            return task_id
        if time.monotonic() > deadline:
            raise ClearmlClientError(
                "rank {} of {} waited {:.0f} s in vain for rank 0 to register the experiment: look at its output, and "
                "call init_clearml in all ranks or in rank 0 alone".format(rank.rank, rank.world, PATIENCE_SECONDS)
            )
        time.sleep(0.1)


def _meeting_point() -> Path:
    """Return the file in which the ranks of one launch find each other, on one machine."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")
    # One launcher is the parent of all its ranks.
    parts = [str(os.getuid()), str(os.getppid()), *(os.environ.get(name, "") for name in names)]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / "clearml_client-{}.json".format(digest)


def _members() -> int:
    """Open the file that the ranks of one launch hold locked while they run."""
    return os.open(str(_meeting_point()) + ".ranks", os.O_RDWR | os.O_CREAT, 0o600)


def _wait_for_others(pid: int) -> None:
    """Let the other ranks report to the end before the experiment is closed."""
    if os.getpid() != pid or getattr(sys, "last_type", None) is not None:
        return  # a child; or this rank failed, and the launcher waits for its end to end the others
    import fcntl

    deadline = time.monotonic() + END_SECONDS
    file = _members()
    with contextlib.suppress(OSError):
        Path(str(_meeting_point()) + ".ranks").unlink()
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)


def _read() -> Optional[str]:
    try:
        told = json.loads(_meeting_point().read_text())
        os.kill(int(told["pid"]), 0)
    except (OSError, ValueError):
        return None  # not there yet, or of a launch that was killed
    return str(told["task"])


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a child
        with contextlib.suppress(OSError):
            path.unlink()


def _store() -> Any:
    """Return the launcher's key-value store; ``None`` without torch. Not run on several machines."""
    try:
        from datetime import timedelta

        from torch.distributed import TCPStore
    except ImportError:
        return None
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=PATIENCE_SECONDS),
    )
