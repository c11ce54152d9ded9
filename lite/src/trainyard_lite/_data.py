"""The data folder at start: whose it is, whether its database is sound, and which version its tables have.

Whatever is wrong is a :class:`DataError`, whose text names the file and what to do.  Nothing is served then: a server
that starts on half a database hides the loss until the backups are overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from . import __version__
from ._bounds import loads

__all__ = ["DataError", "Step", "check_database", "lock_folder", "migrate", "run_script"]

_log = logging.getLogger("trainyard_lite")
_CHECK_SEC = 60.0  # 900 MB take 1.6 s (measured, in the page cache)
_KEPT_COPIES = 3
_RESERVE_BYTES = 64 * 1024 * 1024  # free beyond the copy before a step
_HEADER = b"SQLite format 3\0"
_RESTORE = (
    "Restore it from a backup, with lite stopped: see 'The database is damaged' in docs/operations.md. "
    "What can still be read: trainyard-lite salvage --data-dir {folder} --to {folder}/salvaged.db"
)

Step = Callable[[sqlite3.Connection], None]


class DataError(Exception):
    """The data folder cannot be used; the text is for the operator."""


# Whose it is


def lock_folder(folder: Path) -> IO[str]:
    """Take the data folder for this process, for as long as the file that is returned stays open.

    The lock is the kernel's (flock): it ends with the process, however that ends.

    Raises:
        DataError: if another lite has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lite.lock").open("a+")
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = loads(file.read() or "{}")
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise DataError(
                f"{folder} is on a file system without locks ({error.strerror}): put the data on a local disk. SQLite "
                "needs one too"
            ) from error
        owner = owner if isinstance(owner, dict) else {}
        who = f"process {owner.get('pid', '?')} on host {owner.get('host', '?')}, since {owner.get('since', '?')}"
        raise DataError(
            f"{folder} is in use by another lite ({who}): stop that one first, or give this one a folder of its own "
            "(--data-dir, TRAINYARD_LITE_DATA_DIR)"
        ) from error
    try:
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%F %T} UTC"}, file)
        file.flush()
    except OSError as error:  # a full disk: the lock holds, only its label is missing
        _log.warning("%s cannot be written: %s", folder / "lite.lock", error)
    return file


def _unusable(path: Path, error: OSError | None = None) -> DataError:
    """Say why a file or folder cannot be used."""
    reason = error.strerror if error and error.strerror else "it cannot be written"
    if error is not None and error.errno == errno.ENOSPC:
        return DataError(f"{path}: the disk is full. Free some space ('The disk is full' in docs/operations.md)")
    if error is not None and error.errno == errno.EROFS:
        return DataError(f"{path}: the file system is read-only. Mount it for writing")
    existing = next(p for p in (path, *path.parents) if p.exists())
    owner = existing.stat()
    text = f"{path}: {reason}."
    if owner.st_uid != os.getuid():
        text += f" {existing} belongs to uid {owner.st_uid}, lite runs as uid {os.getuid()}: type"
        return DataError(f"{text} chown -R {os.getuid()}:{os.getgid()} {existing}")
    return DataError(f"{text} Make {existing} a folder that uid {os.getuid()} can write, not mounted read-only")


# Whether it is sound


def check_database(path: Path) -> None:
    """Check the database before it is opened for writing; one that is not there yet is fine.

    Raises:
        DataError: if it is damaged, not a database, or not writable.
    """
    wal = path.with_name(f"{path.name}-wal")
    restore = _RESTORE.format(folder=path.parent)
    try:
        size = path.stat().st_size if path.exists() else None
        pending = wal.stat().st_size if wal.exists() else 0
        if size is None and pending:
            raise DataError(f"{path} is missing, and {wal.name}, which belongs to it, is there. {restore}")
        if not os.access(path.parent, os.W_OK | os.X_OK) or (
            size is not None and not os.access(path, os.R_OK | os.W_OK)
        ):
            raise _unusable(path if size is not None and not os.access(path, os.R_OK | os.W_OK) else path.parent)
        if size is None:
            return
        if size == 0:
            files = path.parent / "files"
            if pending or (files.is_dir() and any(files.iterdir())):
                raise DataError(f"{path} is empty (0 bytes), and there are files of experiments beside it. {restore}")
            return
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise _unusable(path, error) from error
    if head[:16] != _HEADER:
        raise DataError(f"{path} is not an SQLite database (it begins with {head[:16]!r}). {restore}")
    problem = _quick_check(path)
    if problem:
        raise DataError(f"{path} is damaged: {problem}. {restore}")


def _quick_check(path: Path) -> str:
    """Read every page of the database, for a minute at most; return what is wrong."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    late = threading.Event()

    def stop() -> None:
        late.set()
        connection.interrupt()

    timer = threading.Timer(_CHECK_SEC, stop)
    timer.start()
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    finally:
        timer.cancel()
        timer.join()
        with contextlib.suppress(sqlite3.Error):
            connection.close()
    if late.is_set():  # what it reports then is of pages that it did not come to
        _log.warning("%s is large: checked for %.0f s, not to its end", path, _CHECK_SEC)
        return ""
    return "" if found == ["ok"] else " / ".join(" ".join(line.split()) for line in found)[:500]


# Which version its tables have


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Run a script statement by statement, within the open transaction (``executescript`` would commit it)."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    if statement.strip(" \n;"):
        db.execute(statement)


def migrate(db: sqlite3.Connection, path: Path, steps: Sequence[Step]) -> None:
    """Bring the tables to the version of this program: step n leads from version n-1 to n.

    Each step is one transaction, its number included: a kill in the middle leaves the version before.  A database that
    holds something is copied first, beside itself, as ``lite.db.v<version>-<time>``.

    Raises:
        DataError: if a newer lite wrote it, another program did, or there is no space for the copy.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version > len(steps):
        by = ""
        if "lite_meta" in tables:
            row = db.execute("SELECT value FROM lite_meta WHERE key = 'written_by'").fetchone()
            by = f" or newer: lite {row[0]} wrote it" if row else ""
        raise DataError(
            f"{path} has version {version} of the tables, this lite ({__version__}) knows {len(steps)}. Start the lite "
            f"that knows {version}{by}. To go back instead, stop lite and put a copy of the older version in its place "
            f"({path.name}.v{len(steps)}-*), which loses what was written since"
        )
    if tables and "task" not in tables:
        raise DataError(f"{path} is a database of another program: it has no table 'task'. Give lite another folder")
    if tables and version < len(steps):
        _copy(db, path, version)
    for number, step in enumerate(steps[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            step(db)
            db.execute("INSERT OR REPLACE INTO lite_meta VALUES ('written_by', ?)", (__version__,))
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if tables:
            _log.info("%s: the tables have version %d now", path, number)


def _copy(db: sqlite3.Connection, path: Path, version: int) -> None:
    folder = path.parent
    for left in folder.glob(f"{path.name}.v*.part*"):  # of a start that was killed
        left.unlink(missing_ok=True)
    needed = path.stat().st_size + _RESERVE_BYTES
    wal = path.with_name(f"{path.name}-wal")
    needed += wal.stat().st_size if wal.exists() else 0
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{path} must be copied before its tables change from version {version}: that takes {needed >> 20} MB in "
            f"{folder}, {free >> 20} MB are free. Free some space, or move old copies ({path.name}.v*) away"
        )
    copy = folder / f"{path.name}.v{version}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    part = copy.with_name(f"{copy.name}.part")
    db.execute("VACUUM INTO ?", (str(part),))
    for target in (part, folder):
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if target == part:
            part.rename(copy)
    _log.info("%s is copied to %s before its tables change", path, copy.name)
    copies = sorted(folder.glob(f"{path.name}.v*"), key=lambda p: p.stat().st_mtime)
    for old in copies[:-_KEPT_COPIES]:
        old.unlink(missing_ok=True)
