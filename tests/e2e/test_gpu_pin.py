"""The proof of GPU pinning on a real agent; this platform's worker has no GPU, so its experiments must see none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gpu_pin
import pytest
from clearml_api import ClearmlApi
from conftest import QUEUE
from harness import Platform, Worker, wait_for


def test_a_real_agent_runs_the_probe(
    platform: Platform,
    worker: Worker,
    api: ClearmlApi,
    vault: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait_for("the worker is there", lambda: worker.name in str(api.call("workers.get_all")), 60)
    monkeypatch.setattr(gpu_pin, "ROOT", tmp_path)
    (tmp_path / "build").mkdir()
    urls = {f"{name}_url": url for name, url in platform.server.urls.items()}
    site = {**urls, "user": "admin", "queue": QUEUE, "repository": "none"}
    (tmp_path / "build" / "site-e2e.json").write_text(json.dumps(site))
    inventory = tmp_path / "inventory" / "e2e"
    (inventory / "group_vars" / "all").mkdir(parents=True)
    shutil.copy(vault[0], inventory / "group_vars" / "all" / "vault.yml")
    shutil.copy(vault[1], inventory / ".vault_password")

    status = gpu_pin.main(["--site", "e2e", "--worker", worker.name, "--timeout", "120", "--seconds", "1"])
    out, err = capsys.readouterr()
    assert status == 0, out + err
    row = next(line for line in out.splitlines() if worker.name in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["no GPU", "nothing", "nothing", "ok"]
    assert not api.call("tasks.get_all", name="^probe of ")["tasks"], "a probe that went well is deleted"
    # The probe is gone while the agent still cleans up: it goes on to the next experiment.
    wait_for("the worker is free", lambda: not worker.experiments(), 60)
    assert "Traceback" not in worker.logs(200)
