"""Whether recorded packages are still to be had, asked as pip would ask: all indexes, all kinds of requirements."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple
from urllib.parse import unquote, urljoin, urlsplit

import requests
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from ._dvc._repository import masked
from ._git._run import remote_environment, run
from ._remote_code import missing_code
from ._requirements import Line, Options, Requirements, read

__all__ = ["Packages", "Places", "look"]

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2, */*;q=0.01"
_SDIST = re.compile(r"(?i)\.(zip|egg|tgz|tbz|txz|tar|tar\.(gz|bz2|xz|lz|lzma))$")
TIMEOUT = (6.0, 20.0)
"""Seconds to wait for a connection, and for the next part of an answer."""
LIMIT = 120.0
"""Seconds for all packages together; what was not asked by then could not be asked."""


@dataclass
class Packages:
    """What was found of the packages of one experiment."""

    count: int
    """Requirements that count on Linux with the experiment's Python."""
    missing: Dict[str, str] = field(default_factory=dict)
    """Those that cannot be had any more, and why."""
    untold: Dict[str, str] = field(default_factory=dict)
    """Those of which it cannot be told from here, and why."""


class File(NamedTuple):
    """A file that an index has of a package."""

    name: str
    python: str  # requires-python
    yanked: bool
    hashes: Tuple[str, ...]  # algorithm:value


@dataclass
class Places:
    """Where pip looks, by its configuration on this machine."""

    indexes: List[str]
    links: List[str]
    trusted: List[str]
    cert: Optional[str] = None
    client_cert: Optional[str] = None
    proxy: Optional[str] = None

    @classmethod
    def here(cls, options: Options, more: Sequence[str] = ()) -> "Places":
        """Return the places that count for a text of requirements.

        Args:
            options: What the text says.
            more: Further indexes, such as those of the site's workers.
        """
        told = _pip_configuration()

        def words(name: str) -> List[str]:
            return told.get(name, "").split()

        own = options.index_url or told.get("index-url") or "https://pypi.org/simple"
        indexes = [own, *options.extra_index_urls, *words("extra-index-url"), *more]
        if options.no_index or told.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
            indexes = []
        return cls(
            indexes=list(dict.fromkeys(index.rstrip("/") for index in indexes)),
            links=list(dict.fromkeys([*options.find_links, *words("find-links")])),
            trusted=[*options.trusted_hosts, *words("trusted-host")],
            cert=told.get("cert"),
            client_cert=told.get("client-cert"),
            proxy=told.get("proxy"),
        )


class _Unasked(Exception):  # noqa: N818 - not a fault: an answer that is not known
    """A place that could not be asked; why."""


def look(requirements: str, *, python: Optional[str] = None, indexes: Sequence[str] = ()) -> Packages:
    """Look for each requirement where pip would.

    Args:
        requirements: Lines as the experiment has them.
        python: Version of the image's Python; without it, and where the text does not begin with one, files for any
            Python will do.
        indexes: Indexes of the site's workers, besides those of pip's configuration here.
    """
    read_ = read(requirements, python)
    with _Search(Places.here(read_.options, indexes), read_) as search, ThreadPoolExecutor(max_workers=8) as pool:
        found = Packages(len(read_.lines))
        for line, (missing, untold) in zip(read_.lines, pool.map(search.check, read_.lines)):  # noqa: B905 - of 3.10
            if missing is not None:
                found.missing[masked(line.text)] = missing
            elif untold is not None:
                found.untold[masked(line.text)] = untold
    for text in read_.options.files:
        found.untold[text] = "names a file beside the code"
    for text in read_.unread:
        found.untold[masked(text)] = "is not a requirement that pip knows"
    return found


class _Search:
    def __init__(self, places: Places, requirements: Requirements) -> None:
        self._places = places
        self._options = requirements.options
        self._python = requirements.python
        self._end = time.monotonic() + LIMIT
        self._dead: Dict[str, str] = {}
        self._tags: Dict[str, Set[Tag]] = {}
        self._session = requests.Session()
        self._session.headers["Accept"] = _ACCEPT
        if places.client_cert:
            self._session.cert = places.client_cert
        if places.proxy:
            self._session.proxies = {"http": places.proxy, "https": places.proxy}

    def __enter__(self) -> "_Search":
        return self

    def __exit__(self, *_: Any) -> None:
        self._session.close()

    def check(self, line: Line) -> Tuple[Optional[str], Optional[str]]:
        """Return why a requirement is missing, or why it cannot be told; neither where it is there."""
        if line.place:
            return self._check_place(line.place)
        if canonicalize_name(line.name) == "clearml-client":
            return None, None  # every image of a site has it, and no index
        files, unasked = self._files(line.name)
        of_version = [file for file in files if self._is_version(file, line)]
        if any(self._is_usable(file, line) for file in of_version):
            return None, None
        if unasked:
            return None, "; ".join(unasked)
        where = ", ".join(masked(place) for place in (*self._places.indexes, *self._places.links)) or "no index"
        if not of_version:
            return f"not in {where}", None
        if any(self._is_for_python(file) for file in of_version):
            return (
                f"its files in {where} have other hashes than recorded, or --no-binary, --only-binary leave none",
                None,
            )
        return f"none of its files in {where} is for Python {self._python or '3'} on Linux", None

    # ------------------------------------------------------------ files of indexes

    def _files(self, name: str) -> "Tuple[List[File], List[str]]":
        """Return the files of a package in all places, and why some of the places could not be asked."""
        files: List[File] = []
        unasked: List[str] = []
        plain = canonicalize_name(name)
        for place, url in (
            *((index, f"{index}/{plain}/") for index in self._places.indexes),
            *((link, link) for link in self._places.links),
        ):
            try:
                if place in self._dead:
                    raise _Unasked(self._dead[place])
                files += self._read(place, url)
            except _Unasked as error:
                unasked.append(f"{masked(place)} could not be asked: {error}")
        return [file for file in files if _names(file.name, plain)], unasked

    def _read(self, place: str, url: str) -> List[File]:
        local = _local_path(url)
        if local is not None:
            top = _local_path(place)
            if top is None or not top.exists():
                raise _Unasked("there is no such folder")
            return _read_folder(local)
        answer = self._get(place, url)
        if answer is None:
            return []
        if "json" in answer.headers.get("Content-Type", ""):
            try:
                return [_from_json(file) for file in answer.json()["files"]]
            except (ValueError, KeyError, TypeError) as error:
                raise _Unasked(f"its answer for {url} is not of PEP 691 ({error})") from error
        if re.search(r"(?i)<input[^>]+type=.?password", answer.text):
            raise _Unasked("it answers with a page to log in")
        return _from_page(answer.text)

    def _get(self, place: str, url: str, stream: bool = False) -> Optional[requests.Response]:
        """Ask; return None for what is not there.

        Raises:
            _Unasked: There is no answer to rely on.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise _Unasked(f"not within the {LIMIT:.0f} s that all packages have")
        host = urlsplit(url)
        trusted = any(one in (host.hostname, host.netloc.rpartition("@")[2]) for one in self._places.trusted)
        try:
            answer = self._session.get(
                url,
                timeout=(min(TIMEOUT[0], left), min(TIMEOUT[1], left)),
                verify=False if trusted else self._places.cert,
                allow_redirects=True,
                stream=stream,
            )
        except requests.RequestException as error:
            # The others would wait as long for the same.
            self._dead[place] = masked(_short(error))
            raise _Unasked(self._dead[place]) from error
        if answer.status_code in (404, 410):
            return None
        if answer.status_code in (401, 403, 407):
            told = f"it needs a login that this machine does not have ({answer.status_code})"
            # A 403 may be for one package; a 401 is for all.
            if answer.status_code != 403:
                self._dead[place] = told
            raise _Unasked(told)
        if not answer.ok:
            raise _Unasked(f"it answers {answer.status_code} {answer.reason}")
        return answer

    # ------------------------------------------------------------ one file

    def _is_version(self, file: File, line: Line) -> bool:
        """Tell whether a file is of a version that is asked for."""
        text = _version_of(file.name, canonicalize_name(line.name))
        if text is None:
            return False
        if line.exact:
            return text.lower() == line.exact.lower()
        assert line.requirement is not None
        specifier = line.requirement.specifier
        try:
            version = Version(text)
        except InvalidVersion:
            return False
        exact = any(one.operator in ("==", "===") and "*" not in one.version for one in specifier)
        if file.yanked and not exact:
            return False
        # Where there is nothing else, pip takes a pre-release too.
        return specifier.contains(version, prereleases=True)

    def _is_usable(self, file: File, line: Line) -> bool:
        if not self._is_for_python(file):
            return False
        plain = canonicalize_name(line.name)
        wheel = file.name.lower().endswith(".whl")
        refused = self._options.no_binary if wheel else self._options.only_binary
        if plain in refused or ":all:" in refused:
            return False
        if not line.hashes or not file.hashes:
            return True
        kinds = {one.split(":")[0] for one in file.hashes}
        asked = [one for one in line.hashes if one.split(":")[0] in kinds]
        return not asked or any(one in file.hashes for one in asked)

    def _is_for_python(self, file: File) -> bool:
        """Tell whether a file can be installed on Linux, by the experiment's Python where that is known."""
        if file.python and self._python is not None:
            try:
                if not SpecifierSet(file.python).contains(self._python, prereleases=True):
                    return False
            except InvalidSpecifier:
                pass  # pip takes the file then
        if not file.name.lower().endswith(".whl"):
            return not file.name.lower().endswith(".egg")
        try:
            tags = parse_wheel_filename(file.name)[3]
        except (InvalidVersion, ValueError):
            return True
        return any(self._is_tag(tag) for tag in tags)

    def _is_tag(self, tag: Tag) -> bool:
        # Which processor a node has is not known here.
        if tag.platform != "any" and "linux" not in tag.platform:
            return False
        if self._python is None:
            return True
        known = self._tags.get(tag.platform)
        if known is None:
            major, minor = (int(part) for part in (*self._python.split("."), "0")[:2])
            name = f"cp{major}{minor}"
            abis = [name + "m"] if (major, minor) < (3, 8) else [name]
            known = {
                *cpython_tags((major, minor), abis, [tag.platform]),
                *compatible_tags((major, minor), name, [tag.platform]),
            }
            self._tags[tag.platform] = known
        return tag in known

    # ------------------------------------------------------------ places of code

    def _check_place(self, place: str) -> Tuple[Optional[str], Optional[str]]:
        vcs, plus, url = place.partition("+")
        if plus and re.match(r"(git|hg|svn|bzr)\Z", vcs):
            return _check_code(vcs, url) if vcs == "git" else (None, f"{vcs} is not asked from here")
        if re.match(r"https?://", place):
            try:
                # Not HEAD, which some stores refuse; the file itself is not read.
                answer = self._get(place, place.partition("#")[0], stream=True)
            except _Unasked as error:
                return None, f"could not be asked: {error}"
            if answer is None:
                return "nothing is there any more", None
            answer.close()
            return None, None
        if re.match(r"(file:|/|~)", place):
            return None, "is a path of the machine where it ran"
        if _is_relative(place):
            return None, None  # it comes with the code
        return None, "is of a kind that is not asked from here"


def _is_relative(place: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", place) is None


def _check_code(vcs: str, url: str) -> Tuple[Optional[str], Optional[str]]:
    """Look for code in git: ``https://host/name.git@REVISION#egg=name``."""
    bare = url.partition("#")[0]
    # An @ before the host is of the user.
    head, at, revision = bare.rpartition("@")
    if not at or "/" not in head.partition("://")[2]:
        head, revision = bare, "HEAD"
    # In no repository, so that no settings of the one here count; the person's credentials do.
    with tempfile.TemporaryDirectory(prefix="clearml-client-") as folder:
        done = run(Path(folder), "ls-remote", "--", head, more=remote_environment(Path(folder)))
    if done.code:
        return None, f"could not be asked: {masked(done.told)}"
    refs = [line.split("\t") for line in os.fsdecode(done.out).splitlines() if "\t" in line]
    if any(revision in (commit, name, name.partition("/")[2].partition("/")[2]) for commit, name in refs):
        return None, None
    if re.match(r"[0-9a-f]{40}\Z", revision):
        told = missing_code(head, revision)
        return (masked(told), None) if told is not None else (None, None)
    if re.match(r"[0-9a-f]{7,39}\Z", revision):
        return None, "has a shortened commit, which git does not find without fetching all: write all 40 digits"
    return f"{masked(head)} has no {revision} any more", None


def _pip_configuration() -> Dict[str, str]:
    """Return pip's own settings on this machine, of all its files and of the environment."""
    commands = [[sys.executable, "-m", "pip"]]
    program = shutil.which("pip")
    if program is not None:
        commands.append([program])
    listed = ""
    for command in commands:
        try:
            done = subprocess.run(
                [*command, "config", "list"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            listed = done.stdout
            break
    levels: Dict[str, Dict[str, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        try:
            levels.setdefault(section, {})[option] = str(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            continue
    own = {
        name[len("PIP_") :].lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
    return {**levels.get("global", {}), **levels.get("install", {}), **levels.get(":env:", {}), **own}


# ---------------------------------------------------------------- answers


def _from_json(file: Dict[str, Any]) -> File:
    hashes = tuple(f"{kind}:{value}" for kind, value in (file.get("hashes") or {}).items())
    return File(str(file["filename"]), str(file.get("requires-python") or ""), bool(file.get("yanked")), hashes)


class _Page(HTMLParser):
    """The links of a page, with what PEP 503 says of each."""

    def __init__(self) -> None:
        super().__init__()
        self.files: List[File] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        """Take a link."""
        told = dict(attrs)
        href = told.get("href")
        if tag != "a" or not href:
            return
        url = urlsplit(urljoin("http://index/", href))
        name = unquote(url.path.rpartition("/")[2])
        hashes = (url.fragment.replace("=", ":", 1),) if re.match(r"(md5|sha\d+)=", url.fragment) else ()
        self.files.append(File(name, told.get("data-requires-python") or "", "data-yanked" in told, hashes))


def _from_page(text: str) -> List[File]:
    page = _Page()
    page.feed(text)
    return page.files


def _local_path(url: str) -> Optional[Path]:
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path))
    return None if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) else Path(url).expanduser()


def _read_folder(path: Path) -> List[File]:
    """Return the files of a folder, of a page on this disk, or of the archive itself."""
    try:
        if path.is_dir():
            page = path / "index.html"
            if page.is_file():
                return _from_page(page.read_text(encoding="utf-8", errors="replace"))
            return [File(entry.name, "", False, ()) for entry in os.scandir(str(path)) if entry.is_file()]
        if path.is_file():
            if path.suffix in (".html", ".htm"):
                return _from_page(path.read_text(encoding="utf-8", errors="replace"))
            return [File(path.name, "", False, ())]
    except OSError as error:
        raise _Unasked(_short(error)) from error
    return []


# ---------------------------------------------------------------- names of files


def _stems(name: str) -> Iterable[str]:
    """Give the name of a file without its endings."""
    if name.lower().endswith(".whl"):
        yield name[: -len(".whl")]
        return
    match = _SDIST.search(name)
    if match is not None:
        yield name[: match.start()]


def _splits(stem: str) -> Iterator[Tuple[str, str]]:
    for match in re.finditer("-", stem):
        yield stem[: match.start()], stem[match.end() :]


def _names(name: str, plain: str) -> bool:
    """Tell whether a file may be one of a package."""
    return any(canonicalize_name(head) == plain for stem in _stems(name) for head, _ in _splits(stem))


def _version_of(name: str, plain: str) -> Optional[str]:
    """Return the version that a file's name tells, None where it is not a file of the package."""
    for stem in _stems(name):
        for head, tail in _splits(stem):
            if canonicalize_name(head) != plain:
                continue
            if name.lower().endswith(".whl"):
                return tail.split("-")[0].replace("_", "-") if tail.count("-") >= 3 else None
            if name.lower().endswith(".egg"):
                return tail.split("-py")[0]
            return tail
    return None


def _short(error: BaseException) -> str:
    """Return one line of an error, without what libraries wrap around it."""
    text = str(error).strip().splitlines()
    return text[0].split(": ")[-1].strip("'\"()<> ")[:200] if text and text[0].strip() else type(error).__name__
