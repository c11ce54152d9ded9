"""The few calls of the ClearML API that an operator's tool needs, with its errors as exceptions."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import requests
from requests.auth import HTTPBasicAuth

__all__ = ["ApiError", "ClearmlApi", "Json"]

Json = dict[str, Any]

_TIMEOUT_SEC = 30
_TRIES = 3
_PAUSE_SEC = 1.0


class ApiError(Exception):
    """The server refused a call or could not be reached."""


class ClearmlApi:
    """A session of one user: a short-lived key pair that is revoked when the session ends.

    Use it as a context manager. The password serves for one call only, ``auth.login``.
    """

    def __init__(self, api_url: str, files_url: str, user: str, password: str) -> None:
        self._api_url = api_url.rstrip("/")
        self._files_url = files_url.rstrip("/")
        self._http = requests.Session()
        self._access_key: str | None = None
        self._open(user, password)

    def __enter__(self) -> ClearmlApi:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, endpoint: str, **arguments: object) -> Json:
        """Call an endpoint and return the ``data`` of its answer."""
        return self._post(endpoint, arguments, {"Authorization": f"Bearer {self._token}"})

    def download(self, url: str) -> bytes:
        """Return a stored file; the token goes to the site's file server only."""
        headers = {"Authorization": f"Bearer {self._token}"} if url.startswith(f"{self._files_url}/") else {}
        try:
            answer = self._http.get(url, headers=headers, timeout=_TIMEOUT_SEC)
        except requests.RequestException as error:
            raise ApiError(f"cannot download {url}: {error}") from error
        if answer.status_code != requests.codes.ok:
            raise ApiError(f"cannot download {url}: HTTP {answer.status_code}")
        return answer.content

    def close(self) -> None:
        """Revoke the key pair; a server that is gone has nothing left to revoke."""
        if self._access_key is not None:
            with suppress(ApiError):
                self.call("auth.revoke_credentials", access_key=self._access_key)
            self._access_key = None
        self._http.close()

    def _open(self, user: str, password: str) -> None:
        self._token = self._login(user, password)
        pair = self.call("auth.create_credentials", label="trainyard verify")["credentials"]
        self._access_key = pair["access_key"]
        self._token = self._login(pair["access_key"], pair["secret_key"])

    def _login(self, name: str, secret: str) -> str:
        token: str = self._post("auth.login", {}, {}, auth=HTTPBasicAuth(name.encode(), secret.encode()))["token"]
        return token

    def _post(
        self,
        endpoint: str,
        arguments: dict[str, object],
        headers: dict[str, str],
        auth: HTTPBasicAuth | None = None,
    ) -> Json:
        url = f"{self._api_url}/{endpoint}"
        # An answer that breaks off ends no tool that only watches; what changes something is not sent twice.
        tries = _TRIES if endpoint.partition(".")[2].startswith("get_") else 1
        for left in reversed(range(tries)):
            try:
                answer = self._http.post(url, json=arguments, headers=headers, auth=auth, timeout=_TIMEOUT_SEC)
                break
            except requests.RequestException as error:
                broken = isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError))
                if not (left and broken):
                    raise ApiError(f"{endpoint}: cannot reach {self._api_url}: {error}") from error
                time.sleep(_PAUSE_SEC)
        try:
            envelope: Json = answer.json()
            meta, data = envelope["meta"], envelope["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(
                f"{endpoint}: {self._api_url} is not a ClearML API: HTTP {answer.status_code}, {answer.text[:80]!r}"
            ) from error
        if meta.get("result_code") != requests.codes.ok:
            raise ApiError(
                f"{endpoint}: {meta.get('result_msg')} ({meta.get('result_code')}/{meta.get('result_subcode')})"
            )
        return dict(data or {})
