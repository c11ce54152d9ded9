"""The command line travels: what a script parses here, it parses in a queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_client_core import Site, served

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import Server

ARGPARSE = """
import argparse, json, os, pathlib, random, sys, functools
task = init_clearml('words', project='team/training')
{body}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, server: Server) -> Iterator[Site]:
    made = Site(tmp_path, server)
    conf = json.loads((tmp_path / "clearml.conf").read_text())
    # One process only: these tests end it as soon as they have seen enough, and nothing may go on without it.
    conf["sdk"]["development"] = {"report_use_subprocess": False}
    (tmp_path / "clearml.conf").write_text(json.dumps(conf))
    yield made
    with server.login() as api:
        for task in api.call("tasks.get_all", only_fields=["id"])["tasks"]:
            api.call("tasks.delete", task=task["id"], force=True)


def only_task(site: Site) -> dict[str, Any]:
    (task,) = site.tasks()
    return task


def clone(site: Site, task: str, edits: dict[str, str] | None = None, words: list[str] | None = None) -> str:
    """Clone an experiment, and edit parameters, such as ``Args/lr``, as the web page does."""
    with site.server.login() as api:
        made = str(api.call("tasks.clone", task=task)["id"])
        for key, value in (edits or {}).items():
            section, name = key.split("/", 1)
            entry = {"section": section, "name": name, "value": value}
            api.call("tasks.edit_hyper_params", task=made, hyperparams=[entry])
        if words is not None:
            item = api.call("tasks.get_by_id", task=made)["task"]["configuration"]["command_line"]
            item["value"] = json.dumps({**json.loads(item["value"]), "words": words})
            api.call("tasks.edit_configuration", task=made, configuration=[item])
    return made


def start_as_agent(site: Site, task: str, *entry: str, **variables: str) -> tuple[int, str, str]:
    """Start an experiment's script as an agent does: with the experiment's id, and without words."""
    with site.server.login() as api:
        api.call("tasks.started", task=task, force=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_"))}
    done = subprocess.run(
        [sys.executable, "-u", *(entry or ("train.py",))],
        cwd=site.tree,
        env={
            **kept,
            "CLEARML_CONFIG_FILE": str(site.folder / "clearml.conf"),
            "CLEARML_TASK_ID": task,
            "CLEARML_LOG_TASK_TO_BACKEND": "0",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout)
    print(done.stderr, file=sys.stderr)
    return done.returncode, done.stdout, done.stderr


def printed(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("GOT ")]


def here_and_there(site: Site, script: str, *words: str, **variables: str) -> tuple[list[str], list[str]]:
    """Return the lines that begin with GOT, of a run here and of its clone in a queue."""
    site.write(script)
    code, here, err = site.run(*words, **variables)
    assert code == 0, err
    code, there, err = start_as_agent(site, clone(site, only_task(site)["id"]))
    assert code == 0, err
    return printed(here), printed(there)


SUBCOMMANDS = """
parser = argparse.ArgumentParser()
parser.add_argument('--verbose', '-v', action='count', default=0)
commands = parser.add_subparsers(dest='cmd', required=True)
fit = commands.add_parser('fit', aliases=['f'])
fit.add_argument('--lr', type=float, default=0.1)
fit.add_argument('data', type=pathlib.Path)
eval_ = commands.add_parser('eval')
eval_.add_argument('--lr', type=int, default=7)
parsed = parser.parse_args()
print('GOT', sorted(vars(parsed).items()))
"""


def test_subcommands(site: Site) -> None:
    here, there = here_and_there(site, ARGPARSE.format(body=SUBCOMMANDS), "-vv", "fit", "--lr", "0.5", "a b")
    assert "('lr', 0.5)" in here[0]
    assert there == here
    task = min(site.tasks(), key=lambda task: task["created"])
    args = {name: item["value"] for name, item in task["hyperparams"]["Args"].items()}
    assert (args["cmd"], args["lr"]) == ("fit", "0.5")


# --- argparse --------------------------------------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "a b",
    "don't",
    '"',
    "line\nline",
    "größe",
    "None",
    "[1,2]",
    "-1",
    "$HOME",
    "%s {x}",
    "\\",
    "a=b",
    "\udcff",
]
CASES = {
    "nested": (
        """
parser = argparse.ArgumentParser()
one = parser.add_subparsers()
fit = one.add_parser('fit')
two = fit.add_subparsers(dest='model', required=True)
net = two.add_parser('net')
net.add_argument('--layers', type=int, nargs='+', default=[1])
net.set_defaults(func=len, preset='x')
other = two.add_parser('tree')
other.add_argument('--layers', default='none')
got = parser.parse_args()
""",
        ["fit", "net", "--layers", "2", "3"],
    ),
    "no dest": (
        """
parser = argparse.ArgumentParser()
commands = parser.add_subparsers(required=False, title='commands')
commands.add_parser('fit').add_argument('--lr', type=float)
got = parser.parse_args()
""",
        ["fit", "--lr", "-0.001"],
    ),
    "no subcommand": (
        """
parser = argparse.ArgumentParser()
parser.add_argument('--x', default=1.5)
commands = parser.add_subparsers(dest='cmd')
commands.add_parser('fit').add_argument('--lr', type=float)
got = parser.parse_args()
""",
        ["--x", "None"],
    ),
    "odd words": (
        "parser = argparse.ArgumentParser(); parser.add_argument('words', nargs='*'); got = parser.parse_args()",
        ["--", *ODD],
    ),
    "odd values": (
        """
parser = argparse.ArgumentParser()
for number in range(16): parser.add_argument(f'--w{number}')
got = parser.parse_args()
""",
        [f"--w{number}={word}" for number, word in enumerate(ODD)],
    ),
    "actions": (
        """
parser = argparse.ArgumentParser(fromfile_prefix_chars='@')
parser.add_argument('--on', action='store_true')
parser.add_argument('--off', action='store_false')
parser.add_argument('--count', '-c', action='count')
parser.add_argument('--const', action='store_const', const=[1], default=None)
parser.add_argument('--append', action='append', nargs=2, type=float)
parser.add_argument('--extend', action='extend', nargs='+', default=['x'])
parser.add_argument('--add', action='append_const', dest='added', const=7)
parser.add_argument('--cache', action=argparse.BooleanOptionalAction, default=True)
parser.add_argument('--maybe', nargs='?', const=5, default=None, type=int)
parser.add_argument('--pair', nargs=2, type=int, default=(1, 2))
parser.add_argument('--choice', choices=['a', 'b'], default='a')
parser.add_argument('--suppressed', default=argparse.SUPPRESS)
parser.add_argument('--truth', type=bool, default=False)
parser.add_argument('--json', type=json.loads, default='{"a": [1]}')
parser.add_argument('--names', type=lambda text: set(text.split(',')), default=None)
parser.add_argument('--path', type=pathlib.Path, default=pathlib.Path('/x'))
parser.add_argument('rest', nargs=argparse.REMAINDER)
got = parser.parse_args()
if got.names: got.names = sorted(got.names)
""",
        [
            *("--on", "--off", "-ccc", "--const", "--append", "1", "2", "--append", "3", "4", "--extend", "a", "b"),
            *("--extend", "c", "--add", "--add", "--no-cache", "--maybe", "--pair", "3", "4", "--cho", "b"),
            *(
                "--truth",
                "False",
                "--json",
                '{"b":null}',
                "--names",
                "b,a,c",
                "--path",
                ".",
                "one",
                "--on",
                "--",
                "two",
            ),
        ],
    ),
    "no words": (
        """
parser = argparse.ArgumentParser()
parser.add_argument('--none')
parser.add_argument('--tuple', type=int, nargs=2, default=(1, 2))
parser.add_argument('--dict', type=json.loads, default={'a': (1,)})
parser.add_argument('--whole', type=float, default=3)
parser.add_argument('--flag', action='store_true', default=None)
parser.add_argument('--text', type=int, default='7')
got = parser.parse_args()
""",
        [],
    ),
    "several parses": (
        """
first = argparse.ArgumentParser(add_help=False)
first.add_argument('--config', default='none')
one, rest = first.parse_known_args()
second = argparse.ArgumentParser(parents=[first])
second.add_argument('--lr', type=float, default=0.1)
second.add_argument('--seed', type=int, default=random.randrange(10**9))
second.set_defaults(lr=0.3 if one.config != 'none' else 0.2)
two, unknown = second.parse_known_args(rest)
third = second.parse_args(['--seed', '3'])
got = argparse.Namespace(one=one, rest=rest, two=two, unknown=unknown, third=third)
""",
        ["--config", "c.yaml", "--what", "--seed=5"],
    ),
    "defaults of this machine": (
        """
parser = argparse.ArgumentParser()
parser.add_argument('--seed', default=random.random())
parser.add_argument('--name', default='run ' + str(random.random()))
parser.add_argument('--pid', type=int, default=str(os.getpid()))
parser.add_argument('--where', type=os.path.abspath, default=None)
commands = parser.add_subparsers(dest='cmd')
commands.add_parser('fit').add_argument('--out', default=pathlib.Path(str(random.random())))
got = parser.parse_args()
""",
        ["fit"],
    ),
    "intermixed": (
        """
parser = argparse.ArgumentParser()
parser.add_argument('--lr', type=float, default=1)
parser.add_argument('files', nargs='*')
got = parser.parse_intermixed_args()
""",
        ["a", "--lr", "2", "b"],
    ),
    "sys.argv": (
        "got = [list(sys.argv[1:]), len(sys.argv), '--x' in sys.argv, [*sys.argv][2:], (sys.argv + ['z'])[-2:]]",
        ["--x", "a b", "c"],
    ),
    "fire": (
        """
import fire
class Tool:
    def __init__(self, root='r'): self.root = root
    def fit(self, lr, *more, deep=False, names=()): return print('GOT', [self.root, lr, more, deep, names])
fire.Fire(Tool)
got = None
""",
        ["fit", "0.5", "[1,2]", "x", "--deep", "--root", "None", "--names=a,b"],
    ),
    "jsonargparse": (
        """
import jsonargparse
from typing import List, Optional
parser = jsonargparse.ArgumentParser()
parser.add_argument('--seed', type=Optional[int], default=None)
commands = parser.add_subcommands()
fit = jsonargparse.ArgumentParser()
fit.add_argument('--model.lr', type=float, default=0.1)
fit.add_argument('--layers', type=List[int], default=[1])
commands.add_subcommand('fit', fit)
got = parser.parse_args().as_dict()
""",
        ["--seed=3", "fit", "--model.lr", "0.5", "--layers=[2,3]"],
    ),
}
END = """
if isinstance(got, argparse.Namespace): got = sorted(vars(got).items(), key=lambda item: str(item[0]))
print('GOT', ascii(got), flush=True)
os._exit(0)  # The SDK waits long at the end, and all that counts is recorded.
"""


@pytest.mark.parametrize("case", CASES)
def test_what_was_parsed_here_is_parsed_there(site: Site, case: str) -> None:
    body, words = CASES[case]
    here, there = here_and_there(site, ARGPARSE.format(body=body + END), *words)
    assert here
    assert there == here


CLICK = """
import os, click
task = None
@click.group(chain=True)
@click.option('--root', default='r')
@click.option('--token', envvar='TOKEN', required=True)
def tool(root, token): print('GOT', ['tool', root, token], flush=True)
@tool.command()
@click.option('--lr', type=float, default=0.1)
@click.option('--tag', multiple=True)
@click.option('--pair', nargs=2, type=int)
@click.option('--deep/--flat', default=True)
@click.argument('data', type=click.Path())
def fit(lr, tag, pair, deep, data):
    init_clearml('words', project='team/training')
    print('GOT', ['fit', lr, tag, pair, deep, data], flush=True)
@tool.command()
@click.option('--lr', type=int, default=7)
def check(lr):
    print('GOT', ['check', lr], flush=True)
    os._exit(0)
tool()
"""
CLICK_WORDS = [
    "--root",
    "a b",
    "fit",
    "--lr",
    "0",
    "--tag",
    "-x",
    "--tag",
    "",
    "--pair",
    "1",
    "2",
    "--flat",
    "d",
    "check",
]
TYPER = """
import os, typer
from typing import List, Optional
from pathlib import Path
app = typer.Typer()
sub = typer.Typer()
app.add_typer(sub, name='model')
@app.callback()
def main(verbose: bool = False, token: str = typer.Option(..., envvar='TOKEN')): print('GOT', ['main', verbose, token])
@sub.command()
def fit(data: Path, lr: float = 0.1, tag: Optional[List[str]] = None, deep: bool = True):
    init_clearml('words', project='team/training')
    print('GOT', ['fit', data, lr, tag, deep], flush=True)
    os._exit(0)
@sub.command()
def check(): pass
app()
"""
TYPER_WORDS = ["--verbose", "model", "fit", "a b", "--lr", "0.5", "--tag", "x", "--tag", "y", "--no-deep"]


@pytest.mark.parametrize(("script", "words"), [(CLICK, CLICK_WORDS), (TYPER, TYPER_WORDS)], ids=["click", "typer"])
def test_commands_of_click_and_typer(site: Site, script: str, words: list[str]) -> None:
    here, there = here_and_there(site, script, *words, TOKEN="secret")
    assert len(here) >= 2
    assert there == here
    recorded = min(site.tasks(), key=lambda task: task["created"])
    code, out, err = start_as_agent(site, clone(site, recorded["id"], {"Args/fit/lr": "0.25", "Args/fit/tag": "['z']"}))
    assert code == 0, err
    (fit,) = [line for line in printed(out) if "'fit'" in line]
    assert "0.25" in fit
    assert "z" in fit


HYDRA = """
import os, hydra
from omegaconf import OmegaConf
@hydra.main(version_base=None, config_path='conf', config_name='config')
def main(cfg):
    init_clearml('words', project='team/training'{queue})
    print('GOT', OmegaConf.to_container(cfg), flush=True)
    os._exit(0)
main()
"""


def with_hydra(site: Site, queue: str = "") -> None:
    for name, text in {
        "config.yaml": "defaults:\n  - _self_\n  - db: mysql\nlr: 0.1\nlist: [1]\n",
        "db/mysql.yaml": "kind: mysql\n",
        "db/pg.yaml": "kind: pg\n",
    }.items():
        (site.tree / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (site.tree / "conf" / name).write_text(text)
    (site.tree / ".gitignore").write_text("outputs\nmultirun\n")
    site.write(HYDRA.format(queue=queue))


def test_overrides_of_hydra_and_their_edits(site: Site) -> None:
    with_hydra(site)
    code, here, err = site.run("db=pg", "lr=0.5", "+new.key='a b'", "list=[2,3]", "~db.kind")
    assert code == 0, err
    assert "'a b'" in printed(here)[0]
    task = only_task(site)["id"]
    code, there, err = start_as_agent(site, clone(site, task))
    assert code == 0, err
    assert printed(there) == printed(here)
    code, there, err = start_as_agent(site, clone(site, task, {"Hydra/lr": "0.25", "Hydra/db": "mysql"}))
    assert code == 0, err
    (got,) = printed(there)
    assert "'lr': 0.25" in got
    assert "'list': [2, 3]" in got


def test_a_sweep_of_hydra_is_refused(site: Site) -> None:
    with_hydra(site, ", queue='all_gpus'")
    code, _, err = site.run("--multirun", "lr=1,2")
    assert code != 0
    assert "a sweep of Hydra (--multirun) is several runs" in err
    assert site.tasks() == []


EDITED = """
parser = argparse.ArgumentParser()
parser.add_argument('--flag', action='store_true')
parser.add_argument('--count', '-c', action='count', default=0)
commands = parser.add_subparsers(dest='cmd')
fit = commands.add_parser('fit')
fit.add_argument('--lr', type=float, default=0.1)
fit.add_argument('--layers', type=int, nargs='*')
fit.add_argument('--tag', action='append')
fit.add_argument('--kind', choices=['a', 'b'])
fit.add_argument('--names', type=lambda text: set(text.split(',')))
fit.add_argument('--path', type=pathlib.Path)
fit.add_argument('data')
commands.add_parser('eval')
got = parser.parse_args()
if getattr(got, 'names', None): got.names = sorted(got.names)
"""
EDITED_WORDS = ["--flag", "-c", "fit", "--lr=0.5", "--layers", "1", "2", "--tag=a", "--tag=b", "--names=d,e,f", "data"]


def test_edited_parameters_win(site: Site) -> None:
    site.write(ARGPARSE.format(body=EDITED + END))
    code, _, err = site.run(*EDITED_WORDS)
    assert code == 0, err
    task = only_task(site)["id"]
    edits = {
        "lr": "1e-3",
        "layers": "[3]",
        "tag": '["c, d"]',
        "kind": "b",
        "flag": "False",
        "path": "x y",
        "data": "-z",
    }
    code, out, err = start_as_agent(site, clone(site, task, {f"Args/{name}": value for name, value in edits.items()}))
    assert code == 0, err
    (got,) = printed(out)
    assert got == (
        "GOT [('cmd', 'fit'), ('count', 1), ('data', '-z'), ('flag', False), ('kind', 'b'), ('layers', [3]), "
        "('lr', 0.001), ('names', ['d', 'e', 'f']), ('path', PosixPath('x y')), ('tag', ['c, d'])]"
    )
    for edited, told in (
        ({"Args/lr": "fast"}, "Args/lr was edited to 'fast'"),
        ({"Args/kind": "c"}, "Args/kind was edited to 'c'"),
        ({"Args/cmd": "eval"}, "edit 'words' of the configuration object command_line"),
    ):
        code, out, err = start_as_agent(site, clone(site, task, edited))
        assert code == 2
        assert told in err
        assert printed(out) == []


def test_edited_words_count(site: Site) -> None:
    site.write(ARGPARSE.format(body=EDITED + END))
    code, _, err = site.run(*EDITED_WORDS)
    assert code == 0, err
    made = clone(site, only_task(site)["id"], {"Args/count": "5"}, words=["eval"])
    code, out, err = start_as_agent(site, made)
    assert code == 0, err
    assert printed(out) == ["GOT [('cmd', 'eval'), ('count', 5), ('flag', False)]"]


@pytest.mark.parametrize("edit", ["fire", "jsonargparse"])
def test_edits_of_other_parsers(site: Site, edit: str) -> None:
    body, words = CASES[edit]
    site.write(ARGPARSE.format(body=body + END))
    code, _, err = site.run(*words)
    assert code == 0, err
    task = only_task(site)
    args = {name: item["value"] for name, item in task["hyperparams"]["Args"].items()}
    print(args)
    edits = {"fire": {"Args/fit/lr": "0.25"}, "jsonargparse": {"Args/fit.model.lr": "0.25"}}[edit]
    code, out, err = start_as_agent(site, clone(site, task["id"], edits))
    assert code == 0, err
    assert "0.25" in printed(out)[0]


# --- into the queue --------------------------------------------------------------------------------------------------

READ_BEFORE = """
import argparse, sys
parser = argparse.ArgumentParser()
parser.add_argument('--lr', type=float)
parsed = parser.parse_args()
from clearml_client import init_clearml
init_clearml('words', project='team/training', queue='all_gpus')
print('GOT', parsed.lr)
"""
LATER = """
import sys
def main():
    lr = sys.argv[2]
    from clearml_client import init_clearml
    init_clearml('words', project='team/training', queue='all_gpus')
    print('GOT', lr)
main()
"""
PLAIN = """
import sys
from clearml_client import init_clearml
lr = sys.argv[2]
init_clearml('words', project='team/training', queue='all_gpus')
print('GOT', lr)
"""
PLAIN_LATER = """
import sys
from clearml_client import init_clearml
init_clearml('words', project='team/training', queue='all_gpus')
lr = sys.argv[2]
print('GOT', lr)
"""
GETOPT = """
import getopt, sys
from clearml_client import init_clearml
init_clearml('words', project='team/training', queue='all_gpus')
print('GOT', dict(getopt.getopt(sys.argv[1:], '', ['lr='])[0])['--lr'])
"""


IN_FUNCTION = """
import sys
def main():
    from clearml_client import init_clearml
    init_clearml('words', project='team/training', queue='all_gpus')
    print('GOT', sys.argv[2])
main()
"""


@pytest.mark.parametrize("script", [READ_BEFORE, LATER], ids=["argparse", "plain"])
def test_words_that_were_read_before_the_client_was_imported_are_refused(site: Site, script: str) -> None:
    site.write("")
    (site.tree / "train.py").write_text(script)
    code, out, err = site.run("--lr", "0.5")
    assert code == 1
    assert printed(out) == []
    assert "its command line was read before clearml_client was imported" in err
    assert site.tasks() == []


@pytest.mark.parametrize(
    "script", [IN_FUNCTION, PLAIN, PLAIN_LATER, GETOPT], ids=["function", "plain", "after", "getopt"]
)
def test_words_travel_whoever_reads_them(site: Site, script: str) -> None:
    site.write("")
    (site.tree / "train.py").write_text(script)
    code, out, err = site.run("--lr", "0.5")
    assert code == 0, err
    assert printed(out) == []
    task = only_task(site)
    assert task["status"] == "queued"
    code, out, err = start_as_agent(site, task["id"])
    assert code == 0, err
    assert printed(out) == ["GOT 0.5"]


def start_module(site: Site, folder: Path, *words: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "CLEARML_CONFIG_FILE": str(site.folder / "clearml.conf"), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def add_module(site: Site, path: str) -> None:
    module = site.tree / path
    module.parent.mkdir(parents=True)
    (module.parent / "__init__.py").write_text("")
    site.write("")
    module.write_text(HEAD_OF_MODULE)
    site.git("add", ".")
    site.git("commit", "--quiet", "--message=Module")
    site.git("push", "--quiet", "origin", "main")


@pytest.mark.parametrize(
    ("path", "module", "recorded"),
    [("pack/train.py", "pack.train", "pack.train"), ("pack/__main__.py", "pack", "pack.__main__")],
)
def test_a_module_and_its_words(site: Site, path: str, module: str, recorded: str) -> None:
    add_module(site, path)
    code, err = start_module(site, site.tree, module, "fit", "--name", "it's a b")
    assert code == 0, err
    task = only_task(site)
    assert task["script"]["entry_point"] == "-m " + recorded
    assert task["script"]["repository"] == f"file://{site.bare}"
    code, out, err = start_as_agent(site, task["id"], "-m", recorded)
    assert code == 0, err
    assert printed(out) == ["GOT fit it's a b"]


def test_a_module_of_another_folder(site: Site) -> None:
    """PYTHONPATH and editable installs are this machine's: an image could have an older one of the same name."""
    add_module(site, "src/pack/train.py")
    code, err = start_module(site, site.tree, "pack.train", "fit", PYTHONPATH=str(site.tree / "src"))
    assert code == 1
    assert "agents start `python -m pack.train` in the folder . of the repository, which has no pack/train.py" in err
    assert site.tasks() == []
    code, err = start_module(site, site.tree / "src", "pack.train", "fit")
    assert code == 0, err
    assert only_task(site)["script"]["working_dir"] == "src"


HEAD_OF_MODULE = """
import argparse
from clearml_client import init_clearml
init_clearml('words', project='team/training', queue='all_gpus')
parser = argparse.ArgumentParser()
commands = parser.add_subparsers(dest='cmd')
commands.add_parser('fit').add_argument('--name')
parsed = parser.parse_args()
print('GOT', parsed.cmd, parsed.name)
"""


def test_programs_that_the_experiment_starts_keep_their_words(site: Site) -> None:
    (site.tree / "tool.py").write_text(
        "import argparse, clearml_client\n"
        "parser = argparse.ArgumentParser(); parser.add_argument('--lr')\n"
        "print('GOT tool', parser.parse_args().lr)\n"
    )
    body = """
import subprocess
parser = argparse.ArgumentParser(); parser.add_argument('--lr', type=float)
print('GOT', parser.parse_args().lr, flush=True)
subprocess.run([sys.executable, 'tool.py', '--lr', 'own'], check=True)
subprocess.run([sys.executable, '-m', 'clearml_client', '--help'], check=True, stdout=subprocess.DEVNULL)
os._exit(0)
"""
    here, there = here_and_there(site, ARGPARSE.format(body=body), "--lr", "0.5")
    assert here == ["GOT 0.5", "GOT tool own"]
    assert there[0] == "GOT 0.5"
