"""What the server acknowledged is there after a kill -9 at any moment; what it did not is not there by half."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from test_lite_auth import write_config

AUTH = ("AGENTKEY", "AGENTSECRET")


class Process:
    """The real program, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_config(folder / "config")
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            for s in (a, b, c):
                s.bind(("127.0.0.1", 0))
            self.api, self.web, self.files = (s.getsockname()[1] for s in (a, b, c))
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, *program: str) -> float:
        """Start it; answers the seconds until all three ports answered."""
        begun = time.monotonic()
        ports = ["--api-port", self.api, "--web-port", self.web, "--files-port", self.files]
        command = [
            sys.executable,
            *(program or ("-m", "trainyard_lite")),
            "serve",
            "--host",
            "127.0.0.1",
            *map(str, ports),
        ]
        command += ["--config-dir", str(self.folder / "config"), "--data-dir", str(self.folder / "data")]
        with (self.folder / "log").open("ab") as log:
            self._child = subprocess.Popen(command, stdout=log, stderr=log)
        while time.monotonic() - begun < 30:
            try:
                for port, path in ((self.api, "debug.ping"), (self.web, "login"), (self.files, "")):
                    requests.get(f"http://127.0.0.1:{port}/{path}", timeout=5)
                return time.monotonic() - begun
            except requests.ConnectionError:
                assert self._child.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()

    def stop(self) -> int:
        assert self._child is not None
        self._child.terminate()
        return self._child.wait(timeout=15)

    def memory_mb(self) -> float:
        assert self._child is not None
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def call(self, name: str, session: Any = requests, /, **args: Any) -> dict[str, Any]:
        answer = session.post(f"http://127.0.0.1:{self.api}/{name}", json=args, auth=AUTH, timeout=20)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    process.start()
    yield process
    process.kill()


def write_until_it_dies(server: Process, number: int, acknowledged: list[tuple[str, int]]) -> None:
    """Create tasks and report scalars, and note each one that the server said yes to."""
    session = requests.Session()
    try:
        while True:
            task = server.call("tasks.create", session, name=f"task of {number}", type="training")["id"]
            acknowledged.append((task, -1))
            for start in range(0, 60, 20):
                lines = "\n".join(
                    json.dumps({"type": "training_stats_scalar", "task": task, "iter": i, "metric": "m", "variant": "v",
                                "value": float(i)})
                    for i in range(start, start + 20)
                )  # fmt: skip
                answer = session.post(
                    f"http://127.0.0.1:{server.api}/events.add_batch",
                    data=lines,
                    headers={"content-type": "application/json-lines"},
                    auth=AUTH,
                    timeout=20,
                )
                if answer.status_code == 200:
                    acknowledged.append((task, start))
    except requests.RequestException:
        return


def test_kill_at_any_moment_loses_nothing_acknowledged(server: Process) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    acknowledged: list[tuple[str, int]] = []
    for _ in range(3):
        threads = [threading.Thread(target=write_until_it_dies, args=(server, n, acknowledged)) for n in range(3)]
        for thread in threads:
            thread.start()
        # Killed at any moment, but not before there is something to lose: a busy machine takes its time.
        before, deadline = len(acknowledged), time.monotonic() + 60
        while len(acknowledged) < before + 10 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.9))
        server.kill()
        for thread in threads:
            thread.join()
        server.start()
    assert len(acknowledged) > 20
    expected: dict[str, set[int]] = {}
    for task, start in acknowledged:
        expected.setdefault(task, set()).update(range(start, start + 20) if start >= 0 else ())
    for task, iterations in expected.items():
        found = server.call("tasks.get_by_id", task=task)["task"]
        curves = server.call("events.scalar_metrics_iter_histogram", task=task)
        stored = set(curves.get("m", {}).get("v", {}).get("x", []))
        # a batch that was written but whose answer was lost is there whole, never by half
        assert iterations <= stored, f"{task}: {sorted(iterations - stored)} were acknowledged and are gone"
        assert len(stored) % 20 == 0
        assert found["last_iteration"] == (max(stored) if stored else 0)


def test_an_upload_that_is_killed_leaves_no_half_file(server: Process) -> None:
    token = server.call("auth.login")["token"]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{server.files}/"
    whole = os.urandom(3_000_000)
    assert requests.post(url, files={"whole.bin": ("x", whole)}, headers=headers, timeout=20).status_code == 200

    def slowly() -> Iterator[bytes]:
        yield b'--B\r\nContent-Disposition: form-data; name="half.bin"\r\n\r\n'
        for n in range(200):
            if n == 20:
                server.kill()
            yield os.urandom(50_000)

    with pytest.raises(requests.RequestException):
        requests.post(
            url, data=slowly(), headers={**headers, "Content-Type": "multipart/form-data; boundary=B"}, timeout=20
        )
    server.start()
    stored = [p for p in (server.folder / "data" / "files").rglob("*") if p.is_file()]
    assert [p.name for p in stored] == ["whole.bin"]
    answer = requests.get(url + "whole.bin", headers=headers, timeout=20)
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(whole).digest()


def test_it_stops_when_asked_and_tells_its_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Process(tmp_path)
    seconds = server.start()
    memory = server.memory_mb()
    assert server.stop() == 0
    with capsys.disabled():
        print(f"\nlite: started in {seconds:.2f} s (goal 2 s), idle memory {memory:.0f} MB (goal 150 MB)")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    server = Process(tmp_path)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", server.files))
        taken.listen()
        ports = ["--api-port", server.api, "--web-port", server.web, "--files-port", server.files]
        command = [sys.executable, "-m", "trainyard_lite", "serve", "--host", "127.0.0.1", *map(str, ports)]
        command += ["--config-dir", str(tmp_path / "config"), "--data-dir", str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert str(server.files) in done.stderr
