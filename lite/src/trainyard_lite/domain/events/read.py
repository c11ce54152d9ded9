"""How events are read: series, histograms, pages."""

from __future__ import annotations

import base64
import binascii
import heapq
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from ... import _errors as errors
from ..._bounds import load_object
from ..._collections import MODELS, TASKS
from ..._store import Doc
from .store import (
    IMAGE,
    KIND_NAMES,
    LOG,
    NO_ITER,
    PLOT,
    SCALAR,
    SINGLE_VALUE_ITER,
    VECTOR,
    format_written,
    table_of,
)

__all__ = [
    "EMPTY_SCROLL",
    "KINDS_OF",
    "Axis",
    "MetricVariants",
    "Series",
    "check_owners",
    "count_events",
    "doc_events",
    "histogram",
    "log_page",
    "log_pages",
    "make_token",
    "merged_events",
    "metrics_and_variants",
    "raw_scalars",
    "read_token",
    "select_series",
    "single_values",
]

Axis = Literal["iter", "timestamp", "iso_time"]
MetricVariants = Mapping[str, Sequence[str] | None]
EMPTY_SCROLL = "FFFF"  # what the official server answers when a scroll has come to its end
KINDS_OF = {name: (kind,) for kind, name in KIND_NAMES.items()} | {"*": (SCALAR, VECTOR, IMAGE, PLOT, LOG)}


@dataclass(frozen=True)
class Series:
    """One metric and variant of one kind of event of a task or model."""

    id: int
    task: str
    kind: int
    metric: str
    variant: str
    model: bool
    max_iter: int
    written: int


def check_owners(db: sqlite3.Connection, ids: Sequence[str], *, model: bool) -> dict[str, str]:
    """Give the names of tasks (or models).

    Raises:
        ApiError: if one of them does not exist.
    """
    table = (MODELS if model else TASKS).table
    rows = db.execute(
        f"SELECT id, name FROM {table} WHERE id IN (SELECT value FROM json_each(?))", (orjson.dumps(ids).decode(),)
    )
    names: dict[str, str] = {row[0]: row[1] for row in rows}
    if len(names) != len(set(ids)):
        raise (errors.INVALID_MODEL_ID if model else errors.INVALID_TASK_ID)(ids=ids)
    return names


def select_series(
    db: sqlite3.Connection, task: str, kinds: Iterable[int], metrics: MetricVariants | None = None
) -> list[Series]:
    """List a task's series in the order of their names; ``metrics`` keeps some (no variants means all of them)."""
    marks = ", ".join(str(int(kind)) for kind in kinds)
    rows = db.execute(
        "SELECT id, task, kind, metric, variant, model, max_iter, written FROM event_series"
        f" WHERE task = ? AND kind IN ({marks}) ORDER BY metric, variant, kind",
        (task,),
    )
    found = [Series(*row) for row in rows]
    if metrics:
        found = [s for s in found if s.metric in metrics and (not metrics[s.metric] or s.variant in metrics[s.metric])]  # type: ignore[operator]
    return found


def metrics_and_variants(series: Iterable[Series]) -> dict[str, list[str]]:
    """Group series by metric."""
    result: dict[str, list[str]] = {}
    for one in series:
        variants = result.setdefault(one.metric, [])
        if one.variant not in variants:
            variants.append(one.variant)
    return result


def count_events(db: sqlite3.Connection, series: Iterable[Series]) -> int:
    """Count the events of some series."""
    return sum(
        int(db.execute(f"SELECT count(*) FROM {table_of(s.kind)} WHERE series = ?", (s.id,)).fetchone()[0])
        for s in series
    )


# Histograms


def axis_times(times: Iterable[int]) -> list[str]:
    """Format moments as the ``iso_time`` axis shows them."""
    return [format_written(moment) for moment in times]


def histogram(db: sqlite3.Connection, series: Series, samples: int, axis: Axis) -> Doc:
    """Draw one scalar series with at most ``samples`` points, each the mean of its interval."""
    column = "iter" if axis == "iter" else "time"
    where = f"series = {series.id} AND iter > {SINGLE_VALUE_ITER}"
    count, low, high = db.execute(
        f"SELECT count(*), min({column}), max({column}) FROM event_scalar WHERE {where}"
    ).fetchone()
    interval = 1 if count < samples else max(1, math.ceil((high - low + 1) / samples))
    cursor = db.cursor()
    cursor.row_factory = None
    if interval == 1 and axis == "iter":
        rows = cursor.execute(f"SELECT iter, value * 1.0 FROM event_scalar WHERE {where} ORDER BY iter").fetchall()
    else:
        # Buckets begin at multiples of the interval; SQLite's division rounds towards zero, so count from the lowest.
        base = low // interval * interval
        rows = cursor.execute(
            f"SELECT ? + (({column} - ?) / ?) * ? AS bucket, avg(value) FROM event_scalar WHERE {where}"
            " GROUP BY bucket ORDER BY bucket",
            (base, base, interval, interval),
        ).fetchall()
    x, y = map(list, zip(*rows, strict=True)) if rows else ([], [])
    if axis == "iso_time":
        x = axis_times(x)
    return {"name": series.variant, "x": x, "y": y}


def single_values(db: sqlite3.Connection, series: Iterable[Series]) -> list[Doc]:
    """Read the values that were reported without an iteration."""
    values = []
    for one in series:
        row = db.execute(
            "SELECT value, time FROM event_scalar WHERE series = ? AND iter = ?", (one.id, SINGLE_VALUE_ITER)
        ).fetchone()
        if row:
            values.append({"metric": one.metric, "variant": one.variant, "value": row[0], "timestamp": row[1]})
    return values


# Whole events


class _Texts(dict[int, str]):
    """Names of workers, read once each."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __missing__(self, number: int) -> str:
        row = self._db.execute("SELECT text FROM event_text WHERE id = ?", (number,)).fetchone()
        self[number] = text = str(row[0]) if row else ""
        return text


def _event(series: Series, time: int, lag: int, worker: str, iteration: int | None, more: Doc) -> Doc:
    event = {
        "timestamp": time,
        "type": KIND_NAMES[series.kind],
        "task": series.task,
        "metric": series.metric,
        "variant": series.variant,
        "model_event": series.model,
        "@timestamp": format_written(time + lag),
        "worker": worker,
        **more,
    }
    if iteration is not None and iteration != NO_ITER:
        event["iter"] = iteration
    return event


_SCALAR_COLUMNS = "iter, value, time, lag, worker, extra"
_LOG_COLUMNS = "id, time, lag, worker, iter, level, msg, extra"


def _scalar(series: Series, row: Any, texts: _Texts) -> Doc:
    iteration, value, time, lag, worker, extra = row
    more = {"value": value} | (load_object(extra) if extra else {})
    event = _event(series, time, lag, texts[worker], iteration, more)
    event["model_event"] = bool(series.model)
    return event


def _log(series: Series, row: Any, texts: _Texts) -> Doc:
    _, time, lag, worker, iteration, level, msg, extra = row[:8]
    more: Doc = {}
    if level is not None:
        more["level"] = level
    if msg is not None:
        more["msg"] = msg
    event = _event(series, time, lag, texts[worker], iteration, more | (load_object(extra) if extra else {}))
    event["model_event"] = bool(series.model)
    return event


Place = tuple[int, int, int, int]


def _stream(
    db: sqlite3.Connection, series: Series, after: Place | None, descending: bool, chunk: int
) -> Iterator[tuple[Place, Series, Any]]:
    """Read one series chunk by chunk, each row with its place ``(iteration, series, ...)`` in the whole.

    The SDK's log lines have no iteration: they are one group, in the order of time.
    """
    order, beyond = ("DESC", "<") if descending else ("ASC", ">")
    condition = "1"
    values: tuple[int, ...] = ()
    if series.kind == SCALAR:
        columns, keys = _SCALAR_COLUMNS, ["iter"]
    elif series.kind == LOG:
        columns, keys = _LOG_COLUMNS, ["time", "id"]
    else:
        columns, keys = "iter, id, doc", ["iter", "id"]

    def place(row: Any) -> Place:
        if series.kind == LOG:
            return NO_ITER, series.id, row["time"], row["id"]
        return row["iter"], series.id, 0 if series.kind == SCALAR else row["id"], 0

    if after is not None and series.kind == LOG:
        own = (NO_ITER, series.id)
        if own == after[:2]:
            condition, values = f"(time, id) {beyond} (?, ?)", after[2:]
        elif (own > after[:2]) == descending:
            return
    elif after is not None:
        condition, values = f"iter {beyond}= ?", after[:1]
    while True:
        rows = db.execute(
            f"SELECT {columns} FROM {table_of(series.kind)} WHERE series = ? AND {condition}"
            f" ORDER BY {', '.join(f'{key} {order}' for key in keys)} LIMIT ?",
            (series.id, *values, chunk),
        ).fetchall()
        for row in rows:
            at = place(row)
            if after is None or ((at < after) if descending else (at > after)):
                yield at, series, row
        if len(rows) < chunk:
            return
        condition = f"({', '.join(keys)}) {beyond} ({', '.join('?' * len(keys))})"
        values = tuple(rows[-1][key] for key in keys)


def merged_events(
    db: sqlite3.Connection, series: Sequence[Series], size: int, *, after: Place | None, descending: bool
) -> tuple[list[Doc], Place | None]:
    """Read a page of events in the order of their iterations; answers it and the place of its last event."""
    chunk = max(16, size // max(1, len(series)) + 2)
    streams = [_stream(db, one, after, descending, chunk) for one in series]
    merged = heapq.merge(*streams, key=lambda item: item[0], reverse=descending)
    texts, last, events = _Texts(db), None, []
    for at, one, row in merged:
        events.append(_whole(one, row, texts))
        last = at
        if len(events) >= size:
            break
    return events, last


def _whole(series: Series, row: Any, texts: _Texts) -> Doc:
    if series.kind == SCALAR:
        return _scalar(series, row, texts)
    if series.kind == LOG:
        return _log(series, row, texts)
    doc: Doc = load_object(row["doc"])
    return doc


def raw_scalars(
    db: sqlite3.Connection, series: Sequence[Series], size: int, *, axis: Axis, after: Place | None
) -> tuple[dict[str, tuple[list[int], list[Any]]], Place | None]:
    """Read a page of scalars as ``variant: (x, y)``; answers it and the place of its last one."""
    cursor = db.cursor()
    cursor.row_factory = None
    if axis == "iter" and len(series) == 1:  # the table's own order
        (one,) = series
        points = cursor.execute(
            "SELECT iter, value FROM event_scalar WHERE series = ? AND iter > ? ORDER BY iter LIMIT ?",
            (one.id, NO_ITER if after is None else after[0], size),
        ).fetchall()
        if not points:
            return {}, None
        x, y = map(list, zip(*points, strict=True))
        return {one.variant: (x, y)}, (x[-1], one.id, x[-1], 0)
    ids = ", ".join(str(one.id) for one in series) or "NULL"
    column = "iter" if axis == "iter" else "time"
    condition, values = ("1", ()) if after is None else (f"({column}, series, iter) > (?, ?, ?)", after[:3])
    rows = cursor.execute(
        f"SELECT {column}, series, iter, value FROM event_scalar WHERE series IN ({ids}) AND {condition}"
        f" AND iter > {NO_ITER} ORDER BY {column}, series, iter LIMIT ?",
        (*values, size),
    ).fetchall()
    found: dict[int, tuple[list[int], list[Any]]] = {}
    for at, number, _, value in rows:
        if number not in found:
            found[number] = ([], [])
        found[number][0].append(at)
        found[number][1].append(value)
    names = {one.id: one.variant for one in series}
    return {names[number]: points for number, points in found.items()}, (*rows[-1][:3], 0) if rows else None


def log_page(
    db: sqlite3.Connection, series: Sequence[Series], size: int, *, earlier: bool, from_time: int | None
) -> list[Doc]:
    """Read log lines before (or after) a moment, and all further ones of the last line's millisecond.

    So a client that goes on from the last line's time misses none.
    """
    by_id = {one.id: one for one in series}
    order, beyond = ("DESC", "<") if earlier else ("ASC", ">")
    condition, values = ("1", ()) if not from_time else (f"time {beyond} ?", (from_time,))
    base = f"SELECT {_LOG_COLUMNS}, series FROM event_log WHERE series IN ({', '.join(map(str, by_id)) or 'NULL'})"
    rows = db.execute(f"{base} AND {condition} ORDER BY time {order}, id {order} LIMIT ?", (*values, size)).fetchall()
    if len(rows) == size:
        last = rows[-1]
        rows += db.execute(
            f"{base} AND time = ? AND id {beyond} ? ORDER BY id {order} LIMIT 10000", (last["time"], last["id"])
        ).fetchall()
    texts = _Texts(db)
    return [_log(by_id[row["series"]], row, texts) for row in rows]


def log_pages(
    db: sqlite3.Connection, series: Sequence[Series], size: int, after: tuple[int, int]
) -> list[tuple[Doc, tuple[int, int]]]:
    """Read the next log lines after a place ``(time, id)``, each with its own place."""
    by_id = {one.id: one for one in series}
    rows = db.execute(
        f"SELECT {_LOG_COLUMNS}, series FROM event_log WHERE series IN ({', '.join(map(str, by_id)) or 'NULL'})"
        " AND (time, id) > (?, ?) ORDER BY time, id LIMIT ?",
        (*after, size),
    ).fetchall()
    texts = _Texts(db)
    return [(_log(by_id[row["series"]], row, texts), (row["time"], row["id"])) for row in rows]


def doc_events(
    db: sqlite3.Connection, series: Series, *, where: str = "1", values: Sequence[Any] = (), tail: str = ""
) -> list[Doc]:
    """Read vectors, images or plots of one series by an SQL condition (code, never a client's text)."""
    rows = db.execute(f"SELECT doc FROM event_doc WHERE series = ? AND {where} {tail}", (series.id, *values))
    return [load_object(row[0]) for row in rows]


# Scrolls


def make_token(state: Doc) -> str:
    """Make a scroll id that holds its own state: nothing to keep, nothing lost with a restart."""
    return base64.urlsafe_b64encode(orjson.dumps(state)).decode()


def read_token(token: str, *places: str) -> Doc:
    """Read a scroll id; ``places`` names those of its values that are places of events.

    Raises:
        ApiError: if it is none of ours.
    """
    try:
        state = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, orjson.JSONDecodeError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise errors.INVALID_SCROLL_ID(scroll_id=token)
    for name in places:
        value = state.get(name)
        good = (
            isinstance(value, list)
            and len(value) == 4
            and all((type(v) is int and abs(v) <= 2**63 - 1) or v == NO_ITER for v in value)
        )
        if value is not None and not good:
            raise errors.INVALID_SCROLL_ID(scroll_id=token)
        state[name] = None if value is None else tuple(value)
    return state
