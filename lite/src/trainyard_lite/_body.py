"""Request bodies within bounds: bytes, time, how many large ones at once, and the shape of their JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.requests import Request

from . import _errors as errors

__all__ = ["KB", "MAX_DEPTH", "MAX_NODES", "MB", "Bodies", "check_depth", "check_nodes"]

KB = 1024
MB = 1024 * KB
MAX_DEPTH = 64
MAX_NODES = 1_000_000  # commas, strings and brackets: about 80 MB of Python objects at the worst
_SMALL_BYTES = 256 * KB
_SMALL_SEC = 30.0
_LARGE_AT_ONCE = 3  # bodies above the small size that are in memory at a time, with what is made of them
_LARGE_WAIT_SEC = 60.0
_LARGE_SEC = 120.0
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)


class Bodies:
    """Reads bodies; shared by the process, for its memory is."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytearray]:
        """Read a body; a large one keeps its turn until the context ends.

        Raises:
            ApiError: 413 above the limit, at once if its length is declared; 408 if it comes too slowly; 503 if
                other large bodies took too long.
        """
        declared = request.headers.get("content-length", "0")
        # a declared length of more digits than any limit is not converted: Python refuses 5,000 digits
        if len(declared.lstrip("0")) > 15 or (declared.isdecimal() and int(declared) > limit):
            raise errors.PAYLOAD_TOO_LARGE(limit_bytes=limit)
        async with AsyncExitStack() as turn:
            yield await self._collect(request, limit, turn)

    async def _collect(self, request: Request, limit: int, turn: AsyncExitStack) -> bytearray:
        body = bytearray()
        now = asyncio.get_running_loop().time
        waits = large = False
        try:
            async with asyncio.timeout(_SMALL_SEC) as deadline:
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise errors.PAYLOAD_TOO_LARGE(limit_bytes=limit)
                    if len(body) > _SMALL_BYTES and not large:
                        # Not read while it waits: the client is held back, not the memory filled.
                        waits = large = True
                        deadline.reschedule(now() + _LARGE_WAIT_SEC)
                        await turn.enter_async_context(self._large)
                        waits = False
                        deadline.reschedule(now() + _LARGE_SEC)
        except TimeoutError as error:
            if waits:
                raise errors.SERVER_BUSY("other large requests are being read", retry_after_sec=5) from error
            raise errors.REQUEST_TIMEOUT(received_bytes=len(body)) from error
        return body


def check_nodes(body: bytes | bytearray) -> None:
    """Check that JSON does not hold too many values, before it is parsed: ``[[],[],...]`` grows 20 times.

    Raises:
        ApiError: 400.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= MAX_NODES // 2:
        return
    # Not exact so far: a plot is JSON in a string, full of commas.  What is in strings does not count.
    for nodes, _ in enumerate(_TOKEN.finditer(body)):
        if nodes >= MAX_NODES:
            raise errors.BAD_REQUEST(f"the body holds more than {MAX_NODES} values: send it in parts")


def check_depth(body: bytes | bytearray) -> None:
    """Check that JSON is not nested too deep, before it is parsed.

    Raises:
        ApiError: 400.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _TOKEN.finditer(body):
        kind = body[match.start()]
        if kind in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise errors.BAD_REQUEST(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif kind in b"]}":
            depth -= 1
