# Part of Trainyard.
"""Call the ClearML API with what every host has: Python's own library."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ansible.module_utils.urls import open_url

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["COMPANY", "CONNECTION_ARGUMENTS", "Api", "ApiError", "UserApi"]

COMPANY = "d1bd92a3b039400cbafc60a7a5b1e52b"  # the server's default company

CONNECTION_ARGUMENTS = {
    "api_url": {"type": "str", "required": True},
    "access_key": {"type": "str", "required": True, "no_log": True},
    "secret_key": {"type": "str", "required": True, "no_log": True},
    "ca_path": {"type": "path"},
    "timeout": {"type": "int", "default": 60},
}


class ApiError(Exception):
    """The server refused a call, or could not be reached; ``subcode`` is the server's, 0 when it gave none."""

    def __init__(self, message: str, subcode: int = 0) -> None:
        super().__init__(message)
        self.subcode = subcode


class Api:
    """A session with the server, logged in with a key pair; waits for a server that is just starting.

    ``date`` is the server's clock at its last answer, to a second; None when it did not tell.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        self.date: datetime | None = None
        self._url = params["api_url"].rstrip("/")
        self._ca = params["ca_path"] or None
        self._token = ""
        deadline = time.monotonic() + params["timeout"]
        while True:
            try:
                self._token = self._send(
                    "auth.login", {}, url_username=params["access_key"], url_password=params["secret_key"]
                )["token"]
                return
            except ApiError as error:
                if error.subcode or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def call(self, endpoint: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call an endpoint and give its data."""
        return self._send(endpoint, data or {})

    def _send(self, endpoint: str, data: dict[str, Any], **credentials: Any) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            answer = open_url(
                f"{self._url}/{endpoint}",
                method="POST",
                data=json.dumps(data),
                headers=headers,
                timeout=15,
                ca_path=self._ca,
                force_basic_auth=bool(credentials),
                **credentials,
            )
            date = answer.headers.get("Date")
            self.date = parsedate_to_datetime(date) if date else None
            return json.load(answer)["data"]
        except Exception as error:
            body = getattr(error, "read", bytes)()
            try:
                meta = json.loads(body)["meta"]
            except (ValueError, KeyError, TypeError):
                raise ApiError(f"{self._url}/{endpoint}: {error}") from error
            raise ApiError(f"{endpoint}: {meta['result_msg']}", meta["result_subcode"]) from error


class UserApi(Api):
    """A session in another user's name; ``labels`` are the labels of the user's key pairs, by access key."""

    def __init__(self, system: Api, user: str) -> None:
        self._url, self._ca, self._token = system._url, system._ca, ""
        self._token = system.call("auth.get_token_for_user", {"user": user, "expiration_sec": 600})["token"]
        pairs = self.call("auth.get_credentials")["credentials"]
        self.labels = {pair["access_key"]: pair.get("label") for pair in pairs}
