"""What ``init_clearml`` was given, checked before anything is registered."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Optional, Sequence, Union
from urllib.parse import urlsplit

from ._config import Settings
from ._errors import ClearmlClientError

__all__ = [
    "PROJECT_VARIABLE",
    "check_parts",
    "checked_kind",
    "checked_name",
    "checked_output_uri",
    "checked_project",
    "checked_queue",
    "checked_tags",
]

PROJECT_VARIABLE = "CLEARML_PROJECT"
SHORTEST = 3
"""Characters that the server wants of a name, and of each part of a project's path (read in its source)."""
_LONGEST = 200
"""Bytes of a name: with an id behind it, it is the name of a folder on the file server, and those end at 255."""
_DEEPEST = 10
"""Parts of a project's path (the server's default)."""
_SCHEMES = ("http", "https", "s3", "gs", "azure", "file")
"""Stores that the SDK knows; it takes any other scheme for a folder of that name."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "..."


def _check_text(what: str, value: Any, example: str) -> str:
    """Return a text without blanks at its ends.

    Raises:
        ClearmlClientError: It is no text, empty, too long, or has characters that cannot be shown or stored.
    """
    if not isinstance(value, str) or not value.strip():
        raise ClearmlClientError("{}: expected a name, such as {!r}, got {}".format(what, example, _shown(value)))
    try:
        length = max(len(part.encode()) for part in value.split("/"))
    except UnicodeEncodeError:
        raise ClearmlClientError("{}: {} is not valid Unicode: write it anew".format(what, _shown(value))) from None
    odd = sorted({char for char in value.strip() if not char.isprintable()})
    if odd:
        raise ClearmlClientError(
            "{}: {} has characters that cannot be shown ({}): leave them out".format(
                what, _shown(value), ", ".join(repr(char) for char in odd[:5])
            )
        )
    if length > _LONGEST:
        raise ClearmlClientError(
            "{}: {} is {} bytes long: shorten it to {}".format(what, _shown(value), length, _LONGEST)
        )
    return value.strip()


def checked_name(task_name: object) -> str:
    """Return the name of an experiment as the server keeps it.

    Raises:
        ClearmlClientError: The server or the file server would not take it.
    """
    name = _check_text("task_name", task_name, "digits")
    if len(name) < SHORTEST:
        raise ClearmlClientError("task_name: the server takes names from 3 characters on, got {!r}".format(name))
    if any(part.strip() in (".", "..") for part in re.split(r"[/\\]", name)):
        raise ClearmlClientError(
            "task_name: {!r} has a part . or .., which the file server would follow: write it without".format(name)
        )
    return name


def checked_tags(tags: object) -> Sequence[str]:
    """Return labels.

    Raises:
        ClearmlClientError: They are not a list of names.
    """
    if isinstance(tags, str):
        raise ClearmlClientError("tags: expected a list of strings, write [{!r}]".format(tags))
    if not isinstance(tags, (list, tuple, set, frozenset)):
        raise ClearmlClientError("tags: expected a list of strings, such as ['lidar'], got {}".format(_shown(tags)))
    wrong = [tag for tag in tags if not isinstance(tag, str) or not tag.strip()]
    if wrong:
        raise ClearmlClientError("tags: expected non-empty strings, got {}".format(_shown(wrong)))
    for tag in tags:
        _check_text("tags", tag, "lidar")
    return sorted(tags) if isinstance(tags, (set, frozenset)) else list(tags)


def checked_kind(kind: object) -> Optional[str]:
    """Return what a run is, one part of a project's path.

    Raises:
        ClearmlClientError: It is something else.
    """
    if kind is None:
        return None
    name = _check_text("kind", kind, "training")
    if "/" in name:
        raise ClearmlClientError(
            "kind: {!r} has a slash, and it is one part of a path: write project='<team>/{}' instead".format(name, name)
        )
    return name


def checked_queue(queue: object) -> Optional[str]:
    """Return the name of a queue; whether the server has it is asked later.

    Raises:
        ClearmlClientError: It is no text.
    """
    if queue is not None and not isinstance(queue, str):
        raise ClearmlClientError(
            "queue: expected the name of a queue, such as 'all_gpus', or None, got {}".format(_shown(queue))
        )
    return queue


def checked_output_uri(output_uri: object) -> Union[bool, str]:
    """Return where models go.

    Raises:
        ClearmlClientError: It is neither a truth value nor an address of a store that the SDK knows.
    """
    if isinstance(output_uri, bool):
        return output_uri
    given = os.fspath(output_uri) if isinstance(output_uri, Path) else output_uri
    known = "True for the site's file server, False to keep models here, or an address such as 's3://bucket/models'"
    if not isinstance(given, str) or not given.strip():
        raise ClearmlClientError("output_uri: expected {}, got {}".format(known, _shown(output_uri)))
    try:
        parts = urlsplit(given.strip())
        host = parts.netloc
    except ValueError as error:
        raise ClearmlClientError("output_uri: {} is not an address ({})".format(_shown(given), error)) from None
    if "://" in given and parts.scheme not in _SCHEMES:
        raise ClearmlClientError(
            "output_uri: {} begins with {!r}, and there is {}: write {}".format(
                _shown(given), parts.scheme + "://", ", ".join(name + "://" for name in _SCHEMES), known
            )
        )
    if "://" in given and parts.scheme != "file" and not host:
        raise ClearmlClientError("output_uri: {} names no host or bucket: write {}".format(_shown(given), known))
    if not given.isprintable():
        raise ClearmlClientError("output_uri: {} has characters that cannot be shown".format(_shown(given)))
    return given.strip()


def checked_project(project: object, kind: Optional[str], settings: Settings, *, needed: bool) -> Optional[str]:
    """Return the path of the project that was given, or that the settings name.

    Raises:
        ClearmlClientError: There is none and one is needed, or it is malformed.
    """
    chosen: Any = project if project is not None else os.environ.get(PROJECT_VARIABLE) or settings.project
    if chosen is None and settings.team:
        chosen = "{}/{}".format(settings.team, kind or settings.kind)
    if chosen is None:
        if needed:
            raise ClearmlClientError(
                "no project: write team = 'perception' under [tool.clearml_client] in the repository's pyproject.toml, "
                "pass project='<team>/<kind>' to init_clearml, such as 'perception/training', "
                "or set {}".format(PROJECT_VARIABLE)
            )
        return None
    chosen = _check_text("project", chosen, "perception/training")
    parts = [part.strip() for part in chosen.split("/")]
    if not all(parts):
        # The server would leave it out, and the SDK would not find the project under this name again.
        raise ClearmlClientError(
            "project: expected a path such as 'perception/training' with no empty part, got {!r}: write {!r}".format(
                chosen, "/".join(part for part in parts if part) or "perception/training"
            )
        )
    if len(parts) > _DEEPEST:
        raise ClearmlClientError(
            "project: {} has {} parts, and the server takes {}".format(_shown(chosen), len(parts), _DEEPEST)
        )
    return "/".join(parts)


def check_parts(project: str) -> None:
    """Refuse a project of which the server would not take a part.

    Raises:
        ClearmlClientError: The text names the part.
    """
    for part in project.split("/"):
        if len(part) < SHORTEST:
            raise ClearmlClientError(
                "project: the server takes names from 3 characters on, for each part of the path: write {!r} of {!r} "
                "in full, such as 'vision'".format(part, project)
            )
        if set(part) == {"."}:
            raise ClearmlClientError("project: {!r} of {!r} is not a name".format(part, project))
