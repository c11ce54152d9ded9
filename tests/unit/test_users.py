"""The people of a site: mistakes in their list, their keys on a real lite server, and how a new site is made."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import certifi
import pyhocon
import pytest
import requests
import yaml
from test_lite_auth import PASSWORD, write_config
from test_lite_durability import Process
from test_roles import load
from trainyard_lite._settings import user_id

ROOT = Path(__file__).resolve().parents[2]
# A salt that does not change: it is in the names of tests, which are the same in every process that runs them.
HASH = base64.b64encode(bcrypt.hashpw(PASSWORD.encode(), b"$2b$04$" + b"a" * 21 + b"u")).decode()
LABEL = "trainyard users.yml"
# Runs the module as Ansible does on a host, without the second that Ansible itself takes.
MODULE = """
import runpy, sys
import ansible.module_utils
from ansible.module_utils import basic
ansible.module_utils.__path__.append(sys.argv[1] + "/module_utils")
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.stdin.buffer.read(), "legacy"
runpy.run_path(sys.argv[1] + "/modules/clearml_user_keys.py", run_name="__main__")
"""

users_filter = load("ansible/plugins/filter/trainyard_users.py")


def person(**changes: Any) -> dict[str, Any]:
    full = {"username": "alice", "name": "Alice Doe", "password_hash": HASH, **changes}
    return {key: value for key, value in full.items() if value is not ...}


# --- the list --------------------------------------------------------------------------------------------------------


def test_a_good_list_passes() -> None:
    people = [
        person(email="alice@example.org"),
        person(username="b.ob_1@example-org", password_hash=..., password="x" * 12),
        person(username="7", password_hash="", password="correct horse battery"),
    ]
    assert users_filter.trainyard_user_problems(people, "one") == []
    assert users_filter.trainyard_user_problems([], "one") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"username": "al ice"}, "clearml_users[0].username is 'al ice'; write letters, digits, . _ @ - only"),
        ({"username": "../etc"}, "username is '../etc'"),
        ({"username": ".."}, "username is '..'"),
        ({"username": "alice\n"}, "username is 'alice\\n'"),
        ({"username": "zoë"}, "username is 'zoë'"),
        ({"username": 123}, "username is 123; write letters, digits, . _ @ - only, first a letter or digit (a number"),
        ({"username": ...}, "username is missing"),
        ({"username": "Admin"}, "username is 'Admin', which the site itself has too (case does not count)"),
        ({"name": ...}, "clearml_users[0] (alice).name is missing; write the name that the pages show"),
        ({"email": "nowhere"}, "email is 'nowhere'; write an address"),
        ({"passwrod": "x"}, "has the unknown key 'passwrod'; write password; known are email, name, password"),
        ({"password_hash": ...}, "(alice) has neither password nor password_hash; write one of them"),
        ({"password_hash": ""}, "has neither password nor password_hash"),
        ({"password": "x" * 20}, "has both password and password_hash"),
    ],
)
def test_a_mistake_is_told_with_host_variable_and_right_form(changes: dict[str, Any], told: str) -> None:
    (problem,) = users_filter.trainyard_user_problems([person(**changes)], "one", ["admin"])
    assert problem.startswith("one: clearml_users[0]")
    assert told in problem


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("password_hash", "MyPlainPassword", "is not base64; write base64 of a bcrypt hash"),
        ("password_hash", "MyPlainPasswords", "is not base64 of a bcrypt hash; write base64 of"),
        ("password_hash", base64.b64encode(b"hunter2-hunter2").decode(), "is not base64 of a bcrypt hash"),
        ("password_hash", base64.b64decode(HASH).decode(), "is a bcrypt hash, but not in base64"),
        ("password_hash", HASH[:-4], "is not base64 of a bcrypt hash"),
        ("password_hash", 12345678, "is not text"),
        ("password", "short-one", "has 9 characters; write 12 or more"),
        ("password", "y" * 73, "has 73 characters; bcrypt sees 72"),
        ("password", 123456789012, "is not text; put it in quotes"),
        ("password", "pässword-pässword", "are not printable ASCII"),
        ("password", "null-byte-in-\0-it", "are not printable ASCII"),
    ],
)
def test_a_bad_password_or_hash_is_refused_and_never_told(field: str, value: Any, told: str) -> None:
    (problem,) = users_filter.trainyard_user_problems([person(**{"password_hash": ..., field: value})], "one")
    assert problem.startswith(f"one: clearml_users[0] (alice) has a {field} (value hidden) that {told}"[:60])
    assert told in problem
    assert str(value) not in problem


def test_a_name_twice_is_told_whatever_its_case() -> None:
    problems = users_filter.trainyard_user_problems([person(), person(username="ALICE")], "one")
    assert problems == [
        "one: clearml_users[1] (ALICE).username is 'ALICE', which clearml_users[0] (alice) has too "
        "(case does not count); write another one"
    ]


@pytest.mark.parametrize("users", ["alice", {"alice": {}}, None, 3])
def test_something_else_than_a_list_is_refused(users: Any) -> None:
    (problem,) = users_filter.trainyard_user_problems(users, "one")
    assert "one: clearml_users is not a list" in problem
    (problem,) = users_filter.trainyard_user_problems(["alice"], "one")
    assert "clearml_users[0] is not a mapping" in problem


def test_a_plain_password_gets_the_same_good_hash_at_every_run() -> None:
    people = [person(password_hash=..., password=PASSWORD, email="a@b.c"), person(username="bob")]
    first = users_filter.trainyard_fixed_users(people, "token-secret")
    users_filter._hash.cache_clear()
    assert users_filter.trainyard_fixed_users(people, "token-secret") == first
    assert first[1] == {"username": "bob", "name": "Alice Doe", "password_hash": HASH}
    assert set(first[0]) == {"username", "name", "password_hash"}, "the official server refuses other keys"
    hashed = base64.b64decode(first[0]["password_hash"])
    assert hashed.startswith(b"$2b$12$")
    assert bcrypt.checkpw(PASSWORD.encode(), hashed)
    assert users_filter.trainyard_user_problems(first, "one") == []
    again = [person(username=name, password_hash=..., password=PASSWORD) for name in ("alice", "carol")]
    salts = {user["password_hash"] for user in users_filter.trainyard_fixed_users(again, "token-secret")}
    salts |= {user["password_hash"] for user in users_filter.trainyard_fixed_users(again[:1], "another-secret")}
    assert len(salts) == 3, "the salt depends on the site and the person"


def test_no_plain_password_is_hashed_without_the_sites_secret() -> None:
    with pytest.raises(Exception, match=r"token secret; run ansible/secrets\.yml"):
        users_filter.trainyard_fixed_users([person(password_hash=..., password=PASSWORD)], "")
    assert users_filter.trainyard_fixed_users([person()], "") == [
        {"username": "alice", "name": "Alice Doe", "password_hash": HASH}
    ]


# --- their keys, on a real server ------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    return {**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)


class Team:
    """A server with people, and the module that keeps their keys."""

    def __init__(self, folder: Path) -> None:
        self.server = Process(folder / "server")
        self.folder = folder / "users"
        self.output = ""

    def start(self, *names: str) -> None:
        people = ", ".join(f'{{username: "{name}", password: "{HASH}", name: "{name.title()} Doe"}}' for name in names)
        write_config(self.server.folder / "config", users=people)
        self.server.start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.server.api}"

    def keep(self, *users: str, check: bool = False, **changes: Any) -> dict[str, Any]:
        arguments = {
            "api_url": self.api,
            "web_url": "http://page",
            "files_url": "http://files",
            "access_key": "SYSKEY",
            "secret_key": "SYSSECRET",
            "folder": str(self.folder),
            "users": list(users),
            "timeout": 0,
            **changes,
        }
        given = json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}})
        command = [sys.executable, "-c", MODULE, str(ROOT / "ansible/plugins")]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
        self.output += done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def file(self, username: str) -> Path:
        return self.folder / username / "clearml.conf"

    def pair(self, username: str) -> tuple[str, str]:
        api = pyhocon.ConfigFactory.parse_file(str(self.file(username)))["api"]
        return api["credentials.access_key"], api["credentials.secret_key"]

    def call(self, username: str, endpoint: str, /, **arguments: Any) -> Any:
        answer = requests.post(f"{self.api}/{endpoint}", json=arguments, auth=(username, PASSWORD), timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def keys(self, username: str) -> dict[str, str | None]:
        pairs = self.call(username, "auth.get_credentials")["credentials"]
        return {pair["access_key"]: pair.get("label") for pair in pairs}

    def works(self, pair: tuple[str, str]) -> bool:
        return requests.post(f"{self.api}/auth.login", json={}, auth=pair, timeout=20).status_code == 200


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    team = Team(tmp_path)
    team.start("alice", "bob")
    yield team
    team.server.stop()


def states(result: dict[str, Any]) -> dict[str, str]:
    return {user["username"]: user["state"] for user in result["users"]}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_each_gets_a_pair_that_works_and_keeps_it(team: Team) -> None:
    check = team.keep("alice", "bob", check=True)
    assert check["changed"]
    assert states(check) == {"alice": "made", "bob": "made"}
    assert not team.folder.exists()
    assert team.keys("alice") == {}

    made = team.keep("alice", "bob")
    assert made["changed"]
    assert states(made) == {"alice": "made", "bob": "made"}
    assert made["users"][0]["id"] == user_id("alice")
    assert [mode(team.folder), mode(team.folder / "alice"), mode(team.file("alice"))] == [0o700, 0o700, 0o600]
    alice = team.pair("alice")
    assert team.works(alice)
    assert team.keys("alice") == {alice[0]: LABEL}
    asked = requests.post(f"{team.api}/users.get_current_user", json={}, auth=alice, timeout=20).json()
    assert asked["data"]["user"]["name"] == "Alice Doe"
    api = pyhocon.ConfigFactory.parse_file(str(team.file("alice")))["api"]
    assert (api["web_server"], api["api_server"], api["files_server"]) == ("http://page", team.api, "http://files")
    assert "verify_certificate" not in api

    before = team.file("alice").stat()
    second = team.keep("alice", "bob")
    assert not second["changed"]
    assert states(second) == {"alice": "kept", "bob": "kept"}
    assert team.file("alice").stat().st_mtime_ns == before.st_mtime_ns
    assert any(line.split() == ["alice", "kept", str(team.file("alice"))] for line in second["summary"])
    for secret in (*alice, *team.pair("bob"), "SYSSECRET"):
        assert secret not in team.output


def test_addresses_certificate_and_modes_are_put_right_with_the_same_pair(team: Team) -> None:
    team.keep("alice")
    alice = team.pair("alice")
    team.file("alice").chmod(0o644)
    assert states(team.keep("alice", check=True)) == {"alice": "updated"}
    assert mode(team.file("alice")) == 0o644
    assert states(team.keep("alice")) == {"alice": "updated"}
    assert mode(team.file("alice")) == 0o600
    changes = {"web_url": "https://app.example.org", "ca_path": certifi.where()}
    assert states(team.keep("alice", **changes)) == {"alice": "updated"}
    assert not team.keep("alice", **changes)["changed"]
    tree = pyhocon.ConfigFactory.parse_file(str(team.file("alice")))
    assert tree["api"]["web_server"] == "https://app.example.org"
    place = f"{Path.home()}/clearml-ca.pem"
    assert tree["api"]["verify_certificate"] == tree["environment"]["CLEARML_API_HOST_VERIFY_CERT"] == place
    assert tree["sdk"]["apply_environment"]
    assert team.file("alice").with_name("clearml-ca.pem").read_text() == Path(certifi.where()).read_text()
    assert team.pair("alice") == alice
    assert team.keys("alice") == {alice[0]: LABEL}


def test_everybody_knows_the_package_indexes_of_experiments(team: Team) -> None:
    team.keep("alice")
    alice = team.pair("alice")
    indexes = ["https://user:pass-word@mirror.example.org/simple", "https://other.example.org/simple"]
    assert states(team.keep("alice", package_indexes=indexes)) == {"alice": "updated"}
    tree = pyhocon.ConfigFactory.parse_file(str(team.file("alice")))
    wanted = ["https://mirror.example.org/simple", "https://other.example.org/simple"]
    assert tree["agent.package_manager.extra_index_url"] == wanted
    assert team.pair("alice") == alice
    assert "pass-word" not in team.file("alice").read_text() + team.output
    # As clearml-client reads it.
    script = "from clearml_client._reproduce import _site_indexes; print(_site_indexes())"
    variables = {**os.environ, "CLEARML_CONFIG_FILE": str(team.file("alice"))}
    command = [sys.executable, "-W", "ignore", "-c", script]
    assert subprocess.check_output(command, env=variables, text=True).strip() == str(wanted)


def test_rotation_replaces_the_file_and_revokes_the_old_pair(team: Team) -> None:
    team.keep("alice", "bob")
    own = team.call("alice", "auth.create_credentials", label="laptop")["credentials"]["access_key"]
    old, bob = team.pair("alice"), team.pair("bob")
    assert states(team.keep("alice", "bob", rotate="alice", check=True)) == {"alice": "rotated", "bob": "kept"}
    assert team.pair("alice") == old
    assert states(team.keep("alice", "bob", rotate="alice")) == {"alice": "rotated", "bob": "kept"}
    new = team.pair("alice")
    assert team.works(new)
    assert not team.works(old)
    assert team.keys("alice") == {own: "laptop", new[0]: LABEL}, "what people made themselves is theirs"
    assert team.pair("bob") == bob
    assert states(team.keep("alice", "bob", rotate=["all"])) == {"alice": "rotated", "bob": "rotated"}
    assert not team.works(bob)
    for secret in (*old, *new, *bob):
        assert secret not in team.output

    told = team.keep("alice", "bob", rotate="alice,carol")
    assert told["failed"]
    assert "rotate names 'carol', who is not in clearml_users: alice, bob" in told["msg"]
    assert states(team.keep("alice", "bob")) == {"alice": "kept", "bob": "kept"}


def test_who_left_loses_folder_and_all_keys(team: Team) -> None:
    team.keep("alice", "bob")
    bob = team.pair("bob")
    team.call("bob", "auth.create_credentials", label="laptop")
    assert states(team.keep("alice", check=True)) == {"alice": "kept", "bob": "removed"}
    assert team.works(bob)
    removed = team.keep("alice")
    assert states(removed) == {"alice": "kept", "bob": "removed"}
    told = removed["summary"][-1]
    assert told.startswith(f"bob: keys revoked; their experiments stay, under the user id {user_id('bob')}.")
    assert not (team.folder / "bob").exists()
    assert team.keys("bob") == {}
    assert not team.works(bob)
    assert not team.keep("alice")["changed"]

    # The account may be gone before: server.yml ran first.
    team.keep("alice", "bob")
    team.server.stop()
    team.start("alice")
    assert states(team.keep("alice")) == {"alice": "kept", "bob": "removed"}
    assert not (team.folder / "bob").exists()


def test_what_others_have_in_the_folder_of_the_files_stays(team: Team) -> None:
    team.keep("alice", "bob")
    (team.folder / "bob/notes.txt").write_text("mine")
    # A person's home, not a folder of ours: somebody wrote /home into clearml_users_folder.
    (team.folder / "dave").mkdir()
    (team.folder / "dave/clearml.conf").write_text("api {}\n")
    elsewhere = team.folder.parent / "elsewhere"
    shutil.copytree(team.folder / "bob", elsewhere)
    (team.folder / "carol").symlink_to(elsewhere)
    assert states(team.keep("alice")) == {"alice": "kept", "bob": "removed"}
    assert [path.name for path in (team.folder / "bob").iterdir()] == ["notes.txt"]
    assert (team.folder / "dave/clearml.conf").exists()
    assert (elsewhere / "clearml.conf").exists()


def test_a_stale_key_is_replaced_and_a_stray_one_revoked(team: Team) -> None:
    team.keep("alice")
    stale = team.pair("alice")
    team.call("alice", "auth.revoke_credentials", access_key=stale[0])
    assert states(team.keep("alice")) == {"alice": "made"}
    new = team.pair("alice")
    assert new != stale
    assert team.keys("alice") == {new[0]: LABEL}

    team.call("alice", "auth.create_credentials", label=LABEL)  # as a run that broke off leaves it
    result = team.keep("alice")
    assert result["changed"]
    assert result["revoked"] == 1
    assert team.pair("alice") == new
    assert team.keys("alice") == {new[0]: LABEL}

    # A file that holds another's pair is no file of alice.
    team.keep("alice", "bob")
    team.file("alice").write_text(team.file("bob").read_text())
    assert states(team.keep("alice", "bob")) == {"alice": "made", "bob": "kept"}
    assert team.pair("alice")[0] in team.keys("alice")


def test_failures_are_told_in_clear_words_and_change_nothing(team: Team) -> None:
    told = team.keep("alice", "carol")
    assert told["failed"]
    assert "the server does not know carol yet; run ansible/server.yml first" in told["msg"]
    assert not team.folder.exists()
    assert states(team.keep("alice", "carol", check=True)) == {"alice": "made", "carol": "made"}

    told = team.keep("alice", secret_key="WRONGSECRET")
    assert told["failed"]
    assert "auth.login: " in told["msg"]

    # A place where nothing can be written: the new pair does not stay on the server.
    team.folder.mkdir(mode=0o700)
    (team.folder / "alice").write_text("in the way")
    told = team.keep("alice")
    assert told["failed"]
    assert team.keys("alice") == {}
    for secret in ("SYSSECRET", "WRONGSECRET", "Traceback"):
        assert secret not in team.output


def test_the_playbook_does_it_for_a_site_and_tells_nothing_secret(team: Team, tmp_path: Path) -> None:
    inventory = tmp_path / "site"
    (inventory / "group_vars/all").mkdir(parents=True)
    variables: dict[str, Any] = {
        "clearml_server_host": "127.0.0.1",
        **{f"clearml_server_{name}_port": getattr(team.server, name) for name in ("api", "web", "files")},
        "clearml_server_credentials": {"apiserver": {"key": "SYSKEY", "secret": "SYSSECRET"}},
        "clearml_users": [
            person(password_hash=..., password="a-long-plain-password"),
            person(username="bob", name="Bob", password_hash=HASH),
        ],
    }
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    groups = {"clearml_server": {"hosts": {"one": host}}}
    (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))

    def play(*arguments: str) -> tuple[int, str]:
        (inventory / "group_vars/all/site.yml").write_text(yaml.safe_dump(variables))
        # This inventory has no more than the playbook needs.
        given = ["-i", str(inventory), "-e", "preflight_inventory_checked=true", *arguments]
        done = tool("ansible-playbook", "-vvv", str(ROOT / "ansible/users.yml"), *given)
        said = done.stdout + done.stderr
        for secret in ("a-long-plain-password", HASH, "SYSSECRET"):
            assert secret not in said
        return done.returncode, said

    code, said = play()
    assert code == 0, said
    team.folder = inventory / "users"
    assert f"alice  made  {team.file('alice')}" in said
    assert team.works(team.pair("alice"))
    code, said = play()
    assert code == 0, said
    assert "changed=0" in said
    assert team.pair("alice")[1] not in said
    old = team.pair("alice")
    # No role has deployed this server: its logins cannot be ended (tests/infra/server).
    code, said = play("-e", "clearml_users_rotate=alice", "-e", "clearml_users_end_logins=false")
    assert code == 0, said
    assert "changed=1" in said
    assert not team.works(old)

    variables["clearml_users"][1]["password_hash"] = "bobs-plain-words"
    variables["clearml_users"].append(person(username="Alice"))
    code, said = play()
    assert code != 0
    assert "one: clearml_users[1] (bob) has a password_hash (value hidden) that is not base64; write base64 of" in said
    assert "which clearml_users[0] (alice) has too" in said
    assert "bobs-plain-words" not in said
    variables["clearml_users"] = {"alice": {"password": "a-long-plain-password"}}
    code, said = play()
    assert code != 0
    assert "one: clearml_users is not a list; write a list of {username, name, password_hash}, or []" in said


def test_the_files_of_people_are_no_inventory(tmp_path: Path) -> None:
    (tmp_path / "users/alice").mkdir(parents=True)
    (tmp_path / "users/alice/clearml.conf").write_text("api {\n}\n")
    (tmp_path / "hosts.yml").write_text("all: {hosts: {one: {}}}\n")
    done = tool("ansible-inventory", "-i", str(tmp_path), "--list")
    assert "Unable to parse" not in done.stderr, (
        "ansible.cfg needs, below [inventory]: ignore_patterns = ^(users|files)$"
    )


# --- a new site ------------------------------------------------------------------------------------------------------


def new_site(root: Path, name: str, *arguments: str) -> tuple[int, str]:
    given = json.dumps({"new_site_name": name, "new_site_root": str(root)})
    done = tool("ansible-playbook", "-i", "localhost,", str(ROOT / "ansible/new_site.yml"), "-e", given, *arguments)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_site_is_complete_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    code, said = new_site(tmp_path, "team", "--check")
    assert code == 0, said
    assert list(tmp_path.iterdir()) == []
    code, said = new_site(tmp_path, "team")
    assert code == 0, said
    assert "make up SITE=team" in said
    site = tmp_path / "team"
    example = tree(ROOT / "inventory/example")
    made = tree(site)
    assert set(made) == set(example) | {".vault_password", "group_vars/all/vault.yml"}
    differing = {name for name in example if made[name] != example[name]}
    assert differing == {"group_vars/all/site.yml"}
    assert "\nsite_name: team\n" in made["group_vars/all/site.yml"].decode()
    assert made["group_vars/all/vault.yml"].startswith(b"$ANSIBLE_VAULT;")
    assert [mode(site / ".vault_password"), mode(site / "group_vars/all/vault.yml")] == [0o600, 0o600]
    vault = str(site / "group_vars/all/vault.yml")
    opened = tool("ansible-vault", "view", "--vault-password-file", str(site / ".vault_password"), vault)
    token_secret = yaml.safe_load(opened.stdout)["vault_clearml_server_token_secret"]
    assert len(token_secret) == 54
    assert token_secret not in said

    code, said = new_site(tmp_path, "team")
    assert code == 0, said
    assert "changed=0" in said
    assert tree(site) == made

    # What the operator changed stays; what is missing comes back, but no second list of hosts.
    (site / "group_vars/all/dataset_cache.yml").write_text("---\ndataset_cache_path: /elsewhere\n")
    (site / "group_vars/all/docker_engine.yml").unlink()
    (site / "hosts.yml").rename(site / "hosts.ini")
    code, said = new_site(tmp_path, "team")
    assert code == 0, said
    assert "/elsewhere" in (site / "group_vars/all/dataset_cache.yml").read_text()
    assert (site / "group_vars/all/docker_engine.yml").exists()
    assert not (site / "hosts.yml").exists()
    assert (site / "group_vars/all/vault.yml").read_bytes() == made["group_vars/all/vault.yml"]


def test_a_copy_by_hand_is_completed_under_its_own_name(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "inventory/example", tmp_path / "on")
    code, said = new_site(tmp_path, "on")
    assert code == 0, said
    assert yaml.safe_load((tmp_path / "on/group_vars/all/site.yml").read_text())["site_name"] == "on"
    assert (tmp_path / "on/.vault_password").exists()


@pytest.mark.parametrize("name", ["", "local", "Example", "my team", "../team", "-team", "té", "a\n"])
def test_a_bad_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    root = tmp_path / "inventory"
    root.mkdir()
    code, said = new_site(root, name)
    assert code != 0
    assert "write letters, digits, - and _ only" in said
    assert list(tmp_path.rglob("*")) == [root]


def test_a_folder_that_is_no_site_is_refused(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team/notes").write_text("mine")
    code, said = new_site(tmp_path, "team")
    assert code != 0
    assert "is no site's folder (it has no group_vars); write another name, or move it away" in said
    assert tree(tmp_path) == {"team/notes": b"mine"}
