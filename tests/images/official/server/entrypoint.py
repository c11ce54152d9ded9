#!/usr/bin/python3
"""Stand-in for the entry point of clearml/server: the commands apiserver, fileserver and webserver."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import requests
import stand_in
from door import Door, FileGuard

DATA = Path("/mnt/fileserver/.stand-in")


def apiserver() -> None:
    """Log in everywhere, keep the schema, then run the lite server behind a door."""
    for check in (stand_in.check_mongo, lambda: stand_in.check_redis("apiserver"), stand_in.check_elastic):
        check()
    os.umask(0o077)
    DATA.mkdir(exist_ok=True)
    stand_in.keep_schema()
    command = f"{sys.executable} -m lite_as_official serve --host 0.0.0.0".split()
    command += ["--config-dir", str(stand_in.CONFIG), "--data-dir", str(DATA)]
    for name, port in (("api", 18008), ("web", 8080), ("files", 8081)):
        command += [f"--{name}-port", str(port), f"--{name}-url", os.environ[f"CLEARML_{name.upper()}_URL"]]
    asyncio.run(serve(command))


async def serve(command: list[str]) -> None:
    """Serve as long as the lite server does."""
    process = await asyncio.create_subprocess_exec(*command)
    cors = {"origins": "*", "supports_credentials": True, **stand_in.load("apiserver").get("cors", {})}
    opened = asyncio.create_task(Door(("127.0.0.1", 18008), cors).serve(8008))
    ended = asyncio.create_task(process.wait())
    await asyncio.wait({opened, ended}, return_when=asyncio.FIRST_COMPLETED)
    sys.exit(f"the lite server ended with {process.returncode}")


def fileserver() -> None:
    """Log in to Redis, ask the API server, then check who comes and hand on."""
    stand_in.check_redis("fileserver")
    requests.get(f"{stand_in.load('hosts')['api_server']}/debug.ping", timeout=10).raise_for_status()
    cors = {"origins": "*", **stand_in.load("fileserver").get("cors", {})}
    asyncio.run(Door(("apiserver", 8081), cors, FileGuard()).serve(8081))


def webserver() -> None:
    """Hand on what comes."""
    asyncio.run(Door(("apiserver", 8080), {}).serve(80))


if __name__ == "__main__":
    commands = {"apiserver": apiserver, "fileserver": fileserver, "webserver": webserver}
    if sys.argv[1:2] and sys.argv[1] in commands:
        # The formatter has another name in the file server.
        stand_in.start_logging("default" if sys.argv[1] == "fileserver" else "standard")
        commands[sys.argv[1]]()
    else:
        sys.exit(f"Server type {sys.argv[1:]} is invalid. Please choose either apiserver, webserver or fileserver.")
