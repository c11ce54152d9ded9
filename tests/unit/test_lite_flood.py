"""The real program under bad clients: it stays within its memory, ends who is slow, and answers the others."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from test_lite_durability import AUTH, Process
from trainyard_lite import _server

BAD_CLIENTS = 100
MEMORY_MB = 600  # of the container's 1,000; on an idle machine about 320 are used


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("flood"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_ARENA_MAX", "2")  # as in compose.yaml
        process.start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that waits for a tenth of the time."""
    process = Process(tmp_path_factory.mktemp("hasty"))
    process.start(
        "-c",
        "from trainyard_lite import _server, __main__\n"
        "_server.HEAD_SEC = _server.BODY_WINDOW_SEC = _server.DRAIN_SEC = _server.ANSWER_SEC = 2.0\n"
        "_server.MAX_CONNECTIONS = 20\n"
        "raise SystemExit(__main__.main())",
    )
    yield process
    process.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def token(server: Process) -> str:
    return str(server.call("auth.login")["token"])


def head(server: Process, name: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} /{name} HTTP/1.1", "Host: lite", *lines, "", ""]).encode()


def status(connection: socket.socket) -> int:
    """Read the status of an answer; 0 if the server only closed."""
    with contextlib.suppress(OSError):
        if line := connection.recv(4096):
            return int(line.split()[1])
    return 0


def send(connection: socket.socket, data: bytes) -> None:
    """Send what the server still takes."""
    with contextlib.suppress(OSError):
        connection.sendall(data)


def good_client(server: Process) -> float:
    begun = time.monotonic()
    answer = requests.post(f"http://127.0.0.1:{server.api}/tasks.get_all", json={}, auth=AUTH, timeout=20)
    assert answer.status_code == 200, answer.text
    for port, path in ((server.web, "login"), (server.files, "")):
        assert requests.get(f"http://127.0.0.1:{port}/{path}", timeout=20).status_code == 200
    return time.monotonic() - begun


def flood(server: Process, what: str, sent: list[bytes], port: int | None = None) -> None:
    """Open the bad connections, send them their data in turns, and be a good client in between."""
    connections = [connect(port or server.api) for _ in range(BAD_CLIENTS)]
    slowest = 0.0
    memory = server.memory_mb()
    try:
        for connection in connections:
            connection.settimeout(0.2)  # what the server does not read is not sent
        for data in sent:
            for number, connection in enumerate(connections):
                send(connection, data)
                if number % 50 == 0:
                    slowest = max(slowest, good_client(server))
                    memory = max(memory, server.memory_mb())
        slowest = max(slowest, good_client(server))
        memory = max(memory, server.memory_mb())
    finally:
        for connection in connections:
            connection.close()
    print(f"{what}: {memory:.0f} MB, a good client waited {slowest:.2f} s at most")
    assert memory < MEMORY_MB, what


BOMB = b'{"a":[' + b"[]," * 330_000  # a megabyte


def test_large_bodies_of_strangers(server: Process) -> None:
    large = head(server, "debug.ping", "Content-Length: 108000000", "Content-Type: application/json")
    flood(server, "108 MB for debug.ping", [large, BOMB])
    chunked = head(server, "debug.ping", "Transfer-Encoding: chunked")
    flood(server, "chunks for debug.ping", [chunked, b"%x\r\n%s\r\n" % (len(BOMB), BOMB)])
    flood(server, "events of nobody", [head(server, "events.add_batch", "Content-Length: 30000000"), BOMB])
    flood(server, "a login form", [head(server, "login", "Transfer-Encoding: chunked"), BOMB], server.web)
    flood(server, "a file of nobody", [head(server, "", "Transfer-Encoding: chunked"), BOMB], server.files)


def test_large_bodies_of_users(server: Process) -> None:
    mine = f"Authorization: Bearer {token(server)}"
    size = 30 * len(BOMB)
    large = head(server, "events.add_batch", mine, f"Content-Length: {size}", "Content-Type: application/json")
    flood(server, "30 MB of events, slowly", [large, BOMB, BOMB, BOMB])
    # whole bombs, one after the other on some connections: parsing is refused, not tried
    for _ in range(3):
        answer = requests.post(
            f"http://127.0.0.1:{server.api}/events.add_batch",
            data=BOMB * 30,
            headers={"Authorization": mine.partition(": ")[2]},
            timeout=60,
        )
        assert answer.status_code == 400, answer.text[:200]
        assert server.memory_mb() < MEMORY_MB
    flood(server, "deep JSON", [head(server, "tasks.get_all", mine, "Content-Length: 900000"), b'{"a":' * 180_000])


def test_large_heads(server: Process) -> None:
    flood(server, "a header without end", [b"GET / HTTP/1.1\r\nX-A: ", b"a" * 1_000_000])
    flood(server, "headers without end", [b"GET / HTTP/1.1\r\n", b"X-A: a\r\n" * 100_000])
    flood(server, "a URL without end", [b"GET /", b"a" * 1_000_000], server.web)
    flood(server, "requests without end", [head(server, "debug.ping", method="GET") * 10_000], server.api)
    flood(server, "trailers without end", [
        head(server, "debug.ping", "Transfer-Encoding: chunked") + b"0\r\n", b"X-A: a\r\n" * 100_000
    ])  # fmt: skip


def test_answers_that_nobody_reads(server: Process) -> None:
    text = "x" * 2_000_000
    task = server.call("tasks.create", name="large", type="training", script={"diff": text})["id"]
    ask = head(server, f"tasks.get_by_id?task={task}", f"Authorization: Bearer {token(server)}", method="GET")
    flood(server, "2 MB of answer that nobody reads", [ask, ask, ask])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 40_000, 431),
        (b"GET /debug.ping HTTP/1.1\r\nHost: [\r\n\r\n", 400),
        (b"GET /debug.ping HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /debug.ping HTTP/1.1\r\nHost: [::1]:80\r\nX-A: \xff\xfe\r\n\r\n", 200),
        (b"GET /%00%ff%0d%0aX HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /debug.ping HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", 200),
        (b"OPTIONS /debug.ping HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n\r\n", 405),
        (b"POST /debug.ping HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /debug.ping HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /events.add_batch HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", 401),
        (b"POST /debug.ping HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n", 413),
        (b"POST /debug.ping HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", 100),
    ],
)
def test_requests_that_are_none(server: Process, data: bytes, code: int) -> None:
    with connect(server.api) as connection:
        connection.sendall(data)
        assert status(connection) == code


@pytest.mark.parametrize("port", ["api", "web", "files"])
def test_hosts_that_are_none(server: Process, port: str) -> None:
    with connect(getattr(server, port)) as connection:
        connection.sendall(b"GET /tasks HTTP/1.1\r\nHost: [::1\r\n\r\n")
        assert status(connection) == 400


@pytest.mark.parametrize("what", ["head", "nothing", "new lines", "body", "refused body", "login", "upload"])
def test_who_is_slow_is_ended(hasty: Process, what: str) -> None:
    mine = f"Authorization: Bearer {token(hasty)}"
    upload = "Content-Type: multipart/form-data; boundary=x"
    port, begin = {
        "head": (hasty.api, b"GET / HTTP/1.1\r\n"),
        "nothing": (hasty.api, b""),
        "new lines": (hasty.api, head(hasty, "debug.ping", method="GET")),
        "body": (hasty.api, head(hasty, "events.add_batch", mine, "Content-Length: 1000000")),
        "refused body": (hasty.api, head(hasty, "debug.ping", "Content-Length: 1000000")),
        "login": (hasty.web, head(hasty, "login", "Content-Length: 10000")),
        "upload": (hasty.files, head(hasty, "", mine, upload, "Content-Length: 10000")),
    }[what]
    drop = {"nothing": b"", "new lines": b"\r\n", "upload": b"\r\n"}.get(what, b"X: a\r\n")
    with connect(port) as connection:
        connection.sendall(begin)
        try:
            while True:  # ends when the server closes: then reading or sending fails
                if select.select([connection], [], [], 0.2)[0] and not connection.recv(65_536):
                    return
                connection.sendall(drop)
        except ConnectionError:
            return


def test_who_does_not_read_is_ended(hasty: Process) -> None:
    task = hasty.call("tasks.create", name="large", type="training", script={"diff": "x" * 6_000_000})["id"]
    ask = head(hasty, f"tasks.get_by_id?task={task}", f"Authorization: Bearer {token(hasty)}", method="GET")
    with connect(hasty.api) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(ask)
        watch = select.poll()
        watch.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        assert watch.poll(20_000), "the server ends the connection"


def test_a_slow_reader_that_reads_is_served(hasty: Process) -> None:
    """An answer that takes longer than the server waits without a byte taken."""
    task = hasty.call("tasks.create", name="large", type="training", script={"diff": "x" * 6_000_000})["id"]
    ask = head(hasty, f"tasks.get_by_id?task={task}", f"Authorization: Bearer {token(hasty)}", "Connection: close",
               method="GET")  # fmt: skip
    received = b""
    with connect(hasty.api) as connection:
        connection.sendall(ask)
        for _ in range(12):
            time.sleep(0.3)
            received += connection.recv(500_000)
        while part := connection.recv(1_000_000):
            received += part
    assert len(json.loads(received.partition(b"\r\n\r\n")[2])["data"]["task"]["script"]["diff"]) == 6_000_000


def test_connections_are_bounded_and_new_ones_come_in(hasty: Process) -> None:
    idle = [connect(hasty.api) for _ in range(60)]
    try:
        for _ in range(30):
            good_client(hasty)
        gone = sum(bool(select.select([one], [], [], 0)[0]) for one in idle)
        assert gone >= 40
    finally:
        for one in idle:
            one.close()


def test_limits_fit_the_file_limit(tmp_path: Path) -> None:
    assert 3 * _server.MAX_CONNECTIONS < 4096
