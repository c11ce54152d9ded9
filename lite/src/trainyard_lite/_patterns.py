"""Search patterns that come from outside, matched in linear time.

The official server gives a pattern to MongoDB (PCRE).  Here RE2 matches it: no pattern makes it backtrack, so that a
name filter cannot stop the server.  RE2 lacks look-around and backreferences; the SDK and the agent send neither.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped]

from . import _errors as errors

__all__ = ["MAX_PATTERN", "check_pattern", "contains_pattern", "matches", "time_limit", "wildcard_pattern"]

MAX_PATTERN = 16_384  # characters; the SDK escapes a name, which doubles its length at most
_MAX_TEXT = 16_384  # characters of a value that are searched: a name is shorter, of a long comment it is the beginning
_MAX_MEM = 1 << 20  # bytes for one compiled pattern and its state
_LIMIT_SEC = 5.0  # for all values that one call compares
_local = threading.local()


class _TooSlowError(Exception):
    """The time for the patterns of a call is over."""


@lru_cache(maxsize=32)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.max_mem = _MAX_MEM
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    finally:
        re2.purge()  # its own cache holds 128 patterns: ours is enough, and bounds the memory


def check_pattern(pattern: object, field: str, *, ignore_case: bool = False) -> str:
    """Return a pattern that :func:`matches` can use.

    Raises:
        ApiError: 400 if it is not text, too long, or not a pattern of RE2.
    """
    if not isinstance(pattern, str):
        raise errors.FIELDS_TYPE_ERROR("string expected", field=field)
    if len(pattern) > MAX_PATTERN:
        raise errors.INVALID_REGEX_ERROR(f"longer than {MAX_PATTERN} characters", field=field)
    if ignore_case:
        pattern = f"(?i){pattern}"
    try:
        _compiled(pattern)
    except UnicodeEncodeError as error:
        raise errors.INVALID_REGEX_ERROR("it holds half a character (a lone surrogate)", field=field) from error
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        hint = "; write it in RE2 syntax, without look-around (?=...), (?!...), (?<...) and backreferences \\1"
        raise errors.INVALID_REGEX_ERROR(f"{reason}{hint}", field=field) from error
    return pattern


def contains_pattern(text: object, field: str) -> str:
    """Return the pattern of values that contain a text, upper or lower case.

    Raises:
        ApiError: 400 if it is not text, or too long.
    """
    if not isinstance(text, str):
        raise errors.FIELDS_TYPE_ERROR("string expected", field=field)
    return check_pattern(re.escape(text), field, ignore_case=True)


def wildcard_pattern(text: str, field: str) -> str:
    """Return the pattern of values that are like a text in which ``*`` and ``?`` stand for anything.

    Raises:
        ApiError: 400 if it is too long.
    """
    return check_pattern("(?s)^" + re.escape(text).replace(r"\*", ".*").replace(r"\?", ".?") + "$", field)


def matches(pattern: str, value: object) -> bool:
    """Report whether a value contains the pattern (the function behind SQL's REGEXP)."""
    if value is None:
        return False
    if time.monotonic() > getattr(_local, "deadline", float("inf")):
        raise _TooSlowError
    text = value if isinstance(value, str) else str(value)
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT]
    try:
        return _compiled(pattern).search(text) is not None
    except UnicodeEncodeError:  # half a character in an old value
        return _compiled(pattern).search(text.encode("utf-8", "replace").decode()) is not None


@contextmanager
def time_limit() -> Iterator[None]:
    """Bound the time that this thread spends in patterns within the block.

    Raises:
        ApiError: 400 when the time is over.
    """
    _local.deadline = time.monotonic() + _LIMIT_SEC
    try:
        yield
    except (_TooSlowError, sqlite3.OperationalError) as error:
        # SQLite reports that its function failed, not why.
        if isinstance(error, _TooSlowError) or "user-defined function raised exception" in str(error):
            raise errors.INVALID_REGEX_ERROR(
                f"it takes more than {_LIMIT_SEC:.0f} s on the values that are here: write a simpler one"
            ) from error
        raise
    finally:
        del _local.deadline
