"""``workers.*``: the agents that are there, what they do, and how their machines feel."""

from __future__ import annotations

import math
import sqlite3
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import ConfigDict, Field

from .. import _errors as errors
from .._bounds import load_texts
from .._clock import ago, now, read_time
from .._collections import PROJECTS, QUEUES, TASKS
from .._patterns import matches, time_limit, wildcard_pattern
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc
from ..domain.leases import adopt_lease, return_leases
from ..domain.tasks import get_task
from ..domain.workers import worker_key

_STATS_GRAIN_MS = 30_000  # at most one sample of each kind per worker and half minute


class StatsModel(Request):
    """How the machine feels: percentages, degrees, megabytes; lists have an entry per core or GPU.

    A measure of a newer agent is passed over: a report must not fail, the worker would be taken for dead.
    """

    model_config = ConfigDict(extra="ignore")

    cpu_usage: list[float] | None = None
    cpu_temperature: list[float] | None = None
    gpu_usage: list[float] | None = None
    gpu_temperature: list[float] | None = None
    gpu_memory_free: list[float] | None = None
    gpu_memory_used: list[float] | None = None
    memory_used: float | None = None
    memory_free: float | None = None
    network_tx: float | None = None
    network_rx: float | None = None
    disk_free_home: float | None = None
    disk_free_temp: float | None = None
    disk_read: float | None = None
    disk_write: float | None = None
    disk_free_percent: float | None = None


class RegisterRequest(Request):
    """A worker: its id, the queues that it serves, and the seconds of silence after which it is gone."""

    worker: str = Field(min_length=1)
    timeout: int | None = Field(default=None, ge=1, le=2**31)
    queues: list[str] = []
    tags: list[str] = []
    system_tags: list[str] = []
    resources: dict[str, Any] | None = None


def _save(db: sqlite3.Connection, call: Call, request: RegisterRequest) -> None:
    moment = now()
    timeout = request.timeout or call.settings.worker_timeout_sec
    db.execute(
        "INSERT INTO worker (id, user, ip, queues, tags, system_tags, registered, timeout, last_seen)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET user = excluded.user, ip = excluded.ip, queues = excluded.queues,"
        " tags = excluded.tags, system_tags = excluded.system_tags, registered = excluded.registered,"
        " timeout = excluded.timeout, last_seen = excluded.last_seen, task = NULL, queue = NULL",
        (
            request.worker,
            call.identity.user,
            call.ip,
            orjson.dumps(request.queues).decode(),
            orjson.dumps(request.tags).decode(),
            orjson.dumps(request.system_tags).decode(),
            moment,
            timeout,
            moment,
        ),
    )


@endpoint("workers.register", since="2.4")
def register(call: Call, request: RegisterRequest) -> Doc:
    """Announce a worker."""
    with call.db.write() as db:
        unknown = [queue for queue in request.queues if QUEUES.get(db, queue) is None]
        if unknown:
            raise errors.INVALID_QUEUE_ID(ids=unknown)
        _save(db, call, request)
        return_leases(db, taken_before="", worker=request.worker)  # a new process holds nothing
    return {}


class UnregisterRequest(Request):
    """Which worker; its queues are of no account."""

    worker: str
    queues: list[str] | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None


@endpoint("workers.unregister", since="2.4")
def unregister(call: Call, request: UnregisterRequest) -> Doc:
    """Take leave of a worker; a task that it took and never started goes back to its queue."""
    with call.db.write() as db:
        db.execute("DELETE FROM worker WHERE id = ?", (request.worker,))
        return_leases(db, taken_before="", worker=request.worker)
    return {}


class StatusRequest(Request):
    """What a worker does now; ``timestamp`` in milliseconds."""

    worker: str = Field(min_length=1)
    timestamp: int = Field(ge=0, le=2**53)
    task: str | None = None
    queue: str | None = None
    queues: list[str] | None = None
    machine_stats: StatsModel | None = None
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    is_daemon: bool | None = None


@endpoint("workers.status_report", since="2.4")
def status_report(call: Call, request: StatusRequest) -> Doc:
    """Note what a worker does; one that is unknown is registered by it."""
    moment = now()
    with call.db.write() as db:
        if db.execute("SELECT 1 FROM worker WHERE id = ?", (request.worker,)).fetchone() is None:
            known = [queue for queue in request.queues or [] if QUEUES.get(db, queue) is not None]
            _save(db, call, RegisterRequest(worker=request.worker, queues=known))
        task: Doc | None = None
        if request.task:
            task = get_task(db, request.task)
            task |= {
                "last_worker": request.worker,
                "last_worker_report": moment,
                "last_update": moment,
                "last_change": moment,
                "last_changed_by": call.identity.user,
            }
            TASKS.put(db, task)
            adopt_lease(db, request.task, request.worker)
        updates: Doc = {
            "ip": call.ip,
            "last_seen": moment,
            "last_report": moment,
            "task": request.task,
            "queue": request.queue,
        }
        if request.queues:
            updates["queues"] = orjson.dumps(request.queues).decode()
        if request.tags is not None:
            updates["tags"] = orjson.dumps(request.tags).decode()
        if request.system_tags is not None:
            updates["system_tags"] = orjson.dumps(request.system_tags).decode()
        if request.machine_stats:
            stats = request.machine_stats.model_dump(exclude_none=True)
            updates["stats"] = orjson.dumps(stats).decode()
            _store_stats(db, request.worker, request.timestamp, stats)
        names = ", ".join(f"{name} = ?" for name in updates)
        db.execute(f"UPDATE worker SET {names} WHERE id = ?", (*updates.values(), request.worker))
    return {}


def _store_stats(db: sqlite3.Connection, worker: str, timestamp: int, stats: Doc) -> None:
    time = timestamp - timestamp % _STATS_GRAIN_MS
    rows = []
    for metric, value in stats.items():
        values = [v for v in (value if isinstance(value, list) else [value]) if math.isfinite(v)]
        if values:
            rows.append((worker, time, metric, sum(values) / len(values)))
    db.executemany("INSERT OR REPLACE INTO worker_stat (worker, time, metric, value) VALUES (?, ?, ?, ?)", rows)


class GetAllRequest(Request):
    """Which workers: seen within ``last_seen`` seconds, with one of the tags, named like the pattern (``*``, ``?``)."""

    last_seen: int | None = Field(default=3600, ge=0, le=2**31)
    tags: list[str] | None = None
    system_tags: list[str] | None = None
    worker_pattern: str | None = None


def _select(db: sqlite3.Connection, request: GetAllRequest) -> list[sqlite3.Row]:
    since = ago(request.last_seen) if request.last_seen else ""
    rows = db.execute("SELECT * FROM worker WHERE last_seen >= ? ORDER BY id", (since,)).fetchall()
    for column, wanted in (("tags", request.tags), ("system_tags", request.system_tags)):
        include = {tag for tag in wanted or () if not tag.startswith("-")}
        exclude = {tag[1:] for tag in wanted or () if tag.startswith("-")}
        if include:
            rows = [row for row in rows if include & set(load_texts(row[column]))]
        if exclude:
            rows = [row for row in rows if not exclude & set(load_texts(row[column]))]
    if request.worker_pattern:
        pattern = wildcard_pattern(request.worker_pattern, "worker_pattern")
        with time_limit():
            rows = [row for row in rows if matches(pattern, row["id"])]
    return rows


def _queue_info(db: sqlite3.Connection, id_: str) -> Doc:
    queue = QUEUES.get(db, id_)
    info: Doc = {"id": id_}
    if queue is None:
        return info
    info["name"] = queue["name"]
    if queue.get("display_name"):
        info["display_name"] = queue["display_name"]
    info["num_tasks"] = db.execute("SELECT count(*) FROM queue_entry WHERE queue = ?", (id_,)).fetchone()[0]
    first = db.execute("SELECT task FROM queue_entry WHERE queue = ? ORDER BY position LIMIT 1", (id_,)).fetchone()
    task = TASKS.get(db, first[0]) if first else None
    if task:
        info["next_task"] = {"id": task["id"], "name": task["name"]}
    return info


def _seconds_since(text: str) -> int:
    moment = read_time(text)
    return int((datetime.now(UTC) - moment).total_seconds()) if moment else 0


def _worker(db: sqlite3.Connection, row: sqlite3.Row, users: dict[str, str]) -> Doc:
    worker: Doc = {
        "id": row["id"],
        "key": worker_key(row),
        "company": {"id": COMPANY_ID, "name": "clearml"},
        "user": {"id": row["user"], "name": users.get(row["user"], "")},
        "ip": row["ip"],
        "queues": [_queue_info(db, id_) for id_ in load_texts(row["queues"])],
        "register_time": row["registered"],
        "register_timeout": row["timeout"],
        "last_activity_time": row["last_seen"],
        "tags": load_texts(row["tags"]),
        "system_tags": load_texts(row["system_tags"]),
    }
    if row["last_report"]:
        worker["last_report_time"] = row["last_report"]
    if row["queue"]:
        worker["queue"] = _queue_info(db, row["queue"])
    task = TASKS.get(db, row["task"]) if row["task"] else None
    if task:
        running: Doc = {"id": task["id"], "name": task["name"], "last_iteration": task.get("last_iteration", 0)}
        if task.get("started"):
            running["running_time"] = _seconds_since(task["started"]) * 1000
        worker["task"] = running
        project = PROJECTS.get(db, task["project"]) if task.get("project") else None
        if project:
            worker["project"] = {"id": project["id"], "name": project["name"]}
    return worker


@endpoint("workers.get_all", since="2.4")
def get_all(call: Call, request: GetAllRequest) -> Doc:
    """List workers with what they do and the queues that they serve."""
    db = call.db.read()
    users = {row["id"]: row["name"] for row in db.execute("SELECT id, name FROM user")}
    return {"workers": [_worker(db, row, users) for row in _select(db, request)]}


class CountRequest(GetAllRequest):
    """As in ``workers.get_all``; 0 counts every worker."""

    last_seen: int | None = Field(default=0, ge=0, le=2**31)


@endpoint("workers.get_count", since="2.13")
def get_count(call: Call, request: CountRequest) -> Doc:
    """Count workers."""
    return {"count": len(_select(call.db.read(), request))}


_CATEGORIES = {
    "cpu": ("cpu_usage", "cpu_temperature"),
    "gpu": ("gpu_usage", "gpu_temperature", "gpu_memory_free", "gpu_memory_used"),
    "memory": ("memory_used", "memory_free"),
    "network": ("network_tx", "network_rx"),
    "disk": ("disk_free_home", "disk_free_temp", "disk_read", "disk_write", "disk_free_percent"),
}


class MetricKeysRequest(Request):
    """Of which workers (all if none)."""

    worker_ids: list[str] | None = None


@endpoint("workers.get_metric_keys", since="2.4")
def get_metric_keys(call: Call, request: MetricKeysRequest) -> Doc:
    """List the statistics that workers report."""
    rows = call.db.read().execute("SELECT DISTINCT worker, metric FROM worker_stat").fetchall()
    found = {row["metric"] for row in rows if request.worker_ids is None or row["worker"] in request.worker_ids}
    return {
        "categories": [
            {"name": name, "metric_keys": [key for key in keys if key in found]}
            for name, keys in _CATEGORIES.items()
            if found.intersection(keys)
        ]
    }


class StatItem(Request):
    """Which statistic, and how samples of an interval become one value."""

    key: str
    category: str = "avg"
    aggregation: str | None = None


class StatsRequest(Request):
    """Dates and ``interval`` in seconds."""

    from_date: float = Field(ge=0, le=2**40)
    to_date: float = Field(ge=0, le=2**40)
    interval: int = Field(ge=1, le=2**31)
    items: list[StatItem] = Field(min_length=1)
    worker_ids: list[str] | None = None
    split_by_variant: bool = False
    split_by_resource: bool = False


@endpoint("workers.get_stats", since="2.4")
def get_stats(call: Call, request: StatsRequest) -> Doc:
    """Give machine statistics over time, a value per interval."""
    if request.split_by_variant or request.split_by_resource:
        raise errors.NOT_IMPLEMENTED("workers.get_stats: lite keeps the mean of a machine's cores and GPUs, not each")
    if request.from_date >= request.to_date:
        raise errors.VALIDATION_ERROR("from_date must be before to_date", field="from_date")
    db = call.db.read()
    step = request.interval * 1000
    workers = request.worker_ids or [row[0] for row in db.execute("SELECT DISTINCT worker FROM worker_stat")]
    answer = []
    for worker in workers:
        metrics: dict[str, list[Doc]] = {}
        for item in request.items:
            how = item.aggregation or item.category
            if how not in ("avg", "min", "max"):
                raise errors.VALIDATION_ERROR(f"aggregation {how!r}: use avg, min or max", field="items")
            rows = db.execute(
                f"SELECT time / ? * ? AS bucket, {how}(value) FROM worker_stat"
                " WHERE worker = ? AND metric = ? AND time BETWEEN ? AND ? GROUP BY bucket ORDER BY bucket",
                (step, step, worker, item.key, int(request.from_date * 1000), int(request.to_date * 1000)),
            ).fetchall()
            if rows:
                metrics.setdefault(item.key, []).append(
                    {
                        "aggregation": how,
                        "dates": [row[0] for row in rows],
                        "values": [row[1] for row in rows],
                        "resource_series": [],
                    }
                )
        if metrics:
            answer.append({"worker": worker, "metrics": [{"metric": m, "stats": s} for m, s in metrics.items()]})
    return {"workers": answer}


@endpoint("workers.get_activity_report", since="2.4")
def get_activity_report(call: Call, request: OpenRequest) -> Doc:
    """Refuse: lite keeps no history of how many workers there were."""
    raise errors.NOT_IMPLEMENTED("workers.get_activity_report: lite keeps no history of workers")
