#!/usr/bin/python
# Part of Trainyard.
"""Generate what is missing of a site's secrets into its vaulted file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: site_secrets
short_description: Generate what is missing of a site's secrets into its vaulted file
description:
  - Runs on the controller, as an action.
  - Keeps every value that is there and adds only what is missing, so a second run changes nothing.
  - All values are safe in HOCON and in environment files. They start with a letter and hold only C(A-Z a-z 0-9 _ -).
  - The administrator's bcrypt hash is kept too, because bcrypt is salted. It is made anew when the password was edited.
  - Nothing secret is returned.
options:
  path:
    description: The vaulted variables file.
    type: path
    required: true
  password_file:
    description: The file with the vault's password. It is created when neither it nor the vaulted file exists.
    type: path
    required: true
"""

RETURN = r"""
added:
  description: Names of the variables that were added. Never their values.
  type: list
  returned: always
"""
