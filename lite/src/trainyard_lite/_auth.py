"""Who is calling: passwords, key pairs, bearer tokens, and patience with those who guess.

Users and service accounts come from the configuration and are put in the database at each start
(those that left it are removed with their keys); key pairs made through the API stay.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import string
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import bcrypt
import jwt
from starlette.concurrency import run_in_threadpool

from . import API_VERSION, SERVER_VERSION
from . import _errors as errors
from ._clock import now
from ._db import Database
from ._errors import ApiError
from ._settings import COMPANY_ID, Settings, User
from ._store import Doc, new_id

__all__ = ["NOBODY", "SCHEMA", "Authenticator", "Identity"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, created TEXT NOT NULL,
  preferences TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE IF NOT EXISTS made_user (id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS credential (
  access_key TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, user TEXT NOT NULL, label TEXT,
  created TEXT NOT NULL, last_used TEXT, last_used_from TEXT, from_config INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS credential_user ON credential (user);
CREATE TABLE IF NOT EXISTS revoked_token (session TEXT PRIMARY KEY, expires REAL NOT NULL);
"""
_KEY_ALPHABET = string.ascii_uppercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_FREE_FAILURES = 5  # failed logins of one name and address before each further one has to wait
_MAX_WAIT_SEC = 60.0
_MAX_REMEMBERED = 10_000  # names and addresses
_MAX_VERIFIED = 1024  # tokens whose signature is known to be good, of less than 1 kB each
_CHECKS_PER_ADDRESS = 8
# bcrypt computes for a quarter of a second: over all addresses, guesses get this many cores and no more
_CHECKS_AT_ONCE = max(1, min(4, (os.cpu_count() or 1) // 2))
_LAST_USED_GRAIN_SEC = 60.0  # a key's "last used" is written at most this often


@dataclass(frozen=True)
class Identity:
    """The caller."""

    user: str
    name: str
    role: str
    company: str = COMPANY_ID

    def claim(self) -> Doc:
        """Give the ``identity`` claim of a token, in the official form."""
        return {
            "user": self.user,
            "company": self.company,
            "role": self.role,
            "user_name": self.name,
            "company_name": "clearml",
        }


NOBODY = Identity(user="", name="", role="")


def _hash_secret(secret: str) -> str:
    # Key pairs are long and random: a plain digest is enough, and an agent may log in often.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _dummy_hash(users: list[User]) -> bytes:
    """Make a hash that no password has, as slow to check as the people's."""
    cost = 10
    for user in users:
        if user.password and user.hashed:
            with contextlib.suppress(ValueError, IndexError):
                cost = int(base64.b64decode(user.password).split(b"$")[2])
                break
    return bcrypt.gensalt(min(max(cost, 4), 16)) + b"." * 31


class Throttle:
    """Slows those who guess: after a few failures, each further try of a name and address waits longer.

    Its memory is bounded: names and addresses are kept as digests, the least recently seen ones are forgotten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def turn(self, address: str) -> Iterator[None]:
        """Count a check of a password that runs or waits: an address has only so many at a time.

        Raises:
            ApiError: 429.
        """
        address = _network_of(address)
        with self._lock:
            if self._running[address] >= _CHECKS_PER_ADDRESS:
                raise _wait(1.0)
            self._running[address] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[address] -= 1
                if not self._running[address]:
                    del self._running[address]

    def check(self, address: str, name: str) -> None:
        """Refuse while the waiting time runs.

        Raises:
            ApiError: 429 with Retry-After.
        """
        with self._lock:
            count, last = self._failures.get(_digest(address, name), (0, 0.0))
        if count >= _FREE_FAILURES:
            wait = min(_MAX_WAIT_SEC, 2.0 ** min(count - _FREE_FAILURES, 10)) - (time.monotonic() - last)
            if wait > 0:
                raise _wait(wait)

    def failed(self, address: str, name: str) -> None:
        """Count a failure."""
        who = _digest(address, name)
        with self._lock:
            self._failures[who] = (self._failures.get(who, (0, 0.0))[0] + 1, time.monotonic())
            self._failures.move_to_end(who)
            if len(self._failures) > _MAX_REMEMBERED:
                self._failures.popitem(last=False)

    def succeeded(self, address: str, name: str) -> None:
        """Forget the failures."""
        with self._lock:
            self._failures.pop(_digest(address, name), None)


def _wait(seconds: float) -> ApiError:
    error = errors.TOO_MANY_REQUESTS(retry_after_sec=round(seconds, 1))
    error.headers["Retry-After"] = str(int(seconds) + 1)
    return error


def _network_of(address: str) -> str:
    """Return an IPv6 address's network of 64 bits, of which a host has every address; else the address."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


def _digest(address: str, name: str) -> bytes:
    return hashlib.sha256(f"{_network_of(address)}\x00{name}".encode("utf-8", "surrogatepass")).digest()[:16]


class Authenticator:
    """Checks who is calling, and keeps users and keys."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings = settings
        self._db = db
        self._people = {user.username: user for user in settings.users if user.username}
        self._throttle = Throttle()
        self._dummy_hash = _dummy_hash(settings.users)
        self._checkers = ThreadPoolExecutor(_CHECKS_AT_ONCE, "passwords")
        self._last_used: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._verified: dict[str, Doc] = {}
        self._sync_users(settings.users)

    def _sync_users(self, users: list[User]) -> None:
        made = [row[0] for row in self._db.read().execute("SELECT id FROM made_user")]
        ids = [user.id for user in users] + made
        marks = ", ".join("?" * len(ids))
        with self._db.write() as db:
            for table, column in (("credential", "user"), ("user", "id")):
                db.execute(f"DELETE FROM {table} WHERE {column} NOT IN ({marks})", ids)
            db.execute("DELETE FROM credential WHERE from_config = 1")
            for user in users:
                db.execute(
                    "INSERT INTO user (id, name, role, created) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET name = excluded.name, role = excluded.role",
                    (user.id, user.name, user.role, now()),
                )
                if user.key and user.secret:
                    db.execute(
                        "INSERT OR REPLACE INTO credential (access_key, secret_hash, user, created, from_config) "
                        "VALUES (?, ?, ?, ?, 1)",
                        (user.key, _hash_secret(user.secret), user.id, now()),
                    )
            db.execute("DELETE FROM revoked_token WHERE expires < ?", (time.time(),))
            self._revoked = {row[0] for row in db.execute("SELECT session FROM revoked_token")}

    # Who is it?

    async def authenticate(self, header: str, ip: str = "", worker: str = "") -> Identity:
        """Read an ``Authorization`` header.

        Raises:
            ApiError: 401 (missing, malformed or wrong), 429 (too many wrong passwords).
        """
        kind, _, value = header.partition(" ")
        if not kind:
            raise errors.NO_CREDENTIALS()
        if kind == "Bearer":
            return self.read_token(value.strip())
        if kind == "Basic":
            try:
                # SDK and agent encode UTF-8; the official server reads latin-1, the same for ASCII
                name, _, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
            except (binascii.Error, ValueError) as error:
                raise errors.BAD_CREDENTIALS("malformed basic authentication") from error
            return await self.log_in(name, secret, ip, worker)
        raise errors.BAD_AUTH_TYPE()

    async def log_in(self, name: str, secret: str, ip: str = "", worker: str = "") -> Identity:
        """Check a secret as :meth:`check_secret` does, with few passwords at a time.

        Raises:
            ApiError: 401, or 429 while a guesser has to wait.
        """
        identity = await run_in_threadpool(self._check_key, name, secret, worker or ip)
        if identity is not None:
            return identity
        with self._throttle.turn(ip):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._checkers, self.check_secret, name, secret, ip, worker)

    def check_secret(self, name: str, secret: str, ip: str = "", worker: str = "") -> Identity:
        """Check a username with its password, or an access key with its secret.

        Key pairs are random and long, nobody guesses them: they never wait for those who guess passwords.  Known and
        unknown names take the same time and get the same answer.

        Raises:
            ApiError: 401, or 429 while a guesser has to wait.
        """
        identity = self._check_key(name, secret, worker or ip)
        if identity is not None:
            return identity
        self._throttle.check(ip, name)
        identity = self._check_password(name, secret)
        if identity is None:
            self._throttle.failed(ip, name)
            raise errors.INVALID_CREDENTIALS("wrong user name, password or key pair")
        self._throttle.succeeded(ip, name)
        return identity

    def _check_password(self, name: str, secret: str) -> Identity | None:
        person = self._people.get(name)
        password = (person.password if person else None) or ""
        typed = secret.encode("utf-8", "surrogatepass")
        stored = self._dummy_hash
        if person and person.hashed:
            with contextlib.suppress(ValueError):
                stored = base64.b64decode(password)
        try:
            good = bcrypt.checkpw(typed[:72], stored)
        except ValueError:  # a stored hash that is not one
            good = bcrypt.checkpw(b"", self._dummy_hash)
        if person and not person.hashed:
            good = hmac.compare_digest(typed, password.encode())
        return Identity(person.id, person.name, person.role) if person and good else None

    def _check_key(self, key: str, secret: str, used_from: str) -> Identity | None:
        row = (
            self._db.read()
            .execute(
                "SELECT secret_hash, user.id, user.name, user.role FROM credential "
                "JOIN user ON user.id = credential.user WHERE access_key = ?",
                (key,),
            )
            .fetchone()
        )
        if row is None or not hmac.compare_digest(row[0], _hash_secret(secret)):
            return None
        if time.monotonic() - self._last_used.get(key, -_LAST_USED_GRAIN_SEC) >= _LAST_USED_GRAIN_SEC:
            self._last_used[key] = time.monotonic()
            with self._db.write() as db:
                db.execute(
                    "UPDATE credential SET last_used = ?, last_used_from = ? WHERE access_key = ?",
                    (now(), used_from, key),
                )
        return Identity(row[1], row[2], row[3])

    # Tokens

    def make_token(self, identity: Identity, expiration_sec: int | None = None) -> str:
        """Sign a bearer token.

        Args:
            identity: whose token.
            expiration_sec: its life in seconds; capped and defaulted by the configuration.
        """
        life = min(expiration_sec or self._settings.token_expiration_sec, self._settings.max_expiration_sec)
        moment = int(time.time())
        claims: dict[str, Any] = {
            "auth_type": "Bearer",
            "identity": identity.claim(),
            "iat": moment,
            "exp": moment + life,
            "session_id": new_id(),
            "env": "<unknown>",
            # Clients read here what the server can do: without it, SDK and agent fall back to calls of old.
            "api_version": API_VERSION,
            "server_version": SERVER_VERSION,
            "server_build": "trainyard-lite",
            "feature_set": "basic",
        }
        return jwt.encode(claims, self._settings.token_secret, algorithm="HS256")

    def read_token(self, token: str) -> Identity:
        """Check a bearer token.

        Raises:
            ApiError: 401 for a forged, expired or revoked one, or one of a user who is gone.
        """
        claims = self._claims(token)
        if claims.get("session_id") in self._revoked:
            raise errors.INVALID_TOKEN("revoked token")
        # The role is looked up, not believed: a person who left or lost a role has lost it at once.
        user = claims.get("identity", {}).get("user")
        row = self._db.read().execute("SELECT id, name, role FROM user WHERE id = ?", (user,)).fetchone()
        if row is None:
            raise errors.INVALID_TOKEN("the user of this token does not exist")
        return Identity(row[0], row[1], row[2])

    def revoke_token(self, token: str) -> None:
        """End a session (logout)."""
        claims = self._claims(token)
        if session := claims.get("session_id"):
            with self._db.write() as db:
                db.execute("INSERT OR IGNORE INTO revoked_token VALUES (?, ?)", (session, claims.get("exp", 0)))
            self._revoked.add(session)

    def _claims(self, token: str) -> Doc:
        known = self._verified.get(token)
        # A signature stays good, and to check it is the dearest part of a small call; what may change is looked up.
        if known is not None and time.time() < known.get("exp", 0):
            return known
        try:
            claims: Doc = jwt.decode(token, self._settings.token_secret, algorithms=["HS256"])
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:  # the header may be nested too deep
            raise errors.INVALID_TOKEN("invalid jwt token", reason=str(error)[:200]) from error
        if not isinstance(claims.get("identity"), dict):
            raise errors.INVALID_TOKEN("token missing identity")
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()
        self._verified[token] = claims
        return claims

    def create_user(self, name: str, email: str) -> str:
        """Make an account that no file tells of, as that of a node; answers its id.

        Raises:
            ApiError: 400, somebody has the address already.
        """
        user = new_id()
        with self._db.write() as db:
            if db.execute("SELECT 1 FROM made_user WHERE email = ?", (email,)).fetchone():
                raise errors.EXPECTED_UNIQUE_DATA(email=email)
            db.execute("INSERT INTO made_user (id, email) VALUES (?, ?)", (user, email))
            db.execute("INSERT INTO user (id, name, role, created) VALUES (?, ?, 'user', ?)", (user, name, now()))
        return user

    # Key pairs

    def create_credentials(self, user: str, label: str | None) -> Doc:
        """Make a key pair; its secret is given here and never again."""
        key = "".join(secrets.choice(_KEY_ALPHABET) for _ in range(30))
        secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(50))
        with self._db.write() as db:
            db.execute(
                "INSERT INTO credential (access_key, secret_hash, user, label, created) VALUES (?, ?, ?, ?, ?)",
                (key, _hash_secret(secret), user, label, now()),
            )
        return {"access_key": key, "secret_key": secret} | ({"label": label} if label else {})

    def list_credentials(self, user: str) -> list[Doc]:
        """List a user's key pairs, without secrets."""
        rows = self._db.read().execute(
            "SELECT access_key, last_used, last_used_from, label FROM credential WHERE user = ? ORDER BY created",
            (user,),
        )
        return [{key: value for key, value in dict(row).items() if value is not None} for row in rows]

    def edit_credentials(self, user: str, access_key: str, label: str | None) -> int:
        """Rename a key pair; answers how many there were."""
        with self._db.write() as db:
            return db.execute(
                "UPDATE credential SET label = ? WHERE user = ? AND access_key = ?", (label, user, access_key)
            ).rowcount

    def revoke_credentials(self, user: str, access_key: str) -> int:
        """Delete a key pair; answers how many there were."""
        with self._db.write() as db:
            return db.execute("DELETE FROM credential WHERE user = ? AND access_key = ?", (user, access_key)).rowcount
