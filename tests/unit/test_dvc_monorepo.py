"""Several DVC projects in one git repository (``dvc init --subdir``): the bytes of plain DVC, or a true word."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clearml_client import ClearmlClientError
from clearml_client._dvc import DvcApi, _settings
from clearml_client._dvc._repository import masked
from clearml_client.datasets.dvc import DvcStore
from test_dvc import content_of, dvc, environment, md5, run

pytest.importorskip("dvc")


def put(remote: Path, content: bytes) -> str:
    """Store an object as DVC names it; return its hash."""
    name = md5(content)
    place = remote / "files" / "md5" / name[:2] / name[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return name


def out_of(path: str, content: bytes, **more: str) -> str:
    """Write the text of a .dvc file."""
    out = {"md5": md5(content), "size": len(content), "hash": "md5", "path": path, **more}
    return f"outs: {json.dumps([out])}\n"


class Mono:
    """A repository with a root project and others below it, the bare one that people fetch from, and remotes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.variables = environment(home)
        self.tree = home / "mono"
        self.bare = home / "mono.git"
        self.url = f"file://{self.bare}"
        self.tree.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        return run(folder or self.tree, self.variables, "git", *arguments)

    def remote(self, name: str) -> Path:
        return self.home / "remotes" / name

    def project(self, where: str, config: str) -> Path:
        """Make a project as ``dvc init --subdir`` does."""
        folder = self.tree / where
        (folder / ".dvc").mkdir(parents=True)
        (folder / ".dvc" / "config").write_text(config)
        (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        (folder / ".dvcignore").write_text("")
        return folder

    def track(self, path: str, content: bytes, where: str | None, **more: str) -> None:
        """Make a path tracked, and put its content into a remote."""
        file = self.tree / f"{path}.dvc"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(out_of(file.name[: -len(".dvc")], content, **more))
        if where is not None:
            put(self.remote(where), content)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "change")
        if self.bare.exists():
            self.git("push", "-q", str(self.bare), "main")
        else:
            self.git("clone", "-q", "--bare", str(self.tree), str(self.bare), folder=self.home)

    def clone(self, name: str = "clone") -> Path:
        self.git("clone", "-q", str(self.bare), name, folder=self.home)
        return self.home / name

    def get(self, path: str, *more: str) -> bytes:
        """Return what plain ``dvc get`` fetches."""
        target = self.home / "got"
        dvc(self.home, self.variables, "get", "-q", self.url, path, "-o", str(target), "--force", *more)
        return target.read_bytes()


def default(name: str, *remotes: tuple[str, object]) -> str:
    text = f"[core]\n    remote = {name}\n"
    return text + "".join(f"['remote \"{remote}\"']\n    url = {url}\n" for remote, url in remotes)


@pytest.fixture
def bare_mono(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mono:
    mono = Mono(tmp_path)
    for name in set(os.environ) - set(mono.variables):
        monkeypatch.delenv(name)
    for name, value in mono.variables.items():
        monkeypatch.setenv(name, value)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return mono


@pytest.fixture
def mono(bare_mono: Mono) -> Mono:
    """A root project, two teams, one nested in a team's; the same path in three of them."""
    mono = bare_mono
    mono.project("", default("store", ("store", mono.remote("root"))))
    mono.project("teams/a", default("store", ("store", mono.remote("a")), ("other", mono.remote("a-other"))))
    mono.project("teams/b", default("best", ("best", mono.remote("b"))))
    mono.project("teams/a/deep", default("store", ("store", mono.remote("deep"))))
    mono.track("data/x.csv", b"of the root", "root")
    mono.track("teams/shared.csv", b"of the root too", "root")
    mono.track("teams/a/data/x.csv", b"of a", "a")
    mono.track("teams/a/data/named.csv", b"at a's other", "a-other", remote="other")
    mono.track("teams/b/data/x.csv", b"of b", "b")
    mono.track("teams/a/deep/data/x.csv", b"of the deep", "deep")
    mono.commit()
    return mono


ALL = {
    "data/x.csv": b"of the root",
    "teams/shared.csv": b"of the root too",
    "teams/a/data/x.csv": b"of a",
    "teams/a/data/named.csv": b"at a's other",
    "teams/b/data/x.csv": b"of b",
    "teams/a/deep/data/x.csv": b"of the deep",
}


def test_each_path_of_a_url_comes_from_its_own_project(mono: Mono) -> None:
    api = DvcApi(mono.url)
    assert api.tracked() == sorted(ALL)
    assert {path: api.dvc_pull(path).read_bytes() for path in ALL} == ALL
    for path in ("teams/a/data/x.csv", "teams/a/data/named.csv", "teams/a/deep/data/x.csv"):
        assert mono.get(path) == ALL[path], "as plain dvc get"
    assert api.dvc_verify("teams") == []
    # A folder holds those of all projects, as for dvc get.
    again = DvcApi(mono.url, path=mono.home / "other")
    below = content_of(again.dvc_pull("teams"))
    assert below == {path[len("teams/") :]: text for path, text in ALL.items() if path.startswith("teams/")}


def test_a_path_of_the_nearest_project_in_a_clone(mono: Mono, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = mono.clone()
    (clone / "teams/a/src").mkdir()
    monkeypatch.chdir(clone / "teams/a/src")
    api = DvcApi()
    assert api.dvc_path == clone / "teams/a"
    assert api.dvc_pull("data/x.csv").read_bytes() == b"of a"
    assert DvcApi(clone).dvc_pull("teams/b/data/x.csv").read_bytes() == b"of b", "from above, by the project's remote"
    assert DvcApi(clone / "teams/a", rev="main").dvc_pull("data/x.csv").read_bytes() == b"of a"
    # All of a project is that project's alone, as for dvc pull.
    monkeypatch.chdir(clone)
    DvcApi().dvc_pull()
    assert (clone / "data/x.csv").read_bytes() == b"of the root"
    assert not (clone / "teams/a/deep/data/x.csv").exists()


def test_no_project_at_the_root(bare_mono: Mono, monkeypatch: pytest.MonkeyPatch) -> None:
    mono = bare_mono
    for team in ("a", "b"):
        mono.project(f"teams/{team}", default("store", ("store", mono.remote(team))))
        mono.track(f"teams/{team}/data/x.csv", team.encode(), team)
    mono.track("outside", b"of nobody", None)
    mono.commit()
    api = DvcApi(mono.url)
    assert api.tracked() == ["teams/a/data/x.csv", "teams/b/data/x.csv"], "what is in no project DVC does not track"
    assert api.dvc_pull("teams/a/data/x.csv").read_bytes() == mono.get("teams/a/data/x.csv") == b"a"
    with pytest.raises(ClearmlClientError, match=r"did you mean teams/a/data/x.csv"):
        api.dvc_pull("data/x.csv")
    clone = mono.clone()
    for folder, path in ((clone, "teams/b/data/x.csv"), (clone / "teams", "b/data/x.csv")):
        assert DvcApi(folder).dvc_pull(path).read_bytes() == b"b"
        assert DvcApi(folder, rev="main").dvc_pull(path).read_bytes() == b"b"
    monkeypatch.chdir(clone)
    assert DvcApi().dvc_pull("teams/a/data/x.csv").read_bytes() == b"a", "from git's root, of several"
    shutil.rmtree(clone / "teams/b")
    assert DvcApi().dvc_path == clone / "teams/a", "of one"


def test_a_url_without_any_project_is_told(bare_mono: Mono) -> None:
    (bare_mono.tree / "file").write_text("")
    bare_mono.commit()
    with pytest.raises(ClearmlClientError, match=r"has no \.dvc folder at .* in no folder of it"):
        DvcApi(bare_mono.url)


def test_which_remote(mono: Mono) -> None:
    with pytest.raises(ClearmlClientError, match=r"project teams/b\) has no remote 'other' .* it has best"):
        DvcApi(mono.url, remote="other").dvc_pull("teams/b/data/x.csv")
    shutil.move(mono.remote("a"), mono.remote("a-other") / "moved")
    with pytest.raises(ClearmlClientError, match=r"the remote store \(.*remotes/a\)"):
        DvcApi(mono.url).dvc_pull("teams/a/data/x.csv")
    put(mono.remote("a-other"), b"of a")
    assert DvcApi(mono.url, remote="other").dvc_pull("teams/a/data/x.csv").read_bytes() == b"of a"


def test_the_default_remote_is_only_in_config_local(bare_mono: Mono) -> None:
    mono = bare_mono
    mono.project("teams/a", f"['remote \"one\"']\n    url = {mono.remote('one')}\n")
    mono.track("teams/a/x", b"x", "one")
    mono.commit()
    clone = mono.clone()
    with pytest.raises(ClearmlClientError, match=r"has no default remote.*choose one of one"):
        DvcApi(clone).dvc_pull("teams/a/x")
    (clone / "teams/a/.dvc/config.local").write_text("[core]\n    remote = one\n")
    assert DvcApi(clone).dvc_pull("teams/a/x").read_bytes() == b"x"


def test_paths_relative_to_the_projects_settings(bare_mono: Mono) -> None:
    mono = bare_mono
    mono.project(
        "teams/a", default("store", ("store", "../../../../remotes/a")) + "[cache]\n    dir = ../../own-cache\n"
    )
    mono.track("teams/a/x", b"x", "a")
    mono.track("teams/a/y", b"y", "a")
    mono.commit()
    clone = mono.clone()
    assert DvcApi(clone / "teams/a").dvc_pull("x").read_bytes() == b"x"
    assert (clone / "teams/own-cache/files/md5").is_dir()
    # Of a URL they lead nowhere: for the cache that is no matter, as for dvc get, and for the remote it is told.
    with pytest.raises(ClearmlClientError, match="a path relative to the repository"):
        DvcApi(mono.url, path=mono.home / "w").dvc_pull("teams/a/y")
    (mono.tree / "teams/a/.dvc/config").write_text(
        default("store", ("store", mono.remote("a"))) + "[cache]\n    dir = ../../own-cache\n"
    )
    mono.commit()
    assert DvcApi(mono.url, path=mono.home / "w").dvc_pull("teams/a/y").read_bytes() == b"y"


def test_a_remote_that_has_moved_is_where_it_is_now(mono: Mono) -> None:
    clone = mono.clone()
    mono.git("tag", "old", folder=clone)
    mono.remote("a").rename(mono.remote("new"))
    (clone / "teams/a/.dvc/config").write_text(default("store", ("store", mono.remote("new"))))
    assert DvcApi(clone / "teams/a", rev="old").dvc_pull("data/x.csv").read_bytes() == b"of a"


def test_what_nobody_pushed_is_in_the_projects_own_cache(bare_mono: Mono, monkeypatch: pytest.MonkeyPatch) -> None:
    mono = bare_mono
    site_cache = mono.home / "site-cache"
    site_cache.mkdir()
    monkeypatch.setattr(_settings, "SITE_CACHE", site_cache)
    (mono.home / "system" / "config").unlink()
    folder = mono.project("", "")
    (folder / "x").write_text("not pushed")
    dvc(folder, mono.variables, "add", "-q", "x")
    assert (folder / ".dvc/cache/files").is_dir()
    (folder / "x").unlink()
    assert DvcApi(folder).dvc_pull("x").read_text() == "not pushed"


def test_a_project_without_git(bare_mono: Mono) -> None:
    mono = bare_mono
    shutil.rmtree(mono.tree / ".git")
    text = default("store", ("store", mono.remote("a"))).replace("[core]", "[core]\n    no_scm = True")
    folder = mono.project("plain", text)
    mono.track("plain/x", b"x", "a")
    assert DvcApi(folder).dvc_pull("x").read_bytes() == b"x"
    with pytest.raises(ClearmlClientError, match="not under git"):
        DvcApi(folder, rev="main")


# Keys of the caller


class Locked(http.server.SimpleHTTPRequestHandler):
    """A remote that asks for a password."""

    asked: list[str | None]

    def _is_let_in(self) -> bool:
        self.asked.append(self.headers.get("Authorization"))
        if self.headers.get("Authorization") == "Basic " + base64.b64encode(b"user:pa$$w").decode():
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self) -> None:
        if self._is_let_in():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._is_let_in():
            super().do_HEAD()

    def log_message(self, *_: Any) -> None: ...


KEYS = "    auth = basic\n    user = user\n    password = pa$$w\n"


@pytest.fixture
def locked(bare_mono: Mono) -> Iterator[tuple[str, list[str | None]]]:
    """A project at teams/a whose remote asks for a password that is not in git; its address, and what it was sent."""
    asked: list[str | None] = []
    handler = type("Handler", (Locked,), {"asked": asked})
    folder = bare_mono.remote("web")
    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    bare_mono.project("teams/a", default("store", ("store", url)))
    bare_mono.track("teams/a/x", b"secret data", "web")
    bare_mono.commit()
    yield url, asked
    server.shutdown()
    server.server_close()


def test_without_keys_it_is_told(bare_mono: Mono, locked: tuple[str, list[str | None]]) -> None:
    with pytest.raises(ClearmlClientError, match="Check the remote's address and your access"):
        DvcApi(bare_mono.url).dvc_pull("teams/a/x")


@pytest.mark.parametrize("who", ["clone", "same name", "same address", "user"])
def test_keys_of_the_caller(
    bare_mono: Mono, locked: tuple[str, list[str | None]], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if who == "clone":
        here = bare_mono.clone()
        (here / "teams/a/.dvc/config.local").write_text("['remote \"store\"']\n" + KEYS)
        monkeypatch.chdir(here / "teams")
    elif who == "user":
        (bare_mono.home / "global").mkdir()
        (bare_mono.home / "global/config").write_text("['remote \"store\"']\n" + KEYS)
    else:
        here = bare_mono.home / "elsewhere"
        (here / ".dvc").mkdir()
        name = "store" if who == "same name" else "mine"
        url = "" if who == "same name" else f"    url = {locked[0]}\n"
        (here / ".dvc/config").write_text("")
        (here / ".dvc/config.local").write_text(f"['remote \"{name}\"']\n" + url + KEYS)
    assert DvcApi(bare_mono.url).dvc_pull("teams/a/x").read_bytes() == b"secret data"


def test_keys_are_not_given_to_another_address(
    bare_mono: Mono, locked: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = bare_mono.home / "elsewhere"
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text(default("store", ("store", "http://127.0.0.1:9/mine")))
    (here / ".dvc/config.local").write_text("['remote \"store\"']\n" + KEYS)
    with pytest.raises(ClearmlClientError, match="Check the remote's address"):
        DvcApi(bare_mono.url).dvc_pull("teams/a/x")
    assert not any(locked[1])


def test_settings_that_cannot_be_read_are_named_without_what_they_hold(mono: Mono) -> None:
    clone = mono.clone()
    file = clone / "teams/a/.dvc/config.local"
    file.write_text("['remote \"store\"']\n    password pass-word\n")
    with pytest.raises(ClearmlClientError, match=r"teams/a/.dvc/config.local cannot be read .*line 2") as caught:
        DvcApi(clone).dvc_pull("teams/a/data/x.csv")
    assert "pass-word" not in str(caught.value)


def test_a_remote_that_only_the_caller_has(bare_mono: Mono) -> None:
    mono = bare_mono
    mono.project("teams/a", "")
    mono.track("teams/a/x", b"x", "mirror")
    mono.commit()
    with pytest.raises(ClearmlClientError, match="has no default remote"):
        DvcApi(mono.url).dvc_pull("teams/a/x")
    here = mono.home / "elsewhere"
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("")
    (here / ".dvc/config.local").write_text(default("mirror", ("mirror", mono.remote("mirror"))))
    assert DvcApi(mono.url).dvc_pull("teams/a/x").read_bytes() == b"x"


def test_writings_of_one_repositorys_address() -> None:
    same = (
        "git@git.example.org:team/data.git",
        "git.example.org:/team/data",
        "ssh://git@git.example.org:2222/team/data.git/",
        "https://user:pa@ss@git.example.org/team/data",
    )
    assert {_settings._address(one) for one in same} == {"git.example.org/team/data"}
    assert _settings._address("file:///srv/data.git") == _settings._address("/srv/data") == "/srv/data"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://user:pa@ss@host/x", "ss"),
        ("fatal: 'https://tok-en@host/x.git' not found", "tok-en"),
        ("https://host/x?private_token=abc&y=1", "abc"),
        ("https://host/c?sv=1&sig=a%2Fb", "a%2Fb"),
        ("ssh://git:secret@host:22/x", "secret"),
    ],
)
def test_passwords_are_hidden(text: str, hidden: str) -> None:
    assert hidden not in masked(text).replace("host", "")
    assert masked("s3://bucket/a@b") == "s3://bucket/a@b"


# Pipelines and imports


def test_outputs_of_a_pipeline_have_their_own_remote_or_no_cache(bare_mono: Mono) -> None:
    mono = bare_mono
    folder = mono.project("teams/a", default("store", ("store", mono.remote("a")), ("other", mono.remote("other"))))
    (folder / "dvc.yaml").write_text(
        "stages:\n  one:\n    foreach: [p, q]\n    do:\n      cmd: x\n      outs:\n"
        "        - out/${item}.csv: {remote: other}\n        - out/here-${item}: {cache: false}\n"
    )
    here, there = b"in git", b"in the other remote"
    put(mono.remote("other"), there)
    outs = json.dumps([{"path": "out/p.csv", "hash": "md5", "md5": md5(there)}])
    more = json.dumps([{"path": "out/here-p", "hash": "md5", "md5": md5(here)}])
    (folder / "dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  one@p:\n    cmd: x\n    outs: {outs[:-1]}, {more[1:]}\n"
    )
    mono.commit()
    api = DvcApi(mono.url)
    assert api.tracked() == ["teams/a/out/p.csv"]
    assert api.dvc_pull("teams/a/out/p.csv").read_bytes() == mono.get("teams/a/out/p.csv") == there


def test_an_output_that_leads_out_is_not_followed(mono: Mono) -> None:
    (mono.tree / "teams/a/bad.dvc").write_text(out_of("../../../../escaped", b"of a"))
    (mono.tree / "teams/a/worse.dvc").write_text(out_of(str(mono.home / "escaped"), b"of a"))
    mono.commit()
    api = DvcApi(mono.url)
    assert api.tracked() == sorted(ALL)


def test_an_import_of_a_project_into_another(mono: Mono) -> None:
    clone = mono.clone()
    dvc(clone / "teams/b", mono.variables, "import", "-q", "../../../mono.git", "teams/a/data/x.csv", "-o", "i.csv")
    assert (clone / "teams/b/i.csv").read_bytes() == b"of a"
    (clone / "teams/b/i.csv").unlink()
    shutil.rmtree(mono.home / "dvc_cache" / "files")
    assert DvcApi(clone).dvc_pull("teams/b/i.csv").read_bytes() == b"of a"


def test_a_folder_behind_another_remote_in_a_project_of_any_name(bare_mono: Mono) -> None:
    mono = bare_mono
    inner = mono.remote("base") / "inner"
    remotes = default("sub", ("base", mono.remote("base")), ("sub", "remote://base/inner"))
    # Folders of DVC's own are of no matter to a fetch, and must not be made elsewhere.
    mono.project(
        "teams/ä b", remotes.replace("[core]", "[core]\n    site_cache_dir = ../../../x") + "[db]\n    url = q\n"
    )
    listing = json.dumps([{"md5": put(inner, b"one"), "relpath": "é ü/f.bin"}]).encode()
    name = put(inner, listing)
    place = inner / "files" / "md5" / name[:2] / name[2:]
    place.rename(place.with_name(place.name + ".dir"))
    out = {"md5": name + ".dir", "nfiles": 1, "hash": "md5", "path": "dä"}
    (mono.tree / "teams/ä b/dä.dvc").write_text(f"outs: {json.dumps([out])}\n")
    mono.commit()
    api = DvcApi(mono.url)
    assert api.tracked() == ["teams/ä b/dä"]
    assert content_of(api.dvc_pull("teams/ä b/dä/é ü")) == {"f.bin": b"one"}
    assert content_of(api.dvc_pull("teams/ä b/dä")) == {"é ü/f.bin": b"one"}


def test_a_remote_of_the_users_settings_and_a_lock_of_dvc_1(bare_mono: Mono) -> None:
    mono = bare_mono
    (mono.home / "global").mkdir()
    (mono.home / "global/config").write_text(default("mine", ("mine", mono.remote("mine"))))
    folder = mono.project("teams/a", "")
    put(mono.remote("mine"), b"x")
    (folder / "dvc.yaml").write_text("stages:\n  one:\n    cmd: x\n    outs: [x]\n")
    (folder / "dvc.lock").write_text(f"one:\n  cmd: x\n  outs:\n  - path: x\n    hash: md5\n    md5: {md5(b'x')}\n")
    mono.commit()
    assert DvcApi(mono.url).dvc_pull("teams/a/x").read_bytes() == b"x"


def test_the_password_of_an_imports_repository_is_not_told(bare_mono: Mono) -> None:
    mono = bare_mono
    folder = mono.project("teams/a", default("a", ("a", mono.remote("a"))))
    repo = {"url": "http://user:s3cr@t@127.0.0.1:9/x.git", "rev_lock": "0" * 40}
    deps = f"deps: {json.dumps([{'path': 'x', 'repo': repo}])}\n"
    (folder / "i.dvc").write_text("frozen: true\n" + deps + out_of("i", b"i"))
    mono.commit()
    with pytest.raises(ClearmlClientError, match="the repository it is imported from") as caught:
        DvcApi(mono.url).dvc_pull("teams/a/i")
    assert "s3cr" not in str(caught.value)
    assert "@t" not in str(caught.value)


def test_what_another_repository_gives_is_verified(mono: Mono) -> None:
    clone = mono.clone()
    dvc(clone / "teams/b", mono.variables, "import", "-q", mono.url, "teams/a/data/x.csv", "-o", "i.csv")
    (clone / "teams/b/i.csv").unlink()
    shutil.rmtree(mono.home / "dvc_cache" / "files")
    put(mono.remote("a"), b"of a")
    held = mono.remote("a") / "files/md5" / md5(b"of a")[:2] / md5(b"of a")[2:]
    held.write_bytes(b"OF A")
    with pytest.raises(ClearmlClientError, match="whose hash does not verify"):
        DvcApi(clone).dvc_pull("teams/b/i.csv")
    held.write_bytes(b"of a")
    assert DvcApi(clone).dvc_pull("teams/b/i.csv").read_bytes() == b"of a"


# clearml-client data --dvc


def test_two_projects_do_not_take_each_others_tags(mono: Mono) -> None:
    clone = mono.clone()
    one, other = DvcStore(clone / "teams/a"), DvcStore(clone / "teams/b")
    (mono.home / "new").write_bytes(b"new")
    done = one.upload(mono.home / "new", "data/new", version="1.0", tags=["golden"])
    assert str(done) == "data/new@1.0"
    assert set(mono.git("tag", folder=mono.bare).split()) == {"teams/a/data/new@1.0", "teams/a/data/new@golden"}
    assert put(mono.home / "unused", b"new")
    held = mono.remote("a") / "files/md5" / md5(b"new")[:2] / md5(b"new")[2:]
    assert held.read_bytes() == b"new", "pushed to its own project's remote"
    with pytest.raises(ClearmlClientError, match=r"has no revision '1\.0'; it has main, teams/a"):
        other.find("data/new@1.0")
    # From above, and by URL, the same version has the whole path.
    above = DvcStore(clone)
    assert str(above.find("teams/a/data/new@golden")) == "teams/a/data/new@1.0"
    assert DvcStore(mono.url).download("teams/a/data/new@1.0").read_bytes() == b"new"
    tree = DvcStore(mono.url).tree("teams/b/data/x.csv")
    assert (tree.version.name, tree.files) == ("teams/b/data/x.csv", 1)
    assert "teams/a/data/x.csv" in [version.name for version in above.ls()]


def test_an_upload_from_above_goes_to_the_paths_project(mono: Mono) -> None:
    clone = mono.clone()
    (mono.home / "new").write_bytes(b"new")
    done = DvcStore(clone).upload(mono.home / "new", "teams/b/data/new", version="1.0")
    assert str(done) == "teams/b/data/new@1.0"
    assert (mono.remote("b") / "files/md5" / md5(b"new")[:2] / md5(b"new")[2:]).is_file()
    assert DvcStore(clone / "teams/b").find("data/new@1.0").id == done.id.replace("teams/b/", "")


def test_tags_of_a_lone_project_may_have_its_own_paths(bare_mono: Mono) -> None:
    mono = bare_mono
    mono.project("store", default("store", ("store", mono.remote("a"))))
    mono.track("store/x", b"x", "a")
    mono.commit()
    mono.git("tag", "-am", "one", "x@1.0")
    assert [str(one) for one in DvcStore(mono.tree / "store").versions("x")] == ["x@1.0"]


def test_the_commands(mono: Mono) -> None:
    def client(*arguments: str) -> Any:
        command = [sys.executable, "-m", "clearml_client", "data", *arguments, "--dvc", mono.url, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    assert {row["name"] for row in client("ls")} == set(ALL)
    client("download", "teams/b/data/x.csv", str(mono.home / "target"))
    assert (mono.home / "target").read_bytes() == b"of b"
