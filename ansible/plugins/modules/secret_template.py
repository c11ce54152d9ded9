#!/usr/bin/python
# Part of Trainyard.
"""Documentation of the action secret_template; the work is done on the controller, in plugins/action."""

DOCUMENTATION = r"""
module: secret_template
short_description: Template a HOCON file that holds secrets, with a diff that does not show them
description:
  - Takes the arguments of M(ansible.builtin.template) and does the same.
  - In the diff every secret is C(***); one that is new is C(*** (changed)).
"""
