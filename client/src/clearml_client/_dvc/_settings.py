"""Remotes and cache as DVC's own settings name them."""

from __future__ import annotations

# Paths are text where there can be a million of them, and Path has no readlink before Python 3.9.
# ruff: noqa: PTH111, PTH118
import configparser
import contextlib
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from .._cache import dvc_folder
from .._errors import ClearmlClientError
from ._repository import Commit, Output, Source, git_root, masked, root_of, run_git, starts

__all__ = ["Site", "remotes"]

# Where the role dataset_cache puts DVC's cache of the node, when the configuration of DVC does not say.
SITE_CACHE = Path("/dvc_cache")
# Where a repository is that is only known by its URL; DVC takes the root of the disk, and would write there.
# Deep, so that no path of a remote leads out of it.
NOWHERE = Path("/dev/null") / "/".join(["nowhere"] * 50)
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

    def __init__(self, source: Source, project: str = "") -> None:
        """Read the settings of one project of a repository.

        Args:
            source: The repository.
            project: Where the project is below its root: "" or a path that ends with a slash.
        """
        self._source = source
        self._project = project
        top = source.folder()
        folder = top / project if top is not None else None
        own: Config = {}
        committed = source.read(project + ".dvc/config")
        base = folder / ".dvc" if folder is not None else NOWHERE / project / ".dvc"
        if committed is not None:
            _merge(own, _read_config(committed.decode("utf-8", "replace"), f"{project}.dvc/config of {source}"), base)
        if folder is not None:
            if isinstance(source, Commit):
                # A remote that has moved since then is where it is now, as for DVC.
                now = _read_file(base / "config", base)
                _merge(own, {section: now[section] for section in remotes(now).values()}, base)
            # What people keep out of git, such as keys, belongs to the folder whatever the revision.
            _merge(own, _read_file(base / "config.local", base), base)
        else:
            _forget_cache(own)
        outer: Config = {}
        for place in _config_folders():
            _merge(outer, _read_file(place / "config", place), place)
        if folder is None:
            _add_callers(own, outer, source, project)
        self.own = own
        self.all: Config = {}
        _merge(self.all, outer, Path("/"))
        _merge(self.all, own, Path("/"))
        self.cache, self.private = self._find_cache(folder)
        self.local_cache: Optional[Path] = None
        """The project's own cache, where that is another: DVC would find there what was not pushed."""
        if folder is not None and base / "cache" != self.cache and (base / "cache").is_dir():
            self.local_cache = base / "cache"

    def __str__(self) -> str:
        where = f" (project {self._project.rstrip('/')})" if self._project else ""
        return f"{self._source}{where}"

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
                f"choose one of {', '.join(known)}: dvc remote default NAME, or DvcApi(remote=...)"
                if known
                else "dvc remote add -d NAME URL"
            )
            raise ClearmlClientError(f"{self} has no default remote, so {output.path} cannot be fetched; {told}")
        if name.lower() not in known:
            raise ClearmlClientError(
                f"{self} has no remote {name!r} for {output.path}; it has {', '.join(known) or 'none'}"
            )
        url = self.url(name.lower())
        if not url:
            raise ClearmlClientError(
                f"the remote {name} of {self} has no url: dvc remote add -f {name} URL, or --local where the address "
                "is to stay out of git"
            )
        if url.startswith("/dev/null/"):
            raise ClearmlClientError(
                f"the remote {name} of {self} has a path relative to the repository, which is not on this "
                "disk: write an absolute path or a URL there (dvc remote modify), or give DvcApi the folder of a clone"
            )
        return name.lower()

    def url(self, remote: str) -> str:
        """Return where a remote is."""
        return masked(_plain(self.all.get(remotes(self.all)[remote], {}).get("url", "")))


def _forget_cache(own: Config) -> None:
    """Leave out the cache that a repository names which is not on this disk: it is a place of another machine."""
    named = Path(_plain(own.get("cache", {}).get("dir", "")) or "/")
    if NOWHERE in named.parents or not os.access(str(named), os.W_OK):
        own.get("cache", {}).pop("dir", None)


def _add_callers(own: Config, outer: Config, source: Source, project: str) -> None:
    """Add what the caller's own project keeps out of git, such as keys, to the settings of a URL.

    In a clone of the same repository all of it counts, as it would for the clone. Elsewhere keys are given to nobody
    but whom they are for: to a remote of the same address, or to one of the same name where the caller has no other.
    Remotes that only the caller has can be asked for by their names.
    """
    url = _address(source.name())
    for start in starts():
        root = root_of(start)
        git = git_root(start)
        if git is not None and url in _addresses(git):
            base = git / project / ".dvc"
            _merge(own, _read_file(base / "config.local", base), base)
            return
        if root is None:
            continue
        base = root / ".dvc"
        local = _read_file(base / "config.local", base)
        theirs = _read_file(base / "config", base)
        _merge(theirs, local, base)
        known = {name: own.get(section, {}) for name, section in remotes(own).items()}
        for name, section in remotes(theirs).items():
            address = _plain(theirs[section].get("url") or _of(outer, name).get("url", ""))
            kept = local.get(section, {})
            if name not in known:
                if address:
                    _merge(own, {section: theirs[section]}, base)
            elif address in ("", _plain(known[name].get("url") or _of(outer, name).get("url", ""))):
                _merge(own, {remotes(own)[name]: kept}, base)
            for other, options in known.items():
                if other != name and kept and address and address == _plain(options.get("url", "")):
                    _merge(own, {remotes(own)[other]: {**kept, "url": address}}, base)
        if "remote" not in own.get("core", {}) and "remote" in local.get("core", {}):
            own.setdefault("core", {})["remote"] = local["core"]["remote"]
        return


def _of(config: Config, remote: str) -> Dict[str, str]:
    return config.get(remotes(config).get(remote, ""), {})


def _addresses(git: Path) -> List[str]:
    """Return where a git repository is fetched from and pushed to, in one form."""
    listed = run_git(git, "config", "--get-regexp", r"^remote\..*\.(push)?url$").stdout.splitlines()
    return [_address(line.partition(" ")[2]) for line in listed]


def _address(url: str) -> str:
    """Return a git URL without what may differ between two writings of it: protocol, user, port, ending."""
    url = re.sub(r"^file://(localhost)?(?=/)", "", url.strip())
    scp = re.match(r"(?:[^/@]+@)?([^/:]+):(?!//)(.*)$", url)
    if scp:
        url = f"{scp.group(1)}/{scp.group(2).lstrip('/')}"
    url = re.sub(r"^[A-Za-z][\w.+-]*://(?:[^/\s]*@)?([^/:]+)(?::\d+)?(?=/)", r"\1", url)
    return re.sub(r"(\.git)?/*\Z", "", url)


def _read_file(file: Path, base: Path) -> Config:
    """Read settings with their paths made absolute; none where there is no such file."""
    found: Config = {}
    with contextlib.suppress(OSError):
        _merge(found, _read_config(file.read_text(encoding="utf-8", errors="replace"), str(file)), base)
    return found


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


def _read_config(text: str, name: str = ".dvc/config") -> Config:
    """Read settings of DVC; values stay as they are written, so that DVC reads them as it would have."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # What is wrong may be a line with a password: its number is enough.
        lines = getattr(error, "lineno", None) or ", ".join(str(line) for line, _ in getattr(error, "errors", []))
        raise ClearmlClientError(
            f"{name} cannot be read as settings of DVC (line {lines or '?'}): write sections with option = value, or "
            "use dvc config and dvc remote modify"
        ) from None
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
