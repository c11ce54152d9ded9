# Part of Trainyard.
"""Filters for NVIDIA GPUs: what nvidia-smi told, and why a host cannot give its GPUs to containers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FilterModule"]

# The columns index, uuid, name, driver_version and mig.mode.current; a name may hold a comma.
GPU = re.compile(r"(\d+), (GPU-[0-9a-fA-F-]+), (.+), (\d+(?:\.\d+)+), ([^,]+)\Z")
LISTED = re.compile(r"\(UUID: ((?:GPU|MIG)-[^)]+)\)")
CUDA = re.compile(r"\d+\.\d+\Z")
PACKAGE_VERSION = re.compile(r"\d+\.\d+\.\d+-\d+\Z")
MODES = ("runtime", "cdi")
FIRST_ENGINE_WITH_CDI = 25


def trainyard_gpus(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Give the GPUs that nvidia-smi told, each as {index, uuid, name, mig}; a line that tells no GPU is left out."""
    return [
        {"index": int(gpu[1]), "uuid": gpu[2], "name": gpu[3], "mig": gpu[5] == "Enabled"}
        for line in lines
        if (gpu := GPU.match(line.strip()))
    ]


def trainyard_gpu_uuids(lines: Sequence[str]) -> list[str]:
    """Give the UUIDs that ``nvidia-smi -L`` told, of GPUs and of the parts of those in MIG mode, sorted."""
    return sorted(uuid for line in lines for uuid in LISTED.findall(line))


def trainyard_gpu_problems(found: Mapping[str, Any], wanted: Mapping[str, Any], host: str) -> list[str]:
    """Find why ``host`` cannot give its GPUs to containers.

    ``found`` is what the host told: cards (PCI addresses), driver (whether there is one), answer, error and status
    of nvidia-smi, toolkit and engine (versions, "" without). ``wanted`` is the role's settings and tables.
    """
    prefix = f"{host}: nvidia_container_toolkit_"
    problems = [prefix + problem for problem in _setting_problems(wanted)]
    enabled = str(wanted["enabled"]).lower()
    if problems or enabled == "false":
        return problems
    if not found["cards"] and not found["driver"]:
        if enabled == "auto":
            return []
        return [
            f"{prefix}enabled is true, but the host has no NVIDIA device on its PCI bus and no nvidia-smi; "
            "write auto or false, or give it a card"
        ]
    problems = _driver_problems(found, wanted, host)
    if not found["toolkit"] and wanted["distribution"] not in wanted["distributions"]:
        problems.append(
            f"{host} runs {wanted['distribution']}: the NVIDIA container toolkit can be installed on "
            f"{' and '.join(wanted['distributions'])}; install nvidia-container-toolkit yourself"
        )
    engine = str(found["engine"])
    if wanted["mode"] == "cdi" and engine and _version(engine)[0] < FIRST_ENGINE_WITH_CDI:
        problems.append(
            f"{prefix}mode is 'cdi', but Docker is {engine}, and CDI needs {FIRST_ENGINE_WITH_CDI} or newer; "
            "write 'runtime', or upgrade Docker"
        )
    return problems


def trainyard_gpu_setting_problems(wanted: Mapping[str, Any], host: str) -> list[str]:
    """Find what is wrong with the role's settings, whatever ``host`` has; ``wanted`` as in trainyard_gpu_problems."""
    return [f"{host}: nvidia_container_toolkit_{problem}" for problem in _setting_problems(wanted)]


def _setting_problems(wanted: Mapping[str, Any]) -> list[str]:
    problems = []
    if str(wanted["enabled"]).lower() not in ("auto", "true", "false"):
        problems.append(f"enabled is {wanted['enabled']!r}; write auto, true or false")
    if wanted["mode"] not in MODES:
        problems.append(f"mode is {wanted['mode']!r}; write {' or '.join(map(repr, MODES))}")
    cuda, table = wanted["cuda"], wanted["minimum_drivers"]
    if cuda != "":
        if not isinstance(cuda, str) or not CUDA.match(cuda):
            problems.append(f'cuda is {cuda!r}; write the images\' CUDA release in quotes, e.g. "12.4", or ""')
        elif cuda.split(".")[0] not in table:
            known = ", ".join(f"{family}.x" for family in table)
            problems.append(
                f'cuda is {cuda!r}, of which no lowest driver is known (known: {known}); write "" for no check'
            )
    version = wanted["version"]
    if version != "" and not (isinstance(version, str) and PACKAGE_VERSION.match(version)):
        problems.append(
            f'version is {version!r}; write the packages\' whole version, e.g. "1.17.8-1", or "" for the newest'
        )
    return problems


def _driver_problems(found: Mapping[str, Any], wanted: Mapping[str, Any], host: str) -> list[str]:
    if not found["driver"]:
        if not wanted["install_driver"]:
            return [
                f"{host}: an NVIDIA card is on the PCI bus ({', '.join(found['cards'])}), but there is no driver "
                "(no nvidia-smi); install one and reboot, or let nvidia_container_toolkit_install_driver: true install "
                f"{wanted['driver_package'] or 'nvidia_container_toolkit_driver_package'}. To leave the card alone: "
                "nvidia_container_toolkit_enabled: false"
            ]
        if not wanted["driver_package"]:
            return [
                f"{host}: nvidia_container_toolkit_driver_package is empty, and no driver is known for "
                f"{wanted['distribution']}; write a package, e.g. 'nvidia-driver'"
            ]
        return []
    # A warning, as of a corrupt infoROM, comes beside GPUs that work.
    lines = [line.strip() for line in found["answer"] if line.strip() and not line.startswith("WARNING")]
    gpus = [GPU.match(line) for line in lines]
    if found["status"] != 0 or not all(gpus) or not gpus:
        said = " ".join([*lines, *found["error"]]) or "no output"
        return [
            f"{host}: the NVIDIA driver does not answer as it should (nvidia-smi ended with {found['status']}: "
            f"{said}). After its installation or upgrade the host must be rebooted; `dmesg | grep -i nvrm` tells more. "
            "On a host without a GPU to use: nvidia_container_toolkit_enabled: false"
        ]
    if wanted["cuda"] == "":
        return []
    driver = next(gpu[4] for gpu in gpus if gpu)  # one driver serves all GPUs of a host
    needed = wanted["minimum_drivers"][wanted["cuda"].split(".")[0]]
    if _version(driver) >= _version(needed):
        return []
    return [
        f"{host}: the NVIDIA driver is {driver}, but CUDA {wanted['cuda']} (nvidia_container_toolkit_cuda) needs "
        f"{needed} or newer; upgrade the driver and reboot, or use images with an older CUDA"
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[-+~]", text)[0]))


class FilterModule:
    """Names the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "trainyard_gpu_problems": trainyard_gpu_problems,
            "trainyard_gpu_setting_problems": trainyard_gpu_setting_problems,
            "trainyard_gpu_uuids": trainyard_gpu_uuids,
            "trainyard_gpus": trainyard_gpus,
        }
