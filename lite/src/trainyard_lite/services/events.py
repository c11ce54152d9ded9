"""``events.*``: what experiments report."""

from __future__ import annotations

from .. import _errors as errors
from .._rpc import Call, OpenRequest, endpoint
from .._store import Doc
from ._events_store import add_events, delete_task_events, task_event_urls

__all__ = ["delete_task_events", "task_event_urls"]


@endpoint("events.add")
def add(call: Call, request: OpenRequest) -> Doc:
    """Write one event."""
    return add_events(call.db, call.identity.user, [request.args()], call.worker)


@endpoint("events.add_batch")
def add_batch(call: Call, request: OpenRequest) -> Doc:
    """Write a batch of events, one JSON object a line."""
    if not call.batch:
        raise errors.BATCH_CONTAINS_NO_ITEMS()
    return add_events(call.db, call.identity.user, call.batch, call.worker)
