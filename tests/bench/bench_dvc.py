"""Measure DvcApi: the first and the second use of a dataset on a node, against dvc pull and a plain copy.

    python tests/bench/bench_dvc.py [--files 5000] [--megabytes 500] [--rounds 2] [--folder FOLDER] [--json FILE]

The issue's size is ``--files 50000 --megabytes 5000``; the disk needs that four and a half times for each
round, and twice more. Everything happens below one
folder, which is deleted afterwards: the remote is a folder too, so nothing waits for a network, and what DVC and the
client add to a copy is all that is seen. The interpreter needs ``clearml-client[dvc]`` and git. It prints a table of
goals and measurements; it asserts nothing but that the data are right.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench_lite import Row, console, show

USES = 5  # of a dataset that is there, the median is told
FOLDERS = 50

PULL = """
import sys, time
from clearml_client._dvc import DvcApi
begin = time.perf_counter()
dvc = DvcApi()
path = dvc.dvc_path / "data"
dvc.dvc_pull(path)
print(time.perf_counter() - begin)
print("dvc" in sys.modules)
"""


class Site:
    """A data repository with its remote, and nodes with caches of their own."""

    def __init__(self, folder: Path, files: int, size: int) -> None:
        self.folder, self.files = folder, files
        origin = folder / "origin"
        origin.mkdir()
        variables = self.variables(folder / "author")
        self.run(origin, variables, "git", "init", "-q")
        self.dvc(origin, variables, "init", "-q")
        self.dvc(origin, variables, "remote", "add", "-q", "-d", "store", str(folder / "remote"))
        noise = random.Random(1)
        each = size // files
        for number in range(files):
            path = origin / "data" / f"{number % FOLDERS:03}" / f"{number:06}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise.randbytes(each))
        self.bytes = each * files
        self.dvc(origin, variables, "add", "-q", "data")
        self.dvc(origin, variables, "push", "-q")
        self.run(origin, variables, "git", "add", "-A")
        self.run(origin, variables, "git", "commit", "-qm", "data")
        shutil.rmtree(origin / "data")
        shutil.rmtree(folder / "author")
        os.sync()

    @staticmethod
    def variables(node: Path) -> dict[str, str]:
        """Give the environment of a node: DVC's shared cache, the client's, and nothing of this machine's."""
        (node / "system").mkdir(parents=True, exist_ok=True)
        (node / "dvc_cache").mkdir(exist_ok=True)
        config = f"[cache]\n    dir = {node / 'dvc_cache'}\n    shared = group\n    type = symlink\n"
        (node / "system" / "config").write_text(config)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "CLEARML_", "GIT_"))}
        who = {
            f"GIT_{role}_{what}": "bench@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        own = {
            "CLEARML_CLIENT_CACHE": str(node / "clearml_cache"),
            "DVC_SYSTEM_CONFIG_DIR": str(node / "system"),
            "DVC_GLOBAL_CONFIG_DIR": str(node / "global"),
            "DVC_SITE_CACHE_DIR": str(node / "site"),
            "DVC_NO_ANALYTICS": "1",
        }
        return kept | who | own

    @staticmethod
    def run(folder: Path, variables: dict[str, str], *command: str) -> str:
        """Run a command; answers what it printed."""
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def dvc(self, folder: Path, variables: dict[str, str], *arguments: str) -> None:
        """Run DVC."""
        self.run(folder, variables, sys.executable, "-m", "dvc", *arguments)

    def clone(self, name: str) -> Path:
        """Clone the repository, as an agent does for each experiment."""
        self.run(self.folder, self.variables(self.folder / "author"), "git", "clone", "-q", "origin", name)
        return self.folder / name

    def pull_by_dvc(self, clone: Path, variables: dict[str, str]) -> None:
        """Pull with DVC itself."""
        self.dvc(clone, variables, "pull", "-q")

    def pull_by_client(self, clone: Path, variables: dict[str, str]) -> tuple[float, bool]:
        """Pull in a process of its own; answers the seconds of the call alone, and whether DVC was imported."""
        seconds, imported = self.run(clone, variables, sys.executable, "-c", PULL).split()[-2:]
        return float(seconds), imported == "True"

    def check(self, clone: Path) -> None:
        """See that all came."""
        sizes = [path.stat().st_size for path in (clone / "data").rglob("*") if path.is_file()]
        assert (len(sizes), sum(sizes)) == (self.files, self.bytes), f"{len(sizes)} files, {sum(sizes)} bytes arrived"


def timed(action: Callable[[], object]) -> float:
    """Give the seconds of an action, what it wrote being on the disk."""
    os.sync()
    begin = time.perf_counter()
    action()
    os.sync()
    return time.perf_counter() - begin


def used(folder: Path) -> int:
    """Give the bytes that a folder takes on its disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


def bench(site: Site, rounds: int) -> list[Row]:
    """Measure the ways to come by the data."""
    folder = site.folder
    seconds: dict[str, list[float]] = {"dvc": [], "verify": [], "client": []}
    for number in range(rounds):
        # In turns, forth and back, and nothing is deleted meanwhile: a disk is not equally fast all the time.
        for name in seconds if number % 2 == 0 else reversed(seconds):
            variables = site.variables(folder / f"node-{name}-{number}")
            clone = site.clone(f"clone-{name}-{number}")
            if name == "verify":
                site.dvc(clone, variables, "config", "--local", "remote.store.verify", "true")
            pull = site.pull_by_client if name == "client" else site.pull_by_dvc
            seconds[name].append(timed(partial(pull, clone, variables)))
            site.check(clone)
    node = folder / "node-client-0"
    variables = site.variables(node)
    data = folder / "clone-client-0" / "data"
    copy = statistics.median(timed(partial(shutil.copytree, data, folder / f"copy-{n}")) for n in range(rounds))

    plain = site.variables(folder / "node-dvc-0")
    again = timed(partial(site.pull_by_dvc, folder / "clone-dvc-0", plain))
    other = timed(partial(site.pull_by_dvc, site.clone("clone-dvc-again"), plain))

    # Without its remote nothing can be transferred.
    (folder / "remote").rename(folder / "gone")
    before = used(node)
    times, imports, extra = [], 0, 0
    for number in range(USES):
        use = site.clone(f"clone-use-{number}")
        bare = used(use)
        took, imported = site.pull_by_client(use, variables)
        site.check(use)
        times.append(took)
        imports += imported
        extra = max(extra, used(use) - bare + used(node) - before)
    (folder / "gone").rename(folder / "remote")

    start = timed(partial(site.run, folder, variables, sys.executable, "-c", "import clearml_client._dvc"))
    second = statistics.median(times)
    dvc, verified, client = (statistics.median(seconds[name]) for name in ("dvc", "verify", "client"))
    return [
        Row(
            f"first pull, script with DvcApi, verified ({site.bytes / 1e6:,.0f} MB, {site.files:,} files)",
            "",
            client,
            "s",
        ),
        Row("  of it, the start of Python and import of clearml", "", start, "s"),
        Row("  dvc pull, not verified", "", dvc, "s"),
        Row("  dvc pull, verified (remote.verify)", "", verified, "s"),
        Row("  DvcApi / dvc pull, not verified", "<= 1", client / dvc, "times", client <= dvc),
        Row(
            "  DvcApi / dvc pull, verified",
            "<= 1",
            client / verified,
            "times",
            client <= verified,
        ),
        Row(f"second use, DvcApi, new clone: median of {USES}", "", second * 1000, "ms"),
        Row("  plain copy / second use", ">= 50", copy / second, "times", copy / second >= 50),
        Row("  fresh dvc pull / second use", ">= 50", dvc / second, "times", dvc / second >= 50),
        Row("  uses that needed no remote: it was away", f"{USES}", len(times), "uses", len(times) == USES),
        Row("  uses that imported DVC", "0", imports, "uses", imports == 0),
        Row("  extra disk in clone and caches: the link", "<= 4.1", extra / 1000, "kB", extra <= 4096),
        Row("plain copy", "", copy, "s"),
        Row("dvc pull in a new clone, all in the cache", "", other, "s"),
        Row("dvc pull with nothing to do", "", again, "s"),
    ]


def main() -> int:
    """Make the data, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    parser.add_argument("--json", type=Path, help="write the measurements to this file too")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-dvc-", dir=arguments.folder))
    try:
        needed = int((4.5 * arguments.rounds + 2) * arguments.megabytes * 10**6)
        if shutil.disk_usage(folder).free < needed:
            raise SystemExit(f"{folder} needs {needed / 1e9:.0f} GB; name another with --folder")
        console.print(f"making {arguments.files:,} files, {arguments.megabytes:,} MB ...")
        rows = bench(Site(folder, arguments.files, arguments.megabytes * 10**6), arguments.rounds)
    finally:
        shutil.rmtree(folder)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    show(f"DVC ({machine})", rows, arguments.json, {"machine": machine})
    return 0


if __name__ == "__main__":
    sys.exit(main())
