"""The node's cache with real processes: one makes, all get it, and a kill -9 leaves nothing that looks whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from clearml_client import ClearmlClientError, _cache
from clearml_client._cache import cache_root, check_space, find_tree, is_changed, open_tree, pin, trees, unpin

MAKER = """
import os, sys, time
from pathlib import Path
from clearml_client._cache import open_tree

def make(folder):
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    for number in range(20):
        (folder / f"{number}.txt").write_text(str(number))
        time.sleep(float(sys.argv[2]))

content = open_tree("one", make, source="test")
print(len(list(content.iterdir())), flush=True)
if len(sys.argv) > 3:
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CLEARML_CLIENT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for lease in _cache._leases.values():
        os.close(lease)
    _cache._leases.clear()


def fill(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "b.txt").write_text("content")
    (folder / "c.bin").write_bytes(b"x" * 1000)


def fail(folder: Path) -> None:
    raise AssertionError("made again")


def start(log: Path, pause: float, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(log), str(pause), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def wait_until(true: object, seconds: float = 20) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def lease_is_free(root: Path, key: str) -> bool:
    with (root / "trees" / key / "lease").open("r+") as lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_tree_is_made_once_and_described(root: Path) -> None:
    content = open_tree("clearml-1", fill, source="kitti@1.0.0")
    assert content == root / "trees" / "clearml-1" / "content"
    assert (content / "a" / "b.txt").read_text() == "content"
    assert open_tree("clearml-1", fail, source="kitti@1.0.0") == content
    told = json.loads((content.parent / "tree.json").read_text())
    assert abs(told.pop("made") - time.time()) < 60
    assert told == {"key": "clearml-1", "source": "kitti@1.0.0", "files": 2, "bytes": 1007}
    (tree,) = trees()
    assert tree[:5] == ("clearml-1", content, "kitti@1.0.0", 2, 1007)
    assert sorted(entry.name for entry in (root / "making").iterdir()) == ["clearml-1.lock"]


def test_eight_processes_make_it_once(root: Path, tmp_path: Path) -> None:
    processes = [start(tmp_path / "log", 0.05) for _ in range(8)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["20"] * 8
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_killed_maker_leaves_nothing_that_looks_whole(root: Path, tmp_path: Path) -> None:
    first = start(tmp_path / "log", 0.2)
    wait_until(lambda: len(list(root.glob("making/one.*/content/*.txt"))) > 3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (root / "trees" / "one").exists()
    assert trees() == []
    assert list(root.glob("making/one.*/content"))
    second = start(tmp_path / "log", 0)
    assert second.communicate(timeout=60)[0] == "20\n"
    assert sorted(entry.name for entry in (root / "making").iterdir()) == ["one.lock"]


def test_a_waiting_process_goes_on_when_the_maker_is_killed(root: Path, tmp_path: Path) -> None:
    first = start(tmp_path / "log", 1)
    wait_until(lambda: list(root.glob("making/one.*/content/*.txt")))
    second = start(tmp_path / "log", 0)
    time.sleep(0.5)
    assert second.poll() is None
    first.kill()
    first.wait()
    assert second.communicate(timeout=60)[0] == "20\n"
    assert (tmp_path / "log").read_text() == "made\n" * 2


def test_the_lease_is_held_until_the_process_ends(root: Path, tmp_path: Path) -> None:
    user = start(tmp_path / "log", 0, "stay")
    assert user.stdout is not None
    assert user.stdout.readline() == "20\n"
    assert not lease_is_free(root, "one")
    user.kill()
    user.wait()
    wait_until(lambda: lease_is_free(root, "one"))


def test_a_child_without_exec_keeps_the_lease(root: Path) -> None:
    open_tree("one", fill, source="test")
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done[1])
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    for lease in _cache._leases.values():
        os.close(lease)
    _cache._leases.clear()
    assert not lease_is_free(root, "one")
    os.close(done[1])
    os.waitpid(child, 0)
    assert lease_is_free(root, "one")


def test_what_make_raises_comes_out_and_nothing_stays(root: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_tree("one", broken, source="test")
    assert list((root / "trees").iterdir()) == []
    assert [entry.name for entry in (root / "making").iterdir()] == ["one.lock"]
    assert open_tree("one", fill, source="test").is_dir()


def test_a_full_disk_is_said_in_words(root: Path) -> None:
    def full(folder: Path) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(ClearmlClientError, match=r"disk of the cache .* is full"):
        open_tree("one", full, source="test")
    assert list((root / "trees").iterdir()) == []


def test_a_link_to_nowhere_is_not_published(root: Path) -> None:
    with pytest.raises(ClearmlClientError, match="leads to /nowhere"):
        open_tree("one", lambda folder: (folder / "a").symlink_to("/nowhere"), source="test")
    assert list((root / "trees").iterdir()) == []


def test_links_lead_out_and_what_they_lead_to_keeps_its_mode(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "object"
    outside.write_bytes(b"x" * 500)
    outside.chmod(0o640)
    open_tree("one", lambda folder: (folder / "a").symlink_to(outside), source="test")
    assert trees()[0][3:5] == (1, 500)
    assert stat.S_IMODE(outside.stat().st_mode) == 0o640


def test_a_pruned_tree_is_made_again_by_a_process_that_had_it(root: Path) -> None:
    open_tree("one", fill, source="test")
    (root / "trees" / "one").rename(root / "making" / "one.pruned-1")
    assert (open_tree("one", fill, source="test") / "c.bin").exists()
    assert not lease_is_free(root, "one")


def test_a_user_waits_for_a_pruner_that_has_the_lease_and_then_makes_anew(root: Path, tmp_path: Path) -> None:
    open_tree("one", fill, source="test")
    os.close(_cache._leases.popitem()[1])
    with (root / "trees" / "one" / "lease").open("r+") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        user = start(tmp_path / "log", 0)
        time.sleep(0.5)
        assert user.poll() is None
        (root / "trees" / "one").rename(root / "making" / "one.pruned-1")
    assert user.communicate(timeout=60)[0] == "20\n"


def test_use_is_noted(root: Path) -> None:
    content = open_tree("one", fill, source="test")
    os.utime(content.parent / "used", (1, 1))
    open_tree("one", fail, source="test")
    assert abs((content.parent / "used").stat().st_mtime - time.time()) < 60


def test_modes_of_a_shared_cache(root: Path) -> None:
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(0o077)
    try:
        content = open_tree("one", fill, source="test")
    finally:
        os.umask(before)

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert {mode(path) for path in (content.parent, root / "trees", root / "making")} == {0o2775}
    assert {mode(path) for path in (content, content / "a")} == {0o2555}
    assert {mode(content / "a" / "b.txt"), mode(content / "c.bin")} == {0o444}
    beside = [content.parent / name for name in ("tree.json", "used", "lease")] + [root / "making" / "one.lock"]
    assert {mode(path) for path in beside} == {0o664}


def test_a_cache_of_ones_own_is_not_opened_to_the_group(root: Path) -> None:
    content = open_tree("one", fill, source="test")
    assert stat.S_IMODE(content.stat().st_mode) == 0o555
    assert stat.S_IMODE(content.parent.stat().st_mode) == 0o755
    assert stat.S_IMODE((content.parent / "used").stat().st_mode) == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_members_of_the_group_share_it(tmp_path: Path) -> None:
    shared = Path(f"/tmp/test-cache-{os.getpid()}")
    shared.mkdir()
    try:
        os.chown(shared, 0, 2000)
        shared.chmod(0o2775)
        script = (
            "import os, sys\n"
            "from clearml_client._cache import open_tree, pin, unpin, trees\n"
            "os.setgroups([2000]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
            "os.umask(0o022)\n"
            "check = lambda content, paths: [] if (content / 'new').exists() else paths\n"
            "again = sys.argv[2:] and os.unlink(os.environ['CLEARML_CLIENT_CACHE'] + '/trees/one/seal.json')\n"
            "def make(folder):\n"
            "    (folder / 'new' if sys.argv[2:] else folder / 'old').write_text('x')\n"
            "print(sorted(p.name for p in open_tree('one', make, source=sys.argv[1], check=check).iterdir()))\n"
            "pin('one'); unpin('one')\n"
        )
        environment = {**os.environ, "CLEARML_CLIENT_CACHE": str(shared), "HOME": "/tmp"}
        for user, more, has in (("4001", (), "old"), ("4002", ("again",), "new"), ("4001", (), "new")):
            done = subprocess.run(
                [sys.executable, "-c", script, user, *more],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"['{has}']\n"
        assert {path.stat().st_gid for path in shared.rglob("*")} == {2000}
    finally:
        subprocess.run(["rm", "-rf", str(shared)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_cache_that_cannot_be_written_serves_what_it_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = open_tree("one", fill, source="test")
    script = (
        "import os\n"
        "from clearml_client._cache import open_tree\n"
        "os.setgroups([]); os.setgid(4001); os.setuid(4001)\n"
        "print(open_tree('one', None, source='x') / 'c.bin')\n"
        "open_tree('two', None, source='x')\n"
    )
    for folder in [root, *root.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(content / "c.bin"), done.stderr
    assert "cannot be written" in done.stderr
    assert "CLEARML_CLIENT_CACHE" in done.stderr


def test_pins(root: Path) -> None:
    open_tree("one", fill, source="test")
    assert not trees()[0].pinned
    pin("one")
    assert trees()[0].pinned
    assert (root / "trees" / "one" / "pinned").exists()
    unpin("one")
    unpin("one")
    assert not trees()[0].pinned
    for change in (pin, unpin):
        with pytest.raises(ClearmlClientError, match="has no tree 'two'; it has: one"):
            change("two")


def spoil(content: Path) -> None:
    with (content / "c.bin").open("ab") as file:
        file.write(b"edited")


def test_a_changed_tree_is_made_anew_in_its_place(root: Path) -> None:
    content = open_tree("one", fill, source="old")
    watched = content.parent / "tree.json"
    spoil(content)

    def replace(folder: Path) -> None:
        assert json.loads(watched.read_text())["source"] == "old", "the old one must be there meanwhile"
        fill(folder)

    again = open_tree("one", replace, source="new")
    assert again == content
    assert (again / "c.bin").read_bytes() == b"x" * 1000
    assert [entry.name for entry in (root / "making").iterdir()] == ["one.lock"]
    assert not lease_is_free(root, "one")
    open_tree("one", fail, source="new")
    (damage,) = _cache.damages("one")
    assert (damage.source, damage.paths, damage.files) == ("new", ["c.bin"], 1)
    assert damage.since <= damage.found


def test_a_changed_tree_whose_source_is_gone_is_not_served(root: Path) -> None:
    content = open_tree("one", fill, source="old")
    spoil(content)

    def gone(folder: Path) -> None:
        raise ClearmlClientError("the pack is gone")

    for _ in range(2):
        with pytest.raises(ClearmlClientError, match=r"c.bin changed.*not handed out.*the pack is gone"):
            open_tree("one", gone, source="kitti@1.0.0")
    assert (content / "c.bin").exists()
    assert trees()[0].source == "old"


def test_what_is_pinned_stays_pinned_when_it_is_made_anew(root: Path) -> None:
    content = open_tree("one", fill, source="test")
    pin("one")
    spoil(content)
    open_tree("one", fill, source="test")
    assert trees()[0].pinned


def test_four_processes_that_find_one_damage_make_it_anew_once(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def numbers(folder: Path) -> None:
        for number in range(20):
            (folder / f"{number}.txt").write_text(str(number))

    content = open_tree("one", numbers, source="test")
    os.chmod(content / "3.txt", 0o644)  # noqa: PTH101
    (content / "3.txt").write_text("edited")
    users = [start(log, 0.02) for _ in range(4)]
    assert [process.communicate(timeout=120)[0].strip() for process in users] == ["20"] * 4
    assert log.read_text() == "made\n"
    assert (content / "3.txt").read_text() == "3"
    assert [damage.paths for damage in _cache.damages("one")] == [["3.txt"]]
    assert [entry.name for entry in (root / "making").iterdir()] == ["one.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_full_in_a_repair(root: Path) -> None:
    """The repair fails with a message, the edited copy is not returned, and the repair works when there is room."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(root)], check=True)
    try:

        def large(folder: Path) -> None:
            (folder / "c.bin").write_bytes(b"x" * 900_000)

        content = open_tree("one", large, source="kitti@1.0.0")
        spoil(content)
        (root / "filler").write_bytes(b"x" * 900_000)
        for _ in range(2):
            with pytest.raises(
                ClearmlClientError, match=r"c.bin changed.*not handed out.*disk of the cache .* is full"
            ):
                open_tree("one", large, source="kitti@1.0.0")
        assert [entry.name for entry in (root / "making").iterdir()] == ["one.lock"]
        (root / "filler").unlink()
        assert (open_tree("one", large, source="kitti@1.0.0") / "c.bin").stat().st_size == 900_000
        assert _cache.damages("one")
    finally:
        for lease in _cache._leases.values():
            os.close(lease)
        _cache._leases.clear()
        subprocess.run(["umount", str(root)], check=True)


def test_every_change_is_seen(root: Path, tmp_path: Path) -> None:
    """What somebody can do to a file as root; ``check`` stands for the hashes of the source."""
    hashed: list[str] = []

    def check(content: Path, paths: Sequence[str]) -> list[str]:
        hashed.extend(paths)
        right = {"a/b.txt": b"content", "c.bin": b"x" * 1000}
        return [path for path in paths if (content / path).read_bytes() != right[path]]

    def same_size_and_time(content: Path) -> None:
        before = (content / "c.bin").stat()
        (content / "c.bin").write_bytes(b"y" * 1000)
        os.utime(content / "c.bin", ns=(before.st_atime_ns, before.st_mtime_ns))

    def replaced(content: Path) -> None:
        (tmp_path / "other").write_bytes(b"z" * 1000)
        (tmp_path / "other").replace(content / "c.bin")

    def linked(content: Path) -> None:
        (content / "c.bin").rename(tmp_path / "moved")
        (content / "c.bin").symlink_to(tmp_path / "moved")

    def through_a_hard_link(content: Path) -> None:
        os.link(content / "c.bin", tmp_path / "placed")
        (tmp_path / "placed").write_bytes(b"w" * 1000)

    def added_in_a_folder_whose_time_is_set_back(content: Path) -> None:
        before = (content / "a").stat()
        (content / "a" / "more").touch()
        os.utime(content / "a", ns=(before.st_atime_ns, before.st_mtime_ns))

    def emptied(content: Path) -> None:
        shutil.rmtree(content)

    changes = [
        spoil,
        same_size_and_time,
        replaced,
        linked,
        through_a_hard_link,
        added_in_a_folder_whose_time_is_set_back,
        emptied,
        lambda content: os.truncate(content / "c.bin", 10),
        lambda content: (content / "c.bin").unlink(),
        lambda content: (content / "a").rename(content / "b"),
    ]
    for number, change in enumerate(changes):
        content = open_tree("one", fill, source="test", check=check)
        for folder in (content, content / "a"):
            folder.chmod(0o755)
        (content / "c.bin").chmod(0o644)
        change(content)
        content = open_tree("one", fill, source="test", check=check)
        assert (content / "c.bin").read_bytes() == b"x" * 1000, number
        assert sorted(path.name for path in content.rglob("*")) == ["a", "b.txt", "c.bin"], number
        assert len(_cache.damages("one")) == number + 1
        for left in ("moved", "placed", "other"):
            (tmp_path / left).unlink(missing_ok=True)


def test_what_was_only_touched_is_hashed_once_and_closed_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[list[str]] = []

    def check(content: Path, paths: Sequence[str]) -> list[str]:
        hashed.append(sorted(paths))
        return []

    content = open_tree("one", fill, source="test", check=check)
    (content / "c.bin").chmod(0o666)
    os.utime(content / "a" / "b.txt")
    (content / "a").chmod(0o777)
    for _ in range(3):
        open_tree("one", fail, source="test", check=check)
    assert hashed == [["a/b.txt", "c.bin"]]
    assert stat.S_IMODE((content / "c.bin").stat().st_mode) == 0o444
    assert stat.S_IMODE((content / "a").stat().st_mode) == 0o555
    # A tree of an older client proves itself once; with the policy "hash" every tree does, every time.
    (content.parent / "seal.json").unlink()
    for _ in range(3):
        open_tree("one", fail, source="test", check=check)
    assert hashed[1:] == [["a/b.txt", "c.bin"]]
    (content.parent / "seal.json").write_text("[half")
    open_tree("one", fail, source="test", check=check)
    monkeypatch.setenv("CLEARML_CLIENT_VERIFY", "hash")
    open_tree("one", fail, source="test", check=check)
    assert hashed[2:] == [["a/b.txt", "c.bin"]] * 2
    # Hashes do not tell what is missing, the number of files does.
    (content.parent / "seal.json").unlink()
    content.chmod(0o755)
    (content / "c.bin").unlink()
    open_tree("one", fill, source="test", check=check)
    assert (content / "c.bin").exists()
    assert len(_cache.damages("one")) == 1
    monkeypatch.setenv("CLEARML_CLIENT_VERIFY", "always")
    with pytest.raises(ClearmlClientError, match="write stat"):
        open_tree("one", fail, source="test", check=check)


def test_exchange_without_help_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "RENAME_EXCHANGE", 1 << 30)  # which no file system knows
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    _cache._exchange(tmp_path / "a", tmp_path / "b")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/b", "b", "b/a"]


def test_changes_by_root_are_seen(root: Path) -> None:
    for change in ("add", "remove", "rename", "delete all"):
        content = open_tree("one", fill, source="test")
        assert not is_changed(content)
        for folder in (content, content / "a"):
            folder.chmod(0o755)
        if change == "add":
            (content / "a" / "labels.cache").touch()
        elif change == "remove":
            (content / "a" / "b.txt").unlink()
        elif change == "rename":
            (content / "c.bin").rename(content / "d.bin")
        else:
            (content / "a" / "b.txt").unlink()
            (content / "a").rmdir()
        assert is_changed(content), change


def test_what_is_not_there_is_not_found(root: Path) -> None:
    assert find_tree("one") is None
    assert find_tree("../one") is None
    assert not root.exists()
    content = open_tree("one", fill, source="test")
    assert find_tree("one") == content


def test_what_is_no_key_is_refused() -> None:
    for key in ("", "a/b", "..", "a.b", ".a", "a b", "-x"):
        with pytest.raises(ClearmlClientError, match="no key of a tree"):
            open_tree(key, fail, source="test")


def test_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLEARML_CLIENT_CACHE", "relative")
    with pytest.raises(ClearmlClientError, match="write an absolute path"):
        cache_root()
    monkeypatch.delenv("CLEARML_CLIENT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "clearml_client"
    assert not cache_root().exists()


def test_space_is_checked_before(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    free = facts.f_bavail * facts.f_frsize
    check_space(tmp_path / "not" / "there", free // 2)
    check_space(tmp_path, 0)
    with pytest.raises(
        ClearmlClientError, match=rf"{tmp_path}/there has \d+ bytes free .* and {free + 1} .* are needed"
    ):
        check_space(tmp_path / "there", free + 1)
    if facts.f_files:
        with pytest.raises(ClearmlClientError, match="more files"):
            check_space(tmp_path, 0, files=facts.f_favail + 1_000_000)
