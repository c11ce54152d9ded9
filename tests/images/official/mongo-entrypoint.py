#!/usr/bin/python3
"""Stand-in for the mongo image's entry point: the first user in an empty folder, then mongod with authentication."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

DATA = Path("/data/db")


def first_user(name: str, password: str) -> None:
    """Start a mongod that only this container reaches, make the user, stop it."""
    options = ["--port", "27018", "--bind_ip", "127.0.0.1", "--dbpath", str(DATA), "--quiet"]
    server = subprocess.Popen(["mongod", *options], stdout=subprocess.DEVNULL)
    try:
        client: MongoClient = MongoClient("127.0.0.1", 27018, serverSelectionTimeoutMS=1000)
        for _ in range(60):
            try:
                client.admin.command("ping")
                break
            except PyMongoError:
                time.sleep(0.5)
        client.admin.command("createUser", name, pwd=password, roles=["root"])
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> None:
    """Do as the upstream entry point does."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["mongod"]:
        arguments = arguments[1:]
    name = os.environ.pop("MONGO_INITDB_ROOT_USERNAME", "")
    file = os.environ.pop("MONGO_INITDB_ROOT_PASSWORD_FILE", "")
    if name and file:
        if not (DATA / "WiredTiger").exists():
            first_user(name, Path(file).read_text().strip())
        arguments.append("--auth")
    os.execvp("mongod", ["mongod", "--bind_ip_all", "--dbpath", str(DATA), "--quiet", *arguments])


if __name__ == "__main__":
    main()
