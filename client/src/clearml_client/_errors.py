"""What can go wrong, as one tree of exceptions."""

from __future__ import annotations

__all__ = ["ClearmlClientError"]


class ClearmlClientError(Exception):
    """Root of everything this package raises; its text says what to change."""
