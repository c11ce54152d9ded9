"""Whether the code of a run can be had again: what git knows of the script's repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import List, Optional

__all__ = ["git", "reasons_not_reproducible"]

DIFF_LIMIT = 500_000
"""Characters of uncommitted changes that the SDK keeps with an experiment (its ``max_diff_size_bytes``)."""
TIMEOUT = 60.0
"""Seconds for one call of git."""
NAMED = 5
"""Files named in a message; of more, their number."""


def reasons_not_reproducible(folder: Path) -> List[str]:
    """Tell why an agent could not run the code in a folder as it is now; empty when it could.

    The SDK sends the changes of tracked text files with the experiment; all else must be at the remote.
    """
    top = git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return [
            "{} is in no git repository: agents fetch the code from one; `git init`, commit and push it".format(folder)
        ]
    root = Path(top)
    head = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return ["the repository {} has no commit yet: commit and push".format(root)]
    return [
        reason
        for reason in (_untracked(root), _binary(root), _submodules(root), _large(root), _unpushed(root, head))
        if reason is not None
    ]


def _untracked(root: Path) -> Optional[str]:
    files = (git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    files = [name for name in files if name]
    if not files:
        return None
    return "git does not track {}: add what the run needs, and name the rest in .gitignore".format(_some(files))


def _binary(root: Path) -> Optional[str]:
    lines = (git(root, "diff", "--numstat", "HEAD") or "").splitlines()
    files = [line.split("\t")[2] for line in lines if line.startswith("-\t-\t")]
    return "the changed binary {} cannot travel in a diff: commit and push".format(_some(files)) if files else None


def _submodules(root: Path) -> Optional[str]:
    # Porcelain version 2: the third field is S followed by what changed in a submodule, N... for other files.
    lines = (git(root, "status", "--porcelain=v2", "--untracked-files=no") or "").splitlines()
    changed = [line.split(" ", 8)[-1] for line in lines if line.startswith("1 ") and line.split(" ")[2][0] == "S"]
    return "the submodule {} has changed: commit and push it and its parent".format(_some(changed)) if changed else None


def _large(root: Path) -> Optional[str]:
    size = len(git(root, "diff", "HEAD") or "")
    if size <= DIFF_LIMIT:
        return None
    return "the uncommitted changes are {:,} characters long, and at most {:,} are kept: commit and push".format(
        size, DIFF_LIMIT
    )


def _unpushed(root: Path, head: str) -> Optional[str]:
    if not git(root, "remote"):
        return "the repository {} has no remote that agents could fetch from: `git remote add origin URL`, push".format(
            root
        )
    if git(root, "branch", "--remotes", "--contains", head):
        return None
    branch = git(root, "symbolic-ref", "--quiet", "--short", "HEAD") or "HEAD:BRANCH"
    return "commit {} is in no branch of the remote, agents could not fetch it: `git push origin {}`".format(
        head[:12], branch
    )


def _some(names: List[str]) -> str:
    more = " and {} more".format(len(names) - NAMED) if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def git(folder: Path, *words: str) -> Optional[str]:
    """Run git in a folder; return what it printed, ``None`` when it failed, took too long or asked for a password."""
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            errors="surrogateescape",
            timeout=TIMEOUT,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None
