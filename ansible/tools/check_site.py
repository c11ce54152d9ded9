"""Check that a site is there and that Ansible can read its inventory, before a playbook runs.

Ansible ends at the first file that it cannot read, and does not always name it; here all are named. What is wrong in
an inventory that can be read is left to ansible/check_inventory.yml, which is a part of the playbooks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Before Ansible is loaded: it reads its settings once.
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible/ansible.cfg"))
sys.path.append(str(ROOT / "ansible/plugins/module_utils"))


def site_problems(folder: Path) -> list[str]:
    """Return what is wrong with a site that Ansible cannot read; nothing for one that it can."""
    from ansible.constants import DEFAULT_VAULT_ID_MATCH
    from ansible.parsing.dataloader import DataLoader
    from ansible.parsing.vault import VaultSecret
    from ansible.plugins.loader import init_plugin_loader
    from trainyard_names import check

    init_plugin_loader()
    loader = DataLoader()
    password = folder / ".vault_password"
    if password.exists():
        secret = password.read_bytes().strip()
        if not secret:
            return [f"all: {password} is empty; put the password of the vault into it, from where it was kept"]
        loader.set_vault_secrets([(DEFAULT_VAULT_ID_MATCH, VaultSecret(secret))])
    # Ansible's own warnings about the same files.
    with contextlib.redirect_stderr(io.StringIO()):
        findings = check([folder], loader)
    return [] if findings.readable else findings.problems


def main() -> int:
    """Run the program: print the problems, and return 1 when there are some."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", help="the name of a folder below inventory/")
    parser.add_argument("--inventories", type=Path, default=ROOT / "inventory", help="the folder with the sites")
    arguments = parser.parse_args()
    from trainyard_names import site_folder

    try:
        problems = site_problems(site_folder(arguments.inventories, arguments.site))
    except ValueError as error:
        problems = [str(error)]
    if problems:
        print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
