#!/usr/bin/python3
"""STAND-IN for Elasticsearch: noida-db, which knows no users, behind a proxy that asks for elastic's password."""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = "/usr/share/elasticsearch/data"
INNER_PORT = 19200
# They are about one connection, not about the message (RFC 9110, 7.6.1); the length is set anew.
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "upgrade", "te", "trailer"}


def read_password() -> str:
    """Read the file that ELASTIC_PASSWORD_FILE names; upstream refuses one that others may read."""
    file = os.environ.get("ELASTIC_PASSWORD_FILE")
    if not file:
        return ""
    if Path(file).stat().st_mode & 0o777 not in (0o400, 0o600):
        sys.exit(f"ERROR: File {file} from ELASTIC_PASSWORD_FILE must have file permissions 400 or 600")
    password = Path(file).read_text().strip()
    return password or sys.exit(f"ERROR: File {file} from ELASTIC_PASSWORD_FILE is empty")


class Proxy(BaseHTTPRequestHandler):
    """Hands on each request that carries the password."""

    protocol_version = "HTTP/1.1"
    wanted = b""

    def handle_one(self) -> None:
        """Answer one request."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.close_connection = True
            return self.answer(411, {}, b"this stand-in needs a Content-Length")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        given = self.headers.get("Authorization", "").encode()
        if self.wanted and not hmac.compare_digest(given, self.wanted):
            error = {"error": {"type": "security_exception", "reason": "unable to authenticate"}, "status": 401}
            return self.answer(401, {"WWW-Authenticate": 'Basic realm="security"'}, json.dumps(error).encode())
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        # noida-db has no password: it need not see ours.
        headers.pop("Authorization", None)
        inner = http.client.HTTPConnection("127.0.0.1", INNER_PORT, timeout=120)
        try:
            inner.request(self.command, self.path, body, headers)
            response = inner.getresponse()
            payload = response.read()
        except (OSError, http.client.HTTPException) as error:
            return self.answer(503, {}, f"noida-db: {error}".encode())
        finally:
            inner.close()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP}
        return self.answer(response.status, kept, payload)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send an answer."""
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: a health check every few seconds says nothing."""


class Server(ThreadingHTTPServer):
    """Serves each connection in a thread of its own."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Run both, and end when noida-db ends."""
    password = read_password()
    if password:
        Proxy.wanted = b"Basic " + base64.b64encode(f"elastic:{password}".encode())
    server = Server(("0.0.0.0", 9200), Proxy)
    inner = subprocess.Popen(
        ["noida-db", "start", "--only", "elasticsearch", "--elasticsearch-port", str(INNER_PORT), "--data-dir", DATA]
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inner.terminate())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    status = inner.wait()
    # Killed by a signal is how a container ends that was stopped; a shell would say 128 and the signal too.
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
