# Part of Trainyard.
"""Documentation of the action trainyard_names, which does all of it on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: trainyard_names
short_description: Compare the names in the inventory with those that the roles know
description:
  - Runs on the controller and asks no host. Checks the whole inventory, and the variables of -e.
options: {}
"""
RETURN = """
problems:
  description: What is wrong, each a sentence that starts with the host's name, or with C(all).
  type: list
  elements: str
  returned: always
"""
