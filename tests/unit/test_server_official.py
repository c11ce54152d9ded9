"""The official server's settings: logins that end, lines without passwords, files that can be deleted."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
from pathlib import Path
from typing import Any

import jinja2
import pyhocon
import pytest
import yaml
from test_roles import load

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible/roles/clearml_server"

logins = load("ansible/plugins/modules/clearml_logins.py")
trainyard = load("ansible/plugins/filter/trainyard.py")
left_files = load("tests/infra/leftovers.py").left_files

PEOPLE = {"user alice": ["hash of alice"], "user bob": ["hash of bob"], "account gpu-07": ["KEY", "SECRET"]}


class Epoch:
    """The module that keeps the epoch, on a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "logins.json"
        self.secret = "the-secret-of-the-vault"

    def keep(self, people: dict[str, Any] | None, check: bool = False, end: bool = False) -> dict[str, Any]:
        given = {"path": str(self.path), "secret": self.secret, "logins": people, "end": end}
        result: dict[str, Any] = logins.keep({**given, "owner": os.getuid(), "group": os.getgid()}, check)
        return result


@pytest.fixture
def epoch(tmp_path: Path) -> Epoch:
    return Epoch(tmp_path)


# --- logins that end -------------------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing(epoch: Epoch) -> None:
    first = epoch.keep(PEOPLE)
    assert first["changed"]
    assert first["renewed"]
    second = epoch.keep(PEOPLE)
    assert (second["changed"], second["renewed"], second["epoch"]) == (False, False, first["epoch"])


def test_who_comes_ends_no_login(epoch: Epoch) -> None:
    first = epoch.keep(PEOPLE)
    more = epoch.keep({**PEOPLE, "user carol": ["hash of carol"]})
    assert (more["changed"], more["renewed"], more["epoch"]) == (True, False, first["epoch"])


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"user bob": None}, ["user bob"]),
        ({"user bob": ["another hash"]}, ["user bob"]),
        ({"account gpu-07": ["KEY", "ANOTHER"]}, ["account gpu-07"]),
        ({"account gpu-07": ["ANOTHER", "SECRET"]}, ["account gpu-07"]),
        ({"account gpu-07": None, "account gpu-08": ["KEY", "SECRET"]}, ["account gpu-07"]),
        # A hash that only changed hands is another person's all the same.
        ({"user alice": ["hash of bob"], "user bob": ["hash of alice"]}, ["user alice", "user bob"]),
    ],
)
def test_who_goes_or_gets_another_secret_ends_all_logins(epoch: Epoch, change: dict[str, Any], gone: list[str]) -> None:
    first = epoch.keep(PEOPLE)
    after = {name: proof for name, proof in {**PEOPLE, **change}.items() if proof}
    check = epoch.keep(after, check=True)
    assert (check["changed"], check["renewed"], check["gone"]) == (True, True, gone)
    then = epoch.keep(after)
    assert (then["renewed"], then["gone"]) == (True, gone)
    assert then["epoch"] != first["epoch"]
    assert not epoch.keep(after)["changed"]


def test_who_comes_back_gets_no_old_token_back(epoch: Epoch) -> None:
    first = epoch.keep(PEOPLE)
    epoch.keep({name: proof for name, proof in PEOPLE.items() if name != "user bob"})
    assert epoch.keep(PEOPLE)["epoch"] != first["epoch"]


def test_another_secret_of_the_vault_ends_all_logins(epoch: Epoch) -> None:
    epoch.keep(PEOPLE)
    epoch.secret = "another-secret-of-the-vault"
    assert epoch.keep(PEOPLE)["renewed"]


def test_logins_can_be_ended_by_hand(epoch: Epoch) -> None:
    first = epoch.keep(PEOPLE)
    ended = epoch.keep(None, end=True)
    assert ended["epoch"] != first["epoch"]
    after = epoch.keep(PEOPLE)
    assert (after["changed"], after["epoch"]) == (False, ended["epoch"]), "ending them forgot who may log in"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": 1, "logins": {}}', '{"epoch": "x", "logins": {}}'])
def test_a_damaged_file_ends_all_logins(epoch: Epoch, text: str) -> None:
    epoch.path.write_text(text)
    assert epoch.keep(PEOPLE)["renewed"]
    assert not epoch.keep(PEOPLE)["changed"]


def test_a_check_writes_nothing(epoch: Epoch) -> None:
    assert epoch.keep(PEOPLE, check=True)["changed"]
    assert not epoch.path.exists()


def test_the_file_holds_no_secret(epoch: Epoch) -> None:
    epoch.keep(PEOPLE)
    text = epoch.path.read_text()
    assert epoch.path.stat().st_mode & 0o777 == 0o400
    for secret in (epoch.secret, *(part for proof in PEOPLE.values() for part in proof)):
        assert secret not in text
    assert set(json.loads(text)["logins"]) == set(PEOPLE)


def test_the_signing_secret_depends_on_both() -> None:
    made = {
        trainyard.trainyard_token_secret(secret, epoch) for secret in ("one", "two") for epoch in ("a" * 32, "b" * 32)
    }
    assert len(made) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", secret) for secret in made)


# --- settings --------------------------------------------------------------------------------------------------------


def rendered(name: str, **variables: Any) -> Any:
    """Return what a HOCON file of the role says, for what its template reads."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(to_json=json.dumps, bool=bool)
    text = environment.from_string((ROLE / f"templates/{name}.j2").read_text()).render(**variables)
    return pyhocon.ConfigFactory.parse_string(text).as_plain_ordered_dict()


@pytest.mark.parametrize("formatter", ["standard", "default"])
def test_no_line_shows_a_password_whatever_the_formatter(
    formatter: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server's formatter is named standard, the file server's default."""
    monkeypatch.syspath_prepend(str(ROOT / "compose/server/python"))
    upstream = {
        "version": 1,
        "formatters": {formatter: {"format": "[%(levelname)s] %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": formatter}},
        "loggers": {"tested": {"handlers": ["console"], "level": "INFO", "propagate": False}},
    }
    site = rendered("logging.conf")
    # As the server reads it: the site's file is merged into its own.
    logging.config.dictConfig({**upstream, "formatters": upstream["formatters"] | site["formatters"]})
    logging.getLogger("tested").info("connecting to mongodb://clearml:secret@mongo:27017/")
    told = capsys.readouterr().err
    assert "mongodb://***@mongo:27017/" in told
    assert "secret" not in told


def test_files_and_api_are_for_the_sites_own_page() -> None:
    page = ["https://app.example.org"]
    assert rendered("fileserver.conf", __clearml_server_origins=page) == {
        "auth": {"enabled": True, "tokens_cache_threshold_sec": 10},
        "cors": {"origins": page},
    }
    api = rendered(
        "apiserver.conf",
        __clearml_server_origins=page,
        clearml_server_check_for_updates=False,
        clearml_server_domain="example.org",
        clearml_server_token_seconds=86400,
        clearml_server_users=[{"username": "alice", "password_hash": "h"}],
    )
    assert api["cors"] == {"origins": page}
    assert (api["auth"]["default_expiration_sec"], api["auth"]["max_expiration_sec"]) == (86400, 86400)


def test_what_signs_tokens_starts_again_with_the_logins() -> None:
    """Every service that reads the signing secret is recreated by another epoch, and keeps the schema."""
    services = yaml.safe_load((ROOT / "compose/server/compose.yaml").read_text())["services"]
    lite = yaml.safe_load((ROOT / "compose/lite/compose.yaml").read_text())["services"]
    label, revision = "trainyard.logins-revision", "${CLEARML_SERVER_LOGINS_REVISION:-}"
    labelled = {name for name, service in {**services, **lite}.items() if service.get("labels", {}).get(label)}
    assert labelled == {"apiserver", "async_delete", "lite"}
    assert all({**services, **lite}[name]["labels"][label] == revision for name in labelled)
    cache = "/opt/clearml/apiserver/schema/services/_cache.json"
    keeping = {
        name for name, service in services.items() if cache in [each["target"] for each in service.get("volumes", [])]
    }
    assert keeping == {"apiserver", "async_delete"}


# --- files that stay -------------------------------------------------------------------------------------------------


def test_left_files_are_found_by_experiment() -> None:
    one, two = "0" * 32, "a1" * 16
    good = [
        f"team/digits.{one}/artifacts/x/x.txt",
        f"team/digits.{one}/models/epoch=3.ckpt",
        # Its address has %25C3: decoded twice, it is this name.
        f"team/%C3%A4.{one}/artifacts/x/x.txt",
        "upload+by+hand.txt",
    ]
    bad = [
        f"team/c++.{one}/artifacts/x/x.txt",
        f"team/digits.{two}/models/a+b.pt",
        f"team/digits.{two}/models/what?.pt",
        f"team/digits.{two}/models/a#b.pt",
        f"team/%C3%A4.{two}/models/m.pt",
    ]
    assert left_files(good + bad) == {one: bad[:1], two: bad[1:]}
    assert left_files([]) == {}
