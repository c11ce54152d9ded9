"""Packs: the zip files that hold a dataset's files; how a folder becomes packs, and packs a folder again.

A pack is an ordinary zip with the files' paths as names, which the stock SDK unpacks as well. Each file is read once:
its sha256, the zip's own check sum and the pack's sha256 are made from the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set

from .._errors import ClearmlClientError

__all__ = [
    "DEFAULT_PACK_BYTES",
    "Advance",
    "Pack",
    "PackedFile",
    "Progress",
    "SourceFile",
    "Wanted",
    "check_unchanged",
    "counting",
    "extract",
    "hash_file",
    "plan_packs",
    "safe_path",
    "scan",
    "write_pack",
]

DEFAULT_PACK_BYTES = 256 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_SAMPLE_BYTES = 64 * 1024
_WORTH_DEFLATING = 0.7  # of a sample's size after zlib's fastest level
_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same files make the same pack
_READ_ONLY = 0o444

# Formats that are compressed already: no sample is taken.
_COMPRESSED = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".heic", ".avif"),
    *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".mp3", ".ogg", ".flac"),
    *(".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".lz4", ".7z", ".npz", ".whl", ".jar"),
    *(".parquet", ".bag", ".mcap", ".docx", ".xlsx", ".pptx", ".pdf"),
)

Advance = Callable[[int], None]
"""Is told the bytes that were handled since the last call."""
Progress = Callable[[int, int], None]
"""Is told the bytes that were handled since the last call, and those of the whole work."""


class SourceFile(NamedTuple):
    """A file of the folder that is uploaded, as it was when the folder was read."""

    path: str  # below the folder, with slashes
    size: int
    mtime_ns: int


class PackedFile(NamedTuple):
    """A source file that is in a pack."""

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @property
    def source(self) -> SourceFile:
        """The file without its hash."""
        return SourceFile(self.path, self.size, self.mtime_ns)


class Pack(NamedTuple):
    """A written pack."""

    size: int
    sha256: str
    files: List[PackedFile]


class Wanted(NamedTuple):
    """A file that a pack must hold."""

    path: str
    size: int
    sha256: str  # empty when it is not known


# ---------------------------------------------------------------- reading the folder


def scan(root: Path) -> List[SourceFile]:
    """Return the files below a folder, sorted by path; links to files count as the files that they lead to.

    Raises:
        ClearmlClientError: The folder is missing or holds no file, or something in it cannot be stored: a name that is
            not UTF-8, a link to a folder or to nothing, a socket, a device.
    """
    if not root.exists():
        raise ClearmlClientError(f"{root}: there is no such folder")
    if root.is_file():
        return [_source(root, root.name)]
    found: List[SourceFile] = []
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + _checked_name(entry.name, folder)
                if entry.is_dir(follow_symlinks=False):
                    folders.append((path + "/", Path(entry.path)))
                elif entry.is_symlink() and entry.is_dir():
                    raise ClearmlClientError(
                        f"{entry.path} is a link to a folder: a dataset holds files; put the folder itself there"
                    )
                else:
                    found.append(_source(Path(entry.path), path))
    if not found:
        raise ClearmlClientError(f"{root}: there is no file below this folder: a dataset needs at least one")
    found.sort()
    return found


def _checked_name(name: str, folder: Path) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ClearmlClientError(
            f"{folder}: the name {os.fsencode(name)!r} is not UTF-8: rename it, as no other machine could read it"
        ) from None
    return name


def _source(file: Path, path: str) -> SourceFile:
    try:
        status = file.stat()
    except OSError as error:
        raise ClearmlClientError(f"{file}: cannot be read ({error.strerror}): mend or remove it") from error
    if not stat.S_ISREG(status.st_mode):
        raise ClearmlClientError(f"{file} is neither a file nor a folder: remove it, a dataset holds files only")
    return SourceFile(path, status.st_size, status.st_mtime_ns)


def check_unchanged(root: Path, files: Sequence[SourceFile]) -> None:
    """Read the folder again and compare.

    Raises:
        ClearmlClientError: A file came, went or changed since ``files`` were read.
    """
    before, now = set(files), set(scan(root))
    if before == now:
        return
    paths = sorted({file.path for file in before ^ now})
    shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    raise ClearmlClientError(
        f"{root}: {len(paths)} files changed during the upload ({shown}): nothing was published; "
        "wait until nobody writes there and run the same command again, it sends only what changed"
    )


def plan_packs(files: Iterable[SourceFile], pack_bytes: int) -> List[List[SourceFile]]:
    """Divide sorted files into packs of about ``pack_bytes``; the same files give the same packs."""
    packs: List[List[SourceFile]] = []
    pack: List[SourceFile] = []
    size = 0
    for file in files:
        if pack and size + file.size > pack_bytes:
            packs.append(pack)
            pack, size = [], 0
        pack.append(file)
        size += file.size
    if pack:
        packs.append(pack)
    return packs


# ---------------------------------------------------------------- writing


class _HashingStream:
    """A file that hashes what is written; it cannot seek, so zipfile writes each byte once and in order."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += len(data)
        self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        self._stream.flush()


def write_pack(
    root: Path,
    files: Sequence[SourceFile],
    target: Path,
    *,
    progress: Optional[Advance] = None,
    stop: Optional[threading.Event] = None,
) -> Pack:
    """Write files into a zip, reading each once.

    Args:
        root: The folder that the files' paths are below.
        files: What to pack.
        target: Where the zip goes.
        progress: Is told the bytes read.
        stop: Set by another thread when the work has become useless.

    Raises:
        ClearmlClientError: A file changed or went away meanwhile, or the work was stopped.
    """
    packed: List[PackedFile] = []
    with target.open("wb") as stream:
        hashing = _HashingStream(stream)
        # zipfile only asks for write() and flush(); its annotations ask for a whole file
        with zipfile.ZipFile(hashing, "w", allowZip64=True) as archive:  # type: ignore[call-overload]
            for file in files:
                if stop is not None and stop.is_set():
                    raise ClearmlClientError("the upload was stopped")
                packed.append(PackedFile(*file, sha256=_add(archive, root, file)))
                if progress is not None:
                    progress(file.size)
    return Pack(hashing.size, hashing.hash.hexdigest(), packed)


def _changed(file: SourceFile) -> ClearmlClientError:
    return ClearmlClientError(
        f"{file.path} changed while it was uploaded: nothing was published; wait until nobody writes there "
        "and run the same command again, it sends only what changed"
    )


def _add(archive: zipfile.ZipFile, root: Path, file: SourceFile) -> str:
    digest = hashlib.sha256()
    try:
        source = _place(root, file.path).open("rb")
    except OSError:
        raise _changed(file) from None
    with source:
        status = os.fstat(source.fileno())
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _changed(file)
        info = zipfile.ZipInfo(file.path, _FIRST_ZIP_DATE)
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        info.file_size = file.size
        if file.size <= _BUFFER_BYTES:
            data = source.read(file.size + 1)
            if len(data) != file.size:
                raise _changed(file)
            digest.update(data)
            archive.writestr(info, data, compress_type=_compression(file.path, data))
        else:
            _copy_in(archive, info, source, digest, file)
        status = os.fstat(source.fileno())
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _changed(file)
    return digest.hexdigest()


def _copy_in(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: IO[bytes], digest: Any, file: SourceFile) -> None:
    data = source.read(_BUFFER_BYTES)
    info.compress_type = _compression(file.path, data)
    read = 0
    with archive.open(info, "w", force_zip64=file.size > 0x7FFF_FFFF) as member:
        while data:
            read += len(data)
            if read > file.size:
                raise _changed(file)
            digest.update(data)
            member.write(data)
            data = source.read(_BUFFER_BYTES)
    if read != file.size:
        raise _changed(file)


def _compression(path: str, data: bytes) -> int:
    """Deflate what a sample of the start says is worth it; pictures and point clouds are stored as they are."""
    if path.lower().endswith(_COMPRESSED) or len(data) < 64:
        return zipfile.ZIP_STORED
    sample = data[:_SAMPLE_BYTES]
    return (
        zipfile.ZIP_DEFLATED if len(zlib.compress(sample, 1)) < len(sample) * _WORTH_DEFLATING else zipfile.ZIP_STORED
    )


def _place(root: Path, path: str) -> Path:
    return root if root.is_file() else root / path


def hash_file(root: Path, file: SourceFile) -> str:
    """Return the sha256 of a source file.

    Raises:
        ClearmlClientError: It changed since the folder was read.
    """
    digest = hashlib.sha256()
    try:
        with _place(root, file.path).open("rb") as source:
            for data in iter(lambda: source.read(_BUFFER_BYTES), b""):
                digest.update(data)
            status = os.fstat(source.fileno())
    except OSError:
        raise _changed(file) from None
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise _changed(file)
    return digest.hexdigest()


# ---------------------------------------------------------------- unpacking


def counting(progress: Optional[Progress], total: int) -> Optional[Advance]:
    """Return what tells parts of a work of ``total`` bytes to a progress."""
    if progress is None:
        return None
    tell = progress
    return lambda size: tell(size, total)


def safe_path(path: str) -> str:
    """Return a path of a dataset that stays below the folder it is unpacked into.

    Raises:
        ClearmlClientError: It is absolute, has an empty part, ``.`` or ``..``.
    """
    if path.startswith("/") or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ClearmlClientError(
            f"the dataset has a file {path!r}, which would be written outside of its folder: refused"
        )
    return path


class Folders:
    """Makes the folders that files need, each once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: Set[str] = {""}

    def place(self, path: str) -> str:
        """Return where a file goes; its folder is there."""
        parent = path.rpartition("/")[0]
        if parent not in self._made:
            (self._root / parent).mkdir(parents=True, exist_ok=True)
            self._made.add(parent)
        return f"{self._root}/{path}"


def extract(
    archive: zipfile.ZipFile,
    wanted: Iterable[Wanted],
    folder: Path,
    *,
    origin: str,
    progress: Optional[Advance] = None,
    stop: Optional[threading.Event] = None,
) -> None:
    """Unpack files from a pack into a folder, read-only, and check each one's size and sha256 on the way.

    Args:
        archive: The pack.
        wanted: Which files; others in the pack are left.
        folder: Where they go.
        origin: What the pack is called in messages.
        progress: Is told the bytes written.
        stop: Set by another thread when the work has become useless.

    Raises:
        ClearmlClientError: A file is missing in the pack, damaged, or would leave the folder.
    """
    folders = Folders(folder)
    members = archive.NameToInfo
    found: List[Any] = []
    for file in wanted:
        info = members.get(file.path)
        if info is None:
            raise ClearmlClientError(f"{origin} lacks the file {file.path!r}: the stored dataset is damaged")
        found.append((info.header_offset, info, file))
    found.sort(key=lambda item: item[0])  # in the order of the pack: it is read from its start to its end
    for _, info, file in found:
        if stop is not None and stop.is_set():
            raise ClearmlClientError("the download was stopped")
        try:
            _extract_one(archive, info, file, folders.place(safe_path(file.path)), progress)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ClearmlClientError(f"{origin}: {file.path!r} is damaged ({error})") from error


def _extract_one(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Wanted, place: str, progress: Optional[Advance]
) -> None:
    digest = hashlib.sha256()
    size = 0
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _READ_ONLY)
    try:
        with archive.open(info) as source:
            for data in _chunks(source, info.file_size):
                digest.update(data)
                size += len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                if progress is not None:
                    progress(len(data))
    finally:
        os.close(handle)
    if size != file.size or (file.sha256 and digest.hexdigest() != file.sha256):
        raise ClearmlClientError(
            f"{file.path!r} is not what was uploaded: {size} bytes with sha256 {digest.hexdigest()}, "
            f"expected {file.size} bytes with {file.sha256}; the stored pack is damaged"
        )


def _chunks(source: IO[bytes], size: int) -> Iterator[bytes]:
    if size <= _BUFFER_BYTES:
        yield source.read()
        return
    while True:
        data = source.read(_BUFFER_BYTES)
        if not data:
            return
        yield data
