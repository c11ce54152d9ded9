"""The statuses of an experiment that has ended, in one place."""

from __future__ import annotations

__all__ = ["ENDED", "WHOLE"]

# No worker runs it any more. "publishing" is not among them: it becomes "published".
ENDED = ("completed", "published", "closed", "failed", "stopped")
# It has all that it was to make.
WHOLE = ("completed", "published", "closed")
