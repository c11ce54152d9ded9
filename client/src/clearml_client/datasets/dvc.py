"""Versioned datasets in a DVC repository.

A path that DVC tracks is a dataset, and git's tags are its versions: ``data/images@1.4.0`` is the annotated tag of
that name, which is how GTO writes it too, or else the tag, branch or commit ``1.4.0`` of the whole repository. A
lightweight tag ``data/images@golden`` is a label. A tag has the path from git's root, so that two projects of one
repository (``dvc init --subdir``) do not take each other's. Git knows who made what from what; DVC's remote holds the
files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence

from .. import _cache
from .._dvc import DvcApi
from .._dvc._fetch import dvc_command, fetch_some
from .._dvc._objects import Entry, hash_is, list_entries, object_path
from .._dvc._repository import Commit, Output, masked, open_source, projects_in, run_git
from .._dvc._settings import Site
from .._dvc._trees import find_shared, tree_key
from .._errors import ClearmlClientError
from ._interface import Exposure
from ._place import place
from ._records import Change, Difference, Problem, Row, Tree, Version
from .index import Listed, compile_glob, escape, summarize_folders
from .lineage import Experiment, Lineage, Node, ran_between
from .packs import Progress
from .versions import check_tag, check_version, version_key

__all__ = ["DvcStore"]

_REFS = "%(objecttype)%00%(refname:strip=2)%00%(*objectname)%00%(objectname)%00%(creatordate:iso-strict)%00%(subject)"


class _Tag(NamedTuple):
    """A tag of git."""

    name: str
    commit: str
    annotated: bool
    created: str
    subject: str


class DvcStore:
    """The datasets of a DVC repository.

    Sizes of single files are not known: DVC's lists do not hold them, only the size of a whole dataset.
    """

    def __init__(self, repo: "str | os.PathLike[str]" = ".", *, remote: Optional[str] = None) -> None:
        """Open a repository.

        Args:
            repo: Folder or URL of the git repository.
            remote: Name of the remote of DVC; without it the one that DVC would take.

        Raises:
            ClearmlClientError: There is no such repository, or it is not under git.
        """
        self._repo = repo
        self._remote = remote
        self._source = open_source(repo, None)
        if self._source.git is None:
            raise ClearmlClientError(
                f"{self._source} is not under git, so its data have no versions: run git init there"
            )
        self._git: Path = self._source.git
        self._known: Optional[List[_Tag]] = None
        self._alone: Optional[bool] = None

    # ------------------------------------------------------------ finding

    def _tags(self) -> List[_Tag]:
        if self._known is None:
            told = run_git(self._git, "for-each-ref", f"--format={_REFS}", "refs/tags", check=True).stdout
            rows = (line.split("\0") for line in told.splitlines())
            self._known = [
                _Tag(name, inner or own, kind == "tag", created, subject)
                for kind, name, inner, own, created, subject in rows
            ]
        return self._known

    def _own(self, tag: _Tag) -> "tuple[str, str]":
        """Return dataset and version (or label) of a tag; dataset "" for a tag of the whole repository."""
        dataset, at, version = tag.name.rpartition("@")
        if not at:
            return "", tag.name
        prefix = self._source.prefix
        if prefix and dataset.startswith(prefix):
            return dataset[len(prefix) :], version
        # Before there were several projects, a project's tags may have had its own paths.
        return (dataset, version) if not prefix or self._is_alone() else (f"/{dataset}", version)

    def _is_alone(self) -> bool:
        """Tell whether the repository has no other project than this one."""
        if self._alone is None:
            every = projects_in(self._git, self._git) if self._source.folder() is not None else []
            self._alone = len(every) <= 1
        return self._alone

    def _tag(self, name: str, version: str) -> str:
        return f"{self._source.prefix}{name}@{version}"

    def _at(self, commit: str) -> Commit:
        return self._source.at_commit(self._git, commit)

    def _output(self, commit: str, name: str) -> Optional[Output]:
        found = [output for output in self._at(commit).find(name) if output.path == name]
        return found[0] if found else None

    def _candidates(self, name: str) -> Iterator[Version]:
        """Give a dataset's versions, in no order."""
        labels: Dict[str, List[str]] = {}
        for tag in self._tags():
            dataset, label = self._own(tag)
            if not tag.annotated and dataset == name:
                labels.setdefault(tag.commit, []).append(label)
        for tag in self._tags():
            dataset, version = self._own(tag)
            if dataset and (dataset != name or not tag.annotated):
                continue
            output = self._output(tag.commit, name)
            if output is not None:
                yield _version(name, version, tag, output, labels.get(tag.commit, []))

    def versions(self, name: str, *, unfinished: bool = False) -> List[Version]:
        """Return a dataset's versions, one for each tag that has it, from the lowest to the highest.

        Raises:
            ClearmlClientError: DVC tracks no such path.
        """
        name = _clean(name)
        found = sorted(self._candidates(name), key=lambda version: (version_key(version.version), version.version))
        return found or [self._head(name)]

    def _head(self, name: str) -> Version:
        """Return what the repository has now.

        Raises:
            ClearmlClientError: DVC tracks no such path; the message has names that are near.
        """
        commit = self._source.commit
        if commit is None:
            raise ClearmlClientError(f"{self._source} has no commit yet: git add and git commit what DVC tracks")
        output = self._output(commit, name)
        if output is None:
            raise self._at(commit).untracked(name)
        return self._revision(name, commit[:12], commit, output)

    def _revision(self, name: str, version: str, commit: str, output: Output) -> Version:
        told = run_git(self._git, "log", "-1", "--format=%cI%x00%s", commit, check=True).stdout.strip("\n")
        created, _, subject = told.partition("\0")
        return _version(name, version, _Tag(version, commit, False, created, subject), output, [])

    def find(self, reference: str, *, unfinished: bool = False) -> Version:
        """Return the version that a reference means.

        Args:
            reference: ``PATH`` (its highest version), ``PATH@VERSION``, ``PATH@LABEL``, or ``PATH@`` and any tag,
                branch or commit of the repository.
            unfinished: Of no meaning here: git has no half versions.

        Raises:
            ClearmlClientError: There is none.
        """
        name, at, selector = reference.partition("@")
        name = _clean(name)
        if not at:
            return self.versions(name)[-1]
        for version in self._candidates(name):
            if version.version == selector or selector in version.tags:
                return version
        commit = str(self._source.at(selector).commit)
        output = self._output(commit, name)
        if output is None:
            raise self._at(commit).untracked(name)
        return self._revision(name, selector, commit, output)

    def ls(self, *, unfinished: bool = False) -> List[Version]:
        """Return the highest version of each path that is tracked now."""
        return [self.versions(output.path)[-1] for output in self._source.at("HEAD").outputs()]

    # ------------------------------------------------------------ looking

    def _commit_of(self, version: Version) -> str:
        return version.id.partition(":")[0]

    def _open(self, version: Version) -> "tuple[Output, Site]":
        commit = self._commit_of(version)
        output = self._output(commit, version.name)
        if output is None:
            raise ClearmlClientError(f"{version}: {version.name} is not tracked by DVC there")
        return output, Site(self._at(commit), output.project)

    def _entries(self, version: Version) -> List[Entry]:
        """Return the files of a version; only their list is fetched."""
        output, site = self._open(version)
        entries = list_entries(output, "", site)
        if entries is None:
            fetch_some(_cache.dvc_folder("lists"), output, [], site, self._remote)
            entries = list_entries(output, "", site)
        if entries is None:
            raise ClearmlClientError(f"{version}: the list of its files did not come from its remote")
        name = PurePosixPath(version.name).name
        return sorted(entry if entry.path else Entry(name, entry.md5) for entry in entries)

    def listing(self, version: Version) -> Iterator[Listed]:
        """Give the files of a version, sorted by path; their sizes are not known."""
        for entry in self._entries(version):
            yield Listed(entry.path, None)

    def read_files(self, version: Version, paths: Sequence[str], folder: Path) -> None:
        """Fetch some files of a version, and only these, into a folder."""
        output, site = self._open(version)
        wanted = {entry.path: entry.md5 for entry in self._entries(version)}
        missing = [path for path in paths if not os.path.exists(self._object(output, site, wanted[path]))]  # noqa: PTH110
        if missing:
            fetch_some(_cache.dvc_folder("lists"), output, missing, site, self._remote)
        for path in paths:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self._object(output, site, wanted[path]))

    @staticmethod
    def _object(output: Output, site: Site, md5: str) -> str:
        return object_path(site.objects(output.legacy), md5)

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
        """List what is in a version, of which only DVC's list is fetched; see ``ClearmlStore.tree``."""
        if page < 1 or limit < 1:
            raise ClearmlClientError(f"page {page}, limit {limit}: both count from 1")
        version = self.find(reference)
        entries = self._entries(version)
        folder = folder.strip("/")
        prefix = folder + "/" if folder else ""
        folders = summarize_folders((entry.path, 0) for entry in entries)
        if not any(known.path == folder for known in folders):
            raise ClearmlClientError(f"{version} has no folder {folder!r}: `tree {version}` shows those there are")

        def near(path: str) -> bool:
            return path.startswith(prefix) and (depth is None or path.count("/", len(prefix)) < depth)

        rows: List[Row] = []
        if glob is not None:
            pattern = compile_glob(glob)
            below = None if depth == 1 else depth
            rows = [
                Row(entry.path, False, 1, None)
                for entry in entries
                if entry.path.startswith(prefix)
                and (below is None or near(entry.path))
                and pattern.match(f"{escape(entry.path)}\t0")
            ]
        else:
            rows = [Row(one.path, True, one.files, None) for one in folders if one.path != folder and near(one.path)]
            if files:
                rows += [Row(entry.path, False, 1, None) for entry in entries if near(entry.path)]
                rows.sort(key=lambda row: row.path)
        first = (page - 1) * limit
        if first and first >= len(rows):
            raise ClearmlClientError(f"page {page}: there are {-(-len(rows) // limit)} pages of {limit} rows")
        output, _ = self._open(version)
        return Tree(version, dict(output.meta), len(entries), version.bytes, rows[first : first + limit], len(rows))

    def diff(self, before: str, after: str) -> Difference:
        """Compare the lists of two versions."""
        old, new = self.find(before), self.find(after)
        left = {entry.path: entry.md5 for entry in self._entries(old)}
        right = {entry.path: entry.md5 for entry in self._entries(new)}
        changes = []
        for path in sorted(left.keys() | right.keys()):
            if left.get(path) != right.get(path):
                kind = "added" if path not in left else "changed" if path in right else "removed"
                changes.append(Change(path, kind, None, None))
        return Difference(old, new, changes)

    def lineage(self, reference: str) -> Lineage:
        """Return a dataset's versions, each after the one that git has before it, and who used this one."""
        version = self.find(reference)
        every = self.versions(version.name)
        nodes = {one.id: Node(one.id, str(one), [], "whole") for one in (*every, version)}
        by_commit = {self._commit_of(one): one.id for one in (*every, version)}
        for commit, id_ in by_commit.items():
            history = run_git(self._git, "rev-list", "--topo-order", commit, check=True).stdout.split()
            before = next((by_commit[past] for past in history[1:] if past in by_commit), None)
            nodes[id_] = nodes[id_]._replace(parents=[before] if before else [])
        return Lineage(version, nodes, _experiments(self._source.prefix + str(version)))

    # ------------------------------------------------------------ downloading

    def is_local(self, version: Version) -> bool:
        """Tell whether a version is on this machine already."""
        output, site = self._open(version)
        return find_shared(output, site) is not None

    def local(self, version: Version, *, progress: Optional[Progress] = None) -> Path:
        """Return the shared folder (or file) of a version that ``find`` returned; DVC itself shows how far it is."""
        api = DvcApi(self._repo, self._commit_of(version), remote=self._remote)
        link = api.dvc_pull(version.name)
        return Path(os.readlink(link)) if link.is_symlink() else link  # noqa: PTH115 - Path.readlink is of 3.9

    def download(self, reference: str, *, progress: Optional[Progress] = None) -> Path:
        """Return the version's folder on this machine, read-only and shared; fetched if it is not there."""
        return self.local(self.find(reference))

    def place(self, reference: str, target: Path, *, copy: bool = False, progress: Optional[Progress] = None) -> Path:
        """Put a version at a path: a symbolic link to the shared folder, or a copy of one's own."""
        version = self.find(reference)
        return place(lambda: self.local(version), target, copy=copy, size=version.bytes or 0)

    def verify(self, reference: str, path: Optional[Path] = None, *, remote: bool = False) -> List[Problem]:
        """Compare a folder (without it: the shared one) with the hashes."""
        if remote:
            raise ClearmlClientError(
                "what DVC's remote holds is verified when it is fetched: leave --remote out, or dvc status --cloud"
            )
        version = self.find(reference)
        output, _ = self._open(version)
        shared = self._shared(version) if path is None else None
        root = shared or (self.local(version) if path is None else Path(path))
        problems = self._compare_folder(version, output, root)
        if problems and shared is not None:
            key = tree_key(*self._whole(version))
            content = _cache.find_tree(key)
            if content is not None:
                now = time.time()
                found = [
                    _cache.Finding(one.path or "file", "changed", _changed(root / one.path, now)) for one in problems
                ]
                _cache.condemn(content, str(version), found)
            self.local(version)
            problems = [one._replace(text=f"{one.text}; fetched again") for one in problems]
        return problems

    def _whole(self, version: Version) -> "tuple[Output, str, Site]":
        output, site = self._open(version)
        return output, "", site

    def _shared(self, version: Version) -> Optional[Path]:
        """Return the shared copy as it is, right or not; None where there is none."""
        output, _, site = self._whole(version)
        content = _cache.find_tree(tree_key(output, "", site))
        return content if content is None or output.folder else content / "file"

    def exposures(self, version: Version) -> List[Exposure]:
        """Return each change that was found in this machine's copy of a version, and who may have read it."""
        found = []
        for damage in _cache.damages(tree_key(*self._whole(version))):
            ran = partial(ran_between, since=damage.since, until=damage.found)
            found.append(Exposure(damage, _experiments(self._source.prefix + str(version), ran)))
        return found

    def _compare_folder(self, version: Version, output: Output, root: Path) -> List[Problem]:
        if not root.exists():
            raise ClearmlClientError(f"{root} does not exist: name the folder that is to be compared with {version}")
        there = {"": root} if root.is_file() else {p.relative_to(root).as_posix(): p for p in _files(root)}
        problems = []
        for entry in self._entries(version):
            file = there.pop(entry.path if output.folder else "", None)
            if file is None:
                problems.append(Problem(entry.path, "missing"))
            elif not hash_is(file, entry.md5, output.legacy):
                problems.append(Problem(entry.path, f"its md5 is not {entry.md5}"))
        problems += (Problem(extra, "not in this version") for extra in there)
        return sorted(problems)

    # ------------------------------------------------------------ uploading

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
        """Add a folder to the repository, push its files to DVC's remote, commit, and push the version's tag.

        The tag is what makes the version; it is pushed last, so there is never half a version. The branch is left to
        its author to push. After a break the same call goes on: DVC sends what is missing.

        Args:
            path: The folder or file. Elsewhere than at ``name``, it is copied there.
            name: Path below the root of the repository.
            version: Chosen by the author, unique.
            parents: Versions that it builds on; git must have them in its history.
            merge: Refused: git merges.
            tags: Labels.
            metadata: What else to know of it, kept as ``meta`` in the .dvc file.
            comment: A description; git's message.
            progress: Not told: DVC shows its own at a terminal.

        Raises:
            ClearmlClientError: It is refused, or something failed.
        """
        check_version(version)
        name = _clean(name)
        root = self._source.folder()
        if root is None:
            raise ClearmlClientError(f"{masked(str(self._repo))}: an upload needs a clone with files: git clone it")
        if merge:
            raise ClearmlClientError(
                f"{name}@{version}: --merge is for ClearML's datasets: in a DVC repository git merges"
            )
        labels = [self._tag(name, check_tag(tag)) for tag in tags]
        tag = self._tag(name, version)
        self._check_new(tag, name, version)
        for parent in parents:
            commit = self._commit_of(self.find(parent))
            if run_git(self._git, "merge-base", "--is-ancestor", commit, "HEAD").returncode:
                raise ClearmlClientError(
                    f"{tag}: its parent {parent} is not in the history of this branch: git merge it"
                )
        project = self._source.project_of(name)
        if project is None:
            raise ClearmlClientError(
                f"{root / name} is in no DVC project: choose a path in one, or run dvc init --subdir in its folder"
            )
        # DVC works in the project that the path is in: its remotes count.
        self._add(root / project, Path(path), name[len(project) :])
        told = root / f"{name}.dvc"
        _describe(told, metadata or {}, comment)
        remote = ["--remote", self._remote] if self._remote else []
        self._dvc(root / project, "push", *remote, f"{name[len(project) :]}.dvc")
        self._commit(root, [told, told.parent / ".gitignore"], comment or tag)
        self._publish(tag, comment or tag, labels)
        self._known = None
        self._source = open_source(self._repo, None)
        return self.find(f"{name}@{version}")

    def _check_new(self, tag: str, name: str, version: str) -> None:
        if run_git(self._git, "check-ref-format", f"refs/tags/{tag}").returncode:
            raise ClearmlClientError(f"{tag}: git takes no such tag: use letters, digits, dots, dashes and slashes")
        # What others made meanwhile counts too.
        remote = self._origin()
        if remote:
            run_git(self._git, "fetch", "--quiet", "--tags", remote, check=True)
            self._known = None
        for tagged in self._tags():
            dataset, other = self._own(tagged)
            if dataset == name and tagged.annotated and version_key(other) == version_key(version):
                raise ClearmlClientError(
                    f"{tag} exists ({tagged.name}): versions are never overwritten; choose another"
                )

    def _add(self, root: Path, path: Path, name: str) -> None:
        """Let DVC track a folder; what is at its place and elsewhere too is not overwritten."""
        place_ = root / name
        if not path.exists():
            raise ClearmlClientError(f"{path} does not exist: name the folder that is to be stored")
        if path.resolve() == place_.resolve():
            self._dvc(root, "add", name)
            return
        if os.path.lexists(str(place_)):
            raise ClearmlClientError(
                f"{place_} is there already, and {path} is another: move one of them, so that nothing is lost"
            )
        place_.parent.mkdir(parents=True, exist_ok=True)
        self._dvc(root, "add", str(path.absolute()), "--out", name)

    def _dvc(self, root: Path, *arguments: str) -> None:
        """Run DVC where somebody sees its progress.

        Raises:
            ClearmlClientError: It failed.
        """
        shown = sys.stderr.isatty()
        done = subprocess.run(
            [*dvc_command(), *arguments],
            cwd=str(root),
            env={**os.environ, "DVC_NO_ANALYTICS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.STDOUT,
            universal_newlines=True,
            check=False,
        )
        if done.returncode:
            said = "see above" if shown else masked((done.stdout or "").strip()[-600:])
            raise ClearmlClientError(f"dvc {arguments[0]} failed in {root}: {said}")

    def _commit(self, root: Path, files: Sequence[Path], message: str) -> None:
        """Commit these files alone; what else is staged stays so."""
        names = [str(file.relative_to(self._git)) for file in files if file.exists()]
        run_git(self._git, "add", "--", *names, check=True)
        if run_git(self._git, "status", "--porcelain", "--", *names, check=True).stdout.strip():
            run_git(self._git, "commit", "--quiet", "--only", "-m", message, "--", *names, check=True)

    def _publish(self, tag: str, message: str, labels: Sequence[str]) -> None:
        run_git(self._git, "tag", "--annotate", "-m", message, tag, check=True)
        for label in labels:
            run_git(self._git, "tag", "--force", label, f"{tag}^{{commit}}", check=True)
        remote = self._origin()
        if remote is None:
            return
        # Labels may move, versions must not.
        refs = [f"refs/tags/{tag}", *(f"+refs/tags/{label}" for label in labels)]
        pushed = run_git(self._git, "push", "--quiet", "--atomic", remote, *refs)
        if pushed.returncode:
            run_git(self._git, "tag", "--delete", tag, *labels)
            raise ClearmlClientError(
                f"{tag} could not be pushed to {remote}, so there is no such version yet: "
                f"{masked(pushed.stderr.strip()[-400:])}. Its files are stored: the same call goes on"
            )

    def _origin(self) -> Optional[str]:
        """Return the git remote that versions are pushed to; None for a repository without."""
        branch = run_git(self._git, "rev-parse", "--abbrev-ref", "HEAD").stdout.strip()
        configured = run_git(self._git, "config", f"branch.{branch}.remote").stdout.strip()
        known = run_git(self._git, "remote").stdout.split()
        return configured if configured in known else ("origin" if "origin" in known else next(iter(known), None))

    # ------------------------------------------------------------ changing

    def tag(self, reference: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Version:
        """Put labels on a version (taking them from another that had them), and take others off."""
        adding, removing = [check_tag(tag) for tag in add], list(remove)
        version = self.find(reference)
        numbers = {one.version for one in self.versions(version.name)}
        for label in adding:
            if label in numbers:
                raise ClearmlClientError(f"tag {label!r}: {version.name} has a version of this name; choose another")
        for label in removing:
            if label not in version.tags:
                raise ClearmlClientError(f"tag {label!r}: {version} has {', '.join(version.tags) or 'no tags'}")
        refs = []
        for label in adding:
            name = self._tag(version.name, label)
            run_git(self._git, "tag", "--force", name, self._commit_of(version), check=True)
            refs.append(f"+refs/tags/{name}")
        for label in removing:
            name = self._tag(version.name, label)
            if run_git(self._git, "rev-parse", "--verify", "--quiet", f"refs/tags/{name}").returncode:
                name = f"{version.name}@{label}"
            run_git(self._git, "tag", "--delete", name, check=True)
            refs.append(f":refs/tags/{name}")
        remote = self._origin()
        if remote is not None and refs:
            run_git(self._git, "push", "--quiet", remote, *refs, check=True)
        self._known = None
        return self.find(str(version))

    def users(self, version: Version) -> List[str]:
        """Return nothing: who needs a version is in git's history."""
        return []

    def delete(self, version: Version) -> None:
        """Refuse: a version is a commit, and its files may be those of others.

        Raises:
            ClearmlClientError: always.
        """
        raise ClearmlClientError(
            f"{version} is a commit of {masked(str(self._repo))}: take its tag away with git (git push --delete REMOTE "
            f"'{self._tag(version.name, version.version)}'), then free the files that nothing needs: dvc gc "
            "--all-tags --all-branches --cloud"
        )


def _version(name: str, version: str, tag: _Tag, output: Output, labels: Iterable[str]) -> Version:
    return Version(
        name=name,
        version=version,
        id=f"{tag.commit}:{output.path}",
        tags=sorted(labels),
        status="published",
        created=tag.created,
        files=output.files if output.folder else 1,
        bytes=output.size,
        comment=tag.subject,
    )


def _clean(name: str) -> str:
    """Return a dataset's name as DVC writes the path.

    Raises:
        ClearmlClientError: It leads out of the repository.
    """
    cleaned = os.path.normpath(name.strip())
    if not name.strip() or cleaned in (".", "..") or cleaned.startswith(("../", "/")):
        raise ClearmlClientError(f"dataset {name!r}: write a path that DVC tracks, below the root, such as data/images")
    return cleaned


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(str(root)):
        for name in names:
            yield Path(folder, name)


def _describe(told: Path, metadata: Mapping[str, str], comment: str) -> None:
    """Write what people say of a version into its .dvc file, where DVC keeps such things."""
    if not metadata and not comment:
        return
    import yaml  # comes with clearml

    document: Dict[str, Any] = yaml.safe_load(told.read_text())
    if comment:
        document["desc"] = comment
    if metadata:
        document["meta"] = {**(document.get("meta") or {}), **metadata}
    told.write_text(yaml.safe_dump(document, sort_keys=False))


def _changed(path: Path, now: float) -> float:
    """Return when what a path leads to was changed last; ``now`` where nothing tells."""
    try:
        return path.stat().st_ctime
    except OSError:
        return now


def _experiments(version: str, wanted: Callable[[Dict[str, Any]], bool] = lambda task: True) -> List[Experiment]:
    """Return who noted that it opened the version; nobody where ClearML is not configured."""
    from .._lookup import experiments_of

    try:
        return [Experiment(*found) for found in experiments_of(version, wanted)]
    except Exception as error:  # the SDK raises many kinds, and a lineage of git does not need it
        print(f"clearml-client: experiments that used it are not shown: {error}", file=sys.stderr)
        return []
