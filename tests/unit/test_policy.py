"""The node's wall: what Docker may be told to run for an experiment (agents/policy.py)."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("policy", ROOT / "agents/policy.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


policy = load()

DEFAULTS = yaml.safe_load((ROOT / "ansible/roles/clearml_agent/defaults/main.yml").read_text())
FILTERS = tuple(DEFAULTS["clearml_agent_docker_args_filters"])
FORBIDDEN = frozenset(DEFAULTS["clearml_agent_forbidden_docker_args"])
PROTECTED = frozenset({"privileged", "security-opt", "network", "ipc", "memory", "memory-swap", "cpus"})
RULES = policy.Rules(filters=FILTERS, forbidden=FORBIDDEN, protected=PROTECTED)
IMAGE = "trainyard/perception:3.11-cpu"
TASK = "0123456789abcdef0123456789abcdef"


def own(image: str = IMAGE, *extra: str) -> list[str]:
    """Return what a worker of GPU 1 runs for an experiment that asks for nothing."""
    words = ["docker", "run", "-t", "--gpus", '"device=1"', "--network=bridge", "-v", "/data:/data:ro"]
    words += [
        "--mount",
        "type=bind,source=/cache,target=/cache",
        "--group-add",
        "2000",
        "-e",
        "HTTP_PROXY=http://proxy:1",
    ]
    words += ["--memory=60g", "--shm-size=16g", *extra, "-l", "clearml-worker-id=node-2:gpu1"]
    words += ["-e", "NVIDIA_VISIBLE_DEVICES=all", "-e", "CLEARML_WORKER_ID=node-2:gpu1"]
    words += ["-e", f"CLEARML_DOCKER_IMAGE={image}", "-e", f"CLEARML_TASK_ID={TASK}"]
    words += ["--name", f"clearml-id-{TASK}-abcdefgh", "-v", "/c/.clearml_agent.cfg:/tmp/clearml.conf"]
    return [*words, image, "bash", "-c", "echo ; $LOCAL_PYTHON -u -m clearml_agent execute --id 0"]


def refusal(words: Sequence[str], image: str = IMAGE, rules: object = RULES, extra: Sequence[str] = ()) -> str | None:
    """Return what the policy says of an experiment with these arguments."""
    base = own(image, *extra)
    answer = policy.refusal(policy.command_of(base, words), base, image, rules)
    return None if answer is None else str(answer)


NOT_ALLOWED = "which this site does not allow"
NOT_READ = "not what docker run reads"
FOR_IMAGE = "for the image, not"
OWN_VARIABLE = "the site sets this variable itself"
RESERVED = "this variable is the site's"
NO_VALUE = "a name without a value takes the worker's own variable"
TEMPLATE = "fills in no ClearML templates"

ALLOWED = [
    "",
    "-e A=1",
    "-eA=1",
    "-e=A=1",
    "--env A=1",
    "--env=A=1",
    "-e A=1 -e B=2 --env C=3",
    "-e A=",
    "-e A==",
    "-e 'A=a b  c'",
    "-e A=-v",
    "-e A=--privileged",
    "-e 'A=--volume=/:/host'",
    "-e A=$HOME",
    "-e 'A=$(id)'",
    "-e 'A=`id`'",
    "-e 'A=x;reboot'",
    "-e A=é",
    "-e 'A=first\nsecond'",
    "-e a.b-c=1",
    "-e PYTHONHASHSEED=0",
    "-e CUDA_VISIBLE_DEVICES=0",
    "-e CUDA_LAUNCH_BLOCKING=1",
    "-e HIP_VISIBLE_DEVICES=0",
    "-e NVIDIA_TF32_OVERRIDE=0",
    "-e NVIDIA_DRIVER_CAPABILITIES=compute,video",
    "-e NCCL_DEBUG=INFO",
    "-e OMP_NUM_THREADS=4 --shm-size=8g",
    "-e BUILDER=ldconfig",
    "--shm-size=256m",
    "--shm-size 256m",
    "--shm-size=1.5g",
    "--shm-size=64GB",
    "--shm-size=1073741824",
    "--ipc=none",
    "--ipc=private",
    "--ipc=shareable",
    "--ipc none",
    "--ulimit=nofile=65536",
    "--ulimit nofile=65536:65536",
    "--ulimit=memlock=-1",
    "--ulimit=memlock=-1:-1 --ulimit=stack=67108864",
]

# What an experiment asks for, and words of the answer.
REFUSED = [
    # The host's files.
    ("-v /:/host", "-v=/:/host", NOT_ALLOWED),
    ("-v/:/host", "-v=/:/host", NOT_ALLOWED),
    ("-v=/:/host", "-v=/:/host", NOT_ALLOWED),
    ("--volume /:/host", "--volume=/:/host", NOT_ALLOWED),
    ("--volume=/:/host", "--volume=/:/host", NOT_ALLOWED),
    ("-itv/:/host", "-i -t -v=/:/host", NOT_ALLOWED),
    ("-tv /:/host", "-t -v=/:/host", NOT_ALLOWED),
    ("-itv=/:/host", "-v=/:/host", NOT_ALLOWED),
    ("-e A=1 -v /:/host", "asks for -v=/:/host,", NOT_ALLOWED),
    ("-v /:/host -e A=1", "asks for -v=/:/host,", NOT_ALLOWED),
    ("--mount type=bind,source=/,target=/host", "--mount=", NOT_ALLOWED),
    ("--mount=type=bind,source=/,target=/host", "--mount=", NOT_ALLOWED),
    ("--volumes-from other", "--volumes-from=other", NOT_ALLOWED),
    ("--volume-driver local", "--volume-driver=local", NOT_ALLOWED),
    ("--tmpfs /tmp:exec", "--tmpfs", NOT_ALLOWED),
    ("-v /var/run/docker.sock:/var/run/docker.sock", "docker.sock", NOT_ALLOWED),
    ("--use-api-socket", "--use-api-socket", NOT_ALLOWED),
    ("--device /dev/sda", "--device=/dev/sda", NOT_ALLOWED),
    ("--device=/dev/nvidia0", "--device", NOT_ALLOWED),
    ("--device-cgroup-rule 'a *:* rwm'", "--device-cgroup-rule", NOT_ALLOWED),
    ("--device-read-bps /dev/sda:1mb", "--device-read-bps", NOT_ALLOWED),
    ("--storage-opt size=120G", "--storage-opt", NOT_ALLOWED),
    # Privileges.
    ("--privileged", "--privileged", NOT_ALLOWED),
    ("--privileged=true", "--privileged=true", NOT_ALLOWED),
    ("--privileged=1", "--privileged=1", NOT_ALLOWED),
    ("--privileged=false", "--privileged=false", NOT_ALLOWED),
    ("--privileged=T", "--privileged=T", NOT_ALLOWED),
    ("--cap-add ALL", "--cap-add=ALL", NOT_ALLOWED),
    ("--cap-add=SYS_ADMIN", "--cap-add", NOT_ALLOWED),
    ("--security-opt seccomp=unconfined", "--security-opt", NOT_ALLOWED),
    ("--security-opt=apparmor=unconfined", "--security-opt", NOT_ALLOWED),
    ("--userns host", "--userns=host", NOT_ALLOWED),
    ("-u 0", "-u=0", NOT_ALLOWED),
    ("-u0:0", "-u=0:0", NOT_ALLOWED),
    ("--user=root", "--user=root", NOT_ALLOWED),
    ("--group-add docker", "--group-add=docker", NOT_ALLOWED),
    ("--sysctl kernel.core_pattern=x", "--sysctl", NOT_ALLOWED),
    ("--runtime runc", "--runtime", NOT_ALLOWED),
    ("--isolation process", "--isolation", NOT_ALLOWED),
    ("--annotation a=b", "--annotation", NOT_ALLOWED),
    # The host's namespaces.
    ("--pid=host", "--pid=host", NOT_ALLOWED),
    ("--pid host", "--pid=host", NOT_ALLOWED),
    ("--pid container:other", "--pid", NOT_ALLOWED),
    ("--ipc=host", "--ipc=host", NOT_ALLOWED),
    ("--ipc host", "--ipc=host", NOT_ALLOWED),
    ("--ipc=container:other", "--ipc", NOT_ALLOWED),
    ("--ipc=", "--ipc=", NOT_ALLOWED),
    ("--ipc=nonesuch", "--ipc=nonesuch", NOT_ALLOWED),
    ("'--ipc=none\n'", "--ipc", NOT_ALLOWED),
    ("--ipc=none --ipc=host", "asks for --ipc=host,", NOT_ALLOWED),
    ("--ipc=host --ipc=none", "asks for --ipc=host,", NOT_ALLOWED),
    ("--uts host", "--uts", NOT_ALLOWED),
    ("--cgroupns host", "--cgroupns", NOT_ALLOWED),
    ("--cgroup-parent /", "--cgroup-parent", NOT_ALLOWED),
    ("--network host", "--network=host", NOT_ALLOWED),
    ("--network=host", "--network=host", NOT_ALLOWED),
    ("--net host", "--net=host", NOT_ALLOWED),
    ("--net=host", "--net=host", NOT_ALLOWED),
    ("--network container:other", "--network", NOT_ALLOWED),
    ("--net-alias db", "--net-alias", NOT_ALLOWED),
    ("--network-alias db", "--network-alias", NOT_ALLOWED),
    ("-p 22:22", "-p=22:22", NOT_ALLOWED),
    ("-p22:22", "-p=22:22", NOT_ALLOWED),
    ("--publish 22:22", "--publish", NOT_ALLOWED),
    ("-P", "asks for -P,", NOT_ALLOWED),
    ("--publish-all", "--publish-all", NOT_ALLOWED),
    ("--expose 22", "--expose", NOT_ALLOWED),
    ("--add-host api:10.0.0.1", "--add-host", NOT_ALLOWED),
    ("--dns 10.0.0.1", "--dns", NOT_ALLOWED),
    ("--dns-opt ndots:1", "--dns-opt", NOT_ALLOWED),
    ("-h api", "-h=api", NOT_ALLOWED),
    ("--hostname api", "--hostname", NOT_ALLOWED),
    ("--domainname x", "--domainname", NOT_ALLOWED),
    ("--ip 10.0.0.1", "--ip", NOT_ALLOWED),
    ("--ip6 ::1", "--ip6", NOT_ALLOWED),
    ("--link other", "--link", NOT_ALLOWED),
    ("--mac-address 02:00:00:00:00:01", "--mac-address", NOT_ALLOWED),
    # Other people's share of the node.
    ("--gpus all", "--gpus=all", NOT_ALLOWED),
    ("--gpus=all", "--gpus=all", NOT_ALLOWED),
    ("-m 500g", "-m=500g", NOT_ALLOWED),
    ("--memory=500g", "--memory", NOT_ALLOWED),
    ("--memory-swap -1", "--memory-swap=-1", NOT_ALLOWED),
    ("--memory-reservation 1g", "--memory-reservation", NOT_ALLOWED),
    ("--cpus 64", "--cpus", NOT_ALLOWED),
    ("-c 4096", "-c=4096", NOT_ALLOWED),
    ("--cpuset-cpus 0", "--cpuset-cpus", NOT_ALLOWED),
    ("--cpu-rt-runtime 1", "--cpu-rt-runtime", NOT_ALLOWED),
    ("--oom-score-adj -1000", "--oom-score-adj=-1000", NOT_ALLOWED),
    ("--oom-kill-disable", "--oom-kill-disable", NOT_ALLOWED),
    ("--pids-limit -1", "--pids-limit", NOT_ALLOWED),
    ("--blkio-weight 1000", "--blkio-weight", NOT_ALLOWED),
    # What the worker relies on.
    ("--rm", "asks for --rm,", NOT_ALLOWED),
    ("--rm=false", "--rm=false", NOT_ALLOWED),
    ("-d", "asks for -d,", NOT_ALLOWED),
    ("--detach", "--detach", NOT_ALLOWED),
    ("--name other", "--name", NOT_ALLOWED),
    ("--restart always", "--restart", NOT_ALLOWED),
    ("--entrypoint sh", "--entrypoint", NOT_ALLOWED),
    ("--entrypoint=/bin/sh", "--entrypoint", NOT_ALLOWED),
    ("-l clearml-worker-id=other", "-l", NOT_ALLOWED),
    ("--label=a=b", "--label", NOT_ALLOWED),
    ("--label-file /etc/clearml/clearml.conf", "--label-file", NOT_ALLOWED),
    ("--cidfile /root/.clearml/x", "--cidfile", NOT_ALLOWED),
    ("--env-file /etc/clearml/clearml.conf", "--env-file", NOT_ALLOWED),
    ("--env-file=/proc/self/environ", "--env-file", NOT_ALLOWED),
    ("--pull always", "--pull", NOT_ALLOWED),
    ("--platform linux/arm64", "--platform", NOT_ALLOWED),
    ("--disable-content-trust", "--disable-content-trust", NOT_ALLOWED),
    ("--log-driver none", "--log-driver", NOT_ALLOWED),
    ("--log-opt max-size=1", "--log-opt", NOT_ALLOWED),
    ("--no-healthcheck", "--no-healthcheck", NOT_ALLOWED),
    ("--health-cmd reboot", "--health-cmd", NOT_ALLOWED),
    ("--stop-signal KILL", "--stop-signal", NOT_ALLOWED),
    ("--stop-timeout 99999", "--stop-timeout", NOT_ALLOWED),
    ("--init", "--init", NOT_ALLOWED),
    ("--read-only", "--read-only", NOT_ALLOWED),
    ("-w /", "-w=/", NOT_ALLOWED),
    ("--workdir /", "--workdir", NOT_ALLOWED),
    ("-t", "asks for -t,", NOT_ALLOWED),
    ("-it", "asks for -i -t,", NOT_ALLOWED),
    ("-a stdin", "-a=stdin", NOT_ALLOWED),
    ("--sig-proxy=false", "--sig-proxy=false", NOT_ALLOWED),
    ("--help", "asks for --help,", NOT_ALLOWED),
    ("-q", "asks for -q,", NOT_ALLOWED),
    # Not options, or not whole.
    ("--privileged false", FOR_IMAGE, "'false'"),
    ("--init=maybe", NOT_READ, "takes true or false"),
    ("--volum=/:/host", NOT_READ, "--volum is not an option"),
    ("--Volume=/:/host", NOT_READ, "--Volume"),
    ("--nonsense", NOT_READ, "--nonsense"),
    ("-Z", NOT_READ, "-Z"),
    ("-eitv", NO_VALUE, "-e itv"),
    ("-H tcp://10.0.0.1:2375", NOT_READ, "-H"),
    ("--host tcp://10.0.0.1:2375", NOT_READ, "--host"),
    ("---env=A=1", NOT_READ, "---env"),
    ("--=x", NOT_READ, "--"),
    ("--", NOT_READ, "-- ends"),
    ("-- -v /:/host alpine", NOT_READ, "-- ends"),
    ("-", FOR_IMAGE, "'-'"),
    ("''", FOR_IMAGE, "''"),
    ("-e", FOR_IMAGE, "'bash'"),
    ("--env", FOR_IMAGE, "'bash'"),
    ("-e A=1 --shm-size", FOR_IMAGE, "'bash'"),
    ("alpine", FOR_IMAGE, "'alpine'"),
    ("alpine sh -c id", FOR_IMAGE, "'alpine'"),
    ("-e A=1 B=2", FOR_IMAGE, "'B=2'"),
    ("-e A=1 -- alpine", NOT_READ, "-- ends"),
    ("—env=A=1", FOR_IMAGE),
    ("'--shm-size=1g\n'", NOT_ALLOWED),
    ("'--shm-size= 1g'", "write a size"),
    ("--shm-size=-1", "write a size"),
    ("--shm-size=0x10", "write a size"),
    ("--shm-size=1e9", "write a size"),
    ("--ulimit=nofile=0x10", "write a name with its limits"),
    ("--ulimit=nofile=1:2:3", "write a name with its limits"),
    ("--ulimit=NOFILE=1", "write a name with its limits"),
    # Real-time processes of an experiment would run before the worker's and the system's.
    ("--ulimit=rtprio=99", "before everything else on the node"),
    ("--ulimit rtprio=99:99", "before everything else on the node"),
    ("--ulimit=nice=40", "before everything else on the node"),
    ("--ulimit=rttime=-1:-1", "before everything else on the node"),
    (f"-e A=1 {IMAGE}", FOR_IMAGE, IMAGE),
    (f"{IMAGE} bash -c id", FOR_IMAGE, IMAGE),
    # Variables.
    ("-e -v -e /:/host", NO_VALUE, "-e -v"),
    ("-e --rm -e --volume=/:/host", NO_VALUE, "-e --rm", "name of a variable"),
    ("-e --rm --volume=/:/host", NOT_ALLOWED, "--volume=/:/host", NO_VALUE),
    ("-e A", NO_VALUE, "-e A"),
    ("-eA", NO_VALUE),
    ("--env=HOME", NO_VALUE, "--env HOME"),
    ("--env CLEARML_API_SECRET_KEY", NO_VALUE),
    ("-e ''", NO_VALUE),
    ("-e =x", "not the name of a variable"),
    ("-e=", "not the name of a variable"),
    ("-e 'A B=1'", "not the name of a variable"),
    ("-e '-v=/:/host'", "not the name of a variable"),
    ("-e 1A=1", "not the name of a variable"),
    ("-e NVIDIA_VISIBLE_DEVICES=all", OWN_VARIABLE, "NVIDIA_VISIBLE_DEVICES"),
    ("-eNVIDIA_VISIBLE_DEVICES=all", OWN_VARIABLE),
    ("--env=NVIDIA_VISIBLE_DEVICES=0,1", OWN_VARIABLE),
    ("-e NVIDIA_MIG_CONFIG_DEVICES=all", RESERVED),
    ("-e NVIDIA_IMEX_CHANNELS=0", RESERVED),
    ("-e nvidia_visible_devices=all", RESERVED),
    ("-e HABANA_VISIBLE_DEVICES=all", RESERVED),
    ("-e ASCEND_VISIBLE_DEVICES=0", RESERVED),
    ("-e DOCKER_RESOURCE_GPU=all", RESERVED),
    ("-e DOCKER_HOST=tcp://10.0.0.1", RESERVED),
    ("-e CLEARML_API_SECRET_KEY=x", RESERVED),
    ("-e CLEARML_AUTH_TOKEN=x", RESERVED),
    ("-e CLEARML_TASK_ID=x", OWN_VARIABLE),
    ("-e CLEARML_WORKER_ID=x", OWN_VARIABLE),
    ("-e TRAINS_CONFIG_FILE=/x", RESERVED),
    ("-e TRAINYARD_GPUS=all", RESERVED),
    ("-e LD_PRELOAD=./x.so", RESERVED),
    ("-e LD_LIBRARY_PATH=/x", RESERVED),
    ("-e LD_AUDIT=./x.so", RESERVED),
    ("-e GLIBC_TUNABLES=x", RESERVED),
    ("-e HTTP_PROXY=http://10.0.0.9:1", OWN_VARIABLE),
    ("-e A=1 -e LD_PRELOAD=x -e B=2", RESERVED, "LD_PRELOAD"),
    # Templates.
    ("-e ${CLEARML_TASK.name}", TEMPLATE),
    ("-e ${CLEARML_TASK.name} -e ${CLEARML_TASK.hyperparams.Args.b.value}", TEMPLATE, "hyperparams"),
    ("-e X=${CLEARML_CONFIG.api.credentials.access_key}", TEMPLATE),
    ("-e X=$CLEARML_TASK.id", TEMPLATE),
    ("-e X=${clearml_config.api}", TEMPLATE),
    ("--shm-size=${CLEARML_TASK.comment}", TEMPLATE),
    ("--ulimit=${CLEARML_CONFIG.api.credentials.secret_key}", TEMPLATE),
    ("${CLEARML_TASK.name}", FOR_IMAGE),
    # Values.
    ("--shm-size=lots", "write a size"),
    ("--shm-size=-1g", "write a size"),
    ("--shm-size=", "write a size"),
    ("--shm-size '1 g'", "write a size"),
    ("--shm-size -v", "write a size"),
    ("--ulimit=nofile", "with its limits"),
    ("--ulimit -v", "with its limits"),
    ("-e 'A=\0'", "zero byte"),
]


@pytest.mark.parametrize("line", ALLOWED)
def test_what_is_allowed_runs(line: str) -> None:
    assert refusal(shlex.split(line)) is None


@pytest.mark.parametrize(("line", "words"), [(line, words) for line, *words in REFUSED])
def test_what_is_not_allowed_is_refused_with_the_reason(line: str, words: list[str]) -> None:
    answer = refusal(shlex.split(line))
    assert answer
    assert [word for word in words if word not in answer] == []
    assert answer.isprintable(), "one line for the console"


def test_the_table_is_long_enough() -> None:
    lines = [*ALLOWED, *(line for line, *_ in REFUSED)]
    assert len(set(lines)) == len(lines) >= 150


IMAGES = ["ubuntu", "ubuntu:22.04", "nvidia/cuda:12.4.1-runtime", "registry.example.com:5000/team/train:1.0"]
IMAGES += ["localhost/x", "10.0.0.1:5000/a/b", f"team/train@sha256:{'0' * 64}", f"r.example.com/t:1@sha256:{'a' * 64}"]
IMAGES += ["a__b/c--d:_x", "[2001:db8::1]:5000/a/b"]
NO_IMAGES = [
    "--volume=/:/host",
    "-v",
    "--privileged",
    "-",
    "--",
    "",
    " ",
    "ubuntu ",
    " ubuntu",
    "ubuntu\n",
    "ubuntu bash",
]
NO_IMAGES += [
    "ubuntu --privileged",
    "ubuntu\t-v",
    "Ubuntu",
    "team/Train",
    "ubuntu:",
    "ubuntu:-x",
    "ubuntu:a b",
    ":latest",
]
NO_IMAGES += [
    "http://registry/ubuntu",
    "registry//ubuntu",
    "/ubuntu",
    "ubuntu/",
    "../ubuntu",
    "a/../b",
    "ubuntu:tag:tag",
]
NO_IMAGES += [
    "ubuntu@sha256:0",
    f"ubuntu@sha256:{'g' * 64}",
    f"ubuntu@md5:{'0' * 32}",
    "0" * 64,
    "a" * 300,
    "u" + ":" + "a" * 129,
]
NO_IMAGES += [
    "ubuntü",
    "ubuntu:\uff12",
    "ubuntu\u200b",
    "ubuntu\x00",
    "ubuntu;id",
    "$(id)",
    "${CLEARML_TASK.name}",
    "a:b@c",
    "x" * 100_000,
]
NO_IMAGES += ["--volume=/:/host\n", "-vx/y", "_x", "a___b", "a/_b", "user:pass@host/x"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_one_reference(image: str) -> None:
    assert policy.image_problem(image) is None
    assert refusal([], image) is None


@pytest.mark.parametrize("image", NO_IMAGES, ids=lambda image: ascii(image)[:40])
def test_what_is_not_one_image_is_refused(image: str) -> None:
    answer = refusal([], image)
    assert answer
    assert "image" in answer
    assert "registry.example.com/team/train:1.0" in answer
    assert answer.isprintable()
    assert len(answer) < 800


@pytest.mark.parametrize("image", [None, 5, ["ubuntu"], b"ubuntu"])
def test_an_image_is_a_text(image: object) -> None:
    assert policy.image_problem(image)


# ---------------------------------------------------------------- what a site allows


@pytest.mark.parametrize(
    ("pattern", "line", "allowed"),
    [
        ("^--network(=.*)?$", "--network-alias=x", False),
        ("^--env", "--env-file=/x", False),
        ("--env", "--env=A=1", True),
        ("^--env.*$", "--env-file=/x", False),
        (".*", "--env-file=/x", False),
        (".*", "--rm", False),
        (".*", "--gpus all", False),
        (".*", "--privileged", False),
        (".*", "-e NVIDIA_VISIBLE_DEVICES=all", False),
        ("^--cap-add=SYS_PTRACE$", "--cap-add=SYS_PTRACE", True),
        ("^--cap-add=SYS_PTRACE$", "--cap-add SYS_PTRACE", True),
        ("^--cap-add=SYS_PTRACE$", "--cap-add=SYS_ADMIN", False),
        ("^--cap-add=SYS_PTRACE$", "--cap-add=SYS_PTRACE --cap-add=SYS_ADMIN", False),
        ("^-v$", "-v /data/x:/x", True),
        ("^-v$", "-v/data/x:/x", True),
        ("^-v$", "--volume=/data/x:/x", False),
        ("^-v=/data/[a-z/]*:", "-v /data/a:/x", True),
        ("^-v=/data/", "-v /data/../etc:/x", False),
        ("^--mount=type=bind,source=/data/", "--mount type=bind,source=/data/../etc,target=/x", False),
        ("^--mount=type=bind,src=/data/", "--mount=type=bind,src=/data/a,dst=/x", True),
        ("^--mount=type=bind,src=/data/", "--mount=type=bind,src=/data/a,dst=/x,readonly", True),
        # Docker takes the last of two, in any case; and its reader of CSV takes quotes away.
        ("^--mount=type=bind,src=/data/", "--mount=type=bind,src=/data/a,src=/,dst=/x", False),
        ("^--mount=type=bind,src=/data/", "--mount=type=bind,src=/data/a,source=/,dst=/x", False),
        ("^--mount=type=bind,src=/data/", "--mount=type=bind,src=/data/a,SOURCE=/,dst=/x", False),
        ("^--mount=type=bind,src=/data/", "'--mount=type=bind,src=/data/a,\"src=/\",dst=/x'", False),
        ("^--mount=type=bind,src=/data/", "'--mount=type=bind,src=/data/a,\"src=/data/..\",dst=/x'", False),
        ("^--mount=type=volume,", "--mount=type=volume,type=bind,src=/,dst=/x", False),
        ("^--mount=type=volume,", "--mount=type=volume,src=a,dst=/x,volume-driver=local,volume-opt=device=/", False),
        ("^--mount=type=volume,", "--mount=type=volume,src=a,dst=/x,Volume-Opt=o=bind", False),
        ("^--mount=type=volume,", "--mount=type=volume,src=a,dst=/x", True),
        ("^--ulimit=memlock", "--ulimit=memlock=-1", True),
        ("^--init$", "--init", True),
        ("^--init$", "--init=true", True),
        ("^--init=false$", "--init=false", True),
        ("^--init=false$", "--init", False),
        ("^--label$", "--label team=radar", True),
        ("^--label$", "--label clearml-worker-id=other", False),
        ("^--label$", "--label trainyard.node=other", False),
        ("^--network=mesh$", "--network=mesh", False),  # the worker has --network=bridge
        ("^--net=mesh$", "--net=mesh", False),
        ("^--ipc=host$", "--ipc=host", True),
        ("^--pids-limit=100$", "--pids-limit 100", True),
    ],
)
def test_a_pattern_allows_what_it_names_and_no_more(pattern: str, line: str, allowed: bool) -> None:
    rules = policy.Rules(filters=(pattern,), forbidden=FORBIDDEN, protected=PROTECTED)
    assert (refusal(shlex.split(line), rules=rules) is None) is allowed


@pytest.mark.parametrize("name", ["v", "-v", "volume", "--volume"])
@pytest.mark.parametrize("line", ["-v /:/host", "--volume=/:/host", "-iv/:/host"])
def test_a_forbidden_option_is_forbidden_in_every_spelling(name: str, line: str) -> None:
    rules = policy.Rules(forbidden=frozenset({name}))
    assert "/:/host" in (refusal(shlex.split(line), rules=rules) or "")


def test_no_patterns_allow_everything_but_what_is_forbidden_and_two_images() -> None:
    rules = policy.Rules(forbidden=FORBIDDEN, protected=PROTECTED)
    assert refusal(shlex.split("-v /:/host --pid=host --rm -e NVIDIA_VISIBLE_DEVICES=all"), rules=rules) is None
    for line in (
        "--privileged",
        "--entrypoint=sh",
        "--network=host",
        "alpine",
        "-e",
        "--nonsense",
        "-e A=${CLEARML_TASK.id}",
    ):
        assert refusal(shlex.split(line), rules=rules), line
    assert refusal([], "ubuntu --privileged", rules=rules)


def test_what_the_site_gives_to_everybody_may_be_asked_for() -> None:
    rules = policy.Rules(FILTERS, FORBIDDEN, PROTECTED, given=("--init", "-v", "/scratch:/scratch"))
    assert refusal(["--init", "--volume=/scratch:/scratch"], rules=rules) is None
    assert refusal(["-v", "/scratch:/other"], rules=rules)


def test_the_worker_s_own_word_a_second_time_is_the_experiment_s() -> None:
    assert refusal(["-v", "/data:/data:ro"])
    assert refusal(["--gpus", '"device=1"'])
    assert refusal([], extra=["--rm"]) is None
    assert refusal(["--rm"], extra=["--rm"])


def test_a_command_that_lost_or_changed_words_of_the_worker_is_refused() -> None:
    base = own()
    for index in range(2, len(base)):
        lost = [*base[:index], *base[index + 1 :]]
        assert policy.refusal(lost, base, IMAGE, RULES), base[index]
    for changed in ([*base[:-4], "alpine", *base[-3:]], [*base, "more"], ["docker", "exec", *base[2:]], ["run"], []):
        assert policy.refusal(changed, base, IMAGE, RULES)
    assert policy.refusal(base, [], IMAGE, RULES), "the worker made no command"


@pytest.mark.parametrize(
    ("word", "reason"),
    [("a\0b", "zero byte"), ("\ud800", "half of one"), ("x" * 131072, "below 128 KiB")],
)
def test_what_no_program_can_be_started_with_is_refused(word: str, reason: str) -> None:
    assert reason in (refusal(["-e", f"A={word}"]) or "")
    base = [*own()[:-1], f"{word} ; clearml_agent"]  # a setup script
    assert reason in (policy.refusal(base, base, IMAGE, RULES) or "")


def test_a_command_that_is_too_long_for_the_system_is_refused() -> None:
    assert "below 1 MiB" in (refusal(["-e", f"A={'x' * 60_000}"] * 20) or "")
    assert refusal(["-e", f"A={'x' * 60_000}"] * 10) is None


def test_site_arguments_that_cannot_be_read_are_named_as_such() -> None:
    assert "site's own arguments" in (refusal([], extra=["--nonsense"]) or "")


def test_secrets_in_variables_are_not_repeated() -> None:
    assert "hunter2" not in (refusal(["-e", "CLEARML_API_SECRET_KEY=hunter2"]) or "hunter2")


def test_arguments_are_split_as_clearml_agent_splits_them() -> None:
    assert policy.split("-e 'A=a b' --shm-size=1g") == ["-e", "A=a b", "--shm-size=1g"]
    for text in ("-e 'A=1", '-e "', "-e A=\\"):
        with pytest.raises(policy.MalformedError):
            policy.split(text)


# ---------------------------------------------------------------- lines made of Docker's own options

# `docker run --help` of Docker 26.1.5, that of the agent's image, and four that are hidden or newer: with a type, they
# take a value.
HELP = """
--add-host list | --annotation map | -a, --attach list | --blkio-weight uint16 | --blkio-weight-device list
--cap-add list | --cap-drop list | --cgroup-parent string | --cgroupns string | --cidfile string | --cpu-count int
--cpu-percent int
--cpu-period int | --cpu-quota int | --cpu-rt-period int | --cpu-rt-runtime int | -c, --cpu-shares int | --cpus decimal
--cpuset-cpus string | --cpuset-mems string | -d, --detach | --detach-keys string | --device list
--device-cgroup-rule list | --device-read-bps list | --device-read-iops list | --device-write-bps list
--device-write-iops list | --disable-content-trust | --dns list | --dns-option list | --dns-search list
--domainname string | --entrypoint string | -e, --env list | --env-file list | --expose list | --gpus gpu-request
--group-add list | --health-cmd string | --health-interval duration | --health-retries int
--health-start-interval duration | --health-start-period duration | --health-timeout duration | --help
-h, --hostname string | --init | -i, --interactive | --io-maxbandwidth bytes | --io-maxiops uint | --ip string
--ip6 string | --ipc string | --isolation string | --kernel-memory bytes | -l, --label list | --label-file list
--link list | --link-local-ip list | --log-driver string | --log-opt list | --mac-address string | -m, --memory bytes
--memory-reservation bytes | --memory-swap bytes | --memory-swappiness int | --mount mount | --name string
--network network | --network-alias list | --no-healthcheck | --oom-kill-disable | --oom-score-adj int | --pid string
--pids-limit int | --platform string | --privileged | -p, --publish list | -P, --publish-all | --pull string
-q, --quiet | --read-only | --restart string | --rm | --runtime string | --security-opt list | --shm-size bytes
--sig-proxy | --stop-signal string | --stop-timeout int | --storage-opt list | --sysctl map | --tmpfs list | -t, --tty
--ulimit ulimit | -u, --user string | --userns string | --uts string | -v, --volume list | --volume-driver string
--volumes-from list | -w, --workdir string | --net network | --net-alias list | --dns-opt list | --use-api-socket
"""
OPTIONS = [
    (match[1] or "", match[2], bool(match[3]))
    for entry in re.split(r"[|\n]", HELP)
    if (match := re.fullmatch(r"\s*(?:-(\w), )?--([\w-]+)(?: (\S+))?\s*", entry))
]
LETTERS_OFF = [letter for letter, _, valued in OPTIONS if letter and not valued]
# What the default filters let through, and good values of it.
OPEN = {"env", "shm-size", "ulimit", "ipc"}
CLOSED = [option for option in OPTIONS if option[1] not in OPEN]

values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["", "-v", "--rm", "/:/host", "=", "true", "host", IMAGE, "--", "-e", "A=1", "\n", "'", '"', "${CLEARML_TASK.name}"]
)


@st.composite
def good(draw: st.DrawFn) -> list[str]:
    """Return the words of one option that the default filters allow, with a value that means no harm."""
    name, value = draw(
        st.one_of(
            st.tuples(st.just("env"), st.builds("{}={}".format, st.from_regex(r"\AX[A-Z0-9_]{0,8}\Z"), harmless)),
            st.tuples(st.just("shm-size"), st.from_regex(r"\A[1-9][0-9]{0,3}[kmg]?\Z")),
            st.tuples(st.just("ulimit"), st.from_regex(r"\Anofile=[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?\Z")),
            st.tuples(st.just("ipc"), st.sampled_from(["none", "private", "shareable"])),
        )
    )
    spellings = [[f"--{name}={value}"], [f"--{name}", value]]
    if name == "env":
        spellings += [["-e", value], [f"-e{value}"], [f"-e={value}"]]
    return draw(st.sampled_from(spellings))


harmless = values.filter(lambda value: "CLEARML" not in value.upper())


@st.composite
def bad(draw: st.DrawFn) -> list[str]:
    """Return the words of one option that the site does not allow, in any spelling."""
    letter, name, valued = draw(st.sampled_from(CLOSED))
    bundle = "".join(draw(st.lists(st.sampled_from(LETTERS_OFF), max_size=3)))
    if not valued:
        switch = draw(st.sampled_from(["", "=true", "=false", "=1", "=0", "=T", "=F"]))
        spellings = [[f"--{name}{switch}"]]
        if letter:
            spellings += [[f"-{bundle}{letter}{switch}"], [f"-{letter}{bundle}"]]
    else:
        value = draw(values)
        spellings = [[f"--{name}={value}"], [f"--{name}", value]]
        if letter:
            spellings += [[f"-{bundle}{letter}", value], [f"-{bundle}{letter}={value}"]]
            spellings += [[f"-{bundle}{letter}{value}"]] if value else []
    return draw(st.sampled_from(spellings))


def test_the_policy_knows_docker_s_options() -> None:
    assert len(OPTIONS) == len(HELP.replace("\n", "|").strip("|").split("|"))
    for letter, name, valued in OPTIONS:
        for spelled in filter(None, [f"--{name}", letter and f"-{letter}"]):
            read = policy.parse([spelled, "value"])
            assert read.words == ([] if valued else ["value"]), spelled
            assert read.options[0].name == {
                "net": "network",
                "net-alias": "network-alias",
                "dns-opt": "dns-option",
            }.get(name, name)


@given(st.lists(good(), max_size=6))
@settings(max_examples=300, deadline=None)
def test_good_lines_are_never_refused(parts: list[list[str]]) -> None:
    assert refusal([word for part in parts for word in part]) is None


@given(st.lists(good(), max_size=4), bad(), st.lists(good() | bad(), max_size=4))
@settings(max_examples=800, deadline=None)
def test_a_line_with_one_option_that_is_not_allowed_is_always_refused(
    before: list[list[str]], asked: list[str], after: list[list[str]]
) -> None:
    assert refusal([word for part in [*before, asked, *after] for word in part])


@given(st.lists(good(), max_size=3), values.filter(lambda word: not word.startswith("-")), st.lists(good(), max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_word_that_is_no_option_is_always_refused(before: list[list[str]], word: str, after: list[list[str]]) -> None:
    assert refusal([*(word for part in before for word in part), word, *(word for part in after for word in part)])


@given(
    st.lists(
        st.sampled_from(["-", "--", "-e", "-v", "-it", "A=1", "--rm", "/:/h", "=", "--env", IMAGE, "bash"]) | values
    )
)
@settings(max_examples=800, deadline=None)
def test_whatever_is_asked_what_runs_is_the_worker_s_command_with_allowed_options(words: list[str]) -> None:
    if refusal(words) is None:
        read = policy.parse(policy.command_of(own(), words)[2:])
        assert read.words == own()[-4:]
        assert {option.name for option in policy.parse(words).options} <= OPEN


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_an_image_that_is_accepted_can_be_nothing_else(image: str) -> None:
    if policy.image_problem(image) is None:
        assert re.fullmatch(r"[\w.\-/:@\[\]]+", image, re.ASCII)
        assert not image.startswith("-")
        assert policy.parse([image]).words == [image]


# ---------------------------------------------------------------- the real client as the oracle


class Daemon(socketserver.ThreadingUnixStreamServer):
    """An engine that answers nothing but which container it was asked to create."""

    daemon_threads = True
    created: dict[str, object]


class Answers(BaseHTTPRequestHandler):
    server: Daemon

    def do_HEAD(self) -> None:
        self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(200, {"ApiVersion": "1.41", "OSType": "linux"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.partition("?")[0].endswith("/containers/create"):
            self.server.created = json.loads(body)
        self.answer(500, {"message": "no"})

    def answer(self, status: int, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        for name, header in (
            ("Api-Version", "1.41"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(text))),
        ):
            self.send_header(name, header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def address_string(self) -> str:
        return "client"

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    if not shutil.which("docker"):
        pytest.skip("no Docker client on this host")
    path = tmp_path_factory.mktemp("engine") / "s"
    with Daemon(str(path), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"unix://{path}"
        server.shutdown()


@pytest.mark.parametrize(
    "line",
    [
        "-itv/:/host alpine sh",
        "-iv=/:/host alpine",
        "-e=A=1 alpine",
        "-eA=1 alpine -e B=2",
        "-e --rm alpine --volume=/:/x",
        "-e -v alpine",
        "--privileged=false alpine",
        "--privileged false alpine",
        "--volume /:/host alpine",
        "--net host alpine",
        "-e A=1 -- alpine sh",
        "-ti -e A=1 --ulimit nofile=5:6 alpine -v /:/x",
        "-h= alpine",
        "-l=a=b alpine",
        "-la=b alpine",
    ],
)
def test_a_command_is_read_as_docker_reads_it(daemon: tuple[Daemon, str], line: str) -> None:
    server, address = daemon
    words = shlex.split(line)
    server.created = {}
    subprocess.run(
        ["docker", "-H", address, "create", *words],
        capture_output=True,
        check=False,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert server.created, "the client has asked for a container"
    if "--" in words:
        with pytest.raises(policy.MalformedError):
            policy.parse(words)
        return
    read = policy.parse(words)
    held: dict[str, list[str]] = {}
    for option in read.options:
        held.setdefault(option.name, []).append(option.value)
    host = server.created["HostConfig"]
    assert isinstance(host, dict)
    assert [server.created["Image"], *(server.created["Cmd"] or [])] == read.words  # type: ignore[misc]
    assert (host["Binds"] or []) == held.get("volume", [])
    assert host["Privileged"] is (held.get("privileged") == ["true"])
    # A name without a value is the client's own variable, or is left out.
    assert [entry for entry in server.created["Env"] or [] if "=" in entry] == [
        v for v in held.get("env", []) if "=" in v
    ]  # type: ignore[attr-defined]
