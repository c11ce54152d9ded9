# Part of Trainyard.
"""Send agents/probe.py to workers, all at once, and compare the GPUs that it sees with those they are pinned to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["Probes", "table"]

Json = dict[str, Any]

PROJECT = "Trainyard/probes"
ENDED = ("completed", "published", "closed", "failed", "stopped")
# The agent does not take from a queue with this tag.
PAUSED = "force_workers:off"
# Tags by which agents/worker.py says that it takes nothing.
DRAINED = {"draining", "drained"}
NO_GPU = (None, "", "none", "void")
POLL_SEC = 1.0
# A worker that has not reported for so long is gone.
LAST_SEEN_SEC = 600


class Probes:
    """Probes on a server that ``call`` calls; ``refused`` is the exception with which the server says no."""

    def __init__(
        self, call: Callable[[str, Json], Json], refused: type[Exception], web_url: str, *, train_seconds: float = 0
    ) -> None:
        self._call, self._refused = call, refused
        self._web_url = web_url.rstrip("/")
        self._train_seconds = train_seconds
        self._project = ""

    def run(self, workers: Sequence[Json], script: str, image: str, timeout: float) -> list[Json]:
        """Probe each worker (``id``, ``queue``, ``gpus``, ``uuids``) and give a row for each, in the same order.

        A row's ``state`` is ok, wrong (it sees others than its GPUs), failed (the probe did not come to its end) or
        waiting (the worker had no time for it). Probes that are of no more use are deleted; wrong and failed ones stay.
        """
        rows = [self._row(worker) for worker in workers]
        try:
            self._submit(rows, script, image)
            self._wait(rows, timeout)
        except BaseException:
            for row in rows:
                if row["task"] and not row["state"]:
                    self._quietly("tasks.dequeue", task=row["task"])
                    self._quietly("tasks.delete", task=row["task"])  # refused when it runs: then it goes on to its end
            raise
        for row in rows:
            if not row["state"]:
                self._read(row)
        tell_shared(rows)
        for row in rows:
            if row["state"] in ("ok", "waiting") and row["task"]:
                self._quietly("tasks.delete", task=row["task"], force=True)
                row["task"] = row["url"] = ""
            elif row["url"]:
                row["message"] += f"; look at {row['url']}"
        return rows

    # ------------------------------------------------------------ sending

    @staticmethod
    def _row(worker: Json) -> Json:
        gpus, uuids = [str(gpu) for gpu in worker["gpus"]], list(worker.get("uuids") or [])
        if not uuids and all(is_uuid(gpu) for gpu in gpus):
            uuids = gpus
        return {
            "worker": worker["id"],
            "queue": worker["queue"],
            "gpus": gpus,
            "uuids": uuids,
            "state": "",
            "message": "",
            "proof": "",
            "seen": [],
            "report": {},
            "task": "",
            "url": "",
        }

    def _submit(self, rows: list[Json], script: str, image: str) -> None:
        queues = self._call("queues.get_all", {"only_fields": ["id", "name", "tags"]}).get("queues") or []
        queues = {queue["name"]: queue for queue in queues}
        known = self._workers()
        for row in rows:
            queue = queues.get(row["queue"])
            if queue is None:
                end(row, "failed", f"there is no queue {row['queue']!r}; run ansible/nodes.yml, which creates it")
            elif row["worker"] not in known:
                name = row["worker"].split(":")[0].lower()
                end(row, "failed", f"the server does not know it; look at: docker logs clearml-agent-{name}-agent-1")
            elif DRAINED & set(known[row["worker"]].get("tags") or []):
                end(row, "waiting", "not probed: drained")
            elif PAUSED in (queue.get("tags") or []):
                end(row, "waiting", f"not probed: the queue {row['queue']} is paused (tag {PAUSED})")
            else:
                row["task"] = self._create(row["worker"], script, image)
                page = f"projects/{self._project}/tasks/{row['task']}/output/log"
                row["url"] = f"{self._web_url}/{page}"
        # Only now, so that they start together.
        for row in rows:
            if row["task"]:
                self._call("tasks.enqueue", {"task": row["task"], "queue": queues[row["queue"]]["id"]})

    def _workers(self) -> dict[str, Json]:
        """Give the workers that the server knows, by id."""
        workers = self._call("workers.get_all", {"last_seen": LAST_SEEN_SEC}).get("workers") or []
        return {worker["id"]: worker for worker in workers}

    def _find_project(self) -> str:
        found = self._call("projects.get_all", {"name": f"^{PROJECT}$", "only_fields": ["id"]})["projects"]
        return str(found[0]["id"]) if found else ""

    def _make_project(self) -> str:
        made = {"name": PROJECT, "description": "Which GPUs the workers see"}
        try:
            return str(self._call("projects.create", made)["id"])
        except self._refused:
            # Another node that is added at the same time was faster.
            found = self._find_project()
            if not found:
                raise
            return found

    def _create(self, worker: str, script: str, image: str) -> str:
        if not self._project:
            self._project = self._find_project() or self._make_project()
        seconds = {"section": "probe", "name": "train_seconds", "value": str(self._train_seconds)}
        task = {
            "name": f"probe of {worker}",
            "type": "testing",
            "project": self._project,
            # As Task.create stores a script that is in no repository: the code is the diff.
            "script": {
                "repository": "",
                "working_dir": ".",
                "entry_point": "probe.py",
                "binary": "python3",
                "diff": script,
                # For an image without clearml; one that has the agent is used as it is.
                "requirements": {"pip": "clearml"},
            },
            "hyperparams": {"probe": {"train_seconds": seconds}},
        }
        if image:
            task["container"] = {"image": image}
        return str(self._call("tasks.create", task)["id"])

    # ------------------------------------------------------------ waiting

    def _wait(self, rows: list[Json], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        busy: set[str] = set()
        while True:
            own = {row["task"]: row for row in rows if row["task"] and not row["state"]}
            if not own:
                return
            found = self._call("tasks.get_all", {"id": list(own), "only_fields": ["id", "status"]})["tasks"]
            ended = {task["id"] for task in found if task["status"] in ENDED}
            left = [row for task, row in own.items() if task not in ended]
            if not left:
                return
            runs = {worker: (about.get("task") or {}).get("id") for worker, about in self._workers().items()}
            busy |= {worker for worker, task in runs.items() if task and task not in own}
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SEC)
        for row in left:
            self._give_up(row, row["worker"] in busy, timeout)

    def _give_up(self, row: Json, busy: bool, timeout: float) -> None:
        """Take a probe that has not ended back."""
        if self._task(row, "status")["status"] == "queued":
            self._quietly("tasks.dequeue", task=row["task"])
        status = self._task(row, "status")["status"]
        if status in ENDED:
            return
        if status == "in_progress":
            self._quietly("tasks.stop", task=row["task"])
            end(row, "failed", f"its probe runs, but did not end within {timeout:g} s")
        elif busy:
            end(row, "waiting", "not probed: busy")
        else:
            end(
                row,
                "failed",
                f"it runs nothing, but did not take its probe from the queue {row['queue']} within {timeout:g} s",
            )

    def _task(self, row: Json, *fields: str) -> Json:
        found = self._call("tasks.get_all", {"id": [row["task"]], "only_fields": list(fields)})["tasks"]
        if not found:
            raise self._refused(f"the probe of {row['worker']} was deleted by somebody else")
        return dict(found[0])

    def _quietly(self, endpoint: str, **arguments: Any) -> None:
        # Refused means that it went on meanwhile; whoever needs to know looks at the task again.
        with suppress(self._refused):
            self._call(endpoint, arguments)

    # ------------------------------------------------------------ reading

    def _read(self, row: Json) -> None:
        task = self._task(row, "status", "hyperparams", "last_worker")
        if task["status"] not in ("completed", "published", "closed"):
            return end(row, "failed", f"its probe ended as {task['status']}")
        ran = task.get("last_worker") or row["worker"]
        if ran != row["worker"]:
            return end(row, "failed", f"{ran} took its probe: the queue {row['queue']} is not its own")
        try:
            row["report"] = json.loads(task["hyperparams"]["properties"]["gpus"]["value"])
        except (KeyError, TypeError, ValueError):
            return end(row, "failed", "its probe ended without a report")
        judge(row, trained=self._train_seconds > 0)


def end(row: Json, state: str, message: str) -> None:
    """Note what became of a worker's probe."""
    row["state"] = state
    row["message"] = message if state == "waiting" else f"{row['worker']} (pinned to {pin(row)}): {message}"


def pin(row: Json) -> str:
    """Say what a worker is pinned to."""
    if not row["gpus"]:
        return "no GPU"
    known = row["uuids"] if row["uuids"] != row["gpus"] else []
    return f"GPU {','.join(row['gpus'])}" + (f" = {','.join(known)}" if known else "")


def is_uuid(text: str) -> bool:
    """Tell a UUID from an index."""
    return "-" in text


def bare(uuid: str) -> str:
    """Give a UUID as every source writes it: without GPU- or MIG-, in small letters."""
    head, _, tail = uuid.partition("-")
    return (tail if head in ("GPU", "MIG") else uuid).lower()


def judge(row: Json, trained: bool) -> None:
    """Compare what a probe saw with the worker's GPUs; ``trained``: it must have trained on them too."""
    report = row["report"]
    smi = report["smi"]
    names = {bare(gpu["uuid"]): gpu["uuid"] for gpu in smi or []}
    sources = {"nvidia-smi": smi and [gpu["uuid"] for gpu in smi], "torch": report["torch"], "CUDA": report["cuda"]}
    sources = {
        name: [names.get(bare(uuid), uuid) for uuid in uuids] for name, uuids in sources.items() if uuids is not None
    }
    told = f"NVIDIA_VISIBLE_DEVICES is {report['visible'] or 'not set'}"
    row["seen"] = next((uuids for uuids in sources.values() if uuids and all(uuids)), [])
    if not row["gpus"]:
        seeing = [f"{name} sees {' '.join(uuids)}" for name, uuids in sources.items() if uuids]
        if seeing or report["visible"] not in NO_GPU:
            return end(row, "wrong", ", ".join([*seeing, told]))
        row["state"], row["proof"] = "ok", "none seen"
        return None
    if report["errors"]:
        return end(row, "wrong", "; ".join(report["errors"]))
    if not any(sources.values()):
        asked = ", ".join(sources) or "the container has neither nvidia-smi nor torch nor libcuda"
        return end(row, "wrong", f"saw no GPU ({asked}); {told}")
    described = ", ".join(f"{name} sees {' '.join(uuids) or 'none'}" for name, uuids in sources.items())
    # An old torch counts GPUs, but does not tell their UUIDs.
    if (
        len({len(uuids) for uuids in sources.values()}) > 1
        or len({frozenset(u) for u in sources.values() if all(u)}) > 1
    ):
        return end(row, "wrong", f"not all see the same: {described}")
    if len(row["seen"]) != len(row["gpus"]):
        return end(row, "wrong", f"saw {len(row['seen'])} GPUs: {described}; {told}")
    if trained and not report["trained"]:
        return end(row, "wrong", f"did not train: neither torch nor libcuda has a GPU; {described}")
    visible = (report["visible"] or "").split(",")
    if row["uuids"]:
        row["proof"] = "UUID"
        right = {bare(uuid) for uuid in row["uuids"]} == {bare(uuid) for uuid in row["seen"]}
    elif all(device.isdigit() for device in visible):
        row["proof"] = "index"
        right = sorted(visible) == sorted(row["gpus"])
    else:  # the container toolkit in CDI mode writes void
        row["proof"] = "count"
        right = True
    if not right:
        return end(row, "wrong", f"{described}; {told}")
    row["state"] = "ok"
    return None


def tell_shared(rows: list[Json]) -> None:
    """Mark workers that saw one and the same GPU."""
    owners: dict[str, list[Json]] = {}
    for row in rows:
        for uuid in row["seen"]:
            owners.setdefault(bare(uuid), []).append(row)
    for sharing in owners.values():
        for row in sharing:
            others = [other["worker"] for other in sharing if other is not row]
            if others and row["state"] == "ok":
                end(row, "wrong", f"saw {' '.join(row['seen'])}, which {', '.join(others)} saw too")


def table(rows: list[Json]) -> list[str]:
    """Give the rows as lines of text."""
    head = ("worker", "pinned to", "NVIDIA_VISIBLE_DEVICES", "saw", "result")
    lines = [head]
    for row in rows:
        seen = " ".join(row["seen"]) or ("none" if row["report"] else "")
        result = {"ok": f"ok, by {row['proof']}" if row["gpus"] else "ok", "waiting": row["message"]}
        visible = row["report"].get("visible") or ""
        lines.append((row["worker"], pin(row), visible, seen, result.get(row["state"], row["state"].upper())))
    wide = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(text.ljust(wide[column]) for column, text in enumerate(line)).rstrip() for line in lines]
