"""STAND-IN for the servers of clearml/server: they check what the real ones need, the lite server serves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import stand_in

DATA = "/mnt/fileserver/.stand-in"


def apiserver() -> None:
    """Log in at each database, then become the lite server, which has all three ports."""
    stand_in.start_logging()
    me = "apiserver"
    stand_in.or_exit([partial(stand_in.check_mongo, me), partial(stand_in.check_redis, me), stand_in.check_elastic])
    os.umask(0o077)
    Path(DATA).mkdir(parents=True, exist_ok=True)
    command = ["trainyard-lite", "serve", "--config-dir", str(stand_in.CONFIG), "--data-dir", DATA, "--host", "0.0.0.0"]
    for name, port in (("api", 8008), ("web", 8080), ("files", 8081)):
        url = os.environ.get(f"CLEARML_{name.upper()}_URL") or f"http://localhost:{port}"
        command += [f"--{name}-port", str(port), f"--{name}-url", url]
    os.execvp(command[0], command)


def fileserver() -> None:
    """Check what the real one needs, then forward to the lite server."""
    stand_in.or_exit([partial(stand_in.check_redis, "fileserver"), stand_in.check_api])
    asyncio.run(forward(8081, 8081))


def webserver() -> None:
    """Forward to the lite server; /api and /files are not told apart, as its page needs neither."""
    asyncio.run(forward(80, 8080))


async def forward(port: int, target: int) -> None:
    """Forward connections to the API server's container until SIGTERM."""
    server = await asyncio.start_server(lambda reader, writer: handle(reader, writer, target), "0.0.0.0", port)
    print(f"stand-in: forwarding port {port} to apiserver:{target}", flush=True)
    # As process 1 of a container it would not end by itself.
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    server.close()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
    """Forward one connection; a client may end its own half and still wait for the answer."""
    try:
        there_reader, there_writer = await asyncio.open_connection("apiserver", target)
    except OSError as error:
        print(f"stand-in: apiserver:{target}: {error}", file=sys.stderr, flush=True)
        writer.close()
        return
    try:
        await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))
    except OSError:
        # One end broke; the other is closed below.
        pass
    finally:
        there_writer.close()
        writer.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy what comes, piece by piece, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


if __name__ == "__main__":
    {"apiserver": apiserver, "fileserver": fileserver, "webserver": webserver}[sys.argv[1]]()
