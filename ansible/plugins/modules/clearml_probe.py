#!/usr/bin/python
# Part of Trainyard.
"""Ask each worker which GPUs its experiments see, and compare them with those that it is pinned to."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import CONNECTION_ARGUMENTS, Api, ApiError
from ansible.module_utils.gpu_probe import Probes, table

DOCUMENTATION = r"""
module: clearml_probe
short_description: Prove that workers are pinned to their GPUs
description:
  - Sends an experiment to each worker's own queue, all at the same time, which tells which GPUs it sees.
  - Fails when a worker sees another GPU, none, or one that another worker sees too, and when a probe does not end.
  - A worker that runs experiments until O(timeout) is reported as not probed, which is no failure.
  - Probes that went well are deleted; others stay on the page for looking, in the project Trainyard/probes.
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
  web_url:
    description: Address of the page, for links to probes that failed.
    type: str
    required: true
  timeout:
    description: Seconds to wait for the server, and then for all probes together.
    type: int
    default: 300
  workers:
    description: The workers to probe.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Id at the server, e.g. C(train01-1:gpu0).
        type: str
        required: true
      name:
        description: Name, e.g. C(train01-1); the queue's name when O(workers[].queue) is left out.
        type: str
        required: true
      queue:
        description: The queue that only this worker serves.
        type: str
      gpus:
        description: Indexes or UUIDs of its GPUs; none for a CPU worker, whose experiments must see no GPU.
        type: list
        elements: str
        default: []
      uuids:
        description:
          - UUIDs of the GPUs in O(workers[].gpus), as C(nvidia-smi) lists them on the node.
          - Without them indexes are compared with what Docker told the container, which does not prove the device.
        type: list
        elements: str
        default: []
  script:
    description: The text of agents/probe.py.
    type: str
    required: true
  image:
    description: Image for the probe, with Python and clearml; empty for the workers' own.
    type: str
    default: ""
"""

RETURN = r"""
probes:
  description: Of each worker what it is pinned to and saw, its state (ok, wrong, failed, waiting) and a message.
  type: list
  returned: always
summary:
  description: The same as a table, line by line.
  type: list
  returned: always
"""

WORKER = {
    "id": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "queue": {"type": "str"},
    "gpus": {"type": "list", "elements": "str", "default": []},
    "uuids": {"type": "list", "elements": "str", "default": []},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "timeout": {"type": "int", "default": 300},
            "web_url": {"type": "str", "required": True},
            "workers": {"type": "list", "elements": "dict", "required": True, "options": WORKER},
            "script": {"type": "str", "required": True},
            "image": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    given = module.params
    workers = [{**worker, "queue": worker["queue"] or worker["name"]} for worker in given["workers"]]
    for worker in workers:
        if worker["uuids"] and len(worker["uuids"]) != len(worker["gpus"]):
            module.fail_json(
                msg=f"workers: {worker['id']} has {len(worker['gpus'])} gpus and {len(worker['uuids'])} uuids; "
                "write one UUID for each GPU, or none at all"
            )
    if module.check_mode:
        module.exit_json(changed=False, probes=[], summary=["check mode: no worker was probed"])
    try:
        probes = Probes(Api(given).call, ApiError, given["web_url"])
        rows = probes.run(workers, given["script"], given["image"], given["timeout"])
    except ApiError as error:
        module.fail_json(msg=str(error), probes=[], summary=[])
    wrong = [row["message"] for row in rows if row["state"] not in ("ok", "waiting")]
    result = {"changed": False, "probes": rows, "summary": table(rows)}
    if wrong:
        module.fail_json(msg="\n".join(wrong), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
