"""Measure builds of an experiments' image: this repository's Dockerfile beside a plain one of apt and pip.

    .venv/bin/python tests/bench/bench_images.py [--python 3.11] [--suite bookworm] [--groups "core eval"] [--json FILE]

Both start from the same system image and end with the same packages at the same versions, in this order: cold, with
caches that nothing is in; then again with one small package more in the last group, ours with what its caches have
by then, the plain one as Docker builds it without its cache, and, beside the goal, with it.  New locks are resolved
before the clock starts.  Both fetch from the site's mirrors over the same line.  The images are removed, and all
that the builds left in Docker's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_lite import Row, show

sys.path.append(str(Path(__file__).resolve().parents[1] / "perception"))

from perception import ROOT, arguments_of, build, compile_lock, load, pins, run, site_files

# As the layers lie on each other.
ORDER = ("runtime", "torch", "core", "lidar", "eval")
ADDED = "humanize"
APT = "ca-certificates git openssh-client libgl1 libglib2.0-0 libgomp1 libsm6 libxext6 libxrender1 python3 python3-pip"
PLAIN = """\
ARG SYSTEM_IMAGE
FROM ${{SYSTEM_IMAGE}}
SHELL ["/usr/bin/env", "BENCH={ids}", "/bin/sh", "-c"]
RUN --mount=type=secret,id=apt,target=/etc/apt/apt.conf.d/90site --mount=type=secret,id=ca,target=/run/site-ca.pem \\
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends {apt}
RUN --mount=type=bind,source=docker/requirements.txt,target=/mnt/requirements.txt cp /mnt/requirements.txt /
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/site-ca.pem \\
    python3 -m pip install {override}-r /requirements.txt
RUN --mount=type=bind,source=client,target=/mnt cp -r /mnt /client
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/site-ca.pem \\
    python3 -m pip install {override}--no-deps /client
"""


class Checkout:
    """A copy of what images are built from, with cache ids of its own, and a plain Dockerfile beside ours."""

    def __init__(self, folder: Path, python: str, groups: str, ids: str) -> None:
        self.root, self.python, self.groups, self.ids = folder, python, groups, ids
        leave_out = shutil.ignore_patterns("__pycache__", ".*_cache", "build", "dist", "*.egg-info")
        for name in ("docker", "client"):
            shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
        self.ours = folder / "docker" / "perception" / "Dockerfile"
        text, count = re.subn(r"id=trainyard-", f"id={ids}-", self.ours.read_text())
        assert count > 3, "the caches of docker/perception/Dockerfile have other names now"
        # Docker tells of a cache the shell that it was mounted for: by this they are found at the end.
        text, count = re.subn(r'^SHELL \["', f'SHELL ["/usr/bin/env", "BENCH={ids}", "', text, flags=re.MULTILINE)
        assert count > 0, "docker/perception/Dockerfile has another shell now"
        self.ours.write_text(text)
        self.plain = folder / "docker" / "Dockerfile.plain"
        # Python from 3.11 on Debian 12, 3.12 on Ubuntu 24.04, refuses pip without this word; older pips do not know it.
        override = "--break-system-packages " if int(python.split(".")[1]) >= 11 else ""
        self.plain.write_text(PLAIN.format(ids=ids, apt=APT, override=override))
        self.write_requirements()

    def write_requirements(self) -> dict[str, str]:
        """Write the list of the plain Dockerfile, as people do: pins without hashes; give them."""
        docker = self.root / "docker"
        text = (docker / "locks" / f"{self.python}-cpu.txt").read_text()
        found = pins(load(docker / "locks" / "split.py").cut(text, self.groups.split()))
        (docker / "requirements.txt").write_text("".join(f"{name}=={version}\n" for name, version in found.items()))
        return found

    def add(self, package: str) -> None:
        """Add a package to the last group, and resolve the lock again."""
        docker = self.root / "docker"
        with (docker / "groups" / f"{self.groups.split()[-1]}.in").open("a") as file:
            file.write(f"{package}\n")
        compile_lock(self.python, docker / "locks" / f"{self.python}-cpu.txt", self.root)
        assert package in self.write_requirements()


class Builds:
    """Builds with the clock beside them."""

    def __init__(self, site: Path, arguments: dict[str, str], tag: str) -> None:
        self.site, self.arguments, self.tag = site, arguments, tag
        self.made: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}

    def run(self, what: str, dockerfile: Path, name: str, *options: str) -> None:
        """Build once."""
        # Each has a tag of its own, or the one before would stay without any.
        tag = f"{self.tag}-{name}-{sum(map(len, self.times.values()))}"
        begin = time.monotonic()
        build(dockerfile, tag, self.site, self.arguments, *options)
        took = time.monotonic() - begin
        self.made[name] = tag
        self.times.setdefault(what, []).append(took)
        print(f"{what}: {took:.1f} s", flush=True)

    def median(self, what: str) -> float:
        """Give the median of a build's times."""
        return statistics.median(self.times[what])

    def size_mb(self, name: str) -> float:
        """Give an image's size."""
        return int(run("docker", "image", "inspect", "--format", "{{.Size}}", self.made[name])) / 1e6

    def same(self, names: tuple[str, str], wanted: dict[str, str]) -> None:
        """Stop unless both images have all packages at their versions."""
        script = "import importlib.metadata as m, json; print(json.dumps([(d.metadata['Name'], d.version) for d in "
        script += "m.distributions()]))"
        for name in names:
            command = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "python3", self.made[name])
            there = {(key.lower().replace("_", "-").replace(".", "-"), version)
                     for key, version in json.loads(run(*command, "-c", script))}  # fmt: skip
            missing = sorted(set(wanted.items()) - there)
            assert not missing, f"{name} lacks {missing[:5]}"

    def close(self, ids: str) -> None:
        """Remove the images, and what Docker's cache has of them, the last layers first."""

        def docker(*words: str) -> str:
            return subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout

        images = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        docker("image", "rm", "--force", *(tag for tag in images if tag.startswith(self.tag)))
        # --all: what an image shared too. Each record is named, so nobody else's goes.
        before: list[str] = []
        while True:
            records = docker("buildx", "du", "--verbose").split("\n\n")
            ours = [record.split()[1] for record in records if ids in record and record.strip().startswith("ID:")]
            if not ours or ours == before:
                return
            before = ours
            for identity in ours:
                docker("buildx", "prune", "--all", "--force", "--filter", f"id={identity}")


def main() -> int:
    """Build all in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--suite", default="bookworm")
    parser.add_argument("--system", help="the system image of both (default: trainyard/debian:SUITE)")
    parser.add_argument("--groups", default="core eval", help="beside runtime, which is in every image")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the measurements to this file too")
    asked = parser.parse_args()
    groups = " ".join(group for group in ORDER if group in {"runtime", *asked.groups.split()})
    name = f"bench-{secrets.token_hex(4)}"
    folder = Path(tempfile.mkdtemp(prefix="bench-images-"))
    system = asked.system or f"trainyard/debian:{asked.suite}"
    builds = Builds(
        site_files(folder / "site"), arguments_of(asked.python, asked.suite, system, groups), f"trainyard/bench:{name}"
    )
    sizes: dict[str, float] = {}
    try:
        for number in range(asked.runs):
            checkout = Checkout(folder / str(number), asked.python, groups, f"{name}-{number}")
            builds.run("cold, ours", checkout.ours, "ours", "--no-cache")
            builds.run("cold, plain", checkout.plain, "plain", "--no-cache")
            builds.same(("ours", "plain"), checkout.write_requirements())
            sizes = {which: builds.size_mb(which) for which in ("ours", "plain")}
            checkout.add(ADDED)
            builds.run("one package more, ours", checkout.ours, "ours")
            builds.run("one package more, plain", checkout.plain, "plain", "--no-cache")
            builds.same(("ours", "plain"), checkout.write_requirements())
            # Docker's cache has the lines before the list from the build just now: another list stands for the next.
            (checkout.root / "docker" / "requirements.txt").open("a").write("# changed\n")
            builds.run("one package more, plain with Docker's cache", checkout.plain, "plain")
    finally:
        builds.close(name)
        shutil.rmtree(folder)
    cold, plain_cold = builds.median("cold, ours"), builds.median("cold, plain")
    again, plain_again = builds.median("one package more, ours"), builds.median("one package more, plain")
    cached = builds.median("one package more, plain with Docker's cache")
    rows = [
        Row(f"one package more ({ADDED} in {groups.split()[-1]}): rebuild", "", again, "s"),
        Row("  the plain Dockerfile without a cache", "", plain_again, "s"),
        Row("  ratio", ">= 5", plain_again / again, "times", plain_again >= 5 * again),
        Row("  the plain Dockerfile with Docker's cache", "", cached, "s"),
        Row("  ratio", "", cached / again, "times"),
        Row("cold build, empty caches", "", cold, "s"),
        Row("  the plain Dockerfile", "", plain_cold, "s"),
        Row("  ratio", ">= 1", plain_cold / cold, "times", plain_cold >= cold),
        Row("size", "", sizes["ours"], "MB"),
        Row("  the plain Dockerfile", "", sizes["plain"], "MB"),
        Row("  ours in parts of it", "", 100 * sizes["ours"] / sizes["plain"], "%"),
    ]
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    title = f"images of experiments: Python {asked.python}, {groups}, median of {asked.runs} ({machine})"
    show(title, rows, asked.json, {"machine": machine, "times": builds.times, "sizes_mb": sizes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
