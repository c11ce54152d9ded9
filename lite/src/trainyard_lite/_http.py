"""The API's HTTP side: paths, bodies, login and the envelope."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from . import _errors as errors
from ._auth import NOBODY
from ._body import KB, MB, check_depth, check_nodes
from ._bounds import dumps
from ._edge import is_foreign, is_own_page
from ._errors import ApiError
from ._rpc import Call, Endpoint, State, invoke, is_read, parse_path, resolve
from ._store import Doc, new_id

__all__ = ["body_limit", "create_api"]

# The SDK sends at most 15 MB of events in a call (api.http.max_req_size); one plot may be larger.  Tasks come with
# their configurations, uncommitted changes (500 kB) and previews of artifacts (64 kB each).
_BODY_LIMITS = {"events": 32 * MB, "tasks": 16 * MB, "models": 16 * MB, "projects": 16 * MB, "auth": 64 * KB}
_OTHER_LIMIT = 1 * MB
_STRANGER_LIMIT = 64 * KB  # of the endpoints without a login
_INLINE_BYTES = 64 * KB  # parsed on the event loop, in less than a millisecond
_MAX_FIELDS = 1000
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18}")
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_OK: tuple[int, int, str, Doc] = (200, 0, "OK", {})
_T = TypeVar("_T")
_log = logging.getLogger("trainyard_lite.api")


def create_api(state: State) -> Starlette:
    """Make the ASGI application of port 8008."""

    async def handle(request: Request) -> Response:
        return await _handle(state, request)

    methods = ["GET", "POST", "PUT", "HEAD"]
    return Starlette(routes=[Route("/{path:path}", handle, methods=methods)])


async def _handle(state: State, request: Request) -> Response:
    started = time.perf_counter()
    call = Call(state=state, identity=NOBODY, raw=True, ip=state.proxies.client(request))
    name, requested, actual = "", "", None
    headers: dict[str, str] = {}
    try:
        requested, name = parse_path(request.scope["path"])
        target = resolve(name, requested)
        actual = target.since
        call.endpoint, call.version = name, requested
        if request.headers.get("content-encoding"):
            raise errors.UNSUPPORTED_ENCODING(request.headers["content-encoding"])
        worker = request.headers.get("x-clearml-worker") or request.headers.get("x-trains-worker") or ""
        call.worker = worker[:256]
        call.authorization = _authorization(state, request)
        if not is_read(name):
            _check_write(state, request, name)
        await _identify(call, target)  # before the body is read: a stranger may send none
        async with state.bodies.read(request, body_limit(target)) as body:
            data = await _arguments(call, request, body)
            if target.fast:
                result = invoke(call, target, data)
                content = _envelope(call, name, requested, actual, _OK, result)
            else:
                # A result is in memory until it is written down: few at a time.
                async with state.answers.turn:
                    result = await run_in_threadpool(invoke, call, target, data)
                    if isinstance(result, Response):
                        return result
                    content = _envelope(call, name, requested, actual, _OK, result)
        code, message = 200, "OK"
    except ApiError as error:
        code, message, headers = error.code, error.message, error.headers
        content = _envelope(call, name, requested, actual, (code, error.subcode, message, error.data), {})
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        _log.exception("%s failed", name)
        code, message = 500, f"General server error: {type(error).__name__}: {error}"
        content = _envelope(call, name, requested, actual, (code, 0, message, {}), {})
    response = Response(content, status_code=code, media_type="application/json", headers=_HEADERS | headers)
    for key, value in call.cookies.items():
        settings = state.settings
        response.set_cookie(
            key,
            value or "",
            max_age=settings.token_expiration_sec if value else 0,
            httponly=True,
            secure=settings.cookie_secure,
            domain=settings.cookie_domain,
            samesite="lax",
        )
    if code >= 400 or _log.isEnabledFor(logging.DEBUG):
        level = logging.ERROR if code >= 500 else logging.INFO
        elapsed = (time.perf_counter() - started) * 1000
        _log.log(level, "%s %s %s %.0f ms %s", code, name or request.scope["path"][:200], call.ip, elapsed, message)
    return response


async def _identify(call: Call, target: Endpoint) -> None:
    auth = call.state.auth
    if target.auth:
        call.identity = await auth.authenticate(call.authorization, call.ip, call.worker)
    elif call.authorization.startswith("Bearer"):  # a password takes time to check, and nobody asked for it here
        with contextlib.suppress(ApiError):
            call.identity = await auth.authenticate(call.authorization)


def _authorization(state: State, request: Request) -> str:
    for brand in ("clearml", "trains"):
        for header in (f"x-{brand}-impersonate-as", f"x-{brand}-act-as"):
            if request.headers.get(header):
                raise errors.IMPERSONATION_ERROR(f"impersonation not allowed, lite does not know the header {header}")
    if header := request.headers.get("authorization", ""):
        return header
    cookie = request.cookies.get(state.settings.cookie_name)
    return f"Bearer {cookie}" if cookie else ""


def body_limit(target: Endpoint) -> int:
    """Return how many bytes a call to this endpoint may have."""
    if not target.auth:
        return _STRANGER_LIMIT
    return _BODY_LIMITS.get(target.name.partition(".")[0], _OTHER_LIMIT)


def _check_write(state: State, request: Request, name: str) -> None:
    """Check that a call that changes something is not the work of another site's page.

    SDK and agent send GET with a JSON body and an Authorization header, which no foreign page can add.
    """
    by_get = request.method in ("GET", "HEAD")
    if request.method == "HEAD" or (by_get and request.scope["query_string"]):
        raise errors.BAD_REQUEST(f"{name} changes data: send its arguments in the body, not in the URL")
    if is_foreign(request, state.settings):
        raise errors.FOREIGN_PAGE(f"{name} was sent from a page of another site")
    by_cookie = "authorization" not in request.headers and state.settings.cookie_name in request.cookies
    if by_cookie and (by_get or not is_own_page(request, state.settings)):
        raise errors.FOREIGN_PAGE(f"{name} needs an Authorization header: the cookie alone is for reading")


async def _arguments(call: Call, request: Request, body: bytearray) -> Doc:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if content_type == "application/json-lines":
        call.batch = await _parsed(_json_lines, body)
        return {}
    data: Any = {}
    if content_type == "application/x-www-form-urlencoded":
        data = {key: _query_value(value) for key, value in _fields(body.decode("utf-8", "replace"))}
    elif body.strip():
        data = await _parsed(_json, body)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise errors.BAD_REQUEST(f"the body must be a JSON object, not {type(data).__name__}")
    _drop_method(data)
    for key, value in _fields(request.scope["query_string"].decode("latin-1")):
        data.setdefault(key, _query_value(value))
    return data


async def _parsed(parse: Callable[[bytearray], _T], body: bytearray) -> _T:
    return await run_in_threadpool(parse, body) if len(body) > _INLINE_BYTES else parse(body)


def _fields(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise errors.BAD_REQUEST(f"more than {_MAX_FIELDS} arguments in the URL or form") from error


def _json(body: bytearray) -> Any:
    check_nodes(body)
    return _loads(body)


def _drop_method(data: Doc) -> None:
    # The SDK (2.1.12) leaves the HTTP method that it uses among the arguments of nearly every call.
    if data.get("method") in ("get", "post", "put"):
        del data["method"]


def _json_lines(body: bytearray) -> list[Doc]:
    check_nodes(body)
    items = []
    for number, line in enumerate(body.splitlines()):
        if not line.strip():
            continue
        try:
            item = _loads(line, check=False)
        except ApiError as error:
            raise errors.BAD_REQUEST(f"{error.message} in batch item #{number}") from error
        if not isinstance(item, dict):
            raise errors.BAD_REQUEST(f"json lines must contain objects, found: {type(item).__name__}")
        _drop_method(item)
        items.append(item)
    return items


def _loads(body: bytes | bytearray, *, check: bool = True) -> Any:
    # Of a batch only the bad item is refused, by its own reader: half a character in one line of a console, or a plot
    # that is too deep, must not cost the lines around it.
    if check:
        check_depth(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            data = json.loads(body)  # NaN and Infinity: the SDK sends them, orjson refuses them
            if check:
                orjson.dumps(data)  # but half characters and integers beyond 64 bits could not be stored or sent back
            return data
        except (ValueError, TypeError, RecursionError) as error:
            raise errors.BAD_REQUEST(f"the body is not JSON: {error}") from error


def _query_value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text


def _version(text: str | None) -> str | float | None:
    # Clients up to version 2.0 expect numbers here.
    if text and tuple(int(part) for part in text.split(".")) < (2, 1):
        return float(text)
    return text


def _envelope(
    call: Call, name: str, requested: str, actual: str | None, status: tuple[int, int, str, Doc], data: Any
) -> bytes:
    code, subcode, message, error_data = status
    return dumps(
        {
            "meta": {
                "id": call.id,
                "trx": new_id(),
                "endpoint": {
                    "name": name,
                    "requested_version": _version(requested) if requested else None,
                    "actual_version": actual,
                },
                "result_code": code,
                "result_subcode": subcode,
                "result_msg": message,
                "error_stack": None,
                "error_data": error_data,
            },
            "data": data if data is not None else {},
        }
    )
