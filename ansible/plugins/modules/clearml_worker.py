#!/usr/bin/python
# Part of Trainyard.
"""Take workers that have ended off the server's list."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import CONNECTION_ARGUMENTS, Api, ApiError

DOCUMENTATION = r"""
module: clearml_worker
short_description: Take workers that have ended off the server's list
description:
  - A worker that ends tells the server itself; one that was killed stays listed for a while.
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
  timeout:
    description: Seconds to wait for a server that is just starting.
    type: int
    default: 60
  ids:
    description: Ids of the workers. One that the server does not know is no mistake.
    type: list
    elements: str
    required: true
"""

RETURN = r"""
unregistered:
  description: Ids of the workers that were listed.
  type: list
  returned: always
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**CONNECTION_ARGUMENTS, "ids": {"type": "list", "elements": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        api = Api(module.params)
        listed = {worker["id"] for worker in api.call("workers.get_all", {}).get("workers", [])}
        gone = sorted(listed & set(module.params["ids"]))
        for worker in gone if not module.check_mode else []:
            api.call("workers.unregister", {"worker": worker})
    except ApiError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(gone), unregistered=gone)


if __name__ == "__main__":
    main()
