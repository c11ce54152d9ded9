#!/usr/bin/python
# Part of Trainyard.
"""Tell which workers the server knows and what they run; wait for some."""

from __future__ import annotations

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import CONNECTION_ARGUMENTS, Api, ApiError

DOCUMENTATION = r"""
module: clearml_workers_info
short_description: Tell which workers the server knows and what they run
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
    description: Seconds to wait for the server, and for the workers in O(wait_for).
    type: int
    default: 60
  wait_for:
    description: Ids of workers that must be there.
    type: list
    elements: str
    default: []
"""

RETURN = r"""
workers:
  description: Of each worker its id, and the id of the experiment that it runs or an empty string.
  type: dict
  returned: always
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**CONNECTION_ARGUMENTS, "wait_for": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    deadline = time.monotonic() + module.params["timeout"]
    try:
        api = Api(module.params)
        while True:
            workers = {
                worker["id"]: (worker.get("task") or {}).get("id", "")
                for worker in api.call("workers.get_all", {"last_seen": 600}).get("workers", [])
            }
            missing = sorted(set(module.params["wait_for"]) - set(workers))
            if not missing or module.check_mode:
                break
            if time.monotonic() > deadline:
                module.fail_json(
                    msg=f"after {module.params['timeout']} s the server does not know the workers "
                    f"{', '.join(missing)}; look into their logs: docker logs clearml-agent-<worker>-agent-1"
                )
            time.sleep(0.5)
    except ApiError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, workers=workers)


if __name__ == "__main__":
    main()
