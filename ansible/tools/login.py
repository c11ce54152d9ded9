"""Show how a person logs in to a site: address, login, and the password from the vault."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.vault import VaultLib, VaultSecret


def vault_values(path: Path, password_file: Path) -> dict[str, Any]:
    """Give the variables of a vaulted file."""
    vault = VaultLib([("default", VaultSecret(password_file.read_bytes().strip()))])
    raw = path.read_bytes()
    return dict(yaml.safe_load(vault.decrypt(raw) if vault.is_encrypted(raw) else raw))


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--site-file", "--vault-file", "--vault-password-file"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    try:
        site = json.loads(arguments.site_file.read_text(encoding="utf-8"))
        values = vault_values(arguments.vault_file, arguments.vault_password_file)
    except OSError as error:
        print(f"{error.filename} is missing: the site is not deployed from here, run make up", file=sys.stderr)
        return 1
    print(f"web       {site['web_url']}")
    print(f"login     {site['user']}")
    print(f"password  {values['vault_clearml_admin_password']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
