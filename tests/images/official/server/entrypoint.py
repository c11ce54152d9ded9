#!/usr/bin/python3
"""Stand-in for the entry point of clearml/server: the commands apiserver, fileserver and webserver."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import requests
import stand_in

DATA = Path("/mnt/fileserver/.stand-in")


def apiserver() -> None:
    """Log in everywhere, then become the lite server."""
    for check in (stand_in.check_mongo, lambda: stand_in.check_redis("apiserver"), stand_in.check_elastic):
        check()
    os.umask(0o077)
    DATA.mkdir(exist_ok=True)
    command = ["trainyard-lite", "serve", "--config-dir", str(stand_in.CONFIG), "--data-dir", str(DATA)]
    command += ["--host", "0.0.0.0"]
    for name, port in (("api", 8008), ("web", 8080), ("files", 8081)):
        command += [f"--{name}-port", str(port), f"--{name}-url", os.environ[f"CLEARML_{name.upper()}_URL"]]
    os.execvp(command[0], command)


def fileserver() -> None:
    """Log in to Redis, ask the API server, then hand on what comes."""
    stand_in.check_redis("fileserver")
    requests.get(f"{stand_in.load('hosts')['api_server']}/debug.ping", timeout=10).raise_for_status()
    asyncio.run(forward(8081, 8081))


def webserver() -> None:
    """Hand on what comes."""
    asyncio.run(forward(80, 8080))


async def forward(port: int, target: int) -> None:
    """Hand connections on to the API server's container, where the lite server has all three ports."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("apiserver", target)
            await asyncio.gather(pipe(reader, there_writer), pipe(there_reader, writer))
            there_writer.close()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "0.0.0.0", port)
    await server.serve_forever()


if __name__ == "__main__":
    commands = {"apiserver": apiserver, "fileserver": fileserver, "webserver": webserver}
    if sys.argv[1:2] and sys.argv[1] in commands:
        stand_in.start_logging()
        commands[sys.argv[1]]()
    else:
        sys.exit(f"Server type {sys.argv[1:]} is invalid. Please choose either apiserver, webserver or fileserver.")
