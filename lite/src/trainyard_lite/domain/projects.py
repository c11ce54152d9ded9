"""Projects: a tree of names, which holds tasks and models."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from .. import _errors as errors
from .._clock import now
from .._collections import PROJECTS
from .._settings import COMPANY_ID
from .._store import Doc, new_id

__all__ = [
    "HIDDEN",
    "check_project",
    "descendants",
    "find_or_create_project",
    "find_project",
    "name_parts",
    "project_for",
    "touch_project",
]

HIDDEN = "hidden"
_MAX_DEPTH = 10


def check_project(db: sqlite3.Connection, id_: str) -> Doc:
    """Read a project.

    Raises:
        ApiError: 400 if there is none.
    """
    project = PROJECTS.get(db, id_)
    if project is None:
        raise errors.INVALID_PROJECT_ID(id=id_)
    return project


def touch_project(db: sqlite3.Connection, id_: str | None) -> None:
    """Note that something in a project changed."""
    project = PROJECTS.get(db, id_) if id_ else None
    if project is not None:
        project["last_update"] = now()
        PROJECTS.put(db, project)


def name_parts(name: str) -> list[str]:
    """Return the parts of a full name.

    Raises:
        ApiError: 400 if a part is empty or too short, or if there are too many.
    """
    # As upstream's sub_projects.py (_validate_project_name): empty parts are left out, blanks around a part too.
    # A part of blanks only is an empty name there, for which no parent can be found: an error 500.
    parts = [part.strip() for part in name.split("/") if part]
    if not any(parts):
        raise errors.INVALID_PROJECT_NAME(name=name)
    if any(len(part) < 3 for part in parts):
        raise errors.VALIDATION_ERROR("Project name cannot be blank or shorter than 3 characters", name=name)
    if len(parts) > _MAX_DEPTH:
        raise errors.PROJECT_PATH_EXCEEDS_MAX(max_depth=_MAX_DEPTH)
    return parts


def find_project(db: sqlite3.Connection, name: str) -> Doc | None:
    """Return the project of a full name, or None."""
    found = PROJECTS.select(db, "name = ?", (name,), "LIMIT 1")
    return found[0] if found else None


def find_or_create_project(db: sqlite3.Connection, user: str, name: str, description: str = "", **fields: Any) -> str:
    """Find a project by its full name, or create it and the parents that are missing; answers its id."""
    parts = name_parts(name)
    parent: Doc | None = None
    for depth in range(1, len(parts) + 1):
        full = "/".join(parts[:depth])
        project = find_project(db, full)
        if project is None:
            moment = now()
            last = depth == len(parts)
            project = {
                "id": new_id(),
                "company": COMPANY_ID,
                "user": user,
                "name": full,
                "basename": parts[depth - 1],
                "description": description if last else "",
                "created": moment,
                "last_update": moment,
                "tags": [],
                "system_tags": [],
                "featured": 9999,
                "path": [*parent["path"], parent["id"]] if parent else [],
                **(fields if last else {}),
            }
            if parent:
                project["parent"] = parent["id"]
                # what is hidden stays hidden below
                if HIDDEN in parent["system_tags"] and HIDDEN not in project["system_tags"]:
                    project["system_tags"] = [*project["system_tags"], HIDDEN]
            PROJECTS.put(db, project)
        parent = project
    assert parent is not None
    return str(parent["id"])


def project_for(db: sqlite3.Connection, user: str, id_: str | None, name: str | None) -> str:
    """Return the id of the project that a client names by id or by name; a name that is new becomes a project.

    Raises:
        ApiError: 400 if it names none, or an id that is unknown.
    """
    if id_:
        check_project(db, id_)
        return id_
    if not name:
        raise errors.MISSING_REQUIRED_FIELDS("project or project_name is required")
    return find_or_create_project(db, user, name)


def descendants(db: sqlite3.Connection, ids: Sequence[str]) -> list[str]:
    """List projects and all projects below them."""
    found: list[str] = []
    for id_ in ids:
        rows = db.execute(
            "SELECT id FROM project WHERE id = ? OR EXISTS (SELECT 1 FROM json_each(doc, '$.path') WHERE value = ?)",
            (id_, id_),
        )
        found += [row[0] for row in rows if row[0] not in found]
    return found
