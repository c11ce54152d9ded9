"""The code of a run: commit, changes and remote, and why an agent could not have it."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from . import _remote
from ._run import git, run
from ._worktree import DIFF_LIMIT, Changes, Scratch, UnreadableError

__all__ = ["Code", "at_remote", "differs", "holds", "on_this_machine", "read", "reasons_not_reproducible"]

NAMED = 5
"""Files named in a message; of more, their number."""
_DOES_NOT_APPLY = "the uncommitted changes do not apply as a diff ({}): commit and push"


class Code(NamedTuple):
    """What a repository's working directory is made of."""

    root: Path
    commit: str
    tree: str
    """Hash of what all tracked files are now."""
    diff: str
    """What makes the tree of the commit; empty when something of it cannot travel."""
    proved: bool
    """Whether commit and diff make the tree."""
    address: Optional[str]
    """Of the remote that the SDK records."""
    reasons: List[str]
    """Why an agent could not have it; empty when it could."""


def reasons_not_reproducible(folder: Path, *, ask: bool = True) -> List[str]:
    """Tell why an agent could not run the code in a folder as it is now; empty when it could.

    The changes of tracked text files travel with the experiment; all else must be at the remote, which is asked.

    Args:
        folder: Where the script is.
        ask: Whether remotes are asked; else what was fetched from them last counts.
    """
    code, reasons = read(folder, ask=ask)
    return reasons if code is None else code.reasons


def read(folder: Path, *, ask: bool = True) -> Tuple[Optional[Code], List[str]]:
    """Return what a folder's repository holds, or nothing and the reasons."""
    top = run(folder, "rev-parse", "--show-toplevel")
    if top.code:
        if top.code > 0 and "not a git repository" in top.told:
            advice = "{} is in no git repository: agents fetch the code from one; `git init`, commit and push it"
            return None, [advice.format(folder)]
        return None, ["git cannot read the repository of {}: {}".format(folder, top.told)]
    root = Path(os.fsdecode(top.out).rstrip("\n"))
    commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if commit is None:
        return None, ["the repository {} has no commit yet: commit and push".format(root)]
    try:
        with Scratch(root) as scratch:
            return _read(scratch, folder, commit, ask), []
    except UnreadableError as error:
        return None, ["git cannot read what {} holds: {}".format(root, error)]


def _read(scratch: Scratch, folder: Path, commit: str, ask: bool) -> Code:
    root = scratch.root
    tree = scratch.tree()
    before = scratch.resolved(commit)
    changes = scratch.changes(before, tree)
    address = _remote.recorded_address(folder)
    travels = not (changes.binary or changes.submodules or changes.filtered)
    made, told = scratch.applied(commit, changes.diff) if travels else (None, "")
    reasons = [*_untracked(scratch.untracked()), *_script(scratch, tree), *_changed(changes)]
    if travels and made != tree:
        reasons.append(_DOES_NOT_APPLY.format(told or "they make something else"))
    inside = [] if changes.submodules else _submodules(scratch, tree, "")
    reasons += inside
    away = _remotes(root, commit, address, ask)
    if ask and address and not (away or inside or changes.submodules):  # without a network, one is asked, not all
        away = _submodule_remotes(scratch, tree, address)
    reasons += away
    return Code(root, commit, tree, changes.diff, travels and made == tree, address, reasons)


def _untracked(files: List[str], where: str = "") -> List[str]:
    if not files:
        return []
    return [
        "git does not track {}{}: add what the run needs, and name the rest in .gitignore".format(_some(files), where)
    ]


def _script(scratch: Scratch, tree: str) -> List[str]:
    """Tell whether the script itself is ignored: it is in no list of what git does not track."""
    script = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    root = os.path.realpath(str(scratch.root))
    if not script.startswith(root + os.sep) or not Path(script).is_file():
        return []
    path = os.path.relpath(script, root)
    # Programs of a virtual environment, and scripts of a submodule, are not the repository's.
    if scratch.has(tree, path) or any(path.startswith(link + "/") for link in scratch.gitlinks(tree)):
        return []
    if git(scratch.root, "check-ignore", "--quiet", "--", path) is None:
        return []  # named as untracked
    return [
        "the script {} is ignored by git, agents do not get it: `git add --force {}`, commit and push".format(
            path, path
        )
    ]


def _changed(changes: Changes) -> List[str]:
    reasons = []
    if changes.binary:
        reasons.append("the changed binary {} cannot travel in a diff: commit and push".format(_some(changes.binary)))
    if changes.filtered:
        reasons.append(
            "the changed {} is stored by a filter of this machine's git (LFS, say), which agents may not have: "
            "commit and push".format(_some(changes.filtered))
        )
    if changes.submodules:
        reasons.append(_changed_submodule(changes.submodules))
    if len(changes.diff) > DIFF_LIMIT:
        reasons.append(
            "the uncommitted changes are {:,} characters long, and at most {:,} are kept: commit and push".format(
                len(changes.diff), DIFF_LIMIT
            )
        )
    return reasons


def _changed_submodule(paths: List[str]) -> str:
    return "the submodule {} has changed: commit and push it and its parent".format(_some(paths))


def differs(code: Code, commit: str, diff: str) -> Optional[str]:
    """Tell why a recorded commit and diff do not make what is here; ``None`` when they do."""
    if code.proved and (commit, diff) == (code.commit, code.diff):
        return None
    try:
        with Scratch(code.root) as scratch:
            made, told = scratch.applied(commit, diff)
    except UnreadableError as error:
        return str(error)
    if made == code.tree:
        return None
    return told or "commit {} with the recorded changes is not what is here".format(commit[:12] or "(none)")


def holds(code: Code, path: str) -> bool:
    """Tell whether the tree has a file at a path from its top."""
    try:
        with Scratch(code.root) as scratch:
            made, _ = scratch.applied(code.commit, code.diff)  # the tree is not in the repository itself
            return made is not None and scratch.has(made, path)
    except UnreadableError:
        return False


def at_remote(code: Code, address: str, commit: str) -> Optional[str]:
    """Ask a remote for a commit; tell why it is not to be had there, ``None`` when it is."""
    answer = _remote.asked(code.root, address, commit)
    if answer.found is None:
        return _silent(_remote.shown(address), address, answer.told)
    return None if answer.found else "{} has no commit {}".format(_remote.shown(address), commit[:12])


def on_this_machine(code: Code) -> Optional[str]:
    """Return the remote's address when it is a folder, which nodes need not have."""
    return code.address if code.address and _remote.is_path(code.address) else None


# ---------------------------------------------------------------- submodules


def _submodules(scratch: Scratch, tree: str, prefix: str) -> List[str]:
    """Tell what of the submodules, and of theirs, is only here."""
    reasons = []
    links = scratch.gitlinks(tree)
    if not links:
        return []
    addresses = _addresses(scratch, tree)
    for path, commit in links.items():
        name, folder = prefix + path, scratch.root / path
        if path not in addresses:
            reasons.append(
                "{} is a repository of its own inside this one, and .gitmodules does not name it, so agents cannot "
                "fetch it: `git submodule add URL {}`, commit and push".format(name, path)
            )
            continue
        if not os.path.lexists(str(folder / ".git")):
            continue  # it was never fetched: nothing of it is only here
        try:
            with Scratch(folder) as inner:
                reasons += _submodule(inner, name, commit)
        except UnreadableError as error:
            reasons.append("git cannot read the submodule {}: {}".format(name, error))
    return reasons


def _submodule(inner: Scratch, name: str, commit: str) -> List[str]:
    here = git(inner.root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    tree = inner.tree()
    if here != commit or tree != inner.resolved(commit):
        return [_changed_submodule([name])]
    untracked = [name + "/" + path for path in inner.untracked()]
    return _untracked(untracked, " (in the submodule {})".format(name)) + _submodules(inner, tree, name + "/")


def _addresses(scratch: Scratch, tree: str) -> Dict[str, str]:
    """Return the address of each submodule by its path, as ``.gitmodules`` has them in a tree."""
    listed = scratch.alone("config", "--blob", tree + ":.gitmodules", "--list", "-z")
    values: Dict[str, Dict[str, str]] = {}
    for entry in os.fsdecode(listed.out).split("\0"):
        key, _, value = entry.partition("\n")
        if key.startswith("submodule.") and key.count(".") > 1:
            name, _, variable = key[len("submodule.") :].rpartition(".")
            values.setdefault(name, {})[variable] = value
    return {item["path"]: item["url"] for item in values.values() if item.get("path") and item.get("url")}


def _submodule_remotes(scratch: Scratch, tree: str, parent: str, prefix: str = "") -> List[str]:
    """Ask the remotes of submodules for the commits that the tree names."""
    links = scratch.gitlinks(tree)
    if not links:
        return []
    addresses = _addresses(scratch, tree)

    def ask(path: str) -> List[str]:
        address = _remote.resolved(addresses[path], parent)
        return _submodule_remote(scratch.root, path, links[path], address, prefix + path)

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [reason for reasons in pool.map(ask, links) for reason in reasons]


def _submodule_remote(root: Path, path: str, commit: str, address: str, name: str) -> List[str]:
    folder = root / path
    fetched = os.path.lexists(str(folder / ".git"))
    answer = _remote.asked(folder if fetched else root, address, commit)
    if answer.found is None:
        return [_silent("{} of the submodule {}".format(_remote.shown(address), name), address, answer.told)]
    if not answer.found:
        return [
            "commit {} of the submodule {} is in no branch of {}, agents could not fetch it: "
            "`git -C {} push origin HEAD:BRANCH`".format(commit[:12], name, _remote.shown(address), name)
        ]
    if not fetched:
        return []
    with Scratch(folder) as inner:
        return _submodule_remotes(inner, inner.resolved(commit), address, name + "/")


# ---------------------------------------------------------------- remotes


def _remotes(root: Path, commit: str, address: Optional[str], ask: bool) -> List[str]:
    remotes = (git(root, "remote") or "").split()
    if not remotes:
        return [
            "the repository {} has no remote that agents could fetch from: `git remote add origin URL`, push".format(
                root
            )
        ]
    if not address:
        return [
            "git cannot say which remote an experiment should record, {0}: name one origin (`git remote rename {1} "
            "origin`), or let the branch follow one (`git branch --set-upstream-to={1}/BRANCH`)".format(
                " or ".join(remotes), remotes[0]
            )
        ]
    if _remote.is_relative(address):
        return [
            "the experiment would record the remote {!r}, which only this machine can read: "
            "`git remote set-url origin URL`, or `git branch --set-upstream-to=origin/BRANCH`".format(address)
        ]
    branch = git(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    remote = (git(root, "config", "branch.{}.remote".format(branch)) if branch else None) or (
        "origin" if "origin" in remotes else remotes[0]
    )
    if not ask:
        known = git(root, "for-each-ref", "--contains", commit, "--count=1", "refs/remotes", "refs/tags")
        return [] if known else [_unpushed(commit, remote, branch)]
    remote = _remote.shown(remote)  # it may be an address
    answer = _remote.asked(root, address, commit, branch)
    if answer.found:
        return []
    if answer.found is None:
        return [_silent("{} ({})".format(remote, _remote.shown(address)), address, answer.told)]
    told = "{}; asked was {}".format(_unpushed(commit, remote, branch), _remote.shown(address))
    refs = git(root, "for-each-ref", "--contains", commit, "--format=%(refname:short)", "refs/remotes") or ""
    fetched = {ref.split("/")[0] for ref in refs.split()}
    others = sorted(name for name in remotes if name != remote and name in fetched)
    if others:
        told += ", which an experiment records; {} may have it".format(" and ".join(others))
    elif fetched:
        told += ", which had it when it was fetched last"
    return [told]


def _unpushed(commit: str, remote: str, branch: Optional[str]) -> str:
    return "commit {} is in no branch of the remote, agents could not fetch it: `git push {} {}`".format(
        commit[:12], remote, branch or "HEAD:BRANCH"
    )


def _silent(remote: str, address: str, told: str) -> str:
    return (
        "the remote {} could not be asked whether it has the commit ({}): see that `git ls-remote` answers here".format(
            remote, told.replace(address, _remote.shown(address))
        )
    )


def _some(names: List[str]) -> str:
    more = " and {} more".format(len(names) - NAMED) if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
