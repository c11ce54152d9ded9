"""The pruner of a node: on real files, real locks of real processes, real kill -9, the real SDK's locks, and real DVC.

A stand-in only for the Docker client, which tells the running containers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "agents/pruner.py"
DAY = 86400
KIB = 1024
DVC = shutil.which("dvc", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


pruner = load(SCRIPT, "pruner")
settings_of = load(ROOT / "ansible/roles/dataset_cache/filter_plugins/dataset_cache.py", "dataset_cache_filters")
shared_folder = load(ROOT / "ansible/roles/dataset_cache/library/shared_folder.py", "shared_folder")

# Keeps its world in a file: {"containers": {id: ...}, "down": text}
DOCKER = """
import json, os, sys
world = json.load(open(os.environ["FAKE_DOCKER"]))
if world.get("down"):
    sys.exit(print(world["down"], file=sys.stderr) or 1)
if sys.argv[1] == "ps":
    print("\\n".join(world["containers"]))
elif sys.argv[1] == "inspect":
    for id_ in sys.argv[sys.argv.index("{{json .}}") + 1:]:
        print(json.dumps(world["containers"][id_]))
else:
    sys.exit(3)
"""


def days(count: float) -> float:
    return time.time() - count * DAY


class Node:
    """A node with three caches, and with the containers that its Docker tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dvc, self.clearml, self.sdk = folder / "dvc", folder / "clearml", folder / "sdk"
        for path in (self.dvc, self.clearml, self.sdk, folder / "state"):
            path.mkdir()
        self.world = folder / "world.json"
        self.containers: dict[str, Any] = {}
        self.tell()

    def tell(self, down: str = "") -> None:
        self.world.write_text(json.dumps({"containers": self.containers, "down": down}))

    def run(self, name: str, *mounts: Path, **labels: str) -> None:
        """Start a container now."""
        time.sleep(0.02)  # after whatever was made before
        self.containers[name] = {
            "Name": f"/{name}",
            "State": {"StartedAt": datetime.now(UTC).isoformat()},
            "Config": {"Labels": {key.replace("__", "."): value for key, value in labels.items()}},
            "Mounts": [{"Source": str(path)} for path in mounts],
        }
        self.tell()
        time.sleep(0.02)

    def object(self, text: str, age: float = 10, kib: int = 16, *, layout: str = "files/md5", suffix: str = "") -> Path:
        """Put a file into DVC's cache, last used some days ago; returns its path."""
        content = (text.encode() * (kib * KIB // len(text.encode()) + 1))[: kib * KIB] if not suffix else text.encode()
        md5 = hashlib.md5(content).hexdigest()
        path = self.dvc / layout / md5[:2] / (md5[2:] + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o444)
        os.utime(path, (days(age), days(age)))
        return path

    def listing(self, *files: Path, age: float = 10, layout: str = "files/md5") -> Path:
        """Put a folder's .dir object."""
        entries = [{"md5": path.parent.name + path.name, "relpath": f"{n}.png"} for n, path in enumerate(files)]
        return self.object(json.dumps(entries), age, layout=layout, suffix=".dir")

    def tree(self, key: str, age: float = 10, *, files: int = 2, kib: int = 16, links: tuple[Path, ...] = ()) -> Path:
        """Make a tree as the client does: aside, then whole under its name."""
        tree = self.clearml / "making" / f"{key}.half"
        content = tree / "content" / "images"
        content.mkdir(parents=True)
        for number in range(files):
            file = content / f"{number}.png"
            file.write_bytes(os.urandom(kib * KIB))
            file.chmod(0o444)
            os.utime(file, (days(age), days(age)))
        for number, target in enumerate(links):
            (content / f"link-{number}").symlink_to(target)
        (tree / "tree.json").write_text(json.dumps({"key": key, "files": files + len(links)}))
        for name in ("lease", "used"):
            (tree / name).touch()
        os.utime(tree / "used", (days(age), days(age)))
        (self.clearml / "trees").mkdir(exist_ok=True)
        return tree.rename(self.clearml / "trees" / key)

    def environment(self, **settings: str) -> dict[str, str]:
        given = {
            "NODE": "gpu01",
            "STATE": str(self.folder / "state"),
            "DVC_CACHE": str(self.dvc),
            "CLEARML_CACHE": str(self.clearml),
            "SDK_CACHE": str(self.sdk),
            "KEEP_SECONDS": "0",
            **settings,
        }
        return {**os.environ, **{f"CLEARML_PRUNER_{name}": value for name, value in given.items()}}

    def make(self, **settings: str) -> Any:
        return pruner.Pruner(pruner.Settings.read(self.environment(**settings)))

    def prune(self, **settings: str) -> None:
        """Make a pass in which nothing fails."""
        assert self.make(**settings).run_pass()

    def program(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), *arguments]
        environment = self.environment(**settings)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def metrics(self) -> dict[str, float]:
        text = (self.folder / "state/pruner.prom").read_text()
        pairs = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name.removeprefix("trainyard_pruner_"): float(value) for name, value in pairs}

    def left_over(self) -> list[str]:
        """List what a pass must not leave."""
        places = [*self.folder.glob("*/.trainyard-pruner/*/*"), *self.clearml.glob("making/*")]
        return [str(path) for path in places if path.suffix != ".lock"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "docker").write_text(f"#!{sys.executable} -IS\n{DOCKER}")
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path / "world.json"))
    return Node(tmp_path)


HOLD = """
import fcntl, sys, time
handle = open(sys.argv[1], "r+")
fcntl.flock(handle, fcntl.LOCK_SH if sys.argv[2] == "shared" else fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Let another process hold a lock."""
    running: list[subprocess.Popen[str]] = []

    def start(path: Path, how: str = "shared") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(path), how]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout
        assert running[-1].stdout.readline() == "held\n"
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NODE", "", "CLEARML_PRUNER_NODE is not set; write the node's name"),
        ("DVC_CACHE", "/", "CLEARML_PRUNER_DVC_CACHE is '/'; write an absolute path of a folder that lies in no"),
        ("DVC_CACHE", "cache", "CLEARML_PRUNER_DVC_CACHE is 'cache'; write an absolute path"),
        ("SDK_CACHE", "/c/clearml/sdk", "CLEARML_PRUNER_SDK_CACHE is '/c/clearml/sdk'; write an absolute path of a"),
        ("DVC_MAX", "500 GB of it", "CLEARML_PRUNER_DVC_MAX is '500 GB of it'; write a size such as 500g, or 0"),
        ("MIN_FREE", "110%", "CLEARML_PRUNER_MIN_FREE is '110%'; write a size such as 50g, or a part of the disk"),
        ("MIN_FREE", "ten%", "CLEARML_PRUNER_MIN_FREE is 'ten%'"),
        ("KEEP_SECONDS", "1d", "CLEARML_PRUNER_KEEP_SECONDS is '1d'; write a whole number from 0"),
        ("INTERVAL", "0", "CLEARML_PRUNER_INTERVAL is '0'; write a whole number from 1"),
        ("PINS", "kitti", "CLEARML_PRUNER_PINS has 'kitti'; write clearml-<id of a dataset> or dvc-<md5>"),
        ("DRY_RUN", "yes", "CLEARML_PRUNER_DRY_RUN is 'yes'; write 0 or 1"),
    ],
)
def test_a_bad_setting_is_told_with_the_right_form(name: str, value: str, told: str) -> None:
    given = {"CLEARML_PRUNER_NODE": "gpu01", "CLEARML_PRUNER_DVC_CACHE": "/c/dvc"}
    given |= {"CLEARML_PRUNER_CLEARML_CACHE": "/c/clearml", f"CLEARML_PRUNER_{name}": value}
    with pytest.raises(pruner.PrunerError) as caught:
        pruner.Settings.read(given)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("1k", KIB), ("1.5g", 3 * 2**29), ("2T", 2**41), ("3GiB", 3 * 2**30)]
)
def test_sizes(text: str, size: int) -> None:
    assert pruner.read_size(text) == size


def test_every_setting_is_documented_and_reaches_the_container() -> None:
    told = set(re.findall(r"``CLEARML_PRUNER_([A-Z_]+)``", pruner.__doc__ or ""))
    given = set(re.findall(r"^      CLEARML_PRUNER_([A-Z_]+): ", (ROOT / "agents/pruner.yaml").read_text(), re.M))
    assert given == told
    source = SCRIPT.read_text().split('"""', 2)[2]
    named = set(re.findall(r'(?:text|number|size)\("([A-Z_]+)"', source))
    assert named | {f"{name}_{what}" for name in ("DVC", "CLEARML", "SDK") for what in ("CACHE", "MAX")} == told


# --- by bytes, the least recently used first -------------------------------------------------------------------------


def test_dvc_objects_go_oldest_first_until_the_limit(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [node.object(f"file {age}", age, layout=layout) for age, layout in ((5, "files/md5"), (9, ""), (7, "."))]
    young, oldest, middle = objects
    node.prune(DVC_MAX="40k")
    assert (young.exists(), oldest.exists(), middle.exists()) == (True, False, True)
    told = said(capsys)
    assert f"removed 1 objects of {node.dvc}, 16.0 KiB, last used " in told
    assert "the cache had 48.0 KiB and may have 40.0 KiB" in told
    assert node.left_over() == []
    node.prune(DVC_MAX="40k")
    assert said(capsys) == "", "nothing to do, nothing to tell"


def test_reading_a_file_is_a_use_and_looking_at_it_is_none(node: Node) -> None:
    read, looked = node.object("read", 20), node.object("looked", 19)
    read.read_bytes()
    looked.stat()
    node.prune(DVC_MAX="20k")
    assert (read.exists(), looked.exists()) == (True, False)


def test_trees_and_objects_of_one_disk_go_in_the_order_of_their_use(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("needs a disk on which nobody else writes")
    with tempfile.TemporaryDirectory(dir=shared) as place:
        monkeypatch.setattr(node, "dvc", Path(place) / "dvc")
        monkeypatch.setattr(node, "clearml", Path(place) / "clearml")
        node.dvc.mkdir()
        node.clearml.mkdir()
        old, young = node.tree("clearml-" + "a" * 32, 30), node.tree("clearml-" + "b" * 32, 3)
        older, newer = node.object("older", 40), node.object("newer", 4)
        free = os.statvfs(place)
        # Of the 16 and 32 KiB that the two oldest take, one is not enough.
        node.prune(SDK_CACHE="", MIN_FREE=str(free.f_bavail * free.f_frsize + 30 * KIB))
        assert [path.exists() for path in (older, old, newer, young)] == [False, False, True, True]


def test_a_free_space_that_cannot_be_had_takes_all_it_may_and_says_what_is_left(
    node: Node, hold: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    leased, pinned, gone = (node.tree(f"clearml-{letter * 32}", 10) for letter in "abc")
    (pinned / "pinned").touch()
    hold(leased / "lease")
    target = node.object("linked", 50)
    node.tree("dvc-" + "d" * 32, 10, files=0, links=(target,))
    hold(node.clearml / "trees" / ("dvc-" + "d" * 32) / "lease")
    node.prune(MIN_FREE="99.9%")
    assert [path.exists() for path in (leased, pinned, gone, target)] == [True, True, False, True]
    told = said(capsys)
    assert f"{node.clearml}: the limit is not reached, " in told
    assert "KiB a process holds its lease" in told
    assert "KiB pinned" in told
    assert "16.0 KiB linked by a living tree" in told
    found = node.metrics()
    assert found['cache_over_bytes{cache="clearml"}'] > 2**30
    assert found['cache_kept_bytes{cache="dvc"}'] == 16 * KIB


def test_what_was_used_lately_stays(node: Node) -> None:
    young, old = node.object("young", 0.5), node.object("old", 3)
    node.prune(DVC_MAX="1", KEEP_SECONDS=str(DAY))
    assert (young.exists(), old.exists()) == (True, False)


def test_no_limit_no_loss(node: Node) -> None:
    object_, tree = node.object("x", 900), node.tree("clearml-" + "a" * 32, 900)
    node.prune()
    assert object_.exists()
    assert tree.exists()


# --- what is in use --------------------------------------------------------------------------------------------------


def test_a_tree_goes_when_its_last_user_is_gone_even_by_kill_9(node: Node, hold: Callable[..., Any]) -> None:
    tree = node.tree("clearml-" + "a" * 32, 30)
    users = [hold(tree / "lease"), hold(tree / "lease")]
    node.prune(CLEARML_MAX="1")
    users[0].kill()
    users[0].wait()
    node.prune(CLEARML_MAX="1")
    assert (tree / "content/images/1.png").exists()
    users[1].kill()
    users[1].wait()
    node.prune(CLEARML_MAX="1")
    assert not tree.exists()
    assert node.left_over() == []


def test_a_tree_takes_its_objects_along_but_not_those_of_living_trees(node: Node, hold: Callable[..., Any]) -> None:
    alone, shared, loose = (node.object(name, age) for name, age in (("alone", 60), ("shared", 60), ("loose", 45)))
    node.tree("dvc-" + "a" * 32, 30, files=0, links=(alone, shared))
    living = node.tree("dvc-" + "b" * 32, 50, files=0, links=(shared,))
    hold(living / "lease")
    node.prune(DVC_MAX="40k")
    assert [path.exists() for path in (alone, shared, loose)] == [True, True, False], "the tree was used after it"
    node.prune(DVC_MAX="20k")
    assert [path.exists() for path in (alone, shared, loose)] == [False, True, False]
    assert [path.name for path in (node.clearml / "trees").iterdir()] == [living.name]
    for link in living.glob("content/images/*"):
        assert link.exists(), "a link of a living tree leads nowhere"


def test_a_tree_without_a_lease_whose_files_a_container_reads_stays(node: Node) -> None:
    target = node.object("through the tree", 30)
    tree = node.tree("dvc-" + "a" * 32, 30, files=0, links=(target,))
    node.run("clearml-id-1", node.dvc, node.clearml, clearml_parent_worker_id="gpu01-1:gpu0")
    (tree / "content/images/link-0").read_bytes()
    node.prune(DVC_MAX="1", CLEARML_MAX="1")
    assert target.exists()
    assert (tree / "content").exists()


def test_what_a_running_container_has_used_stays_and_the_rest_goes(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    unused, read, made_of, lonely = (node.object(name, 30) for name in ("unused", "read", "in a folder", "lonely"))
    listing = node.listing(made_of, age=30)
    other = node.listing(lonely, age=30)
    node.run("clearml-id-1", node.dvc / "files", **{"clearml-parent-worker-id": "gpu01-1:gpu0"})
    read.read_bytes()
    listing.read_bytes()  # all that dvc checkout does
    fresh = node.object("fetched by it", 30)  # its change time is new
    node.prune(DVC_MAX="1")
    assert [p.exists() for p in (unused, lonely, other)] == [False, False, False]
    assert [p.exists() for p in (read, listing, made_of, fresh)] == [True, True, True, True]
    assert "used since the container clearml-id-1 runs" in said(capsys)
    node.containers.clear()
    node.tell()
    node.prune(DVC_MAX="1")
    assert not read.exists()
    assert not made_of.exists()


def test_relatime_may_hide_a_use_for_a_day(node: Node) -> None:
    hidden, older = node.object("hidden", 0.9), node.object("older", 1.1)
    node.run("clearml-id-1", node.folder)
    node.prune(DVC_MAX="1")
    assert (hidden.exists(), older.exists()) == (True, False)


@pytest.mark.parametrize(
    "container",
    [
        {"mounts": ["/somewhere"]},
        {"mounts": ["/"]},
        {"mounts": ["."], "trainyard__worker": "gpu01-1:gpu0"},
    ],
)
def test_containers_that_have_nothing_to_do_with_it_hold_nothing(node: Node, container: dict[str, Any]) -> None:
    used = node.object("used", 30)
    mounts = [node.folder / path for path in container.pop("mounts")]
    node.run("another", *mounts, **container)
    used.read_bytes()
    node.prune(DVC_MAX="1")
    assert not used.exists()


def test_without_dockers_word_nothing_goes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    object_ = node.object("x", 30)
    node.tell(down="Cannot connect to the Docker daemon")
    assert not node.make(DVC_MAX="1").run_pass()
    assert object_.exists()
    assert said(capsys) == "nothing is removed: docker ps: Cannot connect to the Docker daemon\n"
    assert node.metrics()['cache_bytes{cache="dvc"}'] == 16 * KIB


def test_on_a_noatime_disk_nothing_goes_while_a_container_runs(node: Node) -> None:
    script = (
        f"set -e; mount -t tmpfs -o noatime none {node.dvc}; mkdir -p {node.dvc}/files/md5/ab; "
        f"head -c 20000 /dev/zero > {node.dvc}/files/md5/ab/{'0' * 30}; touch -d '9 days ago' "
        f"{node.dvc}/files/md5/ab/*; {sys.executable} {SCRIPT} --once; ls {node.dvc}/files/md5/ab"
    )
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(node.sdk)], check=False).returncode:
        pytest.skip("this user may not mount")
    command = ["unshare", "-m", "sh", "-c", script]
    environment = node.environment(DVC_MAX="1")
    free = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "removed 1 objects" in free
    node.run("clearml-id-1", node.dvc)
    node.containers["clearml-id-1"]["State"]["StartedAt"] = datetime.fromtimestamp(days(-1), UTC).isoformat()
    node.tell()
    kept = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "the container clearml-id-1 runs, and the disk is mounted noatime" in kept
    assert "0" * 30 in kept


def test_pins_of_the_inventory(node: Node) -> None:
    files = [node.object(name, 30) for name in ("one", "two", "not pinned")]
    listing = node.listing(*files[:2], age=30)
    tree, other = (node.tree(f"clearml-{letter * 32}", 30) for letter in "ab")
    entry = node.sdk / "storage_manager/datasets" / f"ds_{'a' * 32}"
    entry.mkdir(parents=True)
    os.utime(entry, (days(30), days(30)))
    pins = f"dvc-{listing.parent.name}{listing.stem} clearml-{'a' * 32}"
    node.prune(DVC_MAX="1", CLEARML_MAX="1", SDK_MAX="1", PINS=pins)
    assert [path.exists() for path in (*files, listing)] == [True, True, False, True]
    assert (tree.exists(), other.exists(), entry.exists()) == (True, False, True)


def test_hard_links_elsewhere_keep_an_object(node: Node) -> None:
    object_ = node.object("x", 30)
    os.link(object_, node.folder / "workspace")
    node.prune(DVC_MAX="1")
    assert object_.exists()


# --- half-made and half-removed --------------------------------------------------------------------------------------


def test_rubbish_goes_and_what_somebody_makes_stays(node: Node, hold: Callable[..., Any]) -> None:
    making = node.clearml / "making"
    for name in ("dvc-a.x1/content", "dvc-b.x2/content", "clearml-c.d.x3/content", "no-lock.x4"):
        (making / name).mkdir(parents=True)
        (making / name / "half").write_text("half")
    for name in ("dvc-a", "dvc-b", "clearml-c.d"):
        (making / f"{name}.lock").touch()
    maker = hold(making / "dvc-b.lock", "exclusive")
    hold(making / "clearml-c.d.lock", "exclusive")
    victim = node.object("may be linked by it", 30)
    node.prune(DVC_MAX="1")
    left = sorted(path.name for path in making.iterdir() if path.suffix != ".lock")
    assert left == ["clearml-c.d.x3", "dvc-b.x2"]
    assert victim.exists(), "a tree of DVC is being made, and may link to it"
    maker.kill()
    maker.wait()
    node.prune(DVC_MAX="1")
    assert not (making / "dvc-b.x2").exists()
    assert not victim.exists()


def test_what_dvc_broke_off_goes_after_a_day(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.object("x", 30)
    broken = next(node.dvc.glob("files/md5/*")) / ".Kf0a_token.tmp"
    broken.write_bytes(b"half" * KIB)
    os.utime(broken, (days(3), days(3)))
    node.prune(DVC_MAX="1")
    assert broken.exists(), "its change time is new: DVC may be writing it"
    now = time.time()
    monkeypatch.setattr(pruner.time, "time", lambda: now + 2 * DAY)
    node.prune(DVC_MAX="1")
    assert not broken.exists()


def test_a_tree_that_is_made_at_the_last_moment_gets_its_objects_back(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, gone, read, listed = (node.object(name, 30) for name in ("taken", "gone", "read", "in a folder"))
    listing = node.listing(listed, age=29)
    content = taken.read_bytes()
    os.utime(taken, (days(30), days(30)))
    again = pruner.Pruner._look_again

    def late(self: Any, aside: int, moved: Any) -> None:  # between the renaming and the second look
        assert not taken.exists()
        node.tree("dvc-" + "a" * 32, 0, files=0, links=(taken,))
        for item in moved:
            if item.path[-1] in (read.name, listing.name):
                with pruner.folder(self.caches["dvc"].handle, ".trainyard-pruner") as own:
                    assert own
                (node.dvc / ".trainyard-pruner/aside" / ":".join(item.path)).read_bytes()
        again(self, aside, moved)

    monkeypatch.setattr(pruner.Pruner, "_look_again", late)
    node.prune(DVC_MAX="1")
    assert taken.read_bytes() == content
    assert [path.exists() for path in (gone, read, listing, listed)] == [False, True, True, True]
    assert node.left_over() == []


READER = """
import fcntl, os, random, sys, time
root = sys.argv[1]
opened = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for key in os.listdir(root):
        # As clearml_client opens a tree: shared lock, then look whether the tree still has its name.
        try:
            handle = os.open(f"{root}/{key}/lease", os.O_RDWR)
        except FileNotFoundError:
            continue
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            same = os.fstat(handle).st_ino == os.stat(f"{root}/{key}/lease").st_ino
        except FileNotFoundError:
            same = False
        if same:
            os.utime(f"{root}/{key}/used")
            for _ in range(3):
                for number in range(40):
                    open(f"{root}/{key}/content/images/{number}.png", "rb").close()
                open(f"{root}/{key}/content/images/link-0", "rb").close()
            opened += 1
        os.close(handle)
    time.sleep(random.random() / 200)
print(opened)
"""


def test_readers_with_a_lease_never_see_a_half_tree(node: Node) -> None:
    target = node.object("linked by all", 30)
    for number in range(60):
        node.tree(f"dvc-{number:032x}", 30, files=40, kib=1, links=(target,))
    trees = node.clearml / "trees"
    command = [sys.executable, "-c", READER, str(trees), "4"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    rounds = 0
    while any(reader.poll() is None for reader in readers):
        # Used a moment ago, so that only the lease protects it.
        for used in trees.glob("*/used"):
            os.utime(used, (days(30), days(30)))
        node.prune(CLEARML_MAX="1", DVC_MAX="1")
        rounds += 1
        for number in range(60, 70):
            if rounds < 40 and not (trees / f"dvc-{number:032x}").exists():
                if not target.exists():
                    node.object("linked by all", 30)
                node.tree(f"dvc-{number:032x}", 30, files=40, kib=1, links=(target,))
    for reader in readers:
        output, errors = reader.communicate()
        assert reader.returncode == 0, errors
        assert int(output) > 0
    node.prune(CLEARML_MAX="1", DVC_MAX="1")
    assert list(trees.iterdir()) == []
    assert node.left_over() == []


CLIENT = """
import hashlib, os, random, sys, time
from clearml_client import _cache
dvc, seconds = sys.argv[1], float(sys.argv[2])
data = b"an image" * 2000
md5 = hashlib.md5(data).hexdigest()
target = f"{dvc}/files/md5/{md5[:2]}/{md5[2:]}"

def make(folder):
    # As DVC: fetch what is not there, then link to it.
    if not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        half = f"{target}.{os.getpid()}.tmp"
        with open(half, "wb") as file:
            file.write(data)
        os.rename(half, target)
        os.utime(target, (1, 1))
    for number in range(20):
        (folder / str(number)).write_bytes(data)
    (folder / "link").symlink_to(target)

end = time.monotonic() + seconds
rounds = 0
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for key in random.sample(range(6), 2):
                content = _cache.open_tree(f"dvc-{key:032x}", make, source="a test")
                time.sleep(random.random() / 100)
                os.utime(content.parent / "used", (1, 1))  # long ago, so that the lease alone keeps it
                for name in [*map(str, range(20)), "link"]:
                    assert (content / name).read_bytes() == data
                os.utime(target, (1, 1))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "a child failed"
    rounds += 1
print(rounds)
"""


def test_the_real_client_opens_trees_while_they_are_pruned(node: Node) -> None:
    environment = {**os.environ, "CLEARML_CLIENT_CACHE": str(node.clearml)}
    command = [sys.executable, "-c", CLIENT, str(node.dvc), "4"]
    clients = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    while any(client.poll() is None for client in clients):
        node.prune(CLEARML_MAX="1", DVC_MAX="1")
    for client in clients:
        output, errors = client.communicate()
        assert client.returncode == 0, errors
        assert int(output) > 5
    assert node.metrics()['removed_total{cache="clearml"}'] > 5, "the pruner had nothing to do"
    assert node.left_over() == []


def test_kill_9_at_any_moment_leaves_nothing_wrong(node: Node, hold: Callable[..., Any]) -> None:
    kept = [node.object(f"kept {number}", 90, kib=4) for number in range(300)]
    contents = {path: path.read_bytes() for path in kept}
    for path in kept:
        os.utime(path, (days(90), days(90)))
    living = node.tree("dvc-" + "f" * 32, 50, files=5, links=tuple(kept))
    hold(living / "lease")
    fates = set()
    seeds = random.Random(5)
    for attempt in range(14):
        for number in range(400):
            node.object(f"loose {number}", 60, kib=4)
        for number in range(8):
            if not (node.clearml / f"trees/clearml-{number:032x}").exists():
                node.tree(f"clearml-{number:032x}", 40, files=60, kib=1)
        entry = node.sdk / f"storage_manager/datasets/ds_{attempt:032x}"
        entry.mkdir(parents=True)
        for number in range(50):
            (entry / str(number)).write_bytes(b"x" * KIB)
            os.utime(entry / str(number), (days(70), days(70)))
        os.utime(entry, (days(70), days(70)))
        process = node.program("--once", DVC_MAX="1", CLEARML_MAX="1", SDK_MAX="1")
        deadline = time.monotonic() + 20
        # From the moment that it begins to remove.
        while process.poll() is None and entry.exists() and time.monotonic() < deadline:
            if any((node.dvc / ".trainyard-pruner").glob("aside/*")):
                break
        time.sleep(seeds.random() * 0.06)
        process.kill()
        process.communicate()
        fates.add(process.returncode)
        for tree in node.clearml.glob("trees/*"):
            expected = json.loads((tree / "tree.json").read_text())["files"]
            assert len(list((tree / "content/images").iterdir())) == expected, "half a tree under its name"
        for entry in node.sdk.glob("storage_manager/datasets/ds_*"):
            assert len(list(entry.iterdir())) == 50, "half a dataset under its name"
        for path, content in contents.items():
            assert path.read_bytes() == content
        for path in kept:
            os.utime(path, (days(90), days(90)))
    assert -9 in fates, "no pass was killed on its way"
    node.prune(DVC_MAX="1", CLEARML_MAX="1", SDK_MAX="1")
    assert sorted(path.name for path in node.clearml.glob("trees/*")) == [living.name]
    assert len(list(node.dvc.glob("files/md5/*/*"))) == len(kept)
    assert list(node.sdk.glob("storage_manager/datasets/*")) == []
    assert node.left_over() == []


def test_a_broken_off_pass_is_finished_by_the_next(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    back = node.object("comes back", 3)
    fetched = node.object("fetched again meanwhile", 3)
    aside = node.dvc / ".trainyard-pruner/aside"
    aside.mkdir(parents=True)
    content = back.read_bytes()
    back.rename(aside / f"files:md5:{back.parent.name}:{back.name}")
    (aside / f"files:md5:{fetched.parent.name}:{fetched.name}").write_text("x")
    (aside / "..:..:evil").write_text("x")
    pruned = node.clearml / "making" / "clearml-x.pruned-1234"
    pruned.mkdir(parents=True)
    node.prune()
    assert back.read_bytes() == content
    assert fetched.read_bytes() != b"x"
    assert not pruned.exists()
    assert f"put back 2 objects of {node.dvc}: a pass was broken off" in said(capsys)
    assert [path.name for path in aside.iterdir()] == ["..:..:evil"]


# --- links that lead away --------------------------------------------------------------------------------------------


def test_no_link_is_followed(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    outside = node.folder / "outside"
    (outside / "content").mkdir(parents=True)
    (outside / "content/precious").write_text("x")
    os.utime(outside / "content/precious", (days(90), days(90)))
    tree = node.tree("clearml-" + "a" * 32, 30, links=(outside / "content",))
    (node.clearml / "trees/clearml-linked").symlink_to(outside)
    (node.clearml / "making").mkdir(exist_ok=True)
    (node.clearml / "making/dvc-x.1").symlink_to(outside)
    (node.sdk / "storage_manager/datasets").mkdir(parents=True)
    (node.sdk / "storage_manager/datasets/ds_x").symlink_to(outside)
    os.utime(node.sdk / "storage_manager/datasets/ds_x", (days(9), days(9)), follow_symlinks=False)
    node.prune(DVC_MAX="1", CLEARML_MAX="1", SDK_MAX="1")
    assert not tree.exists()
    assert (outside / "content/precious").read_text() == "x"
    assert "clearml-linked is no folder; left alone" in said(capsys)


def test_a_linked_part_of_dvcs_cache_stops_its_pruning(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    object_ = node.object("x", 30)
    (node.folder / "outside").mkdir()
    (node.dvc / "files/md5/zz").symlink_to(node.folder / "outside")
    place = next(name for name in ("00", "01") if not (node.dvc / f"files/md5/{name}").exists())
    (node.dvc / f"files/md5/{place}").symlink_to(node.folder / "outside")
    assert not node.make(DVC_MAX="1").run_pass()
    assert object_.exists(), "who knows what it lists"
    assert said(capsys) != ""


SWAP = """
import os, sys, time
tree, outside = sys.argv[1:]
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        os.rename(tree, tree + "-away")
        os.symlink(outside, tree)
        os.unlink(tree)
        os.rename(tree + "-away", tree)
    except OSError:
        pass
"""


def test_folders_that_turn_into_links_while_they_are_removed_lead_nowhere(node: Node) -> None:
    outside = node.folder / "outside"
    shutil.copytree(node.tree("clearml-" + "b" * 32, 30, files=30, kib=1), outside)
    shutil.rmtree(node.clearml / "trees")
    tree = node.tree("clearml-" + "a" * 32, 30, files=30, kib=1)
    images = tree / "content/images"
    process = subprocess.Popen([sys.executable, "-c", SWAP, str(images), str(outside / "content/images")])
    while process.poll() is None:
        node.make(CLEARML_MAX="1").run_pass()
        if not tree.exists():
            node.tree("clearml-" + "a" * 32, 30, files=30, kib=1)
    assert len(list((outside / "content/images").iterdir())) == 30


# --- the SDK's cache -------------------------------------------------------------------------------------------------

SDK = """
import os, sys, time
from clearml.storage.cache import CacheManager
manager = CacheManager.get_cache_manager("datasets")
path = manager.get_cache_folder() + "/ds_" + sys.argv[1]
os.makedirs(path, exist_ok=True)
open(path + "/image.png", "wb").write(b"x" * 40000)
manager.lock_cache_folder(path)
print(path, flush=True)
time.sleep(60)
"""


def test_the_sdks_entries_go_unless_the_sdk_holds_them(node: Node, hold: Callable[..., Any]) -> None:
    environment = {**os.environ, "CLEARML_CACHE_DIR": str(node.sdk)}
    command = [sys.executable, "-c", SDK, "a" * 32]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        held = Path(holder.stdout.readline().strip())
        assert node.sdk in held.parents
        free = held.parent / f"ds_{'b' * 32}"
        free.mkdir()
        (free / "image.png").write_bytes(b"x" * 40000)
        file = node.sdk / "storage_manager/global" / "0123.artifact.zip"
        file.parent.mkdir()
        file.write_bytes(b"x" * 40000)
        for path in (held, held / "image.png", free, free / "image.png", file):
            os.utime(path, (days(30), days(30)))
        node.prune(SDK_MAX="1")
        assert [path.exists() for path in (held / "image.png", free, file)] == [True, False, False]
        holder.kill()
    node.prune(SDK_MAX="1")
    assert not held.exists()
    assert node.left_over() == []


def test_an_entry_that_the_sdk_opens_at_the_last_moment_comes_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = node.sdk / "storage_manager/global/0123.model.pt"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"x" * 40000)
    os.utime(entry, (days(30), days(30)))
    rename = os.rename

    def late(source: str, *arguments: Any, **folders: Any) -> None:
        if source == entry.name:
            entry.touch()  # as the SDK does with what it hands out
        rename(source, *arguments, **folders)

    monkeypatch.setattr(pruner.os, "rename", late)
    node.prune(SDK_MAX="1")
    assert entry.read_bytes() == b"x" * 40000
    assert node.left_over() == []


def test_the_sdks_cache_appears_later(node: Node) -> None:
    node.sdk.rmdir()
    node.prune(SDK_MAX="1")
    shutil.rmtree(node.dvc)
    assert not node.make().run_pass()


# --- what is told ----------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if ".trainyard-pruner" not in path.parts:
            facts = path.lstat()
            found[str(path)] = (
                facts.st_ino,
                facts.st_mtime_ns,
                facts.st_atime_ns if path.is_file() and not path.is_symlink() else 0,
            )
    return found


def test_a_dry_run_tells_what_a_real_one_does_and_touches_nothing(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = node.object("alone", 60)
    node.listing(node.object("in a folder", 50), age=50)
    node.tree("dvc-" + "a" * 32, 30, files=3, links=(alone,))
    (node.clearml / "making/dvc-x.1").mkdir(parents=True)
    settings = {"DVC_MAX": "1", "CLEARML_MAX": "1"}
    before = [everything(path) for path in (node.dvc, node.clearml)]
    node.prune(**settings, DRY_RUN="1")
    assert [everything(path) for path in (node.dvc, node.clearml)] == before, "not even an access time"
    would = said(capsys)
    assert "would remove 3 objects" in would
    assert node.metrics()['removed_total{cache="dvc"}'] == 0
    node.prune(**settings)
    assert said(capsys) == would.replace("would remove", "removed")
    assert not list(node.dvc.glob("files/md5/*/*"))


def test_metrics_and_counters_survive(node: Node) -> None:
    node.object("old", 30)
    node.object("young", 3)
    node.prune(DVC_MAX="20k")
    found = node.metrics()
    assert found['cache_bytes{cache="dvc"}'] == 16 * KIB
    assert found['cache_limit_bytes{cache="dvc"}'] == 20 * KIB
    assert found['cache_items{cache="dvc"}'] == 1
    assert found['cache_over_bytes{cache="dvc"}'] == 0
    assert found['freed_bytes_total{cache="dvc"}'] == 16 * KIB
    assert time.time() - found["last_success_timestamp_seconds"] < 10
    node.object("old", 30)
    node.prune(DVC_MAX="20k")
    assert node.metrics()['removed_total{cache="dvc"}'] == 2
    text = (node.folder / "state/pruner.prom").read_text()
    assert text.count("# TYPE trainyard_pruner_removed_total counter") == 1
    assert (node.folder / "state/pruner.prom").stat().st_mode & 0o777 == 0o644


def test_the_program(node: Node) -> None:
    old = node.object("old", 30)
    process = node.program("--once", "--dry-run", DVC_MAX="1")
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors, old.exists()) == (0, "", True)
    assert output.startswith("would remove 1 objects")
    for arguments, status in ((["--once"], 0), (["--healthy"], 0)):
        process = node.program(*arguments, DVC_MAX="1")
        process.communicate(timeout=20)
        assert process.returncode == status
    os.utime(node.folder / "state/pruner.prom", (1, 1))
    process = node.program("--healthy")
    process.communicate(timeout=20)
    assert process.returncode == 1
    process = node.program("--once", DVC_MAX="much")
    assert process.communicate(timeout=20)[1].startswith("pruner: CLEARML_PRUNER_DVC_MAX is 'much'; write")
    assert process.returncode == 2


def test_sigterm_ends_it_at_once(node: Node) -> None:
    process = node.program()
    try:
        deadline = time.monotonic() + 20
        while not (node.folder / "state/pruner.prom").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=5)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, "pruner of node gpu01: a pass every 900 s\n")


def test_two_pruners_do_not_work_at_once(
    node: Node, hold: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    object_ = node.object("x", 30)
    node.prune()
    hold(node.clearml / ".trainyard-pruner/lock", "exclusive")
    node.prune(DVC_MAX="1", CLEARML_MAX="1")
    assert object_.exists(), "the trees that link to it cannot be seen"
    assert said(capsys) == f"{node.clearml}: another pruner is at work\n"


# --- with real DVC ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(DVC is None, reason="needs dvc beside the tests' Python or on PATH")
def test_real_dvc_fetches_again_what_went_and_keeps_what_is_checked_out(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, config = node.folder / "work", node.folder / "xdg/dvc"
    work.mkdir()
    config.mkdir(parents=True)
    (config / "config").write_text(f"[cache]\n    dir = {node.dvc}\n    shared = group\n    type = symlink\n")
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(config.parent))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("git", "init", "-q", ".")
    run(str(DVC), "init", "-q")
    for folder in ("used", "unused"):
        (work / folder).mkdir()
        for number in range(5):
            (work / folder / str(number)).write_text(f"{folder} {number}" * 1000)
        run(str(DVC), "add", "-q", folder)
    run(str(DVC), "remote", "add", "-q", "-d", "store", str(node.folder / "remote"))
    run(str(DVC), "push", "-q")
    assert len(list(node.dvc.glob("files/md5/*/*"))) == 12
    for path in node.dvc.glob("files/md5/*/*"):
        os.utime(path, (days(30), days(30)))
    for folder in ("used", "unused"):
        shutil.rmtree(work / folder)
    node.run("clearml-id-1", node.dvc)
    run(str(DVC), "checkout", "-q", "used.dvc")  # an experiment that has read no file yet
    node.prune(DVC_MAX="1")
    assert len(list(node.dvc.glob("files/md5/*/*"))) == 6
    for number in range(5):
        assert (work / "used" / str(number)).read_text() == f"used {number}" * 1000
    run(str(DVC), "pull", "-q")
    assert (work / "unused/3").read_text() == "unused 3" * 1000
    run(str(DVC), "status", "-q", "--cloud")


# --- the role's settings and folders ---------------------------------------------------------------------------------

DISK = 2**40
GOOD: dict[str, Any] = {
    "paths": {
        "dataset_cache_path": "/data/dvc_cache",
        "dataset_cache_clearml_path": "/data/clearml_cache",
        "dataset_cache_sdk_path": "/opt/clearml/agent/cache/sdk-cache",
    },
    "mounts": ["/data"],
    "nfs": "",
    "hosts": ["gpu01", "gpu02"],
    "pruner_host": "",
    "pruner_enabled": True,
    "keep_hours": 24,
    "interval": 900,
    "min_free": "10%",
    "dataset_cache_max_size": "500g",
    "dataset_cache_clearml_max_size": "",
    "dataset_cache_sdk_max_size": "",
    "pins": ["clearml-" + "a" * 32, "dvc-" + "0" * 32],
}
SURVEY: dict[str, Any] = {
    "mounted": {"/": "/dev/vda", "/data": "/dev/vdb"},
    **{variable: {"size": DISK, "system": "ext2/ext3", "link": ""} for variable in GOOD["paths"]},
}
NFS: dict[str, Any] = {"nfs": "nas:/export", "pruner_host": "gpu01", "keep_hours": 336}


def problems(survey: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    paths = {f"dataset_cache_{name}": changes.pop(name) for name in ("path", "clearml_path") if name in changes}
    settings = {**GOOD, "paths": {**GOOD["paths"], **paths}, **changes}
    return list(settings_of.dataset_cache_problems(settings, {**SURVEY, **(survey or {})}, "gpu01"))


def test_good_settings_have_no_problem() -> None:
    assert problems() == []
    assert problems(mounts=[], path="/dvc_cache", clearml_path="/clearml_cache") == []
    assert problems({"mounted": {}}, **NFS) == []
    assert problems({"mounted": {"/data": "nas:/export"}}, **NFS) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        # The rule for paths has tests of its own: test_paths.py.
        ({"path": "/"}, "dataset_cache_path is '/': this is or lies in a folder of the system"),
        ({"path": "/var/lib"}, "dataset_cache_path is '/var/lib': other programs and people use this folder too"),
        ({"path": "cache"}, "dataset_cache_path is 'cache': write an absolute path without spaces"),
        (
            {"path": "/data/c/dvc", "clearml_path": "/data/c"},
            "dataset_cache_path is '/data/c/dvc', which lies in '/data/c' (dataset_cache_clearml_path)",
        ),
        (
            {"clearml_path": "/opt/clearml/agent/cache/sdk-cache"},
            "dataset_cache_clearml_path and dataset_cache_sdk_path are both '/opt/clearml/agent/cache/sdk-cache'",
        ),
        (
            {"path": "/dvc_cache"},
            "dataset_cache_path is '/dvc_cache', which is not below any of dataset_cache_mounts (/data); write a "
            "folder below one of them, e.g. '/data/dvc_cache'",
        ),
        (
            {"mounts": ["/data", "/fast"]},
            "dataset_cache_mounts has '/fast', where no disk is mounted, so the cache would fill the disk of the",
        ),
        ({"mounts": ["/"]}, "dataset_cache_mounts has '/'; write the mount point of a disk, e.g. /data"),
        (
            {"dataset_cache_max_size": "2t"},
            "dataset_cache_max_size is '2t', but the disk of dataset_cache_path has 1024.0 GiB: it would be full "
            "before; write less, e.g. 819g",
        ),
        ({"dataset_cache_sdk_max_size": "a lot"}, "dataset_cache_sdk_max_size is 'a lot'; write a size such as 500g"),
        (
            {"min_free": "1t"},
            "dataset_cache_min_free is '1t', but the disk of dataset_cache_path has 1024.0 GiB in all",
        ),
        ({"min_free": "100%"}, "dataset_cache_min_free is '100%'; write a part of the disk such as 10%"),
        ({"min_free": "much"}, "dataset_cache_min_free is 'much'; write a size such as 50g, a part such as 10%"),
        (
            {"pins": ["kitti@1.4.0"]},
            "dataset_cache_pins has 'kitti@1.4.0'; write clearml-<id of the dataset> or dvc-<md5>, with 32 hexadecimal",
        ),
        ({"keep_hours": -1}, "dataset_cache_keep_hours is -1; write hours from 0, e.g. 24"),
        ({"interval": 0}, "dataset_cache_pruner_interval_seconds is 0; write seconds from 1, e.g. 900"),
        ({"pruner_host": "gpu01"}, "dataset_cache_pruner_host is 'gpu01', but each node has a cache of its own"),
        ({**NFS, "nfs": "nas"}, "dataset_cache_nfs is 'nas'; write server and export, e.g. nas.example.org:/export"),
        ({**NFS, "mounts": []}, "dataset_cache_nfs is 'nas:/export', and dataset_cache_mounts has 0 entries"),
        (
            NFS | {"nfs": "nas:/other", "there": "nas:/export"},
            "but at '/data' there is 'nas:/export' already; unmount it",
        ),
        ({**NFS, "pruner_host": ""}, "dataset_cache_pruner_host is '', but a cache that several nodes share needs one"),
        (
            {**NFS, "keep_hours": 24},
            "dataset_cache_keep_hours is 24, but over NFS the pruner cannot see what the other",
        ),
    ],
)
def test_mistakes_of_the_settings_are_told(changes: dict[str, Any], told: str) -> None:
    changes = dict(changes)
    there = changes.pop("there", "" if changes.get("nfs") else "/dev/vdb")
    found = problems({"mounted": {"/data": there} if there else {}}, **changes)
    assert any(problem.startswith("gpu01: ") and told in problem for problem in found), found


def test_a_link_is_told_with_where_it_leads() -> None:
    survey = {"dataset_cache_path": {"size": DISK, "system": "xfs", "link": "/big/dvc"}}
    assert problems(survey) == [
        "gpu01: dataset_cache_path is '/data/dvc_cache', which is a link to '/big/dvc'; experiments would not find it "
        "at the same path: write '/big/dvc'"
    ]


def test_the_role_refuses_before_it_changes_anything(tmp_path: Path) -> None:
    playbook = tmp_path / "play.yml"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    variables = {
        "dataset_cache_path": str(tmp_path / "link"),
        "dataset_cache_clearml_path": str(tmp_path / "clearml_cache"),
        "dataset_cache_sdk_path": str(tmp_path / "cache/sdk-cache"),
        "dataset_cache_pruner_root": str(tmp_path / "pruner"),
        "ansible_python_interpreter": sys.executable,
    }
    plays = [{"hosts": "all", "gather_facts": False, "vars": variables, "roles": ["dataset_cache"]}]
    playbook.write_text(json.dumps(plays))
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "-i", "one,", "-c", "local", str(playbook)]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert f"one: dataset_cache_path is '{tmp_path}/link', which is a link to '{tmp_path}/real'" in said
    assert "changed=0" in said
    assert not (tmp_path / "clearml_cache").exists()


def test_what_the_client_printed_is_read() -> None:
    one, two = ({"name": name, "fetched": name == "a", "bytes": 5} for name in "ab")
    read = settings_of.dataset_cache_warmed
    assert read(f"fetching\n{json.dumps(one)}\n{json.dumps(two)}\n") == [one, two]
    assert read(json.dumps([one, two], indent=1)) == [one, two]
    assert read(json.dumps(one)) == [one]
    with pytest.raises(ValueError, match="printed no datasets: Killed"):
        read("Killed\n")


MAKE = "import os; os.umask(0o077 if {strict} else 0o022); os.makedirs('{0}/sub'); open('{0}/sub/file', 'w').close()"


@pytest.mark.skipif(os.getuid() != 0, reason="acts as several users")
def test_what_anybody_makes_in_a_shared_folder_the_group_may_change(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(0o755)
    cache = tmp_path / "cache"
    (cache / "before").mkdir(parents=True)
    arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {"paths": [str(cache), str(tmp_path / "new")], "gid": 29871}})
    module = ROOT / "ansible/roles/dataset_cache/library/shared_folder.py"

    def run() -> dict[str, Any]:
        command = [sys.executable, str(module), arguments]
        return dict(json.loads(subprocess.check_output(command, env={**os.environ, "ANSIBLE_LOCALHOST_WARNING": "0"})))

    first = run()
    if first["without_lists"]:
        pytest.skip("the disk of the temporary folder knows no access lists")
    assert (first["changed"], first["opened"], run()["changed"]) == (True, 1, False)

    def act(user: int, script: str) -> int:
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--groups=29871", "/usr/bin/python3", "-c", script]
        return subprocess.run(command, check=False, capture_output=True).returncode

    for number, user in enumerate((0, 1234, 1235)):
        place = cache / ("before" if number else ".") / f"by{user}"
        assert act(user, MAKE.format(place, strict=False)) == 0
        for path, mode in ((place, 0o2775), (place / "sub", 0o2775), (place / "sub/file", 0o664)):
            facts = path.stat()
            assert (facts.st_gid, oct(facts.st_mode & 0o7777)) == (29871, oct(mode)), path
        # The next user goes on where this one was.
        other = 1236
        assert act(other, f"open('{place}/sub/file', 'a').write('x'); open('{place}/sub/another', 'w')") == 0
    assert shared_folder.wanted(os.getxattr(cache, shared_folder.NAME)) == os.getxattr(cache, shared_folder.NAME)
