"""Whether recorded packages are still to be had from the package index of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Optional, Tuple

import requests

__all__ = ["missing_packages", "pinned"]

_PINNED = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*([A-Za-z0-9.!+_-]+)")
_JSON = "application/vnd.pypi.simple.v1+json"


def pinned(requirements: str) -> Dict[str, str]:
    """Return name and version of each line that names one version, such as ``numpy == 1.26.4``."""
    found = {}
    for line in requirements.splitlines():
        match = _PINNED.match(line.split("#")[0])
        if match:
            found[match.group(1)] = match.group(2)
    return found


def missing_packages(requirements: str) -> List[str]:
    """Return the pinned packages, as ``name==version``, of which the index has no file any more.

    Raises:
        requests.RequestException: The index does not answer, or not in the form of PEP 691.
    """
    index = _index_url()
    with ThreadPoolExecutor(max_workers=8) as pool, requests.Session() as session:
        session.headers["Accept"] = _JSON
        looked = pool.map(lambda item: _has(session, index, item), sorted(pinned(requirements).items()))
        return ["{}=={}".format(name, version) for name, version, has in looked if not has]


def _has(session: requests.Session, index: str, item: Tuple[str, str]) -> Tuple[str, str, bool]:
    name, version = item
    plain = re.sub(r"[-_.]+", "-", name).lower()
    answer = session.get("{}/{}/".format(index, plain), timeout=30)
    if answer.status_code == 404:
        return name, version, False
    answer.raise_for_status()
    if "json" in answer.headers.get("Content-Type", ""):
        files = [str(file["filename"]) for file in answer.json()["files"]]
    else:  # an older mirror: the names are links in a page
        files = [text.strip() for text in re.findall(r">([^<]+)</a>", answer.text)]
    # numpy-1.26.4-cp311-... or numpy-1.26.4.tar.gz; what separates a name's words is everybody's own.
    words = "[-_.]+".join(re.escape(word) for word in plain.split("-"))
    of_version = re.compile(r"(?i){}-{}(-|\.(tar|zip|egg|whl)\b)".format(words, re.escape(version)))
    return name, version, any(of_version.match(file) for file in files)


def _index_url() -> str:
    """Return the index that pip uses here."""
    url: Optional[str] = os.environ.get("PIP_INDEX_URL")
    if not url:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
            check=False,
        )
        url = done.stdout.strip() if done.returncode == 0 else ""
    return (url or "https://pypi.org/simple").rstrip("/")
