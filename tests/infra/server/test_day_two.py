"""What years bring to the official stack: trainings, large files, crashes, other settings, people and databases.

Only for test hosts: it kills, rotates, and moves the server about. Each test leaves the site as the inventory tells.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from audit import PROJECT, ROOT, addresses, admin, ask, basic, bearer, changed_tasks, play, token, train
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from test_stack import SERVICES
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

DATABASES = {"mongo", "elasticsearch", "redis"}
JSON = {"Content-Type": "application/json"}
# Makes projects until it is told to stop, and writes down those that the server has acknowledged.
LOAD = """
import json, os, ssl, sys, urllib.request
api, headers, name = json.loads(sys.stdin.read())
opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))
number = 0
while not os.path.exists("/run/load.stop"):
    number += 1
    body = json.dumps({"name": f"{name} {number}"}).encode()
    try:
        answer = opener.open(urllib.request.Request(f"{api}/projects.create", body, headers), timeout=10)
        if json.load(answer)["meta"]["result_code"] == 200:
            with open("/run/load.acknowledged", "a") as file:
                file.write(f"{name} {number}\\n")
    except (OSError, ValueError):
        pass
"""


# TLS before Elasticsearch, and a Redis with TLS alone.
DOOR = """{
    admin off
    auto_https off
}
:9243 {
    tls /e/cert.pem /e/key.pem
    reverse_proxy elsewhere-elastic:9200
}
"""
REDIS = """port 0
tls-port 6380
tls-cert-file /e/cert.pem
tls-key-file /e/key.pem
tls-ca-cert-file /e/ca.pem
tls-auth-clients no
requirepass elsewhere-password
"""


@pytest.fixture(scope="module", autouse=True)
def _only_test_hosts(variables: dict[str, Any]) -> None:
    if variables.get("ansible_connection") != "docker":
        pytest.skip("a live host is left alone")


@pytest.fixture(scope="module")
def names(host: Host) -> dict[str, str]:
    """Environment in which this machine's Python knows the names of the test host's domains."""
    address = host.run_expect([0], "hostname -i").stdout.split()[0]  # -I would tell the bridges' too
    folder = Path(__file__).resolve().parents[1] / "names"
    return {"PYTHONPATH": str(folder), "LAB_NAMES": f"lab.test={address} next.test={address}"}


def containers(host: Host, root: str) -> dict[str, str]:
    """Return the container's id by service: another id, another container."""
    template = '{{.Label "com.docker.compose.service"}} {{.ID}}'
    command = f"{root}docker ps -a --filter label={PROJECT} --format '{template}'"
    return dict(line.split() for line in host.run_expect([0], command).stdout.splitlines())


@contextmanager
def made_anew(host: Host, root: str, services: set[str]) -> Iterator[None]:
    """Check which services' containers are others at the end."""
    before = containers(host, root)
    yield
    after = containers(host, root)
    assert {service for service in after if before.get(service) != after[service]} == services


def make_project(host: Host, variables: dict[str, Any], name: str) -> None:
    headers = {**admin(host, variables), **JSON}
    status, text = ask(
        host, f"{addresses(variables)['api']}/projects.create", "POST", json.dumps({"name": name}), headers
    )
    assert status == 200, text


def projects(host: Host, variables: dict[str, Any], name: str) -> list[str]:
    """Return the names of the projects that start so."""
    headers = {**admin(host, variables), **JSON}
    wish = {"name": f"^{re.escape(name)}", "page": 0, "page_size": 500}
    found: list[str] = []
    while True:
        status, text = ask(host, f"{addresses(variables)['api']}/projects.get_all", "POST", json.dumps(wish), headers)
        assert status == 200, text
        page = [project["name"] for project in json.loads(text)["data"]["projects"]]
        found += page
        if len(page) < 500:
            return found
        wish["page"] = int(wish["page"]) + 1


def put(host: Host, path: str, text: str, owner: int = 0) -> None:
    """Write a file on the host, for its owner alone."""
    host.run_expect([0], f"install -m 0600 -o {owner} /dev/null {path}")
    done = host.run("printf %s %s >%s", "%s", text, path)
    assert done.rc == 0, done.stderr


class Authority:
    """A certificate authority of a company's own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The company's authority")])
        self._certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._certificate.public_bytes(Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
        )

    def issue(self, *names: str) -> tuple[str, str]:
        """Return a certificate for the names, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(subject, key)
            .add_extension(alternatives, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.PEM).decode(), secret.decode()


def trusted(host: Host, url: str) -> bool:
    """Tell whether the host believes an address's certificate."""
    code = "import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=20)"
    return host.run("python3 -c %s %s", code, url).rc == 0


def test_a_training_runs_from_the_queue(inventory: Path, names: dict[str, str]) -> None:
    """The node, its agent and the experiment's container reach the three names and believe their certificates."""
    train(inventory, names)


def test_a_large_file_goes_through_and_comes_back(host: Host, root: str, variables: dict[str, Any]) -> None:
    """No body limit: 200 MB in one request."""
    files = addresses(variables)["files"]
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
def test_a_container_killed_under_load_comes_back_and_nothing_is_lost(
    host: Host, root: str, variables: dict[str, Any], service: str
) -> None:
    name = f"while {service} died {time.time()}"
    host.run_expect([0], "rm -f /run/load.stop /run/load.acknowledged; touch /run/load.acknowledged")
    question = json.dumps([addresses(variables)["api"], {**admin(host, variables), **JSON}, name])
    put(host, "/run/load.json", question)
    put(host, "/run/load.py", LOAD)
    host.run_expect([0], "setsid --fork python3 /run/load.py </run/load.json >/dev/null 2>&1")
    deadline = time.monotonic() + 60
    while not host.run_expect([0], "cat /run/load.acknowledged").stdout:
        assert time.monotonic() < deadline, "the load does not begin"
        time.sleep(0.5)
    container = f"clearml-server-{service}-1"
    # Through the host's process table: what Docker itself kills, it takes for wanted and does not restart.
    pid = host.run_expect([0], f"{root}docker inspect -f '{{{{.State.Pid}}}}' {container}").stdout.strip()
    host.run_expect([0], f"{root}kill -9 {pid}")
    deadline = time.monotonic() + 120
    while True:
        template = "{{.State.Health.Status}} {{.RestartCount}}"
        state = host.run(f"{root}docker inspect -f '{template}' {container}").stdout.split()
        if state[0] == "healthy" and int(state[1]) > 0:
            break
        assert time.monotonic() < deadline, state
        time.sleep(2)
    make_project(host, variables, f"{name} and after")
    host.run_expect([0], "touch /run/load.stop; sleep 1")
    acknowledged = host.run_expect([0], "cat /run/load.acknowledged").stdout.splitlines()
    assert len(acknowledged) > 5, "there was no load"
    assert set(acknowledged) <= set(projects(host, variables, name))


def test_a_check_shows_the_change_and_nothing_else(inventory: Path, host: Host, root: str) -> None:
    change = {"clearml_server_worker_timeout_seconds": 301, "clearml_server_session_secret": "z" * 40}
    with made_anew(host, root, set()):
        said = play(inventory, "server.yml", "--check", **change)
    # Compose looks at the files that are there: who restarts is told by the revisions in the env file.
    assert changed_tasks(said) == {
        "clearml_server : Configure | Write the HOCON files",
        "clearml_server : Configure | Write the env file",
    }
    shown = [line for line in said.splitlines() if re.match(r"[-+] ", line) and "_REVISION=" not in line]
    assert shown == [
        '-            apiserver: "***"',
        '+            apiserver: "*** (changed)"',
        "-        default_worker_timeout_sec: 300",
        "+        default_worker_timeout_sec: 301",
    ]


def test_a_setting_restarts_only_what_reads_it(inventory: Path, host: Host, root: str) -> None:
    with made_anew(host, root, {"apiserver", "async_delete"}):
        play(inventory, "server.yml", clearml_server_worker_timeout_seconds=301)
    play(inventory, "server.yml")


def test_a_person_comes_works_and_leaves(
    inventory: Path, host: Host, root: str, variables: dict[str, Any], names: dict[str, str], tmp_path: Path
) -> None:
    person = {"username": "zoe", "name": "Zoe Doe", "password": "a long enough password"}
    api = addresses(variables)["api"]
    with made_anew(host, root, {"apiserver"}):
        said = play(inventory, "server.yml", clearml_users=[person])
    assert person["password"] not in said
    assert ask(host, f"{api}/auth.login", headers=basic("zoe", person["password"]))[0] == 200
    play(inventory, "users.yml", names=names, clearml_users=[person], clearml_users_folder=str(tmp_path))
    # On her machine, with the files that she got.
    script = (
        "import clearml; task = clearml.Task.init('zoe/training', 'hers', auto_connect_frameworks=False);"
        "task.upload_artifact('notes', {'a': 1}, wait_on_upload=True); print('id', task.id); task.close();"
        "again = clearml.Task.get_task(task.id); print('read', again.artifacts['notes'].get())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_CA_BUNDLE")}
    home = {"HOME": str(tmp_path / "home"), "CLEARML_CONFIG_FILE": str(tmp_path / "zoe/clearml.conf")}
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-c", script],
        env={**kept, **names, **home},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert "read {'a': 1}" in done.stdout, done.stdout + done.stderr
    ways = [f"{api}/users.get_current_user", f"{addresses(variables)['files']}/no/such/file"]

    def statuses(headers: dict[str, str]) -> list[int]:
        return [ask(host, way, headers=headers)[0] for way in ways]

    first = bearer(token(host, api, "zoe", person["password"]))
    assert statuses(first) == [200, 404]
    # Another password: the token of the old one ends with the run.
    changed = {**person, "password": "another long password"}
    with made_anew(host, root, {"apiserver", "async_delete"}):
        play(inventory, "server.yml", clearml_users=[changed])
    assert statuses(first) == [401, 401]
    # Another key pair: the token of the old one too.
    second = bearer(token(host, api, "zoe", changed["password"]))
    assert statuses(second) == [200, 404]
    keys = {"names": names, "clearml_users_folder": str(tmp_path)}
    with made_anew(host, root, {"apiserver", "async_delete"}):
        play(inventory, "users.yml", clearml_users=[changed], clearml_users_rotate=["zoe"], **keys)
    assert statuses(second) == [401, 401]
    assert not changed_tasks(play(inventory, "server.yml", clearml_users=[changed]))
    # She leaves.
    third = bearer(token(host, api, "zoe", changed["password"]))
    assert statuses(third) == [200, 404]
    play(inventory, "server.yml")
    assert statuses(third) == [401, 401]
    assert ask(host, f"{api}/auth.login", headers=basic("zoe", changed["password"]))[0] == 401
    play(inventory, "users.yml", clearml_users=[], **keys)
    assert not (tmp_path / "zoe").exists()


def test_every_secret_can_be_rotated(inventory: Path, host: Host, root: str, variables: dict[str, Any]) -> None:
    api = addresses(variables)["api"]
    old = admin(host, variables)
    name = f"before the rotation {time.time()}"
    make_project(host, variables, name)
    assert ask(host, f"{api}/users.get_current_user", headers=old)[0] == 200
    # The file server has seen it, and remembers it.
    assert ask(host, f"{addresses(variables)['files']}/no/such/file", headers=old)[0] == 404
    others = {f"clearml_server_{database}_password": f"rotated-{database}-password" for database in DATABASES}
    others["clearml_server_token_secret"] = "r" + "otated" * 8
    with made_anew(host, root, {"apiserver", "async_delete", "fileserver", "elasticsearch", "redis"}):
        said = play(inventory, "server.yml", **others)
    assert "clearml_server : Passwords | Change them" in changed_tasks(said)
    for secret in others.values():
        assert secret not in said
    assert ask(host, f"{api}/users.get_current_user", headers=old)[0] == 401
    assert ask(host, f"{addresses(variables)['files']}/no/such/file", headers=old)[0] == 401
    assert projects(host, variables, name) == [name]
    assert not changed_tasks(play(inventory, "server.yml", **others))
    play(inventory, "server.yml")
    assert projects(host, variables, name) == [name]


def test_another_domain(inventory: Path, host: Host, variables: dict[str, Any]) -> None:
    play(inventory, "server.yml", clearml_server_domain="next.test")
    api = "https://api.next.test"
    assert ask(host, f"{api}/users.get_current_user", headers=admin(host, variables, api))[0] == 200
    play(inventory, "server.yml")
    assert ask(host, f"{addresses(variables)['api']}/debug.ping")[0] == 200


def test_without_a_domain_there_are_plain_ports(
    inventory: Path, host: Host, root: str, variables: dict[str, Any]
) -> None:
    said = play(inventory, "server.yml", clearml_server_domain="")
    assert "plain HTTP" in said
    plain = addresses({})
    assert ask(host, f"{plain['api']}/users.get_current_user", headers=admin(host, variables, plain["api"]))[0] == 200
    for url in plain.values():
        assert ask(host, f"{url}/{'debug.ping' if url.endswith('8008') else ''}")[0] == 200
    assert "caddy" not in containers(host, root)
    play(inventory, "server.yml")
    assert ask(host, f"{addresses(variables)['api']}/debug.ping")[0] == 200


def test_certificates_of_the_company(inventory: Path, host: Host, variables: dict[str, Any], tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.issue("app.lab.test", "api.lab.test", "files.lab.test")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_authority": authority.pem}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    settings = {f"clearml_server_{name}": str(tmp_path / name) for name in files}
    play(inventory, "server.yml", clearml_server_tls="files", **settings)
    for url in addresses(variables).values():
        assert trusted(host, f"{url}/{'debug.ping' if '//api.' in url else ''}")
    play(inventory, "server.yml")
    assert trusted(host, f"{addresses(variables)['api']}/debug.ping")


def test_certificates_by_acme(
    inventory: Path, host: Host, root: str, variables: dict[str, Any], tmp_path: Path
) -> None:
    """Of an ACME authority in the company: Caddy is one too."""
    image = variables.get("clearml_server_images", {}).get("caddy", "caddy:2.10.2")
    put(
        host,
        "/run/authority.Caddyfile",
        "{\n\tadmin off\n}\nauthority.lab.test:9443 {\n\ttls internal\n\tacme_server\n}\n",
    )
    host.run_expect(
        [0],
        f"{root}docker run -d --name authority -p 9443:9443 -v /run/authority.Caddyfile:/etc/caddy/Caddyfile:ro "
        f"{image} caddy run --config /etc/caddy/Caddyfile --adapter caddyfile",
    )
    try:
        certificate = "/data/caddy/pki/authorities/local/root.crt"
        until(host, f"{root}docker exec authority test -s {certificate}", 30)
        pem = host.run_expect([0], f"{root}docker exec authority cat {certificate}").stdout
        # What the company's own tools do on its hosts.
        put(host, "/usr/local/share/ca-certificates/company.crt", pem)
        host.run_expect([0], f"{root}update-ca-certificates")
        until(
            host,
            "python3 -c 'import urllib.request as r; r.urlopen(\"https://authority.lab.test:9443/acme/local/directory\")'",
            30,
        )
        (tmp_path / "authority.pem").write_text(pem)
        play(
            inventory,
            "server.yml",
            clearml_server_tls="acme",
            clearml_server_acme_ca="https://authority.lab.test:9443/acme/local/directory",
            clearml_server_acme_email="it@lab.test",
            clearml_server_tls_authority=str(tmp_path / "authority.pem"),
        )
        for url in addresses(variables).values():
            assert trusted(host, f"{url}/{'debug.ping' if '//api.' in url else ''}")
        log = host.run_expect([0], f"{root}docker logs clearml-server-caddy-1 2>&1").stdout
        assert "certificate obtained successfully" in log
    finally:
        host.run(
            f"{root}docker rm -f -v authority; rm /usr/local/share/ca-certificates/company.crt; update-ca-certificates"
        )
    play(inventory, "server.yml")
    assert trusted(host, f"{addresses(variables)['api']}/debug.ping")


def until(host: Host, command: str, seconds: float) -> None:
    """Wait until a command succeeds."""
    deadline = time.monotonic() + seconds
    while True:
        done = host.run(command)
        if done.rc == 0:
            return
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(1)


@pytest.fixture
def elsewhere(host: Host, root: str, variables: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Databases that somebody else runs, all with TLS; gives the site's settings for them."""
    found = json.loads(
        host.run_expect([0], f"{root}docker inspect $({root}docker ps -q --filter label={PROJECT})").stdout
    )
    images = {each["Config"]["Labels"]["com.docker.compose.service"]: each["Config"]["Image"] for each in found}
    authority = Authority()
    certificate, key = authority.issue("databases.lab.test")
    place = "/opt/elsewhere"
    host.run_expect([0], f"install -d -o 1000 -m 0700 {place} {place}/mongo {place}/elastic")
    for name, text in {
        "ca.pem": authority.pem,
        "cert.pem": certificate,
        "key.pem": key,
        "both.pem": certificate + key,
        "keyfile": "a" * 64,
        "password": "elsewhere-password",
        "Caddyfile": DOOR,
        "redis.conf": REDIS,
    }.items():
        put(host, f"{place}/{name}", text, owner=1000)
    run = f"{root}docker run -d --user 1000:1000 --network elsewhere -v {place}:/e"
    first = "-e MONGO_INITDB_ROOT_USERNAME=clearml -e MONGO_INITDB_ROOT_PASSWORD_FILE=/e/password"
    options = "--replSet rs0 --keyFile /e/keyfile --tlsMode requireTLS --tlsCertificateKeyFile /e/both.pem"
    security = "-e xpack.security.enabled=true -e xpack.security.http.ssl.enabled=false -e discovery.type=single-node"
    commands = [
        f"{root}docker network create elsewhere",
        f"{run} --name elsewhere-mongo -v {place}/mongo:/data/db -p 27018:27017 -e HOME=/tmp {first} {images['mongo']} "
        f"mongod {options} --tlsAllowConnectionsWithoutCertificates",
        f"{run} --name elsewhere-elastic -v {place}/elastic:/usr/share/elasticsearch/data -e ES_JAVA_OPTS=-Xmx512m "
        f"{security} -e ELASTIC_PASSWORD_FILE=/e/password {images['elasticsearch']}",
        f"{run} --name elsewhere-door -p 9243:9243 -e HOME=/tmp {images['caddy']} "
        "caddy run --config /e/Caddyfile --adapter caddyfile",
        f"{run} --name elsewhere-redis -p 6380:6380 {images['redis']} redis-server /e/redis.conf",
    ]
    uri = "mongodb://clearml:elsewhere-password@databases.lab.test:27018/?authSource=admin&tls=true"
    members = '{"_id": "rs0", "members": [{"_id": 0, "host": "databases.lab.test:27018"}]}'
    initiate = f"""
import sys, time
from pymongo import MongoClient
open("/tmp/ca.pem", "w").write(sys.argv[1])
client = MongoClient("{uri}&directConnection=true", tlsCAFile="/tmp/ca.pem", serverSelectionTimeoutMS=40000)
client.admin.command("replSetInitiate", {members})
while not client.admin.command("hello")["isWritablePrimary"]: time.sleep(0.5)
"""
    try:
        for command in commands:
            host.run_expect([0], command)
        put(host, "/run/initiate.py", initiate)
        exec_ = f"{root}docker exec -i clearml-server-apiserver-1 python3 -"
        until(host, f'{exec_} "$(cat {place}/ca.pem)" </run/initiate.py', 60)
        yield {
            "clearml_server_mongo_uri": f"{uri}&replicaSet=rs0",
            "clearml_server_elasticsearch_url": "https://databases.lab.test:9243",
            "clearml_server_elasticsearch_password": "elsewhere-password",
            "clearml_server_redis_url": "rediss://databases.lab.test:6380",
            "clearml_server_redis_password": "elsewhere-password",
            "clearml_server_databases_ca": authority.pem,
        }
    finally:
        host.run(f"{root}docker rm -f -v elsewhere-mongo elsewhere-elastic elsewhere-door elsewhere-redis")
        host.run(f"{root}docker network rm elsewhere; rm -rf {place}")


def test_databases_elsewhere(
    inventory: Path, host: Host, root: str, variables: dict[str, Any], elsewhere: dict[str, str]
) -> None:
    said = play(inventory, "server.yml", **elsewhere)
    assert "elsewhere-password" not in said
    assert set(containers(host, root)) == set(SERVICES) - DATABASES
    name = f"elsewhere {time.time()}"
    make_project(host, variables, name)
    assert projects(host, variables, name) == [name]
    used = f"{root}docker exec elsewhere-redis redis-cli --tls --insecure -p 6380 -a elsewhere-password dbsize"
    assert host.run_expect([0], used).stdout.strip() != "0", "its Redis was not used"
    assert not changed_tasks(play(inventory, "server.yml", **elsewhere))
    play(inventory, "server.yml")
    assert set(containers(host, root)) == set(SERVICES)


def test_a_data_folder_on_a_full_disk_is_refused(inventory: Path, host: Host, root: str) -> None:
    host.run_expect([0], f"{root}mkdir -p /mnt/small && {root}mount -t tmpfs -o size=64m tmpfs /mnt/small")
    try:
        with made_anew(host, root, set()), pytest.raises(AssertionError) as refused:
            play(inventory, "preflight.yml", clearml_server_root="/mnt/small/clearml")
        assert "lab-server: clearml_server_root is '/mnt/small/clearml', which has 64 MB of free disk" in str(
            refused.value
        )
        assert not host.file("/mnt/small/clearml").exists
    finally:
        host.run(f"{root}umount /mnt/small")


def test_the_other_flavor_is_refused(inventory: Path, host: Host, root: str) -> None:
    with made_anew(host, root, set()), pytest.raises(AssertionError) as refused:
        play(inventory, "server.yml", clearml_server_flavor="lite")
    assert "neither reads the other's" in str(refused.value)


def test_a_reboot(host: Host, root: str, variables: dict[str, Any]) -> None:
    """Of the test host's container: systemd starts Docker, Docker starts the stack."""
    headers = admin(host, variables)
    name = variables["inventory_hostname"]
    subprocess.run(["docker", "restart", "--time", "60", name], check=True, capture_output=True, timeout=180)
    deadline = time.monotonic() + 240
    while True:
        template = f"{root}docker ps --filter label={PROJECT} --filter health=healthy --format '{{{{.Names}}}}'"
        done = host.run(template)
        if len(done.stdout.split()) == len(SERVICES):
            break
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(3)
    assert ask(host, f"{addresses(variables)['api']}/users.get_current_user", headers=headers)[0] == 200
