"""Data that DVC tracks: pulled once per node, verified, and linked to where a script looks for it.

    dvc = DvcApi()
    path = dvc.dvc_path / "data/images"
    dvc.dvc_pull(path)

A path that was pulled before on this machine costs a few small files to read and one link to set: DVC is not even
imported. Otherwise DVC itself fetches what is missing into its cache. It does so in a repository that is made up for
the one path, with the remotes and settings of the real one: so it works for any revision and in a read-only clone,
takes no lock that another pull waits for, and does not depend on how large the real one is.

Facts about DVC that this rests on (read and measured with 2.58 and 3.67):

* without ``verify`` of the remote it stores whatever the remote gives, as read-only file, which it trusts from then on;
* with it, what has the wrong hash is silently left out and the exit code is 0, as it is for a remote that is not there:
  so what must have come is looked for afterwards;
* a verified object becomes read-only (0444) last, so what a kill -9 leaves is hashed again when it is met.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path, PurePosixPath
from typing import Dict, List, Optional, Tuple, Union

from .._cache import open_tree
from .._errors import ClearmlClientError
from ._objects import hash_is, list_entries
from ._place import Ours, clear_way, is_checkout, leads_to, materialise, swap
from ._repository import Output, configured, open_source
from ._settings import Site
from ._trees import checker, find_shared, inside, make_tree, tree_key

__all__ = ["DvcApi"]

logger = logging.getLogger(__name__)
LINKS = ("symlink", "hardlink", "copy")


class DvcApi:
    """Data of a DVC repository on this machine.

    Args:
        repo: folder or URL of the git repository. Without it: ``dvc_repo`` of ``[tool.clearml_client]`` in
            pyproject.toml, or the repository around the working directory or the script. Paths count from the DVC
            project that the folder is in. Those of a URL count from the root of the git repository, as for ``dvc
            get``, and so do those of a folder above several projects (``dvc init --subdir``): each path is had from
            the remotes of the project that it is in.
        rev: branch, tag or commit; without it ``dvc_rev`` of the same place, the files of the folder as they are, or
            the default branch of a URL.
        remote: name of a remote; without it the one that DVC would take.
        path: the folder in which paths are linked; without it the repository's own, or one of the client's cache where
            that cannot be (another revision, a URL, a read-only folder).
        link: "symlink", or "hardlink" or "copy" for a folder of one's own; only copies may be changed.

    Raises:
        ClearmlClientError: if there is no such repository or revision; the message says what to write instead.
    """

    def __init__(
        self,
        repo: Union[str, "os.PathLike[str]", None] = None,
        rev: Optional[str] = None,
        *,
        remote: Optional[str] = None,
        path: Union[str, "os.PathLike[str]", None] = None,
        link: str = "symlink",
    ) -> None:
        if link not in LINKS:
            raise ClearmlClientError(f"link is {link!r}; write one of {', '.join(LINKS)}")
        if repo is None:
            repo, configured_rev = configured()
            rev = rev or configured_rev
        self._remote = remote
        self._link = link
        self._rev = rev
        self._files = open_source(repo, rev)
        if path is not None:
            self._path = Path(path).expanduser().absolute()
        else:
            self._path = self._files.workspace()
        self._found: Dict[str, Tuple[str, List[Output]]] = {}
        self._sites: Dict[str, Site] = {}

    @property
    def dvc_path(self) -> Path:
        """The folder below which the tracked paths are found once they are pulled."""
        return self._path

    @property
    def revision(self) -> Optional[str]:
        """The commit that the data belong to; None outside git."""
        return self._files.commit

    def dvc_pull(self, path: Union[str, "os.PathLike[str]"] = ".") -> Path:
        """Make a tracked path be there, and return it as an absolute path.

        Args:
            path: below ``dvc_path``, or absolute. A tracked file or folder, something below one, of which only that
                part is pulled, a folder that holds several, or the file that tells of them: ``data/mnist.dvc`` stands
                for ``data/mnist``, ``dvc.yaml`` for all outputs of its stages.

        Raises:
            ClearmlClientError: if the path is not tracked, cannot be had or does not verify, or if something else is
                in its place; nothing half is left.
        """
        name, found = self._find(self._relative(path))
        for output in found:
            below = name[len(output.path) + 1 :] if name.startswith(output.path + "/") else ""
            self._pull(output, below)
        return self._path / name if name else self._path

    def tracked(self) -> List[str]:
        """Return all paths that the repository tracks, below ``dvc_path``."""
        return sorted({output.path for output in self._files.outputs()})

    def dvc_verify(self, path: Union[str, "os.PathLike[str]"] = ".") -> List[str]:
        """Hash a pulled path again, and return the paths whose content is not what was tracked.

        Raises:
            ClearmlClientError: if the path is not tracked or was not pulled.
        """
        name, found = self._find(self._relative(path))
        wrong = []
        for output in found:
            below = name[len(output.path) + 1 :] if name.startswith(output.path + "/") else ""
            site = self._site(output)
            entries = list_entries(output, below, site)
            if entries is None:
                raise ClearmlClientError(f"{output.path} was not pulled on this machine: call dvc_pull first")
            for entry in entries:
                place = self._path / output.path / entry.path
                if not place.is_file() or not hash_is(place, entry.md5, output.legacy):
                    wrong.append(str(PurePosixPath(output.path) / entry.path))
        return wrong

    # One path

    def _relative(self, path: Union[str, "os.PathLike[str]"]) -> str:
        """Return a path below the root of the repository, "" for the root itself."""
        given = Path(os.path.normpath(str(Path(path).expanduser())))
        if given.is_absolute():
            for root in (self._path, self._files.folder()):
                above = None if root is None else _same(given, root)
                if above is not None:
                    given = given.relative_to(above)
                    break
            else:
                raise ClearmlClientError(
                    f"{path} is not below {self._path}, where this repository's paths are: write dvc.dvc_path / ..., "
                    "or a path relative to it"
                )
        name = os.path.normpath(given.as_posix())
        if name == ".." or name.startswith("../"):
            raise ClearmlClientError(f"{path} leads out of {self._path}: write a path below it")
        return "" if name == "." else name

    def _find(self, name: str) -> Tuple[str, List[Output]]:
        """Return the path of the data that a path stands for, and what is tracked at, above or below it.

        Raises:
            ClearmlClientError: if nothing is; the message has names that are near.
        """
        if name not in self._found:
            found = self._files.find(name)
            data = name
            if not found:
                found = self._files.told_by(name)
                data = found[0].path if len(found) == 1 else str(PurePosixPath(name).parent)
            if not found:
                raise self._files.untracked(name)
            self._found[name] = ("" if data == "." else data, found)
        return self._found[name]

    def _site(self, output: Output) -> "Site":
        """Return the settings of the project that tracks an output."""
        if self._files.folder() is not None:
            # Somebody may mend them while this object lives.
            return Site(self._files, output.project)
        if output.project not in self._sites:
            self._sites[output.project] = Site(self._files, output.project)
        return self._sites[output.project]

    def _pull(self, output: Output, below: str) -> None:
        site = self._site(output)
        content = self._tree(output, below, site)
        target = self._path / output.path
        if below:
            target = target / below
        self._place(output, below, content, target, site)
        self._record(output, below)

    def _tree(self, output: Output, below: str, site: "Site") -> Path:
        """Return where the shared copy is: the folder or the file."""
        whole = find_shared(output, site)
        if whole is not None:
            return inside(whole, output, below)
        source = f"{self._files}: {output.path}" + (f"/{below}" if below else "")

        def make(folder: Path) -> None:
            make_tree(folder, output, below, site, self._remote)

        return inside(
            open_tree(tree_key(output, below, site), make, source=source, check=checker(output, below, site)),
            output,
            below,
        )

    def _place(self, output: Output, below: str, content: Path, target: Path, site: "Site") -> None:
        """Put a link, or files of one's own, where the script looks."""
        ours = Ours(site.cache)
        try:
            if leads_to(target, content):
                return
            clear_way(self._path, target, ours)
            listed = None
            if os.path.lexists(str(target)) and not ours.is_link(target):
                listed = list_entries(output, below, site)
                if is_checkout(target, listed, output.legacy, site, below):
                    return
                if not ours.only_links(target):
                    raise ClearmlClientError(
                        f"{target} is there with other content than what is tracked ({output.origin}): move it away, "
                        "or dvc add it if it is the better one"
                    )
            if self._link == "symlink":
                swap(target, lambda new: new.symlink_to(content))
            else:
                hard = self._link == "hardlink"
                swap(target, lambda new: materialise(content, new, hard))
        except OSError as error:
            raise ClearmlClientError(
                f"{target} cannot be made ({error.strerror}): give DvcApi a path that you may write"
            ) from error

    def _record(self, output: Output, below: str) -> None:
        from .._links import record

        # Two projects of one repository may have the same path: its name counts from git's root.
        path = str(PurePosixPath(self._files.prefix + output.path) / below)
        record(
            name=path,
            version=self._files.version(self._rev, output.path, output.origin),
            hash=output.md5,
            path=path,
            store="dvc",
            revision=self._files.commit or "",
        )


def _same(path: Path, root: Path) -> Optional[Path]:
    """Return the folder above a normal path, or itself, that is a certain one, by whatever name; None where none is."""
    # Up from it as it is written: what is below may be links into a cache.
    for folder in (path, *path.parents):
        if folder == root:
            return folder
        with contextlib.suppress(OSError):
            if folder.samefile(root):
                return folder
    return None
