"""Ends the process when it hangs: the container's restart policy then starts it again.

Docker restarts what exits, not what is unhealthy.  Looked at are the event loop, the threads that serve calls, and the
one write transaction.  What gets on is left alone, however long it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import threading
from concurrent.futures import Future
from typing import Protocol

from starlette.concurrency import run_in_threadpool

__all__ = ["EXIT_STATUS", "Watchdog"]

EXIT_STATUS = 70  # EX_SOFTWARE
_ROUNDS = 24


class _Database(Protocol):
    def sign_of_life(self) -> tuple[int, int] | None: ...

    def ping(self) -> None: ...


class Watchdog:
    """Looks at the process from a thread of its own.

    Args:
        loop: the event loop that serves.
        db: the database.
        limit_sec: how long nothing may get on.  Rounds are counted, not the clock: a process that was paused
            (docker pause, a laptop asleep) is not taken for one that hangs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, db: _Database, limit_sec: float = 120) -> None:
        self._loop = loop
        self._db = db
        self._every = limit_sec / _ROUNDS
        self._stop = threading.Event()
        self._turns = 0  # of the event loop
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to look."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _turn(self) -> None:
        self._turns += 1

    async def _serve(self) -> None:
        await run_in_threadpool(self._db.ping)

    def _watch(self) -> None:
        served: Future[None] | None = None
        turns, life, silent = -1, None, {"the event loop": 0, "the write transaction": 0, "the threads": 0}
        while not self._stop.wait(self._every):
            silent = {what: rounds + 1 for what, rounds in silent.items()}
            try:
                self._loop.call_soon_threadsafe(self._turn)
            except RuntimeError:  # closed: the process ends
                return
            if self._turns != turns:
                turns, silent["the event loop"] = self._turns, 0
            sign = self._db.sign_of_life()
            writes = sign is not None and sign != life
            if sign is None or writes:
                silent["the write transaction"] = 0
            life = sign
            # All threads may rightly wait for one long transaction: while that gets on, so do they.
            if served is None or served.done() or writes:
                silent["the threads"] = 0
            if served is None or served.done():
                with contextlib.suppress(RuntimeError):
                    served = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
            for what, rounds in silent.items():
                if rounds >= _ROUNDS:
                    self._end(what)

    def _end(self, what: str) -> None:
        seconds = round(self._every * _ROUNDS, 1)
        print(f"trainyard-lite: {what} did not get on for {seconds} s: this process ends, to be restarted. Its stacks:",
              file=sys.stderr, flush=True)  # fmt: skip
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_STATUS)
