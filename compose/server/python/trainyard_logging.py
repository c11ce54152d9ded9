"""Keeps passwords out of the server's logs: at its start it writes the address of MongoDB, user and password included.

config/logging.conf names the formatter; the compose file puts this folder on the server's PYTHONPATH. A level per
logger would not do: the server's reader of HOCON keeps the quotes that a dotted logger's name needs.
"""

import logging
import re

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]*(?=@)")


class MaskingFormatter(logging.Formatter):
    """Replaces user and password of every address in a line, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as the standard formatter does, then mask."""
        return _CREDENTIALS.sub("***", super().format(record))
