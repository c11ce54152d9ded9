"""Uploading a folder as a version: in parallel, each file read once, resumed after a break, published at the end."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from .. import _cache
from .._errors import ClearmlClientError
from . import _claims
from ._journal import Journal, StoredPack, find_journal
from ._remote import Server, Task, artifact_uri
from .index import ARTIFACT, Entry, Index, Source, write_index
from .packs import (
    Advance,
    Progress,
    SourceFile,
    check_unchanged,
    counting,
    hash_file,
    plan_packs,
    scan,
    write_pack,
)

__all__ = ["Parent", "Plan", "upload"]

METADATA = "metadata"  # the artifact that the SDK's Dataset.get_metadata() reads


class Parent(NamedTuple):
    """A version that the new one builds on."""

    id: str
    label: str  # NAME@VERSION
    contents: Index


class Plan(NamedTuple):
    """What is to be made."""

    root: Path
    project: str  # path of the dataset's hidden project
    name: str
    version: str
    parents: Sequence[Parent]
    merge: bool
    tags: Sequence[str]
    metadata: Mapping[str, str]
    comment: str
    pack_bytes: int
    workers: int


def upload(server: Server, plan: Plan, progress: Optional[Progress] = None) -> str:
    """Make a version; return its task's id.

    Raises:
        ClearmlClientError: It exists, somebody else makes it, files changed meanwhile, or a disk or the server failed.
            What was sent is kept: the same call goes on where this one ended.
    """
    files = scan(plan.root)
    inherited = _inherited(plan, {file.path for file in files})
    advance = counting(progress, sum(file.size for file in files))
    task, journal = _begin(server, plan)
    work = _cache.cache_root() / "uploads" / task.id
    try:
        with _claims.Heart(server, task.id):
            sender = _Sender(server, plan, task, journal, work, advance)
            same, rest = _divide(plan.root, files, inherited, plan.workers, advance)
            sender.send(rest)
            check_unchanged(plan.root, files)
            entries = _entries(task.id, plan, journal, inherited, same)
            _finish(server, plan, task, journal, work, entries, inherited)
    except BaseException:
        journal.close()
        raise
    finally:
        shutil.rmtree(str(work), ignore_errors=True)
    journal.remove()
    return task.id


# ---------------------------------------------------------------- what is there already


def _inherited(plan: Plan, local: Set[str]) -> Dict[str, Entry]:
    """Return the parents' files by path.

    Raises:
        ClearmlClientError: Two parents have different files under one path, and the folder does not decide.
    """
    found: Dict[str, Entry] = {}
    origin: Dict[str, str] = {}
    conflicts: List[str] = []
    for parent in plan.parents:
        if parent.contents.about.get("links"):
            raise ClearmlClientError(
                f"{parent.label} has external files, which have no pack: it cannot be a parent here; "
                "upload its files as a version of their own"
            )
        for entry in parent.contents.entries():
            before = found.get(entry.path)
            if before is not None and (before.size, before.sha256) != (entry.size, entry.sha256):
                if entry.path not in local:
                    conflicts.append(f"{entry.path} ({origin[entry.path]} and {parent.label})")
                continue
            if before is None:
                found[entry.path] = entry
                origin[entry.path] = parent.label
    if conflicts:
        shown = ", ".join(conflicts[:5]) + (f" and {len(conflicts) - 5} more" if len(conflicts) > 5 else "")
        raise ClearmlClientError(
            f"the parents differ in {len(conflicts)} files of the same path: {shown}; "
            f"put the files that shall hold into {plan.root}"
        )
    return found


def _begin(server: Server, plan: Plan) -> Tuple[Task, Journal]:
    """Return the task of the version and its journal: a new one, or the one of an upload that broke."""
    folder = _cache.cache_root() / "uploads"
    about = {"server": server.address, "project": plan.project, "name": plan.name, "version": plan.version}
    parents = [parent.id for parent in plan.parents]
    left = find_journal(folder, **about)
    if left is not None:
        journal = Journal.open(left)
        if journal is None:
            raise ClearmlClientError(
                f"{plan.name}@{plan.version} is being uploaded by another process of this machine: wait for its end"
            )
        task = _claims.resume(server, journal.about["task"], name=plan.name, tags=plan.tags, parents=parents)
        if task is not None:
            return task, journal
        journal.remove()
    hidden = plan.project.rpartition("/")[0]
    server.make_project(hidden, ["hidden"])
    project_id = server.make_project(plan.project, ["hidden", "dataset"])
    task = _claims.claim(
        server,
        project_id=project_id,
        name=plan.name,
        version=plan.version,
        tags=plan.tags,
        parents=parents,
        comment=plan.comment,
    )
    return task, Journal.create(folder, {**about, "task": task.id, "root": str(plan.root)})


def _divide(
    root: Path,
    files: Sequence[SourceFile],
    inherited: Mapping[str, Entry],
    workers: int,
    progress: Optional[Advance],
) -> Tuple[Set[str], List[SourceFile]]:
    """Return the paths that a parent has just so, and the files that are to be sent."""
    candidates = [file for file in files if file.path in inherited and inherited[file.path].size == file.size]

    def is_same(file: SourceFile) -> bool:
        same = hash_file(root, file) == inherited[file.path].sha256
        if same and progress is not None:
            progress(file.size)
        return same

    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(is_same, candidates)
        same = {file.path for file, is_it in zip(candidates, found) if is_it}  # noqa: B905
    return same, [file for file in files if file.path not in same]


# ---------------------------------------------------------------- packs


class _Sender:
    """Packs files and stores the packs, several at a time; the journal knows what is stored."""

    def __init__(
        self, server: Server, plan: Plan, task: Task, journal: Journal, work: Path, progress: Optional[Advance]
    ) -> None:
        self._server = server
        self._plan = plan
        self._task = task
        self._journal = journal
        self._work = work
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def send(self, files: Sequence[SourceFile]) -> None:
        """Store what is not stored yet."""
        missing = self._keep_whole(files)
        packs = plan_packs(missing, self._plan.pack_bytes)
        self._work.mkdir(parents=True, exist_ok=True)
        at_once = min(self._plan.workers, len(packs))
        largest = sorted((sum(file.size for file in pack) for pack in packs), reverse=True)[:at_once]
        _cache.check_space(_cache.cache_root(), sum(largest) + len(files) * 300)
        numbers = self._free_numbers(len(packs))
        with ThreadPoolExecutor(max(1, at_once)) as pool:
            jobs = [pool.submit(self._one, number, pack) for number, pack in zip(numbers, packs)]  # noqa: B905
            try:
                done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
                for job in done:
                    job.result()
            except BaseException:
                self._stop.set()
                for job in jobs:
                    job.cancel()
                raise

    def _keep_whole(self, files: Sequence[SourceFile]) -> List[SourceFile]:
        """Keep stored packs whose files are all as they were, forget the others; return files without a pack."""
        asked = set(files)
        kept: List[StoredPack] = []
        have: Set[SourceFile] = set()
        artifacts = self._server.artifacts(self._task.id) if self._journal.packs else {}
        for stored in self._journal.packs:
            sources = [file.source for file in stored.pack.files]
            known = artifacts.get(stored.artifact)
            if known is not None and known.size == stored.pack.size and all(source in asked for source in sources):
                kept.append(stored)
                have.update(sources)
                if self._progress is not None:
                    self._progress(sum(file.size for file in sources))
        names = {stored.artifact for stored in kept}
        for name, artifact in artifacts.items():
            if name not in names:
                self._server.files.delete(artifact.uri)
                self._server.call(
                    "tasks.delete_artifacts",
                    task=self._task.id,
                    artifacts=[{"key": name, "mode": "output"}],
                    force=True,
                )
        self._journal.packs[:] = kept
        return [file for file in files if file not in have]

    def _free_numbers(self, count: int) -> List[int]:
        taken = {stored.artifact for stored in self._journal.packs}
        numbers: List[int] = []
        number = 0
        while len(numbers) < count:
            if _claims.pack_key(number) not in taken:
                numbers.append(number)
            number += 1
        return numbers

    def _one(self, number: int, files: Sequence[SourceFile]) -> None:
        if self._stop.is_set():
            return
        key = _claims.pack_key(number)
        name = _claims.pack_file(self._task.id, key)
        target = self._work / name
        try:
            try:
                pack = write_pack(self._plan.root, files, target, progress=self._progress, stop=self._stop)
            except OSError as error:
                raise ClearmlClientError(
                    f"{target}: the pack cannot be written ({error.strerror}): free some space below "
                    f"{_cache.cache_root()} and run the same command again"
                ) from error
            where = artifact_uri(
                self._server.files_address, self._plan.project, self._plan.name, self._task.id, key, name
            )
            uri = self._server.files.upload(target, where)
        finally:
            if target.exists():
                target.unlink()
        preview = f"{len(pack.files)} files, {pack.size} bytes"
        self._server.add_artifact(self._task.id, key, uri, size=pack.size, sha256=pack.sha256, preview=preview)
        with self._lock:
            self._journal.add(StoredPack(key, uri, pack))


# ---------------------------------------------------------------- the end


def _entries(task_id: str, plan: Plan, journal: Journal, inherited: Mapping[str, Entry], same: Set[str]) -> List[Entry]:
    """Return the complete list of the version's files."""
    own: Dict[str, Entry] = {}
    for stored in journal.packs:
        source = Source(task_id, stored.artifact)
        for file in stored.pack.files:
            own[file.path] = Entry(file.path, file.size, file.sha256, source)
    # without --merge the folder is the version: what is not there any more is gone
    from_parents = inherited if plan.merge else same
    for path in from_parents:
        if path not in own:
            own[path] = inherited[path]
    return [own[path] for path in sorted(own)]


def _graph(task_id: str, parents: Sequence[Parent]) -> Dict[str, List[str]]:
    """Return the parents of this version and of all that it comes from."""
    graph: Dict[str, List[str]] = {task_id: [parent.id for parent in parents]}
    for parent in parents:
        for id_, above in (parent.contents.about.get("graph") or {}).items():
            graph.setdefault(id_, list(above))
        graph.setdefault(parent.id, list(parent.contents.about.get("parents") or []))
    return graph


def _finish(
    server: Server,
    plan: Plan,
    task: Task,
    journal: Journal,
    work: Path,
    entries: Sequence[Entry],
    inherited: Mapping[str, Entry],
) -> None:
    graph = _graph(task.id, plan.parents)
    about = {
        "id": task.id,
        "name": plan.name,
        "version": plan.version,
        "parents": graph[task.id],
        "graph": graph,
        "metadata": dict(plan.metadata),
    }
    target = work / f"{ARTIFACT}.zip"
    write_index(target, entries, about)
    files = {ARTIFACT: target}
    if plan.metadata:
        files[METADATA] = work / f"{METADATA}.json"
        files[METADATA].write_text(json.dumps(dict(plan.metadata)))
    for key, file in files.items():
        where = artifact_uri(server.files_address, plan.project, plan.name, task.id, key, file.name)
        uri = server.files.upload(file, where)
        kind = "dict" if key == METADATA else "custom"
        preview = json.dumps(dict(plan.metadata)) if key == METADATA else f"{len(entries)} files"
        server.add_artifact(task.id, key, uri, size=file.stat().st_size, sha256="", preview=preview, kind=kind)
    _claims.check_free(server, task.project, plan.name, plan.version, task.id, holding=True)
    packed = sum(stored.pack.size for stored in journal.packs)
    _finalize(task.id, entries, graph, _changes(task.id, entries, inherited), packed)
    _claims.publish(server, task.id)


def _changes(task_id: str, entries: Sequence[Entry], inherited: Mapping[str, Entry]) -> Dict[str, int]:
    """Count as the SDK's table does."""
    own = [entry for entry in entries if entry.source.dataset_id == task_id]
    modified = sum(1 for entry in own if entry.path in inherited)
    paths = {entry.path for entry in entries}
    removed = sum(1 for path in inherited if path not in paths)
    return {"files added": len(own) - modified, "files removed": removed, "files modified": modified}


def _finalize(
    task_id: str,
    entries: Sequence[Entry],
    graph: Mapping[str, List[str]],
    changes: Dict[str, int],
    packed_bytes: int,
) -> None:
    """Let the SDK write what it reads: the state, the structure, the tables of the dataset's page.

    ``Dataset.finalize()`` is public; to give it a list of files there is only ``_deserialize``, which takes the state
    as the SDK stores it. ``add_files`` and ``upload`` would read each file twice, deflate pictures and begin anew after
    a break. ``Dataset.create`` cannot be used either: it makes the task first and names its version later, so two
    uploads of one version would not see each other, and everybody would see a half version.
    """
    from clearml import Dataset
    from clearml import Task as SdkTask

    state: Dict[str, Any] = {
        "id": task_id,
        "dirty": False,
        "dependency_graph": {id_: list(parents) for id_, parents in graph.items()},
        "dataset_link_entries": [],
        "dataset_file_entries": [
            {
                "relative_path": entry.path,
                "hash": entry.sha256,
                "parent_dataset_id": entry.source.dataset_id,
                "size": entry.size,
                "artifact_name": entry.source.artifact,
            }
            for entry in entries
        ],
    }
    dataset = Dataset._deserialize(state, SdkTask.get_task(task_id=task_id))
    dataset.changed_files = dict(changes)
    packed = packed_bytes + dataset._get_total_size_compressed_parents()
    dataset._ds_total_size_compressed = packed  # type: ignore[assignment]  # the SDK's annotations miss it
    dataset.finalize()
