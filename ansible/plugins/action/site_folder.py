# Part of Trainyard.
"""The action behind the module site_folder: tells it which site this is."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Run the module with the site's name: ``site_name``, else the name of the inventory's folder."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        known = task_vars or {}
        name = self._templar.template(known.get("site_name")) or PurePosixPath(known.get("inventory_dir") or "").name
        result.update(
            self._execute_module(
                module_name="site_folder", module_args={"site": str(name), **self._task.args}, task_vars=task_vars
            )
        )
        return result
