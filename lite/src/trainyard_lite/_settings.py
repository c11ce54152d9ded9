"""What the server is told: addresses by arguments, users and secrets by the official server's HOCON files."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyhocon import ConfigFactory, ConfigTree
from pyhocon.exceptions import ConfigException

__all__ = ["COMPANY_ID", "ConfigError", "Settings", "User", "load_settings", "proxies", "user_id"]

COMPANY_ID = "d1bd92a3b039400cbafc60a7a5b1e52b"  # the official server's default company
_HOST_NAME = re.compile(r"(?![0-9./:]+$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")  # digits and dots are no name
_ROLES = ("system", "admin", "user")


class ConfigError(Exception):
    """A configuration file that cannot be used; the message names file, key and right form."""


@dataclass(frozen=True)
class User:
    """A person (``fixed_users``) or a service account (``secure.conf`` credentials).

    Attributes:
        password: base64 of a bcrypt hash, or the plain password when not ``hashed``; None for accounts.
        key, secret: the account's own key pair; None for people.
    """

    id: str
    name: str
    role: str
    username: str | None = None
    password: str | None = None
    hashed: bool = True
    key: str | None = None
    secret: str | None = None


@dataclass
class Settings:
    """Everything the process needs to know at start."""

    config_dir: Path
    data_dir: Path
    host: str = "0.0.0.0"  # noqa: S104 (a server on purpose; ports are published by the operator)
    api_port: int = 8008
    web_port: int = 8080
    files_port: int = 8081
    api_url: str = ""
    web_url: str = ""
    files_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    token_secret: str = ""
    users: list[User] = field(default_factory=list)
    cookie_name: str = "clearml_token_basic"
    cookie_secure: bool = False
    cookie_domain: str | None = None
    token_expiration_sec: int = 30 * 86400
    max_expiration_sec: int = 365 * 86400
    worker_timeout_sec: int = 600
    watchdog_enabled: bool = True
    watchdog_threshold_sec: int = 7200
    watchdog_interval_sec: int = 900

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "lite.db"

    @property
    def files_dir(self) -> Path:
        """The folder of the file server."""
        return self.data_dir / "files"


def user_id(username: str) -> str:
    """Give a fixed user's id as the official server does: md5 of company and username."""
    return hashlib.md5(f"{COMPANY_ID}:{username}".encode()).hexdigest()  # noqa: S324 (an id, not a secret)


def proxies(text: str) -> tuple[str, ...]:
    """Read a list of proxies: addresses, networks and host names, with commas between them.

    Raises:
        ConfigError: naming the first entry that is none of them.
    """
    entries = tuple(entry.strip() for entry in text.split(",") if entry.strip())
    for entry in entries:
        try:
            ipaddress.ip_network(entry, strict=False)
            continue
        except ValueError:
            name = _HOST_NAME.fullmatch(entry)
        if not name:
            raise ConfigError(
                f"TRAINYARD_LITE_TRUSTED_PROXIES holds {entry!r}: write addresses, networks or host names with commas "
                "between them, for example 10.0.0.5,172.20.0.0/16,caddy"
            )
    return entries


def load_settings(config_dir: Path, data_dir: Path, **addresses: Any) -> Settings:
    """Read ``apiserver.conf``, ``secure.conf`` and ``services.conf`` of ``config_dir``.

    Raises:
        ConfigError: for a missing or unreadable file, a missing secret, or a user that makes no sense.
    """
    api = _read(config_dir / "apiserver.conf", required=False)
    secure = _read(config_dir / "secure.conf", required=True)
    services = _read(config_dir / "services.conf", required=False)
    where = config_dir / "secure.conf"
    settings = Settings(config_dir=config_dir, data_dir=data_dir, **addresses)
    settings.token_secret = _secret(secure, "auth.token_secret", where)
    settings.users = _people(api, config_dir / "apiserver.conf") + _accounts(secure, where)
    names = [user.username for user in settings.users if user.username]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{config_dir / 'apiserver.conf'}: auth.fixed_users.users names {twice[0]!r} twice")
    settings.cookie_name = api.get("auth.session_auth_cookie_name", settings.cookie_name)
    settings.cookie_secure = bool(api.get("auth.cookies.secure", False))
    settings.cookie_domain = api.get("auth.cookies.domain", None)
    settings.token_expiration_sec = int(api.get("auth.default_expiration_sec", settings.token_expiration_sec))
    settings.max_expiration_sec = int(api.get("auth.max_expiration_sec", settings.max_expiration_sec))
    settings.worker_timeout_sec = int(
        services.get("workers.default_worker_timeout_sec", api.get("workers.default_timeout", 600))
    )
    watchdog = services.get("tasks.non_responsive_tasks_watchdog", ConfigTree())
    settings.watchdog_enabled = bool(watchdog.get("enabled", True))
    settings.watchdog_threshold_sec = int(watchdog.get("threshold_sec", 7200))
    settings.watchdog_interval_sec = int(watchdog.get("watch_interval_sec", 900))
    return settings


def _read(path: Path, *, required: bool) -> ConfigTree:
    if not path.exists():
        if required:
            raise ConfigError(f"{path} is missing: it holds the server's secrets and service accounts")
        return ConfigTree()
    try:
        return ConfigFactory.parse_string(path.read_text(encoding="utf-8"), basedir=str(path.parent))
    except (
        OSError,
        ConfigException,
        Exception,
    ) as error:  # pyparsing's errors have no common root with pyhocon's
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _secret(tree: ConfigTree, key: str, path: Path) -> str:
    value = tree.get(key, None)
    if not isinstance(value, str) or len(value) < 16:
        raise ConfigError(f"{path}: {key} must be a secret of at least 16 characters, A-Z a-z 0-9 _ -")
    return value


def _people(api: ConfigTree, path: Path) -> list[User]:
    fixed = api.get("auth.fixed_users", ConfigTree())
    if not fixed.get("enabled", False):
        return []
    hashed = bool(fixed.get("pass_hashed", False))
    people = []
    for position, entry in enumerate(fixed.get("users", [])):
        place = f"{path}: auth.fixed_users.users[{position}]"
        username, password = entry.get("username", None), entry.get("password", None)
        if not username or not password:
            raise ConfigError(f"{place} needs username and password")
        if unknown := sorted(set(entry) - {"username", "password", "name"}):
            # The official server refuses to start with them: one file must serve both.
            raise ConfigError(f"{place} has the unknown key {unknown[0]!r}; username, password and name are known")
        people.append(
            User(
                id=user_id(str(username)),
                name=str(entry.get("name", username)),
                role="user",
                username=str(username),
                password=str(password),
                hashed=hashed,
            )
        )
    return people


def _accounts(secure: ConfigTree, path: Path) -> list[User]:
    accounts = []
    for name, entry in secure.get("credentials", ConfigTree()).items():
        role = entry.get("role", "user")
        if role not in _ROLES:
            raise ConfigError(f"{path}: credentials.{name}.role is {role!r}; use one of {', '.join(_ROLES)}")
        key, secret = entry.get("user_key", ""), entry.get("user_secret", "")
        if entry.get("revoke_in_fixed_mode", False) or not key or not secret:
            key = secret = None
        display = entry.get("display_name", name)
        accounts.append(
            User(
                id=f"__{name}__",
                name=str(display),
                role=role,
                key=key and str(key),
                secret=secret and str(secret),
            )
        )
    return accounts
