"""What is recorded of a working directory makes it again, and what a remote does not have is refused with the reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clearml.backend_interface.task.repo.detectors import GitDetector
from clearml_client import _sdk
from clearml_client._git import reasons_not_reproducible

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))


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
        return str(GitDetector().get_info(str(self.tree), include_diff=True).diff)

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
            found[name] = ("link", os.fsencode(os.readlink(path)), False)
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


# --- what is recorded makes what is here -------------------------------------------------------------------------------

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


def sparse(at: Repository) -> None:
    at.git("sparse-checkout", "init", "--cone")
    at.git("sparse-checkout", "set", "nothing")
    edited(at)


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


CASES: dict[str, Case] = {
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


def test_a_sparse_checkout_deletes_nothing(repository: Repository) -> None:
    sparse(repository)
    assert reasons_not_reproducible(repository.tree) == []
    made = content(repository.as_an_agent_makes_it(repository.recorded()))
    assert made["train.py"][1] == b"print('new')\n"
    assert "part/notes.txt" in made
