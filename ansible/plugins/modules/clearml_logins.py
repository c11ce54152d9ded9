#!/usr/bin/python
# Part of Trainyard.
"""Keep the epoch of the server's tokens: a new one ends every login that was made before."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: clearml_logins
short_description: Keep the epoch of the server's tokens
description:
  - The official server accepts a token until it expires, even of a user who is gone. It does check the signature.
  - The secret that signs tokens is made of the vault's secret and an epoch, which a file on the server's host keeps.
  - A new epoch invalidates all tokens at once. SDK and agent log in again with their key pairs, people on the page.
  - The epoch is renewed when a login of the last run is missing from O(logins) or has another secret, and with O(end).
    A login that is added changes nothing.
  - The file holds no secret, only digests.
options:
  path:
    description: The file with the epoch.
    type: path
    required: true
  secret:
    description: The vault's token secret.
    type: str
    required: true
  logins:
    description: Every login by name, with what proves it, such as a password hash. Those of the last run if left out.
    type: dict
  end:
    description: Whether all logins end now.
    type: bool
    default: false
  owner:
    description: Who owns the file, a uid.
    type: int
    required: true
  group:
    description: Its group, a gid.
    type: int
    required: true
"""

RETURN = r"""
epoch:
  description: The epoch, to be combined with the vault's secret (filter C(trainyard_token_secret)).
  type: str
  returned: always
renewed:
  description: Whether tokens of before are invalid now.
  type: bool
  returned: always
gone:
  description: Names of the logins that are missing or have another secret.
  type: list
  returned: always
"""

EPOCH = re.compile(r"[0-9a-f]{32}")


def digest(secret: str, name: str, proof: Any) -> str:
    """Return a digest from which nobody without the vault's secret can guess the proof."""
    text = json.dumps([name, proof], sort_keys=True)
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]


def read(path: Path) -> tuple[str, dict[str, str]]:
    """Return the epoch and the digests of the logins; an empty epoch if there is no usable file."""
    try:
        kept = json.loads(path.read_text())
        epoch, logins = kept["epoch"], kept["logins"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", {}
    if not isinstance(epoch, str) or not EPOCH.fullmatch(epoch) or not isinstance(logins, dict):
        return "", {}
    return epoch, logins


def write(path: Path, text: str, owner: int, group: int) -> bool:
    """Replace the file at once, readable by its owner alone; return whether anything changed."""
    if path.exists():
        state = path.stat()
        same = (state.st_uid, state.st_gid, state.st_mode & 0o777) == (owner, group, 0o400)
        if same and path.read_text() == text:
            return False
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".logins.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chown(temporary, owner, group)
        Path(temporary).chmod(0o400)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


def keep(given: dict[str, Any], check: bool) -> dict[str, Any]:
    """Read the epoch, renew it if necessary, and write it back unless this is a check."""
    path = Path(given["path"])
    epoch, before = read(path)
    after = before
    if given["logins"] is not None:
        after = {name: digest(given["secret"], name, proof) for name, proof in given["logins"].items()}
    gone = sorted(name for name, value in before.items() if after.get(name) != value)
    renewed = given["end"] or bool(gone) or not epoch
    if renewed:
        epoch = secrets.token_hex(16)
    text = json.dumps({"epoch": epoch, "logins": after}, indent=1, sort_keys=True) + "\n"
    changed = (renewed or before != after) if check else write(path, text, given["owner"], given["group"])
    return {"changed": changed, "epoch": epoch, "renewed": renewed, "gone": gone}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "secret": {"type": "str", "required": True, "no_log": True},
            "logins": {"type": "dict", "no_log": True},
            "end": {"type": "bool", "default": False},
            "owner": {"type": "int", "required": True},
            "group": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**keep(module.params, module.check_mode))
    except OSError as error:
        module.fail_json(msg=f"the file of the logins cannot be kept: {error}")


if __name__ == "__main__":
    main()
