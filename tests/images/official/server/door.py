"""Stands before the lite server and shows what the official server's code does, its faults among them.

Each was seen in the code of server 2.3.0; README.md lists them. A connection carries one request, as with upstream.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any

import requests
import stand_in
from redis import Redis

_log = logging.getLogger("clearml.door")


class Answer(Exception):  # noqa: N818 (an answer, not an error)
    """Ends a request here."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status, self.text = status, text


@dataclass
class Question:
    """The head of a request."""

    method: str
    path: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    body: bytes | None = field(default=None)

    def token(self) -> str:
        """Return the token of the header or the cookie."""
        kind, _, value = self.headers.get("authorization", "").partition(" ")
        if kind:
            return value if kind == "Bearer" else ""
        cookie = SimpleCookie(self.headers.get("cookie", "")).get("clearml_token_basic")
        return cookie.value if cookie else ""


Check = Callable[[Question], Awaitable[None]]


class Door:
    """Hands requests on to the lite server, after a check, and answers pages of other addresses as flask-cors does."""

    def __init__(self, target: tuple[str, int], cors: Mapping[str, Any], check: Check | None = None) -> None:
        self._target, self._cors, self._check = target, cors, check

    async def serve(self, port: int) -> None:
        """Serve forever."""
        server = await asyncio.start_server(self._handle, "0.0.0.0", port, limit=1 << 18)
        await server.serve_forever()

    def _cors_lines(self, origin: str) -> list[str]:
        allowed = self._cors.get("origins", [])
        if not origin or (allowed != "*" and origin not in allowed):
            return []
        credentials = ["Access-Control-Allow-Credentials: true"] if self._cors.get("supports_credentials") else []
        return [f"Access-Control-Allow-Origin: {origin}", *credentials]

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except Exception:
            _log.exception("a request failed")
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, headers = parse(await reader.readuntil(b"\r\n\r\n"))
        method, path, _ = first.split(" ", 2)
        question = Question(method, path, headers, reader)
        cors = self._cors_lines(headers.get("origin", ""))
        try:
            if method == "OPTIONS":
                raise Answer(200)
            if self._check:
                await self._check(question)
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except (Answer, OSError) as error:
            status, text = (error.status, error.text) if isinstance(error, Answer) else (502, "no answer")
            lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(text.encode())}", "Connection: close", *cors]
            writer.write(("\r\n".join(lines) + "\r\n\r\n" + text).encode())
            await writer.drain()
            return
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in question.headers.items())]
        there_writer.write(("\r\n".join([*lines, "connection: close"]) + "\r\n\r\n").encode("latin-1"))
        if question.body is not None:
            there_writer.write(question.body)
        up = asyncio.create_task(pipe(reader, there_writer))
        try:
            head = await there_reader.readuntil(b"\r\n\r\n")
            writer.write(head[:-2] + "".join(f"{line}\r\n" for line in cors).encode() + b"\r\n")
            await pipe(there_reader, writer)
        finally:
            up.cancel()
            there_writer.close()


def parse(head: bytes) -> tuple[str, dict[str, str]]:
    """Split a head into its first line and its headers, without those of the connection."""
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    headers.pop("connection", None)
    return first, headers


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes until it ends."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class FileGuard:
    """The file server's check of tokens: a good one is good for the cache's time, whatever became of it."""

    def __init__(self) -> None:
        self._auth = stand_in.load("fileserver").get("auth", {})
        settings: dict[str, Any] = dict(stand_in.load("hosts")["redis"]["fileserver"])
        secure = stand_in.load("secure")
        password = secure.get("redis", {}).get("fileserver", {}).get("password")
        self._redis = Redis(**settings, password=password, socket_timeout=10)
        self._api = stand_in.load("hosts")["api_server"]
        pair = secure["credentials"]["fileserver"]
        self._pair = (pair["user_key"], pair["user_secret"])

    async def __call__(self, question: Question) -> None:
        """Check a request, and let it in as the file server's own account."""
        token = question.token()
        if not token and (question.method, question.path) == ("GET", "/"):
            return
        await asyncio.to_thread(self._validate, token)
        own = await asyncio.to_thread(self._call, "auth.login", {})
        question.headers["authorization"] = f"Bearer {own['token']}"
        question.headers.pop("cookie", None)
        if (question.method, question.path) == ("POST", "/delete_many"):
            length = int(question.headers.get("content-length", 0))
            body = json.loads(await question.reader.readexactly(length))
            # Upstream takes the + of an address for a blank here, though only forms write a blank so.
            body["files"] = [name.replace("+", "%20") for name in body.get("files", [])]
            question.body = json.dumps(body).encode()
            question.headers["content-length"] = str(len(question.body))

    def _validate(self, token: str) -> None:
        if not token:
            raise Answer(401)
        key = "token_" + (hashlib.sha256(token.encode()).hexdigest() if len(token) > 256 else token)
        if self._redis.get(key):
            return
        answer = self._call("auth.validate_token", {"token": token})
        if not answer["valid"]:
            raise Answer(401, answer.get("msg", ""))
        self._redis.setex(
            key, self._auth.get("tokens_cache_threshold_sec", 43200), json.dumps({"user": answer["user"]})
        )

    def _call(self, endpoint: str, arguments: dict[str, str]) -> dict[str, Any]:
        answer = requests.post(f"{self._api}/{endpoint}", json=arguments, auth=self._pair, timeout=30)
        if answer.status_code != 200:
            raise Answer(500, "the token cannot be validated")
        return dict(answer.json()["data"])
