"""Endpoints: how a handler is registered, what it is given, and how an answer is made.

A service module declares::

    class GetByIdRequest(Request):
        task: str

    @endpoint("tasks.get_by_id", since="2.0")
    def get_by_id(call: Call, request: GetByIdRequest) -> Doc:
        ...

The request model refuses arguments it does not name.  A ``get_all`` call, whose filters are open-ended,
uses :class:`OpenRequest`: the store refuses what is no filter.
"""

from __future__ import annotations

import re
import sqlite3
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from . import API_VERSION
from . import _errors as errors
from ._answers import Answers
from ._auth import Authenticator, Identity
from ._body import Bodies
from ._bounds import MAX_NAME, check_arguments
from ._db import Database, explain
from ._edge import Proxies
from ._errors import ApiError
from ._patterns import MAX_PATTERN
from ._settings import Settings
from ._store import Doc, new_id

__all__ = [
    "ENDPOINTS",
    "Call",
    "Endpoint",
    "OpenRequest",
    "Request",
    "State",
    "endpoint",
    "for_each",
    "invoke",
    "is_read",
]

_PATH = re.compile(
    r"/?(?:v(?P<version>[0-9]{1,4}\.?[0-9]{1,4})/)?(?P<name>[a-zA-Z_]\w{1,99}\.[a-zA-Z_]\w{1,99})/?", re.ASCII
)
# What a page of another site may open without harm.  Everything else changes something.
_READ = re.compile(
    r"\w+\.get_\w+|events\.(\w+_histogram|\w+_raw|debug_images|plots|next_\w+|download_task_log)"
    r"|debug\.ping|server\.\w+|login\.supported_modes|auth\.(fixed_users_mode|validate_token)"
    r"|queues\.peek_task|projects\.validate_delete|tasks\.validate"
)
# They take a task, give a key to the door, and make the default queue where there is none.
_NOT_READ = {"queues.get_next_task", "auth.get_token_for_user", "queues.get_default"}


class Request(BaseModel):
    """Arguments of a call; unknown ones are refused, null means absent where a default exists."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class OpenRequest(BaseModel):
    """Arguments of a call with open-ended filters; read them all with :meth:`args`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def args(self) -> Doc:
        """Give every argument that the client sent."""
        return self.model_dump(exclude_unset=True)


@dataclass
class State:
    """What the process shares: settings, database, who may come in, which proxies are believed, room for messages."""

    settings: Settings
    db: Database
    auth: Authenticator
    proxies: Proxies = field(init=False)
    bodies: Bodies = field(init=False, default_factory=Bodies)
    answers: Answers = field(init=False, default_factory=Answers)

    def __post_init__(self) -> None:
        """Read the proxies from the settings."""
        self.proxies = Proxies(self.settings.trusted_proxies)


@dataclass
class Call:
    """One request to an endpoint.

    Attributes:
        identity: who asks; for endpoints without login it may be the nobody identity.
        batch: the objects of a JSON-lines body (``events.add_batch``), else None.
        worker: the ``X-ClearML-Worker`` header.
        cookies: to set in the answer (None deletes).
        raw: the answer only becomes JSON, so a list may hold documents as they are stored.
    """

    state: State
    identity: Identity
    endpoint: str = ""
    version: str = API_VERSION
    batch: list[Doc] | None = None
    batch_errors: list[str] = field(default_factory=list)
    worker: str = ""
    ip: str = ""
    authorization: str = ""
    cookies: dict[str, str | None] = field(default_factory=dict)
    raw: bool = False
    id: str = field(default_factory=new_id)

    @property
    def db(self) -> Database:
        """The database."""
        return self.state.db

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.state.settings


Handler = Callable[..., Any]


@dataclass(frozen=True)
class Endpoint:
    """A registered endpoint.

    Attributes:
        auth: False lets anybody call it.
        roles: who may call it; empty means every role.
        fast: True if the handler neither blocks nor computes long: it then runs on the event loop.
    """

    name: str
    since: str
    handler: Handler
    request: type[Request] | type[OpenRequest]
    auth: bool
    roles: frozenset[str]
    fast: bool


ENDPOINTS: dict[str, Endpoint] = {}


def endpoint(
    name: str, *, since: str = "2.1", auth: bool = True, roles: tuple[str, ...] = (), fast: bool = False
) -> Callable[[Handler], Handler]:
    """Register a handler ``(call, request) -> data`` under an API name."""

    def register(handler: Handler) -> Handler:
        hints = typing.get_type_hints(handler)
        hints.pop("return", None)
        request = next((t for t in hints.values() if isinstance(t, type) and issubclass(t, BaseModel)), Request)
        ENDPOINTS[name] = Endpoint(name, since, handler, request, auth, frozenset(roles), fast)  # type: ignore[arg-type]
        return handler

    return register


def parse_path(path: str) -> tuple[str, str]:
    """Split ``/v2.13/tasks.create`` into version and name.

    Raises:
        ApiError: 400 for a path that is none.
    """
    match = _PATH.fullmatch(path)
    if not match:
        raise ApiError(400, 0, f"Invalid request path {path[:200]}")
    return match["version"] or API_VERSION, match["name"]


def resolve(name: str, version: str) -> Endpoint:
    """Find an endpoint.

    Raises:
        ApiError: 404 with the name, as the official server answers.
    """
    found = ENDPOINTS.get(name)
    if found is None or _number(version) < _number(found.since):
        raise ApiError(404, 0, f"Unable to find endpoint for name {name} and version {version}")
    return found


def is_read(name: str) -> bool:
    """Return whether an endpoint changes nothing; one that is not known to be harmless is a write."""
    return _READ.fullmatch(name) is not None and name not in _NOT_READ


def for_each(
    call: Call,
    ids: Iterable[str],
    get: Callable[[sqlite3.Connection, str], Doc],
    operation: Callable[[sqlite3.Connection, Doc], Doc],
) -> Doc:
    """Read each document and do something to it; one that fails leaves the others alone.

    Returns:
        What ``*_many`` calls answer: ``succeeded`` and ``failed``, each with the ids.
    """
    succeeded, refused = [], []
    for id_ in ids:
        try:
            with call.db.write() as db:
                succeeded.append({"id": id_, **operation(db, get(db, id_))})
        except ApiError as error:
            detail = {"codes": [error.code, error.subcode], "msg": error.message, "data": error.data}
            refused.append({"id": id_, "error": detail})
    return {"succeeded": succeeded, "failed": refused}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def invoke(call: Call, target: Endpoint, data: Doc) -> Any:
    """Check role and arguments, then run the handler.

    Raises:
        ApiError: whatever is wrong with the call.
    """
    if target.auth and target.roles and call.identity.role not in target.roles:
        raise errors.ROLE_NOT_ALLOWED(role=call.identity.role, allowed=sorted(target.roles, reverse=True))
    request = parse_request(target.request, data, target.name)
    try:
        return target.handler(call, request)
    except (sqlite3.Error, OverflowError, UnicodeEncodeError, RecursionError) as error:
        told = explain(error)
        if told is None:
            raise
        raise told from error


def parse_request(model: type[Request] | type[OpenRequest], data: Doc, name: str) -> Request | OpenRequest:
    """Check a call's arguments.

    Raises:
        ApiError: 400, naming each argument that is unknown, missing or of the wrong form.
    """
    if name not in ("events.add", "events.add_batch"):  # these check event by event, and keep the good ones
        check_arguments(data, name, MAX_PATTERN if issubclass(model, OpenRequest) else MAX_NAME)
    try:
        # null is "not given" for the official server: drop it, so defaults apply and required ones are missed
        # (but "scroll_id": null is how a client starts to scroll)
        scrolls = issubclass(model, OpenRequest)
        return model.model_validate(
            {key: value for key, value in data.items() if value is not None or (scrolls and key == "scroll_id")}
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        unknown = [".".join(map(str, p["loc"])) for p in problems if p["type"] == "extra_forbidden"]
        if unknown:
            raise errors.INVALID_FIELDS(f"{name} does not know {', '.join(unknown)}", fields=unknown) from error
        missing = [".".join(map(str, p["loc"])) for p in problems if p["type"] == "missing"]
        if missing:
            refusal = errors.VALIDATION_ERROR("; ".join(f"error for field '{m}'. field is required!" for m in missing))
            refusal.data = {"missing": missing}
            raise refusal from error
        text = "; ".join(f"error for field '{'.'.join(map(str, p['loc']))}': {p['msg']}" for p in problems[:5])
        raise errors.VALIDATION_ERROR(text) from error
