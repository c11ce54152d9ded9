"""The index of a version on this machine: fetched in parts, or made out of what the stock SDK wrote."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Dict, Optional

from .. import _cache
from .._errors import ClearmlClientError
from ._remote import Artifact, Server
from .index import ARTIFACT, Entry, Index, Source, write_index

__all__ = ["open_index"]

_WHOLE_BYTES = 2 * 1024 * 1024  # a smaller index is fetched in one transfer
_STATE = "state"


def open_index(server: Server, task_id: str) -> Index:
    """Return the index of a whole version.

    Raises:
        ClearmlClientError: The version has no list of its files, or it cannot be fetched.
    """
    folder = _folder()
    whole = folder / f"{task_id}.zip"
    if whole.is_file():
        try:
            return Index(_Whole(whole))
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, zlib.error):
            # Cut or edited by somebody: the server has it whole.
            whole.unlink()
    parts = _Parts(server, task_id, folder)
    if parts.known("index.json"):
        return Index(parts)
    artifacts = server.artifacts(task_id)
    if ARTIFACT in artifacts:
        artifact = artifacts[ARTIFACT]
        parts.artifact = artifact
        if artifact.size > _WHOLE_BYTES and parts.open():
            return Index(parts)
        with _beside(whole) as temporary:
            server.files.fetch(artifact.uri, temporary.path, artifact.size)
            temporary.keep()
    elif _STATE in artifacts:
        with _beside(whole) as temporary:
            _convert(server, task_id, artifacts[_STATE], temporary.path)
            temporary.keep()
    else:
        raise ClearmlClientError(
            f"the dataset version of task {task_id} has neither an index nor a state: it was never uploaded whole; "
            "upload it again as a higher version"
        )
    return Index(_Whole(whole))


def _folder() -> Path:
    return _open_to_group(_cache.cache_root() / "index")


def _open_to_group(folder: Path) -> Path:
    """Make a folder of the cache; where a group shares the cache, it can be written by the group."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_mode & stat.S_ISGID:
            folder.chmod(0o2775)
    return folder


class _Whole:
    """Reads members of an index that is on this machine."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        # A flipped or cut byte shows here, in one pass over at most a few megabytes, and not in the middle of the work.
        damaged = self._archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{path}: {damaged} is damaged")

    def __call__(self, name: str) -> bytes:
        return self._archive.read(name)


class _Parts:
    """Reads members of a stored index by ranges, and keeps each one on this machine."""

    def __init__(self, server: Server, task_id: str, folder: Path) -> None:
        self.artifact: Optional[Artifact] = None
        self._server = server
        self._task_id = task_id
        self._folder = folder / f"{task_id}.parts"
        self._archive: Optional[zipfile.ZipFile] = None
        self._stream: Optional[IO[bytes]] = None

    def known(self, name: str) -> bool:
        return self._kept(name) is not None

    def _kept(self, name: str) -> Optional[bytes]:
        """Return a member that is on this machine as it came: its last 32 bytes are the sha256 of what is before."""
        try:
            data = self._place(name).read_bytes()
        except OSError:
            return None
        return data[:-32] if hashlib.sha256(data[:-32]).digest() == data[-32:] else None

    def _place(self, name: str) -> Path:
        return self._folder / name.replace("/", "-")

    def open(self) -> bool:
        """Open the stored index; False when its store gives no ranges."""
        if self._archive is None:
            if self.artifact is None:
                self.artifact = self._server.artifacts(self._task_id).get(ARTIFACT)
            if self.artifact is None:
                raise ClearmlClientError(f"the dataset version of task {self._task_id} is gone: somebody deleted it")
            self._stream = self._server.files.open(self.artifact.uri, self.artifact.size)
            if self._stream is None:
                return False
            self._archive = zipfile.ZipFile(self._stream)
        return True

    def __call__(self, name: str) -> bytes:
        place = self._place(name)
        kept = self._kept(name)
        if kept is not None:
            return kept
        if not self.open() or self._archive is None:
            raise ClearmlClientError(f"{name} of the index cannot be read: its store gives no parts of a file any more")
        data = self._archive.read(name)
        with _beside(place) as temporary:
            temporary.path.write_bytes(data + hashlib.sha256(data).digest())
            temporary.keep()
        return data


class _beside:  # noqa: N801  # used as a function
    """A temporary file beside its place, which it takes by one rename."""

    def __init__(self, place: Path) -> None:
        self._place = place
        _open_to_group(place.parent)
        handle, name = tempfile.mkstemp(prefix=place.name, suffix=".new", dir=place.parent)
        os.close(handle)
        self.path = Path(name)

    def __enter__(self) -> _beside:
        return self

    def keep(self) -> None:
        self.path.chmod(0o664)
        self.path.replace(self._place)

    def __exit__(self, *_: object) -> None:
        if self.path.exists():
            self.path.unlink()


def _convert(server: Server, task_id: str, state: Artifact, target: Path) -> None:
    """Make an index of the list that the stock SDK keeps."""
    with tempfile.TemporaryDirectory(dir=str(target.parent)) as folder:
        file = Path(folder) / "state.json"
        server.files.fetch(state.uri, file, 0)  # the SDK writes it again after it told its size
        document: Dict[str, Any] = json.loads(file.read_text())
    entries = [
        Entry(
            item["relative_path"],
            int(item["size"] or 0),
            item["hash"] or "",
            Source(item["parent_dataset_id"], item["artifact_name"] or "data"),
        )
        for item in document.get("dataset_file_entries") or []
    ]
    entries.sort()
    graph = document.get("dependency_graph") or {}
    about = {
        "id": task_id,
        "parents": graph.get(task_id, []),
        "graph": graph,
        "metadata": {},
        "links": len(document.get("dataset_link_entries") or []),
    }
    write_index(target, entries, about)
