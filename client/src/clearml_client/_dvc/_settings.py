"""Remotes and cache as DVC's own settings name them."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH111, PTH118
import configparser
import contextlib
import os
import re
from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

from .._cache import dvc_folder
from .._errors import ClearmlClientError
from ._repository import Output, Source, masked

__all__ = ["Site", "remotes"]

# Where the role dataset_cache puts DVC's cache of the node, when the configuration of DVC does not say.
SITE_CACHE = Path("/dvc_cache")
# Where a repository is that is only known by its URL; DVC takes the root of the disk, and would write there.
NOWHERE = Path("/dev/null/no/such/place/repository")
# Options of a remote that may be paths relative to the file they are written in.
RELATIVE_OPTIONS = (
    "url",
    "credentialpath",
    "configpath",
    "keyfile",
    "cert_path",
    "key_path",
    "gdrive_user_credentials_file",
    "gdrive_service_account_json_file_path",
)
Config = Dict[str, Dict[str, str]]


class Site:
    """Remotes and cache, as DVC would find them for a repository."""

    def __init__(self, source: Source) -> None:
        self._source = source
        folder = source.folder()
        own: Config = {}
        committed = source.read(".dvc/config")
        base = folder / ".dvc" if folder is not None else NOWHERE / ".dvc"
        if committed is not None:
            _merge(own, _read_config(committed.decode("utf-8", "replace")), base)
        if folder is not None:
            # What people keep out of git, such as keys, belongs to the folder whatever the revision.
            with contextlib.suppress(OSError):
                _merge(own, _read_config((base / "config.local").read_text()), base)
        outer: Config = {}
        for place in _config_folders():
            with contextlib.suppress(OSError):
                _merge(outer, _read_config((place / "config").read_text()), place)
        self.own = own
        self.all: Config = {}
        _merge(self.all, outer, Path("/"))
        _merge(self.all, own, Path("/"))
        self.cache, self.private = self._find_cache(folder)

    def _find_cache(self, folder: Optional[Path]) -> Tuple[Path, bool]:
        """Return DVC's cache, and whether it belongs to one repository alone."""
        named = _plain(self.all.get("cache", {}).get("dir", ""))
        if named:
            return Path(named), False
        if SITE_CACHE.is_dir() and os.access(str(SITE_CACHE), os.W_OK):
            return SITE_CACHE, False
        if folder is not None and os.access(str(folder / ".dvc"), os.W_OK):
            return folder / ".dvc" / "cache", True
        return dvc_folder("objects"), False

    def objects(self, legacy: bool) -> Path:
        """Return the folder of the objects: DVC 2 had them at the top."""
        return self.cache if legacy else self.cache / "files" / "md5"

    def remote(self, asked: Optional[str], output: Output) -> str:
        """Return the name of the remote that holds an output.

        Raises:
            ClearmlClientError: if there is none.
        """
        known = sorted(remotes(self.all))
        name = asked or output.remote or _plain(self.all.get("core", {}).get("remote", ""))
        if not name:
            told = (
                f"choose one of {', '.join(known)}: dvc remote default NAME" if known else "dvc remote add -d NAME URL"
            )
            raise ClearmlClientError(
                f"{self._source} has no default remote, so {output.path} cannot be fetched; {told}"
            )
        if name.lower() not in known:
            raise ClearmlClientError(
                f"{self._source} has no remote {name!r} for {output.path}; it has {', '.join(known) or 'none'}"
            )
        if self.url(name.lower()).startswith("/dev/null/"):
            raise ClearmlClientError(
                f"the remote {name} of {self._source} has a path relative to the repository, which is not on this "
                "disk: write an absolute path or a URL there (dvc remote modify), or give DvcApi the folder of a clone"
            )
        return name.lower()

    def url(self, remote: str) -> str:
        """Return where a remote is."""
        return masked(_plain(self.all.get(remotes(self.all)[remote], {}).get("url", "")))


def _config_folders() -> Iterator[Path]:
    """Give the folders of the system's and the user's settings, as DVC looks for them on Linux."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR")
    yield Path(system) if system else Path((os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")[0]) / "dvc"
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR")
    if user:
        yield Path(user)
        return
    with contextlib.suppress(RuntimeError):
        yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dvc"


def _read_config(text: str) -> Config:
    """Read settings of DVC; values stay as they are written, so that DVC reads them as it would have."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ClearmlClientError(f"a configuration of DVC cannot be read: {error}") from error
    return {section.strip("'"): dict(parser.items(section)) for section in parser.sections()}


def _plain(value: str) -> str:
    """Take quotes and a comment from a value."""
    value = value.strip()
    if value[:1] in ("'", '"'):
        return value[1:].partition(value[0])[0]
    return re.split(r"\s+#", value)[0].strip()


def _merge(into: Config, more: Config, base: Path) -> None:
    """Add settings over others, with their paths made absolute: relative ones count from their file."""
    for section, options in more.items():
        kept = into.setdefault(section, {})
        for option, value in options.items():
            text = _plain(value)
            is_path = (section, option) == ("cache", "dir") or (
                section.startswith("remote ") and option in RELATIVE_OPTIONS
            )
            if is_path and text and not re.match(r"\w+://", text):
                kept[option] = os.path.normpath(os.path.join(str(base), os.path.expanduser(text)))
            else:
                kept[option] = value


def remotes(config: Config) -> Dict[str, str]:
    """Return the sections of remotes by their names."""
    found = {}
    for section in config:
        match = re.match(r'remote\s+"?([^"]+)"?\Z', section)
        if match:
            found[match.group(1).lower()] = section
    return found
