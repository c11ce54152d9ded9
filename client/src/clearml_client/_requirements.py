"""The text of requirements as pip reads it: packages, places of code, and options for all of them."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Tuple

from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

__all__ = ["Line", "Options", "Requirements", "read"]

# As the SDK heads its list: # Python 3.11.7 | packaged by conda-forge | (main, ...)
_PYTHON = re.compile(r"^\s*#\s*Python\s+(\d+\.\d+(?:\.\d+)?)", re.MULTILINE)
_VCS = re.compile(r"^(git|hg|svn|bzr)\+")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_ARCHIVE = re.compile(r"(?i)\.(whl|zip|egg|tgz|tar(\.(gz|bz2|xz|Z|lzma))?)$")
# name[extra]== 1.0; some lists of pip freeze have versions that packaging does not take, such as 2004d.
_ODD = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*={2,3}\s*([^\s;,]+)\s*(?:;.*)?$")


@dataclass(frozen=True)
class Line:
    """One requirement."""

    text: str
    """As it is written, without comment and options."""
    requirement: Optional[Requirement] = None
    """Name and versions, where it is had from an index."""
    exact: str = ""
    """A version that is compared as text, since it is none of PEP 440; ``name`` has the name then."""
    name: str = ""
    place: str = ""
    """Where it is had from, if from no index: a URL, ``git+...``, or a path."""
    hashes: Tuple[str, ...] = ()
    """``sha256:...``: one of them is the file's."""


@dataclass
class Options:
    """What the text says of indexes; ``None`` where it says nothing."""

    index_url: Optional[str] = None
    extra_index_urls: List[str] = field(default_factory=list)
    find_links: List[str] = field(default_factory=list)
    trusted_hosts: List[str] = field(default_factory=list)
    no_index: bool = False
    no_binary: List[str] = field(default_factory=list)
    only_binary: List[str] = field(default_factory=list)
    files: List[str] = field(default_factory=list)
    """Further files of requirements or constraints, which lie beside the code."""


@dataclass
class Requirements:
    """The text, taken apart."""

    lines: List[Line]
    options: Options
    python: Optional[str]
    """Version of Python that the list was made with, such as ``3.11.7``; ``None`` where it is not told."""
    unread: List[str]
    """Lines that are no requirement."""


def read(text: str, python: Optional[str] = None) -> Requirements:
    """Take the text apart; requirements whose marker is false on Linux with this Python are left out.

    Args:
        text: Lines as in a requirements.txt.
        python: Version of Python; without it, the one that the text begins with, as the SDK's does.
    """
    head = _PYTHON.search(text)
    told = head.group(1) if head else None
    if python is not None and (told is None or told.split(".")[:2] != python.split(".")[:2]):
        told = python
    found = Requirements([], Options(), told, [])
    environment = _environment(found.python)
    for line in _logical_lines(text):
        if line.startswith("-") and not re.match(r"(-e|--editable)\b", line):
            if not _read_option(line, found.options):
                found.unread.append(line)
            continue
        try:
            read_line = _read_requirement(line, environment)
        except (InvalidRequirement, InvalidMarker, ValueError):
            found.unread.append(line)
            continue
        if read_line is not None and read_line not in found.lines:
            found.lines.append(read_line)
    return found


def _logical_lines(text: str) -> Iterator[str]:
    text = re.sub(r"\\\r?\n", " ", text)
    for line in text.splitlines():
        bare = re.sub(r"(^|\s+)#.*$", "", line).strip()
        if bare:
            # As pip does: ${NAME} of the environment, such as a token.
            yield re.sub(r"\$\{([A-Z0-9_]+)\}", lambda m: os.environ.get(m.group(1)) or m.group(0), bare)


def _environment(python: Optional[str]) -> Dict[str, str]:
    """Return what markers are compared with: the image's side, of which only the version of Python is known."""
    environment = {
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    if python is not None:
        environment["python_version"] = ".".join(python.split(".")[:2])
        environment["python_full_version"] = python if python.count(".") > 1 else python + ".0"
    return environment


def _read_requirement(line: str, environment: Dict[str, str]) -> Optional[Line]:
    """Read one requirement; None where its marker is false."""
    editable = re.match(r"(-e|--editable)[\s=]+(.*)$", line)
    body, hashes = _without_options(editable.group(2) if editable else line)
    if editable or _is_place(body):
        place, _, marker = body.partition(" ;") if " ;" in body else body.partition("; ")
        if marker and not Marker(marker.strip()).evaluate(environment):
            return None
        return Line(body, place=place.strip().strip("'\""), hashes=hashes)
    try:
        requirement = Requirement(body)
    except InvalidRequirement:
        odd = _ODD.match(body)
        if odd is None:
            raise
        return Line(body, name=odd.group(1), exact=odd.group(2), hashes=hashes)
    try:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            return None
    except UndefinedEnvironmentName:
        pass
    if requirement.url:
        return Line(body, place=requirement.url, name=requirement.name, hashes=hashes)
    for specifier in requirement.specifier:
        if specifier.operator == "===" and not _is_version(specifier.version):
            return Line(body, name=requirement.name, exact=specifier.version, hashes=hashes)
    return Line(body, requirement=requirement, name=requirement.name, hashes=hashes)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _is_place(text: str) -> bool:
    """Tell whether a requirement is a path or a URL, as pip does."""
    first = text.split(";")[0].strip()
    if _VCS.match(first) or (_URL.match(first) and "@" not in first.split(":")[0]):
        return True
    if re.match(r"^[A-Za-z0-9._-]+\s*(\[[^\]]*\])?\s*@", first):
        return False
    return first.startswith((".", "/", "~")) or "/" in first or _ARCHIVE.search(first) is not None


def _without_options(text: str) -> Tuple[str, Tuple[str, ...]]:
    """Take the options of one requirement from its end; return the rest, and the hashes among them."""
    body, *options = re.split(r"\s+(?=--[a-z])", text)
    hashes = [o.split("=", 1)[-1].split(" ", 1)[-1].strip() for o in options if re.match(r"--hash[=\s]", o)]
    return body.strip(), tuple(hashes)


def _read_option(line: str, options: Options) -> bool:
    """Read a line of options; False where pip knows none of this name."""
    words = shlex.split(line)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if re.match(r"-[ifrc].", word):
            name, value, equals = word[:2], word[2:].lstrip("="), "="
        if name in ("--no-index", "--pre", "--require-hashes", "--prefer-binary"):
            options.no_index |= name == "--no-index"
            continue
        if not equals and words:
            value = words.pop(0)
        if name in ("-i", "--index-url", "--pypi-url"):
            options.index_url = value
        elif name == "--extra-index-url":
            options.extra_index_urls.append(value)
        elif name in ("-f", "--find-links"):
            options.find_links.append(value)
        elif name == "--trusted-host":
            options.trusted_hosts.append(value)
        elif name in ("-r", "--requirement", "-c", "--constraint"):
            options.files.append(f"{name} {value}")
        elif name in ("--no-binary", "--only-binary"):
            kept = options.no_binary if name == "--no-binary" else options.only_binary
            kept.extend(re.sub(r"[-_.]+", "-", one).lower() for one in value.split(","))
        elif name != "--use-feature":
            return False
    return True
