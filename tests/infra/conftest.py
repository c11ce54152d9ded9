"""What all suites of hosts share. A suite runs in molecule, and against a live site: `make audit SITE=local`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

# A run that finds no host finds no test, and would pass.
AT_LEAST = 15


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    whole = all(Path(argument).is_dir() for argument in config.args)
    if whole and not session.testsfailed and len(items) < AT_LEAST:
        raise pytest.UsageError(f"only {len(items)} tests: is --ansible-inventory right?")


@pytest.fixture(scope="session")
def inventory(pytestconfig: pytest.Config) -> Path:
    """The site's folder."""
    given = pytestconfig.getoption("--ansible-inventory")
    assert given, "give the site: --ansible-inventory=inventory/local"
    path = Path(given).resolve()
    return path if path.is_dir() else path.parent


@pytest.fixture(scope="module")
def variables(host: Host) -> dict[str, Any]:
    """The inventory's variables of the host, the vault's among them."""
    return dict(host.ansible.get_variables())


@pytest.fixture(scope="module")
def root(host: Host) -> str:
    """Put before a command that needs root, on hosts that are reached as somebody else."""
    return "" if host.user().name == "root" else "sudo -n "
