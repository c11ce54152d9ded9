"""The site's registry, started by hand from its compose file: users, TLS, push and pull, delete, a crash."""

from __future__ import annotations

import os
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
import requests
from harness import ROOT, free_ports, run, secret, wait_for

IMAGE = "trainyard/registry:0.1.0"
NAME = "team/tiny"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

_missing = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode != 0
pytestmark = pytest.mark.skipif(_missing, reason=f"no image {IMAGE}: a site with a registry builds it")


class Registry:
    """compose/registry with a folder, a port and a certificate of the test's own."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.project = f"e2e-registry-{secrets.token_hex(4)}"
        self.password = secret()
        self.docker = {**os.environ, "DOCKER_CONFIG": str(folder / "docker")}
        self.http = requests.Session()
        # No proxy, and no authority but the test's, whatever the environment says.
        self.http.trust_env = False
        self.config, self.data, self._settings = folder / "config", folder / "data", folder / "registry.env"
        for path in (self.config, self.data, folder / "docker"):
            path.mkdir()
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=e2e"
        files: list[str | Path] = ["-keyout", self.config / "key.pem", "-out", self.config / "cert.pem"]
        run(*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files)
        hashed = bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(rounds=4)).decode()
        (self.config / "htpasswd").write_text(f"ci:{hashed}\n")
        for path in (self.config, self.data, *self.config.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o400)
            os.chown(path, 1000, 1000)
        values = {"VERSION": IMAGE.rpartition(":")[2], "ROOT": folder, "BIND_ADDRESS": "127.0.0.1", "PORT": self.port}
        self._settings.write_text("".join(f"CLEARML_REGISTRY_{name}={value}\n" for name, value in values.items()))

    def compose(self, *command: str) -> str:
        files: list[str | Path] = ["-f", ROOT / "compose/registry/compose.yaml", "--env-file", self._settings]
        return run("docker", "compose", "-p", self.project, *files, *command, timeout=180)

    @property
    def container(self) -> str:
        return f"{self.project}-registry-1"

    def ask(self, method: str, path: str, user: str = "ci", password: str | None = None) -> requests.Response:
        """Ask the API as a user, by default with the right password; the certificate is verified."""
        return self.http.request(
            method,
            f"https://{self.address}/v2/{path}",
            auth=(user, password or self.password) if user else None,
            headers={"Accept": MANIFEST},
            verify=str(self.config / "cert.pem"),
            timeout=10,
        )

    def has(self, digest: str) -> bool:
        """Tell whether it answers, and with that image."""
        try:
            return self.ask("GET", f"{NAME}/manifests/{digest}").status_code == 200
        except requests.exceptions.ConnectionError:
            return False


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    made = Registry(tmp_path_factory.mktemp("registry"))
    try:
        made.compose("up", "--detach", "--wait")
        yield made
    finally:
        made.compose("down", "--timeout", "5")


@pytest.fixture
def pushed(registry: Registry, tmp_path: Path) -> Iterator[str]:
    """The digest of a tiny image that was pushed, and is in the registry alone."""
    (tmp_path / "file").write_bytes(secrets.token_bytes(4096))
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        tar.add(tmp_path / "file", "file")
    image = f"{registry.address}/{NAME}:{secrets.token_hex(4)}"
    run("docker", "import", tmp_path / "image.tar", image)
    try:
        login = ["docker", "login", "--username", "ci", "--password-stdin", registry.address]
        run(*login, input=registry.password, env=registry.docker)
        said = run("docker", "push", image, env=registry.docker)
    finally:
        run("docker", "image", "rm", image)
    yield said.split("digest: ")[1].split()[0]
    run("docker", "logout", registry.address, env=registry.docker)


def test_nobody_comes_in_without_name_and_password(registry: Registry) -> None:
    for path in ("", "_catalog", f"{NAME}/tags/list"):
        assert registry.ask("GET", path, user="").status_code == 401
        assert registry.ask("GET", path, password="wrong").status_code == 401
        assert registry.ask("GET", path, user="somebody").status_code == 401
    assert registry.ask("POST", f"{NAME}/blobs/uploads/", user="").status_code == 401
    assert registry.ask("GET", "").status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        registry.http.get(f"https://{registry.address}/v2/", timeout=10)  # an authority that nobody was told of
    assert registry.http.get(f"http://{registry.address}/v2/", timeout=10).status_code == 400, "there is no plain HTTP"


def test_an_image_comes_back_by_its_digest(registry: Registry, pushed: str) -> None:
    image = f"{registry.address}/{NAME}@{pushed}"
    run("docker", "pull", image, env=registry.docker)
    try:
        assert run("docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", image).strip() == image
    finally:
        run("docker", "image", "rm", image)


def test_a_deleted_image_is_gone_and_its_disk_is_freed(registry: Registry, pushed: str) -> None:
    layer = registry.ask("GET", f"{NAME}/manifests/{pushed}").json()["layers"][0]["digest"].removeprefix("sha256:")
    blob = registry.data / "docker/registry/v2/blobs/sha256" / layer[:2] / layer / "data"
    assert blob.is_file()
    assert registry.ask("DELETE", f"{NAME}/manifests/{pushed}").status_code == 202
    assert registry.ask("GET", f"{NAME}/manifests/{pushed}").status_code == 404
    # As role image_registry does.
    registry.compose("stop")
    collect = ["docker-registry", "garbage-collect", "/etc/docker/registry/config.yml"]
    registry.compose("run", "--rm", "--no-deps", "-T", "registry", *collect)
    registry.compose("up", "--detach", "--wait")
    assert not blob.exists()


def test_images_outlive_a_crash(registry: Registry, pushed: str) -> None:
    run("docker", "kill", "--signal", "KILL", registry.container)
    with pytest.raises(requests.exceptions.ConnectionError):
        registry.ask("GET", "")
    registry.compose("up", "--detach", "--wait")
    assert registry.has(pushed)
    # A crash that nobody asked for: Docker starts it again.
    started = run("docker", "inspect", "--format", "{{.State.StartedAt}}", registry.container)
    os.kill(int(run("docker", "inspect", "--format", "{{.State.Pid}}", registry.container)), 9)

    def again() -> bool:
        return run("docker", "inspect", "--format", "{{.State.StartedAt}}", registry.container) != started

    wait_for("Docker starts the registry again", again, 30)
    wait_for("the image is there", lambda: registry.has(pushed), 30)


def test_it_may_do_nothing_but_write_its_data(registry: Registry) -> None:
    script = "id -u; touch /etc/x /tmp/x /usr/x /etc/trainyard/x 2>&1; touch /data/x && rm /data/x && echo written"
    said = run("docker", "exec", registry.container, "bash", "-c", script).splitlines()
    assert said[0] == "1000"
    assert [line.partition("touch: cannot touch ")[2] for line in said[1:-1]] == [
        f"'{path}': Read-only file system" for path in ("/etc/x", "/tmp/x", "/usr/x", "/etc/trainyard/x")
    ]
    assert said[-1] == "written"
    status = run("docker", "exec", registry.container, "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"].strip() == "1"


def test_passwords_and_keys_are_told_to_nobody(registry: Registry) -> None:
    said = run("docker", "inspect", registry.container) + run("docker", "logs", registry.container)
    hashed = (registry.config / "htpasswd").read_text().strip().partition(":")[2]
    assert registry.password not in said
    assert hashed not in said
    assert "PRIVATE KEY" not in said
