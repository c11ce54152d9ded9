"""The data folder: one lite on it, a sound database, tables of a known version, and a process that does not hang."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_lite
from test_lite_auth import write_config
from test_lite_durability import Process
from trainyard_lite import _data
from trainyard_lite._app import TABLES
from trainyard_lite._data import DataError, check_database, lock_folder, migrate, run_script
from trainyard_lite._db import Database
from trainyard_lite._errors import ApiError
from trainyard_lite._salvage import salvage
from trainyard_lite._schema import make_steps


def unversioned(path: Path) -> sqlite3.Connection:
    """Make a database as lite did before its tables had versions: the same scripts, no number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    for script in TABLES:
        db.executescript(script)
    return db


def make_database(folder: Path, tasks: int = 300) -> Path:
    """Make a database with something in it, all of it in the one file."""
    lite = make_lite(folder)
    with lite.state.db.write():  # one transaction for all
        for number in range(tasks):
            lite.task(f"task {number}")
    task = lite.task("the last one")
    lite("events.add", type="training_stats_scalar", task=task, metric="a", variant="b", iter=1, value=2)
    path: Path = lite.state.settings.database
    lite.state.db.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path


def damage(path: Path) -> None:
    """Overwrite some pages in the middle of the table of tasks."""
    db = sqlite3.connect(path)
    size = db.execute("PRAGMA page_size").fetchone()[0]
    db.close()
    content = bytearray(path.read_bytes())
    middle = content.index(b"task 150") // size
    for page in range(middle, middle + 2):
        content[page * size : page * size + 2000] = b"\xde\xad" * 1000
    path.write_bytes(content)


def serve(folder: Path, **environment: str) -> tuple[int, str]:
    """Run the real program, which is to end by itself; return its status and what it printed."""
    write_config(folder / "config")
    command = [sys.executable, "-m", "trainyard_lite", "serve", "--host", "127.0.0.1", "--api-port", "0"]
    command += ["--web-port", "0", "--files-port", "0", "--config-dir", str(folder / "config")]
    command += ["--data-dir", str(folder / "data")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )
    return done.returncode, done.stderr


# One lite on a folder


def test_a_second_lite_names_the_first_and_ends(tmp_path: Path) -> None:
    first = Process(tmp_path)
    first.start()
    status, printed = serve(tmp_path)
    assert status == 3
    assert f"{tmp_path / 'data'} is in use by another lite (process {first._child.pid} on host" in printed  # type: ignore[union-attr]
    assert "Traceback" not in printed
    first.kill()
    again = Process(tmp_path)
    again.start()  # the kernel let go of the lock
    again.kill()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(_data.fcntl, "flock", no_locks)
    with pytest.raises(DataError, match=r"file system without locks.*local disk"):
        lock_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "x" * 100])
def test_the_label_of_a_lock_may_be_anything(tmp_path: Path, content: str) -> None:
    held = lock_folder(tmp_path)
    (tmp_path / "lite.lock").write_text(content)
    with pytest.raises(DataError, match="in use by another lite"):
        lock_folder(tmp_path)
    held.close()
    lock_folder(tmp_path).close()


# A sound database


def test_a_damaged_database_is_found_at_start(tmp_path: Path) -> None:
    path = make_database(tmp_path)
    damage(path)
    before = path.read_bytes()
    status, printed = serve(tmp_path)
    assert status == 3
    assert f"{path} is damaged: " in printed
    assert "Restore it from a backup" in printed
    assert "trainyard-lite salvage" in printed
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("text", "not an SQLite database"),
        ("zeros", "not an SQLite database"),
        ("empty with files", "is empty \\(0 bytes\\)"),
        ("half", "is damaged"),
        ("a page", "is damaged"),
        ("header only", "is damaged|not an SQLite"),
        ("wal alone", "is missing, and lite.db-wal"),
        ("a folder", "lite.db"),
        ("of another program", "of another program"),
    ],
)
def test_what_is_no_sound_database_is_not_served(tmp_path: Path, what: str, words: str) -> None:
    path = make_database(tmp_path)
    content = path.read_bytes()
    if what == "text":
        path.write_text("hello\n" * 1000)
    elif what == "zeros":
        path.write_bytes(bytes(len(content)))
    elif what == "empty with files":
        path.write_bytes(b"")
        (path.parent / "files/experiment").mkdir()
    elif what == "half":
        path.write_bytes(content[: len(content) // 2])
    elif what == "a page":
        path.write_bytes(content[:4096])
    elif what == "header only":
        path.write_bytes(content[:20])
    elif what == "wal alone":
        path.rename(path.with_name("lite.db-wal"))
    elif what == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.close()
    with pytest.raises(DataError, match=words):
        Database(path, make_steps(TABLES))


def test_an_empty_file_of_a_first_start_that_was_killed_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "lite.db"
    path.touch()
    check_database(path)
    Database(path, make_steps(TABLES)).close()


@pytest.mark.parametrize("what", ["folder", "database"])
def test_a_folder_of_another_owner_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = make_database(tmp_path, tasks=0)
    monkeypatch.setattr(_data.os, "access", lambda p, _: Path(p) != (path if what == "database" else path.parent))
    monkeypatch.setattr(_data.os, "getuid", lambda: 4242)
    with pytest.raises(DataError, match=r"lite runs as uid 4242: type chown -R 4242:"):
        check_database(path)


@pytest.mark.parametrize(
    ("number", "words"), [(28, "the disk is full"), (30, "read-only. Mount it"), (13, "Permission denied")]
)
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=words):
        lock_folder(tmp_path)


def test_a_large_database_is_checked_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_database(tmp_path, tasks=0)
    monkeypatch.setattr(_data, "_CHECK_SEC", 0.0)
    timer = _data.threading.Timer

    class Early(timer):  # type: ignore[misc,valid-type]
        def start(self) -> None:
            self.function()  # before the first page

        def join(self, timeout: float | None = None) -> None: ...

    monkeypatch.setattr(_data.threading, "Timer", Early)
    check_database(path)
    assert "not to its end" in caplog.text


def test_what_can_be_read_of_a_damaged_database_is_salvaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_database(tmp_path)
    damage(path)
    (tmp_path / "new").mkdir()
    counts = salvage(path, tmp_path / "new/lite.db")
    rows, problems = counts["task"]
    assert 200 < rows < 301
    assert problems >= 1
    assert counts["event_scalar"] == (1, 0)
    (tmp_path / "data/lite.db").unlink()
    (tmp_path / "new/lite.db").rename(path)
    lite = make_lite(tmp_path)
    names = {task["name"] for task in lite("tasks.get_all", page_size=500, only_fields=["name"])["tasks"]}
    assert {"task 0", "the last one"} <= names


# Versions


def test_a_database_without_version_becomes_version_1(tmp_path: Path) -> None:
    path = tmp_path / "data/lite.db"
    old = unversioned(path)
    doc = {"id": "t1", "name": "an old task", "status": "completed", "type": "training", "tags": ["x"]}
    old.execute("INSERT INTO task (id, doc) VALUES ('t1', ?)", (json.dumps(doc),))
    old.execute("INSERT INTO event_text (text) VALUES ('w')")
    old.close()
    lite = make_lite(tmp_path)
    assert lite("tasks.get_all", only_fields=["name", "status"])["tasks"] == [
        {"id": "t1", "name": "an old task", "status": "completed"}
    ]
    assert lite("tasks.get_by_id", task="t1")["task"]["tags"] == ["x"]
    lite.state.db.close()
    (copy,) = path.parent.glob("lite.db.v0-*")
    before = sqlite3.connect(copy)
    assert before.execute("PRAGMA user_version").fetchone() == (0,)
    assert before.execute("SELECT count(*) FROM task").fetchone() == (1,)
    # A database that was brought up to date has the tables of a new one.
    fresh = make_lite(tmp_path / "fresh").state.settings.database
    tables = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
    assert sqlite3.connect(path).execute(tables).fetchall() == sqlite3.connect(fresh).execute(tables).fetchall()
    make_lite(tmp_path).state.db.close()
    assert len(list(path.parent.glob("lite.db.v*"))) == 1, "a second start copies nothing"


def test_a_new_database_is_not_copied(tmp_path: Path) -> None:
    path = make_database(tmp_path, tasks=0)
    assert not list(path.parent.glob("*.v*"))


def test_a_newer_version_is_refused_with_the_lite_that_it_needs(tmp_path: Path) -> None:
    path = make_database(tmp_path, tasks=0)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA user_version = 7")
    db.execute("INSERT OR REPLACE INTO lite_meta VALUES ('written_by', '9.8.7')")
    db.close()
    status, printed = serve(tmp_path)
    assert status == 3
    assert "version 7 of the tables" in printed
    assert "lite 9.8.7 wrote it" in printed
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (7,)
    assert not list(path.parent.glob("*.v*"))


def test_a_step_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    path = make_database(tmp_path, tasks=1)

    def second(db: sqlite3.Connection) -> None:
        run_script(db, "DELETE FROM task; CREATE TABLE more (a);")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Database(path, [*make_steps(TABLES), second])
    assert make_lite(tmp_path)("tasks.get_all")["tasks"]
    (copy,) = path.parent.glob("lite.db.v1-*")
    assert sqlite3.connect(copy).execute("SELECT count(*) FROM task").fetchone() == (2,)


def test_a_step_that_is_killed_leaves_the_version_before(tmp_path: Path) -> None:
    path = make_database(tmp_path, tasks=1)
    program = f"""
import os, signal, sys
from pathlib import Path
from trainyard_lite._app import TABLES
from trainyard_lite._db import Database
from trainyard_lite._schema import make_steps
def second(db):
    db.execute("DELETE FROM task")
    db.execute("CREATE TABLE more (a)")
    os.kill(os.getpid(), signal.SIGKILL)
Database(Path({str(path)!r}), [*make_steps(TABLES), second])
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    left = path.with_name("lite.db.v1-20200101T000000.part")
    left.touch()
    assert len(make_lite(tmp_path)("tasks.get_all")["tasks"]) == 2
    Database(path, [*make_steps(TABLES), lambda db: run_script(db, "CREATE TABLE more (a)")]).close()
    assert not left.exists()


def test_some_copies_are_kept(tmp_path: Path) -> None:
    path = make_database(tmp_path, tasks=0)
    steps = make_steps(TABLES)
    for number in range(5):
        steps.append(lambda db, number=number: run_script(db, f"CREATE TABLE more{number} (a);"))
        Database(path, steps).close()
    assert sorted(p.name.split("-")[0] for p in path.parent.glob("*.v*")) == ["lite.db.v3", "lite.db.v4", "lite.db.v5"]


def test_a_copy_needs_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unversioned(tmp_path / "lite.db").close()
    monkeypatch.setattr(_data.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(DataError, match=r"must be copied.*1 MB are free"):
        Database(tmp_path / "lite.db", make_steps(TABLES))
    db = sqlite3.connect(tmp_path / "lite.db")
    assert db.execute("PRAGMA user_version").fetchone() == (0,)


def test_scripts_run_within_the_transaction(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    db.execute("BEGIN")
    run_script(db, "CREATE TABLE a (b TEXT DEFAULT ';'); -- a remark; with a semicolon\nCREATE TABLE c (d)")
    db.execute("ROLLBACK")
    assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    migrate(db, tmp_path / "x.db", make_steps(TABLES))
    assert db.execute("PRAGMA user_version").fetchone() == (1,)


# A full disk


def test_on_a_full_disk_writes_fail_and_reads_go_on(tmp_path: Path) -> None:
    lite = make_lite(tmp_path)
    task = lite.task()
    database = lite.state.db
    pages = database._writer.execute("PRAGMA page_count").fetchone()[0]
    database._writer.execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        with pytest.raises(ApiError) as caught:
            lite("tasks.edit", task=task, comment="x" * 1_000_000)
        assert caught.value.code == 503
        assert "disk of the data folder is full" in caught.value.message
        assert lite.status(task) == "created"
    database._writer.execute("PRAGMA max_page_count = 1000000")
    lite("tasks.edit", task=task, comment="x" * 1_000_000)


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.db", make_steps(TABLES))
    database._writer.executescript(
        "CREATE TABLE a (id INTEGER PRIMARY KEY);"
        "CREATE TABLE b (a REFERENCES a DEFERRABLE INITIALLY DEFERRED); PRAGMA foreign_keys = 1;"
    )

    def refused() -> None:
        with database.write() as db:
            db.execute("INSERT INTO b VALUES (7)")  # only the commit fails

    for _ in range(2):
        with pytest.raises(sqlite3.IntegrityError):
            refused()
    with database.write() as db:
        assert db.execute("SELECT count(*) FROM b").fetchone()[0] == 0


# A process that hangs

_HANG = """
import asyncio, sys, threading, time
from pathlib import Path
from trainyard_lite._app import TABLES
from trainyard_lite._db import Database
from trainyard_lite._schema import make_steps
from trainyard_lite._watchdog import Watchdog
from starlette.concurrency import run_in_threadpool

db = Database(Path(sys.argv[1]) / "lite.db", make_steps(TABLES))
hung = threading.Event()

def stuck():
    with db.write():
        hung.wait()

def busy_then_done():  # many rounds of the watchdog, with something done in each
    with db.write() as c:
        for n in range(60):
            c.execute("INSERT INTO event_text (text) VALUES (?)", (str(n),))
            time.sleep(0.05)

async def main():
    watchdog = Watchdog(asyncio.get_running_loop(), db, limit_sec=1.2)
    watchdog.start()
    what = sys.argv[2]
    if what == "loop":
        hung.wait()
    elif what == "write":
        await run_in_threadpool(stuck)
    elif what == "threads":
        await asyncio.gather(*(run_in_threadpool(hung.wait) for _ in range(100)))
    elif what == "long work":
        await run_in_threadpool(busy_then_done)
    watchdog.stop()
    print("ended well")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ("loop", 70, "the event loop did not get on"),
        ("write", 70, "the write transaction did not get on"),
        ("threads", 70, "the threads did not get on"),
        ("long work", 0, ""),
    ],
)
def test_a_process_that_hangs_ends_with_its_stacks(tmp_path: Path, what: str, status: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANG, str(tmp_path), what], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert ("ended well" in done.stdout) == (status == 0)
    if status:
        assert "most recent call first" in done.stderr
        if what == "write":
            assert "in stuck" in done.stderr


def test_the_server_itself_is_watched(tmp_path: Path) -> None:
    """An endpoint blocks the real server's event loop: the process ends."""
    write_config(tmp_path / "config")
    program = """
import sys, threading, urllib.request
from trainyard_lite import __main__, _rpc
@_rpc.endpoint("debug.hang", auth=False, fast=True)
def hang(call: _rpc.Call, request: _rpc.OpenRequest):
    threading.Event().wait()
def ask():
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/debug.hang", b"")
        except OSError:
            pass
threading.Thread(target=ask, daemon=True).start()
sys.exit(__main__.main(sys.argv[2:]))
"""
    process = Process(tmp_path)
    arguments = ["serve", "--host", "127.0.0.1", "--config-dir", str(tmp_path / "config"), "--data-dir"]
    arguments += [str(tmp_path / "data"), "--api-port", str(process.api), "--web-port", str(process.web)]
    arguments += ["--files-port", str(process.files)]
    done = subprocess.run(
        [sys.executable, "-c", program, str(process.api), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"TRAINYARD_LITE_WATCHDOG_SEC": "2"},
    )
    assert done.returncode == 70, done.stderr
    assert "in hang" in done.stderr
