#!/usr/bin/python
# Part of Trainyard.
"""Create the queues that are missing and keep their descriptions."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import CONNECTION_ARGUMENTS, Api, ApiError

DOCUMENTATION = r"""
module: clearml_queues
short_description: Create the queues that are missing and keep their descriptions
description:
  - Never deletes a queue, because experiments may wait in it.
  - A description is kept in the queue's metadata under the key C(description).
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
  queues:
    description: Descriptions by name.
    type: dict
    required: true
"""

RETURN = r"""
created:
  description: Names of the queues that were created.
  type: list
  returned: always
described:
  description: Names of the queues whose description was changed.
  type: list
  returned: always
"""

NOT_UNIQUE = 801


def metadata(text: str) -> dict:
    """Give a description as the server keeps it."""
    return {"description": {"key": "description", "type": "str", "value": text}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={**CONNECTION_ARGUMENTS, "queues": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    created, described = [], []
    try:
        api = Api(module.params)
        there = {
            queue["name"]: queue
            for queue in api.call("queues.get_all", {"only_fields": ["id", "name", "metadata"]}).get("queues", [])
        }
        for name, text in module.params["queues"].items():
            if name not in there:
                created.append(name)
                if not module.check_mode:
                    try:
                        api.call("queues.create", {"name": name, "metadata": metadata(text)})
                    except ApiError as error:
                        if error.subcode != NOT_UNIQUE:
                            raise
                        created.remove(name)  # another node was faster
            elif ((there[name].get("metadata") or {}).get("description") or {}).get("value") != text:
                described.append(name)
                if not module.check_mode:
                    api.call("queues.update", {"queue": there[name]["id"], "metadata": metadata(text)})
    except ApiError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(created or described), created=created, described=described)


if __name__ == "__main__":
    main()
