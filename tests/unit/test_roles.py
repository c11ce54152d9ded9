"""The shape of the roles, the names of workers, and the mistakes that the preflight must find."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pyhocon
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted((ROOT / "ansible/roles").iterdir())
NAMES = [role.name for role in ROLES]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_under_test", ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trainyard = load("ansible/plugins/filter/trainyard.py")
secret_template = load("ansible/plugins/action/secret_template.py")


def options(role: Path) -> dict[str, Any]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    return specs["argument_specs"]["main"]["options"] or {}


def defaults(role: Path) -> dict[str, Any]:
    path = role / "defaults/main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_input_has_a_default_or_is_required(role: Path) -> None:
    told = options(role)
    required = {name for name, option in told.items() if option.get("required")}
    assert set(defaults(role)) == set(told) - required
    assert not required & set(defaults(role)), "a required input has no default"


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_spec_tells_the_defaults_as_they_are(role: Path) -> None:
    values = defaults(role)
    wrong = {
        name: (option["default"], values[name])
        for name, option in options(role).items()
        if "default" in option and option["default"] != values[name]
    }
    assert wrong == {}


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_input_is_described_and_named_after_its_role(role: Path) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role.name}_"), name
        assert option["description"], name
        assert option["type"], name


@pytest.mark.parametrize("role", ROLES, ids=NAMES)
def test_every_role_has_the_same_files(role: Path) -> None:
    for name in ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (role / name).is_file(), name
    text = (role / "README.md").read_text()
    assert role.name in text.splitlines()[0]


# --- workers ---------------------------------------------------------------------------------------------------------


def node(**settings: Any) -> dict[str, Any]:
    return {
        "node": "LARGE-GPU-1",
        "gpus": "auto",
        "explicit": False,
        "queue_descriptions": {},
        **settings,
    }


def test_a_worker_per_gpu_counts_names_from_one_and_gpus_from_zero() -> None:
    got = trainyard.trainyard_workers(node(), [], ["all_gpus"], ["0", "1", "2", "3"])
    assert [worker["id"] for worker in got["workers"]] == [f"LARGE-GPU-1-{n}:gpu{n - 1}" for n in (1, 2, 3, 4)]
    fourth = got["workers"][3]
    assert fourth["queues"] == ["LARGE-GPU-1-4", "LARGE-GPU-1", "all_gpus"]
    assert fourth["devices"] == "--gpus 3"
    assert fourth["project"] == "clearml-agent-large-gpu-1-4"
    assert set(got["queues"]) == {"LARGE-GPU-1", "all_gpus", *(f"LARGE-GPU-1-{n}" for n in (1, 2, 3, 4))}


def test_a_worker_keeps_its_number_when_another_gpu_is_left_out() -> None:
    got = trainyard.trainyard_workers(node(gpus=[1, 2]), [], ["all_gpus"], [])
    assert [worker["id"] for worker in got["workers"]] == ["LARGE-GPU-1-2:gpu1", "LARGE-GPU-1-3:gpu2"]


@pytest.mark.parametrize("gpus", ["auto", []])
def test_a_host_without_gpus_has_one_cpu_worker(gpus: Any) -> None:
    got = trainyard.trainyard_workers(node(node="local", gpus=gpus), [], ["all_gpus"], [])
    assert [(worker["id"], worker["devices"]) for worker in got["workers"]] == [("local-1", "--cpu-only")]
    assert got["workers"][0]["queues"] == ["local-1", "local", "all_gpus"]


def test_workers_by_hand_keep_their_queues() -> None:
    explicit = [{"name": "big", "gpus": [0, 1], "queues": ["big", "all_gpus"]}, {"name": "small", "gpus": [2]}]
    got = trainyard.trainyard_workers(node(explicit=True), explicit, ["all_gpus"], [])
    assert [worker["id"] for worker in got["workers"]] == ["big:gpu0,1", "small:gpu2"]
    assert [worker["queues"] for worker in got["workers"]] == [
        ["big", "all_gpus"],
        ["small", "LARGE-GPU-1", "all_gpus"],
    ]


def test_a_description_from_the_inventory_wins() -> None:
    told = {"all_gpus": "the first free one"}
    got = trainyard.trainyard_workers(node(queue_descriptions=told), [], ["all_gpus"], ["0"])
    assert got["queues"]["all_gpus"] == "the first free one"
    assert got["queues"]["LARGE-GPU-1-1"] == "worker LARGE-GPU-1-1 of node LARGE-GPU-1, GPU 0"


SLICES = ["MIG-5b1c5a3e-6a5e-5f0a-9f7c-0123456789ab", "MIG-77d05a3e-6a5e-5f0a-9f7c-0123456789ab"]


def problems(explicit: list[dict[str, Any]], found: list[str] | None = None, **settings: Any) -> list[str]:
    given = node(explicit=bool(explicit), gpus_found=found, **settings)
    return list(
        trainyard.trainyard_site_problems({"one": trainyard.trainyard_workers(given, explicit, [], found or [])}, {})
    )


def test_slices_services_and_limits() -> None:
    explicit = [
        {"name": "slice", "gpus": [SLICES[0]], "memory": "20g", "shm_size": "4g"},
        {"name": "helpers", "services": 4, "image": "team/tools:1"},
    ]
    slice_, helpers = trainyard.trainyard_workers(node(explicit=True), explicit, ["all_gpus"], [])["workers"]
    assert slice_["devices"] == f"--gpus {SLICES[0]}"
    assert trainyard.trainyard_task_arguments(slice_, {"memory": "60g", "shm_size": "1g"}) == (
        "--memory=20g --shm-size=4g"
    )
    assert (helpers["devices"], helpers["services"]) == ("--cpu-only --services-mode", 4)
    assert helpers["queues"] == ["helpers"], "nobody who wants a GPU waits behind it"
    assert trainyard.trainyard_task_arguments(helpers, {"memory": "", "shm_size": "1g"}) == "--shm-size=1g"
    assert problems(explicit, ["0", *SLICES]) == []


# --- the services worker ---------------------------------------------------------------------------------------------

SERVICES = {"services": 4, "memory": "2g"}


def test_the_services_worker_has_no_gpu_its_queue_alone_and_a_limit() -> None:
    got = trainyard.trainyard_workers(node(services=SERVICES), [], ["all_gpus"], ["0"])
    worker = got["workers"][-1]
    assert (worker["id"], worker["queues"], worker["services"]) == ("LARGE-GPU-1-services", ["services"], 4)
    assert worker["devices"] == "--cpu-only --services-mode"
    assert trainyard.trainyard_task_arguments(worker, {"memory": "60g", "shm_size": "1g"}) == (
        "--memory=2g --shm-size=1g"
    )
    assert got["queues"]["services"].startswith("controllers of pipelines")
    assert [each["name"] for each in got["workers"]] == ["LARGE-GPU-1-1", "LARGE-GPU-1-services"]
    by_hand = trainyard.trainyard_workers(node(explicit=True, services=SERVICES), [{"name": "big"}], [], [])
    assert [each["name"] for each in by_hand["workers"]] == ["big", "LARGE-GPU-1-services"]


def test_a_worker_by_hand_that_has_the_services_workers_name_is_told() -> None:
    (problem,) = problems([{"name": "LARGE-GPU-1-services", "gpus": []}], services=SERVICES)
    assert problem.startswith("one: clearml_agent_services has the worker 'LARGE-GPU-1-services', which one has too")


class Unreadable(dict[str, Any]):
    """A host whose variables cannot be worked out."""

    def get(self, *_: Any) -> Any:
        raise ValueError("undefined")


@pytest.mark.parametrize(
    ("given", "servers", "host"),
    [
        ({"one": {}, "two": {}}, ["two"], "two"),
        ({"one": {}, "two": {}}, ["away"], "one"),
        ({"one": {"clearml_agent_services": 0}, "two": {}}, ["one"], "two"),
        ({"one": {"clearml_agent_services": 0}, "two": {"clearml_agent_services": 0}}, ["one"], ""),
        (
            {"one": {}, "two": {"clearml_agent_workers": [{"name": "s1", "services": 2, "queues": ["services"]}]}},
            [],
            "",
        ),
        ({"one": {"clearml_agent_workers": [{"name": "services"}]}, "two": {}}, [], ""),
        ({"one": {"clearml_agent_common_queues": ["all_gpus", "services"]}, "two": {}}, [], ""),
        ({"one": {}, "two": {"clearml_agent_node_name": "services"}}, [], ""),
        # Common queues are none of those that have their own, nor of services workers.
        (
            {
                "one": {
                    "clearml_agent_common_queues": ["services"],
                    "clearml_agent_workers": [{"name": "big", "queues": ["big"]}, {"name": "helpers", "services": 1}],
                }
            },
            [],
            "one",
        ),
        ({"one": {"clearml_agent_workers": "w01"}, "two": {"clearml_agent_workers": [None]}}, [], "one"),
        ({"one": Unreadable(), "two": {}}, ["two"], "two"),
        ({}, ["away"], ""),
    ],
)
def test_one_node_gets_the_services_worker(given: dict[str, dict[str, Any]], servers: list[str], host: str) -> None:
    assert trainyard.trainyard_services_host(given, list(given), servers) == host


def test_the_role_gives_the_services_worker_to_one_node(tmp_path: Path) -> None:
    """The role itself, run on two nodes that are this machine."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "clearml_agent_gpus": []}
    hosts = {"away": local, "one": {**local, "clearml_agent_services": 2}, "two": local}
    groups = {"clearml_server": ["away"], "clearml_nodes": ["one", "two"]}
    inventory = {name: {"hosts": dict.fromkeys(names)} for name, names in groups.items()}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": inventory}}))
    lines = "{{ clearml_agent_description.workers | map(attribute='name') | join(' ') }}"
    play = {
        "hosts": "clearml_nodes",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.include_role": {"name": "clearml_agent", "tasks_from": "describe.yml"}},
            {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} has " + lines}},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    command = ["ansible-playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")]

    def described(*more: str) -> set[str]:
        done = subprocess.run(
            [str(Path(sys.executable).parent / command[0]), *command[1:], *more],
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"(\w+ has [\w -]+)", done.stdout))

    assert described() == {"one has one-1 one-services", "two has two-1"}
    assert described("-l", "two") == {"two has two-1"}, "whatever -l has"
    assert described("-e", "clearml_agent_services=0") == {"one has one-1", "two has two-1"}


def test_the_debugger_of_the_documentation_calls_and_answers(tmp_path: Path) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    (snippet,) = re.findall(r"  ```python\n(  import pdb.*?)  ```", text, re.DOTALL)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lines = textwrap.dedent(snippet).replace('("10.0.0.77", 4444)', str(listener.getsockname()))
        (tmp_path / "train.py").write_text(f"loss = 42\n{lines}print('loss is', loss)\n")
        with subprocess.Popen([sys.executable, tmp_path / "train.py"], stdout=subprocess.PIPE, text=True) as training:
            listener.settimeout(20)
            person, _ = listener.accept()
            with person, person.makefile("rw") as terminal:
                terminal.write("p loss\n!loss = 7\nc\n")
                terminal.flush()
                assert "42" in terminal.read()
            assert training.communicate(timeout=20)[0] == "loss is 7\n"


@pytest.mark.parametrize(
    ("explicit", "told"),
    [
        ([{"name": "big", "gpus": [7]}], "has the GPU 7, which nvidia-smi does not list: it has 0, 1"),
        ([{"name": "big", "gpus": [SLICES[0]]}], f"has the GPU {SLICES[0]!r}, which nvidia-smi does not list"),
        ([{"name": "big", "services": 2, "gpus": [0]}], "services and the GPUs [0]; its experiments would share"),
    ],
)
def test_mistakes_of_a_worker_are_told(explicit: list[dict[str, Any]], told: str) -> None:
    (problem,) = problems(explicit, ["0", "1"])
    assert problem.startswith("one: clearml_agent_workers")
    assert told in problem


def test_gpus_that_are_not_there_or_are_cut_into_slices_are_told() -> None:
    (problem,) = problems([], [], gpus=[0])
    assert "clearml_agent_gpus has the GPU 0, but nvidia-smi lists no GPU at all" in problem
    assert problems([], None, gpus=[0]) == [], "the driver comes later"
    (problem,) = problems([], ["0", *SLICES])
    assert "cut into slices" in problem
    assert SLICES[0] in problem


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "is missing"),
        (None, "is missing"),
        ("abcdefghijkl#mnop", "holds '#'"),
        ("0123456789abcdef", "does not start with a letter"),
        ("1e9", "does not start with a letter"),
        (1234567890123456, "does not start with a letter"),
        ("abc$def+ghi=jkl,", "holds '$+,='"),
        ("with space inside", "holds ' '"),
        ("short", "has 5 characters"),
    ],
)
def test_secrets_that_hocon_would_mangle_are_refused_and_never_told(value: Any, why: str) -> None:
    (problem,) = trainyard.trainyard_secret_problems({"clearml_server_token_secret": value}, "server1")
    assert problem.startswith("server1: clearml_server_token_secret")
    assert why in problem
    assert "ansible/secrets.yml" in problem
    if value and len(str(value)) > 6:
        assert str(value) not in problem


def test_generated_secrets_pass_and_stay(tmp_path: Path) -> None:
    action = load("ansible/plugins/action/site_secrets.py")
    content: dict[str, Any] = {}
    added = action.complete(content)
    assert "vault_clearml_server_credentials.apiserver" in added
    kept = yaml.safe_dump(content)
    assert action.complete(content) == []
    assert yaml.safe_dump(content) == kept
    flat = {
        "password": content["vault_clearml_admin_password"],
        "session": content["vault_clearml_server_session_secret"],
        "token": content["vault_clearml_server_token_secret"],
        **{
            f"{group}.{name}.{part}": pair[part]
            for group in ("vault_clearml_server_credentials",)
            for name, pair in content[group].items()
            for part in ("key", "secret")
        },
    }
    assert trainyard.trainyard_secret_problems(flat, "here") == []
    assert len(set(flat.values())) == len(flat)
    content["vault_clearml_admin_password"] = "edited-by-hand"
    assert action.complete(content) == ["vault_clearml_admin_password_hash"]


# --- the preflight, as an operator meets it --------------------------------------------------------------------------


class Site:
    """An inventory like inventory/local, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT / "inventory/local/group_vars", folder / "group_vars", ignore=shutil.ignore_patterns("vault.yml")
        )
        content: dict[str, Any] = {}
        load("ansible/plugins/action/site_secrets.py").complete(content)
        self.vault = content
        self.variables: dict[str, Any] = {}
        self.hosts: dict[str, dict[str, Any]] = {"one": {}, "two": {}}
        self.servers = ["one"]

    def preflight(self) -> tuple[int, str]:
        """Run the playbook; give its exit status and all that it said."""
        (self.folder / "group_vars/all/vault.yml").write_text(yaml.safe_dump(self.vault))
        (self.folder / "group_vars/all/zz_spoilt.yml").write_text(yaml.safe_dump(self.variables))
        # Ports that are free here, whatever runs on this machine.
        ports = {f"clearml_server_{name}_port": free_port() for name in ("api", "web", "files")}
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {name: {**local, **ports, **values} for name, values in self.hosts.items()}
        children = {
            "clearml_server": {"hosts": {name: {} for name in self.servers}},
            "clearml_nodes": {"hosts": {name: {} for name in self.hosts}},
        }
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "children": children}}))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment.update(ANSIBLE_CONFIG=str(ROOT / "ansible/ansible.cfg"), ANSIBLE_NOCOLOR="1", COLUMNS="2000")
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                str(self.folder),
                str(ROOT / "ansible/preflight.yml"),
                # Whoever runs the tests need not be root: nothing is changed.
                "-e",
                "ansible_become=false",
                "-e",
                "preflight_check_system=false",
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_good_site_passes(site: Site) -> None:
    code, said = site.preflight()
    assert code == 0, said
    assert "changed=0" in said


def test_mistakes_across_hosts_are_all_told_at_once(site: Site) -> None:
    site.hosts = {
        "one": {
            "clearml_node_name": "train.01",
            "clearml_agent_workers": [
                {"name": "big", "gpus": [0, 1]},
                {"name": "small", "gpus": [1]},
                {"name": "odd", "gpus": ["GPU-4"], "queues": ["my queue"]},
            ],
        },
        "two": {
            "clearml_node_name": "two",
            "clearml_agent_workers": [{"name": "BIG", "gpus": []}],
            "clearml_agent_poll_seconds": 0.1,
            "clearml_agent_extra_mounts": [{"source": "data"}],
        },
        "three": {"clearml_node_name": "TWO", "clearml_agent_gpus": [0, 0, -1]},
    }
    site.variables = {"clearml_agent_queue_descriptions": {"forgotten": "nobody comes"}}
    code, said = site.preflight()
    assert code != 0
    for message in (
        "one: clearml_node_name is 'train.01'",
        "one: clearml_agent_workers gives GPU 1 to the workers 'big' and 'small'; two experiments would share it: "
        "write it in one of them",
        "one: clearml_agent_workers gives worker 'odd' the GPU 'GPU-4'; write its index, a whole number from 0",
        "one: clearml_agent_workers: worker 'odd' serves the queue 'my queue'; write three or more letters, digits",
        "two: clearml_agent_workers has the worker 'BIG', which one has too",
        "two: clearml_agent_poll_seconds is 0.1 (hosts.yml:",
        "write a number of seconds from 0.5 to 60, for example 2",
        "two: clearml_agent_extra_mounts[0].source is 'data' (hosts.yml:",
        "write an absolute path",
        "two: clearml_node_name is 'two', which three has too (case does not count); write another one, e.g. 'two-b'",
        "three: clearml_agent_gpus has GPU 0 twice",
        "three: clearml_agent_gpus has -1; write GPU indexes as whole numbers from 0, e.g. [0, 1]",
        "all: clearml_agent_queue_descriptions has the queue 'forgotten', which no worker serves",
    ):
        assert message in said, said


def test_the_servers_address_and_ports_are_checked(site: Site) -> None:
    site.hosts["one"] = {
        "clearml_server_host": "http://localhost:8080",
        "clearml_server_web_port": 8008,
        "clearml_server_api_port": 8008,
        "clearml_server_files_port": 99999,
    }
    code, said = site.preflight()
    assert code != 0
    for message in (
        "one: clearml_server_host is 'http://localhost:8080' (hosts.yml:",
        "it has a scheme or a path; write a name or IPv4 address without scheme and path, for example 'clearml.",
        "one: clearml_server_web_port is 8008, and so is clearml_server_api_port: two services cannot share a port",
        "one: clearml_server_files_port is 99999 (hosts.yml:",
        "write a port from 1 to 65535",
    ):
        assert message in said, said


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"clearml_server_version": "9.9"}, "one: clearml_server_version is '9.9'"),
        ({"clearml_server_images": {"mongo": "mongo:5.0"}}, "gives mongo the image 'mongo:5.0', but set '2.3'"),
        ({"clearml_server_images": {"kibana": "kibana:8"}}, "clearml_server_images has 'kibana'"),
        ({"clearml_server_domain": "https://x.org"}, "clearml_server_domain is 'https://x.org'"),
        ({"clearml_server_domain": "app.x.org"}, "write what the three have in common: 'x.org'"),
        (
            {"clearml_server_domain": "x.org", "clearml_server_tls": "files", "clearml_server_tls_key": "/no/key"},
            "clearml_server_tls_key is '/no/key' (group_vars/all/zz_spoilt.yml:",
        ),
        (
            {"clearml_server_domain": "x.org", "clearml_server_tls_authority": "/no/ca", "clearml_server_tls": "acme"},
            "clearml_server_tls_authority is '/no/ca' (group_vars/all/zz_spoilt.yml:",
        ),
        (
            {"clearml_server_mongo_uri": "mongo.x.org"},
            "clearml_server_mongo_uri (value hidden) (group_vars/all/zz_spoilt.yml:",
        ),
        ({"clearml_server_elasticsearch_user": "me"}, "own Elasticsearch has the user 'elastic'"),
        ({"clearml_server_databases_ca": "/etc/ca.pem"}, "it is a path; write the text of the PEM file"),
        ({"clearml_server_s3": [{"key": "a", "secret": "b"}]}, "clearml_server_s3 has {'key': '***', 'secret': '***'}"),
        ({"clearml_server_s3": [{"bucket": "b", "key": "a"}]}, "clearml_server_s3 has no key or no secret for 'b'"),
        (
            {"clearml_server_s3": [{"host": "https://s3", "key": "a", "secret": "b"}]},
            "clearml_server_s3[0].host is 'https://s3' (group_vars/all/zz_spoilt.yml:",
        ),
        (
            {"clearml_server_redis_url": "redis.x.org"},
            "clearml_server_redis_url is 'redis.x.org' (group_vars/all/zz_spoilt.yml:",
        ),
        (
            {"clearml_server_elasticsearch_watermarks": {"low": "90%", "high": "80%", "flood_stage": "500mb"}},
            "write three rising percentages",
        ),
        ({"clearml_server_memory_mb": 3000, "clearml_server_elasticsearch_heap_mb": 2000}, "write at most 750"),
        ({"clearml_server_mongo_password": ""}, "clearml_server_mongo_password is missing"),
        ({"clearml_server_redis_password": "1short"}, "clearml_server_redis_password (value hidden)"),
    ],
)
def test_mistakes_of_the_official_flavor_are_told(site: Site, variables: dict[str, Any], told: str) -> None:
    good = {f"clearml_server_{name}_password": "a" * 20 for name in ("mongo", "elasticsearch", "redis")}
    site.variables = {"clearml_server_flavor": "official", **good, **variables}
    code, said = site.preflight()
    assert code != 0
    assert told in said
    assert "1short" not in said


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        (
            {"user": "bot", "token": "hush-4711", "ssh_key": "PRIVATE KEY----- hush-4711", "known_hosts": "h"},
            "one: clearml_agent_git_token and clearml_agent_git_ssh_key are both set",
        ),
        ({"token": "hush-4711"}, "one: clearml_agent_git_user and clearml_agent_git_token belong together"),
        (
            {"ssh_key": "~/.ssh/hush-4711", "known_hosts": "h"},
            "one: clearml_agent_git_ssh_key (value hidden) is not a private key",
        ),
        ({"ssh_key": "-----BEGIN OPENSSH PRIVATE KEY----- hush-4711"}, "one: clearml_agent_git_known_hosts is empty"),
    ],
)
def test_half_a_way_to_the_repositories_is_refused(site: Site, variables: dict[str, Any], told: str) -> None:
    site.variables = {f"clearml_agent_git_{name}": value for name, value in variables.items()}
    code, said = site.preflight()
    assert code != 0
    assert told in said
    assert "hush-4711" not in said


def test_images_of_a_mirror_and_by_digest_are_the_sets_own(site: Site, tmp_path: Path) -> None:
    good = {f"clearml_server_{name}_password": "a" * 20 for name in ("mongo", "elasticsearch", "redis")}
    images = {"mongo": "mirror.x.org:5000/mongo:7.0.22", "redis": "redis@sha256:" + "0" * 64}
    site.variables = {"clearml_server_flavor": "official", **good, "clearml_server_images": images}
    site.variables["clearml_server_root"] = str(tmp_path / "empty")
    code, said = site.preflight()
    assert code == 0, said


def test_a_domain_without_its_three_names_is_refused(site: Site) -> None:
    site.variables = {"clearml_server_domain": "clearml.invalid", "preflight_check_domain": True}
    code, said = site.preflight()
    assert code != 0
    assert (
        "one: clearml_server_domain is 'clearml.invalid', but app.clearml.invalid, api.clearml.invalid, "
        "files.clearml.invalid cannot be resolved on the server"
    ) in said


def test_bad_secrets_are_refused_without_being_shown(site: Site) -> None:
    site.vault["vault_clearml_server_token_secret"] = "abcdefgh#hidden-tail"
    site.vault["vault_clearml_server_credentials"]["apiserver"]["key"] = "62T8CP7HGBC6647XF9314C2VY67RJO"
    del site.vault["vault_clearml_server_session_secret"]
    code, said = site.preflight()
    assert code != 0
    for message in (
        "one: clearml_server_session_secret is missing; run ansible/secrets.yml",
        "one: clearml_server_token_secret (value hidden) would be mangled by HOCON: it holds '#'",
        "one: clearml_server_credentials.apiserver.key is a value that the official server ships in public",
    ):
        assert message in said, said
    assert "hidden-tail" not in said
    assert "62T8CP7HGBC6647XF9314C2VY67RJO" not in said


def test_a_port_that_another_program_has_and_a_small_machine_are_told(site: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        site.hosts["one"] = {"clearml_server_web_port": port}
        site.variables = {"preflight_min_memory_mb": 10**8, "preflight_min_disk_mb": 10**9}
        code, said = site.preflight()
    assert code != 0
    assert f"one: clearml_server_web_port is {port}, and that port is taken by " in said
    assert f"(process {os.getpid()}); stop it, or write another port" in said
    assert "preflight_min_memory_mb asks for 100000000; give it more, or write a smaller" in said
    assert "two: /opt has " in said
    assert "one: clearml_server_root is '/opt/clearml', which has " in said


def test_folders_of_another_site_and_of_nobody_known_are_refused(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Not in the inventory's own folder: Ansible would read what is in them as hosts.
    folder = tmp_path_factory.mktemp("hosts")
    for host in ("one", "two"):
        root = folder / host
        site.hosts[host] = {
            "clearml_server_root": str(root),
            "clearml_agent_root": str(root / "agent"),
            "dataset_cache_pruner_root": str(root / "cache"),
        }
        (root / "agent").mkdir(parents=True)
    (folder / "one/.trainyard-site").write_text('{"site": "vision", "folder": "clearml_server_root"}')
    (folder / "two/agent/thesis.tex").write_text("x")
    code, said = site.preflight()
    assert code != 0
    said = said.replace("''", "'")
    assert f"clearml_server_root is '{folder}/one', but {folder}/one belongs to the site 'vision'" in said
    assert f"clearml_agent_root is '{folder}/two/agent', but {folder}/two/agent holds" in said


def test_two_servers_are_refused(site: Site) -> None:
    site.servers = ["one", "two"]
    code, said = site.preflight()
    assert code != 0
    assert "all: the group clearml_server has 2 hosts (one, two); write exactly one host into it" in said


# --- the example repository ------------------------------------------------------------------------------------------


def test_the_example_repository_commits_only_changes_and_keeps_history(tmp_path: Path) -> None:
    source, repository = tmp_path / "source", tmp_path / "repo.git"
    source.mkdir()
    (source / "train.py").write_text("print(1)\n")
    (source / "__pycache__").mkdir()
    (source / "__pycache__/train.pyc").write_text("junk")

    def put(target: Path = repository) -> str:
        command = [str(ROOT / "ansible/tools/example-repository.sh"), str(source), str(target)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def git(*arguments: str) -> str:
        command = ["git", "--git-dir", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = put()
    assert first.startswith("updated to ")
    assert put(tmp_path / "other.git") == first, "the same sources must give the same commit everywhere"
    assert put() == "unchanged"
    assert git("ls-tree", "-r", "--name-only", "main") == "train.py"
    (source / "train.py").write_text("print(2)\n")
    assert put().startswith("updated to ")
    assert git("rev-list", "--count", "main") == "2"
    assert git("show", "main~1:train.py") == "print(1)"


# --- how an experiment starts ----------------------------------------------------------------------------------------


def started(tmp_path: Path, *, knows_agent: bool) -> list[str]:
    """Run what the agent would run in an experiment's container; give what it called."""
    log = tmp_path / "calls"
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'[ "$1" = -c ] && exit {0 if knows_agent else 1}\n'
        f'echo "$*|$NVIDIA_VISIBLE_DEVICES|$TRAINYARD_GPUS|$CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL'
        f'|$CLEARML_AGENT_SKIP_PIP_VENV_INSTALL" >> {log}\n'
    )
    python.chmod(0o755)
    # rm too: the script is meant for a container, and would take a file of this machine.
    for name in ("python3", "apt-get", "dnf", "git", "rm", "cp"):
        (tmp_path / name).symlink_to(python)
    # Undefined settings are none of this test's business.
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.ChainableUndefined)
    environment.filters["to_json"] = lambda value: json.dumps("" if isinstance(value, jinja2.Undefined) else value)
    template = environment.from_string((ROOT / "agents/clearml.conf.j2").read_text())
    text = template.render(clearml_agent_task_python=str(python))
    lines = pyhocon.ConfigFactory.parse_string(text)["agent.docker_init_bash_script"]
    # As clearml-agent 3.0.3 joins, formats and goes on.
    script = " ; ".join(lines) + (
        " ; [ ! -z $LOCAL_PYTHON ] || export LOCAL_PYTHON={python} ; $LOCAL_PYTHON -m pip install -U pip ; "
        "$LOCAL_PYTHON -m pip install -U clearml-agent ; "
    )
    script = script.format(python="python3", mount_ssh_ro="/none", mount_ssh="/none", mount_git_ro="/none")
    script += "NVIDIA_VISIBLE_DEVICES=3 $LOCAL_PYTHON -u -m clearml_agent execute --id 1"
    given = {
        "PATH": str(tmp_path),
        "CLEARML_AGENT_SKIP_PIP_VENV_INSTALL": str(python),
        "NVIDIA_VISIBLE_DEVICES": "7",
    }
    subprocess.run(["/bin/bash", "-c", script], env=given, check=True, capture_output=True)
    # What rm would take depends on this machine's Pythons.
    return [line for line in log.read_text().splitlines() if "EXTERNALLY-MANAGED" not in line]


def test_an_image_with_the_agent_starts_it_at_once(tmp_path: Path) -> None:
    assert started(tmp_path, knows_agent=True) == [f"-u -m clearml_agent execute --id 1|3|7|1|{tmp_path}/python"]


def test_another_image_is_prepared_the_stock_way(tmp_path: Path) -> None:
    assert started(tmp_path, knows_agent=False) == [
        "-m pip --version|7|7||",
        "-m pip install -U pip|7|7||",
        "-m pip install -U clearml-agent|7|7||",
        "-u -m clearml_agent execute --id 1|3|7||",
    ]


def test_the_servers_image_is_locked_like_everything_else() -> None:
    command = "uv export --quiet --frozen --package trainyard-lite --no-emit-workspace --no-dev --no-header"
    uv = Path(sys.executable).with_name("uv")
    exported = subprocess.run([uv, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "lite/requirements.txt").read_text() == exported.stdout, "run make lock"


def certificate(folder: Path, names: list[str], days: int) -> tuple[str, str]:
    """Write a certificate and its key; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clearml")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    paths = (folder / "cert.pem", folder / "key.pem")
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(paths[0]), str(paths[1])


def test_the_sites_certificate_is_read_before_it_is_used(tmp_path: Path) -> None:
    good = certificate(tmp_path / "good", ["*.x.org"], 10)
    other = certificate(tmp_path / "other", ["app.x.org", "api.x.org"], -1)
    names = ["app.x.org", "api.x.org", "files.x.org"]

    def check(certificate: str, key: str) -> list[str]:
        return list(trainyard.pair_problems(("tls_certificate", certificate), ("tls_key", key), names))

    assert check(*good) == []
    (problem,) = check(*other)
    assert "which is for api.x.org, app.x.org, not for files.x.org: write one that has app.x.org, api.x.org" in problem
    chain = tmp_path / "chain.pem"
    chain.write_text(Path(other[0]).read_text() + Path(good[0]).read_text())
    assert "which was valid until" in check(str(chain), other[1])[1], "the authority behind it is valid"
    assert check(good[0], other[1]) == [
        f"tls_key is {other[1]!r}, which is not the key of {good[0]!r}: write the path of its key"
    ]
    assert check(good[1], good[1]) == check(good[0], good[0]) == [], "told by their kind"


def test_a_diff_tells_that_a_secret_changed_but_not_what_it_is() -> None:
    before = (
        'session_secret { apiserver: "short12chars" }\n    user_key: "ABC"\n'
        'host: "mongodb://clearml:pw@mongo:27017/backend?authSource=admin"\npassword: "JDJi="\n'
        'redis { apiserver: { host: "redis" } }\ntimeout_sec: 300\nca_certs: "/opt/clearml/config/databases-ca.pem"\n'
        "plain-a1b2c3d4e5f6a7b8c9d0e1\n"
    )
    after = before.replace("short12", "other12").replace(":pw@", ":new@").replace("300", "301")
    masked = secret_template.mask(before, after)
    assert masked[0].splitlines() == [
        'session_secret { apiserver: "***" }',
        '    user_key: "***"',
        'host: "mongodb://***@mongo:27017/backend?authSource=admin"',
        'password: "***"',
        'redis { apiserver: { host: "redis" } }',
        "timeout_sec: 300",
        'ca_certs: "/opt/clearml/config/databases-ca.pem"',
        "***",
    ]
    changed = [new for old, new in zip(*(text.splitlines() for text in masked), strict=True) if old != new]
    assert changed == [
        'session_secret { apiserver: "*** (changed)" }',
        'host: "mongodb://*** (changed)@mongo:27017/backend?authSource=admin"',
        "timeout_sec: 301",
    ]
