"""What an experiment of the past needs, and how it is looked for."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from clearml_client._packages import look
from clearml_client._remote_code import missing_code
from clearml_client._reproduce import IMAGE, IMAGE_DIGEST, IMAGE_ID, Check, _code_check, _image_check, _packages_check

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


def test_a_password_in_the_address_of_code_is_not_told(repository: Repository) -> None:
    script = SimpleNamespace(
        repository="http://user:pa@ss-word@127.0.0.1:9/x.git",
        version_num="0" * 40,
        diff="",
        working_dir=".",
        entry_point="train.py",
    )
    check = _code_check(SimpleNamespace(data=SimpleNamespace(script=script)))
    assert check.found is False
    assert "127.0.0.1:9/x.git" in check.told
    assert "ss-word" not in check.told


# --- packages --------------------------------------------------------------------------------------------------------

LINUX = "cp311-cp311-manylinux_2_17_x86_64"
PUBLIC: dict[str, list[Any]] = {
    "numpy": [f"numpy-1.26.4-{LINUX}.whl", "numpy-2.0.0.tar.gz", "numpy-2.1.0rc1.tar.gz"],
    "ruamel-yaml": ["ruamel.yaml-0.18.6-py3-none-any.whl"],
    "newer": ["newer-1.0-cp312-cp312-manylinux_2_17_x86_64.whl"],
    "stable": ["stable-1.0-cp38-abi3-manylinux_2_17_x86_64.whl"],
    "pywin32": ["pywin32-306-cp311-cp311-win_amd64.whl"],
    "young": [("young-1.0.tar.gz", {"requires-python": ">=3.12"})],
    "withdrawn": [("withdrawn-1.0-py3-none-any.whl", {"yanked": "broken"})],
    "hashed": [("hashed-1.0-py3-none-any.whl", {"hashes": {"sha256": "ab" * 32}})],
    "old": ["old-2004d.tar.gz", "old-name-3.0.tar.gz"],
    "old-name": ["old-name-1.0.tar.gz"],
    "epoch": ["epoch-1!2.0-py3-none-any.whl"],
}
OWN = {
    "inhouse": ["inhouse-3.2.0-py3-none-any.whl"],
    "torch": [f"torch-2.1.0+cu121-{LINUX}.whl"],
    "numpy": [f"numpy-1.26.5+site-{LINUX}.whl"],
}


class Index(BaseHTTPRequestHandler):
    """A package index in the form of PEP 691, or in the older one of web pages; with a login where it has one."""

    pages = False
    login = ""
    files: dict[str, list[Any]]
    status = 200
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and self.headers.get("Authorization") != wanted:
            self.send_error(401)
            return
        if self.status != 200:
            self.send_error(self.status)
            return
        if self.path.endswith(".whl"):
            self.answer("application/zip", b"PK")
            return
        found = self.files.get(self.path.strip("/"))
        if found is None:
            self.send_error(404)
            return
        files = [(one, {}) if isinstance(one, str) else one for one in found]
        if self.pages:
            lines = [f'<a href="/f/{quote(name)}{anchor(more)}">{name}</a>' for name, more in files]
            self.answer("text/html", "\n".join(lines).encode())
        else:
            listed = [{"filename": name, **more} for name, more in files]
            self.answer("application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}).encode())

    def answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def anchor(more: dict[str, Any]) -> str:
    """Write what PEP 503 has in the link's end and attributes."""
    text = f"#sha256={more['hashes']['sha256']}" if "hashes" in more else ""
    text += f'" data-requires-python="{escape(more["requires-python"])}' if "requires-python" in more else ""
    return text + (f'" data-yanked="{more["yanked"]}' if "yanked" in more else "")


class Indexes:
    """The indexes of a test, and a pip that knows of nothing else."""

    def __init__(self, pages: bool) -> None:
        self.pages = pages
        self.servers: list[ThreadingHTTPServer] = []

    def start(self, files: dict[str, list[Any]], **more: Any) -> str:
        kind = type("Form", (Index,), {"pages": self.pages, "files": files, "asked": [], **more})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"


@pytest.fixture(params=[False, True], ids=["json", "pages"])
def indexes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Indexes]:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    found = Indexes(request.param)
    # Also of the machine where the tests run: what pip.conf says counts less than the environment.
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", found.start(PUBLIC))
    yield found
    for server in found.servers:
        server.shutdown()
        server.server_close()


def missing(text: str, python: str = "3.11", **more: Any) -> list[str]:
    """Return what is missing; everything else must be known to be there."""
    found = look(text, python=python, **more)
    assert found.untold == {}
    return sorted(found.missing)


FOUND = [
    "numpy == 1.26.4",
    "Ruamel_YAML==0.18.6",
    "ruamel.yaml[jinja2, x]==0.18.6  # why",
    "numpy==1.26.*",
    "numpy~=1.26.0",
    "numpy>=1.20,<3,!=2.0.0",
    "numpy",
    "numpy==2.1.0rc1",
    "numpy>2.0",
    "stable==1.0",
    "withdrawn==1.0",
    "withdrawn===1.0",
    "old==2004d",
    "old===2004d",
    "old-name==1.0",
    "epoch==1!2.0",
    "hashed==1.0 --hash=sha256:" + "ab" * 32,
    "hashed==1.0 \\\n    --hash=sha256:" + "cd" * 32 + " \\\n    --hash=sha256:" + "ab" * 32,
    "pywin32==306; sys_platform == 'win32'",
    "nowhere==1.0 ; python_version < '3.10'",
    "-e .",
    "./libs/own",
    "# numpy==9\n\n--prefer-binary\nnumpy==1.26.4",
]
GONE = {
    "numpy==1.26": "not in http",
    "numpy_quaternion==1.0": "not in http",
    "Ruamel_YAML==0.18.7": "not in http",
    "numpy==1.26.4+cu121": "not in http",
    "epoch==2.0": "not in http",
    "old==1.0": "not in http",
    "newer==1.0": "none of its files in .* is for Python 3.11 on Linux",
    "young==1.0": "is for Python 3.11 on Linux",
    "pywin32==306": "on Linux",
    "withdrawn>=0.1": "not in http",
    "hashed==1.0 --hash=sha256:" + "cd" * 32: "other hashes than recorded",
}


@pytest.mark.usefixtures("indexes")
def test_packages_that_pip_finds() -> None:
    assert missing("# numpy==9\n\n--prefer-binary\n" + "\n".join(FOUND)) == []


@pytest.mark.usefixtures("indexes")
def test_packages_that_pip_does_not_find() -> None:
    found = look("\n".join(GONE), python="3.11")
    assert found.untold == {}
    assert len(found.missing) == found.count == len(GONE)
    for told, why in zip(found.missing.values(), GONE.values(), strict=True):
        assert re.search(why, told)
    (told,) = look("--no-binary ruamel.yaml\nruamel.yaml==0.18.6", python="3.11").missing.values()
    assert "--no-binary" in told
    assert missing("--no-index\nnumpy==1.26.4") == ["numpy==1.26.4"]


@pytest.mark.usefixtures("indexes")
def test_the_python_of_the_image_counts() -> None:
    assert missing("newer==1.0", "3.12") == []
    assert missing("young==1.0", "3.12") == []
    assert missing("numpy==1.26.4", "3.12") == ["numpy==1.26.4"]
    assert look("newer==1.0\nnumpy==1.26.4").missing == {}, "of a Python that is not known any file will do"
    assert list(look("# Python 3.11.7 (main)\nnewer==1.0").missing) == ["newer==1.0"], "as the SDK's list begins"


@pytest.mark.parametrize("where", ["text", "environment", "pip.conf", "user's pip.conf", "workers", "text: index"])
def test_all_indexes_are_asked(indexes: Indexes, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = indexes.start(OWN)
    wanted = "inhouse==3.2.0\ntorch==2.1.0+cu121\ntorch==2.1.0\nnumpy==1.26.5\n"
    assert missing(wanted) == ["inhouse==3.2.0", "numpy==1.26.5", "torch==2.1.0", "torch==2.1.0+cu121"]
    more: dict[str, Any] = {}
    if where == "text":
        wanted = f"--extra-index-url {url}\n{wanted}"
    elif where == "text: index":
        wanted = f"-i {url}\n{wanted}"
    elif where == "environment":
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{os.environ['PIP_INDEX_URL']} {url}")
    elif where == "workers":
        more = {"indexes": [url]}
    else:
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
        file = tmp_path / ("given.conf" if where == "pip.conf" else "pip/pip.conf")
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"[{'install' if where == 'pip.conf' else 'global'}]\nextra-index-url =\n    {url}\n")
        if where == "pip.conf":
            monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert missing(wanted, **more) == []


def test_folders_and_pages_of_links(indexes: Indexes, tmp_path: Path) -> None:
    (tmp_path / "links" / "here-1.0-py3-none-any.whl").touch()
    (tmp_path / "page.html").write_text('<a href="files/there-1.0.tar.gz">x</a>')
    (tmp_path / "simple" / "deep").mkdir(parents=True)
    (tmp_path / "simple" / "deep" / "index.html").write_text('<a href="../../deep-1.0.zip#sha256=00">x</a>')
    assert missing(f"here==1.0\n-f {tmp_path}/page.html\nthere==1.0") == []
    assert missing(f"--find-links=file://{tmp_path}/page.html\nthere==1.0\n--no-index") == []
    assert missing(f"--extra-index-url file://{tmp_path}/simple\ndeep==1.0\nnumpy==1.26.4") == []
    assert missing("there==1.0") == ["there==1.0"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"login": "user:pass-word"}, "needs a login that this machine does not have"),
        ({"status": 503}, "answers 503"),
        ({"status": 403}, "needs a login"),
    ],
)
def test_an_index_that_gives_no_answer_makes_nothing_missing(indexes: Indexes, more: dict[str, Any], why: str) -> None:
    url = indexes.start(OWN, **more).replace("//", "//user:wrong-word@")
    found = look(f"--extra-index-url {url}\ninhouse==3.2.0\nnumpy==1.26.4\n", python="3.11")
    assert found.missing == {}
    (told,) = found.untold.values()
    assert "could not be asked" in told
    assert why in told
    assert "wrong-word" not in told
    if "login" in more:
        assert missing(f"--extra-index-url {url.replace('wrong', 'pass')}\ninhouse==3.2.0") == []


def test_an_index_that_is_not_there_is_asked_once(indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    found = look("numpy==1.26.4\nother==1\n")
    assert found.missing == {}
    assert set(found.untold) == {"numpy==1.26.4", "other==1"}
    assert "http://127.0.0.1:9/simple could not be asked" in found.untold["other==1"]
    assert "refused" in found.untold["other==1"]


def test_a_page_to_log_in_is_no_answer(indexes: Indexes) -> None:
    def answer(self: Index) -> None:
        self.answer("text/html", b'<form><input type="password"></form>')

    url = indexes.start({}, do_GET=answer)
    assert "a page to log in" in look(f"-i {url}\nnumpy==1").untold["numpy==1"]


def test_places_of_code(indexes: Indexes, repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("print(1)\n")
    repository.git("tag", "v1")
    repository.git("push", "--quiet", repository.url, "main", "v1")
    url, files = repository.url, indexes.start({})
    for line in (
        f"git+{url}@{commit}#egg=own",
        f"-e git+{url}@v1#egg=own",
        f"own @ git+{url}@main",
        f"own[extra] @ git+{url}",
        f"own @ {files}own-1.0-py3-none-any.whl",
        f"{files}own-1.0-py3-none-any.whl#sha256=00",
    ):
        assert missing(line) == [], line
    assert "has no commit" in look(f"own @ git+{url}@{'0' * 40}").missing[f"own @ git+{url}@{'0' * 40}"]
    assert "has no v2 any more" in look(f"git+{url}@v2#egg=own").missing[f"git+{url}@v2#egg=own"]
    assert "nothing is there" in look(f"own @ {files}own-1.0.tar.gz").missing[f"own @ {files}own-1.0.tar.gz"]
    for line, why in {
        f"git+file://{tmp_path}/none.git@{commit}": "could not be asked",
        "git+http://user:pass-word@127.0.0.1:9/x.git@v1": "could not be asked",
        "own @ http://user:pass-word@127.0.0.1:9/own-1.0.tar.gz": "could not be asked",
        "own @ file:///home/builder/own": "a path of the machine where it ran",
        "/opt/wheels/own-1.0-py3-none-any.whl": "a path of the machine where it ran",
        "hg+https://127.0.0.1:9/x": "hg is not asked",
        "-r base.txt": "beside the code",
        "-c limits.txt": "beside the code",
        "!!! what": "is not a requirement",
    }.items():
        found = look(line)
        assert found.missing == {}
        ((told, text),) = found.untold.items()
        assert why in text, line
        assert "pass-word" not in told + text


@pytest.mark.parametrize(
    ("text", "found", "told"),
    [
        ("numpy==1.26.4", True, "1 recorded, all to be had"),
        ("numpy==1.26.4\nclearml_client == 0.1.0", True, "2 recorded, all to be had"),
        ("numpy==1.26.4\nnumpy-x==1", False, "not to be had any more: numpy-x==1: not in http"),
        ("numpy==1.26.4\nown @ file:///x", None, "of 2 recorded, it cannot be told of own @ file:///x: is a path"),
        ("newer==1.0", False, "for Python 3.11 on Linux"),
    ],
)
@pytest.mark.usefixtures("indexes")
def test_what_reproduce_says_of_packages(text: str, found: bool | None, told: str) -> None:
    data = SimpleNamespace(
        script=SimpleNamespace(requirements={"pip": text}, binary="/usr/bin/python3.9"),
        container={"image": "registry:5000/trainyard/perception:3.11-cpu"},
    )
    check = _packages_check(SimpleNamespace(data=data), Check("image", None, ""))
    assert check.found is found
    assert told in check.told


@pytest.mark.usefixtures("indexes")
def test_packages_of_an_image_are_not_looked_for_elsewhere() -> None:
    mark = "# 1 packages of the image a/b:1, as they were when this ran (0123456789abcdef)"
    text = f"# Python 3.11.2, /usr/bin/python3\n{mark}\nnone==1\n"
    script = SimpleNamespace(requirements={"pip": text, "org_pip": "numpy==1.26.4"}, binary="python3")
    data = SimpleNamespace(script=script, container={"image": "a/b:1"})
    check = _packages_check(SimpleNamespace(data=data), Check("image", None, ""))
    assert check.found is True
    assert check.told == "1 recorded, all to be had"
    # The worker's program cannot be imported here.
    writer = (Path(__file__).resolve().parents[2] / "agents" / "checkout.py").read_text()
    assert 'f"# {len(lines)} packages {of} {image}, as they were when this ran ({cls.hash(body)})"' in writer
    assert 'self.record(task.id, "of the image")' in writer


# --- images ----------------------------------------------------------------------------------------------------------


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
