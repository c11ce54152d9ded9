#!/usr/bin/python3
"""STAND-IN for the entry point of mongo: makes the first user in an empty folder, then becomes mongod."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure

DATA = Path("/data/db")


def setting(name: str) -> str:
    """Take a setting out of the environment: its value, or the content of the file that NAME_FILE names."""
    value, file = os.environ.pop(name, ""), os.environ.pop(f"{name}_FILE", "")
    if value and file:
        sys.exit(f"error: both {name} and {name}_FILE are set (but are exclusive)")
    return Path(file).read_text().rstrip("\n") if file else value


def make_first_user(name: str, password: str) -> None:
    """Start a mongod that only this container reaches, make the user, and stop it."""
    command = ["mongod", "--quiet", "--bind_ip", "127.0.0.1", "--dbpath", str(DATA)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with MongoClient("127.0.0.1", serverSelectionTimeoutMS=1000, directConnection=True) as client:
            until = time.monotonic() + 60
            while True:
                try:
                    client.admin.command("createUser", name, pwd=password, roles=[{"role": "root", "db": "admin"}])
                    break
                except ConnectionFailure:
                    if server.poll() is not None or time.monotonic() > until:
                        sys.exit("error: the mongod that makes the first user did not start")
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Do as upstream's entry point does."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "mongod")
    if arguments[0] == "mongod":
        name, password = setting("MONGO_INITDB_ROOT_USERNAME"), setting("MONGO_INITDB_ROOT_PASSWORD")
        if bool(name) != bool(password):
            sys.exit("error: MONGO_INITDB_ROOT_USERNAME and MONGO_INITDB_ROOT_PASSWORD go together")
        if name and not (DATA / "WiredTiger").exists():
            make_first_user(name, password)
        arguments[1:1] = ["--dbpath", str(DATA), "--bind_ip_all", *(["--auth"] if name else [])]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main()
