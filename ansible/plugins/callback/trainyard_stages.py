# Part of Trainyard.
"""Write down how long each role took."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: trainyard_stages
type: aggregate
short_description: Write down how long each role took
description:
  - Puts the seconds of each role into the JSON file that the environment variable TRAINYARD_STAGES names.
  - Does nothing without that variable.
requirements:
  - enable it in the configuration
"""


class CallbackModule(CallbackBase):
    """Adds up the time between the starts of tasks, by role."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "trainyard_stages"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._path = os.environ.get("TRAINYARD_STAGES", "")
        self._seconds: dict[str, float] = {}
        self._stage, self._since = "playbook", time.monotonic()

    def _enter(self, stage: str) -> None:
        now = time.monotonic()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def v2_playbook_on_task_start(self, task, is_conditional):
        """Count the time from here for the task's role."""
        role = getattr(task, "_role", None)
        self._enter(role.get_name() if role else "playbook")

    def v2_playbook_on_handler_task_start(self, task):
        """Count a handler's time for its role; Ansible tells of handlers with one argument less."""
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def v2_playbook_on_stats(self, stats):
        """Write the file at the end."""
        self._enter("playbook")
        if not self._path:
            return
        path = Path(self._path)
        try:
            stages = json.loads(path.read_text())
        except (OSError, ValueError):
            stages = {}
        for name, seconds in self._seconds.items():
            stages[name] = round(seconds, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stages, indent=2) + "\n")
