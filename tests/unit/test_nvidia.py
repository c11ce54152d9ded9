"""The role of GPUs: what nvidia-smi tells, which hosts are refused, and the role's flow.

No GPU is here: nvidia-smi, nvidia-ctk and docker are stand-ins, scripts in a folder of the test that come first on the
PATH, and the PCI bus is a folder. Docker's restart and reload are stand-ins too, so that no test reaches a real daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_roles import load

ROOT = Path(__file__).resolve().parents[2]
ROLE = "nvidia_container_toolkit"
UUID = "GPU-5a6f0d4c-1111-2222-3333-44445555666"
A100 = f"0, {UUID}0, NVIDIA A100-SXM4-40GB, 535.183.01, Disabled"
T4 = f"1, {UUID}1, Tesla T4, 535.183.01, [N/A]"
LIST = f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {UUID}0)\nGPU 1: Tesla T4 (UUID: {UUID}1)\n"

nvidia = load("ansible/plugins/filter/trainyard_nvidia.py")


def found(**changes: Any) -> dict[str, Any]:
    told = {"cards": ["0000:01:00.0"], "driver": True, "status": 0, "answer": [A100], "error": []}
    return {**told, "toolkit": "1.17.8", "engine": "28.3.0", **changes}


def wanted(**changes: Any) -> dict[str, Any]:
    table = yaml.safe_load((ROOT / f"ansible/roles/{ROLE}/vars/main.yml").read_text())
    settings = {"enabled": "auto", "mode": "runtime", "cuda": "", "version": "", "install_driver": False}
    return {
        **settings,
        "driver_package": "nvidia-driver",
        "minimum_drivers": table["__nvidia_container_toolkit_minimum_drivers"],
        "distribution": "Debian",
        "distributions": ["Debian", "Ubuntu"],
        **changes,
    }


# --- what nvidia-smi tells -------------------------------------------------------------------------------------------


def test_gpus_are_read_as_nvidia_smi_tells_them() -> None:
    odd = f"2, {UUID}2, NVIDIA RTX, special edition, 580.65.06, Enabled"
    assert nvidia.trainyard_gpus([A100, T4, odd, "", "WARNING: infoROM is corrupted at gpu 0000:01:00.0"]) == [
        {"index": 0, "uuid": f"{UUID}0", "name": "NVIDIA A100-SXM4-40GB", "mig": False},
        {"index": 1, "uuid": f"{UUID}1", "name": "Tesla T4", "mig": False},
        {"index": 2, "uuid": f"{UUID}2", "name": "NVIDIA RTX, special edition", "mig": True},
    ]
    assert nvidia.trainyard_gpus(["No devices were found"]) == []


def test_uuids_are_those_of_gpus_and_their_parts() -> None:
    part = "  MIG 1g.5gb      Device  0: (UUID: MIG-9a1c0000-aaaa-bbbb-cccc-000000000001)"
    assert nvidia.trainyard_gpu_uuids([*LIST.splitlines()[::-1], part]) == [
        f"{UUID}0",
        f"{UUID}1",
        "MIG-9a1c0000-aaaa-bbbb-cccc-000000000001",
    ]
    assert nvidia.trainyard_gpu_uuids(["Failed to initialize NVML: Unknown Error"]) == []


# --- which hosts are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [
        ("450.80.02", "11.8", ""),
        ("450.51.06", "11.8", "450.80.02"),
        ("525.60.13", "12.4", ""),
        # As text, 525.125.06 would be older than 525.60.13, and 99 newer than 525.
        ("525.125.06", "12.4", ""),
        ("99.1", "12.4", "525.60.13"),
        ("525.60", "12.0", "525.60.13"),
        ("535.183.01", "13.0", "580.65.06"),
        ("580.65.06", "13.1", ""),
        ("580.65.06", "12.10", ""),
        ("390.157", "", ""),
    ],
)
def test_a_driver_that_is_too_old_for_cuda_is_told(driver: str, cuda: str, needed: str) -> None:
    answer = [A100.replace("535.183.01", driver)]
    problems = nvidia.trainyard_gpu_problems(found(answer=answer), wanted(cuda=cuda), "train01")
    told = (
        f"train01: the NVIDIA driver is {driver}, but CUDA {cuda} (nvidia_container_toolkit_cuda) needs {needed} or "
        "newer; upgrade the driver and reboot, or use images with an older CUDA"
    )
    assert problems == ([told] if needed else [])


@pytest.mark.parametrize(
    ("told", "settings", "message"),
    [
        (
            {"cards": [], "driver": False},
            {"enabled": True},
            "train01: nvidia_container_toolkit_enabled is true, but the",
        ),
        (
            {"driver": False},
            {},
            "is on the PCI bus (0000:01:00.0), but there is no driver (no nvidia-smi); install one",
        ),
        (
            {"driver": False},
            {"install_driver": True, "driver_package": ""},
            "nvidia_container_toolkit_driver_package is empty, and no driver is known for Debian",
        ),
        ({"status": 18, "answer": [], "error": ["mismatch"]}, {}, "(nvidia-smi ended with 18: mismatch). After"),
        ({"status": 124, "answer": []}, {}, "(nvidia-smi ended with 124: no output)"),
        ({"answer": [A100, "Unable to determine the device handle for GPU1: Unknown Error"]}, {}, "does not answer"),
        ({"answer": ["No devices were found"]}, {}, "No devices were found"),
        (
            {"engine": "20.10.24+dfsg1"},
            {"mode": "cdi"},
            "mode is 'cdi', but Docker is 20.10.24+dfsg1, and CDI needs 25",
        ),
        ({"toolkit": ""}, {"distribution": "Fedora"}, "train01 runs Fedora: the NVIDIA container toolkit can be"),
    ],
)
def test_a_host_that_cannot_is_refused(told: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    (problem,) = nvidia.trainyard_gpu_problems(found(**told), wanted(**settings), "train01")
    assert problem.startswith("train01")
    assert message in problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enabled": "maybe"}, "enabled is 'maybe'; write auto, true or false"),
        ({"mode": "legacy"}, "mode is 'legacy'; write 'runtime' or 'cdi'"),
        ({"cuda": 12.4}, 'cuda is 12.4; write the images\' CUDA release in quotes, e.g. "12.4"'),
        ({"cuda": "10.2"}, "cuda is '10.2', of which no lowest driver is known (known: 11.x, 12.x, 13.x)"),
        ({"version": "1.17.8"}, "version is '1.17.8'; write the packages' whole version, e.g. \"1.17.8-1\""),
    ],
)
def test_a_setting_that_cannot_work_is_refused_on_every_host(settings: dict[str, Any], message: str) -> None:
    for told in (found(), found(cards=[], driver=False), {}):
        (problem,) = nvidia.trainyard_gpu_problems(told, wanted(**settings), "train01")
        assert problem.startswith("train01: nvidia_container_toolkit_" + message)


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ({}, {"cuda": "12.4"}),
        ({"cards": []}, {"enabled": "True"}),  # a virtual machine may have no PCI bus
        ({"cards": [], "driver": False}, {}),
        ({"driver": False}, {"enabled": False}),
        ({"driver": False, "status": 0, "answer": []}, {"install_driver": True, "cuda": "12.4"}),
        ({"answer": [A100, "WARNING: infoROM is corrupted at gpu 0000:01:00.0"]}, {}),
        ({"engine": "25.0.0"}, {"mode": "cdi"}),
        ({"engine": ""}, {"mode": "cdi"}),  # the preflight comes before Docker
        ({}, {"version": "1.17.8-1", "distribution": "Fedora"}),
    ],
)
def test_a_host_that_can_passes(told: dict[str, Any], settings: dict[str, Any]) -> None:
    assert nvidia.trainyard_gpu_problems(found(**told), wanted(**settings), "train01") == []


# --- the role, as a node meets it ------------------------------------------------------------------------------------

SMI = """#!/bin/sh
# Stand-in for nvidia-smi.
case $1 in -L) cat {here}/list ;; *) cat {here}/answer ;; esac
"""
CTK = """#!/bin/sh
# Stand-in for nvidia-ctk.
case $1 in
  --version) printf 'NVIDIA Container Toolkit CLI version 1.17.8\\ncommit: f202b80a9b9d\\n' ;;
  cdi) echo "$*" >>{here}/calls; echo 'cdiVersion: 0.6.0' >"${{3#--output=}}" ;;
esac
"""
# Knows the GPUs, and CDI when daemon.json has it, only after a restart; `seen` is what a container sees.
DOCKER = """#!/bin/sh
# Stand-in for docker.
case $1 in
  version) cat {here}/engine ;;
  info) case $* in
      *CDISpecDirs*) [ -e {here}/restarted ] && echo '["/etc/cdi"]' || echo null ;;
      *) echo 'true 1' ;;
    esac ;;
  ps) cat {here}/experiments ;;
  run)
    echo "$*" >>{here}/calls
    [ -e {here}/restarted ] || {{ echo 'could not select device driver "" with capabilities: [[gpu]].' >&2; exit 125; }}
    cat {here}/seen ;;
esac
"""
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact: {distribution: Debian, architecture: x86_64, service_mgr: none, cacheable: true}
    - ansible.builtin.include_role: {name: nvidia_container_toolkit}
    - ansible.builtin.debug: {msg: "GPUS {{ nvidia_container_toolkit_gpus | to_json }}"}
"""


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with this machine's commands, without those of a driver, a toolkit and Docker that it may have."""
    folder = tmp_path_factory.mktemp("system")
    for place in os.environ["PATH"].split(os.pathsep):
        for command in Path(place).glob("*"):
            link = folder / command.name
            if not command.name.startswith(("nvidia-", "docker")) and not link.is_symlink():
                link.symlink_to(command)
    return folder


class Node:
    """A host of stand-ins; its roles are copies, in which Docker's reload and restart are only noted."""

    def __init__(self, here: Path, system: Path) -> None:
        self.here = here
        self.path = f"{here}/bin{os.pathsep}{system}"
        self.variables: dict[str, Any] = {
            "__nvidia_container_toolkit_pci": str(here / "pci"),
            "__nvidia_container_toolkit_daemon": str(here / "etc/daemon.json"),
            "__nvidia_container_toolkit_cdi": str(here / "cdi/nvidia.yaml"),
            "__nvidia_container_toolkit_checked": str(here / "etc/checked.json"),
            "__docker_engine_settings_file": str(here / "etc/daemon.json"),
        }
        for folder in ("bin", "pci", "etc"):
            (here / folder).mkdir()
        for name, text in {"list": LIST, "seen": LIST, "answer": f"{A100}\n{T4}\n", "engine": "28.3.0\n"}.items():
            (here / name).write_text(text)
        (here / "experiments").touch()
        self.command("docker", DOCKER)
        self.copy_roles()
        (here / "play.yml").write_text(PLAY)

    def copy_roles(self) -> None:
        for name in (ROLE, "docker_engine"):
            shutil.copytree(ROOT / "ansible/roles" / name, self.here / "roles" / name)
        engine = self.here / "roles/docker_engine"
        note = {"ansible.builtin.shell": f"echo NOTE >>{self.here}/calls; touch {self.here}/NOTE"}
        text = json.dumps([{"name": "Restart | Stand-in", **note}]).replace("NOTE", "restarted")
        # The real questions and refusals, then a note in place of the restart.
        asked = yaml.safe_load((engine / "tasks/restart.yml").read_text())
        kept = [task for task in asked if "Ask" in task["name"] or "Refuse" in task["name"]]
        assert len(kept) == 4
        (engine / "tasks/restart.yml").write_text(yaml.safe_dump(kept + json.loads(text)))
        text = json.dumps([{"name": "Reload Docker", **note}]).replace("NOTE", "reloaded")
        (engine / "handlers/main.yml").write_text(text)
        # Of its configuration only daemon.json: the daemon's environment is this machine's.
        first = yaml.safe_load((engine / "tasks/configure.yml").read_text())[0]
        assert first["name"] == "Configure | Write daemon.json"
        (engine / "tasks/configure.yml").write_text(yaml.safe_dump([first]))

    def command(self, name: str, text: str) -> None:
        script = self.here / "bin" / name
        script.write_text(text.format(here=self.here))
        script.chmod(0o755)

    def with_docker_engine(self) -> None:
        """Let docker_engine write its own settings first, as it does before the nodes are deployed."""
        first, *rest = yaml.safe_load(PLAY)[0]["tasks"]
        engine = {"ansible.builtin.include_role": {"name": "docker_engine", "tasks_from": "configure.yml"}}
        play = {"hosts": "all", "gather_facts": False, "tasks": [first, engine, *rest]}
        (self.here / "play.yml").write_text(yaml.safe_dump([play]))

    def card(self, address: str = "0000:01:00.0", vendor: str = "0x10de", kind: str = "0x030200") -> None:
        device = self.here / "pci" / address
        device.mkdir()
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")

    def toolkit(self) -> None:
        self.command("nvidia-ctk", CTK)
        self.command("nvidia-container-runtime-hook", "#!/bin/sh\n# Stand-in for the hook.\n")

    def run(self, *arguments: str, **settings: Any) -> tuple[int, str]:
        """Run the roles; give the exit status and all that was said, in one line."""
        variables = {**self.variables, **{f"{ROLE}_{name}": value for name, value in settings.items()}}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment.update(
            ANSIBLE_CONFIG=str(ROOT / "ansible/ansible.cfg"),
            ANSIBLE_ROLES_PATH=str(self.here / "roles"),
            ANSIBLE_NOCOLOR="1",
            COLUMNS="2000",
            PATH=self.path,
        )
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                *("-i", "train01,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"),
                *("-e", json.dumps(variables), *arguments, str(self.here / "play.yml")),
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).replace('\\"', '"').replace("''", "'").split())

    def calls(self) -> list[str]:
        """Give what the stand-ins were asked since the last time."""
        log = self.here / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split(" ")[0] for line in lines]

    @property
    def daemon(self) -> dict[str, Any]:
        return dict(json.loads((self.here / "etc/daemon.json").read_text()))


@pytest.fixture
def node(tmp_path: Path, system: Path) -> Node:
    if os.geteuid() != 0:
        pytest.skip("the roles write files that root owns")
    return Node(tmp_path, system)


@pytest.fixture
def gpu_node(node: Node) -> Node:
    node.card()
    node.command("nvidia-smi", SMI)
    node.toolkit()
    return node


def test_a_host_without_gpus_is_left_alone(node: Node) -> None:
    node.card("0000:00:02.0", vendor="0x8086")
    node.card("0000:02:00.1", kind="0x040300")  # the sound device of a card that a virtual machine has
    code, said = node.run()
    assert code == 0, said
    assert "GPUS []" in said
    assert "changed=0" in said
    assert node.calls() == []
    assert list((node.here / "etc").iterdir()) == []


def test_a_card_without_a_driver_is_refused_until_the_role_may_install_one(node: Node) -> None:
    node.card()
    code, said = node.run()
    assert code != 0
    assert "train01: an NVIDIA card is on the PCI bus (0000:01:00.0), but there is no driver" in said
    assert "nvidia_container_toolkit_install_driver: true" in said
    code, said = node.run("--check", install_driver=True)
    assert code == 0, said
    assert "train01: would install the driver nvidia-driver" in said
    assert "train01: would install nvidia-container-toolkit." in said


def test_an_old_driver_is_refused_before_anything_is_changed(gpu_node: Node) -> None:
    (gpu_node.here / "answer").write_text(A100.replace("535.183.01", "470.256.02") + "\n")
    code, said = gpu_node.run(cuda="12.4")
    assert code != 0
    assert "train01: the NVIDIA driver is 470.256.02, but CUDA 12.4" in said
    assert "needs 525.60.13 or newer" in said
    assert gpu_node.calls() == []
    assert list((gpu_node.here / "etc").iterdir()) == []


@pytest.mark.parametrize("mode", ["runtime", "cdi"])
def test_docker_gets_the_gpus_once_and_never_restarts_under_an_experiment(gpu_node: Node, mode: str) -> None:
    if mode == "runtime":
        gpu_node.with_docker_engine()
    (gpu_node.here / "etc/daemon.json").write_text(
        '{"runtimes": {"other": {"path": "/opt/other"}}, "dns": ["10.0.0.1"]}'
    )
    (gpu_node.here / "experiments").write_text("clearml-id-1\n")
    code, said = gpu_node.run(mode=mode, cuda="12.4")
    assert code != 0
    assert "train01: the daemon must restart for" in said
    assert "but experiments run in clearml-id-1" in said
    assert gpu_node.calls() == (["reloaded", "run"] if mode == "runtime" else ["reloaded", "cdi"])

    # Only a daemon that says that it does not know the toolkit is restarted; then the container is asked again.
    (gpu_node.here / "experiments").write_text("")
    code, said = gpu_node.run(mode=mode, cuda="12.4")
    assert code == 0, said
    assert f'"index": 1, "uuid": "{UUID}1", "name": "Tesla T4", "mig": false' in said
    assert gpu_node.calls() == (["run", "restarted", "run"] if mode == "runtime" else ["cdi", "restarted", "run"])
    daemon = gpu_node.daemon
    assert daemon["dns"] == ["10.0.0.1"]
    assert daemon["runtimes"]["other"] == {"path": "/opt/other"}
    if mode == "runtime":
        assert daemon["live-restore"] is True
        assert daemon["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
    else:
        assert daemon["features"] == {"cdi": True}
        assert (gpu_node.here / "cdi/nvidia.yaml").exists()

    code, said = gpu_node.run(mode=mode, cuda="12.4")
    assert code == 0, said
    assert "changed=0" in said
    assert gpu_node.calls() == []


def test_a_container_that_sees_other_gpus_is_refused(gpu_node: Node) -> None:
    theirs = {"path": "/usr/local/nvidia/toolkit/nvidia-container-runtime", "args": []}
    (gpu_node.here / "etc/daemon.json").write_text(json.dumps({"runtimes": {"nvidia": theirs}}))
    (gpu_node.here / "restarted").touch()
    (gpu_node.here / "seen").write_text(LIST.splitlines()[0])
    code, said = gpu_node.run()
    assert code != 0
    assert (
        "train01: a container does not see the host's GPUs. docker run --gpus all trainyard/perception:3.11-cpu" in said
    )
    assert f"listed {UUID}0; the host has {UUID}0, {UUID}1." in said
    (gpu_node.here / "seen").write_text(LIST)
    code, said = gpu_node.run()
    assert code == 0, said
    assert gpu_node.calls() == ["run", "run"]
    assert gpu_node.daemon == {"runtimes": {"nvidia": theirs}}, "what somebody registered stays"


def test_a_check_changes_nothing(gpu_node: Node) -> None:
    code, said = gpu_node.run("--check", mode="cdi", version="1.17.8-1")
    assert code == 0, said
    assert "changed=0" not in said
    assert "would install" not in said
    assert gpu_node.calls() == []
    assert list((gpu_node.here / "etc").iterdir()) == []
    assert not (gpu_node.here / "cdi").exists()


def test_another_version_of_the_toolkit_would_be_installed(gpu_node: Node) -> None:
    code, said = gpu_node.run("--check", version="1.18.0-1")
    assert code == 0, said
    names = (
        "nvidia-container-toolkit",
        "nvidia-container-toolkit-base",
        "libnvidia-container-tools",
        "libnvidia-container1",
    )
    assert "train01: would install " + ", ".join(f"{name}=1.18.0-1" for name in names) in said
