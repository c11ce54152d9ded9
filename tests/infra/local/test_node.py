"""The node: its workers, what they may, the cache, and a real training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from audit import secrets_of, train
from testinfra.host import Host

testinfra_hosts = ["ansible://clearml_nodes"]


@pytest.fixture(scope="module")
def node(variables: dict[str, Any]) -> str:
    return str(variables.get("clearml_node_name", variables["inventory_hostname"]))


@pytest.fixture(scope="module")
def workers(host: Host, root: str, node: str) -> list[dict[str, Any]]:
    """The agents' containers."""
    ids = host.run_expect([0], f"{root}docker ps --quiet --filter label=trainyard.node={node}").stdout.split()
    assert ids, f"node {node} has no worker"
    return list(json.loads(host.run_expect([0], f"{root}docker inspect {' '.join(ids)}").stdout))


def test_workers_are_healthy_and_come_back(workers: list[dict[str, Any]]) -> None:
    for worker in workers:
        assert worker["State"]["Health"]["Status"] in {"healthy", "starting"}
        assert worker["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert worker["RestartCount"] == 0


def test_worker_one_serves_its_own_the_nodes_and_the_common_queue(workers: list[dict[str, Any]], node: str) -> None:
    words = {worker["Config"]["Labels"]["trainyard.worker"]: " ".join(worker["Config"]["Cmd"]) for worker in workers}
    assert any(f"--queue {node}-1 {node} all_gpus" in each for each in words.values())


def test_one_worker_of_the_site_serves_the_controllers(workers: list[dict[str, Any]], node: str) -> None:
    """Without a GPU, a few at a time; nothing is added where a worker by hand serves their queue."""
    found = [worker for worker in workers if worker["Config"]["Labels"]["trainyard.worker"] == f"{node}-services"]
    if not found:
        pytest.skip("another node has it, or the site does without")
    (worker,) = found
    words = " ".join(worker["Config"]["Cmd"])
    assert words.endswith("--queue services")
    assert "--cpu-only --services-mode" in words
    environment = dict(line.split("=", 1) for line in worker["Config"]["Env"])
    assert int(environment["TRAINYARD_SERVICES_LIMIT"]) > 0
    assert "--memory=" in environment["TRAINYARD_TASK_ARGUMENTS"]


def test_workers_may_nothing_but_talk_to_docker(workers: list[dict[str, Any]]) -> None:
    for worker in workers:
        limits = worker["HostConfig"]
        assert limits["ReadonlyRootfs"] is True
        assert limits["CapDrop"] == ["ALL"]
        assert not limits["CapAdd"]
        assert any("no-new-privileges" in option for option in limits["SecurityOpt"])
        assert limits["Memory"] > 0


def test_a_worker_reaches_the_docker_of_now(host: Host, root: str, workers: list[dict[str, Any]]) -> None:
    for worker in workers:
        host.run_expect([0], f"{root}docker exec {worker['Id']} docker version")


def test_its_credentials_are_in_a_file_for_root_alone(
    host: Host, root: str, workers: list[dict[str, Any]], variables: dict[str, Any]
) -> None:
    assert host.run_expect([0], f"{root}stat -c '%a %u' /opt/clearml/agent/clearml.conf").stdout.split() == ["600", "0"]
    seen = json.dumps(workers) + host.run_expect([0], "ps -eo args --no-headers").stdout
    config = host.run_expect([0], f"{root}cat /opt/clearml/agent/clearml.conf").stdout
    own = dict(re.findall(r'(access_key|secret_key): "([^"]+)"', config))
    assert len(own) == 2, "the node has an account of its own"
    for name, secret in {**secrets_of(variables), **own}.items():
        assert secret not in seen, name


@pytest.mark.parametrize("argument", ["--privileged", "--pid=host", "-v"])
def test_experiments_may_not_ask_for_the_host(host: Host, root: str, argument: str) -> None:
    config = host.run_expect([0], f"{root}cat /opt/clearml/agent/clearml.conf").stdout
    filters = config.split("docker_args_filters", 1)[1].split("]", 1)[0]
    assert filters.strip(" :=[\n"), "no filter at all allows everything"
    assert f'"{argument}' not in filters
    assert f'"^{argument}' not in filters


def test_the_cache_is_shared_by_its_group(host: Host, root: str, variables: dict[str, Any]) -> None:
    path = variables["dataset_cache_path"]
    assert host.run_expect([0], f"{root}stat -c '%a %G' {path}").stdout.split() == ["2775", "datasets"]


def test_the_image_for_experiments_starts_at_once(host: Host, root: str) -> None:
    """Nothing to install: the agent, git and the libraries are in it, and it names its Python."""
    image = "trainyard/perception:3.11-cpu"
    command = "import clearml, clearml_agent, numpy, PIL, clearml_client; print(clearml.__version__)"
    run = f"{root}docker run --rm --network none {image}"
    assert host.run_expect([0], f'{run} sh -c \'"$LOCAL_PYTHON" -c "{command}"\'').stdout.strip() == "2.1.12"
    host.run_expect([0], f"{run} git --version")


def test_a_training_runs_from_the_queue(inventory: Path) -> None:
    train(inventory)
