"""The images for experiments: what the inventory may ask for, and which build is taken."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = yaml.safe_load((ROOT / "ansible/roles/perception_images/defaults/main.yml").read_text())


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_under_test", ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


perception = load("ansible/plugins/filter/perception.py")
stamp = load("docker/stamp.py")
changes = load("docker/locks/changes.py")


def settings(**others: Any) -> dict[str, Any]:
    names = ("provider", "groups", "systems", "apt_mirror", "release", "keep", "registry")
    given = {name: DEFAULTS["perception_images_" + name] for name in names}
    return {**given, "username": "", "password": "", **others}


def problems(*matrix: Any, **others: Any) -> str:
    return "\n".join(perception.perception_problems(list(matrix), settings(**others), "gpu-01"))


def test_what_is_left_out_has_its_default() -> None:
    image, other = perception.perception_images(
        [
            {"python": "3.11"},
            {"python": "3.8", "variant": "cuda", "groups": ["eval", "torch"], "provider": "uv", "name": "old"},
        ],
        settings(apt_mirror="http://mirror"),
    )
    assert (image["name"], image["lock"], image["suite"], image["mirror"]) == (
        "3.11-cpu",
        "3.11-cpu",
        "bookworm",
        "http://mirror",
    )
    assert image["groups"] == ["runtime", "core", "eval"]
    assert (other["name"], other["lock"], other["suite"]) == ("old", "3.8-cuda", "bookworm")
    assert other["groups"] == ["runtime", "torch", "eval"]
    assert (other["target"], other["parent"]) == ("perception-old", "perception-3-8-cuda")


def test_ubuntu_is_not_asked_of_debian_s_mirror() -> None:
    (image,) = perception.perception_images([{"python": "3.12"}], settings(apt_mirror="http://mirror/debian"))
    assert (image["suite"], image["mirror"], image["components"]) == ("noble", "", "main universe")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"python": 3.1}, "gpu-01: perception_images_matrix[0].python is 3.1; write one of"),
        ({"python": 3.1}, "YAML reads 3.10 as 3.1"),
        ({"python": "3.7"}, "python is '3.7'"),
        ({"python": "3.11", "variant": "gpu"}, "variant is 'gpu'; write cpu or cuda"),
        ({"python": "3.11", "groups": "core"}, "groups is 'core'; write a list, such as [core, eval]"),
        ({"python": "3.11", "groups": ["tortch"]}, "groups has 'tortch'; there are runtime, torch"),
        ({"python": "3.11", "provider": "conda"}, "provider is 'conda'; write distribution or uv"),
        ({"python": "3.11", "group": []}, "has 'group'; it knows groups, name"),
        ({"python": "3.11", "name": "My Image"}, "name is 'My Image'; write a short name"),
        ("3.11", "perception_images_matrix[0] is '3.11'; write {python"),
    ],
)
def test_an_entry_that_cannot_be_is_told(entry: Any, said: str) -> None:
    assert said in problems(entry)


def test_settings_that_cannot_be_are_told() -> None:
    good = {"python": "3.11"}
    assert problems(good) == ""
    assert (
        problems(good, release="20261124T0930", registry="registry.example.org:5000", username="a", password="b") == ""
    )
    assert "perception_images_matrix is []" in problems()
    assert "has '3.11-cpu' 2 times" in problems(good, good)
    assert "perception_images_release is 'yesterday'" in problems(good, release="yesterday")
    assert "perception_images_keep is 0" in problems(good, keep=0)
    assert "without https://" in problems(good, registry="https://registry.example.org")
    assert "belong together" in problems(good, username="a")
    assert "systems has no '3.13'" in problems({"python": "3.13"}, systems={})


IMAGES = [{"name": "3.11-cpu"}, {"name": "3.11-cpu-lidar"}]
HASHES = {"perception-3.11-cpu": "a" * 64, "perception-3.11-cpu-lidar": "b" * 64}
TAGS = {
    "3.11-cpu": "id2",
    "3.11-cpu-20261120T0900-111111111111": "id1",
    "3.11-cpu-20261121T0900-aaaaaaaaaaaa": "id2",
    "3.11-cpu-20261122T0900-222222222222": "id3",
    "3.11-cpu-lidar-20261123T0900-333333333333": "id4",
    "latest": "id9",
}


@pytest.mark.parametrize(("image", "dockerfile"), [("lite", "lite/Dockerfile"), ("agent", "agents/Dockerfile")])
def test_what_a_dockerfile_copies_is_among_the_images_inputs(image: str, dockerfile: str) -> None:
    """What is not is missing from the build's folder, and a change of it would build no image."""
    variables = yaml.safe_load((ROOT / "ansible/roles/perception_images/vars/main.yml").read_text())
    paths = variables["__perception_images_own_inputs"][image]["paths"]
    text = (ROOT / dockerfile).read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]}
    copied |= set(re.findall(r"source=([^,\s]+)", text)) | {dockerfile}
    lost = [
        source
        for source in sorted(copied)
        if not any(f"{path}/".startswith(f"{source}/") or f"{source}/".startswith(f"{path}/") for path in paths)
    ]
    assert lost == []


def test_the_build_of_these_inputs_is_taken_even_if_it_is_not_the_newest() -> None:
    plan = perception.perception_plan(TAGS, IMAGES, HASHES, "", 5)
    assert (plan["3.11-cpu"]["tag"], plan["3.11-cpu"]["current"]) == ("3.11-cpu-20261121T0900-aaaaaaaaaaaa", True)
    assert plan["3.11-cpu-lidar"]["tag"] == ""
    assert plan["3.11-cpu-lidar"]["known"] == ["20261123T0900"]


@pytest.mark.parametrize(
    ("release", "tag"),
    [
        ("20261122", "3.11-cpu-20261122T0900-222222222222"),
        ("20261122T0859", "3.11-cpu-20261121T0900-aaaaaaaaaaaa"),
        ("20261120", "3.11-cpu-20261120T0900-111111111111"),
        ("20261119", ""),
    ],
)
def test_going_back_takes_the_newest_build_until_then(release: str, tag: str) -> None:
    assert perception.perception_plan(TAGS, IMAGES, HASHES, release, 5)["3.11-cpu"]["tag"] == tag


def test_builds_too_many_go_but_never_the_wanted_one() -> None:
    assert perception.perception_plan(TAGS, IMAGES, HASHES, "", 2)["3.11-cpu"]["old"] == [
        "3.11-cpu-20261120T0900-111111111111"
    ]
    gone = perception.perception_plan(TAGS, IMAGES, HASHES, "20261120", 1)["3.11-cpu"]["old"]
    assert gone == ["3.11-cpu-20261121T0900-aaaaaaaaaaaa", "3.11-cpu-20261122T0900-222222222222"]
    assert perception.perception_plan(TAGS, IMAGES, HASHES, "", 5)["3.11-cpu-lidar"]["old"] == []


def test_the_date_of_an_image_is_that_of_its_inputs() -> None:
    config = {
        "created": "2026-11-24T01:02:03Z",
        "history": [{"created": "x", "created_by": "RUN"}],
        "rootfs": {"diff_ids": ["a"]},
    }
    done = stamp.stamped(config, "2025-01-01T00:00:00Z")
    assert done["created"] == done["history"][0]["created"] == "2025-01-01T00:00:00Z"
    assert done["history"][0]["created_by"] == "RUN"
    assert stamp.stamped(done, "2025-01-01T00:00:00Z") == done


def test_changes_of_locks_are_said_by_package() -> None:
    before = "numpy==2.4.5 \\\n    --hash=sha256:1\nseaborn==0.13.2 \\\nfsspec[http]==1.0 \\\n"
    after = "numpy==2.4.6 \\\n    --hash=sha256:2\nshapely==2.1 \\\nfsspec[http]==1.0 \\\n"
    assert changes.changes(before, after) == ["numpy 2.4.5 -> 2.4.6", "- seaborn 0.13.2", "+ shapely 2.1"]


def inputs(tmp_path: Path, root: Path, images: dict[str, Any]) -> dict[str, Any]:
    asked = {"ANSIBLE_MODULE_ARGS": {"root": str(root), "images": images, "archive": str(tmp_path / "context.tar")}}
    command = [sys.executable, str(ROOT / "ansible/plugins/modules/image_inputs.py"), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_only_the_chosen_groups_of_a_lock_decide(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "docker/locks").mkdir(parents=True)
    (root / "docker/locks/split.py").write_text((ROOT / "docker/locks/split.py").read_text())
    (root / "client.py").write_text("x")
    lock = root / "docker/locks/3.11-cpu.txt"
    text = "numpy==1 \\\n    --hash=sha256:1\n    # via -r docker/groups/core.in\n"
    text += "shapely==1 \\\n    --hash=sha256:2\n    # via -r docker/groups/eval.in\n"
    lock.write_text(text)
    images = {
        name: {"paths": ["client.py"], "salt": name, "lock": "docker/locks/3.11-cpu.txt", "groups": [name]}
        for name in ("core", "eval")
    }
    first = inputs(tmp_path, root, images)
    assert first["revisions"] == {"core": "", "eval": ""}
    lock.write_text(text.replace("shapely==1", "shapely==2"))
    second = inputs(tmp_path, root, images)
    assert second["hashes"]["core"] == first["hashes"]["core"]
    assert second["hashes"]["eval"] != first["hashes"]["eval"]
    assert second["locks"]["core"] == first["locks"]["core"]
    images["core"]["groups"] = ["lidar"]
    assert "the lock has no group lidar; it has core, eval" in inputs(tmp_path, root, images)["msg"]
