"""Whether code that an experiment recorded can still be fetched, as an agent would fetch it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Optional

from ._git._run import remote_environment, run

__all__ = ["missing_code"]

TIMEOUT = 180.0
"""Seconds for one call of git."""


def missing_code(repository: str, commit: str, diff: str = "", script: str = "") -> Optional[str]:
    """Tell why an agent could not run this code; ``None`` when it could.

    Fetches the commit into a temporary folder, with this machine's rights to the repository.

    Args:
        repository: Address of the repository.
        commit: Full hash of the commit.
        diff: Uncommitted changes, which are applied to the commit; or a script (of a notebook), which is added to it.
        script: Path of the script in the repository.
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
        if not diff.lstrip().lower().startswith(("diff ", "submodule ")):
            # An agent takes this for a script, and passes over it where the script is there already.
            if script and not (Path(folder) / script).exists():
                return None
            return "its uncommitted changes are not a diff, agents would not apply them; they begin with {!r}".format(
                diff.strip()[:40]
            )
        # As the agent does: its option, and the line that it adds.
        changes = diff.encode("utf-8", "surrogatepass") + b"\n"
        told = _git(folder, "apply", "--check", "--unidiff-zero", "-", data=changes)
        return None if told is None else "its uncommitted changes do not apply to {}: {}".format(commit, told)


def _git(folder: str, *words: str, data: Optional[bytes] = None) -> Optional[str]:
    """Run git; return what it complained of, ``None`` when it did not."""
    place = Path(folder)
    # Nobody's conversion of line ends: an experiment's container has none.
    settings = ("-c", "core.autocrlf=false", "-c", "apply.whitespace=warn")
    done = run(place, *settings, *words, data=data, timeout=TIMEOUT, more=remote_environment(place))
    return None if done.code == 0 else done.told
