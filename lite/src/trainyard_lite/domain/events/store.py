"""Where events are kept, and how a batch of them is written.

A *series* is one metric and variant of one kind of event of one task (or model).  Scalars, which come in
millions, have one narrow row each, keyed by series and iteration; a second event of the same series and
iteration replaces the first, as in the official server, so a batch that a client sends again changes nothing.
Log lines have no such key: theirs is a digest of their content, time and place among equal lines of the batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import re2  # type: ignore[import-untyped]

from ... import _clock
from ... import _errors as errors
from ..._bounds import load_object
from ..._collections import MODELS, TASKS
from ..._db import Database
from ..._store import Collection, Doc

__all__ = [
    "IMAGE",
    "KIND_NAMES",
    "LOG",
    "NO_ITER",
    "PLOT",
    "SCALAR",
    "SCHEMA",
    "SINGLE_VALUE_ITER",
    "VECTOR",
    "add_events",
    "delete_task_events",
    "drop_empty_series",
    "format_written",
    "now_ms",
    "task_event_urls",
]

SCALAR, VECTOR, IMAGE, PLOT, LOG = 1, 2, 3, 4, 5
KIND_NAMES = {
    SCALAR: "training_stats_scalar",
    VECTOR: "training_stats_vector",
    IMAGE: "training_debug_image",
    PLOT: "plot",
    LOG: "log",
}
_KINDS = {name: kind for kind, name in KIND_NAMES.items()}
SINGLE_VALUE_ITER = -(2**31)  # where the SDK reports values that have no iteration
NO_ITER = -(2**63)  # stored for an event that came without iteration
_MAX_ITER = 2**63 - 1
_MAX_TEXT = 32766  # bytes of a name; the official server's limit
_MAX_METRICS = 2000  # in a task's last_metrics
_MACHINE_METRICS = frozenset((":monitor:machine", ":monitor:gpu"))  # their iterations are seconds
_LOCKED = ("publishing", "published")
_SCALAR_FIELDS = frozenset(
    ("type", "task", "model", "timestamp", "iter", "metric", "variant", "value", "worker", "model_event",
     "allow_locked", "x_axis_label", "values", "ts")
)  # fmt: skip
_LOG_FIELDS = (_SCALAR_FIELDS - {"value", "values"}) | {"msg", "level"}
_URLS = re2.compile(r"""(?i)['"]source['"]:\s?['"]([a-z][a-z0-9+\-.]*://.*?)['"]""")

# time: milliseconds since 1970, as the client gave it; lag: how much later it was written.
SCHEMA = """
CREATE TABLE IF NOT EXISTS event_text (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS event_series (
  id INTEGER PRIMARY KEY,
  task TEXT NOT NULL,
  kind INTEGER NOT NULL,
  metric TEXT NOT NULL,
  variant TEXT NOT NULL,
  model INTEGER NOT NULL,
  count INTEGER NOT NULL DEFAULT 0,
  total REAL NOT NULL DEFAULT 0,
  max_iter INTEGER NOT NULL,
  max_time INTEGER NOT NULL DEFAULT 0,
  written INTEGER NOT NULL DEFAULT 0,
  UNIQUE (task, kind, metric, variant)
);
CREATE TABLE IF NOT EXISTS event_scalar (
  series INTEGER NOT NULL,
  iter INTEGER NOT NULL,
  value,
  time INTEGER NOT NULL,
  lag INTEGER NOT NULL,
  worker INTEGER NOT NULL,
  extra TEXT,
  PRIMARY KEY (series, iter)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event_log (
  id INTEGER PRIMARY KEY,
  series INTEGER NOT NULL,
  time INTEGER NOT NULL,
  digest INTEGER NOT NULL,
  lag INTEGER NOT NULL,
  worker INTEGER NOT NULL,
  iter INTEGER,
  level TEXT,
  msg TEXT,
  extra TEXT,
  UNIQUE (series, time, digest)
);
CREATE TABLE IF NOT EXISTS event_doc (
  id INTEGER PRIMARY KEY,
  series INTEGER NOT NULL,
  iter INTEGER NOT NULL,
  key TEXT NOT NULL,
  time INTEGER NOT NULL,
  url TEXT,
  doc TEXT NOT NULL,
  UNIQUE (series, iter, key)
);
"""
_TABLES = {SCALAR: "event_scalar", LOG: "event_log"}


def table_of(kind: int) -> str:
    """Name the table that holds a kind of event."""
    return _TABLES.get(kind, "event_doc")


def now_ms() -> int:
    """Give the present moment in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def format_written(milliseconds: int) -> str:
    """Format a moment as the API prints ``@timestamp``."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


class _BadEventError(Exception):
    """An event that is refused; its text is counted in the answer."""


@dataclass
class _Series:
    """What a batch holds of one series."""

    kind: int
    metric: str
    variant: str
    scalars: dict[int, tuple[Any, int, str, str | None]] = field(default_factory=dict)
    points: list[tuple[int, int, Any]] = field(default_factory=list)  # iteration, time, value: every scalar received
    logs: list[tuple[Any, ...]] = field(default_factory=list)
    docs: list[tuple[Any, ...]] = field(default_factory=list)
    max_iter: int = NO_ITER
    max_time: int = 0
    x_axis_label: str | None = None
    received: int = 0


@dataclass
class _Owner:
    """What a batch holds of one task or model."""

    id: str
    model: bool
    allow_locked: bool
    series: dict[tuple[int, str, str], _Series] = field(default_factory=dict)
    last_iteration: int = 0
    stats: dict[str, dict[str, int]] = field(default_factory=dict)


def _text(value: Any, what: str = "text") -> str:
    """Give a text that can be stored: lone surrogates, which no encoding has, become question marks."""
    if not isinstance(value, str):
        raise _BadEventError(f"Invalid {what}: a string is expected")
    if value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    return _text(value)[:100] if isinstance(value, str) else f"of type {type(value).__name__}"


def _name(value: Any, what: str) -> str:
    if value is None:
        return ""
    text = _text(value, what)
    if len(text) > _MAX_TEXT:
        raise _BadEventError(f"Invalid {what}: longer than {_MAX_TEXT} characters")
    return text


def _iteration(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadEventError("Invalid iter: an integer is expected") from None
    if not -_MAX_ITER <= number <= _MAX_ITER:
        raise _BadEventError(f"Iteration number should not exceed {_MAX_ITER}")
    return number


def _time(value: Any) -> int:
    if type(value) is int:
        number = value
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            number = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise _BadEventError("Invalid timestamp: milliseconds since 1970 are expected") from None
    elif isinstance(value, float) and math.isfinite(value):
        number = int(value)
    else:
        raise _BadEventError("Invalid timestamp: milliseconds since 1970 are expected")
    if not 0 <= number < 2**53:
        raise _BadEventError("Invalid timestamp: milliseconds since 1970 are expected")
    return number


def _number(value: Any) -> Any:
    # Upstream hands events to Elasticsearch, whose mapping of a value is a float: it rejects the documents whose value
    # is NaN or infinite ("supports only finite values"), and event_bll.py counts them as errors. Nothing is a zero.
    if type(value) is float:
        if value - value == 0.0:  # neither NaN nor infinite
            return value
    elif type(value) is int:
        if -(2**63) <= value < 2**63:
            return value
        try:
            return float(value)
        except OverflowError:
            pass
    elif value is None:
        return None
    raise _BadEventError("Invalid value: a finite number is expected")


def _json(value: Any) -> str:
    """Format a value that an answer can hold some levels down, where orjson's limit of nesting is nearer."""
    levels = 12
    wrapped = value
    for _ in range(levels):
        wrapped = [wrapped]
    try:
        return orjson.dumps(wrapped)[levels:-levels].decode()
    except TypeError:
        pass
    try:  # integers beyond 64 bits, lone surrogates
        text = json.dumps(wrapped, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()
        orjson.dumps(orjson.loads(text))
    except (TypeError, ValueError, RecursionError):
        raise _BadEventError("Invalid field: too deep, or no JSON") from None
    return text[levels:-levels]


def _extra(event: Doc, known: frozenset[str]) -> str | None:
    if known.issuperset(event):
        return None
    extra = {key: value for key, value in event.items() if key not in known}
    return _json(extra)


def _prepare(events: Sequence[Doc], worker: str, written: int) -> tuple[dict[str, _Owner], Counter[str]]:
    """Check a batch, event by event, and sort it by task and series.

    Raises:
        ApiError: if the batch contradicts itself.
    """
    owners: dict[str, _Owner] = {}
    problems: Counter[str] = Counter()
    equal_logs: Counter[bytes] = Counter()
    for event in events:
        try:
            _prepare_one(event, worker, written, owners, equal_logs)
        except _BadEventError as error:
            problems[str(error)] += 1
    return owners, problems


def _prepare_one(event: Doc, worker: str, written: int, owners: dict[str, _Owner], equal_logs: Counter[bytes]) -> None:
    model = bool(event.get("model_event"))
    owner_id = event.get("task")
    if model and event.get("model") is not None:
        owner_id = event["model"]
    owner = None
    if owner_id and isinstance(owner_id, str):
        owner_id = _text(owner_id)
        allow_locked = bool(event.get("allow_locked"))
        owner = owners.get(owner_id)
        if owner is None:
            owner = owners[owner_id] = _Owner(owner_id, model, allow_locked)
        elif owner.model != model:
            raise errors.VALIDATION_ERROR("Inconsistent model_event setting in the passed events", tasks=[owner_id])
        elif owner.allow_locked != allow_locked:
            raise errors.VALIDATION_ERROR(f"Inconsistent allow_locked setting in the passed events for {owner_id}")

    type_ = event.get("type")
    if type_ is None:
        raise _BadEventError("Event must have a 'type' field")
    kind = _KINDS.get(type_.replace(" ", "_")) if isinstance(type_, str) else None
    if kind is None:
        raise _BadEventError(f"Invalid event type {_shown(type_)}")
    if model and kind == LOG:
        raise _BadEventError("Task log events are not supported for models")
    if owner is None:
        if owner_id is None:
            raise _BadEventError("Event must have a 'task' field")
        raise _BadEventError(f"Invalid {'model' if model else 'task'} id {_shown(owner_id)}")

    moment = event["ts"] if "ts" in event else event.get("timestamp")
    moment_ms = written if moment is None else _time(moment)
    raw_iter = event.get("iter")
    iteration = NO_ITER if raw_iter is None else raw_iter if type(raw_iter) is int else _iteration(raw_iter)
    if raw_iter is not None and not -_MAX_ITER <= iteration <= _MAX_ITER:
        raise _BadEventError(f"Iteration number should not exceed {_MAX_ITER}")
    metric, variant = _name(event.get("metric"), "metric"), _name(event.get("variant"), "variant")
    source = _name(event["worker"], "worker") if event.get("worker") is not None else worker
    key = (kind, metric, variant)

    if kind == SCALAR:
        value = _number(event["values"] if "values" in event else event.get("value"))
        label = event.get("x_axis_label")
        if label is not None:
            label = _name(label, "x_axis_label")
        extra = _extra(event, _SCALAR_FIELDS)
        series = owner.series.get(key) or owner.series.setdefault(key, _Series(kind, metric, variant))
        series.scalars[iteration] = (value, moment_ms, source, extra)
        if value is not None:
            series.points.append((0 if raw_iter is None else iteration, moment_ms, value))
            if label is not None:
                series.x_axis_label = label
    elif kind == LOG:
        message = event.get("msg")
        if isinstance(message, int | float):
            message = str(message)
        message = None if message is None else _text(message, "msg")
        level = event.get("level")
        level = None if level is None else _name(str(level) if isinstance(level, int | float) else level, "level")
        extra = _extra(event, _LOG_FIELDS)
        if moment is None:
            digest = os.urandom(8)  # no time of its own: nothing tells a repetition from a new line
        else:
            content = (
                f"{owner_id}\0{metric}\0{variant}\0{moment_ms}\0{source}\0{level}\0{iteration}\0{message}\0{extra}"
            )
            digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
            equal_logs[digest] += 1
            if equal_logs[digest] > 1:
                again = digest + equal_logs[digest].to_bytes(8, "big")
                digest = hashlib.blake2b(again, digest_size=8).digest()
        series = owner.series.get(key) or owner.series.setdefault(key, _Series(kind, metric, variant))
        number = int.from_bytes(digest, "big", signed=True)
        own_iter = None if raw_iter is None else iteration
        series.logs.append((moment_ms, number, written - moment_ms, source, own_iter, level, message, extra))
    else:
        row = _document(event, kind, iteration, moment_ms, source, written, owner)
        series = owner.series.get(key) or owner.series.setdefault(key, _Series(kind, metric, variant))
        series.docs.append(row)

    series.received += 1
    if iteration > series.max_iter:
        series.max_iter = iteration
    if moment_ms > series.max_time:
        series.max_time = moment_ms
    if iteration > owner.last_iteration and metric not in _MACHINE_METRICS:
        owner.last_iteration = iteration
    if not model:
        seen = owner.stats.setdefault(metric, {})
        name = KIND_NAMES[kind]
        if seen.get(name, -1) < moment_ms:
            seen[name] = moment_ms


def _document(
    event: Doc, kind: int, iteration: int, moment_ms: int, source: str, written: int, owner: _Owner
) -> tuple[Any, ...]:
    doc = {k: v for k, v in event.items() if k not in ("ts", "values", "allow_locked", "x_axis_label", "model")}
    if "values" in event:
        doc["value"] = event["values"]
    doc |= {
        "type": KIND_NAMES[kind],
        "task": owner.id,
        "timestamp": moment_ms,
        "metric": _name(event.get("metric"), "metric"),
        "variant": _name(event.get("variant"), "variant"),
        "worker": source,
        "model_event": owner.model,
        "@timestamp": format_written(written),
    }
    if iteration != NO_ITER:
        doc["iter"] = iteration
    url = None
    if kind == VECTOR:
        value = doc.get("value")
        for item in value if isinstance(value, list) else [value]:
            _number(item)
    elif kind == IMAGE:
        url = None if event.get("url") is None else _name(event["url"], "url")
    else:
        plot = event.get("plot_str")
        if plot is not None:
            doc["plot_str"] = plot = _text(plot, "plot_str")
        doc.pop("skip_validation", None)
        doc["plot_len"] = len(plot or "")
        if urls := sorted(set(_URLS.findall(plot or ""))):
            doc["source_urls"] = urls
    key = event.get("key")
    return (iteration, "" if key is None else _name(key, "key"), moment_ms, url, _json(doc))


def add_events(db: Database, user: str, events: Sequence[Doc], worker: str) -> Doc:
    """Write a batch of events, and what they change in their tasks and models, in one transaction.

    Events that are wrong are counted and left out; the others are written.

    Raises:
        ApiError: if the batch contradicts itself, or if nothing of it can be written.
    """
    written = now_ms()
    owners, problems = _prepare(events, worker or "<unknown>", written)
    added = 0
    with db.write() as connection:
        for owner in owners.values():
            if not owner.series:
                continue
            collection = MODELS if owner.model else TASKS
            doc = collection.get(connection, owner.id)
            locked = doc is not None and (doc.get("ready") if owner.model else doc.get("status") in _LOCKED)
            received = sum(series.received for series in owner.series.values())
            if doc is None or (locked and not owner.allow_locked):
                problems[f"Invalid {'model' if owner.model else 'task'} id {owner.id[:100]}"] += received
                continue
            _write_owner(connection, collection, doc, owner, user, written)
            added += received
    if not added:
        details: Doc = dict(problems)
        raise errors.EVENTS_NOT_ADDED(**details)
    return {"added": added, "errors": problems.total(), "errors_info": dict(problems)}


def _write_owner(
    db: sqlite3.Connection, collection: Collection, doc: Doc, owner: _Owner, user: str, written: int
) -> None:
    texts: dict[str, int] = {}
    metrics: Doc = doc.get("last_metrics") or {}
    known = sum(len(variants) for variants in metrics.values())
    for series in owner.series.values():
        row = db.execute(
            "SELECT id, count, total, max_iter, max_time FROM event_series"
            " WHERE task = ? AND kind = ? AND metric = ? AND variant = ?",
            (owner.id, series.kind, series.metric, series.variant),
        ).fetchone()
        if row is None:
            series_id = db.execute(
                "INSERT INTO event_series (task, kind, metric, variant, model, max_iter) VALUES (?, ?, ?, ?, ?, ?)",
                (owner.id, series.kind, series.metric, series.variant, owner.model, NO_ITER),
            ).lastrowid
            count, total, max_iter, max_time = 0, 0.0, NO_ITER, -1
        else:
            series_id, count, total, max_iter, max_time = row
        if series.kind == SCALAR:
            fresh, change = _write_scalars(db, texts, series_id, series, written, max_iter if row else None)
            count, total = count + fresh, total + change
            if not math.isfinite(total):
                total = 0.0
            hashes = _md5(series.metric), _md5(series.variant)
            entry = metrics.get(hashes[0], {}).get(hashes[1])
            if series.points and (entry is not None or known < _MAX_METRICS):
                known += entry is None
                entry = _merge_metric(entry, series, count, total, max_time)
                metrics.setdefault(hashes[0], {})[hashes[1]] = entry
        elif series.kind == LOG:
            db.executemany(
                "INSERT OR IGNORE INTO event_log (series, time, digest, lag, worker, iter, level, msg, extra)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(series_id, *row[:3], _intern(db, texts, row[3]), *row[4:]) for row in series.logs],
            )
        else:
            db.executemany(
                "INSERT INTO event_doc (series, iter, key, time, url, doc) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (series, iter, key) DO UPDATE"
                " SET time = excluded.time, url = excluded.url, doc = excluded.doc",
                [(series_id, *row) for row in series.docs],
            )
        db.execute(
            "UPDATE event_series SET count = ?, total = ?, max_iter = ?, max_time = ?, written = ? WHERE id = ?",
            (count, total, max(max_iter, series.max_iter), max(max_time, series.max_time), written, series_id),
        )
    _update_doc(doc, owner, user, metrics)
    collection.put(db, doc)


def _write_scalars(
    db: sqlite3.Connection, texts: dict[str, int], series_id: int | None, series: _Series, written: int, top: int | None
) -> tuple[int, float]:
    """Write the scalars of one series; answer how many are new, and how much their sum grew."""
    rows = series.scalars
    old: dict[int, Any] = {}
    if top is not None and (low := min(rows)) <= top:
        if len(rows) <= 16:
            for iteration in rows:
                found = db.execute(
                    "SELECT value FROM event_scalar WHERE series = ? AND iter = ?", (series_id, iteration)
                ).fetchone()
                if found:
                    old[iteration] = found[0]
        else:
            old = dict(
                db.execute(
                    "SELECT iter, value FROM event_scalar WHERE series = ? AND iter BETWEEN ? AND ?",
                    (series_id, low, min(max(rows), top)),
                ).fetchall()
            )
    db.executemany(
        "INSERT OR REPLACE INTO event_scalar (series, iter, value, time, lag, worker, extra) VALUES (?,?,?,?,?,?,?)",
        [
            (series_id, iteration, value, moment, written - moment, _intern(db, texts, source), extra)
            for iteration, (value, moment, source, extra) in rows.items()
        ],
    )
    fresh, change = 0, 0.0
    for iteration, (value, *_) in rows.items():
        before = old.get(iteration)
        fresh += (value is not None) - (before is not None)
        change += (value or 0.0) - (before or 0.0)
    return fresh, change


def _merge_metric(entry: Doc | None, series: _Series, count: int, total: float, max_time: int) -> Doc:
    """Bring a task's summary of one scalar series up to date."""
    entry = dict(entry or {"metric": series.metric, "variant": series.variant})
    last = max(series.points, key=lambda point: point[:2])
    # A batch that comes late (sent again, or by a slower process) does not take the last value back.
    if "value" not in entry or max(point[1] for point in series.points) >= max_time:
        for point in series.points:  # of equal ones the later received counts
            if point[:2] == last[:2]:
                last = point
        entry["value"] = last[2]
        if series.x_axis_label is not None:
            entry["x_axis_label"] = series.x_axis_label
    low = min(series.points, key=lambda point: point[2])
    high = max(series.points, key=lambda point: point[2])
    first = min(series.points, key=lambda point: point[0])
    if entry.get("min_value") is None or low[2] < entry["min_value"]:
        entry["min_value"], entry["min_value_iteration"] = low[2], low[0]
    if entry.get("max_value") is None or high[2] > entry["max_value"]:
        entry["max_value"], entry["max_value_iteration"] = high[2], high[0]
    if entry.get("first_value") is None:
        entry["first_value"], entry["first_value_iteration"] = float(first[2]), first[0]
    entry["count"] = count
    entry["mean_value"] = round(total / count, 2) if count else 0.0
    return entry


def _update_doc(doc: Doc, owner: _Owner, user: str, metrics: Doc) -> None:
    now = _clock.now()
    doc["last_update"] = doc["last_change"] = now
    doc["last_changed_by"] = user
    doc["last_iteration"] = max(doc.get("last_iteration") or 0, owner.last_iteration)
    if metrics:
        doc["last_metrics"] = metrics
    if owner.model:
        return
    stats = doc.setdefault("metric_stats", {})
    for metric, seen in owner.stats.items():
        entry = stats.setdefault(_md5(metric), {"metric": metric, "event_stats_by_type": {}})
        for name, moment in seen.items():
            entry["event_stats_by_type"][name] = {"last_update": moment}


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _intern(db: sqlite3.Connection, texts: dict[str, int], text: str) -> int:
    """Give a text's number."""
    number = texts.get(text)
    if number is None:
        row = db.execute("SELECT id FROM event_text WHERE text = ?", (text,)).fetchone()
        number = int(row[0]) if row else db.execute("INSERT INTO event_text (text) VALUES (?)", (text,)).lastrowid or 0
        texts[text] = number
    return number


def delete_task_events(db: sqlite3.Connection, task_ids: Iterable[str]) -> int:
    """Delete every event of tasks or models; answers how many there were.

    Call it inside a write transaction.  The summary in the task (``last_metrics``) is its caller's business.
    """
    deleted = 0
    for task in task_ids:
        series = db.execute("SELECT id, kind FROM event_series WHERE task = ?", (task,)).fetchall()
        for series_id, kind in series:
            deleted += db.execute(f"DELETE FROM {table_of(kind)} WHERE series = ?", (series_id,)).rowcount
        db.execute("DELETE FROM event_series WHERE task = ?", (task,))
    return deleted


def drop_empty_series(db: sqlite3.Connection, task: str, kind: int) -> None:
    """Forget the series of a task that hold no event any more."""
    db.execute(
        "DELETE FROM event_series WHERE task = ? AND kind = ?"
        f" AND NOT EXISTS (SELECT 1 FROM {table_of(kind)} WHERE series = event_series.id)",
        (task, kind),
    )


def task_event_urls(db: sqlite3.Connection, task_ids: Iterable[str]) -> list[str]:
    """List the URLs of the files that events of tasks show (debug images, pictures in plots)."""
    urls: set[str] = set()
    for task in task_ids:
        rows = db.execute(
            "SELECT d.url, d.doc, s.kind FROM event_series s JOIN event_doc d ON d.series = s.id"
            " WHERE s.task = ? AND s.kind IN (?, ?)",
            (task, IMAGE, PLOT),
        )
        for url, doc, kind in rows:
            if kind == IMAGE and url:
                urls.add(url)
            elif kind == PLOT and '"source_urls"' in doc:
                urls.update(u for u in load_object(doc).get("source_urls") or () if isinstance(u, str))
    return sorted(urls)
