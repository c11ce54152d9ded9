"""The index of a version: what is in it, readable in parts, so that nobody downloads a dataset to look into it.

One zip, the artifact ``index``. Each member is deflated by itself, so a reader takes the members that it needs:

    index.json          what the version is: counts, parents, metadata, where packs are, the first path of each block
    dirs.tsv            folder, own files, own bytes, files below, bytes below; sorted
    files/00000.tsv     path, size; sorted, 20,000 rows to a block
    hashes/00000.tsv    sha256, number of the source (in index.json); the rows of the files' block

Paths are escaped: a backslash, tab, newline or carriage return in a name becomes ``\\\\``, ``\\t``, ``\\n``, ``\\r``.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .._errors import ClearmlClientError

__all__ = [
    "ARTIFACT",
    "BLOCK_ROWS",
    "Entry",
    "Folder",
    "Index",
    "Listed",
    "Source",
    "compile_depth",
    "compile_glob",
    "escape",
    "unescape",
    "write_index",
]

ARTIFACT = "index"
BLOCK_ROWS = 20_000
_FORMAT = 1
_DATE = (1980, 1, 1, 0, 0, 0)

ReadMember = Callable[[str], bytes]


class Source(NamedTuple):
    """A pack: the artifact of a version's task."""

    dataset_id: str
    artifact: str


class Entry(NamedTuple):
    """A file of a version, and the pack that holds it."""

    path: str
    size: int
    sha256: str
    source: Source


class Folder(NamedTuple):
    """A folder of a version; the root's path is empty."""

    path: str
    own_files: int
    own_bytes: int
    files: int  # with those below
    bytes: int


class Listed(NamedTuple):
    """A file of a version as a listing shows it."""

    path: str
    size: Optional[int]  # None where the store does not tell


# ---------------------------------------------------------------- escaping

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {value: key for key, value in _ESCAPES.items()}
_ESCAPABLE = re.compile(r"[\\\t\n\r]")
_ESCAPED = re.compile(r"\\[\\tnr]")


def escape(path: str) -> str:
    """Make a path fit for a line of tab-separated values."""
    if _ESCAPABLE.search(path) is None:
        return path
    return _ESCAPABLE.sub(lambda found: _ESCAPES[found[0]], path)


def unescape(text: str) -> str:
    """Return the path that ``escape`` was given."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda found: _UNESCAPES[found[0]], text)


# ---------------------------------------------------------------- writing


def write_index(target: Path, entries: Sequence[Entry], about: Dict[str, Any]) -> None:
    """Write the index of a version.

    Args:
        target: Where the zip goes.
        entries: All files, sorted by path.
        about: What ``index.json`` tells besides: id, name, version, parents, graph, metadata.
    """
    blocks: List[Dict[str, Any]] = []
    numbers: Dict[Source, int] = {}
    digest = hashlib.sha256()
    # blocks of 20,000 rows deflate well at a low level already: the sorted paths repeat
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=4) as archive:
        for start in range(0, len(entries), BLOCK_ROWS):
            rows = entries[start : start + BLOCK_ROWS]
            number = len(blocks)
            blocks.append({"first": rows[0].path, "rows": len(rows)})
            files = "".join([f"{escape(row.path)}\t{row.size}\n" for row in rows])
            hashes = "".join([f"{row.sha256}\t{numbers.setdefault(row.source, len(numbers))}\n" for row in rows])
            digest.update("".join([f"{escape(row.path)}\t{row.size}\t{row.sha256}\n" for row in rows]).encode())
            _write(archive, f"files/{number:05d}.tsv", files)
            _write(archive, f"hashes/{number:05d}.tsv", hashes)
        folders = summarize_folders((entry.path, entry.size) for entry in entries)
        _write(archive, "dirs.tsv", "".join([_folder_row(folder) for folder in folders]))
        document = {
            **about,
            "format": _FORMAT,
            "files": len(entries),
            "bytes": sum(entry.size for entry in entries),
            "hash": digest.hexdigest(),
            "blocks": blocks,
            "sources": [list(source) for source in numbers],
        }
        _write(archive, "index.json", json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def _write(archive: zipfile.ZipFile, name: str, text: str) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    archive.writestr(info, text.encode("utf-8"), compress_type=zipfile.ZIP_DEFLATED, compresslevel=4)


def _folder_row(folder: Folder) -> str:
    return "\t".join((escape(folder.path), *map(str, folder[1:]))) + "\n"


def summarize_folders(files: Iterable[Tuple[str, int]]) -> List[Folder]:
    """Count files and bytes of each folder, and of all that is below it; sorted by path, the root first."""
    own: Dict[str, List[int]] = {"": [0, 0]}
    for path, size in files:
        parent = path.rpartition("/")[0]
        counts = own.get(parent)
        if counts is None:
            counts = own[parent] = [0, 0]
        counts[0] += 1
        counts[1] += size
    below: Dict[str, List[int]] = {}
    for folder, (count, size) in own.items():
        while True:
            total = below.setdefault(folder, [0, 0])
            total[0] += count
            total[1] += size
            if not folder:
                break
            folder = folder.rpartition("/")[0]
    return [Folder(path, *own.get(path, (0, 0)), *below[path]) for path in sorted(below)]


# ---------------------------------------------------------------- reading


class Index:
    """A version's index, read member by member as questions are asked."""

    def __init__(self, read: ReadMember) -> None:
        """Open an index.

        Args:
            read: Returns a member of the zip by its name.

        Raises:
            ClearmlClientError: It was written by a newer client.
        """
        self._read = read
        self.about: Dict[str, Any] = json.loads(read("index.json"))
        if self.about.get("format") != _FORMAT:
            raise ClearmlClientError(
                f"the index of this version has format {self.about.get('format')!r}, this client reads {_FORMAT}: "
                "install a newer clearml-client"
            )
        self.files: int = self.about["files"]
        self.bytes: int = self.about["bytes"]
        self.hash: str = self.about["hash"]  # of all paths, sizes and hashes: the same files have the same
        self.sources: List[Source] = [Source(*source) for source in self.about["sources"]]
        self._firsts: List[str] = [block["first"] for block in self.about["blocks"]]

    def folders(self) -> List[Folder]:
        """Return all folders, sorted by path, the root first."""
        rows = self._text("dirs.tsv").split("\n")
        folders = []
        for row in rows[:-1]:
            path, own_files, own_bytes, files, size = row.split("\t")
            folders.append(Folder(unescape(path), int(own_files), int(own_bytes), int(files), int(size)))
        return folders

    def listing(self, folder: str = "", pattern: Optional["re.Pattern[str]"] = None) -> Iterator[Listed]:
        """Return the files below a folder (with those below its folders), sorted by path.

        Args:
            folder: Path without a slash at its end; empty for all.
            pattern: What ``compile_glob`` made; without it, all.
        """
        prefix = folder + "/" if folder else ""
        for number in self._blocks(prefix):
            yield from self._block(number, prefix, pattern)

    def _block(self, number: int, prefix: str, pattern: Optional["re.Pattern[str]"]) -> Iterator[Listed]:
        for found in (pattern or _ROW).finditer(self._text(f"files/{number:05d}.tsv")):
            path = unescape(found[1])
            if path.startswith(prefix):
                yield Listed(path, int(found[2]))

    def window(self, folder: str, others: Sequence[str], first: int, count: int) -> List[Listed]:
        """Return a part of all files below a folder, among other paths; blocks before it are counted, not read.

        Args:
            folder: Path without a slash at its end; empty for all.
            others: More paths, sorted: what a page lists beside files. They come back with the size -1.
            first: Where the part begins, counted from 0 among files and others together.
            count: How long it is.
        """
        prefix = folder + "/" if folder else ""
        numbers = list(self._blocks(prefix))
        found: List[Listed] = []
        position = taken = 0  # of files and others together; of others
        for number in numbers:
            if position >= first + count:
                break
            following = self._firsts[number + 1] if number != numbers[-1] else None
            upto = len(others) if following is None else bisect.bisect_left(others, following)
            inside = self._firsts[number].startswith(prefix) and (following or "").startswith(prefix)
            # the last block of all is whole too, if nothing follows it and all is asked for
            known = self.about["blocks"][number]["rows"] if (inside and following is not None) or not prefix else None
            if known is not None and position + known + upto - taken <= first:
                position += known + upto - taken
            else:
                rows = [Listed(path, -1) for path in others[taken:upto]]
                rows += self._block(number, prefix, None)
                rows.sort()
                found += rows[max(0, first - position) : first + count - position]
                position += len(rows)
            taken = upto
        return found

    def entries(self, paths: Optional[Iterable[str]] = None) -> Iterator[Entry]:
        """Return files with hashes and packs, sorted by path: all, or those named that exist."""
        asked = None if paths is None else set(paths)
        numbers: Iterable[int] = range(len(self._firsts))
        if asked is not None:
            numbers = sorted({max(0, bisect.bisect_right(self._firsts, path) - 1) for path in asked})
        for number in numbers:
            if number >= len(self._firsts):
                return
            files = self._text(f"files/{number:05d}.tsv").split("\n")
            hashes = self._text(f"hashes/{number:05d}.tsv").split("\n")
            if len(files) != len(hashes):
                raise ClearmlClientError("the index of this version is damaged: its blocks do not fit")
            for file, place in zip(files[:-1], hashes):  # noqa: B905 - strict is of Python 3.10
                path, _, size = file.partition("\t")
                path = unescape(path)
                if asked is None or path in asked:
                    sha256, _, source = place.partition("\t")
                    yield Entry(path, int(size), sha256, self.sources[int(source)])

    def _blocks(self, prefix: str) -> Iterator[int]:
        """Return the numbers of the blocks that may have paths with this beginning."""
        if not prefix:
            yield from range(len(self._firsts))
            return
        number = max(0, bisect.bisect_right(self._firsts, prefix) - 1)
        while number < len(self._firsts):
            first = self._firsts[number]
            if first > prefix and not first.startswith(prefix):
                return
            yield number
            number += 1

    def _text(self, name: str) -> str:
        return self._read(name).decode("utf-8")


_ROW = re.compile(r"^([^\t\n]*)\t([0-9]+)$", re.MULTILINE)


def compile_depth(folder: str, depth: int) -> "re.Pattern[str]":
    """Make a pattern for the files at most ``depth`` levels below a folder: 1 means in it."""
    prefix = re.escape(escape(folder) + "/") if folder else ""
    return re.compile(rf"^({prefix}(?:[^/\t\n]*/){{0,{depth - 1}}}[^/\t\n]*)\t([0-9]+)$", re.MULTILINE)


def compile_glob(glob: str) -> "re.Pattern[str]":
    """Make a pattern for the lines of a block out of a glob.

    ``*`` and ``?`` do not cross a slash, ``**`` does, ``[...]`` is a set. A glob without a slash means the file's name
    in any folder; one with a slash means the whole path.

    Raises:
        ClearmlClientError: The glob is empty or its brackets are not closed.
    """
    if not glob:
        raise ClearmlClientError("glob: it is empty: write one such as '*.png' or 'train/**/*.bin'")
    out = "" if "/" in glob else r"(?:[^\t\n]*/)?"
    position = 0
    while position < len(glob):
        if glob.startswith("**/", position):
            out += r"(?:[^\t\n]*/)?"
            position += 3
        elif glob.startswith("**", position):
            out += r"[^\t\n]*"
            position += 2
        elif glob[position] == "*":
            out += r"[^/\t\n]*"
            position += 1
        elif glob[position] == "?":
            # an escaped character is two in a block and one in the name
            out += r"(?:\\[\\tnr]|[^/\\\t\n])"
            position += 1
        elif glob[position] == "[":
            end = glob.find("]", position + 2)
            if end < 0:
                raise ClearmlClientError(f"glob {glob!r}: the bracket at character {position + 1} is not closed")
            inner = glob[position + 1 : end]
            negated = inner[0] in "!^"
            inner = inner[1:] if negated else inner
            out += "[" + ("^/\\t\\n" if negated else "") + re.sub(r"([\\\[\]^&~|])", r"\\\1", inner) + "]"
            position = end + 1
        else:
            out += re.escape(escape(glob[position]))
            position += 1
    try:
        return re.compile(rf"^({out})\t([0-9]+)$", re.MULTILINE)
    except re.error as error:
        raise ClearmlClientError(f"glob {glob!r}: {error}") from error
