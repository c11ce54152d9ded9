"""Whether the ClearML server can be talked to, in words where it cannot."""

from __future__ import annotations

import os
import time
from typing import Any, Optional

import requests
from clearml import Task
from clearml.backend_api import Session
from clearml.backend_api.session.defs import ENV_ACCESS_KEY, ENV_AUTH_TOKEN, MissingConfigError
from clearml.backend_api.session.session import LoginError
from clearml.backend_config.defs import get_config_file
from clearml.backend_config.errors import ConfigurationError
from clearml.config import config_obj

from ._errors import ClearmlClientError

__all__ = ["check_server", "told"]

TRIES = 3
TIMEOUT = 10.0
"""Seconds for one try. The SDK alone would try for many minutes, without a word of why."""
_NOT_CONFIGURED = (
    "ClearML is not configured on this machine: put the site's clearml.conf in your home directory, "
    "or set CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY "
    "(CLEARML_OFFLINE_MODE=1 runs without a server)"
)


def check_server() -> None:
    """Check that the server that is configured answers, and takes this machine's keys.

    Raises:
        ClearmlClientError: ClearML is not configured, nothing answers, what answers is not a ClearML server, or it
            refuses the keys.
    """
    try:
        config_obj.get("api", None)  # it is read now, for the first time
    except ConfigurationError as error:
        raise told(error) from error
    if not (ENV_ACCESS_KEY.get() or ENV_AUTH_TOKEN.get() or config_obj.get("api.credentials.access_key", None)):
        raise ClearmlClientError(_NOT_CONFIGURED)
    host = str(Session.get_api_server_host())
    where = "{} (api_server in {}, or CLEARML_API_HOST)".format(host, _file())
    answer = _ping(host, where)
    try:
        found: Any = answer.json()
    except ValueError:
        found = None
    if answer.status_code >= 500:
        raise ClearmlClientError(
            "the ClearML server at {} answers with {} {}: try again later, or ask the site's operator".format(
                where, answer.status_code, answer.reason
            )
        )
    if not isinstance(found, dict) or "meta" not in found:
        raise ClearmlClientError(
            "what answers at {} is not the API of a ClearML server: write the address of the API, which usually has "
            "the port 8008, and not that of the web page (8080) or the files (8081)".format(where)
        )
    try:
        Task._get_default_session()
    except Exception as error:
        raise told(error) from error


def _ping(host: str, where: str) -> requests.Response:
    """Ask the server for a sign of life, a few times: it may be restarting."""
    address = host + "/debug.ping"
    verify = config_obj.get("api.verify_certificate", True)
    error: Optional[Exception] = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(attempt)
        try:
            answer = requests.get(address, timeout=TIMEOUT, verify=verify if isinstance(verify, (bool, str)) else True)
        except requests.exceptions.SSLError as wrong:
            raise ClearmlClientError(
                "the certificate of {} cannot be verified: write the path of the site's CA as api.verify_certificate "
                "in {}, or set REQUESTS_CA_BUNDLE ({})".format(where, _file(), _cause(wrong))
            ) from wrong
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema):
            raise ClearmlClientError(
                "{} is not an address: write one such as https://api.clearml.example.org".format(where)
            ) from None
        except (requests.RequestException, UnicodeError, OSError) as wrong:
            error = wrong
            continue
        if answer.status_code < 500:
            return answer
        last = answer
        error = None
    if error is None:
        return last
    raise ClearmlClientError(
        "the ClearML server at {} does not answer: check the address and your network, `clearml-client doctor` "
        "tries all of it ({})".format(where, _cause(error))
    ) from error


def _cause(error: BaseException) -> str:
    """Return the innermost reason, without the layers of the HTTP client around it."""
    seen = error
    while True:
        inner = getattr(seen, "reason", None) or next(
            (arg for arg in seen.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    text = str(seen).split(">: ")[-1]
    return text if len(text) <= 200 else text[:200] + "..."


def _file() -> str:
    return os.environ.get("CLEARML_CONFIG_FILE") or str(get_config_file())


def told(error: Exception) -> ClearmlClientError:
    """Return an exception of the SDK as one with words."""
    if isinstance(error, ClearmlClientError):
        return error
    if isinstance(error, MissingConfigError):
        return ClearmlClientError(_NOT_CONFIGURED)
    if isinstance(error, ConfigurationError):
        return ClearmlClientError(
            "{} cannot be read: mend it, or copy it from the site's operator again ({})".format(_file(), error)
        )
    if isinstance(error, LoginError):
        return ClearmlClientError(
            "the ClearML server refused the keys of this machine: create new ones on its page (Settings, Workspace) "
            "and write them to {} ({})".format(_file(), error)
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return ClearmlClientError(
        "the ClearML server did not register the run: {}".format(text if len(text) <= 500 else text[:500] + "...")
    )
