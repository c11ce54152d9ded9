"""STAND-IN for parts of clearml/server: its configuration, its logging, and a login at each database."""

from __future__ import annotations

import base64
import json
import logging
import logging.config
import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyhocon import ConfigFactory, ConfigTree
from pymongo import MongoClient
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError
from redis import Redis
from redis.exceptions import RedisError

CONFIG = Path("/opt/clearml/config")
LOGS = Path("/var/log/clearml")
TIMEOUT = 10
Tree = dict[str, Any]


class RefusedError(Exception):
    """A service did not let us in; the text never holds a password."""


def load(name: str) -> Tree:
    """Read one HOCON file; the real server too takes a missing one for empty."""
    path = CONFIG / f"{name}.conf"
    return dict(ConfigFactory.parse_file(str(path)).as_plain_ordered_dict()) if path.exists() else {}


def start_logging() -> None:
    """Log to the console and to apiserver.log as upstream's logging.conf says, with the site's file laid over it."""
    handlers: Tree = {"console": {"class": "logging.StreamHandler", "formatter": "standard"}}
    if os.access(LOGS, os.W_OK):
        handlers["text_file"] = {
            "class": "logging.handlers.RotatingFileHandler",
            "formatter": "standard",
            "backupCount": 3,
            "maxBytes": 10_240_000,
            "filename": str(LOGS / "apiserver.log"),
        }
    line = "[%(asctime)s] [%(process)d] [%(levelname)s] [%(name)s] %(message)s"
    defaults = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"standard": {"format": line}},
        "handlers": handlers,
        "root": {"handlers": list(handlers), "level": "INFO"},
    }
    tree = ConfigFactory.from_dict(defaults)
    path = CONFIG / "logging.conf"
    if path.exists():
        tree = ConfigTree.merge_configs(tree, ConfigFactory.parse_file(str(path)))
    # The tree itself, as upstream: there a quoted key with a dot keeps its quotes, and so names no logger.
    logging.config.dictConfig(tree)


def at(tree: Tree, path: str, default: Any = None) -> Any:
    """Look up a dotted path."""
    for key in path.split("."):
        if not isinstance(tree, dict) or key not in tree:
            return default
        tree = tree[key]
    return tree


def needed(tree: Tree, file: str, path: str) -> Any:
    """Look up a dotted path that must be there."""
    value = at(tree, path)
    if value is None:
        raise RefusedError(f"{file}.conf has no {path}")
    return value


def check_mongo(who: str) -> None:
    """Log in, write and read; counts how often `who` did, which shows that data was kept."""
    hosts = load("hosts")
    for alias in ("backend", "auth"):
        uri = at(hosts, f"mongo.{alias}.host")
        if uri:
            # As upstream does, password included: a test proves that the site's logging.conf hides it.
            logging.getLogger("clearml.database").info("Registering connection to %s-db (%s)", alias, uri)
    try:
        uri = needed(hosts, "hosts", "mongo.backend.host")
        with MongoClient(uri, serverSelectionTimeoutMS=TIMEOUT * 1000) as client:
            documents = client["backend"]["standin"]
            documents.update_one({"_id": who}, {"$inc": {"count": 1}}, upsert=True)
            counted = documents.find_one({"_id": who})
    except OperationFailure as error:
        raise RefusedError(f"mongo: {error.details.get('errmsg') if error.details else error.code}") from None
    except (ConfigurationError, ValueError):
        # Without the error's text, which could quote the URI.
        raise RefusedError("mongo: its URI in hosts.conf is malformed") from None
    except PyMongoError as error:
        raise RefusedError(f"mongo: {type(error).__name__}: {str(error).split(' (configured')[0]}") from None
    if not counted:
        raise RefusedError("mongo: what was written could not be read")
    print(f"stand-in: mongo let {who} in, time number {counted['count']}", flush=True)


def check_redis(alias: str) -> None:
    """Log in, write and read."""
    settings = dict(needed(load("hosts"), "hosts", f"redis.{alias}"))
    password = at(load("secure"), f"redis.{alias}.password")
    try:
        with Redis(**settings, password=password, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT) as client:
            client.set("standin", alias)
            read = client.get("standin")
    except RedisError as error:
        raise RefusedError(f"redis: {type(error).__name__}: {error}") from None
    if read != alias.encode():
        raise RefusedError("redis: what was written could not be read")
    print(f"stand-in: redis let {alias} in", flush=True)


def check_elastic() -> None:
    """Log in and ask for the cluster's health."""
    hosts, secure = load("hosts"), load("secure")
    host = needed(hosts, "hosts", "elastic.events.hosts")[0]
    user, password = at(secure, "elastic.user"), at(secure, "elastic.password")
    ca = at(hosts, "elastic.events.args.ca_certs")
    request = urllib.request.Request(f"{host.get('scheme', 'http')}://{host['host']}:{host['port']}/_cluster/health")
    if user and password:
        request.add_header("Authorization", basic(user, password))
    try:
        health = ask(request, ssl.create_default_context(cafile=ca) if ca else None)
    except OSError as error:
        raise RefusedError(f"elasticsearch: {error}") from None
    print(f"stand-in: elasticsearch let apiserver in, its health is {health.get('status')}", flush=True)


def ask(request: urllib.request.Request | str, context: ssl.SSLContext | None = None) -> Tree:
    """Send a request, answer the JSON or nothing; whatever goes wrong is an OSError."""
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as response:
        body = response.read()
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def basic(user: str, password: str) -> str:
    """Make the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def check_api() -> str:
    """Ask the API server whether it lives, for a while as it may be starting too; answers its address."""
    url = str(at(load("hosts"), "api_server", "http://apiserver:8008")).rstrip("/")
    until = time.monotonic() + TIMEOUT
    while True:
        try:
            ask(f"{url}/debug.ping")
            return url
        except OSError as error:
            if time.monotonic() > until:
                raise RefusedError(f"api server {url}: {error}") from None
        time.sleep(1)


def or_exit(checks: list[Callable[[], object]]) -> None:
    """Run the checks, and end the container at the first that is refused; its restart policy tries again."""
    try:
        for check in checks:
            check()
    except RefusedError as error:
        print(f"stand-in: refused by {error}", file=sys.stderr, flush=True)
        sys.exit(1)
