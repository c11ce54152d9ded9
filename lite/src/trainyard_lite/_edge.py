"""What a request's headers prove: the client's address behind a proxy, and whose page sent it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import Request

from ._settings import Settings

__all__ = ["Proxies", "is_foreign", "is_own_page"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


class Proxies:
    """The proxies whose ``X-Forwarded-For`` counts: addresses, networks, and names, resolved again and again."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        networks = {entry: _network(entry) for entry in entries}
        self._networks = [network for network in networks.values() if network]
        self._names = [entry for entry, network in networks.items() if network is None]
        self._resolved: frozenset[_Address] = frozenset()

    @property
    def names(self) -> list[str]:
        """The entries that are host names: call :meth:`resolve` now and then."""
        return self._names

    def resolve(self) -> None:
        """Get the names' addresses; a name without an address is trusted for none."""
        found: set[_Address] = set()
        for name in self._names:
            with contextlib.suppress(OSError, UnicodeError):
                for *_, where in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
                    if address := _parse(str(where[0])):
                        found.add(address)
        self._resolved = frozenset(found)

    def trusts(self, address: _Address) -> bool:
        """Return whether the address is that of a proxy."""
        return address in self._resolved or any(address in network for network in self._networks)

    def client(self, request: Request) -> str:
        """Return the client's address: the right-most one that is not a proxy's.

        What stands to the left of it was written by the client itself and proves nothing.
        """
        peer = request.client.host if request.client else ""
        last = _parse(peer)
        if last is None or not self.trusts(last):
            return peer
        hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        for hop in reversed(hops):
            address = _parse(hop)
            if address is None:
                break
            last = address
            if not self.trusts(address):
                break
        return str(last)


def is_own_page(request: Request, settings: Settings) -> bool:
    """Return whether a browser says that a page of this server sent the request: a foreign page cannot lie here."""
    origin = request.headers.get("origin")
    if origin is None:
        return request.headers.get("sec-fetch-site") == "same-origin"
    own = {_netloc(settings.web_url), _netloc(settings.api_url), request.headers.get("host", "").lower()}
    return _netloc(origin) in own - {""}


def is_foreign(request: Request, settings: Settings) -> bool:
    """Return whether a browser says that another site's page sent the request."""
    if request.headers.get("origin") is None:
        return request.headers.get("sec-fetch-site") not in (None, "same-origin", "none")
    return not is_own_page(request, settings)


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # such as http://[::1
        return ""
