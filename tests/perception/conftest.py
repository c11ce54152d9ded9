"""One container without a network for each image of experiments that this machine has, and a table of their sizes.

.venv/bin/pytest tests/perception/test_images.py
PERCEPTION_IMAGES="registry.example.org/perception:3.11-cuda" .venv/bin/pytest tests/perception/test_images.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra  # type: ignore[import-untyped]
from perception import run
from rich.console import Console
from rich.table import Table
from testinfra.host import Host  # type: ignore[import-untyped]

INSIDE = Path(__file__).resolve().parent / "inside"
# Their short tags; dated ones name the same images, or older ones.
DATED = re.compile(r"-\d{8}T\d{4}-[0-9a-f]{12}\Z")
NONE = "no image of experiments: `make up` builds them, PERCEPTION_IMAGES names others"

sizes_key = pytest.StashKey[list[tuple[str, str, float, float]]]()


@dataclass(frozen=True)
class Image:
    """An image and what its labels tell."""

    name: str
    labels: dict[str, str]
    size_mb: float
    environment: dict[str, str]

    @property
    def python(self) -> str:
        return self.labels.get("io.trainyard.python", "")

    @property
    def variant(self) -> str:
        return self.labels.get("io.trainyard.variant", "")

    @property
    def groups(self) -> list[str]:
        return self.labels.get("io.trainyard.groups", "").split()


def images() -> list[str]:
    """Name the images to test."""
    named = os.environ.get("PERCEPTION_IMAGES", "").split()
    if named or not shutil.which("docker"):
        return named
    command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "trainyard/perception"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted(name for name in done.stdout.split() if not DATED.search(name) and not name.endswith("<none>"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "image" in metafunc.fixturenames:
        none = pytest.param("", marks=pytest.mark.skip(reason=NONE), id="none")
        metafunc.parametrize("image", images() or [none], indirect=True, scope="session")


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> str:
    """The name of the image under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def facts(image: str) -> Image:
    """What Docker knows of it."""
    found = json.loads(run("docker", "image", "inspect", image))[0]
    config = found["Config"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    return Image(image, config.get("Labels") or {}, found["Size"] / 1e6, environment)


@pytest.fixture(scope="session")
def cache(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node's DVC cache."""
    return tmp_path_factory.mktemp("dvc_cache")


@pytest.fixture(scope="session")
def host(image: str, cache: Path) -> Iterator[Host]:
    """The image's container: it reaches nothing, so whatever works needs no download."""
    mounts = ["-v", f"{INSIDE}:/mnt/inside:ro", "-v", f"{cache}:/dvc_cache"]
    keep = ["--entrypoint", "sleep", image, "infinity"]
    container = run("docker", "run", "-d", "--rm", "--init", "--network", "none", *mounts, *keep)
    try:
        # As role dataset_cache makes it on a disk without access lists. What is left in it belongs to root.
        run("docker", "exec", container, "sh", "-c", "chgrp $(id -g trainer) /dvc_cache && chmod 2775 /dvc_cache")
        yield testinfra.get_host(f"docker://{container}")
        run("docker", "exec", container, "find", "/dvc_cache", "-mindepth", "1", "-delete")
    finally:
        run("docker", "rm", "-f", container)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(sizes_key, [])
    if not rows:
        return
    table = Table("image", "groups", "size", "budget", title="images of experiments")
    for name, groups, size, budget in rows:
        table.add_row(name, groups, f"{size:,.0f} MB", f"{budget:,.0f} MB")
    with (console := Console(width=120)).capture() as text:
        console.print(table)
    terminalreporter.write(text.get())
