"""What a store of datasets answers with: versions, listings, differences."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional

__all__ = ["Change", "Difference", "Problem", "Row", "Tree", "Version"]


class Version(NamedTuple):
    """A version of a dataset."""

    name: str
    version: str
    id: str
    tags: List[str]
    status: str  # "completed", "published", or "unfinished" for what is not whole
    created: str  # ISO 8601, by the server's clock
    files: Optional[int]
    bytes: Optional[int]
    comment: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Row(NamedTuple):
    """A line of a listing: a folder with what is below it, or a file."""

    path: str
    folder: bool
    files: int
    bytes: Optional[int]  # None where the store does not tell


class Tree(NamedTuple):
    """A page of a listing."""

    version: Version
    metadata: Dict[str, Any]
    files: int  # of the whole version
    bytes: Optional[int]
    rows: List[Row]
    total: int  # rows of all pages


class Change(NamedTuple):
    """A file that two versions do not have in common."""

    path: str
    kind: str  # "added", "removed" or "changed"
    before: Optional[int]  # bytes
    after: Optional[int]


class Difference(NamedTuple):
    """What lies between two versions."""

    before: Version
    after: Version
    changes: List[Change]

    def of(self, kind: str) -> List[Change]:
        """Return the changes of one kind."""
        return [change for change in self.changes if change.kind == kind]


class Problem(NamedTuple):
    """What a check found wrong with a file or a pack."""

    path: str
    text: str
