"""The parts of verify that need no server; the whole of it runs in tests/e2e."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import verify
from clearml_api import ApiError, ClearmlApi
from rich.console import Console

SITE = {
    "web_url": "http://host:8080",
    "api_url": "http://host:8008",
    "files_url": "http://host:8081",
    "user": "admin",
    "queue": "all_gpus",
    "repository": "file:///somewhere.git",
}


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def weights(*sizes: int, bad: float | None = None) -> bytes:
    arrays = {}
    for layer, (rows, columns) in enumerate(pairwise(sizes)):
        arrays[f"weights_{layer}"] = np.full((rows, columns), 0.5 if bad is None else bad)
        arrays[f"bias_{layer}"] = np.zeros(columns)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_options_win_over_the_site_file(tmp_path: Path) -> None:
    site = verify.read_site(written(tmp_path / "site.json", SITE), "file:///other.git", None)
    assert (site.repository, site.queue) == ("file:///other.git", "all_gpus")


@pytest.mark.parametrize("key", sorted(SITE))
def test_a_missing_value_of_the_site_is_named(tmp_path: Path, key: str) -> None:
    path = written(tmp_path / "site.json", {**SITE, key: ""})
    with pytest.raises(verify.InputError, match=key):
        verify.read_site(path, None, None)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_broken_site_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.json"
    path.write_text(text)
    with pytest.raises(verify.InputError, match=r"site\.json"):
        verify.read_site(path, None, None)


def test_stages_are_optional_and_checked(tmp_path: Path) -> None:
    assert verify.read_stages(None) == {}
    assert verify.read_stages(tmp_path / "none.json") == {}
    assert verify.read_stages(written(tmp_path / "s.json", {"tools": 3})) == {"tools": 3.0}
    with pytest.raises(verify.InputError, match="tools"):
        verify.read_stages(written(tmp_path / "s.json", {"tools": "3"}))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("the key of the vault\n")
    return path


def encrypted(path: Path, key: Path, text: str) -> Path:
    path.write_text(text)
    command = [Path(sys.executable).parent / "ansible-vault", "encrypt", "--vault-password-file", key, path]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_the_password_is_read_from_a_vaulted_file(tmp_path: Path, key: Path) -> None:
    vault = encrypted(tmp_path / "vault.yml", key, "vault_clearml_admin_password: a-secret\n")
    assert "a-secret" not in vault.read_text()
    assert verify.read_password(vault, key) == "a-secret"


def test_a_file_that_holds_no_variables_is_named(tmp_path: Path, key: Path) -> None:
    with pytest.raises(verify.InputError, match=r"vault\.yml"):
        verify.read_password(encrypted(tmp_path / "vault.yml", key, "just text\n"), key)


def test_a_wrong_key_is_told_without_the_key(tmp_path: Path, key: Path) -> None:
    vault = encrypted(tmp_path / "vault.yml", key, "vault_clearml_admin_password: a-secret\n")
    key.write_text("another key")
    with pytest.raises(verify.InputError, match="cannot decrypt") as caught:
        verify.read_password(vault, key)
    assert "another key" not in str(caught.value)


def test_missing_secrets_say_what_to_run(tmp_path: Path, key: Path) -> None:
    with pytest.raises(verify.InputError, match="make up"):
        verify.read_password(tmp_path / "vault.yml", key)
    with pytest.raises(verify.InputError, match="vault_clearml_admin_password"):
        verify.read_password(encrypted(tmp_path / "vault.yml", key, "other: 1\n"), key)


def test_the_commit_of_a_repository(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=n@localhost"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    with pytest.raises(verify.VerifyError, match="no branch main"):
        verify.head_of(f"file://{tmp_path}")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    assert verify.head_of(f"file://{tmp_path}") == git("rev-parse", "HEAD")


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(verify.VerifyError, match=r"none\.git"):
        verify.head_of(f"{tmp_path}/none.git")


def test_a_repository_of_the_nodes_is_left_to_the_agent(tmp_path: Path) -> None:
    assert verify.head_of(f"file://{tmp_path}/only-on-the-nodes.git") == ""


def test_weights_that_fit_are_counted() -> None:
    assert verify.check_weights(weights(64, 32, 10), "x") == 64 * 32 + 32 + 32 * 10 + 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an .npz"),
        (b"no weights", "not an .npz"),
        (weights(64, 32, 10)[:-40], "not an .npz"),
        (weights(64, 10, bad=float("nan")), "not all finite"),
        (weights(63, 10), "do not lead"),
        (weights(64, 9), "do not lead"),
    ],
)
def test_weights_that_do_not_fit_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(verify.VerifyError, match=reason):
        verify.check_weights(content, "x")


def test_pickled_weights_are_not_run() -> None:
    stream = io.BytesIO()
    np.savez(stream, weights_0=np.array([object()], dtype=object))
    with pytest.raises(verify.VerifyError, match="do not load"):
        verify.check_weights(stream.getvalue(), "x")


def test_a_log_gets_lines_and_no_flood() -> None:
    console = Console(file=io.StringIO(), width=160)
    display = verify.PlainDisplay(console)
    for _ in range(50):
        display.show(verify.Look("queued", epochs=30))
    for epoch in range(31):
        display.show(verify.Look("in_progress", "node-1", epoch, 30, 0.5))
    display.show(verify.Look("completed", "node-1", 30, 30, 0.9722))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "waiting in the queue"
    assert lines[-1] == "completed epoch 30/30, validation accuracy 0.9722"
    assert len(lines) == 8


class BreakingOff(BaseHTTPRequestHandler):
    """A server whose first answer to each call ends before all of it is sent."""

    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        endpoint = self.path.lstrip("/")
        answer = {
            "meta": {"result_code": 200},
            "data": {"token": "t", "credentials": {"access_key": "k", "secret_key": "s"}},
        }
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        broken = endpoint in ("events.get_task_log", "tasks.enqueue") and endpoint not in self.seen
        self.seen.append(endpoint)
        self.wfile.write(text[:10] if broken else text)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def test_what_only_reads_is_asked_again_when_an_answer_breaks_off() -> None:
    BreakingOff.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreakingOff)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with ClearmlApi(address, address, "admin", "password") as api:
            assert api.call("events.get_task_log", task="x")["token"] == "t"
            with pytest.raises(ApiError, match=r"tasks\.enqueue: cannot reach"):
                api.call("tasks.enqueue", task="x")
    finally:
        server.shutdown()
        server.server_close()
    assert BreakingOff.seen.count("events.get_task_log") == 2
    assert BreakingOff.seen.count("tasks.enqueue") == 1
