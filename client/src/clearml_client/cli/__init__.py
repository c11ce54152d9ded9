"""The program ``clearml-client``: experiments and datasets at the command line.

Exit codes: 0 done; 1 refused or failed, with the reason in words; 2 the command line itself is wrong.
``--json`` prints one JSON document on standard output and nothing else there.
"""

from __future__ import annotations

import json
import sys
from typing import Any, List, Optional

import typer

from .._errors import ClearmlClientError
from . import data

__all__ = ["app", "main"]

app = typer.Typer(
    name="clearml-client",
    help="Experiments and datasets of a Trainyard site.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Versioned datasets.")

_SDK = ("clearml.", "requests.", "urllib3.")
JSON_OPTION = typer.Option(False, "--json", help="Print one JSON document.")


@app.command()
def reproduce(
    task_id: str = typer.Argument(..., metavar="TASK_ID", help="The experiment to raise again."),
    queue: Optional[str] = typer.Option(None, "--queue", "-q", help="Queue; the experiment's own without it."),
    set_: List[str] = typer.Option(
        [], "--set", metavar="SECTION/NAME=VALUE", help="Change a parameter, e.g. Args/lr=0.1."
    ),
    name: Optional[str] = typer.Option(None, "--name", help="Name of the new experiment."),
    wait: bool = typer.Option(True, "--wait/--no-wait", help="Wait for its end and compare the metrics."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Run an experiment of the past again, with the same code, image, packages and datasets."""
    from .. import _reproduce

    checks: List[_reproduce.Check] = []

    def show(check: _reproduce.Check) -> None:
        checks.append(check)
        if not as_json:
            mark = {True: "ok", False: "missing", None: "not known"}[check.found]
            typer.echo("{:<10} {}: {}".format(mark, check.subject, check.told))

    again = _reproduce.reproduce(task_id, queue=queue, overrides=_pairs(set_), name=name, on_check=show)
    page = again.clone.get_output_log_web_page()
    if not as_json:
        typer.echo("queued in {}: {}".format(again.queue, page))
    status, rows = "queued", []  # type: str, List[_reproduce.Comparison]
    if wait:
        status = _wait(again, quiet=as_json)
        rows = _reproduce.compare(again.task, again.clone)
    if as_json:
        _print_json(
            {
                "task": again.task.id,
                "clone": again.clone.id,
                "queue": again.queue,
                "page": page,
                "status": status,
                "checks": [vars(check) for check in checks],
                "metrics": [vars(row) for row in rows],
            }
        )
    elif wait:
        _print_metrics(rows)
    if status in ("failed", "stopped"):
        raise ClearmlClientError("the experiment ended as {}: {}".format(status, page))


@app.command()
def models(
    dataset: str = typer.Argument(..., metavar="NAME[@VERSION]", help="The dataset."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the models that were trained with a dataset."""
    from .. import _lookup

    found = _lookup.models_of(dataset)
    if as_json:
        _print_json(found)
    else:
        _print_table(
            ("model", "id", "experiment", "dataset"),
            [(row["model"], row["model_id"], row["task"], row["dataset"]) for row in found],
            empty="no experiment with a model has opened {}".format(dataset),
        )


@app.command()
def datasets(
    model: str = typer.Argument(..., metavar="MODEL_ID", help="The model, or the experiment that made it."),
    as_json: bool = JSON_OPTION,
) -> None:
    """List the datasets that a model was trained with."""
    from .. import _lookup

    found = _lookup.datasets_of(model)
    if as_json:
        _print_json(found)
    else:
        _print_table(
            ("dataset", "version", "store", "hash"),
            [(row["name"], row["version"], row.get("store", ""), row.get("hash", "")) for row in found],
            empty="its experiment opened no dataset by clearml_client",
        )


@app.command()
def doctor(as_json: bool = JSON_OPTION) -> None:
    """Look whether this machine can train with the site: configuration, keys, queue, image, cache, git."""
    from .. import _doctor

    found = _doctor.examine()
    if as_json:
        _print_json([vars(finding) for finding in found])
    else:
        for finding in found:
            typer.echo("{:<7} {}: {}".format(finding.state, finding.subject, finding.told))
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


def main() -> None:
    """Run the program; an error is one message and exit code 1."""
    try:
        app()
    except Exception as error:  # the SDK raises whatever the layer that failed does
        from .._server import told

        if not isinstance(error, ClearmlClientError) and not type(error).__module__.startswith(_SDK):
            raise  # a mistake of this program
        typer.echo("clearml-client: {}".format(told(error)), err=True)
        sys.exit(1)


def _pairs(words: List[str]) -> "dict[str, str]":
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "/" not in key:
            raise typer.BadParameter("write SECTION/NAME=VALUE, such as Args/lr=0.1, not {!r}".format(word))
        pairs[key] = value
    return pairs


def _wait(again: Any, *, quiet: bool) -> str:
    from .. import _reproduce

    if quiet:
        return _reproduce.wait(again.clone)
    from rich.console import Console

    with Console(stderr=True).status("queued") as line:
        return _reproduce.wait(
            again.clone, lambda status, iteration: line.update("{}, iteration {}".format(status, iteration))
        )


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_metrics(rows: Any) -> None:
    def number(value: Optional[float]) -> str:
        return "-" if value is None else "{:.6g}".format(value)

    def difference(row: Any) -> str:
        return "-" if row.before is None or row.after is None else "{:+.3g}".format(row.after - row.before)

    _print_table(
        ("metric", "variant", "before", "again", "difference"),
        [(row.metric, row.variant, number(row.before), number(row.after), difference(row)) for row in rows],
        empty="neither experiment has scalars",
    )


def _print_table(head: Any, rows: Any, *, empty: str) -> None:
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)
