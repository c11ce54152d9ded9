"""Names, versions and tags of datasets: how they are written, compared and chosen."""

from __future__ import annotations

import re
from typing import Iterable, List, NamedTuple, Optional, Tuple

from .._errors import ClearmlClientError

__all__ = [
    "Reference",
    "VersionKey",
    "check_name",
    "check_tag",
    "check_version",
    "parse_reference",
    "sort_versions",
    "version_key",
]

VersionKey = Tuple[Tuple[int, int, str], ...]

# The server takes no task name below three characters, and a slash would make a project of its own.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{1,126}[A-Za-z0-9._-]")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}")

_TOKEN = re.compile(r"[0-9]+|[a-z]+")
_SEMANTIC_PRERELEASE = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+-[a-z]")
_PRERELEASES = {"a": "alpha", "alpha": "alpha", "b": "beta", "beta": "beta"}
_PRERELEASES.update(dict.fromkeys(("c", "rc", "pre", "preview"), "rc"))

# How what follows a common beginning compares.
_DEVELOPMENT, _PRERELEASE, _END, _PRE_NUMBER, _WORD, _NUMBER = range(6)


class Reference(NamedTuple):
    """A dataset as people write it: ``kitti``, ``kitti@1.4.0`` or ``kitti@golden``."""

    name: str
    selector: Optional[str]  # a version or a tag; None asks for the highest version

    def __str__(self) -> str:
        return self.name if self.selector is None else f"{self.name}@{self.selector}"


def parse_reference(text: str) -> Reference:
    """Take ``NAME``, ``NAME@VERSION`` or ``NAME@TAG`` apart.

    Raises:
        ClearmlClientError: The name or what follows the ``@`` is missing or malformed.
    """
    name, separator, selector = text.partition("@")
    if not name.strip():
        raise ClearmlClientError(f"dataset {text!r}: the name is missing: write NAME, NAME@VERSION or NAME@TAG")
    if not separator:
        return Reference(name, None)
    if not _TAG.fullmatch(selector) and not _VERSION.fullmatch(selector):
        raise ClearmlClientError(
            f"dataset {text!r}: {selector!r} is no version and no tag: write NAME@VERSION, such as kitti@1.4.0, "
            "or NAME@TAG, such as kitti@golden"
        )
    return Reference(name, selector)


def check_name(name: str) -> str:
    """Return the name of a dataset that is to be made.

    Raises:
        ClearmlClientError: It has characters that a name must not have, or is too short or too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ClearmlClientError(
            f"dataset name {name!r}: write 3 to 128 letters, digits, spaces, dots, dashes or underscores, "
            "beginning with a letter or digit, such as kitti or kitti-small"
        )
    return name


def check_version(version: str) -> str:
    """Return the version of a dataset that is to be made.

    Raises:
        ClearmlClientError: It has characters that a version must not have, or is too long.
    """
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ClearmlClientError(
            f"version {version!r}: write up to 64 letters, digits, dots, dashes, underscores or plus signs, "
            "such as 1.4.0, 1.4.0-rc1 or 2026-05-01"
        )
    return version


def check_tag(tag: str) -> str:
    """Return a tag that is to be put on a version.

    Raises:
        ClearmlClientError: It has characters that a tag must not have, or is too long.
    """
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise ClearmlClientError(
            f"tag {tag!r}: write up to 64 letters, digits, dots, dashes, underscores, colons or plus signs, "
            "such as golden or lidar"
        )
    return tag


def version_key(version: str) -> VersionKey:
    """Return what a version is ordered by: numbers by value, pre-releases before what they lead to.

    ``1.9 < 1.10``, ``1.4.0-rc1 < 1.4.0``, ``1.4.0.dev3 < 1.4.0a1``, ``2026-04-30 < 2026-05-01``, ``run-9 < run-10``.
    Two versions with one key are the same version written in two ways (``1.4`` and ``v1.4.0``).
    """
    text = version.lower()
    if re.match(r"v[0-9]", text):
        text = text[1:]
    tokens = _TOKEN.findall(text)
    leading = 0
    while leading < len(tokens) and tokens[leading].isdigit():
        leading += 1
    release, rest = tokens[:leading], tokens[leading:]
    while len(release) > 1 and int(release[-1]) == 0:
        release.pop()
    key: List[Tuple[int, int, str]] = [(_NUMBER, int(number), "") for number in release]
    # In 1.0.0-x.1 any word is a pre-release by semver's rules; elsewhere only the words that everybody uses so.
    before = bool(rest and release and _SEMANTIC_PRERELEASE.match(version.lower()))
    inside = False
    for word in rest:
        if word.isdigit():
            key.append((_PRE_NUMBER if inside else _NUMBER, int(word), ""))
        elif release and word == "dev":
            key.append((_DEVELOPMENT, 0, ""))
            inside = True
        elif inside:
            key.append((_WORD, 0, _PRERELEASES.get(word, word)))
        elif release and (word in _PRERELEASES or before):
            key.append((_PRERELEASE, 0, _PRERELEASES.get(word, word)))
            inside = True
        else:
            key.append((_WORD, 0, word))
        before = False
    key.append((_END, 0, ""))
    return tuple(key)


def sort_versions(versions: Iterable[str]) -> List[str]:
    """Return versions from the lowest to the highest."""
    return sorted(versions, key=lambda version: (version_key(version), version))
