"""The agent in an experiment's container, on a stand-in for clearml-agent; tests/e2e has the real one."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

AGENTS = Path(__file__).resolve().parents[2] / "agents"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Script:
    @staticmethod
    def write(task: Any, directory: str, entry_point: str | None = None) -> str:
        return "written by the agent"


class Agent:
    """What checkout.py takes from clearml-agent's worker."""


class Repository:
    """What it takes from clearml-agent's Git."""

    def __init__(self, folder: Path, revision: str) -> None:
        self.location, self.url, self._revision = str(folder), "https://example.org/x.git", revision

    def checkout(self) -> None:
        self.get_stderr("checkout", "--quiet", self._revision, cwd=self.location)

    def get_stderr(self, *words: str, cwd: str) -> None:
        done = subprocess.run(["git", "-C", cwd, *words], capture_output=True, check=False)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, output=done.stderr)


@pytest.fixture
def checkout() -> Iterator[Any]:
    upstream = ModuleType("clearml_agent.commands.worker")
    vars(upstream).update(Worker=Agent, LiteralScriptManager=Script, clone_repository_cached=None)
    modules = {
        "clearml_agent": {"__main__": None},
        "clearml_agent.commands": {"worker": upstream},
        "clearml_agent.errors": {"CommandFailedError": RuntimeError},
        "clearml_agent.helper": {},
        "clearml_agent.helper.repo": {"Git": Repository},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, values in modules.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        patch.setitem(sys.modules, "clearml_agent.commands.worker", upstream)
        patch.syspath_prepend(str(AGENTS))
        patch.delitem(sys.modules, "checkout", raising=False)
        yield importlib.import_module("checkout")
        del sys.modules["checkout"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", tmp_path], check=True)
    (tmp_path / "train.py").write_text("old\n")
    return tmp_path


def commit(folder: Path) -> str:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=x"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_it_is_python_of_the_oldest_image() -> None:
    ast.parse((AGENTS / "checkout.py").read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("diff", "entry", "repository", "refused"),
    [
        ("\x1b[1mdiff --git a/train.py b/train.py", "train.py", "x", True),
        ("\x1b[1mdiff --git a/train.py b/train.py", None, "x", True),
        ("# WARNING! git diff too large to store, clear this section\n", "train.py", "x", True),
        ("# WARNING! git diff too large to store, clear this section\n", None, "x", True),
        ("Submodule part 1234..5678:\n  > log\n", "train.py", "x", True),
        ("# Repository modified, but no git diff could be extracted.", "train.py", "x", True),
        ("old\n", "train.py", "x", False),
        ("print('a notebook')\n", "notebook.py", "x", False),
        ("print('a script')\n", "train.py", "", False),
        (" \n", "train.py", "x", False),
    ],
)
def test_what_is_not_a_diff_is_not_passed_over(
    checkout: Any, folder: Path, diff: str, entry: str | None, repository: str, refused: bool
) -> None:
    task = SimpleNamespace(script=SimpleNamespace(diff=diff, repository=repository))
    if refused:
        with pytest.raises(checkout.CheckoutError, match="are not a diff that git applies"):
            checkout.write(task, str(folder), entry)
    else:
        assert checkout.write(task, str(folder), entry) == "written by the agent"


def test_pointers_are_found_unless_they_are_wanted(
    checkout: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    (folder / "weights.bin").write_text(POINTER)
    (folder / "real.bin").write_text("weights\n")
    (folder / "notes.txt").write_text(POINTER)
    commit(folder)
    assert checkout.pointers(str(folder)) == ["weights.bin"]
    monkeypatch.setenv("GIT_LFS_SKIP_SMUDGE", "1")
    assert checkout.pointers(str(folder)) == []


def test_a_commit_without_a_branch_is_fetched_by_its_hash(checkout: Any, folder: Path, tmp_path: Path) -> None:
    lost = commit(folder)
    subprocess.run(["git", "-C", folder, "checkout", "--quiet", "--orphan", "other"], check=True)
    commit(folder)
    subprocess.run(["git", "-C", folder, "branch", "--quiet", "-D", "main"], check=True)
    subprocess.run(["git", "-C", folder, "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", f"file://{folder}", clone], check=True)
    checkout.checkout(Repository(clone, lost))
    with pytest.raises(checkout.CheckoutError, match=r"commit 0{40} is not in https://example.org/x.git: push it"):
        checkout.checkout(Repository(clone, "0" * 40))
    with pytest.raises(checkout.CheckoutError, match=r"^v9 is not in"):
        checkout.checkout(Repository(clone, "v9"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("b'error: patch failed: train.py:1\\nmore\\n'"), "error: patch failed: train.py:1"),
        (subprocess.CalledProcessError(1, "git", output=b"hint: x\nfatal: no\n"), "fatal: no"),
        (subprocess.CalledProcessError(1, "git", output="one\ntwo\n"), "two"),
        (Exception("b'half"), "b'half"),
        (Exception(), "Exception"),
    ],
)
def test_a_complaint_is_one_line(checkout: Any, error: Exception, told: str) -> None:
    assert checkout.why(error) == told
