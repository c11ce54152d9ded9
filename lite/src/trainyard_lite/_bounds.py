"""What is accepted from outside, and how a value that is stored anyway is read and answered.

A value that one client stored must not break the answers of others.  New values are checked at the door
(:func:`check_arguments`).  A database may hold older ones, so that reading gives each field the type that its readers
rely on (:func:`fit`), and an answer is always JSON (:func:`dumps`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import orjson

from . import _errors as errors

__all__ = [
    "EACH", "MAX_DEPTH", "MAX_DOCUMENT", "MAX_NAME", "NUMBER", "PARTS", "TEXT", "TEXTS", "check_arguments", "dumps",
    "fit", "load_object", "load_texts", "loads", "whole_number",
]  # fmt: skip

MAX_NAME = 4096  # characters of a name, an id, a tag, a key
MAX_DEPTH = 100  # levels of objects and lists; orjson writes 254, and an answer puts a few around a document
MAX_DOCUMENT = 16 * 1024 * 1024  # bytes of a task or model; MongoDB's limit, so the official server's
MAX_INTEGER = 2**63 - 1
_NAMES = frozenset((
    "add_tags", "artifact", "basename", "company", "destination_project", "display_name", "framework", "id", "ids",
    "key", "keys", "metric", "model", "model_name", "models", "name", "names", "new_location", "new_project_name",
    "new_task_name", "new_task_parent", "new_task_project", "new_task_system_tags", "new_task_tags", "parent",
    "project", "project_name", "projects", "queue", "queue_name", "queues", "remove_tags", "section", "status",
    "system_tags", "tag", "tags", "task", "task_name", "tasks", "type", "user", "variant", "worker", "workers",
))  # fmt: skip


# What comes in


def check_arguments(data: Mapping[str, Any], call: str, longest: int = MAX_NAME) -> None:
    """Refuse arguments that could not be stored, or not be answered once they are.

    Args:
        data: the arguments.
        call: for the message.
        longest: how many characters a name may have; a pattern of a name may have more.

    Raises:
        ApiError: 400 with the field and its limit.
    """
    todo: list[tuple[Any, str, bool, int]] = [(data, "", False, 0)]
    while todo:
        value, field, short, depth = todo.pop()
        if isinstance(value, str):
            if short and len(value) > longest:
                raise errors.VALIDATION_ERROR(
                    f"{call}: {field} has {len(value)} characters, the limit is {longest}", field=field
                )
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise errors.VALIDATION_ERROR(
                        f"{call}: {field} holds half a character (a lone surrogate)", field=field
                    ) from error
        elif isinstance(value, Mapping | list | tuple):
            if depth >= MAX_DEPTH:
                raise errors.VALIDATION_ERROR(f"{call}: {field} is nested deeper than {MAX_DEPTH} levels", field=field)
            if isinstance(value, Mapping):
                for key, item in value.items():
                    name = str(key)
                    if len(name) > MAX_NAME:
                        raise errors.VALIDATION_ERROR(
                            f"{call}: a key in {field or 'the arguments'} has {len(name)} characters, the limit is "
                            f"{MAX_NAME}",
                            field=field,
                        )
                    todo.append((name, field or name, False, depth + 1))
                    todo.append((item, f"{field}.{name}" if field else name, name in _NAMES, depth + 1))
            else:
                todo.extend((item, field, short, depth + 1) for item in value)
        elif isinstance(value, int) and not isinstance(value, bool) and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
            raise errors.VALIDATION_ERROR(f"{call}: {field} does not fit into 64 bits", field=field)


def whole_number(text: str, largest: int = MAX_INTEGER) -> int | None:
    """Read a number of ASCII digits; None if it is not one (``²`` is a digit too), or larger."""
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        return None
    value = int(text)
    return value if value <= largest else None


# What is stored


TEXT, NUMBER, TEXTS = "text", "number", "texts"  # shapes, see fit
EACH, PARTS = "each", "parts"
_NOTHING: Any = object()


def _long_integer(text: str) -> int | float | str:
    return int(text) if len(text) <= 20 else text


def _real(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def loads(text: str | bytes) -> Any:
    """Read stored JSON; what is not JSON, or too deep to be read, is None."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text, parse_int=_long_integer, parse_float=_real, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def load_object(text: Any) -> dict[str, Any]:
    """Read a stored JSON object; what is not one is empty."""
    value = loads(text) if isinstance(text, str | bytes) else None
    return value if isinstance(value, dict) else {}


def load_texts(text: Any) -> list[str]:
    """Read a stored JSON list of texts; what is not text in it is left out."""
    value = loads(text) if isinstance(text, str | bytes) else None
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else dumps(value).decode()


def fit(value: Any, shape: Any) -> Any:
    """Give a value the form that its readers rely on.

    Args:
        value: as it is stored.
        shape: ``TEXT``, ``NUMBER``, ``TEXTS`` (a list of texts); a mapping of field to shape; ``(EACH, shape)`` for a
            mapping of any key to values of a shape; ``(PARTS, shape)`` for a list of objects of a shape.

    Returns:
        The value itself where it fits.  Of a list or mapping the items that do not fit are left out.
    """
    fitted = _fit(value, shape)
    return None if fitted is _NOTHING else fitted


def _fit(value: Any, shape: Any) -> Any:
    if shape is TEXT:
        return value if isinstance(value, str) else _as_text(value)
    if shape is NUMBER:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return value if good else _NOTHING
    if shape is TEXTS:
        if not isinstance(value, list):
            return []
        return value if all(isinstance(item, str) for item in value) else [_as_text(item) for item in value]
    if isinstance(shape, tuple):
        kind, inner = shape
        if kind is EACH:
            if not isinstance(value, dict):
                return {}
            if any(not isinstance(item, dict) for item in value.values()):
                value = {key: item for key, item in value.items() if isinstance(item, dict)}
            if inner:
                for key, item in value.items():
                    new = _fit(item, inner)
                    if new is not item:
                        value[key] = new
            return value
        if not isinstance(value, list):
            return []
        return [_fit(item, inner) for item in value if isinstance(item, dict)]
    if not isinstance(value, dict):
        value = {}
    for name, inner in shape.items():
        old = value.get(name)
        if old is None or (inner is TEXT and isinstance(old, str)):  # an unset field stays one
            continue
        new = _fit(old, inner)
        if new is _NOTHING:
            del value[name]
        elif new is not old:
            value[name] = new
    return value


# What goes out


def dumps(value: Any) -> bytes:
    """Write an answer as JSON, whatever it holds.

    Half characters become ``?``; parts that are too deep, and numbers that JSON has not, become null.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=str)
    except TypeError:
        return orjson.dumps(_plain(value, 0), option=orjson.OPT_NON_STR_KEYS, default=str)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        if depth > 2 * MAX_DEPTH:
            return None
        return {_plain(key, depth): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value] if depth <= 2 * MAX_DEPTH else None
    if isinstance(value, int) and not isinstance(value, bool) and not -MAX_INTEGER - 1 <= value < 2**64:
        return None
    return value
