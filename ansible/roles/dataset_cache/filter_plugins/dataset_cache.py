# Part of Trainyard.
"""Filters that find the mistakes of a dataset cache's settings before anything is changed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

# Ansible finds module_utils for modules only; a filter runs on the controller.
sys.path.append(str(Path(__file__).resolve().parents[3] / "plugins" / "module_utils"))

from trainyard_paths import inside, overlap_problems, path_problem

__all__ = ["FilterModule"]

SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
PIN = re.compile(r"(clearml|dvc)-[0-9a-f]{32}\Z")
NFS = re.compile(r"[A-Za-z0-9.\[\]:_-]+:/(?!/)\S*\Z")


def _size(value: str) -> int | None:
    """Give a size such as 500g in bytes; None for anything else."""
    match = SIZE.match(value)
    return int(float(match[1]) * UNITS[match[2].lower()]) if match else None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _path_problems(paths: Mapping[str, str], survey: Mapping[str, Any]) -> list[str]:
    problems = []
    for variable, path in paths.items():
        if problem := path_problem(path, "/data/dvc_cache"):
            problems.append(f"{variable} is {path!r}: {problem}")
        elif survey.get(variable, {}).get("link"):
            problems.append(
                f"{variable} is {path!r}, which is a link to {survey[variable]['link']!r}; experiments would not find "
                f"it at the same path: write {survey[variable]['link']!r}"
            )
    return problems + overlap_problems(paths)


def _mount_problems(settings: Mapping[str, Any], paths: Mapping[str, str], survey: Mapping[str, Any]) -> list[str]:
    problems = []
    mounts = [str(mount) for mount in settings["mounts"]]
    nfs = settings["nfs"]
    strange = [mount for mount in mounts if not mount.startswith("/") or mount == "/" or mount.endswith("/")]
    if strange and not survey:
        return []  # told as what it is, and nothing can lie below it
    for mount in mounts:
        if mount in strange:
            problems.append(f"dataset_cache_mounts has {mount!r}; write the mount point of a disk, e.g. /data")
        elif not nfs and "mounted" in survey and mount not in survey["mounted"]:
            problems.append(
                f"dataset_cache_mounts has {mount!r}, where no disk is mounted, so the cache would fill the disk of "
                "the system; mount it (/etc/fstab), or write where it is mounted"
            )
    for variable in ("dataset_cache_path", "dataset_cache_clearml_path"):
        if mounts and not any(inside(paths[variable], mount) for mount in mounts):
            problems.append(
                f"{variable} is {paths[variable]!r}, which is not below any of dataset_cache_mounts "
                f"({', '.join(mounts)}); write a folder below one of them, e.g. "
                f"{mounts[0] + '/' + PurePosixPath(paths[variable]).name!r}"
            )
    if nfs:
        if not NFS.match(nfs) and survey:
            problems.append(
                f"dataset_cache_nfs is {nfs!r}; write server and export, e.g. nas.example.org:/export/datasets"
            )
        if len(mounts) != 1:
            problems.append(
                f"dataset_cache_nfs is {nfs!r}, and dataset_cache_mounts has {len(mounts)} entries; write the one "
                "folder where it is to be mounted, e.g. [/data]"
            )
        elif survey.get("mounted", {}).get(mounts[0], nfs) != nfs:
            problems.append(
                f"dataset_cache_nfs is {nfs!r}, but at {mounts[0]!r} there is {survey['mounted'][mounts[0]]!r} "
                "already; unmount it, or write another folder into dataset_cache_mounts"
            )
        if settings["pruner_enabled"] and settings["pruner_host"] not in settings["hosts"]:
            problems.append(
                f"dataset_cache_pruner_host is {settings['pruner_host']!r}, but a cache that several nodes share needs "
                f"one that prunes it; write one of {', '.join(settings['hosts'][:5])}"
                f"{', ...' if len(settings['hosts']) > 5 else ''}"
            )
        if settings["keep_hours"] < 168:
            problems.append(
                f"dataset_cache_keep_hours is {settings['keep_hours']}, but over NFS the pruner cannot see what the "
                "other nodes run; write more hours than your longest experiment takes, at least 168"
            )
    elif settings["pruner_host"]:
        problems.append(
            f"dataset_cache_pruner_host is {settings['pruner_host']!r}, but each node has a cache of its own; leave it "
            "empty, or write dataset_cache_nfs"
        )
    return problems


def _limit_problems(settings: Mapping[str, Any], survey: Mapping[str, Any]) -> list[str]:
    problems = []
    limits = {
        "dataset_cache_max_size": "dataset_cache_path",
        "dataset_cache_clearml_max_size": "dataset_cache_clearml_path",
        "dataset_cache_sdk_max_size": "dataset_cache_sdk_path",
    }
    for variable, place in limits.items():
        value = str(settings[variable])
        size = _size(value) if value else 0
        disk = survey.get(place, {}).get("size")
        if size is None:
            problems.append(f"{variable} is {value!r}; write a size such as 500g, or leave it empty for no limit")
        elif disk and size > disk and not settings["nfs"]:
            problems.append(
                f"{variable} is {value!r}, but the disk of {place} has {_gib(disk)}: it would be full before; "
                f"write less, e.g. {int(disk * 0.8 / 2**30)}g, or leave it empty and set dataset_cache_min_free"
            )
    value = str(settings["min_free"])
    if value.endswith("%"):
        part = re.match(r"\d+(\.\d+)?%\Z", value)
        if not part or not 0 < float(value[:-1]) < 100:
            problems.append(
                f"dataset_cache_min_free is {value!r}; write a part of the disk such as 10%, or a size such as 50g"
            )
    elif value:
        size = _size(value)
        if size is None:
            problems.append(
                f"dataset_cache_min_free is {value!r}; write a size such as 50g, a part such as 10%, or nothing"
            )
        for place in limits.values() if size and not settings["nfs"] else ():
            disk = survey.get(place, {}).get("size")
            if disk and size >= disk:
                problems.append(
                    f"dataset_cache_min_free is {value!r}, but the disk of {place} has {_gib(disk)} in all; "
                    "write less, e.g. 10%"
                )
                break
    return problems


def dataset_cache_problems(settings: Mapping[str, Any], survey: Mapping[str, Any], host: str) -> list[str]:
    """Find what is wrong with the settings of a node's caches.

    Args:
        settings: the role's variables, as tasks/validate.yml gives them.
        survey: from ``dataset_cache_survey``; empty where the host was not asked yet.
        host: the node, as the inventory names it.
    """
    paths = {variable: str(path) for variable, path in settings["paths"].items()}
    # Without a survey the paths and sizes are told as what they are, with those of the other roles.
    problems = _path_problems(paths, survey) if survey else []
    # What follows talks about the disks of these paths.
    problems = problems or _mount_problems(settings, paths, survey) + _limit_problems(settings, survey)
    for pin in settings["pins"]:
        if not PIN.match(str(pin)):
            problems.append(
                f"dataset_cache_pins has {str(pin)!r}; write clearml-<id of the dataset> or dvc-<md5>, with 32 "
                "hexadecimal digits, e.g. clearml-0123456789abcdef0123456789abcdef"
            )
    if settings["keep_hours"] < 0:
        problems.append(f"dataset_cache_keep_hours is {settings['keep_hours']}; write hours from 0, e.g. 24")
    if settings["interval"] < 1:
        problems.append(
            f"dataset_cache_pruner_interval_seconds is {settings['interval']}; write seconds from 1, e.g. 900"
        )
    return [f"{host}: {problem}" for problem in problems]


def dataset_cache_survey(lines: list[str]) -> dict[str, Any]:
    """Read what tasks/survey.sh printed: the disk of each path, what is a link, and what is mounted where."""
    survey: dict[str, Any] = {"mounted": {}}
    for line in lines:
        kind, *rest = line.split("\t")
        if kind == "mount":
            survey["mounted"][rest[0]] = rest[1]
        elif kind == "path":
            variable, size, system, link = rest
            survey[variable] = {"size": int(size), "system": system, "link": link}
    return survey


def dataset_cache_warmed(output: str) -> list[dict[str, Any]]:
    """Read what ``clearml-client data warm`` printed: an object per dataset, each on a line or all in one list.

    Raises:
        ValueError: nothing of that is in it.
    """
    found: list[dict[str, Any]] = []
    text = output.strip()
    try:
        whole = json.loads(text)
    except ValueError:
        for line in text.splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
    else:
        found = whole if isinstance(whole, list) else whole.get("datasets", [whole])
    if not found or any("name" not in item or "fetched" not in item for item in found):
        raise ValueError(f"clearml-client data warm printed no datasets: {text[-500:]}")
    return found


class FilterModule:
    """Tells Ansible the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "dataset_cache_problems": dataset_cache_problems,
            "dataset_cache_survey": dataset_cache_survey,
            "dataset_cache_warmed": dataset_cache_warmed,
        }
