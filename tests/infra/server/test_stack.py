"""The official stack on one host: its containers, its doors, its databases.

Changes nothing: `make audit` runs it against a live site.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from audit import PROJECT, addresses, ask, no_secret_is_seen, nobody_comes_in
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

SERVICES = ["apiserver", "async_delete", "caddy", "elasticsearch", "fileserver", "mongo", "redis", "webserver"]
# What a container still has, and why: docs/security.md.
ROOT_USER = {"webserver"}
WRITABLE_ROOT = {"webserver", "elasticsearch"}
CAPABILITIES = {"webserver": {"CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETGID", "SETUID"}}
# The variable that puts a database elsewhere: this host has none of its own then.
ELSEWHERE = {
    "mongo": "clearml_server_mongo_uri",
    "elasticsearch": "clearml_server_elasticsearch_url",
    "redis": "clearml_server_redis_url",
}


@pytest.fixture(scope="module", autouse=True)
def _official(variables: dict[str, Any]) -> None:
    if variables.get("clearml_server_flavor") != "official":
        pytest.skip("the site's server is of flavor lite")


@pytest.fixture(scope="module")
def own(variables: dict[str, Any]) -> set[str]:
    """The services that this site has on its server."""
    left_out = {service for service, variable in ELSEWHERE.items() if variables.get(variable)}
    return set(SERVICES) - left_out - (set() if variables.get("clearml_server_domain") else {"caddy"})


@pytest.fixture(scope="module")
def containers(host: Host, root: str) -> dict[str, dict[str, Any]]:
    """The stack's containers by service."""
    ids = host.run_expect([0], f"{root}docker ps -q --filter label={PROJECT}").stdout.split()
    found = json.loads(host.run_expect([0], f"{root}docker inspect {' '.join(ids)}").stdout)
    return {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in found}


def test_the_services_of_the_site_run_and_no_others(containers: dict[str, dict[str, Any]], own: set[str]) -> None:
    assert set(containers) == own


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_what_it_needs_and_no_more(
    containers: dict[str, dict[str, Any]], own: set[str], service: str
) -> None:
    if service not in own:
        pytest.skip("not of this site")
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


def test_databases_are_on_the_inner_network_only(
    containers: dict[str, dict[str, Any]], own: set[str], host: Host, root: str
) -> None:
    for service in own & set(ELSEWHERE):
        assert list(containers[service]["NetworkSettings"]["Networks"]) == ["clearml-server_backend"]
        assert not containers[service]["HostConfig"]["PortBindings"]
    inner = json.loads(host.run_expect([0], f"{root}docker network inspect clearml-server_backend").stdout)[0]
    # The API server reaches databases elsewhere by this network.
    assert inner["Internal"] is (set(ELSEWHERE) <= own)


def test_only_the_doors_listen(host: Host, variables: dict[str, Any]) -> None:
    listening = {
        int(re.findall(r":(\d+)$", socket)[0])
        for socket in host.socket.get_listening_sockets()
        if socket.startswith("tcp")
    }
    published = {port for port in listening if port in {80, 443, 8008, 8080, 8081, 9200, 27017, 6379, 2019}}
    assert published == ({80, 443} if variables.get("clearml_server_domain") else {8008, 8080, 8081})


@pytest.mark.parametrize("service", ELSEWHERE)
def test_a_database_asks_for_the_password(host: Host, root: str, own: set[str], service: str) -> None:
    if service not in own:
        pytest.skip("it is elsewhere")
    ask_it = {
        "mongo": 'import pymongo; pymongo.MongoClient("mongo", serverSelectionTimeoutMS=5000).backend.x.find_one()',
        "redis": 'import redis; redis.Redis("redis", socket_timeout=5).get("x")',
        "elasticsearch": 'import requests as r; r.get("http://elasticsearch:9200/_cat", timeout=5).raise_for_status()',
    }[service]
    done = host.run(f"{root}docker exec clearml-server-apiserver-1 python3 -c '{ask_it}'")
    assert done.rc != 0
    assert re.search(r"requires authentication|Authentication required|401", done.stderr), done.stderr


def test_nobody_comes_in_without_credentials(host: Host, variables: dict[str, Any]) -> None:
    nobody_comes_in(host, addresses(variables)["api"], addresses(variables)["files"])


def test_no_secret_is_seen(host: Host, root: str, variables: dict[str, Any]) -> None:
    no_secret_is_seen(host, root, variables)


def test_the_log_masks_what_the_server_writes(host: Host, root: str) -> None:
    log = host.run_expect([0], f"{root}docker logs clearml-server-apiserver-1 2>&1").stdout
    assert "Registering connection to backend-db (mongodb" in log
    assert re.search(r"backend-db \(mongodb(\+srv)?://\*\*\*@", log)


def test_tls_leads_everybody_to_https(host: Host, variables: dict[str, Any]) -> None:
    if not variables.get("clearml_server_domain"):
        pytest.skip("the site has plain ports")
    for url in addresses(variables).values():
        code = (
            "import http.client, sys; c = http.client.HTTPConnection(sys.argv[1]); c.request('GET', '/');"
            "r = c.getresponse(); print(r.status, r.getheader('Location'))"
        )
        assert host.check_output("python3 -c %s %s", code, url[8:]).split() == ["308", f"{url}/"]
    status, _ = ask(host, f"{addresses(variables)['web']}/")
    assert status == 200
