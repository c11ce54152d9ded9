"""Log records and progress bars in the experiment's console."""

from __future__ import annotations

import logging
import sys
from functools import wraps
from typing import Any, Optional

from clearml import Task
from clearml.backend_interface.logger import PrintPatchLogger

from ._distributed import current_rank

__all__ = ["ClearmlHandler", "calm_progress_bars", "show_records"]

BAR_SECONDS = 10
"""A progress bar's line is sent at most this often, in its last state."""


class ClearmlHandler(logging.Handler):
    """Sends log records to the console tab with their level, the rank and the worker.

    The terminal shows them too. A handler that writes to standard error is not needed beside it: the SDK would send
    its lines a second time, all as errors. In a queue, and offline, records are printed only: the agent, or the SDK,
    reads what is printed.
    """

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(where)s%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; a server that does not answer never stops a training."""
        try:
            record.where = self.where(record)
            line = self.format(record)
            if not Task.running_locally() or Task.is_offline():
                # Through the stream, which labels it with the rank.
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
                return
            rank = current_rank()
            if rank is not None:
                line = rank.label + line.replace("\n", "\n" + rank.label)
            _to_terminal(line + "\n")
            task: Optional[Task] = Task.current_task()
            if task is not None:
                task.get_logger().report_text(line, level=record.levelno, print_console=False)
        except Exception:  # as logging's own handlers do
            self.handleError(record)

    @staticmethod
    def where(record: logging.LogRecord) -> str:
        """Return the process that a record came from, where it is not the main one."""
        if record.processName in (None, "MainProcess"):
            return ""
        return "worker: {} ".format(_worker_number(record.processName))  # a data loader's, say


def show_records() -> None:
    """Show log records from INFO on by this handler, as long as a script has not set up its logging itself.

    Not a handler of the root logger: it would double what the handlers of other loggers show, and
    ``logging.basicConfig`` would do nothing any more. It stands where Python has its own for records without any.
    """
    root = logging.getLogger()
    if root.handlers or isinstance(logging.lastResort, ClearmlHandler):
        return
    logging.lastResort = ClearmlHandler()
    raised = root.level == logging.WARNING  # Python's default
    if raised:
        root.setLevel(logging.INFO)
    original = logging.basicConfig

    @wraps(original)
    def basic_config(**settings: Any) -> None:
        if not settings:
            return  # logging.info() and its like call it so, and it would add a handler
        if raised and "level" not in settings and root.level == logging.INFO:
            root.setLevel(logging.WARNING)
        original(**settings)

    logging.basicConfig = basic_config


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
