"""The API's HTTP side: paths, bodies, login and the envelope."""

from __future__ import annotations

import json
import logging
import time
from typing import Any
from urllib.parse import parse_qsl

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from . import _errors as errors
from ._auth import NOBODY
from ._bounds import dumps, whole_number
from ._errors import ApiError
from ._rpc import Call, Endpoint, State, invoke, parse_path, resolve
from ._store import Doc, new_id

__all__ = ["MAX_BODY_BYTES", "create_api"]

MAX_BODY_BYTES = 128 * 1024 * 1024  # plots come with their data in them
_log = logging.getLogger("trainyard_lite.api")


def create_api(state: State) -> Starlette:
    """Make the ASGI application of port 8008."""

    async def handle(request: Request) -> Response:
        return await _handle(state, request)

    methods = ["GET", "POST", "PUT", "HEAD"]
    return Starlette(routes=[Route("/{path:path}", handle, methods=methods)])


async def _handle(state: State, request: Request) -> Response:
    started = time.perf_counter()
    call = Call(state=state, identity=NOBODY, raw=True, ip=request.client.host if request.client else "")
    name, requested, actual = "", "", None
    headers: dict[str, str] = {}
    try:
        requested, name = parse_path(request.url.path)
        target = resolve(name, requested)
        actual = target.since
        call.endpoint, call.version = name, requested
        if request.headers.get("content-encoding"):
            raise errors.UNSUPPORTED_ENCODING(request.headers["content-encoding"])
        call.worker = request.headers.get("x-clearml-worker") or request.headers.get("x-trains-worker") or ""
        call.authorization = _authorization(state, request)
        await _identify(call, target)  # before the body is read: a stranger may send none
        data = await _read(call, request)
        if target.fast:
            result = invoke(call, target, data)
        else:
            result = await run_in_threadpool(invoke, call, target, data)
        if isinstance(result, Response):
            return result
        code, subcode, message, error_data = 200, 0, "OK", {}
    except ApiError as error:
        result, error_data = {}, error.data
        code, subcode, message, headers = error.code, error.subcode, error.message, error.headers
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception as error:
        _log.exception("%s failed", name)
        result, error_data = {}, {}
        code, subcode, message = 500, 0, f"General server error: {type(error).__name__}: {error}"
    content = _envelope(call, name, requested, actual, (code, subcode, message, error_data), result)
    response = Response(content, status_code=code, media_type="application/json", headers=headers)
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
        _log.log(level, "%s %s %s %.0f ms %s", code, name or request.url.path, call.ip, elapsed, message)
    return response


async def _identify(call: Call, target: Endpoint) -> None:
    if not target.auth and not call.authorization:
        return
    arguments = (call.authorization, call.ip, call.worker)
    try:
        if call.authorization.startswith("Basic"):  # a password's hash takes its time, on purpose
            call.identity = await run_in_threadpool(call.state.auth.authenticate, *arguments)
        else:
            call.identity = call.state.auth.authenticate(*arguments)
    except ApiError:
        if target.auth:
            raise


def _authorization(state: State, request: Request) -> str:
    for brand in ("clearml", "trains"):
        for header in (f"x-{brand}-impersonate-as", f"x-{brand}-act-as"):
            if request.headers.get(header):
                raise errors.IMPERSONATION_ERROR(f"impersonation not allowed, lite does not know the header {header}")
    header = request.headers.get("authorization", "")
    cookie = request.cookies.get(state.settings.cookie_name)
    return header or (f"Bearer {cookie}" if cookie else "")


async def _read(call: Call, request: Request) -> Doc:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise errors.PAYLOAD_TOO_LARGE(limit_bytes=MAX_BODY_BYTES)
        chunks.append(chunk)
    body = b"".join(chunks)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if content_type == "application/json-lines":
        if len(body) > 1_000_000:
            call.batch = await run_in_threadpool(_json_lines, body)
        else:
            call.batch = _json_lines(body)
        return {}
    data: Any = {}
    if content_type == "application/x-www-form-urlencoded":
        data = {key: _query_value(value) for key, value in parse_qsl(body.decode("utf-8", "replace"))}
    elif body.strip():
        data = _loads(body)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise errors.BAD_REQUEST(f"the body must be a JSON object, not {type(data).__name__}")
    _drop_method(data)
    for key, value in request.query_params.multi_items():
        data.setdefault(key, _query_value(value))
    return data


def _drop_method(data: Doc) -> None:
    # The SDK (2.1.12) leaves the HTTP method that it uses among the arguments of nearly every call.
    if data.get("method") in ("get", "post", "put"):
        del data["method"]


def _json_lines(body: bytes) -> list[Doc]:
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


def _loads(body: bytes, *, check: bool = True) -> Any:
    # Of a batch only the bad item is refused, by its own reader: half a character in one line of a console
    # must not cost the lines around it.
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
    whole, _, fraction = text.partition(".")
    number = whole_number(whole + fraction)
    if number is not None:
        return float(text) if "." in text else number
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
