"""The journal of an upload: what a break does not lose.

``<cache>/uploads/<task id>.jsonl``: its first line says which version of which dataset is sent, each further line is a
pack that is stored. Who uploads holds a lock on the file as long as the process lives.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional

from .packs import Pack, PackedFile

__all__ = ["Journal", "StoredPack", "find_journal"]


class StoredPack(NamedTuple):
    """A pack that is at the server."""

    artifact: str
    uri: str
    pack: Pack


class Journal:
    """An open, locked journal."""

    def __init__(self, path: Path, stream: IO[str], about: Dict[str, Any], packs: List[StoredPack]) -> None:
        self.path = path
        self.about = about
        self.packs = packs
        self._stream = stream

    @classmethod
    def create(cls, folder: Path, about: Dict[str, Any]) -> Journal:
        """Begin the journal of the task ``about["task"]``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{about['task']}.jsonl"
        stream = path.open("a+", encoding="utf-8")
        fcntl.flock(stream, fcntl.LOCK_EX)
        journal = cls(path, stream, about, [])
        journal._append(about)
        return journal

    @classmethod
    def open(cls, path: Path) -> Optional[Journal]:
        """Open a journal that an earlier process left; None when it is in use, or holds nothing."""
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            return None
        documents = list(_documents(stream))
        if not documents:
            stream.close()
            return None
        packs = [_read_pack(document) for document in documents[1:]]
        return cls(path, stream, documents[0], packs)

    def add(self, stored: StoredPack) -> None:
        """Note a pack that is stored; it is on this disk when this returns."""
        pack = stored.pack
        self._append(
            {
                "artifact": stored.artifact,
                "uri": stored.uri,
                "size": pack.size,
                "sha256": pack.sha256,
                "files": [list(file) for file in pack.files],
            }
        )
        self.packs.append(stored)

    def _append(self, document: Dict[str, Any]) -> None:
        self._stream.write(json.dumps(document, separators=(",", ":")) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Leave it for a later process."""
        self._stream.close()

    def remove(self) -> None:
        """Forget the upload."""
        if self.path.exists():
            self.path.unlink()
        self._stream.close()


def _documents(stream: IO[str]) -> Iterator[Dict[str, Any]]:
    """Read lines; the last one may be half, when the machine lost its power."""
    stream.seek(0)
    for line in stream:
        if not line.endswith("\n"):
            # a line that is written next must not be glued to it
            stream.seek(0, os.SEEK_END)
            stream.write("\n")
            stream.flush()
            return
        try:
            document = json.loads(line)
        except ValueError:
            continue
        yield document


def _read_pack(document: Dict[str, Any]) -> StoredPack:
    files = [PackedFile(*file) for file in document["files"]]
    return StoredPack(document["artifact"], document["uri"], Pack(document["size"], document["sha256"], files))


def find_journal(folder: Path, **about: str) -> Optional[Path]:
    """Return the journal whose first line has these values."""
    for path in sorted(folder.glob("*.jsonl")):
        if path.stat().st_uid != os.geteuid():
            continue  # a cache may be shared; another user's upload is not ours to go on with
        with path.open(encoding="utf-8") as stream:
            head = stream.readline()
        try:
            document = json.loads(head)
        except ValueError:
            continue
        if isinstance(document, dict) and all(document.get(key) == value for key, value in about.items()):
            return path
    return None
