"""Whether code that an experiment recorded can still be fetched, as an agent would fetch it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

__all__ = ["missing_code"]

TIMEOUT = 180.0
"""Seconds for one call of git."""


def missing_code(repository: str, commit: str, diff: str = "") -> Optional[str]:
    """Tell why an agent could not run this code; ``None`` when it could.

    Fetches the commit into a temporary folder, with this machine's rights to the repository.

    Args:
        repository: Address of the repository.
        commit: Full hash of the commit.
        diff: Uncommitted changes, which are applied to the commit.
    """
    with tempfile.TemporaryDirectory(prefix="clearml-client-") as folder:
        told = _git(folder, "init", "--quiet", ".")
        if told is not None:
            return told
        # Objects are only needed to try the diff on.
        some = [] if diff.strip() else ["--filter=tree:0"]
        told = _git(folder, "fetch", "--quiet", "--depth=1", *some, repository, commit)
        if told is not None:
            # Older servers give branches and tags only: look whether one of them has it.
            branches = _git(folder, "fetch", "--quiet", *some, repository, "+refs/*:refs/remote/*")
            if branches is not None:
                return "{} cannot be fetched: {}".format(repository, branches)
            if _git(folder, "cat-file", "-e", commit + "^{commit}") is not None:
                return "{} has no commit {} any more ({})".format(repository, commit, told)
        if not diff.strip():
            return None
        told = _git(folder, "checkout", "--quiet", "--force", commit)
        if told is not None:
            return told
        (Path(folder) / ".git" / "experiment.diff").write_text(diff if diff.endswith("\n") else diff + "\n")
        told = _git(folder, "apply", "--check", ".git/experiment.diff")
        return None if told is None else "its uncommitted changes do not apply to {}: {}".format(commit, told)


def _git(folder: str, *words: str) -> Optional[str]:
    """Run git; return what it complained of, ``None`` when it did not."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    # An experiment inside git's own hooks must not be led to another repository.
    environment.pop("GIT_DIR", None)
    try:
        done = subprocess.run(
            ["git", "-C", folder, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return "there is no git on this machine: install it"
    except subprocess.TimeoutExpired:
        return "git {} took more than {:.0f} s".format(words[0], TIMEOUT)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return None if done.returncode == 0 else (lines[-1] if lines else "git {} failed".format(words[0]))
