"""Ends a program that hangs, so that Docker starts it again: Docker restarts what ended, not what is unhealthy.

The program calls ``beat`` wherever it makes progress. When it has not done so for too long, a thread writes where every
thread stands to standard error and ends the process. What runs in other containers, experiments above all, goes on.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

__all__ = ["EXIT_STATUS", "Watchdog"]

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h


class Watchdog:
    """Watches one program.

    Args:
        seconds: how long the program may make no progress.
        what: the program, for the log.
    """

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds, self._what = seconds, what
        self._beats = 0

    def beat(self) -> None:
        """Note that the program makes progress."""
        self._beats += 1

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        # Counts its own steps: a machine that slept for a day has not made the program hang for a day.
        step = min(10.0, self._seconds / 4)
        silent, seen = 0.0, self._beats
        while True:
            time.sleep(step)
            if self._beats != seen:
                silent, seen = 0.0, self._beats
                continue
            silent += step
            if silent >= self._seconds:
                print(
                    f"{self._what} has made no progress for {silent:.0f} s and is ended, to be started again; this is "
                    "where it stands:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_STATUS)
