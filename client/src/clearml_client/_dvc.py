"""Data that DVC tracks: pulled once per node, verified, and linked to where a script looks for it.

    dvc = DvcApi()
    path = dvc.dvc_path / "data/images"
    dvc.dvc_pull(path)

A path that was pulled before on this machine costs a few small files to read and one link to set: DVC is not even
imported. Otherwise DVC itself fetches what is missing into its cache. It does so in a repository that is made up for
the one path, with the remotes and settings of the real one: so it works for any revision and in a read-only clone,
takes no lock that another pull waits for, and does not depend on how large the real one is.

Facts about DVC that this rests on (read and measured with 2.58 and 3.67):

* without ``verify`` of the remote it stores whatever the remote gives, as read-only file, which it trusts from then on;
* with it, what has the wrong hash is silently left out and the exit code is 0, as it is for a remote that is not there:
  so what must have come is looked for afterwards;
* a verified object becomes read-only (0444) last, so what a kill -9 leaves is hashed again when it is met.
"""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH110, PTH111, PTH115, PTH116, PTH118, PTH211
import configparser
import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from ._cache import cache_root, check_space, dvc_folder, find_tree, is_changed, locked, open_tree
from ._errors import ClearmlClientError

__all__ = ["DvcApi"]

logger = logging.getLogger(__name__)

# Where the role dataset_cache puts DVC's cache of the node, when the configuration of DVC does not say.
SITE_CACHE = Path("/dvc_cache")
# Where a repository is that is only known by its URL; DVC takes the root of the disk, and would write there.
NOWHERE = Path("/dev/null/no/such/place/repository")
# In a queue's console a line every so often; at a terminal the same line, rewritten.
LINE_SECONDS = 10.0
TERMINAL_SECONDS = 0.5
# So many links of a tree are tried before it is handed out: DVC's cache may have been emptied under it.
TRIED_LINKS = 16
LINKS = ("symlink", "hardlink", "copy")
# What DVC 2 calls md5: text files are hashed as if they had Unix line ends.
DOS2UNIX = "md5-dos2unix"
CHUNK_BYTES = 2**20
MD5 = re.compile(r"[0-9a-f]{32}\Z")
# Options of a remote that may be paths relative to the file they are written in.
RELATIVE_OPTIONS = (
    "url",
    "credentialpath",
    "configpath",
    "keyfile",
    "cert_path",
    "key_path",
    "gdrive_user_credentials_file",
    "gdrive_service_account_json_file_path",
)
# Runs a command that ends with us: a DVC that goes on after a kill -9 would transfer beside the next one.
CHILD = """
import ctypes, os, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != parent:
    os._exit(9)
os.execvp(sys.argv[2], sys.argv[2:])
"""

Config = Dict[str, Dict[str, str]]


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


class Entry(NamedTuple):
    """A file of an output."""

    path: str  # below the output; "" for an output that is a file
    md5: str


class DvcApi:
    """Data of a DVC repository on this machine.

    Args:
        repo: folder or URL of the git repository. Without it: ``dvc_repo`` of ``[tool.clearml_client]`` in
            pyproject.toml, or the repository around the working directory or the script.
        rev: branch, tag or commit; without it ``dvc_rev`` of the same place, the files of the folder as they are, or
            the default branch of a URL.
        remote: name of a remote; without it the one that DVC would take.
        path: the folder in which paths are linked; without it the repository's own, or one of the client's cache where
            that cannot be (another revision, a URL, a read-only folder).
        link: "symlink", or "hardlink" or "copy" for a folder of one's own; only copies may be changed.

    Raises:
        ClearmlClientError: if there is no such repository or revision; the message says what to write instead.
    """

    def __init__(
        self,
        repo: Union[str, "os.PathLike[str]", None] = None,
        rev: Optional[str] = None,
        *,
        remote: Optional[str] = None,
        path: Union[str, "os.PathLike[str]", None] = None,
        link: str = "symlink",
    ) -> None:
        if link not in LINKS:
            raise ClearmlClientError(f"link is {link!r}; write one of {', '.join(LINKS)}")
        if repo is None:
            repo, configured = _configured()
            rev = rev or configured
        self._remote = remote
        self._link = link
        self._rev = rev
        self._files = _open_source(repo, rev)
        if path is not None:
            self._path = Path(path).expanduser().absolute()
        else:
            self._path = self._files.workspace()
        self._found: Dict[str, List[Output]] = {}

    @property
    def dvc_path(self) -> Path:
        """The folder below which the tracked paths are found once they are pulled."""
        return self._path

    @property
    def revision(self) -> Optional[str]:
        """The commit that the data belong to; None outside git."""
        return self._files.commit

    def dvc_pull(self, path: Union[str, "os.PathLike[str]"] = ".") -> Path:
        """Make a tracked path be there, and return it as an absolute path.

        Args:
            path: below ``dvc_path``, or absolute. A tracked file or folder, something below one, of which only that
                part is pulled, or a folder that holds several.

        Raises:
            ClearmlClientError: if the path is not tracked, cannot be had or does not verify, or if something else is
                in its place; nothing half is left.
        """
        name = self._relative(path)
        found = self._find(name)
        for output in found:
            below = name[len(output.path) + 1 :] if name.startswith(output.path + "/") else ""
            self._pull(output, below)
        return self._path / name if name else self._path

    def tracked(self) -> List[str]:
        """Return all paths that the repository tracks, below ``dvc_path``."""
        return sorted({output.path for output in self._files.outputs()})

    def dvc_verify(self, path: Union[str, "os.PathLike[str]"] = ".") -> List[str]:
        """Hash a pulled path again, and return the paths whose content is not what was tracked.

        Raises:
            ClearmlClientError: if the path is not tracked or was not pulled.
        """
        name = self._relative(path)
        wrong = []
        for output in self._find(name):
            below = name[len(output.path) + 1 :] if name.startswith(output.path + "/") else ""
            site = self._site()
            entries = _entries(output, below, site)
            if entries is None:
                raise ClearmlClientError(f"{output.path} was not pulled on this machine: call dvc_pull first")
            for entry in entries:
                place = self._path / output.path / entry.path
                if not place.is_file() or not _hash_is(place, entry.md5, output.legacy):
                    wrong.append(str(PurePosixPath(output.path) / entry.path))
        return wrong

    # One path

    def _relative(self, path: Union[str, "os.PathLike[str]"]) -> str:
        """Return a path below the root of the repository, "" for the root itself."""
        given = Path(path).expanduser()
        if given.is_absolute():
            for root in (self._path, self._files.folder()):
                if root is not None:
                    with contextlib.suppress(ValueError):
                        given = given.relative_to(root)
                        break
            else:
                raise ClearmlClientError(
                    f"{path} is not below {self._path}, where this repository's paths are: write dvc.dvc_path / ..., "
                    "or a path relative to it"
                )
        name = os.path.normpath(given.as_posix())
        if name == ".." or name.startswith("../"):
            raise ClearmlClientError(f"{path} leads out of {self._path}: write a path below it")
        return "" if name == "." else name

    def _find(self, name: str) -> List[Output]:
        """Return what is tracked at, above or below a path.

        Raises:
            ClearmlClientError: if nothing is; the message has names that are near.
        """
        if name not in self._found:
            found = self._files.find(name)
            if not found:
                raise self._untracked(name)
            self._found[name] = found
        return self._found[name]

    def _untracked(self, name: str) -> ClearmlClientError:
        known = self.tracked()
        if not known:
            return ClearmlClientError(f"{self._files} tracks nothing with DVC: dvc add PATH, and commit PATH.dvc")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        tail = [path for path in known if path.rpartition("/")[2] == name.rpartition("/")[2]]
        told = list(dict.fromkeys(tail + near))[:4]
        text = f"did you mean {', '.join(told)}?" if told else f"it tracks {', '.join(known[:6])}"
        return ClearmlClientError(f"{name or '.'} is not tracked by DVC in {self._files}; {text}")

    def _site(self) -> "_Site":
        return _Site(self._files)

    def _pull(self, output: Output, below: str) -> None:
        site = self._site()
        content = self._tree(output, below, site)
        target = self._path / output.path
        if below:
            target = target / below
        self._place(output, below, content, target, site)
        self._record(output, below)

    def _tree(self, output: Output, below: str, site: "_Site") -> Path:
        """Return where the shared copy is: the folder or the file."""
        whole = find_tree(_key(output, "", site))
        if whole is not None and not _is_broken(whole):
            return _inside(whole, output, below)
        source = f"{self._files}: {output.path}" + (f"/{below}" if below else "")

        def make(folder: Path) -> None:
            _make_tree(folder, output, below, site, self._remote)

        return _inside(open_tree(_key(output, below, site), make, source=source, broken=_is_broken), output, below)

    def _place(self, output: Output, below: str, content: Path, target: Path, site: "_Site") -> None:
        """Put a link, or files of one's own, where the script looks."""
        ours = _Ours(site.cache)
        try:
            if _leads_to(target, content):
                return
            _clear_way(self._path, target, ours)
            listed = None
            if os.path.lexists(str(target)) and not ours.is_link(target):
                listed = _entries(output, below, site)
                if _is_checkout(target, listed, output.legacy, site, below):
                    return
                if not ours.only_links(target):
                    raise ClearmlClientError(
                        f"{target} is there with other content than what is tracked ({output.origin}): move it away, "
                        "or dvc add it if it is the better one"
                    )
            if self._link == "symlink":
                _swap(target, lambda new: new.symlink_to(content))
            else:
                hard = self._link == "hardlink"
                _swap(target, lambda new: _materialise(content, new, hard))
        except OSError as error:
            raise ClearmlClientError(
                f"{target} cannot be made ({error.strerror}): give DvcApi a path that you may write"
            ) from error

    def _record(self, output: Output, below: str) -> None:
        try:
            from ._links import record
        except ImportError:
            return
        record(
            name=str(PurePosixPath(output.path) / below),
            version=self._files.version(self._rev, output.origin),
            hash=output.md5,
            path=str(PurePosixPath(output.path) / below),
            store="dvc",
            revision=self._files.commit or "",
        )


# Which repository


def _configured() -> Tuple[Optional[str], Optional[str]]:
    """Return repository and revision as pyproject.toml names them."""
    try:
        from ._config import load
    except ImportError:
        return None, None
    settings = load()
    return getattr(settings, "dvc_repo", None) or None, getattr(settings, "dvc_rev", None) or None


def _open_source(repo: Union[str, "os.PathLike[str]", None], rev: Optional[str]) -> "_Source":
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
    return _Commit(git, _resolve(git, rev, str(root)), root.relative_to(git).as_posix(), str(root), root)


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
        listed = _git(git, "ls-files", "-z", "--", ":(glob)**/.dvc/config").stdout.split("\0")
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


def _git(folder: Path, *arguments: str, check: bool = False) -> "subprocess.CompletedProcess[str]":
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
        raise ClearmlClientError(f"git {arguments[0]} failed in {folder}: {_masked(done.stderr.strip()[-500:])}")
    return done


def _masked(text: str) -> str:
    """Hide what may be a password in URLs."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def _resolve(git: Path, rev: str, name: str) -> str:
    """Return the commit of a branch, tag or commit.

    Raises:
        ClearmlClientError: if there is none; the message has names that are near.
    """
    for text in (rev, f"origin/{rev}"):
        done = _git(git, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
        # git before 2.24 does not know --end-of-options and repeats it.
        commit = done.stdout.strip().rpartition("\n")[2]
        if done.returncode == 0 and commit:
            return commit
    known = _git(git, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").stdout.split()
    near = difflib.get_close_matches(rev, known, n=4, cutoff=0.5) or known[-6:]
    told = f"it has {', '.join(near)}" if near else "it has no branches and tags"
    raise ClearmlClientError(
        f"{_masked(name)} has no revision {rev!r}; {told}. If it is new: push it, or git fetch here"
    )


def _from_url(url: str, rev: Optional[str]) -> "_Commit":
    """Give a repository that is only known by its URL; a clone without files is kept in the cache."""
    # A user's own: git refuses what belongs to others.
    name = f"{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    folder = dvc_folder("repositories") / name
    with locked(f"repository-{name}"):
        if not (folder / "HEAD").is_file():
            half = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=str(folder.parent)))
            try:
                done = _git(half, "clone", "--quiet", "--bare", "--", url, str(half / "clone"))
                if done.returncode:
                    raise ClearmlClientError(
                        f"the repository {_masked(url)} cannot be cloned: {_masked(done.stderr.strip()[-500:])}. Check "
                        "its URL, and that this machine's key or token may read it"
                    )
                (half / "clone").rename(folder)
            finally:
                shutil.rmtree(str(half), ignore_errors=True)
        elif not (
            rev
            and re.match(r"[0-9a-f]{40}\Z", rev)
            and _git(folder, "cat-file", "-e", f"{rev}^{{commit}}").returncode == 0
        ):
            refs = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            done = _git(folder, "fetch", "--quiet", "--prune", "origin", *refs)
            if done.returncode:
                raise ClearmlClientError(
                    f"the repository {_masked(url)} cannot be asked for {rev or 'its newest commit'}: "
                    f"{_masked(done.stderr.strip()[-500:])}. A commit in full that was used here before needs no asking"
                )
        commit = _resolve(folder, rev or "HEAD", url)
    source = _Commit(folder, commit, ".", url, None)
    if source.read(".dvc/config") is None:
        raise ClearmlClientError(
            f"{_masked(url)} has no .dvc folder at {rev or commit}: name a DVC repository, or run dvc init"
        )
    return source


# What a repository tracks


class _Source:
    """The small files of a DVC repository: its settings, and what it tracks."""

    commit: Optional[str] = None

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

    def version(self, rev: Optional[str], origin: str) -> str:
        """Return what people call the revision."""
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

    def _told(self, name: str) -> List[Output]:
        text = self.read(name)
        if text is None:
            return []
        return _read_lock(self, name, text) if name.rpartition("/")[2] == "dvc.lock" else _read_stage(name, text)


class _Worktree(_Source):
    """A folder as it is, changes that were not committed included."""

    def __init__(self, root: Path, git: Optional[Path]) -> None:
        self._root = root
        self._git = git
        if git is not None:
            done = _git(git, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
            self.commit = done.stdout.strip() or None

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

    def version(self, rev: Optional[str], origin: str) -> str:
        if self._git is None or self.commit is None:
            return "worktree"
        tag = _git(self._git, "describe", "--tags", "--exact-match", "HEAD").stdout.strip()
        changed = _git(self._git, "status", "--porcelain", "--", str(self._root / origin)).stdout.strip()
        return (tag or self.commit[:12]) + ("-modified" if changed else "")


class _Commit(_Source):
    """A commit of a git repository."""

    def __init__(self, git: Path, commit: str, prefix: str, name: str, root: Optional[Path]) -> None:
        self._git = git
        self._prefix = "" if prefix == "." else prefix + "/"
        self._name = name
        self._root = root
        self.commit = commit

    def __str__(self) -> str:
        return f"{_masked(self._name)}@{self.commit}"

    def read(self, name: str) -> Optional[bytes]:
        done = _git(self._git, "show", f"{self.commit}:{self._prefix}{name}")
        return done.stdout.encode() if done.returncode == 0 else None

    def names(self) -> List[str]:
        listed = _git(
            self._git, "ls-tree", "-r", "-z", "--name-only", "--full-tree", str(self.commit), check=True
        ).stdout
        below = [n[len(self._prefix) :] for n in listed.split("\0") if n.startswith(self._prefix)]
        return sorted(n for n in below if (n.endswith(".dvc") and n != ".dvc") or n.rpartition("/")[2] == "dvc.lock")

    def folder(self) -> Optional[Path]:
        return self._root

    def workspace(self) -> Path:
        where = f"{os.getuid()} {self._name} {self._prefix} {self.commit}"
        return dvc_folder("workspaces") / hashlib.sha256(where.encode()).hexdigest()[:16]

    def version(self, rev: Optional[str], origin: str) -> str:
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
            found.append(output._replace(imported={"deps": imported} if imported else {}))
    return found


def _read_lock(source: _Source, name: str, text: bytes) -> List[Output]:
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


# Settings of DVC


class _Site:
    """Remotes and cache, as DVC would find them for a repository."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        folder = source.folder()
        own: Config = {}
        committed = source.read(".dvc/config")
        base = folder / ".dvc" if folder is not None else NOWHERE / ".dvc"
        if committed is not None:
            _merge(own, _read_config(committed.decode("utf-8", "replace")), base)
        if folder is not None:
            # What people keep out of git, such as keys, belongs to the folder whatever the revision.
            with contextlib.suppress(OSError):
                _merge(own, _read_config((base / "config.local").read_text()), base)
        outer: Config = {}
        for place in _config_folders():
            with contextlib.suppress(OSError):
                _merge(outer, _read_config((place / "config").read_text()), place)
        self.own = own
        self.all: Config = {}
        _merge(self.all, outer, Path("/"))
        _merge(self.all, own, Path("/"))
        self.cache, self.private = self._find_cache(folder)

    def _find_cache(self, folder: Optional[Path]) -> Tuple[Path, bool]:
        """Return DVC's cache, and whether it belongs to one repository alone."""
        named = _plain(self.all.get("cache", {}).get("dir", ""))
        if named:
            return Path(named), False
        if SITE_CACHE.is_dir() and os.access(str(SITE_CACHE), os.W_OK):
            return SITE_CACHE, False
        if folder is not None and os.access(str(folder / ".dvc"), os.W_OK):
            return folder / ".dvc" / "cache", True
        return dvc_folder("objects"), False

    def objects(self, legacy: bool) -> Path:
        """Return the folder of the objects: DVC 2 had them at the top."""
        return self.cache if legacy else self.cache / "files" / "md5"

    def remote(self, asked: Optional[str], output: Output) -> str:
        """Return the name of the remote that holds an output.

        Raises:
            ClearmlClientError: if there is none.
        """
        known = sorted(_remotes(self.all))
        name = asked or output.remote or _plain(self.all.get("core", {}).get("remote", ""))
        if not name:
            told = (
                f"choose one of {', '.join(known)}: dvc remote default NAME" if known else "dvc remote add -d NAME URL"
            )
            raise ClearmlClientError(
                f"{self._source} has no default remote, so {output.path} cannot be fetched; {told}"
            )
        if name.lower() not in known:
            raise ClearmlClientError(
                f"{self._source} has no remote {name!r} for {output.path}; it has {', '.join(known) or 'none'}"
            )
        if self.url(name.lower()).startswith("/dev/null/"):
            raise ClearmlClientError(
                f"the remote {name} of {self._source} has a path relative to the repository, which is not on this "
                "disk: write an absolute path or a URL there (dvc remote modify), or give DvcApi the folder of a clone"
            )
        return name.lower()

    def url(self, remote: str) -> str:
        """Return where a remote is."""
        return _masked(_plain(self.all.get(_remotes(self.all)[remote], {}).get("url", "")))


def _config_folders() -> Iterator[Path]:
    """Give the folders of the system's and the user's settings, as DVC looks for them on Linux."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR")
    yield Path(system) if system else Path((os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")[0]) / "dvc"
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR")
    if user:
        yield Path(user)
        return
    with contextlib.suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc"


def _read_config(text: str) -> Config:
    """Read settings of DVC; values stay as they are written, so that DVC reads them as it would have."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ClearmlClientError(f"a configuration of DVC cannot be read: {error}") from error
    return {section.strip("'"): dict(parser.items(section)) for section in parser.sections()}


def _plain(value: str) -> str:
    """Take quotes and a comment from a value."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0]
    return re.split(r"\s+#", value)[0].strip()


def _merge(into: Config, more: Config, base: Path) -> None:
    """Add settings over others, with their paths made absolute: relative ones count from their file."""
    for section, options in more.items():
        kept = into.setdefault(section, {})
        for option, value in options.items():
            text = _plain(value)
            is_path = (section, option) == ("cache", "dir") or (
                section.startswith("remote ") and option in RELATIVE_OPTIONS
            )
            if is_path and text and not re.match(r"\w+://", text):
                kept[option] = os.path.normpath(os.path.join(str(base), os.path.expanduser(text)))
            else:
                kept[option] = value


def _remotes(config: Config) -> Dict[str, str]:
    """Return the sections of remotes by their names."""
    found = {}
    for section in config:
        match = re.match(r'remote\s+"?([^"]+)"?\Z', section)
        if match:
            found[match.group(1).lower()] = section
    return found


# The shared copy


def _key(output: Output, below: str, site: _Site) -> str:
    """Return the name of a tree; what has another content or leads elsewhere has another."""
    key = f"dvc-{output.md5}"
    if output.legacy:
        key += "-dos2unix"
    if below:
        key += "-" + hashlib.sha256(below.encode()).hexdigest()[:16]
    if site.private:
        # Its links die with the repository, so no other one must meet them.
        key += "-" + hashlib.sha256(str(site.cache).encode()).hexdigest()[:8]
    return key


def _inside(content: Path, output: Output, below: str) -> Path:
    """Return an output, or a part of it, in a tree.

    Raises:
        ClearmlClientError: if the output has no such part.
    """
    if not output.folder:
        if below:
            raise ClearmlClientError(f"{output.path} is a tracked file, so it has no {below!r}: pull {output.path}")
        return content / "file"
    if below and not (content / below).exists():
        raise _no_part(output, below, sorted(entry.name for entry in os.scandir(str(content))))
    return content / below if below else content


def _no_part(output: Output, below: str, known: Sequence[str]) -> ClearmlClientError:
    near = difflib.get_close_matches(below, known, n=3, cutoff=0.5) or list(known[:5])
    return ClearmlClientError(f"{output.path} is tracked, and has no {below!r} in it; it has {', '.join(near)}")


def _is_broken(content: Path) -> bool:
    """Tell whether a tree was changed, or its links lead nowhere, by a few of them: those that are listed first."""
    if is_changed(content):
        return True
    left = TRIED_LINKS
    folders = [str(content)]
    while folders and left:
        try:
            for entry in os.scandir(folders.pop()):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                if not os.path.exists(entry.path):
                    return True
                left -= 1
                if not left:
                    break
        except FileNotFoundError:
            return True
    return False


def _entries(output: Output, below: str, site: _Site) -> Optional[List[Entry]]:
    """Return the files of an output, or of a part of it; None where its list is not in the cache.

    Raises:
        ClearmlClientError: if the list is not one, or has no such part.
    """
    if not output.folder:
        return [Entry("", output.md5)]
    listing = site.objects(output.legacy) / output.md5[:2] / f"{output.md5[2:]}.dir"
    try:
        text = listing.read_bytes()
        if hashlib.md5(text).hexdigest() != output.md5:  # noqa: S324 - DVC names its objects so
            if not _is_trusted(str(listing)):
                return None  # DVC will see it too, and fetch it
            raise ValueError("its hash does not verify")
        told = json.loads(text)
        entries = [Entry(str(item["relpath"]), str(item["md5"])) for item in told]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClearmlClientError(f"{listing} is no list of files ({error}): delete it, and pull again") from error
    for entry in entries:
        if not MD5.match(entry.md5) or entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise ClearmlClientError(f"{listing} has an entry that leads elsewhere: {entry.path!r}")
    if below:
        part = [entry for entry in entries if entry.path == below or entry.path.startswith(below + "/")]
        if not part:
            raise _no_part(output, below, sorted({entry.path.split("/")[0] for entry in entries}))
        return part
    return entries


def _object(objects: Path, md5: str) -> str:
    return f"{objects}/{md5[:2]}/{md5[2:]}"


def _make_tree(folder: Path, output: Output, below: str, site: _Site, remote: Optional[str]) -> None:
    """Fill a folder with links into DVC's cache, where everything is and was verified."""
    objects = site.objects(output.legacy)
    entries = _entries(output, below, site)
    # What is read-only was verified when it came; the rest is what a killed process left, which DVC hashes.
    if entries is None or not all(_is_trusted(_object(objects, entry.md5)) for entry in entries):
        _fetch(folder.parent, output, below, site, remote)
        entries = _entries(output, below, site)
    if entries is None:
        raise ClearmlClientError(f"the list of the files of {output.path} did not come from its remote")
    if not output.folder:
        (folder / "file").symlink_to(_object(objects, output.md5))
        return
    made = set()
    for entry in entries:
        above = entry.path.rpartition("/")[0]
        if above and above not in made:
            (folder / above).mkdir(parents=True, exist_ok=True)
            made.add(above)
        # Absolute, because DVC's cache has the same path in all containers of a node, and this one too.
        os.symlink(_object(objects, entry.md5), f"{folder}/{entry.path}")


def _is_trusted(path: str) -> bool:
    try:
        return not os.stat(path).st_mode & 0o222
    except OSError:
        return False


def _hash_is(path: Path, md5: str, legacy: bool) -> bool:
    """Hash a file, in the way of DVC 2 if that made the hash."""
    plain, unix = hashlib.md5(), hashlib.md5()  # noqa: S324 - DVC names its objects so
    with path.open("rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                break
            plain.update(chunk)
            if legacy:
                unix.update(chunk.replace(b"\r\n", b"\n"))
    return md5 == plain.hexdigest() or (legacy and md5 == unix.hexdigest())


# Fetching


def _fetch(scratch: Path, output: Output, below: str, site: _Site, asked: Optional[str]) -> None:
    """Let DVC bring what the cache lacks of an output, and see that it came.

    Raises:
        ClearmlClientError: if it did not come whole, or would not fit.
    """
    objects = site.objects(output.legacy)
    remote = None if output.imported else site.remote(asked, output)
    folder = Path(tempfile.mkdtemp(prefix="fetch.", dir=str(scratch)))
    try:
        _write_repository(folder, output, site, remote)
        target = f"out/{below}" if below else "out.dvc"
        progress = _Progress(output, below, site)
        if not _fits(progress, output, site):
            # Another version may have brought most of it: only the list can tell.
            _run_dvc(folder, ["out/no such file: only the list comes"], remote, site, lambda: None)
            progress.look()
            check_space(site.cache, progress.missing_bytes(), progress.missing_files())
        said = _run_dvc(folder, [target], remote, site, progress.look)
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    entries = _entries(output, below, site)
    lost = [e for e in entries if not os.path.exists(_object(objects, e.md5))] if entries is not None else None
    if lost == []:
        progress.end()
        return
    where = f"the remote {remote} ({site.url(remote)})" if remote else "the repository it is imported from"
    told = f" DVC said: {said}" if said else ""
    name = f"{output.path}/{below}" if below else output.path
    if lost is None:
        raise ClearmlClientError(
            f"{name} could not be fetched: {where} cannot be reached, or does not hold it whole, or its hash "
            f"does not verify ({output.md5}).{told} Check the remote's address and your access, and dvc push where the "
            "data are"
        )
    some = ", ".join(f"{entry.path or name} ({entry.md5})" for entry in lost[:3])
    raise ClearmlClientError(
        f"{len(lost)} of {len(entries or [])} files of {name} did not come whole, e.g. {some}: {where} cannot be "
        f"reached, does not hold them, or holds something else under their names, whose hash does not verify.{told} "
        "Check the remote's address and your access, and dvc push them where the data are good"
    )


def _fits(progress: "_Progress", output: Output, site: _Site) -> bool:
    """Tell whether there is room even if nothing is there yet.

    Raises:
        ClearmlClientError: if there is not, and it is known what is missing.
    """
    try:
        check_space(site.cache, progress.missing_bytes(), progress.missing_files())
    except ClearmlClientError:
        if progress.known() or not output.folder:
            raise
        return False
    return True


def _write_repository(folder: Path, output: Output, site: _Site, remote: Optional[str]) -> None:
    """Make up a repository that tracks one output and has the settings of the real one."""
    config: Config = {section: dict(options) for section, options in site.own.items()}
    core = config.setdefault("core", {})
    core.update({"no_scm": "true", "analytics": "false", "check_update": "false"})
    if remote is not None:
        core["remote"] = remote
        name = _remotes(config).get(remote, f'remote "{remote}"')
        # Without an address of its own DVC takes it from the user's or the system's settings.
        section = config.setdefault(name, {})
        section["verify"] = "true"
    cache = config.setdefault("cache", {})
    cache["dir"] = str(site.cache)
    site.cache.mkdir(parents=True, exist_ok=True)
    if site.cache.stat().st_mode & stat.S_ISGID:
        cache["shared"] = "group"
    (folder / ".dvc").mkdir()
    lines = []
    for title, options in config.items():
        lines.append(f"['{title}']" if '"' in title else f"[{title}]")
        lines += [f"    {option} = {value}" for option, value in options.items()]
    handle = os.open(str(folder / ".dvc" / "config"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines) + "\n")
    out: Dict[str, Any] = {"md5": output.md5 + (".dir" if output.folder else ""), "path": "out"}
    if not output.legacy:
        out["hash"] = "md5"
    if output.size is not None:
        out["size"] = output.size
    if output.files is not None:
        out["nfiles"] = output.files
    # JSON is YAML.
    (folder / "out.dvc").write_text(json.dumps({**output.imported, "frozen": True, "outs": [out]}) + "\n")


def _run_dvc(folder: Path, targets: Sequence[str], remote: Optional[str], site: _Site, look: Callable[[], None]) -> str:
    """Run dvc fetch, and return what it complained about; it ends with this process.

    Raises:
        ClearmlClientError: if there is no DVC.
    """
    command = [*_dvc_command(), "fetch", *targets]
    if remote is not None:
        command += ["--remote", remote]
    environment = {
        **os.environ,
        # What it keeps of a repository would be kept for ever, and ours is gone in a moment.
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_STUDIO_TOKEN"):
        environment.pop(name, None)
    log = folder / "log"
    with log.open("w") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(os.getpid()), *command],
            cwd=str(folder),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    child.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    look()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    said = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    complaints = [line for line in said if line and "Everything is up to date" not in line and "fetched" not in line]
    return _masked(" ".join(complaints))[-600:]


def _dvc_command() -> List[str]:
    """Return how to start DVC.

    Raises:
        ClearmlClientError: if it is not installed.
    """
    if importlib.util.find_spec("dvc") is not None:
        return [sys.executable, "-m", "dvc"]
    program = shutil.which("dvc")
    if program is None:
        raise ClearmlClientError(
            "DVC is not installed, and this path was not pulled on this machine before: pip install "
            "'clearml-client[dvc]', and what its remote needs, e.g. 'dvc[s3]' or 'dvc[ssh]'"
        )
    return [program]


class _Progress:
    """Tells how far a fetch is: a line that is rewritten at a terminal, one now and then in a queue's console."""

    def __init__(self, output: Output, below: str, site: _Site) -> None:
        self._output, self._below, self._site = output, below, site
        self._objects = site.objects(output.legacy)
        self._name = f"{output.path}/{below}" if below else output.path
        self._total: Optional[int] = None
        self._left: List[str] = []
        self._begin = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._read()

    def _read(self) -> None:
        entries = _entries(self._output, self._below, self._site)
        if entries is not None:
            self._total = len(entries)
            self._left = list({_object(self._objects, entry.md5) for entry in entries})
            self._count()

    def _count(self) -> None:
        self._left = [path for path in self._left if not os.path.exists(path)]

    def known(self) -> bool:
        """Tell whether the list of files is there."""
        return self._total is not None

    def missing_files(self) -> int:
        """Return how many files must come, at most."""
        return len(self._left) if self.known() else (self._output.files or 0)

    def missing_bytes(self) -> int:
        """Return how much must come, taking files as equally large: the list has no sizes."""
        size = self._output.size or 0
        if not self.known() or not self._output.files:
            return size if not self.known() or self._left else 0
        return int(size * min(1.0, len(self._left) / self._output.files))

    def look(self) -> None:
        """Say how far it is, if it is time to."""
        now = time.monotonic()
        if now - self._told < (TERMINAL_SECONDS if self._terminal else LINE_SECONDS):
            return
        if self.known():
            self._count()
        else:
            self._read()
        self._say(end="" if self._terminal else "\n")
        # Looking for a million files must not keep the disk busy.
        self._told = time.monotonic() + 5 * (time.monotonic() - now)

    def end(self) -> None:
        """Say that it came."""
        files = self._output.files if not self._below else self._total
        seconds = time.monotonic() - self._begin
        text = f"dvc_pull {self._name}: fetched and verified"
        if files:
            text += f", {files} files"
        if self._output.size and not self._below:
            text += f", {self._output.size / 1e6:,.1f} MB"
        self._print(f"{text}, {seconds:.1f} s", "\n")

    def _say(self, end: str) -> None:
        seconds = time.monotonic() - self._begin
        if self._total is None:
            self._print(f"dvc_pull {self._name}: {seconds:.0f} s", end)
            return
        done = self._total - len(self._left)
        self._print(f"dvc_pull {self._name}: {done:,} of {self._total:,} files, {seconds:.0f} s", end)

    def _print(self, text: str, end: str) -> None:
        start = "\r\x1b[2K" if self._terminal else ""
        print(start + text, end=end, file=sys.stderr, flush=True)


# Where the script looks


class _Ours:
    """Tells links of ours and of DVC, which may be replaced, from what people put there."""

    def __init__(self, cache: Path) -> None:
        self._starts = tuple(f"{folder}/" for folder in (cache_root() / "trees", cache))

    def is_link(self, path: Path) -> bool:
        """Tell whether a path is a link to shared copies."""
        if not path.is_symlink():
            return False
        target = os.readlink(str(path))
        # Of a cache that was at another place before.
        return (
            target.startswith(self._starts)
            or re.search(r"/trees/dvc-[0-9a-f]{32}[^/]*/content(/|\Z)", target) is not None
        )

    def only_links(self, folder: Path) -> bool:
        """Tell whether a folder holds nothing but such links, so that nothing is lost with it."""
        if folder.is_symlink() or not folder.is_dir():
            return False
        for entry in os.scandir(str(folder)):
            path = Path(entry.path)
            if not (self.only_links(path) if entry.is_dir(follow_symlinks=False) else self.is_link(path)):
                return False
        return True


def _clear_way(root: Path, target: Path, ours: _Ours) -> None:
    """Make the folders above a path; a link of ours among them that does not lead to it gives way to a folder."""
    root.mkdir(parents=True, exist_ok=True)
    above = root
    for part in target.relative_to(root).parts[:-1]:
        above = above / part
        if ours.is_link(above):
            # Never write through it into a shared copy.
            above.unlink()
        above.mkdir(exist_ok=True)


def _leads_to(target: Path, content: Path) -> bool:
    """Tell whether a path is the shared copy already."""
    if not os.path.exists(str(target)):
        return False
    if target.is_symlink() and os.readlink(str(target)) == str(content):
        return True
    # Through a link to the whole of which it is a part.
    above = os.path.join(os.path.realpath(str(target.parent)), target.name)
    return above == os.path.join(os.path.realpath(str(content.parent)), content.name)


def _is_checkout(target: Path, entries: Optional[List[Entry]], legacy: bool, site: _Site, below: str) -> bool:
    """Tell whether exactly the tracked files are there, as DVC's own checkout puts them."""
    if entries is None:
        return False
    objects = site.objects(legacy)
    start = len(below) + 1 if below else 0
    wanted = {str(target / entry.path[start:]) if entry.path[start:] else str(target): entry.md5 for entry in entries}
    there = (
        {str(target)}
        if target.is_file()
        else {os.path.join(f, n) for f, _, names in os.walk(str(target)) for n in names}
    )
    return there == set(wanted) and all(_holds(Path(path), md5, objects, legacy) for path, md5 in wanted.items())


def _holds(path: Path, md5: str, objects: Path, legacy: bool) -> bool:
    try:
        there = path.stat()
        with contextlib.suppress(OSError):
            kept = os.stat(_object(objects, md5))
            if (there.st_dev, there.st_ino) == (kept.st_dev, kept.st_ino):
                return True
            if there.st_size != kept.st_size:
                return False
        return _hash_is(path, md5, legacy)
    except OSError:
        return False


def _swap(target: Path, make: Callable[[Path], Any]) -> None:
    """Make something beside a path and give it the name in one step where that was a link or nothing."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=str(target.parent)))
    try:
        new = beside / "new"
        make(new)
        if not target.is_symlink() and target.is_dir():
            # Links only, or empty: checked by the caller.
            target.rename(beside / "old")
        elif target.is_symlink() and not new.is_symlink() and new.is_dir():
            target.unlink()
        new.rename(target)
    except FileExistsError:
        # Another process was faster.
        if not target.exists():
            raise
    finally:
        shutil.rmtree(str(beside), ignore_errors=True)


def _materialise(content: Path, new: Path, hard: bool) -> None:
    """Give files of one's own instead of links; hard links share their content, copies may be changed."""

    def put(source: str, target: str) -> None:
        real = os.path.realpath(source)
        if hard:
            try:
                os.link(real, target)
            except OSError as error:
                raise ClearmlClientError(
                    f"{target} cannot be a hard link to {real} ({error.strerror}): use link='symlink' or link='copy'"
                ) from error
        else:
            shutil.copyfile(real, target)

    if content.is_file():
        put(str(content), str(new))
        return
    if not hard:
        check_space(new.parent, sum(size for size in _sizes(content)))
    new.mkdir()
    for folder, _, names in os.walk(str(content)):
        below = new / os.path.relpath(folder, str(content))
        below.mkdir(exist_ok=True)
        for name in names:
            put(os.path.join(folder, name), str(below / name))


def _sizes(content: Path) -> Iterable[int]:
    for folder, _, names in os.walk(str(content)):
        for name in names:
            yield os.stat(os.path.join(folder, name)).st_size
