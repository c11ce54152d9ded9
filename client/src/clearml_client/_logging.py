"""Log records and progress bars in the experiment's console."""

from __future__ import annotations

import logging
import sys
from typing import Optional

from clearml import Task
from clearml.backend_interface.logger import PrintPatchLogger

from ._distributed import current_rank

__all__ = ["ClearmlHandler", "calm_progress_bars", "install_handler"]

BAR_SECONDS = 10
"""A progress bar's line is sent at most this often, in its last state."""


class ClearmlHandler(logging.Handler):
    """Sends log records to the console tab with their level, the rank and the worker.

    The terminal shows them too. A handler that writes to standard error is not needed beside it: the SDK would send
    its lines a second time, all as errors.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(where)s%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; a server that does not answer never stops a training."""
        try:
            record.where = self.where(record)
            line = self.format(record)
            _to_terminal(line + "\n")
            task: Optional[Task] = Task.current_task()
            if task is not None:
                task.get_logger().report_text(line, level=record.levelno, print_console=False)
        except Exception:  # as logging's own handlers do
            self.handleError(record)

    @staticmethod
    def where(record: logging.LogRecord) -> str:
        """Return the rank and the process that a record came from, as far as there are several of them."""
        rank = current_rank()
        parts = [] if rank is None else ["rank: {} ".format(rank.rank)]
        if record.processName not in (None, "MainProcess"):  # a data loader's worker, say
            parts.append("worker: {} ".format(_worker_number(record.processName)))
        return "".join(parts)


def install_handler(task: Task) -> Optional[ClearmlHandler]:
    """Give the root logger this handler, if it has none of its own; a script that set up its logging keeps it.

    In a queue the agent reads what the container prints, so there the handler prints and does not send.
    """
    root = logging.getLogger()
    if root.handlers or not Task.running_locally() or task.is_offline():
        return None
    handler = ClearmlHandler()
    root.addHandler(handler)
    return handler


def calm_progress_bars() -> None:
    """Send a progress bar's line now and then instead of with every step.

    The SDK can do so (``sdk.development.worker.console_cr_flush_period``) and leaves it off, so that every step of a
    bar becomes a line of the console.
    """
    if not PrintPatchLogger.cr_flush_period:
        PrintPatchLogger.cr_flush_period = BAR_SECONDS


def _to_terminal(text: str) -> None:
    """Write to the terminal alone: the SDK reads what goes through the streams, and keeps how they wrote before."""
    stream = sys.__stderr__
    if stream is not None:
        getattr(stream, "_original_write", stream.write)(text)
        stream.flush()


def _worker_number(name: Optional[str]) -> str:
    """Return the number of a process from the name that multiprocessing gives it, such as ``Process-1``."""
    return (name or "").rsplit("-", 1)[-1].rsplit("_", 1)[-1]
