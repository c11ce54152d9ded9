# Part of Trainyard.
"""Filters that work out workers and find the mistakes of an inventory."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Ansible finds module_utils for modules only; a filter runs on the controller.
sys.path.append(str(Path(__file__).resolve().parents[1] / "module_utils"))

from trainyard_paths import PARTS, inside
from trainyard_values import pair_problems, pem_fault

__all__ = ["FilterModule"]

# Where the SDK sends the controllers of pipelines, searches and schedules when nobody names a queue.
SERVICES_QUEUE = "services"
# What ClearML's server asks of a queue's name.
QUEUE_LEAST = 3
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
# No machine has more GPUs, slices and all.
MOST_GPUS = 1024
SAFE_SECRET = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
# What an env file holds without quotes.
BARE_IN_SHELL = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
BARE_IN_COMPOSE = re.compile(r"(?! )[A-Za-z0-9_@%+=:,./*?~^()\[\]{}|;&<>! -]*(?<! )|")
# Service accounts that the official server knows by these names.
BUILTIN_ACCOUNTS = frozenset({"apiserver", "fileserver", "webserver", "tests"})
# Shipped in public with the official server and its tests: whoever reads its sources knows them.
WELL_KNOWN = frozenset(  # starts of sha256
    {
        "12a64aebc6b32ca8",
        "243dc384849c2f27",
        "397d5a1d9bc2b920",
        "4dd30d95c3c0e75a",
        "5b5bdac1a0d4cf22",
        "98098dd7eb042c94",
        "984d287f13525ae8",
        "a1e4036636b52f2c",
        "b6bcb89784ec1098",
        "de7c1fce12119657",
        "e734a805d77c509f",
    }
)
GPU_UUID = re.compile(r"(GPU|MIG)-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
SUPPORTED = {"Debian": {"12", "13"}, "Ubuntu": {"22.04", "24.04", "26.04"}}


def trainyard_workers(
    node: Mapping[str, Any], explicit: Sequence[Mapping[str, Any]], common: Sequence[str], listed: Sequence[str]
) -> dict[str, Any]:
    """Give ``node`` with its workers: those told, else one per GPU, else one for the CPU; and the services worker."""
    name = node["node"]
    gpus = node["gpus"]
    variable = _variable(node)
    if isinstance(gpus, str):
        gpus = [int(line) for line in listed if line.strip().isdigit()] if gpus == "auto" else []
    if explicit:
        entries = [dict(entry) for entry in explicit]
    elif gpus:
        # People count from one, the driver from zero.
        entries = [{"name": f"{name}-{position}", "gpus": [gpu]} for position, gpu in enumerate(gpus, 1)]
        if all(isinstance(gpu, int) for gpu in gpus):
            entries = [{"name": f"{name}-{gpu + 1}", "gpus": [gpu]} for gpu in gpus]
    else:
        entries = [{"name": f"{name}-1", "gpus": []}]
    added = {"name": f"{name}-services", "queues": [SERVICES_QUEUE], **node.get("services", {})}
    workers = []
    for entry in [*entries, added] if node.get("services") else entries:
        worker = str(entry.get("name", ""))
        pinned = ",".join(str(gpu) for gpu in entry.get("gpus", []))
        services = entry.get("services") or 0
        # Whoever asks for all GPUs wants none of them behind a services worker.
        shared = [] if services else [name, *common]
        queues = list(entry.get("queues") or [worker, *shared])
        workers.append(
            {
                "name": worker,
                "id": f"{worker}:gpu{pinned}" if pinned else worker,
                "gpus": list(entry.get("gpus", [])),
                "devices": f"--gpus {pinned}" if pinned else "--cpu-only" + (" --services-mode" if services else ""),
                "services": services,
                "variable": "clearml_agent_services" if entry is added else variable,
                "image": entry.get("image", ""),
                "limits": {limit: str(entry[limit]) for limit in ("memory", "cpus", "shm_size") if entry.get(limit)},
                "queues": list(dict.fromkeys(queues)),
                "project": f"clearml-agent-{worker.lower()}",
            }
        )
    descriptions = {}
    for worker in workers:
        for queue in worker["queues"]:
            if queue == worker["name"]:
                text = f"worker {queue} of node {name}"
                text += f", GPU {','.join(map(str, worker['gpus']))}" if worker["gpus"] else ", CPU"
            elif queue == name:
                text = f"any worker of node {name}"
            elif worker["services"]:
                text = "controllers of pipelines, searches and schedules: beside each other, on the CPU"
            else:
                text = "workers of several nodes"
            descriptions.setdefault(queue, node["queue_descriptions"].get(queue, text))
    return {**node, "workers": workers, "queues": descriptions, "common_queues": list(common)}


def trainyard_services_host(hostvars: Mapping[str, Any], nodes: Sequence[str], servers: Sequence[str]) -> str:
    """Return the node that gets the services worker; empty where a worker by hand serves its queue.

    It is the server's host where that is a node, else the first node; one whose ``clearml_agent_services`` is 0 is
    passed over.

    Args:
        hostvars: the variables of the site's hosts as the inventory has them, without the roles' defaults.
        nodes: the hosts of clearml_nodes, in the inventory's order.
        servers: the hosts of clearml_server.
    """

    def given(host: str, variable: str) -> Any:
        try:
            return hostvars[host].get(variable)
        except Exception:  # the check of that host reports a value that cannot be templated
            return None

    for host in nodes:
        entries = given(host, "clearml_agent_workers")
        entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
        common = given(host, "clearml_agent_common_queues")
        shared = [given(host, "clearml_agent_node_name") or host, *(common if isinstance(common, list) else [])]
        served = [] if entries else shared
        for entry in entries:
            queues = entry.get("queues")
            own = [entry.get("name"), *([] if entry.get("services") else shared)]
            served += queues if isinstance(queues, list) and queues else own
        if SERVICES_QUEUE in served:
            return ""
    willing = [host for host in nodes if given(host, "clearml_agent_services") != 0]
    return next((host for host in willing if host in servers), next(iter(willing), ""))


def trainyard_task_arguments(worker: Mapping[str, Any], defaults: Mapping[str, str]) -> str:
    """Give the limits of a worker's experiments as arguments of docker run."""
    limits = {**defaults, **worker["limits"]}
    return " ".join(f"--{name.replace('_', '-')}={limits[name]}" for name in sorted(limits) if limits[name])


def trainyard_site_problems(hosts: Mapping[str, Mapping[str, Any]], declared: Mapping[str, str]) -> list[str]:
    """Find what is wrong across hosts; ``hosts`` maps an inventory host to its description of workers."""
    problems: list[str] = []
    nodes: dict[str, str] = {}
    names: dict[str, str] = {}
    served: set[str] = set()
    for host, node in sorted(hosts.items()):
        name = str(node["node"])
        if name and not SAFE_NAME.match(name):
            problems.append(
                f"{host}: clearml_node_name is {name!r}: a node's name becomes part of worker, queue and compose "
                "project names; write at most 63 letters, digits, - and _, first a letter or digit, e.g. 'train01'"
            )
        elif name and len(name) < QUEUE_LEAST and any(name in worker["queues"] for worker in node["workers"]):
            problems.append(
                f"{host}: clearml_node_name is {name!r} (where it is not written, the host's name): a queue has this "
                f"name too, and ClearML takes queues of {QUEUE_LEAST} or more characters only; write clearml_node_name "
                f"with {QUEUE_LEAST} or more, for example 'node-{name}'"
            )
        if name and name in node.get("common_queues", ()):
            problems.append(
                f"{host}: clearml_node_name is {name!r}, and so is a queue of clearml_agent_common_queues: experiments "
                f"for this node alone would run anywhere; write another one, e.g. 'train-{name}'"
            )
        if name and name.lower() in nodes:
            problems.append(
                f"{host}: clearml_node_name is {name!r}, which {nodes[name.lower()]} has too (case does not count); "
                f"write another one, e.g. {name + '-b'!r}"
            )
        nodes.setdefault(name.lower(), host)
        problems += _node_problems(host, node, names) or _gpu_problems(host, node)
        for worker in node["workers"]:
            served.update(worker["queues"])
    for queue in sorted(set(declared) - served):
        problems.append(
            f"all: clearml_agent_queue_descriptions has the queue {queue!r}, which no worker serves: an experiment in "
            f"it would wait for ever; add it to clearml_agent_common_queues or to a worker's queues, or remove it. "
            f"Served are {', '.join(sorted(served)) or 'none'}"
        )
    return problems


def _variable(node: Mapping[str, Any]) -> str:
    """Return the variable that a node's workers come from."""
    return "clearml_agent_workers" if node.get("explicit") else "clearml_agent_gpus"


def _is_gpu(gpu: Any) -> bool:
    """Tell an index, or a UUID of a GPU or a MIG slice, from anything else."""
    if isinstance(gpu, int) and not isinstance(gpu, bool):
        return 0 <= gpu < MOST_GPUS
    return isinstance(gpu, str) and bool(GPU_UUID.match(gpu))


def _gpu_problems(host: str, node: Mapping[str, Any]) -> list[str]:
    """Find GPUs that the inventory gives away and the machine does not have."""
    listed = node.get("gpus_found")  # indexes and UUIDs; None: not to be compared
    if listed is None:
        return []
    slices = [name for name in listed if str(name).startswith("MIG-")]
    if slices and not node["explicit"] and node["gpus"] == "auto":
        return [
            f"{host}: clearml_agent_gpus is 'auto', but the machine's GPUs are cut into slices, and a worker per GPU "
            f"would see one slice of each; write the slices, e.g. [{', '.join(slices[:2])}]"
        ]
    wanted = [gpu for worker in node["workers"] for gpu in worker["gpus"]]
    missing = [gpu for gpu in wanted if str(gpu) not in set(listed)]
    if not missing:
        return []
    variable = _variable(node)
    has = (
        f"which nvidia-smi does not list: it has {', '.join(listed)}"
        if listed
        else "but nvidia-smi lists no GPU at all"
    )
    return [f"{host}: {variable} has the GPU {missing[0]!r}, {has}. Write GPUs that the machine has, or auto"]


def _node_problems(host: str, node: Mapping[str, Any], names: dict[str, str]) -> list[str]:
    problems = []
    gpus = node["gpus"]
    if isinstance(gpus, str) and gpus != "auto":
        problems.append(f"{host}: clearml_agent_gpus is {gpus!r}; write auto, or a list of GPU indexes such as [0, 1]")
    elif not isinstance(gpus, str):
        problems += [
            f"{host}: clearml_agent_gpus has {gpu!r}; write GPU indexes as whole numbers from 0, e.g. [0, 1], or UUIDs "
            "of GPUs or MIG slices"
            for gpu in gpus
            if not _is_gpu(gpu)
        ]
        problems += [
            f"{host}: clearml_agent_gpus has GPU {gpu} twice; write every GPU once"
            for gpu in sorted({gpu for gpu in gpus if list(gpus).count(gpu) > 1}, key=str)
        ]
    # A wrong name of the node is one mistake, not one more for each worker and queue that has it.
    node_name = str(node["node"])
    by_hand = "clearml_agent_workers"
    derived = [worker["name"] for worker in node["workers"] if worker["variable"] != by_hand]
    derived = [] if SAFE_NAME.match(node_name) else derived
    owners: dict[Any, str] = {}
    for worker in node["workers"]:
        name, variable = worker["name"], worker["variable"]
        if name and not SAFE_NAME.match(name) and name not in derived:
            problems.append(
                f"{host}: {variable} has a worker named {name!r}; write at most 63 letters, digits, - and _, "
                "first a letter or digit, e.g. 'train01-big'"
            )
        # Of a GPU that is written twice that is said already.
        again = variable == "clearml_agent_gpus" and names.get(name.lower()) == host
        if name and node_name and name.lower() in names and not again:
            problems.append(
                f"{host}: {variable} has the worker {name!r}, which {names[name.lower()]} has too; "
                "a worker's name must be unique in the site"
            )
        names.setdefault(name.lower(), host)
        for gpu in worker["gpus"] if node["explicit"] else []:
            if not _is_gpu(gpu):
                problems.append(
                    f"{host}: {variable} gives worker {name!r} the GPU {gpu!r}; write its index, a whole number from "
                    "0, or the UUID of a GPU or of a MIG slice (nvidia-smi -L)"
                )
            elif gpu in owners:
                problems.append(
                    f"{host}: {variable} gives GPU {gpu} to the workers {owners[gpu]!r} and {name!r}; two experiments "
                    "would share it: write it in one of them"
                )
            owners.setdefault(gpu, name)
        if worker["services"] and worker["gpus"]:
            problems.append(
                f"{host}: {variable} gives worker {name!r} services and the GPUs {worker['gpus']}; its experiments "
                "would share them: write one of both"
            )
        for queue in worker["queues"]:
            # Said already: of the node's and the worker's name, and of an empty one.
            if queue in (node_name, *derived, "") or (queue == name and not SAFE_NAME.match(name)):
                continue
            if not isinstance(queue, str) or not SAFE_NAME.match(queue) or len(queue) < QUEUE_LEAST:
                problems.append(
                    f"{host}: {'clearml_agent_workers' if node['explicit'] else 'clearml_agent_common_queues'}: worker "
                    f"{name!r} serves the queue {queue!r}; write three or more letters, digits, - and _, first a "
                    "letter or digit, e.g. 'all_gpus'"
                )
    return problems


def trainyard_secret_problems(secrets: Mapping[str, Any], host: str) -> list[str]:
    """Find secrets that are missing, unsafe or known to everybody; never tells a value."""
    problems = []
    missing = [name for name, value in sorted(secrets.items()) if value in (None, "")]
    # One mistake, a vault that is not there, is one sentence.
    if len(missing) > 3:
        problems.append(
            f"{host}: {missing[0]} is missing, and so are {', '.join(missing[1:])}; run ansible/secrets.yml (make up "
            "does), which generates them"
        )
    for name, value in sorted(secrets.items()):
        text = "" if value is None else str(value)
        if not text and len(missing) > 3:
            continue
        if not text:
            problems.append(f"{host}: {name} is missing; run ansible/secrets.yml (make up does), which generates it")
        elif hashlib.sha256(text.encode()).hexdigest()[:16] in WELL_KNOWN:
            problems.append(
                f"{host}: {name} is a value that the official server ships in public (hidden here); remove it from "
                "vault.yml and run ansible/secrets.yml, which generates one"
            )
        elif not isinstance(value, str) or not SAFE_SECRET.match(text):
            odd = "".join(sorted({char for char in text if not re.match(r"[A-Za-z0-9_-]", char)}))
            why = f"it holds {odd!r}" if odd else "it does not start with a letter"
            problems.append(
                f"{host}: {name} (value hidden) would be mangled by HOCON: {why}; write a letter and then only "
                "A-Z a-z 0-9 _ -, or remove it and run ansible/secrets.yml, which generates one"
            )
        elif len(text) < 12:
            problems.append(
                f"{host}: {name} (value hidden) has {len(text)} characters; write 12 or more, "
                "or remove it and run ansible/secrets.yml, which generates one"
            )
    return problems


def clearml_agent_problems(settings: Mapping[str, Any], host: str) -> list[str]:
    """Find settings of a node that are missing, or do not go together; never tells a value."""
    problems = []
    for name in ("access_key", "secret_key"):
        if not settings[f"system_{name}"]:
            problems.append(
                f"{host}: clearml_agent_system_{name} is empty: write what the server's system account has, "
                f"vault_clearml_server_credentials.apiserver.{name.removeprefix('access_').removesuffix('_key')}"
            )
    problems += [f"{host}: {problem}" for problem in _mount_problems(settings)]
    user, token, key = settings["user"], settings["token"], settings["ssh_key"]
    if token and key:
        problems.append(
            f"{host}: clearml_agent_git_token and clearml_agent_git_ssh_key are both set (values hidden), and the "
            "agent would use the token for every repository: write one of them"
        )
    if bool(user) != bool(token):
        problems.append(
            f"{host}: clearml_agent_git_user and clearml_agent_git_token belong together: write both, for example "
            "git-bot and its token from the vault, or none"
        )
    if key and "PRIVATE KEY-----" not in key:
        problems.append(
            f"{host}: clearml_agent_git_ssh_key (value hidden) is not a private key: write its text, -----BEGIN "
            "OPENSSH PRIVATE KEY----- and so on, not its path"
        )
    elif key and not settings["known_hosts"]:
        problems.append(
            f"{host}: clearml_agent_git_known_hosts is empty: write what `ssh-keyscan HOST` prints for the "
            "repositories' host, otherwise no key of it is believed"
        )
    return problems


def _mount_problems(settings: Mapping[str, Any]) -> list[str]:
    """Find mounts of one place twice, and of folders with the platform's own secrets."""
    problems = []
    # What every experiment has at these places anyway.
    taken = {str(path): f"the cache of {name}" for name, path in settings["caches"].items() if path}
    for position, entry in enumerate(settings["mounts"]):
        source, variable = str(entry["source"]), f"clearml_agent_extra_mounts[{position}]"
        target = str(entry.get("target", source))
        for name, root in settings["roots"].items():
            first = source.removeprefix(f"{root}/").partition("/")[0]
            own = {part.rstrip("/") for part in PARTS[name]}
            if source == root or inside(root, source) or (inside(source, root) and first in own):
                problems.append(
                    f"{variable}.source is {source!r}, and in {root!r} ({name}) are keys and settings of the "
                    "platform, which experiments would have; write a folder of your own, for example /data"
                )
                break
        if target in taken:
            problems.append(
                f"{variable} is mounted at {target!r}, where experiments have {taken[target]}; write another target"
            )
        taken.setdefault(target, variable)
    return problems


def trainyard_server_problems(server: Mapping[str, Any], host: str) -> list[str]:
    """Find what is wrong with the server's settings."""
    # Of a flavor that the site does not have, too: it may have it tomorrow.
    problems = _domain_problems(server, host) + _version_problems(server, host) + _database_problems(server, host)
    if server["flavor"] == "official" and server["image_source"] == "bundle" and not server["bundle"]:
        problems.append(
            f"{host}: clearml_server_bundle is empty, and clearml_server_image_source is 'bundle': write the path on "
            "this machine of an archive that ansible/bundle.yml made, for example /srv/clearml-2.3.tar"
        )
    for name, account in server["accounts"].items():
        if name in BUILTIN_ACCOUNTS:
            problems.append(
                f"{host}: clearml_server_accounts has {name!r}, which the server has itself "
                "(clearml_server_credentials); write another name, for example 'agent_train01'"
            )
        elif "display_name" in account and not str(account["display_name"]).strip():
            problems.append(
                f"{host}: clearml_server_accounts.{name}.display_name is empty; write a name that the pages show, for "
                f"example {name!r}"
            )
    return problems


def _domain_problems(server: Mapping[str, Any], host: str) -> list[str]:
    problems = []
    domain, tls = str(server["domain"]), str(server["tls"])
    for label in ("app.", "api.", "files."):
        if domain.startswith(label):
            problems.append(
                f"{host}: clearml_server_domain is {domain!r}, which names one service; write what the three have in "
                f"common: {domain[len(label) :]!r}"
            )
    if tls != "internal" and not domain:
        problems.append(
            f"{host}: clearml_server_tls is {tls!r}, but clearml_server_domain is empty, so nothing is encrypted; "
            "write the domain, for example 'clearml.example.org', or remove clearml_server_tls"
        )
    if domain and tls == "files":
        for variable, what in (("tls_certificate", "certificate and its chain"), ("tls_key", "private key")):
            if not server[variable]:
                problems.append(
                    f"{host}: clearml_server_{variable} is empty: write the path of a PEM file on this machine "
                    f"with the {what}, for example /etc/ssl/site/clearml.pem"
                )
        if not problems:
            names = [f"{label}.{domain}" for label in ("app", "api", "files")]
            files = [(f"clearml_server_tls_{name}", str(server[f"tls_{name}"])) for name in ("certificate", "key")]
            problems += [f"{host}: {problem}" for problem in pair_problems(files[0], files[1], names)]
    return problems


def _version_problems(server: Mapping[str, Any], host: str) -> list[str]:
    sets, version = server["versions"], str(server["version"])
    if version not in sets:
        return [
            f"{host}: clearml_server_version is {version!r}, which no version set has; write one of "
            f"{', '.join(map(repr, sorted(sets)))} (compose/server/versions.yml)"
        ]
    problems = []
    for name, image in server["images"].items():
        if name == "caddy":
            continue
        if name not in sets[version] or name == "fcv":
            problems.append(
                f"{host}: clearml_server_images has {name!r}; write images for "
                "server, mongo, elasticsearch, redis or caddy"
            )
            continue
        wanted = sets[version][name].rsplit(":", 1)[1]
        bare, _, digest = str(image).partition("@")
        tag = bare.rsplit(":", 1)[1] if ":" in bare.rsplit("/", 1)[-1] else ""
        if tag != wanted and not (digest and not tag):
            problems.append(
                f"{host}: clearml_server_images gives {name} the image {image!r}, but set {version!r} has version "
                f"{wanted!r} of it: parts of different sets do not work together; write that version, or a digest"
            )
    return problems


def _database_problems(server: Mapping[str, Any], host: str) -> list[str]:
    problems = []
    if server["surveyed"] and "elasticsearch" in server["own"] and server["heap_mb"] * 2 > server["memory_mb"]:
        problems.append(
            f"{host}: clearml_server_elasticsearch_heap_mb is {server['heap_mb']}, and Elasticsearch needs twice as "
            f"much, but clearml_server_memory_mb is {server['memory_mb']}; write at most {server['memory_mb'] // 4}"
        )
    if "elasticsearch" in server["own"] and server["elasticsearch_user"] != "elastic":
        problems.append(
            f"{host}: clearml_server_elasticsearch_user is {server['elasticsearch_user']!r}, but this host's own "
            "Elasticsearch has the user 'elastic'; write that, or name another Elasticsearch in "
            "clearml_server_elasticsearch_url"
        )
    for store in server["s3"]:
        if not (store.get("host") or store.get("bucket")):
            problems.append(
                f"{host}: clearml_server_s3 has {store!r}; write host ('s3.example.org:9000', for an S3-compatible "
                "store), bucket, or both, and key and secret from the vault"
            )
        elif not store.get("key") or not store.get("secret"):
            problems.append(
                f"{host}: clearml_server_s3 has no key or no secret for {store.get('host') or store.get('bucket')!r}; "
                "write both, from the vault"
            )
    marks = {name: str(server["watermarks"].get(name, "")) for name in ("low", "high", "flood_stage")}
    values = [float(mark[:-1]) if re.fullmatch(r"\d+(\.\d+)?%", mark) else -1.0 for mark in marks.values()]
    if min(values) <= 0 or max(values) >= 100 or sorted(set(values)) != values:
        problems.append(
            f"{host}: clearml_server_elasticsearch_watermarks is {marks}; write three rising percentages below 100%, "
            "e.g. {low: 85%, high: 90%, flood_stage: 95%}"
        )
    return problems


def trainyard_without_secrets(entries: Any) -> list[Any]:
    """Give a list of mappings with their secrets hidden."""
    hidden = {"key", "secret"}
    return [
        {name: ("***" if name in hidden and value else value) for name, value in entry.items()}
        if isinstance(entry, Mapping)
        else entry
        for entry in entries
    ]


def trainyard_authority_problems(
    files: Sequence[Mapping[str, Any]], variables: Mapping[str, str], host: str
) -> list[str]:
    """Find files on a host that do not hold the authorities that they should.

    Args:
        files: what slurp returned for each path, in ``item``.
        variables: the variable that names each path.
        host: the host, as the inventory names it.
    """
    problems = []
    for file in files:
        path, content = file["item"], file.get("content")
        if content is None:
            said = str(file.get("msg", "")).lower()
            why = "it is a folder" if "directory" in said and "no such" not in said else "it cannot be read on the host"
            fault = f"{why}; write the path of a PEM file that is there (package ca-certificates has the system's)"
        else:
            fault = pem_fault(base64.b64decode(content), "certificate")
        if fault:
            problems.append(f"{host}: {variables[path]} is {path!r}: {fault}")
    return problems


def trainyard_revision(texts: Sequence[Any]) -> str:
    """Give a short name for what a service reads at its start: another text, another name."""
    return hashlib.sha256("\0".join(map(str, texts)).encode()).hexdigest()[:16]


def trainyard_token_secret(secret: str, epoch: str) -> str:
    """Return the secret that signs the tokens of an epoch (module clearml_logins): a new epoch ends all logins."""
    return hmac.new(secret.encode(), epoch.encode(), hashlib.sha256).hexdigest()


def trainyard_names_problems(lines: Sequence[str], domain: str, host: str) -> list[str]:
    """Find names of a domain that have no address; ``lines`` are those that have one."""
    missing = [name for name in (f"app.{domain}", f"api.{domain}", f"files.{domain}") if name not in set(lines)]
    if not missing:
        return []
    return [
        f"{host}: clearml_server_domain is {domain!r}, but {', '.join(missing)} cannot be resolved on the server; make "
        f"app.{domain}, api.{domain} and files.{domain} (or *.{domain}) point to it in your DNS"
    ]


def trainyard_host_problems(
    survey: Mapping[str, Any], facts: Mapping[str, Any], needs: Mapping[str, Any], host: str
) -> list[str]:
    """Find what is wrong with a machine: system, memory, disk, ports that something else has."""
    problems = []
    system, release = str(facts.get("distribution")), str(facts.get("distribution_version"))
    known = SUPPORTED.get(system, set())
    if needs["system"] and release not in known and release.split(".", maxsplit=1)[0] not in known:
        wanted = ", ".join(f"{name} {' or '.join(sorted(versions))}" for name, versions in sorted(SUPPORTED.items()))
        problems.append(
            f"{host}: the system is {system} {release}; supported are {wanted}. "
            "Set preflight_check_system: false to try it"
        )
    if facts.get("architecture") != "x86_64":
        problems.append(f"{host}: the machine is {facts.get('architecture')!r}; the images are made for x86_64")
    if survey["memory_mb"] < needs["memory_mb"]:
        problems.append(
            f"{host}: the machine has {survey['memory_mb']} MB of memory, preflight_min_memory_mb asks for "
            f"{needs['memory_mb']}; give it more, or write a smaller preflight_min_memory_mb"
        )
    if needs.get("avx") and not survey["avx"]:
        problems.append(
            f"{host}: the processor has no AVX, which MongoDB needs from version 5 on; use another machine (or pass "
            "the host's processor through to the virtual machine), or name another MongoDB in clearml_server_mongo_uri"
        )
    for path, free in sorted(survey["free_mb"].items()):
        if free < needs["disk_mb"]:
            variable = needs.get("roots", {}).get(path)
            place = f"{variable} is {path!r}, which" if variable else path
            problems.append(
                f"{host}: {place} has {free} MB of free disk, preflight_min_disk_mb asks for {needs['disk_mb']}; "
                "free some, or write a smaller preflight_min_disk_mb"
            )
    for variable, port in sorted(needs["ports"].items()):
        owner = survey["ports"].get(str(port))
        if owner and owner["project"] != needs["project"]:
            problems.append(
                f"{host}: {variable} is {port}, and that port is taken by {owner['name']}; "
                f"stop it, or write another port"
            )
    return problems


def trainyard_env(value: object, *, shell: bool = False) -> str:
    """Write a value for an env file, so that what reads it gets that very value.

    Compose fills in ``$NAME`` in values without quotes, cuts them at `` #`` and strips blanks; in double quotes a
    backslash keeps what follows it. A value that needs no quotes stays as it is.

    Args:
        value: Text, number or truth value.
        shell: The file is read by a shell and by systemd (``EnvironmentFile=``), not by Compose: both know no bare
            blank, and a shell runs what stands between backticks.
    """
    text = str(value)
    if (BARE_IN_SHELL if shell else BARE_IN_COMPOSE).fullmatch(text):
        return text
    return '"' + re.sub(r'([\\"$`])' if shell else r'([\\"$])', r"\\\1", text) + '"'


class FilterModule:
    """Tells Ansible the filters."""

    def filters(self) -> dict[str, Any]:
        """Give the filters by name."""
        return {
            "clearml_agent_problems": clearml_agent_problems,
            "trainyard_services_host": trainyard_services_host,
            "trainyard_workers": trainyard_workers,
            "trainyard_site_problems": trainyard_site_problems,
            "trainyard_secret_problems": trainyard_secret_problems,
            "trainyard_server_problems": trainyard_server_problems,
            "trainyard_host_problems": trainyard_host_problems,
            "trainyard_without_secrets": trainyard_without_secrets,
            "trainyard_authority_problems": trainyard_authority_problems,
            "trainyard_revision": trainyard_revision,
            "trainyard_token_secret": trainyard_token_secret,
            "trainyard_names_problems": trainyard_names_problems,
            "trainyard_task_arguments": trainyard_task_arguments,
            "trainyard_env": trainyard_env,
        }
