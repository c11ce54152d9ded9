"""Connections within bounds: what uvicorn's HTTP protocol does not limit by itself.

Heads of requests are limited in bytes, connections in number.  One task, :func:`end_slow_clients`, looks at all
connections every second and ends those that drip a head or a body, do not read their answer, or do not close.
"""

from __future__ import annotations

import asyncio
import re
import resource
import socket
import struct
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GuardedProtocol", "end_slow_clients", "raise_file_limit"]

MAX_HEAD_BYTES = 32 * 1024  # URL and headers; a token has less than 1 kB
MAX_CONNECTIONS = 512  # of one port
HEAD_SEC = 20.0
BODY_WINDOW_SEC = 20.0
BODY_WINDOW_BYTES = 16 * 1024  # that have to come in each window
DRAIN_SEC = 10.0  # for the rest of a body that was refused
ANSWER_SEC = 30.0  # without a byte of the answer taken
_MAX_PIPELINE = 8
_NO_LINGER = struct.pack("ii", 1, 0)
_HOST = re.compile(rb"[A-Za-z0-9._~%-]*(:[0-9]*)?|\[[0-9A-Fa-f:.]*\](:[0-9]*)?")


class _Stage(Enum):
    HEAD = auto()  # waits for a first request, or reads its head
    BODY = auto()
    ANSWER = auto()  # the request is whole
    DRAIN = auto()  # answered before its body was whole
    IDLE = auto()  # kept alive; uvicorn's own timeout closes it


class _BadHeadError(Exception):
    """The head of a request is refused; the parser turns it into a 400."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stage = _Stage.HEAD
        self.since = self.loop.time()
        self.served = False
        self._head_bytes = 0
        self._received = 0  # bytes of this head, or of this window of the body
        self._unsent = 0
        self._stuck_since: float | None = None
        self._closing_since: float | None = None

    def _enter(self, stage: _Stage) -> None:
        self.stage, self.since, self._received = stage, self.loop.time(), 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, GuardedProtocol) and c.may_go and c is not self]
            # one that never asked anything first, then the one that waits longest
            victim = min(waiting, key=lambda c: (c.served, c.since), default=self)
            victim.abort()

    @property
    def may_go(self) -> bool:
        """Whether nothing is lost but a connection when it ends now."""
        return self.stage in (_Stage.HEAD, _Stage.DRAIN, _Stage.IDLE)

    def abort(self) -> None:
        """End the connection at once, whatever is unsent."""
        self.connections.discard(self)
        # without it the kernel keeps what the client does not take, and the client sees no end
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.stage is _Stage.IDLE:
            self._enter(_Stage.HEAD)
        self._received += len(data)
        super().data_received(data)
        # httptools collects a header until it ends, however long it is
        if self.stage is _Stage.HEAD and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def _refuse_head(self) -> None:
        text = f"the URL and headers are longer than {MAX_HEAD_BYTES} bytes"
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(text), text.encode())
        )
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self.stage is not _Stage.HEAD:  # pipelined
            received = self._received
            self._enter(_Stage.HEAD)
            self._received = min(received, MAX_HEAD_BYTES)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self.stage is not _Stage.HEAD:
            return  # after the body: nothing that is decided by headers may come then
        if name.lower() == b"host" and not _HOST.fullmatch(value):
            raise _BadHeadError("the Host header is not a name or address")
        super().on_header(name, value)

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _BadHeadError("the URL and headers are too long")

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINE:
            raise _BadHeadError("too many requests before an answer")
        super().on_headers_complete()
        self._enter(_Stage.BODY)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.served = True
        self._enter(_Stage.IDLE if self.cycle.response_complete else _Stage.ANSWER)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.stage is _Stage.ANSWER and not self.pipeline and self.cycle.response_complete:
            self._enter(_Stage.IDLE)
        elif self.stage is _Stage.BODY and self.cycle.response_complete:
            self._enter(_Stage.DRAIN)

    def overdue(self, now: float) -> bool:
        """Return whether the client was too slow; called every second."""
        waited = now - self.since
        if self.transport.is_closing():  # and cannot, for its client reads nothing
            self._closing_since = self._closing_since or now
            return now - self._closing_since > DRAIN_SEC
        if self._answer_is_stuck(now):
            return True
        if self.stage is _Stage.HEAD:
            return waited > HEAD_SEC
        if self.stage is _Stage.DRAIN:
            return waited > DRAIN_SEC
        if self.stage is _Stage.BODY and waited > BODY_WINDOW_SEC:
            # Not the client's fault while the server does not read: it waits for its disk, or for other large bodies.
            slow = self._received < BODY_WINDOW_BYTES and not self.flow.read_paused
            self._enter(_Stage.BODY)
            return slow
        return False

    def _answer_is_stuck(self, now: float) -> bool:
        unsent = self.transport.get_write_buffer_size()
        moved = unsent < self._unsent or not self.flow.write_paused
        self._unsent = unsent
        if moved or self._stuck_since is None:
            self._stuck_since = now
        return now - self._stuck_since > ANSWER_SEC

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_since = None


def raise_file_limit() -> None:
    """Let the process have as many files open as its connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


async def end_slow_clients(servers: Sequence[Server]) -> None:
    """End slow connections, until cancelled."""
    while True:
        await asyncio.sleep(1)
        now = asyncio.get_running_loop().time()
        for connection in [c for server in servers for c in server.server_state.connections]:
            if isinstance(connection, GuardedProtocol) and connection.overdue(now):
                connection.abort()
