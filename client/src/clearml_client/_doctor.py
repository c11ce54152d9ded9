"""Whether this machine can train with the site: what ``clearml-client doctor`` looks at."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

from ._config import image_for, load
from ._errors import ClearmlClientError
from ._git import git
from ._git._remote import ASK_SECONDS, recorded_address, shown
from ._git._run import remote_environment, run
from ._server import check_server, configured, reached

__all__ = ["Finding", "examine"]

FREE_BYTES = 10 * 1024**3
"""Less free space than this in a cache is worth a word."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: str
    """``ok``, ``warning`` or ``bad``: nothing will work before it is mended."""
    told: str


def examine() -> List[Finding]:
    """Look at configuration, keys, files, queue, image, cache and git, in this order.

    What needs something that is bad is left out: without a configuration there are no keys to try.
    """
    found = [_configuration()]
    if found[0].state == "ok":
        found.append(_keys())
        if found[-1].state != "bad":
            found += [_files(), *_queue_and_image()]
    return [*found, *_caches(), *_git()]


def _configuration() -> Finding:
    from clearml.backend_config.defs import get_config_file

    if os.environ.get("CLEARML_OFFLINE_MODE", "0") not in ("", "0"):
        return Finding("configuration", "warning", "CLEARML_OFFLINE_MODE is set: nothing reaches the server")
    try:
        host = configured()
    except ClearmlClientError as error:
        return Finding("configuration", "bad", str(error))
    path = Path(get_config_file()).expanduser()
    where = str(path) if path.exists() and not os.environ.get("CLEARML_API_HOST") else "the environment"
    return Finding("configuration", "ok", "{} names {}".format(where, host))


def _keys() -> Finding:
    from clearml.backend_api import Session

    started = time.monotonic()
    try:
        check_server()
        took = (time.monotonic() - started) * 1000
        user = _ask("users", "get_current_user")["user"]
    except ClearmlClientError as error:
        return Finding("keys", "bad", str(error))
    return Finding(
        "keys", "ok", "you are {} ({:.0f} ms to {})".format(user.get("name"), took, Session.get_api_server_host())
    )


def _files() -> Finding:
    from clearml.backend_api import Session

    host = Session.get_files_server_host()
    try:
        answer = reached(host, "the file server at {}".format(host))
    except ClearmlClientError as error:
        return Finding("files", "bad", "{}; artifacts cannot be kept".format(error))
    state = "bad" if answer.status_code >= 500 else "ok"
    return Finding("files", state, "{} answers with {}".format(host, answer.status_code))


def _queue_and_image() -> List[Finding]:
    queues = {str(queue["name"]): str(queue["id"]) for queue in _ask("queues", "get_all")["queues"]}
    served = _served()
    try:
        settings = load()
        image = image_for(settings)
    except ClearmlClientError as error:
        return [Finding("pyproject.toml", "bad", str(error))]
    found = []
    queue = os.environ.get("CLEARML_QUEUE") or settings.queue
    if not queue:
        open_queues = sorted(name for name in queues if name in served)
        found.append(
            Finding(
                "queue", "ok", "none is chosen, scripts run here; served: {}".format(", ".join(open_queues) or "none")
            )
        )
    elif queue not in queues:
        found.append(
            Finding("queue", "bad", "no queue {!r}; there is {}".format(queue, ", ".join(sorted(queues)) or "none"))
        )
    elif queue not in served:
        found.append(Finding("queue", "warning", "{} is there, and no worker serves it now".format(queue)))
    else:
        found.append(Finding("queue", "ok", "{}, served by {}".format(queue, ", ".join(served[queue]))))
    found.append(Finding("image", "ok", image or "the queue's default image"))
    return found


def _served() -> Dict[str, List[str]]:
    """Return the workers of each queue that has some."""
    served: Dict[str, List[str]] = {}
    for worker in _ask("workers", "get_all", last_seen=60)["workers"]:
        for queue in worker.get("queues") or []:
            served.setdefault(str(queue.get("name")), []).append(str(worker["id"]))
    return served


def _caches() -> List[Finding]:
    from ._cache import cache_root

    found = []
    for subject, path in (("cache", Path(cache_root())), ("DVC cache", Path("/dvc_cache"))):
        if subject == "DVC cache" and not path.exists():
            found.append(Finding(subject, "ok", "this machine shares none ({} is not there)".format(path)))
            continue
        folder = path
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(str(folder)).free
        if not os.access(str(folder), os.W_OK):
            told = "{} is not yours to write: join its group ({})".format(folder, _group_of(folder))
            found.append(Finding(subject, "bad", told))
        elif free < FREE_BYTES:
            found.append(Finding(subject, "warning", "{} has {:.1f} GB left".format(path, free / 1e9)))
        else:
            found.append(Finding(subject, "ok", "{}, {:.0f} GB left".format(path, free / 1e9)))
    return found


def _group_of(folder: Path) -> str:
    try:
        return folder.group()
    except KeyError:
        return str(folder.stat().st_gid)


def _git() -> List[Finding]:
    if shutil.which("git") is None:
        return [Finding("git", "bad", "there is no git on this machine: install it")]
    if git(Path.cwd(), "rev-parse", "--show-toplevel") is None:
        return [
            Finding("git", "warning", "{} is in no repository: scripts here cannot run in a queue".format(Path.cwd()))
        ]
    address = recorded_address(Path.cwd())
    if not address:
        return [Finding("git", "warning", "the repository has no remote that nodes could fetch from")]
    remote = shown(address)
    done = run(Path.cwd(), "ls-remote", "--", address, timeout=ASK_SECONDS, more=remote_environment(Path.cwd()))
    if done.code:
        told = "{} cannot be read: {}; try `git ls-remote {}`".format(remote, done.told, remote)
        return [Finding("git", "bad", told)]
    refs = [line.split("\t", 1)[-1] for line in os.fsdecode(done.out).splitlines()]
    branches = [ref[len("refs/heads/") :] for ref in refs if ref.startswith("refs/heads/")]
    if not branches:
        return [Finding("git", "warning", "{} has no branch yet: push one before a run in a queue".format(remote))]
    if "HEAD" not in refs:
        default = next((name for name in ("main", "master") if name in branches), branches[0])
        return [
            Finding(
                "git",
                "warning",
                "{} can be read, and its HEAD names no branch: a run goes by its commit, a clone without one gets no "
                "files. Set the default branch on the repository's page, or in a bare repository by "
                "`git symbolic-ref HEAD refs/heads/{}`".format(remote, default),
            )
        ]
    head = git(Path.cwd(), "rev-parse", "HEAD") or ""
    if not git(Path.cwd(), "branch", "--remotes", "--contains", head):
        return [Finding("git", "warning", "commit {} is not pushed: push it before a run in a queue".format(head[:12]))]
    return [Finding("git", "ok", "{}, commit {} is there".format(remote, head[:12]))]


def _ask(service: str, action: str, **arguments: Any) -> Dict[str, Any]:
    from ._lookup import call

    return call(service, action, **arguments)
