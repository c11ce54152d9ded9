"""The file server of port 8081: upload, download, delete, for those with a token.

A file is written beside, synchronised and renamed: after a crash it is whole or not there.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from email.utils import formatdate
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ._body import MB, check_depth, check_nodes
from ._errors import ApiError
from ._rpc import State

__all__ = ["clean_up", "create_files"]

_TEMPORARY = ".incoming"  # folder of uploads that are not whole yet; no client can name it
_LIST_BYTES = 16 * MB  # of delete_many
_MAX_PARTS = 1000  # files of one upload
_MAX_BOUNDARY = 200  # RFC 2046 allows 70
_BROWSER_SAFE = {
    "content-security-policy": "sandbox; default-src 'none'; img-src 'self'",
    "x-content-type-options": "nosniff",
}


class _RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def clean_up(root: Path) -> None:
    """Remove what dead uploads left."""
    shutil.rmtree(root / _TEMPORARY, ignore_errors=True)
    (root / _TEMPORARY).mkdir(parents=True, exist_ok=True)


def resolve(root: Path, name: str) -> Path:
    """Find the place of a client's path below the root.

    Raises:
        _RefusalError: 404 for a path that leaves the root, or that no file can have.
    """
    name = name.lstrip("/")
    parts = PurePosixPath(name).parts
    if (
        not parts
        or "\x00" in name
        or any(part in ("..", ".") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
        or parts[0] == _TEMPORARY
    ):
        raise _RefusalError(404, "not found")
    try:
        target = root.joinpath(*parts)
        # a link inside the root must not lead out of it
        if not target.resolve().is_relative_to(root.resolve()):
            raise _RefusalError(404, "not found")
    except (OSError, ValueError, UnicodeEncodeError) as error:
        raise _RefusalError(404, "not found") from error
    return target


def _authorize(state: State, request: Request) -> None:
    header = request.headers.get("authorization", "")
    # The cookie counts for reading only: a page of another site can make a browser send it with a form.
    reads = request.method in ("GET", "HEAD")
    token = request.cookies.get(state.settings.cookie_name, "") if reads else ""
    if header:
        kind, _, token = header.partition(" ")
        if kind != "Bearer":
            raise _RefusalError(401, "Only bearer token authorization is supported")
    if not token:
        raise _RefusalError(401, f"unauthorized: give a bearer token{' or log in' if reads else ''}")
    try:
        state.auth.read_token(token.strip())
    except ApiError as error:
        raise _RefusalError(401, error.message) from error


def create_files(state: State) -> Starlette:
    """Make the ASGI application of port 8081."""
    root = state.settings.files_dir
    clean_up(root)

    async def handle(request: Request) -> Response:
        try:
            if request.scope["path"] == "/" and request.method in ("GET", "HEAD"):
                return PlainTextResponse("OK")
            await run_in_threadpool(_authorize, state, request)
            if request.headers.get("content-encoding"):
                raise _RefusalError(415, f"Content encoding is not supported ({request.headers['content-encoding']})")
            if request.method == "POST":
                return await _post(state, root, request)
            # the raw path, decoded once: Starlette's would be the same, but names it by bytes that are no UTF-8 too
            target = resolve(root, unquote(request.scope["raw_path"].decode("ascii", "replace").partition("?")[0]))
            if request.method == "DELETE":
                return await run_in_threadpool(_delete, root, target)
            return _get(target, request)
        except _RefusalError as refusal:
            return PlainTextResponse(refusal.text, status_code=refusal.status)
        except ApiError as error:
            return PlainTextResponse(error.message, status_code=error.code)
        except ClientDisconnect:
            return Response(status_code=499)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return PlainTextResponse("the server's disk is full: nothing was stored", status_code=507)
            if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
                return PlainTextResponse(f"no file can have this name here: {error.strerror}", status_code=409)
            if error.errno == errno.ENOENT:  # somebody deleted it in this moment
                return PlainTextResponse("not found", status_code=404)
            raise

    methods = ["GET", "HEAD", "POST", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", handle, methods=methods)])


class _StoredFile(FileResponse):
    """A file that may be deleted between the look at it and the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.stat_result = await run_in_threadpool(os.stat, self.path)
        except FileNotFoundError:
            await PlainTextResponse("not found", status_code=404)(scope, receive, send)
            return
        self.set_stat_headers(self.stat_result)
        await super().__call__(scope, receive, send)


def _get(target: Path, request: Request) -> Response:
    if not target.is_file():
        raise _RefusalError(404, "not found")
    download = "download" in request.query_params
    ranges = request.headers.get("range", "")
    size = target.stat().st_size
    if ranges and (not ranges.startswith("bytes=") or "," in ranges):
        return PlainTextResponse("one range of bytes is supported", 416, {"content-range": f"bytes */{size}"})
    return _StoredFile(
        target,
        filename=target.name,
        content_disposition_type="attachment" if download else "inline",
        headers={
            "cache-control": "private, max-age=300",
            "last-modified": formatdate(target.stat().st_mtime, usegmt=True),
            **_BROWSER_SAFE,
        },
    )


def _delete(root: Path, target: Path) -> Response:
    name = str(target.relative_to(root))
    if not target.is_file():
        raise _RefusalError(404, f"File {name} not found")
    target.unlink()
    _prune(root, target.parent)
    return PlainTextResponse(json.dumps(name), media_type="text/html")


def _prune(root: Path, folder: Path) -> None:
    """Remove folders that a delete left empty."""
    while folder not in (root, root / _TEMPORARY) and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


async def _post(state: State, root: Path, request: Request) -> Response:
    if request.scope["path"].rstrip("/") == "/delete_many":
        return await _delete_many(state, root, request)
    if request.scope["path"] != "/":
        raise _RefusalError(405, "POST files to /, with the path as the field's name")
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > _MAX_BOUNDARY:
        raise _RefusalError(400, "a multipart/form-data body is expected")
    upload = _Upload(root)
    try:
        parser = MultipartParser(boundary, upload.callbacks())
        async for chunk in request.stream():
            # writing is a system call that may wait for the disk: not on the event loop
            await run_in_threadpool(parser.write, chunk)
        await run_in_threadpool(parser.finalize)
        names = await run_in_threadpool(upload.commit)
    except _RefusalError:
        raise
    except ValueError as error:  # the parser's errors are ValueErrors
        raise _RefusalError(400, f"broken multipart body: {error}") from error
    finally:
        await run_in_threadpool(upload.discard)
    return PlainTextResponse(json.dumps(names), media_type="text/html")


class _Upload:
    """The parts of one multipart body: written beside, and moved to their places when all are whole."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts: list[tuple[str, Path, Path]] = []  # name, temporary file, place
        self._file: int | None = None
        self._header = [b"", b""]
        self._name: str | None = None
        self._ended = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._write,
            "on_part_end": self._close,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name = None

    def _grow(self, index: int, data: bytes) -> None:
        self._header[index] += data
        if len(self._header[index]) > 16_384:
            raise _RefusalError(400, "a part's header is too long")

    def _end_header(self) -> None:
        field, value = self._header
        self._header = [b"", b""]
        if field.lower() == b"content-disposition":
            _, options = parse_options_header(value)
            name = options.get(b"name", b"")
            # requests quotes names that are no ASCII as RFC 2231 name*=utf-8''...
            if not name and b"name*" in options:
                name = unquote(options[b"name*"].decode("ascii", "replace").rpartition("'")[2]).encode()
            self._name = name.decode("utf-8", "replace")

    def _open(self) -> None:
        if not self._name:
            raise _RefusalError(400, "a part has no name: it is the path to store under")
        if len(self._parts) >= _MAX_PARTS:
            raise _RefusalError(413, f"more than {_MAX_PARTS} files in one upload: send them in parts")
        place = resolve(self._root, self._name)
        if place.is_dir():
            raise _RefusalError(409, f"{self._name} is a folder")
        temporary = self._root / _TEMPORARY / secrets.token_hex(16)
        self._parts.append((str(place.relative_to(self._root)), temporary, place))
        self._file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        view = memoryview(data)[start:end]
        while view:
            view = view[os.write(self._file, view) :]

    def _close(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _end(self) -> None:
        self._ended = True

    def commit(self) -> list[str]:
        """Move every part to its place; answers their names.

        Raises:
            _RefusalError: 400 if the body broke off.
        """
        if self._parts and not self._ended:
            raise _RefusalError(400, "the body broke off: nothing was stored")
        for _, temporary, place in self._parts:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(place)
            for folder in (place.parent, *place.parent.parents):
                _sync(folder)
                if folder == self._root:
                    break
        return [name for name, _, _ in self._parts]

    def discard(self) -> None:
        """Remove what was not moved."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for _, temporary, _ in self._parts:
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def _delete_many(state: State, root: Path, request: Request) -> Response:
    async with state.bodies.read(request, _LIST_BYTES) as body:
        data = await run_in_threadpool(_json, body)
    names = data.get("files") if isinstance(data, dict) else None
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _RefusalError(400, "files are missing: give a list of paths")
    deleted: dict[str, str] = {}
    missing: list[str] = []

    def work() -> None:
        for name in names:
            try:
                target = resolve(root, unquote(name))
            except _RefusalError:
                missing.append(name)
                continue
            if target.is_dir():
                shutil.rmtree(target)
            elif target.is_file():
                target.unlink()
            else:
                missing.append(name)
                continue
            deleted[name] = name
            _prune(root, target.parent)

    await run_in_threadpool(work)
    answer = {"deleted": deleted, "errors": {"Not found": missing} if missing else {}}
    return PlainTextResponse(json.dumps(answer), media_type="application/json")


def _json(body: bytearray) -> Any:
    check_nodes(body)
    check_depth(body)
    try:
        return json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise _RefusalError(400, f"the body is not JSON: {error}") from error
