# Part of Trainyard.
"""The kinds of values in an inventory, one function each, and the walk that compares a value with its specification.

A kind is a function ``kind(value, settings) -> str``: an empty text for a good value, else what is wrong and what to
write. It copes with every type that YAML has. ``KINDS`` names them; ``meta/value_types.yml`` of a role gives them to
the options of its ``meta/argument_specs.yml``. Runs on the controller only.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import netaddr
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.loader import become_loader, connection_loader
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from trainyard_paths import path_problem

# The nodes' own rules of images and of docker run: a value that passes here must not be refused there.
sys.path.append(str(Path(__file__).resolve().parents[3] / "agents"))

import policy

__all__ = [
    "KINDS",
    "Complaint",
    "augment",
    "bytes_of",
    "complaints",
    "host_fault",
    "image_fault",
    "pair_problems",
    "pem_fault",
]

Settings = Mapping[str, Any]

LARGEST = 2**31 - 1
UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(i?b)?\Z", re.IGNORECASE | re.ASCII)
PERCENT = re.compile(r"(\d+(?:\.\d+)?)%\Z", re.ASCII)
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\Z")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?\Z", re.ASCII)
UNIX_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
DOCKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
# The name of a folder too, which has at most 255 bytes.
LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}\Z")
QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,127}\Z")
NO_PROXY = re.compile(r"(\*|(\*?\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?)\Z")
CREDENTIALS = re.compile(r"(?<=//)[^/@\s]*@")
# Folders that no experiment may have whole: they hold the node itself.
NODE_FOLDERS = frozenset(
    [
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib32",
        "/lib64",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/local",
        "/usr/sbin",
        "/var",
        "/var/lib",
        "/var/lib/docker",
        "/var/run",
    ]
)
# What is in these is the node's too, whole or not: keys, passwords, disks, and sockets through which one gets the rest.
NODE_PLACES = re.compile(
    r"/(root|boot|proc|sys|etc/(g?shadow-?|sudoers(\.d)?|ssh|docker|pam\.d|cron[^/]*)"
    r"|dev/(sd|hd|vd|xvd|nvme|mapper|md|dm-|loop|mem|kmem|port|disk|block)[^/]*"
    r"|var/lib/(docker|containerd|containers|kubelet)|(var/)?run/(docker|containerd|crio|podman|systemd|dbus)"
    r"|.*/(docker|containerd|crio|podman)\.sock)(/|\Z)"
)
# What kinds of values that have one may not name: groups that are root by another name.
RIGHTS = frozenset({"adm", "disk", "docker", "kmem", "lxd", "root", "shadow", "sudo", "wheel"})


class Complaint(NamedTuple):
    """What is wrong with one value.

    ``path`` names it (``clearml_agent_workers[0].memory``), ``state`` is what it is, ``told`` what to write. ``shape``:
    it has another type than it must have, so nothing that reads it can be asked.
    """

    variable: str
    path: str
    state: str
    told: str
    shape: bool

    def sentence(self, place: str = "") -> str:
        """Return the complaint in words; ``place`` is where the value is set."""
        return f"{self.path} {self.state}{f' ({place})' if place else ''}: {self.told}"


def shown(value: Any, *, hidden: bool = False) -> str:
    """Return a value as a message shows it: never a secret, never more than a line."""
    if hidden:
        return "(value hidden)"
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = CREDENTIALS.sub("***@", repr(plain(value)))
    return text if len(text) <= 120 else text[:117] + "..."


def plain(value: Any) -> Any:
    """Return a value without the tags that Ansible puts on what it loads."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


# --- numbers ---------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """Return a number, also one that came as text from the command line; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    # Python reads more than that as a number, such as 1_000 and other scripts' digits.
    if isinstance(value, str) and not NUMBER.match(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _range(settings: Settings) -> str:
    least, most = settings.get("least"), settings.get("most")
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f", {least} or more"
    return ""


def number(value: Any, settings: Settings) -> str:
    """A number: ``least``, ``most``, ``whole``, ``unit`` (what it counts) and ``example``."""
    what = "a whole number" if settings.get("whole", True) else "a number"
    unit = f" of {settings['unit']}" if settings.get("unit") else ""
    help_ = f"write {what}{unit}{_range(settings)}, for example {settings.get('example', 60)}"
    found = _number(value)
    if found is None or (settings.get("whole", True) and found != int(found)):
        return help_
    # More than that is counted by nothing here, and too much for some of what reads it.
    most = settings.get("most", LARGEST)
    if not settings.get("least", found) <= found <= most:
        return f"the most is {most}; {help_}" if found > most and "most" not in settings else help_
    return ""


def port(value: Any, settings: Settings) -> str:
    """A TCP port."""
    wrong = number(value, {"least": 1, "most": 65535})
    return f"write a port from 1 to 65535, for example {settings.get('example', 8008)}" if wrong else ""


def bytes_of(value: Any) -> int | None:
    """Return a size such as ``500g`` in bytes (1024-based), None when it is not one."""
    match = SIZE.match(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    return int(float(match[1]) * UNITS[match[2].lower()]) if match else None


def size(value: Any, settings: Settings) -> str:
    """Memory or disk: ``least``, ``words`` (such as auto), ``percent`` (of a disk, is possible too), ``example``."""
    example = settings.get("example", "16g")
    words = [repr(word) for word in settings.get("words", [])]
    forms = [f"a number and a unit without a space, for example {example}"]
    forms += ["a part of the disk, for example 10%"] if settings.get("percent") else []
    forms += [*words, "''"] if settings.get("empty") and words else words
    help_ = "write " + ", or ".join(forms)
    if isinstance(value, str) and value in settings.get("words", []):
        return ""
    if isinstance(value, str) and settings.get("percent") and (part := PERCENT.match(value)):
        return "" if 0 < float(part[1]) < 100 else help_
    found = bytes_of(value)
    if found is None:
        return help_
    if found >= 2**56:
        return f"no machine has so much; {help_}"
    least = settings.get("least", "1m")
    if found < (bytes_of(least) or 0):
        unit = "it has no unit, so it counts bytes; " if str(value).isdigit() and found else ""
        return f"{unit}the least is {least}; {help_}"
    return ""


# --- text ------------------------------------------------------------------------------------------------------------


def text(value: Any, settings: Settings) -> str:
    """Text on one line (``lines``: on several)."""
    example = settings.get("example")
    like = f", for example {example!r}" if example else ""
    if isinstance(value, bool) or value is None:
        return f"YAML reads it as {shown(value)}, not as text; write it in quotes{like}"
    if isinstance(value, (int, float)):
        return f'YAML reads it as a number; write it in quotes: "{value}"'
    if isinstance(value, (list, tuple)):
        joined = ",".join(str(item) for item in value) if all(isinstance(item, str) for item in value) else ""
        return f"it is a list; write one text{like or (f', for example {joined!r}' if joined else '')}"
    if not isinstance(value, str):
        return f"it is a mapping; write one text{like}"
    if not settings.get("lines") and not value.isprintable():
        return f"it holds a line break or a control character; write it on one line{like}"
    if settings.get("lines") and any(not char.isprintable() and char not in "\n\r\t" for char in value):
        return "it holds control characters; write plain text"
    return ""


def unix_name(value: Any, settings: Settings) -> str:
    """A user or group of Linux; ``harmless``: not one that is as good as root."""
    wrong = text(value, settings)
    if wrong:
        return wrong
    if not UNIX_NAME.match(value):
        return "write a name of small letters, digits, _ and -, for example datasets"
    if settings.get("harmless") and value in RIGHTS:
        return "who is in this group has the whole machine; write a group of its own, for example datasets"
    return ""


def known_hosts(value: Any, settings: Settings) -> str:
    """Lines as ssh-keyscan prints them: hosts, kind of key, key."""
    wrong = text(value, {"lines": True})
    if wrong:
        return wrong
    lines = [line.split() for line in value.splitlines() if line.strip() and not line.startswith("#")]
    fits = all(len(line) >= 3 and any("ssh-" in part or "ecdsa-" in part for part in line[1:3]) for line in lines)
    return "" if fits and lines else "write what `ssh-keyscan HOST` prints, not the path of a file"


def _grammar(form: re.Pattern[str], help_: str) -> Callable[[Any, Settings], str]:
    def kind(value: Any, settings: Settings) -> str:
        return text(value, settings) or ("" if form.match(value) else help_)

    return kind


def gpu(value: Any, settings: Settings) -> str:
    """An index or a UUID; whether it is one is seen with all GPUs of the site (filter trainyard_site_problems)."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return ""
    return "write the GPU's index, a whole number from 0, or its UUID (nvidia-smi -L)"


def gpus(value: Any, settings: Settings) -> str:
    """auto, or a list of GPUs."""
    if isinstance(value, str) or (isinstance(value, (list, tuple)) and not any(gpu(entry, {}) for entry in value)):
        return ""
    return "write auto, or a list of GPU indexes such as [0, 1]"


def one_of(value: Any, settings: Settings) -> str:
    """One of ``words``, which YAML may read as true and false."""
    words = settings["words"]
    fits = any(str(value).lower() == str(word).lower() for word in words) if isinstance(value, (str, bool)) else False
    return "" if fits else f"write {', '.join(shown(word) for word in words)}"


def pattern(value: Any, settings: Settings) -> str:
    """A regular expression."""
    wrong = text(value, settings)
    if wrong:
        return wrong
    help_ = "write for example '^--shm-size(=.*)?$'"
    try:
        compiled = re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        return f"it is not a regular expression ({error}); {help_}"
    if not value:
        return f"an empty expression fits everything; {help_}"
    if all(compiled.fullmatch(option) for option in ("--volume", "--pid", "--device-cgroup-rule")):
        return f"it fits every option, and experiments would have the node; {help_}, or an empty list if that is meant"
    if re.match(r"\^?[A-Za-z0-9]", value) and "|" not in value:
        return f"it fits nothing, because options start with -; {help_}"
    return ""


def options(value: Sequence[str]) -> str:
    """Arguments of docker run, all together: as Docker reads them."""
    help_ = "write each option as an entry --name=value, for example '--ulimit=memlock=-1'"
    for word in value:
        if re.search(r"\s-", word) or re.match(r"-\S*\s", word.partition("=")[0]):
            return f"{word!r} is one argument to docker run, with its spaces; {help_}"
    try:
        command = policy.parse(list(value))
    except policy.MalformedError as error:
        return f"{error}; {help_}"
    if command.words:
        return f"{command.words[0]!r} is not an option, so docker run would take it for the image; {help_}"
    for option in command.options:
        keys = dict(part.partition("=")[::2] for part in option.value.split(","))
        named = (
            str(keys.get("source") or keys.get("src") or "")
            if option.name == "mount"
            else option.value.partition(":")[0]
        )
        if option.name in ("mount", "volume") and named.startswith("/") and (why := mount(named, {})):
            return f"{option}: {why}"
    return ""


# --- places on disk --------------------------------------------------------------------------------------------------


def option_name(value: Any, settings: Settings) -> str:
    """The name of an option of docker run, with or without its dashes."""
    wrong = text(value, {"example": "privileged"})
    if wrong:
        return wrong
    name = value.lstrip("-")
    try:
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name) and policy.parse(
            [f"-{name}", "true"] if len(name) == 1 else [f"--{name}=true"]
        ):
            return ""
    except policy.MalformedError:
        near = difflib.get_close_matches(name, ["privileged", "entrypoint", "volume", "device", "network", "mount"], 1)
        return f"docker run has no such option; write for example {near[0] if near else 'privileged'}"
    return "write the name of an option of docker run alone, for example privileged"


def path(value: Any, settings: Settings) -> str:
    """A file or folder anywhere: absolute and clean."""
    example = settings.get("example", "/data")
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    clean = re.fullmatch(r"(/[^/\s:,\"'$\\]+)+", value) and not {".", ".."} & set(value.split("/"))
    return "" if clean else f"write an absolute path without spaces, colons and '..', for example {example}"


def folder(value: Any, settings: Settings) -> str:
    """A folder of a role's own: what ``path`` asks, and outside of the system's folders."""
    example = settings.get("example", "/data/trainyard")
    return text(value, {"example": example}) or path_problem(value, example) or ""


def mount(value: Any, settings: Settings) -> str:
    """A file or folder that every experiment sees."""
    like = settings.get("example", "/data")
    if isinstance(value, str) and (value.rstrip("/") or "/") in NODE_FOLDERS:
        if settings.get("target"):
            return f"it would hide a folder of the system in the image; write another place, for example {like}"
        return (
            "experiments would get a folder of the system, and with it the node; write a folder of your own, for "
            f"example {like}"
        )
    wrong = path(value, {"example": "/data", **settings})
    if wrong:
        return wrong
    if settings.get("target"):
        hidden = value.startswith(("/proc/", "/sys/"))
        return f"nothing can be mounted there; write another place, for example {like}" if hidden else ""
    if NODE_PLACES.match(value):
        return f"it gives experiments the node itself; write a folder of your own, for example {like}"
    return ""


def own_folder(value: Any, settings: Settings) -> str:
    """A folder on this machine, of the operator's own: absolute, and a folder where it exists."""
    example = settings.get("example", "'{{ inventory_dir }}/users'")
    wrong = text(value, settings)
    if wrong:
        return wrong
    place = Path(value)
    if not place.is_absolute() or ".." in place.parts:
        return f"it is another folder wherever make is run; write its whole path, for example {example}"
    if str(place) in NODE_FOLDERS:
        return f"it is a folder of the system; write one of your own, for example {example}"
    try:
        if place.exists() and not place.is_dir():
            return f"it is a file on this machine; write the path of a folder, for example {example}"
    except OSError as error:
        return f"it cannot be a folder on this machine ({error.strerror}); write for example {example}"
    return ""


def key_file(value: Any, settings: Settings) -> str:
    """A private key for SSH on this machine, whose path may start with ~; the agent of SSH may have it instead."""
    wrong = text(value, {"example": "~/.ssh/id_ed25519"})
    if wrong:
        return wrong
    try:
        folder_ = Path(value).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        folder_ = False
    return "it is a folder; write the path of the private key, for example ~/.ssh/id_ed25519" if folder_ else ""


def controller_file(value: Any, settings: Settings) -> str:
    """A file on this machine: it exists and can be read."""
    wrong = text(value, settings)
    if wrong:
        return wrong
    place = Path(str(value))
    if not place.is_absolute():
        like = settings.get("example", "{{ inventory_dir }}/files/ca.pem")
        return f"it is another file in every folder; write its whole path, for example '{like}'"
    return _read(place)[1]


def bundle(value: Any, settings: Settings) -> str:
    """An archive with images on this machine. What is in it is read later."""
    wrong = controller_file(value, settings)
    try:
        if wrong or tarfile.is_tarfile(str(value)):
            return wrong
    except OSError:
        pass
    return "it is not an archive; write the path of one that ansible/bundle.yml made, for example /srv/clearml-2.3.tar"


def _read(place: Path) -> tuple[bytes, str]:
    """Return what a file on this machine holds, or why it cannot be read."""
    try:
        if place.is_dir():
            return b"", "it is a folder; write the path of a file"
        return place.read_bytes(), ""
    except FileNotFoundError:
        return b"", "it does not exist on this machine; write the path of a file that is on it"
    except (OSError, ValueError) as error:
        return b"", f"it cannot be read on this machine ({getattr(error, 'strerror', None) or error}); make it readable"


def pem_fault(content: bytes, what: str) -> str:
    """Return why ``content`` is not PEM of certificates or of a private key (``what``); empty when it is."""
    wanted = "-----BEGIN PRIVATE KEY----- and so on" if what == "key" else "-----BEGIN CERTIFICATE----- and so on"
    if what == "key":
        if b"PRIVATE KEY-----" not in content:
            other = "a certificate" if b"BEGIN CERTIFICATE" in content else "no PEM"
            return f"it holds {other}, not a private key; write a PEM file with the key, {wanted}"
        try:
            load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            protected = isinstance(error, TypeError)
            why = "its key has a password" if protected else "its key is damaged or of an unknown kind"
            return f"{why}; write a PEM file with a private key without a password"
        except Exception:
            return "its key is of a kind that is not supported; write a PEM file with an RSA or EC key"
        return ""
    if b"BEGIN CERTIFICATE-----" not in content and b"BEGIN TRUSTED CERTIFICATE" not in content:
        other = "a private key" if b"PRIVATE KEY-----" in content else "no PEM"
        return f"it holds {other}, not certificates; write a PEM file, {wanted}"
    found = []
    for block in re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", content, re.DOTALL):
        try:
            # cryptography warns of oddities, such as a serial number of 0, which authorities of real systems have.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(x509.load_pem_x509_certificate(block).not_valid_after_utc)
        except ValueError:
            # A system's bundle may hold an old certificate that a strict parser refuses; others do.
            continue
    if not found:
        return f"no certificate in it can be read, it is damaged or cut off; write a PEM file, {wanted}"
    last = max(found)
    if last < datetime.now(UTC):
        return f"it was valid until {last:%Y-%m-%d}; write one that is valid"
    return ""


def ssh_key(value: Any, settings: Settings) -> str:
    """The text of a private key for SSH, without a password; a path or a public key is found elsewhere."""
    wrong = text(value, {"lines": True})
    if wrong or "PRIVATE KEY-----" not in value:
        return wrong
    # As the role writes it.
    content = f"{value.strip()}\n".encode(errors="replace")
    load = load_ssh_private_key if b"BEGIN OPENSSH" in content else load_pem_private_key
    try:
        load(content, password=None)
    except (UnsupportedAlgorithm, NotImplementedError):
        return ""  # a kind that ssh may know
    except TypeError:
        return "it has a password, which nobody could type; write a key without one"
    except ValueError as error:
        if "password" in str(error).lower():
            return "it has a password, which nobody could type; write a key without one"
        return "it is damaged or cut off; write the whole text of the file, with its line breaks"
    return ""


def pem(value: Any, settings: Settings) -> str:
    """PEM: ``what`` (certificate, key), ``where`` (controller; node: read later, by SSH; text: the value itself)."""
    what, where = settings.get("what", "certificate"), settings.get("where", "controller")
    if where == "node":
        wrong = path(value, {"example": "/etc/ssl/certs/ca-certificates.crt"})
        folders = {*NODE_FOLDERS, "/etc/pki", "/etc/ssl", "/etc/ssl/certs", "/etc/ssl/private"}
        if not wrong and value in folders:
            wrong = "it is a folder; write the path of a PEM file, for example /etc/ssl/certs/ca-certificates.crt"
        return wrong
    if where == "text":
        wrong = text(value, {"lines": True})
        if wrong:
            return wrong
        if value.startswith(("/", "~")) and "\n" not in value:
            return "it is a path; write the text of the PEM file, for example \"{{ lookup('file', '/path/ca.pem') }}\""
        return pem_fault(value.encode(errors="replace"), what).replace("a PEM file", "the text of a PEM file")
    wrong = text(value, settings)
    if wrong:
        return wrong
    content, wrong = _read(Path(value)) if Path(value).is_absolute() else (b"", controller_file(value, settings))
    return wrong or pem_fault(content, what)


def pair_problems(certificate: tuple[str, str], key: tuple[str, str], names: Sequence[str]) -> list[str]:
    """Return what would keep clients from believing a certificate of the site's own.

    Args:
        certificate: the variable with its path on this machine, and the path.
        key: the same of its private key.
        names: what it must be for.

    Returns:
        Sentences. A file that is not what it should be has a complaint of its kind, and none here.
    """
    content, secret = _read(Path(certificate[1]))[0], _read(Path(key[1]))[0]
    try:
        first = x509.load_pem_x509_certificates(content)[0]
        public = load_pem_private_key(secret, password=None).public_key()
    except (ValueError, TypeError, IndexError):
        return []
    variable = f"{certificate[0]} is {certificate[1]!r}"
    problems = []
    try:
        alternatives = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        covered = {name.lower() for name in alternatives.get_values_for_type(x509.DNSName)}
        covered |= {str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)}
    except x509.ExtensionNotFound:
        covered = set()
    missing = [name for name in names if not {name.lower(), "*." + name.lower().partition(".")[2]} & covered]
    if missing:
        problems.append(
            f"{variable}, which is for {', '.join(sorted(covered)) or 'no name'}, not for {', '.join(missing)}: write "
            f"one that has {', '.join(names)} among its alternative names"
        )
    end = first.not_valid_after_utc
    if end < datetime.now(UTC) and not pem_fault(content, "certificate"):  # only the chain behind it is valid
        problems.append(f"{variable}, which was valid until {end:%Y-%m-%d}: write one that is valid")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != first.public_key().public_bytes(*form):
        problems.append(
            f"{key[0]} is {key[1]!r}, which is not the key of {certificate[1]!r}: write the path of its key"
        )
    return problems


# --- the network -----------------------------------------------------------------------------------------------------


def _ip(value: str) -> netaddr.IPAddress | None:
    try:
        return netaddr.IPAddress(value, flags=netaddr.INET_PTON)
    except (netaddr.AddrFormatError, ValueError):
        return None


def host_fault(value: str) -> str:
    """Return what keeps a text from being a host's name or IPv4 address; empty for nothing."""
    if "://" in value or "/" in value:
        return "it has a scheme or a path"
    if ":" in value and _ip(value.strip("[]")) is not None:
        return "IPv6 is not supported here"
    if ":" in value:
        return "it has a port"
    if value.endswith("."):
        return "it ends with a dot"
    if "_" in value:
        return "names of hosts have no underscore"
    labels = value.split(".")
    if labels[-1].isdigit() or re.fullmatch(r"0x[0-9a-fA-F]*", labels[-1]):
        found = _ip(value)
        return (
            "" if found is not None and found.version == 4 else "it is not an IPv4 address: four numbers from 0 to 255"
        )
    if len(value) > 253 or not all(LABEL.match(label) for label in labels):
        return "it is not a name of letters, digits, hyphens and dots"
    return ""


def host(value: Any, settings: Settings) -> str:
    """A name or IPv4 address: ``domain`` (with a dot), ``port`` (may follow), ``reachable`` (by other machines)."""
    example = settings.get("example", "clearml.example.org")
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    help_ = f"write a name or IPv4 address without scheme and path, for example {example!r}"
    if settings.get("domain"):
        help_ = f"write a name without scheme, port and path, for example {example!r}"
    name, colon, number_ = value.rpartition(":")
    if not (settings.get("port") and colon) or "//" in value:
        name = value
    elif port(number_, {}):
        return f"{number_!r} is not a port; write for example {example!r}"
    why = host_fault(name)
    if why:
        return f"{why}; {help_}"
    if settings.get("domain") and ("." not in name or _ip(name) is not None):
        return f"it is not a domain's name; {help_}"
    return _unreachable(name, bool(settings.get("reachable")))


def _unreachable(name: str, others: bool) -> str:
    """Return why a name or address leads nowhere; ``others``: other machines and containers must get there."""
    found = _ip(name)
    if found is not None and (found.is_multicast() or int(found) in (0, 2**32 - 1)):
        return "no machine has this one; write the address that other machines use, for example '10.0.0.5'"
    itself = name.lower() == "localhost" or name.lower().startswith("localhost.")
    if others and (itself or (found is not None and found.is_loopback())):
        return (
            "for another machine or a container that is the machine or the container itself; write the address that "
            "other machines use, for example '10.0.0.5'"
        )
    return ""


def ssh_host(value: Any, settings: Settings) -> str:
    """Where SSH finds a host: a name, also one of the operator's ~/.ssh/config, or an address."""
    wrong = text(value, {"example": "10.0.0.5"})
    if wrong:
        return wrong
    bare = value.strip("[]")
    if _is_ipv6(bare):
        return ""
    bare = value.removesuffix(".") if re.search(r"[^\W\d]", value) else value
    if not re.fullmatch(r"\w([\w.+%-]*\w)?", bare) or ".." in value:
        return "write a name or an address alone, for example 10.0.0.5 (ansible_port and ansible_user hold the rest)"
    if re.fullmatch(r"[\d.]+", value) and host_fault(value):
        return f"{host_fault(value)}; write for example 10.0.0.5"
    return _unreachable(value, False)


def address(value: Any, settings: Settings) -> str:
    """An IPv4 address of the host, to publish ports on."""
    wrong = text(value, {"example": "0.0.0.0"})  # noqa: S104
    if wrong:
        return wrong
    found = _ip(value)
    if found is not None and found.version == 4 and not found.is_multicast() and value != "255.255.255.255":
        return ""
    return "write an IPv4 address of the host, for example 0.0.0.0 (all of them) or 10.0.0.5"


def _split(value: str) -> SplitResult | None:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        return None
    return parts


def url(value: Any, settings: Settings) -> str:
    """An address with a scheme: ``schemes``, ``path``, ``query`` and ``credentials`` (may be in it), ``example``."""
    schemes = settings.get("schemes", ["http", "https"])
    example = settings.get("example", "http://10.0.0.5:8008")
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    help_ = f"write a scheme, a host and maybe a port, for example {example}"
    if re.search(r"[\s\"'<>\\^`{|}]", value):
        return f"it holds a space or a character that no address has; {help_}"
    if "://" not in value:
        with_scheme = f"{schemes[0]}://{value}"
        good = not url(with_scheme, settings) if value and not value.startswith(("/", ":")) else False
        return f"write it with a scheme, for example {with_scheme if good else example}"
    parts = _split(value)
    if parts is None or not parts.hostname or parts.netloc.endswith(":") or parts.port == 0:
        return f"its host or port is not one; {help_}"
    if parts.scheme not in schemes:
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        return f"its scheme is {parts.scheme!r}; write {wanted}, for example {example}"
    if "@" in parts.netloc and not settings.get("credentials"):
        return f"it has a user or a password in it, which others would see; {help_}"
    bare = not (_is_ipv6(parts.hostname) and "[" in parts.netloc)
    why = host_fault(parts.hostname) if bare else ""
    if why or (why := _unreachable(parts.hostname, bool(settings.get("reachable"))).partition("; ")[0]):
        return f"its host is {parts.hostname!r}: {why}; {help_}"
    if parts.path.strip("/") and not settings.get("path"):
        return f"it has the path {parts.path!r}, and none is possible; {help_}"
    if (parts.query and not settings.get("query")) or parts.fragment:
        return f"it has '?' or '#', and neither is possible; {help_}"
    return ""


def _is_ipv6(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).version == 6
    except ValueError:
        return False


def no_proxy(value: Any, settings: Settings) -> str:
    """What is reached without the proxy: one text with commas."""
    example = "localhost,127.0.0.1,.example.org"
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    for entry in (part.strip() for part in value.split(",")):
        if "/" in entry and "://" not in entry:
            try:
                netaddr.IPNetwork(entry)
            except (netaddr.AddrFormatError, ValueError):
                return f"{entry!r} is not a network; write for example 10.0.0.0/8"
            continue
        name = entry.removeprefix("*").rpartition(":")[0] if re.search(r"[^:]:\d+\Z", entry) else entry
        if re.fullmatch(r"[\d.*-]+", name) and name != "*":
            if _ip(name) is None:
                return f"{entry!r} is not an IPv4 address; write for example 10.0.0.5, or a network such as 10.0.0.0/8"
        elif entry and not _is_ipv6(re.sub(r"^\[(.*)\](:\d+)?$", r"\1", entry)) and not NO_PROXY.match(name):
            return f"{entry!r} is not one host; write names and addresses with commas between, for example {example}"
    return ""


def repository(value: Any, settings: Settings) -> str:
    """Where git finds a repository: an address, HOST:PATH as SSH has it, or a path."""
    example = "https://git.example.org/team/digits.git"
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    help_ = f"write an address such as {example}, git@git.example.org:team/digits.git or file:///opt/digits.git"
    if value.startswith(("/", "file:///")):
        return help_ if path(value.removeprefix("file://"), {}) else ""
    if "://" not in value:
        fits = re.fullmatch(r"([\w.-]+@)?([\w.-]+):[^\s:/][^\s]*", value)
        return "" if fits and not host_fault(fits[2]) else help_
    settings = {"schemes": ["https", "http", "ssh", "git"], "path": True, "credentials": True, "example": example}
    return url(value, settings)


def nfs(value: Any, settings: Settings) -> str:
    """An export of an NFS server: server:/export."""
    help_ = "write server and export, for example nas.example.org:/export/datasets"
    wrong = text(value, {"example": "nas.example.org:/export/datasets"})
    if wrong:
        return wrong
    server, _, export = value.partition(":/")
    if export.startswith("/"):
        return f"it has a scheme or two slashes; {help_}"
    if not export and not value.endswith(":/"):
        return help_
    why = "" if _is_ipv6(server.strip("[]")) and server.startswith("[") else host_fault(server)
    return f"its server is {server!r}: {why}; {help_}" if why else help_ if re.search(r"\s", export) else ""


def image_fault(value: str, *, tag: bool = True) -> str:
    """Return what keeps a text from being the reference of one image; empty for nothing.

    Args:
        value: the text.
        tag: whether it must say which one: by a tag or a digest. Without, Docker takes whatever is called latest.
    """
    if not value.strip():
        return "there is no image"
    if re.search(r"\s", value):
        return "it holds a space"
    if value.startswith("-"):
        return "it is an option, not an image"
    if "://" in value:
        return "it has a scheme"
    if policy.image_problem(value):
        if value.lower() != value and not policy.image_problem(value.lower()):
            return "names of images are lower case"
        if "{" in value:
            return "it has a placeholder that nothing fills in"
        return "it is not the name of one image"
    first, slash, rest = value.partition("/")
    domain, _, port_ = first.partition(":")
    if re.fullmatch(r"[0-9.]+", domain) and slash and host_fault(domain):
        return host_fault(domain)
    if not slash and port_.isdigit() and int(port_) > 99 and ("." in domain or domain == "localhost"):
        return "it is a registry without an image"
    if slash and port_ and port(port_, {}):
        return f"{port_!r} is not a port"
    if tag and "@" not in value and ":" not in (rest or value).rpartition("/")[2]:
        return "it has no tag, so it may be another image every day"
    return ""


def image(value: Any, settings: Settings) -> str:
    """The reference of one image; ``python``: may hold {python}."""
    example = settings.get("example", "registry.example.org/team/image:1.2")
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    why = image_fault(value.replace("{python}", "3.11") if settings.get("python") else value)
    return f"{why}; write one image, for example {example}" if why else ""


def registry(value: Any, settings: Settings) -> str:
    """A registry, and maybe a folder in it: HOST:PORT/FOLDER."""
    example = "registry.example.org:5000"
    wrong = text(value, {"example": example})
    if wrong:
        return wrong
    place, _, rest = value.partition("/")
    help_ = f"write HOST:PORT without https://, or HOST/FOLDER, for example {example}"
    if "://" in value:
        return help_
    why = host(place, {"port": True, "example": example})
    if not why and (place != value) and (":" in rest or image_fault(f"x.example.org/{rest}", tag=False)):
        why = f"{rest!r} is not a folder of images; {help_}"
    return why if not why or why.endswith(help_) else f"{why.partition('; ')[0]}; {help_}"


def mongo(value: Any, settings: Settings) -> str:
    """The address of a MongoDB, which may name several hosts. Never tells the value."""
    help_ = "write it like mongodb://USER:PASSWORD@host1,host2/?replicaSet=rs0"
    wrong = text(value, settings)
    if wrong:
        return wrong
    parts = re.fullmatch(r"mongodb(\+srv)?://(?:([^@/?\s]*)@)?([^@/?\s]+)(/[^?\s]*)?(\?\S*)?", value)
    if not parts:
        many = value.count("@") > 1
        return f"in a user or a password, @ / ? : are written as %40 %2F %3F %3A; {help_}" if many else help_
    for each in parts[3].split(","):
        name, _, number_ = each.partition(":")
        if host_fault(name) or (number_ and port(number_, {})) or each.endswith(":"):
            return f"one of its hosts or ports is not one; {help_}"
    return ""


# --- other things ----------------------------------------------------------------------------------------------------


def plugin(value: Any, settings: Settings) -> str:
    """The name of one of Ansible's plugins: ``of`` is connection or become."""
    wrong = text(value, settings)
    if wrong:
        return wrong
    kind = settings.get("of", "connection")
    loader = {"connection": connection_loader, "become": become_loader}[kind]
    known = value in ("smart", "paramiko") or loader.find_plugin_with_context(value).resolved
    return "" if known else f"Ansible has no such {kind} plugin; write for example {settings.get('example', 'ssh')}"


def daemon_key(value: Any, settings: Settings) -> str:
    """A key of Docker's daemon.json that is not another variable's."""
    others = {
        "live-restore": "docker_engine_live_restore",
        "registry-mirrors": "docker_engine_registry_mirrors",
    }
    if isinstance(value, str) and value in others:
        return f"the key is the role's own; write {others[value]} instead"
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", value):
        return ""
    return "keys of daemon.json are small letters and hyphens; write for example data-root"


def key_source(value: Any, settings: Settings) -> str:
    """The key of an apt repository: an address, a path on the host, or the key itself."""
    wrong = text(value, {"lines": True})
    if wrong or "BEGIN PGP PUBLIC KEY BLOCK" in value:
        return wrong
    if value.startswith("/") and not path(value, {}):
        return ""
    good = "://" in value and not url(value, {"path": True, "query": True, "credentials": True})
    return (
        ""
        if good
        else "write its address, its path on the host, or the key itself (-----BEGIN PGP PUBLIC KEY BLOCK-----)"
    )


KINDS: dict[str, Callable[[Any, Settings], str]] = {
    "address": address,
    "bucket": _grammar(
        re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z"), "write the name of the bucket alone, for example artifacts"
    ),
    "bundle": bundle,
    "container_name": _grammar(DOCKER_NAME, "write letters, digits, . _ and - only, for example bridge"),
    "controller_file": controller_file,
    "daemon_key": daemon_key,
    "debian_package": _grammar(
        re.compile(r"[a-z0-9][a-z0-9+.-]+\Z"), "write the name of a package, for example nvidia-driver"
    ),
    "email": _grammar(re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)*\Z"), "write an address such as 'alice@example.org'"),
    "folder": folder,
    "gpu": gpu,
    "gpus": gpus,
    "host": host,
    "image": image,
    "image_pattern": _grammar(
        re.compile(r"[^\s-]\S*\Z"), "write images or patterns without spaces, for example team/*"
    ),
    "key_file": key_file,
    "key_source": key_source,
    "known_hosts": known_hosts,
    "login": _grammar(
        LOGIN, "write letters, digits, . _ @ - only, first a letter or digit (a number in quotes), for example 'alice'"
    ),
    "mongo": mongo,
    "mount": mount,
    "nfs": nfs,
    "no_proxy": no_proxy,
    "number": number,
    "one_of": one_of,
    "option": _grammar(
        re.compile(r"\S[^\n]*\Z"), "write one argument of docker run, for example '--ulimit=memlock=-1'"
    ),
    "option_name": option_name,
    "own_folder": own_folder,
    "path": path,
    "pattern": pattern,
    "pem": pem,
    "plugin": plugin,
    "port": port,
    "queue": _grammar(
        QUEUE, "write three or more letters, digits, - and _, first a letter or digit, for example 'all_gpus'"
    ),
    "registry": registry,
    "release": _grammar(re.compile(r"[a-z][a-z0-9-]*\Z"), "write the code name of a release, for example bookworm"),
    "repository": repository,
    "service": _grammar(
        re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}\Z"),
        "write a letter and then letters, digits, _ and -, for example agent_train01",
    ),
    "size": size,
    "ssh_host": ssh_host,
    "ssh_key": ssh_key,
    "tag": _grammar(re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z"), "write an image's tag, for example 0.1.0"),
    "text": text,
    "unix_name": unix_name,
    "url": url,
    "word": _grammar(re.compile(r"\S+\Z"), "write it without spaces"),
}


# --- the walk --------------------------------------------------------------------------------------------------------


def augment(options: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an argument specification with the kinds of their values.

    Args:
        options: ``argument_specs.main.options`` of a role.
        types: what its ``meta/value_types.yml`` holds: by option, or option.key, a kind's name or its settings.

    Raises:
        ValueError: a type belongs to no option, or names no kind.
    """
    result = {name: dict(option) for name, option in options.items()}
    for name, given in types.items():
        settings = {"kind": given} if isinstance(given, str) else dict(given)
        if "kind" in settings and settings["kind"] not in KINDS:
            raise ValueError(f"{name}: there is no kind {settings['kind']!r}; there are {', '.join(sorted(KINDS))}")
        first, _, rest = name.partition(".")
        if first not in result:
            raise ValueError(f"{name}: no option has this name")
        if rest:
            result[first]["options"] = augment(result[first].get("options") or {}, {rest: given})
        else:
            result[first]["rule"] = settings
    return result


def complaints(variable: str, option: Mapping[str, Any], value: Any) -> list[Complaint]:
    """Return what is wrong with a variable's value; ``option`` is from ``augment``."""
    return [Complaint(variable, *found) for found in _walk(variable, option, value)]


Found = tuple[str, str, str, bool]


def _walk(place: str, option: Mapping[str, Any], value: Any) -> Iterator[Found]:
    rule, kind = option.get("rule", {}), option.get("type", "str")
    hidden = bool(option.get("no_log"))
    state = "(value hidden)" if hidden else f"is {shown(value)}"
    if kind == "list":
        if isinstance(value, str) and rule.get("commas") and value.strip():
            value = [part.strip() for part in value.split(",")]
        if isinstance(value, str) or not isinstance(value, Sequence):
            yield place, state, f"write a list{_like(option)}", True
            return
        item = {"type": option.get("elements", "raw"), "required": True}
        item["rule"] = {key: setting for key, setting in rule.items() if key != "like"}
        item |= {key: option[key] for key in ("options", "choices", "no_log") if key in option}
        fine = True
        for position, entry in enumerate(value):
            for found in _walk(f"{place}[{position}]", item, entry):
                fine = False
                yield found
        if fine and rule.get("kind") == "option" and (told := options(value)):
            yield place, state, told, False
    elif kind == "dict":
        if isinstance(value, Mapping):
            yield from _walk_keys(place, option, value)
        else:
            # What is in it may be the secret that one of its keys would hold.
            secret = hidden or any(inner.get("no_log") for inner in (option.get("options") or {}).values())
            yield place, "(value hidden)" if secret else state, f"write a mapping{_like(option)}", True
    elif kind != "raw" or "kind" in rule:
        yield from _walk_leaf(place, option, value, state)


def _walk_leaf(place: str, option: Mapping[str, Any], value: Any, state: str) -> Iterator[Found]:
    rule, kind = dict(option.get("rule", {})), option.get("type", "str")
    if isinstance(value, str) and value == "":
        may_be_empty = rule.get("empty") or option.get("default", option.get("required", "")) == ""
        if (may_be_empty and not rule.get("filled")) or option.get("no_log"):
            return  # a secret that is missing is found with the other secrets
        told = KINDS[rule["kind"]]("", rule).rpartition("; ")[2] if "kind" in rule else ""
        told += _like(option) if told and "for example" not in told else ""
        yield place, "is empty", told or f"write {_what(kind)}{_like(option)}", False
        return
    if kind in ("int", "float"):
        rule = {"kind": "number", "whole": kind == "int", "example": option.get("default", 1), **rule}
    if "choices" in option:
        if plain(value) not in option["choices"]:
            choices = [repr(choice) for choice in option["choices"]]
            yield place, state, f"write {' or '.join(choices)}", not isinstance(value, str)
        return
    if kind in ("str", "path") or "kind" in rule:
        told = KINDS[rule.get("kind", "text")](value, rule)
        if told:
            if option.get("no_log") and not isinstance(value, str):
                told = f"write text, in quotes{_like(option)}"
            elif option.get("no_log") and len(value) > 3 and value in told.replace("mongodb://", ""):
                told = f"write something else{_like(option)}"
            right = _number(value) is not None if kind in ("int", "float") else isinstance(value, str)
            yield place, state, told, kind == "raw" or not right
            return
    # What Ansible itself says when the role starts; to it nothing is anything.
    if value is None or ArgumentSpecValidator({"value": {"type": kind}}).validate({"value": value}).error_messages:
        yield place, state, f"write {_what(kind)}{_like(option)}", True


def _walk_keys(place: str, option: Mapping[str, Any], value: Mapping[Any, Any]) -> Iterator[Found]:
    options = option.get("options") or {}
    each = option.get("rule", {}).get("each")
    if each:
        keys = {"kind": "text", **option["rule"].get("keys", {})}
        for key, entry in value.items():
            if told := KINDS[keys["kind"]](key, keys):
                yield place, f"has the key {shown(key)}", told, not isinstance(key, str)
                continue
            yield from _walk(f"{place}.{key}", {"required": True, **each}, entry)
    if not options:
        return
    for key in value:
        if key not in options:
            near = difflib.get_close_matches(str(key), list(options), 1, 0.6)
            write = f"write {near[0]}" if near else "remove it"
            yield (
                place,
                f"has the unknown key {plain(key)!r}",
                f"{write}; known are {', '.join(sorted(options))}",
                False,
            )
    for key, inner in options.items():
        if key in value:
            yield from _walk(f"{place}.{key}", inner, value[key])
        elif inner.get("required"):
            yield place, f"has no {key}", f"write it{_like(inner)}", True


def _what(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "path": "a path"}.get(kind, "it")


def _like(option: Mapping[str, Any]) -> str:
    """Return an example of what an option may be."""
    rule = option.get("rule", {})
    example = rule.get("like") or rule.get("example") or option.get("default")
    if example not in (None, "", [], {}):
        return f", for example {example}"
    return ""
