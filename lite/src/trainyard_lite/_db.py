"""SQLite in WAL mode: one writer at a time, readers that never wait for it.

Every acknowledged write is on disk (``synchronous=FULL``): it survives a kill -9 and a power cut.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._clock import now
from ._patterns import matches

__all__ = ["Database"]


class Database:
    """One SQLite file.

    Args:
        path: the file; its directory must exist and be writable.
        schema: DDL scripts, each of ``CREATE ... IF NOT EXISTS`` statements.

    Attributes:
        opened: since when there is a server to talk to: who was silent before had nobody to tell.
    """

    def __init__(self, path: Path, schema: list[str]) -> None:
        self._path = path
        self.opened = now()
        self._lock = threading.RLock()
        self._local = threading.local()
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._depth = 0
        for script in schema:
            self._writer.executescript(script)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=30, cached_statements=512
        )
        connection.row_factory = sqlite3.Row
        connection.create_function("regexp", 2, matches, deterministic=True)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-8000")  # KiB, per connection
        connection.execute("PRAGMA temp_store=MEMORY")
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run one write transaction; it commits at the end of the block, or rolls back on an exception.

        Nested blocks of one thread join the outer transaction.
        """
        with self._lock:
            if self._depth:
                yield self._writer
                return
            self._depth = 1
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            finally:
                self._depth = 0

    def read(self) -> sqlite3.Connection:
        """Give this thread's own read connection (never use it for writing)."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only=1")
            self._local.connection = connection
        return connection

    def close(self) -> None:
        """Close the writer; readers close with their threads."""
        with self._lock:
            self._writer.close()
