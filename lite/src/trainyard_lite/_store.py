"""Documents of the API (tasks, models, projects, queues) as JSON in SQLite, and the queries over them.

A collection is a table ``(id, doc, <stored generated columns>)``.  The columns exist for speed: filters
and sorting on them need no JSON parsing.  Any other field is reached by its dotted path.
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from . import _errors as errors
from ._bounds import MAX_DOCUMENT, MAX_NAME, TEXT, TEXTS, dumps, fit, loads, whole_number
from ._clock import parse_time
from ._patterns import check_pattern, contains_pattern, time_limit

__all__ = [
    "MAX_PAGE_SIZE",
    "Collection",
    "Doc",
    "Filters",
    "get_path",
    "new_id",
    "project_fields",
    "set_path",
]

Doc = dict[str, Any]
MAX_PAGE_SIZE = 500  # documents; the official server's limit (services/_mongo.conf)
SCROLL_TTL_SEC = 600
_DATE_CONDITION = re.compile(r"^(?P<op>>=|>|<=|<)?(?P<value>.*)$")
_PAGING = {
    "page", "page_size", "order_by", "only_fields", "search_text", "search_hidden", "scroll_id", "size", "start",
    "refresh_scroll", "allow_public", "projection",
}  # fmt: skip


def new_id() -> str:
    """Make an object id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def get_path(doc: Mapping[str, Any], path: str) -> Any:
    """Read a dotted path; None where there is nothing."""
    value: Any = doc
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def set_path(doc: Doc, path: str, value: Any) -> None:
    """Write a dotted path, making the objects on the way."""
    *parents, last = path.split(".")
    for part in parents:
        child = doc.get(part)
        if not isinstance(child, dict):
            child = doc[part] = {}
        doc = child
    doc[last] = value


def project_fields(doc: Doc, only: Sequence[str]) -> Doc:
    """Keep the named dotted paths (and the id), or drop those named with a leading ``-``."""
    include = [name[:-2] if name.endswith(".*") else name for name in only if not name.startswith("-")]
    exclude = [name[1:] for name in only if name.startswith("-")]
    if include:
        result: Doc = {"id": doc["id"]}
        for path in include:
            _copy_path(doc, result, path.split("."))
    else:
        result = orjson.loads(orjson.dumps(doc)) if exclude else doc
    for path in exclude:
        parent: Any = result
        *parents, last = path.split(".")
        for part in parents:
            parent = parent.get(part) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(last, None)
    return result


def _copy_path(source: Mapping[str, Any], target: Doc, parts: Sequence[str]) -> None:
    """Copy a path as far as it goes: of ``execution.queue`` an empty ``execution`` may be all there is."""
    head, *rest = parts
    if head not in source:
        return
    value = source[head]
    if not rest:
        target[head] = value
    elif isinstance(value, Mapping):
        inner = target.setdefault(head, {})
        if inner is not value:  # the whole was asked for too
            _copy_path(value, inner, rest)


@dataclass(frozen=True)
class Filters:
    """Which arguments of a ``get_all`` call filter, and how (trailing ``*`` matches any rest of the path)."""

    pattern: tuple[str, ...] = ("name",)
    lists: tuple[str, ...] = ("id", "tags", "system_tags")
    dates: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()


@dataclass
class _Where:
    clauses: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, clause: str, *values: Any) -> None:
        self.clauses.append(clause)
        self.values.extend(values)

    def sql(self) -> str:
        return " AND ".join(f"({clause})" for clause in self.clauses) or "1"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(name == p or (p.endswith("*") and name.startswith(p[:-1])) for p in patterns)


class Collection:
    """One kind of document.

    Args:
        table: the table's name.
        fields: the top-level fields that a document may have, in one string: others cannot be asked for.
        columns: generated column name -> dotted path, each with an index when listed in ``indexed``.
        list_paths: paths that hold lists (filters look inside them).
        filters: what ``get_all`` may filter by.
        indexed: columns (or comma-joined column lists) to index.
        shape: the form of a document's fields, see :func:`trainyard_lite._bounds.fit`.
        blank: fields that every document has, with their value where an old one has none (of an object: its lists).
    """

    def __init__(
        self,
        table: str,
        *,
        fields: str,
        columns: Mapping[str, str],
        list_paths: Sequence[str] = ("tags", "system_tags"),
        filters: Filters | None = None,
        indexed: Sequence[str] = (),
        shape: Mapping[str, Any] | None = None,
        blank: Mapping[str, Any] | None = None,
    ) -> None:
        self.table = table
        self._columns = {path: name for name, path in columns.items()} | {"id": "id"}
        self._lists = frozenset(list_paths)
        self._fields = frozenset(fields.split())
        self.filters = filters or Filters()
        self._shape = {"id": TEXT, "name": TEXT, "tags": TEXTS, "system_tags": TEXTS, **(shape or {})}
        self._blank = orjson.dumps({"name": "", "tags": [], "system_tags": [], **(blank or {})})
        self._nested = {name: value for name, value in (blank or {}).items() if value and isinstance(value, dict)}
        self._required = frozenset(orjson.loads(self._blank))
        # The columns stand before the document: SQLite then reads them without following a long document's pages.
        generated = "".join(
            f"  {name} GENERATED ALWAYS AS ({self._extract(path)}) STORED,\n" for name, path in columns.items()
        )
        self.schema = (
            f"CREATE TABLE IF NOT EXISTS {table} (\n  id TEXT PRIMARY KEY,\n{generated}  doc TEXT NOT NULL\n);\n"
        )
        for index in indexed:
            name = index.replace(",", "_").replace(" ", "")
            self.schema += f"CREATE INDEX IF NOT EXISTS {table}_{name} ON {table} ({index});\n"

    # One document

    def get(self, db: sqlite3.Connection, id_: str) -> Doc | None:
        """Read one document, or None."""
        row = db.execute(f"SELECT doc, id FROM {self.table} WHERE id = ?", (id_,)).fetchone()
        return self._load(*row) if row else None

    def _load(self, text: str, id_: str) -> Doc:
        """Read a stored document: every field that its readers rely on is there, and of its type."""
        doc: Doc = fit(loads(text), self._shape)
        if not self._required.issubset(doc) or any(doc[name] is None for name in self._required):
            doc = orjson.loads(self._blank) | {key: value for key, value in doc.items() if value is not None}
        for name, inner in self._nested.items():
            part = doc[name]
            if any(part.get(key) is None for key in inner):
                doc[name] = part | {key: list(value) for key, value in inner.items() if part.get(key) is None}
        doc["id"] = id_
        return doc

    def put(self, db: sqlite3.Connection, doc: Doc) -> None:
        """Write one document whole (insert or replace). Call it inside a write transaction.

        Raises:
            ApiError: 400 for a document that grew beyond the limit.
        """
        text = dumps(doc).decode()
        if len(text) > MAX_DOCUMENT:  # one that is larger already may still change its status, or shrink
            row = db.execute(f"SELECT length(doc) FROM {self.table} WHERE id = ?", (doc["id"],)).fetchone()
            if row is None or len(text) > row[0] + MAX_NAME:
                raise errors.VALIDATION_ERROR(
                    f"{self.table} {doc['id']} would have {len(text)} bytes, the limit is {MAX_DOCUMENT}"
                )
        db.execute(
            f"INSERT INTO {self.table} (id, doc) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc",
            (doc["id"], text),
        )

    def delete(self, db: sqlite3.Connection, ids: Iterable[str]) -> int:
        """Delete documents; answers how many there were."""
        return sum(db.execute(f"DELETE FROM {self.table} WHERE id = ?", (id_,)).rowcount for id_ in ids)

    # Many documents

    def select(self, db: sqlite3.Connection, where: str = "1", values: Sequence[Any] = (), tail: str = "") -> list[Doc]:
        """Read documents by an SQL condition over the columns (``where`` is code, never client text)."""
        rows = db.execute(f"SELECT doc, id FROM {self.table} WHERE {where} {tail}", values)
        return [self._load(*row) for row in rows]

    def count(self, db: sqlite3.Connection, where: str = "1", values: Sequence[Any] = ()) -> int:
        """Count documents by an SQL condition over the columns."""
        with time_limit():
            return int(db.execute(f"SELECT count(*) FROM {self.table} WHERE {where}", values).fetchone()[0])

    def find(
        self,
        db: sqlite3.Connection,
        args: Mapping[str, Any],
        *,
        where: str = "1",
        values: Sequence[Any] = (),
        default_order: Sequence[str] = (),
        ignore: Iterable[str] = (),
        scroll: dict[str, Any] | None = None,
        raw: bool = False,
    ) -> list[Doc]:
        """Answer a ``get_all`` call: filter, order, page, and keep ``only_fields``.

        Args:
            db: a read connection.
            args: the call's arguments.
            where: further SQL condition over the columns, with ``values``.
            values: parameters of ``where``.
            default_order: order when the call names none.
            ignore: arguments that the caller handles itself.
            scroll: receives ``scroll_id`` when the call scrolls.
            raw: give whole documents as ``orjson.Fragment``, unparsed, save those that hold a null.

        Raises:
            ApiError: 400 for an argument that is no filter here, or a bad value.
        """
        condition = self.where(args, ignore)
        condition.add(where, *values)
        order = self._order(args.get("order_by") or list(default_order))
        offset, limit = self._page(args, scroll)
        only = self.only_fields(args)
        # A few fields are picked by SQLite, three times as fast as parsing whole documents here.
        wanted = ["id", *only] if only and all(name.isidentifier() for name in only) else []
        paths = ", ".join(f"'$.{name}'" for name in wanted)
        picked = f"json_extract(doc, {paths})" if wanted else "doc"
        # First the page, sorted by columns alone, then its documents: sorting would copy them all.
        with time_limit():
            rows = db.execute(
                f"WITH page AS MATERIALIZED"
                f" (SELECT rowid AS number FROM {self.table} WHERE {condition.sql()} {order} LIMIT ? OFFSET ?)"
                f" SELECT {picked}, t.id FROM page CROSS JOIN {self.table} AS t ON t.rowid = page.number",
                (*condition.values, limit, offset),
            ).fetchall()
        found: list[Any]
        if wanted:
            found = [self._pick(wanted, *row) for row in rows]
        elif raw and not only:
            found = [self._load(*row) if ":null" in row[0] else orjson.Fragment(row[0]) for row in rows]
        else:
            found = [self._load(*row) for row in rows]
        if scroll is not None and "scroll_id" in scroll:
            scroll["scroll_id"] = f"{scroll['scroll_id'].split('.')[0]}.{offset + len(found)}"
        return [project_fields(doc, only) for doc in found] if only and not wanted else found

    def _pick(self, names: Sequence[str], text: str, id_: str) -> Doc:
        values = loads(text) or []
        doc = {name: value for name, value in zip(names, values, strict=False) if value is not None}
        fitted: Doc = fit(doc, {name: self._shape[name] for name in names if name in self._shape})
        return fitted | {"id": id_}

    def only_fields(self, args: Mapping[str, Any]) -> list[str]:
        """Read which fields a call wants; empty means all.

        Raises:
            ApiError: 400 for a field that no document has.
        """
        only = args.get("projection") or args.get("only_fields") or []
        only = [only] if isinstance(only, str) else only
        if not isinstance(only, list) or not all(isinstance(name, str) for name in only):
            raise errors.FIELDS_TYPE_ERROR("a list of field names is expected", field="only_fields")
        if unknown := [name for name in only if _head(name) not in self._fields | {"*"}]:
            raise errors.INVALID_FIELDS(fields=unknown, object=self.table.capitalize())
        return [] if "*" in only else only

    def where(self, args: Mapping[str, Any], ignore: Iterable[str] = ()) -> _Where:
        """Translate a call's filters to SQL.

        Raises:
            ApiError: 400 for an unknown argument or a bad value.
        """
        spec, result, ignored = self.filters, _Where(), set(ignore) | _PAGING
        for name, value in args.items():
            if value is None or name in ignored:
                continue
            if name in spec.pattern:
                if value != "":
                    result.add(f"{self._expr(name)} REGEXP ?", check_pattern(value, name))
            elif _matches(name, spec.lists):
                self._list(result, name, value)
            elif _matches(name, spec.ranges):
                self._range(result, name, value)
            elif name in spec.dates:
                self._dates(result, name, value)
            elif _matches(name, spec.equal):
                result.add(f"{self._expr(name)} = ?", value)
            elif name in ("_any_", "_or_"):
                self._multi(result, value, " OR ")
            elif name in ("_all_", "_and_"):
                self._multi(result, value, " AND ")
            elif name == "filters":
                self._filters(result, value)
            else:
                raise errors.INVALID_FIELDS(f"{name} is not an argument of this call", fields=[name])
        if text := args.get("search_text"):
            fields = [name for name in ("name", "id", "comment") if name == "id" or name in spec.pattern]
            pattern = contains_pattern(text, "search_text")
            result.add(" OR ".join(f"{self._expr(f)} REGEXP ?" for f in fields), *[pattern] * len(fields))
        return result

    def _expr(self, path: str) -> str:
        column = self._columns.get(path)
        if _head(path) not in self._fields:
            raise errors.FIELDS_LOOKUP_ERROR(err=f'Cannot resolve field "{path}"')
        return column if column else f"json_extract(doc, '{_json_path(path)}')"

    def _extract(self, path: str) -> str:
        at = f"doc, '{_json_path(path)}'"
        if path in self._lists:  # only a list, for json_each reads the column
            return f"CASE json_type({at}) WHEN 'array' THEN json_extract({at}) END"
        return f"json_extract({at})"

    def _list_source(self, path: str) -> str:
        column = self._columns.get(path)  # a list's column holds its JSON text
        return column if column else f"doc, '{_json_path(path)}'"

    def _empty(self, path: str) -> str:
        if path in self._lists:
            return f"coalesce(json_array_length({self._list_source(path)}), 0) = 0"
        return f"{self._expr(path)} IS NULL"

    def _contains(self, path: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
        """Condition: the field is (or its list holds) one of the values."""
        marks = ", ".join("?" * len(values))
        if path in self._lists:
            source = f"json_each({self._list_source(path)})"
            return f"EXISTS (SELECT 1 FROM {source} WHERE value IN ({marks}))", list(values)
        return f"{self._expr(path)} IN ({marks})", list(values)

    def _list(self, result: _Where, name: str, data: Any) -> None:
        terms = data if isinstance(data, list | tuple) else [data]
        include: dict[str, list[str]] = {"any": [], "all": []}
        exclude: list[str] = []
        empty, negate, context, joint, legacy = False, False, "any", "", True
        for term in terms:
            if term is None:
                empty = True
                continue
            if not isinstance(term, str):
                raise errors.FIELDS_VALUE_ERROR("invalid value type, string expected", field=name, value=str(term))
            if term == "__$nop":
                negate, context, legacy = False, "any", True
            elif term.startswith("__$"):
                if term == "__$not":
                    negate = True
                elif term in ("__$all", "__$and"):
                    context, joint, legacy = "all", joint or " AND ", False
                elif term in ("__$any", "__$or"):
                    context, joint, legacy = "any", joint or " OR ", False
                else:
                    raise errors.FIELDS_VALUE_ERROR("Unsupported operator", field=name, operator=term)
            elif negate or (legacy and term.startswith("-") and name not in ("id",)):
                value = term if negate else term[1:]
                if not value:
                    raise errors.FIELDS_VALUE_ERROR("Missing value after the exclude prefix -", field=name, value="")
                exclude.append(value)
                negate = False
            else:
                include[context].append(term)
        if negate:
            raise errors.FIELDS_VALUE_ERROR("Value is expected after", operator="__$not")
        parts: list[str] = []
        values: list[Any] = []
        for value_list, single in ((include["any"], False), (include["all"], True)):
            for chunk in [[v] for v in value_list] if single else ([value_list] if value_list else []):
                sql, bound = self._contains(name, chunk)
                parts.append(sql)
                values += bound
        if exclude:
            sql, bound = self._contains(name, exclude)
            parts.append(f"NOT coalesce({sql}, 0)")
            values += bound
        sql = (joint or " AND ").join(parts) if parts else ""
        if empty:
            sql = f"({sql}) OR {self._empty(name)}" if sql else self._empty(name)
        if sql:
            result.add(sql, *values)

    def _filters(self, result: _Where, data: Any) -> None:
        if not isinstance(data, dict):
            raise errors.FIELDS_VALUE_ERROR("invalid value type, object expected", field="filters", value=str(data))
        for name, spec in data.items():
            if not _matches(name, self.filters.lists):
                raise errors.INVALID_FIELDS(f"{name} can not be filtered by", fields=[name])
            if not isinstance(spec, dict) or set(spec) - {"any", "all", "op"}:
                raise errors.VALIDATION_ERROR("invalid filter for field, any/all/op expected", field=name)
            parts: list[str] = []
            values: list[Any] = []
            for kind in ("any", "all"):
                group = spec.get(kind) or {}
                if not isinstance(group, dict) or set(group) - {"include", "exclude"}:
                    raise errors.VALIDATION_ERROR("invalid filter for field, include/exclude expected", field=name)
                inner: list[str] = []
                for side in ("include", "exclude"):
                    wanted = group.get(side) or []
                    chunks = (
                        [[v] for v in wanted if v is not None]
                        if (kind == "all") == (side == "include")
                        else ([[v for v in wanted if v is not None]])
                    )
                    tests = []
                    for chunk in (c for c in chunks if c):
                        sql, bound = self._contains(name, chunk)
                        tests.append(sql)
                        values += bound
                    if tests:
                        sql = " AND ".join(tests)
                        inner.append(f"({sql})" if side == "include" else f"NOT coalesce(({sql}), 0)")
                    if None in wanted:
                        inner.append(f"{'NOT ' if side == 'exclude' else ''}({self._empty(name)})")
                if inner:
                    parts.append("(" + (" OR " if kind == "any" else " AND ").join(inner) + ")")
            if parts:
                result.add((" OR " if spec.get("op") == "or" else " AND ").join(parts), *values)

    def _range(self, result: _Where, name: str, data: Any) -> None:
        if not isinstance(data, list | tuple) or len(data) != 2:
            raise errors.VALIDATION_ERROR(f"Min and max values should be specified for range field {name}")
        low, high = data
        if low is None and high is None:
            raise errors.VALIDATION_ERROR(f"At least one of min or max values should be provided for field {name}")
        expr, parts, values = self._expr(name), [], []
        if low is not None:
            parts.append(f"{expr} >= ?")
            values.append(_number(low) if name.startswith("last_metrics.") else low)
        if high is not None:
            parts.append(f"{expr} <= ?")
            values.append(_number(high) if name.startswith("last_metrics.") else high)
        sql = " AND ".join(parts)
        result.add(f"({sql}) OR {expr} IS NULL" if low is None else sql, *values)

    def _dates(self, result: _Where, name: str, data: Any) -> None:
        conditions = data if isinstance(data, list) else [data]
        if len(conditions) == 2 and not any(isinstance(c, str) and c[:1] in "<>" for c in conditions if c):
            self._range(result, name, [_moment(name, c) if c else None for c in conditions])
            return
        for text in conditions:
            match = _DATE_CONDITION.match(str(text))
            moment = _moment(name, match["value"] if match else text)
            result.add(f"{self._expr(name)} {(match and match['op']) or '='} ?", moment)

    def _multi(self, result: _Where, data: Any, joint: str) -> None:
        known = {"fields", "pattern", "datetime"}
        if not isinstance(data, dict) or set(data) - known or not isinstance(data.get("fields"), list):
            raise errors.FIELDS_VALUE_ERROR("incorrect field format", field="_any_")
        parts = _Where()
        for name in data["fields"]:
            if data.get("pattern") is not None:
                pattern = check_pattern(data["pattern"], str(name), ignore_case=True)
                parts.add(f"{self._expr(str(name))} REGEXP ?", pattern)
            elif name in self.filters.dates:
                inner = _Where()
                self._dates(inner, name, data.get("datetime"))
                parts.add(inner.sql(), *inner.values)
        if parts.clauses:
            result.add(joint.join(f"({c})" for c in parts.clauses), *parts.values)

    def _order(self, order_by: Any) -> str:
        fields = [order_by] if isinstance(order_by, str) else order_by
        if not isinstance(fields, list) or not all(isinstance(f, str) for f in fields):
            raise errors.FIELDS_TYPE_ERROR("a list of field names is expected", field="order_by")
        terms = []
        for name in fields:
            path = name.lstrip("-")
            if path == "@text_score":
                continue
            terms.append(f"{self._expr(path)} {'DESC' if name.startswith('-') else 'ASC'} NULLS LAST")
        if fields and "id" not in (f.lstrip("-") for f in fields):
            terms.append("id")
        return f"ORDER BY {', '.join(terms)}" if terms else ""

    def _page(self, args: Mapping[str, Any], scroll: dict[str, Any] | None) -> tuple[int, int]:
        def integer(name: str, least: int) -> int | None:
            value = args.get(name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise errors.VALIDATION_ERROR(f"{name} must be an integer >= {least}", field=name)
            return value

        size, page, page_size, start = (
            integer("size", 1), integer("page", 0), integer("page_size", 1), integer("start", 0),
        )  # fmt: skip
        if "scroll_id" in args or start is not None:
            if size is None:
                raise errors.VALIDATION_ERROR(
                    "Integer size parameter greater than 1 should be provided when working with scroll"
                )
            if start is not None and "scroll_id" not in args:
                return start, size
            # The position lives in the id itself: no state to keep or to expire.
            token = args["scroll_id"] or f"{new_id()}.0"
            base, _, position = str(token).partition(".")
            offset = whole_number(position)
            if offset is None:
                raise errors.INVALID_SCROLL_ID(scroll_id=token)
            if scroll is not None:
                scroll["scroll_id"] = f"{base}.{position}"
            if args.get("refresh_scroll"):
                return 0, max(offset, size)
            return offset, size
        limit = min(page_size or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        return (page or 0) * limit, limit


def _head(path: str) -> str:
    return path.removeprefix("-").partition(".")[0]


def _json_path(path: str) -> str:
    """Make an SQLite JSON path of a dotted path.

    Raises:
        ApiError: 400 for a character that no field's name has.
    """
    if not path or any(c in path for c in "\"'\\\x00") or any(not part for part in path.split(".")):
        raise errors.FIELDS_VALUE_ERROR(f"{path!r} is no field", field=path)
    return "$" + "".join(f'."{part}"' for part in path.split("."))


def _moment(name: str, value: Any) -> str:
    try:
        return parse_time(value)
    except (ValueError, OverflowError) as error:
        raise errors.FIELDS_VALUE_ERROR(f"{value!r} is no time", field=name) from error


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
