"""The dataset caches of the nodes: who may write there, what experiments see, what is pruned and fetched beforehand.

Only for test hosts: it fills and prunes. Each test leaves the site as the inventory tells.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra
from audit import changed_tasks, play
from fleet import NODES, Fleet
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_server"]

CACHES = ("/dvc_cache", "/clearml_cache")
IMAGE = "trainyard/perception:3.11-cpu"
PRUNER = "python3 /usr/local/lib/trainyard/pruner.py"


@pytest.fixture
def node(variables: dict[str, Any]) -> Host:
    """The first node."""
    if variables.get("ansible_connection") != "docker":
        pytest.skip("a live site is left alone")
    return testinfra.get_host("docker://lab-gpu-01")


@pytest.fixture
def other(node: Host) -> Host:
    """The second node."""
    return testinfra.get_host("docker://lab-gpu-02")


def task_arguments(node: Host) -> str:
    """Return what every experiment's docker run gets for the caches, from the agents' clearml.conf."""
    config = node.run_expect([0], "cat /opt/clearml/agent/clearml.conf").stdout
    match = re.search(r"^    extra_docker_arguments: (\[.*\])$", config, re.M)
    assert match
    words = json.loads(match[1])
    pairs = itertools.pairwise(words)
    wanted = [pair for pair in pairs if pair[0] in ("--mount", "--group-add") or "CACHE" in pair[1] or "DVC" in pair[1]]
    assert len(wanted) >= 6, words
    return " ".join(f"{option} '{value}'" for option, value in wanted)


def experiment(node: Host, script: str, user: str = "0:0") -> str:
    """Run what an experiment would, as some user."""
    # In single quotes: what stands for variables is the experiment's.
    command = f"docker run --rm --network none --user {user} {task_arguments(node)} {IMAGE} sh -euc '{script}'"
    return str(node.run_expect([0], command).stdout)


def pruner(node: Host) -> str:
    """Return the pruner's container."""
    return str(node.run_expect([0], "docker ps --quiet --filter label=trainyard.pruner").stdout.strip())


def tree(node: Host, letter: str, days: int) -> str:
    """Make a tree of 4 MB as the client does, last used some days ago; returns its folder."""
    path = f"/clearml_cache/trees/clearml-{letter * 32}"
    node.run_expect(
        [0],
        f"mkdir -p {path}/content && head -c 4194304 /dev/zero > {path}/content/data && touch {path}/lease && "
        f"touch -d '{days} days ago' {path}/content/data {path}/used",
    )
    return path


@contextmanager
def removed(node: Host, *paths: str) -> Iterator[None]:
    try:
        yield
    finally:
        node.run(f"rm -rf {' '.join(paths)}")


@pytest.mark.parametrize("path", CACHES)
def test_the_caches_belong_to_their_group_whatever_the_umask(node: Host, path: str) -> None:
    assert node.run_expect([0], f"stat -c '%a %g' {path}").stdout.split() == ["2775", "2000"]
    assert node.group("datasets").gid == 2000
    with removed(node, f"{path}/probe"):
        for user in ("0:0", "1234:1234", "1235:1235", "0:0"):
            name = user.split(":")[0]
            experiment(
                node,
                f"umask 022; mkdir -p {path}/probe/{name}/sub; echo x > {path}/probe/{name}/sub/file; "
                f"for file in {path}/probe/*/sub/file; do echo {name} >> $file; done",
                user,
            )
        found = node.run_expect([0], f"find {path}/probe -printf '%m %g %y\\n' | sort -u").stdout.splitlines()
        assert found == ["2775 datasets d", "664 datasets f"]


def test_experiments_see_the_caches_and_dvcs_settings(node: Host) -> None:
    seen = experiment(node, "cat /etc/xdg/dvc/config; echo $CLEARML_CLIENT_CACHE; id -G; ls -d /dvc_cache", "1234:1234")
    for line in ("dir = /dvc_cache", "shared = group", "type = symlink", "/clearml_cache", "1234 2000", "/dvc_cache"):
        assert line in seen.splitlines()


def test_the_pruner_runs_on_every_node_with_few_rights(node: Host, other: Host) -> None:
    for host in (node, other):
        about = json.loads(host.run_expect([0], f"docker inspect {pruner(host)}").stdout)[0]
        assert about["HostConfig"]["ReadonlyRootfs"]
        assert [cap.removeprefix("CAP_") for cap in about["HostConfig"]["CapAdd"]] == ["DAC_OVERRIDE", "FOWNER"]
        assert about["HostConfig"]["NetworkMode"] == "none"
        metrics = host.run_expect([0], "cat /opt/clearml/cache/state/pruner.prom").stdout
        assert 'trainyard_pruner_cache_bytes{cache="dvc"}' in metrics
        assert "trainyard_pruner_errors_total 0" in metrics


def test_the_pruner_takes_the_oldest_and_spares_what_is_in_use(node: Host) -> None:
    paths = {letter: tree(node, letter, days) for letter, days in (("a", 40), ("b", 30), ("c", 20), ("d", 10))}
    mount = "--mount type=bind,source=/clearml_cache,target=/clearml_cache"
    holder = f"docker run --rm --detach --name cache-holder {mount} {IMAGE}"
    with removed(node, *paths.values()):
        # Room for two: of the four the oldest is in use, and the next is pinned.
        node.run_expect([0], f"touch {paths['b']}/pinned")
        node.run_expect([0], f"{holder} flock --shared {paths['a']}/lease sleep infinity")
        try:
            settings = "--env CLEARML_PRUNER_CLEARML_MAX=13m --env CLEARML_PRUNER_STATE=/tmp"
            run = f"docker exec {settings} {pruner(node)} {PRUNER} --once"
            told = node.run_expect([0], f"{run} --dry-run").stdout
            assert f"would remove {paths['c']}" in told
            assert node.file(paths["c"]).exists
            node.run_expect([0], run)
        finally:
            node.run("docker rm --force cache-holder")
        assert [node.file(path).exists for path in paths.values()] == [True, True, False, True]
        assert not node.run("ls /clearml_cache/making/*.pruned-*").stdout


def test_datasets_are_fetched_beforehand_once(inventory: Path, node: Host, host: Host) -> None:
    """A dataset that the server has; `clearml-client data upload` put it there."""
    name = f"warm-{int(time.time())}"
    config = "--mount type=bind,source=/opt/clearml/agent/clearml.conf,target=/root/clearml.conf,readonly"
    script = f"mkdir /tmp/d; echo x > /tmp/d/x; clearml-client data upload /tmp/d {name} --version 1.0.0"
    node.run_expect([0], f"docker run --rm {config} {IMAGE} sh -euc '{script}'")
    first = play(inventory, "cache_warm.yml", "--limit", NODES["gpu-01"], datasets=f"{name}@1.0.0")
    assert f"{name}@1.0.0" in first
    assert ": fetched" in first
    assert changed_tasks(first)
    second = play(inventory, "cache_warm.yml", "--limit", NODES["gpu-01"], datasets=f"{name}@1.0.0")
    assert ": was there already" in second
    assert not changed_tasks(second)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dataset_cache_clearml_path": "/dvc_cache/clearml"}, "what removes or prunes one would take the other"),
        ({"dataset_cache_mounts": ["/nowhere"]}, "where no disk is mounted"),
        ({"dataset_cache_max_size": "900t"}, "it would be full before"),
    ],
)
def test_mistakes_are_told_before_anything_is_changed(inventory: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError) as caught:
        play(inventory, "workers.yml", "--limit", NODES["gpu-01"], **wrong)
    said = " ".join(str(caught.value).split())
    assert told in said
    assert "lab-gpu-01: dataset_cache_" in said


def test_the_pruner_goes_and_comes_back(inventory: Path, node: Host, fleet: Fleet) -> None:
    play(inventory, "workers.yml", "--limit", NODES["gpu-01"], dataset_cache_pruner_enabled=False)
    assert not pruner(node)
    assert node.file("/dvc_cache").is_directory
    play(inventory, "workers.yml", "--limit", NODES["gpu-01"])
    fleet.until("the pruner is back", lambda: pruner(node), 60)
