"""Time the stages of ``make up`` into a JSON file, name to seconds, that verify prints at its end."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def note(path: Path, name: str, seconds: float) -> None:
    """Note ``seconds`` as the stage ``name``."""
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stages = {}
    stages[name] = round(seconds, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the program; the exit status is the command's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the JSON file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", metavar="NAME", help="note the time since --since")
    what.add_argument("--run", metavar="NAME", help="run the command and note its time")
    what.add_argument("--playbook", action="store_true", help="run the command; its roles are noted by a callback")
    parser.add_argument("--since", type=float, help="seconds since the epoch")
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    if arguments.record:
        note(arguments.file, arguments.record, time.time() - (arguments.since or time.time()))
        return 0
    started = time.monotonic()
    environment = dict(os.environ)
    if arguments.playbook:
        environment.update(TRAINYARD_STAGES=str(arguments.file), ANSIBLE_CALLBACKS_ENABLED="trainyard_stages")
    code = subprocess.run(arguments.command, env=environment, check=False).returncode  # noqa: S603 (the Makefile's own)
    if arguments.run:
        note(arguments.file, arguments.run, time.monotonic() - started)
    return code


if __name__ == "__main__":
    sys.exit(main())
