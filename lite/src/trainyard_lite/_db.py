"""SQLite in WAL mode: one writer at a time, readers that never wait for it.

Every acknowledged write is on disk (``synchronous=FULL``): it survives a kill -9 and a power cut.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import _errors as errors
from ._clock import now
from ._data import DataError, Step, check_database, migrate
from ._errors import ApiError
from ._patterns import matches

__all__ = ["Database", "explain"]

# What SQLite says when the place of the data fails, and what a client and the log should read.
_STORAGE = {
    "database or disk is full": "the disk of the data folder is full: free some space. Nothing was written",
    "attempt to write a readonly database": "the data folder cannot be written. Nothing was written",
    "unable to open database file": "the database cannot be opened: see that the data folder is mounted and writable",
    "disk I/O error": "the disk of the data folder fails: see the kernel's log",
    "database is locked": "the database is busy: try again",
    "malformed": "the database is damaged: stop lite and restore it ('The database is damaged' in docs/operations.md)",
    "file is not a database": "the database is damaged: stop lite and restore it",
}
# What an argument may do that nobody thought of: it is the caller's fault, not the server's.
_ARGUMENT = (
    "binding parameter", "too many SQL variables", "Expression tree is too large", "parser stack overflow",
    "JSON path error", "bad JSON path", "string or blob too big", "too many terms", "pattern too complex",
)  # fmt: skip


def explain(error: Exception) -> ApiError | None:
    """Translate an error of the database; None for one that is a fault of this program."""
    text = str(error)
    if isinstance(error, sqlite3.Error):
        for sign, words in _STORAGE.items():
            if sign in text:
                # 503: the SDK tries such a call again, and keeps its events until then
                return ApiError(503, 0, f"Database error: {words}")
        if any(sign in text for sign in _ARGUMENT):
            return errors.VALIDATION_ERROR(f"an argument cannot be stored or compared: {text}")
    if isinstance(error, OverflowError | UnicodeEncodeError | RecursionError):
        return errors.VALIDATION_ERROR(f"an argument is out of range: {text[:200]}")
    return None


class Database:
    """One SQLite file.

    Args:
        path: the file; its directory must exist and be writable.
        steps: what brings its tables up to date, see :func:`trainyard_lite._data.migrate`.

    Attributes:
        opened: since when there is a server to talk to: who was silent before had nobody to tell.

    Raises:
        DataError: if it cannot be used.
    """

    def __init__(self, path: Path, steps: Sequence[Step]) -> None:
        self._path = path
        self.opened = now()
        self._lock = threading.RLock()
        self._local = threading.local()
        self._depth = 0
        self._ticks = 0
        check_database(path)
        try:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode=WAL")
            migrate(self._writer, path, steps)
        except sqlite3.Error as error:
            told = explain(error)
            raise DataError(f"{path}: {told.message if told else error}") from error
        self._writer.set_progress_handler(self._tick, 100_000)

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

    def _tick(self) -> None:
        self._ticks += 1

    def sign_of_life(self) -> tuple[int, int] | None:
        """Return what changes while a write transaction gets on; None when there is none."""
        return (self._ticks, self._writer.total_changes) if self._depth else None

    def ping(self) -> None:
        """Read something."""
        self.read().execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()

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
            self._ticks += 1
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                # Of a full disk SQLite may have rolled back itself; and a commit that failed is still open.
                if self._writer.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._writer.execute("ROLLBACK")
                raise
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
