#!/usr/bin/python
# Part of Trainyard. Its work is in the action plugin of the same name.
"""Wait until workers that shall pull nothing hold nothing."""

DOCUMENTATION = r"""
module: clearml_drained
short_description: Wait until workers that shall pull nothing hold nothing, and tell what they wait for
description:
  - Takes the connection and O(nodes) of M(clearml_status). A worker has answered when the server shows its tag
    C(drained), which the worker sets only where it would ask for its next experiment.
options:
  api_url:
    description: Address of the API.
    type: str
    required: true
  access_key:
    description: The account's key.
    type: str
    required: true
  secret_key:
    description: The account's secret.
    type: str
    required: true
  ca_path:
    description: A PEM file with the authorities to trust.
    type: path
  nodes:
    description: The nodes and workers to wait for.
    type: list
    elements: dict
    required: true
  timeout:
    description: Seconds to wait at most.
    type: int
    required: true
"""
