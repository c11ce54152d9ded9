"""What an experiment runs: fetched with the site's token or key, and what was recorded of it, or nothing."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import pytest
from clearml_api import ClearmlApi
from harness import (
    TASK_IMAGE,
    Platform,
    Worker,
    console,
    create,
    enqueue,
    get,
    queue_id,
    run,
    secret,
    wait_for,
    wait_for_status,
)

USER = "git-bot"
HELLO = "from the private repository"


@pytest.fixture(scope="module")
def private(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository outside the folder that experiments can read."""
    source = tmp_path_factory.mktemp("private")
    (source / "tiny.py").write_text(f'print("{HELLO}")\n')
    platform.add_repository(source, "private")
    target = tmp_path_factory.mktemp("served") / "private.git"
    (platform.repositories / "private.git").rename(target)
    run("git", "-C", target, "update-server-info")
    return target


class Handler(SimpleHTTPRequestHandler):
    """Files below a folder, for who knows the token."""

    token = ""

    def do_GET(self) -> None:
        wanted = base64.b64encode(f"{USER}:{self.token}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {wanted}":
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def over_http(platform: Platform, private: Path) -> Iterator[tuple[str, str]]:
    """The repository's address over HTTP, and the token."""
    token = secret()
    handler = functools.partial(type("Guarded", (Handler,), {"token": token}), directory=str(private.parent))
    server = ThreadingHTTPServer((platform.server.address, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{platform.server.address}:{server.server_port}/{private.name}", token
    server.shutdown()
    server.server_close()


@pytest.fixture
def over_ssh(platform: Platform, private: Path) -> Iterator[tuple[str, str, str]]:
    """The repository's address over SSH, the private key that may read it, and the server's line of known_hosts."""
    key, own = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    allowed = asyncssh.import_authorized_keys(key.export_public_key().decode())

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        assert process.command == f"git-upload-pack '/{private.name}'", process.command
        packs = await asyncio.create_subprocess_exec(
            "git-upload-pack", str(private), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await process.redirect(stdin=packs.stdin, stdout=packs.stdout)
        process.exit(await packs.wait())

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            platform.server.address,
            0,
            server_host_keys=[own],
            authorized_client_keys=allowed,
            process_factory=serve,
            encoding=None,
        )

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    place = f"{platform.server.address}]:{acceptor.get_port()}"
    known = f"[{place} {own.export_public_key().decode()}"
    yield f"ssh://git@{place.replace(']', '')}/{private.name}", key.export_private_key().decode(), known
    loop.call_soon_threadsafe(acceptor.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)


def train(api: ClearmlApi, repository: str, queue: str, status: str, told: str) -> str:
    """Let the queue's worker run what the repository holds; return the console, in which its owner reads ``told``."""
    task = create(api, "private", repository, "tiny.py")
    enqueue(api, task, queue)
    wait_for_status(api, task, status, 120)
    # The last lines may come after the end.
    wait_for(f"the console says {told}", lambda: told in console(api, task), 30)
    return console(api, task)


def test_a_token_opens_a_private_repository(platform: Platform, api: ClearmlApi, over_http: tuple[str, str]) -> None:
    address, token = over_http
    worker = platform.add_worker(
        "token", "token", config={"clearml_agent_git_user": USER, "clearml_agent_git_token": token}
    )
    try:
        told = train(api, address, "token", "completed", HELLO)
    finally:
        worker.remove()
    assert token not in told
    assert token not in worker.logs(1000)


def test_a_key_opens_a_private_repository(
    platform: Platform, api: ClearmlApi, tmp_path: Path, over_ssh: tuple[str, str, str]
) -> None:
    address, key, known = over_ssh
    (tmp_path / "ssh").mkdir(mode=0o700)
    # As role clearml_agent writes them.
    config = "Host *\n    IdentityFile /root/.ssh/id_git\n    StrictHostKeyChecking yes\n"
    for name, text in (("id_git", key), ("known_hosts", known), ("config", config)):
        (tmp_path / "ssh" / name).write_text(text)
        (tmp_path / "ssh" / name).chmod(0o600)
    arguments = ["--network=bridge", "-v", f"{tmp_path}/ssh:/root/.ssh:ro"]
    worker = platform.add_worker(
        "key", "key", config={"clearml_agent_git_ssh_key": key, "__clearml_agent_task_arguments": arguments}
    )
    try:
        train(api, address, "key", "completed", HELLO)
        (tmp_path / "ssh" / "known_hosts").write_text("")
        # A host that nobody vouched for. Why, ssh says in a line that ends in a carriage return; the agent drops those.
        train(api, address, "key", "failed", "Could not read from remote repository")
    finally:
        worker.remove()


def test_without_either_the_owner_reads_why(platform: Platform, api: ClearmlApi, over_http: tuple[str, str]) -> None:
    worker = platform.add_worker("neither", "neither")
    try:
        train(api, over_http[0], "neither", "failed", "could not read Username")
    finally:
        worker.remove()


# ---------------------------------------------------------------- what was recorded, or nothing

OLD, NEW = "the old code ran", "the new code ran"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


@pytest.fixture(scope="module")
def code_worker(platform: Platform) -> Iterator[Worker]:
    worker = platform.add_worker("code", "code")
    yield worker
    worker.remove()


@pytest.fixture(scope="module")
def repository(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    source = tmp_path_factory.mktemp("code")
    (source / "train.py").write_text(f"print({OLD!r})\n")
    return platform.add_repository(source, "code")


DIFF = f"""\
diff --git a/train.py b/train.py
--- a/train.py
+++ b/train.py
@@ -1 +1 @@
-print({OLD!r})
+print({NEW!r})
"""


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        ({"diff": DIFF}, "completed", NEW),
        ({"diff": DIFF.replace(OLD, "something else")}, "failed", "its uncommitted changes do not apply to "),
        ({"diff": DIFF.replace("diff --git", "\x1b[1mdiff --git")}, "failed", "are not a diff that git applies"),
        ({"diff": "# WARNING! git diff too large to store\n"}, "failed", "are not a diff that git applies"),
        ({"version_num": "0" * 40}, "failed", f"commit {'0' * 40} is not in "),
    ],
    ids=["applies", "does not apply", "colours", "too large", "no commit"],
)
def test_what_was_recorded_runs_or_nothing(
    api: ClearmlApi, code_worker: Worker, repository: str, script: dict[str, str], status: str, told: str
) -> None:
    task = create(api, "code", repository, "train.py")
    api.call("tasks.edit", task=task, script={**get(api, task)["script"], **script})
    enqueue(api, task, "code")
    seen = wait_for_status(api, task, status, 120)
    if status == "failed":
        assert told in seen["status_reason"]
    wait_for(f"the console says {told}", lambda: told in console(api, task), 30)
    assert OLD not in console(api, task).replace(DIFF, "").replace(repr(OLD), "")


@pytest.mark.parametrize(("diff", "status"), [(DIFF, "completed"), ("\x1b[1m" + DIFF, "failed")])
def test_a_services_worker_proves_it_too(
    platform: Platform, api: ClearmlApi, repository: str, diff: str, status: str
) -> None:
    """There clearml-agent starts itself once more, inside the container."""
    queue = f"code-services-{status}"
    worker = platform.add_worker(queue, queue, CLEARML_AGENT_DEVICES="--cpu-only --services-mode")
    try:
        task = create(api, "code", repository, "train.py")
        api.call("tasks.edit", task=task, script={**get(api, task)["script"], "diff": diff})
        enqueue(api, task, queue)
        seen = wait_for_status(api, task, status, 120)
    finally:
        worker.remove()
    if status == "failed":
        assert "are not a diff that git applies" in seen["status_reason"]
    else:
        wait_for("the new code's line", lambda: NEW in console(api, task), 30)


class Open(SimpleHTTPRequestHandler):
    """Files below a folder, for everybody."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def served(platform: Platform, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder of repositories, and its address; git clones submodules from nothing that is a file."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer((platform.server.address, 0), functools.partial(Open, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://{platform.server.address}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("pushed", [True, False])
def test_a_submodule_of_one_branch_is_there_or_the_experiment_fails(
    api: ClearmlApi, code_worker: Worker, served: tuple[Path, str], tmp_path: Path, pushed: bool
) -> None:
    """clearml-agent alone leaves its folder empty, and goes on."""
    folder, address = served
    git = ("git", "-c", "user.name=e2e", "-c", "user.email=e2e@localhost")
    for name, script in (("part", f"TEXT = {NEW!r}\n"), ("whole", "from part.text import TEXT\nprint(TEXT)\n")):
        tree = tmp_path / name
        tree.mkdir()
        (tree / ("text.py" if name == "part" else "train.py")).write_text(script)
        run(*git, "-C", tree, "init", "--quiet", "--initial-branch=main")
        run(*git, "-C", tree, "add", ".")
        run(*git, "-C", tree, "commit", "--quiet", "--message=Start")
    run("git", "clone", "--quiet", "--bare", tmp_path / "part", folder / "part.git")
    run("git", "-C", folder / "part.git", "update-server-info")
    whole = tmp_path / "whole"
    run(*git, "-C", whole, "checkout", "--quiet", "-b", "topic")
    run(*git, "-C", whole, "submodule", "--quiet", "add", f"{address}/part.git", "part")
    if not pushed:
        run(*git, "-C", whole / "part", "commit", "--quiet", "--allow-empty", "--message=Here only")
        run(*git, "-C", whole, "add", "part")
    run(*git, "-C", whole, "commit", "--quiet", "--message=Part")
    run("git", "clone", "--quiet", "--bare", whole, folder / "whole.git")
    run("git", "-C", folder / "whole.git", "symbolic-ref", "HEAD", "refs/heads/main")
    run("git", "-C", folder / "whole.git", "update-server-info")
    task = create(api, "whole", f"{address}/whole.git", "train.py")
    commit = run("git", "-C", whole, "rev-parse", "HEAD").strip()
    api.call("tasks.edit", task=task, script={**get(api, task)["script"], "version_num": commit})
    enqueue(api, task, "code")
    if pushed:
        wait_for_status(api, task, "completed", 120)
        wait_for("the submodule's line", lambda: NEW in console(api, task), 30)
    else:
        seen = wait_for_status(api, task, "failed", 120)
        assert "a submodule of " in seen["status_reason"]


def test_pointers_of_lfs_are_not_trained_on(
    platform: Platform, api: ClearmlApi, code_worker: Worker, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(f"print({NEW!r})\n")
    (tmp_path / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (tmp_path / "weights.bin").write_text(POINTER)
    address = platform.add_repository(tmp_path, "pointers")
    task = create(api, "pointers", address, "train.py")
    enqueue(api, task, "code")
    assert "weights.bin is stored in LFS" in wait_for_status(api, task, "failed", 120)["status_reason"]
    knows = create(api, "pointers", address, "train.py")
    api.call("tasks.edit", task=knows, container={"image": TASK_IMAGE, "arguments": "-e GIT_LFS_SKIP_SMUDGE=1"})
    enqueue(api, knows, "code")
    wait_for_status(api, knows, "completed", 120)


@pytest.mark.parametrize("spoil", ["latin-1", "color.ui", "assume-unchanged"])
def test_what_is_here_is_what_the_queue_trains(
    platform: Platform, api: ClearmlApi, code_worker: Worker, tmp_path: Path, spoil: str
) -> None:
    """What the SDK alone records of these lets the old code run, and the experiment is completed."""
    script = "from clearml_client import init_clearml\ninit_clearml('code', project='tests/code')\nprint({!r})\n"
    source, tree = tmp_path / "source", tmp_path / "tree"
    source.mkdir()
    (source / "train.py").write_text(script.format(OLD))
    (source / "notes.txt").write_bytes("gr\xfcn\n".encode("latin-1"))
    run("git", "clone", "--quiet", platform.add_repository(source, f"mine-{spoil}"), tree)
    (tree / "train.py").write_text(script.format(NEW))
    if spoil == "latin-1":
        (tree / "notes.txt").write_bytes("bl\xe4ulich\n".encode("latin-1"))
    elif spoil == "color.ui":
        run("git", "-C", tree, "config", "color.ui", "always")
    else:
        run("git", "-C", tree, "update-index", "--assume-unchanged", "train.py")
    queue_id(api, "code")
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=tree,
        env={**os.environ, "CLEARML_CONFIG_FILE": str(platform.sdk_config()), "CLEARML_QUEUE": "code"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    project = next(one for one in api.call("projects.get_all")["projects"] if one["name"] == "tests/code")
    task = api.call("tasks.get_all", project=[project["id"]], order_by=["-created"])["tasks"][0]["id"]
    wait_for_status(api, task, "completed", 180)
    wait_for("the new code's line", lambda: f"\n{NEW}\n" in f"\n{console(api, task)}\n", 30)
    assert f"\n{OLD}\n" not in console(api, task)
