"""The agent in an experiment's container, on a stand-in for clearml-agent; tests/e2e has the real one."""

from __future__ import annotations

import ast
import importlib
import json
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

    def __init__(self) -> None:
        self.console = ""

    def send_logs(self, task: str, lines: list[str], level: str = "DEBUG", session: object = None) -> int:
        self.console += "".join(lines)
        return len(lines)


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


@pytest.mark.parametrize("mark", ["Starting Task Execution:\n\n", "Starting Task\n Execution:\n\n"])
def test_what_the_agent_prints_is_held_back_until_the_script_starts(
    checkout: Any, capsys: pytest.CaptureFixture[str], mark: str
) -> None:
    worker = checkout.Worker()
    worker.hold("a")
    for line in ["agent.debug = false\n", *mark.splitlines(keepends=True), "first\n"]:
        assert worker.send_logs("a", [line]) == 1
    first, _, rest = worker.console.partition("\n")
    assert first.startswith("Prepared in 0 s; the agent's own output, ")
    assert rest.split() == ["first"]
    assert "agent.debug = false" in capsys.readouterr().out
    worker.release()
    assert worker.console.endswith("\nfirst\n"), "nothing comes twice"


def test_what_was_held_back_is_in_the_console_when_the_preparation_fails(checkout: Any) -> None:
    worker = checkout.Worker()
    worker.hold("a")
    worker.send_logs("a", ["agent.debug = false\n", "no such commit\n"])
    worker.send_logs("a", ["stopped by its owner\n"], level="ERROR")
    assert worker.console == "stopped by its owner\n"
    worker.release()
    assert worker.console.endswith("agent.debug = false\nno such commit\n")


def test_a_long_preparation_is_told_less_and_less_often(checkout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(200))
    monkeypatch.setattr(checkout, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    worker = checkout.Worker()
    worker.hold("a")
    worker.send_logs("a", ["Pulling from train\n"])
    for _ in range(100):
        worker.send_logs("a", [])
    assert worker.console == "".join(f"Preparing for {seconds} s: Pulling from train\n" for seconds in (10, 20, 40, 80))


def test_packages_that_ran_stand_beside_those_that_were_asked_for(checkout: Any) -> None:
    packages = checkout.Packages
    first = packages.recorded(
        {"pip": "numpy\n"}, "# Python 3.11.2, /x", ["numpy==1", "# own==1 is of file:///x"], "of the image"
    )
    assert first["org_pip"] == "numpy\n"
    assert packages.kind(first["pip"]) == "of the image"
    assert packages.asked(first) == "numpy\n"
    again = packages.recorded(first, "# Python 3.11.2, /x", ["numpy==2"], "of the image")
    assert again["org_pip"] == "numpy\n"
    edited = {**first, "pip": first["pip"].replace("==1", ">=1")}
    assert packages.kind(edited["pip"]) == ""
    assert packages.asked(edited) == edited["pip"], "an edited list is asked for"


def test_folders_and_commits_are_listed_without_logins(checkout: Any, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    places = {
        "own": {"url": "file:///x/own", "dir_info": {}},
        "code": {"url": "https://me:token@host/code.git", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}},
        "wheel": {"url": "https://host/wheel.whl?token=secret", "archive_info": {}},
        "plain": None,
    }
    for name, place in places.items():
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if place:
            (folder / "direct_url.json").write_text(json.dumps(place))
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(site)!r})\n{checkout.LIST}"]
    head, *lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert head.startswith(f"# Python {sys.version.split()[0]}, ")
    assert lines == [
        f"code @ git+https://host/code.git@{'a' * 40}",
        "# own==1.0 is of file:///x/own",
        "plain==1.0",
        "wheel @ https://host/wheel.whl",
    ]
    ast.parse(checkout.LIST, feature_version=(3, 8))
