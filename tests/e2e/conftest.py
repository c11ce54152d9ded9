"""One platform for all end-to-end tests, and its logs when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from clearml_api import ClearmlApi
from harness import AGENT_IMAGE, ROOT, TASK_IMAGE, Platform, Worker, create, enqueue, wait_for_status

QUEUE = "e2e"
EPOCHS = 20

_platform_key = pytest.StashKey[Platform]()


def pytest_configure(config: pytest.Config) -> None:
    # The SDK's copy of pyhocon calls pyparsing by its old names, a hundred times.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:clearml.*")
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:pyparsing.*")
    # make names the deployed site's; the tests have vaults of their own.
    os.environ.pop("ANSIBLE_VAULT_PASSWORD_FILE", None)


@pytest.fixture(scope="session")
def platform(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A server of its own; what the tests add to it goes when they end."""
    for image in (AGENT_IMAGE, TASK_IMAGE):
        found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
        assert found.returncode == 0, f"no image {image}: `make up` builds it"
    made = Platform(tmp_path_factory.mktemp("platform"))
    pytestconfig.stash[_platform_key] = made
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def digits(platform: Platform) -> str:
    """The address of the example's repository."""
    return platform.add_repository(ROOT / "examples" / "digits", "digits")


@pytest.fixture(scope="session")
def worker(platform: Platform) -> Worker:
    """A worker that serves the queue of most tests."""
    return platform.add_worker("node", QUEUE)


@pytest.fixture(scope="session")
def trained(platform: Platform, worker: Worker, digits: str) -> str:
    """An experiment that ran from the queue to its end."""
    with platform.api() as api:
        task = create(api, "digits", digits, "train.py", epochs=EPOCHS)
        enqueue(api, task, QUEUE)
        wait_for_status(api, task, "completed", 180)
    return task


@pytest.fixture
def api(platform: Platform) -> Iterator[ClearmlApi]:
    """The administrator's session."""
    with platform.api() as session:
        yield session


@pytest.fixture(scope="session")
def sdk(platform: Platform) -> ModuleType:
    """The SDK, which reads its configuration once, at its first import."""
    os.environ["CLEARML_CONFIG_FILE"] = str(platform.sdk_config())
    import clearml

    return clearml


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the logs of server and workers below a failure."""
    report = yield
    if report.failed and _platform_key in item.config.stash:
        report.sections.append(("Platform", item.config.stash[_platform_key].report()))
    return report


@pytest.fixture(scope="session")
def vault(platform: Platform) -> tuple[Path, Path]:
    """The site's vaulted file and the file of its key."""
    key, path = platform.folder / "vault-key", platform.folder / "vault.yml"
    key.write_text("a key of the tests\n")
    path.write_text(f"vault_clearml_admin_password: {platform.server.password}\n")
    program = Path(sys.executable).parent / "ansible-vault"
    subprocess.run([program, "encrypt", "--vault-password-file", key, path], check=True, capture_output=True)
    return path, key
