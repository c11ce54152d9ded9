"""What the cache lacks: brought by DVC itself, and seen to have come."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH108, PTH110, PTH116
import contextlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from .._cache import check_space
from .._errors import ClearmlClientError
from ._objects import Entry, hash_is, list_entries, object_path
from ._repository import Output, masked
from ._settings import Config, Site, remotes

__all__ = ["dvc_command", "fetch", "fetch_some"]

# In a queue's console a line every so often; at a terminal the same line, rewritten.
LINE_SECONDS = 10.0
TERMINAL_SECONDS = 0.5
# The project's own cache, where another is used; DVC calls it so too.
LOCAL = "auto-generated-upstream"
# Settings of ``core`` that steer a fetch.
CORE = ("checksum_jobs", "hardlink_lock")
# A file that no folder has: DVC brings a folder's list to look for it.
ONLY_THE_LIST = "out/no such file: only the list comes"
# Runs a command that ends with us: a DVC that goes on after a kill -9 would transfer beside the next one.
CHILD = """
import ctypes, os, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != parent:
    os._exit(9)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def fetch(scratch: Path, output: Output, below: str, site: Site, asked: Optional[str]) -> None:
    """Let DVC bring what the cache lacks of an output, and see that it came.

    Raises:
        ClearmlClientError: if it did not come whole, or would not fit.
    """
    objects = site.objects(output.legacy)
    if asked is None and _is_at_hand(output, site):
        with contextlib.suppress(ClearmlClientError):
            _fetch_from(scratch, output, below, site, LOCAL)
    if asked is not None or _lost(output, below, site, objects) != []:
        _fetch_from(scratch, output, below, site, None if output.imported else site.remote(asked, output))


def _lost(output: Output, below: str, site: Site, objects: Path) -> Optional[List[Entry]]:
    """Return the files that the cache lacks; None where their list is not there."""
    entries = list_entries(output, below, site)
    return [e for e in entries if not os.path.exists(object_path(objects, e.md5))] if entries is not None else None


def _is_at_hand(output: Output, site: Site) -> bool:
    """Tell whether the project's own cache has an output, which nobody may have pushed yet."""
    if site.local_cache is None:
        return False
    objects = site.local_cache if output.legacy else site.local_cache / "files" / "md5"
    return os.path.exists(object_path(objects, output.md5 + (".dir" if output.folder else "")))


def _fetch_from(scratch: Path, output: Output, below: str, site: Site, remote: Optional[str]) -> None:
    objects = site.objects(output.legacy)
    folder = Path(tempfile.mkdtemp(prefix="fetch.", dir=str(scratch)))
    try:
        _write_repository(folder, output, site, remote)
        target = f"out/{below}" if below else "out.dvc"
        progress = _Progress(output, below, site)
        begin = time.time()
        if not _fits(progress, output, site):
            # Another version may have brought most of it: only the list can tell.
            _run_dvc(folder, [ONLY_THE_LIST], remote, site, lambda: None)
            progress.look()
            check_space(site.cache, progress.missing_bytes(), progress.missing_files())
        said = _run_dvc(folder, [target], remote, site, progress.look)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    entries = list_entries(output, below, site)
    if output.imported:
        # DVC verifies what a remote of ours gives, and not what another repository's gives.
        _drop_false(entries or [], objects, output.legacy, begin)
    lost = _lost(output, below, site, objects)
    if lost == []:
        progress.end()
        return
    where = _where(remote, site)
    told = f" DVC said: {said}" if said else ""
    name = f"{output.path}/{below}" if below else output.path
    if lost is None:
        raise ClearmlClientError(
            f"{name} could not be fetched: {where} cannot be reached, or does not hold it whole, or its hash "
            f"does not verify ({output.md5}).{told} Check the remote's address and your access, and dvc push where the "
            "data are"
        )
    some = ", ".join(f"{entry.path or name} ({entry.md5})" for entry in lost[:3])
    raise ClearmlClientError(
        f"{len(lost)} of {len(entries or [])} files of {name} did not come whole, e.g. {some}: {where} cannot be "
        f"reached, does not hold them, or holds something else under their names, whose hash does not verify.{told} "
        "Check the remote's address and your access, and dvc push them where the data are good"
    )


def fetch_some(scratch: Path, output: Output, paths: Sequence[str], site: Site, asked: Optional[str]) -> None:
    """Let DVC bring some files of a folder, and with them the list of all; without paths, the list alone.

    Raises:
        ClearmlClientError: if they did not come.
    """
    at_hand = asked is None and _is_at_hand(output, site)
    remote = LOCAL if at_hand else None if output.imported else site.remote(asked, output)
    folder = Path(tempfile.mkdtemp(prefix="fetch.", dir=str(scratch)))
    try:
        _write_repository(folder, output, site, remote)
        targets = [f"out/{path}" for path in paths] or [ONLY_THE_LIST]
        said = _run_dvc(folder, targets if output.folder else ["out.dvc"], remote, site, lambda: None)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    entries = list_entries(output, "", site)
    wanted = None if entries is None else [entry for entry in entries if not output.folder or entry.path in paths]
    lost = wanted is None or [
        entry for entry in wanted if not os.path.exists(object_path(site.objects(output.legacy), entry.md5))
    ]
    if lost:
        where = _where(remote, site)
        what = "the list of its files" if lost is True else f"{len(lost)} of its files"
        raise ClearmlClientError(
            f"{output.path}: {what} could not be fetched: {where} cannot be reached, or does not hold them, or holds "
            f"something else under their names. DVC said: {said} Check the remote's address and your access"
        )


def _drop_false(entries: Sequence[Entry], objects: Path, legacy: bool, begin: float) -> None:
    """Delete those files from the cache that came just now and are not what their names say."""
    for path, md5 in {object_path(objects, entry.md5): entry.md5 for entry in entries}.items():
        with contextlib.suppress(FileNotFoundError):
            # A second or so is lost by clocks of file systems.
            if os.stat(path).st_ctime >= begin - 2 and not hash_is(Path(path), md5, legacy):
                os.unlink(path)


def _where(remote: Optional[str], site: Site) -> str:
    """Return what an output comes from, in words."""
    if remote == LOCAL:
        return f"the cache {site.local_cache}"
    return f"the remote {remote} ({site.url(remote)})" if remote else "the repository it is imported from"


def _fits(progress: "_Progress", output: Output, site: Site) -> bool:
    """Tell whether there is room even if nothing is there yet.

    Raises:
        ClearmlClientError: if there is not, and it is known what is missing.
    """
    try:
        check_space(site.cache, progress.missing_bytes(), progress.missing_files())
    except ClearmlClientError:
        if progress.known() or not output.folder:
            raise
        return False
    return True


def _write_repository(folder: Path, output: Output, site: Site, remote: Optional[str]) -> None:
    """Make up a repository that tracks one output and has the settings of the real one."""
    # Of its other settings some are folders, and none are for one fetch.
    config: Config = {section: dict(site.own[section]) for section in remotes(site.own).values()}
    own = site.own.get("core", {})
    core = config.setdefault("core", {key: own[key] for key in CORE if key in own})
    core.update({"no_scm": "true", "analytics": "false", "check_update": "false"})
    if remote == LOCAL:
        config[f'remote "{LOCAL}"'] = {"url": str(site.local_cache)}
    if remote is not None:
        core["remote"] = remote
        name = remotes(config).get(remote, f'remote "{remote}"')
        # Without an address of its own DVC takes it from the user's or the system's settings.
        section = config.setdefault(name, {})
        section["verify"] = "true"
    cache = config.setdefault("cache", {})
    cache["dir"] = str(site.cache)
    site.cache.mkdir(parents=True, exist_ok=True)
    if site.cache.stat().st_mode & stat.S_ISGID:
        cache["shared"] = "group"
    (folder / ".dvc").mkdir()
    lines = []
    for title, options in config.items():
        lines.append(f"['{title}']" if '"' in title else f"[{title}]")
        lines += [f"    {option} = {value}" for option, value in options.items()]
    handle = os.open(str(folder / ".dvc" / "config"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines) + "\n")
    out: Dict[str, Any] = {"md5": output.md5 + (".dir" if output.folder else ""), "path": "out"}
    if not output.legacy:
        out["hash"] = "md5"
    if output.size is not None:
        out["size"] = output.size
    if output.files is not None:
        out["nfiles"] = output.files
    # JSON is YAML.
    imported = {} if remote is not None else output.imported
    (folder / "out.dvc").write_text(json.dumps({**imported, "frozen": True, "outs": [out]}) + "\n")


def _run_dvc(folder: Path, targets: Sequence[str], remote: Optional[str], site: Site, look: Callable[[], None]) -> str:
    """Run dvc fetch, and return what it complained about; it ends with this process.

    Raises:
        ClearmlClientError: if there is no DVC.
    """
    command = [*dvc_command(), "fetch", *targets]
    if remote is not None:
        command += ["--remote", remote]
    environment = {
        **os.environ,
        # What it keeps of a repository would be kept for ever, and ours is gone in a moment.
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STUDIO_TOKEN"):
        environment.pop(name, None)
    log = folder / "log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(os.getpid()), *command],
            cwd=str(folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    child.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    look()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    said = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    # Of an import DVC misses a remote that it does not need.
    vain = ("Everything is up to date", "fetched", *(() if remote is not None else ("No remote provided",)))
    complaints = [line for line in said if line and not any(word in line for word in vain)]
    return masked(" ".join(complaints))[-600:]


def dvc_command() -> List[str]:
    """Return how to start DVC.

    Raises:
        ClearmlClientError: if it is not installed.
    """
    if importlib.util.find_spec("dvc") is not None:
        return [sys.executable, "-m", "dvc"]
    program = shutil.which("dvc")
    if program is None:
        raise ClearmlClientError(
            "DVC is not installed, and this path was not pulled on this machine before: pip install "
            "'clearml-client[dvc]', and what its remote needs, e.g. 'dvc[s3]' or 'dvc[ssh]'"
        )
    return [program]


class _Progress:
    """Tells how far a fetch is: a line that is rewritten at a terminal, one now and then in a queue's console."""

    def __init__(self, output: Output, below: str, site: Site) -> None:
        self._output, self._below, self._site = output, below, site
        self._objects = site.objects(output.legacy)
        self._name = f"{output.path}/{below}" if below else output.path
        self._total: Optional[int] = None
        self._left: List[str] = []
        self._begin = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._read()

    def _read(self) -> None:
        entries = list_entries(self._output, self._below, self._site)
        if entries is not None:
            self._total = len(entries)
            self._left = list({object_path(self._objects, entry.md5) for entry in entries})
            self._count()

    def _count(self) -> None:
        self._left = [path for path in self._left if not os.path.exists(path)]

    def known(self) -> bool:
        """Tell whether the list of files is there."""
        return self._total is not None

    def missing_files(self) -> int:
        """Return how many files must come, at most."""
        return len(self._left) if self.known() else (self._output.files or 0)

    def missing_bytes(self) -> int:
        """Return how much must come, taking files as equally large: the list has no sizes."""
        size = self._output.size or 0
        if not self.known() or not self._output.files:
            return size if not self.known() or self._left else 0
        return int(size * min(1.0, len(self._left) / self._output.files))

    def look(self) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._told < (TERMINAL_SECONDS if self._terminal else LINE_SECONDS):
            return
        if self.known():
            self._count()
        else:
            self._read()
        self._say(end="" if self._terminal else "\n")
        # Looking for a million files must not keep the disk busy.
        self._told = time.monotonic() + 5 * (time.monotonic() - now)

    def end(self) -> None:
        """Say that it came."""
        files = self._output.files if not self._below else self._total
        seconds = time.monotonic() - self._begin
        text = f"dvc_pull {self._name}: fetched and verified"
        if files:
            text += f", {files} files"
        if self._output.size and not self._below:
            text += f", {self._output.size / 1e6:,.1f} MB"
        self._print(f"{text}, {seconds:.1f} s", "\n")

    def _say(self, end: str) -> None:
        seconds = time.monotonic() - self._begin
        if self._total is None:
            self._print(f"dvc_pull {self._name}: {seconds:.0f} s", end)
            return
        done = self._total - len(self._left)
        self._print(f"dvc_pull {self._name}: {done:,} of {self._total:,} files, {seconds:.0f} s", end)

    def _print(self, text: str, end: str) -> None:
        start = "\r\x1b[2K" if self._terminal else ""
        print(start + text, end=end, file=sys.stderr, flush=True)
