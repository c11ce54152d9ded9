"""Who may make a version: one upload at a time, and never over a version that exists.

A version in the making is a task of the dataset's hidden project that has the system tag ``archived``: the SDK, the
server's pages and this client leave it out, until the last step of an upload replaces that tag with ``dataset``.

The API has no lock and no unique field, and the times of making cannot decide: the server notes them before it stores
the task, so a younger one may be seen first. Therefore each upload

1. makes a task that names its version and says that it is choosing (one call),
2. looks for others: it gives way to one that holds the version, and to a choosing one with a smaller id; for choosing
   ones with a larger id it waits until they gave way, or hold,
3. says that it holds the version.

Two cannot hold it: both would have found nobody in step 2, so each would have looked before the other's step 1.
"""

from __future__ import annotations

import calendar
import getpass
import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from .._errors import ClearmlClientError
from ._remote import Server, Task, artifact_uri, read_artifacts
from .versions import version_key

__all__ = ["CLAIM", "Heart", "check_free", "claim", "process_mark", "publish", "remove_task", "resume"]

CLAIM = "clearml_client_upload"  # key in the task's runtime section
PENDING_TAG = "archived"
DATASET_TAG = "dataset"
SILENCE_SECONDS = 300.0  # an upload of another machine that gave no sign of life for so long is dead
_PING_SECONDS = 30.0
_CHOOSING_SECONDS = 30.0


# ---------------------------------------------------------------- signs of life


def process_mark() -> Dict[str, Any]:
    """Return what tells this process from all others, also from one that got its number later."""
    return {
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
        "machine": _machine(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not be in its passwd
        return str(os.getuid())


def _machine() -> str:
    """Return the running kernel's id and the process namespace; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - Path.readlink is of Python 3.9
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; empty when there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def _alive(task: Task) -> bool:
    """Say whether the process that makes a version may still be at it."""
    mark = task.runtime.get(CLAIM) or {}
    if mark.get("machine") and mark.get("machine") == _machine():
        return bool(mark.get("start")) and _start_of(int(mark["pid"])) == mark["start"]
    return time.time() - _seconds(task.last_update) < SILENCE_SECONDS


def _seconds(moment: str) -> float:
    """Return a time of the server as seconds since 1970."""
    found = re.match(r"(\d+)-(\d+)-(\d+)[T ](\d+):(\d+):(\d+)", moment)
    if found is None:
        return time.time()
    return float(calendar.timegm((*map(int, found.groups()), 0, 0, 0)))


class Heart:
    """Tells the server every half minute that the upload lives."""

    def __init__(self, server: Server, task_id: str) -> None:
        self._server = server
        self._task_id = task_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(_PING_SECONDS):
            try:
                self._server.call("tasks.ping", task=self._task_id)
            except ClearmlClientError:
                continue  # the upload itself finds out when the server stays away


# ---------------------------------------------------------------- claims


def _rivals(server: Server, project_id: str, version: str) -> List[Task]:
    key = version_key(version)
    tasks = [Task.read(document) for document in server.tasks(project=[project_id])]
    return [task for task in tasks if task.version and version_key(task.version) == key]


def check_free(
    server: Server, project_id: str, name: str, version: str, own: str = "", *, holding: bool = False
) -> bool:
    """Look whether a version may be made; remove what dead uploads left of it.

    Args:
        server: The site's server.
        project_id: The dataset's hidden project.
        name: The dataset's name.
        version: The version.
        own: The id of this upload's task, when it has one.
        holding: Whether that task holds the version already.

    Returns:
        Whether nobody else is choosing; if not, look again.

    Raises:
        ClearmlClientError: The version exists, or another upload is making it.
    """
    alone = True
    for task in _rivals(server, project_id, version):
        if task.id == own:
            continue
        if task.whole:
            written = "" if task.version == version else f" (as {task.version}, which is the same version)"
            raise ClearmlClientError(
                f"{name}@{version} exists{written}: versions are never overwritten; choose a higher version"
            )
        mark = task.runtime.get(CLAIM)
        if mark is None:
            raise ClearmlClientError(
                f"{name}@{version}: another program began this version (task {task.id}) and did not finish it: "
                "finish or delete it there, or choose another version"
            )
        if not _alive(task):
            remove_task(server, task.id)
        elif mark.get("choosing") and (holding or (own and own < task.id)):
            alone = False
        else:
            raise ClearmlClientError(
                f"{name}@{version} is being uploaded by {mark.get('user')} on {mark.get('host')} "
                f"(process {mark.get('pid')}): wait for its end, or choose another version"
            )
    return alone


def claim(
    server: Server,
    *,
    project_id: str,
    name: str,
    version: str,
    tags: Sequence[str],
    parents: Sequence[str],
    comment: str,
) -> Task:
    """Make the task of a version that is going to be uploaded.

    Raises:
        ClearmlClientError: The version exists, or somebody else is making it.
    """
    check_free(server, project_id, name, version)
    properties = {"version": {"section": "properties", "name": "version", "value": version}}
    mark = {**process_mark(), "parents": list(parents)}
    runtime = {"version": version, "orig_dataset_name": name}
    made = server.call(
        "tasks.create",
        name=name,
        type="data_processing",
        project=project_id,
        system_tags=[PENDING_TAG],
        tags=list(tags),
        comment=comment,
        output_dest=server.files_address,
        hyperparams={"properties": properties},
        runtime={**runtime, CLAIM: {**mark, "choosing": True}},
    )
    task_id = str(made["id"])
    try:
        deadline = time.monotonic() + _CHOOSING_SECONDS
        while not check_free(server, project_id, name, version, task_id):
            if time.monotonic() > deadline:
                raise ClearmlClientError(f"{name}@{version}: another upload of it has just begun: wait for its end")
            time.sleep(0.1)
        server.call(
            "tasks.edit", task=task_id, force=True, runtime={**runtime, "orig_dataset_id": task_id, CLAIM: mark}
        )
        server.call("tasks.started", task=task_id, force=True)
        document = server.task(task_id)
        if document is None:
            raise ClearmlClientError(f"{name}@{version}: somebody deleted the task {task_id} of this upload: try again")
        return Task.read(document)
    except BaseException:
        remove_task(server, task_id)
        raise


def resume(server: Server, task_id: str, *, name: str, tags: Sequence[str], parents: Sequence[str]) -> Optional[Task]:
    """Take up a half version again; None when it is gone.

    Raises:
        ClearmlClientError: The version exists meanwhile, or somebody else is making it.
    """
    document = server.task(task_id)
    if document is None:
        return None
    task = Task.read(document)
    if task.whole or CLAIM not in task.runtime:
        return None
    if task.runtime[CLAIM].get("choosing"):  # it did not get so far as to hold anything
        remove_task(server, task_id)
        return None
    mark = {**process_mark(), "parents": list(parents)}
    server.call("tasks.started", task=task_id, force=True)
    server.call("tasks.edit", task=task_id, force=True, runtime={**task.runtime, CLAIM: mark}, tags=list(tags))
    check_free(server, task.project, name, task.version, task.id, holding=True)
    return task


def publish(server: Server, task_id: str) -> None:
    """Show a whole version to everybody: one call, after all else."""
    server.call("tasks.update", task=task_id, system_tags=[DATASET_TAG])


def remove_task(server: Server, task_id: str) -> None:
    """Delete a version's task and its files; hidden first, so that nobody opens what is half gone."""
    document = server.task(task_id)
    if document is None:
        return
    system_tags = sorted({*(document.get("system_tags") or []), PENDING_TAG})
    server.call("tasks.update", task=task_id, system_tags=system_tags)
    artifacts = read_artifacts(document)
    for artifact in artifacts.values():
        if artifact.uri and not server.files.delete(artifact.uri):
            raise ClearmlClientError(
                f"{artifact.uri}: the store did not delete it; the version is hidden, run the same command again"
            )
    for uri in _unregistered(server, document, len(artifacts)):
        server.files.delete(uri)
    server.call("tasks.delete", task=task_id, force=True)


def _unregistered(server: Server, document: Dict[str, Any], count: int) -> List[str]:
    """Return where packs may be that were stored, but not told to the server before the upload was killed."""
    runtime = document.get("runtime") or {}
    destination = (document.get("output") or {}).get("destination") or server.files_address
    if CLAIM not in runtime or not destination.startswith(("http://", "https://")):
        return []
    project = server.project_names([document["project"]]).get(document["project"], "")
    known = read_artifacts(document)
    keys = [pack_key(number) for number in range(count + 8)]
    places = ((key, pack_file(document["id"], key)) for key in keys if key not in known)
    return [artifact_uri(destination, project, document["name"], document["id"], key, file) for key, file in places]


def pack_key(number: int) -> str:
    """Return a pack's artifact name: ``data``, ``data_001``, ..., where the SDK looks for them."""
    return "data" if number == 0 else f"data_{number:03d}"


def pack_file(task_id: str, key: str) -> str:
    """Return a pack's file name."""
    return f"dataset.{task_id}.{key}.zip"
