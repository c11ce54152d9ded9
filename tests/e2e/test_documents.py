"""What the pages tell to type on a site, typed on the one of `make up`: by a person who trains, and by an operator.

Blocks are typed as a whole, code in sentences by itself. ``documents.PLACES`` says what is run where.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import documents
import pytest
from clearml_api import ClearmlApi
from documents import Command, Snippet
from harness import ROOT, wait_for_status
from login import vault_values

INVENTORY = ROOT / "inventory/local"
SITE_FILE = ROOT / "build/site-local.json"
DATABASE = Path("/opt/clearml/data/lite/lite.db")
# What stands in the pages for what a site has, and what it is on the one of this machine.
STAND_INS = {
    "clearml-server-NAME-1": "clearml-server-lite-1",
    "clearml-pruner-NODE-": "clearml-pruner-localhost-",
    "NODE": "local",
    "WORKER": "local-1",
    "SITE=team": "SITE=local",
    "inventory/NAME": "inventory/local",
}
ON_SITE = [command for command in documents.commands() if command.place == "site"]


def block_of(page: str, words: str) -> Snippet:
    (found,) = (block for block in documents.snippets("sh") if block.page == page and words in block.text)
    return found


# Each is typed by a test of its own.
CLIENT = block_of("README.md", "pip install ./client")
EXTRAS = block_of("client/README.md", "pip install")
DIGITS = block_of("examples/digits/README.md", "clearml-task")
SALVAGE = block_of("docs/operations.md", "salvage")
BACKUP = block_of("docs/operations.md", ".backup")
OFFICIAL, LITE = (block_of("compose/README.md", words) for words in ("server/compose.yaml", "lite/compose.yaml"))
BAKE = block_of("docs/images.md", "buildx bake")


@dataclass
class Person:
    """Somebody with a home folder, in which the clearml.conf of a key pair is."""

    home: Path
    urls: dict[str, str]
    api: ClearmlApi

    def type(self, text: str, folder: Path = ROOT, *, timeout: float = 300) -> str:
        """Type a command, or a whole block that ends at the first thing that fails."""
        for name, real in {**STAND_INS, "//HOST:": f"//{urlsplit(self.urls['api']).hostname}:"}.items():
            text = text.replace(name, real)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_", "MAKE", "MFLAGS"))}
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=folder,
            env={**kept, "HOME": str(self.home)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        print(f"$ {text}\n{done.stdout}")  # for whoever looks at a failure
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    if not SITE_FILE.exists():
        pytest.skip("the site is not deployed from here: make up")
    site = json.loads(SITE_FILE.read_text())
    urls = {name: site[f"{name}_url"] for name in ("api", "web", "files")}
    secrets = vault_values(INVENTORY / "group_vars/all/vault.yml", INVENTORY / ".vault_password")
    home = tmp_path_factory.mktemp("home")
    with ClearmlApi(urls["api"], urls["files"], site["user"], secrets["vault_clearml_admin_password"]) as api:
        # As the page makes one.
        pair = api.call("auth.create_credentials", label="tests/e2e/test_documents.py")["credentials"]
        servers = {f"{name}_server": url for name, url in urls.items()}
        keys = {"access_key": pair["access_key"], "secret_key": pair["secret_key"]}
        (home / "clearml.conf").write_text(json.dumps({"api": {**servers, "credentials": keys}}))
        yield Person(home, urls, api)
        api.call("auth.revoke_credentials", access_key=pair["access_key"])


TYPED = {(block.page, block.line) for block in (CLIENT, EXTRAS, DIGITS, SALVAGE, BACKUP, OFFICIAL, LITE, BAKE)}
DOWN = "docker compose -f lite/compose.yaml --env-file server.env down"  # goes with LITE
# The rest, each by itself; the same with and without the name of a site is typed once.
ALONE = {
    re.sub(r"\s+(SITE=\w+|#.*)", "", command.text): command
    for command in ON_SITE
    if (command.page, command.block) not in TYPED and command.text != DOWN
}


@pytest.mark.parametrize("command", ALONE.values(), ids=str)
def test_a_command_of_an_operator(command: Command, person: Person) -> None:
    person.type(command.text)


def test_a_person_installs_the_client_and_trains(person: Person) -> None:
    person.type(CLIENT.text, timeout=600)
    activate = ". ~/venv/bin/activate\n"
    assert "clearml-client" in person.type(activate + "clearml-client --help")
    said = person.type(activate + DIGITS.text, ROOT / Path(DIGITS.page).parent, timeout=600)
    here = re.findall(r"final validation accuracy: (\d\.\d+)", said)
    assert [float(one) > 0.9 for one in here] == [True, True], "with a server, and without one"
    (task,) = re.findall(r"New task created id=(\w{32})", said)
    ended = wait_for_status(person.api, task, "completed", 300)
    assert ended["hyperparams"]["Args"]["epochs"]["value"] == "30"
    person.type(f"{activate}{EXTRAS.text}\ndvc --version", timeout=600)


def test_a_backup_is_one(person: Person, tmp_path: Path) -> None:
    lines = [line for line in BACKUP.text.splitlines() if shutil.which(line.split()[0])]
    assert len(lines) >= len(BACKUP.text.splitlines()) - 2, "sqlite3 and rsync may be missing here"
    person.type("\n".join(lines).replace("/backup", str(tmp_path / "backup")))
    assert (tmp_path / "backup/vault.yml").stat().st_size > 0
    if shutil.which("sqlite3"):
        (tasks,) = sqlite3.connect(tmp_path / "backup/lite.db").execute("PRAGMA quick_check").fetchone()
        assert tasks == "ok"


def test_a_damaged_database_is_salvaged(person: Person, tmp_path: Path) -> None:
    (folder := tmp_path / "lite").mkdir()
    with sqlite3.connect(DATABASE) as live, sqlite3.connect(folder / "lite.db") as copy:
        live.backup(copy)
    (folder / "lite.db-wal").touch()
    for path in (folder, *folder.iterdir()):
        os.chown(path, 1000, 1000)
    text = SALVAGE.text.replace(str(DATABASE.parent), str(folder)).replace("/backup", str(tmp_path / "backup"))
    person.type(text)
    assert (tmp_path / "backup/damaged/lite.db").stat().st_size > 0
    (tables,) = sqlite3.connect(folder / "lite.db").execute("SELECT count(*) FROM sqlite_master").fetchone()
    assert tables


@pytest.mark.parametrize("block", [OFFICIAL, LITE], ids=str)
def test_the_server_by_hand(block: Snippet, person: Person, tmp_path: Path) -> None:
    """Up to the last step: this machine has its server already."""
    folder = tmp_path / "compose"
    shutil.copytree(ROOT / "compose", folder)
    needed = {name for path in folder.rglob("*.yaml") for name in re.findall(r"\$\{([A-Z_]+):\?", path.read_text())}
    (folder / "server.env").write_text("".join(f"{name}=http://10.0.0.5:1\n" for name in sorted(needed)))
    ups = [*re.findall(r" up -d --wait$", block.text, re.MULTILINE)]
    assert len(ups) == 1
    text = block.text.replace("/opt/clearml", str(tmp_path / "clearml")).replace(ups[0], " config --services")
    said = person.type(text, folder)
    assert said.split()[-1] in {"lite", "apiserver", "async_delete", "fileserver", "webserver"}
    if block == LITE:
        assert DOWN in [command.text for command in ON_SITE]
        person.type(DOWN.removesuffix("down") + "config --quiet", folder)


def test_images_by_hand(person: Person, tmp_path: Path) -> None:
    """What would be built; tests/perception builds."""
    for name in ("ca.pem", "pip.conf", "apt.conf", "uv.toml"):
        (tmp_path / name).touch()
    for line in BAKE.text.replace("/path/to/folder", str(tmp_path)).splitlines():
        said = person.type(f"{line} --print")
        assert f'"id=ca,src={tmp_path}/ca.pem"' in said
