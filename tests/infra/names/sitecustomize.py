"""Stand-in for a site's DNS on the machine that tests: names below the lab's domains have the address of the test host.

Python reads it at its start when this folder is on PYTHONPATH. LAB_NAMES: "lab.test=172.17.0.4 next.test=172.17.0.4".
"""

import os
import socket

_domains = dict(pair.split("=") for pair in os.environ.get("LAB_NAMES", "").split())
_ask = socket.getaddrinfo


def _getaddrinfo(host, *args, **kwargs):  # type: ignore[no-untyped-def]
    name = host.decode() if isinstance(host, bytes) else host
    for domain, address in _domains.items():
        if name and name.endswith(f".{domain}"):
            host = address
    return _ask(host, *args, **kwargs)


socket.getaddrinfo = _getaddrinfo
