"""What the stand-ins for apiserver, fileserver and async_delete share: configuration, and a login at every database."""

from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path
from typing import Any

import requests
from pyhocon import ConfigFactory
from pymongo import MongoClient
from redis import Redis

CONFIG = Path("/opt/clearml/config")


def load(name: str) -> dict[str, Any]:
    """Read one HOCON file as the real server does."""
    path = CONFIG / f"{name}.conf"
    return dict(ConfigFactory.parse_file(str(path)).as_plain_ordered_dict()) if path.exists() else {}


def start_logging(formatter: str = "standard") -> None:
    """Log as the real server does: its defaults, and the site's logging.conf over them.

    The file server's line with an address is this stand-in's own, so that a test sees who formats it.
    """
    settings: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {formatter: {"format": "[%(levelname)s] [%(name)s] %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": formatter}},
        "root": {"handlers": ["console"], "level": "INFO"},
    }
    site = load("logging")
    logging.config.dictConfig({**settings, "formatters": settings["formatters"] | site.get("formatters", {})})
    logging.getLogger("clearml.config").info("Started with stand-in://user:password@nowhere/")


def keep_schema() -> None:
    """Read the parsed schema from its file, or write it there, as the real server's schema reader does."""
    path = Path("/opt/clearml/apiserver/schema/services/_cache.json")
    log = logging.getLogger("clearml.schema_reader")
    try:
        json.loads(path.read_text())
        log.info("loading schema from cache")
    except (OSError, ValueError) as error:
        log.warning("failed loading cache: %s", error)
        log.info("regenerating schema cache")
        try:
            path.write_text(json.dumps({"services_names": [], "services": {}, "api_defaults": {}}))
        except OSError:
            log.exception("failed cache file to %s", path)


def check_redis(alias: str) -> None:
    """Log in to Redis, write and read."""
    settings: dict[str, Any] = dict(load("hosts")["redis"][alias])
    password = load("secure").get("redis", {}).get(alias, {}).get("password")
    client = Redis(**settings, password=password, socket_timeout=10)
    client.set("stand-in", alias)
    assert client.get("stand-in") == alias.encode()


def check_mongo() -> None:
    """Log in to MongoDB, write and read; say at INFO what the real server says: the address, password included."""
    uri = load("hosts")["mongo"]["backend"]["host"]
    logging.getLogger("clearml.database").info("Registering connection to backend-db (%s)", uri)
    documents = MongoClient(uri, serverSelectionTimeoutMS=10_000).get_default_database()["stand_in"]
    documents.replace_one({"_id": "starts"}, {"_id": "starts", "by": "apiserver"}, upsert=True)
    assert documents.find_one({"_id": "starts"})


def check_elastic() -> None:
    """Log in to Elasticsearch."""
    cluster = load("hosts")["elastic"]["events"]
    host, auth = cluster["hosts"][0], load("secure")["elastic"]
    url = f"{host['scheme']}://{host['host']}:{host['port']}/_cluster/health"
    session = requests.Session()
    session.trust_env = False  # As Elasticsearch's own client.
    session.verify = cluster.get("args", {}).get("ca_certs", True)
    session.get(url, auth=(auth["user"], auth["password"]), timeout=10).raise_for_status()
