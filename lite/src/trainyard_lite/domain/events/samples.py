"""Walking through debug images and plots, iteration by iteration, as a page of samples does.

The place of each walk is kept by its scroll id in memory, for an hour after its last step.  After a restart of
the server such an id is invalid, as an expired one is.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ... import _errors as errors
from ..._bounds import load_object
from ..._store import Doc, new_id
from .read import MetricVariants, Series, select_series
from .store import IMAGE, NO_ITER

__all__ = ["Walks", "image_sample", "iteration_events", "next_image_sample", "next_plot_sample", "plot_sample"]

_TTL_SEC = 3600
_MAX_WALKS = 10_000
_MAX_PLOTS = 100  # of one metric and iteration


class Walks:
    """The walks that go on, by scroll id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._walks: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    def get(self, scroll_id: str | None) -> Any:
        """Give a walk's state, or None."""
        with self._lock:
            found = self._walks.get(scroll_id or "")
            return found[1] if found and found[0] > time.monotonic() - _TTL_SEC else None

    def put(self, scroll_id: str, state: Any) -> None:
        """Keep a walk's state."""
        with self._lock:
            self._walks[scroll_id] = (time.monotonic(), state)
            self._walks.move_to_end(scroll_id)
            while len(self._walks) > _MAX_WALKS:
                self._walks.popitem(last=False)


_walks = Walks()


# Iterations of tasks: events.debug_images, events.plots


@dataclass
class _TaskWalk:
    kind: int
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)  # task: lowest and highest iteration shown


def iteration_events(
    db: sqlite3.Connection,
    kind: int,
    tasks: Mapping[str, MetricVariants],
    *,
    iters: int,
    earlier: bool,
    refresh: bool,
    scroll_id: str | None,
) -> Doc:
    """Give the next ``iters`` iterations of each task, with one event for each metric and variant in them."""
    walk = _walks.get(scroll_id)
    if not isinstance(walk, _TaskWalk) or walk.kind != kind:
        walk, scroll_id = _TaskWalk(kind), new_id()
    ranges = {} if refresh else dict(walk.ranges)
    answer = []
    for task, metrics in tasks.items():
        iterations = _task_iterations(db, kind, task, metrics, iters, earlier, ranges.get(task))
        if iterations:
            ranges[task] = (iterations[-1]["iter"], iterations[0]["iter"])
        answer.append({"task": task, "iterations": iterations})
    assert scroll_id is not None
    _walks.put(scroll_id, _TaskWalk(kind, ranges))
    return {"scroll_id": scroll_id, "metrics": answer}


def _task_iterations(
    db: sqlite3.Connection,
    kind: int,
    task: str,
    metrics: MetricVariants,
    iters: int,
    earlier: bool,
    shown: tuple[int, int] | None,
) -> list[Doc]:
    series = {one.id: one for one in select_series(db, task, (kind,), metrics)}
    ids = ", ".join(map(str, series)) or "NULL"
    earlier = earlier or shown is None
    condition, values = f"iter > {NO_ITER}", ()
    if kind == IMAGE:
        condition += " AND url IS NOT NULL"
    bound: tuple[int, ...] = ()
    if shown is not None:
        condition += " AND iter < ?" if earlier else " AND iter > ?"
        bound = (shown[0] if earlier else shown[1],)
    order = "DESC" if earlier else "ASC"
    rows = db.execute(
        f"SELECT DISTINCT iter FROM event_doc WHERE series IN ({ids}) AND {condition} ORDER BY iter {order} LIMIT ?",
        (*values, *bound, iters),
    ).fetchall()
    lowest = {one.id: _last_recycled(db, one) if kind == IMAGE else None for one in series.values()}
    iterations = []
    for (iteration,) in rows:
        events = []
        for one in series.values():
            low = lowest[one.id]
            if low is not None and iteration <= low:
                continue
            row = db.execute(
                "SELECT doc FROM event_doc WHERE series = ? AND iter = ?"
                + (
                    " AND url IS NOT NULL ORDER BY url DESC LIMIT 1" if kind == IMAGE else " ORDER BY time DESC LIMIT 1"
                ),
                (one.id, iteration),
            ).fetchone()
            if row:
                events.append(load_object(row[0]))
        if events:
            iterations.append({"iter": iteration, "events": events})
    return sorted(iterations, key=lambda item: -item["iter"])


def _last_recycled(db: sqlite3.Connection, series: Series) -> int | None:
    """Find the last iteration whose image was overwritten: the SDK uses a few file names in turn."""
    row = db.execute(
        "SELECT url FROM event_doc WHERE series = ? AND url IS NOT NULL ORDER BY iter DESC, url DESC LIMIT 1",
        (series.id,),
    ).fetchone()
    if row is None:
        return None
    rows = db.execute(
        "SELECT iter FROM event_doc WHERE series = ? AND url = ? ORDER BY iter DESC LIMIT 2", (series.id, row[0])
    ).fetchall()
    return int(rows[1][0]) if len(rows) > 1 else None


# One image after the other


@dataclass(frozen=True)
class _Range:
    series: int
    metric: str
    variant: str
    low: int
    high: int


@dataclass
class _ImageWalk:
    task: str
    metric: str
    variant: str
    iteration: int | None
    one_metric: bool
    ranges: list[_Range]


def _image_ranges(db: sqlite3.Connection, task: str, metric: str | None) -> list[_Range]:
    """Find the iterations of each variant whose images still exist."""
    ranges = []
    for one in select_series(db, task, (IMAGE,), None if metric is None else {metric: None}):
        low, high = db.execute(
            "SELECT min(last), max(last) FROM (SELECT max(iter) AS last FROM event_doc"
            f" WHERE series = ? AND url IS NOT NULL AND iter > {NO_ITER} GROUP BY url)",
            (one.id,),
        ).fetchone()
        if low is not None:
            ranges.append(_Range(one.id, one.metric, one.variant, low, high))
    return ranges


def _image(
    db: sqlite3.Connection, one: _Range, where: str, values: Sequence[int], order: str
) -> tuple[int, Doc] | None:
    row = db.execute(
        f"SELECT iter, doc FROM event_doc WHERE series = ? AND url IS NOT NULL AND iter >= ? AND {where}"
        f" ORDER BY iter {order}, url DESC LIMIT 1",
        (one.series, one.low, *values),
    ).fetchone()
    return (row[0], load_object(row[1])) if row else None


def _image_answer(scroll_id: str | None, walk: _ImageWalk | None = None, event: Doc | None = None) -> Doc:
    answer: Doc = {"scroll_id": scroll_id, "event": event, "min_iteration": None, "max_iteration": None}
    if walk is not None:
        for one in walk.ranges:
            if (one.metric, one.variant) == (walk.metric, walk.variant):
                answer |= {"min_iteration": one.low, "max_iteration": one.high}
    return answer


def image_sample(
    db: sqlite3.Connection,
    *,
    task: str,
    metric: str,
    variant: str,
    iteration: int | None,
    refresh: bool,
    scroll_id: str | None,
    one_metric: bool,
) -> Doc:
    """Give a variant's image of an iteration, or the last one before it; begins a walk."""
    walk = _walks.get(scroll_id)
    if isinstance(walk, _ImageWalk):
        _check_walk(walk, task, metric, one_metric, scroll_id)
        ranges = walk.ranges
    else:
        ranges, refresh, scroll_id = [], True, new_id()
    if refresh:
        ranges = _image_ranges(db, task, metric if one_metric else None)
    walk = _ImageWalk(task, metric, variant, None, one_metric, ranges)
    assert scroll_id is not None
    _walks.put(scroll_id, walk)
    for one in ranges:
        if (one.metric, one.variant) == (metric, variant):
            where, values = ("1", ()) if iteration is None else ("iter <= ?", (iteration,))
            found = _image(db, one, where, values, "DESC")
            if found:
                walk.iteration = found[0]
            return _image_answer(scroll_id, walk, found[1] if found else None)
    return _image_answer(scroll_id)


def next_image_sample(
    db: sqlite3.Connection, *, task: str, scroll_id: str | None, earlier: bool, next_iteration: bool
) -> Doc:
    """Give the image beside the last one: the next variant's of the same iteration, or one of the next iteration."""
    walk = _walks.get(scroll_id)
    if not isinstance(walk, _ImageWalk) or walk.task != task:
        raise errors.INVALID_SCROLL_ID(scroll_id=scroll_id)
    at = walk.iteration
    if at is None:
        return _image_answer(scroll_id)
    sign = -1 if earlier else 1
    ranges = [one for one in walk.ranges if not walk.one_metric or one.metric == walk.metric]
    ranges.sort(key=lambda one: (one.metric, one.variant), reverse=earlier)
    found: list[tuple[int, Doc]] = []
    if not next_iteration:
        own = (walk.metric, walk.variant)
        beside = [
            one for one in ranges if ((one.metric, one.variant) < own if earlier else (one.metric, one.variant) > own)
        ]
        found = [image for one in beside if (image := _image(db, one, "iter = ?", (at,), "DESC"))][:1]
    if not found:
        order, where = ("DESC", "iter < ?") if earlier else ("ASC", "iter > ?")
        images = [image for one in ranges if (image := _image(db, one, where, (at,), order))]
        found = sorted(images, key=lambda image: sign * image[0])[:1]  # stable: of one iteration, the first variant
    if not found:
        return _image_answer(scroll_id)
    walk.iteration, event = found[0]
    walk.metric, walk.variant = event["metric"], event["variant"]
    _walks.put(str(scroll_id), walk)
    return _image_answer(scroll_id, walk, event)


def _check_walk(walk: Any, task: str, metric: str, one_metric: bool, scroll_id: str | None) -> None:
    if walk.task != task or walk.one_metric != one_metric or (one_metric and walk.metric != metric):
        raise errors.INVALID_SCROLL_ID(
            "Task and metric stored in the state do not match the passed ones", scroll_id=scroll_id
        )


# One metric's plots after the other


@dataclass
class _PlotWalk:
    task: str
    metric: str
    iteration: int | None
    one_metric: bool
    ranges: dict[str, tuple[int, int]]


def _plots(
    db: sqlite3.Connection, series: Iterable[Series], where: str, values: Sequence[int], order: str
) -> tuple[int, list[Doc]] | None:
    """Give the plots of the first iteration that fits, of one metric's series."""
    ids = ", ".join(str(one.id) for one in series) or "NULL"
    base = f"FROM event_doc WHERE series IN ({ids}) AND iter > {NO_ITER} AND {where}"
    row = db.execute(f"SELECT iter {base} ORDER BY iter {order} LIMIT 1", values).fetchone()
    if row is None:
        return None
    docs = db.execute(
        f"SELECT doc FROM event_doc d JOIN event_series s ON s.id = d.series WHERE d.series IN ({ids}) AND iter = ?"
        " ORDER BY s.variant LIMIT ?",
        (row[0], _MAX_PLOTS),
    )
    return row[0], [load_object(doc[0]) for doc in docs]


def _plot_ranges(db: sqlite3.Connection, kind: int, task: str, metric: str | None) -> dict[str, tuple[int, int]]:
    rows = db.execute(
        "SELECT s.metric, min(d.iter), max(d.iter) FROM event_series s JOIN event_doc d ON d.series = s.id"
        f" WHERE s.task = ? AND s.kind = ? AND (? IS NULL OR s.metric = ?) AND d.iter > {NO_ITER} GROUP BY s.metric",
        (task, kind, metric, metric),
    )
    return {row[0]: (row[1], row[2]) for row in rows}


def _plot_answer(scroll_id: str | None, walk: _PlotWalk | None = None, events: Sequence[Doc] = ()) -> Doc:
    low, high = walk.ranges.get(walk.metric, (None, None)) if walk else (None, None)
    return {"scroll_id": scroll_id, "events": list(events), "min_iteration": low, "max_iteration": high}


def plot_sample(
    db: sqlite3.Connection,
    kind: int,
    *,
    task: str,
    metric: str,
    iteration: int | None,
    refresh: bool,
    scroll_id: str | None,
    one_metric: bool,
) -> Doc:
    """Give a metric's plots of an iteration, or of the last one before it; begins a walk."""
    walk = _walks.get(scroll_id)
    if isinstance(walk, _PlotWalk):
        _check_walk(walk, task, metric, one_metric, scroll_id)
        ranges = walk.ranges
    else:
        ranges, refresh, scroll_id = {}, True, new_id()
    if refresh:
        ranges = _plot_ranges(db, kind, task, metric if one_metric else None)
    walk = _PlotWalk(task, metric, None, one_metric, ranges)
    assert scroll_id is not None
    _walks.put(scroll_id, walk)
    if metric not in ranges:
        return _plot_answer(scroll_id)
    where, values = ("1", ()) if iteration is None else ("iter <= ?", (iteration,))
    found = _plots(db, select_series(db, task, (kind,), {metric: None}), where, values, "DESC")
    if found:
        walk.iteration = found[0]
    return _plot_answer(scroll_id, walk, found[1] if found else ())


def next_plot_sample(
    db: sqlite3.Connection, kind: int, *, task: str, scroll_id: str | None, earlier: bool, next_iteration: bool
) -> Doc:
    """Give the plots beside the last ones: the next metric's of the same iteration, or of the next iteration."""
    walk = _walks.get(scroll_id)
    if not isinstance(walk, _PlotWalk) or walk.task != task:
        raise errors.INVALID_SCROLL_ID(scroll_id=scroll_id)
    if walk.iteration is None:
        return _plot_answer(scroll_id)
    by_metric: dict[str, list[Series]] = {}
    for one in select_series(db, task, (kind,), {walk.metric: None} if walk.one_metric else None):
        by_metric.setdefault(one.metric, []).append(one)
    order, where = ("DESC", "iter < ?") if earlier else ("ASC", "iter > ?")
    found: tuple[int, list[Doc]] | None = None
    if not next_iteration and not walk.one_metric:
        for name in sorted(by_metric, reverse=earlier):
            if name < walk.metric if earlier else name > walk.metric:
                found = found or _plots(db, by_metric[name], "iter = ?", (walk.iteration,), order)
    if found is None:
        for name in sorted(by_metric, reverse=earlier):
            plots = _plots(db, by_metric[name], where, (walk.iteration,), order)
            if plots and (found is None or (plots[0] > found[0] if earlier else plots[0] < found[0])):
                found = plots
    if found is None:
        return _plot_answer(scroll_id)
    walk.iteration, walk.metric = found[0], found[1][0]["metric"]
    _walks.put(str(scroll_id), walk)
    return _plot_answer(scroll_id, walk, found[1])
