"""Every command, snippet and name of the pages is run here or in tests/e2e, or compared with the code.

A new command in a page needs a line in ``documents.PLACES`` where none fits it yet.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import inventories
import pytest
import yaml
from ansible.cli.playbook import PlaybookCLI
from clearml_client._config import load as load_settings
from test_client_core import Site, served
from test_command_line import start_as_agent
from test_dvc import dvc, environment
from test_dvc import run as run_in
from test_lite_auth import write_config
from test_users import HASH

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import documents
from documents import ROOT, Command, Snippet
from harness import Server, free_ports

BIN = Path(sys.executable).parent
COMMANDS = documents.commands()
ROLES = [role.name for role in sorted((ROOT / "ansible/roles").iterdir())]
MAKEFILE = (ROOT / "Makefile").read_text()
COMPOSE = [*(ROOT / "agents").glob("*.yaml"), *(ROOT / "compose").glob("*/*.yaml")]
# Words in capitals, and examples, that stand for what a site has.
STAND_INS = {"NAME": "example", "team": "example", "name": "example"}
# What no role's options name: a fact that a role sets, and the list that group_vars hand on to two roles.
OTHER_NAMES = {"nvidia_container_toolkit_gpus", "clearml_users"}


def test_every_block_names_its_language() -> None:
    assert [str(one) for one in documents.snippets() if one.language not in documents.LANGUAGES] == []


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for where, target in documents.links():
        path, _, anchor = target.partition("#")
        file = ((ROOT / where.page).parent / path).resolve() if path else ROOT / where.page
        if not file.exists() or (anchor and anchor not in documents.anchors(file)):
            wrong.append(f"{where}: {target}")
    assert wrong == []


def test_every_path_and_test_is_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    wrong = []
    for span in documents.spans():
        text = re.sub(r"\[.*\]$", "", span.text)
        if match := re.fullmatch(r"((?:tests/\w+/)?test_\w+\.py)?(?:::)?(test_\w+)?", text):
            name, test = match.groups()
            if (name and not list((ROOT / "tests").rglob(Path(name).name))) or (test and f"def {test}(" not in tests):
                wrong.append(str(span) + ": " + span.text)
        elif re.fullmatch(rf"\.?/?({folders})/[\w./-]*\w", text) and not text.startswith("build/"):
            paths = {text.replace("NAME", "*"), "/".join(STAND_INS.get(part, part) for part in text.split("/"))}
            # A folder of a page's own, such as compose/'s lite/, has the same name as one of the root.
            tops = (ROOT, (ROOT / span.page).parent)
            if not any(list(top.glob(path)) or ignored(path) for top in tops for path in paths):
                wrong.append(str(span) + ": " + span.text)
    assert wrong == []


def ignored(path: str) -> bool:
    """Whether git ignores a path: a site makes it, and a clone has none."""
    return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


# --- names of variables ----------------------------------------------------------------------------------------------


def known_variables() -> set[str]:
    found = set(yaml.safe_load((ROOT / "ansible/roles/preflight/meta/site_variables.yml").read_text())) | OTHER_NAMES
    for role in ROLES:
        specs = yaml.safe_load((ROOT / f"ansible/roles/{role}/meta/argument_specs.yml").read_text())
        found |= set(specs["argument_specs"]["main"]["options"] or {})
    return found


def test_every_variable_is_one_of_a_role() -> None:
    known = known_variables()
    files = {path.stem for path in (ROOT / "ansible").rglob("*.*")} | {"clearml_server_nginx"}
    wrong = []
    for one in [*documents.spans(), *documents.snippets()]:
        for name in re.findall(rf"(?<![\w/.-])(?:{'|'.join(ROLES)}|site)_\w+(?![\w-]*[./(]\w)", one.text):
            full = {name} if not name.endswith("_") else {other for other in known if other.startswith(name)}
            if not full & (known | files):
                wrong.append(f"{one}: {name}")
    assert wrong == []


def checked(folder: Path, variables: dict[str, Any]) -> list[str]:
    """Return what the preflight says of a site with these variables."""
    variables = {"site_verify_queue": "all_gpus", **variables}
    server = {"ansible_connection": "local", "clearml_server_host": "clearml.example.org"}
    groups = {"clearml_server": ["one"], "clearml_nodes": ["one"], "clearml_registry": ["one"]}
    vault = inventories.secrets()
    for text in re.findall(r"\bvault_\w+", json.dumps(variables)):
        vault.setdefault(text, HASH if text.endswith("_hash") else "a-long-enough-secret-of-a-page")
    inventories.write(folder, {"one": server}, groups, vault)
    (folder / "group_vars/all/zz_page.yml").write_text(yaml.safe_dump(variables))
    return inventories.check(folder)


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the site of these tests lacks by itself: a registry's users."""
    return checked(tmp_path_factory.mktemp("site") / "site", {})


@pytest.mark.parametrize("snippet", documents.snippets("yaml"), ids=str)
def test_yaml_passes_the_preflight(snippet: Snippet, lacking: list[str], tmp_path: Path) -> None:
    tables = list(variables_of(yaml.safe_load(snippet.text)))
    assert tables, "a block of variables, an inventory, a playbook, or a task"
    for number, table in enumerate(tables):
        assert set(table) <= known_variables(), "unknown variables"
        assert [one for one in checked(tmp_path / str(number), table) if one not in lacking] == []


def variables_of(content: Any) -> Iterator[dict[str, Any]]:
    """Return the tables of variables: of a file, of hosts and groups, of a playbook's roles."""
    if isinstance(content, list):
        for item in content:
            for role in item.get("roles", []):
                name = role["role"]
                assert name in ROLES
                yield {key: value for key, value in role.items() if key not in {"role", "vars"}}
            if task := item.get("ansible.builtin.include_role"):
                assert (ROOT / f"ansible/roles/{task['name']}/tasks/{task['tasks_from']}").is_file()
                yield {}
        return
    groups = [key for key, value in content.items() if isinstance(value, dict) and {"hosts", "vars"} & set(value)]
    for group in groups:
        assert group in {"clearml_server", "clearml_nodes", "clearml_registry"}
        yield from [hosts for hosts in content[group]["hosts"].values() if hosts]
        yield content[group].get("vars", {})
    rest = {key: value for key, value in content.items() if key not in groups}
    if rest:
        yield rest


@pytest.mark.parametrize("snippet", documents.snippets("toml"), ids=str)
def test_settings_of_a_repository(snippet: Snippet, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(snippet.text)
    settings = load_settings(tmp_path)
    assert settings.path == tmp_path / "pyproject.toml"
    assert tomllib.loads(snippet.text)["tool"]["clearml_client"]


def test_the_team_image_is_the_one_that_is_built() -> None:
    (snippet,) = documents.snippets("dockerfile")
    assert snippet.text == (ROOT / "docker/team/Dockerfile").read_text()


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_run_somewhere_or_is_known(command: Command) -> None:
    assert command.place, f"{command}: add a line to documents.PLACES that says where it is run, or why nowhere"
    check = CHECKS.get(command.words[0].rpartition("/")[2])
    if check:
        check(command)


def check_make(command: Command) -> None:
    shown = set(re.findall(r"(?m)^([a-z0-9-]+):.*## ", MAKEFILE)) | {"help"}
    targets = [word for word in command.words[1:] if "=" not in word]
    assert targets
    assert set(targets) <= shown
    recipes = "\n".join(re.findall(rf"(?ms)^(?:{'|'.join(targets)}):.*?(?=^\S)", MAKEFILE))
    for word in command.words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            assert f"$({name})" in MAKEFILE or f"$(filter yes,$({name}))" in MAKEFILE
        if name == "ARGS":
            assert "$(ARGS)" in recipes
            check_playbook([*re.findall(r"ansible/\w+\.yml", recipes)[:1], *shlex.split(value)])


def check_playbook(words: list[str]) -> None:
    """Refuse what ansible-playbook would refuse, and extra variables that nothing reads."""
    cli = PlaybookCLI(["ansible-playbook", *words])
    cli.init_parser()
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            options = cli.parser.parse_args(words)
        except SystemExit:
            raise AssertionError(told.getvalue()) from None
    assert all((ROOT / playbook).is_file() for playbook in options.args)
    playbooks = "\n".join(path.read_text() for path in (ROOT / "ansible").rglob("*.yml"))
    for given in options.extra_vars or []:
        assert re.search(rf"\b{given.split('=')[0]}\b", playbooks), given


def check_python(command: Command) -> None:
    script, options = command.words[1], re.findall(r"--[\w-]+", command.text)
    if script.startswith("tests/"):
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert set(options) <= set(re.findall(r"--[\w-]+", done.stdout))


def check_docker(command: Command) -> None:
    services = {service for path in COMPOSE for service in yaml.safe_load(path.read_text())["services"]}
    for word in command.words:
        if match := re.fullmatch(r"clearml-(agent|reaper|pruner|server)-(?:.+-)?(\w+)-1", word):
            assert match[2] in services | {"NAME"}
        if word.startswith("trainyard/"):
            names = (ROOT / "ansible/roles/perception_images/defaults/main.yml").read_text() + MAKEFILE
            assert word in names + (ROOT / "ansible/roles/clearml_server/defaults/main.yml").read_text()


def check_pip(command: Command) -> None:
    extras = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command.words[2:]:
        path, _, extra = word.partition("[")
        assert word == "-r" or (command.folder / path).exists()
        assert not extra or set(extra.rstrip("]").split(",")) <= set(extras)


def check_git(command: Command) -> None:
    done = subprocess.run(["git", command.words[1], "-h"], capture_output=True, text=True, check=False)
    assert f"usage: git {command.words[1]}" in done.stdout + done.stderr


CHECKS = {
    "make": check_make,
    "ansible-playbook": lambda command: check_playbook(command.words[1:]),
    "python": check_python,
    "docker": check_docker,
    "pip": lambda command: check_pip(command) if command.words[2:] != ["-r"] else None,
    "git": check_git,
}


def here(place: str, *programs: str) -> list[Command]:
    """Return the commands that are run in a place, of some programs, each once."""
    found = [one for one in COMMANDS if one.place == place and one.words[0].rpartition("/")[2] in programs]
    return list({one.text: one for one in found}.values())


def test_everything_that_is_run_here_is_run() -> None:
    ran = here("unit", "clearml-client", "trainyard-lite", "sqlite3", "python", "make")
    assert {one.text for one in COMMANDS if one.place == "unit"} == {one.text for one in ran}


def shell(text: str, folder: Path, variables: dict[str, str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Type a command."""
    env = {**variables, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env=env,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("command", here("unit", "make"), ids=str)
def test_make(command: Command) -> None:
    done = shell(command.text, ROOT, dict(os.environ))
    assert "Operate a site" in done.stdout, done.stderr


@pytest.mark.parametrize("command", [one for one in here("unit", "python") if one.words[1] == "-c"], ids=str)
def test_python_with_a_line_of_its_own(command: Command) -> None:
    assert command.words[0] == ".venv/bin/python"
    done = shell(command.text.replace(command.words[0], sys.executable, 1), ROOT, dict(os.environ), "a password\n")
    assert done.returncode == 0, done.stderr
    hashed = base64.b64decode(done.stdout.removeprefix("Password: ").strip())
    assert bcrypt.checkpw(b"a password", hashed)


def test_the_lite_server_by_its_own_program(tmp_path: Path) -> None:
    write_config(tmp_path / "CONFIG")
    ports = dict(zip(("API", "WEB", "FILES"), map(str, free_ports(3)), strict=True))
    variables = {**os.environ, **{f"TRAINYARD_LITE_{name}_PORT": port for name, port in ports.items()}}
    variables |= {f"TRAINYARD_LITE_{name}_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    variables["PATH"] = f"{BIN}:{os.environ['PATH']}"
    serve, *others = here("unit", "trainyard-lite", "sqlite3")
    assert serve.words[1] == "serve"
    server = subprocess.Popen(serve.words, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        (health,) = (one for one in others if "healthcheck" in one.words)
        while shell(health.text, tmp_path, variables).returncode:
            assert server.poll() is None, server.communicate()[1]
            time.sleep(0.1)
        (backup,) = (one for one in others if one.words[0] == "sqlite3")
        if shutil.which("sqlite3"):  # a program of the server's host
            assert shell(backup.text, tmp_path, variables).returncode == 0
    finally:
        server.terminate()
        server.communicate(timeout=30)
    for command in others:
        if command not in {health, backup}:
            done = shell(command.text, tmp_path, variables)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert (tmp_path / "NEW.db").stat().st_size > 0


# --- the client ------------------------------------------------------------------------------------------------------

# One script that has what the pages' commands name: arguments, connected parameters, a dataset and a model.
TRAIN = """\
import argparse
from clearml import OutputModel
from clearml_client import init_clearml
from clearml_client.datasets import open_dataset

task = init_clearml("detector", project="my-team/training")
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
parser.parse_args()
task.connect({"lr": 0.1})
open_dataset("kitti@1.4.0")
OutputModel(task=task, name="detector").update_weights(register_uri="file:///weights.bin")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


class Desk:
    """Somebody's machine: a clearml.conf, and a pushed repository with data in DVC."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.site = Site(folder, server)
        self.tree = self.site.tree
        self.variables = environment(folder)
        run_in(self.tree, self.variables, "git", "config", "user.name", "a")
        run_in(self.tree, self.variables, "git", "config", "user.email", "a@example.org")
        dvc(self.tree, self.variables, "init", "-q")
        dvc(self.tree, self.variables, "remote", "add", "-q", "-d", "store", str(folder / "remote"))
        for name in ("mnist", "images"):
            (self.tree / "data" / name / "train").mkdir(parents=True)
            (self.tree / "data" / name / "train" / "0.bin").write_bytes(name.encode())
        dvc(self.tree, self.variables, "add", "-q", "data/mnist", "data/images")
        dvc(self.tree, self.variables, "push", "-q")
        (self.tree / "report.txt").write_text("all is well\n")
        (self.tree / ".gitignore").write_text("FOLDER\npreview\n/data/kitti\n")

    def push(self, script: str) -> None:
        """Save the script that the pages call train.py."""
        (self.tree / "train.py").write_text(script)
        self.site.git("add", ".")
        self.site.git("commit", "--quiet", "--message=Change")
        self.site.git("tag", "--force", "--annotate", "--message=a version", "data/images@1.4.0")
        self.site.git("push", "--quiet", "--force", "--tags", "origin", "main")

    def type(self, text: str) -> subprocess.CompletedProcess[str]:
        """Type a command in the repository; the machine has no settings but its clearml.conf."""
        conf = str(self.site.folder / "clearml.conf")
        done = shell(text, self.tree, {**self.variables, "CLEARML_CONFIG_FILE": conf})
        print(f"$ {text}\n{done.stdout}{done.stderr}")  # for whoever looks at a failure
        return done


@pytest.fixture
def desk(tmp_path: Path, server: Server) -> Desk:
    return Desk(tmp_path, server)


# The one with a debugger is run by test_roles, with somebody who listens.
SCRIPTS = [snippet for snippet in documents.snippets("python") if "import pdb" not in snippet.text]


@pytest.mark.parametrize("snippet", SCRIPTS, ids=str)
def test_a_script_of_a_page_runs_here_and_goes_to_the_queue(snippet: Snippet, desk: Desk) -> None:
    desk.push(snippet.text)
    text = snippet.text if "project=" in snippet.text else ""
    if not text:  # the page's own settings name the project
        (desk.tree / "pyproject.toml").write_text('[tool.clearml_client]\nteam = "perception"\nkind = "training"\n')
        desk.push(snippet.text)
    before = {task["id"] for task in desk.site.tasks()}
    for command in here("unit", "python"):
        if command.words[1] == "train.py":
            assert desk.type(command.text).returncode == 0
    done = [task for task in desk.site.tasks() if task["id"] not in before]
    assert [task["status"] for task in done] == ["completed", "queued"]
    (artifact,) = done[0]["execution"]["artifacts"]
    assert artifact["type"] != "string", "a text, where a file was meant"


def test_what_the_client_can_do(desk: Desk) -> None:
    desk.push(TRAIN)
    folder = desk.tree / "FOLDER"
    (folder / "train").mkdir(parents=True)
    (folder / "train/a.png").write_bytes(bytes.fromhex(PNG))
    assert desk.type("clearml-client data upload FOLDER kitti --version 1.3.0").returncode == 0
    (folder / "train/labels.csv").write_text("a,1\n")
    wanted = here("unit", "clearml-client")
    first, *rest = sorted(wanted, key=lambda one: "upload" not in one.words)
    assert first.words[2] == "upload"
    assert desk.type(first.text).returncode == 0
    before = {task["id"] for task in desk.site.tasks()}
    assert desk.type("python train.py").returncode == 0
    (task,) = (task["id"] for task in desk.site.tasks() if task["id"] not in before)
    with desk.site.server.login() as api:  # what this machine has of packages is another test's
        api.call("tasks.set_requirements", task=task, requirements={"pip": ""})
    said = {}
    for command in rest:
        text = re.sub(r"\b(TASK_ID|MODEL_ID|ID)\b", task, command.text).replace("NAME@VERSION", "kitti@1.4.0")
        if command.words[1] == "reproduce":
            # A program by itself is a mention; no worker is here to end what is put into the queue.
            text += " --no-wait --queue all_gpus" if len(command.words) > 2 else " --help"
        done = desk.type(text)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command.text] = done.stdout
    (lineage,) = (text for command, text in said.items() if "lineage" in command)
    assert "kitti@1.3.0" in lineage
    (models,) = (text for command, text in said.items() if command.startswith("clearml-client models"))
    assert "detector" in models


@pytest.mark.parametrize("command", here("site", "clearml-task"), ids=str)
def test_clearml_task_sends_a_script_that_starts(command: Command, desk: Desk) -> None:
    """It puts lines of its own above the script, also above the docstring; tests/e2e has an agent for it."""
    options = dict(zip(command.words[1::2], command.words[2::2], strict=True))
    shutil.copytree((ROOT / command.page).parent, desk.tree, dirs_exist_ok=True)
    before = {task["id"] for task in desk.site.tasks()}
    assert desk.type(command.text).returncode == 0
    (task,) = (task for task in desk.site.tasks() if task["id"] not in before)
    assert (task["name"], task["status"]) == (options["--name"], "queued")
    subprocess.run(
        ["git", "apply", "--unidiff-zero"], cwd=desk.tree, input=task["script"]["diff"], text=True, check=True
    )
    assert (desk.tree / options["--script"]).read_text().startswith("try: from allegroai import Task")
    with desk.site.server.login() as api:
        epochs = {"section": "Args", "name": "epochs", "value": "1"}
        api.call("tasks.dequeue", task=task["id"])
        api.call("tasks.edit_hyper_params", task=task["id"], hyperparams=[epochs])
    status, out, err = start_as_agent(desk.site, task["id"], options["--script"])
    assert status == 0, err
    assert "epoch 1/1" in out


# A picture of one pixel.
PNG = (
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
    "0000000049454e44ae426082"
)
