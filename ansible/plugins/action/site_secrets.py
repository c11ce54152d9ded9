# Part of Trainyard.
"""The action behind the module site_secrets: it needs the vault, which only the controller has."""

from __future__ import annotations

import base64
import os
import secrets
import string
import tempfile
from pathlib import Path

import bcrypt
import yaml
from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import AnsibleVaultError, VaultLib, VaultSecret

from ansible.plugins.action import ActionBase

# Known to everybody: the official server ships them, see FACTS in the design.
ACCOUNTS = ("apiserver", "fileserver", "webserver", "tests")
TAIL = string.ascii_letters + string.digits + "_-"


def secret(length: int) -> str:
    """Give a random value that starts and ends with a letter and survives HOCON, shells and URLs."""
    middle = "".join(secrets.choice(TAIL) for _ in range(length - 2))
    return secrets.choice(string.ascii_letters) + middle + secrets.choice(string.ascii_letters)


def access_key() -> str:
    """Give a random access key in the form that ClearML itself gives."""
    return secrets.choice(string.ascii_uppercase) + "".join(
        secrets.choice(string.ascii_uppercase + string.digits) for _ in range(29)
    )


def complete(content: dict) -> list[str]:
    """Add to ``content`` what is missing and give the names of what was added."""
    added = []

    def add(name: str, holder: dict, key: str, make) -> None:
        if not holder.get(key):
            holder[key] = make()
            added.append(name)

    def pair() -> dict:
        return {"key": access_key(), "secret": secret(54)}

    add("vault_clearml_admin_password", content, "vault_clearml_admin_password", lambda: secret(20))
    add("vault_clearml_server_session_secret", content, "vault_clearml_server_session_secret", lambda: secret(54))
    add("vault_clearml_server_token_secret", content, "vault_clearml_server_token_secret", lambda: secret(54))
    add("vault_registry_password", content, "vault_registry_password", lambda: secret(32))
    for service in ("mongo", "elasticsearch", "redis"):
        name = f"vault_clearml_server_{service}_password"
        add(name, content, name, lambda: secret(40))
    holder = content.setdefault("vault_clearml_server_credentials", {})
    for name in ACCOUNTS:
        add(f"vault_clearml_server_credentials.{name}", holder, name, pair)
    password = str(content["vault_clearml_admin_password"]).encode()
    hashed = content.get("vault_clearml_admin_password_hash") or ""
    try:
        fits = bcrypt.checkpw(password, base64.b64decode(hashed))
    except ValueError:
        fits = False
    if not fits:
        salted = bcrypt.hashpw(password, bcrypt.gensalt(12))
        content["vault_clearml_admin_password_hash"] = base64.b64encode(salted).decode()
        added.append("vault_clearml_admin_password_hash")
    return added


def write(path: Path, text: bytes) -> None:
    """Replace a file at once, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o600)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class ActionModule(ActionBase):
    """Complete the vaulted file."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Run the action."""
        result = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "path": {"type": "path", "required": True},
                "password_file": {"type": "path", "required": True},
            }
        )
        path, password_file = Path(arguments["path"]), Path(arguments["password_file"])
        check = self._task.check_mode
        if not password_file.exists():
            if path.exists():
                raise AnsibleActionFail(
                    f"{path} is there, but the vault password file {password_file} is not: put it back, "
                    "or delete the vaulted file to start with new secrets"
                )
            if check:
                return {**result, "changed": True, "added": ["all"]}
            write(password_file, (secret(40) + "\n").encode())
        vault = VaultLib([("default", VaultSecret(password_file.read_bytes().strip()))])
        content: dict = {}
        if path.exists():
            raw = path.read_bytes()
            try:
                plain = vault.decrypt(raw) if vault.is_encrypted(raw) else raw
            except AnsibleVaultError as error:
                raise AnsibleActionFail(f"{path} cannot be decrypted with {password_file}: {error}") from error
            content = yaml.safe_load(plain) or {}
        added = complete(content)
        if added and not check:
            text = "---\n# Generated by ansible/secrets.yml, edit it with make vault.\n"
            text += yaml.safe_dump(content, sort_keys=True)
            write(path, vault.encrypt(text.encode()))
        return {**result, "changed": bool(added), "added": added}
