"""The node's cache: trees of files that many processes share, made once, whole or not there at all.

The only place that knows how ``CLEARML_CLIENT_CACHE`` looks inside::

    trees/<key>/content/...   the files, as ``open_tree`` hands them out
    trees/<key>/tree.json     what is known of them: key, source, files, bytes, made
    trees/<key>/seal.json     what each file, folder and link of the content is: type, mode, size, times, inode
    trees/<key>/used          empty; its time of change is the last use
    trees/<key>/lease         users hold a shared lock on it as long as they live, the pruner needs an exclusive one
    trees/<key>/pinned        present: never pruned
    damage.jsonl              which trees were found changed, since when, and in which files
    making/<key>.lock         held by who makes the tree
    making/<key>.<random>/    a half-made tree; rubbish as soon as nobody holds the lock
    dvc/repositories/<id>/    clones of data repositories, without their data
    dvc/workspaces/<id>/      links to trees, where a repository's own folder cannot hold them
    dvc/objects/              DVC's cache, on a machine that has no other

A tree gets its name by one rename, and loses it by one, so what has the name is whole. Locks are ``flock``: the kernel
drops them with the process, even after a kill -9. Where the root has the setgid bit (role dataset_cache sets it), all
that is made here can be written by the group; elsewhere by its owner alone. Content is read-only, folders too: through
a link to it dvc checkout, or a program that puts files beside its data, would change what others use. Modes do not stop
root, in a container neither, so every taking of a tree compares each file with ``seal.json``. Another size, type or
target is a change. Another time (the kernel sets ctime, so a modification time that was set back shows too), inode or
mode is a reason to hash: what hashes right is sealed again, what does not is made anew from its source and written into
``damage.jsonl``. ``CLEARML_CLIENT_VERIFY=hash`` hashes everything at every taking.
"""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH101, PTH105, PTH115, PTH116, PTH118, PTH120
import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ._errors import ClearmlClientError

__all__ = [
    "VERIFY_VARIABLE",
    "Check",
    "Damage",
    "Finding",
    "Tree",
    "cache_root",
    "check_space",
    "condemn",
    "damages",
    "dvc_folder",
    "find_damage",
    "find_tree",
    "is_changed",
    "known_signs",
    "locked",
    "open_tree",
    "pin",
    "sign_of",
    "trees",
    "unpin",
]

logger = logging.getLogger(__name__)

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,199}\Z")
# What a disk must keep free beyond what is asked for: a completely full one fails in places that nobody expects.
SPARE_BYTES = 64 * 2**20
# Before it says that it waits for another process, a process is patient.
PATIENCE_SECONDS = 2.0
# "stat" (the default) hashes what has other facts than its seal, "hash" everything at every taking.
VERIFY_VARIABLE = "CLEARML_CLIENT_VERIFY"
SEAL = "seal.json"
# So many paths of a damage are noted by name.
NAMED_PATHS = 50
# Of Linux: "below the working directory", and "swap the two names".
AT_FDCWD = -100
RENAME_EXCHANGE = 2

# The leases of this process by the path of their tree. A fork has them too, and keeps them as long as it lives.
_leases: Dict[str, int] = {}
_leases_guard = threading.Lock()


def _renew_guard() -> None:
    global _leases_guard
    _leases_guard = threading.Lock()


# A fork while another thread holds the guard would leave it held in the child for ever.
os.register_at_fork(after_in_child=_renew_guard)


class Tree(NamedTuple):
    """A tree of the cache, as its ``tree.json`` tells."""

    key: str
    path: Path  # the content folder
    source: str
    files: int
    bytes: int
    made: float  # unix seconds
    used: float  # unix seconds
    pinned: bool


class Finding(NamedTuple):
    """A path of a tree that is not as it was sealed."""

    path: str  # below the content folder; "" for the folder itself
    kind: str  # "missing", "added", "changed", or "touched": only its hash can tell
    since: float  # unix seconds: when it was changed last, as far as the disk tells


class Damage(NamedTuple):
    """A change that was found in a tree, before it was made anew."""

    key: str
    source: str
    found: float  # unix seconds
    since: float  # unix seconds: the earliest change that is known
    paths: List[str]
    files: int


# Given the content folder and paths below it, returns those whose content is not what was published.
Check = Callable[[Path, Sequence[str]], Sequence[str]]


def cache_root() -> Path:
    """Return the folder of the cache, which may not be there yet.

    Raises:
        ClearmlClientError: if ``CLEARML_CLIENT_CACHE`` is not an absolute path.
    """
    named = os.environ.get("CLEARML_CLIENT_CACHE", "")
    if named:
        root = Path(named).expanduser()
        if not root.is_absolute():
            raise ClearmlClientError(f"CLEARML_CLIENT_CACHE is {named!r}; write an absolute path, e.g. /clearml_cache")
        return root
    try:
        home = Path.home()
    except RuntimeError:
        # A container's user without an entry in /etc/passwd and without HOME.
        return Path(tempfile.gettempdir()) / f"clearml_client-{os.getuid()}"
    return home / ".cache" / "clearml_client"


def check_space(root: Path, bytes_needed: int, files: int = 0) -> None:
    """Refuse what would fill a disk, before it does.

    Args:
        root: a folder of the disk; it need not exist yet.
        bytes_needed: what will be written.
        files: how many files, folders and links will be made; 0: a few.

    Raises:
        ClearmlClientError: if the disk has no room for it; the message has the folder and both numbers.
    """
    folder = Path(root)
    while not folder.exists():
        folder = folder.parent
    facts = os.statvfs(str(folder))
    free = facts.f_bavail * facts.f_frsize
    if bytes_needed and bytes_needed + SPARE_BYTES > free:
        raise ClearmlClientError(
            f"{root} has {free} bytes free ({_size(free)}), and {bytes_needed} ({_size(bytes_needed)}) are needed "
            f"besides the {_size(SPARE_BYTES)} that stay free: free some there, or name a cache on a larger disk"
        )
    # File systems without a fixed number of inodes tell 0 of 0.
    if facts.f_files and files > facts.f_favail:
        raise ClearmlClientError(
            f"{root} can take {facts.f_favail} more files (inodes), and {files} are needed: remove some there, or "
            "name a cache on another disk"
        )


def open_tree(key: str, make: Callable[[Path], None], *, source: str, check: Optional[Check] = None) -> Path:
    """Return the content folder of a tree, and keep the pruner away from it until this process ends.

    A tree that is there is compared with its seal. One that is not what was published is made anew, takes the place of
    the other in one step, and is written into ``damage.jsonl``.

    Args:
        key: name of the tree, e.g. ``dvc-<md5>``; what has the same key has the same content for ever.
        make: fills the folder that it is given. Called only where the tree is not there, or not as published, in one
            process of the node at a time; the others wait for it. What it raises comes out of here, and nothing is
            left of the new tree.
        source: where the content comes from, for people who look into the cache.
        check: hashes what was touched; without it all that was touched counts as changed.

    Raises:
        ClearmlClientError: if the cache cannot be written, the key is none, or a changed tree cannot be made anew.
    """
    if not KEY.match(key):
        raise ClearmlClientError(f"{key!r} is no key of a tree; it takes letters, digits, - and _, e.g. dvc-<md5>")
    root = cache_root()
    content = _take(root, key)
    if content is not None and not find_damage(content, check):
        return content
    shared = _prepare(root)
    with _making(root, key):
        # Whoever held the lock before has probably made it.
        content = _take(root, key)
        found = find_damage(content, check) if content is not None else []
        if content is None or found:
            if content is not None and _read_seal(content) != {}:
                # Before the repair: it may fail, and what was handed out until now is worth knowing all the same.
                _note_damage(root, key, source, content, found)
            try:
                _make(root, key, make, source, shared)
            except ClearmlClientError as error:
                if not found:
                    raise
                raise ClearmlClientError(
                    f"{source}: the copy in {root} is not what was published ({_in_words(found)}), so it is not handed "
                    f"out; and it cannot be fetched again: {error}"
                ) from error
            content = _take(root, key)
    if content is None:
        raise ClearmlClientError(f"{root}/trees/{key} was removed as soon as it was made; is something deleting there?")
    return content


def find_damage(content: Path, check: Optional[Check] = None, *, everything: bool = False) -> List[Finding]:
    """Compare a tree with its seal, and return what is not as it was published.

    What was only touched is hashed, and sealed again if it is right.

    Args:
        content: the content folder.
        check: hashes; without it all that was touched counts as changed.
        everything: hash every file, whatever the seal says; ``CLEARML_CLIENT_VERIFY=hash`` does so too.

    Raises:
        ClearmlClientError: if ``CLEARML_CLIENT_VERIFY`` is neither stat nor hash.
    """
    policy = os.environ.get(VERIFY_VARIABLE) or "stat"
    if policy not in ("stat", "hash"):
        raise ClearmlClientError(
            f"{VERIFY_VARIABLE} is {policy!r}; write stat (hash what was touched) or hash (hash everything)"
        )
    facts: Dict[str, List[Any]] = {}
    try:
        if content.is_symlink() or not content.is_dir():
            return [Finding("", "missing", time.time())]
        _survey(str(content), "", facts)
    except OSError as error:
        return [Finding(os.path.relpath(str(error.filename or ""), str(content)), "missing", time.time())]
    seal = _read_seal(content)
    found = _compare(content, seal, facts) if seal is not None else _count(content, facts)
    wrong = [finding for finding in found if finding.kind != "touched"]
    folders = [finding.path for finding in found if finding.kind == "touched" and facts[finding.path][0] == "d"]
    touched = [finding.path for finding in found if finding.kind == "touched" and facts[finding.path][0] != "d"]
    if seal is None or everything or (policy == "hash" and check is not None):
        # A tree of an older client has no seal: its content must prove itself once.
        named = {finding.path for finding in wrong}
        touched = [path for path, fact in facts.items() if fact[0] != "d" and path not in named]
    if touched:
        failed = set(touched if check is None else check(content, touched))
        wrong += [Finding(path, "changed", _since(content, path)) for path in touched if path in failed]
    if not wrong and (touched or folders) and (seal is None or found):
        _seal_again(content, facts)
    return sorted(wrong)


def is_changed(content: Path) -> bool:
    """Tell whether somebody changed anything in a tree since it was made, its times and modes included."""
    return bool(find_damage(content)) or _read_seal(content) is None


def known_signs() -> Dict[str, List[Any]]:
    """Return the facts of what the links of all trees lead to, by its path, from when its content was right."""
    known: Dict[str, List[Any]] = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(str(cache_root() / "trees")):
            if entry.name.startswith("dvc-"):
                for fact in (_read_seal(Path(entry.path) / "content") or {}).values():
                    if fact[0] == "l" and len(fact) > 2:
                        known[fact[1]] = fact[2:]
    return known


def sign_of(path: str) -> List[Any]:
    """Return the facts of a file by which a seal knows it.

    Raises:
        OSError: it is not there.
    """
    return _facts(os.stat(path))


def damages(key: str) -> List[Damage]:
    """Return what was found changed in a tree on this machine, the oldest first."""
    found = []
    with contextlib.suppress(OSError), (cache_root() / "damage.jsonl").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                document = json.loads(line)
                damage = Damage(**{name: document[name] for name in Damage._fields})
            except (ValueError, KeyError, TypeError):
                continue  # half a line, of a machine that lost its power
            if damage.key == key:
                found.append(damage)
    return found


def find_tree(key: str) -> Optional[Path]:
    """Return the content folder of a tree as ``open_tree`` does, or None where it is not there."""
    return _take(cache_root(), key) if KEY.match(key) else None


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the lock by which processes of this node do something once, without making a tree.

    Raises:
        ClearmlClientError: if the cache cannot be written.
    """
    root = cache_root()
    _prepare(root)
    with _making(root, key):
        yield


def dvc_folder(kind: str) -> Path:
    """Return a folder below ``dvc/``, made where it is missing: "repositories", "workspaces" or "objects".

    Raises:
        ClearmlClientError: if the cache cannot be written.
    """
    root = cache_root()
    shared = _prepare(root)
    try:
        for folder in (root / "dvc", root / "dvc" / kind):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                _open_to_group(folder, shared)
    except OSError as error:
        raise _unwritable(root, error) from error
    return root / "dvc" / kind


def trees(root: Optional[Path] = None) -> List[Tree]:
    """Return the trees of the cache by their keys; takes no lease."""
    folder = (cache_root() if root is None else Path(root)) / "trees"
    try:
        keys = sorted(entry.name for entry in os.scandir(str(folder)) if KEY.match(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [tree for tree in (_read(folder / key) for key in keys) if tree is not None]


def condemn(content: Path, source: str, found: Sequence[Finding]) -> None:
    """Write down what a comparison of a tree found, and empty its seal, so that its next taking makes it anew.

    Raises:
        ClearmlClientError: if the cache cannot be written.
    """
    root = content.parent.parent.parent
    _note_damage(root, content.parent.name, source, content, found)
    try:
        _write_seal(content, {})
    except OSError as error:
        raise _unwritable(root, error) from error


def pin(key: str) -> None:
    """Keep a tree for ever.

    Raises:
        ClearmlClientError: if there is no such tree, or it is not ours to pin.
    """
    root = cache_root()
    try:
        _touch(root / "trees" / key / "pinned", _is_shared(root))
    except OSError as error:
        raise _no_tree(root, key, error) from error


def unpin(key: str) -> None:
    """Leave a tree to the pruner again.

    Raises:
        ClearmlClientError: if there is no such tree, or it is not ours to unpin.
    """
    root = cache_root()
    try:
        (root / "trees" / key / "content").stat()
        with contextlib.suppress(FileNotFoundError):
            (root / "trees" / key / "pinned").unlink()
    except OSError as error:
        raise _no_tree(root, key, error) from error


# One tree


def _take(root: Path, key: str) -> Optional[Path]:
    """Take the lease of a tree and note its use; None where it is not there."""
    tree = root / "trees" / key
    name = str(tree)
    with _leases_guard:
        if name not in _leases or not _is_at(_leases[name], tree / "lease"):
            held = _leases.pop(name, None)
            if held is not None:
                # Somebody removed the tree under us.
                os.close(held)
            lease = _lock_lease(tree)
            if lease is None:
                return None
            _leases[name] = lease
    # A cache that is mounted read-only can be used, and nobody prunes through such a mount.
    with contextlib.suppress(OSError):
        os.utime(str(tree / "used"))
    return tree / "content"


def _lock_lease(tree: Path) -> Optional[int]:
    while True:
        try:
            # NFS gives shared locks to readers, so a cache that is mounted read-only will do.
            handle = os.open(str(tree / "lease"), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _is_at(handle, tree / "lease"):
                return handle
        except BaseException:
            os.close(handle)
            raise
        # The pruner had it, and the tree is gone, or made anew.
        os.close(handle)


def _make(root: Path, key: str, make: Callable[[Path], None], source: str, shared: bool) -> None:
    """Make a tree and give it its name; the caller holds the lock."""
    making = root / "making"
    # Whoever made these did not end well: we have the lock that they held.
    for entry in sorted(making.glob(f"{key}.*")):
        if entry.name != f"{key}.lock":
            _delete(entry)
    half = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=str(making)))
    lease = -1
    try:
        content = half / "content"
        for folder in (half, content):
            folder.mkdir(exist_ok=True)
            _open_to_group(folder, shared)
        make(content)
        files, size = _finish(content, shared)
        seal: Dict[str, List[Any]] = {}
        _survey(str(content), "", seal)
        (half / SEAL).write_text(json.dumps(seal, separators=(",", ":")) + "\n")
        (half / SEAL).chmod(0o664 if shared else 0o644)
        facts = {"key": key, "source": source, "files": files, "bytes": size, "made": int(time.time())}
        (half / "tree.json").write_text(json.dumps(facts) + "\n")
        (half / "tree.json").chmod(0o664 if shared else 0o644)
        for name in ("used", "lease"):
            _touch(half / name, shared)
        # From here on we use it, so the pruner has no moment in which it could come between.
        lease = os.open(str(half / "lease"), os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lease, fcntl.LOCK_SH)
        _flush(half)
        if (root / "trees" / key).exists():
            if (root / "trees" / key / "pinned").exists():
                _touch(half / "pinned", shared)
            _exchange(half, root / "trees" / key)
            # It has the name of the half-made one now.
            _delete(half)
        else:
            half.rename(root / "trees" / key)
    except BaseException as error:
        if lease >= 0:
            os.close(lease)
        _delete(half)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _unwritable(root, error) from error
        raise
    with _leases_guard:
        before = _leases.pop(str(root / "trees" / key), None)
        if before is not None:
            os.close(before)
        _leases[str(root / "trees" / key)] = lease


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders, in one step where the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None and rename(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) == 0:
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{other.name}.", dir=str(one.parent)))
    other.rename(aside / "old")
    one.rename(other)
    (aside / "old").rename(one)
    aside.rmdir()


def _finish(folder: Path, shared: bool) -> Tuple[int, int]:
    """Close a folder to writers; returns number and bytes of its files."""
    files = size = 0
    for entry in os.scandir(str(folder)):
        if entry.is_dir(follow_symlinks=False):
            more_files, more_size = _finish(Path(entry.path), shared)
            files, size = files + more_files, size + more_size
            continue
        try:
            size += entry.stat().st_size
        except FileNotFoundError as error:
            target = os.readlink(entry.path)
            raise ClearmlClientError(f"{entry.path} leads to {target}, which is not there") from error
        files += 1
        if not entry.is_symlink():
            os.chmod(entry.path, 0o444)
    _open_to_group(folder, shared, 0o2555)
    return files, size


# The seal


def _facts(status: os.stat_result) -> List[Any]:
    return [
        stat.S_IMODE(status.st_mode),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    ]


def _survey(folder: str, name: str, facts: Dict[str, List[Any]]) -> None:
    """Note what a folder and all below it is.

    A folder: "d", mode. A file: "f", mode, size, mtime, ctime, inode. A link: "l", its target, and mode to inode of
    what is there. Anything else: "o".

    Raises:
        OSError: something goes meanwhile.
    """
    facts[name] = ["d", stat.S_IMODE(os.stat(folder).st_mode)]
    for entry in os.scandir(folder):
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.is_dir(follow_symlinks=False):
            _survey(entry.path, path, facts)
        elif entry.is_symlink():
            fact: List[Any] = ["l", os.readlink(entry.path)]
            with contextlib.suppress(OSError):
                fact += _facts(os.stat(entry.path))
            facts[path] = fact
        else:
            status = entry.stat(follow_symlinks=False)
            facts[path] = ["f" if stat.S_ISREG(status.st_mode) else "o", *_facts(status)]


def _read_seal(content: Path) -> Optional[Dict[str, List[Any]]]:
    """Return the seal of a tree; None where there is none that can be read."""
    try:
        seal = json.loads((content.parent / SEAL).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(seal, dict) or not all(isinstance(fact, list) and fact for fact in seal.values()):
        return None
    return seal


def _compare(content: Path, seal: Dict[str, List[Any]], facts: Dict[str, List[Any]]) -> List[Finding]:
    if seal == facts:
        return []
    found = [Finding(path, "missing", _since(content, path)) for path in seal if path not in facts]
    for path, fact in facts.items():
        before = seal.get(path)
        if before == fact:
            continue
        if before is None:
            kind = "added"
        elif before[0] != fact[0] or (fact[0] == "l" and (before[1] != fact[1] or len(fact) < 4)):
            kind = "changed"
        else:
            # Of a link too: the size of what it leads to.
            place = 3 if fact[0] == "l" else 2
            kind = "touched" if before[place : place + 1] == fact[place : place + 1] else "changed"
        found.append(Finding(path, kind, _since(content, path)))
    return found


def _count(content: Path, facts: Dict[str, List[Any]]) -> List[Finding]:
    """Return what is wrong with the number of files of a tree without a seal: hashes do not tell what is missing."""
    tree = _read(content.parent)
    if tree is not None and tree.files == sum(fact[0] != "d" for fact in facts.values()):
        return []
    return [Finding("", "changed", _since(content, ""))]


def _since(content: Path, path: str) -> float:
    """Return when a path was changed last; of what is gone, its folder."""
    place = os.path.join(str(content), path)
    with contextlib.suppress(OSError):
        return os.stat(place).st_ctime
    while len(place) > len(str(content)):
        place = os.path.dirname(place)
        with contextlib.suppress(OSError):
            return os.stat(place).st_ctime
    return time.time()


def _seal_again(content: Path, facts: Dict[str, List[Any]]) -> None:
    """Seal what hashed right, with the facts from before the hashing; a cache mounted read-only keeps its old seal."""
    try:
        shared = _is_shared(content.parent.parent.parent)
        for path, fact in facts.items():
            closed = (0o2555 if shared else 0o555) if fact[0] == "d" else 0o444
            if fact[0] in "fd" and fact[1] & 0o222:
                place = os.path.join(str(content), path)
                os.chmod(place, closed)
                status = os.lstat(place)
                # A write in between shows in size or mtime, which then stay as they were before it.
                fact[1] = stat.S_IMODE(status.st_mode)
                if fact[0] == "f" and _facts(status)[1:3] == fact[2:4]:
                    fact[4] = status.st_ctime_ns
        _write_seal(content, facts)
    except OSError as error:
        logger.info("%s could not be sealed again (%s), so it is hashed at each taking", content, error)


def _write_seal(content: Path, facts: Dict[str, List[Any]]) -> None:
    handle, name = tempfile.mkstemp(prefix=f"{SEAL}.", dir=str(content.parent))
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(facts, separators=(",", ":")) + "\n")
    os.chmod(name, 0o664 if _is_shared(content.parent.parent.parent) else 0o644)
    os.replace(name, str(content.parent / SEAL))


def _in_words(found: Sequence[Finding]) -> str:
    some = ", ".join(f"{finding.path or 'the folder'} {finding.kind}" for finding in found[:3])
    return f"{some} and {len(found) - 3} more" if len(found) > 3 else some


def _note_damage(root: Path, key: str, source: str, content: Path, found: Sequence[Finding]) -> None:
    since = min(finding.since for finding in found)
    logger.warning(
        "%s: the copy in %s is not what was published (%s), changed since %s: it is fetched again. Experiments that "
        "opened it since then may have read other data: clearml-client data verify names them",
        source,
        content,
        _in_words(found),
        time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since)),
    )
    paths = [finding.path for finding in found[:NAMED_PATHS]]
    line = json.dumps(Damage(key, source, time.time(), since, paths, len(found))._asdict()) + "\n"
    try:
        # One write of O_APPEND: lines of two processes do not mix.
        handle = os.open(str(root / "damage.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
        _open_to_group(root / "damage.jsonl", _is_shared(root), 0o664)
    except OSError as error:
        logger.warning("%s/damage.jsonl cannot be written (%s), so only this line tells of it", root, error)


def _read(folder: Path) -> Optional[Tree]:
    try:
        facts: Dict[str, Any] = json.loads((folder / "tree.json").read_text())
        return Tree(
            key=folder.name,
            path=folder / "content",
            source=str(facts["source"]),
            files=int(facts["files"]),
            bytes=int(facts["bytes"]),
            made=float(facts["made"]),
            used=(folder / "used").stat().st_mtime,
            pinned=(folder / "pinned").exists(),
        )
    except (FileNotFoundError, NotADirectoryError):
        # Pruned meanwhile.
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is left out: %s", folder, error)
        return None


# Locks


@contextlib.contextmanager
def _making(root: Path, key: str) -> Iterator[None]:
    """Hold the lock of who makes a tree."""
    path = root / "making" / f"{key}.lock"
    attempts = 0
    while True:
        try:
            # NFS gives exclusive locks to writers only.
            handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        except OSError as error:
            # Another user has just made it, and opens it to the group in the next moment.
            attempts += 1
            if isinstance(error, PermissionError) and attempts < 5 and path.exists():
                time.sleep(0.05)
                continue
            raise _unwritable(root, error) from error
        try:
            _open_to_group(path, _is_shared(root), 0o664)
            _wait_for(handle, key)
            if _is_at(handle, path):
                yield
                return
        finally:
            os.close(handle)


def _wait_for(handle: int, key: str) -> None:
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() - begin > PATIENCE_SECONDS:
            logger.warning("another process of this machine makes %s; waiting for it", key)
            fcntl.flock(handle, fcntl.LOCK_EX)
            return
        time.sleep(0.02)


def _is_at(handle: int, path: Path) -> bool:
    """Tell whether an open file still has its name."""
    try:
        there = path.stat()
    except OSError:
        return False
    ours = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


# The disk


def _prepare(root: Path) -> bool:
    """Make the folders of the cache where they are missing; returns whether a group shares it."""
    try:
        if not root.exists():
            root.mkdir(parents=True, exist_ok=True)
        shared = _is_shared(root)
        for folder in (root / "trees", root / "making"):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                _open_to_group(folder, shared)
    except OSError as error:
        raise _unwritable(root, error) from error
    return shared


def _is_shared(root: Path) -> bool:
    return bool(root.stat().st_mode & stat.S_ISGID)


def _open_to_group(path: Path, shared: bool, mode: int = 0o2775) -> None:
    # mkdtemp gives 0700 to its folder.
    wanted = mode if shared else mode & 0o0755
    facts = path.stat()
    if stat.S_IMODE(facts.st_mode) != wanted and facts.st_uid == os.geteuid():
        path.chmod(wanted)


def _touch(path: Path, shared: bool) -> None:
    path.touch()
    _open_to_group(path, shared, 0o664)


def _flush(folder: Path) -> None:
    """Write the disk's files down, so that after a power cut nothing has a name that is not whole."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    handle = os.open(str(folder), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syncfs(handle):
            problem = ctypes.get_errno()
            raise OSError(problem, os.strerror(problem), str(folder))
    finally:
        os.close(handle)


def _delete(folder: Path) -> None:
    # Content is read-only, and only its owner can change that.
    for above, _, _ in os.walk(str(folder)):
        with contextlib.suppress(OSError):
            os.chmod(above, 0o700)
    shutil.rmtree(str(folder), ignore_errors=True)
    if folder.exists():
        logger.info("%s could not be deleted by this user; the pruner will", folder)


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _unwritable(root: Path, error: OSError) -> ClearmlClientError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ClearmlClientError(
            f"the disk of the cache {root} is full: free some there, or name a cache on a larger one"
        )
    return ClearmlClientError(
        f"the cache {root} cannot be written ({error.strerror}: {error.filename}): join the group of the folder, or "
        "name another in CLEARML_CLIENT_CACHE"
    )


def _no_tree(root: Path, key: str, error: OSError) -> ClearmlClientError:
    if isinstance(error, FileNotFoundError):
        known = ", ".join(tree.key for tree in trees(root)[:5]) or "none"
        return ClearmlClientError(f"{root} has no tree {key!r}; it has: {known}")
    return _unwritable(root, error)
