# Part of Trainyard.
"""The rules for folders that the inventory names: on which paths a role may work, and which folders may lie in which.

Pure functions without imports from Ansible: modules use them on the hosts, filters on the controller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

__all__ = ["PARTS", "inside", "overlap_problems", "path_problem", "removal_problem"]

# Folders of the system: no folder of a role may be one of them or lie below one.
SYSTEM = frozenset(
    {
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/lost+found",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/snap",
        "/sys",
        "/usr",
        "/var/backups",
        "/var/lib/apt",
        "/var/lib/containerd",
        "/var/lib/containers",
        "/var/lib/docker",
        "/var/lib/dpkg",
        "/var/lib/kubelet",
        "/var/lib/systemd",
        "/var/lock",
        "/var/log",
        "/var/mail",
        "/var/run",
        "/var/spool",
    }
)
# Folders that many programs and people use: a folder of a role may lie below one of them, but may not be one.
SHARED = frozenset(
    {
        "/data",
        "/home",
        "/media",
        "/mnt",
        "/nfs",
        "/opt",
        "/scratch",
        "/srv",
        "/tmp",  # noqa: S108
        "/var",
        "/var/cache",
        "/var/lib",
        "/var/local",
        "/var/opt",
        "/var/tmp",  # noqa: S108
    }
)
# What a path may not hold: it goes into docker's -v and --mount, into env files and into YAML.
UNSAFE = re.compile(r"[\s:,\"'`$\\*?\[\]{}|;&<>#%=!~\x00-\x1f\x7f]")

# Of each variable that names a folder with parts: the names directly below it that are the role's own. Whatever else
# lies there belongs to others and is never removed. A name that ends in / is a folder, which is the role's with all
# that is in it.
PARTS: Mapping[str, tuple[str, ...]] = {
    "clearml_agent_root": ("*.env", "clearml.conf", "compose.yaml", "reaper.yaml", "reaper/", "ssh/", "state/"),
    "clearml_server_root": (
        "bundle.sha256",
        "bundle.tar",
        "compose/",
        "config/",
        "data/",
        "logs/",
        "secrets/",
        "tls/",
    ),
    "dataset_cache_pruner_root": ("pruner.env", "pruner.yaml", "state/"),
    "image_registry_root": ("authority/", "compose/", "config/", "data/"),
}
# Folders that lie in another one by design, beside that one's own parts.
WITHIN: Mapping[str, tuple[str, ...]] = {
    "clearml_agent_cache": ("clearml_agent_root",),
    "dataset_cache_sdk_path": ("clearml_agent_cache", "clearml_agent_root"),
}
# The platform's folder: the other roles' folders lie in it unless the inventory moves them.
PLATFORM = "clearml_server_root"


def inside(path: str, folder: str) -> bool:
    """Return whether a path lies below a folder."""
    return PurePosixPath(folder) in PurePosixPath(path).parents


def _text_problem(path: object, example: str) -> str | None:
    text = path if isinstance(path, str) else ""
    clean = text.startswith("/") and not text.startswith("//") and str(PurePosixPath(text)) == text
    if not clean or ".." in text.split("/") or UNSAFE.search(text) or not text.isprintable():
        return f"write an absolute path without spaces, colons, commas, .. and / at its end, for example {example}"
    if len(text.encode()) > 512:
        return f"write an absolute path of at most 512 bytes, for example {example}"
    return None


def removal_problem(path: object, example: str) -> str | None:
    """Return why nothing may be removed below a path, as the tail of a sentence; None if something may.

    Folders that many use are allowed: from them a role removes what it created and nothing else.
    """
    problem = _text_problem(path, example)
    text = str(path)
    if problem is None and (text == "/" or text in SYSTEM or any(inside(text, folder) for folder in SYSTEM)):
        problem = f"this is or lies in a folder of the system: write a folder of its own, for example {example}"
    return problem


def path_problem(path: object, example: str) -> str | None:
    """Return what is wrong with the path of a folder that a role creates and fills; None if it is right.

    Args:
        path: the value in the inventory, of whatever type it is.
        example: a right one, for the message.

    Returns:
        The tail of a sentence such as "write an absolute path ..., for example /opt/clearml/agent"; the caller names
        the variable and its value before it.
    """
    problem = removal_problem(path, example)
    text = str(path)
    home = PurePosixPath(text).parent == PurePosixPath("/home")
    if problem is None and (text in SHARED or home):
        problem = f"other programs and people use this folder too: write a folder of its own, for example {example}"
    return problem


def _allowed(inner: str, inner_path: str, outer: str, outer_path: str) -> bool:
    """Return whether one folder may lie in another one: by design, and in none of that one's own parts."""
    if outer != PLATFORM and outer not in WITHIN.get(inner, ()):
        return False
    first = PurePosixPath(inner_path).relative_to(outer_path).parts[0]
    return f"{first}/" not in PARTS.get(outer, ())


def overlap_problems(paths: Mapping[str, str]) -> list[str]:
    """Find folders of one host that are the same, or of which one lies in another.

    Args:
        paths: by variable, the folders of all roles on one host; each has passed ``path_problem``.

    Returns:
        A sentence for each pair. What the defaults nest is no problem: the agent's folder in the server's, the cache in
        the agent's.
    """
    problems = []
    names = sorted(paths)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if paths[one] == paths[other]:
                problems.append(
                    f"{one} and {other} are both {paths[one]!r}: each would remove what is the other's; write two "
                    "folders of which none lies in the other"
                )
                continue
            for inner, outer in ((one, other), (other, one)):
                if inside(paths[inner], paths[outer]) and not _allowed(inner, paths[inner], outer, paths[outer]):
                    example = f"{paths[outer]}-{PurePosixPath(paths[inner]).name}"
                    problems.append(
                        f"{inner} is {paths[inner]!r}, which lies in {paths[outer]!r} ({outer}): what removes or "
                        f"prunes one would take the other; write {inner} outside of it, for example {example}"
                    )
    return problems
