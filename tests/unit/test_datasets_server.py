"""Datasets against a real server, with the real SDK: uploads, downloads, and processes that are killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clearml_client import ClearmlClientError
from clearml_client.datasets import Version
from test_lite_durability import Process

# Each test has a project of its own, so that none sees another's datasets.
PACK = 1_000_000


class Relay:
    """Hands connections on to the file server, and counts what comes from there."""

    def __init__(self, port: int) -> None:
        self.bytes = 0
        self.requests: list[str] = []
        self.delay = 0.0  # seconds before each part of an answer
        self._to = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # the server restarts
                client.close()
                continue
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if count:
                    time.sleep(self.delay)
                    with self._lock:
                        self.bytes += len(data)
                elif found := re.match(rb"(GET|POST|DELETE) (\S+) HTTP", data):
                    self.requests.append(f"{found[1].decode()} {found[2].decode()}")
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


class Site:
    """A server, a relay before its files, and a process in which the SDK is configured for it."""

    def __init__(self, folder: Path) -> None:
        self.server = Process(folder)
        self.server.start()
        self.relay = Relay(self.server.files)
        self.folder = folder
        urls = {"api": self.server.api, "web": self.server.web, "files": self.relay.port}
        settings = {
            "api": {
                **{f"{name}_server": f"http://127.0.0.1:{port}" for name, port in urls.items()},
                "credentials": {"access_key": "AGENTKEY", "secret_key": "AGENTSECRET"},
            },
            "sdk": {"storage": {"cache": {"default_base_dir": str(folder / "sdk")}}},
        }
        config = folder / "clearml.conf"
        config.write_text(json.dumps(settings))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLEARML_", "TRAINS_"))}
        self.environment = {**kept, "CLEARML_CONFIG_FILE": str(config), "COLUMNS": "200"}
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_configure, initargs=(self.environment,)
        )

    def do(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of this module in the configured process."""
        return self._pool.submit(function, *arguments, **named).result(timeout=120)

    def command(self, *words: str | Path, cache: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "clearml_client.cli.data", *map(str, words)],
            env={**self.environment, "CLEARML_CLIENT_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def begin(self, *words: str | Path, cache: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "clearml_client.cli.data", *map(str, words)],
            env={**self.environment, "CLEARML_CLIENT_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stored(self, task: str) -> dict[str, float]:
        """Return when each of a task's files was stored."""
        root = self.server.folder / "data" / "files"
        found = [path for path in root.rglob("*") if path.is_file() and task in str(path)]
        return {path.name: path.stat().st_mtime for path in found}

    def close(self) -> None:
        self._pool.shutdown()
        self.relay.close()
        self.server.kill()


def _configure(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.close()


class Store:
    """The store of one project, in the configured process, with a cache of its own."""

    def __init__(self, site: Site, project: str, cache: Path) -> None:
        self.site, self.project, self.cache = site, project, cache

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return self.site.do(_call, self.project, str(self.cache), method, arguments, named)

        return call

    def stock(self, name: str, version: str | None = None) -> dict[str, bytes]:
        """Return the files as the SDK's own Dataset.get().get_local_copy() gives them."""
        found: dict[str, bytes] = self.site.do(_stock, self.project, name, version)
        return found

    def command(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.site.command(*words, "--project", self.project, cache=self.cache, check=check)

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        return self.site.begin(*words, "--project", self.project, cache=self.cache)


def _call(project: str, cache: str, method: str, arguments: Any, named: Any) -> Any:
    os.environ["CLEARML_CLIENT_CACHE"] = cache
    from clearml_client.datasets import ClearmlStore

    found = getattr(ClearmlStore(project), method)(*arguments, **named)
    return found


def _open_in_experiment(project: str, cache: str, name: str, version_id: str) -> None:
    """Note in an experiment that runs now that it opened a version, as ``open_dataset`` does."""
    os.environ["CLEARML_CLIENT_CACHE"] = cache
    from clearml import Task

    task = Task.create(project_name=project, task_name="reader")
    task.mark_started()
    task.set_configuration_object("datasets", config_text=json.dumps([{"name": name, "dataset_id": version_id}]))


def _stock(project: str, name: str, version: str | None) -> dict[str, bytes]:
    from clearml import Dataset

    dataset = Dataset.get(dataset_project=project, dataset_name=name, dataset_version=version)
    return contents(Path(dataset.get_local_copy()))


def _stock_upload(project: str, name: str, version: str, folder: str, parents: list[str]) -> str:
    from clearml import Dataset

    dataset = Dataset.create(
        dataset_project=project, dataset_name=name, dataset_version=version, parent_datasets=parents
    )
    dataset.sync_folder(folder)
    dataset.upload(chunk_size=1)
    dataset.finalize()
    return str(dataset.id)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    site.relay.delay = 0.0
    return Store(site, re.sub(r"\W+", "-", request.node.name), tmp_path / "cache")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """About 6 MB: some packs."""
    folder = tmp_path / "files"
    (folder / "images" / "train").mkdir(parents=True)
    for number in range(30):
        (folder / "images" / "train" / f"{number:02d}.bin").write_bytes(os.urandom(200_000))
    (folder / "labels.csv").write_text("name,class\n" + "a,1\n" * 5000)
    (folder / "tab\tand\nline").write_text("odd")
    return folder


def refused(call: Callable[[], object], *words: str) -> str:
    with pytest.raises(ClearmlClientError) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in words), text
    return text


# ---------------------------------------------------------------- a version's life


def test_a_version_is_what_was_uploaded(store: Store, files: Path) -> None:
    made = store.upload(
        files, "kitti", version="1.0.0", tags=["lidar"], metadata={"sensor": "a b"}, comment="first", pack_bytes=PACK
    )
    assert (made.version, made.files, made.tags, made.status) == ("1.0.0", 32, ["lidar"], "completed")
    before = store.site.relay.bytes
    folder = store.download("kitti")
    assert contents(folder) == contents(files)
    assert store.site.relay.bytes > before
    before = store.site.relay.bytes
    assert store.download("kitti@lidar") == folder
    assert store.site.relay.bytes == before, "the second use transfers nothing"
    assert not any(os.access(path, os.W_OK) for path in folder.rglob("*") if path.is_file()) or os.geteuid() == 0
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o444}
    assert store.verify("kitti@1.0.0") == store.verify("kitti@1.0.0", remote=True) == []
    tree = store.tree("kitti")
    assert tree.metadata == {"sensor": "a b"}
    assert tree.rows == [("images", True, 30, 6_000_000)]
    assert [row.path for row in store.tree("kitti", files=True).rows] == ["images", "labels.csv", "tab\tand\nline"]


def test_the_stock_sdk_reads_it_and_its_children(store: Store, files: Path) -> None:
    store.upload(files, "kitti", version="1.0.0", pack_bytes=PACK)
    first = contents(files)
    assert store.stock("kitti") == first
    (files / "labels.csv").unlink()
    (files / "images" / "train" / "00.bin").write_bytes(os.urandom(200_000))
    (files / "images" / "train" / "01.bin").write_bytes(b"shorter")
    (files / "new.txt").write_text("new")
    made = store.upload(files, "kitti", version="1.1.0", parents=["kitti@1.0.0"])
    stored = store.site.stored(made.id)
    assert sum(name.endswith(".data.zip") for name in stored) == 1, "only what changed is sent"
    second = contents(files)
    assert store.stock("kitti") == second
    assert store.stock("kitti", "1.0.0") == first
    assert contents(store.download("kitti@1.1.0")) == second
    (files / "third.txt").write_text("third")
    store.upload(files, "kitti", version="1.2.0", parents=["kitti@1.1.0"])
    assert store.stock("kitti", "1.2.0") == contents(store.download("kitti")) == contents(files)
    assert store.verify("kitti@1.2.0", remote=True) == []


def test_a_merge_loses_nothing(store: Store, tmp_path: Path) -> None:
    def folder(name: str, **texts: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file, text in texts.items():
            (made / file).write_text(text)
        return made

    store.upload(folder("a", root="root", shared="same"), "one", version="1", metadata={})
    store.upload(folder("a2", root="root", shared="same", later="later"), "one", version="2", parents=["one@1"])
    store.upload(folder("b", other="other", shared="same", both="b"), "two", version="1")
    store.upload(folder("c", third="third", both="c"), "three", version="1")
    parents = ["one@2", "two@1", "three@1"]
    text = refused(lambda: store.upload(folder("d", own="own"), "all", version="1", parents=parents), "3 parents")
    assert "--merge" in text
    merge = {"version": "1", "parents": parents, "merge": True}
    refused(lambda: store.upload(folder("e", own="own"), "all", **merge), "both", "two@1", "three@1")
    made = store.upload(folder("f", own="own", both="decided"), "all", **merge)
    expected = {
        "root": b"root", "shared": b"same", "later": b"later", "other": b"other", "third": b"third",
        "own": b"own", "both": b"decided",
    }  # fmt: skip
    assert contents(store.download("all")) == expected
    assert store.stock("all") == expected
    store.upload(
        folder("g", **{name: data.decode() for name, data in expected.items()}), "all", version="2", parents=["all"]
    )
    assert store.stock("all", "2") == contents(store.download("all@2")) == expected
    assert made.files == 7
    lineage = store.lineage("all@1")
    assert {node.label for node in lineage.nodes.values()} == {"one@1", "one@2", "two@1", "three@1", "all@1", "all@2"}
    for name in ("one@1", "one@2", "two@1", "three@1", "all@1"):
        version = store.find(name)
        refused(lambda version=version: store.delete(version), "is needed by", "all@2")
    assert store.stock("all", "1") == expected


def test_versions_sort_and_the_highest_wins(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for version in ("1.10.0", "1.9.0", "1.10.0-rc1", "1.2"):
        store.upload(tmp_path / "f", "sorted", version=version)
    assert [one.version for one in store.versions("sorted")] == ["1.2", "1.9.0", "1.10.0-rc1", "1.10.0"]
    assert store.find("sorted").version == "1.10.0"
    assert [str(one) for one in store.ls()] == ["sorted@1.10.0"]
    store.tag("sorted@1.9.0", add=["golden", "old"])
    store.tag("sorted@1.2", add=["golden"])
    assert store.find("sorted@golden").version == "1.9.0"
    assert store.tag("sorted@1.9.0", remove=["golden"]).tags == ["old"]
    assert store.find("sorted@golden").version == "1.2"
    refused(lambda: store.tag("sorted@1.9.0", add=["1.2"]), "1.2")
    refused(lambda: store.upload(tmp_path / "f", "sorted", version="1.9.0"), "sorted@1.9.0 exists", "never overwritten")
    refused(lambda: store.upload(tmp_path / "f", "sorted", version="v1.9"), "1.9.0, which is the same version")
    refused(lambda: store.find("sorted@7"), "'7'", "1.10.0")
    refused(lambda: store.find("sortet"), "no such dataset", "sorted")
    refused(lambda: store.upload(tmp_path / "f", "sorted", version="2", parents=["sorted@7"]), "'7'")
    refused(lambda: store.upload(tmp_path / "f", "a/b", version="2"), "'a/b'")
    refused(lambda: store.upload(tmp_path / "none", "sorted", version="2"), "no such folder")
    assert [str(one) for one in store.ls(unfinished=True)] == ["sorted@1.10.0"], "a refusal leaves nothing"


def test_differences(store: Store, files: Path) -> None:
    store.upload(files, "diff", version="1")
    (files / "labels.csv").unlink()
    (files / "images" / "train" / "00.bin").write_bytes(b"x" * 200_000)
    (files / "new.txt").write_text("new")
    store.upload(files, "diff", version="2", parents=["diff@1"])
    found = store.diff("diff@1", "diff@2")
    assert [(one.kind, one.path, one.before, one.after) for one in found.changes] == [
        ("changed", "images/train/00.bin", 200_000, 200_000),
        ("removed", "labels.csv", 20_011, None),
        ("added", "new.txt", None, 3),
    ]
    assert [change.kind for change in store.diff("diff@2", "diff@1").changes] == ["changed", "added", "removed"]


def test_a_local_fault_and_a_lost_pack_are_found(store: Store, files: Path, tmp_path: Path) -> None:
    made = store.upload(files, "verify", version="1", pack_bytes=PACK)
    copy = store.place("verify", tmp_path / "copy", copy=True)
    assert store.verify("verify", copy) == []
    (copy / "labels.csv").unlink()
    (copy / "images" / "train" / "07.bin").write_bytes(b"x" * 200_000)
    (copy / "extra").write_text("extra")
    assert [problem.path for problem in store.verify("verify", copy)] == ["extra", "images/train/07.bin", "labels.csv"]
    (lost,) = (store.site.server.folder / "data" / "files").rglob(f"*{made.id}.data_002.zip")
    kept = lost.read_bytes()
    lost.write_bytes(kept[:-1])
    assert [problem.path for problem in store.verify("verify", remote=True)] == [f"data_002 of {made.id}"]
    lost.unlink()
    (problem,) = store.verify("verify", remote=True)
    assert "missing in its store" in problem.text
    other = Store(store.site, store.project, tmp_path / "other")
    refused(lambda: other.download("verify"), "404")
    assert not list((other.cache / "trees").glob("*"))
    lost.write_bytes(kept[:100_000] + b"!" + kept[100_001:])
    refused(lambda: other.download("verify"), "damaged")
    assert not list((other.cache / "trees").glob("*"))
    lost.write_bytes(kept)
    assert contents(other.download("verify")) == contents(files)


def test_edited_data_are_not_served_and_who_read_them_is_named(store: Store, files: Path) -> None:
    made = store.upload(files, "edited", version="1.1.0")
    folder = store.download("edited")
    store.site.do(_open_in_experiment, store.project, str(store.cache), "edited", made.id)
    label = folder / "labels.csv"
    label.chmod(0o644)
    with label.open("a") as stream:
        stream.write("edited\n")
    label.chmod(0o444)
    (problem,) = store.verify("edited@1.1.0")
    assert problem.path == "labels.csv"
    assert "fetched again" in problem.text
    assert contents(store.download("edited")) == contents(files)
    assert store.verify("edited@1.1.0") == []
    (exposure,) = store.exposures(store.find("edited"))
    assert (exposure.damage.paths, exposure.damage.files) == (["labels.csv"], 1)
    assert [one.name for one in exposure.experiments] == ["reader"]
    told = store.command("verify", "edited").stderr
    assert "reader" in told
    assert "run them again" in told
    # The same size and times as before: the kernel's own time shows that somebody was there.
    label, before = store.download("edited") / "labels.csv", (folder / "labels.csv").stat()
    label.chmod(0o644)
    label.write_bytes(b"#" * before.st_size)
    label.chmod(0o444)
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents(store.download("edited")) == contents(files)
    assert len(store.exposures(store.find("edited"))) == 2


def test_a_damaged_list_of_files_is_fetched_again(store: Store, files: Path) -> None:
    made = store.upload(files, "listed", version="1")
    store.download("listed")
    (kept,) = store.cache.glob(f"index/{made.id}.zip")
    whole = kept.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:60] + bytes(30) + whole[90:]):
        kept.write_bytes(damaged)
        assert contents(store.download("listed")) == contents(files)
        assert store.tree("listed").files == len(contents(files))
    assert store.verify("listed") == []


def test_a_link_or_a_copy(store: Store, files: Path, tmp_path: Path) -> None:
    store.upload(files, "place", version="1")
    link = store.place("place", tmp_path / "link")
    assert link.is_symlink()
    assert contents(link) == contents(files)
    copy = store.place("place", tmp_path / "copy", copy=True)
    assert contents(copy) == contents(files)
    assert all(path.stat().st_mode & 0o200 for path in copy.rglob("*"))
    refused(lambda: store.place("place", copy), "exists")
    (files / "more").write_text("more")
    store.upload(files, "place", version="2")
    assert contents(store.place("place", link)) == contents(files), "our own link moves on"
    (tmp_path / "foreign").symlink_to(files)
    refused(lambda: store.place("place", tmp_path / "foreign"), "link to something else")


def test_deletion(store: Store, files: Path) -> None:
    first = store.upload(files, "gone", version="1", pack_bytes=PACK)
    (files / "new").write_text("new")
    second = store.upload(files, "gone", version="2", parents=["gone@1"])
    refused(lambda: store.delete(first), "gone@2")
    assert store.site.stored(first.id)
    store.delete(second)
    assert not store.site.stored(second.id)
    store.delete(first)
    assert not store.site.stored(first.id)
    refused(lambda: store.versions("gone"), "no such dataset")


def test_datasets_of_the_stock_sdk_are_opened(store: Store, files: Path) -> None:
    first = store.site.do(_stock_upload, store.project, "stock", "1.0.0", str(files), [])
    before = contents(files)
    (files / "labels.csv").unlink()
    (files / "new").write_text("new")
    store.site.do(_stock_upload, store.project, "stock", "1.1.0", str(files), [first])
    assert contents(store.download("stock@1.0.0")) == before
    assert contents(store.download("stock")) == contents(files)
    assert store.verify("stock") == store.verify("stock", remote=True) == []
    assert [change.path for change in store.diff("stock@1.0.0", "stock").changes] == ["labels.csv", "new"]
    (files / "ours").write_text("ours")
    store.upload(files, "stock", version="1.2.0", parents=["stock@1.1.0"])
    assert store.stock("stock") == contents(store.download("stock")) == contents(files)
    refused(lambda: store.delete(store.find("stock@1.0.0")), "stock@1.1.0")
    assert store.lineage("stock").text() == "stock@1.0.0\n└─ stock@1.1.0\n   └─ stock@1.2.0 *\n"


# ---------------------------------------------------------------- breaks


def wait_for(look: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_dataset_of_a_sub_project_is_opened_and_one_elsewhere_is_told(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("a b", "c+#%.txt", "größe", "back\\slash", " lead"):
        (folder / name).write_text(name)
    sub = f"{store.project}/sub project"
    store.site.do(_stock_upload, sub, "kitti", "1.0.0", str(folder), [])
    done = store.command("download", "kitti", check=False)
    assert done.returncode == 1
    assert f"'kitti' is in '{sub}'" in done.stderr
    assert f"write --project '{sub}' kitti" in done.stderr
    done = store.site.command("download", "kitti", "--project", sub, cache=store.cache)
    assert contents(Path(done.stdout.strip())) == contents(folder)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """60 MB: sixty packs of a megabyte."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number:03d}.bin").write_bytes(os.urandom(500_000))
    return folder


def journal_of(store: Store) -> Path | None:
    return next(iter((store.cache / "uploads").glob("*.jsonl")), None)


def kill_in_the_middle(store: Store, *words: str | Path, packs: int) -> Path:
    """Kill an upload when some packs are stored; return its journal."""
    process = store.begin(*words)

    def far_enough() -> bool:
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        journal = journal_of(store)
        return journal is not None and journal.read_text().count("\n") > packs

    wait_for(far_enough)
    process.send_signal(signal.SIGKILL)
    process.wait()
    journal = journal_of(store)
    assert journal is not None
    assert journal.read_text().count("\n") < 60
    return journal


def test_a_killed_upload_goes_on(store: Store, many: Path) -> None:
    words = ("upload", many, "killed", "--version", "1.0.0", "--pack-size", "1")
    journal = kill_in_the_middle(store, *words, packs=5)
    task = journal.stem
    stored = store.site.stored(task)
    listed = [json.loads(line)["artifact"] for line in journal.read_text().splitlines()[1:]]
    assert len(listed) >= 5

    refused(lambda: store.versions("killed"), "no such dataset")
    refused(lambda: store.download("killed@1.0.0"), "no such dataset")
    assert store.ls() == []
    assert [(str(one), one.status) for one in store.ls(unfinished=True)] == [("killed@1.0.0", "unfinished")]
    with pytest.raises(ValueError, match="Could not find Dataset"):
        store.stock("killed")

    (many / "000.bin").write_bytes(os.urandom(500_000))  # of the first pack, which is stored
    store.command(*words)
    made = store.find("killed")
    assert made.id == task, "the same task goes on"
    after = store.site.stored(task)
    kept = [name for name in stored if name.split(".")[2] in listed and after.get(name) == stored[name]]
    assert len(kept) >= len(listed) - 1, "only the changed pack, and what was not stored, is sent"
    assert contents(store.download("killed")) == store.stock("killed") == contents(many)
    assert not list((store.cache / "uploads").iterdir())
    assert store.ls(unfinished=True) == store.ls()
    assert store.verify("killed", remote=True) == []


def test_without_a_journal_it_begins_anew(store: Store, many: Path) -> None:
    words = ("upload", many, "anew", "--version", "1.0.0", "--pack-size", "1")
    journal = kill_in_the_middle(store, *words, packs=3)
    journal.unlink()
    store.command(*words)
    assert store.find("anew").id != journal.stem
    assert not store.site.stored(journal.stem), "nothing of the half version stays"
    assert contents(store.download("anew")) == contents(many)
    assert len(store.versions("anew", unfinished=True)) == 1


def test_two_uploads_of_one_version(store: Store, many: Path, tmp_path: Path) -> None:
    """One of another machine (another cache), one of this one: told who is at it, and none is hurt."""
    words = ("upload", many, "both", "--version", "1.0.0", "--pack-size", "1")
    process = store.begin(*words)
    wait_for(lambda: journal_of(store) is not None)
    other = Store(store.site, store.project, tmp_path / "other")
    text = refused(lambda: other.upload(many, "both", version="1.0.0"), "is being uploaded by", str(process.pid))
    assert "wait for its end" in text
    refused(lambda: store.upload(many, "both", version="1.0.0"), "another process of this machine")
    assert process.wait(timeout=60) == 0
    assert contents(store.download("both")) == contents(many)
    assert len(store.versions("both", unfinished=True)) == 1


def _break_before_publishing(project: str, cache: str, folder: str) -> str:
    os.environ["CLEARML_CLIENT_CACHE"] = cache
    from clearml_client.datasets import ClearmlStore, _claims

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_claims, "publish", _break)
        with pytest.raises(KeyboardInterrupt):
            ClearmlStore(project).upload(Path(folder), "nearly", version="1")
    return str(ClearmlStore(project).ls(unfinished=True)[0].id)


def _break(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_break_at_the_last_step_shows_nothing_and_is_mended(store: Store, files: Path) -> None:
    task = store.site.do(_break_before_publishing, store.project, str(store.cache), str(files))
    assert store.ls() == []
    with pytest.raises(ValueError, match="Could not find Dataset"):
        store.stock("nearly")
    refused(lambda: store.find("nearly@1"), "no such dataset")
    assert store.upload(files, "nearly", version="1").id == task
    assert store.stock("nearly") == contents(store.download("nearly")) == contents(files)


def _open(project: str, cache: str) -> str:
    os.environ["CLEARML_CLIENT_CACHE"] = cache
    from clearml_client.datasets import open_dataset, upload_dataset

    upload_dataset(Path(cache).parent / "files", "opened", version="2.0", project=project)
    return str(open_dataset("opened@2.0", project=project))


def test_the_calls_of_a_script(store: Store, files: Path) -> None:
    pytest.importorskip("clearml_client._links")
    assert contents(Path(store.site.do(_open, store.project, str(store.cache)))) == contents(files)


def _race(project: str, rounds: int, rivals: int) -> list[list[str]]:
    from clearml_client.datasets import _claims
    from clearml_client.datasets._remote import Server

    servers = [Server() for _ in range(rivals)]
    project_id = servers[0].make_project(f"{project}/.datasets/race", ["hidden", "dataset"])
    won = []
    for number in range(rounds):
        barrier, winners = threading.Barrier(rivals), []

        def run(server: Server, number: int = number, barrier: Any = barrier, winners: Any = winners) -> None:
            barrier.wait()
            with contextlib.suppress(ClearmlClientError):
                version = f"1.0.{number}"
                claimed = _claims.claim(
                    server, project_id=project_id, name="race", version=version, tags=[], parents=[], comment=""
                )
                winners.append(claimed.id)

        threads = [threading.Thread(target=run, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won.append(winners)
    return won


def test_of_many_claims_at_once_one_wins(store: Store) -> None:
    won = store.site.do(_race, store.project, 12, 4)
    assert [len(winners) for winners in won] == [1] * 12
    left = store.versions("race", unfinished=True)
    assert sorted(one.id for one in left) == sorted(winners[0] for winners in won)


def test_files_that_change_meanwhile_are_refused(store: Store, many: Path) -> None:
    words = ("upload", many, "moving", "--version", "1.0.0", "--pack-size", "1")
    process = store.begin(*words)
    wait_for(lambda: journal_of(store) is not None)
    (many / "added").write_text("added")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert "changed during the upload (added)" in output
    assert store.ls() == []
    store.command(*words)
    assert contents(store.download("moving")) == contents(many)


def test_a_killed_download_leaves_nothing_that_looks_whole(store: Store, many: Path) -> None:
    store.upload(many, "fetched", version="1.0.0", pack_bytes=PACK)
    store.site.relay.delay = 0.002
    process = store.begin("download", "fetched")
    wait_for(lambda: sum(1 for _ in (store.cache / "making").glob("*/content/*.bin")) > 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((store.cache / "trees").glob("*"))
    store.site.relay.delay = 0.0
    assert contents(store.download("fetched")) == contents(many)
    assert not list((store.cache / "making").glob("*/")), "what the dead left is gone"


def test_eight_processes_make_one_transfer(store: Store, many: Path) -> None:
    store.upload(many, "shared", version="1.0.0", pack_bytes=10 * PACK)
    before, asked = store.site.relay.bytes, len(store.site.relay.requests)
    processes = [store.begin("download", "shared") for _ in range(8)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    folders = {output.splitlines()[-1] for output in outputs}
    assert len(folders) == 1
    assert contents(Path(folders.pop())) == contents(many)
    packs = [request for request in store.site.relay.requests[asked:] if "/data" in request]
    assert len(packs) == len(set(packs)) == 6, "each pack once"
    assert store.site.relay.bytes - before < 61_000_000 + 8 * 200_000


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_before_it_happens(store: Store, many: Path) -> None:
    made = store.upload(many, "large", version="1.0.0")
    small = store.cache.with_name("small")
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", small], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        cramped = Store(store.site, store.project, small)
        before = store.site.relay.bytes
        refused(lambda: cramped.download("large"), "bytes free", "are needed")
        assert store.site.relay.bytes - before < 100_000, "no pack was fetched"
        assert not list((small / "trees").glob("*"))
        refused(lambda: cramped.upload(many, "large", version="2"), "bytes free", "are needed")
        assert store.find("large").id == made.id
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_server_that_restarts_does_not_break_a_download(store: Store, many: Path) -> None:
    store.upload(many, "patient", version="1.0.0", pack_bytes=10 * PACK)
    store.site.relay.delay = 0.005
    process = store.begin("download", "patient")
    wait_for(lambda: any((store.cache / "making").glob("*/content/.clearml-client-packs-*/*.zip")))
    store.site.server.kill()
    store.site.server.start()
    store.site.relay.delay = 0.0
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert contents(Path(output.splitlines()[-1])) == contents(many)


# ---------------------------------------------------------------- the command


def test_the_command_line(store: Store, files: Path, tmp_path: Path) -> None:
    def run(*words: str | Path) -> tuple[int, str, str]:
        answer: tuple[int, str, str] = store.site.do(
            _invoke, [*map(str, words), "--project", store.project], store.cache
        )
        return answer

    def asked(*words: str | Path) -> Any:
        code, output, errors = run(*words, "--json")
        assert code == 0, output + errors
        return json.loads(output)

    made = asked("upload", files, "kitti", "--version", "1.0.0", "--tag", "lidar", "--meta", "sensor=a=b")
    assert (made["version"], made["files"], made["tags"]) == ("1.0.0", 32, ["lidar"])
    (files / "new.txt").write_text("new")
    asked("upload", files, "kitti", "--version", "1.1.0", "--parent", "kitti@1.0.0")
    assert [one["version"] for one in asked("versions", "kitti")] == ["1.0.0", "1.1.0"]
    assert [one["name"] for one in asked("ls")] == ["kitti"]
    assert asked("tag", "kitti@1.0.0", "+golden", "-lidar")["tags"] == ["golden"]
    tree = asked("tree", "kitti@golden", "--depth", "1")
    assert [row["path"] for row in tree["rows"]] == ["images"]
    assert tree["metadata"] == {"sensor": "a=b"}
    page = asked("ls", "kitti", "images/train", "-l", "--limit", "7", "--page", "5")
    assert [row["path"] for row in page["rows"]] == ["images/train/28.bin", "images/train/29.bin"]
    assert [row["path"] for row in asked("tree", "kitti", "--glob", "*.csv")["rows"]] == ["labels.csv"]
    assert [change["path"] for change in asked("diff", "kitti@1.0.0", "kitti@1.1.0")["changes"]] == ["new.txt"]
    for fetched in (True, False):
        code, output, _ = run("warm", "kitti@1.1.0")
        assert code == 0
        assert [(one["name"], one["fetched"]) for one in json.loads(output)] == [("kitti@1.1.0", fetched)]
    link = tmp_path / "here"
    assert asked("download", "kitti", link) == {"path": str(link)}
    assert contents(link) == contents(files)
    assert asked("verify", "kitti", link) == asked("verify", "kitti", "--remote") == []
    picture = tmp_path / "graph.svg"
    assert len(asked("lineage", "kitti", "--svg", picture)["nodes"]) == 2
    assert picture.read_text().startswith("<svg")

    shown = store.command("ls", "kitti", "-l").stdout
    assert "tab\\tand\\nline" in shown
    assert "labels.csv" in shown
    assert "kitti@1.1.0 *" in run("lineage", "kitti")[1]
    assert "1 added" in run("diff", "kitti@1.0.0", "kitti@1.1.0")[1]

    for words, code, text in (
        (("upload", files, "kitti", "--version", "1.0.0"), 1, "exists"),
        (("upload", files, "kitti"), 2, "--version"),
        (("upload", files, "kitti", "--version", "3", "--meta", "x"), 2, "KEY=VALUE"),
        (("download", "kitti@9"), 1, "no version and no tag"),
        (("ls", "kitti", "nowhere"), 1, "no folder 'nowhere'"),
        (("ls", "kitti", "--glob", "[a"), 1, "bracket"),
        (("tree", "kitti", "--page", "9"), 1, "page 9"),
        (("tag", "kitti", "golden"), 2, "+TAG"),
        (("delete", "kitti"), 1, "kitti@VERSION"),
        (("delete", "kitti@1.1.0"), 1, "--yes"),
        (("delete", "kitti@1.0.0", "--yes"), 1, "is needed by kitti@1.1.0"),
    ):
        done, output, errors = run(*words)
        assert (done, output) == (code, ""), (words, output, errors)
        assert text in " ".join(errors.split()), (words, errors)
    done, output, _ = run("download", "nothing", "--json")
    assert done == 1
    assert "no such dataset" in json.loads(output)["error"]

    (link.resolve() / "labels.csv").chmod(0o644)
    (link.resolve() / "labels.csv").write_text("changed")
    done, output, _ = run("verify", "kitti")
    assert (done, "labels.csv: 7 bytes" in output) == (1, True)
    assert asked("delete", "kitti@1.1.0", "--yes")["deleted"]["version"] == "1.1.0"
    assert [one["version"] for one in asked("versions", "kitti")] == ["1.0.0"]


def _invoke(words: list[str], cache: Path) -> tuple[int, str, str]:
    from clearml_client.cli.data import app
    from typer.testing import CliRunner

    os.environ["CLEARML_CLIENT_CACHE"] = str(cache)
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_who_used_a_version(store: Store, files: Path) -> None:
    made: Version = store.upload(files, "used", version="1")
    task = store.site.do(_experiment, made.id)
    lineage = store.lineage("used")
    assert [(one.id, one.models) for one in lineage.experiments] == [(task, ["detector"])]
    assert f"used by an experiment (completed, {task}): detector" in lineage.text()


def _experiment(dataset: str) -> str:
    from clearml import Model, OutputModel, Task

    task = Task.create(project_name="tests", task_name="an experiment")
    task.set_configuration_object("datasets", config_text=json.dumps([{"dataset_id": dataset}]))
    task.mark_started()
    OutputModel(task=task, name="detector").update_weights(register_uri="file:///weights.bin")
    task.mark_completed()
    assert Model
    return str(task.id)
