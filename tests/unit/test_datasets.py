"""Versions, packs, the index and the graph of datasets: what needs no server."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from clearml_client import ClearmlClientError
from clearml_client.datasets._journal import Journal, StoredPack, find_journal
from clearml_client.datasets._records import Version
from clearml_client.datasets.index import (
    Entry,
    Index,
    Source,
    compile_depth,
    compile_glob,
    escape,
    summarize_folders,
    unescape,
    write_index,
)
from clearml_client.datasets.lineage import Lineage, Node, _related
from clearml_client.datasets.packs import (
    Pack,
    PackedFile,
    SourceFile,
    Wanted,
    check_unchanged,
    extract,
    plan_packs,
    safe_path,
    scan,
    write_pack,
)
from clearml_client.datasets.versions import (
    check_name,
    check_tag,
    check_version,
    parse_reference,
    sort_versions,
    version_key,
)
from hypothesis import given
from hypothesis import strategies as st

# ---------------------------------------------------------------- versions

LADDERS = [
    ["0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
     "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2", "1.10"],
    ["1.4.0.dev3", "1.4.0a1", "1.4.0b2", "1.4.0rc1", "1.4.0rc2", "1.4.0", "1.4.0.post1", "1.4.1"],
    ["2026-04-30", "2026-05-01", "2026-05-01.2", "2026-12-01"],
    ["run-2", "run-9", "run-10", "walk-1"],
    ["v1.9", "v1.10", "v2"],
    ["1.0.0-lidar", "1.0.0"],
]  # fmt: skip


@pytest.mark.parametrize("ladder", LADDERS)
def test_versions_sort_as_declared(ladder: list[str]) -> None:
    assert sort_versions(reversed(ladder)) == ladder


@pytest.mark.parametrize(
    ("one", "other"), [("1.4", "1.4.0"), ("v1.4.0", "1.4.0"), ("1.4.0-RC1", "1.4.0rc1"), ("01.2", "1.2")]
)
def test_one_version_written_in_two_ways(one: str, other: str) -> None:
    assert version_key(one) == version_key(other)


labels = st.from_regex(re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,15}", re.ASCII), fullmatch=True)
numbers = st.lists(st.integers(0, 30), min_size=3, max_size=3).map(lambda parts: ".".join(map(str, parts)))
prereleases = st.sampled_from(["a1", "-alpha.1", "-beta", "rc2", "-rc.3", ".dev4"])


@given(numbers, numbers)
def test_numbers_compare_as_numbers(one: str, other: str) -> None:
    expected = [int(part) for part in one.split(".")] < [int(part) for part in other.split(".")]
    assert (version_key(one) < version_key(other)) is expected


@given(numbers, prereleases, numbers)
def test_a_prerelease_is_just_below_what_it_leads_to(number: str, suffix: str, other: str) -> None:
    before = version_key(number + suffix)
    assert before < version_key(number)
    if version_key(other) < version_key(number):
        assert version_key(other) < before


@given(st.lists(labels, max_size=12), st.randoms())
def test_the_order_does_not_depend_on_the_order(versions: list[str], dice: object) -> None:
    mixed = list(versions)
    dice.shuffle(mixed)  # type: ignore[attr-defined]
    assert sort_versions(mixed) == sort_versions(versions)


@given(labels)
def test_what_may_be_made_can_be_asked_for(label: str) -> None:
    assert parse_reference(f"kitti@{check_version(label)}") == ("kitti", label)


@pytest.mark.parametrize("text", ["", "@1.0", "kitti@", "kitti@a b", "kitti@1@2", "kitti@/etc"])
def test_a_malformed_reference_is_shown(text: str) -> None:
    with pytest.raises(ClearmlClientError, match=re.escape(repr(text))):
        parse_reference(text)


@pytest.mark.parametrize("name", ["", "ab", "a/b", "kitti@1", "-kitti", " kitti", "kitti ", "k\n12", "x" * 129, None])
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(ClearmlClientError, match="dataset name"):
        check_name(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["", "1 0", "1/0", "-1", "1@0", "1" * 65, None, 3])
def test_bad_versions_are_refused(version: object) -> None:
    with pytest.raises(ClearmlClientError, match="version"):
        check_version(version)  # type: ignore[arg-type]


def test_bad_tags_are_refused() -> None:
    with pytest.raises(ClearmlClientError, match="tag"):
        check_tag("a b")


# ---------------------------------------------------------------- packs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "one.txt").write_text("one")
    (root / "empty").write_bytes(b"")
    (root / "deep" / "words.txt").write_text("word " * 50_000)
    (root / "deep" / "er" / "noise.bin").write_bytes(os.urandom(3_000_000))
    (root / "a\ttab, a\nline, a\\slash, ü").write_text("odd")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def wanted(pack: Pack) -> list[Wanted]:
    return [Wanted(file.path, file.size, file.sha256) for file in pack.files]


def test_a_folder_survives_a_pack(folder: Path, tmp_path: Path) -> None:
    target, copy = tmp_path / "pack.zip", tmp_path / "copy"
    pack = write_pack(folder, scan(folder), target)
    assert (pack.size, pack.sha256) == (target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        kinds = {info.filename: info.compress_type for info in archive.infolist()}
        assert kinds["deep/words.txt"] == zipfile.ZIP_DEFLATED
        assert kinds["deep/er/noise.bin"] == zipfile.ZIP_STORED
        copy.mkdir()
        extract(archive, wanted(pack), copy, origin="the pack")
    assert contents(copy) == contents(folder)
    for file in pack.files:
        assert file.sha256 == hashlib.sha256((folder / file.path).read_bytes()).hexdigest()
    again = write_pack(folder, scan(folder), tmp_path / "again.zip")
    assert again.sha256 == pack.sha256


def test_a_damaged_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pack.zip"
    pack = write_pack(folder, scan(folder), target)
    data = bytearray(target.read_bytes())
    with zipfile.ZipFile(target) as archive:
        at = archive.getinfo("deep/er/noise.bin").header_offset + 1_000
    data[at] ^= 1
    target.write_bytes(data)
    (tmp_path / "copy").mkdir()
    with zipfile.ZipFile(target) as archive, pytest.raises(ClearmlClientError, match=r"noise\.bin"):
        extract(archive, wanted(pack), tmp_path / "copy", origin="the pack")


def test_other_bytes_of_a_valid_zip_are_noticed(tmp_path: Path) -> None:
    target = tmp_path / "pack.zip"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a.txt", b"other")
    with zipfile.ZipFile(target) as archive, pytest.raises(ClearmlClientError, match="is not what was uploaded"):
        extract(archive, [Wanted("a.txt", 5, hashlib.sha256(b"right").hexdigest())], tmp_path, origin="the pack")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", "a/.."])
def test_a_path_that_leaves_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ClearmlClientError, match="refused"):
        safe_path(path)
    target, inner = tmp_path / "evil.zip", tmp_path / "in" / "ner"
    inner.mkdir(parents=True)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(zipfile.ZipInfo(path or "x"), b"evil")
    with zipfile.ZipFile(target) as archive, pytest.raises(ClearmlClientError):
        extract(archive, [Wanted(path, 4, "")], inner, origin="the pack")
    assert [str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*") if found.is_file()] == ["evil.zip"]


def test_what_cannot_be_stored_is_told(folder: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(ClearmlClientError, match=match):
            scan(folder)

    (folder / "link").symlink_to(folder / "deep", target_is_directory=True)
    refused("link to a folder")
    (folder / "link").unlink()
    (folder / "broken").symlink_to("nothing")
    refused("broken: cannot be read")
    (folder / "broken").unlink()
    os.mkfifo(folder / "pipe")
    refused("neither a file nor a folder")
    (folder / "pipe").unlink()
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))).write_text("x")
    refused("not UTF-8")
    with pytest.raises(ClearmlClientError, match="no such folder"):
        scan(tmp_path / "nowhere")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ClearmlClientError, match="no file"):
        scan(tmp_path / "nothing")


def test_a_link_to_a_file_counts_as_the_file(folder: Path) -> None:
    (folder / "link.txt").symlink_to("one.txt")
    assert {file.path: file.size for file in scan(folder)}["link.txt"] == 3


def test_a_change_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    before = scan(folder)
    check_unchanged(folder, before)
    (folder / "one.txt").write_text("ONE")
    with pytest.raises(ClearmlClientError, match=r"one\.txt"):
        check_unchanged(folder, before)
    with pytest.raises(ClearmlClientError, match=r"one\.txt changed"):
        write_pack(folder, before, tmp_path / "pack.zip")
    (folder / "new.txt").write_text("new")
    with pytest.raises(ClearmlClientError, match=r"new\.txt"):
        check_unchanged(folder, before)


sizes = st.lists(st.integers(0, 50), max_size=40)


@given(sizes, st.integers(1, 60))
def test_packs_hold_each_file_once(sizes: list[int], most: int) -> None:
    files = [SourceFile(f"{number:03d}", size, 0) for number, size in enumerate(sizes)]
    packs = plan_packs(files, most)
    assert [file for pack in packs for file in pack] == files
    assert all(len(pack) == 1 or sum(file.size for file in pack) <= most for pack in packs)
    assert all(packs)


# ---------------------------------------------------------------- the index

names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=6)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@given(paths)
def test_a_path_survives_its_escaping(path: str) -> None:
    line = escape(path)
    assert unescape(line) == path
    assert not set(line) & set("\t\n\r")


def opened(target: Path) -> Index:
    archive = zipfile.ZipFile(target)
    return Index(archive.read)


@given(
    files=st.dictionaries(paths, st.tuples(st.integers(0, 10**12), st.integers(0, 3)), max_size=30),
    rows=st.integers(1, 7),
)
def test_an_index_tells_what_it_was_told(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[int, int]], rows: int
) -> None:
    target = tmp_path_factory.mktemp("index") / "index.zip"
    entries = [
        Entry(path, size, hashlib.sha256(path.encode()).hexdigest(), Source(f"task{pack % 2}", f"data_{pack:03d}"))
        for path, (size, pack) in sorted(files.items())
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clearml_client.datasets.index.BLOCK_ROWS", rows)
        write_index(target, entries, {"id": "x"})
    index = opened(target)
    assert (index.files, index.bytes) == (len(entries), sum(entry.size for entry in entries))
    assert list(index.entries()) == entries
    assert list(index.listing()) == [(entry.path, entry.size) for entry in entries]
    assert list(index.entries([entry.path for entry in entries[::3]])) == entries[::3]
    folders = {entry.path.rpartition("/")[0] for entry in entries}
    for folder in folders - {""}:
        expected = [entry.path for entry in entries if entry.path.startswith(folder + "/")]
        assert [file.path for file in index.listing(folder)] == expected
    for folder in index.folders():
        below = [e for e in entries if not folder.path or e.path.startswith(folder.path + "/")]
        own = [e for e in below if e.path.rpartition("/")[0] == folder.path]
        assert folder == (folder.path, len(own), sum(e.size for e in own), len(below), sum(e.size for e in below))


@given(
    files=st.sets(paths, min_size=1, max_size=30),
    rows=st.integers(1, 7),
    first=st.integers(0, 40),
    count=st.integers(1, 12),
    data=st.data(),
)
def test_a_window_is_a_part_of_all(
    tmp_path_factory: pytest.TempPathFactory,
    files: set[str],
    rows: int,
    first: int,
    count: int,
    data: st.DataObject,
) -> None:
    target = tmp_path_factory.mktemp("index") / "index.zip"
    entries = [Entry(path, 1, "", Source("t", "data")) for path in sorted(files)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clearml_client.datasets.index.BLOCK_ROWS", rows)
        write_index(target, entries, {"id": "x"})
    index = opened(target)
    folder = data.draw(st.sampled_from([known.path for known in index.folders()]))
    prefix = folder + "/" if folder else ""
    folders = [known.path for known in index.folders() if known.path.startswith(prefix) and known.path != folder]
    everything = sorted([*((path, -1) for path in folders), *((file.path, 1) for file in index.listing(folder))])
    assert index.window(folder, folders, first, count) == everything[first : first + count]
    depth = data.draw(st.integers(1, 4))
    within = [e.path for e in entries if e.path.startswith(prefix) and e.path[len(prefix) :].count("/") < depth]
    assert [file.path for file in index.listing(folder, compile_depth(folder, depth))] == within


def test_the_same_files_have_the_same_hash_wherever_they_are(tmp_path: Path) -> None:
    here = [Entry("a", 1, "f" * 64, Source("one", "data"))]
    there = [Entry("a", 1, "f" * 64, Source("other", "data_004"))]
    write_index(tmp_path / "1", here, {"id": "1"})
    write_index(tmp_path / "2", there, {"id": "2"})
    write_index(tmp_path / "3", [here[0]._replace(sha256="e" * 64)], {"id": "3"})
    assert opened(tmp_path / "1").hash == opened(tmp_path / "2").hash != opened(tmp_path / "3").hash


def test_folders_without_own_files_are_counted() -> None:
    found = {folder.path: folder for folder in summarize_folders([("a/b/c.txt", 5), ("a/d.txt", 2)])}
    assert list(found) == ["", "a", "a/b"]
    assert found[""] == ("", 0, 0, 2, 7)
    assert found["a"] == ("a", 1, 2, 2, 7)


@pytest.mark.parametrize(
    ("glob", "matching"),
    [
        ("*.png", ["a.png", "x/b.png", "x/y/c.png"]),
        ("x/*.png", ["x/b.png"]),
        ("x/**/*.png", ["x/b.png", "x/y/c.png"]),
        ("**/c.png", ["x/y/c.png"]),
        ("?.png", ["a.png", "x/b.png", "x/y/c.png"]),
        ("[ab].png", ["a.png", "x/b.png"]),
        ("[!ab].png", ["x/y/c.png"]),
        ("x/y/c.png", ["x/y/c.png"]),
        ("od?d", ["od\td"]),
        ("a.p(g", []),
    ],
)
def test_globs(glob: str, matching: list[str], tmp_path: Path) -> None:
    all_ = sorted(["a.png", "x/b.png", "x/y/c.png", "x/y/d.txt", "od\td"])
    write_index(tmp_path / "index", [Entry(path, 1, "", Source("t", "data")) for path in all_], {"id": "x"})
    assert [file.path for file in opened(tmp_path / "index").listing("", compile_glob(glob))] == matching


@pytest.mark.parametrize("glob", ["", "[a", "x/[b-a]"])
def test_a_broken_glob_is_told(glob: str) -> None:
    with pytest.raises(ClearmlClientError, match="glob"):
        compile_glob(glob)


# ---------------------------------------------------------------- the journal


def test_a_journal_keeps_what_was_stored(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, {"task": "abc", "name": "kitti"})
    stored = StoredPack("data", "http://x/data.zip", Pack(10, "f" * 64, [PackedFile("a\nb", 1, 2, "e" * 64)]))
    journal.add(stored)
    path = find_journal(tmp_path, name="kitti")
    assert path == journal.path
    assert Journal.open(path) is None, "it is in use"
    journal.close()
    with path.open("a") as stream:
        stream.write('{"artifact": "data_001", "uri"')  # the power went here
    again = Journal.open(path)
    assert again is not None
    assert again.packs == [stored]
    again.add(stored._replace(artifact="data_002"))
    again.close()
    third = Journal.open(path)
    assert third is not None
    assert [pack.artifact for pack in third.packs] == ["data", "data_002"]
    third.remove()
    assert find_journal(tmp_path, name="kitti") is None


# ---------------------------------------------------------------- lineage


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Node]:
    """Graphs as versions make them: parents are older."""
    count = draw(st.integers(1, 12))
    nodes = {}
    for number in range(count):
        above = draw(st.lists(st.integers(0, number - 1), unique=True, max_size=3)) if number else []
        nodes[f"id{number}"] = Node(f"id{number}", f"d@{number}", [f"id{one}" for one in above], "whole")
    return nodes


def ancestors(nodes: dict[str, Node], id_: str) -> set[str]:
    return {id_}.union(*(ancestors(nodes, parent) for parent in nodes[id_].parents))


@given(histories(), st.data())
def test_a_lineage_has_all_relatives(nodes: dict[str, Node], data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(sorted(nodes)))
    related = set(_related(nodes, start))
    assert ancestors(nodes, start) <= related
    below = {id_ for id_ in nodes if start in ancestors(nodes, id_)}
    assert below <= related
    parents_of_below = {parent for id_ in below for parent in nodes[id_].parents}
    assert related == ancestors(nodes, start) | below | parents_of_below

    version = Version("d", start[2:], start, [], "completed", "", 0, 0, "")
    lineage = Lineage(version, {id_: nodes[id_] for id_ in related}, [])
    text = lineage.text()
    assert all(f"{nodes[id_].label}" in text for id_ in related)
    assert text.count(" *") >= 1
    picture = ElementTree.fromstring(lineage.svg())
    boxes = picture.findall(".//{*}rect")
    assert len(boxes) == len(related)
    edges = sum(1 for id_ in related for parent in nodes[id_].parents if parent in related)
    assert len(picture.findall(".//{*}path")) == edges
    left = {
        group.find("{*}title").text.split()[1]: int(group.find("{*}rect").get("x")) for group in picture.findall("{*}g")
    }  # type: ignore[union-attr,arg-type]
    assert all(left[parent] < left[id_] for id_ in related for parent in nodes[id_].parents if parent in related)
