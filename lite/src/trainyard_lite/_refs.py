"""References between documents.

The ``*_ex`` calls answer ``"project": {"id": ..., "name": ...}`` where the others answer ``"project": "..."``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import _errors as errors
from ._collections import MODELS, PROJECTS, QUEUES, TASKS
from ._store import Collection, Doc, project_fields

__all__ = ["DELETED", "check_reference", "expand", "split_references"]

DELETED = "__DELETED__"  # prefix of a reference whose target was deleted
_COLLECTIONS: Mapping[str, Collection] = {"project": PROJECTS, "task": TASKS, "queue": QUEUES, "model": MODELS}


def split_references(only: Sequence[str], refs: Mapping[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split ``only_fields`` into the document's own fields and those of referenced documents.

    Args:
        only: the names asked for, such as ``project.name``.
        refs: path of a reference -> kind of its target.

    Returns:
        The names with references cut to their path, and per reference the fields of its target.
    """
    own: list[str] = []
    targets: dict[str, list[str]] = {}
    for name in only:
        path = next((p for p in refs if name == p or name.startswith(f"{p}.")), None)
        if path is None:
            own.append(name)
            continue
        own.append(path)
        if rest := name[len(path) + 1 :]:
            targets.setdefault(path, []).append(rest)
    return list(dict.fromkeys(own)), targets


def _slots(value: Any, parts: Sequence[str]) -> Iterator[tuple[Doc, str]]:
    """Find the places (object, key) of a dotted path, through lists."""
    if isinstance(value, list):
        for item in value:
            yield from _slots(item, parts)
    elif isinstance(value, dict):
        if len(parts) > 1:
            yield from _slots(value.get(parts[0]), parts[1:])
        elif isinstance(value.get(parts[0]), str):
            yield value, parts[0]


def expand(
    db: sqlite3.Connection, docs: Sequence[Doc], refs: Mapping[str, str], targets: Mapping[str, Sequence[str]]
) -> None:
    """Replace each reference by an object with its id and the fields asked for."""
    for path, kind in refs.items():
        places = [place for doc in docs for place in _slots(doc, path.split("."))]
        fields = list(targets.get(path, ()))
        found = _load(db, kind, {holder[key] for holder, key in places}, fields) if fields else {}
        for holder, key in places:
            id_ = holder[key]
            holder[key] = found.get(id_, {"id": id_})


def _load(db: sqlite3.Connection, kind: str, ids: set[str], fields: list[str]) -> dict[str, Doc]:
    if kind == "company":
        return {id_: {"id": id_, "name": "clearml"} for id_ in ids}
    found: dict[str, Doc] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), 500):
        chunk = wanted[start : start + 500]
        marks = ", ".join("?" * len(chunk))
        if kind == "user":
            rows = db.execute(f"SELECT id, name, role, created FROM user WHERE id IN ({marks})", chunk)
            docs = [dict(row) for row in rows]
        else:
            docs = _COLLECTIONS[kind].select(db, f"id IN ({marks})", chunk)
        found |= {doc["id"]: doc if "*" in fields else project_fields(doc, fields) for doc in docs}
    return found


def check_reference(db: sqlite3.Connection, kind: str, id_: str, field: str) -> None:
    """Refuse a reference to nothing.

    Raises:
        ApiError: 400 with the field and the kind that was expected.
    """
    if _COLLECTIONS[kind].get(db, id_) is None:
        raise errors.FIELDS_VALUE_ERROR(f"expecting {kind.capitalize()} id", id=id_, field=field)
