"""The one way to the ClearML server: check whether it answers, and report why it does not.

The SDK alone retries for many minutes without a message. Here the server is asked once, and an error is reported
within seconds. Where an experiment runs, the SDK's retries stay: there something would be lost.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, TypeVar
from urllib.parse import urlsplit

import requests
from clearml import Task
from clearml.backend_api import Session
from clearml.backend_api.session import Request
from clearml.backend_api.session.defs import (
    ENV_ACCESS_KEY,
    ENV_AUTH_TOKEN,
    ENV_HOST,
    ENV_SECRET_KEY,
    MissingConfigError,
)
from clearml.backend_api.session.session import LoginError
from clearml.backend_api.utils import get_http_session_with_retry
from clearml.backend_config.defs import get_config_file
from clearml.backend_config.errors import ConfigurationError
from clearml.config import config_obj

from ._errors import ClearmlClientError
from ._git._remote import shown

__all__ = ["SECONDS", "check_server", "configured", "opened", "reached", "told"]

SECONDS = 2.0
"""Seconds in which a server answers: its name, its certificate and the login together."""
_NOT_CONFIGURED = (
    "ClearML is not configured on this machine ({}): put the site's clearml.conf there, "
    "or set CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY "
    "(CLEARML_OFFLINE_MODE=1 runs scripts without a server)"
)
_T = TypeVar("_T")
_checked = False


def opened(make: Callable[[], _T]) -> _T:
    """Return what needs a session with the server, once it is known that the server answers.

    Where an experiment runs, nothing is asked: the SDK tries until the server is back.

    Raises:
        ClearmlClientError: As ``check_server``, or the session cannot be had.
    """
    global _checked
    if Task.is_offline():
        raise ClearmlClientError("offline mode (CLEARML_OFFLINE_MODE) is on, and this needs the server: turn it off")
    if not _checked and Task.running_locally() and Task.current_task() is None:
        check_server()
        _checked = True
    try:
        return make()
    except Exception as error:  # the SDK raises whatever the layer that failed does
        raise told(error) from error


def check_server() -> None:
    """Check that the server that is configured answers, and takes this machine's keys.

    Raises:
        ClearmlClientError: ClearML is not configured, nothing answers, what answers is not a ClearML server, or it
            refuses the keys.
    """
    host = configured()
    where = "{} ({})".format(host, _named(ENV_HOST, "api_server"))
    token, key, secret = ENV_AUTH_TOKEN.get(), *_keys()
    login: Dict[str, Any] = {"headers": {"Authorization": "Bearer {}".format(token)}} if token else {}
    answer = reached(
        host + "/auth.login", "the ClearML server at {}".format(where), **(login or {"auth": (str(key), str(secret))})
    )
    try:
        found: Any = answer.json()
    except ValueError:
        found = None
    meta = found.get("meta") if isinstance(found, dict) else None
    if answer.status_code >= 500:
        raise ClearmlClientError(
            "the ClearML server at {} answers with {} {}: try again later, or ask the site's operator".format(
                where, answer.status_code, answer.reason
            )
        )
    if not isinstance(meta, dict):
        raise ClearmlClientError(
            "what answers at {} is not the API of a ClearML server: write the address of the API, which usually has "
            "the port 8008, and not that of the web page (8080) or the files (8081)".format(where)
        )
    if answer.status_code != 200:
        raise ClearmlClientError(
            "the ClearML server at {} refused the keys of this machine: create new ones on its page (Settings, "
            "Workspace) and write them to {} ({})".format(
                where,
                "CLEARML_AUTH_TOKEN"
                if token
                else " and ".join(_distinct(_named(ENV_ACCESS_KEY, ""), _named(ENV_SECRET_KEY, ""))),
                meta.get("result_msg") or answer.reason,
            )
        )


def configured() -> str:
    """Return the address of the API, once it and the keys are known to be named.

    Raises:
        ClearmlClientError: They are not, or clearml.conf cannot be read.
    """
    path = _file()
    try:
        named = ENV_HOST.get() or config_obj.get("api.api_server", None) or config_obj.get("api.host", None)
    except Exception as error:  # it is read now, for the first time
        raise told(error) from error
    key, secret = _keys()
    if not named and not key and not secret and not ENV_AUTH_TOKEN.get():
        reason = "{} {}".format(path, "names no server" if Path(path).exists() else "is not there")
        raise ClearmlClientError(_NOT_CONFIGURED.format(reason))
    if not named:
        # Never the SDK's default: it is the server of somebody else.
        raise ClearmlClientError(
            "there are keys for a ClearML server and no address: set CLEARML_API_HOST, or write api.api_server "
            "in {}, such as https://api.clearml.example.org".format(path)
        )
    if not ENV_AUTH_TOKEN.get():
        for value, variable, name in (
            (key, ENV_ACCESS_KEY, "access_key"),
            (secret, ENV_SECRET_KEY, "secret_key"),
        ):
            if not value:
                raise ClearmlClientError(
                    "there is no {} for the ClearML server {}: set {}, or write api.credentials.{} in {}".format(
                        name, str(named), variable.key, name, path
                    )
                )
    try:
        for host in (Session.get_files_server_host, Session.get_app_server_host):
            host()
    except ValueError:
        raise ClearmlClientError(
            "the addresses of files and web page cannot be derived from {}: set CLEARML_FILES_HOST and "
            "CLEARML_WEB_HOST, or write api.files_server and api.web_server in {}".format(named, path)
        ) from None
    return str(Session.get_api_server_host())


def reached(address: str, what: str, **options: Any) -> requests.Response:
    """Return the answer of an address, asked once and as the SDK would ask: its certificates and proxies hold.

    Args:
        address: What is asked.
        what: What is there, for the message.
        options: For ``requests``.

    Raises:
        ClearmlClientError: No answer came within ``SECONDS``; the text says why and what to check.
    """
    http = get_http_session_with_retry(config=config_obj)

    def ask() -> requests.Response:
        return http.request((Request.def_method or "get").upper(), address, timeout=SECONDS, **options)

    try:
        return _within(SECONDS, ask)
    except requests.exceptions.ProxyError as wrong:
        raise ClearmlClientError(
            "{} is behind the proxy {}, which does not let it be reached: check HTTPS_PROXY and HTTP_PROXY, or set "
            "NO_PROXY={} ({})".format(what, _proxy(address), urlsplit(address).hostname, _cause(wrong))
        ) from wrong
    except requests.exceptions.SSLError as wrong:
        raise ClearmlClientError(
            "the certificate of {} cannot be verified: write the path of the site's CA as api.verify_certificate "
            "in {}, or set REQUESTS_CA_BUNDLE ({})".format(what, _file(), _cause(wrong))
        ) from wrong
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL, requests.exceptions.MissingSchema):
        raise ClearmlClientError(
            "{} cannot be asked, that is not an address: write one such as https://api.clearml.example.org".format(what)
        ) from None
    except Exception as wrong:  # urllib3 lets some of its own through
        raise ClearmlClientError(
            "{} does not answer: {}; `clearml-client doctor` tries all of it".format(what, _advice(address, wrong))
        ) from wrong


def _advice(address: str, error: Exception) -> str:
    """Return what is to be checked, and the reason as the system names it."""
    name = urlsplit(address).hostname or address
    kinds: List[BaseException] = [error, *_inner(error)]
    if any(
        isinstance(kind, (socket.gaierror, UnicodeError)) or "NameResolution" in type(kind).__name__ for kind in kinds
    ):
        return "the name {} is not known here, check its spelling, the DNS server and your VPN ({})".format(
            name, _cause(error)
        )
    if any(isinstance(kind, ConnectionRefusedError) for kind in kinds):
        return "nothing listens there, check the port, or ask the site's operator whether the server runs ({})".format(
            _cause(error)
        )
    if any(isinstance(kind, (TimeoutError, requests.Timeout)) for kind in kinds):
        return "nothing came within {:.0f} s, check the address, your network, VPN and firewall".format(SECONDS)
    return "check the address and your network ({})".format(_cause(error))


def _inner(error: BaseException) -> List[BaseException]:
    """Return the reasons below an error, the innermost last."""
    found: List[BaseException] = []
    seen: Optional[BaseException] = error
    while seen is not None:
        inner = getattr(seen, "reason", None) or next(
            (arg for arg in seen.args if isinstance(arg, BaseException)), None
        )
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or seen.__context__
        if seen is None or seen in found:
            break
        found.append(seen)
    return found


def _cause(error: BaseException) -> str:
    """Return the innermost reason, without the layers of the HTTP client around it."""
    text = str(([error, *_inner(error)])[-1]).split(">: ")[-1]
    return text if len(text) <= 200 else text[:200] + "..."


def _within(seconds: float, work: Callable[[], _T]) -> _T:
    """Return what work returns; a name server that does not answer has no other limit.

    Raises:
        TimeoutError: It took longer.
    """
    done: List[_T] = []
    wrong: List[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # raised again by the caller
            wrong.append(error)

    thread = threading.Thread(target=run, name="clearml_client ask", daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    raise wrong[0] if wrong else TimeoutError("nothing came within {:.0f} s".format(seconds))


def _proxy(address: str) -> str:
    proxies = requests.utils.get_environ_proxies(address)
    return shown(str(requests.utils.select_proxy(address, proxies) or "of the environment"))


def _keys() -> Tuple[Optional[str], Optional[str]]:
    return (
        ENV_ACCESS_KEY.get(default=config_obj.get("api.credentials.access_key", None) or None),
        ENV_SECRET_KEY.get(default=config_obj.get("api.credentials.secret_key", None) or None),
    )


def _named(variable: Any, name: str) -> str:
    """Return where a setting comes from."""
    return str(variable.key) if variable.get() else "{} in {}".format(name, _file()) if name else _file()


def _distinct(*texts: str) -> List[str]:
    return list(dict.fromkeys(texts))


def _file() -> str:
    return os.environ.get("CLEARML_CONFIG_FILE") or str(get_config_file())


def told(error: Exception, doing: str = "did not answer as expected") -> ClearmlClientError:
    """Return an exception of the SDK as one with words."""
    if isinstance(error, ClearmlClientError):
        return error
    if isinstance(error, MissingConfigError):
        return ClearmlClientError(_NOT_CONFIGURED.format(_file()))
    if isinstance(error, (ConfigurationError, UnicodeDecodeError)) or (
        isinstance(error, OSError) and error.filename is not None
    ):
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
        "the ClearML server {}: {}".format(doing, text if len(text) <= 500 else text[:500] + "...")
    )
