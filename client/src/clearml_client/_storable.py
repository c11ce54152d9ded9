"""Names that the file server can delete."""

from __future__ import annotations

import re

__all__ = ["storable"]

_UNSAFE = re.compile("[+%#?]")


def storable(path: str) -> str:
    """Return a path for the file server with each of ``+ % # ?`` written as its code, such as ``0x2b``.

    The official server's job that deletes the files of deleted experiments takes a ``+`` for a blank, ends a path at
    ``#`` and ``?``, and decodes ``%41`` once too often (read in 2.3.0): files under such names would stay forever.
    The SDK writes codes of this form into the names of artifacts itself.
    """
    return _UNSAFE.sub(lambda match: f"0x{ord(match[0]):02x}", path)
