"""A server that is away, or is none, is said within seconds by everything that asks it, in one sentence."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clearml_client import ClearmlClientError, _server
from clearml_client._doctor import _git

SECONDS = 20.0
"""Of a busy machine, without imports; the SDK alone takes minutes, the client waits for ``_server.SECONDS``."""
# Imports once, and forks a process for each way in; so many of them run at the same time.
DRIVER = """
import json, os, sys, time
import clearml_client
import clearml_client._doctor, clearml_client._lookup, clearml_client._reproduce, clearml_client.datasets.store
from clearml.config import config_obj
from clearml_client import cli

config_obj.get("api", None)

commands = {
    "ls": ["data", "ls", "kitti"], "tree": ["data", "tree", "kitti"], "preview": ["data", "preview", "kitti"],
    "diff": ["data", "diff", "kitti@1.0.0", "kitti@1.1.0"], "lineage": ["data", "lineage", "kitti"],
    "download": ["data", "download", "kitti"], "verify": ["data", "verify", "kitti"],
    "upload": ["data", "upload", ".", "kitti", "--version", "1.0.0"], "delete": ["data", "delete", "kitti@1.0.0"],
    "models": ["models", "kitti"], "datasets": ["datasets", "a" * 32], "reproduce": ["reproduce", "a" * 32],
    "doctor": ["doctor"],
}
calls = {
    "init_clearml": lambda: clearml_client.init_clearml("a name", project="team/training"),
    "models_of": lambda: clearml_client.models_of("kitti"),
    "datasets_of": lambda: clearml_client.datasets_of("a" * 32),
    "open_dataset": lambda: clearml_client.open_dataset("kitti"),
    "upload_dataset": lambda: clearml_client.upload_dataset(".", "kitti", version="1.0.0"),
}

def command(words):
    sys.argv = ["clearml-client", *words]
    cli.main()

work = {**{name: lambda words=words: command(words) for name, words in commands.items()}, **calls}
chosen, together = sys.argv[2:] or list(work), int(sys.argv[1])
found = {}
while chosen:
    children, started = {}, time.monotonic()
    for name in chosen[:together]:
        child = os.fork()
        if child:
            children[child] = name
            continue
        for number in (1, 2):
            os.dup2(os.open(name + ".out", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        code = 0
        try:
            work[name]()
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)
    for _ in children:
        child, status = os.wait()
        text = open(children[child] + ".out").read()
        found[children[child]] = (os.waitstatus_to_exitcode(status), text, time.monotonic() - started)
    chosen = chosen[together:]
print(json.dumps(found))
"""


class Other(BaseHTTPRequestHandler):
    """What else may answer at an address."""

    def do_GET(self) -> None:
        code, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Yield a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server


def tried(
    folder: Path, *names: str, together: int = 99, variables: dict[str, str] | None = None
) -> dict[str, tuple[int, str, float]]:
    """Return exit code, words and seconds of what asks the server, of all of it where no names are given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML_", "TRAINS_"))}
    (folder / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, "driver.py", str(together), *names],
        cwd=folder,
        env={**kept, "HOME": str(folder), "CLEARML_CACHE_DIR": str(folder / "cache"), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str, float]] = json.loads(done.stdout)
    print(json.dumps(found, indent=1))  # for whoever looks at a failure
    return found


def site_at(address: str) -> dict[str, str]:
    servers = {f"CLEARML_{name}_HOST": address for name in ("API", "WEB", "FILES")}
    return {**servers, "CLEARML_API_ACCESS_KEY": "a", "CLEARML_API_SECRET_KEY": "b"}


def check(found: dict[str, tuple[int, str, float]], told: str) -> None:
    """Each way in has failed with this sentence and nothing else."""
    for name, (code, text, _) in found.items():
        assert code == 1, (name, text)
        assert told in text, (name, text)
        for noise in ("Traceback", "Retry", "clear.ml", "During handling", "WARNING"):
            assert noise not in text, (name, text)
        if name != "doctor":
            assert len(text.strip().splitlines()) == 1, (name, text)


def test_a_silent_server_is_said_within_seconds(tmp_path: Path, silent: socket.socket) -> None:
    assert _server.SECONDS <= 2
    address = f"http://127.0.0.1:{silent.getsockname()[1]}"
    names = ("ls", "models", "datasets", "reproduce", "doctor", "init_clearml", "models_of", "open_dataset")
    found = tried(tmp_path, *names, together=4, variables=site_at(address))
    check(found, f"{address} (CLEARML_API_HOST) does not answer: nothing came within 2 s, check the address")
    assert {name: seconds for name, (_, _, seconds) in found.items() if seconds > SECONDS} == {}
    silent.setblocking(False)
    for _ in names:  # each has asked once
        silent.accept()[0].close()
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_every_way_in_says_that_clearml_is_not_configured(tmp_path: Path) -> None:
    found = tried(tmp_path)
    check(found, f"ClearML is not configured on this machine ({tmp_path}/clearml.conf is not there)")
    assert len(found) == 18


def test_every_way_in_says_that_keys_are_wrong_and_where_they_are(tmp_path: Path, other: ThreadingHTTPServer) -> None:
    other.answer = (401, b'{"meta": {"result_code": 401, "result_msg": "no such key"}, "data": {}}')  # type: ignore[attr-defined]
    address = f"http://127.0.0.1:{other.server_port}"
    conf = {**{f"{name}_server": address for name in ("api", "web", "files")}, "credentials": {"secret_key": "y"}}
    (tmp_path / "clearml.conf").write_text(json.dumps({"api": conf}))
    found = tried(tmp_path, variables={"CLEARML_API_ACCESS_KEY": "x"})
    check(found, f"write them to CLEARML_API_ACCESS_KEY and {tmp_path}/clearml.conf (no such key)")
    assert f"{address} (api_server in {tmp_path}/clearml.conf)" in found["ls"][1]


def test_addresses_that_cannot_be_derived(tmp_path: Path) -> None:
    variables = {k: v for k, v in site_at("http://x").items() if k not in ("CLEARML_FILES_HOST", "CLEARML_WEB_HOST")}
    check(
        tried(tmp_path, "init_clearml", "ls", variables=variables),
        "of files and web page cannot be derived from http://x: set CLEARML_FILES_HOST and CLEARML_WEB_HOST",
    )


# --- each kind -------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ:
        if name.startswith(("CLEARML_", "TRAINS_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # what this machine is configured for is nobody's matter here
    monkeypatch.setattr(_server, "config_obj", {})
    monkeypatch.setattr(_server, "_file", lambda: "the clearml.conf")
    return monkeypatch


def reason(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> str:
    for name, value in variables.items():
        environment.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(ClearmlClientError) as caught:
        _server.check_server()
    assert time.monotonic() - started < SECONDS
    return str(caught.value)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:1", "does not answer: nothing listens there, check the port"),
        ("http://no-such-host.invalid:8008", "does not answer: the name no-such-host.invalid is not known here"),
        ("http://a..b:8008", "does not answer: the name a..b is not known here"),
        ("127.0.0.1:8008", "that is not an address: write one such as https://"),
    ],
)
def test_an_address_where_nobody_is(environment: pytest.MonkeyPatch, address: str, told: str) -> None:
    text = reason(environment, site_at(address))
    assert f"{address} (CLEARML_API_HOST)" in text
    assert told in text


def test_a_name_server_that_does_not_answer(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))  # no limit of HTTP's counts here
    assert "nothing came within 2 s" in reason(environment, site_at("http://clearml.example.org:8008"))


def test_a_proxy_in_between(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://user:hidden@127.0.0.1:1")
    text = reason(environment, site_at("http://clearml.example.org:8008"))
    assert "is behind the proxy http://127.0.0.1:1, which does not let it be reached" in text
    assert "NO_PROXY=clearml.example.org" in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, b"<html>"), "is not the API of a ClearML server: write the address of the API"),
        ((200, b"[]"), "is not the API of a ClearML server"),
        ((401, b"log in"), "is not the API of a ClearML server"),
        ((502, b"bad gateway"), "answers with 502 Bad Gateway: try again later, or ask the site's operator"),
        ((503, b"{}"), "answers with 503 Service Unavailable"),
    ],
)
def test_what_answers(
    environment: pytest.MonkeyPatch, other: ThreadingHTTPServer, answer: tuple[int, bytes], told: str
) -> None:
    other.answer = answer  # type: ignore[attr-defined]
    assert told in reason(environment, site_at(f"http://127.0.0.1:{other.server_port}"))


def test_a_certificate_of_nobody(environment: pytest.MonkeyPatch, other: ThreadingHTTPServer, tmp_path: Path) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext"]
    pem = tmp_path / "pem"
    subprocess.run([*make, "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", tmp_path / "crt"], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", pem)
    other.socket = context.wrap_socket(other.socket, server_side=True)
    text = reason(environment, site_at(f"https://127.0.0.1:{other.server_port}"))
    assert "cannot be verified: write the path of the site's CA as api.verify_certificate in the clearml.conf" in text


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        (["CLEARML_API_HOST"], "there are keys for a ClearML server and no address: set CLEARML_API_HOST"),
        (["CLEARML_API_SECRET_KEY"], "there is no secret_key for the ClearML server http://x: set CLEARML_API_SECRET"),
        (["CLEARML_API_ACCESS_KEY"], "there is no access_key for the ClearML server http://x: set CLEARML_API_ACCESS"),
    ],
)
def test_half_of_it_in_the_environment(environment: pytest.MonkeyPatch, left_out: list[str], told: str) -> None:
    assert told in reason(environment, {k: v for k, v in site_at("http://x").items() if k not in left_out})


# --- git's remote, as doctor sees it ---------------------------------------------------------------------------------


def test_a_remote_whose_head_names_no_branch_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: object) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *map(str, words)], check=True)

    bare, tree = tmp_path / "bare.git", tmp_path / "tree"
    git("init", "--quiet", "--bare", "--initial-branch=master", bare)
    git("init", "--quiet", "--initial-branch=main", tree)
    git("-C", tree, "commit", "--quiet", "--allow-empty", "--message=First")
    git("-C", tree, "remote", "add", "origin", f"file://{bare}")
    monkeypatch.chdir(tree)
    (found,) = _git()
    assert (found.state, found.told) == (
        "warning",
        f"file://{bare} has no branch yet: push one before a run in a queue",
    )
    git("-C", tree, "push", "--quiet", "origin", "main")
    (found,) = _git()
    assert found.state == "warning"
    assert f"file://{bare} can be read, and its HEAD names no branch" in found.told
    git("-C", bare, *found.told.rpartition("`git ")[2].rstrip("`").split())
    (found,) = _git()
    assert found.state == "ok", found
    bare.rename(tmp_path / "away")
    (found,) = _git()
    assert found.state == "bad"
    assert "cannot be read: fatal:" in found.told
