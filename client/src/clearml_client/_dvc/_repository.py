"""Repositories of DVC: a folder as it is, or a commit; and what they track."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH118
import contextlib
import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .._cache import dvc_folder, locked
from .._errors import ClearmlClientError

__all__ = [
    "MD5",
    "Commit",
    "Output",
    "Source",
    "configured",
    "git_root",
    "masked",
    "open_source",
    "root_of",
    "run_git",
    "starts",
]

MD5 = re.compile(r"[0-9a-f]{32}\Z")
# What dvc init commits; DVC takes any folder .dvc, and git keeps none that is empty.
MARKS = (".dvc/config", ".dvc/.gitignore")
# What a user's own settings could add to git's answers.
PLAIN = ("-c", "color.ui=false", "-c", "column.ui=never", "-c", "log.showSignature=false")


class Output(NamedTuple):
    """What DVC tracks as one: a file, or a folder with all that is below it."""

    path: str  # below the root of the source, with /
    md5: str  # of the file, or of the list of the folder's files
    folder: bool
    size: Optional[int]  # bytes
    files: Optional[int]
    legacy: bool  # made by DVC 2
    remote: Optional[str]  # where it is the output's own
    imported: Mapping[str, Any]  # dependencies of an output that another repository's remote holds
    origin: str  # the file that tells all this
    meta: Mapping[str, Any] = {}  # what people noted in that file
    project: str = ""  # the DVC project below the root that tracks it: "" or a path that ends with a slash


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
        around = root_of(folder.absolute())
        if around is None:
            above = git_root(folder.absolute())
            # A repository of several projects, made by dvc init --subdir, is named by a folder above them.
            if above is None or (rev is None and not projects_in(above, folder.absolute())):
                raise ClearmlClientError(f"{folder} has no .dvc folder: name a DVC repository, or run dvc init there")
            around = folder.absolute()
        root = around
    git = git_root(root)
    if rev is None:
        return _Worktree(root, git)
    if git is None:
        raise ClearmlClientError(
            f"rev is {rev!r}, and {root} is not under git: leave rev out, or name the git repository"
        )
    source = Commit(git, _resolve(git, rev, str(root)), root.relative_to(git).as_posix(), str(root), root)
    if not source.has_projects():
        raise ClearmlClientError(
            f"{root} has no .dvc folder at {rev}, in no folder of it: name another revision, or a DVC repository"
        )
    return source


def starts() -> List[Path]:
    """Return the folders in which a script works: the working directory, and its own."""
    found = [Path.cwd()]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        found.append(Path(main).absolute().parent)
    return found


def _search() -> Path:
    """Find the repository around the working directory, the script, or in their git repositories."""
    folders = starts()
    for start in folders:
        root = root_of(start)
        if root is not None:
            return root
    # dvc init --subdir, beside where we are.
    for git in filter(None, (git_root(start) for start in folders)):
        roots = projects_in(git, git)
        if roots:
            # Of several, each path tells by itself which one is meant.
            return roots[0] if len(roots) == 1 else git
    raise ClearmlClientError(
        f"no .dvc folder in {' or '.join(dict.fromkeys(map(str, folders)))} or above: run inside a DVC repository, "
        "write DvcApi(repo=...) with a folder or a URL, or set dvc_repo in [tool.clearml_client] of pyproject.toml"
    )


def projects_in(git: Path, folder: Path) -> List[Path]:
    """Return the DVC projects in a folder of a git repository, those that are not committed yet included."""
    words = ("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard", "--")
    found = run_git(folder, *words, *(f":(glob)**/{mark}" for mark in MARKS)).stdout.split("\0")
    # git lists what was deleted since the last commit too
    return sorted(root for root in {git / PurePosixPath(n).parent.parent for n in found if n} if _is_project(root))


def root_of(start: Path) -> Optional[Path]:
    """Return the DVC project that a folder is in."""
    for folder in (start, *start.parents):
        if _is_project(folder):
            return folder
    return None


def _is_project(folder: Path) -> bool:
    """Tell whether a folder is a DVC project; a .dvc folder alone may be what another branch left."""
    return any((folder / mark).is_file() for mark in (*MARKS, ".dvc/config.local"))


def git_root(folder: Path) -> Optional[Path]:
    """Return the git repository that a folder is in."""
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
    try:
        done = subprocess.run(
            _git_command(folder, *arguments),
            env=_git_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        raise ClearmlClientError("git is not there, and DVC data need it: install git") from None
    if check and done.returncode:
        raise ClearmlClientError(f"git {arguments[0]} failed in {folder}: {masked(done.stderr.strip()[-500:])}")
    return done


def _git_command(folder: Path, *arguments: str) -> List[str]:
    return ["git", *PLAIN, "-c", f"safe.directory={folder}", "-C", str(folder), *arguments]


def _git_environment() -> Dict[str, str]:
    # Inside a hook of git these lead to the hook's repository.
    kept = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    return {**kept, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C.UTF-8"}


def _blobs(git: Path, commit: str, names: Sequence[str]) -> List[Optional[bytes]]:
    """Return files of a commit, None for each that is not there; one process for all."""
    asked = "".join(f"{commit}:{name}\n" for name in names).encode("utf-8", "surrogateescape")
    done = subprocess.run(
        _git_command(git, "cat-file", "--batch"),
        env=_git_environment(),
        input=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    found: List[Optional[bytes]] = []
    rest = done.stdout
    for _ in names:
        head, _, rest = rest.partition(b"\n")
        words = head.split(b" ")
        if len(words) != 3 or words[1] not in (b"blob", b"tree", b"commit", b"tag") or not words[2].isdigit():
            found.append(None)
            continue
        size = int(words[2])
        found.append(rest[:size] if words[1] == b"blob" else None)
        rest = rest[size + 1 :]
    return found


def masked(text: str) -> str:
    """Hide what may be a password in URLs, an @ of its own included, and the tokens in their questions."""
    text = re.sub(r"://[^/\s]*@", "://***@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:token|password|secret|sig|key)[^=&\s]*=)[^&\s'\"]+", r"\1***", text)


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
                # Its settings hold the URL, and that may hold a password.
                (half / "clone").chmod(0o700)
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
    if not source.has_projects():
        raise ClearmlClientError(
            f"{masked(url)} has no .dvc folder at {rev or commit}, in no folder of it: name a DVC repository, or run "
            "dvc init"
        )
    return source


class Source:
    """The small files of the DVC projects below one root: their settings, and what they track.

    A repository may hold several, made by ``dvc init --subdir``, one in the other too; each has its own remotes. A
    file that tells what is tracked belongs to the nearest project above it, as for DVC.
    """

    commit: Optional[str] = None
    git: Optional[Path] = None
    """Git's repository: its folder with files, or the bare one."""
    prefix = ""
    """Where the root is in git's repository: "" or a path that ends with a slash."""

    def __init__(self) -> None:
        self._is_project: Dict[str, bool] = {}

    def read(self, name: str) -> Optional[bytes]:
        """Return a file below the root, None where it is not there."""
        return self.read_all([name]).get(name)

    def read_all(self, names: Sequence[str]) -> Dict[str, bytes]:
        """Return those of the files below the root that are there, by their names."""
        raise NotImplementedError

    def names(self) -> List[str]:
        """Return the files that tell what is tracked."""
        raise NotImplementedError

    def has_projects(self) -> bool:
        """Tell whether there is a DVC project at the root or below."""
        raise NotImplementedError

    def project_of(self, name: str) -> Optional[str]:
        """Return the project that a file belongs to: "" or a path that ends with a slash; None outside of all."""
        above = [name[: end + 1] for end in range(len(name) - 1, -1, -1) if name[end] == "/"] + [""]
        unknown = [prefix for prefix in above if prefix not in self._is_project]
        if unknown:
            self._look_for_projects(unknown)
        return next((prefix for prefix in above if self._is_project[prefix]), None)

    def _look_for_projects(self, prefixes: Sequence[str]) -> None:
        there = self.read_all([prefix + mark for prefix in prefixes for mark in MARKS])
        for prefix in prefixes:
            self._is_project[prefix] = any(prefix + mark in there for mark in MARKS)

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
        """Return what is tracked at, above or below a path; nothing where nothing is.

        Of a folder on this disk what is below is that of the project it is in, as for ``dvc pull``, if that has any;
        of a URL it is that of all projects, as for ``dvc get``.
        """
        # As dvc add names its files, without looking at others.
        parts = name.split("/") if name else []
        above = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        texts = self.read_all([path + ".dvc" for path in above])
        for path in (path for path in above if path + ".dvc" in texts):
            found = [o for o in self._told(path + ".dvc", texts[path + ".dvc"]) if o.path == path]
            if found:
                return found
        outputs = self.outputs()
        above_or_same = [o for o in outputs if name == o.path or name.startswith(o.path + "/")]
        if above_or_same:
            return above_or_same[:1]
        below = [o for o in outputs if not name or o.path.startswith(name + "/")]
        if self.folder() is None:
            return below
        project = self.project_of(f"{name}/." if name else ".")
        return [o for o in below if o.project == project] or below

    def told_by(self, name: str) -> List[Output]:
        """Return what a file tells to be tracked: ``NAME.dvc``, ``dvc.yaml`` or ``dvc.lock``; nothing of another."""
        if name.rpartition("/")[2] == "dvc.yaml":
            name = name[: -len("yaml")] + "lock"
        if not name.endswith(".dvc") and name.rpartition("/")[2] != "dvc.lock":
            return []
        text = self.read(name)
        return [] if text is None else self._told(name, text)

    def outputs(self) -> List[Output]:
        """Return all that is tracked, in all projects."""
        return [output for name, text in self.read_all(self.names()).items() for output in self._told(name, text)]

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

    def _told(self, name: str, text: bytes) -> List[Output]:
        project = self.project_of(name)
        if project is None:
            return []
        is_lock = name.rpartition("/")[2] == "dvc.lock"
        outputs = _read_lock(self, name, text) if is_lock else _read_stage(self, name, text, project)
        # One that leads out of the root is another file system's, or somebody's who wants to write there.
        kept = [output for output in outputs if not output.path.startswith(("/", "../"))]
        return [output._replace(project=project) for output in kept]


class _Worktree(Source):
    """A folder as it is, changes that were not committed included."""

    def __init__(self, root: Path, git: Optional[Path]) -> None:
        super().__init__()
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

    def read_all(self, names: Sequence[str]) -> Dict[str, bytes]:
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                found[name] = (self._root / name).read_bytes()
        return found

    def _look_for_projects(self, prefixes: Sequence[str]) -> None:
        self._is_project.update({prefix: _is_project(self._root / prefix) for prefix in prefixes})

    def has_projects(self) -> bool:
        return _is_project(self._root) or (self.git is not None and bool(projects_in(self.git, self._root)))

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
        own = [tag for tag in tags if tag.startswith(f"{self.prefix}{path}@")]
        if not own and self.prefix and len(projects_in(self.git, self.git)) == 1:
            own = [tag for tag in tags if tag.startswith(f"{path}@")]
        tag = next(iter(own or [tag for tag in tags if "@" not in tag]), "").rpartition("@")[2]
        changed = run_git(self.git, "status", "--porcelain", "--", str(self._root / origin)).stdout.strip()
        return (tag or self.commit[:12]) + ("-modified" if changed else "")


class Commit(Source):
    """A commit of a git repository."""

    git: Path

    def __init__(self, git: Path, commit: str, prefix: str, name: str, root: Optional[Path]) -> None:
        super().__init__()
        self.git = git
        self.prefix = "" if prefix == "." else prefix + "/"
        self._name = name
        self._root = root
        self.commit: str = commit
        self._listed: Optional[List[str]] = None

    def name(self) -> str:
        return self._name

    def __str__(self) -> str:
        return f"{masked(self._name)}@{self.commit}"

    def read_all(self, names: Sequence[str]) -> Dict[str, bytes]:
        found = _blobs(self.git, self.commit, [self.prefix + os.path.normpath(name) for name in names])
        return {name: text for name, text in zip(names, found) if text is not None}  # noqa: B905 - of Python 3.10

    def has_projects(self) -> bool:
        if self.project_of(".") is not None:
            return True
        return any(f"/{name}".endswith(tuple(f"/{mark}" for mark in MARKS)) for name in self._all())

    def _all(self) -> List[str]:
        """Return all files below the root."""
        if self._listed is None:
            words = ("ls-tree", "-r", "-z", "--name-only", "--full-tree", self.commit)
            where = ("--", self.prefix) if self.prefix else ()
            listed = run_git(self.git, *words, *where, check=True).stdout
            self._listed = [n[len(self.prefix) :] for n in listed.split("\0") if n.startswith(self.prefix)]
        return [name for name in self._listed if name]

    def names(self) -> List[str]:
        every = self._all()
        marks = {name for name in every if f"/{name}".endswith(tuple(f"/{mark}" for mark in MARKS))}
        projects = {name[: name.rindex(".dvc/")] for name in marks}
        found = sorted(
            n
            for n in every
            if (n.endswith(".dvc") or n.rpartition("/")[2] == "dvc.lock") and not f"/{n}".count("/.dvc/")
        )
        for name in found:
            for end, letter in enumerate(name):
                if letter == "/":
                    self._is_project[name[: end + 1]] = name[: end + 1] in projects
        self._is_project[""] = "" in projects
        return found

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


def _read_stage(source: Source, name: str, text: bytes, project: str) -> List[Output]:
    """Read a .dvc file."""
    told = _yaml(name, text)
    folder = PurePosixPath(name).parent / str(told.get("wdir", "."))
    imported = [
        _read_import(source, d, [folder, PurePosixPath(project)])
        for d in told.get("deps") or []
        if isinstance(d, dict) and isinstance(d.get("repo"), dict)
    ]
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


def _read_import(source: Source, dep: Dict[str, Any], folders: Sequence[PurePosixPath]) -> Dict[str, Any]:
    """Read what an output was imported from; DVC writes a folder down as somebody typed it, from where he stood."""
    root = source.folder()
    repo = dict(dep["repo"])
    for key in ("url", "config"):
        value = repo.get(key)
        if root is None or not isinstance(value, str) or re.match(r"/|[\w.+@-]+:", value):
            continue
        for folder in folders:
            place = root / folder / value
            if place.exists():
                repo[key] = os.path.normpath(str(place))
                break
    return {**dep, "repo": repo}


def _read_lock(source: Source, name: str, text: bytes) -> List[Output]:
    """Read a dvc.lock, which knows the outputs of pipelines; all else of them is in the dvc.yaml beside it."""
    folder = PurePosixPath(name).parent
    pipeline = source.read(str(folder / "dvc.yaml"))
    stages = _yaml(str(folder / "dvc.yaml"), pipeline).get("stages") if pipeline is not None else {}
    locked_stages = _yaml(name, text)
    if "schema" in locked_stages or "stages" in locked_stages:  # DVC 1 had the stages at the top
        locked_stages = locked_stages.get("stages") or {}
    found = []
    for stage, told in locked_stages.items():
        if not isinstance(told, dict):
            continue
        plan = (stages or {}).get(str(stage).partition("@")[0]) or {}
        plan = (plan.get("do") or plan) if isinstance(plan, dict) else {}
        flags = _flags(plan)
        for out in told.get("outs") or []:
            own = next((more for pattern, more in flags if pattern.match(str(out.get("path")))), {})
            output = _read_out(folder / str(plan.get("wdir", ".")), {**out, **own}, name)
            if output is not None:
                found.append(output)
    return found


def _flags(plan: Mapping[str, Any]) -> "List[Tuple[re.Pattern[str], Dict[str, Any]]]":
    """Return what a stage of a pipeline says of its outputs: their own remote, and whether the cache has them."""
    found = []
    for kind in ("outs", "metrics", "plots"):
        for told in plan.get(kind) or []:
            for path, more in told.items() if isinstance(told, dict) else ():
                if isinstance(more, dict):
                    # ${item} stands for anything; the lock has what it stood for.
                    words = [re.escape(word) for word in re.split(r"\$\{[^}]*\}", os.path.normpath(str(path)))]
                    own = {key: more[key] for key in ("cache", "remote") if key in more}
                    found.append((re.compile(".+".join(words) + r"\Z"), own))
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
