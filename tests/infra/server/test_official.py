"""The official stack on one host: its containers, its doors, its databases; then what a year brings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from audit import ask, basic, bearer, no_secret_is_seen, nobody_comes_in, token
from conftest import ROOT
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

PROJECT = "com.docker.compose.project=clearml-server"
SERVICES = ["apiserver", "async_delete", "caddy", "elasticsearch", "fileserver", "mongo", "redis", "webserver"]
# What a container still has, and why: docs/security.md.
ROOT_USER = {"webserver"}
WRITABLE_ROOT = {"webserver", "elasticsearch"}
CAPABILITIES = {"webserver": {"CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETGID", "SETUID"}}


@pytest.fixture(scope="module")
def containers(host: Host, root: str) -> dict[str, dict[str, Any]]:
    """The stack's containers by service."""
    ids = host.run_expect([0], f"{root}docker ps -q --filter label={PROJECT}").stdout.split()
    found = json.loads(host.run_expect([0], f"{root}docker inspect {' '.join(ids)}").stdout)
    return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}


def urls(variables: dict[str, Any]) -> dict[str, str]:
    domain = variables["clearml_server_domain"]
    return {"api": f"https://api.{domain}", "web": f"https://app.{domain}", "files": f"https://files.{domain}"}


def admin(host: Host, variables: dict[str, Any], api: str = "") -> dict[str, str]:
    """The administrator's headers."""
    password = variables["vault_clearml_admin_password"]
    return bearer(token(host, api or urls(variables)["api"], "admin", password))


def play(inventory: Path, playbook: str, **extra: object) -> str:
    """Run a playbook as the operator does; return what it said."""
    command = [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, ROOT / "ansible" / playbook, "--diff"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [*command, "-e", json.dumps(extra)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def recreated(said: str) -> set[str]:
    """The services whose containers a run has made anew."""
    return set(re.findall(r"clearml-server-(\w+)-1", said))


def started(host: Host, root: str) -> dict[str, str]:
    """When each service was created: another time, another container."""
    command = f"{root}docker ps -a --filter label={PROJECT} --format '{{{{.Names}}}} {{{{.ID}}}}'"
    return dict(line.split() for line in host.run_expect([0], command).stdout.splitlines())


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_what_it_needs_and_no_more(containers: dict[str, dict[str, Any]], service: str) -> None:
    container = containers[service]
    limits = container["HostConfig"]
    assert container["State"]["Health"]["Status"] == "healthy"
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert limits["CapDrop"] == ["ALL"]
    assert {name.removeprefix("CAP_") for name in limits["CapAdd"] or []} == CAPABILITIES.get(service, set())
    assert limits["Privileged"] is False
    assert any("no-new-privileges" in option for option in limits["SecurityOpt"])
    assert limits["ReadonlyRootfs"] is (service not in WRITABLE_ROOT)
    assert (container["Config"]["User"] in {"root", "0"}) is (service in ROOT_USER)
    assert limits["Memory"] > 0
    assert limits["LogConfig"]["Config"]["max-file"]


def test_databases_are_on_the_inner_network_only(containers: dict[str, dict[str, Any]], host: Host, root: str) -> None:
    for service in ("mongo", "redis", "elasticsearch"):
        assert list(containers[service]["NetworkSettings"]["Networks"]) == ["clearml-server_backend"]
        assert not containers[service]["HostConfig"]["PortBindings"]
    inner = json.loads(host.run_expect([0], f"{root}docker network inspect clearml-server_backend").stdout)[0]
    assert inner["Internal"] is True


def test_only_the_doors_listen(host: Host) -> None:
    listening = {
        int(re.findall(r":(\d+)$", socket)[0])
        for socket in host.socket.get_listening_sockets()
        if socket.startswith("tcp")
    }
    published = {port for port in listening if port in {80, 443, 8008, 8080, 8081, 9200, 27017, 6379, 2019}}
    assert published == {80, 443}


@pytest.mark.parametrize("service", ["mongo", "redis", "elasticsearch"])
def test_a_database_asks_for_the_password(host: Host, root: str, service: str) -> None:
    ask_it = {
        "mongo": 'import pymongo; pymongo.MongoClient("mongo", serverSelectionTimeoutMS=5000).backend.x.find_one()',
        "redis": 'import redis; redis.Redis("redis", socket_timeout=5).get("x")',
        "elasticsearch": 'import requests as r; r.get("http://elasticsearch:9200/_cat", timeout=5).raise_for_status()',
    }[service]
    done = host.run(f"{root}docker exec clearml-server-apiserver-1 python3 -c '{ask_it}'")
    assert done.rc != 0
    assert re.search(r"requires authentication|Authentication required|401", done.stderr), done.stderr


def test_nobody_comes_in_without_credentials(host: Host, variables: dict[str, Any]) -> None:
    nobody_comes_in(host, urls(variables)["api"], urls(variables)["files"])


def test_no_secret_is_seen(host: Host, root: str, variables: dict[str, Any]) -> None:
    no_secret_is_seen(host, root, variables)


def test_the_log_masks_what_the_server_writes(host: Host, root: str) -> None:
    log = host.run_expect([0], f"{root}docker logs clearml-server-apiserver-1 2>&1").stdout
    assert "Registering connection to backend-db (mongodb://***@mongo" in log


def test_tls_leads_everybody_to_https(host: Host, variables: dict[str, Any]) -> None:
    for url in urls(variables).values():
        code = (
            "import http.client, sys; c = http.client.HTTPConnection(sys.argv[1]); c.request('GET', '/');"
            "r = c.getresponse(); print(r.status, r.getheader('Location'))"
        )
        assert host.check_output("python3 -c %s %s", code, url[8:]).split() == ["308", f"{url}/"]
    status, _ = ask(host, f"{urls(variables)['web']}/")
    assert status == 200


def test_a_large_file_goes_through_and_comes_back(host: Host, root: str, variables: dict[str, Any]) -> None:
    """No body limit: 200 MB in one request."""
    files = urls(variables)["files"]
    secret = admin(host, variables)["Authorization"]
    code = f"""
import hashlib, http.client, os, ssl, sys
host, token = "{files[8:]}", sys.stdin.read()
def connect(): return http.client.HTTPSConnection(host, context=ssl._create_unverified_context(), timeout=300)
data = os.urandom(1 << 20) * 200
head = b"--x\\r\\nContent-Disposition: form-data; name=\\"big/file.bin\\"; filename=\\"f\\"\\r\\n\\r\\n"
body = head + data + b"\\r\\n--x--\\r\\n"
head = {{"Authorization": token, "Content-Type": "multipart/form-data; boundary=x"}}
c = connect(); c.request("POST", "/", body, head)
r = c.getresponse(); print(r.status); r.read()
c = connect(); c.request("GET", "/big/file.bin", headers={{"Authorization": token}})
print(hashlib.sha256(c.getresponse().read()).digest() == hashlib.sha256(data).digest())
"""
    done = host.run("printf %s %s | python3 -c %s", "%s", secret, code)
    assert done.stdout.split() == ["200", "True"], done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_container_comes_back_with_its_data(
    host: Host, root: str, variables: dict[str, Any], service: str
) -> None:
    api = urls(variables)["api"]
    name = f"before {service} died {time.time()}"
    status, text = ask(
        host, f"{api}/projects.create", "POST", json.dumps({"name": name}),
        {**admin(host, variables), "Content-Type": "application/json"},
    )  # fmt: skip
    assert status == 200, text
    # Through the host's process table: what Docker itself kills, it takes for wanted and does not restart.
    pid = host.run_expect(
        [0], f"{root}docker inspect -f '{{{{.State.Pid}}}}' clearml-server-{service}-1"
    ).stdout.strip()
    host.run_expect([0], f"{root}kill -9 {pid}")
    deadline = time.monotonic() + 120
    while True:
        state = host.run(
            f"{root}docker inspect -f '{{{{.State.Health.Status}}}} {{{{.RestartCount}}}}' clearml-server-{service}-1"
        ).stdout.split()
        if state[0] == "healthy" and int(state[1]) > 0:
            break
        assert time.monotonic() < deadline, state
        time.sleep(2)
    status, text = ask(
        host, f"{api}/projects.get_all", "POST", json.dumps({"name": re.escape(name)}),
        {**admin(host, variables), "Content-Type": "application/json"},
    )  # fmt: skip
    assert [project["name"] for project in json.loads(text)["data"]["projects"]] == [name]


def test_a_check_shows_the_change_and_nothing_else(inventory: Path, host: Host, root: str) -> None:
    before = started(host, root)
    said = play(inventory, "server.yml", clearml_server_worker_timeout_seconds=301, ansible_check_mode_asked=True)
    after = started(host, root)
    assert {name for name in before if before[name] != after[name]} == {
        "clearml-server-apiserver-1",
        "clearml-server-async_delete-1",
    }, "only what reads services.conf is made anew"
    assert "+        default_worker_timeout_sec: 301" in said
    play(inventory, "server.yml")


def test_a_user_comes_and_goes(inventory: Path, host: Host, root: str, variables: dict[str, Any]) -> None:
    person = {"username": "zoe", "name": "Zoe Doe", "password": "a long enough password"}
    api = urls(variables)["api"]
    before = started(host, root)
    said = play(inventory, "server.yml", clearml_users=[person])
    after = started(host, root)
    assert {name for name in before if before[name] != after[name]} == {"clearml-server-apiserver-1"}
    assert person["password"] not in said
    assert ask(host, f"{api}/auth.login", headers=basic("zoe", person["password"]))[0] == 200
    play(inventory, "server.yml")
    assert ask(host, f"{api}/auth.login", headers=basic("zoe", person["password"]))[0] == 401


def test_a_rotated_secret_ends_old_tokens(inventory: Path, host: Host, variables: dict[str, Any]) -> None:
    api = urls(variables)["api"]
    old = admin(host, variables)
    assert ask(host, f"{api}/users.get_current_user", headers=old)[0] == 200
    play(
        inventory,
        "server.yml",
        clearml_server_token_secret="r" + "otated" * 8,
        clearml_server_redis_password="r" + "edis" * 8,
    )
    assert ask(host, f"{api}/users.get_current_user", headers=old)[0] == 401
    assert ask(host, f"{api}/users.get_current_user", headers=admin(host, variables))[0] == 200
    play(inventory, "server.yml")


def test_another_domain(inventory: Path, host: Host, variables: dict[str, Any]) -> None:
    play(inventory, "server.yml", clearml_server_domain="next.test")
    assert (
        ask(
            host,
            "https://api.next.test/users.get_current_user",
            headers=admin(host, variables, "https://api.next.test"),
        )[0]
        == 200
    )
    play(inventory, "server.yml")
    assert ask(host, f"{urls(variables)['api']}/debug.ping")[0] == 200


def test_a_reboot(host: Host, root: str, variables: dict[str, Any]) -> None:
    """Of the test host's container: systemd starts Docker, Docker starts the stack."""
    name = variables["inventory_hostname"]
    if variables.get("ansible_connection") != "docker":
        pytest.skip("a live host is not rebooted")
    headers = admin(host, variables)
    subprocess.run(["docker", "restart", "--time", "60", name], check=True, capture_output=True, timeout=180)
    # Docker writes /etc/hosts anew.
    address = host.run("hostname -I").stdout.split()[0]
    names = "app.lab.test api.lab.test files.lab.test app.next.test api.next.test files.next.test"
    host.run_expect([0], f"echo {address} {names} >>/etc/hosts")
    deadline = time.monotonic() + 240
    while True:
        done = host.run(f"{root}docker ps --filter health=healthy --format '{{{{.Names}}}}'")
        if len(done.stdout.split()) == len(SERVICES):
            break
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(3)
    assert ask(host, f"{urls(variables)['api']}/users.get_current_user", headers=headers)[0] == 200
