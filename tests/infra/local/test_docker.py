"""The engine that everything runs on."""

from __future__ import annotations

import json

from testinfra.host import Host

testinfra_hosts = ["ansible://all"]


def test_engine_compose_and_buildx_answer(host: Host, root: str) -> None:
    assert host.run_expect([0], f"{root}docker info --format '{{{{.ServerVersion}}}}'").stdout.strip()
    version = host.run_expect([0], f"{root}docker compose version --short").stdout.strip().lstrip("v")
    assert tuple(map(int, version.split("-")[0].split(".")[:2])) >= (2, 18)
    host.run_expect([0], f"{root}docker buildx version")


def test_it_comes_back_after_a_reboot(host: Host) -> None:
    if host.file("/run/systemd/system").exists:
        service = host.service("docker")
        assert service.is_running
        assert service.is_enabled
    else:  # nobody starts it there but the playbook
        assert host.process.filter(comm="dockerd")


def test_logs_rotate_and_containers_outlive_the_daemon(host: Host, root: str) -> None:
    settings = json.loads(host.run_expect([0], f"{root}cat /etc/docker/daemon.json").stdout)
    assert settings["live-restore"] is True
    assert settings["log-driver"] == "json-file"
    assert set(settings["log-opts"]) >= {"max-size", "max-file"}
