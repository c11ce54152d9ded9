"""The official stack on one host: its containers, its doors, its databases.

Changes nothing: `make audit` runs it against a live site.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import jwt
import pytest
from audit import (
    PROJECT,
    addresses,
    admin,
    allowed_origin,
    ask,
    logins_have_an_epoch,
    no_secret_is_seen,
    nobody_comes_in,
)
from leftovers import left_files
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


def test_the_file_server_masks_too(host: Host, root: str) -> None:
    settings = host.run_expect([0], f"{root}cat /opt/clearml/config/logging.conf").stdout
    for name in ("standard", "default"):
        assert re.search(rf"\b{name} {{\s*class: \"trainyard_logging.MaskingFormatter\"", settings), (
            f"passwords may be in the logs: config/logging.conf does not name the formatter {name!r}; run make deploy"
        )
    log = host.run_expect([0], f"{root}docker logs clearml-server-fileserver-1 2>&1").stdout
    assert "stand-in://user:" not in log, "the file server's log shows a password"


def test_the_schema_is_kept(host: Host, root: str) -> None:
    for service in ("apiserver", "async_delete"):
        kept = host.run(
            f"{root}docker exec clearml-server-{service}-1 test -s /opt/clearml/apiserver/schema/services/_cache.json"
        )
        assert kept.rc == 0, f"{service} parses the API's schema again in each process at each start; run make deploy"


def test_the_vaults_secret_alone_signs_no_token(host: Host, variables: dict[str, Any]) -> None:
    logins_have_an_epoch(host, variables, addresses(variables)["api"], addresses(variables)["files"])


def test_who_may_log_in_is_in_the_inventory(host: Host, root: str, variables: dict[str, Any]) -> None:
    people = variables.get("clearml_users", [])
    if not isinstance(people, list):
        pytest.skip("clearml_users is worked out elsewhere")
    known = json.loads(host.run_expect([0], f"{root}cat /opt/clearml/config/logins.json").stdout)["logins"]
    deployed = {name.removeprefix("user ") for name in known if name.startswith("user ")}
    wanted = {person["username"] for person in people} | {variables.get("site_admin_user", "admin")}
    assert deployed == wanted, "the server has other users than clearml_users; run make deploy, then make users"


def test_a_login_ends(host: Host, variables: dict[str, Any]) -> None:
    api = addresses(variables)["api"]
    headers = admin(host, variables)
    claims = jwt.decode(headers["Authorization"].split()[1], options={"verify_signature": False})
    longest = int(variables.get("clearml_server_token_seconds", 86400))
    assert claims["exp"] - claims["iat"] <= longest, "a login lasts longer than clearml_server_token_seconds"
    year = json.dumps({"expiration_sec": 31536000})
    status, text = ask(host, f"{api}/auth.login", "POST", year, {**headers, "Content-Type": "application/json"})
    if status == 200:
        claims = jwt.decode(json.loads(text)["data"]["token"], options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] <= longest, "anybody who is logged in gets a token for a year"


def test_a_logout_ends_access_to_files(host: Host, variables: dict[str, Any]) -> None:
    headers = admin(host, variables)
    file = f"{addresses(variables)['files']}/no/such/file"
    assert ask(host, file, headers=headers)[0] == 404
    assert ask(host, f"{addresses(variables)['api']}/auth.logout", "POST", "{}", headers)[0] == 200
    deadline = time.monotonic() + 60
    while ask(host, file, headers=headers)[0] != 401:
        assert time.monotonic() < deadline, (
            "the file server believes a token long after its end (upstream: 12 hours): "
            "auth.tokens_cache_threshold_sec of config/fileserver.conf; run make deploy"
        )
        time.sleep(1)


@pytest.mark.parametrize("service", ["api", "files"])
def test_no_page_of_others_uses_a_login(host: Host, variables: dict[str, Any], service: str) -> None:
    url = addresses(variables)[service] + ("/debug.ping" if service == "api" else "/")
    for origin in ("https://elsewhere.example", "null", f"{addresses(variables)['web']}.elsewhere.example"):
        assert not allowed_origin(host, url, origin), f"a page of {origin} may read {url} with a person's login"


def test_no_link_of_others_uses_a_login(host: Host, variables: dict[str, Any]) -> None:
    if not variables.get("clearml_server_domain"):
        pytest.skip("on plain ports nothing stands before the API: docs/security.md")
    url = f"{addresses(variables)['api']}/debug.ping"
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(host, url, headers={**link, "Cookie": "clearml_token_basic=x"})[0] == 403
    assert ask(host, url, headers=link)[0] == 200
    assert ask(host, url, headers={**link, "Sec-Fetch-Site": "same-site", "Cookie": "clearml_token_basic=x"})[0] == 200


def test_the_page_may_call_the_api(host: Host, root: str, variables: dict[str, Any]) -> None:
    env = host.run_expect([0], f"{root}cat /opt/clearml/compose/server.env").stdout
    page = re.findall(r"^CLEARML_SERVER_WEB_URL=(.*)$", env, re.M)[0]
    assert allowed_origin(host, f"{addresses(variables)['api']}/debug.ping", page) == page


def test_no_file_is_left_of_experiments_that_are_gone(host: Host, root: str, variables: dict[str, Any]) -> None:
    folder = "/opt/clearml/data/fileserver"
    listed = host.run_expect([0], f"{root}find {folder} -type f ! -path '*/.stand-in/*' -printf '%P\\n'")
    left = left_files(listed.stdout.splitlines())
    headers = {**admin(host, variables), "Content-Type": "application/json"}
    ids = sorted(left)
    for start in range(0, len(ids), 500):
        wish = {"id": ids[start : start + 500], "only_fields": ["id"], "page": 0, "page_size": 500}
        status, text = ask(host, f"{addresses(variables)['api']}/tasks.get_all", "POST", json.dumps(wish), headers)
        assert status == 200, text
        for task in json.loads(text)["data"]["tasks"]:
            del left[task["id"]]
    files = [path for paths in left.values() for path in paths]
    assert not files, (
        f"{len(files)} files of deleted experiments lie below {folder}, because the server does not find names with "
        f"+ % # or ?; delete them by hand: {files[:10]}"
    )


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
