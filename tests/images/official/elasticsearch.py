#!/usr/bin/python3
"""Stand-in for Elasticsearch: noida-db, which has no authentication, behind a proxy that asks for the password."""

from __future__ import annotations

import asyncio
import base64
import hmac
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


async def serve(wanted: bytes) -> None:
    """Run noida-db and the proxy until one of them ends."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Asked once per connection: every client of the stack sends the password with every request anyway.
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not allowed(head, wanted):
                writer.write(REFUSED)
                await writer.drain()
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
password = Path(file).read_text().strip() if file else ""
asyncio.run(serve(b"Basic " + base64.b64encode(f"elastic:{password}".encode()) if password else b""))
