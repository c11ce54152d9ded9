"""The commands of ``clearml-client data``: versioned datasets.

Exit codes: 0 done; 1 refused or failed, with the reason in words; 2 the command line itself is wrong. ``--json`` prints
one JSON document on standard output and nothing else there; an error is ``{"error": "..."}``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import typer

from .._errors import ClearmlClientError

__all__ = ["app"]

app = typer.Typer(
    name="data",
    help="Versioned datasets: stored once, named by version, shared on each machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_JSON = typer.Option(False, "--json", help="Print one JSON document.")
_PROJECT = typer.Option(None, "--project", help="Project of the datasets; the site's own without it.")
_DVC = typer.Option(
    None,
    "--dvc",
    metavar="REPO",
    help="Folder or URL of a DVC repository: its tracked paths and git tags, instead of ClearML's datasets.",
)
_REFERENCE = typer.Argument(..., metavar="NAME[@VERSION|@TAG]", help="The version; the highest without an @.")
_PAGE = typer.Option(1, "--page", min=1, help="Which page.")
_LIMIT = typer.Option(200, "--limit", min=1, help="Rows of a page.")
_GLOB = typer.Option(
    None, "--glob", help="Files that match: '*.png' in any folder, or a path such as 'train/**/*.bin'."
)


@contextlib.contextmanager
def _work(as_json: bool) -> Iterator[None]:
    """Keep standard output clean while the SDK works, and turn errors into words."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ClearmlClientError as error:
        if as_json:
            _print_json({"error": str(error)})
        else:
            typer.echo(f"clearml-client: {error}", err=True)
        raise typer.Exit(1) from error
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        # What the SDK, or a library of a store, raises: an address or a key alone is not an explanation.
        kind = type(error).__name__
        told = f"the server or the store did not do it ({kind}: {error}); `clearml-client doctor` looks for the reason"
        if as_json:
            _print_json({"error": told})
        else:
            typer.echo(f"clearml-client: {told}", err=True)
        raise typer.Exit(1) from error


def _store(project: Optional[str], dvc: Optional[str]) -> Any:
    if dvc is not None:
        from ..datasets.dvc import DvcStore

        if project is not None:
            raise ClearmlClientError("--project is of ClearML's datasets and --dvc of another store: leave one out")
        return DvcStore(dvc)
    from ..datasets.store import ClearmlStore, default_project

    # the program lies somewhere else: what counts is where somebody calls it
    return ClearmlStore(project or default_project(Path.cwd()))


@app.command()
def upload(
    path: Path = typer.Argument(..., help="The folder."),
    name: str = typer.Argument(..., help="The dataset."),
    version: str = typer.Option(..., "--version", help="Its new version, such as 1.4.0."),
    parent: List[str] = typer.Option([], "--parent", metavar="NAME@VERSION", help="The version it builds on."),
    merge: bool = typer.Option(False, "--merge", help="Take in the files of all parents."),
    tag: List[str] = typer.Option([], "--tag", help="A label of the version."),
    meta: List[str] = typer.Option([], "--meta", metavar="KEY=VALUE", help="What else to know of it."),
    comment: str = typer.Option("", "--comment", help="A description."),
    pack_size: int = typer.Option(256, "--pack-size", min=1, help="Megabytes of a pack, about."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Store a folder as a new version; after a break, the same command goes on where it ended."""
    metadata = _metadata(meta)
    with _work(as_json), _progress("uploading", as_json) as progress:
        store = _store(project, dvc)
        packs = {} if dvc is not None else {"pack_bytes": pack_size * 1024 * 1024}
        done = store.upload(
            path,
            name,
            version=version,
            parents=parent,
            merge=merge,
            tags=tag,
            metadata=metadata,
            comment=comment,
            progress=progress,
            **packs,
        )
    if as_json:
        _print_json(_plain(done))
    else:
        typer.echo(f"{done}: {done.files} files, {_size(done.bytes)}, id {done.id}")


@app.command()
def download(
    reference: str = _REFERENCE,
    target: Optional[Path] = typer.Argument(None, metavar="[DEST]", help="Where to put a link to it."),
    copy: bool = typer.Option(False, "--copy", help="Put a copy of your own there, which may be changed."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Fetch a version to this machine, unless it is there, and print its folder."""
    if copy and target is None:
        raise typer.BadParameter("--copy needs DEST: where the copy goes")
    with _work(as_json), _progress("downloading", as_json) as progress:
        store = _store(project, dvc)
        if target is None:
            folder = store.download(reference, progress=progress)
        else:
            folder = store.place(reference, target, copy=copy, progress=progress)
    if as_json:
        _print_json({"path": str(folder)})
    else:
        typer.echo(str(folder))


@app.command()
def warm(
    references: List[str] = typer.Argument(..., metavar="NAME[@VERSION|@TAG]...", help="The versions."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
) -> None:
    """Fetch versions to this machine before somebody waits for them; print one JSON document that tells which came."""
    told = []
    with _work(True):
        store = _store(project, dvc)
        for version in [store.find(reference) for reference in references]:
            there = store.is_local(version)
            store.local(version)
            told.append({"name": str(version), "fetched": not there, "bytes": version.bytes})
    _print_json(told)


@app.command("ls")
def list_(
    reference: Optional[str] = typer.Argument(None, metavar="[NAME[@VERSION]]", help="Look into this version."),
    folder: str = typer.Argument("", help="A folder in it."),
    long: bool = typer.Option(False, "--long", "-l", help="With sizes and counts."),
    all_: bool = typer.Option(False, "--all", help="Half versions too, of uploads that run or broke off."),
    glob: Optional[str] = _GLOB,
    page: int = _PAGE,
    limit: int = _LIMIT,
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """List datasets, or what is in a version, without fetching it."""
    if reference is not None:
        _show_tree(
            project,
            dvc,
            reference,
            folder,
            as_json,
            long=long,
            files=True,
            depth=1,
            glob=glob,
            page=page,
            limit=limit,
        )
        return
    with _work(as_json):
        found = _store(project, dvc).ls(unfinished=all_)
    _show_versions(found, as_json, empty="there is no dataset yet: `clearml-client data upload` makes one")


@app.command()
def versions(
    name: str = typer.Argument(..., help="The dataset."),
    all_: bool = typer.Option(False, "--all", help="Half versions too, of uploads that run or broke off."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """List a dataset's versions, the lowest first."""
    with _work(as_json):
        found = _store(project, dvc).versions(name, unfinished=all_)
    _show_versions(found, as_json, empty="")


@app.command()
def tree(
    reference: str = _REFERENCE,
    folder: str = typer.Argument("", help="A folder in it."),
    depth: int = typer.Option(2, "--depth", min=0, help="Levels; 0 for all."),
    files: bool = typer.Option(False, "--files", help="Files too."),
    glob: Optional[str] = _GLOB,
    page: int = _PAGE,
    limit: int = _LIMIT,
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Show a version's folders, with counts and sizes of what is below them, without fetching it."""
    _show_tree(
        project,
        dvc,
        reference,
        folder,
        as_json,
        long=True,
        files=files,
        depth=depth or None,
        glob=glob,
        page=page,
        limit=limit,
    )


@app.command(context_settings={"ignore_unknown_options": True})
def tag(
    reference: str = _REFERENCE,
    changes: List[str] = typer.Argument(..., metavar="+TAG|-TAG ...", help="Tags to put on, and to take off."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Put tags on a version and take others off; NAME@TAG is the highest version that has it."""
    wrong = [change for change in changes if change[:1] not in "+-" or len(change) < 2]
    if wrong:
        raise typer.BadParameter(f"write +TAG to put a tag on and -TAG to take it off, not {wrong[0]!r}")
    with _work(as_json):
        done = _store(project, dvc).tag(
            reference,
            add=[change[1:] for change in changes if change[0] == "+"],
            remove=[change[1:] for change in changes if change[0] == "-"],
        )
    if as_json:
        _print_json(_plain(done))
    else:
        typer.echo(f"{done}: {', '.join(done.tags) or 'no tags'}")


@app.command()
def diff(
    before: str = typer.Argument(..., metavar="NAME@VERSION", help="The one version."),
    after: str = typer.Argument(..., metavar="NAME@VERSION", help="The other."),
    limit: int = typer.Option(200, "--limit", min=1, help="Files to show; the counts are of all."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Show which files were added, removed and changed between two versions."""
    with _work(as_json):
        found = _store(project, dvc).diff(before, after)
    if as_json:
        _print_json(
            {
                "before": _plain(found.before),
                "after": _plain(found.after),
                "changes": [change._asdict() for change in found.changes],
            }
        )
        return
    signs = {"added": "+", "removed": "-", "changed": "~"}
    _print_table(
        ("", "file", ">before", ">after"),
        [(signs[one.kind], one.path, _size(one.before), _size(one.after)) for one in found.changes[:limit]],
    )
    counts = ", ".join(f"{len(found.of(kind))} {kind}" for kind in signs)
    more = f" ({limit} shown; --limit shows more)" if len(found.changes) > limit else ""
    typer.echo(f"{found.before} -> {found.after}: {counts}{more}")


@app.command()
def lineage(
    reference: str = _REFERENCE,
    svg: Optional[Path] = typer.Option(None, "--svg", help="Draw it into this file."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Show where a version comes from, what was made of it, and which experiments and models used it."""
    with _work(as_json):
        found = _store(project, dvc).lineage(reference)
        if svg is not None:
            svg.write_text(found.svg(), encoding="utf-8")
    if as_json:
        _print_json(found.document())
    else:
        typer.echo(found.text(), nl=False)


@app.command()
def preview(
    reference: str = _REFERENCE,
    out: Path = typer.Option(Path("preview"), "--out", help="Folder for the pictures."),
    count: int = typer.Option(12, "--count", min=1, max=100, help="Files to look at, of each kind."),
    glob: Optional[str] = _GLOB,
    report: bool = typer.Option(True, "--report/--no-report", help="Show them on the dataset's page too."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Look at some images, point clouds and tables of a version; only these files are fetched."""
    with _work(as_json):
        from ..datasets.preview import make_preview

        found = make_preview(_store(project, dvc), reference, out, count=count, glob=glob, report=report)
    if as_json:
        _print_json([{**one._asdict(), "picture": one.picture and str(one.picture)} for one in found])
        return
    for one in found:
        typer.echo(f"{one.kind}: {', '.join(one.files)}")
        if one.picture is not None:
            typer.echo(f"  {one.picture}")
        if one.text:
            typer.echo(one.text)


@app.command()
def verify(
    reference: str = _REFERENCE,
    path: Optional[Path] = typer.Argument(None, help="A folder; this machine's shared one without it."),
    remote: bool = typer.Option(False, "--remote", help="Look whether the server has all packs, instead."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Compare a folder with a version's hashes, or look whether the version is stored whole."""
    if remote and path is not None:
        raise typer.BadParameter("--remote looks at the server: leave PATH out")
    with _work(as_json):
        store = _store(project, dvc)
        problems = store.verify(reference, path, remote=remote)
        exposures = store.exposures(store.find(reference)) if path is None and not remote else []
    for exposure in exposures:
        since, found = (
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
            for moment in (exposure.damage.since, exposure.damage.found)
        )
        typer.echo(
            f"{reference}: {exposure.damage.files} files here were not what was published, from {since} (the earliest "
            f"change that the disk tells) to {found}; {', '.join(exposure.damage.paths[:3])}",
            err=True,
        )
        for one in exposure.experiments:
            typer.echo(f"  {one.id} {one.name} ({one.status}) opened this version and ran in that time", err=True)
        if exposure.experiments:
            typer.echo(
                "  those of them that ran on this node may have read other data: compare the node on their INFO page, "
                "and run them again (clearml-client reproduce ID)",
                err=True,
            )
    if as_json:
        _print_json([problem._asdict() for problem in problems])
    else:
        for problem in problems:
            typer.echo(f"{problem.path}: {problem.text}")
        typer.echo(f"{len(problems)} problems" if problems else "as it was uploaded")
    if problems:
        raise typer.Exit(1)


@app.command()
def delete(
    reference: str = typer.Argument(..., metavar="NAME@VERSION", help="The version; unfinished ones too."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    project: Optional[str] = _PROJECT,
    dvc: Optional[str] = _DVC,
    as_json: bool = _JSON,
) -> None:
    """Delete a version and its files for good, unless another version needs it."""
    with _work(as_json):
        if "@" not in reference:
            raise ClearmlClientError(f"{reference}: name the version that is to be deleted, {reference}@VERSION")
        store = _store(project, dvc)
        version = store.find(reference, unfinished=True)
        users = store.users(version)
        if not users and not yes:
            if as_json or not sys.stdin.isatty():
                raise ClearmlClientError(f"{version} would be deleted for good: say so with --yes")
            typer.confirm(
                f"Delete {version} ({version.files} files, {_size(version.bytes)}) for good?", abort=True, err=True
            )
        store.delete(version)
    if as_json:
        _print_json({"deleted": _plain(version)})
    else:
        typer.echo(f"{version} is deleted")


# ---------------------------------------------------------------- showing


def _metadata(words: Sequence[str]) -> Dict[str, str]:
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"write --meta KEY=VALUE, such as --meta sensor=lidar, not {word!r}")
        found[key] = value
    return found


def _plain(version: Any) -> Dict[str, Any]:
    return dict(version._asdict())


def _size(count: Optional[int]) -> str:
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns; a heading with ``>`` in front is set to the right."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(file=sys.stdout)
    # a pipe has no width: lines must not be folded there
    console.print(table, soft_wrap=not console.is_terminal, width=None if console.is_terminal else 10_000)


def _printable(text: str) -> str:
    """Show what would move the cursor as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _show_versions(found: Sequence[Any], as_json: bool, *, empty: str) -> None:
    if as_json:
        _print_json([_plain(version) for version in found])
    elif not found:
        typer.echo(empty)
    else:
        _print_table(
            ("dataset", "version", ">files", ">size", "status", "made", "tags"),
            [
                (
                    one.name,
                    one.version,
                    "-" if one.files is None else str(one.files),
                    _size(one.bytes),
                    one.status,
                    one.created[:16].replace("T", " "),
                    ", ".join(one.tags),
                )
                for one in found
            ],
        )


def _show_tree(
    project: Optional[str],
    dvc: Optional[str],
    reference: str,
    folder: str,
    as_json: bool,
    *,
    long: bool,
    limit: int,
    page: int,
    **asked: Any,
) -> None:
    with _work(as_json):
        found = _store(project, dvc).tree(reference, folder, page=page, limit=limit, **asked)
    if as_json:
        _print_json(
            {
                "version": _plain(found.version),
                "metadata": found.metadata,
                "files": found.files,
                "bytes": found.bytes,
                "total": found.total,
                "page": page,
                "limit": limit,
                "rows": [row._asdict() for row in found.rows],
            }
        )
        return
    if long:
        typer.echo(f"{found.version}: {found.files} files, {_size(found.bytes)}")
        for key, value in sorted(found.metadata.items()):
            typer.echo(f"  {key}: {value}")
        _print_table(
            (">files", ">size", "path"),
            [(str(row.files), _size(row.bytes), row.path + ("/" if row.folder else "")) for row in found.rows],
        )
    else:
        for row in found.rows:
            typer.echo(_printable(row.path + ("/" if row.folder else "")))
    pages = max(1, -(-found.total // limit))
    if pages > 1:
        typer.echo(f"page {page} of {pages} ({found.total} rows; --page, --limit, --glob)", err=True)


@contextlib.contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Any]:
    """Draw a bar on standard error, where somebody looks; give what the store tells its bytes to."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if as_json or not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(what, total=None)

        def tell(size: int, total: int) -> None:
            bars.update(bar, advance=size, total=total)

        yield tell


if __name__ == "__main__":
    app()
