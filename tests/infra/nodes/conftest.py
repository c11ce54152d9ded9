"""The fleet, free and whole before each test and after it: one failure is one failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clearml_api import ClearmlApi
from fleet import Fleet
from testinfra.host import Host


@pytest.fixture(scope="module")
def whole_fleet(host: Host, variables: dict[str, Any], inventory: Path) -> Iterator[Fleet]:
    """The administrator's view of the fleet."""
    if variables.get("ansible_connection") != "docker":
        pytest.skip("a live site is left alone")
    address = host.run_expect([0], "hostname -i").stdout.split()[0]
    password = variables["vault_clearml_admin_password"]

    def login() -> ClearmlApi:
        return ClearmlApi(f"http://{address}:8008", f"http://{address}:8081", "admin", password)

    with login() as session:
        fleet = Fleet(login, session, inventory)
        fleet.put_back()
        fleet.measure()
        yield fleet


@pytest.fixture(autouse=True)
def fleet(whole_fleet: Fleet) -> Iterator[Fleet]:
    """The fleet, put back when the test has ended, well or not."""
    yield whole_fleet
    whole_fleet.put_back()
