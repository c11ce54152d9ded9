#!/usr/bin/python3
"""Stand-in for Elasticsearch: noida-db, which has no authentication, behind a proxy that asks for the password."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import signal
from pathlib import Path

INNER = 19200
DATA = "/usr/share/elasticsearch/data"
REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def allowed(head: bytes, wanted: bytes) -> bool:
    """Tell whether a request's head carries the right password."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"authorization":
            return hmac.compare_digest(value.strip(), wanted)
    return not wanted


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def header(password: str) -> bytes:
    """Give what a request must carry."""
    return b"Basic " + base64.b64encode(f"elastic:{password}".encode()) if password else b""


async def serve(password: str) -> None:
    """Run noida-db and the proxy until one of them ends."""
    wanted = header(password)

    async def change(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # As the real one's API does, until this container ends: the next reads the new password from its file.
        nonlocal wanted
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        wanted = header(json.loads(await reader.readexactly(length))["password"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Asked once per connection: every client of the stack sends the password with every request anyway.
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not allowed(head, wanted):
                writer.write(REFUSED)
                await writer.drain()
                return
            if head.startswith(b"POST /_security/user/elastic/_password "):
                await change(head, reader, writer)
                return
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", INNER)
            inner_writer.write(head)
            await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    command = ["noida-db", "start", "--only", "elasticsearch", "--elasticsearch-port", str(INNER), "--data-dir", DATA]
    inner = await asyncio.create_subprocess_exec(*command)
    proxy = await asyncio.start_server(handle, "0.0.0.0", 9200)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, inner.terminate)
    status = await inner.wait()
    proxy.close()
    raise SystemExit(status)


file = os.environ.get("ELASTIC_PASSWORD_FILE")
asyncio.run(serve(Path(file).read_text().strip() if file else ""))
