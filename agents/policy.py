"""The node's wall: whether Docker may run an experiment's container as it is asked for.

One entry, ``refusal(command, own, image, rules)``. ``command`` is the list of words that Docker finally gets, ``own``
the list that it would get if the experiment asked for nothing (the worker makes both). Both are read with Docker's own
grammar of options, so that what counts is what Docker would do, however it is spelled; what ``command`` has more than
``own`` is the experiment's, and each of these options is compared with what the site allows.

Nothing here does input or output, and nothing is corrected or left out: a command is run as it is, or not at all. What
is unknown, ambiguous or incomplete is refused.

What an allowed option may hold is limited too, because some values reach further than the option's purpose:

``--env``
    always a name with a value: a name alone hands on the worker's own variable. Not a name that the worker or the site
    sets, nor one that steers GPUs, ClearML, Docker or the dynamic linker: NVIDIA's runtime reads some of these on the
    node, outside the container.
``--env-file``, ``--label-file``, ``--cidfile``
    read and write files of the worker, so they are the site's alone.
``--label``
    not the labels by which workers and reaper know their containers.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from docker_image import reference

__all__ = ["MalformedError", "Option", "Rules", "image_problem", "parse", "refusal"]

# Options of `docker run` with a value, as in Docker 20.10 to 28; "e env": -e is short for --env.
_WITH_VALUE = """
add-host, annotation, a attach, blkio-weight, blkio-weight-device, cap-add, cap-drop, cgroup-parent, cgroupns,
cidfile, cpu-count, cpu-percent, cpu-period, cpu-quota, cpu-rt-period, cpu-rt-runtime, c cpu-shares, cpus,
cpuset-cpus, cpuset-mems, detach-keys, device, device-cgroup-rule, device-read-bps, device-read-iops,
device-write-bps, device-write-iops, dns, dns-opt, dns-option, dns-search, domainname, entrypoint, e env, env-file,
expose, gpus, group-add, health-cmd, health-interval, health-retries, health-start-interval, health-start-period,
health-timeout, h hostname, io-maxbandwidth, io-maxiops, ip, ip6, ipc, isolation, kernel-memory, l label, label-file,
link, link-local-ip, log-driver, log-opt, mac-address, m memory, memory-reservation, memory-swap, memory-swappiness,
mount, name, net, net-alias, network, network-alias, oom-score-adj, pid, pids-limit, platform, p publish, pull,
restart, runtime, security-opt, shm-size, stop-signal, stop-timeout, storage-opt, sysctl, tmpfs, ulimit, u user,
userns, uts, v volume, volume-driver, volumes-from, w workdir
"""
# Options that are on or off: --init, --init=false; never "--init false".
_SWITCHES = """
d detach, disable-content-trust, help, init, i interactive, no-healthcheck, oom-kill-disable, privileged, P
publish-all, q quiet, read-only, rm, sig-proxy, t tty, use-api-socket
"""
_SAME = {"net": "network", "net-alias": "network-alias", "dns-opt": "dns-option"}
_BOOLEANS = {"1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"}


def _table(text: str) -> tuple[set[str], dict[str, str]]:
    """Return the long names of a list of options, and the long name of each letter."""
    entries = [entry.split() for entry in text.split(",")]
    return {entry[-1] for entry in entries}, {entry[0]: entry[1] for entry in entries if len(entry) == 2}


_VALUED, _VALUED_LETTERS = _table(_WITH_VALUE)
_FLAGS, _FLAG_LETTERS = _table(_SWITCHES)

# Whatever a site's patterns match: these belong to the worker, or reach its files.
_WORKERS_OWN = {
    "cidfile": "it writes a file of the worker",
    "detach": "the worker waits for the experiment",
    "env-file": "it reads a file of the worker; write -e NAME=value for each variable",
    "gpus": "the worker has its own GPUs; choose a queue that has the ones you need",
    "help": "it shows a help text instead of running the experiment",
    "label-file": "it reads a file of the worker",
    "name": "the worker finds the container by its name",
    "restart": "the worker settles how an experiment ends",
    "rm": "the worker removes the container",
    "use-api-socket": "it hands over Docker's socket",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)
# GPUs of every vendor's runtime, the platform's own settings, and what a runtime's hooks on the node would inherit.
_RESERVED = re.compile(
    r"(NVIDIA|CLEARML|TRAINS|TRAINYARD|DOCKER|LD)_.*|.*_VISIBLE_DEVICES|GCONV_PATH|GLIBC_TUNABLES", re.ASCII | re.I
)
_FREE = {
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),  # choose among the GPUs that Docker gave
    *("NVIDIA_DISABLE_REQUIRE", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE"),
}
_OWN_LABEL = re.compile(r"(clearml|trainyard|com\.docker)[.-].*", re.ASCII | re.I)
_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?[kmgtp]?i?b?", re.ASCII | re.I)
_ULIMIT = re.compile(r"[a-z]+=-?[0-9]+(:-?[0-9]+)?", re.ASCII)
_PRIORITIES = {"nice", "rtprio", "rttime"}
_TEMPLATE = re.compile(r"\$\{?CLEARML_", re.I)
# Of Linux: one word of a command (MAX_ARG_STRLEN), and a safe part of what all of them may have.
_LONGEST_WORD, _LONGEST_COMMAND = 128 * 1024 - 1, 1024 * 1024
_LONGEST = 200
_LONGEST_IMAGE = 600  # 255 for the name, 128 for the tag, 135 for the digest, and the registry


class MalformedError(ValueError):
    """Words that Docker would not read as they are meant; the text says which."""


@dataclass(frozen=True)
class Option:
    """One option of ``docker run``: two that are equal do the same, whatever their spelling."""

    name: str
    """The long name, without its dashes."""
    value: str
    """What it holds; for an option that is on or off what was written, or ``true``."""
    spelled: str = field(default="", compare=False)
    """The option as written, with its dashes and without its value."""
    bare: bool = field(default=False, compare=False)
    """No value was written."""

    def __str__(self) -> str:
        return shown(self.spelled if self.bare else f"{self.spelled}={self.value}")


@dataclass(frozen=True)
class Command:
    """A command as Docker reads it."""

    options: list[Option]
    words: list[str]
    """The image, and what runs in it."""


@dataclass(frozen=True)
class Rules:
    """What the site allows.

    ``filters`` are regular expressions of the options that an experiment may ask for. A pattern that matches the whole
    of an option as it is written, without its value (``-e``, ``--shm-size``), allows every value; another one must
    match option and value together, joined by ``=`` (``--ipc=none``). No filters: everything is allowed, but for the
    other rules.
    """

    filters: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()
    """Long names of options that no experiment may have, whatever the filters say."""
    protected: frozenset[str] = frozenset()
    """Long names of options that an experiment may not set where the site does."""
    given: tuple[str, ...] = ()
    """Arguments that the site itself gives to experiments without a container: others may have them too."""


def shown(text: str) -> str:
    """Return a text as one printable line of limited length."""
    safe = text if text.isprintable() else ascii(text)
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]}..."


def image_problem(image: object) -> str | None:
    """Say what is wrong with the name of an image; None when it is one valid reference."""
    if not isinstance(image, str) or not image:
        return "there is no image; write one, for example registry.example.com/team/train:1.0"
    text = f"the image is {shown(image)!r}"
    advice = "write one image, for example registry.example.com/team/train:1.0"
    # The parser's patterns end in $, which also matches before a last line feed.
    if not image.isascii() or not image.isprintable() or " " in image or len(image) > _LONGEST_IMAGE:
        return f"{text}, which is not the name of one image: {advice}, without spaces or options"
    try:
        reference.Reference.parse_normalized_named(image)
    except Exception as error:  # whatever the parser stumbles over is not an image
        return f"{text}, which is not the name of an image ({shown(str(error))}): {advice}"
    return None


def parse(words: Sequence[str]) -> Command:
    """Read what follows ``docker run``, as Docker does.

    Raises:
        MalformedError: A word is no option of ``docker run``, or an option lacks its value.
    """
    options: list[Option] = []
    rest = list(words)
    while rest:
        word = rest[0]
        if not word.startswith("-") or word == "-":
            break
        rest.pop(0)
        if word == "--":
            raise MalformedError("-- ends Docker's options; take it out")
        if word.startswith("--"):
            options.append(_long(word, rest))
        else:
            options += _short(word, rest)
    return Command(options, rest)


def _long(word: str, rest: list[str]) -> Option:
    name, joined, value = word[2:].partition("=")
    spelled = f"--{name}"
    if name in _FLAGS:
        return _switch(name, spelled, value if joined else None)
    if name not in _VALUED:
        raise MalformedError(f"{shown(spelled)} is not an option of docker run")
    if not joined:
        value = _next(spelled, rest)
    return Option(_SAME.get(name, name), value, spelled)


def _short(word: str, rest: list[str]) -> list[Option]:
    """Read letters: ``-it``, ``-eA=1``, ``-e=A=1``, ``-itv/:/host``."""
    options = []
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        spelled = f"-{letter}"
        # As Docker's parser (pflag) has it: "-e=" is the value "=", "-e=x" the value "x".
        joined = len(letters) > 1 and letters.startswith("=")
        if letter in _FLAG_LETTERS:
            options.append(_switch(_FLAG_LETTERS[letter], spelled, letters[1:] if joined else None))
            letters = "" if joined else letters
        elif letter in _VALUED_LETTERS:
            value = letters[1:] if joined else letters or _next(spelled, rest)
            options.append(Option(_VALUED_LETTERS[letter], value, spelled))
            letters = ""
        else:
            raise MalformedError(f"{shown(spelled)} (in {shown(word)}) is not an option of docker run")
    return options


def _switch(name: str, spelled: str, value: str | None) -> Option:
    if value is not None and value not in _BOOLEANS:
        raise MalformedError(f"{spelled}={shown(value)}: an option that is on or off takes true or false")
    return Option(name, value or "true", spelled, bare=value is None)


def _next(spelled: str, rest: list[str]) -> str:
    if not rest:
        raise MalformedError(f"{spelled} has no value; write {spelled} VALUE")
    return rest.pop(0)


def refusal(command: Sequence[str], own: Sequence[str], image: str, rules: Rules) -> str | None:
    """Say why Docker must not run a command; None when it may.

    Args:
        command: All words, from ``docker`` on.
        own: The words that the worker, the agent and the site would run for an experiment that asks for nothing.
        image: The image that the experiment, its queue or its worker names.
        rules: What the site allows.

    Returns:
        A sentence for the experiment's owner: what was asked, why not, and what to write.
    """
    problem = image_problem(image)
    if problem:
        return f"{problem}. Change the experiment's container image and enqueue it again."
    if list(command[:2]) != ["docker", "run"] or list(own[:2]) != ["docker", "run"]:
        return f"the worker would run {shown(' '.join(command[:2]))} instead of docker run: report this as a fault."
    problem = _word_problem(command)
    if problem:
        return f"its container's setup script or arguments cannot be handed to docker run: {problem}."
    try:
        expected = parse(own[2:])
        given = parse(rules.given).options
    except MalformedError as error:
        return f"the site's own arguments of docker run are wrong ({error}): tell who runs the site."
    try:
        found = parse(command[2:])
    except MalformedError as error:
        return (
            f"its container's arguments are not what docker run reads: {error}. Write each option in full, with its "
            "value, for example -e NAME=value, and enqueue it again."
        )
    missing = Counter(expected.options) - Counter(found.options)
    if found.words[:1] != [image] or found.words != expected.words or missing:
        taken = shown(found.words[0]) if found.words else "nothing"
        return (
            f"docker run would take {taken!r} for the image, not {shown(image)!r}: a word among its container's "
            "arguments is not an option, or an option has no value. Write each option with its value, for example "
            "-e NAME=value, and enqueue it again."
        )
    return _options_problem(_left(found.options, expected.options), expected.options, given, rules)


def _word_problem(command: Sequence[str]) -> str | None:
    """Say what the system does not start a program with; None when there is no such word."""
    total = 0
    for word in command:
        try:
            length = len(word.encode())
        except UnicodeEncodeError:
            return f"{shown(word)} has a character that is half of one; take it out"
        if "\0" in word:
            return f"{shown(word)} has a zero byte; take it out"
        if length > _LONGEST_WORD:
            return f"{shown(word)} has {length} bytes; keep it below 128 KiB, or put it into the repository"
        total += length + 1
    if total > _LONGEST_COMMAND:
        return f"together they have {total} bytes; keep them below 1 MiB"
    return None


def _left(options: Iterable[Option], own: Iterable[Option]) -> list[Option]:
    """Return the options without the worker's own, in their order."""
    remaining = Counter(own)
    left = []
    for option in options:
        if remaining[option] > 0:
            remaining[option] -= 1
        else:
            left.append(option)
    return left


def _options_problem(
    asked: Iterable[Option], own: Iterable[Option], given: Iterable[Option], rules: Rules
) -> str | None:
    """Say which of an experiment's options the site does not allow; None when it allows all."""
    own, given = set(own), set(given)
    set_by_worker = {option.name for option in own}
    variables = {option.value.partition("=")[0] for option in own if option.name == "env"}
    forbidden = {_long_name(name) for name in rules.forbidden}
    protected = {_long_name(name) for name in rules.protected}
    refused: list[str] = []
    reasons: list[str] = []
    for option in asked:
        if option in given:
            continue
        if option.name in forbidden or not _allowed(option, rules.filters):
            refused.append(str(option))
        elif option.name in protected and option.name in set_by_worker:
            reasons.append(f"{option}: this worker sets --{option.name} itself; take it out")
        else:
            reason = _value_problem(option, variables, everything=not rules.filters)
            if reason:
                reasons.append(reason)
    sentences = []
    if refused:
        patterns = f"Allowed are options like {', '.join(rules.filters)}. " if rules.filters else ""
        sentences.append(
            f"its container asks for {' '.join(dict.fromkeys(refused))}, which this site does not allow. {patterns}"
            "Take it out of the experiment's container arguments and enqueue it again, or ask who runs the site "
            "(clearml_agent_docker_args_filters)."
        )
    if reasons:
        sentences.append(f"of its container's arguments, these are not allowed: {'; '.join(dict.fromkeys(reasons))}.")
    return " And ".join(sentences) or None


def _long_name(name: str) -> str:
    """Return an option's long name: for ``v``, ``-v``, ``volume`` and ``--volume`` it is ``volume``."""
    name = name.strip().lstrip("-").partition("=")[0]
    name = {**_VALUED_LETTERS, **_FLAG_LETTERS}.get(name, name)
    return _SAME.get(name, name)


def _allowed(option: Option, filters: Sequence[str]) -> bool:
    """Tell whether one of the site's patterns matches an option."""
    if not filters:
        return True
    if option.name != "env" and not option.value.isprintable():
        return False  # $ in a pattern also matches before a last line feed
    joined = f"{option.spelled}={option.value}"
    for pattern in filters:
        if re.fullmatch(pattern, option.spelled):
            return True
        # Beyond the name, or --env would allow --env-file.
        match = None if option.bare else re.match(pattern, joined)
        if match and match.end() > len(option.spelled):
            return True
    return False


def _value_problem(option: Option, variables: set[str], *, everything: bool) -> str | None:
    """Say why an option that is allowed may not have its value; None when it may."""
    if _TEMPLATE.search(option.value):
        return (
            f"{option}: this site fills in no ClearML templates, since their text could hold other options; "
            "write the value itself, or read it in the script (Task.current_task())"
        )
    if everything:  # a site without filters has chosen that experiments own the node
        return None
    if option.name in _WORKERS_OWN:
        return f"{option}: {_WORKERS_OWN[option.name]}; take it out"
    if option.name == "env":
        return _variable_problem(option, variables)
    if option.name == "label" and _OWN_LABEL.fullmatch(option.value.partition("=")[0].strip()):
        return f"{option}: workers know their containers by such labels; choose another name"
    if option.name == "shm-size" and not _SIZE.fullmatch(option.value):
        return f"{option}: write a size, for example --shm-size=16g"
    if option.name == "ulimit" and not _ULIMIT.fullmatch(option.value):
        return f"{option}: write a name with its limits, for example --ulimit=nofile=65536:65536"
    if option.name == "ulimit" and option.value.partition("=")[0] in _PRIORITIES:
        return f"{option}: it lets an experiment run before everything else on the node; take it out"
    if option.name in ("volume", "mount", "device") and ".." in re.split(r"[/:,=]", option.value):
        return f"{option}: write the path without .."
    return _mount_problem(option) if option.name == "mount" else None


def _mount_problem(option: Option) -> str | None:
    """Say why a mount does not mean what a pattern sees in it; None when it does."""
    if '"' in option.value:
        return f"{option}: write it without quotes"
    # Docker reads keys in any case, and takes the last of each.
    keys = [part.partition("=")[0].strip().lower() for part in option.value.split(",")]
    keys = [{"src": "source", "dst": "target", "destination": "target"}.get(key, key) for key in keys]
    if len(set(keys)) < len(keys):
        return f"{option}: name each part once"
    if "volume-opt" in keys or "volume-driver" in keys:
        return f"{option}: volume-opt and volume-driver can mount any folder of the node; take them out"
    return None


def _variable_problem(option: Option, variables: set[str]) -> str | None:
    """Say why an experiment may not set a variable; None when it may. Its value may be secret, and is not repeated."""
    name, joined, _ = option.value.partition("=")
    what = f"{option.spelled} {shown(name)}"
    if not joined:
        return f"{what}: a name without a value takes the worker's own variable; write {option.spelled} NAME=value"
    if not _VARIABLE.fullmatch(name):
        return f"{what}=...: {shown(name)!r} is not the name of a variable; write {option.spelled} NAME=value"
    if name in variables:
        return f"{what}=...: the site sets this variable itself; take it out, or set it in the script"
    if _RESERVED.fullmatch(name) and name not in _FREE:
        return f"{what}=...: this variable is the site's (GPUs, ClearML, Docker, libraries); take it out"
    return None


def command_of(own: Sequence[str], asked: Iterable[str]) -> list[str]:
    """Return the worker's own command with an experiment's arguments, which come last and just before the image."""
    return [*own[:-4], *asked, *own[-4:]]


def split(arguments: str) -> list[str]:
    """Split the text of an experiment's arguments as clearml-agent does.

    Raises:
        MalformedError: A quote is not closed, or a backslash is the last character.
    """
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise MalformedError(f"{shown(arguments)} ({error})") from error
