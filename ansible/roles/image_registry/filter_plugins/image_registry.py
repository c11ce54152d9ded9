# Part of Trainyard.
"""Filters for the registry's settings: the mistakes in them, and its users as it reads them."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bcrypt

# Ansible finds module_utils for modules only; a filter runs on the controller.
sys.path.append(str(Path(__file__).resolve().parents[3] / "plugins" / "module_utils"))

from trainyard_values import pair_problems

__all__ = ["FilterModule"]

USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*\Z")
SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 72  # bcrypt looks at no more
# The registry verifies the password at every request, and a push has hundreds: 13 ms each, where 12 would be 220.
COST = 8


def image_registry_problems(settings: Mapping[str, Any], host: str) -> list[str]:
    """Find what cannot work in the settings of the registry on ``host``."""
    problems = []
    registries = [str(name) for name in settings["registries"]]
    if registries != [host]:
        problems.append(
            f"all: the group clearml_registry has {len(registries)} hosts ({', '.join(registries) or 'none'}), and the "
            f"role image_registry runs on {host}; write exactly that host into it"
        )
    return [
        *problems,
        *_address_problems(settings, host),
        *_port_problems(settings, host),
        *_tls_problems(settings, host),
    ]


def _ip(address: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(address)
    except ValueError:
        return None


def _address_problems(settings: Mapping[str, Any], host: str) -> list[str]:
    address = str(settings["address"])
    variable, ip = f"{host}: image_registry_address is {address!r}", _ip(address)
    others = sorted(str(name) for name in settings["others"])
    if others and (address == "localhost" or (ip and ip.is_loopback)):
        return [f"{variable}, which is each host itself; write a name or address that {', '.join(others)} reach"]
    return []


def _port_problems(settings: Mapping[str, Any], host: str) -> list[str]:
    port, owner = int(settings["port"]), settings["port_owner"]
    variable = f"{host}: image_registry_port is {port}"
    for name, taken in sorted(settings["server_ports"].items()):
        if int(taken) == port:
            return [f"{variable}, which is the server's port for {name} on the same host; write another port"]
    if owner and owner["project"] != settings["project"]:
        return [f"{variable}, and that port is taken by {owner['name']}; stop it, or write another port"]
    return []


def _tls_problems(settings: Mapping[str, Any], host: str) -> list[str]:
    certificate, key, authority = (str(settings[f"tls_{name}"]) for name in ("certificate", "key", "authority"))
    if bool(certificate) != bool(key):
        return [
            f"{host}: image_registry_tls_certificate is {certificate!r} and image_registry_tls_key is {key!r}; write "
            "both, or leave both empty for a certificate of the role's own"
        ]
    if certificate:
        files = ("image_registry_tls_certificate", certificate), ("image_registry_tls_key", key)
        return [f"{host}: {problem}" for problem in pair_problems(*files, [str(settings["address"])])]
    if authority:
        return [
            f"{host}: image_registry_tls_authority is {authority!r}, but there is no image_registry_tls_certificate: "
            "the role makes an authority of its own; write certificate and key too, or leave it empty"
        ]
    days, renew = int(settings["certificate_days"]), int(settings["certificate_renew_days"])
    if renew >= days:
        return [
            f"{host}: image_registry_certificate_renew_days is {renew}, and image_registry_certificate_days {days}: "
            f"every run would make a certificate; write less than {days}, e.g. {days // 9}"
        ]
    return []


def image_registry_user_problems(users: Any, host: str) -> list[str]:
    """Find what is wrong in ``image_registry_users``. A problem never tells a password."""
    if isinstance(users, (str, Mapping)) or not isinstance(users, Sequence) or not users:
        return [
            f"{host}: image_registry_users (value hidden) is not a list of users; write a list of {{name, password}}, "
            "at least one, with passwords from the vault"
        ]
    problems: list[str] = []
    seen: dict[str, str] = {}
    for position, user in enumerate(users):
        where = f"{host}: image_registry_users[{position}]"
        if not isinstance(user, Mapping) or set(user) != {"name", "password"}:
            keys = ", ".join(sorted(map(str, user))) or "none" if isinstance(user, Mapping) else "no mapping"
            problems.append(f"{where} has other keys than name and password ({keys}); write {{name, password}}")
            continue
        name, password = user["name"], user["password"]
        if not isinstance(name, str) or not USERNAME.match(name):
            problems.append(
                f"{where}.name is {name!r}; write letters, digits, . _ @ - only, first a letter or digit (a number in "
                "quotes), e.g. 'nodes'"
            )
        elif name in seen:
            problems.append(f"{where}.name is {name!r}, which {seen[name]} has too; write another one")
        else:
            seen[name] = f"image_registry_users[{position}]"
        why = _password_fault(password)
        if why:
            problems.append(f"{where}.password (value hidden) {why}")
    return problems


def _password_fault(password: Any) -> str:
    if password in (None, ""):
        return "is missing; write one of the vault's"
    if not isinstance(password, str):
        return "is not text; put it in quotes"
    if len(password) < SHORTEST_PASSWORD:
        return f"has {len(password)} characters; write {SHORTEST_PASSWORD} or more"
    if not (password.isascii() and password.isprintable()):
        return "has characters that are not printable ASCII; leave them out"
    if len(password) > LONGEST_PASSWORD:
        return f"has {len(password)} characters; bcrypt sees {LONGEST_PASSWORD}: write no more"
    return ""


def image_registry_htpasswd(users: Sequence[Mapping[str, Any]], present: str) -> str:
    """Give the users as the registry reads them; lines of ``present`` that are still right stay as they are."""
    old = dict(line.split(":", 1) for line in present.splitlines() if ":" in line)
    lines = []
    for user in users:
        # Plain str: what comes from the inventory is a tagged subclass.
        name, password = str(user["name"]), str(user["password"]).encode()
        line = old.get(name, "")
        if not (re.match(rf"\$2b\${COST:02}\$.{{53}}\Z", line) and bcrypt.checkpw(password, line.encode())):
            line = bcrypt.hashpw(password, bcrypt.gensalt(COST)).decode()
        lines.append(f"{name}:{line}\n")
    return "".join(lines)


class FilterModule:
    """Names the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "image_registry_htpasswd": image_registry_htpasswd,
            "image_registry_problems": image_registry_problems,
            "image_registry_user_problems": image_registry_user_problems,
        }
