"""The command line of an experiment: the words after the script, recorded here and given again in a queue.

The SDK records what a parser made of the words, as texts, and an agent starts the script without any. Subcommands,
types and defaults are lost on that way. So the words themselves travel, as a configuration object of the experiment,
and every parser reads them there; ``_restored`` does the queue's side.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import contextlib
import gc
import json
import linecache
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Type

from clearml import Task
from clearml.binding.args import PatchArgumentParser

from ._errors import ClearmlClientError

__all__ = [
    "CONFIGURATION",
    "UNKNOWN",
    "Recorded",
    "check_can_travel",
    "decode",
    "default_of",
    "encode",
    "hand_over_when_read",
    "hook_click",
    "parsed_arguments",
    "prove",
    "read",
    "record",
    "text_of",
    "watch",
]

CONFIGURATION = "command_line"
"""Name of the configuration object, a JSON text."""
SECTIONS = ("Args", "Hydra")
"""Sections of hyperparameters into which the SDK writes what it finds on command lines."""
UNKNOWN: Dict[str, Any] = {"unknown": True}
"""Stands for a value that cannot be written down."""
_DESCRIPTION = (
    "The words after the script. In a clone, edit 'words' to start it with others; an edited parameter of Args wins."
)
_SWEEP = (
    "a sweep of Hydra (--multirun) is several runs, and an experiment in a queue is one: "
    "start each run by itself, without --multirun"
)
_PARSERS = ("parse_args", "parse_known_args", "parse_intermixed_args", "parse_known_intermixed_args")
# What runs a script inside of its own process.
_STARTERS = ("importlib", "runpy", "clearml_client", "pdb", "bdb", "debugpy", "_pydevd_bundle", "cProfile", "coverage")
_READERS = ("click", "typer", "fire", "hydra", "jsonargparse", "absl", "docopt")
_READ = re.compile(r"\bargv\b|\.parse_(known_)?(intermixed_)?args\(")
# Readers that look at sys.argv for other reasons than to parse it.
_BLIND = ("clearml", "clearml_client", "multiprocessing", "runpy", "importlib", "logging", "warnings", "pdb", "bdb")


@dataclass
class _Local:
    """What is known of this process's command line."""

    words: List[str] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)
    defaults: Dict[str, List[Any]] = field(default_factory=dict)
    """By parameter, such as ``Args/seed``: the values that came from no word, one for each time it was parsed."""
    arguments: Dict[str, str] = field(default_factory=dict)
    """Parameters that the SDK does not see."""
    read: bool = False
    """The words have been read, or may have been."""
    depth: int = 0
    waiting: Optional[Callable[[], Any]] = None
    task: Optional[Task] = None
    sent: str = ""
    read_before: bool = False
    """The words were read before this package was imported."""
    sweep: bool = False
    """Hydra was started with ``--multirun``."""


_local = _Local()


@dataclass(frozen=True)
class Recorded:
    """A recorded command line, and the parameters of the experiment now."""

    words: List[str]
    """Words to start with."""
    words_edited: bool
    """They are not those of the first run."""
    said: Dict[str, str]
    """Parameters as they were when the command line was recorded, such as ``{"Args/lr": "0.5"}``."""
    now: Dict[str, str]
    """Parameters as they are now: somebody may have edited a clone."""
    defaults: Dict[str, List[Any]] = field(default_factory=dict)
    entry_point: str = ""

    def edited(self) -> Dict[str, str]:
        """Return the parameters that were edited since."""
        return {key: value for key, value in self.now.items() if key in self.said and value != self.said[key]}


# ---------------------------------------------------------------- written down


def encode(value: Any) -> Any:
    """Return a value as JSON keeps it, with its type; ``UNKNOWN`` for what JSON cannot keep."""
    try:
        return _encoded(value)
    except TypeError:
        return UNKNOWN


def _encoded(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encoded(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [_encoded(item) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _encoded(item) for key, item in value.items()}}
    if type(value) is type(Path()):
        return {"path": str(value)}
    raise TypeError(type(value))


def decode(kept: Any) -> Any:
    """Return the value that ``encode`` was given."""
    if isinstance(kept, list):
        return [decode(item) for item in kept]
    if isinstance(kept, dict):
        ((kind, item),) = kept.items()
        if kind == "tuple":
            return tuple(decode(part) for part in item)
        if kind == "dict":
            return {key: decode(part) for key, part in item.items()}
        return Path(item)
    return kept


def text_of(value: Any) -> Tuple[str, ...]:
    """Return the texts that the SDK writes for a value: one of them, by its way into the server."""
    if value is None:
        return ("", "None")
    texts = [str(value)]
    if isinstance(value, (list, tuple, dict)):
        with contextlib.suppress(TypeError):
            texts.append(json.dumps(value))
    return tuple(texts)


def read(task: str) -> Optional[Recorded]:
    """Return the recorded command line of an experiment; ``None`` where none was recorded.

    Raises:
        ClearmlClientError: The server does not answer, or somebody edited the record into something else.
    """
    from ._lookup import call

    fields = ["configuration", "hyperparams", "script.entry_point"]
    found = call("tasks", "get_all", id=[task], only_fields=fields, search_hidden=True)["tasks"]
    text = ((found[0].get("configuration") or {}).get(CONFIGURATION) or {}).get("value") if found else None
    if text is None:
        return None
    now = {
        "{}/{}".format(section, name): str(item.get("value") or "")
        for section, items in (found[0].get("hyperparams") or {}).items()
        if section in SECTIONS
        for name, item in items.items()
    }
    entry_point = str((found[0].get("script") or {}).get("entry_point") or "")
    try:
        kept = json.loads(text)
        words, first = kept["words"], kept["recorded"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("words is not a list of texts")
        return Recorded(words, words != first["words"], dict(first["parameters"]), now, first["defaults"], entry_point)
    except (ValueError, KeyError, TypeError) as error:
        raise ClearmlClientError(
            "the experiment's configuration object {!r} cannot be read ({}): copy it from the experiment that this one "
            'was cloned from, and change its "words" only, such as ["fit", "--lr", "0.5"]'.format(CONFIGURATION, error)
        ) from error


def record(task: Task) -> None:
    """Write the command line of this process into its experiment, with what is known of it so far."""
    if task.is_offline():
        return
    if _local.task is None:
        # Parsers that run later write parameters too. Registered after the SDK's own end, so called before it.
        atexit.register(_record_at_exit)
    _local.task = task
    if _local.arguments:
        task.update_parameters(dict(_local.arguments))
        _local.arguments.clear()
    task.reload()
    parameters = {
        "{}/{}".format(section, name): str(item.value or "")
        for section, items in (task.data.hyperparams or {}).items()
        if section in SECTIONS
        for name, item in items.items()
    }
    first = {"words": _local.words, "parameters": parameters, "defaults": _local.defaults}
    # ASCII: words of a command line need not be valid Unicode, and the server's databases want it.
    text = json.dumps({"words": _local.words, "recorded": first}, indent=1)
    if text != _local.sent:
        task.set_configuration_object(CONFIGURATION, config_text=text, description=_DESCRIPTION, config_type="JSON")
        _local.sent = text
    _leave_words_out_of_the_entry_point(task)


def _record_at_exit() -> None:
    task = _local.task
    if task is not None and os.getpid() == _local.process:
        with contextlib.suppress(Exception):  # what is missing is only a help for edits of a clone
            record(task)


def _leave_words_out_of_the_entry_point(task: Task) -> None:
    """Record ``-m module`` without words: the SDK appends them without quotes, and agents would split them again."""
    script = task.data.script
    entry = str((script.entry_point if script else None) or "")
    module = module_of(entry)
    if module is not None and entry.split()[2:] and _local.words:
        task.set_script(entry_point="-m " + module)


def module_of(entry: str) -> Optional[str]:
    """Return the module of an entry point ``-m MODULE ...``, if it is the one that runs here.

    A launcher, such as ``torch.distributed.run``, is a module too: its own words belong to it, and the image has it.
    """
    parts = entry.split()
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    running = spec.name if spec is not None else getattr(main, "__package__", None)
    return parts[1] if parts[:1] == ["-m"] and parts[1:2] == [running] else None


def prove(task: Task) -> None:
    """Check that an agent will read what this process was started with.

    Raises:
        ClearmlClientError: It would not; the text says which word or parameter differs.
    """
    if _local.sweep:
        raise ClearmlClientError(_SWEEP)
    kept = read(task.id)
    if kept is None:
        raise ClearmlClientError("the server did not keep the command line of the experiment")
    for index, word in enumerate(_local.words):
        if index >= len(kept.words) or kept.words[index] != word:
            raise ClearmlClientError("the server did not keep the word {!r} of the command line".format(word))
    edited = kept.edited()
    if kept.words_edited or len(kept.words) != len(_local.words) or edited:
        raise ClearmlClientError("the server did not keep {} of the command line".format(", ".join(edited) or "words"))


def check_can_travel() -> None:
    """Refuse a command line that cannot be given again in a queue.

    Raises:
        ClearmlClientError: It was read before this package was imported, or it is a sweep of Hydra.
    """
    if _local.read_before and _local.words:
        raise ClearmlClientError(
            "the run cannot go to a queue: its command line was read before clearml_client was imported, and would be "
            "empty there; write `from clearml_client import init_clearml` above what reads it, at the top of the script"
        )
    hydra = sys.modules.get("hydra.core.hydra_config")
    if _local.sweep or (hydra is not None and hydra.HydraConfig.initialized() and _mode_of(hydra) == "MULTIRUN"):
        raise ClearmlClientError(_SWEEP)


def _mode_of(hydra: Any) -> str:
    return str(getattr(hydra.HydraConfig.get().mode, "name", ""))


# ---------------------------------------------------------------- who reads the words


class _Watched(List[str]):
    """``sys.argv``, which notices that somebody reads its words."""

    def __getitem__(self, index: Any) -> Any:
        if index != 0 and index != slice(None, 1):
            _somebody_reads(sys._getframe(1))
        return list.__getitem__(self, index)

    def __iter__(self) -> Iterator[str]:
        _somebody_reads(sys._getframe(1))
        return list.__iter__(self)

    def __contains__(self, word: object) -> bool:
        _somebody_reads(sys._getframe(1))
        return list.__contains__(self, word)

    def __add__(self, other: Any) -> Any:
        _somebody_reads(sys._getframe(1))
        return list.__add__(self, other)

    def pop(self, index: Any = -1) -> str:
        _somebody_reads(sys._getframe(1))
        return list.pop(self, index)

    def copy(self) -> List[str]:
        _somebody_reads(sys._getframe(1))
        return list.copy(self)

    def index(self, *args: Any) -> int:
        _somebody_reads(sys._getframe(1))
        return list.index(self, *args)

    def __reduce__(self) -> Any:
        # A process that is spawned gets a plain list.
        return list, (list(list.__iter__(self)),)


def _somebody_reads(frame: Any) -> None:
    if _local.read:
        return
    root = str(frame.f_globals.get("__name__", "")).split(".")[0]
    if root in _BLIND or root == "argparse":
        return  # argparse: the words count as read when it is through with them
    if any(name in linecache.getline(frame.f_code.co_filename, frame.f_lineno) for name in _PARSERS):
        return
    _words_are_read()


def _words_are_read() -> None:
    _local.read = True
    waiting, _local.waiting = _local.waiting, None
    if waiting is not None:
        waiting()


def watch() -> None:
    """Begin to record this process's command line; called once, as the package is imported."""
    _local.words = list(sys.argv[1:])
    _hook_argparse()
    for module in ("click.core", "typer._click.core"):
        hook_click(module, _note_click)
    if not _local.words or _may_have_been_read(sys._getframe(1)):
        _local.read = True
    else:
        sys.argv = _Watched(sys.argv)


def _may_have_been_read(frame: Any) -> bool:
    """Tell whether the words may have been read before this package was imported; note it where they were for sure.

    In a queue, what runs before the import has no words: it may end there, before this package could mend it.
    """
    late = False
    while frame is not None:
        name, file = frame.f_code.co_name, str(frame.f_code.co_filename)
        root = str(frame.f_globals.get("__name__", "")).split(".")[0]
        if root in _READERS:
            _local.read_before = True
        elif "frozen" not in file and root not in _STARTERS:
            late = late or name != "<module>"
            source = linecache.getlines(file)
            if name == "<module>":
                before = _statements(source, frame.f_lineno)
            else:
                before = source[frame.f_code.co_firstlineno - 1 : max(frame.f_lineno - 1, 0)]
            if any(_READ.search(line.partition("#")[0]) for line in before):
                _local.read_before = True
        frame = frame.f_back
    # What a parser returned is still there. Others (jsonargparse) use the class for collections of classes.
    for thing in gc.get_objects():
        # Not isinstance: it would ask lazy objects for their class, and the SDK's read clearml.conf for it.
        if issubclass(type(thing), argparse.Namespace) and not all(
            isinstance(item, type) for item in vars(thing).values()
        ):
            _local.read_before = True
    return late or _local.read_before


def _statements(source: List[str], line: int) -> List[str]:
    """Return the lines of a module above a line that have run: all but those of functions and classes."""
    try:
        module = ast.parse("".join(source))
    except (SyntaxError, ValueError):
        return []
    left_out: Set[int] = set()
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [text for number, text in enumerate(source[: max(line - 1, 0)], 1) if number not in left_out]


def hand_over_when_read(hand_over: Callable[[], Any], warn: Callable[[], None]) -> bool:
    """Call something, which does not come back, once the words have been read.

    Args:
        hand_over: What to call.
        warn: Called at the end of the process, when nobody read them.

    Returns:
        Whether the words are still to be read. If not, nothing is called.
    """
    if _local.read:
        return False

    def last() -> None:
        atexit.unregister(warn)
        hand_over()

    _local.waiting = last
    atexit.register(warn)
    return True


# ---------------------------------------------------------------- argparse


def _chosen_actions(
    parser: argparse.ArgumentParser, namespace: Any
) -> Iterator[Tuple[argparse.ArgumentParser, argparse.Action]]:
    """Return the arguments of a parser and of the subparsers that were chosen, each with the parser that has it."""
    for action in parser._actions:
        yield parser, action
        if isinstance(action, argparse._SubParsersAction):
            chosen = getattr(namespace, str(action.dest), None)
            choices = action.choices or {}
            for subparser in {id(choice): choice for choice in choices.values()}.values():
                if chosen not in choices or choices[chosen] is subparser:
                    yield from _chosen_actions(subparser, namespace)


def parsed_arguments(
    parser: argparse.ArgumentParser, namespace: Any
) -> Iterator[Tuple[argparse.ArgumentParser, argparse.Action, str]]:
    """Return the arguments that a namespace has, each once, with the parser that has it and its name there."""
    seen = set()
    for owner, action in _chosen_actions(parser, namespace):
        name = str(action.dest)
        if name not in seen and hasattr(namespace, name):
            seen.add(name)
            yield owner, action, name


def default_of(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> bool:
    """Tell whether a parsed value is the argument's default."""
    default = action.default
    if default is argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
        return False
    try:
        if value is default or (type(value) is type(default) and bool(value == default)):
            return True
        if isinstance(default, str) and isinstance(action.type, type):
            # argparse converts defaults that are texts. Functions are not called again: who knows what they do.
            return bool(action.type(default) == value)
    except Exception:  # whatever comparing or converting somebody's objects raises
        return False
    return False


def _hook_argparse() -> None:
    """Note what argparse made of the words."""

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            if not _local.depth:
                _forget_texts(self)
            _local.depth += 1
            try:
                parsed = original(self, args, namespace)
            finally:
                _local.depth -= 1
            if not _local.depth:
                _note_argparse(self, parsed[0] if isinstance(parsed, tuple) else parsed)
                if args is None or any(word in _local.words for word in args):
                    _words_are_read()
            return parsed

        return parse

    for method in _PARSERS[:2]:
        setattr(argparse.ArgumentParser, method, wrapped(getattr(argparse.ArgumentParser, method)))
    patch: Any = PatchArgumentParser
    texts = patch._add_last_parsed_args

    def without_subcommands(parser: argparse.ArgumentParser, parsed: Any) -> Any:
        # The SDK would record a subcommand as the list of all words from it on.
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                getattr(parser, "_parsed_arg_string_lookup", {}).pop(str(action.dest), None)
        return texts(parser, parsed)

    patch._add_last_parsed_args = staticmethod(without_subcommands)


def _forget_texts(parser: argparse.ArgumentParser) -> None:
    """Forget the texts that the SDK kept of an earlier parse: it would record both as one list."""
    getattr(parser, "_parsed_arg_string_lookup", {}).clear()


def _note_argparse(parser: argparse.ArgumentParser, namespace: Any) -> None:
    if "hydra" in sys.modules and getattr(namespace, "multirun", None) is True and hasattr(namespace, "overrides"):
        _local.sweep = True
    for owner, action, name in parsed_arguments(parser, namespace):
        value = getattr(namespace, name)
        kept = encode(value) if default_of(owner, action, value) else UNKNOWN
        _local.defaults.setdefault("Args/" + name, []).append(kept)
    if _local.task is not None and not Task.is_offline() and len(_local.sent) < 1_000_000:
        record(_local.task)


# ---------------------------------------------------------------- Click and Typer


def hook_click(module: str, note: Callable[..., None], before: Optional[Callable[..., None]] = None) -> None:
    """Call something with command and context after a command of Click has parsed its words.

    Args:
        module: ``click.core``, or the copy of Click in Typer, which the SDK does not know.
        note: Called with the command, its context, and whether it is Typer's copy.
        before: Called with command and context before that.
    """
    try:
        __import__(module)
    except ImportError:
        return
    command: Type[Any] = sys.modules[module].Command
    original = command.parse_args

    def parse_args(self: Any, ctx: Any, args: Any) -> Any:
        if before is not None:
            before(self, ctx)
        rest = original(self, ctx, args)
        note(self, ctx, module != "click.core")
        return rest

    command.parse_args = parse_args


def _note_click(command: Any, ctx: Any, copy: bool) -> None:
    for parameter in command.params:
        name = parameter.name
        if name not in ctx.params:
            continue
        source = ctx.get_parameter_source(name)
        kept = encode(ctx.params[name]) if getattr(source, "name", "") != "COMMANDLINE" else UNKNOWN
        _local.defaults.setdefault("{}/{}".format(command.name, name), []).append(kept)
        if copy:
            key = "Args/{}".format(name) if ctx.parent is None else "Args/{}/{}".format(command.name, name)
            value = ctx.params[name]
            _local.arguments[key] = "" if value is None else str(value)
