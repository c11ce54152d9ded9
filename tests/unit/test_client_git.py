"""What is recorded of a working directory makes it again; what a remote does not have is refused with the reason."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clearml.backend_interface.task.repo.detectors import GitDetector
from clearml_client import _sdk
from clearml_client._git import reasons_not_reproducible
from clearml_client._remote_code import missing_code
from test_client_core import Site, server, site

__all__ = ["server", "site"]


class Repository:
    """A working directory with a remote, and what an agent makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bare, self.tree = folder / "bare.git", folder / "tree"
        run("git", "init", "--quiet", "--bare", "--initial-branch=main", self.bare)
        run("git", "init", "--quiet", "--initial-branch=main", self.tree)
        self.git("remote", "add", "origin", f"file://{self.bare}")
        self.write("train.py", "print('old')\n")
        self.write("part/notes.txt", "eins\nzwei\ndrei\n")
        self.write("latin.txt", "gr\xfcn\n".encode("latin-1"))
        self.write("crlf.txt", b"one\r\ntwo\r\n")
        self.write("end.txt", b"no newline")
        self.write("with space.txt", "a\n")
        self.write("\xfcnicode\t\u2603.txt", "a\n")
        self.write("run.sh", "#!/bin/sh\n")
        (self.tree / "link").symlink_to("train.py")
        self.commit("Start")

    def git(self, *words: str | Path, **variables: str) -> str:
        return run("git", "-C", self.tree, *words, **variables)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str = "Change", push: bool = True) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message={message}")
        if push:
            self.git("push", "--quiet", "origin", "HEAD")

    def recorded(self) -> str:
        """Return the diff that the SDK records."""
        _sdk._record_what_is_here()
        # The SDK asks in the script's folder.
        folder = self.tree / "part" if (self.tree / "part").is_dir() else self.tree
        return str(GitDetector().get_info(str(folder), include_diff=True).diff)

    def as_an_agent_makes_it(self, diff: str) -> Path:
        """Clone, check out and apply, with the agent's own commands."""
        clone = self.folder / "clone"
        shutil.rmtree(clone, ignore_errors=True)
        run("git", "clone", "--quiet", "--recursive", f"file://{self.bare}", clone)
        run("git", "-C", clone, "checkout", "--quiet", self.git("rev-parse", "HEAD").strip(), "--force")
        if diff:
            assert diff.lstrip().lower().startswith("diff "), "the agent takes it for a script"
            # bytes, and no universal newlines
            done = subprocess.run(
                ["git", "-C", clone, "apply", "--unidiff-zero"], input=diff.encode() + b"\n", capture_output=True
            )
            assert done.returncode == 0, done.stderr
        return clone


def run(*words: str | Path, **variables: str) -> str:
    identity = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, **identity, **variables},
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(folder: Path) -> dict[str, tuple[str, bytes, bool]]:
    """Return kind, content and run bit of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            found[name] = ("link", os.fsencode(path.readlink()), False)
        else:
            found[name] = ("file", path.read_bytes(), os.access(path, os.X_OK))
    return found


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    # Nobody's own configuration, and one that a case may write.
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return Repository(tmp_path)


# --- what is recorded makes what is here -----------------------------------------------------------------------------

Case = Callable[[Repository], object]


def edited(at: Repository) -> None:
    at.write("train.py", "print('new')\n")


def setting(*settings: str) -> Case:
    def case(at: Repository) -> None:
        for one in settings:
            at.git("config", *one.split("=", 1))
        edited(at)
        at.write("part/notes.txt", "eins\nZWEI\ndrei\n")
        at.git("mv", "with space.txt", "moved.txt")

    return case


def latin(at: Repository) -> None:
    edited(at)
    at.write("latin.txt", "gr\xfcn und bl\xe4ulich\n".encode("latin-1"))


def every_kind(at: Repository) -> None:
    latin(at)
    at.write("crlf.txt", b"one\r\nTWO\r\nthree\n")
    at.write("end.txt", b"still no newline")
    at.write("with space.txt", "b\n")
    at.write("\xfcnicode\t\u2603.txt", "b")
    (at.tree / "run.sh").chmod(0o755)
    (at.tree / "link").unlink()
    (at.tree / "link").symlink_to("part/notes.txt")
    (at.tree / "part/notes.txt").unlink()


def staged(at: Repository) -> None:
    at.write("new.py", "staged = True\n")
    at.git("add", "new.py")
    at.write("new.py", "staged = 'and changed since'\n")


def intended(at: Repository) -> None:
    at.write("new.py", "x = 1\n")
    at.git("add", "--intent-to-add", "new.py")


def hidden(flag: str) -> Case:
    def case(at: Repository) -> None:
        edited(at)
        at.git("update-index", flag, "train.py")

    return case


def ignored(at: Repository) -> None:
    at.write(".gitignore", "train.py\n")
    at.commit()
    edited(at)


def same_size_and_time(at: Repository) -> None:
    path = at.tree / "train.py"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    at.git("status")
    edited(at)
    os.utime(path, ns=times)


def merging(at: Repository) -> None:
    at.git("checkout", "--quiet", "-b", "other")
    at.write("train.py", "print('theirs')\n")
    at.commit(push=False)
    at.git("checkout", "--quiet", "main")
    at.write("train.py", "print('ours')\n")
    at.commit()
    with pytest.raises(AssertionError):
        at.git("merge", "other")
    at.write("train.py", "print('half merged')\n")


def link_for_file(at: Repository) -> None:
    (at.tree / "train.py").unlink()
    (at.tree / "train.py").symlink_to("run.sh")


def folder_for_file(at: Repository) -> None:
    (at.tree / "end.txt").unlink()
    at.write("end.txt/inside.txt", "x\n")
    at.git("add", "end.txt/inside.txt")


def file_for_folder(at: Repository) -> None:
    shutil.rmtree(at.tree / "part")
    at.write("part", "x\n")
    at.git("add", "part")


def attributes(text: str) -> Case:
    def case(at: Repository) -> None:
        at.write(".gitattributes", text)
        at.commit()
        at.write("train.py", "print('new')\n")
        at.write("part/notes.txt", "eins\nZWEI\ndrei\n")

    return case


def utf16(at: Repository) -> None:
    at.write(".gitattributes", "wide.txt text working-tree-encoding=UTF-16LE-BOM\n")
    at.write("wide.txt", "\ufeffalt\n".encode("utf-16-le"))
    at.commit()
    at.write("wide.txt", "\ufeffneu\n".encode("utf-16-le"))


def deleted_binary(at: Repository) -> None:
    at.write("weights.bin", bytes(range(256)))
    at.commit()
    (at.tree / "weights.bin").unlink()


def run_bit_of_a_binary(at: Repository) -> None:
    at.write("tool.bin", bytes(range(256)))
    at.commit()
    (at.tree / "tool.bin").chmod(0o755)


def replaced(at: Repository) -> None:
    old = at.git("rev-parse", "HEAD").strip()
    edited(at)
    at.commit(push=False)
    new = at.git("rev-parse", "HEAD").strip()
    at.git("reset", "--quiet", "--soft", old)
    at.git("replace", old, new)


def control_characters(at: Repository) -> None:
    at.write("train.py", "x = '\x1b[1m \x0c \u2028 \x85 \x01'\r# bare\n")


def names_that_look_like_a_diff(at: Repository) -> None:
    at.write("part/notes.txt", "-- a/train.py\n++ b/x\ndiff --git a/x b/x\n")
    at.commit()
    at.write("part/notes.txt", "eins\n")


def name_in_another_encoding(at: Repository) -> None:
    name = os.fsdecode(b'gr\xfcn "x".txt')
    at.write(name, b"gr\xfcn\n")
    at.commit()
    at.write(name, b"bl\xe4ulich\n")


def strange_folder(at: Repository) -> None:
    tree = at.folder / 'a:b "c" \xfc; \\x'
    at.tree.rename(tree)
    at.tree = tree
    latin(at)


def hook(at: Repository) -> None:
    path = at.tree / ".git/hooks/post-index-change"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\ntouch called-by-a-hook\n")
    path.chmod(0o755)
    edited(at)


CASES: dict[str, Case] = {
    "a name in another encoding": name_in_another_encoding,
    "a folder with a strange name": strange_folder,
    "a hook": hook,
    "an edit": edited,
    "latin-1 beside an edit": latin,
    "every kind of file": every_kind,
    "color.ui": setting("color.ui=always"),
    "color.diff": setting("color.diff=always"),
    "noprefix": setting("diff.noprefix=true"),
    "mnemonicPrefix": setting("diff.mnemonicPrefix=true"),
    "prefixes": setting("diff.srcPrefix=x/", "diff.dstPrefix=y/"),
    "external": setting("diff.external=true"),
    "pager": setting("core.pager=false", "pager.diff=false"),
    "quotePath": setting("core.quotePath=false"),
    "copies": setting("diff.renames=copies"),
    "algorithm": setting("diff.algorithm=patience", "diff.indentHeuristic=false"),
    "context": setting("diff.context=0", "diff.interHunkContext=9"),
    "order": setting("diff.orderFile=/dev/null"),
    "white space": setting("diff.wsErrorHighlight=all", "core.whitespace=fix", "apply.whitespace=error"),
    "wordRegex": setting("diff.wordRegex=."),
    "suppressBlankEmpty": setting("diff.suppressBlankEmpty=true"),
    "relative": setting("diff.relative=true"),
    "submodule": setting("diff.submodule=log", "diff.ignoreSubmodules=all"),
    "fsmonitor": setting("core.fsmonitor=true"),
    "ignoreStat": setting("core.ignoreStat=true"),
    "split index": setting("core.splitIndex=true"),
    "safecrlf": setting("core.safecrlf=true", "core.autocrlf=input"),
    "alias": setting("alias.diff=!false"),
    "staged, then changed": staged,
    "intended to add": intended,
    "assume-unchanged": hidden("--assume-unchanged"),
    "skip-worktree": hidden("--skip-worktree"),
    "ignored but tracked": ignored,
    "same size and time": same_size_and_time,
    "a merge": merging,
    "a link for a file": link_for_file,
    "a folder for a file": folder_for_file,
    "a file for a folder": file_for_folder,
    "text conversion": attributes("*.py diff=python\n*.txt -diff\n"),
    "attributes": attributes("* text eol=lf\n*.py binary\n"),
    "utf-16": utf16,
    "a deleted binary": deleted_binary,
    "the run bit of a binary": run_bit_of_a_binary,
    "git replace": replaced,
    "control characters": control_characters,
    "lines that look like a diff": names_that_look_like_a_diff,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_agent_makes_what_is_here(repository: Repository, case: Case) -> None:
    case(repository)
    assert [reason for reason in reasons_not_reproducible(repository.tree) if "ignored by" not in reason] == []
    made = content(repository.as_an_agent_makes_it(repository.recorded()))
    expected = content(repository.tree)
    if case in (CASES["safecrlf"], CASES["attributes"]):  # what git stores of it is what its owner wants
        made = {name: (kind, data.replace(b"\r\n", b"\n"), mode) for name, (kind, data, mode) in made.items()}
        expected = {name: (kind, data.replace(b"\r\n", b"\n"), mode) for name, (kind, data, mode) in expected.items()}
    assert made == expected


def test_what_was_recorded_is_raised_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    every_kind(repository)
    diff, commit, address = repository.recorded(), repository.git("rev-parse", "HEAD").strip(), repository.bare
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")
    (Path(os.environ["HOME"]) / ".gitconfig").write_text("[core]\n\tautocrlf = true\n[apply]\n\twhitespace = error\n")
    assert missing_code(f"file://{address}", commit, diff) is None
    told = missing_code(f"file://{address}", commit, diff.replace("diff --git", "\x1b[1mdiff --git"), "train.py")
    assert told is not None
    assert "are not a diff, agents would not apply them; they begin with '\\x1b[1mdiff" in told
    assert missing_code(f"file://{address}", commit, "print('a notebook')\n", "notebook.py") is None


@pytest.mark.parametrize(
    "variables",
    [
        {"GIT_DIR": "/nowhere"},
        {"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere"},
        {"GIT_INDEX_FILE": "/nowhere"},
        {"GIT_OBJECT_DIRECTORY": "/nowhere"},
        {"GIT_EXTERNAL_DIFF": "true"},
        {"GIT_DIFF_OPTS": "--unified=0"},
        {"GIT_PAGER": "false", "PAGER": "false"},
        {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "color.ui", "GIT_CONFIG_VALUE_0": "always"},
        {"GIT_CONFIG_PARAMETERS": "'diff.noprefix'='true'"},
        {"GIT_LITERAL_PATHSPECS": "1"},
        {"GIT_PREFIX": "part/"},
        {"LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de"},
    ],
    ids=str,
)
def test_the_environment_changes_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    every_kind(repository)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert reasons_not_reproducible(repository.tree) == []
    diff = repository.recorded()
    assert {name: os.environ.get(name) for name in variables} == variables
    for name in variables:
        monkeypatch.delenv(name)
    assert content(repository.as_an_agent_makes_it(diff)) == content(repository.tree)


@pytest.mark.parametrize("case", [every_kind, staged, intended, merging, hidden("--skip-worktree")])
def test_the_repository_is_left_as_it_was(repository: Repository, case: Case) -> None:
    case(repository)
    files = {path: path.read_bytes() for path in (repository.tree / ".git").rglob("*") if path.is_file()}
    reasons_not_reproducible(repository.tree)
    repository.recorded()
    assert files == {path: path.read_bytes() for path in (repository.tree / ".git").rglob("*") if path.is_file()}


def test_hashes_of_the_newer_kind(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    (tmp_path / "sha256").mkdir()
    other = Repository(tmp_path / "sha256")
    every_kind(other)
    assert reasons_not_reproducible(other.tree) == []
    assert content(other.as_an_agent_makes_it(other.recorded())) == content(other.tree)


@pytest.mark.parametrize("kind", ["--cone", "--no-cone", "--sparse-index"])
def test_a_sparse_checkout_deletes_nothing(repository: Repository, kind: str) -> None:
    repository.git("sparse-checkout", "set", kind, "nothing" if kind != "--no-cone" else "/train.py")
    edited(repository)
    assert reasons_not_reproducible(repository.tree) == []
    made = content(repository.as_an_agent_makes_it(repository.recorded()))
    assert made["train.py"][1] == b"print('new')\n"
    assert "part/notes.txt" in made


# --- what remotes have -----------------------------------------------------------------------------------------------


def other_bare(at: Repository, name: str) -> Path:
    path = at.folder / f"{name}.git"
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", path)
    return path


def add_submodule(at: Repository, name: str = "part/sub", nested: bool = False) -> Repository:
    """Add a submodule of a repository of its own, which may have one itself; return it where it is checked out."""
    (at.folder / name.replace("/", "-")).mkdir()
    source = Repository(at.folder / name.replace("/", "-"))
    source.git("push", "--quiet", "origin", "main")
    if nested:
        add_submodule(source, "deep")
    at.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"file://{source.bare}", name)
    at.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")
    at.commit("Add a submodule")
    source.tree = at.tree / name
    return source


def fork_only(at: Repository) -> None:
    at.git("remote", "add", "fork", f"file://{other_bare(at, 'fork')}")
    edited(at)
    at.commit(push=False)
    at.git("push", "--quiet", "fork", "main")


def branch_deleted(at: Repository) -> None:
    at.git("checkout", "--quiet", "-b", "topic")
    edited(at)
    at.commit()
    run("git", "-C", at.bare, "branch", "-D", "topic")


def force_pushed(at: Repository) -> None:
    old = at.git("rev-parse", "HEAD").strip()
    edited(at)
    at.commit()
    run("git", "-C", at.bare, "update-ref", "refs/heads/main", old)


def colleague_pushed_on(at: Repository) -> None:
    other = at.folder / "colleague"
    run("git", "clone", "--quiet", at.bare, other)
    edited(at)
    at.commit()
    run("git", "-C", other, "pull", "--quiet")
    (other / "more.txt").write_text("x\n")
    run("git", "-C", other, "add", ".")
    run("git", "-C", other, "commit", "--quiet", "--message=More")
    run("git", "-C", other, "push", "--quiet", "origin", "main")


def pushed_from_elsewhere(at: Repository) -> None:
    """The commit is at the remote, and no ref here says so."""
    edited(at)
    at.commit()
    at.git("update-ref", "-d", "refs/remotes/origin/main")


def tagged_only(at: Repository) -> None:
    at.git("checkout", "--quiet", "--detach")
    edited(at)
    at.commit(push=False)
    at.git("tag", "--annotate", "--message=x", "v1")
    at.git("push", "--quiet", "origin", "v1")
    at.git("tag", "--delete", "v1")


def upstream_is_fork(at: Repository) -> None:
    fork_only(at)
    at.git("branch", "--set-upstream-to=fork/main")


def upstream_is_here(at: Repository) -> None:
    at.git("checkout", "--quiet", "-b", "topic", "--track", "main")


def renamed_remote(at: Repository) -> None:
    at.git("remote", "rename", "origin", "company")


def instead_of(at: Repository) -> None:
    at.git("config", f"url.file://{at.folder}/.insteadOf", "company:")
    at.git("remote", "set-url", "origin", "company:bare.git")


def neither_is_origin(at: Repository) -> None:
    at.git("remote", "rename", "origin", "company")
    at.git("remote", "add", "fork", f"file://{other_bare(at, 'fork')}")


def neither_but_followed(at: Repository) -> None:
    neither_is_origin(at)
    at.git("branch", "--set-upstream-to=company/main")


def inside_a_submodule(at: Repository) -> None:
    sub = add_submodule(at)
    at.tree, at.bare = sub.tree, sub.bare
    at.git("checkout", "--quiet", "main")
    colleague_pushed_on(at)
    latin(at)


def explicit_bare(at: Repository) -> None:
    (Path(os.environ["HOME"]) / ".gitconfig").write_text("[safe]\n\tbareRepository = explicit\n")
    colleague_pushed_on(at)


def push_elsewhere(at: Repository) -> None:
    at.git("config", "remote.origin.pushurl", f"file://{other_bare(at, 'push')}")
    edited(at)
    at.commit()


def relative(at: Repository) -> None:
    at.git("remote", "set-url", "origin", "../bare.git")


def again(at: Repository, *words: str) -> None:
    """Clone it anew, with options."""
    shutil.rmtree(at.tree)
    run("git", "clone", "--quiet", *words, f"file://{at.bare}", at.tree)


def shallow_behind(at: Repository) -> None:
    again(at, "--depth=1")
    colleague_pushed_on(at)


def single_branch(at: Repository) -> None:
    at.git("push", "--quiet", "origin", "main:other")
    again(at, "--single-branch", "--branch=other")
    at.git("checkout", "--quiet", "-b", "mine")
    edited(at)
    at.commit()
    at.git("config", "--unset-all", "remote.origin.fetch")


def partial_clone(at: Repository) -> None:
    run("git", "-C", at.bare, "config", "uploadpack.allowFilter", "true")
    again(at, "--filter=blob:none")
    edited(at)


def worktree(at: Repository) -> None:
    at.git("worktree", "add", "--quiet", at.folder / "second", "-b", "second")
    at.tree = at.folder / "second"
    edited(at)


def untracked_in_submodule(at: Repository) -> None:
    add_submodule(at).write("new.py", "x = 1\n")


def ignored_by_setting(at: Repository) -> None:
    add_submodule(at).write("train.py", "changed\n")
    at.git("config", "submodule.part/sub.ignore", "all")
    at.git("config", "diff.ignoreSubmodules", "all")


def hidden_in_submodule(at: Repository) -> None:
    sub = add_submodule(at)
    sub.write("train.py", "changed\n")
    sub.git("update-index", "--assume-unchanged", "train.py")


def staged_in_submodule(at: Repository) -> None:
    sub = add_submodule(at)
    sub.write("new.py", "x = 1\n")
    sub.git("add", "new.py")


def untracked_in_nested(at: Repository) -> None:
    add_submodule(at, nested=True).write("deep/new.py", "x = 1\n")


def changed_in_nested(at: Repository) -> None:
    add_submodule(at, nested=True).write("deep/train.py", "x = 1\n")


def submodule_unpushed(at: Repository) -> None:
    sub = add_submodule(at)
    sub.write("train.py", "x = 1\n")
    sub.commit(push=False)
    at.commit()


def submodule_moved_on(at: Repository) -> None:
    sub = add_submodule(at)
    sub.write("train.py", "x = 1\n")
    sub.commit(push=False)


def submodule_added(at: Repository) -> None:
    add_submodule(at)
    at.git("reset", "--quiet", "--soft", "HEAD~1")
    at.git("push", "--quiet", "--force", "origin", "main")


def submodule_gone(at: Repository) -> None:
    shutil.rmtree(add_submodule(at).bare)


def embedded(at: Repository) -> None:
    run("git", "clone", "--quiet", at.bare, at.tree / "inner")
    at.commit()


def submodule_elsewhere(at: Repository) -> None:
    """Here its remote is another one than what .gitmodules says."""
    sub = add_submodule(at)
    sub.git("remote", "set-url", "origin", f"file://{other_bare(at, 'mine')}")
    sub.write("train.py", "x = 1\n")
    sub.commit(push=False)
    sub.git("push", "--quiet", "origin", "HEAD:main")
    at.commit()


def relative_submodule(at: Repository) -> None:
    add_submodule(at)
    at.git("config", "--file", ".gitmodules", "submodule.part/sub.url", "../part-sub/bare.git")
    at.commit()


def submodule_not_fetched(at: Repository) -> None:
    add_submodule(at)
    at.git("submodule", "deinit", "--force", "--all")


def lfs(at: Repository) -> None:
    at.git("config", "filter.lfs.clean", "sha256sum")
    at.git("config", "filter.lfs.smudge", "tr a b")
    at.write(".gitattributes", "*.dat filter=lfs\n")
    at.write("x.dat", "a\n")
    at.commit()
    at.write("x.dat", "aa\n")


def binary(at: Repository) -> None:
    at.write("weights.bin", b"\0\1")
    at.commit()
    at.write("weights.bin", b"\0\2")


GONE = "is in no branch of the remote, agents could not fetch it: `git push origin"

REMOTES: dict[str, tuple[Case, str | None]] = {
    "at a second remote only": (fork_only, GONE),
    "a deleted branch": (branch_deleted, "which had it when it was fetched last"),
    "force-pushed": (force_pushed, GONE),
    "a colleague pushed on": (colleague_pushed_on, None),
    "no ref here": (pushed_from_elsewhere, None),
    "a tag only": (tagged_only, None),
    "the branch follows a fork": (upstream_is_fork, None),
    "the branch follows one here": (upstream_is_here, "would record the remote '.', which only this machine can read"),
    "another name": (renamed_remote, None),
    "two remotes": (neither_is_origin, "cannot say which remote an experiment should record, company or fork"),
    "two remotes, and the branch follows one": (neither_but_followed, None),
    "inside a submodule": (inside_a_submodule, None),
    "no bare repositories": (explicit_bare, None),
    "insteadOf": (instead_of, None),
    "pushed elsewhere": (push_elsewhere, GONE),
    "a relative path": (relative, "would record the remote '../bare.git'"),
    "shallow": (lambda at: again(at, "--depth=1"), None),
    "shallow and behind": (shallow_behind, None),
    "a single branch": (single_branch, None),
    "a partial clone": (partial_clone, None),
    "a worktree": (worktree, None),
    "a submodule": (add_submodule, None),
    "nested submodules": (lambda at: add_submodule(at, nested=True), None),
    "a relative submodule": (relative_submodule, None),
    "a submodule that is not here": (submodule_not_fetched, None),
    "untracked in a submodule": (untracked_in_submodule, "git does not track part/sub/new.py (in the submodule part"),
    "untracked in a nested one": (untracked_in_nested, "git does not track part/sub/deep/new.py"),
    "ignored by a setting": (ignored_by_setting, "the submodule part/sub has changed"),
    "hidden in a submodule": (hidden_in_submodule, "the submodule part/sub has changed"),
    "staged in a submodule": (staged_in_submodule, "the submodule part/sub has changed"),
    "changed in a nested one": (changed_in_nested, "the submodule part/sub/deep has changed"),
    "a submodule's commit is here only": (submodule_unpushed, "of the submodule part/sub is in no branch of file://"),
    "a submodule's remote here is another": (submodule_elsewhere, "of the submodule part/sub is in no branch of"),
    "a submodule has moved on": (submodule_moved_on, "the submodule part/sub has changed"),
    "a submodule is new": (submodule_added, "the submodule part/sub has changed"),
    "a submodule's remote is gone": (submodule_gone, "of the submodule part/sub could not be asked"),
    "a repository inside": (embedded, "inner is a repository of its own inside this one"),
    "a filter": (lfs, "x.dat is stored by a filter"),
    "a binary": (binary, "the changed binary weights.bin cannot travel in a diff"),
}


@pytest.mark.parametrize(("case", "told"), REMOTES.values(), ids=REMOTES.keys())
def test_the_remote_is_asked(repository: Repository, case: Case, told: str | None) -> None:
    case(repository)
    reasons = reasons_not_reproducible(repository.tree)
    if told is None:
        assert reasons == []
    else:
        (reason,) = reasons
        assert told in reason


def test_other_hashes_by_default(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    colleague_pushed_on(repository)
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    assert reasons_not_reproducible(repository.tree) == []


def test_which_remote_has_it_is_said(repository: Repository) -> None:
    fork_only(repository)
    (reason,) = reasons_not_reproducible(repository.tree)
    assert "which an experiment records; fork may have it" in reason


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["git", "http", "ssh"])
def test_a_remote_that_says_nothing_is_given_up(
    repository: Repository, silent: int, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """What git has started holds its pipes: it has to end too, or this waits for ever."""
    monkeypatch.setattr("clearml_client._git._remote.ASK_SECONDS", 0.5)
    repository.git("remote", "set-url", "origin", f"{scheme}://127.0.0.1:{silent}/x.git")
    (reason,) = reasons_not_reproducible(repository.tree)
    assert "could not be asked whether it has the commit (git ls-remote took more than" in reason
    assert reasons_not_reproducible(repository.tree, ask=False) == []


def test_a_remote_that_is_not_there_is_told_without_its_password(repository: Repository) -> None:
    repository.git("remote", "set-url", "origin", "http://me:secret@127.0.0.1:1/x.git")
    (reason,) = reasons_not_reproducible(repository.tree)
    assert "the remote origin (http://127.0.0.1:1/x.git) could not be asked" in reason
    assert "secret" not in reason


def test_the_person_s_own_ssh_is_used(repository: Repository, tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/called\nexec git-upload-pack {repository.bare}\n')
    program.chmod(0o755)
    repository.git("config", "core.sshCommand", str(program))
    repository.git("remote", "set-url", "origin", "git@example.org:team/x.git")
    assert reasons_not_reproducible(repository.tree) == []
    assert "BatchMode=yes" in (tmp_path / "called").read_text()


def test_what_git_refuses_to_read_is_told_as_such(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (reason,) = reasons_not_reproducible(repository.tree)
    assert "dubious ownership" in reason


def test_without_git_it_is_told(repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (reason,) = reasons_not_reproducible(repository.tree)
    assert "there is no git on this machine: install it" in reason


# --- into the queue --------------------------------------------------------------------------------------------------

SCRIPT = "init_clearml('code', project='team/training', queue='all_gpus')\nprint('trained here')\n"


def applied(site: Site, script: dict[str, Any]) -> bytes:
    """Return the script that an agent would run of what the server has."""
    clone = site.folder / "clone"
    run("git", "clone", "--quiet", script["repository"], clone)
    run("git", "-C", clone, "checkout", "--quiet", script["version_num"])
    if script.get("diff"):
        assert script["diff"].startswith("diff "), script["diff"]
        data = script["diff"].encode() + b"\n"
        subprocess.run(["git", "-C", clone, "apply", "--unidiff-zero"], input=data, check=True)
    return (clone / script["working_dir"] / script["entry_point"]).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "variables"),
    [
        ("latin-1", {}),
        ("color.ui", {}),
        ("assume-unchanged", {}),
        ("", {"GIT_EXTERNAL_DIFF": "true"}),
        ("", {"GIT_DIR": "/nowhere"}),
        ("", {"CLEARML_VCS_DIFF": base64.b64encode(b"diff --git a/x b/x\n").decode()}),
    ],
)
def test_the_server_has_what_is_here(site: Site, spoil: str, variables: dict[str, str]) -> None:
    (site.tree / "notes.txt").write_bytes("gr\xfcn\n".encode("latin-1"))
    site.write(SCRIPT)
    site.write(SCRIPT + "# new\n", push=False)
    if spoil == "latin-1":
        (site.tree / "notes.txt").write_bytes("bl\xe4ulich\n".encode("latin-1"))
    elif spoil == "color.ui":
        site.git("config", "color.ui", "always")
    elif spoil:
        site.git("update-index", "--assume-unchanged", "train.py")
    code, out, err = site.run(**variables)
    assert code == 0, err
    assert "trained here" not in out
    assert "Can't get diff information" not in out + err
    assert "is a folder: the nodes of the queue need it in the same place" in err
    (task,) = site.tasks()
    assert task["status"] == "queued"
    assert applied(site, task["script"]) == (site.tree / "train.py").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("another commit", "CLEARML_VCS_COMMIT_ID and the like change what is recorded, unset them"),
        ("another remote", "could not be asked whether it has the commit"),
        ("another script", "the script other.py is not a file of the repository"),
        ("no diffs", "sdk.development.store_uncommitted_code_diff of clearml.conf"),
        ("the script alone", "no repository was recorded, but the script alone"),
    ],
)
def test_what_was_recorded_otherwise_is_refused_and_deleted(site: Site, spoil: str, told: str) -> None:
    site.write(SCRIPT)
    site.git("commit", "--quiet", "--allow-empty", "--message=Second")
    site.git("push", "--quiet", "origin", "main")
    head = "from clearml import Task\nTask.force_store_standalone_script()\n" if spoil == "the script alone" else ""
    site.write("# new\n" + head + SCRIPT, push=False)
    variables = {}
    if spoil == "no diffs":
        path = site.folder / "clearml.conf"
        values = json.loads(path.read_text())
        values["sdk"]["development"] = {"store_uncommitted_code_diff": False}
        path.write_text(json.dumps(values))
    elif spoil != "the script alone":
        address = "file:///nowhere.git" if spoil == "another remote" else f"file://{site.bare}"
        commit = run("git", "-C", site.tree, "rev-parse", "HEAD").strip()
        variables = {
            "CLEARML_VCS_REPO_URL": address,
            "CLEARML_VCS_COMMIT_ID": "0" * 40 if spoil == "another commit" else commit,
            "CLEARML_VCS_BRANCH": "main",
            "CLEARML_VCS_ROOT": str(site.tree),
            "CLEARML_VCS_ENTRY_POINT": "other.py" if spoil == "another script" else "train.py",
        }
    code, out, err = site.run(**variables)
    assert code == 1
    assert "what was recorded is not the code that is here" in err
    assert told in err
    assert "trained here" not in out
    assert site.tasks() == []


def test_a_folder_that_agents_do_not_have_is_refused(site: Site) -> None:
    site.write(SCRIPT)
    (site.tree / "ignored").mkdir()
    variables = {"CLEARML_CONFIG_FILE": str(site.folder / "clearml.conf")}
    done = subprocess.run(
        [sys.executable, "../train.py"],
        cwd=site.tree / "ignored",
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "the working directory ignored is in none of the repository's files" in done.stderr
    assert site.tasks() == []


def test_an_ignored_script_is_refused(site: Site) -> None:
    (site.tree / ".gitignore").write_text("train.py\n")
    site.write(SCRIPT)
    code, _, err = site.run()
    assert code == 1
    assert "the script train.py is ignored by git, agents do not get it: `git add --force train.py`" in err
    assert site.tasks() == []


def test_a_run_that_stays_here_asks_no_remote(site: Site) -> None:
    site.write(SCRIPT.replace(", queue='all_gpus'", ""))
    site.git("remote", "set-url", "origin", "http://127.0.0.1:1/x.git")
    site.write(SCRIPT.replace(", queue='all_gpus'", "") + "# new\n", push=False)
    site.git("config", "color.ui", "always")
    code, _, err = site.run()
    assert code == 0, err
    assert "cannot be reproduced" not in err
    (task,) = site.tasks()
    assert task["script"]["diff"].startswith("diff --git a/train.py b/train.py\n")
