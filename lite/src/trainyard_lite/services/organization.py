"""``organization.*``: what is common to the site."""

from __future__ import annotations

from typing import Any

from .. import _errors as errors
from .._collections import MODELS, PROJECTS, TASKS
from .._rpc import Call, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc


class TagsRequest(Request):
    """``include_system`` lists system tags too; ``filter`` is not known to lite."""

    include_system: bool = False
    filter: dict[str, Any] | None = None


@endpoint("organization.get_tags", since="2.8")
def get_tags(call: Call, request: TagsRequest) -> Doc:
    """List the tags of all tasks, models and projects."""
    if request.filter:
        raise errors.NOT_IMPLEMENTED("organization.get_tags: lite does not know filter")
    db = call.db.read()
    answer: Doc = {}
    for field in ("tags", "system_tags") if request.include_system else ("tags",):
        union = " UNION ".join(
            f"SELECT value FROM {table}, json_each({table}.doc, '$.{field}')" for table in ("task", "model", "project")
        )
        answer[field] = [row[0] for row in db.execute(f"SELECT DISTINCT value FROM ({union}) ORDER BY value")]
    return answer


@endpoint("organization.get_user_companies", since="2.4")
def get_user_companies(call: Call, request: Request) -> Doc:
    """Tell the one company that there is."""
    rows = call.db.read().execute("SELECT id, name FROM user WHERE id NOT LIKE '\\_\\_%' ESCAPE '\\' ORDER BY name")
    owners = [{"id": row["id"], "name": row["name"], "avatar": None} for row in rows]
    return {"companies": [{"id": COMPANY_ID, "name": "clearml", "allocated": len(owners), "owners": owners}]}


class CountRequest(Request):
    """Which entities, each with the filters of its own ``get_all``."""

    projects: dict[str, Any] | None = None
    tasks: dict[str, Any] | None = None
    models: dict[str, Any] | None = None
    search_hidden: bool = False
    allow_public: bool = True


@endpoint("organization.get_entities_count", since="2.20")
def get_entities_count(call: Call, request: CountRequest) -> Doc:
    """Count what matches filters."""
    db = call.db.read()
    answer: Doc = {}
    for name, collection in (("projects", PROJECTS), ("tasks", TASKS), ("models", MODELS)):
        filters = getattr(request, name)
        if filters is not None:
            condition = collection.where(filters)
            answer[name] = collection.count(db, condition.sql(), condition.values)
    return answer
