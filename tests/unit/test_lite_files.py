"""The file server: only with a token, only below its root, only whole files."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest
from conftest import Lite
from starlette.testclient import TestClient
from trainyard_lite._files import _RefusalError, _StoredFile, create_files, resolve

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def root(lite: Lite) -> Path:
    return lite.state.settings.files_dir


@pytest.fixture
def files(lite: Lite) -> TestClient:
    token = lite.state.auth.make_token(lite.state.auth.check_secret("AGENTKEY", "AGENTSECRET"))
    return TestClient(create_files(lite.state), headers={"Authorization": f"Bearer {token}"})


def upload(files: TestClient, name: str, content: bytes = CONTENT) -> int:
    return int(files.post("/", files={name: ("file", content)}).status_code)


def stored(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_upload_download_delete(files: TestClient, root: Path) -> None:
    answer = files.post("/", files={"a/b c/w.npz": ("x", CONTENT), "second.txt": ("y", b"two")})
    assert answer.json() == ["a/b c/w.npz", "second.txt"]
    assert files.get("/a/b%20c/w.npz").content == CONTENT
    assert files.head("/a/b%20c/w.npz").headers["content-length"] == str(len(CONTENT))
    assert upload(files, "second.txt", b"new") == 200
    assert files.get("/second.txt").content == b"new"
    assert files.delete("/a/b%20c/w.npz").status_code == 200
    assert files.delete("/a/b%20c/w.npz").status_code == 404
    assert stored(root) == {"second.txt"}
    assert not (root / "a").exists()


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-9", 206, CONTENT[:10]),
        ("bytes=100-", 206, CONTENT[100:]),
        ("bytes=-5", 206, CONTENT[-5:]),
        ("bytes=999999-", 416, None),
        ("bytes=0-1,4-5", 416, None),
        ("lines=1-2", 416, None),
    ],
)
def test_ranges(files: TestClient, header: str, status: int, part: bytes | None) -> None:
    upload(files, "f.bin")
    answer = files.get("/f.bin", headers={"Range": header})
    assert answer.status_code == status
    if part is not None:
        assert answer.content == part


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer rubbish"}, {"Authorization": "Basic QUdFTlQ="}])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_nothing_without_a_token(
    lite: Lite, files: TestClient, root: Path, method: str, headers: dict[str, str]
) -> None:
    upload(files, "f.bin")
    stranger = TestClient(create_files(lite.state))
    path = "/" if method == "POST" else "/f.bin"
    answer = stranger.request(method, path, headers=headers, **({"files": {"g": b"x"}} if method == "POST" else {}))
    assert answer.status_code == 401
    assert stored(root) == {"f.bin"}
    assert stranger.get("/").text == "OK"


LEAD_ELSEWHERE = ["../evil", "a/../../evil", "/../evil", "..", "a/..", ".incoming/x", "n" * 300, ".", "a/" + "b" * 300]


@pytest.mark.parametrize("name", [*LEAD_ELSEWHERE, "x\x00y", ""])
def test_names_that_lead_elsewhere_have_no_place(root: Path, name: str) -> None:
    with pytest.raises(_RefusalError):
        resolve(root, name)


@pytest.mark.parametrize("name", LEAD_ELSEWHERE)
def test_names_that_lead_elsewhere_store_nothing(files: TestClient, root: Path, name: str) -> None:
    assert 400 <= upload(files, name) < 500
    assert stored(root) == set()
    assert not list(root.parent.glob("evil*"))


@pytest.mark.parametrize(
    "path",
    ["/../config/secure.conf", "/%2e%2e/config/secure.conf", "/..%2fconfig/secure.conf", "/a/%2e%2e/%2e%2e/lite.db"],
)
def test_paths_that_lead_elsewhere_read_and_delete_nothing(lite: Lite, path: str) -> None:
    settings = lite.state.settings
    token = lite.state.auth.make_token(lite.state.auth.check_secret("AGENTKEY", "AGENTSECRET"))
    app = create_files(lite.state)

    def ask(method: str) -> int:
        # below the HTTP client, which would clean the path
        sent: list[dict[str, object]] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("x", 80),
            "client": ("y", 1),
            "root_path": "",
        }

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
        return int(str(sent[0]["status"]))

    before = (settings.config_dir / "secure.conf").read_bytes()
    assert ask("GET") == 404
    assert ask("DELETE") == 404
    assert (settings.config_dir / "secure.conf").read_bytes() == before
    assert settings.database.exists()


def test_a_link_out_of_the_root_is_not_followed(files: TestClient, root: Path) -> None:
    (root / "link").symlink_to(root.parent)
    assert files.get("/link/lite.db").status_code == 404
    assert upload(files, "link/new") == 404


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="half"\r\n\r\nbroken off'),
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name=""\r\n\r\nx\r\n--B--\r\n'),
        ("multipart/form-data; boundary=B", b"rubbish"),
        ("multipart/form-data", b"x"),
        ("application/json", b"{}"),
    ],
)
def test_broken_bodies_store_nothing(files: TestClient, root: Path, kind: str, body: bytes) -> None:
    answer = files.post("/", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert stored(root) == set()


def test_a_full_disk_is_said_and_leaves_nothing(files: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(files, "kept.bin", b"old")

    def full(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    answer = files.post("/", files={"kept.bin": ("x", CONTENT)})
    monkeypatch.undo()
    assert answer.status_code == 507
    assert "disk is full" in answer.text
    assert stored(root) == {"kept.bin"}
    assert files.get("/kept.bin").content == b"old"


def test_delete_many(files: TestClient, root: Path) -> None:
    for name in ("a/1", "a/2", "b"):
        upload(files, name)
    answer = files.post("/delete_many", json={"files": ["a/1", "b", "../x", "none"]}).json()
    assert answer == {"deleted": {"a/1": "a/1", "b": "b"}, "errors": {"Not found": ["../x", "none"]}}
    assert stored(root) == {"a/2"}
    for body in (b"{", b"[]", b'{"files": "a"}', b'{"files": [1]}', json.dumps({"files": []}).encode()):
        assert files.post("/delete_many", content=body).status_code == 400


def test_what_dead_uploads_left_is_removed_at_start(lite: Lite, root: Path) -> None:
    (root / ".incoming").mkdir(exist_ok=True)
    (root / ".incoming" / "half").write_bytes(b"half")
    create_files(lite.state)
    assert stored(root) == set()


def test_pages_among_the_files_run_no_scripts(files: TestClient) -> None:
    upload(files, "page.html", b"<script>alert(1)</script>")
    answer = files.get("/page.html")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("moment", ["delete", "look", "answer"])
def test_a_file_that_is_deleted_in_this_moment_is_not_found(
    files: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    upload(files, "a.txt")
    is_file, unlink = Path.is_file, Path.unlink

    def seen(path: Path) -> bool:
        found = is_file(path)
        path.unlink()
        return found

    def late(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok)

    if moment == "delete":
        monkeypatch.setattr(Path, "unlink", late)
        assert files.delete("/a.txt").status_code == 404
    elif moment == "look":
        monkeypatch.setattr(Path, "is_file", seen)
        assert files.get("/a.txt").status_code == 404
    else:
        made = _StoredFile.__init__

        def gone(response: _StoredFile, *words: object, **options: object) -> None:
            made(response, *words, **options)  # type: ignore[arg-type]
            (root / "a.txt").unlink()

        monkeypatch.setattr(_StoredFile, "__init__", gone)
        assert files.get("/a.txt").status_code == 404
