"""The official server's settings: logins that end, lines without passwords, files that can be deleted."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from test_roles import load

logins = load("ansible/plugins/modules/clearml_logins.py")
trainyard = load("ansible/plugins/filter/trainyard.py")

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
