"""What the images of experiments are: read from the inventory, found among tags, told to bake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

__all__ = ["FilterModule"]

PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
VARIANTS = ("cpu", "cuda")
PROVIDERS = ("distribution", "uv")
# As the layers of the image lie on each other; runtime is in every image.
GROUPS = ("runtime", "torch", "core", "lidar", "eval")
UBUNTU = ("focal", "jammy", "noble")
KEYS = {"name", "python", "variant", "groups", "provider"}
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}\Z")
# perception:3.11-cpu-20261124T0103-0a1b2c3d4e5f: name, when it was built (UTC), and the hash of what it is made of
TAG = re.compile(r"(?P<name>.+)-(?P<stamp>\d{8}T\d{4})-(?P<hash>[0-9a-f]{12})\Z")
RELEASE = re.compile(r"\d{8}(T\d{4})?\Z")


def _one(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    python, variant = str(entry["python"]), str(entry.get("variant", "cpu"))
    name, provider = str(entry.get("name", f"{python}-{variant}")), str(entry.get("provider", settings["provider"]))
    system = settings["systems"][python if provider == "distribution" else "uv"]
    asked = {"runtime", *entry.get("groups", settings["groups"])}
    return {
        "name": name,
        "target": "perception-" + name.replace(".", "-"),
        "parent": f"perception-{python}-{variant}".replace(".", "-"),
        "python": python,
        "variant": variant,
        "provider": provider,
        "groups": [group for group in GROUPS if group in asked],
        "lock": f"{python}-{variant}",
        "suite": system["suite"],
        "image": system["image"],
        "mirror": system.get("mirror", "" if system["suite"] in UBUNTU else settings["apt_mirror"]),
        "components": "main universe" if system["suite"] in UBUNTU else "main",
    }


def perception_images(matrix: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the images that the inventory asks for, with everything it left out."""
    return [_one(entry, settings) for entry in matrix]


def _entry_problems(place: str, entry: Any, settings: Mapping[str, Any]) -> list[str]:
    if not isinstance(entry, Mapping) or "python" not in entry:
        return [f'{place} is {entry!r}; write {{python: "3.11", variant: cpu, groups: [core]}}']
    problems = []
    if unknown := sorted(set(entry) - KEYS):
        problems.append(f"{place} has {unknown[0]!r}; it knows {', '.join(sorted(KEYS))}")
    python, variant = entry["python"], entry.get("variant", "cpu")
    if str(python) not in PYTHONS or not isinstance(python, str):
        hint = " (in quotes: YAML reads 3.10 as 3.1)" if not isinstance(python, str) else ""
        problems.append(f'{place}.python is {python!r}; write one of "{", ".join(PYTHONS)}"{hint}')
    if variant not in VARIANTS:
        problems.append(f"{place}.variant is {variant!r}; write {' or '.join(VARIANTS)}")
    provider = entry.get("provider", settings["provider"])
    if provider not in PROVIDERS:
        problems.append(f"{place}.provider is {provider!r}; write {' or '.join(PROVIDERS)}")
    groups = entry.get("groups", settings["groups"])
    if not isinstance(groups, Sequence) or isinstance(groups, str):
        problems.append(f"{place}.groups is {groups!r}; write a list, such as [core, eval]")
    elif wrong := [group for group in groups if group not in GROUPS]:
        problems.append(f"{place}.groups has {wrong[0]!r}; there are {', '.join(GROUPS)}")
    name = str(entry.get("name", "n"))
    given = entry.get("name", "n")
    if not isinstance(given, str) or not NAME.match(name) or TAG.match(name):
        problems.append(
            f"{place}.name is {given!r}; write a short name of small letters, digits, . _ -, such as 3.11-lidar"
        )
    if not problems:
        key = python if provider == "distribution" else "uv"
        system = settings["systems"].get(key)
        if not isinstance(system, Mapping) or not {"suite", "image"} <= set(system):
            problems.append(
                f"{place}: perception_images_systems has no {key!r}; "
                "write {suite: bookworm, image: debian:bookworm-slim} there"
            )
    return problems


def _is_release(text: str) -> bool:
    """Tell a day, or a day and a minute, that there was or will be."""
    if not RELEASE.match(text):
        return False
    try:
        datetime.strptime(text, "%Y%m%dT%H%M" if "T" in text else "%Y%m%d")
    except ValueError:
        return False
    return True


def perception_problems(matrix: Any, settings: Mapping[str, Any], host: str) -> list[str]:
    """Find what is wrong with the images that the inventory asks for."""
    variable = "perception_images_matrix"
    if not isinstance(matrix, Sequence) or isinstance(matrix, str) or not matrix:
        return [
            f'{host}: {variable} is {matrix!r}; write a list with an entry, such as {{python: "3.11", variant: cpu}}'
        ]
    problems = []
    for index, entry in enumerate(matrix):
        problems += _entry_problems(f"{host}: {variable}[{index}]", entry, settings)
    if not problems:
        names = [image["name"] for image in perception_images(matrix, settings)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(
                f"{host}: {variable} has {name!r} {names.count(name)} times; "
                f"give all but one a name of its own (name: {name}-lidar)"
            )
    release, keep = str(settings["release"]), settings["keep"]
    if release and not _is_release(release):
        problems.append(
            f"{host}: perception_images_release is {release!r}; "
            "write the day, or day and minute in UTC, as tags have it: 20261124 or 20261124T0930"
        )
    if not str(keep).isdigit() or int(keep) < 1:
        problems.append(
            f"{host}: perception_images_keep is {keep!r}; write how many builds of each image stay, 1 or more"
        )
    registry = str(settings["registry"])
    if registry and not re.match(r"[A-Za-z0-9.-]+(:\d+)?(/[a-z0-9._/-]+)?\Z", registry):
        problems.append(
            f"{host}: perception_images_registry is {registry!r}; write HOST:PORT, without https://, or HOST/FOLDER"
        )
    if bool(settings["username"]) != bool(settings["password"]):
        problems.append(f"{host}: perception_images_registry_username and _password belong together; one is empty")
    return problems


def perception_plan(
    tags: Mapping[str, str], images: Sequence[Mapping[str, Any]], hashes: Mapping[str, str], release: str, keep: int
) -> dict[str, dict[str, Any]]:
    """Tell for each image which build it should be, from the tags that there are.

    Args:
        tags: the tags with the ID or digest that each names; one that is not known is empty.
        images: the images, as perception_images gives them.
        hashes: hash of the inputs by "perception-NAME".
        release: the day or minute whose builds are wanted; empty: what the inputs make now.
        keep: how many builds of each image stay.

    Returns:
        By name: ``tag`` (empty: there is none yet), ``current`` (the short tag names it), ``old`` (tags too many),
        ``known`` (stamps of all builds), ``hash``.
    """
    plan = {}
    for image in images:
        name, wanted = image["name"], hashes["perception-" + image["name"]][:12]
        found = [match for match in map(TAG.match, sorted(tags)) if match and match["name"] == name]
        found.sort(key=lambda match: match["stamp"])
        fits = (
            [m for m in found if m["stamp"][: len(release)] <= release]
            if release
            else [m for m in found if m["hash"] == wanted]
        )
        tag = fits[-1].group() if fits else ""
        rest = [match.group() for match in found if match.group() != tag]
        plan[name] = {
            "tag": tag,
            "hash": wanted,
            "current": bool(tag) and tags.get(name, "") == tags[tag] != "",
            "old": rest[: max(0, len(rest) - (int(keep) - 1))],
            "known": [match["stamp"] for match in found],
        }
    return plan


def perception_bake(
    images: Sequence[Mapping[str, Any]], plan: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Give bake the targets of these images: a file to lay over docker-bake.hcl.

    ``facts`` has ``stamp``, ``systems`` (suite to image), ``hashes``, ``locks``, ``revisions`` and ``args`` for all.
    """
    targets = {}
    for image in images:
        key, name = "perception-" + image["name"], image["name"]
        target: dict[str, Any] = {
            "args": {
                **facts["args"],
                "SYSTEM_IMAGE": facts["systems"][image["suite"]],
                "APT_SUITE": image["suite"],
                "APT_MIRROR": image["mirror"],
                "APT_COMPONENTS": image["components"],
                "PROVIDER": image["provider"],
                "PACKAGE_GROUPS": " ".join(image["groups"]),
            },
            "tags": [f"trainyard/perception:{name}-{facts['stamp']}-{plan[name]['hash']}"],
            "labels": {
                "io.trainyard.inputs": facts["hashes"][key],
                "io.trainyard.lock": facts["locks"][key],
                "io.trainyard.groups": " ".join(image["groups"]),
                "org.opencontainers.image.revision": facts["revisions"][key],
            },
        }
        if image["target"] != image["parent"]:
            target["inherits"] = [image["parent"]]
        targets[image["target"]] = target
    return {"target": targets}


class FilterModule:
    """Tells Ansible the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "perception_images": perception_images,
            "perception_problems": perception_problems,
            "perception_plan": perception_plan,
            "perception_bake": perception_bake,
        }
