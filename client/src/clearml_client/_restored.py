"""In a queue: the recorded command line is given to the script again, and edited parameters win over its words."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import yaml
from clearml import Task
from clearml.backend_interface.task.args import _Arguments
from clearml.binding import click_bind, fire_bind, hydra_bind, jsonargs_bind
from clearml.binding.args import PatchArgumentParser
from clearml.config import get_remote_task_id

from ._command_line import UNKNOWN, Recorded, decode, default_of, encode, hook_click, parsed_arguments, read, text_of
from ._errors import ClearmlClientError

__all__ = ["restore"]

VARIABLE = "CLEARML_CLIENT_COMMAND_LINE"
"""Set for the processes that an experiment starts: the experiment, and a hash of the words that it was given."""
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off", "")


def restore() -> None:
    """Give this process the recorded words of its experiment; called once, as the package is imported in a queue.

    An agent starts the script without words. What ran before this import may have read them, so the process starts
    again with them, from its first line.

    Raises:
        ClearmlClientError: The server does not answer, or the record was edited into something else.
    """
    task = str(get_remote_task_id())
    mark = os.environ.get(VARIABLE)
    if mark is not None and mark != _mark(task, sys.argv[1:]):
        return  # a program that the experiment started, with words of its own
    if Task.is_offline():
        return
    recorded = read(task)
    if recorded is None:
        return  # of another client: the SDK does what it can
    command = _command()
    if mark is None and not _is_entry_point(recorded.entry_point, command):
        return
    os.environ[VARIABLE] = _mark(task, recorded.words)
    if sys.argv[1:] != recorded.words:
        given = sys.argv[1:]
        start = command[: len(command) - len(given)]
        if Task.current_task() is None and start and command[len(start) :] == given:
            print(
                "clearml_client: starts again with the experiment's command line: {}".format(
                    " ".join(shlex.quote(word) for word in recorded.words)
                ),
                file=sys.stderr,
            )
            sys.stdout.flush()
            sys.stderr.flush()
            os.execv(sys.executable, start + recorded.words)  # noqa: S606 - a program of the agent's own choice
        sys.argv[1:] = recorded.words
    _install(recorded)


def _mark(task: str, words: List[str]) -> str:
    told = json.dumps(words).encode()
    return "{}:{}".format(task, hashlib.sha256(told).hexdigest())


def _command() -> List[str]:
    """Return the command that started this process; an empty one where the system does not tell."""
    try:
        told = Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return list(getattr(sys, "orig_argv", []))
    return [os.fsdecode(word) for word in told.split(b"\0")[:-1]]


def _is_entry_point(entry_point: str, command: List[str]) -> bool:
    """Tell whether a command is the experiment's own script, and not a tool that is run beside it."""
    parts = entry_point.split()
    if parts[:1] == ["-m"]:
        return len(parts) > 1 and any(command[at : at + 2] == parts[:2] for at in range(len(command)))
    name = Path(entry_point).name
    return any(Path(word).name == name for word in command[1:])


class _Edits:
    """What was edited in the experiment since its command line was recorded."""

    def __init__(self, recorded: Recorded) -> None:
        self.recorded = recorded
        self.edited = recorded.edited()
        self._counts: Dict[str, int] = {}

    def text(self, keys: Tuple[str, ...], here: Any) -> Optional[str]:
        """Return what one of these parameters was edited to; ``None`` if none was."""
        for key in keys:
            if key in self.edited:
                return self.edited[key]
            # Recorded by an earlier run in a queue, from these words.
            if key in self.recorded.now and key not in self.recorded.said and not self.recorded.words_edited:
                text = self.recorded.now[key]
                if text not in text_of(here):
                    return text
        return None

    def default(self, key: str) -> Any:
        """Return the value that a default had where the command line was recorded; counts the calls."""
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        kept = self.recorded.defaults.get(key, [])
        return kept[count] if count < len(kept) else UNKNOWN


def _install(recorded: Recorded) -> None:
    """Let parsers read the words as they would without the SDK, then apply the edits."""
    edits = _Edits(recorded)
    _install_argparse(edits)
    for bind in (click_bind, fire_bind, jsonargs_bind):
        # These replace what was parsed by what the SDK has recorded of it, as texts.
        bind.running_remotely = _never  # type: ignore[attr-defined]
    for patched in (click_bind.PatchClick, fire_bind.PatchFire):
        _let_add_only(patched, "patch", recorded)
    _let_add_only(jsonargs_bind.PatchJsonArgParse, "update_current_task", recorded)
    for module in ("click.core", "typer._click.core"):
        hook_click(module, lambda command, ctx, _: _edit_click(edits, command, ctx), _defaults_of_click(edits))
    if "fire.core" in sys.modules:
        _install_fire(edits)
    if "hydra._internal.hydra" in sys.modules:
        _install_hydra(edits)
    if "jsonargparse" in sys.modules:
        _install_jsonargparse(edits)


def _never() -> bool:
    return False


class _AddsOnly:
    """A task that takes parameters it does not have yet: those it has may have been edited."""

    def __init__(self, task: Task, recorded: Recorded) -> None:
        self._task, self._recorded = task, recorded

    def _set_parameters(self, parameters: Dict[str, Any], **options: Any) -> None:
        new = _new(parameters, self._recorded)
        if new:
            self._task._set_parameters(new, **options)

    def set_parameter(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        if _new({name: value}, self._recorded):
            self._task.set_parameter(name, value, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def _new(parameters: Dict[str, Any], recorded: Recorded) -> Dict[str, Any]:
    """Return the parameters that the experiment lacks; with edited words also those that come from them."""
    edited = recorded.edited()
    return {
        key: value
        for key, value in parameters.items()
        if key not in recorded.now or (recorded.words_edited and key not in edited)
    }


def _let_add_only(patched: Any, method: str, recorded: Recorded) -> None:
    original = getattr(patched, method)

    def update(task: Any = None) -> Any:
        return original(None if task is None else _AddsOnly(task, recorded))

    setattr(patched, method, staticmethod(update))


# ---------------------------------------------------------------- argparse


def _install_argparse(edits: _Edits) -> None:
    def parse(original: Callable[..., Any], self: Any, args: Any = None, namespace: Any = None) -> Any:
        parsed = original(self, args=args, namespace=namespace)
        found = parsed[0] if isinstance(parsed, tuple) else parsed
        _edit_namespace(edits, self, found)
        PatchArgumentParser._add_last_arg_parser(self)
        PatchArgumentParser._add_last_parsed_args(self, parsed)
        task = PatchArgumentParser._current_task
        if task is not None:
            task._arguments.copy_to_parser(self, found)
        return parsed

    def add_missing(self: Any, parser: Any, parsed_args: Any) -> None:
        if not isinstance(parsed_args, argparse.Namespace):
            return
        values, descriptions, types = self._get_defaults_from_argparse(parser, parsed_args=parsed_args)
        new = _new(values, edits.recorded)
        if new:
            self._task.update_parameters(
                new,
                __parameters_descriptions={key: text for key, text in descriptions.items() if key in new},
                __parameters_types={key: kind for key, kind in types.items() if key in new},
            )

    patch: Any = PatchArgumentParser
    patch._patched_parse_args = staticmethod(parse)
    _Arguments.copy_to_parser = add_missing  # type: ignore[method-assign]


def _edit_namespace(edits: _Edits, parser: argparse.ArgumentParser, namespace: Any) -> None:
    seen = set()
    for owner, action, name in parsed_arguments(parser, namespace):
        seen.add(name)
        key = "Args/" + name
        value = getattr(namespace, name)
        kept = edits.default(key)
        text = edits.text((key,), value)
        if text is not None:
            try:
                setattr(namespace, name, _converted(owner, action, text, value))
            except (argparse.ArgumentError, argparse.ArgumentTypeError, ValueError, TypeError) as error:
                parser.error("the experiment's parameter {} was edited to {!r}: {}".format(key, text, error))
        elif kept != UNKNOWN and default_of(owner, action, value):
            here = encode(value)
            if here != UNKNOWN and json.dumps(here) != json.dumps(kept):
                setattr(namespace, name, decode(kept))
    for key in edits.edited:
        name = key.partition("/")[2]
        if key.startswith("Args/") and name not in seen and hasattr(namespace, name):
            # Set by set_defaults, without an argument.
            setattr(namespace, name, _like(getattr(namespace, name), edits.edited[key]))


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, text: str, value: Any) -> Any:
    """Return an edited text as the argument's type.

    Raises:
        ValueError, TypeError, ArgumentError, ArgumentTypeError: It is not one.
    """
    if isinstance(action, argparse._SubParsersAction):
        raise ValueError(
            "another subcommand has other arguments; leave this as it was and edit 'words' of the configuration "
            "object command_line"
        )
    if isinstance(action, argparse._CountAction):
        return int(text) if text else None
    if isinstance(action, argparse._AppendConstAction):
        return _listed(text)
    if action.nargs == 0 and hasattr(action, "const") and not isinstance(action.const, (bool, type(None))):
        for known in (action.const, action.default):
            if text in text_of(known):
                return known
        raise ValueError("expected {!r} or {!r}".format(action.const, action.default))
    if action.nargs == 0:  # flags
        return _truth(text) if text or action.default is not None else None
    if text == "" and (action.default is None or value is None):
        return None
    several = action.nargs in ("*", "+", argparse.REMAINDER, argparse.PARSER) or isinstance(action.nargs, int)
    appends = isinstance(action, argparse._AppendAction) or type(action).__name__ == "_ExtendAction"
    if several or appends:
        made = []
        for item in _listed(text):
            if several and isinstance(item, (list, tuple)):
                made.append([_one(parser, action, part) for part in item])
            else:
                made.append(_one(parser, action, item))
        return made
    return _one(parser, action, text)


def _one(parser: argparse.ArgumentParser, action: argparse.Action, item: Any) -> Any:
    if item is None:
        return None
    if action.type is bool:
        return _truth(str(item))
    made = parser._get_value(action, item if isinstance(item, str) else str(item))
    parser._check_value(action, made)
    return made


def _truth(text: str) -> bool:
    if text.strip().lower() in _TRUE:
        return True
    if text.strip().lower() in _FALSE:
        return False
    raise ValueError("expected True or False")


def _listed(text: str) -> List[Any]:
    """Return the items of a list as people and the SDK write one: ``[1, 'a']``, ``["a"]`` or ``a``."""
    stripped = text.strip()
    if not stripped:
        return []
    if stripped[0] in "[(":
        for loads in (ast.literal_eval, json.loads, yaml.safe_load):
            try:
                made = loads(stripped)
            except (ValueError, SyntaxError, yaml.YAMLError):
                continue
            if isinstance(made, (list, tuple)):
                return list(made)
        raise ValueError("expected a list such as ['a', 'b']")
    return [text]


def _like(value: Any, text: str) -> Any:
    """Return a text as the type of a value; as it is where that type is not a plain one."""
    if isinstance(value, bool):
        return _truth(text)
    if isinstance(value, (int, float)):
        made = float(text)
        return int(made) if isinstance(value, int) and made == int(made) else made
    if isinstance(value, (list, tuple)):
        return type(value)(_listed(text))
    return text


# ---------------------------------------------------------------- Click and Typer


def _keys_of_click(command: Any, parameter: Any) -> Tuple[str, str]:
    # The SDK leaves the command out where a program has only one.
    return "Args/{}/{}".format(command.name, parameter.name), "Args/{}".format(parameter.name)


def _defaults_of_click(edits: _Edits) -> Callable[[Any, Any], None]:
    def before(command: Any, ctx: Any) -> None:
        for key in edits.edited:
            if edits.edited[key] != edits.recorded.said[key] and key == "Args/{}".format(command.name):
                raise ClearmlClientError(_other_command(key))
        found = {}
        for parameter in command.params:
            kept = edits.default("{}/{}".format(command.name, parameter.name))
            if kept != UNKNOWN and kept is not None:
                found[parameter.name] = decode(kept)
        # Asked after words and environment: what was prompted for, or came from the environment, is here.
        ctx.default_map = {**found, **(ctx.default_map or {})}
        ctx.meta["clearml_client.defaults.{}".format(id(ctx))] = found

    return before


def _other_command(key: str) -> str:
    return (
        "the experiment's parameter {} was edited: another command has other arguments; leave it as it was and edit "
        "'words' of the configuration object command_line".format(key)
    )


def _edit_click(edits: _Edits, command: Any, ctx: Any) -> None:
    found = ctx.meta.pop("clearml_client.defaults.{}".format(id(ctx)), {})
    for parameter in command.params:
        name = parameter.name
        if name not in ctx.params:
            continue
        text = edits.text(_keys_of_click(command, parameter), ctx.params[name])
        if text is not None:
            several = getattr(parameter, "multiple", False) or getattr(parameter, "nargs", 1) != 1
            given: Any = _listed(text) if several else text
            if text == "" and not several:
                given = None
            ctx.params[name] = parameter.process_value(ctx, given)
        elif name in found and getattr(ctx.get_parameter_source(name), "name", "") != "COMMANDLINE":
            ctx.params[name] = found[name]


# ---------------------------------------------------------------- Fire


def _install_fire(edits: _Edits) -> None:
    core: Any = sys.modules["fire.core"]
    make = core._MakeParseFn
    commands = [key for key, value in edits.recorded.now.items() if value == "True"]

    def edited(keys: Tuple[str, ...], value: Any) -> Tuple[bool, Any]:
        text = edits.text(keys, value)
        if text is None:
            return False, None
        return True, core.parser.DefaultParseValue(text) if text else None

    def make_parse(fn: Any, metadata: Any) -> Any:
        parse = make(fn, metadata)
        spec = core.inspectutils.GetFullArgSpec(fn)
        name = getattr(fn, "__name__", "")

        def keys(argument: str) -> Tuple[str, ...]:
            of_commands = ["{}/{}".format(key, argument) for key in commands if key.rpartition("/")[2].endswith(name)]
            return (*of_commands, "Args/{}".format(argument))

        def parsed(args: Any) -> Any:
            (values, named), consumed, rest, capacity = parse(args)
            values = list(values)
            for index, argument in enumerate(spec.args[: len(values)]):
                found, value = edited(keys(argument), values[index])
                if found:
                    values[index] = value
            for argument in list(named):
                found, value = edited(keys(argument), named[argument])
                if found:
                    named[argument] = value
            return (values, named), consumed, rest, capacity

        return parsed

    core._MakeParseFn = make_parse


# ---------------------------------------------------------------- Hydra


def _install_hydra(edits: _Edits) -> None:
    internal = sys.modules["hydra._internal.hydra"]
    patch: Any = hydra_bind.PatchHydra
    whole = "Hydra/" + patch._parameter_allow_full_edit
    if edits.recorded.now.get(whole, "").lower() == "true":
        run = internal.Hydra.run

        def run_whole(self: Any, config_name: Any, task_function: Any, _: Any, *args: Any, **kwargs: Any) -> Any:
            # The composed configuration was edited as a whole: the SDK loads it.
            return run(self, config_name, task_function, [], *args, **kwargs)

        internal.Hydra.run = run_whole
        return
    hydra_bind.running_remotely = _never  # type: ignore[attr-defined]
    plain = internal.Hydra.run

    def run_edited(self: Any, config_name: Any, task_function: Any, overrides: Any, *args: Any, **kwargs: Any) -> Any:
        words = list(_edited_overrides(edits, list(overrides), lambda word: bool(patch._is_group(self, word))))
        return plain(self, config_name, task_function, words, *args, **kwargs)

    internal.Hydra.run = run_edited


def _edited_overrides(edits: _Edits, words: List[str], is_group: Callable[[str], bool]) -> Iterator[str]:
    recorded = edits.recorded
    changed = {key.partition("/")[2]: text for key, text in edits.edited.items() if key.startswith("Hydra/")}
    changed.update(
        (key.partition("/")[2], text)
        for key, text in recorded.now.items()
        if key.startswith("Hydra/") and key not in recorded.said
    )
    written = set()
    for word in words:
        name = word.partition("=")[0]
        name = name if is_group(word) else name.lstrip("+")
        if name in changed:
            written.add(name)
            yield "{}={}".format(name if is_group(word) else "++" + name, changed[name])
        elif recorded.words_edited or "Hydra/" + name in recorded.now or "Hydra/" + name not in recorded.said:
            yield word
    for name, text in changed.items():
        if name in written or name.startswith("_"):
            continue
        word = "{}={}".format(name, text) if text else name
        yield word if name.startswith("~") or is_group(word) else "++" + word.lstrip("+")


# ---------------------------------------------------------------- jsonargparse


def _install_jsonargparse(edits: _Edits) -> None:
    parser: Any = sys.modules["jsonargparse"].ArgumentParser
    original = parser.parse_args
    depth = [0]

    def parse_args(self: Any, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        depth[0] += 1
        try:
            if depth[0] == 1:
                args = list(sys.argv[1:] if args is None else args)
                args = _edited_words(edits, args, lambda: original(self, args, *rest, **kwargs))
            return original(self, args, *rest, **kwargs)
        finally:
            depth[0] -= 1

    parser.parse_args = parse_args


def _edited_words(edits: _Edits, words: List[str], parse: Callable[[], Any]) -> List[str]:
    """Return words with those for edited parameters: in front, or, for a subcommand's, at the end."""
    said, now = dict(edits.recorded.said), edits.recorded.now
    if not set(words) <= set(edits.recorded.words):
        return words
    edited = dict(edits.edited)
    if any(key.startswith("Args/") and key not in said for key in now):
        # Recorded by a run that broke off before its parameters were noted: what the words give is what they were.
        for name, value in parse().items():
            text = edits.text(("Args/" + name,), value)
            if text is not None:
                edited["Args/" + name] = text
            said.setdefault("Args/" + name, text_of(value)[0])
    if "Args/subcommand" in edited:
        raise ClearmlClientError(_other_command("Args/subcommand"))
    subcommand = said.get("Args/subcommand", "")
    front, end = [], []
    for key in edited:
        if not key.startswith("Args/"):
            continue
        name = key.partition("/")[2]
        for dotted, value in _leaves(name, said.get(key, ""), now.get(key, "")):
            if subcommand and dotted.startswith(subcommand + "."):
                end.append("--{}={}".format(dotted[len(subcommand) + 1 :], value))
            else:
                # Later words win, so these stand before the subcommand and after the rest.
                front.append("--{}={}".format(dotted, value))
    at = words.index(subcommand) if subcommand in words else len(words)
    return words[:at] + front + words[at:] + end


def _leaves(name: str, before: str, after: str) -> Iterator[Tuple[str, str]]:
    """Return what differs between two texts; in JSON objects, which the SDK writes for groups, key by key."""
    try:
        one, other = json.loads(before), json.loads(after)
    except ValueError:
        one, other = None, None
    if not isinstance(one, dict) or not isinstance(other, dict):
        yield name, after
        return
    for key, value in other.items():
        if value != one.get(key):
            texts = [item if isinstance(item, str) else json.dumps(item) for item in (one.get(key), value)]
            yield from _leaves("{}.{}".format(name, key), *texts)
