#!/usr/bin/python
# Part of Trainyard.
"""Create, mark, check and remove the folders of a site, and nothing of anyone else."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import stat
from contextlib import suppress
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.trainyard_paths import PARTS, path_problem, removal_problem

DOCUMENTATION = r"""
module: site_folder
short_description: Create, mark, check and remove the folders of a site, and nothing of anyone else
description:
  - A folder that a role creates carries the file C(.trainyard-site) with the names of the site and of the variable that
    names the folder. What has no such file of this site is never removed recursively.
  - A folder with parts (C(PARTS) in module_utils/trainyard_paths.py) may hold things of others. Each folder below it
    that the role creates has a mark of its own; files of the role are known by name and content. Any other folder is
    the role's with all that is in it.
  - Removing never crosses a mount point and never follows a link.
  - A folder from the time before marks is adopted when the role's own files are in it.
options:
  path:
    description: The folder.
    type: str
    required: true
  variable:
    description: The variable of the inventory that names it.
    type: str
    required: true
  folders:
    description: Names of folders below it to create and to mark; with O(state=absent), remove only these.
    type: list
    elements: str
    default: []
  site:
    description: The site's name. The action plugin sets it, to C(site_name) or the name of the inventory's folder.
    type: str
    default: ""
  state:
    description:
      - V(present) creates and marks what is missing. V(checked) reports why V(present) would fail. V(planned) reports
        what V(absent) would remove and keep, with sizes. V(absent) removes it.
    type: str
    choices: [present, checked, planned, absent]
    default: present
"""

RETURN = r"""
problem:
  description: Why V(present) would fail; empty if it would not.
  type: str
  returned: checked
removes:
  description: What is removed, by C(path) and C(size) (V(planned) only).
  type: list
  returned: planned, absent
places:
  description: Where compose files of containers of this folder lie.
  type: list
  returned: planned
keeps:
  description: What stays there, by C(path) and C(why).
  type: list
  returned: planned, absent
"""

MARK = ".trainyard-site"
# Made by mkfs, of nobody.
NOBODYS = {"lost+found"}
# More entries than this are not counted: a plan must come in time.
COUNTED = 300_000
SHOWN = 10
USUAL_PATHS = {
    "clearml_agent_root": "/opt/clearml/agent",
    "clearml_agent_cache": "/opt/clearml/agent/cache",
    "clearml_server_root": "/opt/clearml",
    "dataset_cache_pruner_root": "/opt/clearml/cache",
    "image_registry_root": "/opt/clearml/registry",
    "site_examples_repository": "/opt/clearml/examples/digits.git",
}
MANAGED = r"# Managed by Ansible \(role (clearml_agent|clearml_server|dataset_cache|image_registry)\)"
# By what a role's own files are known: a person may have files of such names too.
CONTENT = {
    "*.env": MANAGED,
    "clearml.conf": MANAGED,
    "compose.yaml": r"CLEARML_AGENT_PROJECT",
    "reaper.yaml": r"CLEARML_REAPER_PROJECT",
    "pruner.env": MANAGED,
    "pruner.yaml": r"CLEARML_PRUNER_PROJECT",
    "bundle.sha256": r"[0-9a-f]{64}\s*\Z",
    "bundle.tar": "",
}
# What a folder holds that a role made before there were marks. All of one line's files must be there.
SIGNS = {
    "clearml_agent_root": {"clearml.conf": MANAGED, "compose.yaml": r"CLEARML_AGENT_PROJECT"},
    "clearml_server_root": {"compose/server.env": MANAGED},
    "dataset_cache_pruner_root": {"pruner.env": MANAGED},
    "image_registry_root": {"compose/registry.env": MANAGED},
    "site_examples_repository": {"source/digits/train.py": r"clearml"},
}
# The cache of the agents has no file of the role's; these are the folders that agents and experiments make in it.
CACHES = {
    "apt-cache",
    "cache",
    "pip-cache",
    "pip-download-cache",
    "sdk-cache",
    "vcs-cache",
    "venvs-builds",
    "venvs-cache",
}


class FolderError(Exception):
    """The folder cannot be used or removed; the text says why, and what to write or type."""


class Mark(NamedTuple):
    """What a marker file says: the site, and the folder as variable or variable/part."""

    site: str
    folder: str
    parts: tuple[str, ...] = ()


def shown(path: str) -> str:
    """Return a path as text that JSON can carry, whatever bytes it has."""
    return os.fsencode(path).decode(errors="replace")


def mounts() -> set[str]:
    """Return all mount points that this process sees."""
    found = set()
    with open("/proc/self/mountinfo", "rb") as file:  # bytes: a path may have any
        for line in file:
            raw = line.split(b" ")[4]
            plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), raw)
            found.add(os.fsdecode(plain))
    return found


def read_mark(folder: str) -> Mark | None:
    """Return a folder's mark; None without one, or when somebody else than root wrote it.

    Raises:
        FolderError: the file is there and cannot be understood.
        OSError: it cannot be read.
    """
    path = os.path.join(folder, MARK)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in (0, os.geteuid()):
            return None
        text = file.read(65536)
    try:
        content = json.loads(text)
        return Mark(str(content["site"]), str(content["folder"]), tuple(map(str, content.get("parts", ()))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(
            f"{shown(path)} cannot be read as a marker of a site: look whose folder it is, then write "
            '{"site": "NAME", "folder": "VARIABLE"} into it, or delete it'
        ) from error


def write_mark(folder: str, mark: Mark) -> None:
    """Write a folder's mark in one step."""
    content: dict[str, Any] = {"site": mark.site, "folder": mark.folder}
    if mark.parts:
        content["parts"] = sorted(mark.parts)
    path = os.path.join(folder, MARK)
    temporary = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "w") as file:
        os.fchmod(handle, 0o644)
        file.write(json.dumps(content) + "\n")
    os.rename(temporary, path)


def has(path: str, content: str) -> bool:
    """Return whether a path is a regular file, no link, with some content."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return False
        return not content or re.search(content, file.read(65536).decode(errors="replace")) is not None


def is_folder(path: str) -> bool:
    """Return whether a path is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


class SiteFolder:
    """One folder of a site, as a variable of the inventory names it."""

    def __init__(self, path: str, variable: str, site: str) -> None:
        self.path, self.variable, self.site = path, variable, site
        self._named = f"{variable} is {path!r}"
        self._example = USUAL_PATHS.get(variable, "/opt/clearml/folder")
        # The repository's folder may be one that holds other repositories: the parts carry marks, it need not.
        self._guest = variable == "site_examples_repository"
        if self._guest:
            self._named = f"the folder of {variable} is {path!r}"
        self._whole = variable not in PARTS and not self._guest
        self._patterns = [name for name in PARTS.get(variable, ()) if not name.endswith("/")]

    # --- what may be done here at all ---------------------------------------------------------------------------------

    def _real(self) -> str:
        """Return the path with the links above it resolved: what mounts and rules are compared with."""
        return os.path.join(os.path.realpath(os.path.dirname(self.path)), os.path.basename(self.path))

    def _refuse(self, *, removing: bool) -> None:
        rule = removal_problem if removing else path_problem
        if problem := rule(self.path, self._example):
            raise FolderError(f"{self._named}: {problem}")
        if problem := removal_problem(self._real(), self._example):
            raise FolderError(f"{self._named}, which is {self._real()!r} behind a link: {problem}")

    def _own(self, mark: Mark | None, folder: str = "") -> bool:
        """Return whether a mark is this folder's, or the one of a part of it.

        Raises:
            FolderError: it is another site's, or another folder's of this one.
        """
        if mark is None:
            return False
        name = f"{self.variable}/{folder}" if folder else self.variable
        place = shown(os.path.join(self.path, folder) if folder else self.path)
        if mark.site != self.site:
            raise FolderError(
                f"{self._named}, but {place} belongs to the site {mark.site!r} ({MARK} in it), and this is the site "
                f"{self.site!r}: write another folder into {self.variable}. If {mark.site!r} is an old name of this "
                f"site, write the new one into {place}/{MARK}; if that site is gone, look whether anything there is "
                "still needed, and delete it"
            )
        if mark.folder != name:
            if self._guest and not folder:
                return False
            raise FolderError(
                f"{self._named}, but {place} is {mark.folder} of this site already: write another folder into "
                f"{self.variable}"
            )
        return True

    def _known(self) -> bool:
        """Return whether the folder is this role's, from the time before marks."""
        signs = SIGNS.get(self.variable)
        if signs:
            return all(has(os.path.join(self.path, name), content) for name, content in signs.items())
        if self.variable != "clearml_agent_cache":
            return False
        if SiteFolder(os.path.dirname(self.path), "clearml_agent_root", self.site)._known():
            return True
        names = set(os.listdir(self.path)) - NOBODYS
        return bool(names & CACHES) and all(name in CACHES or name.startswith((".", "venvs-")) for name in names)

    def _stranger(self, folder: str) -> str:
        """Return something in a folder that this site did not make; "" without one. Empty folders are nobody's."""
        for place, folders, files in os.walk(folder, onerror=self._give_up):
            for name in [*files, *(name for name in folders if os.path.islink(os.path.join(place, name)))]:
                if name != MARK:
                    return shown(os.path.join(place, name))
            kept = []
            for name in sorted(set(folders) - NOBODYS):
                mark = read_mark(os.path.join(place, name))
                if mark is None:
                    kept.append(name)
                elif mark.site != self.site:
                    return f"{shown(os.path.join(place, name))} of the site {mark.site!r}"
            folders[:] = kept
        return ""

    @staticmethod
    def _give_up(error: OSError) -> None:
        raise error

    # --- create and mark ----------------------------------------------------------------------------------------------

    def missing(self, folders: list[str]) -> list[str]:
        """Return the folders to create or to mark, the root last; nothing is changed.

        Raises:
            FolderError: one of them is not, and cannot become, this site's.
        """
        self._refuse(removing=False)
        if os.path.islink(self.path):
            target = os.path.realpath(self.path)
            raise FolderError(f"{self._named}, which is a link to {target!r}: write {target!r}")
        if os.path.lexists(self.path) and not is_folder(self.path):
            raise FolderError(f"{self._named}, which is not a folder: write a folder, for example {self._example}")
        mark = read_mark(self.path)
        marked = self._own(mark)
        known = not marked and is_folder(self.path) and self._known()
        guest = self._guest and mark is not None and not marked
        if not marked and not known and not guest and is_folder(self.path) and (other := self._stranger(self.path)):
            if not self._guest:
                raise FolderError(self._unknown(self.path, other, "", folders))
            guest = True
        todo = []
        # What an older deployment made and this one does not need is the role's too.
        parts = [name[:-1] for name in PARTS.get(self.variable, ()) if name.endswith("/")] if known else []
        older = [name for name in parts if name not in folders and is_folder(os.path.join(self.path, name))]
        for name in [*folders, *older]:
            place = os.path.join(self.path, name)
            if os.path.islink(place):
                continue  # an operator's: the role uses it, and never removes what is behind it
            if os.path.lexists(place) and not is_folder(place):
                raise FolderError(f"{self._named}, but {shown(place)} is not a folder: move it away")
            if self._own(read_mark(place), name):
                continue
            restored = mark is not None and name in mark.parts
            if is_folder(place) and not known and not restored and (other := self._stranger(place)):
                raise FolderError(self._unknown(place, other, name, []))
            todo.append(name)
        if guest or (mark is not None and marked and set(folders) <= set(mark.parts)):
            return todo
        return [*todo, ""]

    def _unknown(self, place: str, other: str, name: str, parts: list[str]) -> str:
        content: dict[str, Any] = {"site": self.site, "folder": f"{self.variable}/{name}" if name else self.variable}
        if parts:
            content["parts"] = parts
        return (
            f"{self._named}, but {shown(place)} holds {other}, and no {MARK} says that the site {self.site!r} made it: "
            f"write a folder of its own, for example {shown(self.path)}/clearml. If all of {shown(place)} is this "
            f"site's, type on this host: echo '{json.dumps(content)}' > {shown(place)}/{MARK}"
        )

    def create(self, folders: list[str], todo: list[str]) -> None:
        """Create and mark what ``missing`` returned; the root's mark comes last, so a broken run is completed."""
        old = read_mark(self.path)
        above = self.path
        new = []
        while not os.path.lexists(above):
            new.append(above)
            above = os.path.dirname(above)
        for place in reversed(new):
            os.mkdir(place)
            os.chmod(place, 0o755)  # noqa: S103  # whatever root's umask is: the services must get through
        for name in todo:
            place = os.path.join(self.path, name) if name else self.path
            if name:
                with suppress(FileExistsError):
                    os.mkdir(place, 0o700)  # the role's next task gives it its owner and mode
            mark = Mark(self.site, f"{self.variable}/{name}" if name else self.variable)
            if not name:
                mark = mark._replace(parts=tuple({*(old.parts if old else ()), *folders, *filter(None, todo)}))
            write_mark(place, mark)

    # --- remove -------------------------------------------------------------------------------------------------------

    def plan(self, only: list[str]) -> tuple[list[str], list[tuple[str, str]], bool]:
        """Return what may be removed, what stays and why, and whether the folder itself may go when it is empty.

        Args:
            only: names of parts; [] for all of it.

        Raises:
            FolderError: the path is one where nothing may be removed, or another site's.
        """
        self._refuse(removing=True)
        if os.path.islink(self.path):
            why = f"it is a link to {shown(os.path.realpath(self.path))}, and links are not followed"
            return [], [(self.path, why)], False
        if not is_folder(self.path):
            return [], ([(self.path, "it is not a folder")] if os.path.lexists(self.path) else []), False
        mark = read_mark(self.path)
        marked = self._own(mark)
        if self._whole:
            if marked:
                return [self.path], [], True
            return [], [(self.path, self._unmarked())], False
        removes, keeps = [], []
        for name in sorted(os.listdir(self.path)):
            place = os.path.join(self.path, name)
            if name in (MARK, *NOBODYS) or (only and name not in only):
                continue
            verdict = self._judge(name, mark.parts if mark and marked else (), marked=marked)
            if verdict == "ours":
                removes.append(place)
            elif verdict:
                keeps.append((place, verdict))
        if not marked and not self._guest and any(why == self._unmarked() for _, why in keeps):
            # One line says it for all that is in it.
            keeps = [(self.path, self._unmarked()), *(each for each in keeps if each[1] != self._unmarked())]
        return removes, keeps, marked and not only

    def _unmarked(self) -> str:
        return f"no {MARK} in it says that the site {self.site} made it"

    def _judge(self, name: str, parts: tuple[str, ...], *, marked: bool) -> str:
        """Return "ours" for what may be removed, "" for what another role of this site removes, or why it stays."""
        place = os.path.join(self.path, name)
        if os.path.islink(place):
            return f"it is a link to {shown(os.path.realpath(place))}, and links are not followed"
        if is_folder(place):
            mark = read_mark(place)
            if mark is not None and mark.site != self.site:
                return f"it belongs to the site {mark.site}"
            if mark is None:
                # Empty: a run broke off between the mark and the folder.
                return "ours" if name in parts and not os.listdir(place) else self._unmarked()
            if mark.folder != f"{self.variable}/{name}":
                return ""
            if os.path.join(self._real(), name) in mounts():
                return "it is a mount point: what is on that disk stays"
            return "ours"
        for pattern in self._patterns:
            if marked and fnmatch.fnmatchcase(name, pattern) and has(place, CONTENT[pattern]):
                return "ours"
        return "this site did not make it" if marked else self._unmarked()

    def remove(self, only: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Remove what ``plan`` returns; return what was removed, and what stays and why.

        Raises:
            FolderError: something cannot be removed that should be; what could be is gone.
        """
        removes, keeps, itself = self.plan(only)
        removal = Removal(mounts())
        done = []
        for place in removes:
            real = self._real() if place == self.path else os.path.join(self._real(), os.path.basename(place))
            if removal.remove(real, place):
                done.append(place)
        keeps += removal.kept
        if itself and not self._whole and not removal.failed:
            done += self._remove_root(keeps)
        if removal.failed:
            place, why = removal.failed[0]
            more = f" and {len(removal.failed) - 1} more" if len(removal.failed) > 1 else ""
            raise FolderError(
                f"{self._named}: {shown(place)}{more} cannot be removed: {why}. Remove it by hand, and run this again"
            )
        return done, keeps

    def others(self) -> bool:
        """Return whether anything but the mark is in the folder."""
        return bool(set(os.listdir(self.path)) - {MARK})

    def _remove_root(self, keeps: list[tuple[str, str]]) -> list[str]:
        left = set(os.listdir(self.path)) - {MARK}
        if left - NOBODYS:
            return []  # the mark stays: this site may be deployed here again
        os.unlink(os.path.join(self.path, MARK))
        if left or self._real() in mounts():
            keeps.append((self.path, "it is a mount point, and empty now"))
            return []
        os.rmdir(self.path)
        return [self.path]

    def size(self, place: str) -> tuple[int, bool]:
        """Return the bytes that a file or a folder takes on its disk, and whether all of it was counted."""
        points = mounts()
        seen: set[tuple[int, int]] = set()
        facts = os.lstat(place)
        total, counted = facts.st_blocks * 512, 0
        if not stat.S_ISDIR(facts.st_mode):
            return total, True
        real = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        for folder, below, _, handle in os.fwalk(real, follow_symlinks=False):
            below[:] = [name for name in below if os.path.join(folder, name) not in points]
            with os.scandir(handle) as entries:
                for entry in entries:
                    counted += 1
                    if counted > COUNTED:
                        return total, False
                    with suppress(OSError):
                        facts = entry.stat(follow_symlinks=False)
                        if (facts.st_dev, facts.st_ino) not in seen and os.path.join(folder, entry.name) not in points:
                            total += facts.st_blocks * 512
                        if facts.st_nlink > 1:
                            seen.add((facts.st_dev, facts.st_ino))
        return total, True


class Removal:
    """Removes folders with all that is in them, across no mount point and through no link."""

    def __init__(self, points: set[str]) -> None:
        self._points = points
        self.kept: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []

    def remove(self, real: str, told: str) -> bool:
        """Remove a file or a folder; return whether it is gone.

        Args:
            real: its path, without a link in it.
            told: its path as the inventory has it, for messages.
        """
        try:
            parent = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            self.failed.append((told, str(error.strerror)))
            return False
        try:
            return self._remove(parent, os.path.basename(real), real, told, mounted_root=True)
        finally:
            os.close(parent)

    def _remove(self, parent: int, name: str, real: str, told: str, *, mounted_root: bool = False) -> bool:
        point = real in self._points
        try:
            facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
            folder = stat.S_ISDIR(facts.st_mode)
            # A disk of its own may be no mount point: a subvolume.
            if not mounted_root and (point or (folder and facts.st_dev != os.fstat(parent).st_dev)):
                self.kept.append((told, "it is a mount point: what is on that disk stays"))
                return False
            if not folder:
                os.unlink(name, dir_fd=parent)
                return True
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                emptied = self._empty(handle, real, told)
            finally:
                os.close(handle)
            if not emptied:
                return False
            if point:
                self.kept.append((told, "it is a mount point, and empty now"))
                return False
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return True
        except (OSError, RecursionError) as error:
            self.failed.append((told, getattr(error, "strerror", None) or "its folders are nested too deep"))
            return False
        return True

    def _empty(self, handle: int, real: str, told: str) -> bool:
        names = os.listdir(handle)
        gone = True
        for name in names:
            # The mark goes last: a run that breaks off can be completed.
            if name != MARK and name not in NOBODYS:
                gone = self._remove(handle, name, os.path.join(real, name), os.path.join(told, name)) and gone
        if gone and MARK in names:
            os.unlink(MARK, dir_fd=handle)
        return gone and not NOBODYS & set(names)


def human(size: int, *, all_of_it: bool) -> str:
    """Return a size for people, e.g. 1.5 GiB."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    text = f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
    return text if all_of_it else f"more than {text}"


def kept_lines(keeps: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Return what stays for the result, not more than a person reads."""
    lines = [{"path": shown(path), "why": why} for path, why in keeps[:SHOWN]]
    if len(keeps) > SHOWN:
        lines.append({"path": f"{len(keeps) - SHOWN} more", "why": f"like {lines[-1]['path']}"})
    return lines


def run(given: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Do what the module's parameters ask for; return its result.

    Raises:
        FolderError: it may not be done, with the reason.
        OSError: the system did not let us.
    """
    folder = SiteFolder(given["path"], given["variable"], given["site"])
    state, names = given["state"], given["folders"]
    if state in ("present", "checked"):
        if state == "checked":
            try:
                folder.missing(names)
            except FolderError as error:
                return {"changed": False, "problem": str(error)}
            except PermissionError:
                pass  # a preflight without root sees less
            return {"changed": False, "problem": ""}
        todo = folder.missing(names)
        if todo and not check_mode:
            folder.create(names, todo)
        return {"changed": bool(todo)}
    removes, keeps, itself = folder.plan(names)
    if state == "absent" and not check_mode:
        gone, keeps = folder.remove(names)
        return {"changed": bool(gone), "removes": [{"path": shown(path)} for path in gone], "keeps": kept_lines(keeps)}
    real = os.path.realpath(given["path"])
    sizes = []
    for place in removes:
        size, all_of_it = folder.size(place)
        sizes.append({"path": shown(place), "size": human(size, all_of_it=all_of_it)})
    empty = itself and not removes and not keeps and not folder.others()
    return {
        "changed": state == "absent" and (bool(removes) or empty),
        "removes": sizes,
        "keeps": kept_lines(keeps),
        "places": [f"{place}{below}" for place in dict.fromkeys([given["path"], real]) for below in ("", "/compose")],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "str", "required": True},
            "variable": {"type": "str", "required": True},
            "folders": {"type": "list", "elements": "str", "default": []},
            "site": {"type": "str", "default": ""},
            "state": {"choices": ["present", "checked", "planned", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    if not module.params["site"]:
        module.fail_json(msg="site is empty: write site_name into group_vars/all/site.yml, for example site_name: team")
    try:
        result = run(module.params, check_mode=module.check_mode)
    except FolderError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{module.params['variable']} is {module.params['path']!r}: {error.filename}: {error.strerror}"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
