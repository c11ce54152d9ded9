"""The module that creates, marks and removes a site's folders: nothing of anyone else goes."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = ".trainyard-site"
MANAGED = "# Managed by Ansible (role clearml_agent). The worker train01-1 of node train01.\n"
PARTS = ["reaper", "state"]


def load() -> ModuleType:
    ansible.module_utils.__path__.append(str(ROOT / "ansible/plugins/module_utils"))
    spec = importlib.util.spec_from_file_location(
        "site_folder_under_test", ROOT / "ansible/plugins/modules/site_folder.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site_folder = load()
FolderError = site_folder.FolderError


def run(
    path: Path | str,
    state: str = "present",
    *,
    variable: str = "clearml_agent_root",
    folders: list[str] | None = None,
    site: str = "lab",
    check: bool = False,
) -> dict[str, Any]:
    if folders is None:
        folders = PARTS if variable == "clearml_agent_root" and state in {"present", "checked"} else []
    given = {"path": str(path), "state": state, "variable": variable, "folders": folders, "site": site}
    result: dict[str, Any] = site_folder.run(given, check_mode=check)
    json.dumps(result)
    return result


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(root: Path) -> None:
    """Write what the role and its workers write."""
    (root / "compose.yaml").write_text("name: ${CLEARML_AGENT_PROJECT:?}\n")
    (root / "reaper.yaml").write_text("name: ${CLEARML_REAPER_PROJECT:?}\n")
    for name in ("clearml.conf", "train01-1.env", "reaper.env"):
        (root / name).write_text(MANAGED)
    (root / "state/train01-1").mkdir(parents=True)
    (root / "state/train01-1/probed").write_text("train01-1\n")
    (root / "reaper").mkdir(exist_ok=True)
    (root / "reaper/reaper.prom").write_text("x 1\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The marked and filled folder of a site's agents."""
    root = tmp_path / "disk/agent"
    run(root)
    fill(root)
    return root


# --- create and mark -------------------------------------------------------------------------------------------------


def test_a_new_folder_and_its_parts_carry_the_sites_name(tmp_path: Path) -> None:
    root = tmp_path / "a/b/agent"
    assert run(root, check=True)["changed"]
    assert not (tmp_path / "a").exists(), "a check changes nothing"
    assert run(root)["changed"]
    assert tree(root) == [MARK, "reaper", f"reaper/{MARK}", "state", f"state/{MARK}"]
    assert json.loads((root / MARK).read_text()) == {"site": "lab", "folder": "clearml_agent_root", "parts": PARTS}
    assert json.loads((root / "state" / MARK).read_text()) == {"site": "lab", "folder": "clearml_agent_root/state"}
    assert stat.S_IMODE((root / MARK).stat().st_mode) == 0o644
    assert not run(root)["changed"], "a second run changes nothing"
    assert not run(root, check=True)["changed"]


def test_a_part_that_comes_later_is_marked_too(root: Path) -> None:
    assert run(root, folders=[*PARTS, "ssh"])["changed"]
    assert (root / "ssh" / MARK).exists()
    assert not run(root, folders=PARTS)["changed"]
    assert json.loads((root / MARK).read_text())["parts"] == ["reaper", "ssh", "state"]


def test_a_folder_with_parts_that_are_empty_is_free_to_take(tmp_path: Path) -> None:
    root = tmp_path / "agent"
    (root / "state/train01-1").mkdir(parents=True)
    (root / "lost+found").mkdir()
    assert run(root)["changed"]
    assert not run(root)["changed"]


@pytest.mark.parametrize("state", ["present", "checked"])
def test_a_folder_of_others_is_refused_before_anything_is_changed(tmp_path: Path, state: str) -> None:
    root = tmp_path / "data"
    (root / "alice").mkdir(parents=True)
    (root / "alice/thesis.tex").write_text("x")
    before = tree(root)
    with pytest.raises(FolderError) as caught:
        run(root, state)
    said = str(caught.value)
    assert f"clearml_agent_root is '{root}', but {root} holds {root}/alice/thesis.tex, and no {MARK} says" in said
    assert "write a folder of its own, for example" in said
    assert tree(root) == before


def test_what_the_refusal_tells_to_type_is_believed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "state").mkdir(parents=True)
    (root / "state/x").write_text("x")
    with pytest.raises(FolderError) as caught:
        run(root)
    command = str(caught.value).split("type on this host: ")[1]
    assert os.system(command) == 0
    assert run(root)["changed"]
    assert (root / "state" / MARK).exists()


def test_two_sites_do_not_share_a_folder(root: Path) -> None:
    before = tree(root)
    for state in ("present", "checked", "planned", "absent"):
        with pytest.raises(FolderError, match=r"belongs to the site 'lab' .* and this is the site 'other'"):
            run(root, state, site="other")
    assert tree(root) == before


def test_a_part_of_another_site_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "agent"
    run(root, site="other")
    (root / MARK).unlink()
    with pytest.raises(FolderError, match=r"agent/reaper of the site 'other'|belongs to the site 'other'"):
        run(root)


def test_one_folder_for_two_variables_is_refused(root: Path) -> None:
    with pytest.raises(FolderError, match="is clearml_agent_root of this site already"):
        run(root, variable="dataset_cache_pruner_root", folders=["state"])


def test_the_folder_of_one_role_in_anothers_is_no_stranger(tmp_path: Path) -> None:
    server = tmp_path / "clearml"
    run(server / "agent")
    fill(server / "agent")
    run(server / "registry", variable="image_registry_root", folders=["data"])
    (server / "registry/data/blob").write_text("x")
    assert run(server, variable="clearml_server_root", folders=["data"])["changed"]
    run(tmp_path / "two/registry", variable="image_registry_root", site="other")
    (tmp_path / "two/registry/x").write_text("x")
    with pytest.raises(FolderError, match=r"two/registry of the site 'other'"):
        run(tmp_path / "two", variable="clearml_server_root", folders=["data"])


def test_a_folder_from_before_marks_is_adopted(tmp_path: Path) -> None:
    root = tmp_path / "agent"
    root.mkdir()
    fill(root)
    (root / "alice").mkdir()
    (root / "alice/thesis.tex").write_text("x")
    before = tree(root)
    assert not run(root, "checked")["changed"]
    assert run(root, check=True)["changed"]
    assert tree(root) == before
    assert run(root)["changed"]
    assert set(tree(root)) - set(before) == {MARK, f"reaper/{MARK}", f"state/{MARK}"}
    assert not run(root)["changed"]
    run(root, "absent")
    assert tree(root) == [MARK, "alice", "alice/thesis.tex"]


@pytest.mark.parametrize(
    ("variable", "files"),
    [
        ("clearml_server_root", {"compose/server.env": MANAGED}),
        ("dataset_cache_pruner_root", {"pruner.env": MANAGED}),
        ("image_registry_root", {"compose/registry.env": MANAGED}),
        ("site_examples_repository", {"source/digits/train.py": "from clearml import Task\n"}),
        ("clearml_agent_cache", {"pip-cache/x": "x", "venvs-builds.1/x": "x", ".clearml_agent.a.cfg": "x"}),
    ],
)
def test_every_roles_folder_from_before_marks_is_adopted(tmp_path: Path, variable: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(text)
    assert run(tmp_path / "x", variable=variable)["changed"]
    assert (tmp_path / "x" / MARK).exists()


def test_the_agents_cache_is_known_by_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    root = tmp_path / "agent"
    root.mkdir()
    fill(root)
    (root / "cache/unknown").mkdir(parents=True)
    (root / "cache/unknown/x").write_text("x")
    assert run(root / "cache", variable="clearml_agent_cache")["changed"]


@pytest.mark.parametrize(
    "files",
    [
        {"compose.yaml": "services: {}\n", "clearml.conf": "api {}\n"},
        {"compose.yaml": "name: ${CLEARML_AGENT_PROJECT:?}\n"},
        {"clearml.conf": MANAGED},
    ],
)
def test_files_of_the_same_names_are_not_the_roles(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FolderError, match="says that the site 'lab' made it"):
        run(tmp_path)
    assert tree(tmp_path) == sorted(files)


def test_a_restored_part_has_its_mark_again(root: Path) -> None:
    (root / "state" / MARK).unlink()
    assert run(root)["changed"]
    assert (root / "state" / MARK).exists()


def test_a_part_that_somebody_made_meanwhile_is_refused(root: Path) -> None:
    (root / "ssh").mkdir()
    (root / "ssh/id_alice").write_text("x")
    with pytest.raises(FolderError, match=r"ssh holds .*id_alice"):
        run(root, folders=[*PARTS, "ssh"])


def test_a_mark_that_cannot_be_read_is_named(root: Path) -> None:
    for text in ("", "lab", "[]", '{"site": "lab"}', "null", "\xff"):
        (root / MARK).write_text(text, encoding="latin-1")
        for state in ("present", "planned", "absent"):
            with pytest.raises(FolderError, match="cannot be read as a marker"):
                run(root, state)


def test_a_mark_that_is_a_link_or_somebody_elses_is_none(tmp_path: Path, root: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").write_text("x")
    (victim / MARK).symlink_to(root / MARK)
    assert run(victim, "absent")["keeps"]
    (victim / MARK).unlink()
    (victim / MARK).write_text((root / MARK).read_text())
    if os.geteuid() == 0:
        os.chown(victim / MARK, 1234, 1234)
        assert run(victim, "absent")["keeps"]
        assert tree(victim) == [MARK, "x"]


@pytest.mark.parametrize("path", ["/", "/etc", "/etc/clearml", "data", "/data/../etc", "/data/a b", "/data/", ""])
@pytest.mark.parametrize("state", ["present", "checked", "planned", "absent"])
def test_no_state_accepts_a_path_of_the_system_or_one_that_is_not_clean(path: str, state: str) -> None:
    with pytest.raises(FolderError, match=r"clearml_agent_root is .*: (write an absolute path|this is or lies in)"):
        run(path, state)


def test_a_link_to_the_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    for state in ("present", "planned", "absent"):
        with pytest.raises(FolderError, match=r"which is '/etc/clearml' behind a link"):
            run(tmp_path / "link/clearml", state)


def test_a_folder_that_is_a_link_is_refused_and_never_followed(tmp_path: Path, root: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    before = tree(root)
    with pytest.raises(FolderError, match=f"which is a link to '{root}': write '{root}'"):
        run(link)
    for state in ("planned", "absent"):
        result = run(link, state)
        assert result["removes"] == []
        assert "it is a link" in result["keeps"][0]["why"]
    assert tree(root) == before
    assert link.is_symlink()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("x")
    with pytest.raises(FolderError, match="which is not a folder"):
        run(tmp_path / "agent")
    assert run(tmp_path / "agent", "absent")["keeps"][0]["why"] == "it is not a folder"
    assert (tmp_path / "agent").read_text() == "x"


# --- remove ----------------------------------------------------------------------------------------------------------


def test_all_that_the_site_made_goes_and_a_second_run_changes_nothing(root: Path) -> None:
    plan = run(root, "planned")
    assert not plan["changed"]
    names = ["clearml.conf", "compose.yaml", "reaper", "reaper.env", "reaper.yaml", "state", "train01-1.env"]
    assert [line["path"] for line in plan["removes"]] == [f"{root}/{name}" for name in names]
    assert all(line["size"].endswith("KiB") for line in plan["removes"])
    assert plan["keeps"] == []
    assert run(root, "absent", check=True)["changed"]
    assert (root / "clearml.conf").exists(), "a check removes nothing"
    assert run(root, "absent")["changed"]
    assert not root.exists()
    assert root.parent.exists(), "the folder above is not the role's"
    for state in ("absent", "planned"):
        again = run(root, state)
        assert (again["changed"], again["removes"], again["keeps"]) == (False, [], [])


def test_what_others_have_in_the_folder_stays_and_is_listed(root: Path) -> None:
    (root / "alice/deep").mkdir(parents=True)
    (root / "alice/deep/thesis.tex").write_text("x")
    (root / "notes.txt").write_text("x")
    (root / "my.env").write_text("TOKEN=x\n")  # a name like a worker's, but not written by the role
    (root / ".hidden").write_text("x")
    (root / "link").symlink_to("/etc")
    (root / "dead").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    others = [".hidden", "alice", "dead", "link", "my.env", "notes.txt", "pipe"]
    for state in ("planned", "absent"):
        result = run(root, state)
        assert [line["path"] for line in result["keeps"]] == [f"{root}/{name}" for name in others]
    assert tree(root) == sorted([MARK, "alice/deep", "alice/deep/thesis.tex", *others])
    assert "no .trainyard-site in it says that the site lab made it" in result["keeps"][1]["why"]
    assert not run(root, "absent")["changed"]
    assert run(root, "present")["changed"], "the site may be deployed there again"


def test_nothing_goes_from_a_folder_without_a_mark(tmp_path: Path) -> None:
    root = tmp_path / "agent"
    root.mkdir()
    fill(root)
    before = tree(root)
    result = run(root, "absent")
    assert not result["changed"]
    assert [line["path"] for line in result["keeps"]] == [str(root)]
    assert tree(root) == before
    cache = tmp_path / "cache"
    (cache / "pip-cache").mkdir(parents=True)
    assert run(cache, "absent", variable="clearml_agent_cache")["keeps"][0]["path"] == str(cache)
    assert tree(cache) == ["pip-cache"]


def test_a_part_without_a_mark_stays_in_a_marked_folder(root: Path) -> None:
    (root / "state" / MARK).unlink()
    result = run(root, "absent")
    assert [line["path"] for line in result["keeps"]] == [f"{root}/state"]
    assert tree(root) == [MARK, "state", "state/train01-1", "state/train01-1/probed"]


def test_a_mark_that_was_copied_along_opens_no_other_folder(root: Path) -> None:
    """`cp -r state backup` takes the mark along."""
    (root / "backup").mkdir()
    (root / "backup" / MARK).write_text((root / "state" / MARK).read_text())
    (root / "backup/x").write_text("x")
    run(root, "absent")
    assert tree(root) == [MARK, "backup", f"backup/{MARK}", "backup/x"]


def test_links_are_removed_or_kept_but_never_followed(tmp_path: Path, root: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder/x").write_text("x")
    (root / "state/link").symlink_to(outside)
    (root / "state/train01-1/file").symlink_to(outside / "folder/x")
    (outside / "ssh").mkdir()
    (outside / "ssh/id_git").write_text("x")
    (root / "ssh").symlink_to(outside / "ssh")
    assert not run(root, folders=[*PARTS]).get("failed")
    result = run(root, "absent")
    assert [line["path"] for line in result["keeps"]] == [f"{root}/ssh"]
    assert tree(outside) == ["folder", "folder/x", "ssh", "ssh/id_git"]
    assert tree(root) == [MARK, "ssh"]


def test_a_part_that_is_a_link_is_used_and_not_marked(tmp_path: Path, root: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "ssh").symlink_to(outside)
    run(root, folders=[*PARTS, "ssh"])
    assert tree(outside) == []


def test_no_mount_point_is_crossed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "state/train01-1/disk").mkdir()
    (root / "state/train01-1/disk/data").write_text("x" * 100_000)
    (root / "state/train01-1/socket").write_text("")
    (root / "state/other").mkdir()
    points = {f"{root}/state/train01-1/disk", f"{root}/state/train01-1/socket"}
    monkeypatch.setattr(site_folder, "mounts", lambda: points)
    assert (
        float(next(x for x in run(root, "planned")["removes"] if x["path"].endswith("state"))["size"].split()[0]) < 90
    )
    result = run(root, "absent")
    assert sorted(line["path"] for line in result["keeps"]) == sorted(points)
    assert tree(root / "state") == sorted(
        [MARK, "train01-1", "train01-1/disk", "train01-1/disk/data", "train01-1/socket"]
    )
    monkeypatch.setattr(site_folder, "mounts", set)
    assert run(root, "absent")["changed"], "with the disk gone, the rest goes"
    assert not root.exists()


def test_a_part_that_is_a_disk_of_its_own_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_folder, "mounts", lambda: {f"{root}/state"})
    result = run(root, "absent")
    assert [line["path"] for line in result["keeps"]] == [f"{root}/state"]
    assert "mount point" in result["keeps"][0]["why"]
    assert (root / "state/train01-1/probed").exists()


def test_a_folder_that_is_a_disk_of_its_own_is_emptied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "lost+found").mkdir()
    monkeypatch.setattr(site_folder, "mounts", lambda: {str(root)})
    result = run(root, "absent")
    assert tree(root) == ["lost+found"]
    assert result["keeps"] == [{"path": str(root), "why": "it is a mount point, and empty now"}]
    cache = root.parent / "cache"
    run(cache, variable="clearml_agent_cache")
    (cache / "x").write_text("x")
    monkeypatch.setattr(site_folder, "mounts", lambda: {str(cache)})
    run(cache, "absent", variable="clearml_agent_cache")
    assert tree(cache) == []


def test_a_link_above_does_not_hide_a_mount_point(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "state/disk").mkdir()
    (root / "state/disk/data").write_text("x")
    (tmp_path / "link").symlink_to(root.parent)
    monkeypatch.setattr(site_folder, "mounts", lambda: {f"{root}/state/disk"})
    run(tmp_path / "link/agent", "absent")
    assert tree(root / "state") == [MARK, "disk", "disk/data"]


def test_mount_points_are_read_from_the_kernel() -> None:
    assert "/proc" in site_folder.mounts()
    assert "/" in site_folder.mounts()


def test_a_run_that_broke_off_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 0
    unlink = os.unlink

    def dies(name: str, **given: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        unlink(name, **given)

    for limit in range(20):
        left = limit
        monkeypatch.setattr(site_folder.os, "unlink", dies)
        try:
            run(root, "absent")
        except KeyboardInterrupt:
            monkeypatch.setattr(site_folder.os, "unlink", unlink)
            assert run(root, "planned")["keeps"] == []
        else:
            break
    assert not root.exists()


def test_a_part_whose_mark_alone_is_gone_is_removed(root: Path) -> None:
    for path in sorted((root / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    run(root, "absent")
    assert not root.exists()


def test_what_cannot_be_removed_is_an_error_and_the_rest_is_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def read_only(name: str, **given: Any) -> None:
        if name == "probed":
            raise OSError(30, "Read-only file system")
        unlink(name, **given)

    monkeypatch.setattr(site_folder.os, "unlink", read_only)
    with pytest.raises(FolderError, match=r"state/train01-1/probed cannot be removed: Read-only file system"):
        run(root, "absent")
    assert tree(root) == [MARK, "state", f"state/{MARK}", "state/train01-1", "state/train01-1/probed"]
    monkeypatch.undo()
    assert run(root, "absent")["changed"]
    assert not root.exists()


def test_files_without_rights_and_with_odd_names_go_too(root: Path) -> None:
    (root / "state/closed").mkdir(mode=0o500)
    (root / "state/a\nb'c").write_text("x")
    (Path(os.fsdecode(os.fsencode(root / "state") + b"/\xff\xfe"))).write_text("x")
    run(root, "planned")
    run(root, "absent")
    assert not root.exists()


def test_folders_nested_too_deep_end_with_a_sentence(root: Path) -> None:
    here = os.open(root / "state", os.O_RDONLY)
    for _ in range(2000):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    with pytest.raises(FolderError, match=r"cannot be removed: (its folders are nested too deep|Too many open files)"):
        run(root, "absent")
    assert os.system(f"rm -rf {root}/state") == 0


def test_one_part_alone_may_be_removed(root: Path) -> None:
    run(root, folders=[*PARTS, "ssh"])
    (root / "ssh/id_git").write_text("x")
    assert run(root, "absent", folders=["ssh"])["changed"]
    assert not (root / "ssh").exists()
    assert (root / "state/train01-1/probed").exists()
    assert not run(root, "absent", folders=["ssh"])["changed"]


def test_the_folder_of_the_repository_may_hold_others(tmp_path: Path) -> None:
    git = tmp_path / "git"
    (git / "team.git").mkdir(parents=True)
    (git / "team.git/HEAD").write_text("x")
    given: dict[str, Any] = {"variable": "site_examples_repository"}
    assert run(git, folders=["source", "digits.git"], **given)["changed"]
    assert not run(git, folders=["source", "digits.git"], **given)["changed"]
    (git / "digits.git/HEAD").write_text("x")
    result = run(git, "absent", **given)
    assert tree(git) == ["team.git", "team.git/HEAD"]
    assert [line["path"] for line in result["keeps"]] == [f"{git}/team.git"]


def test_the_repository_may_lie_in_the_servers_folder(tmp_path: Path) -> None:
    run(tmp_path, variable="clearml_server_root", folders=["data"])
    given: dict[str, Any] = {"variable": "site_examples_repository"}
    run(tmp_path, folders=["source"], **given)
    assert not run(tmp_path, folders=["source"], **given)["changed"]
    run(tmp_path, "absent", **given)
    assert tree(tmp_path) == [MARK, "data", f"data/{MARK}"]


def test_what_another_role_of_the_site_made_is_left_to_it(tmp_path: Path) -> None:
    server = tmp_path / "clearml"
    run(server, variable="clearml_server_root", folders=["data", "compose"])
    run(server / "agent")
    fill(server / "agent")
    result = run(server, "absent", variable="clearml_server_root")
    assert result["keeps"] == []
    assert sorted(path.name for path in server.iterdir()) == [MARK, "agent"]
    run(server / "agent", "absent")
    run(server, "absent", variable="clearml_server_root")
    assert not server.exists()


def test_a_long_list_of_others_is_cut(root: Path) -> None:
    for number in range(30):
        (root / f"x{number:02}").write_text("x")
    keeps = run(root, "planned")["keeps"]
    assert len(keeps) == 11
    assert keeps[-1]["path"] == "20 more"


def test_a_size_is_counted_once_per_file_and_to_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "state/big").write_bytes(b"x" * 1_000_000)
    os.link(root / "state/big", root / "state/same")
    size = {line["path"]: line["size"] for line in run(root, "planned")["removes"]}[f"{root}/state"]
    assert 900 < float(size.split()[0]) < 1100
    monkeypatch.setattr(site_folder, "COUNTED", 2)
    assert any(line["size"].startswith("more than ") for line in run(root, "planned")["removes"])
    assert site_folder.human(0, all_of_it=True) == "0 B"
    assert site_folder.human(5 * 2**40, all_of_it=True) == "5.0 TiB"
