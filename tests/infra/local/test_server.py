"""The server of flavor lite: its doors, its container, its secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import secrets_of
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

CONTAINER = "clearml-server-lite-1"
PORTS = {"api": 8008, "web": 8080, "files": 8081}


@pytest.fixture(scope="module")
def container(host: Host, root: str) -> dict[str, Any]:
    return dict(json.loads(host.run_expect([0], f"{root}docker inspect {CONTAINER}").stdout)[0])


@pytest.fixture(scope="module")
def env(host: Host, root: str) -> dict[str, str]:
    """The settings that the playbook wrote."""
    text = host.run_expect([0], f"{root}cat /opt/clearml/compose/server.env").stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def ask(host: Host, url: str, *options: str) -> tuple[int, str]:
    """Ask from the host itself, with what every host has: Python."""
    code = (
        "import sys,urllib.request as r,urllib.error as e\n"
        "u,*h=sys.argv[1:]\n"
        "q=r.Request(u,headers=dict(x.split(': ',1) for x in h))\n"
        "try: a=r.build_opener(r.ProxyHandler({})).open(q,timeout=10)\n"
        "except e.HTTPError as x: a=x\n"
        "print(a.status);print(a.read().decode())"
    )
    words = " ".join(f"'{word}'" for word in (url, *options))
    status, _, body = host.run_expect([0], f'python3 -c "{code}" {words}').stdout.partition("\n")
    return int(status), body


@pytest.mark.parametrize("port", PORTS.values(), ids=PORTS)
def test_it_listens(host: Host, port: int) -> None:
    assert host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_the_api_answers_in_its_envelope(host: Host, env: dict[str, str]) -> None:
    status, body = ask(host, f"{env['CLEARML_SERVER_API_URL']}/debug.ping")
    assert status == 200
    assert json.loads(body)["meta"]["result_code"] == 200


def test_nobody_comes_in_without_credentials(host: Host, env: dict[str, str]) -> None:
    for headers in ([], ["Authorization: Bearer abc"], ["Authorization: Basic YWRtaW46YWRtaW4="]):
        status, body = ask(host, f"{env['CLEARML_SERVER_API_URL']}/tasks.get_all", *headers)
        assert status == 401
        assert json.loads(body)["meta"]["result_code"] == 401
    assert ask(host, f"{env['CLEARML_SERVER_FILES_URL']}/any/file.txt")[0] == 401
    status, page = ask(host, f"{env['CLEARML_SERVER_WEB_URL']}/workers")
    assert "Log in" in page


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
    lines = host.run_expect([0], f"{root}find /opt/clearml/config -printf '%m %U %p\\n'").stdout.splitlines()
    assert len(lines) >= 5
    for line in lines:
        mode, uid, path = line.split(" ", 2)
        assert mode in {"700", "400"}, line
        assert uid == env["CLEARML_SERVER_UID"], path


def test_no_secret_is_seen(host: Host, root: str, variables: dict[str, Any]) -> None:
    secrets = secrets_of(variables)
    assert len(secrets) >= 5, "the vault was not read"
    # What anybody on the host can read: a folder that keeps others out keeps its files too, as the agent's cache does.
    files = "find /opt/clearml /etc/docker -type d ! -perm -o+x -prune -o -type f -perm -o+r -size -200k -exec cat {} +"
    seen = {
        "docker inspect": host.run_expect([0], f"{root}docker ps -aq | xargs {root}docker inspect").stdout,
        "process list": host.run_expect([0], "ps -eo args --no-headers").stdout,
        "server's log": host.run_expect([0], f"{root}docker logs {CONTAINER} 2>&1").stdout,
        "readable files": host.run_expect([0], f"{root}{files} | tr -cd '[:print:]'").stdout,
    }
    for where, text in seen.items():
        for name, secret in secrets.items():
            assert secret not in text, f"{name} is in {where}"
