"""DvcApi with real DVC, real git, real remotes (folder, HTTP, S3, SSH) and real processes."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clearml_client import ClearmlClientError, _cache
from clearml_client._dvc import DvcApi, _fetch, _settings

pytest.importorskip("dvc")

FILES = {f"{kind}/{number}.bin": f"{kind} {number}".encode() * 100 for kind in ("train", "val") for number in range(10)}
LABELS = b"a,b\n1,2\n"

SCRIPT = """
import sys
from pathlib import Path
from clearml_client._dvc import DvcApi

MNIST_DATASET_PATH = "data/images"
dvc = DvcApi()
path = dvc.dvc_path / MNIST_DATASET_PATH
dvc.dvc_pull(path)
print(sum(1 for file in path.rglob("*") if file.is_file()), sorted(set(sys.modules) & {"dvc", "dvc.repo"}))
"""


def environment(home: Path) -> dict[str, str]:
    """Everything that DVC, git and the client would find elsewhere, below one folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "CLEARML_", "GIT_", "AWS_", "XDG_"))}
    (home / "system").mkdir(parents=True, exist_ok=True)
    (home / "system" / "config").write_text(
        f"[cache]\n    dir = {home / 'dvc_cache'}\n    shared = group\n    type = symlink\n"
    )
    return kept | {
        "HOME": str(home),
        "CLEARML_CLIENT_CACHE": str(home / "clearml_cache"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def run(folder: Path, variables: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def dvc(folder: Path, variables: dict[str, str], *arguments: str) -> str:
    return run(folder, variables, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data repository with two versions and its remote, made by DVC: ``origin`` and ``remote``."""
    home = tmp_path_factory.mktemp("made")
    variables = environment(home)
    origin = home / "origin"
    origin.mkdir()
    run(origin, variables, "git", "init", "-q", "-b", "main")
    dvc(origin, variables, "init", "-q")
    dvc(origin, variables, "remote", "add", "-q", "-d", "store", "../remote")
    for name, content in FILES.items():
        (origin / "data" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / "data" / "images" / name).write_bytes(content)
    (origin / "data" / "labels.csv").write_bytes(LABELS)
    dvc(origin, variables, "add", "-q", "data/images", "data/labels.csv")
    run(origin, variables, "git", "add", "-A")
    run(origin, variables, "git", "commit", "-qm", "one")
    run(origin, variables, "git", "tag", "v1.0")
    # Each version by itself: for other revisions DVC resolves a relative remote from the root of the disk.
    dvc(origin, variables, "push", "-q")
    (origin / "data" / "images" / "train" / "0.bin").unlink()
    (origin / "data" / "images" / "train" / "new.bin").write_bytes(b"new")
    dvc(origin, variables, "add", "-q", "data/images")
    run(origin, variables, "git", "commit", "-qam", "two")
    dvc(origin, variables, "push", "-q")
    return home


class Site:
    """A node: a clone, caches of its own, a copy of the remote."""

    def __init__(self, home: Path, made: Path) -> None:
        self.home = home
        self.variables = environment(home)
        self.remote = home / "remote"
        shutil.copytree(made / "remote", self.remote)
        self.cache = home / "dvc_cache"
        self.cache.mkdir()
        self.cache.chmod(0o2775)
        self.origin = home / "origin"
        self.clone = home / "clone"
        run(home, self.variables, "git", "clone", "-q", str(made / "origin"), str(self.origin))
        run(home, self.variables, "git", "clone", "-q", str(self.origin), str(self.clone))

    def set_remote(self, url: str, **more: str) -> None:
        """Give the clone another remote, as people do who keep it out of git."""
        lines = [f"    {option} = {value}" for option, value in {"url": url, **more}.items()]
        (self.clone / ".dvc" / "config.local").write_text("\n".join(["['remote \"store\"']", *lines]) + "\n")

    def start(self, script: str = SCRIPT, *, folder: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=folder or self.clone,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> str:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        return out.strip()

    def objects(self) -> set[str]:
        found = (self.cache / "files" / "md5").glob("??/*")
        return {path.parent.name + path.name for path in found if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name)}


@pytest.fixture
def site(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, made)
    for name in set(os.environ) - set(site.variables):
        monkeypatch.delenv(name)
    for name, value in site.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(site.clone)
    yield site
    for lease in _cache._leases.values():
        os.close(lease)
    _cache._leases.clear()


class Counting(http.server.SimpleHTTPRequestHandler):
    gets: Counter[str]
    pause = 0.0

    def do_GET(self) -> None:
        self.gets[self.path.replace("/", "").removeprefix("filesmd5")] += 1
        time.sleep(self.pause)
        super().do_GET()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def web(site: Site) -> Iterator[type[Counting]]:
    """The remote over HTTP, which counts what is fetched."""
    handler = type("Handler", (Counting,), {"gets": Counter()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site.remote)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.set_remote(f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def version_two() -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name != "train/0.bin"} | {"train/new.bin": b"new"}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# What the script of the talk does


def test_the_script_runs_and_its_second_run_needs_nothing(site: Site, web: type[Counting]) -> None:
    assert site.finish(site.start()) == "20 []"
    assert run(site.clone, site.variables, "git", "status", "--porcelain") == ""
    web.gets.clear()
    used = shutil.disk_usage(site.home).used
    shutil.rmtree(site.remote)
    run(site.home, site.variables, "git", "clone", "-q", str(site.origin), "another")
    before = sum(1 for _ in site.home.rglob("*"))
    begin = time.perf_counter()
    answer = site.start(folder=site.home / "another")
    assert site.finish(answer) == "20 []"
    assert time.perf_counter() - begin < 30
    assert not web.gets
    assert sum(1 for _ in site.home.rglob("*")) == before + 1, "one link"
    assert shutil.disk_usage(site.home).used - used < 10_000_000
    run(site.home / "another", site.variables, "git", "diff", "--exit-code")


def test_eight_processes_transfer_once_and_all_get_it(site: Site, web: type[Counting]) -> None:
    web.pause = 0.05
    processes = [site.start() for _ in range(8)]
    assert [site.finish(process) for process in processes] == ["20 []"] * 8
    wanted = {md5(content) for content in version_two().values()}
    counted = {name: count for name, count in web.gets.items() if name in wanted}
    assert counted == dict.fromkeys(wanted, 1)
    # DVC itself asks for the list several times in one fetch.
    assert sum(count for name, count in web.gets.items() if name.endswith(".dir")) < 8


def test_eight_processes_in_eight_clones(site: Site, web: type[Counting]) -> None:
    folders = [site.home / f"clone{number}" for number in range(8)]
    for folder in folders:
        shutil.copytree(site.clone, folder)
    processes = [site.start(folder=folder) for folder in folders]
    assert [site.finish(process) for process in processes] == ["20 []"] * 8
    assert all(web.gets[md5(content)] == 1 for content in version_two().values())


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def test_kill_in_the_middle_of_a_pull(site: Site, web: type[Counting]) -> None:
    web.pause = 0.5
    first = site.start()
    end = time.monotonic() + 60
    while sum(web.gets[md5(content)] for content in version_two().values()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    below = children(first.pid)
    assert below, "DVC runs"
    first.send_signal(signal.SIGKILL)
    first.wait()
    while any(
        Path(f"/proc/{pid}/exe").exists() and Path(f"/proc/{pid}/exe").is_symlink() for pid in below if alive(pid)
    ):
        assert time.monotonic() < end, "DVC goes on without us"
        time.sleep(0.02)
    assert _cache.trees(site.home / "clearml_cache") == []
    assert not (site.clone / "data" / "images").exists()
    web.pause = 0
    assert site.finish(site.start()) == "20 []"
    assert content_of(site.clone / "data" / "images") == version_two()
    assert [p.name for p in (site.home / "clearml_cache" / "making").iterdir() if p.suffix != ".lock"] == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_the_repository_is_found_from_below_and_by_the_script(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.clone / "src" / "deep").mkdir(parents=True)
    monkeypatch.chdir(site.clone / "src" / "deep")
    assert DvcApi().dvc_path == site.clone
    elsewhere = site.home / "elsewhere"
    elsewhere.mkdir()
    script = site.clone / "src" / "train.py"
    script.write_text("from clearml_client._dvc import DvcApi\nprint(DvcApi().dvc_path)\n")
    assert run(elsewhere, site.variables, sys.executable, str(script)).strip() == str(site.clone)


def test_the_file_of_a_dataset_stands_for_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the talk: its script pulls MNIST's .dvc file and reads in the folder that this is in."""
    other = site.home / "by another name"
    other.symlink_to(site.clone)
    there = site.clone / "data" / "images"
    wanted = version_two()
    for api in (DvcApi(), DvcApi(path=site.home / "mine"), DvcApi(str(site.origin), "v1.0")):
        found = api.dvc_pull("data/images.dvc")
        assert found == api.dvc_path / "data/images"
        assert len(content_of(found)) == 20
        assert api.dvc_verify("data/images.dvc") == []
    api = DvcApi()
    for path in (
        *(
            "./data/images.dvc",
            "data/images.dvc/",
            "data//images.dvc",
            "data/../data/images.dvc",
            Path("data/images.dvc"),
        ),
        *(
            there,
            f"{there}/",
            f"{there}.dvc",
            other / "data" / "images.dvc",
            other / "data/images",
            "data/images/",
            "./data/images",
        ),
    ):
        assert api.dvc_pull(path) == there, path
    assert content_of(there) == wanted
    assert (api.dvc_pull(api.dvc_path / "data/images.dvc").parent / "images").is_dir()
    monkeypatch.chdir(site.home)
    assert DvcApi(site.clone).dvc_pull("data/labels.csv.dvc").read_bytes() == LABELS
    with pytest.raises(
        ClearmlClientError, match=r"data/image\.dvc is not tracked by DVC in .*; did you mean data/images"
    ):
        api.dvc_pull("data/image.dvc")


def test_a_repository_below_the_git_root_is_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    top = site.home / "top"
    (top / "store" / ".dvc").mkdir(parents=True)
    (top / "code").mkdir()
    (top / "store" / ".dvc" / "config").touch()
    run(top, site.variables, "git", "init", "-q")
    run(top, site.variables, "git", "add", "-A")
    monkeypatch.chdir(top / "code")
    assert DvcApi().dvc_path == top / "store"


# Which part


def test_only_the_asked_part_is_fetched(site: Site) -> None:
    api = DvcApi()
    part = api.dvc_pull("data/images/val")
    assert part == site.clone / "data" / "images" / "val"
    wanted = {name: content for name, content in FILES.items() if name.startswith("val/")}
    assert {f"val/{name}": content for name, content in content_of(part).items()} == wanted
    assert [entry.name for entry in part.parent.iterdir()] == ["val"]
    fetched = {name for name in site.objects() if not name.endswith(".dir")}
    assert fetched == {md5(content) for content in wanted.values()}
    one = api.dvc_pull("data/images/train/3.bin")
    assert one.read_bytes() == FILES["train/3.bin"]
    assert len(site.objects()) == len(wanted) + 2
    whole = api.dvc_pull("data/images")
    assert whole.is_symlink()
    assert content_of(whole) == version_two()
    assert api.dvc_pull("data/images/val").samefile(whole / "val")
    assert not (whole / "val").is_symlink(), "nothing may be put into the shared copy"


def test_a_file_and_a_folder_of_several(site: Site) -> None:
    api = DvcApi()
    assert api.tracked() == ["data/images", "data/labels.csv"]
    file = api.dvc_pull(site.clone / "data" / "labels.csv")
    assert file.read_bytes() == LABELS
    assert api.dvc_pull("data") == site.clone / "data"
    assert content_of(site.clone / "data" / "images") == version_two()
    assert api.dvc_verify() == []
    assert api.dvc_pull() == site.clone


def test_what_is_not_tracked_is_refused_with_near_names(site: Site) -> None:
    api = DvcApi()
    for wrong, told in (
        ("data/image", "did you mean data/images"),
        ("images", "did you mean data/images"),
        ("nothing like it", "it tracks data/images, data/labels.csv"),
        ("data/images/vall", "has no 'vall' in it; it has val"),
        ("data/labels.csv/x", "is a tracked file"),
        ("../outside", "leads out of"),
        ("/etc/passwd", "is not below"),
    ):
        with pytest.raises(ClearmlClientError, match=re.escape(told)):
            api.dvc_pull(wrong)
    assert not (site.clone / "data" / "images").exists()


# Revisions and other repositories


def test_a_revision_is_linked_elsewhere(site: Site) -> None:
    now, then = DvcApi(), DvcApi(rev="v1.0")
    assert then.dvc_path != now.dvc_path == site.clone
    assert content_of(then.dvc_pull("data/images")) == FILES
    assert content_of(now.dvc_pull("data/images")) == version_two()
    assert content_of(then.dvc_path / "data" / "images") == FILES
    assert then.revision == run(site.clone, site.variables, "git", "rev-parse", "v1.0^{commit}").strip()
    assert then.tracked() == ["data/images", "data/labels.csv"]
    with pytest.raises(ClearmlClientError, match=r"has no revision 'v1.1'; it has v1.0"):
        DvcApi(rev="v1.1")


def test_another_repository_by_its_url(site: Site) -> None:
    # Relative remotes of a URL lead nowhere: this one is absolute, as those of data repositories are.
    config = site.origin / ".dvc" / "config"
    config.write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {site.remote}  # a comment\n")
    run(site.origin, site.variables, "git", "commit", "-qam", "absolute")
    bare = site.home / "bare.git"
    run(site.home, site.variables, "git", "clone", "-q", "--bare", str(site.origin), str(bare))
    api = DvcApi(repo=bare, rev="v1.0")
    with pytest.raises(ClearmlClientError, match="relative to the repository"):
        api.dvc_pull("data/images")  # v1.0 has the relative one
    api = DvcApi(repo=bare)
    assert content_of(api.dvc_pull("data/images")) == version_two()
    shutil.rmtree(bare)
    with pytest.raises(ClearmlClientError, match="no folder"):
        DvcApi(repo=bare)


def test_a_url_that_cannot_be_cloned_is_told_without_its_password(site: Site) -> None:
    with pytest.raises(ClearmlClientError, match="cannot be cloned") as caught:
        DvcApi(repo="http://user:pass-word@127.0.0.1:1/data.git")
    assert "pass-word" not in str(caught.value)


def test_new_commits_of_a_url_are_seen(site: Site) -> None:
    port = free_port()
    command = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={site.home}"]
    server = subprocess.Popen([*command, "--listen=127.0.0.1", f"--port={port}"], env=site.variables)
    try:
        wait_for_port(port)
        url = f"git://127.0.0.1:{port}/origin"
        first = DvcApi(repo=url)
        assert first.tracked() == ["data/images", "data/labels.csv"]
        (site.origin / "data" / "more.dvc").write_text(f"outs:\n- md5: {md5(LABELS)}\n  hash: md5\n  path: more\n")
        run(site.origin, site.variables, "git", "add", "data/more.dvc")
        run(site.origin, site.variables, "git", "commit", "-qm", "three")
        assert "data/more" in DvcApi(repo=url).tracked()
    finally:
        server.terminate()
        server.wait()
    assert first.revision is not None
    assert DvcApi(repo=url, rev=first.revision).tracked() == ["data/images", "data/labels.csv"]
    with pytest.raises(ClearmlClientError, match="cannot be asked"):
        DvcApi(repo=url)


def test_the_repository_that_pyproject_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    model = site.home / "model"
    model.mkdir()
    (model / "pyproject.toml").write_text(f'[tool.clearml_client]\ndvc_repo = "{site.clone}"\ndvc_rev = "v1.0"\n')
    script = model / "train.py"
    script.write_text(SCRIPT)
    assert run(model, site.variables, sys.executable, str(script)).strip() == "20 []"
    assert [tree.source.rpartition(": ")[2] for tree in _cache.trees()] == ["data/images"]
    commit = run(site.clone, site.variables, "git", "rev-parse", "v1.0^{commit}").strip()
    assert commit in _cache.trees()[0].source


# What is refused, in words


def test_no_repository(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = site.home / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", str(empty / "train.py"), raising=False)
    with pytest.raises(ClearmlClientError, match=r"no \.dvc folder in .*empty.* or above"):
        DvcApi()
    with pytest.raises(ClearmlClientError, match=r"empty has no \.dvc folder"):
        DvcApi(repo=empty)
    with pytest.raises(ClearmlClientError, match="is no folder"):
        DvcApi(repo="missing")


def test_no_remote(site: Site) -> None:
    (site.clone / ".dvc" / "config").write_text("")
    with pytest.raises(ClearmlClientError, match=r"has no default remote.*dvc remote add -d"):
        DvcApi().dvc_pull("data/images")
    with pytest.raises(ClearmlClientError, match="has no remote 'other'"):
        DvcApi(remote="other").dvc_pull("data/images")


def test_a_hash_that_does_not_verify(site: Site) -> None:
    wrong = md5(FILES["val/3.bin"])
    there = site.remote / "files" / "md5" / wrong[:2] / wrong[2:]
    there.chmod(0o644)
    there.write_bytes(b"something else")
    with pytest.raises(ClearmlClientError, match=rf"1 of 20 files .* val/3.bin \({wrong}\).*does not verify"):
        DvcApi().dvc_pull("data/images")
    assert not (site.clone / "data" / "images").exists()
    assert wrong not in site.objects()
    assert _cache.trees() == []
    there.write_bytes(FILES["val/3.bin"])
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()


def test_what_a_killed_process_left_is_hashed(site: Site) -> None:
    left = md5(FILES["val/3.bin"])
    half = site.cache / "files" / "md5" / left[:2] / left[2:]
    half.parent.mkdir(parents=True)
    half.write_bytes(b"val")
    half.chmod(0o644)
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()
    assert half.stat().st_mode & 0o777 == 0o444


def test_what_the_remote_does_not_have(site: Site) -> None:
    lost = md5(FILES["val/3.bin"])
    (site.remote / "files" / "md5" / lost[:2] / lost[2:]).unlink()
    with pytest.raises(ClearmlClientError, match=rf"cannot be reached, or does not hold it whole.*{lost}"):
        DvcApi().dvc_pull("data/images")
    assert _cache.trees() == []


def test_a_remote_that_is_not_there(site: Site) -> None:
    for url in (str(site.home / "nowhere"), "http://127.0.0.1:1/"):
        site.set_remote(url)
        with pytest.raises(ClearmlClientError, match=rf"the remote store \({url}\) cannot be reached"):
            DvcApi().dvc_pull("data/images")
        with pytest.raises(ClearmlClientError, match=r"cannot be reached"):
            DvcApi().dvc_pull("data/labels.csv")
    assert _cache.trees() == []


def test_dvc_is_not_installed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = site.home / "tools"
    tools.mkdir()
    git = shutil.which("git")
    assert git
    (tools / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ClearmlClientError, match=r"pip install 'clearml-client\[dvc\]'"):
        DvcApi().dvc_pull("data/images")


def test_the_program_dvc_will_do(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = site.home / "tools"
    tools.mkdir()
    (tools / "dvc").write_text(f'#!/bin/sh\nexec {sys.executable} -m dvc "$@"\n')
    (tools / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert DvcApi().dvc_pull("data/labels.csv").read_bytes() == LABELS


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_full_disk_is_told_before(site: Site, web: type[Counting]) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(site.cache)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr}")
    try:
        told = site.clone / "data" / "images.dvc"
        told.write_text(re.sub(r"size: \d+", "size: 100000000", told.read_text()))
        with pytest.raises(ClearmlClientError, match=rf"{site.cache} has \d+ bytes free .* are needed"):
            DvcApi().dvc_pull("data/images")
        assert {name for name in web.gets if re.match(r"[0-9a-f]{32}\Z", name)} == set(), "only the list came"
    finally:
        subprocess.run(["umount", str(site.cache)], check=True)


# Where it is linked


def test_a_folder_with_other_content_is_left_alone(site: Site) -> None:
    mine = site.clone / "data" / "images"
    mine.mkdir()
    (mine / "mine.txt").write_text("mine")
    with pytest.raises(ClearmlClientError, match=r"is there with other content.*move it away"):
        DvcApi().dvc_pull("data/images")
    assert (mine / "mine.txt").read_text() == "mine"
    (mine / "mine.txt").unlink()
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()


def test_a_link_of_somebody_else_is_left_alone(site: Site) -> None:
    other = site.home / "other"
    other.mkdir()
    (site.clone / "data" / "images").symlink_to(other)
    with pytest.raises(ClearmlClientError, match="is there with other content"):
        DvcApi().dvc_pull("data/images")
    assert (site.clone / "data" / "images").readlink() == other


@pytest.mark.parametrize("kind", ["symlink", "copy", "hardlink"])
def test_the_checkout_of_dvc_is_accepted(site: Site, kind: str) -> None:
    (site.clone / ".dvc" / "config.local").write_text(f"[cache]\n    type = {kind}\n")
    dvc(site.clone, site.variables, "pull", "-q")
    before = (site.clone / "data" / "images").stat().st_ino
    assert not (site.clone / "data" / "images").is_symlink()
    assert DvcApi().dvc_pull("data/images").stat().st_ino == before
    assert DvcApi().dvc_pull("data/labels.csv").read_bytes() == LABELS
    changed = site.clone / "data" / "images" / "val" / "3.bin"
    changed.unlink()
    changed.write_bytes(b"x" * len(FILES["val/3.bin"]))
    with pytest.raises(ClearmlClientError, match="is there with other content"):
        DvcApi().dvc_pull("data/images")


def test_links_follow_the_version_that_is_checked_out(site: Site) -> None:
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()
    run(site.clone, site.variables, "git", "checkout", "-q", "v1.0")
    api = DvcApi()
    # A part of another version than the linked whole: never through the link.
    assert api.dvc_pull("data/images/train/0.bin").read_bytes() == FILES["train/0.bin"]
    assert not (site.clone / "data" / "images").is_symlink()
    assert content_of(api.dvc_pull("data/images")) == FILES
    assert run(site.clone, site.variables, "git", "status", "--porcelain") == ""
    assert "up to date" in dvc(site.clone, site.variables, "status", "data/images.dvc")


def test_copies_may_be_changed(site: Site) -> None:
    folder = DvcApi(link="copy").dvc_pull("data/images")
    assert content_of(folder) == version_two()
    (folder / "val" / "3.bin").write_bytes(b"mine")
    assert content_of(DvcApi(path=site.home / "elsewhere").dvc_pull("data/images")) == version_two()
    linked = DvcApi(path=site.home / "hard", link="hardlink").dvc_pull("data/images/val/4.bin")
    assert linked.stat().st_nlink == 2
    with pytest.raises(ClearmlClientError, match="link is 'reflink'"):
        DvcApi(link="reflink")


def test_a_tree_that_dvc_wrote_into_is_made_anew(site: Site) -> None:
    """As root ``dvc checkout`` follows the link and turns the shared copy into another version."""
    shared = DvcApi().dvc_pull("data/images").resolve()
    run(site.clone, site.variables, "git", "checkout", "-q", "v1.0")
    if os.geteuid() == 0:
        dvc(site.clone, site.variables, "pull", "-q")
        assert content_of(shared) == FILES, "DVC does not do it any more"
    run(site.clone, site.variables, "git", "checkout", "-q", "main")
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()


def test_edited_objects_are_fetched_again(site: Site) -> None:
    """DVC trusts what is read-only, and root in a container edits that too."""

    def edit(file: Path, keep_time: bool) -> None:
        real, before = file.resolve(), file.stat()
        real.chmod(0o644)
        real.write_bytes(b"#" * before.st_size)
        real.chmod(0o444)
        if keep_time:
            os.utime(real, ns=(before.st_atime_ns, before.st_mtime_ns))

    for keep_time in (False, True):
        folder = DvcApi().dvc_pull("data/images")
        edit(folder / "val" / "3.bin", keep_time)
        assert content_of(DvcApi().dvc_pull("data/images")) == version_two()
    # Through a hard link that a training has as its own.
    own = DvcApi(path=site.home / "hard", link="hardlink").dvc_pull("data/images/val/3.bin")
    edit(own, False)
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()
    # An object that another version has in common, before that is made here.
    shared = next(path for path, data in FILES.items() if version_two().get(path) == data)
    edit(DvcApi().dvc_pull("data/images") / shared, True)
    assert content_of(DvcApi(rev="v1.0", path=site.home / "old").dvc_pull("data/images")) == FILES
    # The list of files too.
    for listing in site.cache.rglob("*.dir"):
        listing.chmod(0o644)
        listing.write_text("[]")
        listing.chmod(0o444)
    assert content_of(DvcApi(path=site.home / "again").dvc_pull("data/images")) == version_two()


def test_a_cache_that_was_emptied_under_a_tree(site: Site, web: type[Counting]) -> None:
    DvcApi().dvc_pull("data/images")
    shutil.rmtree(site.cache / "files")
    web.gets.clear()
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()
    assert len(_cache.trees()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_a_clone_that_cannot_be_written(site: Site) -> None:
    for folder in [site.home, *site.home.parents]:
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o005)
    for folder in (site.home / "clearml_cache", site.cache, site.home / "site"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, 4001, 4001)
    script = "import os; from clearml_client._dvc import DvcApi\nos.setgroups([]); os.setgid(4001); os.setuid(4001)\n"
    script += "api = DvcApi(); print(api.dvc_path); print(api.dvc_pull('data/labels.csv').read_text())"
    # A user without rights to this interpreter's files cannot start DVC, so it is there already.
    DvcApi().dvc_pull("data/labels.csv")
    subprocess.run(["chown", "-R", "4001", str(site.home / "clearml_cache")], check=True)
    answer = site.finish(site.start(script))
    assert answer.startswith(str(site.home / "clearml_cache" / "dvc" / "workspaces"))
    assert answer.endswith(LABELS.decode().strip())


# Forms of repositories


def test_the_repositorys_own_cache_without_any_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_settings, "SITE_CACHE", site.home / "no such folder")
    (site.home / "system" / "config").unlink()
    api = DvcApi()
    assert content_of(api.dvc_pull("data/images")) == version_two()
    assert (site.clone / ".dvc" / "cache" / "files").is_dir()
    # Another clone must not link into the first one's cache, which may go with it.
    run(site.home, site.variables, "git", "clone", "-q", str(site.origin), "another")
    second = DvcApi(repo=site.home / "another").dvc_pull("data/images")
    shutil.rmtree(site.clone)
    assert content_of(second) == version_two()


def test_the_sites_folder_without_settings(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_settings, "SITE_CACHE", site.cache)
    (site.home / "system" / "config").unlink()
    DvcApi().dvc_pull("data/labels.csv")
    assert site.objects() == {md5(LABELS)}
    there = site.cache / "files" / "md5"
    assert there.stat().st_mode & 0o7777 == 0o2775, "shared = group, by the setgid bit of the folder"


def test_outputs_of_dvc_2(site: Site) -> None:
    """No ``hash`` in the file, objects at the top of cache and remote, text hashed with Unix line ends."""
    files = {"a.txt": b"one\r\ntwo\r\n", "b/c.bin": b"\x00\x01\r\n"}
    names = {"a.txt": md5(b"one\ntwo\n"), "b/c.bin": md5(files["b/c.bin"])}
    listing = json.dumps([{"md5": names[name], "relpath": name} for name in sorted(names)]).encode()
    for name, content in {**{names[n]: c for n, c in files.items()}, f"{md5(listing)}.dir": listing}.items():
        (site.remote / name[:2]).mkdir(exist_ok=True)
        (site.remote / name[:2] / name[2:]).write_bytes(content)
    told = f"outs:\n- md5: {md5(listing)}.dir\n  size: {sum(map(len, files.values()))}\n  nfiles: 2\n  path: old\n"
    (site.clone / "old.dvc").write_text(told)
    assert content_of(DvcApi().dvc_pull("old")) == files
    assert (site.cache / md5(listing)[:2]).is_dir()
    assert DvcApi().dvc_verify("old") == []
    (listed,) = [tree.key for tree in _cache.trees()]
    assert listed == f"dvc-{md5(listing)}-dos2unix"


def test_outputs_of_a_pipeline(site: Site) -> None:
    (site.clone / "pipe").mkdir()
    (site.clone / "pipe" / "dvc.yaml").write_text(
        "stages:\n  prepare:\n    wdir: ..\n    cmd: x\n    outs: [prepared.csv]\n"
    )
    (site.clone / "pipe" / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  prepare:\n    cmd: x\n    outs:\n"
        f"    - path: prepared.csv\n      hash: md5\n      md5: {md5(LABELS)}\n      size: {len(LABELS)}\n"
    )
    assert DvcApi().dvc_pull("prepared.csv").read_bytes() == LABELS
    for file in ("pipe/dvc.yaml", "pipe/dvc.lock"):
        # One output: the path of it. Of several it is the folder of the file.
        assert DvcApi().dvc_pull(file) == site.clone / "prepared.csv"


def test_a_file_of_another_name_than_its_output(site: Site) -> None:
    (site.clone / "data" / "images.dvc").rename(site.clone / "pictures.dvc")
    text = (site.clone / "pictures.dvc").read_text()
    (site.clone / "pictures.dvc").write_text(text + "wdir: data\n")
    wanted = {name[len("val/") :]: content for name, content in FILES.items() if name.startswith("val/")}
    assert content_of(DvcApi().dvc_pull("data/images/val")) == wanted


def test_an_import_comes_from_the_repository_it_is_of(site: Site) -> None:
    importer = site.home / "importer"
    importer.mkdir()
    run(importer, site.variables, "git", "init", "-q")
    dvc(importer, site.variables, "init", "-q")
    dvc(importer, site.variables, "import", "-q", str(site.origin), "data/labels.csv", "-o", "l.csv", "--no-download")
    told = (importer / "l.csv.dvc").read_text()
    if "md5: " not in told.partition("outs:")[2]:
        dvc(importer, site.variables, "update", "-q", "l.csv.dvc")
        shutil.rmtree(site.cache / "files")
        (importer / "l.csv").unlink()
    assert DvcApi(repo=importer).dvc_pull("l.csv").read_bytes() == LABELS


def test_data_are_linked_to_the_experiment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[dict[str, Any]] = []
    links = type(sys)("clearml_client._links")
    links.record = lambda **facts: noted.append(facts)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clearml_client._links", links)
    DvcApi().dvc_pull("data/labels.csv")
    DvcApi(rev="v1.0").dvc_pull("data/images/val")
    told = site.clone / "data" / "labels.csv.dvc"
    told.write_text(told.read_text() + "desc: changed\n")
    DvcApi().dvc_pull("data/labels.csv")
    head, tag = (
        run(site.clone, site.variables, "git", "rev-parse", f"{name}^{{commit}}").strip() for name in ("HEAD", "v1.0")
    )
    assert noted[0] == {
        "name": "data/labels.csv", "version": head[:12], "hash": md5(LABELS), "path": "data/labels.csv", "store": "dvc",
        "revision": head,
    }  # fmt: skip
    assert (noted[1]["name"], noted[1]["version"], noted[1]["revision"]) == ("data/images/val", "v1.0", tag)
    assert noted[2]["version"] == f"{head[:12]}-modified"


def test_progress_is_a_line_now_and_then(site: Site, web: type[Counting], monkeypatch: pytest.MonkeyPatch,
                                         capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    web.pause = 0.3
    monkeypatch.setattr(_fetch, "LINE_SECONDS", 0.2)
    DvcApi().dvc_pull("data/images")
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("dvc_pull data/images: ") for line in lines), lines
    assert len(lines) > 2
    assert "fetched and verified, 20 files" in lines[-1]


# Other remotes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.05)


def served(command: list[str], port: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
    except BaseException:
        server.kill()
        raise
    return server


def push_and_pull(site: Site, url: str, **options: str) -> None:
    """Let DVC push to a remote, and pull it with the client on a node with empty caches."""
    site.set_remote(url, **options)
    dvc(site.clone, site.variables, "pull", "-q", "-r", "folder")
    dvc(site.clone, site.variables, "push", "-q", "-r", "store")
    shutil.rmtree(site.cache / "files")
    shutil.rmtree(site.clone / "data" / "images")
    assert content_of(DvcApi().dvc_pull("data/images")) == version_two()


def add_folder_remote(site: Site) -> None:
    with (site.clone / ".dvc" / "config").open("a") as file:
        file.write(f"['remote \"folder\"']\n    url = {site.remote}\n")


def test_s3(site: Site) -> None:
    pytest.importorskip("dvc_s3")
    pytest.importorskip("moto.server")
    boto3: Any = pytest.importorskip("boto3")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = served(command, port, site.variables)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="data")
        add_folder_remote(site)
        push_and_pull(site, "s3://data/store", endpointurl=endpoint)
        site.set_remote("s3://no-such-bucket/store", endpointurl=endpoint)
        with pytest.raises(
            ClearmlClientError, match=r"the remote store \(s3://no-such-bucket/store\) cannot be reached"
        ):
            DvcApi().dvc_pull("data/labels.csv")
    finally:
        server.terminate()
        server.wait()


SSH_SERVER = """
import asyncio, sys, asyncssh

class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return True
    def password_auth_supported(self):
        return True
    def validate_password(self, username, password):
        return password == "pass-word"

async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    await asyncssh.create_server(Server, "127.0.0.1", int(sys.argv[1]), server_host_keys=[key], sftp_factory=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_ssh(site: Site) -> None:
    pytest.importorskip("dvc_ssh")
    port = free_port()
    server = served([sys.executable, "-c", SSH_SERVER, str(port)], port, site.variables)
    try:
        add_folder_remote(site)
        url = f"ssh://somebody@127.0.0.1:{port}{site.home}/by-ssh"
        push_and_pull(site, url, password="pass-word")
        site.set_remote(url, password="wrong")
        with pytest.raises(ClearmlClientError, match=r"cannot be reached") as caught:
            DvcApi().dvc_pull("data/labels.csv")
        assert "wrong" not in str(caught.value)
    finally:
        server.terminate()
        server.wait()


def test_paths_of_settings(tmp_path: Path) -> None:
    merged: _settings.Config = {}
    text = (
        "[core]\n    remote = Store\n    # a comment\n['remote \"Store\"']\n    url = ../data # where\n"
        '    keyfile = "~/key"\n'
        '[\'remote "s3"\']\n    url = s3://bucket/a\n[cache]\n    dir = cache\n    type = "reflink,copy"\n'
    )
    _settings._merge(merged, _settings._read_config(text), Path("/site/.dvc"))
    assert merged['remote "Store"'] == {"url": "/site/data", "keyfile": str(Path("~/key").expanduser())}
    assert merged['remote "s3"'] == {"url": "s3://bucket/a"}
    assert merged["cache"] == {"dir": "/site/.dvc/cache", "type": '"reflink,copy"'}
    assert _settings.remotes(merged) == {"store": 'remote "Store"', "s3": 'remote "s3"'}
