#!/usr/bin/env python3
"""The pruner of a node: keeps its dataset caches within their limits, by bytes and least recent use.

Three caches, each optional:

``dvc``
    DVC's ``cache.dir``: ``files/md5/xx/...``, and ``xx/...`` of DVC 2.  An object goes alone; a ``.dir`` object, which
    lists the files of a folder, speaks for its files: they count as used when it was.
``clearml``
    What the client keeps (``CLEARML_CLIENT_CACHE``): ``trees/<key>`` goes as a whole, ``making/`` loses what nobody
    makes any more.
``sdk``
    What ClearML's SDK keeps: each entry of ``storage_manager/<context>``.

What never goes
---------------
* a tree with a lease (somebody holds ``trees/<key>/lease``) or with a ``pinned`` beside it;
* what the links of a living tree point to in DVC's cache;
* what is pinned by ``CLEARML_PRUNER_PINS``;
* an entry of the SDK whose lock somebody holds;
* what was used since the oldest running container that mounts the cache was started, lease or not: by its access
  time, less a day because ``relatime`` writes it down once a day, or its change time.  ``dvc checkout`` and
  ``dvc pull`` read a folder's ``.dir`` object and only look at its files, so these are asked for through it.  On a
  disk mounted ``noatime`` nobody can tell, so while such a container runs nothing of ``dvc`` and ``sdk`` goes;
* what was used in the last ``CLEARML_PRUNER_KEEP_SECONDS``;
* an object with hard links elsewhere: removing it would free nothing.

How it goes
-----------
A folder is renamed first (trees into ``making/``, the SDK's entries into ``.trainyard-pruner/``) and then deleted, so
nobody ever sees half of it under its name.  Objects of DVC are set aside, then it is looked once more whether a tree
was made or a file read meanwhile; what was comes back, the rest is deleted.  After a kill -9 the next pass puts back
what was set aside and deletes what was renamed.  No link is followed.  One pruner at a time: it holds
``.trainyard-pruner/lock`` in each cache.

Environment
-----------
``CLEARML_PRUNER_NODE`` (no default)
    The node, for the log.
``CLEARML_PRUNER_INTERVAL`` (900)
    Seconds between two passes.
``CLEARML_PRUNER_DVC_CACHE``, ``CLEARML_PRUNER_CLEARML_CACHE``, ``CLEARML_PRUNER_SDK_CACHE`` (empty)
    The caches, by their paths on the node; the pruner's container has them at the same paths.
``CLEARML_PRUNER_DVC_MAX``, ``CLEARML_PRUNER_CLEARML_MAX``, ``CLEARML_PRUNER_SDK_MAX`` (0)
    How large each may be, such as ``500g`` (1024-based); 0: no limit.
``CLEARML_PRUNER_MIN_FREE`` (0)
    How much must stay free on the disks of the caches: a size, or a part of the disk such as ``10%``; 0: nothing.
``CLEARML_PRUNER_KEEP_SECONDS`` (86400)
    What was used in that time stays.
``CLEARML_PRUNER_PINS`` (empty)
    What stays for ever, by spaces: ``clearml-<id of a dataset>``, ``dvc-<md5 of a file or a folder>``.
``CLEARML_PRUNER_STATE`` (/var/lib/trainyard-pruner)
    Folder of ``pruner.json`` (counters) and ``pruner.prom`` (metrics).
``CLEARML_PRUNER_DRY_RUN`` (0)
    1 tells what would go, and removes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import heapq
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from watchdog import Watchdog

DAY = 86400
NAMES = ("dvc", "clearml", "sdk")
OWN = ".trainyard-pruner"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DVC_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?\Z")
DVC_LISTED = re.compile(rb'"md5": ?"([0-9a-f]{32})(?:\.dir)?"')
ASIDE = re.compile(r"((?:files:md5:)?[0-9a-f]{2}):([^/]+)\Z")
TWO = re.compile(r"[0-9a-f]{2}\Z")
SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
PIN = re.compile(r"(clearml|dvc)-[0-9a-f]{32}\Z")
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
BATCH = 200
COUNTERS = {
    "freed_bytes_total": "Bytes that were freed, by cache.",
    "removed_total": "Objects, trees and entries that were removed, by cache.",
}


class PrunerError(Exception):
    """Something did not work, said in words for the log."""


class Stopped(BaseException):
    """SIGTERM came; not an Exception, so that nothing takes it for a failure of its own."""


def read_size(text: str) -> int:
    """Give a size such as ``1.5t`` in bytes.

    Raises:
        ValueError: if it is none.
    """
    match = SIZE.match(text.strip())
    if not match:
        raise ValueError(text)
    return int(float(match[1]) * UNITS[match[2].lower()])


def show_size(size: float) -> str:
    """Give bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_time(moment: float) -> str:
    """Give seconds since 1970 as UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True)
class Settings:
    """What the environment says; see the top of this file."""

    node: str
    caches: Mapping[str, Path] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    interval: int = 900
    min_free: int = 0
    min_free_percent: float = 0
    keep_seconds: int = DAY
    pins: frozenset[str] = frozenset()
    state: Path = Path("/var/lib/trainyard-pruner")
    dry_run: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read the environment.

        Raises:
            PrunerError: for a value that makes no sense.
        """
        given = {key: value.strip() for key, value in environment.items() if value.strip()}

        def text(name: str, default: str = "") -> str:
            return given.get(f"CLEARML_PRUNER_{name}", default)

        def wrong(name: str, form: str) -> PrunerError:
            return PrunerError(f"CLEARML_PRUNER_{name} is {text(name)!r}; write {form}")

        def number(name: str, default: int, low: int) -> int:
            value = text(name, str(default))
            if not (value.isascii() and value.isdigit() and int(value) >= low):
                raise wrong(name, f"a whole number from {low}")
            return int(value)

        def size(name: str, form: str = "a size such as 500g, or 0") -> int:
            try:
                return read_size(text(name, "0"))
            except ValueError:
                raise wrong(name, form) from None

        if not text("NODE"):
            raise PrunerError("CLEARML_PRUNER_NODE is not set; write the node's name")
        caches = {name: Path(text(f"{name.upper()}_CACHE")) for name in NAMES if text(f"{name.upper()}_CACHE")}
        for name, path in caches.items():
            others = [other for known, other in caches.items() if known != name]
            if not path.is_absolute() or path == Path("/") or any(o == path or o in path.parents for o in others):
                raise wrong(f"{name.upper()}_CACHE", "an absolute path of a folder that lies in no other cache")
        percent, min_free = 0.0, text("MIN_FREE", "0")
        if min_free.endswith("%"):
            with contextlib.suppress(ValueError):
                percent = float(min_free[:-1])
            if not 0 < percent < 100:
                raise wrong("MIN_FREE", "a size such as 50g, or a part of the disk such as 10%")
        pins = frozenset(text("PINS").split())
        bad = [pin for pin in pins if not PIN.match(pin)]
        if bad:
            raise PrunerError(
                f"CLEARML_PRUNER_PINS has {min(bad)!r}; write clearml-<id of a dataset> or dvc-<md5>, each with its 32 "
                "hexadecimal digits"
            )
        if text("DRY_RUN", "0") not in ("0", "1"):
            raise wrong("DRY_RUN", "0 or 1")
        return cls(
            node=text("NODE"),
            caches=caches,
            limits={name: size(f"{name.upper()}_MAX") for name in caches},
            interval=number("INTERVAL", cls.interval, 1),
            min_free=0 if percent else size("MIN_FREE", "a size such as 50g, or a part of the disk such as 10%"),
            min_free_percent=percent,
            keep_seconds=number("KEEP_SECONDS", cls.keep_seconds, 0),
            pins=pins,
            state=Path(text("STATE", str(cls.state))),
            dry_run=text("DRY_RUN", "0") == "1",
        )


# ---------------------------------------------------------------- files


def open_folder(parent: int, *names: str) -> int:
    """Open a folder below an open one, following no link on the way; the caller closes it.

    Raises:
        OSError: one of them is missing, or is no folder.
    """
    current = os.dup(parent)
    for name in names:
        try:
            below = os.open(name, FOLDER, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


@contextlib.contextmanager
def folder(parent: int, *names: str) -> Iterator[int]:
    """Open a folder for a while; see ``open_folder``."""
    opened = open_folder(parent, *names)
    try:
        yield opened
    finally:
        os.close(opened)


def listed(opened: int) -> list[os.DirEntry[str]]:
    """List an open folder; a folder that goes meanwhile is empty."""
    try:
        with os.scandir(opened) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def look(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Give the facts of an entry itself, no link followed; None when it is gone."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_folder(parent: int, name: str, mode: int = 0o2775) -> None:
    """Make a folder of the group, unless it is there."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return
    with folder(parent, name) as made:
        os.fchmod(made, mode)  # whatever the umask says


def delete(parent: int, name: str) -> None:
    """Delete a file or a whole folder, following no link; what is gone already is fine.

    Raises:
        OSError: something could not be deleted.
    """
    failed: list[OSError] = []

    def note(_call: object, _path: object, about: Any) -> None:
        if not isinstance(about[1], FileNotFoundError):
            failed.append(about[1])

    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(name, onerror=note, dir_fd=parent)
    if failed:
        raise failed[0]


@contextlib.contextmanager
def locked(parent: int, name: str, create: bool = False) -> Iterator[int | None]:
    """Hold a lock file exclusively for a while; gives its handle, -1 without one to lock, None if somebody has it.

    Opened for writing, because NFS gives exclusive locks to writers only.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        handle = os.open(name, flags, 0o664, dir_fd=parent)
    except FileNotFoundError:
        yield -1
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            yield None
            return
        yield handle
    finally:
        os.close(handle)


@dataclass
class Measured:
    """What a folder holds."""

    bytes: int = 0
    used: float = 0
    changed: float = 0
    links: list[str] = field(default_factory=list)

    def add(self, facts: os.stat_result) -> None:
        """Count a file; of one with several names, its part."""
        self.bytes += facts.st_blocks * 512 // max(1, facts.st_nlink if stat.S_ISREG(facts.st_mode) else 1)
        self.changed = max(self.changed, facts.st_ctime)
        if stat.S_ISREG(facts.st_mode):  # reading a folder's list, as this does, is no use of it
            self.used = max(self.used, facts.st_atime, facts.st_mtime)


def measure(opened: int, path: str, measured: Measured) -> Measured:
    """Count a folder with all below it, and note where its links lead; ``path`` is what it is called."""
    for entry in listed(opened):
        facts = look(entry)
        if facts is None:
            continue
        measured.add(facts)
        if stat.S_ISLNK(facts.st_mode):
            with contextlib.suppress(OSError):
                measured.links.append(os.path.normpath(os.path.join(path, os.readlink(entry.name, dir_fd=opened))))  # noqa: PTH118
        elif stat.S_ISDIR(facts.st_mode):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), folder(opened, entry.name) as below:
                measure(below, f"{path}/{entry.name}", measured)
    return measured


# ---------------------------------------------------------------- containers


@dataclass(frozen=True)
class Container:
    """A running container, as far as the pruner cares."""

    name: str
    started: float
    mounts: tuple[str, ...]


def docker(*arguments: str, accept: tuple[str, ...] = ()) -> str:
    """Run the Docker client and give what it printed.

    Raises:
        PrunerError: if it fails, unless its message contains one of ``accept``.
    """
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PrunerError(f"docker {arguments[0]}: {error}") from error
    if done.returncode != 0 and not any(words in done.stderr for words in accept):
        raise PrunerError(f"docker {arguments[0]}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout


def containers() -> list[Container]:
    """List the running containers: experiments (label clearml-parent-worker-id) and whatever people run.

    Not the platform's own: an agent mounts the folder of the SDK's cache only to hand it on.
    """
    ids = docker("ps", "--quiet", "--no-trunc").split()
    if not ids:
        return []
    printed = docker("inspect", "--type", "container", "--format", "{{json .}}", *ids, accept=("No such",))
    found = []
    for line in printed.splitlines():
        item = json.loads(line)
        labels = item["Config"]["Labels"] or {}
        if any(label in labels for label in ("trainyard.worker", "trainyard.reaper", "trainyard.pruner")):
            continue
        started = datetime.fromisoformat(item["State"]["StartedAt"]).timestamp()
        sources = tuple(mount["Source"] for mount in item.get("Mounts") or () if mount.get("Source"))
        found.append(Container(item["Name"].removeprefix("/"), started, sources))
    return found


def holds(container: Container, cache: Path) -> bool:
    """Tell whether a container mounts a cache, a part of it, or a folder above it."""
    for source in map(Path, container.mounts):
        if source == Path("/"):  # looks at the whole node, as monitoring does
            continue
        if source == cache or source in cache.parents or cache in source.parents:
            return True
    return False


# ---------------------------------------------------------------- what there is


@dataclass(slots=True, eq=False)
class Item:
    """What goes as a whole.

    Attributes:
        cache: in which cache.
        path: its path below the cache's root.
        bytes: what it takes on the disk.
        used: when it was last used.
        keep: why it must stay; empty: it may go.
        sign: what tells whether it was touched since.
        links: a tree's objects of DVC; a .dir object's files.
        linked: in how many living trees.
    """

    cache: str
    path: tuple[str, ...]
    bytes: int
    used: float
    keep: str = ""
    sign: tuple[int, int, int] = (0, 0, 0)
    links: list[Item] = field(default_factory=list)
    linked: int = 0


def sign(facts: os.stat_result) -> tuple[int, int, int]:
    """Give what tells whether somebody touched it; a rename alone leaves it the same."""
    return (facts.st_ino, facts.st_atime_ns if stat.S_ISREG(facts.st_mode) else 0, facts.st_mtime_ns)


@dataclass
class Cache:
    """A cache while a pass looks at it."""

    name: str
    root: Path
    handle: int
    guard: Container | None = None
    blind: bool = False
    items: list[Item] = field(default_factory=list)
    bytes: int = 0
    limit: int = 0
    device: int = 0


class Pruner:
    """Passes over a node's caches."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counters: dict[str, int] = self._remember()
        self.last_success = 0.0
        self.caches: dict[str, Cache] = {}
        self.objects: dict[str, Item] = {}
        self.listings: list[Item] = []
        self.known: set[str] = set()
        self.blocked: set[str] = set()
        self.missing: dict[str, float] = {}
        self.failures = 0
        self._told: dict[str, str] = {}
        self._acting = self._ending = False
        self._watchdog = Watchdog(patience(settings), "the pruner")

    # Passes

    def run(self) -> None:
        """Make passes until SIGTERM."""
        dry = ", dry run" if self.settings.dry_run else ""
        self._say(f"pruner of node {self.settings.node}: a pass every {self.settings.interval} s{dry}")
        self._watchdog.start()
        while True:
            self.run_pass()
            time.sleep(self.settings.interval)

    def run_pass(self) -> bool:
        """Bring every cache within its limits; answers whether all worked, also when not all could be freed."""
        begun, self.failures = time.time(), 0
        self._watchdog.beat()
        self.caches, self.objects, self.known, self.missing, self.blocked = {}, {}, set(), {}, set()
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack)
                if self.caches:
                    self._guard()
                    for name, step in (("clearml", self._clean_making), ("dvc", self._put_back), ("sdk", self._sweep)):
                        if name in self.caches:
                            self._try(step, self.caches[name])
                    for name, scan in (("dvc", self._scan_dvc), ("clearml", self._scan_trees), ("sdk", self._scan_sdk)):
                        before = self.failures
                        if name in self.caches:
                            self._try(scan, self.caches[name])
                        # What cannot be seen whole is left alone; what a tree's links need only the trees tell.
                        if self.failures > before or (name not in self.caches and name in self.settings.caches):
                            self.blocked.update((name, "dvc") if name == "clearml" else (name,))
                    self._prune()
        except Exception as error:  # whatever it is, the next pass must come
            self._fail(f"{type(error).__name__}: {error}")
        if not self.failures:
            self.last_success = time.time()
        try:
            write(self.settings.state / "pruner.json", json.dumps(self.counters, indent=1) + "\n")
            write(self.settings.state / "pruner.prom", self.metrics(begun))
        except OSError as error:
            self._fail(f"cannot write into {self.settings.state}: {error}")
        return not self.failures

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """End: at once, or after what is under way."""
        self._ending = True
        if not self._acting:
            raise Stopped

    @contextlib.contextmanager
    def _action(self) -> Iterator[None]:
        self._watchdog.beat()
        self._acting = True
        try:
            yield
        finally:
            self._acting = False
            if self._ending:
                raise Stopped

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    def _fail(self, text: str) -> None:
        self.failures += 1
        self._count("errors_total", 1)
        self._say(text)

    def _try(self, step: Callable[..., object], *arguments: object) -> None:
        self._watchdog.beat()
        try:
            step(*arguments)
        except OSError as error:
            self._fail(f"{error.strerror}: {error.filename or arguments}")

    def _count(self, counter: str, by: int) -> None:
        self.counters[counter] = self.counters.get(counter, 0) + by

    def _remember(self) -> dict[str, int]:
        path = self.settings.state / "pruner.json"
        try:
            return {str(key): int(value) for key, value in json.loads(path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            self._say(f"{path}: cannot be read ({error}); counters begin at 0")
            return {}

    def _open(self, stack: contextlib.ExitStack) -> None:
        for name, root in self.settings.caches.items():
            try:
                handle = os.open(root, FOLDER)
            except FileNotFoundError:
                if name != "sdk":  # that one appears with the first experiment
                    self._fail(f"{root} is not there: is its disk mounted?")
                continue
            stack.callback(os.close, handle)
            # Nobody else's: what is set aside there comes back.
            make_folder(handle, OWN, 0o700)
            own = open_folder(handle, OWN)
            stack.callback(os.close, own)
            if stack.enter_context(locked(own, "lock", create=True)) is None:
                self._say(f"{root}: another pruner is at work")
                continue
            blind = bool(os.fstatvfs(handle).f_flag & os.ST_NOATIME)
            limit = self.settings.limits.get(name, 0)
            self.caches[name] = Cache(name, root, handle, blind=blind, limit=limit, device=os.fstat(handle).st_dev)

    def _guard(self) -> None:
        """Find the oldest running container of each cache.  Without Docker's word nothing may go."""
        try:
            running = sorted(containers(), key=lambda container: container.started)
        except PrunerError as error:
            self._fail(f"nothing is removed: {error}")
            self.blocked.update(NAMES)
            return
        for cache in self.caches.values():
            cache.guard = next((container for container in running if holds(container, cache.root)), None)

    def _keep(self, cache: Cache, used: float, changed: float) -> str:
        """Tell why something without a lease must stay, or an empty text."""
        guard = cache.guard
        if guard and cache.blind and cache.name != "clearml":
            return f"the container {guard.name} runs, and the disk is mounted noatime"
        if guard and (used >= guard.started - DAY or changed >= guard.started):
            return f"used since the container {guard.name} runs"
        if time.time() - max(used, 0) < self.settings.keep_seconds:
            return f"used in the last {self.settings.keep_seconds} s"
        return ""

    # The client's trees

    def _makers(self, cache: Cache) -> set[str]:
        """Give the keys of the trees that somebody makes now."""
        found = set()
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, "making") as making:
            for entry in listed(making):
                if entry.name.endswith(".lock"):
                    with locked(making, entry.name) as lock:
                        if lock is None:
                            found.add(entry.name.removesuffix(".lock"))
        return found

    def _clean_making(self, cache: Cache) -> None:
        """Delete what nobody makes any more, and what an earlier pass renamed."""
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, "making") as making:
            names = {entry.name for entry in listed(making)}
            for name in sorted(name for name in names if not name.endswith(".lock")):
                parts = name.split(".")
                keys = {".".join(parts[:count]) for count in range(1, len(parts))}
                locks = [] if ".pruned-" in name else [f"{key}.lock" for key in keys if f"{key}.lock" in names]
                with contextlib.ExitStack() as stack:
                    if None in [stack.enter_context(locked(making, lock)) for lock in locks]:
                        continue
                    if self.settings.dry_run:
                        self._say(f"would remove the rubbish {cache.root}/making/{name}: nobody makes it any more")
                        continue
                    with self._action():
                        delete(making, name)
                        self._say(f"removed the rubbish {cache.root}/making/{name}: nobody makes it any more")

    def _scan_tree(self, trees: int, key: str, cache: Cache) -> Item | None:
        measured, beside = Measured(), Measured()
        try:
            with folder(trees, key) as tree:
                facts = {entry.name: seen for entry in listed(tree) if (seen := look(entry))}
                for name, seen in facts.items():
                    beside.add(seen)
                    if stat.S_ISDIR(seen.st_mode):
                        with folder(tree, name) as below:
                            measure(below, f"{cache.root}/trees/{key}/{name}", measured)
                with locked(tree, "lease") as lease:
                    leased = lease is None
        except (FileNotFoundError, NotADirectoryError):
            return None
        touched, made = facts.get("used"), facts.get("tree.json")
        used = touched.st_mtime if touched else made.st_mtime if made else beside.changed
        item = Item("clearml", ("trees", key), measured.bytes + beside.bytes, max(used, measured.used))
        if leased:
            item.keep = "a process holds its lease"
        elif "pinned" in facts or any(key == pin or key.startswith(f"{pin}-") for pin in self.settings.pins):
            item.keep = "pinned"
        else:
            item.keep = self._keep(cache, item.used, used)
        item.sign = sign(touched) if touched else (0, 0, 0)
        dvc = self.caches.get("dvc")
        if dvc:
            start = f"{dvc.root}/"
            found = {self.objects.get(link.removeprefix(start)) for link in measured.links if link.startswith(start)}
            item.links = [linked for linked in found if linked]
        return item

    def _scan_trees(self, cache: Cache) -> None:
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, "trees") as trees:
            for entry in listed(trees):
                item = self._scan_tree(trees, entry.name, cache)
                if item is None:
                    self._say(f"{cache.root}/trees/{entry.name} is no folder; left alone")
                    continue
                self.known.add(entry.name)
                cache.items.append(item)
                for linked in item.links:
                    linked.linked += 1
                    linked.used = max(linked.used, item.used)
        for item in cache.items:
            for linked in item.links:
                # Whoever reads a file that only this tree has reads it through this tree.
                if linked.linked == 1:
                    item.used = max(item.used, linked.used)
                    item.keep = item.keep or linked.keep
        if "dvc" in self.caches:
            busy = sorted(key for key in self._makers(cache) if not key.startswith("clearml-"))
            for item in self.caches["dvc"].items if busy else ():
                item.keep = item.keep or f"{busy[0]} is being made, and may link to it"

    # DVC's objects

    def _scan_dvc(self, cache: Cache) -> None:
        folders: list[Item] = []
        for layout in (("files", "md5"), ()):
            try:
                opened = open_folder(cache.handle, *layout)
            except FileNotFoundError:
                continue
            try:
                for entry in listed(opened):
                    if TWO.match(entry.name):
                        self._try(self._scan_two, cache, opened, (*layout, entry.name), folders)
            finally:
                os.close(opened)
        self.listings = folders
        for item in folders:
            self._read_listing(cache, item)
        for item in folders:
            # A folder that was checked out is in use with all its files, read or not.
            for file in item.links:
                file.used = max(file.used, item.used)
                file.keep = file.keep or item.keep
        for pin in self.settings.pins:
            kind, _, md5 = pin.partition("-")
            for item in self._by_md5(md5) if kind == "dvc" else ():
                for pinned in (item, *item.links):
                    pinned.keep = "pinned"

    def _scan_two(self, cache: Cache, parent: int, place: tuple[str, ...], folders: list[Item]) -> None:
        with folder(parent, place[-1]) as opened:
            for entry in listed(opened):
                facts = look(entry)
                if facts is None:
                    continue
                path = (*place, entry.name)
                measured = Measured()
                measured.add(facts)
                if stat.S_ISDIR(facts.st_mode):
                    with folder(opened, entry.name) as below:
                        measure(below, "", measured)
                item = Item("dvc", path, measured.bytes, max(measured.used, 0), sign=sign(facts))
                regular = stat.S_ISREG(facts.st_mode)
                # Writing an object is a use, a change of its mode is none.
                item.keep = self._keep(cache, item.used or facts.st_mtime, facts.st_ctime)
                if regular and facts.st_nlink > 1:
                    item.keep = item.keep or "it has hard links elsewhere"
                if not DVC_OBJECT.match(entry.name) and time.time() - max(facts.st_ctime, facts.st_mtime) < DAY:
                    item.keep = item.keep or "DVC may still write it"
                if stat.S_ISLNK(facts.st_mode):
                    # DVC 3 leaves links to its own objects in the layout of DVC 2.
                    with contextlib.suppress(FileNotFoundError):
                        os.stat(entry.name, dir_fd=opened)
                        item.keep = item.keep or "a link to another object"
                cache.items.append(item)
                self.objects["/".join(path)] = item
                if regular and entry.name.endswith(".dir"):
                    folders.append(item)

    def _by_md5(self, md5: str) -> Iterator[Item]:
        for prefix in ("files/md5/", ""):
            for suffix in ("", ".dir"):
                item = self.objects.get(f"{prefix}{md5[:2]}/{md5[2:]}{suffix}")
                if item:
                    yield item

    def _read_listing(self, cache: Cache, item: Item) -> None:
        """Read which files a folder has, without leaving a trace that somebody read it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        prefix = "/".join(item.path[:-2])
        try:
            with folder(cache.handle, *item.path[:-1]) as opened:
                try:
                    handle = os.open(item.path[-1], flags | os.O_NOATIME, dir_fd=opened)
                except PermissionError:  # not its owner; then this reading counts as a use, once a day
                    handle = os.open(item.path[-1], flags, dir_fd=opened)
            with os.fdopen(handle, "rb") as file:
                rest = b""
                while chunk := file.read(2**20):
                    text = rest + chunk
                    end = 0
                    for match in DVC_LISTED.finditer(text):
                        end, md5 = match.end(), match[1].decode()
                        found = self.objects.get(f"{prefix}/{md5[:2]}/{md5[2:]}".lstrip("/"))
                        if found:
                            item.links.append(found)
                    rest = text[max(end, len(text) - 64) :]
        except FileNotFoundError:
            return

    def _put_back(self, cache: Cache) -> None:
        """Put back what a pass that was killed had set aside, and delete what it had renamed."""
        if self.settings.dry_run:
            return
        self._sweep(cache)
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, OWN, "aside") as aside:
            count = 0
            for entry in listed(aside):
                match = ASIDE.match(entry.name)
                if match:
                    self._restore(cache, aside, (*match[1].split(":"), match[2]))
                    count += 1
            if count:
                self._say(f"put back {count} objects of {cache.root}: a pass was broken off")

    def _sweep(self, cache: Cache) -> None:
        """Delete what a pass that was killed had renamed."""
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, OWN, "gone") as gone:
            for entry in listed(gone):
                if not self.settings.dry_run:
                    with self._action():
                        delete(gone, entry.name)

    @staticmethod
    def _restore(cache: Cache, aside: int, path: tuple[str, ...]) -> None:
        name = ":".join(path)
        with folder(cache.handle, *path[:-1]) as place, contextlib.suppress(FileExistsError):
            # Not by rename: DVC may have fetched it again.
            os.link(name, path[-1], src_dir_fd=aside, dst_dir_fd=place, follow_symlinks=False)
        os.unlink(name, dir_fd=aside)

    # The SDK's entries

    def _scan_sdk(self, cache: Cache) -> None:
        with contextlib.suppress(FileNotFoundError), folder(cache.handle, "storage_manager") as manager:
            for context in listed(manager):
                with contextlib.suppress(NotADirectoryError), folder(manager, context.name) as opened:
                    entries = listed(opened)
                    for entry in entries:
                        if not (entry.name.startswith(".lock.") and entry.name.endswith(".clearml")):
                            self._scan_entry(cache, opened, context.name, entry, entries)

    def _scan_entry(
        self, cache: Cache, opened: int, context: str, entry: os.DirEntry[str], all_entries: list[os.DirEntry[str]]
    ) -> None:
        facts = look(entry)
        if facts is None:
            return
        measured = Measured()
        measured.add(facts)
        if stat.S_ISDIR(facts.st_mode):
            with folder(opened, entry.name) as below:
                measure(below, "", measured)
        # The SDK touches what it opens.
        used = max(measured.used, facts.st_mtime)
        item = Item("sdk", ("storage_manager", context, entry.name), measured.bytes, used, sign=sign(facts))
        if f"clearml-{entry.name[3:35]}" in self.settings.pins and entry.name.startswith("ds_"):
            item.keep = "pinned"
        for other in all_entries:
            if other.name.startswith(".lock.") and other.name.endswith(f".{entry.name}.clearml"):
                with locked(opened, other.name) as lock:
                    if lock is None:
                        item.keep = "a process holds its lock"
        item.keep = item.keep or self._keep(cache, used, measured.changed)
        cache.items.append(item)

    # What goes

    def _missing(self) -> dict[str, float]:
        """Tell how many bytes must go: by cache, and by disk."""
        missing: dict[str, float] = {}
        for name, cache in self.caches.items():
            cache.bytes = sum(item.bytes for item in cache.items)
            missing[name] = cache.bytes - cache.limit if cache.limit else 0
            status = os.fstatvfs(cache.handle)
            wanted = self.settings.min_free or status.f_blocks * status.f_frsize * self.settings.min_free_percent / 100
            missing[f"disk {cache.device}"] = wanted - status.f_bavail * status.f_frsize
        return missing

    def _wanted(self, name: str) -> bool:
        if name not in self.caches or name in self.blocked:
            return False
        cache = self.caches[name]
        return self.missing[name] > 0 or self.missing[f"disk {cache.device}"] > 0

    def _account(self, item: Item, freed: int) -> None:
        cache = self.caches[item.cache]
        self.missing[item.cache] -= freed
        self.missing[f"disk {cache.device}"] -= freed

    def _prune(self) -> None:
        self.missing = self._missing()
        heap: list[tuple[float, int, Item]] = []
        number = 0

        def add(item: Item) -> None:
            nonlocal number
            number += 1
            heapq.heappush(heap, (item.used, number, item))

        for cache in self.caches.values():
            for item in cache.items:
                if not item.keep and not item.linked and any(map(self._wanted, self.caches)):
                    add(item)
        removed: list[Item] = []
        batch: list[Item] = []
        while heap or batch:
            if not heap or len(batch) >= BATCH:
                removed += self._remove_objects(batch)
                batch = []
                continue
            if not any(map(self._wanted, self.caches)):
                heap = []
                continue
            item = heapq.heappop(heap)[2]
            if item.cache == "dvc":
                if self._wanted("dvc"):
                    batch.append(item)
                    self._account(item, item.bytes)
            elif self._wanted(item.cache) or (self._wanted("dvc") and self._frees(item)):
                remove = self._remove_tree if item.cache == "clearml" else self._remove_entry
                before = self.failures
                self._try(remove, item)
                if item.keep or self.failures > before:
                    continue
                removed.append(item)
                self._account(item, item.bytes)
                for linked in item.links:
                    linked.linked -= 1
                    if not linked.linked and not linked.keep:
                        add(linked)
        self._tell(removed)

    @staticmethod
    def _frees(tree: Item) -> bool:
        return any(not linked.keep and linked.linked == 1 for linked in tree.links)

    def _remove_tree(self, item: Item) -> None:
        """Remove a tree, unless somebody takes it at the last moment."""
        cache, key = self.caches["clearml"], item.path[1]
        if self.settings.dry_run:
            return
        make_folder(cache.handle, "making")
        aside = f"{key}.pruned-{secrets.token_hex(4)}"
        with folder(cache.handle, "making") as making, folder(cache.handle, "trees") as trees, self._action():
            with folder(trees, key) as tree, locked(tree, "lease", create=True) as lease:
                facts = {entry.name: look(entry) for entry in listed(tree)}
                touched = facts.get("used")
                if lease is None or "pinned" in facts or (touched and sign(touched) != item.sign):
                    item.keep = "somebody took it at the last moment"
                    return
                # Under the lock: whoever waits for the lease finds that the tree is not under its name any more.
                os.rename(key, aside, src_dir_fd=trees, dst_dir_fd=making)
                self.known.discard(key)
            delete(making, aside)

    def _remove_entry(self, item: Item) -> None:
        """Remove an entry of the SDK, unless somebody takes it at the last moment."""
        cache, name = self.caches["sdk"], item.path[-1]
        if self.settings.dry_run:
            return
        aside = f"{secrets.token_hex(8)}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._action())
            own = stack.enter_context(folder(cache.handle, OWN))
            make_folder(own, "gone")
            gone = stack.enter_context(folder(own, "gone"))
            place = stack.enter_context(folder(cache.handle, *item.path[:-1]))
            for entry in listed(place):
                if entry.name.startswith(".lock.") and entry.name.endswith(f".{name}.clearml"):
                    held = stack.enter_context(locked(place, entry.name))
                    item.keep = item.keep or ("somebody took it at the last moment" if held is None else "")
            if item.keep:
                return
            os.rename(name, aside, src_dir_fd=place, dst_dir_fd=gone)
            if sign(os.stat(aside, dir_fd=gone, follow_symlinks=False)) != item.sign:
                os.rename(aside, name, src_dir_fd=gone, dst_dir_fd=place)
                item.keep = "somebody took it at the last moment"
                return
            delete(gone, aside)

    def _remove_objects(self, batch: list[Item]) -> list[Item]:
        """Remove objects of DVC; gives those that are gone."""
        if self.settings.dry_run or not batch:
            return batch
        cache, trees = self.caches["dvc"], self.caches.get("clearml")
        # Asked before and after: a tree that is begun in between finds its objects missing for a moment only.
        for key in self._makers(trees) if trees else ():
            for item in batch if not key.startswith("clearml-") else ():
                item.keep = f"{key} is being made, and may link to it"
        with folder(cache.handle, OWN) as own:
            for name in ("aside", "gone"):
                make_folder(own, name)
        with folder(cache.handle, OWN, "aside") as aside, folder(cache.handle, OWN, "gone") as gone, self._action():
            moved = [item for item in batch if not item.keep and self._set_aside(cache, item, aside, gone)]
            self._look_again(aside, moved)
            for item in moved:
                name = ":".join(item.path)
                if item.keep:
                    self._restore(cache, aside, item.path)
                else:
                    delete(aside, name)
            for entry in listed(gone):
                delete(gone, entry.name)
        for item in batch:
            if item.keep:
                self._account(item, -item.bytes)
        return [item for item in batch if not item.keep]

    def _set_aside(self, cache: Cache, item: Item, aside: int, gone: int) -> bool:
        """Rename an object; answers whether it can be put back."""
        try:
            with folder(cache.handle, *item.path[:-1]) as place:
                facts = os.stat(item.path[-1], dir_fd=place, follow_symlinks=False)
                if sign(facts) != item.sign:
                    item.keep = "somebody took it at the last moment"
                    return False
                if stat.S_ISDIR(facts.st_mode):  # what old versions of DVC unpacked: a copy of what is there
                    os.rename(item.path[-1], secrets.token_hex(8), src_dir_fd=place, dst_dir_fd=gone)
                    return False
                os.rename(item.path[-1], ":".join(item.path), src_dir_fd=place, dst_dir_fd=aside)
        except FileNotFoundError:
            return False  # gone by itself
        except OSError as error:
            item.keep = f"it cannot be removed: {error.strerror}"
            self._fail(f"{cache.root}/{'/'.join(item.path)}: {error.strerror}")
            return False
        return True

    def _look_again(self, aside: int, moved: list[Item]) -> None:
        """Mark what somebody took between the first look and the renaming."""
        for item in moved:
            if sign(os.stat(":".join(item.path), dir_fd=aside, follow_symlinks=False)) != item.sign:
                for touched in (item, *item.links):
                    touched.keep = touched.keep or "somebody took it at the last moment"
        dvc, trees = self.caches["dvc"], self.caches.get("clearml")
        if trees:
            taken = [key for key in self._makers(trees) if not key.startswith("clearml-")]
            with contextlib.suppress(FileNotFoundError), folder(trees.handle, "trees") as opened:
                for entry in listed(opened):
                    if entry.name not in self.known:
                        self.known.add(entry.name)
                        tree = self._scan_tree(opened, entry.name, trees)
                        for linked in tree.links if tree else ():
                            linked.keep = f"linked by the new tree {entry.name}"
            for item in moved if taken else ():
                item.keep = item.keep or f"{taken[0]} is being made, and may link to it"
        for item in self.listings:
            if not item.keep:
                with contextlib.suppress(OSError), folder(dvc.handle, *item.path[:-1]) as place:
                    if sign(os.stat(item.path[-1], dir_fd=place, follow_symlinks=False)) != item.sign:
                        for linked in item.links:
                            linked.keep = linked.keep or "its folder was opened at the last moment"

    # What is told

    def _tell(self, removed: list[Item]) -> None:
        would = "would remove" if self.settings.dry_run else "removed"
        for cache in self.caches.values():
            gone = [item for item in removed if item.cache == cache.name]
            freed = sum(item.bytes for item in gone)
            why = self._why(cache)
            if gone and cache.name == "dvc":
                span = f"last used {show_time(gone[0].used)} to {show_time(gone[-1].used)}"
                self._say(f"{would} {len(gone)} objects of {cache.root}, {show_size(freed)}, {span}: {why}")
            for item in gone if cache.name != "dvc" else ():
                where = f"{cache.root}/{'/'.join(item.path)}"
                self._say(f"{would} {where}, {show_size(item.bytes)}, last used {show_time(item.used)}: {why}")
            if not self.settings.dry_run:
                self._count(f'freed_bytes_total{{cache="{cache.name}"}}', freed)
                self._count(f'removed_total{{cache="{cache.name}"}}', len(gone))
            lost = set(map(id, gone))
            cache.items = [item for item in cache.items if id(item) not in lost]
            if self._wanted(cache.name):
                short = max(self.missing[cache.name], self.missing[f"disk {cache.device}"])
                kept: Counter[str] = Counter()
                for item in cache.items:
                    kept[item.keep or ("linked by a living tree" if item.linked else "frees nothing")] += item.bytes
                reasons = "; ".join(f"{show_size(size)} {reason}" for reason, size in kept.most_common(6))
                text = (
                    f"{cache.root}: the limit is not reached, {show_size(short)} too much ({why}); of what is left: "
                    f"{reasons or 'nothing is here that could go'}"
                )
                if self._told.get(cache.name) != text:  # once, not at every pass
                    self._say(text)
                self._told[cache.name] = text
            else:
                self._told.pop(cache.name, None)

    def _why(self, cache: Cache) -> str:
        parts = []
        if cache.limit and cache.bytes > cache.limit:
            parts.append(f"the cache had {show_size(cache.bytes)} and may have {show_size(cache.limit)}")
        if self.settings.min_free or self.settings.min_free_percent:
            free = show_size(self.settings.min_free)
            if self.settings.min_free_percent:
                free = f"{self.settings.min_free_percent:g} %"
            parts.append(f"{free} of its disk must be free")
        if not parts:
            parts.append("its objects must go")
        return ", ".join(parts)

    def metrics(self, begun: float) -> str:
        """Give ``pruner.prom``."""
        lines: list[str] = []

        def gauge(name: str, text: str, values: Iterable[tuple[str, float]]) -> None:
            lines.extend([f"# HELP trainyard_pruner_{name} {text}", f"# TYPE trainyard_pruner_{name} gauge"])
            lines.extend(f"trainyard_pruner_{name}{labels} {value:.3f}" for labels, value in values)

        def each(value: Callable[[Cache], float]) -> list[tuple[str, float]]:
            return [(f'{{cache="{name}"}}', value(cache)) for name, cache in self.caches.items()]

        def kept(cache: Cache) -> float:
            return sum(item.bytes for item in cache.items if item.keep or item.linked)

        def missing(cache: Cache) -> float:
            found = (self.missing.get(cache.name, 0), self.missing.get(f"disk {cache.device}", 0))
            return max(0, *found)

        gauge("cache_bytes", "What the cache has.", each(lambda cache: sum(item.bytes for item in cache.items)))
        gauge("cache_items", "Objects, trees or entries of the cache.", each(lambda cache: len(cache.items)))
        gauge("cache_limit_bytes", "What it may have; 0: no limit.", each(lambda cache: cache.limit))
        gauge("cache_kept_bytes", "Of that, what must stay: in use, young, pinned or linked.", each(kept))
        gauge("cache_over_bytes", "What should have gone and could not.", each(missing))
        gauge("pass_seconds", "Duration of the last pass.", [("", time.time() - begun)])
        gauge("last_pass_timestamp_seconds", "End of the last pass.", [("", time.time())])
        text = "End of the last pass in which nothing failed."
        gauge("last_success_timestamp_seconds", text, [("", self.last_success)])
        gauge("dry_run", "1 if nothing is removed, only told.", [("", float(self.settings.dry_run))])
        for counter, text in COUNTERS.items():
            lines += [f"# HELP trainyard_pruner_{counter} {text}", f"# TYPE trainyard_pruner_{counter} counter"]
            for name in self.settings.caches:
                key = f'{counter}{{cache="{name}"}}'
                lines.append(f"trainyard_pruner_{key} {self.counters.get(key, 0)}")
        lines.append("# HELP trainyard_pruner_errors_total Things that failed.")
        lines.append("# TYPE trainyard_pruner_errors_total counter")
        lines.append(f"trainyard_pruner_errors_total {self.counters.get('errors_total', 0)}")
        return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that nobody reads half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)  # node exporter reads it, as another user
    fresh.replace(path)


def patience(settings: Settings) -> float:
    """Return after how many seconds without progress the pruner is unhealthy, and ends itself."""
    return 5.0 * settings.interval + 3600


def healthy(settings: Settings) -> bool:
    """Tell whether passes come; one over millions of files takes its time."""
    try:
        age = time.time() - (settings.state / "pruner.prom").stat().st_mtime
    except OSError:
        return False
    return age < patience(settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; answers the exit status: 0, 1 for a pass in which something failed, 2 for bad settings."""
    parser = argparse.ArgumentParser(description="The pruner of a Trainyard node; its settings are in its environment.")
    parser.add_argument("--once", action="store_true", help="make one pass, and answer by 0 or 1 whether all worked")
    parser.add_argument("--dry-run", action="store_true", help="tell what would go, and remove nothing")
    parser.add_argument("--healthy", action="store_true", help="answer by 0 or 1 whether passes come")
    args = parser.parse_args(argv)
    try:
        settings = Settings.read({**os.environ, **({"CLEARML_PRUNER_DRY_RUN": "1"} if args.dry_run else {})})
        if args.healthy:
            return 0 if healthy(settings) else 1
        settings.state.mkdir(parents=True, exist_ok=True)
        if shutil.which("docker") is None:
            raise PrunerError("there is no docker on PATH, and without it nobody can tell what is in use")
    except (PrunerError, OSError) as error:
        print(f"pruner: {error}", file=sys.stderr)
        return 2
    pruner = Pruner(settings)
    signal.signal(signal.SIGTERM, pruner.terminate)
    with contextlib.suppress(Stopped, KeyboardInterrupt):
        if args.once:
            return 0 if pruner.run_pass() else 1
        pruner.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
