# Part of Trainyard.
"""The action behind the module trainyard_names: the names and files of the whole inventory, whatever -l has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.utils.vars import load_extra_vars

from ansible.plugins.action import ActionBase

sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

from trainyard_names import check


class ActionModule(ActionBase):
    """Compare the names in the inventory with those that the roles know."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the problems as sentences."""
        result = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        sources = (task_vars or {}).get("ansible_inventory_sources") or []
        result.update(problems=check(sources, self._loader, load_extra_vars(self._loader)).problems, changed=False)
        return result
