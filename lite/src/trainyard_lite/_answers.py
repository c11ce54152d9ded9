"""Large answers within bounds: sent in parts as the client takes them, and ended when too many clients take nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._body import KB, MB

__all__ = ["Answers"]

_CALLS_AT_ONCE = 8
_PART_BYTES = 256 * KB
_MAX_BYTES = 64 * MB  # of all large answers together that are not sent yet
_log = logging.getLogger("trainyard_lite")


@dataclass
class _Sending:
    size: int
    moved: float
    ended: bool = False


class Answers:
    """Wraps applications; shared by the process, for its memory is."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(_CALLS_AT_ONCE)  # for what computes a result
        self._sending: dict[asyncio.Task[object], _Sending] = {}

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return the application with its large answers sent in parts.

        uvicorn waits between two parts until the client took the first: an answer is in memory once, and its client's
        next request does not begin.
        """

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def in_parts(message: Message) -> None:
                body = message.get("body", b"")
                if len(body) <= _PART_BYTES:
                    await send(message)
                    return
                more = message.get("more_body", False)
                view = memoryview(body)
                with self._hold(len(body)) as sending:
                    for start in range(0, len(body), _PART_BYTES):
                        part = bytes(view[start : start + _PART_BYTES])
                        last = start + _PART_BYTES >= len(body)
                        await send({"type": message["type"], "body": part, "more_body": more or not last})
                        sending.moved = asyncio.get_running_loop().time()

            await app(scope, receive, in_parts)

        return wrapped

    @contextlib.contextmanager
    def _hold(self, size: int) -> Iterator[_Sending]:
        task = asyncio.current_task()
        assert task is not None
        sending = _Sending(size, asyncio.get_running_loop().time())
        self._sending[task] = sending
        self._make_room(task)
        try:
            yield sending
        except asyncio.CancelledError:
            if not sending.ended:
                raise
            task.uncancel()
            _log.warning("a client did not take its answer of %d bytes, and the room was needed: ended", size)
        finally:
            del self._sending[task]

    def _make_room(self, newest: asyncio.Task[object]) -> None:
        """End the answers that have not moved for longest until the others have room."""
        total = sum(sending.size for sending in self._sending.values() if not sending.ended)
        for task, sending in sorted(self._sending.items(), key=lambda item: item[1].moved):
            if total <= _MAX_BYTES:
                return
            if task is not newest and not sending.ended:
                sending.ended = True
                total -= sending.size
                task.cancel()
