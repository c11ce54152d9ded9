"""Time as the API prints it: UTC, ISO 8601, milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["ago", "format_time", "now", "parse_time", "read_time"]


def format_time(moment: datetime) -> str:
    """Format a moment; all strings made here sort in time order."""
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}000+00:00"


def now() -> str:
    """Give the present moment as the API prints it."""
    return format_time(datetime.now(UTC))


def ago(seconds: float) -> str:
    """Give the moment ``seconds`` before now, as the API prints it."""
    return format_time(datetime.now(UTC) - timedelta(seconds=seconds))


def parse_time(text: object) -> str:
    """Read a client's time (ISO 8601, naive means UTC) into the form of :func:`format_time`.

    Raises:
        ValueError: if it is no time.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no time")
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.year < 1000:  # strftime pads no year: its text would not sort in time order
        raise ValueError(f"{text!r} is before the year 1000")
    return format_time(moment)


def read_time(text: object) -> datetime | None:
    """Read a stored time; None if it is not one."""
    if not isinstance(text, str) or not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
