# Part of Trainyard.
"""Wait until workers that shall pull nothing hold nothing, and tell what they wait for."""

from __future__ import annotations

import time

from ansible.utils.display import Display

from ansible.plugins.action import ActionBase

LOOK_SECONDS = 3.0
TELL_SECONDS = 60.0

display = Display()


def describe(worker: dict) -> str:
    """Tell what a worker is waited for."""
    experiment = worker.get("experiment")
    if experiment:
        owner, age = experiment.get("owner") or "somebody", experiment.get("age") or "a moment"
        return f"{worker['worker']} runs {experiment['name']!r} ({experiment['id']}) of {owner} for {age}"
    if worker["state"] == "stale":
        return f"{worker['worker']} runs, but the server has not heard from it"
    return f"{worker['worker']} has not answered yet"


class ActionModule(ActionBase):
    """Poll the module clearml_status."""

    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        """Run the action."""
        result = super().run(tmp, task_vars)
        given = dict(self._task.args)
        limit = int(given.pop("timeout"))
        started, told_at, told = time.monotonic(), 0.0, []
        while True:
            status = self._execute_module(
                "clearml_status", module_args={**given, "foreign": False}, task_vars=task_vars
            )
            if status.get("failed"):
                return {**result, **status}
            pending = [worker for worker in status["status"]["workers"] if worker["state"] != "drained"]
            waited = time.monotonic() - started
            if not pending or self._task.check_mode:
                return {**result, "changed": False, "waited_seconds": int(waited)}
            lines = [describe(worker) for worker in pending]
            who = [(worker["id"], (worker.get("experiment") or {}).get("id")) for worker in pending]
            host = task_vars["inventory_hostname"]
            if waited >= limit:
                return {
                    **result,
                    "failed": True,
                    "msg": f"{host}: after {int(waited)} s: {'; '.join(lines)}. Its workers pull nothing more. Run the "
                    "playbook again to wait on, with -e drain_seconds=SECONDS for longer, abort the experiment, or run "
                    "undrain.yml",
                }
            if who != told or time.monotonic() - told_at > TELL_SECONDS:
                for line in lines:
                    display.display(f"{host}: waits: {line}")
                told, told_at = who, time.monotonic()
            time.sleep(LOOK_SECONDS)
