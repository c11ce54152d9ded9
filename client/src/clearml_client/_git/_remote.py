"""What a remote has: whether a clone of it, as an agent makes one, brings a commit."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Tuple
from urllib.parse import urlsplit, urlunsplit

from ._run import git, names, remote_environment, run

__all__ = ["Answer", "asked", "is_path", "is_relative", "recorded_address", "resolved", "shown"]

ASK_SECONDS = 10.0
"""Seconds that a remote has for the list of its branches."""
ASK_A_PERSON_SECONDS = 60.0
"""The same, where somebody may type a password."""
FETCH_SECONDS = 120.0
"""Seconds for the history that is not at hand; no files come with it."""
# No housekeeping in what lives for a moment; and the person, not git, decides which folders are opened.
_QUIET = ("-c", "protocol.file.allow=always", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
# A partial clone would fetch what is asked for.
_AT_HAND = {"GIT_NO_LAZY_FETCH": "1"}
# Configuration of the repository that opens its remote; a scratch repository gets it too.
_OPENING = re.compile(r"(?i)^(credential|http|https|url|protocol|ssh)\.|^core\.(sshcommand|gitproxy|askpass)$")


class Answer:
    """Whether a remote has a commit.

    Attributes:
        found: ``None`` when the remote could not be asked.
        told: Why it could not.
    """

    def __init__(self, found: Optional[bool], told: str = "") -> None:
        self.found, self.told = found, told


def recorded_address(folder: Path) -> Optional[str]:
    """Return the address that the SDK records for a script in a folder, with its credentials; ``None``: there is none.

    It is that of the current branch's remote, else of ``origin``, with ``insteadOf`` applied.
    """
    address = git(folder, "ls-remote", "--get-url")
    if address != "origin":
        return address or None
    lines = (git(folder, "remote", "-v") or "").splitlines()
    if not lines:
        return None
    # As the SDK does: whatever stands first.
    return re.sub(r"\s*\((fetch|push)\)$", "", lines[0].split("\t", 1)[-1]).strip()


def shown(address: str) -> str:
    """Return an address without user and password, if it is one with a scheme."""
    parts = urlsplit(address)
    if not parts.scheme or "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


def is_relative(address: str) -> bool:
    """Tell whether an address is a path that depends on where it is read: no scheme, no host, not from the root."""
    return not re.match(r"^([a-z][a-z0-9+.-]*://|/|[A-Za-z]:[\\/]|~)", address) and not re.match(r"^[^/]+:", address)


def is_path(address: str) -> bool:
    """Tell whether an address is a folder of this machine."""
    return address.startswith(("/", "file://", "~"))


def resolved(address: str, parent: str) -> str:
    """Return a submodule's address, which ``.gitmodules`` may give in relation to its parent's."""
    if not address.startswith(("./", "../")):
        return address
    base = parent.rstrip("/")
    while address.startswith(("./", "../")):
        step, address = address.split("/", 1)
        if step == "..":
            base, _, _ = base.rpartition("/") if "/" in base else base.rpartition(":")
    return "{}/{}".format(base, address)


def asked(folder: Path, address: str, commit: str, branch: Optional[str] = None) -> Answer:
    """Ask a remote whether one of its branches or tags has a commit.

    Args:
        folder: A repository, which has objects at hand, and configuration that opens the remote.
        address: The remote.
        commit: Full hash.
        branch: The branch that is likely to have it.
    """
    interactive = sys.stdin is not None and sys.stdin.isatty()
    opening = remote_environment(folder, interactive=interactive)
    done = run(
        folder,
        *("-c", "protocol.file.allow=always", "ls-remote", "--heads", "--tags", "--", address),
        timeout=ASK_A_PERSON_SECONDS if interactive else ASK_SECONDS,
        interactive=interactive,
        more=opening,
    )
    if done.code:
        return Answer(None, done.told)
    refs = _refs(done.out)
    if commit in refs.values():
        return Answer(True)
    here, away = _at_hand(folder, refs)
    if _leads_to(folder, commit, here):
        return Answer(True)
    if (git(folder, "rev-parse", "--is-shallow-repository") or "") == "true":
        away = list(refs)  # what is at hand has holes
    if not away:
        return Answer(False)
    # The likely ones first: there may be thousands.
    likely = {"refs/heads/" + name for name in (branch, "main", "master") if name}
    for wanted in ([name for name in away if name in likely], [name for name in away if name not in likely]):
        if wanted:
            answer = _fetched(folder, address, commit, {name: refs[name] for name in wanted}, opening)
            if answer.found is not False:
                return answer
    return Answer(False)


def _refs(out: bytes) -> Dict[str, str]:
    """Return the commits of branches and tags; of a tag with a message, what it tags."""
    refs = {}
    for line in out.decode("utf-8", "surrogateescape").splitlines():
        commit, _, name = line.partition("\t")
        refs[name[:-3] if name.endswith("^{}") else name] = commit
    return refs


def _at_hand(folder: Path, refs: Dict[str, str]) -> Tuple[List[str], List[str]]:
    """Return the commits that the repository has, and the names of refs that it has not."""
    data = "".join("{}\n".format(commit) for commit in refs.values()).encode()
    lines = run(folder, "cat-file", "--batch-check=%(objecttype)", data=data, more=_AT_HAND).out.splitlines()
    here, away = [], []
    for (name, commit), line in zip(refs.items(), lines):  # noqa: B905  # Python 3.8 has no strict
        if line == b"commit":
            here.append(commit)
        elif line.endswith(b"missing"):
            away.append(name)
    return here, away


def _leads_to(folder: Path, commit: str, ends: List[str], more: Optional[Dict[str, str]] = None) -> bool:
    """Tell whether history leads from one of the ends back to a commit."""
    if not ends:
        return False
    data = "".join("^{}\n".format(end) for end in ends) + commit + "\n"
    done = run(folder, "rev-list", "--max-count=1", "--stdin", data=data.encode(), more={**_AT_HAND, **(more or {})})
    return done.code == 0 and not done.out.strip()


def _fetched(folder: Path, address: str, commit: str, refs: Dict[str, str], opening: Dict[str, str]) -> Answer:
    """Fetch the history of refs, without files, into a scratch repository, and look there."""
    with tempfile.TemporaryDirectory(prefix="clearml-client-fetch-") as name:
        scratch = Path(name)
        # Named, and not found by git: somebody may not let it find bare repositories (safe.bareRepository).
        # Its hashes are the commit's, whatever somebody's git makes by default.
        opening = {**opening, "GIT_DIR": name, "GIT_DEFAULT_HASH": "sha1" if len(commit) == 40 else "sha256"}
        made = run(scratch, "init", "--quiet", "--bare", ".", more=opening)
        if made.code:
            return Answer(None, made.told)
        objects, shallow = git(folder, "rev-parse", "--git-path", "objects"), None
        if objects is not None:
            shallow = folder / (git(folder, "rev-parse", "--git-path", "shallow") or "shallow")
            if not shallow.is_file():
                # Only what is new comes. A shallow repository's history has holes, and all of it comes.
                listed = str((folder / objects).resolve())
                (scratch / "objects" / "info" / "alternates").write_bytes(os.fsencode(listed) + b"\n")
        _copy_opening(folder, scratch, opening)
        specs = "".join("{0}:{0}\n".format(ref) for ref in refs).encode("utf-8", "surrogateescape")
        fetch = (
            "fetch",
            "--quiet",
            "--no-tags",
            "--filter=tree:0",
            "--no-recurse-submodules",
            "--stdin",
            "--",
            address,
        )
        done = run(
            scratch,
            *(*_QUIET, *fetch),
            data=specs,
            timeout=FETCH_SECONDS,
            more=opening,
        )
        if done.code and "--stdin" in done.told:  # a git before 2.29
            words = [word for word in fetch if word != "--stdin"]
            done = run(
                scratch,
                *(*_QUIET, *words, *specs.decode("utf-8", "surrogateescape").split()),
                timeout=FETCH_SECONDS,
                more=opening,
            )
        if done.code:
            return Answer(None, done.told)
        return Answer(_leads_to(scratch, commit, list(refs), opening))


def _copy_opening(folder: Path, scratch: Path, more: Dict[str, str]) -> None:
    listed = run(folder, "config", "--local", "--includes", "--list", "-z")
    for entry in names(listed.out) if listed.code == 0 else []:
        key, _, value = entry.partition("\n")
        if _OPENING.match(key):
            run(scratch, "config", "--add", key, value, more=more)
