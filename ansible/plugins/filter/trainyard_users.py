# Part of Trainyard.
"""Filters for the people of a site: the mistakes in their list, and the list as the server wants it."""

from __future__ import annotations

import base64
import binascii
import difflib
import functools
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any

import bcrypt
from ansible.errors import AnsibleFilterError

__all__ = ["FilterModule"]

# First a letter or digit: the name is a folder's name too.
USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}\Z")
BCRYPT = re.compile(rb"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}\Z")
STANDARD_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BCRYPT_BASE64 = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
KEYS = {"username", "name", "email", "password", "password_hash"}
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 72  # bcrypt looks at no more
HASH_HELP = (
    "base64 of a bcrypt hash, as .venv/bin/python -c 'import base64, bcrypt, getpass; "
    "print(base64.b64encode(bcrypt.hashpw(getpass.getpass().encode(), bcrypt.gensalt(12))).decode())' prints it"
)


def trainyard_user_problems(users: Any, host: str, taken: Sequence[str] = ()) -> list[str]:
    """Find what is wrong in ``clearml_users``; ``taken`` are usernames that the site has already.

    A problem never tells a password or a hash.
    """
    if isinstance(users, (str, Mapping)) or not isinstance(users, Sequence):
        return [f"{host}: clearml_users is not a list; write a list of {{username, name, password_hash}}, or []"]
    problems: list[str] = []
    seen = {str(name).lower(): "the site itself" for name in taken}
    for position, user in enumerate(users):
        where = f"clearml_users[{position}]"
        if not isinstance(user, Mapping):
            problems.append(f"{host}: {where} is not a mapping; write {{username, name, password_hash}}")
            continue
        username = user.get("username")
        if not isinstance(username, str) or not USERNAME.match(username):
            state = "missing" if username is None else repr(username)
            problems.append(
                f"{host}: {where}.username is {state}; write letters, digits, . _ @ - only, "
                "first a letter or digit (a number in quotes), e.g. 'alice'"
            )
        else:
            where += f" ({username})"
            if username.lower() in seen:
                problems.append(
                    f"{host}: {where}.username is {username!r}, which {seen[username.lower()]} has too "
                    "(case does not count); write another one"
                )
            seen.setdefault(username.lower(), where)
        name, email = user.get("name"), user.get("email")
        told = "missing" if name is None else repr(name)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            problems.append(f"{host}: {where}.name is {told}; write the name that the pages show, e.g. 'Alice Doe'")
        if email is not None and (not isinstance(email, str) or not re.fullmatch(r"[^@\s]+@[^@\s]+", email)):
            problems.append(f"{host}: {where}.email is {email!r}; write an address such as 'alice@example.org'")
        problems += [f"{host}: {where} {problem}" for problem in _password_problems(user)]
        if unknown := sorted(map(str, set(user) - KEYS)):
            near = difflib.get_close_matches(unknown[0], sorted(KEYS), 1, 0.5)
            meant = f"write {near[0]}; " if near else ""
            problems.append(
                f"{host}: {where} has the unknown key {unknown[0]!r}; {meant}known are {', '.join(sorted(KEYS))}"
            )
    return problems


def trainyard_login_problems(users: Sequence[Mapping[str, Any]], host: str) -> list[str]:
    """Find what is wrong across ``clearml_server_users``: hashes that are none, and names that two have.

    A problem never tells a hash.
    """
    problems: list[str] = []
    seen: dict[str, str] = {}
    for position, user in enumerate(users):
        username, hashed = str(user["username"]), user["password_hash"]
        where = f"clearml_server_users[{position}] ({username})"
        if username.lower() in seen:
            problems.append(
                f"{host}: {where} has the username of {seen[username.lower()]} (case does not count); write another one"
            )
        seen.setdefault(username.lower(), where)
        if hashed in (None, ""):
            problems.append(f"{host}: {where}.password_hash is missing; run ansible/secrets.yml (make up does)")
        elif why := _hash_fault(hashed):
            problems.append(f"{host}: {where}.password_hash (value hidden) {why}; write {HASH_HELP}")
    return problems


def _password_problems(user: Mapping[str, Any]) -> list[str]:
    password, hashed = user.get("password"), user.get("password_hash")
    if (password in (None, "")) == (hashed in (None, "")):
        both = password not in (None, "")
        return [
            f"has {'both password and' if both else 'neither password nor'} password_hash; write one of them: "
            f"password_hash is {HASH_HELP}; password is a plain one from the vault"
        ]
    if hashed not in (None, ""):
        why = _hash_fault(hashed)
        return [f"has a password_hash (value hidden) that {why}; write {HASH_HELP}"] if why else []
    why = ""
    if not isinstance(password, str):
        why = "is not text; put it in quotes"
    elif len(password) < SHORTEST_PASSWORD:
        why = f"has {len(password)} characters; write {SHORTEST_PASSWORD} or more"
    elif len(password) > LONGEST_PASSWORD:
        why = f"has {len(password)} characters; bcrypt sees {LONGEST_PASSWORD}: write no more"
    elif not (password.isascii() and password.isprintable()):
        # Browsers and the SDK send UTF-8, which the official server reads as latin-1.
        why = "has characters that are not printable ASCII; leave them out"
    return [f"has a password (value hidden) that {why}"] if why else []


def _hash_fault(value: Any) -> str:
    if not isinstance(value, str):
        return "is not text"
    if BCRYPT.match(value.encode(errors="replace")):
        return "is a bcrypt hash, but not in base64"
    try:
        inner = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return "is not base64"
    return "" if BCRYPT.match(inner) else "is not base64 of a bcrypt hash"


def trainyard_fixed_users(users: Sequence[Mapping[str, Any]], salt_source: str) -> list[dict[str, str]]:
    """Give ``clearml_users`` as apiserver.conf needs them: {username, name, password_hash}.

    A plain password gets the same hash at every run, because its salt comes from ``salt_source`` (a secret of the
    site) and the username: otherwise every run would change the file and restart the server.
    """
    fixed = []
    for user in users:
        # Plain str: what comes from the inventory is a tagged subclass.
        username = str(user["username"])
        hashed = user.get("password_hash") or _hash(str(user["password"]), username, str(salt_source or ""))
        fixed.append({"username": username, "name": str(user.get("name") or username), "password_hash": hashed})
    return fixed


@functools.lru_cache(maxsize=1024)  # a hash takes a quarter of a second, and templates ask several times
def _hash(password: str, username: str, salt_source: str) -> str:
    if not salt_source:
        raise AnsibleFilterError(
            f"trainyard_fixed_users: the password of {username!r} cannot be hashed without the site's token secret; "
            "run ansible/secrets.yml"
        )
    salt = hmac.new(salt_source.encode(), username.encode(), hashlib.sha256).digest()[:16]
    text = base64.b64encode(salt).decode().rstrip("=").translate(str.maketrans(STANDARD_BASE64, BCRYPT_BASE64))
    return base64.b64encode(bcrypt.hashpw(password.encode(), f"$2b$12${text}".encode())).decode()


class FilterModule:
    """Names the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "trainyard_fixed_users": trainyard_fixed_users,
            "trainyard_login_problems": trainyard_login_problems,
            "trainyard_user_problems": trainyard_user_problems,
        }
