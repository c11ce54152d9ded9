"""Versioned datasets in ClearML.

A version is what the stock SDK calls a dataset version: a task in the hidden project ``<project>/.datasets/<name>``
with packs and a state as artifacts, so ``Dataset.get(...)`` and ``clearml-data get`` read it. Beside them is the index,
which this client reads in parts. Versions that the stock SDK made are opened as well.
"""

from __future__ import annotations

import itertools
import os
import shlex
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .. import _cache, _config
from .._errors import ClearmlClientError
from . import _claims
from ._contents import open_index
from ._download import fill, read_files
from ._interface import Exposure
from ._place import place
from ._records import Change, Difference, Problem, Row, Tree, Version
from ._remote import Server, Task, connect
from ._upload import Parent, Plan, upload
from .index import Entry, Folder, Index, Listed, compile_depth, compile_glob
from .lineage import Lineage, opened_between, uses
from .packs import DEFAULT_PACK_BYTES, Progress, SourceFile, hash_file, scan
from .versions import check_name, check_tag, check_version, parse_reference, version_key

__all__ = ["PROJECT_VARIABLE", "ClearmlStore", "default_project", "open_dataset", "upload_dataset"]

PROJECT_VARIABLE = "CLEARML_DATASET_PROJECT"
_MAX_WORKERS = 4


def default_project(folder: Optional[Path] = None) -> str:
    """Return the project that datasets are in.

    The environment variable ``CLEARML_DATASET_PROJECT`` says it, or ``dataset_project`` in the section
    ``[tool.clearml_client]`` of the repository's ``pyproject.toml``; else it is ``datasets``.

    Args:
        folder: Where to look for that file; the running script's folder without it.
    """
    return os.environ.get(PROJECT_VARIABLE) or _config.load(folder).dataset_project


class ClearmlStore:
    """The datasets of a project of the site's ClearML server."""

    def __init__(self, project: Optional[str] = None, *, workers: Optional[int] = None) -> None:
        """Connect.

        Args:
            project: Path of the project; ``default_project()`` without it.
            workers: Packs that are made, sent or fetched at a time; by the machine's processors without it.

        Raises:
            ClearmlClientError: ClearML is not configured on this machine, or the server refuses its keys.
        """
        self.project = project or default_project()
        self.workers = workers or max(2, min(_MAX_WORKERS, os.cpu_count() or 1))
        self.server: Server = connect()

    # ------------------------------------------------------------ finding

    def _hidden(self, name: str = "") -> str:
        return f"{self.project}/.datasets/{name}"

    def _tasks(self, name: str) -> List[Task]:
        project_id = self.server.project_id(self._hidden(name))
        if project_id is None:
            return []
        tasks = [Task.read(document) for document in self.server.tasks(project=[project_id])]
        return sorted(
            (task for task in tasks if task.version), key=lambda task: (version_key(task.version), task.version)
        )

    def find(self, reference: str, *, unfinished: bool = False) -> Version:
        """Return the version that a reference means.

        Args:
            reference: ``NAME``, ``NAME@VERSION`` or ``NAME@TAG``.
            unfinished: Whether a half version may be meant too.

        Raises:
            ClearmlClientError: There is none.
        """
        asked = parse_reference(reference)
        tasks = self._tasks(asked.name)
        open_to_all = [task for task in tasks if task.whole]
        if not open_to_all and not (unfinished and tasks):
            raise ClearmlClientError(self._unknown(asked.name))
        if asked.selector is None:
            return self._version(asked.name, (open_to_all or tasks)[-1])
        for task in tasks if unfinished else open_to_all:
            if task.version == asked.selector:
                return self._version(asked.name, task)
        tagged = [task for task in open_to_all if asked.selector in task.tags]
        if tagged:
            return self._version(asked.name, tagged[-1])
        known = ", ".join(task.version for task in open_to_all[-8:])
        half = any(task.version == asked.selector for task in tasks)
        raise ClearmlClientError(
            f"{reference}: this version is not whole: its upload runs or broke off; upload it again"
            if half
            else f"{reference}: {asked.name} has no version and no tag {asked.selector!r}; its highest: {known}"
        )

    def _unknown(self, name: str) -> str:
        import difflib

        prefix = self._hidden()
        known = sorted(found[len(prefix) :] for found in self.server.projects_below(prefix).values())
        near = difflib.get_close_matches(name, known, 3) or known[:8]
        own = name.rpartition("/")[2]
        elsewhere = self.server.dataset_projects(own) if own else []
        if elsewhere:
            there = " and in ".join(repr(project) for project in elsewhere[:5])
            return (
                f"{name}: there is no such dataset in the project {self.project!r}; {own!r} is in {there}: write "
                f"--project {shlex.quote(elsewhere[0])} {shlex.quote(own)}, or project={elsewhere[0]!r} in Python"
            )
        there = "there are: " + ", ".join(near) if near else "there is none yet"
        return f"{name}: there is no such dataset in the project {self.project!r}; {there}"

    def _version(self, name: str, task: Task) -> Version:
        runtime = task.runtime
        return Version(
            name=name,
            version=task.version,
            id=task.id,
            tags=sorted(task.tags),
            status=task.status if task.whole else "unfinished",
            created=task.created,
            files=None if runtime.get("ds_file_count") is None else int(runtime["ds_file_count"]),
            bytes=None if runtime.get("ds_total_size") is None else int(runtime["ds_total_size"]),
            comment=task.comment,
        )

    def index(self, version: Version) -> Index:
        """Return the list of what is in a version."""
        return open_index(self.server, version.id)

    def listing(self, version: Version) -> Iterator[Listed]:
        """Give the files of a version, sorted by path."""
        return self.index(version).listing()

    def read_files(self, version: Version, paths: Sequence[str], folder: Path) -> None:
        """Fetch some files of a version, and only these, into a folder."""
        read_files(self.server, list(self.index(version).entries(paths)), folder, str(version))

    def is_local(self, version: Version) -> bool:
        """Tell whether a version is on this machine already."""
        return _cache.find_tree(_key(version)) is not None

    def versions(self, name: str, *, unfinished: bool = False) -> List[Version]:
        """Return a dataset's versions from the lowest to the highest.

        Raises:
            ClearmlClientError: There is no such dataset.
        """
        name = parse_reference(name).name
        found = [self._version(name, task) for task in self._tasks(name) if unfinished or task.whole]
        if not found:
            raise ClearmlClientError(self._unknown(name))
        return found

    def ls(self, *, unfinished: bool = False) -> List[Version]:
        """Return the highest version of each dataset; with ``unfinished``, half versions too."""
        prefix = self._hidden()
        names = {id_: found[len(prefix) :] for id_, found in self.server.projects_below(prefix).items()}
        if not names:
            return []
        highest: Dict[str, Task] = {}
        half: List[Task] = []
        for document in self.server.tasks(project=sorted(names)):
            task = Task.read(document)
            if not task.version:
                continue
            if not task.whole:
                half.append(task)
                continue
            before = highest.get(task.project)
            if before is None or version_key(before.version) < version_key(task.version):
                highest[task.project] = task
        chosen = [*highest.values(), *(half if unfinished else [])]
        return sorted(self._version(names[task.project], task) for task in chosen)

    # ------------------------------------------------------------ uploading

    def upload(
        self,
        path: Path,
        name: str,
        *,
        version: str,
        parents: Sequence[str] = (),
        merge: bool = False,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, str]] = None,
        comment: str = "",
        progress: Optional[Progress] = None,
        pack_bytes: int = DEFAULT_PACK_BYTES,
    ) -> Version:
        """Store a folder as a new version; it is there whole or not at all.

        Without ``merge`` the folder is the version: what a parent has and the folder has not is gone. With ``merge``
        the version is the parents' files together, and over them the folder's.

        Args:
            path: The folder (or one file).
            name: The dataset; made if it is new.
            version: Chosen by the author, unique.
            parents: References of the versions it builds on; files that they have just so are not sent again.
            merge: Needed for several parents.
            tags: Labels of the version.
            metadata: What else to know of it.
            comment: A description.
            progress: Is told the bytes that are done.
            pack_bytes: How large packs are, about.

        Raises:
            ClearmlClientError: It is refused, or broke; the same call goes on where it ended.
        """
        check_name(name)
        check_version(version)
        for tag in tags:
            check_tag(tag)
        if len(parents) > 1 and not merge:
            raise ClearmlClientError(
                f"{name}@{version}: {len(parents)} parents: a version has one parent, so that its history is a line; "
                "ask for --merge (merge=True) if it shall hold the files of all"
            )
        if merge and not parents:
            raise ClearmlClientError(f"{name}@{version}: --merge without --parent: name the versions to merge")
        if pack_bytes < 1:
            raise ClearmlClientError(f"pack size {pack_bytes}: write a number of bytes above 0")
        found = [self.find(parent) for parent in parents]
        if len({parent.id for parent in found}) < len(found):
            raise ClearmlClientError(f"{name}@{version}: the same parent is named twice")
        plan = Plan(
            root=Path(path).absolute(),
            project=self._hidden(name),
            name=name,
            version=version,
            parents=[Parent(parent.id, str(parent), self.index(parent)) for parent in found],
            merge=merge,
            tags=sorted(set(tags)),
            metadata=dict(metadata or {}),
            comment=comment,
            pack_bytes=pack_bytes,
            workers=self.workers,
        )
        upload(self.server, plan, progress)
        return self.find(f"{name}@{version}")

    # ------------------------------------------------------------ downloading

    def download(self, reference: str, *, progress: Optional[Progress] = None) -> Path:
        """Return the version's folder on this machine, read-only and shared; fetched if it is not there.

        Raises:
            ClearmlClientError: There is no such version, the disk has no room, or a pack is gone or damaged.
        """
        return self.local(self.find(reference), progress=progress)

    def local(self, version: Version, *, progress: Optional[Progress] = None) -> Path:
        """Return the folder of a version that ``find`` returned."""

        def make(folder: Path) -> None:
            fill(self.server, self.index(version), folder, str(version), workers=self.workers, progress=progress)

        return _cache.open_tree(_key(version), make, source=str(version), check=self._checker(version))

    def _checker(self, version: Version) -> _cache.Check:
        """Return what hashes files of a version's shared folder."""

        def check(content: Path, paths: Sequence[str]) -> List[str]:
            wanted = {entry.path: entry for entry in self.index(version).entries(paths)}

            def is_wrong(path: str) -> bool:
                entry, place = wanted.get(path), content / path
                try:
                    status = place.lstat()
                    # What has no hash in its list cannot prove itself.
                    if entry is None or not entry.sha256 or not stat.S_ISREG(status.st_mode):
                        return True
                    file = SourceFile(path, status.st_size, status.st_mtime_ns)
                    return status.st_size != entry.size or hash_file(content, file) != entry.sha256
                except (OSError, ClearmlClientError):
                    return True

            with ThreadPoolExecutor(self.workers) as pool:
                return [path for path, wrong in zip(paths, pool.map(is_wrong, paths)) if wrong]  # noqa: B905

        return check

    def exposures(self, version: Version) -> List[Exposure]:
        """Return each change that was found in this machine's copy of a version, and who may have read it."""
        return [
            Exposure(damage, opened_between(self.server, version.id, damage.since, damage.found))
            for damage in _cache.damages(_key(version))
        ]

    def place(self, reference: str, target: Path, *, copy: bool = False, progress: Optional[Progress] = None) -> Path:
        """Put a version at a path: a symbolic link to the shared folder, or a copy of one's own.

        Raises:
            ClearmlClientError: Something else is there already, or as ``download``.
        """
        version = self.find(reference)
        size = self.index(version).bytes if copy else 0
        return place(lambda: self.local(version, progress=progress), target, copy=copy, size=size)

    # ------------------------------------------------------------ looking

    def tree(
        self,
        reference: str,
        folder: str = "",
        *,
        files: bool = False,
        depth: Optional[int] = 1,
        glob: Optional[str] = None,
        page: int = 1,
        limit: int = 200,
    ) -> Tree:
        """List what is in a version, without fetching it.

        Args:
            reference: The version.
            folder: Where to begin; empty for the whole version.
            files: Whether files are listed beside folders; with a glob, only files are.
            depth: How many levels below ``folder``; None for all.
            glob: ``*.png`` (a name in any folder) or ``train/**/*.bin`` (a path).
            page: From 1.
            limit: Rows of a page.

        Raises:
            ClearmlClientError: There is no such version, folder or page.
        """
        if page < 1 or limit < 1:
            raise ClearmlClientError(f"page {page}, limit {limit}: both count from 1")
        version = self.find(reference)
        index = self.index(version)
        folder = folder.strip("/")
        folders = index.folders()
        here = next((known for known in folders if known.path == folder), None)
        if here is None:
            raise ClearmlClientError(f"{version} has no folder {folder!r}: `tree {version}` shows those there are")
        first = (page - 1) * limit
        if glob is not None:
            below = None if depth == 1 else depth
            matching = [
                Row(file.path, False, 1, file.size)
                for file in index.listing(folder, compile_glob(glob))
                if below is None or _level(file.path, folder) <= below
            ]
            rows, total = matching[first : first + limit], len(matching)
        else:
            shown = {row.path: row for row in _folder_rows(folders, folder, depth)}
            if files and depth is None:
                total = len(shown) + here.files
                part = index.window(folder, list(shown), first, limit)
                rows = [shown[one.path] if one.size == -1 else Row(one.path, False, 1, one.size) for one in part]
            else:
                every = list(shown.values())
                if files:
                    every += _files_within(index, folders, folder, depth or 1)
                    every.sort()
                rows, total = every[first : first + limit], len(every)
        if first and not rows:
            raise ClearmlClientError(f"page {page}: there are {-(-total // limit)} pages of {limit} rows")
        return Tree(
            version=version,
            metadata=dict(index.about.get("metadata") or {}),
            files=index.files,
            bytes=index.bytes,
            rows=rows,
            total=total,
        )

    def diff(self, before: str, after: str) -> Difference:
        """Compare two versions, which may be of different datasets.

        Raises:
            ClearmlClientError: One of them does not exist.
        """
        old, new = self.find(before), self.find(after)
        return Difference(old, new, list(_compare(self.index(old).entries(), self.index(new).entries())))

    def verify(self, reference: str, path: Optional[Path] = None, *, remote: bool = False) -> List[Problem]:
        """Compare a folder (without it: the shared one) with the hashes, or look whether the packs are stored.

        Raises:
            ClearmlClientError: There is no such version or folder.
        """
        version = self.find(reference)
        index = self.index(version)
        if remote:
            return self._verify_packs(index)
        root = Path(path) if path is not None else _cache.find_tree(_key(version)) or self.local(version)
        problems = self._compare_folder(index, root)
        if problems and path is None:
            # What was handed out is written down, and the next who takes it gets what was published.
            now = time.time()
            found = [_cache.Finding(one.path, "changed", _changed(root / one.path, now)) for one in problems]
            _cache.condemn(root, str(version), found)
            self.local(version)
            problems = [one._replace(text=f"{one.text}; fetched again") for one in problems]
        return problems

    def _compare_folder(self, index: Index, root: Path) -> List[Problem]:
        if not root.is_dir() and not root.is_file():
            return [Problem("", f"{root} is missing")]
        there = {file.path: file for file in scan(root)}
        problems: List[Problem] = []
        checks: List[Tuple[SourceFile, Entry]] = []
        for entry in index.entries():
            file = there.pop(entry.path, None)
            if file is None:
                problems.append(Problem(entry.path, "missing"))
            elif file.size != entry.size:
                problems.append(Problem(entry.path, f"{file.size} bytes, expected {entry.size}"))
            else:
                checks.append((file, entry))
        with ThreadPoolExecutor(self.workers) as pool:
            hashes = pool.map(lambda check: hash_file(root, check[0]), checks)
            for found, (_, entry) in zip(hashes, checks):  # noqa: B905
                if entry.sha256 and found != entry.sha256:
                    problems.append(Problem(entry.path, f"sha256 is {found}, expected {entry.sha256}"))
        problems += (Problem(extra, "not in this version") for extra in there)
        return sorted(problems)

    def _verify_packs(self, index: Index) -> List[Problem]:
        artifacts = {id_: self.server.artifacts(id_) for id_ in {source.dataset_id for source in index.sources}}
        problems: List[Problem] = []
        for source in index.sources:
            label = f"{source.artifact} of {source.dataset_id}"
            artifact = artifacts[source.dataset_id].get(source.artifact)
            if artifact is None:
                problems.append(Problem(label, "the server does not know this pack"))
                continue
            size = self.server.files.size(artifact.uri)
            if size is None:
                problems.append(Problem(label, f"{artifact.uri} is missing in its store"))
            elif artifact.size and size >= 0 and size != artifact.size:
                problems.append(Problem(label, f"{artifact.uri} has {size} bytes, expected {artifact.size}"))
        return problems

    # ------------------------------------------------------------ changing

    def tag(self, reference: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Version:
        """Put tags on a version, and take others off; return it as it is then.

        Raises:
            ClearmlClientError: A tag is malformed, or is the number of another version.
        """
        adding, removing = [check_tag(tag) for tag in add], set(remove)
        version = self.find(reference)
        numbers = {task.version for task in self._tasks(version.name)}
        for tag in adding:
            if tag in numbers:
                raise ClearmlClientError(f"tag {tag!r}: {version.name} has a version of this name; choose another")
        tags = sorted(({*version.tags} - removing) | {*adding})
        self.server.call("tasks.update", task=version.id, tags=tags)
        return version._replace(tags=tags)

    def users(self, version: Version) -> List[str]:
        """Return the versions that refer to a version's packs or have it among their ancestors, as NAME@VERSION."""
        return uses(self.server, version.id)

    def delete(self, version: Version) -> None:
        """Delete a version that ``find`` returned, with its packs.

        Raises:
            ClearmlClientError: Another version needs it, or the store does not delete a file.
        """
        users = self.users(version)
        if users:
            raise ClearmlClientError(
                f"{version} cannot be deleted: it is needed by {', '.join(users[:8])}"
                f"{' and others' if len(users) > 8 else ''}: delete these first"
            )
        _claims.remove_task(self.server, version.id)

    def lineage(self, reference: str) -> Lineage:
        """Return where a version comes from, what was made of it, and who used it."""
        return Lineage.read(self.server, self.find(reference))


def _key(version: Version) -> str:
    """Return the name of a version's tree in the cache."""
    return f"clearml-{version.id}"


def _changed(path: Path, now: float) -> float:
    """Return when a file was changed last; of one that is gone, its folder; ``now`` where nothing tells."""
    for there in (path, path.parent):
        try:
            return there.lstat().st_ctime
        except OSError:
            continue
    return now


def _folder_rows(folders: Iterable[Folder], folder: str, depth: Optional[int]) -> List[Row]:
    prefix = folder + "/" if folder else ""
    return [
        Row(found.path, True, found.files, found.bytes)
        for found in folders
        if found.path != folder
        and found.path.startswith(prefix)
        and (depth is None or _level(found.path, folder) <= depth)
    ]


def _files_within(index: Index, folders: Iterable[Folder], folder: str, depth: int) -> List[Row]:
    """Return the files of some levels; blocks after the last of them are not read."""
    prefix = folder + "/" if folder else ""
    expected = sum(
        found.own_files
        for found in folders
        if found.path == folder or (found.path.startswith(prefix) and _level(found.path, folder) < depth)
    )
    found = itertools.islice(index.listing(folder, compile_depth(folder, depth)), expected)
    return [Row(file.path, False, 1, file.size) for file in found]


def _level(path: str, folder: str) -> int:
    """Return how deep a path is below a folder: 1 for what is in it."""
    return path.count("/", len(folder) + 1 if folder else 0) + 1


def _compare(before: Iterable[Entry], after: Iterable[Entry]) -> Iterable[Change]:
    """Walk both sorted lists side by side: neither is held whole."""
    left, right = iter(before), iter(after)
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old.path < new.path):
            assert old is not None
            yield Change(old.path, "removed", old.size, None)
            old = next(left, None)
        elif old is None or new.path < old.path:
            yield Change(new.path, "added", None, new.size)
            new = next(right, None)
        else:
            if (old.size, old.sha256) != (new.size, new.sha256):
                yield Change(new.path, "changed", old.size, new.size)
            old, new = next(left, None), next(right, None)


# ---------------------------------------------------------------- what scripts call


def open_dataset(reference: str, *, project: Optional[str] = None) -> Path:
    """Return the folder of a dataset's version, and note in the current experiment that it was used.

        folder = open_dataset("kitti@1.4.0")

    The first use on a machine fetches it, all others find it: the folder is shared and read-only.

    Args:
        reference: ``NAME`` (its highest version), ``NAME@VERSION`` or ``NAME@TAG``.
        project: Where datasets are; ``default_project()`` without it.

    Raises:
        ClearmlClientError: There is no such version, or it cannot be fetched.
    """
    from .. import _links

    store = ClearmlStore(project)
    version = store.find(reference)
    folder = store.local(version)
    _links.record(
        name=version.name,
        version=version.version,
        hash=store.index(version).hash,
        dataset_id=version.id,
        path=str(folder),
        store="clearml",
        revision=None,
    )
    return folder


def upload_dataset(
    path: "Path | str",
    name: str,
    *,
    version: str,
    parents: Sequence[str] = (),
    merge: bool = False,
    tags: Sequence[str] = (),
    metadata: Optional[Mapping[str, str]] = None,
    comment: str = "",
    project: Optional[str] = None,
) -> Version:
    """Store a folder as a new version of a dataset; see ``ClearmlStore.upload``."""
    return ClearmlStore(project).upload(
        Path(path),
        name,
        version=version,
        parents=parents,
        merge=merge,
        tags=tags,
        metadata=metadata,
        comment=comment,
    )
