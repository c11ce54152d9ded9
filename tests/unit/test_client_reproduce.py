"""What an experiment of the past needs, and how it is looked for."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from clearml_client._packages import missing_packages, pinned
from clearml_client._remote_code import missing_code
from clearml_client._reproduce import IMAGE, IMAGE_DIGEST, IMAGE_ID, _image_check

# --- packages --------------------------------------------------------------------------------------------------------

FILES = {
    "numpy": ["numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.whl", "numpy-2.0.0.tar.gz"],
    "ruamel-yaml": ["ruamel.yaml-0.18.6-py3-none-any.whl"],
}


class Index(BaseHTTPRequestHandler):
    """A package index in the form of PEP 691, or in the older one of web pages."""

    pages = False

    def do_GET(self) -> None:
        files = FILES.get(self.path.strip("/"))
        if files is None:
            self.send_error(404)
            return
        if self.pages:
            kind, text = "text/html", "".join(f'<a href="/f/{name}">{name}</a>\n' for name in files)
        else:
            kind = "application/vnd.pypi.simple.v1+json"
            text = json.dumps({"files": [{"filename": name} for name in files]})
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture(params=[False, True], ids=["json", "pages"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Form", (Index,), {"pages": request.param}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    yield
    server.shutdown()
    server.server_close()


def test_only_lines_that_name_one_version_are_pinned() -> None:
    text = "numpy == 1.26.4\n# comment\ntorch>=2\nopencv[headless]==4.9.0  # why\n-e .\ngit+https://x.org/y.git\n"
    assert pinned(text) == {"numpy": "1.26.4", "opencv": "4.9.0"}


@pytest.mark.usefixtures("index")
def test_what_the_index_has_no_more_is_told() -> None:
    assert missing_packages("numpy==1.26.4\nruamel.yaml==0.18.6\n") == []
    wanted = "numpy==1.26\nnumpy_quaternion==1.0\nRuamel_YAML==0.18.7\n"
    assert missing_packages(wanted) == ["Ruamel_YAML==0.18.7", "numpy==1.26", "numpy_quaternion==1.0"]


def test_an_index_that_does_not_answer_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(requests.ConnectionError):
        missing_packages("numpy==1.26.4")


# --- code ------------------------------------------------------------------------------------------------------------


class Repository:
    """A bare repository and a working copy of it."""

    def __init__(self, folder: Path) -> None:
        self.bare, self.tree = folder / "bare.git", folder / "tree"
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", self.bare], check=True)
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", self.tree], check=True)

    @property
    def url(self) -> str:
        return f"file://{self.bare}"

    def git(self, *words: str) -> str:
        command = ["git", "-C", str(self.tree), "-c", "user.name=t", "-c", "user.email=t@localhost", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self, text: str) -> str:
        (self.tree / "train.py").write_text(text)
        self.git("add", ".")
        self.git("commit", "--quiet", "--message=Change")
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_commit_that_was_pushed_is_found_and_one_that_was_not_is_missing(repository: Repository) -> None:
    first = repository.commit("print(1)\n")
    repository.commit("print(2)\n")
    repository.git("push", "--quiet", repository.url, "main")
    unpushed = repository.commit("print(3)\n")
    assert missing_code(repository.url, first) is None, "not only the newest"
    told = missing_code(repository.url, unpushed)
    assert told is not None
    assert f"has no commit {unpushed} any more" in told


def test_a_server_that_gives_branches_only_is_asked_for_those(repository: Repository) -> None:
    first = repository.commit("print(1)\n")
    repository.commit("print(2)\n")
    repository.git("push", "--quiet", repository.url, "main")
    # The protocol before version 2, in which a server refuses what it does not advertise.
    subprocess.run(["git", "-C", repository.bare, "config", "uploadpack.advertiseRefs", "true"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", "protocol.version")
        patch.setenv("GIT_CONFIG_VALUE_0", "0")
        assert missing_code(repository.url, first) is None
        told = missing_code(repository.url, "0" * 40)
    assert told is not None
    assert "any more" in told


def test_uncommitted_changes_must_still_apply(repository: Repository) -> None:
    first = repository.commit("print(1)\n")
    repository.git("push", "--quiet", repository.url, "main")
    (repository.tree / "train.py").write_text("print(4)\n")
    diff = repository.git("diff")
    second = repository.commit("other = 1\n")
    repository.git("push", "--quiet", repository.url, "main")
    assert missing_code(repository.url, first, diff) is None
    told = missing_code(repository.url, second, diff)
    assert told is not None
    assert "do not apply" in told


def test_a_repository_that_is_gone_is_told(tmp_path: Path) -> None:
    told = missing_code(f"file://{tmp_path}/none.git", "0" * 40)
    assert told is not None
    assert "cannot be fetched" in told


@pytest.mark.parametrize(
    ("container", "runtime", "found"),
    [
        ({"image": "site/train:1"}, {}, None),
        ({}, {IMAGE_ID: "sha256:" + "0" * 64, IMAGE: "site/train:1"}, True),
        ({}, {IMAGE_ID: "sha256:" + "0" * 64, IMAGE_DIGEST: "site/train@sha256:" + "0" * 64}, True),
        ({"image": "--volume=/:/host"}, {}, False),
        ({"image": "site/train:1"}, {IMAGE_ID: "sha256:" + "0" * 64, IMAGE: "site/train --privileged"}, False),
        ({"image": "site/train:1"}, {IMAGE_ID: "sha256:" + "0" * 64, IMAGE_DIGEST: "--rm"}, False),
    ],
)
def test_an_experiment_with_something_else_than_an_image_is_not_raised_again(
    container: dict[str, str], runtime: dict[str, str], found: bool | None
) -> None:
    check = _image_check(SimpleNamespace(data=SimpleNamespace(container=container, runtime=runtime)))
    assert check.found is found
    assert ("is not the name of one image" in check.told) is (found is False)
