"""What every store of datasets can do, and how it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Sequence

from .._cache import Damage
from ._records import Difference, Problem, Tree, Version
from .index import Listed
from .lineage import Experiment, Lineage
from .packs import Progress

__all__ = ["Exposure", "Store"]


class Exposure(NamedTuple):
    """A change that was found in this machine's copy of a version."""

    damage: Damage
    experiments: List[Experiment]  # that ran between the change and its finding, on any node


class Store(Protocol):
    """A place for versioned datasets.

    References are written ``NAME``, ``NAME@VERSION`` or ``NAME@TAG``; the first means the highest version. Whatever
    cannot be done raises ``ClearmlClientError``, which says what to change.
    """

    def upload(
        self,
        path: Path,
        name: str,
        *,
        version: str,
        parents: Sequence[str] = (),
        merge: bool = False,
        tags: Sequence[str] = (),
        metadata: Optional[Mapping[str, str]] = None,
        comment: str = "",
        progress: Optional[Progress] = None,
    ) -> Version:
        """Store a folder as a new version; it is there whole or not at all."""

    def download(self, reference: str, *, progress: Optional[Progress] = None) -> Path:
        """Return the version's folder on this machine, read-only and shared; fetched if it is not there."""

    def ls(self, *, unfinished: bool = False) -> List[Version]:
        """Return the highest version of each dataset; with ``unfinished``, half versions too."""

    def find(self, reference: str, *, unfinished: bool = False) -> Version:
        """Return the version that a reference means."""

    def versions(self, name: str, *, unfinished: bool = False) -> List[Version]:
        """Return a dataset's versions from the lowest to the highest."""

    def tree(
        self,
        reference: str,
        folder: str = "",
        *,
        files: bool = False,
        depth: Optional[int] = 1,
        glob: Optional[str] = None,
        page: int = 1,
        limit: int = 200,
    ) -> Tree:
        """List what is in a version, without fetching it."""

    def diff(self, before: str, after: str) -> Difference:
        """Compare two versions, which may be of different datasets."""

    def listing(self, version: Version) -> Iterator[Listed]:
        """Give the files of a version, sorted by path."""

    def read_files(self, version: Version, paths: Sequence[str], folder: Path) -> None:
        """Fetch some files of a version, and only these, into a folder."""

    def is_local(self, version: Version) -> bool:
        """Tell whether a version is on this machine already."""

    def local(self, version: Version, *, progress: Optional[Progress] = None) -> Path:
        """Return the shared folder of a version that ``find`` returned."""

    def place(self, reference: str, target: Path, *, copy: bool = False, progress: Optional[Progress] = None) -> Path:
        """Put a version at a path: a symbolic link to the shared folder, or a copy of one's own."""

    def tag(self, reference: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Version:
        """Put tags on a version, and take others off; return it as it is then."""

    def lineage(self, reference: str) -> Lineage:
        """Return where a version comes from, what was made of it, and who used it."""

    def users(self, version: Version) -> List[str]:
        """Return the versions that need this one, as NAME@VERSION."""

    def delete(self, version: Version) -> None:
        """Delete a version that ``find`` returned."""

    def verify(self, reference: str, path: Optional[Path] = None, *, remote: bool = False) -> List[Problem]:
        """Compare a folder (without it: the shared one) with the hashes, or look whether the packs are stored."""

    def exposures(self, version: Version) -> List[Exposure]:
        """Return each change that was found in this machine's copy of a version, and who may have read it."""
