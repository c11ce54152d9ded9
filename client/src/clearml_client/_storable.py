"""Names that the file server can keep, give back and delete."""

from __future__ import annotations

import hashlib
import re

from ._errors import ClearmlClientError

__all__ = ["check_key", "storable", "storable_name"]

_UNSAFE = re.compile(r'[+%#?"\\]')
_LONGEST = 200
"""Bytes of one part of a path. File systems take 255, and the SDK and its temporary files add endings."""


def storable(path: str) -> str:
    """Return a path for the file server with each of ``+ % # ? " \\`` written as its code, such as ``0x2b``.

    The official server's job that deletes the files of deleted experiments takes a ``+`` for a blank, ends a path at
    ``#`` and ``?``, and decodes ``%41`` once too often (read in 2.3.0): files under such names would stay forever.
    Characters that cannot be shown, quotes and backslashes are stored, and not found again, by the SDK. It writes
    codes of this form into the names of artifacts itself. A part ``..`` would lead out of its folder.
    """
    parts = []
    for part in path.split("/"):
        coded = _UNSAFE.sub(lambda match: _code(match[0]), part)
        coded = "".join(char if char.isprintable() else _code(char) for char in coded)
        parts.append("".join(_code(char) for char in part) if part in (".", "..") else coded)
    return "/".join(parts)


def storable_name(part: str) -> str:
    """Return one part of a path as ``storable`` does, and short enough for a file system."""
    coded = storable(part)
    if len(coded.encode("utf-8", "replace")) <= _LONGEST:
        return coded
    digest = hashlib.sha256(part.encode("utf-8", "replace")).hexdigest()[:16]
    kept = coded.encode("utf-8", "replace")[: _LONGEST - 40].decode("utf-8", "ignore")
    ending = re.search(r"(\.[A-Za-z0-9]{1,8}){1,2}$", coded)
    return "{}-{}{}".format(kept, digest, ending.group() if ending else "")


def _code(char: str) -> str:
    return "0x{:02x}".format(ord(char))


def check_key(what: str, key: object) -> str:
    """Return the key of an artifact, or what else files are named by, if it can be stored and found again.

    Args:
        what: What it is the name of, for messages.
        key: The key.

    Raises:
        ClearmlClientError: It cannot.
    """
    shown = repr(key) if len(repr(key)) <= 120 else repr(key)[:120] + "..."
    if not isinstance(key, str) or not key.strip():
        raise ClearmlClientError("{}: expected a name, such as 'report', got {}".format(what, shown))
    try:
        longest = max(len(part.encode()) for part in re.split(r"[/\\]", key))
    except UnicodeEncodeError:
        raise ClearmlClientError("{}: {} is not valid Unicode: write it anew".format(what, shown)) from None
    odd = sorted({char for char in key if not char.isprintable()})
    if odd:
        raise ClearmlClientError(
            "{}: {} has characters that cannot be shown ({}), and would not be found again under it: "
            "leave them out".format(what, shown, ", ".join(repr(char) for char in odd[:5]))
        )
    parts = [part.strip() for part in re.split(r"[/\\]", key)]
    if any(part in ("", ".", "..") for part in parts):
        raise ClearmlClientError(
            "{}: {} has a part that is empty, . or .., and is the name of a file: write {!r}".format(
                what, shown, "/".join(part for part in parts if part not in ("", ".", "..")) or "report"
            )
        )
    if longest > _LONGEST:
        raise ClearmlClientError("{}: {} is {} bytes long: shorten it to {}".format(what, shown, longest, _LONGEST))
    return key
