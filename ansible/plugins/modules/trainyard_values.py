# Part of Trainyard.
"""Documentation of the action trainyard_values, which does all of it on the controller."""

from __future__ import annotations

DOCUMENTATION = """
module: trainyard_values
short_description: Compare the values of variables with the specifications of roles
description:
  - Runs on the controller and asks no host.
  - C(meta/argument_specs.yml) of a role has the types of its variables, C(meta/value_types.yml) the kinds of values.
options:
  roles:
    description: The roles that hosts of a group run, by group. Checks all hosts of the play, and does not fail.
    type: dict
  role:
    description: One role, whose variables are checked as this host has them. Fails when something is wrong.
    type: str
  facts:
    description: Whether facts are known. Without them, values that need some are left out.
    type: bool
    default: true
"""
RETURN = """
problems:
  description: What is wrong, each a sentence that starts with the host's name.
  type: list
  elements: str
  returned: always
authorities:
  description: By host, the files on it that must hold authorities, each with the variable that names it.
  type: dict
  returned: with O(roles)
"""
