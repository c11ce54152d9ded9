"""What the suites of hosts ask of any server, whatever flavor: who comes in, and where secrets are seen."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jwt
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "com.docker.compose.project=clearml-server"

# The official server ships these in public: whoever reads its sources knows them.
WELL_KNOWN_PAIRS = {
    "62T8CP7HGBC6647XF9314C2VY67RJO": "gaOfhDX2-bpkeI7-cwEcaMuGijxaG2UG3jbIvg4DxmVGF0LNI7rgvCb1-ne38IlBo1w",
    "GSQWPEKSKNKF354LC9V6BHXKTYFD5I": "tuBXcGQBECsEhcNiK2kiWi750z9r8Z85XrQ9V0c24huTuCb2xf2X1nKG",
    "EYVQ385RW7Y2QQUH88CZ7DWIQ1WUHP": "XhkH6a6ds9JBnM_MrahYyYdO-wS2bqFSm8gl-V0UZXH26Ydd6Eyi28TeBEoSr6Z3Bes",
    "EGRTCO8JMSIGI6S39GTP43NFWXDQOW": "LPEJbGJ6bK4tujQcmrD3i1dbMBDdwUwelVa-LG0K0FFmY9bzH_H0Sw",
}
WELL_KNOWN_TOKEN_SECRET = "Rq8FW84sSqVgq7WvBB_4EzNl9y8z8IGiDXX3C345_a5AZfcwZcwCIA"
COMPANY = "d1bd92a3b039400cbafc60a7a5b1e52b"

# Asks with what every host has. The certificate of an authority that the host does not know is no matter here.
_ASK = """
import json, ssl, sys, urllib.error, urllib.request
method, url, headers, body = json.loads(sys.stdin.read())
request = urllib.request.Request(url, method=method, headers=headers, data=body.encode() if body is not None else None)
handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl._create_unverified_context())]
try:
    answer = urllib.request.build_opener(*handlers).open(request, timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode(errors="replace"))
"""


def ask(
    host: Host, url: str, method: str = "GET", body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Ask an address from the host itself; return status and text."""
    question = json.dumps([method, url, headers or {}, body])
    done = host.run("printf %s %s | python3 -c %s", "%s", question, _ASK)
    assert done.rc == 0, done.stderr
    status, _, text = done.stdout.partition("\n")
    return int(status), text


def allowed_origin(host: Host, url: str, origin: str) -> str:
    """Return whose page the answer allows to read it, as a browser would see it."""
    code = (
        "import ssl, sys, urllib.request as r; url, origin = sys.argv[1:];"
        "o = r.build_opener(r.ProxyHandler({}), r.HTTPSHandler(context=ssl._create_unverified_context()));"
        "a = o.open(r.Request(url, headers={'Origin': origin}), timeout=20);"
        "print(a.headers.get('Access-Control-Allow-Origin', ''))"
    )
    return host.check_output("python3 -c %s %s %s", code, url, origin).strip()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(key: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()}


def token(host: Host, api: str, user: str, password: str) -> str:
    """Log in; return the token."""
    status, text = ask(host, f"{api}/auth.login", headers=basic(user, password))
    assert status == 200, text
    return str(json.loads(text)["data"]["token"])


def addresses(variables: dict[str, Any]) -> dict[str, str]:
    """Return where clients reach the three services."""
    domain = variables.get("clearml_server_domain")
    if domain:
        return {"api": f"https://api.{domain}", "web": f"https://app.{domain}", "files": f"https://files.{domain}"}
    host = "127.0.0.1"
    return {"api": f"http://{host}:8008", "web": f"http://{host}:8080", "files": f"http://{host}:8081"}


def admin(host: Host, variables: dict[str, Any], api: str = "") -> dict[str, str]:
    """Return the administrator's headers."""
    password = variables["vault_clearml_admin_password"]
    return bearer(token(host, api or addresses(variables)["api"], "admin", password))


def train(inventory: Path, environment: dict[str, str] | None = None) -> None:
    """Do what the operator types; its exit status says that all could be read back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "verify", f"SITE={inventory.name}"],
        cwd=ROOT,
        env={**kept, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "read back" in done.stdout


def nobody_comes_in(host: Host, api: str, files: str) -> None:
    """Try every way in that does not need this site's secrets."""
    for headers in ({}, bearer("abc"), basic("admin", "admin")):
        status, text = ask(host, f"{api}/tasks.get_all", headers=headers)
        assert status == 401, text
        assert json.loads(text)["meta"]["result_code"] == 401
    for key, secret in WELL_KNOWN_PAIRS.items():
        status, text = ask(host, f"{api}/auth.login", headers=basic(key, secret))
        assert status == 401, f"the public key {key} logs in"
    now = int(time.time())
    claims = {"iat": now, "exp": now + 600, "auth_type": "Bearer", "env": "<unknown>", "api_version": "2.34"}
    identity = {"user": "__apiserver__", "company": COMPANY, "role": "system", "company_name": "clearml"}
    forged = jwt.encode({**claims, "identity": identity}, WELL_KNOWN_TOKEN_SECRET, algorithm="HS256")
    status, text = ask(host, f"{api}/users.get_all", headers=bearer(forged))
    assert status == 401, "a token that is signed with the public secret is believed"
    for method, path, body in (
        ("GET", "/any/file.txt", None),
        ("POST", "/delete_many", '{"files": []}'),
        ("DELETE", "/any", None),
    ):
        status, _ = ask(host, f"{files}{path}", method, body, {"Content-Type": "application/json"} if body else None)
        assert status in {401, 403}, f"{method} {path}: {status}"
    form = '--x\r\nContent-Disposition: form-data; name="any/file.txt"; filename="file.txt"\r\n\r\nx\r\n--x--\r\n'
    status, _ = ask(host, f"{files}/", "POST", form, {"Content-Type": "multipart/form-data; boundary=x"})
    assert status in {401, 403}, "an anonymous upload"


def logins_have_an_epoch(host: Host, variables: dict[str, Any], api: str, files: str) -> None:
    """Try a token that is signed with the vault's secret alone: nothing would end such tokens of people who left."""
    now = int(time.time())
    identity = {"user": "__apiserver__", "company": COMPANY, "role": "system", "company_name": "clearml"}
    claims = {"iat": now, "exp": now + 600, "auth_type": "Bearer", "env": "<unknown>", "identity": identity}
    forged = jwt.encode(claims, variables["vault_clearml_server_token_secret"], algorithm="HS256")
    for url in (f"{api}/projects.get_all", f"{files}/nothing"):
        status, _ = ask(host, url, headers=bearer(forged))
        assert status == 401, f"{url} accepts a token that is signed with the vault's secret alone; run make deploy"


def no_secret_is_seen(host: Host, root: str, variables: dict[str, Any], project: str = "clearml-server") -> None:
    """Look where others may look: at containers, processes, logs, and files that anybody on the host can read."""
    secrets = secrets_of(variables)
    assert len(secrets) >= 5, "the vault was not read"
    # A folder that keeps others out keeps its files too, as the agent's cache does.
    files = "find /opt/clearml /etc/docker -type d ! -perm -o+x -prune -o -type f -perm -o+r -size -200k -exec cat {} +"
    ours = f"$({root}docker ps -q --filter label=com.docker.compose.project={project})"
    logs = f"for container in {ours}; do {root}docker logs $container 2>&1; done"
    seen = {
        "docker inspect": host.run_expect([0], f"{root}docker ps -aq | xargs {root}docker inspect").stdout,
        "process list": host.run_expect([0], "ps -eo args --no-headers").stdout,
        "logs": host.run_expect([0], f"{{ {logs}; }} | tr -cd '[:print:]'").stdout,
        "readable files": host.run_expect([0], f"{root}{files} | tr -cd '[:print:]'").stdout,
    }
    for where, text in seen.items():
        for name, secret in secrets.items():
            assert secret not in text, f"{name} is in {where}"


def secrets_of(variables: dict[str, Any]) -> dict[str, str]:
    """Return every secret of the site by its place in the vault."""
    found: dict[str, str] = {}

    def walk(place: str, value: object) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{place}.{name}", inner)
        elif isinstance(value, str) and len(value) >= 12:
            found[place] = value

    for name, value in variables.items():
        if name.startswith("vault_"):
            walk(name, value)
    return found


class Play:
    """A playbook that runs beside the test, as the operator starts it: what it says can be read while it runs."""

    def __init__(
        self, inventory: Path, playbook: str, *arguments: str, names: dict[str, str] | None = None, **extra: object
    ) -> None:
        command = [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, ROOT / "ansible" / playbook, "--diff"]
        # molecule asks for colours, which would hide what is looked for.
        kept = {name: value for name, value in os.environ.items() if name not in {"ANSIBLE_FORCE_COLOR", "PY_COLORS"}}
        environment = {**kept, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - lives as long as the run
        self._process = subprocess.Popen(
            [*command, *arguments, "-e", json.dumps(extra)],
            env={**environment, **(names or {})},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        """Return what it has said so far, in one line: Ansible folds long ones."""
        return " ".join(self._read().split())

    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> str:
        """Wait for its end, and return all that it said.

        Raises:
            AssertionError: The playbook failed; the message is its output.
        """
        try:
            # A busy machine needs minutes for what a free one does in one; no playbook of the tests takes an hour.
            status = self._process.wait(timeout=3600)
        finally:
            self._process.kill()
        text = self._read()
        assert status == 0, text
        return text

    def _read(self) -> str:
        # By its own position: the playbook writes through the same open file, whose position must stay at the end.
        return os.pread(self._output.fileno(), 1 << 26, 0).decode(errors="replace")


def play(inventory: Path, playbook: str, *arguments: str, names: dict[str, str] | None = None, **extra: object) -> str:
    """Run a playbook as the operator does; return what it said."""
    return Play(inventory, playbook, *arguments, names=names, **extra).result()


def changed_tasks(said: str) -> set[str]:
    """Return the names of the tasks that changed something."""
    parts = re.split(r"^TASK \[(.+?)\] \*+$", said, flags=re.MULTILINE)
    return {name for name, text in zip(parts[1::2], parts[2::2], strict=True) if re.search(r"^changed: ", text, re.M)}
