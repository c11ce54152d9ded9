#!/usr/bin/python
# Part of Trainyard.
"""Create the queues that are missing and keep their descriptions."""

from __future__ import annotations

from fnmatch import fnmatchcase as fnmatch

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
    description: Descriptions by name, of queues that should be there.
    type: dict
    default: {}
  known:
    description:
      - Names of all queues of the inventory. Others that this module has made, which no worker serves, are told as
        C(left).
    type: list
    elements: str
  remove:
    description: Which of those to delete, by names or patterns; one in which experiments wait stays.
    type: list
    elements: str
    default: []
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
left:
  description: Queues that the inventory no longer has, each with name, waiting (how many experiments) and removed.
  type: list
  returned: always
"""

NOT_UNIQUE = 801


def metadata(text: str) -> dict:
    """Give a description as the server keeps it."""
    return {"description": {"key": "description", "type": "str", "value": text}}


def leave(api: Api, queues: list[dict], known: list[str], remove: list[str], check: bool) -> list[dict]:
    """Find queues of an earlier inventory, and delete those that nobody needs and somebody wants gone."""
    served = {
        queue["name"]
        for worker in api.call("workers.get_all", {"last_seen": 600}).get("workers", [])
        for queue in worker.get("queues") or []
    }
    left = []
    for queue in queues:
        # People make queues too, without the description.
        if queue["name"] in {*known, *served} or "description" not in (queue.get("metadata") or {}):
            continue
        waiting = len(queue.get("entries") or [])
        removed = not waiting and any(fnmatch(queue["name"], pattern) for pattern in remove)
        if removed and not check:
            api.call("queues.delete", {"queue": queue["id"]})
        left.append({"name": queue["name"], "waiting": waiting, "removed": removed})
    return left


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "queues": {"type": "dict", "default": {}},
            "known": {"type": "list", "elements": "str"},
            "remove": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    created, described, left = [], [], []
    try:
        api = Api(module.params)
        fields = ["id", "name", "metadata", "entries"]
        there = {
            queue["name"]: queue for queue in api.call("queues.get_all", {"only_fields": fields}).get("queues", [])
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
        if module.params["known"] is not None:
            known, remove = module.params["known"], module.params["remove"]
            left = leave(api, list(there.values()), known, remove, module.check_mode)
    except ApiError as error:
        module.fail_json(msg=str(error))
    changed = bool(created or described or any(queue["removed"] for queue in left))
    module.exit_json(changed=changed, created=created, described=described, left=left)


if __name__ == "__main__":
    main()
