# Part of Trainyard.
"""The files, groups, hosts and variable names of an inventory, compared with what the roles and Ansible know.

Runs on the controller and asks no host. Files are read as Ansible reads them: its loader decrypts, its inventory finds
groups and hosts.
"""

from __future__ import annotations

import difflib
import functools
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ansible.constants as constants
import yaml
from ansible.errors import AnsibleError
from ansible.inventory.data import InventoryData
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import is_encrypted
from ansible.plugins.loader import become_loader, connection_loader, inventory_loader, shell_loader

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # pragma: no cover
    from yaml import SafeLoader as Loader  # type: ignore[assignment]

__all__ = [
    "GROUPS",
    "Findings",
    "check",
    "known_names",
    "names_read",
    "nearest",
    "set_while_running",
    "site_folder",
]

ANSIBLE = Path(__file__).resolve().parents[2]
# The groups that the playbooks deploy.
GROUPS = ("clearml_server", "clearml_nodes", "clearml_registry")
# Names that start like these are ours, besides those of the roles.
PREFIXES = ("clearml_", "site_", "vault_clearml_", "vault_registry_")
# Connection and file settings whose plugins have variables.
CONNECTIONS = (
    "local",
    "psrp",
    "ssh",
    "winrm",
    "community.docker.docker",
    "community.docker.docker_api",
    "community.docker.nsenter",
    "community.general.chroot",
    "community.general.incus",
    "community.general.lxc",
    "community.general.lxd",
    "containers.podman.buildah",
    "containers.podman.podman",
    "kubernetes.core.kubectl",
    "amazon.aws.aws_ssm",
    "ansible.netcommon.libssh",
    "ansible.netcommon.persistent",
    "community.libvirt.libvirt_lxc",
    "community.libvirt.libvirt_qemu",
)
BECOMES = (
    "runas",
    "su",
    "sudo",
    *(
        f"community.general.{name}"
        for name in ("doas", "dzdo", "ksu", "machinectl", "pbrun", "pfexec", "sesu", "sudosu")
    ),
)
# What Ansible works out itself, so what an inventory writes has no effect, or a bad one.
MAGIC = frozenset(
    {
        "ansible_check_mode",
        "ansible_diff_mode",
        "ansible_facts",
        "ansible_inventory_sources",
        "ansible_play_batch",
        "ansible_play_hosts",
        "ansible_play_hosts_all",
        "ansible_play_name",
        "ansible_playbook_python",
        "ansible_role_name",
        "ansible_version",
        "group_names",
        "groups",
        "hostvars",
        "inventory_dir",
        "inventory_file",
        "inventory_hostname",
        "inventory_hostname_short",
        "omit",
        "play_hosts",
        "playbook_dir",
        "role_name",
        "role_path",
        "vars",
    }
)
# A file that ends like these was put aside on purpose, or is not for Ansible.
ASIDE = re.compile(
    r"(~|\.(bak|orig|old|save|swp|tmp|off|disabled|example|sample|dist|md|rst|pem|key|crt|pub|gpg|asc)\d*)$", re.I
)
# A file that ends like these was meant to be read.
MEANT = re.compile(r"\.(ya?ml|json|yam|ymal|yaml?l|tml|txt|conf|cfg|ini|toml|vars?)\b|[._ -]ya?ml$", re.I)
WORD = re.compile(r"[A-Za-z_]\w*")
EXPRESSION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.S)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
# A file beside hosts.yml that ends like these was meant to have hosts.
HOSTS_ENDINGS = ("", ".hosts", ".ini", ".inventory", ".json", ".yaml", ".yml")
# Roles' and the site's words that a team may use as names of its own.
OWN_WORDS = ("site",)
GROUP_KEYS = ("hosts", "vars", "children")


@dataclass
class Place:
    """A variable that is set: where, and for which host (empty: for several)."""

    name: str
    where: str
    host: str = ""
    texts: list[str] = field(default_factory=list)


@dataclass
class Known:
    """The names that the project's own files know."""

    variables: set[str]
    words: set[str]
    read: set[str]
    prefixes: tuple[str, ...]


class Findings(NamedTuple):
    """What is wrong with an inventory.

    Attributes:
        problems: sentences that start with ``all: `` or with a host.
        readable: whether Ansible can read the inventory at all, and so report the problems itself.
    """

    problems: list[str]
    readable: bool


def site_folder(inventories: Path, site: str) -> Path:
    """Return the folder of a site.

    Raises:
        ValueError: there is no such site; the message lists those that are there.
    """
    there = sorted(path.name for path in inventories.iterdir() if path.is_dir() and not path.name.startswith("."))
    sites = f"the sites are {', '.join(there)}" if there else "there is none yet"
    make = "write one of them as SITE=, or make one with: make site NAME=team"
    if not site.strip():
        raise ValueError(f"SITE is empty: {sites}; {make}")
    if site in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._-]+", site):
        raise ValueError(
            f"SITE is {site!r}, which is not the name of a folder in {inventories}: write the name alone; "
            f"{sites}; {make}"
        )
    if site not in there:
        near = nearest(site, there)
        raise ValueError(
            f"there is no site {site!r} in {inventories}{f' ({near} is meant?)' if near else ''}: {sites}; {make}"
        )
    return inventories / site


def check(sources: Iterable[str | Path], loader: DataLoader, extra: Mapping[str, Any] | None = None) -> Findings:
    """Return what is wrong with the files and names of an inventory.

    Args:
        sources: what -i has: folders, files or lists of hosts.
        loader: has the secrets of the vault.
        extra: the variables of -e.
    """
    given = [str(source) for source in sources]
    places = [Place(name, "-e", texts=list(_texts(value))) for name, value in (extra or {}).items()]
    folders = [Path(source) for source in given if "," not in source]
    inventory, fault = None, ""
    try:
        inventory = InventoryManager(loader=loader, sources=given)
    except AnsibleError as error:
        fault = " ".join(str(error).split())
    problems: list[str] = []
    readable = inventory is not None
    for folder in folders:
        files = _Files(folder, loader, inventory)
        problems += files.problems
        places += files.places
        readable = readable and files.readable
    if fault and not problems:
        problems.append(
            f"all: the hosts cannot be read: {_reading_fault(folders, loader) or fault}; correct the file "
            "(inventory/example/hosts.yml shows how)"
        )
    # Hosts in a damaged file would seem to be missing.
    if folders and inventory and readable:
        problems += _group_problems(inventory)
    problems += _variable_problems(places, known_names())
    return Findings(list(dict.fromkeys(problems)), readable)


def _reading_fault(folders: Iterable[Path], loader: DataLoader) -> str:
    """Return why a file of hosts cannot be read; Ansible itself only warns of it. Empty when nobody knows."""
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.is_file() and not path.name.startswith("."):
                kind = "yaml" if path.suffix in constants.YAML_FILENAME_EXTENSIONS else "ini"
                try:
                    inventory_loader.get(kind).parse(InventoryData(), loader, str(path), cache=False)
                except (AnsibleError, ValueError) as error:
                    cause = error.__cause__ or error
                    said = " ".join(str(getattr(cause, "message", cause)).split()).rstrip(".")
                    # Python's words for what Ansible's reader of INI does not expect.
                    if "unhashable" in said:
                        said = "a value that starts with {{ is no text in INI: write it into group_vars"
                    elif "to unpack" in said:
                        said = "a line that starts with [ is not closed with ]"
                    return f"{path.name}: {said}"
    return ""


@functools.cache
def known_names() -> Known:
    """Return the names that the roles, their specifications, the site and the playbooks know."""

    def read(path: Path) -> Any:
        return (yaml.load(path.read_bytes(), Loader) or {}) if path.exists() else {}

    roles = [path for path in sorted((ANSIBLE / "roles").iterdir()) if path.is_dir()]
    variables: set[str] = set(read(ANSIBLE / "roles/preflight/meta/site_variables.yml"))
    for role in roles:
        for entry in read(role / "meta/argument_specs.yml").get("argument_specs", {}).values():
            variables |= set(entry.get("options") or {})
        variables |= set(read(role / "defaults/main.yml"))
    words: set[str] = set()
    # A site's own variables, which it hands on to the roles, stand in the example.
    example = ANSIBLE.parent / "inventory/example"
    for path in example.glob("group_vars/all/*.yml"):
        variables |= set(read(path)) if path.name != "vault.yml" else set()
    for base in (ANSIBLE / "roles", ANSIBLE / "plugins", ANSIBLE / "tools", *ANSIBLE.glob("*.yml"), example):
        for path in sorted(base.rglob("*")) if base.is_dir() else [base]:
            if path.suffix in (".yml", ".py", ".j2", ".sh") and path.name != "vault.yml" and path != Path(__file__):
                words |= set(WORD.findall(path.read_text()))
    # A playbook's own variables, and those of the vault, have no specification: what reads them knows them.
    for playbook in ANSIBLE.glob("*.yml"):
        for play in read(playbook):
            variables |= {name for name in play.get("vars") or {} if not name.startswith("__")}
    ours = ("vault_clearml_", "vault_registry_")
    variables |= {word for word in words if word.startswith(ours) and not word.endswith("_")}
    prefixes = (*(f"{role.name}_" for role in roles), *PREFIXES)
    # What -e may set and no play has as its own.
    read_by_plays = {word for path in ANSIBLE.glob("*.yml") for word in WORD.findall(path.read_text()) if "_" in word}
    return Known(variables, words, read_by_plays, prefixes)


@functools.cache
def set_while_running() -> frozenset[str]:
    """Return the variables that tasks of roles and playbooks set: before they ran, nobody has them."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            found.update(key for key in node.get("ansible.builtin.set_fact") or {} if isinstance(key, str))
            found.update([node["register"]] if isinstance(node.get("register"), str) else [])
            found.update(node["vars"] if isinstance(node.get("vars"), Mapping) else [])
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    for path in (*ANSIBLE.glob("*.yml"), *ANSIBLE.glob("tasks/*.yml"), *ANSIBLE.glob("roles/*/tasks/*.yml")):
        walk(yaml.load(path.read_bytes(), Loader))
    return frozenset(found)


@functools.cache
def _connection_variables() -> set[str]:
    """Return the variables that tell Ansible how to reach a host."""
    names = {name for names in constants.MAGIC_VARIABLE_MAPPING.values() for name in names}
    names |= {"ansible_group_priority", "ansible_python_interpreter", "ansible_connection", "ansible_network_os"}
    config = constants.config
    definitions = [config.get_configuration_definitions()]
    for loader, kind, plugins in (
        (connection_loader, "connection", CONNECTIONS),
        (become_loader, "become", BECOMES),
        (shell_loader, "shell", ("sh", "powershell", "cmd")),
    ):
        for plugin in plugins:
            if loader.get(plugin, class_only=True) is None:  # its collection is not installed
                continue
            definitions.append(config.get_configuration_definitions(kind, plugin))
    for options in definitions:
        for option in options.values():
            names |= {str(variable["name"]) for variable in option.get("vars") or []}
    return {name for name in names if name.startswith("ansible_")}


def _distance(left: str, right: str) -> int:
    """Return how many letters must be changed, added, left out or swapped with their neighbour."""
    before, last = [0] * (len(right) + 1), list(range(len(right) + 1))
    for row, one in enumerate(left, 1):
        current = [row]
        for column, other in enumerate(right, 1):
            cost = min(last[column] + 1, current[-1] + 1, last[column - 1] + (one != other))
            swapped = row > 1 and column > 1 and one == right[column - 2] and left[row - 2] == other
            current.append(min(cost, before[column - 2] + 1) if swapped else cost)
        before, last = last, current
    return last[-1]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the name that is most like another; empty when none is."""
    names = sorted(names)
    same = [one for one in names if _plain(one) == _plain(name)]
    return (same or difflib.get_close_matches(name, names, 1, cutoff) or [""])[0]


def _nearest_below(name: str, prefix: str, names: set[str]) -> str:
    """Return the name that is most like another one; the prefix that they share makes none more like it."""
    longer = [other for other in names if len(other) > len(prefix) and name.startswith(other + "_")]
    tails = [other.removeprefix(prefix) for other in names if other.startswith(prefix)]
    near = max(longer, key=len, default="") or nearest(name.removeprefix(prefix), tails)
    return near if near in longer else (prefix + near if near else nearest(name, names))


def _slip(name: str, names: Iterable[str]) -> str:
    """Return the long name that another one is a slip of the pen away from; empty when there is none."""
    # A plural and a number are names of their own: apt_mirror_2.
    near = [
        other
        for other in sorted(names)
        if len(other) > 8
        and abs(len(other) - len(name)) <= 2
        and (_plain(name) == _plain(other) or _distance(name.lower(), other.lower()) <= 2)
        and not re.fullmatch(re.escape(other) + r"_?\d+", name)
    ]
    return min(near, key=lambda other: _distance(name, other), default="")


def _group_slip(name: str) -> str:
    """Return the group of ours that a name is meant to be; empty when it is none."""
    near = nearest(name, GROUPS, 0.8)
    return near if near and name not in GROUPS else ""


def _group_problems(inventory: InventoryManager) -> Iterator[str]:
    """Yield groups that nothing is deployed to, and hosts in no group of ours."""
    groups = inventory.groups
    ours = {name: {host.name for host in groups[name].get_hosts()} if name in groups else set() for name in GROUPS}
    placed = set().union(*ours.values())
    below = {child.name for name in GROUPS if name in groups for child in groups[name].get_descendants()}
    slips = set()
    for name, group in groups.items():
        if name in (*GROUPS, "all", "ungrouped") or name in below:
            continue
        if near := _group_slip(name):
            slips |= {host.name for host in group.get_hosts()}
            yield f"all: the group {name} is not known, so nothing is deployed to its hosts; write {near}"
        elif name.startswith("clearml_"):
            slips |= {host.name for host in group.get_hosts()}
            yield (
                f"all: the group {name} is not known: names that start with clearml_ are Trainyard's; write one of "
                f"{', '.join(GROUPS)}, put it below one of them, or give it another name"
            )
    for name, host in sorted(inventory.hosts.items()):
        if name in placed or name in slips or host.implicit:
            continue
        near = nearest(name, placed, 0.8)
        again = f", or write it as the host {near} is written, if that is meant" if near else ""
        yield (
            f"{name}: it is in none of the groups {', '.join(GROUPS)}, so nothing would be deployed to it; write it "
            f"below one of them{again}, or remove it"
        )
    if not inventory.hosts:
        yield (
            "all: the inventory has no hosts; write hosts.yml with a host in clearml_server and the nodes in "
            "clearml_nodes (inventory/example/hosts.yml shows how)"
        )
    elif len(ours["clearml_server"]) != 1:
        listed = f" ({', '.join(sorted(ours['clearml_server']))})" if ours["clearml_server"] else ""
        yield (
            f"all: the group clearml_server has {len(ours['clearml_server'])} hosts{listed}; "
            "write exactly one host into it"
        )


def _variable_problems(places: list[Place], known: Known) -> Iterator[str]:
    """Yield variables that are set, or read in templates, and that nothing knows."""
    given = {place.name for place in places}
    read = {word for place in places for text in place.texts for word in names_read(text)}
    reported = set()
    for place in places:
        host, name = place.host or "all", place.name
        if name in known.variables:
            continue
        where = f"{name} ({place.where})"
        if name in MAGIC:
            yield f"{host}: {where} is a name that Ansible gives a value itself; write another name, or remove it"
            reported.add(name)
        elif f"{name}_" in known.prefixes and name not in OWN_WORDS:
            tails = sorted(one for one in known.variables if one.startswith(f"{name}_"))
            yield (
                f"{host}: {where} is not known: settings are variables of their own, not a mapping; write for example "
                f"{tails[0] if tails else 'another name'}, or remove it"
            )
            reported.add(name)
        elif name.lstrip("_").startswith(known.prefixes):
            if name in read and name.startswith("vault_"):
                continue  # A secret of the site's own.
            prefix = max((one for one in known.prefixes if name.lstrip("_").startswith(one)), key=len)
            near = _nearest_below(name, prefix, known.variables)
            if name.startswith("__") or (name in known.words and _plain(name) != _plain(near)):
                yield f"{host}: {where} is worked out by the roles and is not a setting; remove it"
            else:
                meant = f"write {near}, or remove it" if near else "correct or remove it"
                yield (
                    f"{host}: {where} is not known; {meant}. Names that start with {prefix} are Trainyard's: give a "
                    "variable of your own another name"
                )
            reported.add(name)
        elif name in _connection_variables() or (place.where == "-e" and name in known.read):
            continue
        elif near := _slip(
            name, known.variables | _connection_variables() | (known.read if place.where == "-e" else set())
        ):
            yield (f"{host}: {where} is not known; write {near}, or give a variable of your own another name")
            reported.add(name)
        elif name.startswith("ansible_") and not name.endswith("_interpreter"):
            near = nearest(name, _connection_variables())
            meant = f"write {near}" if near else "remove it"
            yield (
                f"{host}: {where} is not known; {meant}. Names that start with ansible_ are Ansible's: give a variable "
                "of your own another name"
            )
            reported.add(name)
        elif not _is_name(name):
            better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
            meant = f"write {better}" if _is_name(better) else "write a name of letters, digits and _"
            yield f"{host}: {where} is not the name of a variable, so no template could read it; {meant}, or remove it"
            reported.add(name)
    for place in places:
        for name in dict.fromkeys(word for text in place.texts for word in names_read(text)):
            ours = name.startswith((*known.prefixes, "vault_clearml_", "vault_registry_"))
            if ours and name not in given and name not in known.words and name not in known.variables | reported:
                near = nearest(name, known.variables | given)
                meant = f"write {near}" if near else "correct the name"
                yield f"{place.host or 'all'}: {place.name} ({place.where}) reads {name}, which is not defined; {meant}"


def _is_name(name: str) -> bool:
    """Tell what a template can read: letters, digits and _, first a letter or _, and no word of Python's."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def names_read(text: str) -> Iterator[str]:
    """Yield the words of a template that may be names of variables."""
    for expression in EXPRESSION.findall(text) if "{" in text else ():
        bare = QUOTED.sub("''", expression)
        for match in WORD.finditer(bare):
            # Attributes, filters and keyword arguments are named by others.
            before, after = bare[: match.start()].rstrip(), bare[match.end() :].lstrip()
            keyword = after.startswith("=") and not after.startswith("==")
            if not before.endswith((".", "|")) and not keyword and not re.search(r"\b(is|is not|set|for)$", before):
                yield match.group()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


class _Files:
    """The files of one source of an inventory: what they set, and what is wrong with them."""

    def __init__(self, source: Path, loader: DataLoader, inventory: InventoryManager | None = None):
        self.problems: list[str] = []
        self.places: list[Place] = []
        self.readable = True
        self._loader = loader
        self._folder = source if source.is_dir() else source.parent
        self._inventory = inventory
        self._hosts_read = False
        if source.is_dir():
            self._walk(source)
        elif source.exists():
            self._hosts_file(source)
        for kind in ("group_vars", "host_vars"):
            self._vars_folder(self._folder / kind, kind)

    def _say(self, path: Path, what: str, line: int | None = None, host: str = "all") -> None:
        self.problems.append(f"{host}: {self._shown(path, line)} {what}")

    def _stop(self, path: Path, what: str, line: int | None = None) -> None:
        """Note what keeps Ansible from reading the inventory."""
        self.readable = False
        self._say(path, what, line)

    def _shown(self, path: Path, line: int | None = None) -> str:
        shown = str(path.relative_to(self._folder)) if path.is_relative_to(self._folder) else str(path)
        return f"{shown}:{line}" if line else shown

    def _walk(self, folder: Path) -> None:
        """Read the files that tell hosts and groups; find folders that only look like those of variables."""
        found = False
        endings = "|".join(re.escape(ending) for ending in constants.INVENTORY_IGNORE_EXTS)
        patterns = [r"^\.", f"({endings})$", *(constants.INVENTORY_IGNORE_PATTERNS or [])]
        ignored = [re.compile(pattern) for pattern in patterns]
        for path in sorted(folder.iterdir()):
            name = path.name
            if name in ("group_vars", "host_vars") and path.is_dir():
                continue
            near = next(
                (one for one in ("group_vars", "host_vars") if _plain(name) in (_plain(one), _plain(one)[:-1])), ""
            ) or nearest(name, ("group_vars", "host_vars"), 0.8)
            if name in ("group_vars", "host_vars"):
                what = "is a file" if path.exists() else "is a link to nothing"
                self._say(
                    path, f"{what}; make it a folder, with {'all.yml' if near == 'group_vars' else 'HOST.yml'} in it"
                )
            elif near and path.is_dir():
                self._say(path, f"is not read as variables: the folder must be called {near}; rename it")
            elif any(pattern.search(name) for pattern in ignored):
                continue
            elif path.is_dir():
                # Ansible reads the files of every folder as hosts.
                found = found or any(path.iterdir())
                for file in sorted(path.rglob("*")):
                    hidden = any(one.search(part) for one in ignored for part in file.relative_to(folder).parts)
                    if file.is_file() and not hidden and not {"group_vars", "host_vars"} & set(file.parts):
                        self._hosts_file(file)
            else:
                found = True
                if path.suffix not in HOSTS_ENDINGS and _is_text(path):
                    self._say(
                        path,
                        "is read as a file of hosts, as every file here; move it to another folder, or to files/, or "
                        "start its name with a dot",
                    )
                    continue
                self._hosts_file(path)
        if not found:
            like = next((path.name for path in sorted(folder.iterdir()) if path.name.lower().startswith("host")), "")
            again = f", or rename {like}, which is not read" if like.partition(".")[0] == "hosts" else ""
            self.problems.append(
                f"all: the folder {folder} has no hosts file; write hosts.yml (inventory/example/hosts.yml shows how)"
                f"{again}"
            )

    def _vars_folder(self, folder: Path, kind: str) -> None:
        """Read the variables of groups or hosts; find files that are for none, or that are not read."""
        if not folder.is_dir():
            return
        names = self._entities(kind)
        for path in sorted(folder.iterdir()):
            name = self._entity(path, names)
            if path.name.startswith(".") or ASIDE.search(path.name) or path.name.upper().startswith("README"):
                continue
            files = [one for one in sorted(path.rglob("*")) if not one.is_dir()] if path.is_dir() else [path]
            read = {Path(one) for one in self._loader.find_vars_files(str(folder), name)}
            for file in files:
                hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
                if hidden or ASIDE.search(file.name):
                    continue
                if file not in read:
                    self._unread(file, folder / name)
                    continue
                self._vars_file(file, name if kind == "host_vars" else "")
            self._owner(path, name, names, kind)

    def _entities(self, kind: str) -> list[str]:
        if self._inventory is None:
            return []
        return list(self._inventory.groups if kind == "group_vars" else self._inventory.hosts)

    def _entity(self, path: Path, names: list[str]) -> str:
        """Return the group or host that a file or folder is named after."""
        ending = path.suffix in constants.YAML_FILENAME_EXTENSIONS or MEANT.search(path.suffix)
        return path.stem if ending and path.name not in names and not path.is_dir() else path.name

    def _owner(self, path: Path, name: str, names: list[str], kind: str) -> None:
        if self._inventory is None:
            return
        if kind == "host_vars":
            if name not in names:
                near = next((one for one in sorted(names) if name.split(".")[0] == one.split(".")[0]), "") or nearest(
                    name, names
                )
                meant = f"rename it to {self._renamed(path, near)}, or" if near else f"name one of {_list(names)}, or"
                self._say(path, f"is for the host {name}, which the inventory does not have; {meant} remove it")
            return
        groups = self._inventory.groups
        if name not in groups:
            here = [one for one in names if one != "ungrouped"]
            near = nearest(name, {*here, *GROUPS})
            if name in GROUPS:
                meant = f"write the group with its hosts into hosts.yml, or remove {path.name}"
            elif name in self._hosts():
                meant = f"it is a host: move it to host_vars/{path.name}"
            elif near:
                meant = f"rename it to {self._renamed(path, near)}, or remove it"
            else:
                meant = f"name one of {_list(here)}, or remove it"
            self._say(path, f"is for the group {name}, which the inventory does not have; {meant}")
        elif name not in (*GROUPS, "all", "ungrouped") and not groups[name].get_hosts():
            self._say(path, f"is for the group {name}, which has no hosts; write hosts into it, or remove {path.name}")

    def _hosts(self) -> set[str]:
        return set(self._inventory.hosts) if self._inventory else set()

    def _renamed(self, path: Path, near: str) -> str:
        return near + ("" if path.is_dir() or path.suffix not in constants.YAML_FILENAME_EXTENSIONS else path.suffix)

    def _unread(self, path: Path, entity: Path) -> None:
        if not path.exists():
            self._say(path, "is a link to a file that does not exist; correct or remove it")
        elif entity.is_dir() and entity not in path.parents:
            self._say(path, f"is not read, because the folder {self._shown(entity)}/ exists; move the file into it")
        elif path.suffix in constants.YAML_FILENAME_EXTENSIONS and any(
            part.suffix for part in path.parents if entity in part.parents
        ):
            self._say(path, "is not read: a folder whose name has a dot is left out; rename the folder")
        elif path.suffix in constants.YAML_FILENAME_EXTENSIONS and path.parent == entity.parent:
            first = self._loader.find_vars_files(str(entity.parent), entity.name)
            self._say(path, f"is not read, because {Path(first[0]).name} exists too; put both into one file")
        elif MEANT.search(path.name):
            endings = ", ".join(constants.YAML_FILENAME_EXTENSIONS)
            self._say(path, f"is not read: its name ends in {path.suffix or path.name}; rename it to one of {endings}")

    def _compose(self, path: Path) -> yaml.Node | None:
        """Return the nodes of a file; note when it cannot be read."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            self._stop(path, f"cannot be read: {error.strerror}; correct its owner and mode, or the link")
            return None
        vaulted = is_encrypted(raw)
        try:
            raw.decode()
            text = self._loader.get_text_file_contents(str(path))
        except UnicodeDecodeError as error:
            self._stop(path, "is not UTF-8 text; save it as UTF-8", raw[: error.start].count(b"\n") + 1)
            return None
        except (AnsibleError, ValueError):
            self._stop(path, _vault_fault(raw, bool(self._loader._vault.secrets)))
            return None
        try:
            node = yaml.compose(text.encode(), Loader=Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            lines = text.splitlines()
            line = lines[mark.line] if mark and mark.line < len(lines) else ""
            what = "has encrypted content that is not valid YAML" if vaulted else "is not valid YAML"
            fault = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed")
            self._stop(path, f"{what}: {fault}; {_yaml_advice(fault, '' if vaulted else line)}", mark and mark.line + 1)
            return None
        if node is not None:
            self._duplicates(path, node)
        return node

    def _duplicates(self, path: Path, node: yaml.Node, inside: str = "") -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._duplicates(path, item, inside)
        elif isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    self._stop(
                        path, "has a mapping or a list as a key; put a value that starts with {{ in quotes", line
                    )
                    continue
                name = f"{inside}.{key.value}" if inside else key.value
                if key.value in seen and key.value != "<<":
                    self._say(
                        path,
                        f"has {name} a second time (first in line {seen[key.value]}): only the last one counts; "
                        "keep one",
                        line,
                    )
                seen.setdefault(key.value, line)
                self._duplicates(path, value, name)
        elif isinstance(node, yaml.ScalarNode) and node.tag == "!vault":
            self._inline(path, node, inside)

    def _inline(self, path: Path, node: yaml.ScalarNode, name: str) -> None:
        """Note a vaulted value that cannot be decrypted."""
        raw = node.value.encode()
        try:
            self._loader._vault.decrypt(raw)
        except (AnsibleError, ValueError):
            fault = _vault_fault(raw, bool(self._loader._vault.secrets))
            self._stop(path, f"has {name}, which {fault}", node.start_mark.line + 1)

    def _vars_file(self, path: Path, host: str) -> None:
        node = self._compose(path)
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            return
        if not isinstance(node, yaml.MappingNode):
            shape = "a list" if isinstance(node, yaml.SequenceNode) else "a text"
            self._stop(path, f"holds {shape}; write variables, one a line, as name: value", node.start_mark.line + 1)
            return
        self._keys(path, node, host)

    def _keys(self, path: Path, node: yaml.MappingNode, host: str, merged: bool = False) -> None:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value == "<<":
                if isinstance(value, yaml.MappingNode):
                    self._keys(path, value, host, True)
                continue
            if not self._named(path, key, "variable"):
                continue
            where = self._shown(path, key.start_mark.line + 1)
            if not any(
                place.where == where and place.host == host and place.name == key.value for place in self.places
            ):
                self.places.append(Place(key.value, where, host, list(_scalars(value))))

    def _hosts_file(self, path: Path) -> None:
        """Check a file with hosts and groups."""
        if path.suffix not in constants.YAML_FILENAME_EXTENSIONS:
            if _is_text(path):
                self._ini_file(path)
            return
        if _is_text(path) and re.match(r"(\s*([#;].*)?\n)*\[[\w.-]+(:\w+)?\]\s*\n", path.read_text()):
            self._stop(path, f"is INI, and its name ends in {path.suffix}; rename it to {path.stem}.ini")
            return
        node = self._compose(path)
        if node is None:
            return
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return
        if not isinstance(node, yaml.MappingNode):
            self._say(
                path, "does not hold groups; write all:, below it children: and the groups", node.start_mark.line + 1
            )
            return
        if any(getattr(key, "value", "") == "plugin" for key, _ in node.value):
            return
        for key, value in node.value:
            self._group(path, key, value)

    def _group(self, path: Path, key: yaml.Node, node: yaml.Node) -> None:
        line, name = key.start_mark.line + 1, str(key.value)
        self._named(path, key, "group")
        if name in GROUP_KEYS:
            self._say(path, f"has {name} as a group, which is a word of the file; correct the indentation", line)
            return
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return
        if not isinstance(node, yaml.MappingNode):
            self._say(
                path,
                f"has {name} where a group is due; variables of all hosts go to group_vars/all/, a group has hosts:, "
                "children: or vars:",
                line,
            )
            return
        for part, value in node.value:
            word, at = str(part.value), part.start_mark.line + 1
            if word not in GROUP_KEYS:
                near = nearest(word, GROUP_KEYS)
                meant = f"write {near}:" if near else "a group has hosts:, children: and vars:"
                self._say(path, f"has {word} in the group {name}, which is not read; {meant}", at)
                continue
            if isinstance(value, yaml.ScalarNode) and value.tag.endswith(":null"):
                continue
            if not isinstance(value, yaml.MappingNode):
                example = "name: value" if word == "vars" else "a name and a colon for each"
                shape = "a list" if isinstance(value, yaml.SequenceNode) else "a text"
                self._say(path, f"has {shape} as {word} of the group {name}; write lines of {example}", at)
            elif word == "vars":
                self._keys(path, value, "")
            elif word == "children":
                for child, content in value.value:
                    self._group(path, child, content)
            else:
                for host, variables in value.value:
                    self._host(path, host, variables)

    def _host(self, path: Path, key: yaml.Node, node: yaml.Node) -> None:
        name = str(key.value)
        if not self._named(path, key, "host"):
            return
        known = known_names()
        span = re.search(r"\[(\d+):(\d+)(:\d+)?\]", name)
        if span and int(span[1]) > int(span[2]):
            self._say(
                path,
                f"has the hosts {name}, a range that ends before it starts, so there are none; write "
                f"{name.replace(span[0], f'[{span[2]}:{span[1]}]')}",
                key.start_mark.line + 1,
            )
            return
        if (
            name in known.variables
            or name.startswith(known.prefixes)
            or name in {*GROUP_KEYS, *_connection_variables()}
        ):
            meant = "a word of the file" if name in GROUP_KEYS else "a variable or group"
            self._say(path, f"has {name} as a host, which is {meant}; correct the indentation", key.start_mark.line + 1)
            return
        if isinstance(node, yaml.MappingNode):
            self._keys(path, node, name if self._inventory is None or name in self._inventory.hosts else "")
        elif not (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            self._say(
                path,
                f"has the host {name} with a value; write its variables below it, for example ansible_host: 10.0.0.5",
                key.start_mark.line + 1,
            )

    def _named(self, path: Path, key: yaml.Node, kind: str) -> bool:
        """Return whether the name of a host or group is a text; note when YAML reads something else."""
        if not isinstance(key, yaml.ScalarNode):
            return False
        kinds = {
            "int": "a number",
            "float": "a number",
            "bool": "true or false",
            "null": "nothing",
            "timestamp": "a date",
        }
        read = kinds.get(key.tag.rpartition(":")[2])
        if read:
            self._say(
                path,
                f"has the {kind} {key.value}, which YAML reads as {read}; write it in quotes: '{key.value}', "
                "or rename it",
                key.start_mark.line + 1,
            )
        return not read

    def _ini_file(self, path: Path) -> None:
        """Note the variables of an INI file of hosts; its sections are groups, which the inventory has."""
        section = ""
        listed: dict[tuple[str, str], int] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            line = line.split(" #")[0].strip()
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith(("#", ";")):
                where = self._shown(path, number)
                if section.endswith(":vars"):
                    name, _, value = line.partition("=")
                    self.places.append(Place(name.strip(), where, "", [value]))
                elif not section.endswith(":children"):
                    host, *rest = line.split()
                    if (section, host) in listed and self._inventory:
                        self._say(
                            path,
                            f"has the host {host} a second time in [{section}] (first in line "
                            f"{listed[section, host]}); keep one",
                            number,
                        )
                    listed.setdefault((section, host), number)
                    for name in re.findall(r"(?:^|\s)([A-Za-z_][\w-]*)=", " ".join(rest)):
                        self.places.append(Place(name, where, host if host in self._hosts() else ""))


def _is_text(path: Path) -> bool:
    try:
        path.read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return not path.stat().st_mode & 0o111


def _scalars(node: yaml.Node) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode):
        yield str(node.value)
    else:
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                yield from _scalars(part)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _vault_fault(raw: bytes, has_password: bool) -> str:
    """Return what is wrong with vaulted text that cannot be decrypted, and what to do."""
    if not has_password:
        return (
            "is encrypted, and no vault password is given; put the password into .vault_password beside hosts.yml and "
            "use make, or set ANSIBLE_VAULT_PASSWORD_FILE"
        )
    header, *lines = [line.strip() for line in raw.strip().splitlines()] or [b""]
    body = b"".join(lines)
    whole = not len(body) % 2 and re.fullmatch(rb"[0-9a-f]+", body)
    parts = bytes.fromhex(body.decode()).split(b"\n") if whole else []
    # Salt, checksum and content, each in hex again: the checksum has 64 digits, the content blocks of 16 bytes.
    sound = len(parts) == 3 and len(parts[0]) == 64 and len(parts[1]) == 64 and parts[2] and not len(parts[2]) % 32
    if not sound or header.count(b";") < 2:
        return "is a damaged vault (cut off or edited by hand); restore it from a backup"
    return (
        "cannot be decrypted: the vault password is not the one that it was encrypted with, or the file is damaged; "
        "put the right password into .vault_password (or ANSIBLE_VAULT_PASSWORD_FILE), or restore the file from a "
        "backup"
    )


def _yaml_advice(fault: str, line: str) -> str:
    """Return what to do about a fault of a YAML parser."""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in fault:
        return "indent with spaces, not with tabs"
    if "{{" in line:
        return "put a value that has {{ }} in quotes, and close the quotes"
    if "mapping values" in fault:
        return "put a value that has ': ' in quotes, and correct the indentation"
    if "document" in fault:
        return "keep one document in a file: remove the second ---"
    return "correct this line or the one before it: an open bracket or quote, or a wrong indentation"
