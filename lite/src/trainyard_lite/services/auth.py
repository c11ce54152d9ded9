"""``auth.*``, ``users.*`` and ``login.*``."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import Field

from .. import _errors as errors
from .._auth import Identity
from .._rpc import Call, OpenRequest, Request, endpoint
from .._settings import COMPANY_ID
from .._store import Doc, project_fields

_ALL_USERS_FIELDS = ("id", "name", "role", "created", "company")


class LoginRequest(Request):
    """``expiration_sec``: life of the token in seconds."""

    expiration_sec: int | None = Field(default=None, ge=1)


@endpoint("auth.login")
def login(call: Call, request: LoginRequest) -> Doc:
    """Give a bearer token to who came with a password, a key pair or a token."""
    token = call.state.auth.make_token(call.identity, request.expiration_sec)
    call.cookies[call.settings.cookie_name] = token
    return {"token": token}


@endpoint("auth.logout", since="2.2")
def logout(call: Call, request: Request) -> Doc:
    """Revoke the token that the call came with."""
    kind, _, token = call.authorization.partition(" ")
    if kind == "Bearer":
        call.state.auth.revoke_token(token.strip())
    call.cookies[call.settings.cookie_name] = None
    return {}


class TokenForUserRequest(Request):
    """Whose token, and for how many seconds."""

    user: str
    company: str = COMPANY_ID
    expiration_sec: int | None = Field(default=None, ge=1)


@endpoint("auth.get_token_for_user", since="2.1", roles=("system",))
def get_token_for_user(call: Call, request: TokenForUserRequest) -> Doc:
    """Give a token in the name of a user."""
    if request.company != COMPANY_ID:
        raise errors.INVALID_ID("cannot generate token in another company")
    row = call.db.read().execute("SELECT id, name, role FROM user WHERE id = ?", (request.user,)).fetchone()
    if row is None:
        raise errors.INVALID_USER_ID(id=request.user)
    return {"token": call.state.auth.make_token(Identity(row[0], row[1], row[2]), request.expiration_sec)}


class ValidateTokenRequest(Request):
    """The token to look at."""

    token: str


@endpoint("auth.validate_token", roles=("system",))
def validate_token(call: Call, request: ValidateTokenRequest) -> Doc:
    """Tell whether a token is good, and whose."""
    try:
        identity = call.state.auth.read_token(request.token)
    except errors.ApiError as error:
        return {"valid": False, "msg": error.message}
    return {"valid": True, "user": identity.user, "company": identity.company}


class CreateUserRequest(Request):
    """A name, and an address that nobody else has."""

    name: str = Field(min_length=1)
    email: str = Field(min_length=1)
    company: str = COMPANY_ID
    role: Literal["user"] = "user"


@endpoint("auth.create_user", since="2.1", roles=("system",))
def create_user(call: Call, request: CreateUserRequest) -> Doc:
    """Make an account without a password, for keys alone; it stays until the database goes."""
    if request.company != COMPANY_ID:
        raise errors.INVALID_ID("cannot create user in another company")
    return {"id": call.state.auth.create_user(request.name, request.email)}


class CreateCredentialsRequest(Request):
    """A label for the new key pair."""

    label: str | None = None


def _own_keys(call: Call) -> str:
    if call.identity.user.startswith("__"):
        raise errors.INVALID_USER_ID("protected identity: the keys of service accounts are set in secure.conf")
    return call.identity.user


@endpoint("auth.create_credentials")
def create_credentials(call: Call, request: CreateCredentialsRequest) -> Doc:
    """Make a key pair for the caller; the only time that its secret is shown."""
    return {"credentials": call.state.auth.create_credentials(_own_keys(call), request.label)}


@endpoint("auth.get_credentials")
def get_credentials(call: Call, request: Request) -> Doc:
    """List the caller's key pairs, without secrets."""
    return {"credentials": call.state.auth.list_credentials(call.identity.user)}


class EditCredentialsRequest(Request):
    """Which key pair, and its new label."""

    access_key: str
    label: str | None = None


@endpoint("auth.edit_credentials", since="2.19")
def edit_credentials(call: Call, request: EditCredentialsRequest) -> Doc:
    """Label a key pair."""
    updated = call.state.auth.edit_credentials(_own_keys(call), request.access_key, request.label)
    if not updated:
        raise errors.INVALID_ACCESS_KEY(
            "invalid user or invalid access key", user=call.identity.user, access_key=request.access_key
        )
    return {"updated": updated}


class RevokeCredentialsRequest(Request):
    """Which key pair."""

    access_key: str


@endpoint("auth.revoke_credentials")
def revoke_credentials(call: Call, request: RevokeCredentialsRequest) -> Doc:
    """Delete a key pair of the caller."""
    revoked = call.state.auth.revoke_credentials(_own_keys(call), request.access_key)
    if not revoked:
        raise errors.INVALID_USER("invalid user or invalid access key", id=call.identity.user)
    return {"revoked": revoked}


@endpoint("auth.fixed_users_mode", auth=False, fast=True)
def fixed_users_mode(call: Call, request: Request) -> Doc:
    """Tell that users come from the configuration."""
    return {"enabled": True, "guest": {"enabled": False}, "server_errors": {}}


@endpoint("login.supported_modes", auth=False, fast=True)
def supported_modes(call: Call, request: OpenRequest) -> Doc:
    """Tell how one may log in: by password only."""
    return {
        "basic": {"enabled": True, "guest": {"enabled": False}},
        "sso": {},
        "sso_providers": [],
        "server_errors": {"missed_es_upgrade": False, "es_connection_error": False},
        "authenticated": bool(call.identity.user),
    }


def _user(row: Any) -> Doc:
    given, _, family = row["name"].partition(" ")
    return {
        "id": row["id"],
        "name": row["name"],
        "given_name": given,
        "family_name": family,
        "role": row["role"],
        "created": row["created"],
        "company": COMPANY_ID,
    }


def _users(call: Call, where: str = "1", values: tuple[Any, ...] = ()) -> list[Doc]:
    rows = call.db.read().execute(f"SELECT * FROM user WHERE {where} ORDER BY name, id", values)
    return [_user(row) for row in rows]


class CurrentUserRequest(Request):
    """Arguments of the web page of the official server, without effect here."""

    get_supported_features: bool | None = None


@endpoint("users.get_current_user")
def get_current_user(call: Call, request: CurrentUserRequest) -> Doc:
    """Tell who the caller is."""
    (user,) = _users(call, "id = ?", (call.identity.user,))
    user["company"] = {"id": COMPANY_ID, "name": "clearml"}
    return {"user": user, "getting_started": {}, "settings": {}}


class UserRequest(Request):
    """Which user."""

    user: str


@endpoint("users.get_by_id")
def get_by_id(call: Call, request: UserRequest) -> Doc:
    """Read one user."""
    found = _users(call, "id = ?", (request.user,))
    if not found:
        raise errors.INVALID_USER_ID(id=request.user)
    return {"user": found[0]}


class GetAllUsersRequest(Request):
    """Filters: ids and a pattern of the name; ``active_in_projects`` is not known to lite."""

    id: list[str] | None = None
    name: str | None = None
    only_fields: list[str] | None = None
    order_by: list[str] | None = None
    page: int | None = Field(default=None, ge=0)
    page_size: int | None = Field(default=None, ge=1)


def _select_users(call: Call, request: GetAllUsersRequest) -> list[Doc]:
    users = _users(call, "role = 'user'")  # the site's own accounts are nobody to share with
    if request.id is not None:
        users = [user for user in users if user["id"] in request.id]
    if request.name:
        users = [user for user in users if request.name.lower() in user["name"].lower()]
    for name in reversed(request.order_by or []):
        users.sort(key=lambda user: str(user.get(name.lstrip("-"))), reverse=name.startswith("-"))
    if request.page_size:
        start = (request.page or 0) * request.page_size
        users = users[start : start + request.page_size]
    if request.only_fields:
        users = [project_fields(user, request.only_fields) for user in users]
    return users


@endpoint("users.get_all")
def get_all(call: Call, request: GetAllUsersRequest) -> Doc:
    """List users and service accounts."""
    return {"users": _select_users(call, request)}


@endpoint("users.get_all_ex", since="2.8")
def get_all_ex(call: Call, request: GetAllUsersRequest) -> Doc:
    """List users and service accounts."""
    return {"users": _select_users(call, request)}


@endpoint("users.get_preferences", since="2.1")
def get_preferences(call: Call, request: Request) -> Doc:
    """Read what the caller's pages remember."""
    row = call.db.read().execute("SELECT preferences FROM user WHERE id = ?", (call.identity.user,)).fetchone()
    return {"preferences": orjson.loads(row[0])}


class SetPreferencesRequest(Request):
    """An object to merge into the preferences."""

    preferences: dict[str, Any]


@endpoint("users.set_preferences", since="2.1")
def set_preferences(call: Call, request: SetPreferencesRequest) -> Doc:
    """Merge into what the caller's pages remember."""
    with call.db.write() as db:
        row = db.execute("SELECT preferences FROM user WHERE id = ?", (call.identity.user,)).fetchone()
        preferences = orjson.loads(row[0]) | request.preferences
        db.execute(
            "UPDATE user SET preferences = ? WHERE id = ?",
            (orjson.dumps(preferences).decode(), call.identity.user),
        )
    return {"updated": 1, "fields": {"preferences": preferences}}
