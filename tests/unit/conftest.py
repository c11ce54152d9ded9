"""A lite server in this process, for the tests of its parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_lite_auth import write_config
from trainyard_lite import API_VERSION
from trainyard_lite._app import create_state
from trainyard_lite._errors import ApiError
from trainyard_lite._rpc import Call, State, invoke, resolve
from trainyard_lite._settings import load_settings

# make names the deployed site's; the tests have vaults of their own.
os.environ.pop("ANSIBLE_VAULT_PASSWORD_FILE", None)
# They run before Docker is installed, so a test that asks for it fails here too, where it is.
os.environ["DOCKER_HOST"] = "unix:///nowhere/docker.sock"

Json = dict[str, Any]


@dataclass
class Lite:
    """Calls endpoints below HTTP, as the service account of a node; ``caller`` is the worker that calls."""

    state: State

    def __call__(self, endpoint: str, caller: str = "", /, **args: Any) -> Json:
        identity = self.state.auth.check_secret("AGENTKEY", "AGENTSECRET")
        call = Call(state=self.state, identity=identity, endpoint=endpoint, worker=caller)
        answer: Json = invoke(call, resolve(endpoint, API_VERSION), args)
        return answer

    def error(self, endpoint: str, /, **args: Any) -> tuple[int, int]:
        with pytest.raises(ApiError) as caught:
            self(endpoint, **args)
        return caught.value.code, caught.value.subcode

    def task(self, name: str = "a task") -> str:
        return str(self("tasks.create", name=name, type="training")["id"])

    def status(self, task: str) -> str:
        return str(self("tasks.get_by_id", task=task)["task"]["status"])


def make_lite(folder: Path) -> Lite:
    """Open a server's state in a folder; what it had before is there."""
    return Lite(create_state(load_settings(write_config(folder / "config"), folder / "data")))


@pytest.fixture
def lite(tmp_path: Path) -> Lite:
    return make_lite(tmp_path)
