"""Where a version comes from, what was made of it, and which experiments and models used it."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set
from xml.sax.saxutils import escape as xml_escape

from ._claims import CLAIM
from ._records import Version
from ._remote import Json, Server, Task

__all__ = ["Experiment", "Lineage", "Node", "opened_between", "ran_between", "uses"]

_STRUCTURE = "Dataset Struct"  # configuration object in which the SDK keeps a version's ancestors
_LINKS = "datasets"  # configuration object in which experiments note the datasets that they opened
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 200, 46, 70, 18, 16


class Node(NamedTuple):
    """A version in the graph."""

    id: str
    label: str  # NAME@VERSION, or the id of one that is gone
    parents: List[str]
    state: str  # "whole", "unfinished" or "gone"


class Experiment(NamedTuple):
    """An experiment that opened the version, and the models that it made."""

    id: str
    name: str
    status: str
    models: List[str]


class Lineage(NamedTuple):
    """The versions that a version is related to."""

    version: Version
    nodes: Dict[str, Node]
    experiments: List[Experiment]

    @classmethod
    def read(cls, server: Server, version: Version) -> Lineage:
        """Ask the server."""
        everything = _graph(server)
        related = _related(everything, version.id)
        nodes = {id_: everything.get(id_) or Node(id_, id_, [], "gone") for id_ in related}
        return cls(version, nodes, _experiments(server, version.id))

    def children(self, id_: str) -> List[Node]:
        """Return what was made directly of a version."""
        return sorted((node for node in self.nodes.values() if id_ in node.parents), key=lambda node: node.label)

    @property
    def roots(self) -> List[Node]:
        """The versions that come from nothing."""
        found = [node for node in self.nodes.values() if not any(parent in self.nodes for parent in node.parents)]
        return sorted(found, key=lambda node: node.label)

    def text(self) -> str:
        """Draw the graph with characters, parents above their children; ``*`` marks the version asked for."""
        lines: List[str] = []
        seen: Set[str] = set()

        def draw(node: Node, lead: str, turn: str, below: str) -> None:
            mark = " *" if node.id == self.version.id else ""
            state = "" if node.state == "whole" else f" ({node.state})"
            merged = f" (merges {len(node.parents)})" if len(node.parents) > 1 else ""
            children = self.children(node.id)
            again = node.id in seen
            lines.append(f"{lead}{turn}{node.label}{mark}{merged}{state}{' (see above)' if again and children else ''}")
            if again:
                return
            seen.add(node.id)
            for child in children:
                last = child is children[-1]
                draw(child, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

        for root in self.roots:
            draw(root, "", "", "")
        for experiment in self.experiments:
            models = f": {', '.join(experiment.models)}" if experiment.models else ""
            lines.append(f"used by {experiment.name} ({experiment.status}, {experiment.id}){models}")
        return "\n".join(lines) + "\n"

    def svg(self) -> str:
        """Draw the graph as a picture: from left to right, parents before their children."""
        levels = self._levels()
        columns: Dict[int, List[str]] = {}
        for id_ in sorted(levels, key=lambda id_: (levels[id_], self.nodes[id_].label)):
            columns.setdefault(levels[id_], []).append(id_)
        places = {
            id_: (_MARGIN + column * (_BOX_WIDTH + _GAP_X), _MARGIN + row * (_BOX_HEIGHT + _GAP_Y))
            for column, ids in columns.items()
            for row, id_ in enumerate(ids)
        }
        width = _MARGIN * 2 + len(columns) * (_BOX_WIDTH + _GAP_X) - _GAP_X
        height = _MARGIN * 2 + max(len(ids) for ids in columns.values()) * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
        ]
        for node in self.nodes.values():
            for parent in node.parents:
                if parent in places:
                    parts.append(_edge(*places[parent], *places[node.id]))
        for id_, (x, y) in places.items():
            parts.append(_box(self.nodes[id_], x, y, chosen=id_ == self.version.id))
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _levels(self) -> Dict[str, int]:
        """Return how many steps a version is from the farthest root."""
        levels: Dict[str, int] = {}
        waiting = list(self.nodes)
        while waiting:
            id_ = waiting.pop()
            if id_ in levels:
                continue
            parents = [parent for parent in self.nodes[id_].parents if parent in self.nodes]
            unknown = [parent for parent in parents if parent not in levels]
            if unknown:
                waiting += [id_, *unknown]
            else:
                levels[id_] = 1 + max((levels[parent] for parent in parents), default=-1)
        return levels

    def document(self) -> Dict[str, Any]:
        """Return everything as plain values."""
        return {
            "version": str(self.version),
            "id": self.version.id,
            "nodes": [node._asdict() for node in self.nodes.values()],
            "experiments": [experiment._asdict() for experiment in self.experiments],
        }


def _edge(x1: int, y1: int, x2: int, y2: int) -> str:
    start, end = (x1 + _BOX_WIDTH, y1 + _BOX_HEIGHT // 2), (x2, y2 + _BOX_HEIGHT // 2)
    middle = (start[0] + end[0]) // 2
    return (
        f'<path d="M{start[0]},{start[1]} C{middle},{start[1]} {middle},{end[1]} {end[0]},{end[1]}" '
        'fill="none" stroke="#889" stroke-width="1.5"/>'
    )


def _box(node: Node, x: int, y: int, *, chosen: bool) -> str:
    fill = "#ffe9a8" if chosen else {"whole": "#e3ecf8", "unfinished": "#f3f3f3", "gone": "#f8dede"}[node.state]
    label = xml_escape(node.label if len(node.label) <= 26 else node.label[:25] + "…")
    about = node.id[:8] if node.state == "whole" else f"{node.id[:8]} ({node.state})"
    return (
        f"<g><title>{xml_escape(node.label)} {node.id}</title>"
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6" fill="{fill}" stroke="#667"/>'
        f'<text x="{x + 10}" y="{y + 19}" font-weight="bold">{label}</text>'
        f'<text x="{x + 10}" y="{y + 37}" fill="#556">{about}</text></g>'
    )


# ---------------------------------------------------------------- asking the server


def _structure(document: Json) -> List[Dict[str, Any]]:
    """Return the nodes of the SDK's structure: each has ``job_id`` and ``parents`` (ids here)."""
    text = ((document.get("configuration") or {}).get(_STRUCTURE) or {}).get("value") or "{}"
    try:
        nodes: Mapping[str, Any] = json.loads(text)
        return [
            {"job_id": node["job_id"], "parents": [nodes[parent]["job_id"] for parent in node.get("parents", [])]}
            for node in nodes.values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # somebody else's configuration of this name


def _parents(document: Json) -> List[str]:
    claim = (document.get("runtime") or {}).get(CLAIM)
    if isinstance(claim, dict) and "parents" in claim:
        return list(claim["parents"])
    own = [node["parents"] for node in _structure(document) if node["job_id"] == document["id"]]
    return list(own[0]) if own else []


def _documents(server: Server) -> List[Json]:
    """Return all versions of all datasets, and those in the making."""
    projects = server.projects_below("")
    hidden = sorted(id_ for id_, name in projects.items() if "/.datasets/" in name)
    if not hidden:
        return []
    documents = server.tasks(fields=["configuration"], project=hidden)
    for document in documents:
        document["dataset"] = projects[document["project"]].partition("/.datasets/")[2]
    return documents


def uses(server: Server, id_: str) -> List[str]:
    """Return the versions that have a version among their ancestors, or refer to its packs; half ones too."""
    found = []
    for document in _documents(server):
        if document["id"] == id_:
            continue
        named = {node["job_id"] for node in _structure(document)} | {*_parents(document)}
        if id_ in named:
            found.append(f"{document['dataset']}@{Task.read(document).version}")
    return sorted(found)


def _graph(server: Server) -> Dict[str, Node]:
    nodes = {}
    for document in _documents(server):
        task = Task.read(document)
        label = f"{document['dataset']}@{task.version}" if task.version else document["dataset"]
        nodes[task.id] = Node(task.id, label, _parents(document), "whole" if task.whole else "unfinished")
    return nodes


def _related(nodes: Mapping[str, Node], start: str) -> List[str]:
    """Return a version, its ancestors and its descendants."""
    children: Dict[str, List[str]] = {}
    for node in nodes.values():
        for parent in node.parents:
            children.setdefault(parent, []).append(node.id)

    def reach(next_of: Any) -> Set[str]:
        seen, waiting = {start}, [start]
        while waiting:
            for id_ in next_of(waiting.pop()):
                if id_ not in seen:
                    seen.add(id_)
                    waiting.append(id_)
        return seen

    above = reach(lambda id_: nodes[id_].parents if id_ in nodes else [])
    below = reach(lambda id_: children.get(id_, []))
    # a descendant's other parents: without them a merge would look like a step
    beside = {parent for id_ in below if id_ in nodes for parent in nodes[id_].parents}
    return sorted(above | below | beside)


def opened_between(server: Server, id_: str, since: float, until: float) -> List[Experiment]:
    """Return who noted that it opened the version, and ran at a time (unix seconds) between the two."""
    return _experiments(server, id_, lambda document: ran_between(document, since, until))


def ran_between(document: Mapping[str, Any], since: float, until: float) -> bool:
    """Tell whether an experiment ran between two times; one whose times cannot be read may have."""
    began, ended = _seconds(document.get("started")), _seconds(document.get("completed"))
    return (began is None or began <= until) and (ended is None or ended >= since)


def _seconds(text: Any) -> Optional[float]:
    try:
        moment = datetime.fromisoformat(re.sub(r"\.\d+|Z\Z", "", str(text)))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _experiments(server: Server, id_: str, wanted: Callable[[Json], bool] = lambda document: True) -> List[Experiment]:
    """Return who noted that it opened the version."""
    documents = server.tasks(
        fields=[f"configuration.{_LINKS}", "models.output", "started", "completed"],
        _all_={"fields": [f"configuration.{_LINKS}.value"], "pattern": re.escape(id_)},
    )
    documents = [document for document in documents if wanted(document)]
    models = {document["id"]: list(_models(document)) for document in documents}
    asked = sorted({model for ids in models.values() for model in ids})
    names: Dict[str, str] = {}
    if asked:
        found = server.call("models.get_all", id=asked, only_fields=["id", "name"]).get("models", [])
        names = {model["id"]: model.get("name") or model["id"] for model in found}
    return [
        Experiment(
            document["id"],
            document.get("name") or "",
            document.get("status") or "",
            [names.get(model, model) for model in models[document["id"]]],
        )
        for document in documents
    ]


def _models(document: Json) -> Iterable[str]:
    for model in (document.get("models") or {}).get("output") or []:
        if model.get("model"):
            yield model["model"]
