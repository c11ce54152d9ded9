"""The server of flavor lite: its doors, its container, its secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from audit import ask, logins_have_an_epoch, no_secret_is_seen, nobody_comes_in
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

CONTAINER = "clearml-server-lite-1"
PORTS = {"api": 8008, "web": 8080, "files": 8081}


@pytest.fixture(scope="module", autouse=True)
def _lite(variables: dict[str, Any]) -> None:
    if variables.get("clearml_server_flavor", "lite") != "lite":
        pytest.skip("the site's server is of flavor official")


@pytest.fixture(scope="module")
def container(host: Host, root: str) -> dict[str, Any]:
    return dict(json.loads(host.run_expect([0], f"{root}docker inspect {CONTAINER}").stdout)[0])


@pytest.fixture(scope="module")
def env(host: Host, root: str) -> dict[str, str]:
    """The settings that the playbook wrote."""
    text = host.run_expect([0], f"{root}cat /opt/clearml/compose/server.env").stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


@pytest.mark.parametrize("port", PORTS.values(), ids=PORTS)
def test_it_listens(host: Host, port: int) -> None:
    assert host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_the_api_answers_in_its_envelope(host: Host, env: dict[str, str]) -> None:
    status, body = ask(host, f"{env['CLEARML_SERVER_API_URL']}/debug.ping")
    assert status == 200
    assert json.loads(body)["meta"]["result_code"] == 200


def test_nobody_comes_in_without_credentials(host: Host, env: dict[str, str]) -> None:
    nobody_comes_in(host, env["CLEARML_SERVER_API_URL"], env["CLEARML_SERVER_FILES_URL"])
    assert "Log in" in ask(host, f"{env['CLEARML_SERVER_WEB_URL']}/workers")[1]


def test_logins_end_with_their_epoch(host: Host, env: dict[str, str], variables: dict[str, Any]) -> None:
    logins_have_an_epoch(host, variables, env["CLEARML_SERVER_API_URL"], env["CLEARML_SERVER_FILES_URL"])


def test_it_is_healthy_and_comes_back(container: dict[str, Any]) -> None:
    assert container["State"]["Health"]["Status"] == "healthy"
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"


def test_its_container_may_do_nothing_but_serve(container: dict[str, Any], host: Host, root: str) -> None:
    limits = container["HostConfig"]
    assert limits["ReadonlyRootfs"] is True
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["Privileged"] is False
    assert any("no-new-privileges" in option for option in limits["SecurityOpt"])
    assert limits["Memory"] > 0
    assert not any(bind.startswith("/var/run/docker.sock") for bind in limits["Binds"] or [])
    uids = host.run_expect([0], f"{root}docker top {CONTAINER} -eo pid,uid").stdout.split()[3::2]
    assert uids
    assert "0" not in uids


def test_it_keeps_little_memory(host: Host, root: str) -> None:
    pid = host.run_expect([0], f"{root}docker top {CONTAINER} -eo pid,rss,args").stdout
    server = [line.split(None, 2) for line in pid.splitlines()[1:] if "trainyard-lite serve" in line]
    assert all(int(rss) < 400_000 for _, rss, _ in server)


def test_configuration_belongs_to_the_server_alone(host: Host, root: str, env: dict[str, str]) -> None:
    lines = host.run_expect(
        [0], f"{root}find /opt/clearml/config ! -name .trainyard-site -printf '%m %U %p\\n'"
    ).stdout.splitlines()
    assert len(lines) >= 5
    for line in lines:
        mode, uid, path = line.split(" ", 2)
        assert mode in {"700", "400"}, line
        assert uid == env["CLEARML_SERVER_UID"], path


def test_folders_carry_the_sites_mark(host: Host, root: str, variables: dict[str, Any]) -> None:
    """What destroy.yml goes by; whoever else could write it would decide what is removed."""
    for folder in ("", "/compose", "/config", "/data", "/logs"):
        path = f"{variables.get('clearml_server_root', '/opt/clearml')}{folder}"
        mark = json.loads(host.run_expect([0], f"{root}cat {path}/.trainyard-site").stdout)
        assert mark["site"] == variables["site_name"], path
        assert mark["folder"] == f"clearml_server_root{folder}", path
        assert host.run_expect([0], f"{root}stat -c '%a %u' {path}/.trainyard-site").stdout.split() == ["644", "0"]


def test_no_secret_is_seen(host: Host, root: str, variables: dict[str, Any]) -> None:
    no_secret_is_seen(host, root, variables)
