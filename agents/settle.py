"""What becomes of an experiment that lost its worker: it goes back into its queue once, or fails with a reason.

Workers (worker.py) settle what they had themselves, reapers (reaper.py) what dead workers had; both by ``settle``.

The server is the journal
-------------------------
Each call leaves the experiment in a state from which anyone can go on: the same program after a restart, or another
node's. So nothing about a settlement is kept on a node's disk, and a node that never comes back loses nothing.

======  ====================================  ==========================================================
call    endpoint                              what the server knows afterwards
======  ====================================  ==========================================================
1       ``tasks.edit_runtime``                the number of requeues, and for which death it was counted
2       ``tasks.stopped``                     status ``stopped``, message ``STOPPED_FOR``
3       ``tasks.enqueue``                     status ``queued``, an entry in the queue
4       ``queues.move_task_to_front``         the entry is the first
======  ====================================  ==========================================================

A call that failed, or whose answer was lost, is answered by another look: ``settle`` starts with the experiment as the
server has it, does what is left, and may be called again as often as needed. The death is part of the count
(``REQUEUED_RUN``), so two settlers, or one that is interrupted, count it once.

Facts (clearml-server 2.3, apiserver/bll/task/utils.py, task_operations.py, queue_bll.py)
----------------------------------------------------------------------------------------
``tasks.stopped`` accepts in_progress, queued, failed, closed, stopped; ``tasks.failed`` accepts in_progress, stopped,
closed, failed; ``tasks.enqueue`` accepts created, stopped, failed, and also queued: an experiment that a worker pulled
and has not started yet would be there twice. So the status is read right before each call, and nothing is forced: an
experiment that was completed, aborted or reset meanwhile stays what it is.

``tasks.enqueue`` into a queue that does not exist sets the status back to ``stopped`` with the reason ``failed
enqueueing`` and an empty message, so ``PUT_BACK`` in the runtime properties keeps what the message no longer holds.

``tasks.reset`` is neither needed nor wanted: it deletes artifacts, output models, console and scalars, and forgets the
queue. Without it the next run is what *Enqueue* on an aborted experiment is. A reset is a new start: it clears the
runtime properties, and with them the count; a clone does not inherit it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "FIELDS",
    "PUT_BACK",
    "REQUEUES",
    "STOPPED_FOR",
    "Outcome",
    "Policy",
    "RefusedError",
    "Server",
    "is_half_done",
    "queue_of",
    "settle",
]

Json = dict[str, Any]

# Runtime properties of an experiment: how often it went back, for which run that was counted, that it is on its way.
REQUEUES, REQUEUED_RUN, PUT_BACK = "trainyard_requeues", "trainyard_requeued_run", "trainyard_put_back"
STOPPED_FOR = "stopped to be put back into its queue"
# What the official server itself writes: when a queue did not take an experiment, and when its owner aborts it.
FAILED_ENQUEUEING, STOPPING = "failed enqueueing", "stopping"


# What settle and the questions of its callers need to know of an experiment: a field that is missing looks unset.
FIELDS = (
    *("id", "status", "status_changed", "status_message", "status_reason", "started", "last_worker"),
    *("last_worker_report", "last_update", "runtime", "execution.queue"),
)


class RefusedError(Exception):
    """The server answered, and said no."""


class Server(Protocol):
    """The API, as worker and reaper each have it."""

    def call(self, endpoint: str, /, **arguments: Any) -> Json:
        """Call an endpoint and return its data.

        Raises:
            RefusedError: the server said no.
            Exception: there was no answer; whether the call had its effect is unknown.
        """

    def log(self, task: str, text: str) -> None:
        """Write a line to an experiment's console."""


@dataclass(frozen=True)
class Policy:
    """What the site wants: back into the queue at most ``most`` times, or failed at once."""

    requeue: bool = True
    most: int = 2


@dataclass(frozen=True)
class Outcome:
    """What was done: ``how`` is requeue, fail, stop (its owner wanted that), or none: there was nothing to settle."""

    how: str
    number: int = 0
    why: str = ""


def is_half_done(task: Json) -> bool:
    """Return whether somebody began to put the experiment back and came no further than to stop it."""
    if task.get("status") != "stopped":
        return False
    back = (task.get("runtime") or {}).get(PUT_BACK)
    return task.get("status_message") == STOPPED_FOR or bool(back and task.get("status_reason") == FAILED_ENQUEUEING)


def settle(
    server: Server,
    task: str,
    *,
    why: str,
    policy: Policy,
    sign: str = "",
    lost: Callable[[Json], bool] = lambda _: True,
) -> Outcome:
    """Bring an experiment that lost its worker to its next state, from wherever an earlier try stopped.

    Args:
        server: the API.
        task: the experiment's id.
        why: what happened to its worker, for its owner.
        policy: what the site wants.
        sign: who settles, put in front of the reason, such as ``[reaper:gpu01]``.
        lost: returns whether the experiment, as the server has it, is still the one that was lost; asked before each
            step while it is in_progress or queued.

    Raises:
        RefusedError: the server said no to a step, and the experiment is still where it was.
        Exception: there was no answer; call again.
    """
    reason = f"{sign} {why}".strip()
    seen = _get(server, task)
    if seen is None:
        return Outcome("none")
    if not is_half_done(seen):
        if not _is_lost(server, seen) or not lost(seen):
            return Outcome("none")
        if seen.get("status_message") == STOPPING:
            server.call("tasks.stopped", task=task, status_reason=f"{reason}; its owner had aborted it")
            return Outcome("stop", 0, f"{why}; its owner had aborted it")
        refused: RefusedError | None = None
        try:
            back = _count(server, seen, policy)
            if back or seen["status"] == "queued":  # tasks.failed does not accept that one
                server.call("tasks.stopped", task=task, status_reason=reason, status_message=STOPPED_FOR)
            if not back:
                return _fail(server, task, _too_often(seen, policy, why), sign)
        except RefusedError as error:
            refused = error
        seen = _get(server, task)
        if seen is None or not is_half_done(seen):
            if refused and seen is not None and _is_lost(server, seen) and lost(seen):
                raise refused
            return Outcome("none")  # it ended, or its owner or another settler did something, in this moment
    number = int((seen.get("runtime") or {}).get(REQUEUES, 0))
    if not policy.requeue or number > policy.most:
        return _fail(server, task, _too_often(seen, policy, why), sign)
    return _put_back(server, seen, number, why, sign, policy)


def _get(server: Server, task: str) -> Json | None:
    """Return an experiment; None when it is deleted."""
    found = server.call("tasks.get_all", id=[task], only_fields=list(FIELDS), search_hidden=True)["tasks"]
    return dict(found[0]) if found else None


def queue_of(task: Json) -> str:
    """Return the id of the queue that an experiment was sent to; empty when there is none."""
    return str((task.get("execution") or {}).get("queue") or "")


def _is_lost(server: Server, task: Json) -> bool:
    """Return whether an experiment runs nowhere but seems to: in_progress, or queued and in no queue."""
    if task["status"] == "queued":
        return not _waits(server, task)
    return bool(task["status"] == "in_progress")


def _waits(server: Server, task: Json) -> bool:
    """Return whether an experiment has an entry in its queue."""
    try:
        entries = server.call("queues.get_by_id", queue=queue_of(task))["queue"].get("entries") or []
    except RefusedError:
        return False  # the queue was deleted
    return any(entry["task"] == task["id"] for entry in entries)


def _count(server: Server, task: Json, policy: Policy) -> bool:
    """Count this death, once, and return whether the experiment goes back into its queue."""
    runtime = task.get("runtime") or {}
    # Nothing but a change of the status changes this time: the first call of a settlement does not.
    run = f"{task['status']} since {task.get('status_changed')}"
    number = int(runtime.get(REQUEUES, 0)) + (runtime.get(REQUEUED_RUN) != run)
    if not policy.requeue or number > policy.most:
        return False
    values = {REQUEUES: number, REQUEUED_RUN: run, PUT_BACK: "yes"}
    if any(runtime.get(name) != value for name, value in values.items()):
        server.call("tasks.edit_runtime", task=task["id"], force=True, add_or_update=values, remove=[])
    return True


def _put_back(server: Server, task: Json, number: int, why: str, sign: str, policy: Policy) -> Outcome:
    """Put a stopped experiment in front of its queue, or fail it where that queue does not take it."""
    id_, reason = task["id"], f"{sign} {why}".strip()
    try:
        server.call("tasks.enqueue", task=id_, queue=queue_of(task), status_reason=reason)
    except RefusedError as error:
        now = _get(server, id_)
        if now is None:
            return Outcome("none")
        if is_half_done(now) and not _waits(server, now):
            queue = queue_of(task)
            return _fail(server, id_, f"{why}; it cannot go back into its queue {queue or '(none)'}: {error}", sign)
        # Somebody else did it in this moment.
    with contextlib.suppress(RefusedError):  # a worker was faster
        server.call("queues.move_task_to_front", queue=queue_of(task), task=id_)
    times = f"time {number} of at most {policy.most}"
    # What follows is for people and for order only: it must not make the settlement fail.
    with contextlib.suppress(Exception):
        server.call("tasks.edit_runtime", task=id_, force=True, add_or_update={}, remove=[PUT_BACK])
    with contextlib.suppress(Exception):
        server.log(id_, f"{reason}: it goes back to the front of its queue ({times})")
    return Outcome("requeue", number, why)


def _too_often(task: Json, policy: Policy, why: str) -> str:
    count = int((task.get("runtime") or {}).get(REQUEUES, 0))
    return f"{why}; it was put back {min(count, policy.most)} time(s) already" if policy.requeue else why


def _fail(server: Server, task: str, why: str, sign: str) -> Outcome:
    """Mark an experiment failed, with the reason in its console too."""
    reason = f"{sign} {why}".strip()
    server.call("tasks.failed", task=task, status_reason=reason, status_message=reason)
    with contextlib.suppress(Exception):
        server.log(task, f"{reason}: it has failed")
    return Outcome("fail", 0, why)
