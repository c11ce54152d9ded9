"""The archive that carries images: what was saved is checked, and a broken one is told."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import bundle
import pytest

DOCKER = """#!/bin/sh
# Stand-in for docker: has one image, pulls none, saves what it is asked for.
case "$1" in
    image) [ "$3" = here:1 ] ;;
    pull) echo "no such host" >&2; exit 1 ;;
    save) shift 2; out=$1; shift; echo "images: $*" >"$out" ;;
esac
"""


@pytest.fixture(autouse=True)
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_what_was_saved_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "out" / "b.tar"
    assert bundle.main(["save", str(archive), "--version", "2.3", "here:1"]) == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["images"] == ["here:1"]
    assert bundle.main(["check", str(archive)]) == 0
    assert json.loads(capsys.readouterr().out) == saved
    assert [path.name for path in archive.parent.iterdir()] == ["b.tar"]


def test_an_image_that_cannot_be_had_leaves_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "b.tar"
    assert bundle.main(["save", str(archive), "--version", "2.3", "here:1", "away:2"]) == 1
    assert "away:2 is not here and cannot be pulled: no such host" in capsys.readouterr().err
    assert not archive.exists()


def test_a_changed_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "b.tar"
    bundle.main(["save", str(archive), "--version", "2.3", "here:1"])
    archive.write_bytes(archive.read_bytes().replace(b"images: here", b"images: evil"))
    assert bundle.main(["check", str(archive)]) == 1
    assert "it was changed or cut off on its way" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"not a tar", b"\0" * 10240])
def test_what_is_no_bundle_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None) -> None:
    archive = tmp_path / "b.tar"
    if content is not None:
        archive.write_bytes(content)
    assert bundle.main(["check", str(archive)]) == 1
    assert "cannot be read as a bundle" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"thesis", b"\0" * 10240])
def test_a_file_of_others_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    archive = tmp_path / "b.tar"
    archive.write_bytes(content)
    assert bundle.main(["save", str(archive), "--version", "2.3", "here:1"]) == 1
    assert f"{archive} is there, and is not a bundle: write another path" in capsys.readouterr().err
    assert archive.read_bytes() == content


def test_an_older_bundle_is_replaced(tmp_path: Path) -> None:
    archive = tmp_path / "b.tar"
    assert bundle.main(["save", str(archive), "--version", "2.2", "here:1"]) == 0
    assert bundle.main(["save", str(archive), "--version", "2.3", "here:1"]) == 0
    assert bundle.check(archive)["version"] == "2.3"
