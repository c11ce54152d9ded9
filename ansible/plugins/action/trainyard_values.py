# Part of Trainyard.
"""The action behind the module trainyard_values: the values of all hosts, compared with the specifications of roles.

It runs on the controller and asks no host. Values that need facts which are not known yet are left for later.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.loader import filter_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.vars import combine_vars

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

from trainyard_names import known_names, names_read, nearest, set_while_running
from trainyard_paths import overlap_problems
from trainyard_values import KINDS, Complaint, augment, complaints, plain, shown

try:  # Ansible keeps it to itself, and without it a message names no file.
    from ansible._internal._datatag._tags import Origin
except ImportError:  # pragma: no cover
    Origin = None

ROLES = Path(__file__).resolve().parents[2] / "roles"
WORD = re.compile(r"[A-Za-z_]\w*")
# What a play knows and an inventory does not.
PLAY = (
    "ansible_check_mode",
    "ansible_play_batch",
    "ansible_play_hosts",
    "ansible_play_hosts_all",
    "ansible_playbook_python",
    "hostvars",
    "playbook_dir",
)
# Hosts that are not found by an address.
LOCAL = {"local"}
# The start of what a role's filter says: the variable, and what of it.
SUBJECT = re.compile(r"(?P<variable>[A-Za-z_]\w*)(?P<part>(\[\d+\]|\.\w+)*)")
# Templates that may have no answer yet: facts, other hosts' variables, and programs and servers that are asked.
LATER = re.compile(r"ansible_facts|hostvars|['\"](ansible\.builtin\.|community\.general\.)?(pipe|url|dig)['\"]")
# A value of such a name is not shown, whatever is wrong with it.
SECRET = re.compile(r"secret|passw|token|credential|hash|key", re.IGNORECASE)


class Role:
    """What a role's files tell: its options with their kinds, its defaults and variables."""

    def __init__(self, folder: Path, loader: Any) -> None:
        """Read the role.

        Raises:
            ValueError: its value types do not fit its argument specification.
        """

        def read(name: str) -> dict[str, Any]:
            path = folder / name
            return loader.load_from_file(str(path), trusted_as_template=True) or {} if path.exists() else {}

        self.name, self.folder = folder.name, folder
        specs = plain(read("meta/argument_specs.yml"))["argument_specs"]["main"].get("options") or {}
        self.options = augment(specs, plain(read("meta/value_types.yml")))
        self.defaults, self.vars = read("defaults/main.yml"), read("vars/main.yml")
        # Ansible itself knows them once the role has run.
        if (folder / "filter_plugins").is_dir():
            filter_loader.add_directory(str(folder / "filter_plugins"))


class Host:
    """The variables of a host, as a set of roles sees them."""

    def __init__(self, name: str, given: Mapping[str, Any], roles: list[Role], play: Mapping[str, Any], loader: Any):
        self.name, self.given, self.roles = name, given, roles
        self.variables: dict[str, Any] = {}
        for role in roles:
            self.variables |= role.defaults
        self.variables |= {key: value for key, value in play.items() if key in PLAY}
        self.variables = combine_vars(self.variables, given)
        for role in roles:
            self.variables |= role.vars
        self._templar = Templar(loader=loader, variables=self.variables)
        self._mentioned: dict[str, set[str]] = {}
        self.complaints: list[Complaint] = []
        self.broken: dict[str, AnsibleError] = {}

    def value(self, name: str, role: Role | None = None) -> Any:
        """Return the value of a variable.

        Raises:
            AnsibleError: it cannot be worked out.
        """
        if role:
            self.variables["role_path"] = str(role.folder)
        return self.evaluate(self.variables[name])

    def evaluate(self, raw: Any, **more: Any) -> Any:
        """Return what a template gives with the host's variables.

        Raises:
            AnsibleError: it cannot be worked out.
        """
        if not any("{{" in part or "{%" in part for part in _texts(raw)):
            return raw
        self._templar.available_variables = {**self.variables, **more} if more else self.variables
        return self._templar.template(raw)

    def mentions(self, name: str) -> set[str]:
        """Return the names of the variables that a variable is made of, itself not among them."""
        if name not in self._mentioned:
            self._mentioned[name] = found = set()
            direct = {word for part in _texts(self.variables.get(name)) if "{" in part for word in WORD.findall(part)}
            for other in (direct & self.variables.keys()) - {name, "hostvars", "groups", "ansible_facts"}:
                found |= {other} | self.mentions(other)
        return self._mentioned[name]

    def place(self, name: str) -> str:
        """Return the file and line that set a variable, as the inventory's folder has them; empty when nobody knows."""
        raw = self.given.get(name)
        origin = Origin and next((tag for part in _parts(raw) if (tag := Origin.get_tag(part))), None)
        if not origin or not origin.path:
            return ""
        path, folder = Path(origin.path), Path(str(self.given.get("inventory_dir", "/")))
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        return f"{shown}:{origin.line_num}" if origin.line_num else str(shown)

    def check(self, name: str, option: Mapping[str, Any], role: Role | None = None) -> None:
        """Note what is wrong with a variable."""
        if name not in self.variables:
            if option.get("required") and not option.get("no_log"):
                self.complaints.append(Complaint(name, name, "is missing", "write it", True))
            return
        try:
            value = self.value(name, role)
        except AnsibleError as error:
            self.broken[name] = error
            return
        self.complaints += complaints(name, option, value)

    def check_given(self, variables: Mapping[str, Any]) -> None:
        """Note what of the inventory cannot be worked out, where something of ours is made of it.

        A role's ``default()`` would take an empty value for it, and nobody would see the mistake.
        """
        options: set[str] = set(variables).union(*(role.options for role in self.roles))
        read = options.union(*(self.mentions(name) for name in options))
        prefixes = known_names().prefixes
        for name in self.given.keys() - options:
            if (name in read or name.startswith(prefixes)) and not self.later(name):
                try:
                    self.value(name)
                except AnsibleError as error:
                    self.broken[name] = error

    def later(self, name: str) -> bool:
        """Return whether a variable is made of what only a run finds out: facts, and what tasks register."""
        texts = [text for each in {name} | self.mentions(name) for text in _texts(self.variables.get(each))]
        unknown = {word for text in texts for word in names_read(text)} - self.variables.keys()
        return bool(unknown & {"item", "ansible_loop"} | unknown & set_while_running()) or any(
            LATER.search(text) for text in texts if "{" in text
        )

    def subject(self, problem: str) -> tuple[str, str]:
        """Return the variable that a sentence about this host is about, and which part of it; empty for none."""
        found = SUBJECT.match(problem, len(self.name) + 2) if problem.startswith(f"{self.name}: ") else None
        if not found or found["variable"] not in self.variables:
            return "", ""
        return found["variable"], found["variable"] + found["part"]

    def placed(self, problem: str) -> str:
        """Return a sentence with the place that sets its variable."""
        place = self.place(self.subject(problem)[0])
        return f"{problem} (set in {place})" if place and place not in problem else problem

    def blamed(self) -> set[str]:
        """Return the variables that are wrong of themselves, or cannot be worked out."""
        return {complaint.variable for complaint in self.complaints} | self.broken.keys()

    def sound(self, name: str) -> bool:
        """Return whether a variable exists and all that it is made of has the right shape."""
        wrong = {complaint.variable for complaint in self.complaints if complaint.shape} | self.broken.keys()
        return name in self.variables and not wrong & ({name} | self.mentions(name))

    def sound_value(self, name: str, role: Role | None = None) -> Any:
        """Return the value of a variable, None where it cannot be worked out or would be made of a wrong shape."""
        if not self.sound(name):
            return None
        try:
            return self.value(name, role)
        except AnsibleError as error:
            self.broken[name] = error
            return None

    def told(self, *, facts: bool, others: list[str]) -> Iterator[str]:
        """Yield all that is wrong as sentences; what only follows from another variable is left out.

        Args:
            facts: whether facts are known; without them, what cannot be worked out may be with them.
            others: what is wrong across variables, as the roles' filters say it.
        """
        own = self.blamed()
        blamed = own | {self.subject(problem)[0] for problem in others} - {""}
        paths = {complaint.path for complaint in self.complaints}
        for complaint in self.complaints:
            if not self.mentions(complaint.variable) & (blamed - {complaint.variable}):
                yield f"{self.name}: {complaint.sentence(self.place(complaint.variable))}"
        for problem in others:
            variable, path = self.subject(problem)
            if path not in paths and not self.mentions(variable) & (blamed - {variable}):
                yield self.placed(problem)
        for name, error in self.broken.items():
            # What a role makes of values is broken by a wrong one.
            # And where two are made of each other, both are told.
            from_others = any(name not in self.mentions(other) for other in self.mentions(name) & blamed - {name})
            if (name.startswith("__") and (self.complaints or others)) or from_others:
                continue
            if facts or not self.later(name):
                yield self._broken(name, error)

    def _broken(self, name: str, error: AnsibleError) -> str:
        """Return the sentence about a variable that cannot be worked out."""
        place, reason = self.place(name), _reason(error)
        hidden = SECRET.search(name) or any(role.options.get(name, {}).get("no_log") for role in self.roles)
        raw = self.variables.get(name)
        state = f" is {shown(raw)}" if isinstance(raw, str) and not hidden and not name.startswith("__") else ""
        undefined = re.search(r"'(\w+)' is undefined", reason)
        word = undefined[1] if undefined else ""
        if word.startswith("ansible_") and not self.variables.get(word):
            advice = f"write ansible_facts['{word.removeprefix('ansible_')}'] for a fact, or correct the name"
        elif word and (near := nearest(word, self.variables.keys() - {name}, 0.8)):
            advice = f"write {near}, or define {word}"
        else:
            advice = f"define {word}, or correct the name" if word else "correct the template, or define what it uses"
        return (
            f"{self.name}: {name}{state}{f' ({place})' if place else ''}{',' if state else ''} "
            f"{'which ' if state else ''}cannot be worked out: {reason}; {advice}"
        )


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())[:300].rstrip(".")
    # Python's words for two mistakes that are frequent.
    if isinstance(error, RecursionError) or "recursion" in text:
        return "it is made of itself"
    return re.sub(r"^object of type '\w+' has no (attribute|element) (.*)$", r"there is no \2 in what it reads", text)


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value and all that is in it."""
    yield value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _parts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)


def _texts(value: Any) -> Iterator[str]:
    return (part for part in _parts(value) if isinstance(part, str))


def _rules(option: Mapping[str, Any], kind: str) -> bool:
    return option.get("rule", {}).get("kind") == kind


def _port_problems(host: Host, values: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Yield services of one host that would share a port."""
    taken: dict[int, str] = {}
    ssh = host.variables.get("ansible_port", 22)
    if str(host.variables.get("ansible_connection", "ssh")) not in LOCAL and str(ssh).isdigit():
        taken[int(ssh)] = "ansible_port, where SSH answers"
    # With a domain the server has 80 and 443 instead.
    unused = "clearml_server_" if values.get("clearml_server_domain") else "-"
    for name, option in options.items():
        if _rules(option, "port") and name in values and not name.startswith((unused, "ansible_")):
            port = int(values[name])
            if port in taken:
                yield (
                    f"{host.name}: {name} is {port}, and so is {taken[port]}: two services cannot share a port; write "
                    "another one, for example 8080 for web, 8008 for the API, 8081 for files"
                )
            taken.setdefault(port, name)


def _folder_problems(host: Host, values: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return folders of one host that hold one another without being meant to."""
    folders = {
        name: str(values[name])
        for name, option in options.items()
        if _rules(option, "folder") and values.get(name) and not option["rule"].get("same")
    }
    return [f"{host.name}: {problem}" for problem in overlap_problems(folders)]


def _address_problems(hosts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield hosts that are one machine under two names."""
    seen: dict[tuple[str, str, str], str] = {}
    for name, variables in sorted(hosts.items()):
        connection = str(variables.get("ansible_connection", "ssh"))
        if connection in LOCAL:
            continue
        if "ansible_host" not in variables and connection in ("ssh", "smart") and (why := KINDS["ssh_host"](name, {})):
            yield f"{name}: without ansible_host its name is its address: {why}; rename it, or write ansible_host"
        address = str(variables.get("ansible_host", name))
        key = (connection.rpartition(".")[2], address.lower().rstrip("."), str(variables.get("ansible_port", 22)))
        if key in seen:
            yield (
                f"{name}: ansible_host is {address!r}, which {seen[key]} has too: they are one machine; write each "
                "host's own address, or remove one of them"
            )
        seen.setdefault(key, name)


class Checker:
    """Compares the variables of hosts with the roles that they run. Needs no connection, and no play."""

    def __init__(self, loader: Any, play: Mapping[str, Any]):
        self._loader, self._play = loader, play
        self._known: dict[str, Role] = {}
        # By host, the files on it that must hold authorities, each with the variable that names it.
        self.authorities: dict[str, dict[str, str]] = {}

    def host(self, name: str, given: Mapping[str, Any], roles: list[str]) -> Host:
        """Return a host with the variables that it is given."""
        for role in roles:
            if role not in self._known:
                self._known[role] = Role(ROLES / role, self._loader)
        return Host(name, given, [self._known[role] for role in roles], self._play, self._loader)

    def role(self, name: str, given: Mapping[str, Any], role: str) -> list[str]:
        """Return what is wrong with the variables of one role on one host."""
        host = self.host(name, given, [role])
        return list(host.told(facts=True, others=self._own(host)))

    def site(self, roles: Mapping[str, list[str]], groups: Mapping[str, list[str]], *, facts: bool) -> list[str]:
        """Return what is wrong with the variables of all hosts of the play.

        Args:
            roles: what the hosts of a group run, by group.
            groups: the inventory's groups.
            facts: whether facts are known. Values that need some are left out without them.
        """
        hostvars = self._play["hostvars"]
        variables = plain(self._loader.load_from_file(str(ROLES / "preflight/meta/site_variables.yml")))
        everywhere = {name: hostvars.raw_get(name) for group in roles for name in groups.get(group, [])}
        hosts: list[Host] = []
        problems: list[str] = []
        across: dict[str, list[str]] = {}
        for name in self._play["ansible_play_hosts_all"]:
            own = dict.fromkeys(role for group in roles if name in groups.get(group, []) for role in roles[group])
            host = self.host(name, everywhere.get(name, {}), list(own))
            for variable, option in variables.items():
                host.check(variable, option)
            across[name] = self._own(host)
            host.check_given(variables)
            hosts.append(host)
        for problem in self._workers(hosts):
            across.setdefault(problem.partition(": ")[0], []).append(problem)
        for host in hosts:
            problems += host.told(facts=facts, others=across.pop(host.name))
        problems += [problem for others in across.values() for problem in others]
        return list(dict.fromkeys([*problems, *_address_problems(everywhere)]))

    def _own(self, host: Host) -> list[str]:
        """Note the complaints of a host's variables; return what is wrong across them."""
        options: dict[str, Any] = {}
        for role in host.roles:
            options |= role.options
            for name, option in role.options.items():
                host.check(name, option, role)
        wrong = host.blamed()
        values = {}
        for role in host.roles:
            for name, option in role.options.items():
                asked = _rules(option, "port") or _rules(option, "folder") or name == "clearml_server_domain"
                if asked and name in host.variables and not wrong & ({name} | host.mentions(name)):
                    values[name] = host.value(name, role)
            for name, option in role.options.items():
                if option.get("rule", {}).get("where") == "node" and name not in wrong and host.variables.get(name):
                    files = self.authorities.setdefault(host.name, {})
                    # Of several variables for one file the site's own is the one to correct.
                    source = min(
                        {name} | host.mentions(name) & host.given.keys(), key=lambda each: not each.startswith("site_")
                    )
                    if path := host.value(name, role):
                        files.setdefault(str(path), source)
        problems = [*_port_problems(host, values, options), *_folder_problems(host, values, options)]
        for role in host.roles:
            # What a role knows of its own variables together.
            problems += host.sound_value(f"__{role.name}_problems", role) or []
        return problems

    def _workers(self, hosts: list[Host]) -> list[str]:
        """Return what is wrong with the workers and queues of the nodes together."""
        name = "__clearml_agent_description"
        nodes = {host.name: node for host in hosts if (node := host.sound_value(name)) is not None}
        if not nodes:
            return []
        # What a node serves that counts its GPUs itself is known when it was asked.
        counted = len(nodes) == len([host for host in hosts if name in host.variables]) and all(
            node["explicit"] or node["gpus"] != "auto" or node["gpus_found"] is not None for node in nodes.values()
        )
        declared = {queue: text for node in nodes.values() for queue, text in node["queue_descriptions"].items()}
        expression = trust_as_template("{{ nodes | trainyard_site_problems(declared) }}")
        problems = list(hosts[0].evaluate(expression, nodes=nodes, declared=declared if counted else {}))
        served = {queue for node in nodes.values() for worker in node["workers"] for queue in worker["queues"]}
        for host in hosts:
            queue = host.sound_value("site_verify_queue")
            if counted and not problems and queue and queue not in served:
                problems.append(
                    f"{host.name}: site_verify_queue is {plain(queue)!r}, which no worker serves, so make verify would "
                    f"wait for ever; write one of {', '.join(sorted(map(str, served)))}"
                )
        return problems


class ActionModule(ActionBase):
    """Compare the values of variables with the specifications of roles."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the problems of all hosts as sentences; fail for those of one role."""
        result = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, arguments = self.validate_argument_spec(
            {
                "roles": {"type": "dict"},
                "role": {"type": "str"},
                "facts": {"type": "bool", "default": True},
            },
            mutually_exclusive=[("roles", "role")],
            required_one_of=[("roles", "role")],
        )
        checker = Checker(self._loader, variables)
        if arguments["role"]:
            problems = checker.role(variables["inventory_hostname"], variables, arguments["role"])
            result.update(failed=bool(problems), msg="\n".join(problems))
        else:
            problems = checker.site(arguments["roles"], variables["groups"], facts=arguments["facts"])
            result["authorities"] = checker.authorities
        result.update(problems=problems, changed=False)
        return result
