"""What the datasets need of a ClearML server: its API, and the files behind artifacts' addresses.

Calls go through the SDK's session (its configuration, keys, certificates and retries hold), as plain JSON: the SDK's
request classes drop fields that their schema of the API does not know, such as ``runtime`` at the making of a task.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence
from urllib.parse import quote, unquote, urlparse

from .._errors import ClearmlClientError
from .._server import opened
from .._status import WHOLE
from .._storable import storable

__all__ = ["Artifact", "Files", "RangeFile", "Server", "ServerError", "Task", "connect"]

Json = Dict[str, Any]

_PAGE = 500  # the most that the server gives at once
_TRIES = 4
_CONNECT_SECONDS = 30
_READ_SECONDS = 60
_CHUNK_BYTES = 1024 * 1024
_RANGE_BYTES = 512 * 1024  # read ahead of a range
_TAIL_BYTES = 64 * 1024
_GONE = (400, 404)


class ServerError(ClearmlClientError):
    """The server refused a call; ``code`` and ``subcode`` are its own."""

    def __init__(self, text: str, code: int, subcode: int) -> None:
        super().__init__(text)
        self.code = code
        self.subcode = subcode


class Artifact(NamedTuple):
    """A file of a task, as the server knows it."""

    key: str
    uri: str
    size: int  # bytes; 0 when it was not told


class Task(NamedTuple):
    """A task that is a version of a dataset, whole or not."""

    id: str
    name: str
    project: str  # id
    status: str
    version: str
    tags: List[str]
    system_tags: List[str]
    created: str
    last_update: str
    runtime: Json
    comment: str

    @classmethod
    def read(cls, document: Json) -> Task:
        """Take the API's document apart."""
        runtime = document.get("runtime") or {}
        return cls(
            id=document["id"],
            name=document.get("name") or "",
            project=document.get("project") or "",
            status=document.get("status") or "",
            version=str(runtime.get("version") or ""),
            tags=document.get("tags") or [],
            system_tags=document.get("system_tags") or [],
            created=document.get("created") or "",
            last_update=document.get("last_update") or "",
            runtime=runtime,
            comment=document.get("comment") or "",
        )

    @property
    def whole(self) -> bool:
        """Whether everybody may open it."""
        tagged = "dataset" in self.system_tags and "archived" not in self.system_tags
        return tagged and self.status in WHOLE


_FIELDS = [
    "id", "name", "project", "status", "tags", "system_tags", "created", "last_update", "runtime", "comment",
]  # fmt: skip


@lru_cache(maxsize=1)
def connect() -> Server:
    """Return this process's connection to the site's server.

    Raises:
        ClearmlClientError: ClearML is not configured on this machine, or the server is away or refuses its keys.
    """
    return Server()


class Server:
    """The API of a server, and its files."""

    def __init__(self) -> None:
        from clearml.backend_api import Session

        self._session = opened(Session)
        self.files = Files(self._session)

    @property
    def address(self) -> str:
        """The API's address: what tells one site from another."""
        return str(self._session.get_api_server_host())

    @property
    def files_address(self) -> str:
        """Where the site's file server is."""
        return str(self._session.get_files_server_host()).rstrip("/")

    def call(self, endpoint: str, **arguments: Any) -> Json:
        """Make a call; return its data.

        Raises:
            ServerError: The server refuses it.
            ClearmlClientError: The server does not answer.
        """
        import requests

        service, _, action = endpoint.partition(".")
        try:
            answer = self._session.send_request(service, action, json=arguments, method="post")
            document = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ClearmlClientError(f"the ClearML server at {self.address} does not answer: {error}") from error
        meta = document.get("meta", {})
        if answer.status_code != 200:
            text = meta.get("result_msg") or answer.reason
            raise ServerError(f"{endpoint}: the server says: {text}", answer.status_code, meta.get("result_subcode", 0))
        data: Json = document.get("data", {})
        return data

    # ------------------------------------------------------------ projects

    def project_id(self, name: str) -> Optional[str]:
        """Return the id of a project by its whole path; None when there is none."""
        found = self.call(
            "projects.get_all", name=f"^{re.escape(name)}$", search_hidden=True, only_fields=["id", "name"]
        ).get("projects", [])
        return next((str(project["id"]) for project in found if project["name"] == name), None)

    def projects_below(self, prefix: str) -> Dict[str, str]:
        """Return name by id of the projects whose path begins so."""
        names: Dict[str, str] = {}
        for page in range(1_000_000):
            found = self.call(
                "projects.get_all",
                name=f"^{re.escape(prefix)}",
                search_hidden=True,
                only_fields=["id", "name"],
                page=page,
                page_size=_PAGE,
            ).get("projects", [])
            names.update((project["id"], project["name"]) for project in found)
            if len(found) < _PAGE:
                break
        return names

    def dataset_projects(self, name: str) -> List[str]:
        """Return the projects that have a dataset of this name, sorted."""
        ending = f"/.datasets/{name}"
        found = self.call(
            "projects.get_all", name=f"{re.escape(ending)}$", search_hidden=True, only_fields=["id", "name"]
        ).get("projects", [])
        return sorted(str(item["name"])[: -len(ending)] for item in found if str(item["name"]).endswith(ending))

    def project_names(self, ids: Sequence[str]) -> Dict[str, str]:
        """Return name by id."""
        if not ids:
            return {}
        found = self.call("projects.get_all", id=sorted(set(ids)), search_hidden=True, only_fields=["id", "name"]).get(
            "projects", []
        )
        return {project["id"]: project["name"] for project in found}

    def make_project(self, name: str, system_tags: Sequence[str]) -> str:
        """Return the id of a project, made if there is none."""
        for _ in range(3):  # somebody else may make it between the look and the making
            found = self.project_id(name)
            if found is not None:
                return found
            try:
                return str(self.call("projects.create", name=name, description="", system_tags=list(system_tags))["id"])
            except ServerError as error:
                problem = error
                time.sleep(0.2)
        raise problem

    # ------------------------------------------------------------ tasks

    def tasks(self, fields: Sequence[str] = (), **filters: Any) -> List[Json]:
        """Return tasks, hidden ones too, in the order of their making."""
        found: List[Json] = []
        only = [*_FIELDS, *fields]
        for page in range(1_000_000):
            part = self.call(
                "tasks.get_all",
                search_hidden=True,
                only_fields=only,
                order_by=["created", "id"],
                page=page,
                page_size=_PAGE,
                **filters,
            ).get("tasks", [])
            found += part
            if len(part) < _PAGE:
                break
        return found

    def task(self, task_id: str) -> Optional[Json]:
        """Return a task whole; None when there is none."""
        try:
            document: Json = self.call("tasks.get_by_id", task=task_id)["task"]
        except ServerError as error:
            if error.code in _GONE:
                return None
            raise
        return document

    def artifacts(self, task_id: str) -> Dict[str, Artifact]:
        """Return a task's artifacts by their names; none when the task is gone."""
        return read_artifacts(self.task(task_id) or {})

    def add_artifact(
        self, task_id: str, key: str, uri: str, *, size: int, sha256: str, preview: str, kind: str = "custom"
    ) -> None:
        """Tell the server of an uploaded file, with the fields that the SDK's ``upload_artifact`` registers."""
        artifact = {
            "key": key,
            "type": kind,
            "mode": "output",
            "uri": uri,
            "content_size": size,
            "hash": sha256,
            "timestamp": int(time.time()),
            "type_data": {"content_type": "application/zip", "preview": preview},
        }
        self.call("tasks.add_or_update_artifacts", task=task_id, artifacts=[artifact], force=True)


def read_artifacts(document: Mapping[str, Any]) -> Dict[str, Artifact]:
    """Take the artifacts of a task's document apart."""
    listed = (document.get("execution") or {}).get("artifacts") or []
    return {
        item["key"]: Artifact(item["key"], item.get("uri") or "", int(item.get("content_size") or 0))
        for item in listed
        if item.get("mode", "output") == "output"
    }


# ---------------------------------------------------------------- files


class Files:
    """The files behind addresses: a ClearML file server, any other store of the SDK, or a folder."""

    def __init__(self, session: Any) -> None:
        from clearml.backend_api.utils import get_http_session_with_retry

        self._api = session
        self._http = get_http_session_with_retry(total=3, connect=3, read=3, backoff_factor=0.5)

    def upload(self, file: Path, uri: str) -> str:
        """Store a file at an address; return the address to register.

        Raises:
            ClearmlClientError: The store does not take it.
        """
        from clearml import StorageManager

        # the SDK would draw a bar for each file, among ours
        StorageManager.set_report_upload_chunk_size(1 << 30)
        try:
            stored = StorageManager.upload_file(str(file), uri, wait_for_upload=True, retries=_TRIES)
        except Exception as error:  # the SDK raises what the store's library raises
            raise ClearmlClientError(f"{uri}: the upload failed: {error}") from error
        if not stored:
            raise ClearmlClientError(f"{uri}: the upload failed; the SDK does not say why")
        return quote(uri, safe="/:@+~") if uri.startswith(("http://", "https://")) else uri

    def delete(self, uri: str) -> bool:
        """Remove a file from its store; return whether it is gone."""
        import requests

        if uri.startswith(("http://", "https://")):
            try:
                answer = self._http.delete(uri, headers=self._headers(uri), timeout=_READ_SECONDS)
            except requests.RequestException as error:
                raise ClearmlClientError(f"{uri}: cannot be deleted: {error}") from error
            return answer.status_code in (200, 204, 404)
        return bool(_helper(uri).delete(uri))

    def size(self, uri: str) -> Optional[int]:
        """Return a stored file's bytes; None when it is not there."""
        from clearml import StorageManager

        local = _local(uri)
        if local is not None:
            return local.stat().st_size if local.is_file() else None
        if uri.startswith(("http://", "https://")):
            # one byte of it: the official file server has no HEAD for files, but ranges
            with self._get(uri, {"Range": "bytes=0-0"}) as answer:
                if answer.status_code == 404:
                    return None
                if answer.status_code == 206:
                    return int(answer.headers["Content-Range"].rpartition("/")[2])
                if answer.status_code == 416:
                    return 0  # an empty file has no first byte
                if answer.status_code == 200:
                    return int(answer.headers.get("Content-Length", -1))
                raise ClearmlClientError(f"{uri}: the store says {answer.status_code} {answer.reason}")
        found = StorageManager.get_file_size_bytes(uri, silence_errors=True)
        return None if found is None else int(found)

    def fetch(self, uri: str, target: Path, size: int, stop: Optional[threading.Event] = None) -> None:
        """Copy a stored file to a local one; a transfer that breaks goes on where it broke.

        Args:
            uri: The stored file.
            target: The local one.
            size: Its bytes; 0 when they are not known.
            stop: Set by another thread when the work has become useless.

        Raises:
            ClearmlClientError: The file is not there, or what came is not of this size.
        """
        if not uri.startswith(("http://", "https://")):
            self._fetch_by_sdk(uri, target)
        else:
            self._fetch_by_http(uri, target, stop)
        got = target.stat().st_size
        if size and got != size:
            raise ClearmlClientError(f"{uri}: {got} bytes came, {size} were stored")

    def _fetch_by_http(self, uri: str, target: Path, stop: Optional[threading.Event]) -> None:
        import requests

        problem: Optional[Exception] = None
        for attempt in range(_TRIES):
            if problem is not None:
                time.sleep(min(8.0, 0.5 * 2**attempt))
            have = target.stat().st_size if target.exists() else 0
            headers = {"Range": f"bytes={have}-"} if have else {}
            try:
                with self._get(uri, headers) as answer:
                    if answer.status_code == 416 and have:
                        return
                    if answer.status_code not in (200, 206):
                        raise ClearmlClientError(
                            f"{uri}: the store says {answer.status_code} {answer.reason}{_elsewhere(uri)}"
                        )
                    with target.open("ab" if answer.status_code == 206 else "wb") as stream:
                        for data in answer.iter_content(_CHUNK_BYTES):
                            if stop is not None and stop.is_set():
                                raise ClearmlClientError("the download was stopped")
                            stream.write(data)
                return
            except requests.RequestException as error:
                problem = error
        raise ClearmlClientError(f"{uri}: the transfer broke {_TRIES} times: {problem}") from problem

    def _fetch_by_sdk(self, uri: str, target: Path) -> None:
        local = _local(uri)
        if local is not None:
            if not local.is_file():
                raise ClearmlClientError(f"{uri}: there is no such file")
            if target.exists():
                target.unlink()
            target.symlink_to(local)
            return
        try:
            done = _helper(uri).download_to_file(uri, str(target), overwrite_existing=True, verbose=False)
        except Exception as error:  # the SDK raises what the store's library raises
            raise ClearmlClientError(f"{uri}: the download failed: {error}") from error
        if not done:
            raise ClearmlClientError(f"{uri}: the download failed; the SDK does not say why")

    def open(self, uri: str, size: int) -> Optional[IO[bytes]]:
        """Open a stored file for reading in parts; None when its store gives it only whole.

        Args:
            uri: The stored file.
            size: Its bytes.
        """
        local = _local(uri)
        if local is not None:
            return local.open("rb") if local.is_file() else None
        if not size or not uri.startswith(("http://", "https://")):
            return None
        with self._get(uri, {"Range": "bytes=0-0"}) as answer:
            if answer.status_code != 206:
                return None
        return io.BufferedReader(RangeFile(self, uri, size), _RANGE_BYTES)

    def read_range(self, uri: str, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` up to, not with, ``end``.

        Raises:
            ClearmlClientError: The store does not give them.
        """
        import requests

        problem: Optional[Exception] = None
        for attempt in range(_TRIES):
            if problem is not None:
                time.sleep(min(8.0, 0.5 * 2**attempt))
            try:
                with self._get(uri, {"Range": f"bytes={start}-{end - 1}"}) as answer:
                    if answer.status_code != 206:
                        raise ClearmlClientError(f"{uri}: the store says {answer.status_code} {answer.reason}")
                    data: bytes = answer.content
            except requests.RequestException as error:
                problem = error
                continue
            if len(data) == end - start:
                return data
            problem = ClearmlClientError(f"{len(data)} of {end - start} bytes came")
        raise ClearmlClientError(f"{uri}: the transfer broke {_TRIES} times: {problem}") from problem

    def _get(self, uri: str, headers: Mapping[str, str]) -> Any:
        # identity: a compressed transfer would have other bytes than the ranges count
        own = {"Accept-Encoding": "identity", **headers, **self._headers(uri)}
        return self._http.get(uri, headers=own, stream=True, timeout=(_CONNECT_SECONDS, _READ_SECONDS))

    def _headers(self, uri: str) -> Dict[str, str]:
        """Return the token, for the site's own file server and for nobody else."""
        own = str(self._api.get_files_server_host()).rstrip("/")
        hosts = [own, *(host.rstrip("/") for host in getattr(self._api, "legacy_file_servers", None) or [])]
        if any(uri.startswith(host + "/") for host in hosts):
            headers: Dict[str, str] = self._api.add_auth_headers({})
            return headers
        return {}


def _helper(uri: str) -> Any:
    """Return the SDK's way to a store; StorageManager has no deletion and no download to a named file."""
    from clearml.storage.helper import StorageHelper

    return StorageHelper.get(uri)  # type: ignore[no-untyped-call]


def _local(uri: str) -> Optional[Path]:
    """Return the path of a file that is in a folder of this machine."""
    if uri.startswith("file://"):
        return Path(unquote(urlparse(uri).path))
    return Path(uri) if uri.startswith("/") else None


class RangeFile(io.RawIOBase):
    """A stored file that is read by ranges: what zipfile needs to take single members out of a pack."""

    def __init__(self, files: Files, uri: str, size: int) -> None:
        super().__init__()
        self._files = files
        self._uri = uri
        self._size = size
        self._position = 0
        self._tail = b""  # where a zip has its table of contents: one transfer for all that zipfile reads there

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the place."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read what follows."""
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        tail = max(0, self._size - _TAIL_BYTES)
        if self._position >= tail:
            if not self._tail:
                self._tail = self._files.read_range(self._uri, tail, self._size)
            data = self._tail[self._position - tail : end - tail]
        else:
            data = self._files.read_range(self._uri, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def artifact_uri(destination: str, project: str, name: str, task_id: str, key: str, file: str) -> str:
    """Return where an artifact's file is stored: ``<store>/<project>/<name>.<id>/artifacts/<key>/<file>``."""
    parts: Iterator[str] = (part.strip("/") for part in (project, f"{name}.{task_id}", "artifacts", key, file))
    return "/".join([destination.rstrip("/"), *(storable(part) for part in parts)])


def _elsewhere(uri: str) -> str:
    """Say that a file lies at another address than the site's, where this machine's keys are not sent."""
    from clearml.backend_api import Session

    files = str(Session.get_files_server_host() or "").rstrip("/")
    if not files or uri.startswith(files + "/"):
        return ""
    return (
        f"; it was stored under another address than this machine's file server {files}: whoever stored it has "
        "another api.files_server in clearml.conf; it must be one address for all of a site"
    )
