"""What a working directory holds, as git's trees: the whole of it, the changes that make it, and the proof of them.

Nothing is written into the repository: index, objects and attributes are those of a scratch repository, which borrows
the repository's objects and has no configuration but its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Dict, List, NamedTuple, Optional, Tuple, Type

from ._run import Done, git, names, run

__all__ = ["DIFF_LIMIT", "Changes", "Scratch", "UnreadableError"]

DIFF_LIMIT = 500_000
"""Characters of uncommitted changes that the SDK keeps with an experiment (its ``max_diff_size_bytes``)."""
_GITLINK = "160000"
_DIFF = (
    *("diff-tree", "-r", "-p", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff"),
    *("--no-textconv", "--no-relative", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3"),
)
_CONFIG = "[core]\n\trepositoryformatversion = 1\n\tbare = true\n\tquotePath = true\n"


class UnreadableError(Exception):
    """Git could not say what a working directory holds; the text is its reason."""


class Changes(NamedTuple):
    """What a working directory has that its commit has not."""

    diff: str
    """All of it as text that ``git apply`` takes; empty when there is nothing, or when something cannot travel."""
    binary: List[str]
    submodules: List[str]
    filtered: List[str]
    """Files that a filter of the person's git changes on their way into the repository (LFS), by path."""


class Scratch:
    """A scratch repository beside a working directory; use it as a context.

    Args:
        root: The working directory's top.

    Raises:
        UnreadableError: git cannot read the repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        asked = [word for name in ("objects", "index", "shallow") for word in ("--git-path", name)]
        places = (git(root, "rev-parse", *asked) or "").split("\n")
        if len(places) != 3:
            raise UnreadableError("git cannot read the repository {}".format(root))
        self._objects, self._index, shallow = (root / place for place in places)
        self.folder = Path(tempfile.mkdtemp(prefix="clearml-client-git-"))
        try:
            self._prepare(shallow)
        except BaseException:
            self._remove()
            raise

    def _prepare(self, shallow: Path) -> None:
        for name in ("objects/info", "refs", "info"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "HEAD").write_text("ref: refs/heads/none\n")
        (self.folder / "objects/info/alternates").write_bytes(os.fsencode(_listed(self._objects)) + b"\n")
        config = _CONFIG
        extensions = names(run(self.root, "config", "-z", "--get-regexp", r"^extensions\.").out)
        values = dict(entry.split("\n", 1) for entry in extensions if "\n" in entry)
        if values.get("extensions.objectformat"):
            config += "[extensions]\n\tobjectFormat = {}\n".format(values["extensions.objectformat"])
        promisor = values.get("extensions.partialclone")
        if promisor:  # objects that are not here yet come from there
            address = git(self.root, "config", "remote.{}.url".format(promisor)) or ""
            config += '[extensions]\n\tpartialClone = promisor\n[remote "promisor"]\n\tpromisor = true\n'
            config += "\turl = {}\n".format(_value(address))
        (self.folder / "config").write_text(config)
        if shallow.is_file():
            shutil.copyfile(str(shallow), str(self.folder / "shallow"))

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(str(self.folder), ignore_errors=True)

    # ------------------------------------------------------------ calls of git

    def alone(self, *words: str, data: Optional[bytes] = None, index: str = "index-of-nobody") -> Done:
        """Run git on the scratch repository, which has nobody's configuration and no working directory."""
        more = {"GIT_DIR": str(self.folder), "GIT_INDEX_FILE": str(self.folder / index), "GIT_LITERAL_PATHSPECS": "1"}
        return run(self.folder, *words, data=data, more=more, alone=True)

    def beside(self, *words: str, data: Optional[bytes] = None, index: str = "index") -> Done:
        """Run git in the working directory, as the person's git sees it, with index and new objects kept here."""
        more = {
            "GIT_INDEX_FILE": str(self.folder / index),
            "GIT_OBJECT_DIRECTORY": str(self.folder / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": _listed(self._objects),
        }
        return run(self.root, *words, data=data, more=more)

    # ------------------------------------------------------------ trees

    def tree(self) -> str:
        """Return the tree of all tracked files as they are now.

        Files that git was asked not to look at (assume-unchanged, skip-worktree) are looked at, where they are there.

        Raises:
            UnreadableError: A file cannot be read, or a filter of it fails.
        """
        if self._index.is_file():
            # With its time: git compares the content of files that are as young as the index.
            shutil.copy2(str(self._index), str(self.folder / "index"))
        self._see_all()
        changed = self.beside("diff-files", "-z", "--name-only", "--ignore-submodules=dirty")
        # Stages of a merge are listed twice.
        unique = b"".join(name + b"\0" for name in dict.fromkeys(changed.out.split(b"\0")) if name)
        if unique:
            _must(self.beside("update-index", "--add", "--remove", "--replace", "-z", "--stdin", data=unique))
        # A part of the objects of a partial clone is elsewhere.
        return _must(self.beside("write-tree", "--missing-ok")).out.decode().strip()

    def _see_all(self) -> None:
        listed = self.beside("ls-files", "-v", "-z").out.split(b"\0")
        hidden = [line[2:] for line in listed if line[:1].islower()]
        skipped = [line[2:] for line in listed if line[:1] in b"Ss" and line and os.path.lexists(self._path(line[2:]))]
        for flag, paths in (("--no-assume-unchanged", hidden), ("--no-skip-worktree", skipped)):
            if paths:
                _must(self.beside("update-index", flag, "-z", "--stdin", data=b"\0".join(paths) + b"\0"))

    def _path(self, name: bytes) -> bytes:
        return os.fsencode(str(self.root)) + b"/" + name

    def untracked(self) -> List[str]:
        """Return the files that git does not track and was not asked to ignore."""
        return names(self.beside("ls-files", "--others", "--exclude-standard", "-z").out)

    def gitlinks(self, tree: str) -> Dict[str, str]:
        """Return path and commit of each submodule in a tree."""
        lines = self.alone("ls-tree", "-r", "-z", tree).out.split(b"\0")
        found = (line.split(b"\t", 1) for line in lines if line.startswith(_GITLINK.encode()))
        return {os.fsdecode(path): meta.split()[2].decode() for meta, path in found}

    def has(self, tree: str, path: str) -> bool:
        """Tell whether a tree has something at a path."""
        return self.alone("cat-file", "-e", "{}:{}".format(tree, path)).code == 0

    # ------------------------------------------------------------ changes

    def changes(self, before: str, after: str) -> Changes:
        """Return what leads from one tree to another.

        Raises:
            UnreadableError: An object is not there.
        """
        if before == after:
            return Changes("", [], [], [])
        entries = _entries(_must(self.alone("diff-tree", "-r", "-z", "--raw", "--no-renames", before, after)).out)
        submodules = [entry.path for entry in entries if _GITLINK in entry.modes]
        written = [entry.path for entry in entries if entry.new_content and _GITLINK not in entry.modes]
        counted = _must(self.alone("diff-tree", "-r", "-z", "--numstat", "--no-renames", before, after)).out
        counts = (line.split(b"\t", 2) for line in counted.split(b"\0") if line)
        uncounted = {os.fsdecode(path) for added, _, path in counts if added == b"-"}
        binary = [path for path in written if path in uncounted]
        filtered = self._filtered(written)
        if binary or submodules or filtered:
            return Changes("", binary, submodules, filtered)
        return Changes(self._text(before, after, [entry.path for entry in entries]), [], [], [])

    def _filtered(self, paths: List[str]) -> List[str]:
        """Return those of the paths that a filter changes when they are checked out; agents do not have it."""
        data = b"".join(os.fsencode(path) + b"\0" for path in paths)
        words = self.beside("check-attr", "-z", "--stdin", "filter", data=data).out.split(b"\0") if paths else []
        found = []
        for path, value in zip(words[::3], words[2::3]):  # noqa: B905  # Python 3.8 has no strict
            name = value.decode("utf-8", "replace")
            if name not in ("unspecified", "unset", "set", ""):
                smudge = git(self.root, "config", "filter.{}.smudge".format(name))
                if git(self.root, "config", "filter.{}.process".format(name)) or smudge not in (None, "", "cat"):
                    found.append(os.fsdecode(path))
        return found

    def _text(self, before: str, after: str, paths: List[str]) -> str:
        whole = _must(self.alone(*_DIFF, before, after)).out
        text = _travels(whole)
        if text is not None:
            return text
        # Text in another encoding, Latin-1 say, does not survive the way to the server: as data, in base 85, it does.
        parts, attributes = [], self.folder / "info" / "attributes"
        for path in paths:
            part = _travels(_must(self.alone(*_DIFF, before, after, "--", path)).out)
            if part is None:
                attributes.write_text("* -diff\n")
                part = _travels(_must(self.alone(*_DIFF, before, after, "--", path)).out) or ""
                attributes.unlink()
            parts.append(part)
        return "".join(parts)

    def applied(self, commit: str, diff: str) -> Tuple[Optional[str], str]:
        """Return the tree that an agent makes of a commit and a recorded diff, or ``None`` and why there is none."""
        read = self.alone("read-tree", commit, index="proof")
        if read.code:
            return None, read.told
        if diff:
            # Its own options, and the line that it adds.
            data = diff.encode("utf-8", "surrogatepass") + b"\n"
            done = self.alone("apply", "--cached", "--unidiff-zero", "-", data=data, index="proof")
            if done.code:
                return None, done.told
        written = self.alone("write-tree", "--missing-ok", index="proof")
        return (written.out.decode().strip(), "") if written.code == 0 else (None, written.told)

    def resolved(self, name: str) -> str:
        """Return the tree of a commit.

        Raises:
            UnreadableError: It is not here.
        """
        return _must(self.alone("rev-parse", "--verify", "--quiet", name + "^{tree}")).out.decode().strip()


def _must(done: Done) -> Done:
    if done.code:
        raise UnreadableError(done.told)
    return done


def _travels(diff: bytes) -> Optional[str]:
    """Return a diff as the text that the server keeps; ``None`` when it would not come back as it was."""
    try:
        text = diff.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


class _Entry(NamedTuple):
    modes: Tuple[str, str]
    new_content: bool
    """Whether the file is there afterwards, with other content than before."""
    path: str


def _entries(raw: bytes) -> List[_Entry]:
    """Return the changes that git printed with ``--raw -z``."""
    words = raw.split(b"\0")
    found = []
    for meta, path in zip(words[::2], words[1::2]):  # noqa: B905
        old_mode, new_mode, old, new, _ = meta.decode().lstrip(":").split()
        found.append(_Entry((old_mode, new_mode), old != new and int(new, 16) > 0, os.fsdecode(path)))
    return found


def _listed(folder: Path) -> str:
    """Return a folder as an entry of a list of folders."""
    text = str(folder.resolve())
    if ":" in text or text.startswith('"') or "\n" in text:
        return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
    return text


def _value(text: str) -> str:
    """Return a text as a value of git's configuration."""
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
