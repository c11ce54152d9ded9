"""Puts the parts together: state, schema, services, background work."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sqlite3
import threading
from collections.abc import Callable

from . import services
from ._auth import SCHEMA as AUTH_SCHEMA
from ._auth import Authenticator
from ._collections import SCHEMA as COLLECTIONS_SCHEMA
from ._data import DataError
from ._db import Database, explain
from ._rpc import State
from ._schema import make_steps
from ._settings import Settings

__all__ = ["Background", "create_state", "load_services"]

_log = logging.getLogger("trainyard_lite")


def load_services() -> list[str]:
    """Load every service; return the tables of version 1, which each module declares in ``SCHEMA``."""
    scripts = [AUTH_SCHEMA, COLLECTIONS_SCHEMA]
    for module in sorted(pkgutil.iter_modules(services.__path__), key=lambda m: m.name):
        loaded = importlib.import_module(f"{services.__name__}.{module.name}")
        scripts.append(getattr(loaded, "SCHEMA", ""))
    return scripts


def create_state(settings: Settings) -> State:
    """Open the database, bring its tables up to date, and load every service.

    Raises:
        DataError: if the data folder cannot be used.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.database, make_steps(load_services()))
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
