#!/usr/bin/python
# Part of Trainyard.
"""Keep a node's own service account and its key pair, without a restart of the server."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.clearml_api import COMPANY, CONNECTION_ARGUMENTS, Api, ApiError, UserApi

DOCUMENTATION = r"""
module: clearml_node_key
short_description: Keep a node's own service account and its key pair
description:
  - The account is made through the API, so nothing restarts. It has keys alone, no password.
options:
  api_url:
    description: Address of the API.
    type: str
    required: true
  access_key:
    description: Key of the system account.
    type: str
    required: true
  secret_key:
    description: Secret of the system account.
    type: str
    required: true
  ca_path:
    description: A PEM file with the authorities to trust.
    type: path
  timeout:
    description: Seconds to wait for a server that is just starting.
    type: int
    default: 60
  node:
    description: The node's name.
    type: str
    required: true
  state:
    description: V(present) keeps a pair that works, V(absent) unregisters the node's workers and revokes all its pairs.
    type: str
    choices: [present, absent]
    default: present
  current_access_key:
    description: The pair that the node has; kept when the server knows it as the node's.
    type: str
    default: ""
  current_secret_key:
    description: Its secret.
    type: str
    default: ""
  rotate:
    description: Make a new pair even if the node's works.
    type: bool
    default: false
  revoke:
    description: Revoke the node's other pairs. Not while an experiment that was started with one runs.
    type: bool
    default: true
"""

RETURN = r"""
access_key:
  description: The node's new pair; empty when the one that it has is kept, and in check mode.
  type: str
  returned: always
secret_key:
  description: Its secret, likewise.
  type: str
  returned: always
state:
  description: kept, made, rotated or removed.
  type: str
  returned: always
others:
  description: How many other pairs of the node are still good.
  type: int
  returned: always
"""

LABEL = "trainyard nodes.yml"


def account_name(node: str) -> str:
    """Give the name that people see."""
    return f"agent {node}"


def find(system: Api, node: str) -> str:
    """Give the id of the node's account, empty if there is none."""
    wish = {"only_fields": ["id", "name"], "page": 0, "page_size": 500}
    while True:
        users = system.call("users.get_all", wish)["users"]
        for user in users:
            # Accounts of secure.conf, whose ids are like this, have no keys of the API's making.
            if user.get("name") == account_name(node) and not user["id"].startswith("__"):
                return user["id"]
        if len(users) < wish["page_size"]:
            return ""
        wish["page"] += 1


def run(module: AnsibleModule) -> dict:
    """Do it; every step may be interrupted and is completed by the next run."""
    given, node = module.params, module.params["node"]
    system = Api(given)
    user = find(system, node)
    if given["state"] == "absent":
        account = UserApi(system, user) if user else None
        keys = sorted(account.labels) if account else []
        listed = system.call("workers.get_all", {}).get("workers", []) if account else []
        # The official server lets an account unregister none but its own.
        workers = [worker["id"] for worker in listed if (worker.get("user") or {}).get("id") == user]
        if account and not module.check_mode:
            for worker in workers:
                account.call("workers.unregister", {"worker": worker})
            for key in keys:
                account.call("auth.revoke_credentials", {"access_key": key})
        changed = bool(keys or workers)
        return {"changed": changed, "state": "removed", "access_key": "", "secret_key": "", "others": 0}
    if not user:
        if module.check_mode:
            return {"changed": True, "state": "made", "access_key": "", "secret_key": "", "others": 0}
        # The address is nobody's, but the server wants one that no other account has.
        wish = {"name": account_name(node), "email": f"{node.lower()}@nodes.invalid", "company": COMPANY}
        user = system.call("auth.create_user", wish)["id"]
    account = UserApi(system, user)
    pair = (given["current_access_key"], given["current_secret_key"])
    known = bool(pair[0]) and pair[0] in account.labels
    state = "kept" if known and not given["rotate"] else "rotated" if known else "made"
    if state != "kept":
        pair = ("", "")
        if not module.check_mode:
            new = account.call("auth.create_credentials", {"label": LABEL})["credentials"]
            pair = (new["access_key"], new["secret_key"])
    others = sorted(set(account.labels) - {pair[0]}) if pair[0] else []
    # A new pair is not on the node yet: the old ones go in the next run.
    revoked = others if given["revoke"] and state == "kept" else []
    if not module.check_mode:
        for key in revoked:
            account.call("auth.revoke_credentials", {"access_key": key})
    return {
        "changed": state != "kept" or bool(revoked),
        "state": state,
        # Ansible would black out a value that came as a secret.
        "access_key": pair[0] if state != "kept" else "",
        "secret_key": pair[1] if state != "kept" else "",
        "others": len(others) - len(revoked),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **CONNECTION_ARGUMENTS,
            "node": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "current_access_key": {"type": "str", "default": "", "no_log": True},
            "current_secret_key": {"type": "str", "default": "", "no_log": True},
            "rotate": {"type": "bool", "default": False},
            "revoke": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except ApiError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
