"""Making a version's folder on this machine: packs fetched and unpacked in parallel, each file checked on the way."""

from __future__ import annotations

import os
import threading
import zipfile
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from .. import _cache
from .._errors import ClearmlClientError
from ._remote import Artifact, Server
from .index import Entry, Index, Source
from .packs import Advance, Progress, Wanted, counting, extract, safe_path

__all__ = ["fill", "read_files"]

_WORTH_WHOLE = 0.5  # of a pack: who needs less of it takes its files by ranges


class _Job(NamedTuple):
    artifact: Artifact
    files: List[Wanted]


def fill(
    server: Server, index: Index, folder: Path, label: str, *, workers: int, progress: Optional[Progress] = None
) -> None:
    """Fill an empty folder with a version's files.

    Args:
        server: The site's server.
        index: What is in the version.
        folder: Where the files go.
        label: The version in messages, ``NAME@VERSION``.
        workers: Packs at a time.
        progress: Is told the bytes written.

    Raises:
        ClearmlClientError: The disk has no room, a pack is gone or damaged, or the store does not answer.
    """
    links = index.about.get("links")
    if links:
        raise ClearmlClientError(
            f"{label} has {links} external files (links to another store), which this client does not fetch: "
            "use `clearml-data get`"
        )
    jobs = _jobs(server, index.entries(), label)
    largest = sorted((job.artifact.size for job in jobs), reverse=True)[:workers]
    _cache.check_space(folder, index.bytes + sum(largest), index.files)
    # inside of the folder: what a kill leaves goes with it
    packs = folder / f".clearml-client-packs-{os.urandom(8).hex()}"
    packs.mkdir()
    stop = threading.Event()
    advance = counting(progress, index.bytes)

    def work(number: int, job: _Job) -> None:
        if not stop.is_set():
            _unpack(server, job, folder, packs / f"{number}.zip", advance, stop)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        running = [pool.submit(work, number, job) for number, job in enumerate(jobs)]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
        except BaseException:
            stop.set()
            for one in running:
                one.cancel()
            raise
    packs.rmdir()


def _jobs(server: Server, entries: Iterable[Entry], label: str) -> List[_Job]:
    by_source: Dict[Source, List[Wanted]] = {}
    for entry in entries:
        by_source.setdefault(entry.source, []).append(Wanted(safe_path(entry.path), entry.size, entry.sha256))
    artifacts = {id_: server.artifacts(id_) for id_ in {source.dataset_id for source in by_source}}
    jobs = []
    for source, files in by_source.items():
        artifact = artifacts[source.dataset_id].get(source.artifact)
        if artifact is None:
            raise ClearmlClientError(
                f"{label}: the pack {source.artifact} of version {source.dataset_id} is gone from the server, "
                f"and with it {len(files)} files: somebody deleted that version by other means than this client"
            )
        jobs.append(_Job(artifact, files))
    # the largest first: the last one to end should be a small one
    jobs.sort(key=lambda job: job.artifact.size, reverse=True)
    return jobs


def _unpack(
    server: Server, job: _Job, folder: Path, temporary: Path, progress: Optional[Advance], stop: threading.Event
) -> None:
    artifact = job.artifact
    origin = f"the pack {artifact.uri}"
    try:
        if sum(file.size for file in job.files) < artifact.size * _WORTH_WHOLE:
            stream = server.files.open(artifact.uri, artifact.size)
            if stream is not None:
                with stream, zipfile.ZipFile(stream) as archive:
                    extract(archive, job.files, folder, origin=origin, progress=progress, stop=stop)
                return
        server.files.fetch(artifact.uri, temporary, artifact.size, stop)
        with zipfile.ZipFile(temporary) as archive:
            extract(archive, job.files, folder, origin=origin, progress=progress, stop=stop)
    except zipfile.BadZipFile as error:
        raise ClearmlClientError(f"{origin} is no zip: the stored dataset is damaged ({error})") from error
    except OSError as error:
        raise ClearmlClientError(f"{folder}: {error.strerror or error}: nothing was kept; run it again") from error
    finally:
        if temporary.is_symlink() or temporary.exists():
            temporary.unlink()


def read_files(server: Server, entries: Sequence[Entry], folder: Path, label: str) -> None:
    """Fetch a few files alone into a folder: by ranges where the store gives them, else out of whole packs."""
    for number, job in enumerate(_jobs(server, entries, label)):
        stream = server.files.open(job.artifact.uri, job.artifact.size)
        if stream is None:
            _unpack(server, job, folder, folder / f".pack-{number}.zip", None, threading.Event())
            continue
        with stream, zipfile.ZipFile(stream) as archive:
            extract(archive, job.files, folder, origin=f"the pack {job.artifact.uri}")
