"""Datasets of a DVC repository behind ``clearml-client data --dvc``: real DVC, real git, a bare origin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clearml_client import ClearmlClientError
from clearml_client.datasets import Store
from clearml_client.datasets.dvc import DvcStore
from test_dvc import FILES, Site, dvc, made, run, site  # noqa: F401 - made and site are fixtures

pytest.importorskip("dvc")


@pytest.fixture
def work(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A clone whose tags go to a bare repository, as people have it."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "CLEARML_", "GIT_"))]:
        monkeypatch.delenv(name)
    for name, value in site.variables.items():
        monkeypatch.setenv(name, value)
    bare = site.home / "origin.git"
    run(site.home, site.variables, "git", "clone", "-q", "--bare", str(site.origin), str(bare))
    run(site.clone, site.variables, "git", "remote", "set-url", "origin", str(bare))
    site.set_remote(str(site.remote))
    return site.clone


def client(folder: Path, *arguments: str, code: int = 0) -> Any:
    """Run the command, and return the JSON that it prints."""
    command = [sys.executable, "-m", "clearml_client", "data", *arguments, "--dvc", ".", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_what_a_repository_has(work: Path) -> None:
    store: Store = DvcStore(work)
    assert [str(version) for version in store.ls()] == ["data/images@v1.0", "data/labels.csv@v1.0"]
    (first,) = store.versions("data/images")
    assert (first.version, first.files, first.bytes, first.comment) == (
        "v1.0",
        20,
        sum(map(len, FILES.values())),
        "one",
    )
    assert store.find("data/images@main").files == 20
    tree = store.tree("data/images@v1.0")
    assert [(row.path, row.files) for row in tree.rows] == [("train", 10), ("val", 10)]
    found = store.tree("data/images@main", glob="n*.bin", files=True)
    assert [row.path for row in found.rows] == ["train/new.bin"]
    page = store.tree("data/images", "train", files=True, page=2, limit=4)
    assert ([row.path for row in page.rows], page.total) == ([f"train/{n}.bin" for n in (4, 5, 6, 7)], 10)
    changes = store.diff("data/images@v1.0", "data/images@main").changes
    assert [(one.kind, one.path) for one in changes] == [("removed", "train/0.bin"), ("added", "train/new.bin")]


def test_looking_fetches_only_the_list(work: Path, site: Site) -> None:  # noqa: F811
    DvcStore(work).tree("data/images@v1.0")
    assert [path.suffix for path in site.cache.rglob("*") if path.is_file()] == [".dir"]


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("data/image", "did you mean data/images?"),
        ("data/images@v9", "has no revision 'v9'; it has"),
        ("../data", "write a path that DVC tracks, below the root"),
        ("data", "data is not tracked by DVC in"),
    ],
)
def test_what_is_not_there(work: Path, reference: str, told: str) -> None:
    with pytest.raises(ClearmlClientError, match=told):
        DvcStore(work).find(reference)


def test_a_download_is_shared_and_verified(work: Path, tmp_path: Path) -> None:
    store = DvcStore(work)
    version = store.find("data/images@v1.0")
    assert not store.is_local(version)
    folder = store.download("data/images@v1.0")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.bin")} == set(FILES)
    assert store.is_local(version)
    assert store.verify("data/images@v1.0") == []
    link = store.place("data/images@v1.0", tmp_path / "link")
    assert link.resolve() == folder.resolve()
    copy = store.place("data/images@v1.0", tmp_path / "copy", copy=True)
    (copy / "train/1.bin").write_bytes(b"else")
    (copy / "more").write_text("")
    (copy / "val/0.bin").unlink()
    told = [(one.path, one.text.partition(" is")[0]) for one in store.verify("data/images@v1.0", copy)]
    assert told == [("more", "not in this version"), ("train/1.bin", "its md5"), ("val/0.bin", "missing")]
    file = store.place("data/labels.csv@v1.0", tmp_path / "labels.csv", copy=True)
    assert file.read_text() == "a,b\n1,2\n"
    with pytest.raises(ClearmlClientError, match="exists: name a path that is free"):
        store.place("data/images@v1.0", copy)


def test_an_upload_is_a_commit_a_tag_and_pushed_files(work: Path, tmp_path: Path) -> None:
    new = tmp_path / "scans"
    new.mkdir()
    (new / "0.bin").write_bytes(b"0" * 64)
    (work / "staged.txt").write_text("somebody's")
    git(work, "add", "staged.txt")
    arguments = ("--tag", "lidar", "--meta", "sensor=top", "--comment", "first scans")
    done = client(work, "upload", str(new), "data/scans", "--version", "1.0.0", *arguments)
    assert (done["name"], done["version"], done["tags"], done["files"]) == ("data/scans", "1.0.0", ["lidar"], 1)
    (work / "data/scans/1.bin").write_bytes(b"1" * 64)
    done = client(work, "upload", "data/scans", "data/scans", "--version", "1.1.0", "--parent", "data/scans@1.0.0")
    assert done["files"] == 2
    assert git(work, "diff", "--cached", "--name-only") == "staged.txt\n"
    # What another clone and machine sees.
    origin = git(work, "remote", "get-url", "origin").strip()
    assert {"data/scans@1.0.0", "data/scans@1.1.0", "data/scans@lidar"} <= set(git(Path(origin), "tag").split())
    elsewhere = DvcStore(origin)
    assert [one.version for one in elsewhere.versions("data/scans")] == ["1.0.0", "1.1.0"]
    assert elsewhere.find("data/scans@lidar").version == "1.0.0"
    assert elsewhere.tree("data/scans@1.0.0").metadata == {"sensor": "top"}
    assert client(work, "lineage", "data/scans@1.1.0")["nodes"][0]["label"] == "data/scans@1.0.0"
    text = elsewhere.lineage("data/scans@1.1.0").text()
    assert text.splitlines()[:2] == ["data/scans@1.0.0", "└─ data/scans@1.1.0 *"]


def test_what_an_upload_refuses(work: Path, site: Site, tmp_path: Path) -> None:  # noqa: F811
    dvc(work, site.variables, "pull", "-q", "data/labels.csv")
    client(work, "upload", "data/labels.csv", "data/labels.csv", "--version", "1.0")
    before = git(work, "rev-parse", "HEAD"), git(work, "tag"), (work / "data/labels.csv").read_bytes()
    (tmp_path / "other.csv").write_text("other")

    def refused(path: str, *more: str) -> str:
        return str(client(work, "upload", path, "data/labels.csv", *more, code=1)["error"])

    assert "exists (data/labels.csv@1.0): versions are never" in refused("data/labels.csv", "--version", "v1.0.0")
    assert "is there already, and" in refused(str(tmp_path / "other.csv"), "--version", "2")
    assert "in a DVC repository git merges" in refused(
        "data/labels.csv", "--version", "2", "--merge", "--parent", "data/labels.csv@1.0"
    )
    assert "does not exist" in refused("nowhere", "--version", "2")
    origin = DvcStore(git(work, "remote", "get-url", "origin").strip())
    with pytest.raises(ClearmlClientError, match="an upload needs a clone"):
        origin.upload(tmp_path / "other.csv", "data/x", version="1")
    assert "is a commit of" in client(work, "delete", "data/labels.csv@1.0", "--yes", code=1)["error"]
    assert before == (git(work, "rev-parse", "HEAD"), git(work, "tag"), (work / "data/labels.csv").read_bytes())


def test_a_version_that_cannot_be_published_is_none(work: Path, site: Site) -> None:  # noqa: F811
    dvc(work, site.variables, "pull", "-q", "data/labels.csv")
    origin = git(work, "remote", "get-url", "origin").strip()
    hook = Path(origin) / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    hook.chmod(0o755)
    error = client(work, "upload", "data/labels.csv", "data/labels.csv", "--version", "1.0", code=1)["error"]
    assert "could not be pushed to origin, so there is no such version yet" in error
    assert "@1.0" not in git(work, "tag")
    hook.unlink()
    assert client(work, "upload", "data/labels.csv", "data/labels.csv", "--version", "1.0")["version"] == "1.0"


def test_labels_move_and_go(work: Path) -> None:
    git(work, "tag", "-am", "two", "data/images@2.0", "main")
    assert client(work, "tag", "data/images@v1.0", "+golden")["tags"] == ["golden"]
    assert client(work, "tag", "data/images@2.0", "+golden")["tags"] == ["golden"]
    assert DvcStore(work).find("data/images@golden").version == "2.0"
    assert client(work, "tag", "data/images@2.0", "-golden")["tags"] == []
    assert "has no tags" in client(work, "tag", "data/images@2.0", "-golden", code=1)["error"]
    assert "has a version of this name" in client(work, "tag", "data/images@v1.0", "+2.0", code=1)["error"]


def test_a_preview_fetches_a_few_files(work: Path, site: Site, tmp_path: Path) -> None:  # noqa: F811
    (found,) = client(work, "preview", "data/labels.csv", "--out", str(tmp_path / "preview"))
    assert found["kind"] == "table"
    assert "1" in found["text"]
    assert sum(1 for path in site.cache.rglob("*") if path.is_file()) == 1


def test_warming_says_what_came(work: Path) -> None:
    command = [sys.executable, "-m", "clearml_client", "data", "warm", "data/images@v1.0", "--dvc", "."]
    told = [json.loads(subprocess.check_output(command, cwd=work, text=True))[0]["fetched"] for _ in range(2)]
    assert told == [True, False]


@pytest.mark.parametrize(
    ("line", "word", "found"),
    [("clearml-client da", 1, {"data", "datasets"}), ("clearml-client data up", 2, {"upload"})],
)
def test_bash_completes_the_commands(line: str, word: int, found: set[str]) -> None:
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(word), "_CLEARML_CLIENT_COMPLETE": "complete_bash"}
    program = Path(sys.executable).with_name("clearml-client")
    said = subprocess.check_output([program], env={**os.environ, **asked}, text=True)
    assert set(said.split()) == found
