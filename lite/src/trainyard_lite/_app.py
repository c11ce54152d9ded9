"""Puts the parts together: state, schema, services, background work."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

from . import services  # noqa: F401 (registers the endpoints)
from ._auth import SCHEMA as AUTH_SCHEMA
from ._auth import Authenticator
from ._collections import SCHEMA as COLLECTIONS_SCHEMA
from ._data import DataError
from ._db import Database, explain
from ._rpc import State
from ._schema import make_steps
from ._settings import Settings
from .domain.events.store import SCHEMA as EVENTS_SCHEMA
from .domain.queues import SCHEMA as QUEUES_SCHEMA
from .domain.workers import SCHEMA as WORKERS_SCHEMA

__all__ = ["TABLES", "Background", "create_state"]

# The tables of version 1.
TABLES = (AUTH_SCHEMA, COLLECTIONS_SCHEMA, EVENTS_SCHEMA, QUEUES_SCHEMA, WORKERS_SCHEMA)
_log = logging.getLogger("trainyard_lite")


def create_state(settings: Settings) -> State:
    """Open the database, bring its tables up to date, and let people in.

    Raises:
        DataError: if the data folder cannot be used.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.database, make_steps(TABLES))
        settings.files_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{settings.data_dir}: {error.strerror}") from error
    try:
        return State(settings=settings, db=db, auth=Authenticator(settings, db))
    except sqlite3.Error as error:
        told = explain(error)
        raise DataError(f"{settings.database}: {told.message if told else error}") from error


class Background:
    """Runs a job every so many seconds in its own thread, until stopped; a failure is logged, not fatal."""

    def __init__(self, name: str, every_sec: float, job: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._every = every_sec
        self._job = job
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, and wait for it."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._job()
            except Exception:
                _log.exception("%s failed; it will be tried again", self._thread.name)
