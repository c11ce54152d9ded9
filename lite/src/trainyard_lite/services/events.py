"""``events.*``: what experiments report."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response, StreamingResponse

from .. import _errors as errors
from .._bounds import dumps, load_object
from .._collections import MODELS, TASKS
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc
from ..domain.events import read, samples
from ..domain.events.read import Axis, MetricVariants
from ..domain.events.store import (
    IMAGE,
    LOG,
    NO_ITER,
    PLOT,
    SCALAR,
    SINGLE_VALUE_ITER,
    VECTOR,
    add_events,
    delete_task_events,
    drop_empty_series,
    now_ms,
)

_MAX_PAGE = 10_000  # events
_MAX_RAW = 200_000  # scalars in one page of scalar_metrics_iter_raw
_MAX_PLOTS = 1000  # in one page of get_multi_task_plots
_SCROLL_SIZE = 500
_LOG_FIELDS = frozenset(("asctime", "timestamp", "level", "worker", "msg"))

EventType = Literal["training_stats_scalar", "training_stats_vector", "training_debug_image", "plot", "log", "*"]
Order = Literal["asc", "desc"]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
BatchSize = Annotated[int, Field(ge=1, lt=2**31)]
Iters = Annotated[int, Field(ge=1, lt=2**31)]
Ids = Annotated[list[str], Field(min_length=1)]


# Writing


@endpoint("events.add")
def add(call: Call, request: OpenRequest) -> Doc:
    """Write one event."""
    return add_events(call.db, call.identity.user, [request.args()], call.worker)


@endpoint("events.add_batch")
def add_batch(call: Call, request: OpenRequest) -> Doc:
    """Write a batch of events, one JSON object a line; a plain object is a batch of one."""
    single = request.args()
    batch = call.batch or ([single] if single else [])
    if not batch:
        raise errors.BATCH_CONTAINS_NO_ITEMS()
    return add_events(call.db, call.identity.user, batch, call.worker)


class DeleteForTaskRequest(Request):
    """``allow_locked`` reaches into a published task."""

    task: str
    allow_locked: bool = False


def _check_unlocked(db: Any, id_: str, *, model: bool, allow_locked: bool) -> None:
    doc = (MODELS if model else TASKS).get(db, id_)
    kind, error = ("model", errors.INVALID_MODEL_ID) if model else ("task", errors.INVALID_TASK_ID)
    if doc is None:
        raise error(ids=[id_]) if model else error(id=id_, company=COMPANY_ID)
    locked = doc.get("ready") if model else doc.get("status") in ("publishing", "published")
    if locked and not allow_locked:
        raise error(replacement=f"cannot update events for a published {kind}", company=COMPANY_ID, id=id_)


@endpoint("events.delete_for_task")
def delete_for_task(call: Call, request: DeleteForTaskRequest) -> Doc:
    """Delete all events of a task; its ``last_metrics`` stay, as in the official server."""
    with call.db.write() as db:
        _check_unlocked(db, request.task, model=False, allow_locked=request.allow_locked)
        return {"deleted": delete_task_events(db, [request.task])}


class DeleteForModelRequest(Request):
    """``allow_locked`` reaches into a published model."""

    model: str
    allow_locked: bool = False


@endpoint("events.delete_for_model", since="2.22")
def delete_for_model(call: Call, request: DeleteForModelRequest) -> Doc:
    """Delete all events of a model."""
    with call.db.write() as db:
        _check_unlocked(db, request.model, model=True, allow_locked=request.allow_locked)
        return {"deleted": delete_task_events(db, [request.model])}


class ClearTaskLogRequest(Request):
    """What to delete: lines older than ``threshold_sec``, of some metrics."""

    task: str
    threshold_sec: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    allow_locked: bool = False
    exclude_metrics: list[str] | None = None
    include_metrics: list[str] | None = None


@endpoint("events.clear_task_log", since="2.19")
def clear_task_log(call: Call, request: ClearTaskLogRequest) -> Doc:
    """Delete log lines of a task."""
    with call.db.write() as db:
        _check_unlocked(db, request.task, model=False, allow_locked=request.allow_locked)
        deleted = 0
        before = now_ms() - request.threshold_sec * 1000 if request.threshold_sec else 2**63 - 1
        for one in read.select_series(db, request.task, (LOG,)):
            if request.include_metrics and one.metric not in request.include_metrics:
                continue
            if request.exclude_metrics and one.metric in request.exclude_metrics:
                continue
            sql = "DELETE FROM event_log WHERE series = ? AND time < ?"
            deleted += db.execute(sql, (one.id, before)).rowcount
        drop_empty_series(db, request.task, LOG)
        return {"deleted": deleted}


# Arguments that many calls share


class MetricVariantsRequest(Request):
    """A metric, and which of its variants (none named: all)."""

    metric: str
    variants: list[str] | None = None


class TaskMetricRequest(Request):
    """A task, one of its metrics (none named: all), and which variants."""

    task: str
    metric: str | None = None
    variants: list[str] | None = None


class OneTaskRequest(Request):
    """A task, or a model when ``model_events`` is set."""

    task: str
    model_events: bool = False


class ManyTasksRequest(Request):
    """Tasks, or models when ``model_events`` is set."""

    tasks: Ids
    model_events: bool = False


def _selection(metrics: Sequence[MetricVariantsRequest] | None) -> MetricVariants | None:
    return {one.metric: one.variants for one in metrics} if metrics else None


def _owner(call: Call, request: OneTaskRequest) -> str:
    return read.check_owners(call.db.read(), [request.task], model=request.model_events)[request.task]


# Scalars


class HistogramRequest(OneTaskRequest):
    """How many points, and along which axis."""

    samples: int = Field(default=2000, ge=1, le=6000)
    key: Axis = "iter"
    metrics: list[MetricVariantsRequest] | None = None


def _histograms(
    call: Call, task: str, axis: Axis, count: int, metrics: MetricVariants | None, *, model: bool
) -> dict[str, Doc]:
    db = call.db.read()
    result: dict[str, Doc] = {}
    labels: dict[tuple[str, str], str] | None = None
    for one in read.select_series(db, task, (SCALAR,), metrics):
        if one.max_iter <= SINGLE_VALUE_ITER:
            continue
        if labels is None:
            labels = _axis_labels(call, task, model=model)
        drawn = read.histogram(db, one, count, axis)
        if (label := labels.get((one.metric, one.variant))) is not None:
            drawn["x_axis_label"] = label
        result.setdefault(one.metric, {})[one.variant] = drawn
    return result


def _axis_labels(call: Call, task: str, *, model: bool) -> dict[tuple[str, str], str]:
    table = (MODELS if model else TASKS).table
    sql = f"SELECT json_extract(doc, '$.last_metrics') FROM {table} WHERE id = ?"
    row = call.db.read().execute(sql, (task,)).fetchone()
    metrics = load_object(row[0]) if row and isinstance(row[0], str) and "x_axis_label" in row[0] else {}
    return {
        (str(entry.get("metric")), str(entry.get("variant"))): str(entry["x_axis_label"])
        for variants in metrics.values()
        if isinstance(variants, dict)
        for entry in variants.values()
        if isinstance(entry, dict) and entry.get("x_axis_label") is not None
    }


@endpoint("events.scalar_metrics_iter_histogram")
def scalar_metrics_iter_histogram(call: Call, request: HistogramRequest) -> Doc:
    """Draw the curves of one task."""
    _owner(call, request)
    metrics = _selection(request.metrics)
    return _histograms(call, request.task, request.key, request.samples, metrics, model=request.model_events)


class MultiHistogramRequest(ManyTasksRequest):
    """How many points, and along which axis."""

    tasks: Annotated[list[str], Field(min_length=1, max_length=100)]
    samples: int = Field(default=2000, ge=1, le=6000)
    key: Axis = "iter"
    metrics: list[MetricVariantsRequest] | None = None


@endpoint("events.multi_task_scalar_metrics_iter_histogram")
def multi_task_scalar_metrics_iter_histogram(call: Call, request: MultiHistogramRequest) -> Doc:
    """Draw the curves of several tasks into one frame for each metric and variant."""
    names = read.check_owners(call.db.read(), request.tasks, model=request.model_events)
    metrics = _selection(request.metrics)
    result: dict[str, dict[str, Doc]] = {}
    for task, name in names.items():
        drawn = _histograms(call, task, request.key, request.samples, metrics, model=request.model_events)
        for metric, variants in drawn.items():
            for variant, data in variants.items():
                result.setdefault(metric, {}).setdefault(variant, {})[task] = data | {"name": name}
    return {"metrics": result}


class SingleValuesRequest(ManyTasksRequest):
    """Of which metrics."""

    metrics: list[MetricVariantsRequest] | None = None


@endpoint("events.get_task_single_value_metrics", since="2.20")
def get_task_single_value_metrics(call: Call, request: SingleValuesRequest) -> Doc:
    """Read the values that tasks reported without an iteration."""
    db = call.db.read()
    names = read.check_owners(db, request.tasks, model=request.model_events)
    metrics = _selection(request.metrics)
    tasks = []
    for task, name in names.items():
        values = read.single_values(db, read.select_series(db, task, (SCALAR,), metrics))
        if values:
            tasks.append({"task": task, "task_name": name, "values": values})
    return {"tasks": tasks}


class TaskRequest(Request):
    """Which task."""

    task: str


@endpoint("events.get_task_latest_scalar_values")
def get_task_latest_scalar_values(call: Call, request: TaskRequest) -> Doc:
    """Read the last value of each scalar.  (The official server leaves out those that are not positive.)"""
    db = call.db.read()
    read.check_owners(db, [request.task], model=False)
    task = TASKS.get(db, request.task) or {}
    metrics: dict[str, list[Doc]] = {}
    written, last_iter = 0, NO_ITER
    for one in read.select_series(db, request.task, read.KINDS_OF["*"]):
        last_iter = max(last_iter, one.max_iter)
        if one.kind != SCALAR:
            continue
        sql = "SELECT value FROM event_scalar WHERE series = ? AND value IS NOT NULL ORDER BY iter DESC LIMIT 1"
        row = db.execute(sql, (one.id,)).fetchone()
        if row:
            variants = metrics.setdefault(one.metric, [])
            variants.append({"name": one.variant, "last_value": row[0], "last_10_value": row[0]})
            written = max(written, one.written)
    return {
        "metrics": [{"name": name, "variants": variants} for name, variants in metrics.items()],
        "last_iter": 0 if last_iter == NO_ITER else last_iter,
        "name": task.get("name"),
        "status": task.get("status"),
        "last_timestamp": written,
    }


@endpoint("events.get_scalar_metrics_and_variants")
def get_scalar_metrics_and_variants(call: Call, request: OneTaskRequest) -> Doc:
    """List the scalar metrics of a task."""
    _owner(call, request)
    return {"metrics": read.metrics_and_variants(read.select_series(call.db.read(), request.task, (SCALAR,)))}


class ScalarDataRequest(OneTaskRequest):
    """Which metric, and where to go on."""

    metric: str
    scroll_id: str | None = None
    no_scroll: bool = False


@endpoint("events.get_scalar_metric_data")
def get_scalar_metric_data(call: Call, request: ScalarDataRequest) -> Doc:
    """Read the events of one metric, the latest iteration first."""
    _owner(call, request)
    if request.scroll_id == read.EMPTY_SCROLL:
        return {"events": [], "returned": 0, "total": 0, "scroll_id": None}
    after = read.read_token(request.scroll_id, "after")["after"] if request.scroll_id else None
    db = call.db.read()
    series = read.select_series(db, request.task, (SCALAR,), {request.metric: None})
    events, last = read.merged_events(db, series, _SCROLL_SIZE, after=after, descending=True)
    scroll = read.make_token({"after": last}) if last else read.EMPTY_SCROLL
    return {
        "events": events,
        "returned": len(events),
        "total": read.count_events(db, series),
        "scroll_id": None if request.no_scroll else scroll,
    }


class ScalarRawRequest(OneTaskRequest):
    """Which metric, how many points, along which axis, and where to go on."""

    metric: MetricVariantsRequest
    batch_size: int | None = Field(default=None, ge=0, lt=2**31)
    key: Axis = "iter"
    count_total: bool = False
    scroll_id: str | None = None


@endpoint("events.scalar_metrics_iter_raw", since="2.16")
def scalar_metrics_iter_raw(call: Call, request: ScalarRawRequest) -> Doc:
    """Read every point of one metric, page by page."""
    _owner(call, request)
    state: Doc = read.read_token(request.scroll_id, "after") if request.scroll_id else {}
    total = state.get("total")
    if state.get("end"):
        return {"returned": 0, "total": total, "scroll_id": request.scroll_id, "variants": {}}
    size = request.batch_size or state.get("size") or _MAX_PAGE
    if type(size) is not int or size < 1:
        raise errors.INVALID_SCROLL_ID(scroll_id=request.scroll_id)
    db = call.db.read()
    series = read.select_series(db, request.task, (SCALAR,), _selection([request.metric]))
    if request.count_total and total is None:
        total = read.count_events(db, series)
    found, last = read.raw_scalars(db, series, min(size, _MAX_RAW), axis=request.key, after=state.get("after"))
    variants = {variant: {"y": y, request.key: x} for variant, (x, y) in found.items()}
    returned = sum(len(x) for x, _ in found.values())
    scroll = read.make_token({"after": last, "end": last is None, "total": total, "size": size})
    return {"returned": returned, "total": total, "scroll_id": scroll, "variants": variants}


# Vectors


@endpoint("events.get_vector_metrics_and_variants")
def get_vector_metrics_and_variants(call: Call, request: OneTaskRequest) -> Doc:
    """List the vector metrics of a task."""
    _owner(call, request)
    return {"metrics": read.metrics_and_variants(read.select_series(call.db.read(), request.task, (VECTOR,)))}


class VectorRequest(OneTaskRequest):
    """Which metric and variant."""

    metric: str
    variant: str


@endpoint("events.vector_metrics_iter_histogram")
def vector_metrics_iter_histogram(call: Call, request: VectorRequest) -> Doc:
    """Read the vectors of one metric and variant."""
    _owner(call, request)
    db = call.db.read()
    iterations, vectors = [], []
    for one in read.select_series(db, request.task, (VECTOR,), {request.metric: [request.variant]}):
        for event in read.doc_events(db, one, tail=f"ORDER BY iter LIMIT {_MAX_PAGE}"):
            iterations.append(event.get("iter"))
            vectors.append(event.get("value"))
    return {"metric": request.metric, "variant": request.variant, "vectors": vectors, "iterations": iterations}


# Logs


class TaskLogRequest(Request):
    """From where, in which direction, how many lines; ``order`` sorts the answer."""

    task: str
    batch_size: BatchSize = 5000
    navigate_earlier: bool = True
    from_timestamp: Int64 | None = None
    order: Order | None = None
    metrics: list[MetricVariantsRequest] | None = None


@endpoint("events.get_task_log", since="2.9")
def get_task_log(call: Call, request: TaskLogRequest) -> Doc:
    """Read lines of a task's console."""
    db = call.db.read()
    read.check_owners(db, [request.task], model=False)
    series = read.select_series(db, request.task, (LOG,), _selection(request.metrics))
    size = min(request.batch_size, _MAX_PAGE)
    events = read.log_page(db, series, size, earlier=request.navigate_earlier, from_time=request.from_timestamp)
    if request.order and (request.order == "asc") == request.navigate_earlier:
        events.reverse()
    return {"events": events, "returned": len(events), "total": read.count_events(db, series)}


class DownloadLogRequest(Request):
    """How a line looks: ``json``, or ``text`` by a format with {asctime} {timestamp} {level} {worker} {msg}."""

    task: str
    line_type: str = "json"
    line_format: str = "{asctime} {worker} {level} {msg}"


def _line_format(text: str) -> list[tuple[str, str | None]]:
    """Split a line format into literal texts and field names; nothing of it is evaluated."""
    if not text:
        raise errors.MISSING_REQUIRED_FIELDS("line_format is required for plain text lines")
    try:
        parts = list(string.Formatter().parse(text.rstrip("\n") + "\n"))
    except ValueError as error:
        raise errors.FIELDS_VALUE_ERROR("invalid line format", error=str(error)) from error
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise errors.FIELDS_VALUE_ERROR("invalid line format", error="lite formats no field beyond its plain text")
    unknown = sorted({name for _, name, _, _ in parts if name is not None and name not in _LOG_FIELDS})
    if unknown:
        raise errors.FIELDS_VALUE_ERROR("undefined placeholders in line format", placeholders=unknown)
    return [(literal, name) for literal, name, _, _ in parts]


@endpoint("events.download_task_log")
def download_task_log(call: Call, request: DownloadLogRequest) -> Response:
    """Give the whole console of a task as a file."""
    read.check_owners(call.db.read(), [request.task], model=False)
    as_json = request.line_type.lower() == "json"
    template = [] if as_json else _line_format(request.line_format)

    def line(event: Doc) -> bytes:
        event["asctime"] = event["timestamp"]
        if as_json:
            return dumps({k: v for k, v in event.items() if k not in ("timestamp", "type", "task")}) + b"\n"
        return "".join(text + (str(event.get(name, "")) if name else "") for text, name in template).encode(
            "utf-8", "replace"
        )

    def generate() -> Iterator[bytes]:
        after = (-1, -1)
        while True:  # each page is read by whichever thread serves it, on that thread's connection
            db = call.db.read()
            series = read.select_series(db, request.task, (LOG,))
            page = read.log_pages(db, series, 1000, after)
            if page:
                after = page[-1][1]
                yield b"".join(line(event) for event, _ in page)
            if len(page) < 1000:
                return

    name = "".join(c for c in request.task if c.isalnum())
    headers = {"Content-Disposition": f'attachment; filename="task_{name}.log"'}
    return StreamingResponse(generate(), media_type="text/plain", headers=headers)


# Events of any kind


class TaskEventsRequest(OneTaskRequest):
    """Which events, in which order of iterations, and where to go on."""

    batch_size: BatchSize | None = None
    metrics: list[MetricVariantsRequest] | None = None
    event_type: EventType = "*"
    order: Order = "asc"
    scroll_id: str | None = None
    count_total: bool = True


class _TaskEventsState(Request):
    """What the scroll id of get_task_events says."""

    after: tuple[int, int, int, int] | None
    total: int | None
    size: Annotated[int, Field(ge=1, le=_MAX_PAGE)]
    type: EventType
    order: Order
    metrics: dict[str, list[str] | None] | None


@endpoint("events.get_task_events")
def get_task_events(call: Call, request: TaskEventsRequest) -> Doc:
    """Read a task's events page by page; the scroll id keeps what the first call asked for."""
    _owner(call, request)
    db = call.db.read()
    if request.scroll_id:
        try:
            state = _TaskEventsState.model_validate(read.read_token(request.scroll_id, "after"))
        except ValueError as error:
            raise errors.INVALID_SCROLL_ID(scroll_id=request.scroll_id) from error
        if state.after is None:
            return {"returned": 0, "total": state.total, "scroll_id": request.scroll_id, "events": []}
        state.size = min(request.batch_size or state.size, _MAX_PAGE)
    else:
        selection = _selection(request.metrics)
        state = _TaskEventsState(
            after=None,
            total=None,
            size=min(request.batch_size or _SCROLL_SIZE, _MAX_PAGE),
            type=request.event_type,
            order=request.order,
            metrics={name: list(v) if v else None for name, v in selection.items()} if selection else None,
        )
    series = read.select_series(db, request.task, read.KINDS_OF[state.type], state.metrics)
    if request.count_total and state.total is None:
        state.total = read.count_events(db, series)
    events, last = read.merged_events(db, series, state.size, after=state.after, descending=state.order == "desc")
    state.after = last
    return {
        "returned": len(events),
        "total": state.total,
        "scroll_id": read.make_token(state.model_dump()),
        "events": events,
    }


class TaskMetricsRequest(ManyTasksRequest):
    """Metrics of which kind of event."""

    event_type: EventType


@endpoint("events.get_task_metrics", since="2.7")
def get_task_metrics(call: Call, request: TaskMetricsRequest) -> Doc:
    """List the metrics of each task (those with iterations)."""
    db = call.db.read()
    read.check_owners(db, request.tasks, model=request.model_events)
    kinds = read.KINDS_OF[request.event_type]
    return {
        "metrics": [
            {
                "task": task,
                "metrics": list(
                    dict.fromkeys(
                        s.metric for s in read.select_series(db, task, kinds) if s.max_iter > SINGLE_VALUE_ITER
                    )
                ),
            }
            for task in request.tasks
        ]
    }


class MultiTaskMetricsRequest(ManyTasksRequest):
    """Metrics of which kind of event."""

    event_type: EventType = "*"


@endpoint("events.get_multi_task_metrics", since="2.28")
def get_multi_task_metrics(call: Call, request: MultiTaskMetricsRequest) -> Doc:
    """List the metrics and variants that any of the tasks has."""
    db = call.db.read()
    read.check_owners(db, request.tasks, model=request.model_events)
    found: dict[str, set[str]] = {}
    for task in request.tasks:
        for one in read.select_series(db, task, read.KINDS_OF[request.event_type]):
            found.setdefault(one.metric, set()).add(one.variant)
    return {"metrics": [{"metric": metric, "variants": sorted(found[metric])} for metric in sorted(found)]}


# Plots


class TaskPlotsRequest(OneTaskRequest):
    """How many iterations of each plot.  All come in one page, so ``scroll_id`` and ``no_scroll`` have no effect."""

    iters: Iters = 1
    metrics: list[MetricVariantsRequest] | None = None
    scroll_id: str | None = None
    no_scroll: bool = False


@endpoint("events.get_task_plots")
def get_task_plots(call: Call, request: TaskPlotsRequest) -> Doc:
    """Read the last plots of each metric and variant."""
    _owner(call, request)
    db = call.db.read()
    plots: list[Doc] = []
    for one in read.select_series(db, request.task, (PLOT,), _selection(request.metrics)):
        plots += read.doc_events(db, one, values=(request.iters,), tail="ORDER BY iter DESC LIMIT ?")
    return {"plots": plots, "returned": len(plots), "total": len(plots), "scroll_id": None}


class MultiTaskPlotsRequest(ManyTasksRequest):
    """How many iterations of each plot, counted by task and metric or by task alone."""

    iters: Iters = 1
    scroll_id: str | None = None
    no_scroll: bool = False
    last_iters_per_task_metric: bool = True
    metrics: list[MetricVariantsRequest] | None = None


@endpoint("events.get_multi_task_plots")
def get_multi_task_plots(call: Call, request: MultiTaskPlotsRequest) -> Doc:
    """Read the last plots of several tasks as ``metric: variant: task: iteration: {name, plots}``."""
    db = call.db.read()
    names = read.check_owners(db, request.tasks, model=request.model_events)
    if request.scroll_id == read.EMPTY_SCROLL:
        return {"plots": {}, "returned": 0, "total": 0, "scroll_id": None}
    offset = read.read_token(request.scroll_id).get("offset") if request.scroll_id else 0
    if type(offset) is not int or not 0 <= offset < 2**31:
        raise errors.INVALID_SCROLL_ID(scroll_id=request.scroll_id)
    found: list[tuple[int, str, str, str, int]] = []
    for task in names:
        groups: dict[str, list[read.Series]] = {}
        for one in read.select_series(db, task, (PLOT,), _selection(request.metrics)):
            groups.setdefault(one.metric if request.last_iters_per_task_metric else "", []).append(one)
        for group in groups.values():
            by_id = {one.id: one for one in group}
            where = f"FROM event_doc WHERE series IN ({', '.join(map(str, by_id))}) AND iter > {NO_ITER}"
            rows = db.execute(
                f"SELECT iter, series, id {where} AND iter IN"
                f" (SELECT DISTINCT iter {where} ORDER BY iter DESC LIMIT ?) ORDER BY id",
                (request.iters,),
            )
            found += [(row[0], by_id[row[1]].metric, by_id[row[1]].variant, task, row[2]) for row in rows]
    found.sort(reverse=True)
    page = found[offset : offset + _MAX_PLOTS]
    plots: dict[str, Any] = {}
    for iteration, metric, variant, task, number in sorted(page, key=lambda p: (*p[1:4], p[0]), reverse=True):
        doc = db.execute("SELECT doc FROM event_doc WHERE id = ?", (number,)).fetchone()
        if doc:
            place = plots.setdefault(metric, {}).setdefault(variant, {}).setdefault(task, {})
            entry = place.setdefault(str(iteration), {"name": names[task], "plots": []})
            entry["plots"].append(load_object(doc[0]))
    scroll = read.make_token({"offset": offset + len(page)}) if page else read.EMPTY_SCROLL
    return {
        "plots": plots,
        "returned": len(plots),
        "total": len(found),
        "scroll_id": None if request.no_scroll else scroll,
    }


# Samples


class MetricEventsRequest(Request):
    """Of which tasks and metrics, how many iterations, in which direction from the last page."""

    metrics: Annotated[list[TaskMetricRequest], Field(min_length=1)]
    iters: Annotated[int, Field(ge=1, le=_MAX_PAGE)] = 1
    navigate_earlier: bool = True
    refresh: bool = False
    scroll_id: str | None = None
    model_events: bool = False


def _metric_events(call: Call, request: MetricEventsRequest, kind: int) -> Doc:
    tasks: dict[str, dict[str, list[str] | None]] = {}
    whole: set[str] = set()
    for one in request.metrics:
        wanted = tasks.setdefault(one.task, {})
        if one.metric is None:
            whole.add(one.task)
        else:
            wanted[one.metric] = one.variants
    for task in whole:
        tasks[task] = {}
    db = call.db.read()
    read.check_owners(db, list(tasks), model=request.model_events)
    return samples.iteration_events(
        db,
        kind,
        tasks,
        iters=request.iters,
        earlier=request.navigate_earlier,
        refresh=request.refresh,
        scroll_id=request.scroll_id,
    )


@endpoint("events.debug_images", since="2.7")
def debug_images(call: Call, request: MetricEventsRequest) -> Doc:
    """Read debug images, iteration by iteration."""
    return _metric_events(call, request, IMAGE)


@endpoint("events.plots", since="2.20")
def plots(call: Call, request: MetricEventsRequest) -> Doc:
    """Read plots, iteration by iteration."""
    return _metric_events(call, request, PLOT)


class PlotSampleRequest(OneTaskRequest):
    """A metric, and the iteration to begin with (none named: the last)."""

    metric: str
    iteration: Int64 | None = None
    refresh: bool = False
    scroll_id: str | None = None
    navigate_current_metric: bool = True


class ImageSampleRequest(PlotSampleRequest):
    """A variant too."""

    variant: str


class NextSampleRequest(OneTaskRequest):
    """In which direction; ``next_iteration`` skips the other variants of this one."""

    scroll_id: str | None = None
    navigate_earlier: bool = True
    next_iteration: bool = False


@endpoint("events.get_debug_image_sample", since="2.12")
def get_debug_image_sample(call: Call, request: ImageSampleRequest) -> Doc:
    """Read one debug image."""
    _owner(call, request)
    return samples.image_sample(
        call.db.read(),
        task=request.task,
        metric=request.metric,
        variant=request.variant,
        iteration=request.iteration,
        refresh=request.refresh,
        scroll_id=request.scroll_id,
        one_metric=request.navigate_current_metric,
    )


@endpoint("events.next_debug_image_sample", since="2.12")
def next_debug_image_sample(call: Call, request: NextSampleRequest) -> Doc:
    """Read the debug image beside the last one."""
    _owner(call, request)
    return samples.next_image_sample(
        call.db.read(),
        task=request.task,
        scroll_id=request.scroll_id,
        earlier=request.navigate_earlier,
        next_iteration=request.next_iteration,
    )


@endpoint("events.get_plot_sample", since="2.20")
def get_plot_sample(call: Call, request: PlotSampleRequest) -> Doc:
    """Read one metric's plots."""
    _owner(call, request)
    return samples.plot_sample(
        call.db.read(),
        PLOT,
        task=request.task,
        metric=request.metric,
        iteration=request.iteration,
        refresh=request.refresh,
        scroll_id=request.scroll_id,
        one_metric=request.navigate_current_metric,
    )


@endpoint("events.next_plot_sample", since="2.20")
def next_plot_sample(call: Call, request: NextSampleRequest) -> Doc:
    """Read the plots beside the last ones."""
    _owner(call, request)
    return samples.next_plot_sample(
        call.db.read(),
        PLOT,
        task=request.task,
        scroll_id=request.scroll_id,
        earlier=request.navigate_earlier,
        next_iteration=request.next_iteration,
    )


class ClearScrollRequest(Request):
    """Which scroll."""

    scroll_id: str | None = None


@endpoint("events.clear_scroll", since="2.18")
def clear_scroll(call: Call, request: ClearScrollRequest) -> Doc:
    """Forget a scroll; lite keeps none that would need it."""
    return {}
