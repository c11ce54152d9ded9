"""Repositories of DVC: a folder as it is, or a commit; and what they track."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH118
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from .._cache import dvc_folder, locked
from .._errors import ClearmlClientError

__all__ = ["MD5", "Commit", "Output", "Source", "configured", "masked", "open_source", "run_git"]

MD5 = re.compile(r"[0-9a-f]{32}\Z")


class Output(NamedTuple):
    """What DVC tracks as one: a file, or a folder with all that is below it."""

    path: str  # below the root of the DVC repository, with /
    md5: str  # of the file, or of the list of the folder's files
    folder: bool
    size: Optional[int]  # bytes
    files: Optional[int]
    legacy: bool  # made by DVC 2
    remote: Optional[str]  # where it is the output's own
    imported: Mapping[str, Any]  # dependencies of an output that another repository's remote holds
    origin: str  # the file that tells all this
    meta: Mapping[str, Any] = {}  # what people noted in that file


def configured() -> Tuple[Optional[str], Optional[str]]:
    """Return repository and revision as pyproject.toml names them."""
    from .._config import load

    settings = load()
    return settings.dvc_repo, settings.dvc_rev


def open_source(repo: Union[str, "os.PathLike[str]", None], rev: Optional[str]) -> "Source":
    """Open a repository: a revision of it, or without one the folder as it is (of a URL, its default branch).

    Raises:
        ClearmlClientError: if there is no such repository or revision; the message says what to write instead.
    """
    if repo is None:
        root = _search()
    else:
        text = os.fspath(repo)
        folder = Path(text[len("file://") :] if text.startswith("file://") else text).expanduser()
        if not folder.is_dir():
            if re.match(r"[\w.+-]+://|[^/]+@?[^/]*:", text):
                return _from_url(text, rev)
            raise ClearmlClientError(
                f"repo is {text!r}, which is no folder; write a folder, or a URL of a git repository"
            )
        if not (folder / ".dvc").is_dir() and _is_bare(folder):
            return _from_url(str(folder.absolute()), rev)
        around = _root_of(folder.absolute())
        if around is None:
            raise ClearmlClientError(f"{folder} has no .dvc folder: name a DVC repository, or run dvc init there")
        root = around
    git = _git_root(root)
    if rev is None:
        return _Worktree(root, git)
    if git is None:
        raise ClearmlClientError(
            f"rev is {rev!r}, and {root} is not under git: leave rev out, or name the git repository"
        )
    return Commit(git, _resolve(git, rev, str(root)), root.relative_to(git).as_posix(), str(root), root)


def _search() -> Path:
    """Find the repository around the working directory, the script, or in their git repositories."""
    starts = [Path.cwd()]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        starts.append(Path(main).absolute().parent)
    for start in starts:
        root = _root_of(start)
        if root is not None:
            return root
    # dvc init --subdir, beside where we are.
    for git in filter(None, (_git_root(start) for start in starts)):
        listed = run_git(git, "ls-files", "-z", "--", ":(glob)**/.dvc/config").stdout.split("\0")
        roots = sorted(str(git / name[: -len("/.dvc/config")]) for name in listed if name.endswith("/.dvc/config"))
        if len(roots) == 1:
            return Path(roots[0])
        if roots:
            raise ClearmlClientError(
                f"{git} has several DVC repositories: write DvcApi(repo=...) with one of {', '.join(roots)}"
            )
    raise ClearmlClientError(
        f"no .dvc folder in {' or '.join(dict.fromkeys(map(str, starts)))} or above: run inside a DVC repository, "
        "write DvcApi(repo=...) with a folder or a URL, or set dvc_repo in [tool.clearml_client] of pyproject.toml"
    )


def _root_of(start: Path) -> Optional[Path]:
    for folder in (start, *start.parents):
        if (folder / ".dvc" / "config").is_file():
            return folder
    return None


def _git_root(folder: Path) -> Optional[Path]:
    for above in (folder, *folder.parents):
        # In a worktree or a submodule .git is a file.
        if (above / ".git").exists():
            return above
    return None


def _is_bare(folder: Path) -> bool:
    return (folder / "HEAD").is_file() and (folder / "objects").is_dir()


def run_git(folder: Path, *arguments: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run git in a repository, whoever owns it, and never ask for a password.

    Raises:
        ClearmlClientError: if there is no git; with ``check``, if it fails.
    """
    command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            check=False,
        )
    except FileNotFoundError:
        raise ClearmlClientError("git is not there, and DVC data need it: install git") from None
    if check and done.returncode:
        raise ClearmlClientError(f"git {arguments[0]} failed in {folder}: {masked(done.stderr.strip()[-500:])}")
    return done


def masked(text: str) -> str:
    """Hide what may be a password in URLs."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _resolve(git: Path, rev: str, name: str) -> str:
    """Return the commit of a branch, tag or commit.

    Raises:
        ClearmlClientError: if there is none; the message has names that are near.
    """
    for text in (rev, f"origin/{rev}"):
        done = run_git(git, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
        # git before 2.24 does not know --end-of-options and repeats it.
        commit = done.stdout.strip().rpartition("\n")[2]
        if done.returncode == 0 and commit:
            return commit
    known = run_git(git, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").stdout.split()
    near = difflib.get_close_matches(rev, known, n=4, cutoff=0.5) or known[-6:]
    told = f"it has {', '.join(near)}" if near else "it has no branches and tags"
    raise ClearmlClientError(
        f"{masked(name)} has no revision {rev!r}; {told}. If it is new: push it, or git fetch here"
    )


def _from_url(url: str, rev: Optional[str]) -> "Commit":
    """Give a repository that is only known by its URL; a clone without files is kept in the cache."""
    # A user's own: git refuses what belongs to others.
    name = f"{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder = dvc_folder("repositories") / name
    with locked(f"repository-{name}"):
        if not (folder / "HEAD").is_file():
            half = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=str(folder.parent)))
            try:
                done = run_git(half, "clone", "--quiet", "--bare", "--", url, str(half / "clone"))
                if done.returncode:
                    raise ClearmlClientError(
                        f"the repository {masked(url)} cannot be cloned: {masked(done.stderr.strip()[-500:])}. Check "
                        "its URL, and that this machine's key or token may read it"
                    )
                (half / "clone").rename(folder)
            finally:
                shutil.rmtree(str(half), ignore_errors=True)
        elif not (
            rev
            and re.match(r"[0-9a-f]{40}\Z", rev)
            and run_git(folder, "cat-file", "-e", f"{rev}^{{commit}}").returncode == 0
        ):
            refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            done = run_git(folder, "fetch", "--quiet", "--prune", "origin", *refs)
            if done.returncode:
                raise ClearmlClientError(
                    f"the repository {masked(url)} cannot be asked for {rev or 'its newest commit'}: "
                    f"{masked(done.stderr.strip()[-500:])}. A commit in full that was used here before needs no asking"
                )
        commit = _resolve(folder, rev or "HEAD", url)
    source = Commit(folder, commit, ".", url, None)
    if source.read(".dvc/config") is None:
        raise ClearmlClientError(
            f"{masked(url)} has no .dvc folder at {rev or commit}: name a DVC repository, or run dvc init"
        )
    return source


class Source:
    """The small files of a DVC repository: its settings, and what it tracks."""

    commit: Optional[str] = None
    git: Optional[Path] = None
    """Git's repository: its folder with files, or the bare one."""
    prefix = ""
    """Where the root is in git's repository: "" or a path that ends with a slash."""

    def read(self, name: str) -> Optional[bytes]:
        """Return a file below the root, None where it is not there."""
        raise NotImplementedError

    def names(self) -> List[str]:
        """Return the files that tell what is tracked."""
        raise NotImplementedError

    def folder(self) -> Optional[Path]:
        """Return the root on this disk, if there is one."""
        raise NotImplementedError

    def workspace(self) -> Path:
        """Return where paths are linked if nobody says."""
        raise NotImplementedError

    def version(self, rev: Optional[str], path: str, origin: str) -> str:
        """Return what people call the revision of a path."""
        raise NotImplementedError

    def find(self, name: str) -> List[Output]:
        """Return what is tracked at, above or below a path; nothing where nothing is."""
        # As dvc add names its files, without looking at others.
        parts = name.split("/") if name else []
        for count in range(len(parts), 0, -1):
            above = "/".join(parts[:count])
            found = [output for output in self._told(above + ".dvc") if output.path == above]
            if found:
                return found
        outputs = self.outputs()
        above_or_same = [o for o in outputs if name == o.path or name.startswith(o.path + "/")]
        return above_or_same[:1] or [o for o in outputs if not name or o.path.startswith(name + "/")]

    def outputs(self) -> List[Output]:
        """Return all that is tracked."""
        return [output for name in self.names() for output in self._told(name)]

    def untracked(self, name: str) -> ClearmlClientError:
        """Return the error for a path that is not tracked; it has names that are near."""
        known = sorted({output.path for output in self.outputs()})
        if not known:
            return ClearmlClientError(f"{self} tracks nothing with DVC: dvc add PATH, and commit PATH.dvc")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        tail = [path for path in known if path.rpartition("/")[2] == name.rpartition("/")[2]]
        told = list(dict.fromkeys(tail + near))[:4]
        text = f"did you mean {', '.join(told)}?" if told else f"it tracks {', '.join(known[:6])}"
        return ClearmlClientError(f"{name or '.'} is not tracked by DVC in {self}; {text}")

    def at(self, rev: str) -> "Commit":
        """Return a revision of the same repository.

        Raises:
            ClearmlClientError: if it is not under git, or has no such revision.
        """
        if self.git is None:
            raise ClearmlClientError(f"{self} is not under git, so it has no revision {rev!r}")
        return self.at_commit(self.git, _resolve(self.git, rev, str(self)))

    def at_commit(self, git: Path, commit: str) -> "Commit":
        """Return a commit that is known to be there, such as a tag's: git is not asked for it again."""
        return Commit(git, commit, self.prefix.rstrip("/") or ".", self.name(), self.folder())

    def name(self) -> str:
        """Return where the repository is, as somebody wrote it."""
        raise NotImplementedError

    def _told(self, name: str) -> List[Output]:
        text = self.read(name)
        if text is None:
            return []
        return _read_lock(self, name, text) if name.rpartition("/")[2] == "dvc.lock" else _read_stage(name, text)


class _Worktree(Source):
    """A folder as it is, changes that were not committed included."""

    def __init__(self, root: Path, git: Optional[Path]) -> None:
        self._root = root
        self.git = git
        if git is not None:
            done = run_git(git, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            self.commit = done.stdout.strip() or None
            below = root.relative_to(git).as_posix()
            self.prefix = "" if below == "." else below + "/"

    def name(self) -> str:
        return str(self._root)

    def __str__(self) -> str:
        return str(self._root)

    def read(self, name: str) -> Optional[bytes]:
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def names(self) -> List[str]:
        found = []
        # Links lead to data, which can be large and track nothing.
        for folder, folders, files in os.walk(str(self._root)):
            folders[:] = [name for name in folders if name not in (".git", ".dvc", ".venv", "node_modules")]
            for name in files:
                if name.endswith(".dvc") or name == "dvc.lock":
                    found.append(os.path.relpath(os.path.join(folder, name), str(self._root)))
        return sorted(found)

    def folder(self) -> Optional[Path]:
        return self._root

    def workspace(self) -> Path:
        if os.access(str(self._root), os.W_OK):
            return self._root
        return dvc_folder("workspaces") / hashlib.sha256(f"{os.getuid()} {self._root}".encode()).hexdigest()[:16]

    def version(self, rev: Optional[str], path: str, origin: str) -> str:
        if self.git is None or self.commit is None:
            return "worktree"
        tags = run_git(self.git, "tag", "--points-at", "HEAD").stdout.split()
        # path@1.4.0 is a version of that path alone.
        own = [tag for tag in tags if tag.startswith(f"{path}@")]
        tag = next(iter(own or [tag for tag in tags if "@" not in tag]), "").rpartition("@")[2]
        changed = run_git(self.git, "status", "--porcelain", "--", str(self._root / origin)).stdout.strip()
        return (tag or self.commit[:12]) + ("-modified" if changed else "")


class Commit(Source):
    """A commit of a git repository."""

    git: Path

    def __init__(self, git: Path, commit: str, prefix: str, name: str, root: Optional[Path]) -> None:
        self.git = git
        self.prefix = "" if prefix == "." else prefix + "/"
        self._name = name
        self._root = root
        self.commit = commit

    def name(self) -> str:
        return self._name

    def __str__(self) -> str:
        return f"{masked(self._name)}@{self.commit}"

    def read(self, name: str) -> Optional[bytes]:
        done = run_git(self.git, "show", f"{self.commit}:{self.prefix}{name}")
        return done.stdout.encode() if done.returncode == 0 else None

    def names(self) -> List[str]:
        listed = run_git(
            self.git, "ls-tree", "-r", "-z", "--name-only", "--full-tree", str(self.commit), check=True
        ).stdout
        below = [n[len(self.prefix) :] for n in listed.split("\0") if n.startswith(self.prefix)]
        return sorted(n for n in below if (n.endswith(".dvc") and n != ".dvc") or n.rpartition("/")[2] == "dvc.lock")

    def folder(self) -> Optional[Path]:
        return self._root

    def workspace(self) -> Path:
        where = f"{os.getuid()} {self._name} {self.prefix} {self.commit}"
        return dvc_folder("workspaces") / hashlib.sha256(where.encode()).hexdigest()[:16]

    def version(self, rev: Optional[str], path: str, origin: str) -> str:
        return rev or str(self.commit)[:12]


def _yaml(name: str, text: bytes) -> Dict[str, Any]:
    import yaml  # comes with clearml

    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ClearmlClientError(f"{name} is not YAML: {error}") from error
    return told if isinstance(told, dict) else {}


def _read_stage(name: str, text: bytes) -> List[Output]:
    """Read a .dvc file."""
    told = _yaml(name, text)
    folder = PurePosixPath(name).parent / str(told.get("wdir", "."))
    imported = [d for d in told.get("deps") or [] if isinstance(d, dict) and "repo" in d]
    found = []
    for out in told.get("outs") or []:
        output = _read_out(folder, out, name)
        if output is not None:
            meta = told.get("meta")
            found.append(
                output._replace(
                    imported={"deps": imported} if imported else {}, meta=meta if isinstance(meta, dict) else {}
                )
            )
    return found


def _read_lock(source: Source, name: str, text: bytes) -> List[Output]:
    """Read a dvc.lock, which knows the outputs of pipelines; their folders are in the dvc.yaml beside it."""
    folder = PurePosixPath(name).parent
    pipeline = source.read(str(folder / "dvc.yaml"))
    stages = _yaml(str(folder / "dvc.yaml"), pipeline).get("stages") if pipeline is not None else {}
    found = []
    for stage, told in (_yaml(name, text).get("stages") or {}).items():
        plan = (stages or {}).get(str(stage).partition("@")[0]) or {}
        work = str((plan.get("do") or plan).get("wdir", ".")) if isinstance(plan, dict) else "."
        for out in told.get("outs") or []:
            output = _read_out(folder / work, out, name)
            if output is not None:
                found.append(output)
    return found


def _read_out(folder: PurePosixPath, out: Mapping[str, Any], origin: str) -> Optional[Output]:
    """Read one output; None for what is not in DVC's cache."""
    md5 = str(out.get("md5") or "")
    bare = md5[: -len(".dir")] if md5.endswith(".dir") else md5
    if not MD5.match(bare) or out.get("cache") is False:
        return None
    return Output(
        path=os.path.normpath(str(folder / str(out.get("path", "")))),
        md5=bare,
        folder=md5 != bare,
        size=out.get("size"),
        files=out.get("nfiles"),
        legacy=out.get("hash") != "md5",
        remote=out.get("remote"),
        imported={},
        origin=origin,
    )
