"""Puts the parts together: state, schema, services, background work."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import threading
from collections.abc import Callable

from . import services
from ._auth import SCHEMA as AUTH_SCHEMA
from ._auth import Authenticator
from ._collections import SCHEMA as COLLECTIONS_SCHEMA
from ._db import Database
from ._rpc import State
from ._settings import Settings

__all__ = ["Background", "create_state"]

_log = logging.getLogger("trainyard_lite")


def create_state(settings: Settings) -> State:
    """Open the database, create what is missing, and load every service.

    A service module may declare ``SCHEMA`` (DDL, run at each start).
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    settings.files_dir.mkdir(parents=True, exist_ok=True)
    schema = [AUTH_SCHEMA, COLLECTIONS_SCHEMA]
    for module in sorted(pkgutil.iter_modules(services.__path__), key=lambda m: m.name):
        loaded = importlib.import_module(f"{services.__name__}.{module.name}")
        schema.append(getattr(loaded, "SCHEMA", ""))
    db = Database(settings.database, schema)
    return State(settings=settings, db=db, auth=Authenticator(settings, db))


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
