"""The example, from the queue to what can be read back."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import verify
from clearml_api import ClearmlApi
from conftest import EPOCHS, QUEUE
from harness import (
    ROOT,
    Platform,
    Worker,
    console,
    create,
    enqueue,
    epochs_of,
    get,
    run,
    wait_for,
    wait_for_epoch,
    wait_for_status,
)


def keys(api: ClearmlApi) -> set[str]:
    return {pair["access_key"] for pair in api.call("auth.get_credentials")["credentials"]}


def test_verify_proves_the_site(
    platform: Platform,
    worker: Worker,
    digits: str,
    vault: tuple[Path, Path],
    tmp_path: Path,
    api: ClearmlApi,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = keys(api)
    urls = {f"{name}_url": url for name, url in platform.server.urls.items()}
    site, stages = tmp_path / "site.json", tmp_path / "stages.json"
    site.write_text(json.dumps({**urls, "user": "admin", "queue": QUEUE, "repository": digits}))
    stages.write_text(json.dumps({"the stage before": 4.2}))
    options = ["--site-file", site, "--stages", stages, "--vault-file", vault[0], "--vault-password-file", vault[1]]
    status = verify.main([*map(str, options), "--epochs", str(EPOCHS), "--timeout", "180"])
    out, err = capsys.readouterr()
    assert status == 0, out + err
    assert all(url in out for url in platform.server.urls.values())
    assert f"4 curves of {EPOCHS} points" in out
    assert "the stage before" in out
    assert worker.name in out
    assert platform.server.password not in out + err
    assert keys(api) == before, "verify revoked its own"


def test_verify_names_a_queue_that_nobody_serves(
    platform: Platform,
    worker: Worker,
    digits: str,
    vault: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "AGENT_GRACE_SEC", 2.0)
    deserted = f"deserted-{platform.id}"
    with platform.api() as api:
        api.call("queues.create", name=deserted)
    urls = {f"{name}_url": url for name, url in platform.server.urls.items()}
    site = tmp_path / "site.json"
    site.write_text(json.dumps({**urls, "user": "admin", "queue": deserted, "repository": digits}))
    options = ["--site-file", site, "--vault-file", vault[0], "--vault-password-file", vault[1]]
    assert verify.main(list(map(str, options))) == 1
    _, err = capsys.readouterr()
    assert f"nobody serves queue {deserted!r}" in err
    assert worker.name in err
    with platform.api() as api:
        (queue,) = (q for q in api.call("queues.get_all_ex")["queues"] if q["name"] == deserted)
        assert not queue["entries"], "the experiment was withdrawn"


def test_the_sdk_reads_everything_back(trained: str, sdk: ModuleType, api: ClearmlApi) -> None:
    task = sdk.Task.get_task(task_id=trained)
    assert task.get_status() == "completed"
    scalars = task.get_reported_scalars()
    for metric in ("loss", "accuracy"):
        for variant in ("train", "validation"):
            assert scalars[metric][variant]["x"] == list(range(1, EPOCHS + 1))
    accuracy = task.get_reported_single_value("accuracy")
    assert accuracy == pytest.approx(scalars["accuracy"]["validation"]["y"][-1])
    assert accuracy > 0.9
    assert task.get_parameters()["Args/epochs"] == str(EPOCHS)
    assert "final validation accuracy" in "".join(task.get_reported_console_output(10))
    assert [plot["metric"] for plot in task.get_reported_plots()] == ["confusion matrix"]
    (images,) = api.call("events.debug_images", metrics=[{"task": trained}])["metrics"]
    for event in images["iterations"][0]["events"]:
        (sample,) = task.get_debug_samples(event["metric"], event["variant"])
        assert sample["url"] == event["url"]

    weights = Path(task.artifacts["weights"].get_local_copy())
    model = Path(task.models["output"][-1].get_local_copy())
    assert weights.read_bytes() == model.read_bytes()
    with np.load(model, allow_pickle=False) as arrays:
        assert arrays["weights_0"].shape[0] == 64
    report = task.artifacts["classification report"].get()
    assert report["accuracy"] == pytest.approx(accuracy)


def test_a_clone_with_another_parameter_gives_another_result(trained: str, api: ClearmlApi, sdk: ModuleType) -> None:
    clone = sdk.Task.clone(source_task=trained, name="fewer epochs")
    clone.set_parameter("Args/epochs", 5)
    sdk.Task.enqueue(clone, queue_name=QUEUE)
    wait_for_status(api, clone.id, "completed", 180)
    first, second = get(api, trained), get(api, clone.id)
    assert second["parent"] == trained
    assert second["script"]["version_num"] == first["script"]["version_num"]
    assert {tuple(points) for points in epochs_of(api, clone.id).values()} == {tuple(range(1, 6))}

    before, after = (sdk.Task.get_task(task_id=task).get_reported_scalars()["loss"] for task in (trained, clone.id))
    # The seed is fixed: the clone goes the same way, and stops earlier.
    assert after["train"]["y"] == pytest.approx(before["train"]["y"][:5])
    assert after["validation"]["y"][-1] > before["validation"]["y"][-1]


def script(home: Path, **variables: str) -> str:
    """Run the example as a person does, outside any queue."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CLEARML_")}
    train = ROOT / "examples" / "digits" / "train.py"
    return run(sys.executable, train, "--epochs", "3", cwd=home, env={**kept, "HOME": str(home), **variables})


def test_the_script_runs_without_an_agent(platform: Platform, api: ClearmlApi, tmp_path: Path) -> None:
    out = script(tmp_path, CLEARML_CONFIG_FILE=str(platform.sdk_config()))
    found = re.search(r"new task id=(\w{32})", out)
    assert found, out
    task = get(api, found[1])
    assert task["status"] == "completed"
    assert {tuple(points) for points in epochs_of(api, found[1]).values()} == {(1, 2, 3)}
    assert task["hyperparams"]["Args"]["epochs"]["value"] == "3"
    assert {artifact["key"] for artifact in task["execution"]["artifacts"]} == {"weights", "classification report"}


def test_an_offline_run_is_imported_later(api: ClearmlApi, sdk: ModuleType, tmp_path: Path) -> None:
    script(tmp_path, CLEARML_OFFLINE_MODE="1", CLEARML_CACHE_DIR=str(tmp_path))
    (session,) = tmp_path.glob("**/offline-*.zip")
    task = sdk.Task.import_offline_session(str(session))
    assert {tuple(points) for points in epochs_of(api, task).values()} == {(1, 2, 3)}
    imported = sdk.Task.get_task(task_id=task)
    assert {"weights", "classification report"} <= set(imported.artifacts)
    assert Path(imported.models["output"][-1].get_local_copy()).stat().st_size > 0


def test_abort_kills_the_training(api: ClearmlApi, worker: Worker, digits: str) -> None:
    task = create(api, "endless", digits, "train.py", epochs=100_000)
    enqueue(api, task, QUEUE)
    wait_for_epoch(api, task, 2, 120)
    assert worker.experiments()
    api.call("tasks.stop", task=task, status_reason="aborted by a test")
    wait_for("the training's container is gone", lambda: not worker.experiments(), 60)
    wait_for_status(api, task, "stopped", 30)
    assert "final validation accuracy" not in console(api, task)
