"""Two builds of one thing are one image, and the site's secrets are in neither.

    REPRODUCIBLE_SYSTEM=debian:bookworm-slim .venv/bin/pytest tests/perception/test_reproducible.py

Builds the smallest choice twice without Docker's cache: some minutes, and the site's mirrors.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

import pytest
from perception import EPOCH, ROOT, arguments_of, build, run, site_files

SYSTEM = os.environ.get("REPRODUCIBLE_SYSTEM", "trainyard/debian:bookworm")
SUITE, PYTHON = "bookworm", "3.11"
MARK = f"trace-me-{secrets.token_hex(8)}"
PIECE = 1 << 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Build the image twice; both are gone at the end."""
    if not shutil.which("docker"):
        pytest.skip("no docker")
    if subprocess.run(["docker", "image", "inspect", SYSTEM], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no image {SYSTEM}: `make up` makes it, REPRODUCIBLE_SYSTEM names another")
    site = site_files(tmp_path_factory.mktemp("build") / "site", MARK)
    names = [f"trainyard/reproducible:{MARK[-16:]}-{number}" for number in range(2)]
    try:
        for name in names:
            dockerfile = ROOT / "docker" / "perception" / "Dockerfile"
            build(dockerfile, name, site, arguments_of(PYTHON, SUITE, SYSTEM, "runtime"), "--no-cache")
            run(sys.executable, ROOT / "docker" / "stamp.py", "--epoch", str(EPOCH), name)
        yield names
    finally:
        subprocess.run(["docker", "image", "rm", "--force", *names], capture_output=True, check=False)


def test_same_layers(tags: list[str]) -> None:
    first, second = (json.loads(run("docker", "image", "inspect", tag))[0]["RootFS"]["Layers"] for tag in tags)
    assert len(first) > 3
    assert first == second


def test_same_image(tags: list[str]) -> None:
    first, second = (run("docker", "image", "inspect", "--format", "{{.Id}} {{.Created}}", tag) for tag in tags)
    assert first == second
    assert "2025-01-01T00:00:00Z" in first


def test_no_trace_of_secrets(tags: list[str]) -> None:
    saved = subprocess.Popen(["docker", "save", tags[0]], stdout=subprocess.PIPE)
    assert saved.stdout
    searched, found = 0, set()
    with tarfile.open(fileobj=saved.stdout, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content:
                # Each of these words must not be there; the last tells that the search finds what is there.
                hits, size = search(content, [MARK.encode(), b"/usr/bin/python3"])
                searched += size
                found |= hits
    assert saved.wait() == 0
    assert searched > 100_000_000
    assert MARK.encode() not in found
    assert b"/usr/bin/python3" in found


def search(content: IO[bytes], words: list[bytes]) -> tuple[set[bytes], int]:
    """Return which words a file has, a layer's archive for one, and its length."""
    found: set[bytes] = set()
    size, last, unpack = 0, b"", None
    while piece := content.read(PIECE):
        if size == 0 and piece.startswith(b"\x1f\x8b"):
            # containerd's image store saves layers compressed
            unpack = zlib.decompressobj(wbits=31)
        if unpack:
            piece = unpack.decompress(piece)
        size += len(piece)
        whole = last + piece
        found |= {word for word in words if word in whole}
        last = whole[-max(map(len, words)) :]
    return found, size
