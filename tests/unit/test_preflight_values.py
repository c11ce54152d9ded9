# ruff: noqa: E501 - a case is a line
"""Types, values and meaning of an inventory: every mistake gets a sentence, and every good value passes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import inventories
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "ansible/plugins/module_utils"))

import trainyard_values  # noqa: E402

NONE: dict[str, Any] = {}
PROXY = {"example": "http://proxy:3128"}
WIDE = {"least": 0.5, "most": 60, "whole": False, "example": 2}

# kind, settings, values that pass
GOOD: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("size", NONE, ["60g", "16G", "512m", "1.5t", "20mb", "1GiB", 2**30, "1073741824"]),
    ("size", {"words": ["auto"], "least": "6m"}, ["auto", "6m"]),
    ("size", {"percent": True}, ["10%", "0.5%", "50g"]),
    ("number", {"least": 1}, [1, 300, "60", 10**6, 2.0]),
    ("number", WIDE, [0.5, 2, 60, "1.5"]),
    ("port", NONE, [1, 8008, 65535, "8080"]),
    ("path", NONE, ["/data", "/usr/bin/python3", "/var/run/docker.sock", "/a.b/c_d-e+f@1"]),
    ("folder", NONE, ["/dvc_cache", "/opt/clearml", "/data/team/cache", "/srv/clearml", "/home/ml/cache"]),
    (
        "mount",
        NONE,
        ["/data", "/usr/bin/nvidia-smi", "/etc/simulated-gpus", "/mnt/nas/team", "/opt/clearml/examples/x.git"],
    ),
    ("host", NONE, ["clearml.example.org", "10.0.0.5", "clearml", "a-b.c1.org", "xn--bcher-kva.example", "127.0.0.1"]),
    ("host", {"reachable": True}, ["10.0.0.5", "172.17.0.1", "localhost-gw.example.org"]),
    ("host", {"domain": True}, ["clearml.example.org", "lab.test"]),
    ("host", {"port": True}, ["s3.example.org:9000", "s3.example.org", "10.0.0.5:9000"]),
    ("ssh_host", NONE, ["10.0.0.5", "train01", "my_box", "fe80::1", "[2001:db8::5]", "train01.example.org"]),
    ("address", NONE, ["0.0.0.0", "127.0.0.1", "10.0.0.5"]),
    ("url", NONE, ["http://10.0.0.5:8008", "https://api.example.org", "http://[2001:db8::1]:8008", "https://x.org/"]),
    ("url", {"credentials": True}, ["http://me:secret@proxy:3128", "http://proxy:3128/"]),
    ("url", {"path": True}, ["https://mirror.example.com/simple", "https://mirror.example.com/api/pypi/simple/"]),
    ("url", {"schemes": ["redis", "rediss"]}, ["redis://redis.example.org:6379", "rediss://r"]),
    (
        "no_proxy",
        NONE,
        ["localhost,127.0.0.1,.example.org", "10.0.0.0/8, 192.168.0.0/16", "*", "a.b:8080", "::1", "a,,b"],
    ),
    (
        "image",
        NONE,
        [
            "perception:3.11-cpu",
            "mirror.x.org:5000/a/b:1",
            "redis@sha256:" + "0" * 64,
            "ubuntu:22.04",
            "a__b/c-d:x_1",
            "x:5000",
        ],
    ),
    ("image", {"python": True}, ["trainyard/perception:{python}-cpu"]),
    ("image_pattern", NONE, ["trainyard/*", "mirror.example.org/team/*"]),
    ("registry", NONE, ["registry.example.com:5000", "10.0.0.5:5000", "registry/team/images"]),
    ("nfs", NONE, ["nas.example.org:/export/datasets", "10.0.0.5:/", "[2001:db8::1]:/data"]),
    ("email", NONE, ["alice@example.org", "a.b+c@x"]),
    ("login", NONE, ["alice", "a.b@example.org", "7up"]),
    ("unix_name", NONE, ["datasets", "_svc", "ml-team"]),
    ("pattern", NONE, ["^--shm-size(=.*)?$", "^-e$", "^(-v|--volume)=/data(/.*)?$", "--ipc=.*", "(env|-e)"]),
    ("one_of", {"words": ["auto", True, False]}, ["auto", True, False, "true", "False"]),
    ("gpus", NONE, ["auto", [], [0, 1], ["GPU-5d0c"]]),
    ("mongo", NONE, ["mongodb://me:secret@a,b/?replicaSet=rs0", "mongodb+srv://a/"]),
    ("tag", NONE, ["0.1.0", "2026-11_x"]),
    ("text", {"lines": True}, ["a\nb\n"]),
    ("known_hosts", NONE, ["git.example.org ssh-ed25519 AAAAC3\n# x\n|1|a|b ecdsa-sha2-nistp256 AAAA\n"]),
    ("word", NONE, ["rw,hard,nfsvers=4.2"]),
    ("no_proxy", NONE, ["my_host,*.corp,.a.b,[::1]:80,fd00::/8,example.org.,10.0.0.5:80"]),
    ("mount", {"target": True}, ["/data", "/etc/team", "/root/data"]),
    ("mount", NONE, ["/etc/localtime", "/dev/shm", "/home/team/data", "/etc/ssl/certs/ca-certificates.crt"]),
    ("ssh_host", NONE, ["train01.example.org.", "fe80::1%eth0", "my-alias+2"]),
    ("queue", NONE, ["all_gpus", "LARGE-GPU-1", "007"]),
    ("service", NONE, ["agent_train01", "ci-2"]),
    ("bucket", NONE, ["artifacts", "a.b-c", "Old_Bucket"]),
    ("release", NONE, ["bookworm", "noble"]),
    ("debian_package", NONE, ["nvidia-driver", "libstdc++6", "nvidia-driver-580-server"]),
    ("daemon_key", NONE, ["data-root", "ip6tables", "default-address-pools", "log-opts"]),
    ("option_name", NONE, ["privileged", "--volume", "-v", "v", "cap-add"]),
    ("unix_name", {"harmless": True}, ["datasets", "docker2"]),
    ("plugin", {"of": "connection"}, ["ssh", "local", "community.docker.docker"]),
    ("plugin", {"of": "become"}, ["sudo", "su", "community.general.doas"]),
    ("key_file", NONE, ["~/.ssh/id_ed25519", "/no/such/key", "keys/id"]),
    ("own_folder", NONE, ["/home/me/my sites/users", "/srv/users"]),
    (
        "key_source",
        NONE,
        ["https://x.example.org/gpgkey", "/usr/share/keyrings/nv.gpg", "-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n"],
    ),
    (
        "repository",
        NONE,
        [
            "https://git.example.org/a.git",
            "git@git.example.org:a/b.git",
            "ssh://git@g:2222/a",
            "file:///opt/x.git",
            "/opt/x.git",
        ],
    ),
    ("mongo", NONE, ["mongodb://u:p%40w@h1:27017,h2/db?replicaSet=rs0&authSource=admin"]),
    ("url", {"reachable": True}, ["http://10.0.0.5:8008", "https://api.example.org", "http://[2001:db8::1]:8008"]),
    ("pem", {"where": "node"}, ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/ca.pem"]),
]

# kind, settings, value, what the message says
WRONG: list[tuple[str, dict[str, Any], Any, str]] = [
    *(
        ("size", NONE, value, "without a space, for example 16g")
        for value in ("lots", "10 GB", "-1g", "g", "1e3", "1,5g", "٣g")
    ),
    *(
        ("size", NONE, value, "a number and a unit")
        for value in (None, True, [], {}, 1.5, ["1g"], "NaN", "1g\n", "0x10")
    ),
    ("size", NONE, "0", "the least is 1m"),
    ("size", NONE, 0, "the least is 1m"),
    ("size", {"least": "6m"}, "60", "it has no unit, so it counts bytes"),
    ("size", {"least": "6m"}, 512, "it has no unit, so it counts bytes"),
    ("size", {"words": ["auto"]}, "Auto", "or 'auto'"),
    *(("size", {"percent": True}, value, "a part of the disk") for value in ("0%", "100%", "%", "-5%", "200%", "10 %")),
    *(
        ("number", {"least": 1}, value, "write a whole number, 1 or more")
        for value in ("many", 0, -1, 1.5, True, None, [1], "", "1m")
    ),
    *(("number", WIDE, value, "from 0.5 to 60") for value in (0.1, 61, "2s", float("nan"), float("inf"), "inf", False)),
    *(
        ("port", NONE, value, "write a port from 1 to 65535")
        for value in (0, 65536, -1, "http", 80.5, True, None, [80], "8008/tcp")
    ),
    *(
        ("path", NONE, value, "write an absolute path")
        for value in (
            "data",
            "./data",
            "~/data",
            "/a/../b",
            "/a b",
            "/a/",
            "/a//b",
            "/a:b",
            "/",
            "",
            "/a/.",
            "$HOME/x",
            "/a,b",
        )
    ),
    ("path", NONE, ["/a"], "it is a list"),
    ("path", NONE, 5, "in quotes"),
    *(
        ("folder", NONE, value, "folder of its own")
        for value in ("/", "/etc", "/usr/local/clearml", "/root/x", "/var/lib/docker", "/data")
    ),
    *(
        ("folder", NONE, value, "write an absolute path")
        for value in ("opt/clearml", "/opt/../etc", "/opt/a b", "/opt/x/")
    ),
    *(
        ("mount", NONE, value, "a folder of the system")
        for value in ("/", "/etc", "/etc/", "/usr", "/var", "/root", "/home", "//", "/proc")
    ),
    *(
        ("mount", NONE, value, "it gives experiments the node")
        for value in ("/var/run/docker.sock", "/proc/1", "/sys/fs/cgroup")
    ),
    *(("mount", NONE, value, "write an absolute path") for value in ("data", "/a:/b", "/a/../etc", "~")),
    ("host", NONE, "http://clearml", "it has a scheme or a path; write a name or IPv4 address"),
    ("host", NONE, "clearml/x", "it has a scheme or a path"),
    ("host", NONE, "clearml:8008", "it has a port"),
    ("host", NONE, "clearml.example.org.", "it ends with a dot"),
    ("host", NONE, "my_server", "no underscore"),
    ("host", NONE, "-x", "letters, digits, hyphens"),
    ("host", NONE, "a..b", "letters, digits, hyphens"),
    ("host", NONE, "a b", "letters, digits, hyphens"),
    ("host", NONE, "clearml\n", "line break"),
    ("host", NONE, "x" * 64, "letters, digits, hyphens"),
    *(
        ("host", NONE, value, "it is not an IPv4 address")
        for value in ("10.0.0.999", "10.0.0", "1.2.3.4.5", "256.1.1.1", "10", "0x7f")
    ),
    ("host", NONE, "2001:db8::1", "IPv6 is not supported"),
    ("host", NONE, 10.5, "in quotes"),
    ("host", NONE, ["a"], "it is a list"),
    *(
        ("host", {"reachable": True}, value, "the address that other machines use")
        for value in ("localhost", "127.0.0.1", "0.0.0.0", "127.1.2.3")
    ),
    *(("host", {"domain": True}, value, "not a domain's name") for value in ("clearml", "10.0.0.5")),
    ("host", {"port": True}, "s3:99999", "is not a port"),
    ("host", {"port": True}, "https://s3.example.org", "it has a scheme"),
    *(
        ("ssh_host", NONE, value, "write")
        for value in ("10.0.0.999", "ssh://x", "me@x", "a b", "-oProxyCommand=x", "train01:22", 7, None)
    ),
    *(
        ("address", NONE, value, "an IPv4 address of the host")
        for value in ("localhost", "10.0.0.999", "eth0", "10.0.0.0/8", "::", "0")
    ),
    ("url", PROXY, "proxy:3128", "write it with a scheme, for example http://proxy:3128"),
    ("url", PROXY, "mirror.example.com", "write it with a scheme, for example http://mirror.example.com"),
    ("url", PROXY, "//proxy", "write it with a scheme, for example http://proxy:3128"),
    ("url", NONE, "http:/proxy", "write it with a scheme"),
    ("url", NONE, "htp://proxy", "its scheme is 'htp'; write http:// or https://"),
    ("url", NONE, "ftp://proxy", "its scheme is 'ftp'"),
    ("url", NONE, "http://", "its host or port is not one"),
    ("url", NONE, "http://:3128", "its host or port is not one"),
    ("url", NONE, "http://proxy:", "its host or port is not one"),
    ("url", NONE, "http://proxy:port", "its host or port is not one"),
    ("url", NONE, "http://proxy:99999", "its host or port is not one"),
    ("url", NONE, "http://[::1", "its host or port is not one"),
    ("url", NONE, "http://pro xy:3128", "a space or a character"),
    ("url", NONE, "http://proxy:3128 ", "a space or a character"),
    ("url", NONE, "http://10.0.0.999:3128", "not an IPv4 address"),
    ("url", NONE, "http://my_proxy:3128", "no underscore"),
    ("url", NONE, "https://mirror.example.com/docker", "it has the path '/docker', and none is possible"),
    ("url", {"path": True}, "https://mirror.example.com/simple?x=1", "it has '?' or '#'"),
    ("url", NONE, "https://me:hush@mirror.example.com", "it has a user or a password in it"),
    ("url", NONE, ["http://proxy:3128"], "it is a list; write one text"),
    ("url", NONE, None, "not as text"),
    ("url", {"schemes": ["redis", "rediss"]}, "http://redis", "its scheme is 'http'; write redis:// or rediss://"),
    ("no_proxy", NONE, ["localhost", ".example.org"], "it is a list; write one text, for example"),
    ("no_proxy", NONE, {"localhost": None}, "it is a mapping; write one text"),
    ("no_proxy", NONE, "localhost 127.0.0.1", "'localhost 127.0.0.1' is not one host"),
    ("no_proxy", NONE, "http://localhost", "is not one host"),
    ("no_proxy", NONE, "localhost,10.0.0.0/99", "is not a network"),
    ("no_proxy", NONE, "10.0.0.999", "is not an IPv4 address"),
    ("image", NONE, "team/image 1", "it holds a space; write one image"),
    ("image", NONE, "--volume=/:/host", "it is an option, not an image"),
    ("image", NONE, "-it", "it is an option"),
    ("image", NONE, "Team/Image:1", "lower case"),
    ("image", NONE, "image:", "write one image"),
    ("image", NONE, "image@sha256:12", "write one image"),
    ("image", NONE, "https://registry/x", "it has a scheme"),
    ("image", NONE, "10.0.0.999/x", "not an IPv4 address"),
    ("image", NONE, "a//b", "write one image"),
    ("image", NONE, "image:1\n", "line break"),
    ("image", NONE, 3.11, "in quotes"),
    ("image", NONE, ["a"], "it is a list"),
    ("image", NONE, "trainyard/perception:{python}-cpu", "write one image"),
    *(
        ("registry", NONE, value, "write HOST:PORT without https://")
        for value in ("https://r:5000", "r:port", "r:5000/Team", "a b", "r_x:5000")
    ),
    *(
        ("nfs", NONE, value, "write server and export")
        for value in ("nas", "/export", "nas:export", "10.0.0.999:/x", "a b:/x", "nas:/a b")
    ),
    *(
        ("email", NONE, value, "alice@example.org")
        for value in ("alice", "a b@x.org", "@x.org", "alice@", "alice@x..org")
    ),
    *(("unix_name", NONE, value, "small letters") for value in ("Data Sets", "1st", "-x", "a:b", "x" * 40)),
    *(("pattern", NONE, value, "it is not a regular expression") for value in ("(", "[a", "*x", "a{2,1}")),
    ("pattern", NONE, "", "fits everything"),
    *(
        ("one_of", {"words": ["auto", True, False]}, value, "write 'auto', true, false")
        for value in ("maybe", 1, None, [])
    ),
    *(
        ("gpus", NONE, value, "write auto, or a list of GPU indexes")
        for value in (0, None, {}, [[0]], [0.5], [None], True)
    ),
    *(
        ("known_hosts", NONE, value, "ssh-keyscan HOST")
        for value in ("~/.ssh/known_hosts", "git.example.org", "ssh-ed25519 AAAA")
    ),
    ("word", NONE, "rw, hard", "without spaces"),
    ("mongo", NONE, "mongo.x.org", "write it like mongodb://"),
    ("tag", NONE, "a b", "an image's tag"),
    # what a parser of numbers takes besides
    *(
        ("number", {"least": 0}, value, "write a whole number")
        for value in ("1_000", " 8", "8 ", "٣", "1e1", "0x10", "+", "1.", "²")
    ),
    *(("port", NONE, value, "write a port") for value in ("8_008", " 8008", "0x50")),
    ("number", {"least": 1, "unit": "seconds"}, 10**12, "the most is 2147483647"),
    ("size", NONE, "99999t", "no machine has so much"),
    # images
    *(
        ("image", NONE, value, "it has no tag")
        for value in ("ubuntu", "registry/team/images", "registry.example.org:5000/team/image", "trainyard/agent")
    ),
    ("image", NONE, "registry.example.org:5000", "it is a registry without an image"),
    ("image", NONE, "localhost:5000", "it is a registry without an image"),
    ("image", NONE, "registry.example.org:99999/x:1", "'99999' is not a port"),
    ("image", NONE, "trainyard/perception:{pyhton}-cpu", "a placeholder that nothing fills in"),
    ("image", {"python": True}, "{python}", "it has no tag"),
    *(
        ("image", NONE, value, "write one image")
        for value in (
            "img:tag:tag",
            "../x:1",
            "bücher/x:1",
            "img:1 --privileged",
            "x" * 700 + ":1",
            ":1",
            "@sha256:1",
            "a/:1",
        )
    ),
    ("registry", NONE, "r:5000/team/image:1.0", "is not a folder of images"),
    # places
    *(
        ("mount", NONE, value, "it gives experiments the node")
        for value in (
            "/etc/shadow",
            "/etc/ssh",
            "/etc/sudoers.d/x",
            "/root/.ssh",
            "/dev/sda1",
            "/dev/nvme0n1",
            "/dev/mem",
            "/run/containerd/containerd.sock",
            "/srv/docker.sock",
            "/var/lib/docker/volumes",
            "/var/lib/kubelet/pods",
            "/boot/grub",
        )
    ),
    *(
        ("mount", {"target": True}, value, "it would hide a folder of the system")
        for value in ("/", "/etc", "/root", "/usr")
    ),
    *(
        ("own_folder", NONE, value, "write its whole path")
        for value in ("users", "~/users", "./users", "/srv/../users", "")
    ),
    ("own_folder", NONE, "/", "a folder of the system"),
    ("own_folder", NONE, "/etc/hostname", "it is a file on this machine"),
    ("key_file", NONE, "/etc", "it is a folder"),
    ("key_file", NONE, ["x"], "it is a list"),
    ("bundle", NONE, "/etc/hostname", "it is not an archive"),
    ("bundle", NONE, "bundle.tar", "write its whole path"),
    *(("pem", {"where": "node"}, value, "it is a folder") for value in ("/etc", "/etc/ssl", "/etc/ssl/certs")),
    # hosts
    *(
        ("host", NONE, value, "the address that other machines use")
        for value in ("0.0.0.0", "255.255.255.255", "224.0.0.1")
    ),
    *(
        ("ssh_host", NONE, value, "write")
        for value in (
            "",
            "a,b",
            "x;y",
            "$(id)",
            "a..b",
            ".a",
            "0.0.0.0",
            "10.0.0.5.",
            "10.0.5",
            "a|b",
            "`id`",
            "a b",
            "a\\b",
        )
    ),
    *(
        ("url", {"reachable": True}, value, "its host is")
        for value in (
            "http://localhost:8008",
            "http://127.0.0.1",
            "http://0.0.0.0:8008",
            "http://localhost.localdomain/",
        )
    ),
    *(
        ("no_proxy", NONE, value, "is not")
        for value in (
            "localhost;.example.org",
            "['localhost']",
            "10.0.0",
            "10.0.0.0-10.0.0.9",
            "10.0.0.*",
            "a|b",
            "10.0.0.0/8.x",
            '"a"',
        )
    ),
    *(
        ("mongo", NONE, value, "write it like mongodb://")
        for value in (
            "mongodb://",
            "mongodb://h:99999/",
            "mongodb://10.0.0.999/",
            "mongodb://h:/",
            "http://h",
            "mongodb://a,,b/",
        )
    ),
    ("mongo", NONE, "mongodb://u:p@w@h/", "written as %40"),
    ("nfs", NONE, "nfs://nas/export", "two slashes"),
    ("nfs", NONE, "nas://export", "two slashes"),
    *(
        ("repository", NONE, value, "write")
        for value in ("not a url", "digits", "htp://x/y", "git@:x", "/opt/../x", "file://x/y")
    ),
    # words
    *(
        ("queue", NONE, value, "three or more letters")
        for value in ("", "ab", "a b", "-ab", "größe", "a" * 200, "a.b.c")
    ),
    *(("service", NONE, value, "write a letter") for value in ("agent x", "1a", "a.b", "", "a/b")),
    *(("bucket", NONE, value, "the name of the bucket alone") for value in ("B ucket", "s3://b/x", "b/x", "x")),
    *(("release", NONE, value, "the code name") for value in ("book worm", "Bookworm", "12", "")),
    *(("debian_package", NONE, value, "the name of a package") for value in ("--option", "nvidia driver", "x;y", "")),
    *(
        ("daemon_key", NONE, value, "small letters and hyphens")
        for value in ("data_root", 5, None, "Data-Root", "", "log opts")
    ),
    ("daemon_key", NONE, "registry-mirrors", "write docker_engine_registry_mirrors"),
    *(("option_name", NONE, value, "no such option") for value in ("priviledged", "z", "no-such")),
    *(("option_name", NONE, value, "alone") for value in ("--volume=/x", "a b", "", "-")),
    *(("unix_name", {"harmless": True}, value, "a group of its own") for value in ("root", "docker", "sudo", "disk")),
    ("plugin", {"of": "connection"}, "shh", "Ansible has no such connection plugin"),
    ("plugin", {"of": "become"}, "sudoo", "Ansible has no such become plugin"),
    *(
        ("key_source", NONE, value, "-----BEGIN PGP PUBLIC KEY BLOCK-----")
        for value in ("nvidia.github.io/gpgkey", "htp://x/y", "gpgkey.asc", "~/x", "https://")
    ),
    *(("login", NONE, value, "write letters") for value in ("x" * 300, "a b", "-a", "../x", "größe")),
    *(("container_name", NONE, value, "write letters") for value in ("x" * 300, "a b", "a/b", "..", "größe")),
    *(("pattern", NONE, value, "it fits every option") for value in (".*", "^.*$", "^--?[a-z-]+$", "^-.*", ".+")),
    *(("pattern", NONE, value, "it fits nothing") for value in ("shm-size", "^env=.*", "ipc")),
    ("text", NONE, False, "YAML reads it as false"),
    ("text", NONE, 2.3, 'YAML reads it as a number; write it in quotes: "2.3"'),
    ("text", NONE, "a\nb", "it holds a line break"),
    ("text", {"lines": True}, "a\x00b", "control characters"),
]


@pytest.mark.parametrize(("kind", "settings", "values"), GOOD, ids=[f"{case[0]}-{n}" for n, case in enumerate(GOOD)])
def test_good_values_pass(kind: str, settings: dict[str, Any], values: list[Any]) -> None:
    assert {repr(value): trainyard_values.KINDS[kind](value, settings) for value in values} == {
        repr(value): "" for value in values
    }


@pytest.mark.parametrize(("kind", "settings", "value", "told"), WRONG, ids=[f"{c[0]}-{c[2]!r}"[:50] for c in WRONG])
def test_wrong_values_are_told_with_what_to_write(kind: str, settings: dict[str, Any], value: Any, told: str) -> None:
    said = trainyard_values.KINDS[kind](value, settings)
    assert told in said
    assert "hush" not in said


@pytest.mark.parametrize("kind", sorted(trainyard_values.KINDS))
def test_every_kind_copes_with_every_type(kind: str) -> None:
    settings = {"words": ["auto"]}
    for value in (
        None,
        True,
        False,
        0,
        -1,
        2**70,
        1.5,
        float("nan"),
        "",
        " ",
        "x",
        "é",
        "\0",
        "a" * 9999,
        [],
        [None],
        {},
        {1: 2},
    ):
        assert isinstance(trainyard_values.KINDS[kind](value, settings), str)


# --- PEM -------------------------------------------------------------------------------------------------------------


def certificate(days: int) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=100))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM), key


def test_files_with_certificates_and_keys(tmp_path: Path) -> None:
    good, key = certificate(10)
    old, _ = certificate(-1)
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hush"))
    (tmp_path / "folder").mkdir()
    told = {
        "good": "",
        "bundle": "",
        "old": "it was valid until",
        "key": "it holds a private key, not certificates",
        "text": "it holds no PEM, not certificates",
        "empty": "it holds no PEM",
        "cut": "damaged or cut off",
        "folder": "it is a folder",
        "missing": "it does not exist on this machine",
    }
    content = {"good": good, "bundle": b"# mine\n" + old + good, "old": old, "key": plain, "text": b"hi", "empty": b""}
    content["cut"] = good[: len(good) // 2]
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    pem = trainyard_values.pem
    for name, words in told.items():
        said = pem(str(tmp_path / name), NONE)
        assert (words in said) if words else said == "", (name, said)
    assert "write its whole path" in pem("files/ca.pem", NONE)
    assert "it is a list" in pem([str(tmp_path / "good")], NONE)
    wanted = {"what": "key"}
    (tmp_path / "locked").write_bytes(locked)
    assert pem(str(tmp_path / "key"), wanted) == ""
    assert "it holds a certificate, not a private key" in pem(str(tmp_path / "good"), wanted)
    assert "its key has a password" in pem(str(tmp_path / "locked"), wanted)
    wanted = {"where": "text"}
    assert pem(good.decode(), wanted) == ""
    assert "it is a path; write the text" in pem("/etc/ca.pem", wanted)
    assert "no PEM" in pem("my authority", wanted)
    # The system's own bundle, whatever is in it.
    assert trainyard_values.pem_fault(Path("/etc/ssl/certs/ca-certificates.crt").read_bytes(), "certificate") == ""


def test_authorities_that_a_host_lacks_are_told() -> None:
    filters = inventories.load("ansible/plugins/filter/trainyard.py").FilterModule().filters()
    good, _ = certificate(10)
    files = [
        {"item": "/good", "content": base64.b64encode(good).decode()},
        {"item": "/text", "content": base64.b64encode(b"hello").decode()},
        {"item": "/missing", "failed": True, "msg": "file not found: /missing"},
        {"item": "/folder", "failed": True, "msg": "source is a directory and must be a file: /folder"},
    ]
    variables = {file["item"]: f"site_ca_bundle_of{file['item']}" for file in files}
    text, missing, folder = filters["trainyard_authority_problems"](files, variables, "one")
    assert text.startswith(
        "one: site_ca_bundle_of/text is '/text': it holds no PEM, not certificates; write a PEM file"
    )
    assert "is '/missing': it cannot be read on the host; write the path" in missing
    assert "is '/folder': it is a folder" in folder


# --- specifications --------------------------------------------------------------------------------------------------


ROLES = sorted(path.parents[1] for path in ROOT.glob("ansible/roles/*/meta/argument_specs.yml"))


def options(role: Path) -> dict[str, Any]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())
    return dict(specs["argument_specs"]["main"]["options"])


@pytest.mark.parametrize("role", ROLES, ids=[role.name for role in ROLES])
def test_kinds_belong_to_options_and_defaults_are_good_values(role: Path) -> None:
    types = yaml.safe_load((role / "meta/value_types.yml").read_text())
    for name, option in trainyard_values.augment(options(role), types).items():
        default = option.get("default")
        if "default" in option and "{{" not in json.dumps(default) and not option.get("rule", {}).get("filled"):
            assert trainyard_values.complaints(name, option, default) == []


def test_a_kind_without_an_option_or_a_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="no option has this name"):
        trainyard_values.augment({}, {"x": "size"})
    with pytest.raises(ValueError, match="there is no kind 'sise'"):
        trainyard_values.augment({"x": {"type": "str"}}, {"x": "sise"})


def test_every_variable_of_the_sites_file_has_a_kind() -> None:
    known = yaml.safe_load((ROOT / "ansible/roles/preflight/meta/site_variables.yml").read_text())
    for path in ROOT.glob("inventory/*/group_vars/all/site.yml"):
        assert set(yaml.safe_load(path.read_text())) <= set(known), path


# --- inventories -----------------------------------------------------------------------------------------------------

NODE = "clearml_agent"
# group, variables of one host, what its sentences hold
CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    # types
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "queue": "big"}]}, ["clearml_agent_workers[0] has the unknown key 'queue'", "write queues"]),
    ("nodes", {"clearml_agent_workers": "train01-big"}, ["clearml_agent_workers is 'train01-big'", "write a list, for example [{name"]),
    ("nodes", {"clearml_agent_workers": {"name": "w01"}}, ["clearml_agent_workers is {'name': 'w01'}", "write a list"]),
    ("nodes", {"clearml_agent_workers": ["w01", "w02"]}, ["clearml_agent_workers[0] is 'w01'", "clearml_agent_workers[1]", "write a mapping"]),
    ("nodes", {"clearml_agent_workers": None}, ["clearml_agent_workers is empty (null)", "write a list"]),
    ("nodes", {"clearml_agent_workers": [None]}, ["clearml_agent_workers[0] is empty (null)", "write a mapping"]),
    ("nodes", {"clearml_agent_workers": [{"gpus": [0]}]}, ["clearml_agent_workers[0] has no name"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "gpus": 0}]}, ["clearml_agent_workers[0].gpus is 0", "write a list, for example [0, 1]"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "gpus": [[0]]}]}, ["clearml_agent_workers[0].gpus[0] is [0]", "the GPU's index"]),
    ("nodes", {"clearml_agent_workers": [{"name": 42}]}, ["clearml_agent_workers[0].name is 42", "in quotes"]),
    ("nodes", {"clearml_agent_workers": [{"name": False}]}, ["clearml_agent_workers[0].name is false", "in quotes"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "queues": "big"}]}, ["clearml_agent_workers[0].queues is 'big'", "write a list"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "queues": [7]}]}, ["clearml_agent_workers[0].queues[0] is 7", "in quotes"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "services": "many"}]}, ["services is 'many'", "experiments at once"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "services": -1}]}, ["services is -1"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "services": True}]}, ["services is true", "whole number"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "memory": "60 GB"}]}, ["clearml_agent_workers[0].memory is '60 GB'", "for example 60g"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "memory": ["60g"]}]}, ["clearml_agent_workers[0].memory is ['60g']"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "cpus": "all"}]}, ["clearml_agent_workers[0].cpus is 'all'", "for example 8"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "cpus": 0}]}, ["clearml_agent_workers[0].cpus is 0"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "shm_size": "lots"}]}, ["shm_size is 'lots'", "for example 16g"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w01", "image": "--volume=/:/host"}]}, ["image is '--volume=/:/host'", "it is an option"]),
    ("nodes", {"clearml_agent_gpus": 0}, ["clearml_agent_gpus is 0", "write auto, or a list"]),
    ("nodes", {"clearml_agent_gpus": None}, ["clearml_agent_gpus is empty (null)"]),
    ("nodes", {"clearml_agent_gpus": {"a": 1}}, ["clearml_agent_gpus is {'a': 1}"]),
    ("nodes", {"clearml_agent_gpus": "all"}, ["clearml_agent_gpus is 'all'"]),
    ("nodes", {"clearml_agent_gpus": [[0]]}, ["clearml_agent_gpus is [[0]]"]),
    ("nodes", {"clearml_agent_lost_experiments": "retry"}, ["clearml_agent_lost_experiments is 'retry'", "'requeue' or 'fail'"]),
    ("nodes", {"clearml_agent_wait_seconds": "two minutes"}, ["clearml_agent_wait_seconds is 'two minutes'", "whole number of seconds"]),
    ("nodes", {"clearml_agent_reaper_dead_seconds": -5}, ["clearml_agent_reaper_dead_seconds is -5", "1 or more"]),
    ("nodes", {"clearml_agent_poll_seconds": True}, ["clearml_agent_poll_seconds is true"]),
    ("nodes", {"clearml_agent_common_queues": "all_gpus"}, ["clearml_agent_common_queues is 'all_gpus'", "write a list, for example [all_gpus]"]),
    ("nodes", {"clearml_agent_common_queues": {"all": 1}}, ["clearml_agent_common_queues is {'all': 1}", "write a list"]),
    ("nodes", {"clearml_agent_queue_descriptions": ["all_gpus"]}, ["clearml_agent_queue_descriptions is ['all_gpus']", "write a mapping"]),
    ("nodes", {"clearml_agent_queue_descriptions": {"all_gpus": 5}}, ["clearml_agent_queue_descriptions.all_gpus is 5", "in quotes"]),
    ("nodes", {"clearml_agent_extra_mounts": "/data"}, ["clearml_agent_extra_mounts is '/data'", "write a list, for example [{source"]),
    ("nodes", {"clearml_agent_extra_mounts": ["/data"]}, ["clearml_agent_extra_mounts[0] is '/data'", "write a mapping"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"src": "/data"}]}, ["has the unknown key 'src'", "has no source"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/data", "read_only": "maybe"}]}, ["read_only is 'maybe'", "true or false"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/"}]}, ["clearml_agent_extra_mounts[0].source is '/'", "a folder of the system"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/data", "target": "/etc"}]}, ["target is '/etc'"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "data"}]}, ["source is 'data'", "write an absolute path"]),
    ("nodes", {"clearml_agent_check_gpus": "perhaps"}, ["clearml_agent_check_gpus is 'perhaps'", "write true or false"]),
    ("nodes", {"clearml_agent_cache_gid": "datasets"}, ["clearml_agent_cache_gid is 'datasets'", "whole number"]),
    ("nodes", {"clearml_agent_no_proxy": ["localhost"]}, ["clearml_agent_no_proxy is ['localhost']", "it is a list; write one text"]),
    ("nodes", {"clearml_agent_http_proxy": "proxy:3128"}, ["clearml_agent_http_proxy is 'proxy:3128' (hosts.yml:", "http://proxy:3128"]),
    ("nodes", {"clearml_agent_task_memory": "0"}, ["clearml_agent_task_memory is '0'", "the least is 6m"]),
    ("nodes", {"clearml_agent_task_memory": 60}, ["clearml_agent_task_memory is 60", "it counts bytes"]),
    ("nodes", {"clearml_agent_default_docker_image": "my image"}, ["clearml_agent_default_docker_image is 'my image'", "it holds a space"]),
    ("nodes", {"clearml_agent_image": ""}, ["clearml_agent_image is empty"]),
    ("nodes", {"clearml_agent_docker_args_filters": ["^-e$", "("]}, ["clearml_agent_docker_args_filters[1] is '('", "not a regular expression"]),
    ("nodes", {"clearml_agent_docker_args_filters": "^-e$"}, ["clearml_agent_docker_args_filters is '^-e$'", "write a list"]),
    ("nodes", {"clearml_agent_root": "/"}, ["clearml_agent_root is '/'"]),
    ("nodes", {"clearml_agent_root": "opt/agent"}, ["clearml_agent_root is 'opt/agent'", "write an absolute path"]),
    ("nodes", {"clearml_agent_root": "/opt/clearml/../../etc"}, ["clearml_agent_root is"]),
    ("nodes", {"clearml_agent_api_url": ""}, ["clearml_agent_api_url is empty", "http://10.0.0.5:8008"]),
    ("nodes", {"clearml_agent_api_url": "10.0.0.5:8008"}, ["clearml_agent_api_url is '10.0.0.5:8008'", "for example http://10.0.0.5:8008"]),
    ("nodes", {"clearml_agent_ca_bundle": "certs/ca.pem"}, ["clearml_agent_ca_bundle is 'certs/ca.pem'", "write an absolute path"]),
    ("nodes", {"clearml_agent_extra_index_urls": "https://x/simple"}, ["clearml_agent_extra_index_urls is", "write a list"]),
    ("nodes", {"clearml_agent_git_known_hosts": ["a"]}, ["clearml_agent_git_known_hosts is ['a']", "it is a list"]),
    ("nodes", {"clearml_agent_git_token": 47114711, "clearml_agent_git_user": "bot"}, ["clearml_agent_git_token (value hidden)", "in quotes"]),
    ("nodes", {"clearml_node_name": 42}, ["clearml_node_name is 42", "in quotes"]),
    ("nodes", {"dataset_cache_max_size": "10 GB"}, ["dataset_cache_max_size is '10 GB'", "for example 500g"]),
    ("nodes", {"dataset_cache_min_free": "150%"}, ["dataset_cache_min_free is '150%'", "10%"]),
    ("nodes", {"dataset_cache_mounts": "/data"}, ["dataset_cache_mounts is '/data'", "write a list, for example [/data]"]),
    ("nodes", {"dataset_cache_nfs": "nas"}, ["dataset_cache_nfs is 'nas'", "server and export"]),
    ("nodes", {"dataset_cache_path": "/etc/cache"}, ["dataset_cache_path is '/etc/cache'"]),
    ("nodes", {"dataset_cache_gid": "many"}, ["dataset_cache_gid is 'many'"]),
    ("nodes", {"dataset_cache_members": "alice"}, ["dataset_cache_members is 'alice'", "write a list"]),
    ("nodes", {"docker_engine_registry_mirrors": ["mirror.example.com"]}, ["docker_engine_registry_mirrors[0] is 'mirror.example.com'", "http://mirror.example.com"]),
    ("nodes", {"docker_engine_registry_mirrors": ["https://mirror.example.com/hub"]}, ["it has the path '/hub'"]),
    ("nodes", {"docker_engine_daemon_extra": ["x"]}, ["docker_engine_daemon_extra is ['x']", "write a mapping"]),
    ("nodes", {"docker_engine_log_max_size": "20 MB"}, ["docker_engine_log_max_size is '20 MB'"]),
    ("nodes", {"nvidia_container_toolkit_enabled": "maybe"}, ["nvidia_container_toolkit_enabled is 'maybe'", "'auto', true, false"]),
    ("nodes", {"nvidia_container_toolkit_cuda": 12.4}, ["nvidia_container_toolkit_cuda is 12.4", 'in quotes: "12.4"']),
    ("nodes", {"perception_images_matrix": "3.11"}, ["perception_images_matrix is '3.11'", "write a list"]),
    ("nodes", {"perception_images_matrix": [{"python": 3.11}]}, ["perception_images_matrix[0].python is 3.11", "in quotes"]),
    ("nodes", {"perception_images_matrix": ["3.11"]}, ["perception_images_matrix[0] is '3.11'"]),
    ("nodes", {"perception_images_matrix": [{"python": "3.11", "groups": "core"}]}, ["perception_images_matrix[0].groups is 'core'", "list"]),
    ("nodes", {"perception_images_matrix": [{"python": ["3.11"], 5: 1}]}, ["perception_images_matrix[0]"]),
    ("nodes", {"perception_images_systems": {"3.11": "bookworm"}}, ["perception_images_systems.3.11 is 'bookworm'", "write a mapping"]),
    ("nodes", {"perception_images_groups": ["lidr"]}, ["perception_images_groups[0] is 'lidr'", "'lidar'"]),
    ("nodes", {"perception_images_names": ["agnet"]}, ["perception_images_names[0] is 'agnet'", "'agent'"]),
    ("nodes", {"perception_images_keep": "all"}, ["perception_images_keep is 'all'"]),
    ("nodes", {"perception_images_registry": "https://r:5000"}, ["perception_images_registry is 'https://r:5000'", "HOST:PORT"]),
    ("nodes", {"perception_images_registry_password": ["hush"]}, ["perception_images_registry_password (value hidden)"]),
    ("nodes", {"site_http_proxy": "proxy:3128"}, ["site_http_proxy is 'proxy:3128'", "http://proxy:3128"]),
    ("nodes", {"site_no_proxy": ["localhost"]}, ["site_no_proxy is ['localhost']", "write one text"]),
    ("nodes", {"registry_mirror": "mirror.example.com"}, ["registry_mirror is 'mirror.example.com'"]),
    ("nodes", {"ansible_port": "ssh"}, ["ansible_port is 'ssh'"]),
    ("nodes", {"preflight_disk_paths": "/opt"}, ["preflight_disk_paths is '/opt'", "write a list"]),
    # meaning
    ("nodes", {"clearml_agent_gpus": [0, 0]}, ["clearml_agent_gpus has GPU 0 twice"]),
    ("nodes", {"clearml_agent_workers": [{"name": "a01", "gpus": [0]}, {"name": "b01", "gpus": [0]}]}, ["gives GPU 0 to the workers 'a01' and 'b01'"]),
    ("nodes", {"clearml_agent_workers": [{"name": "a02", "gpus": [0], "services": 2}]}, ["services and the GPUs [0]"]),
    ("nodes", {"dataset_cache_path": "/cache/one", "dataset_cache_clearml_path": "/cache/one/two"}, ["dataset_cache_clearml_path is '/cache/one/two', which lies in '/cache/one' (dataset_cache_path)"]),
    ("nodes", {"clearml_agent_root": "/srv/ml", "dataset_cache_path": "/srv/ml/dvc"}, ["dataset_cache_path is '/srv/ml/dvc', which lies in '/srv/ml' (clearml_agent_root)"]),
    ("nodes", {"clearml_agent_root": "/srv/ml2", "dataset_cache_pruner_root": "/srv/ml2"}, ["clearml_agent_root and dataset_cache_pruner_root are both '/srv/ml2'"]),
    ("nodes", {"clearml_agent_git_token": "hush"}, ["clearml_agent_git_user and clearml_agent_git_token belong together"]),
    ("nodes", {"site_ca_bundle": "{{ nothing_knows_this }}"}, ["site_ca_bundle is '{{ nothing_knows_this }}' (hosts.yml:", "'nothing_knows_this' is undefined; define nothing_knows_this"]),
    # the server
    ("server", {"clearml_server_flavor": "offical"}, ["clearml_server_flavor is 'offical'", "'lite' or 'official'"]),
    ("server", {"clearml_server_version": 2.3}, ["clearml_server_version is 2.3", 'in quotes: "2.3"']),
    ("server", {"clearml_server_host": "10.0.0.999"}, ["clearml_server_host is '10.0.0.999'", "not an IPv4 address"]),
    ("server", {"clearml_server_host": "localhost"}, ["clearml_server_host is 'localhost'", "other machines use"]),
    ("server", {"clearml_server_host": ""}, ["clearml_server_host is empty", "clearml.example.org"]),
    ("server", {"clearml_server_host": "my_server"}, ["clearml_server_host is 'my_server'", "no underscore"]),
    ("server", {"clearml_server_api_port": "api"}, ["clearml_server_api_port is 'api'", "from 1 to 65535"]),
    ("server", {"clearml_server_web_port": 8008}, ["clearml_server_web_port is 8008", "clearml_server_api_port"]),
    ("server", {"clearml_server_uid": "clearml"}, ["clearml_server_uid is 'clearml'", "whole number"]),
    ("server", {"clearml_server_gid": -1}, ["clearml_server_gid is -1"]),
    ("server", {"clearml_server_bind_address": "10.0.0.999"}, ["clearml_server_bind_address is '10.0.0.999'"]),
    ("server", {"clearml_server_domain": "https://x.org"}, ["clearml_server_domain is 'https://x.org'", "without scheme"]),
    ("server", {"clearml_server_domain": "app.x.org"}, ["write what the three have in common"]),
    ("server", {"clearml_server_tls_authority": "/no/ca.pem"}, ["clearml_server_tls_authority is '/no/ca.pem'", "does not exist"]),
    ("server", {"clearml_server_tls_certificate": "/etc"}, ["clearml_server_tls_certificate is '/etc'", "it is a folder"]),
    ("server", {"clearml_server_tls_key": "/etc/hostname"}, ["clearml_server_tls_key is '/etc/hostname'", "no PEM"]),
    ("server", {"clearml_server_acme_email": "alice"}, ["clearml_server_acme_email is 'alice'"]),
    ("server", {"clearml_server_memory_limit": "1"}, ["clearml_server_memory_limit is '1'", "counts bytes"]),
    ("server", {"clearml_server_images": ["x"]}, ["clearml_server_images is ['x']", "write a mapping"]),
    ("server", {"clearml_server_images": {"mongo": "mongo 7"}}, ["clearml_server_images.mongo is 'mongo 7'", "a space"]),
    ("server", {"clearml_server_accounts": {"agent_x": "hush"}}, ["clearml_server_accounts.agent_x (value hidden)", "write a mapping"]),
    ("server", {"clearml_server_accounts": {"agent_x": {"key": "k"}}}, ["clearml_server_accounts.agent_x has no secret"]),
    ("server", {"clearml_server_s3": {"bucket": "x"}}, ["clearml_server_s3 is {'bucket': 'x'}", "write a list"]),
    ("server", {"clearml_server_s3": [{"host": "https://s3", "key": "hush", "secret": "hush"}]}, ["clearml_server_s3[0].host is 'https://s3'"]),
    ("server", {"clearml_server_s3": ["hush"]}, ["clearml_server_s3[0] (value hidden)", "write a mapping"]),
    ("server", {"clearml_server_redis_url": "redis.x.org"}, ["clearml_server_redis_url is 'redis.x.org'", "redis://"]),
    ("server", {"clearml_server_elasticsearch_url": "https://me:hush@es.x.org:9200"}, ["clearml_server_elasticsearch_url is", "a password in it"]),
    ("server", {"clearml_server_mongo_uri": "mongo.hush"}, ["clearml_server_mongo_uri (value hidden)", "mongodb://"]),
    ("server", {"clearml_server_databases_ca": "/etc/ca.pem"}, ["clearml_server_databases_ca is '/etc/ca.pem'", "it is a path"]),
    ("server", {"clearml_server_wait_seconds": "long"}, ["clearml_server_wait_seconds is 'long'"]),
    ("server", {"clearml_server_check_for_updates": "sometimes"}, ["clearml_server_check_for_updates is 'sometimes'"]),
    ("server", {"clearml_users": "alice"}, ["clearml_users is not a list"]),
    ("server", {"clearml_users": {"alice": "x"}}, ["clearml_users is not a list"]),
    ("server", {"clearml_users": ["alice"]}, ["clearml_users[0] is not a mapping"]),
    ("server", {"clearml_users": [{"username": 42, "name": "A", "password": "hush-hush-hush"}]}, ["clearml_users[0].username is 42"]),
    ("server", {"clearml_users": [{"username": "alice", "nmae": "A", "password": "hush-hush-hush"}]}, ["unknown key 'nmae'"]),
    ("server", {"clearml_users": [{"username": "alice", "name": "A", "email": 5, "password": "hush-hush-hush"}]}, ["email is 5"]),
    ("server", {"clearml_users": [{"username": "alice", "name": "A", "password": 123456789012}]}, ["a password (value hidden)"]),
    ("server", {"clearml_users_rotate": ["al ice"]}, ["clearml_users_rotate[0] is 'al ice'"]),
    ("server", {"clearml_server_token_secret": "abc#hush-hush"}, ["clearml_server_token_secret (value hidden)"]),
    # the registry
    ("registry", {"image_registry_port": "five"}, ["image_registry_port is 'five'", "for example 5000"]),
    ("registry", {"image_registry_address": "https://r"}, ["image_registry_address is 'https://r'"]),
    ("registry", {"image_registry_root": "/etc/registry"}, ["image_registry_root is '/etc/registry'"]),
    ("registry", {"image_registry_certificate_days": 9999}, ["image_registry_certificate_days is 9999", "1825"]),
    ("registry", {"image_registry_users": "hush"}, ["image_registry_users (value hidden)"]),
    ("registry", {"image_registry_users": [{"name": "a", "pass": "hush"}]}, ["image_registry_users[0]"]),
    ("registry", {"image_registry_tls_certificate": "/no/cert.pem"}, ["image_registry_tls_certificate is '/no/cert.pem'", "does not exist"]),
    # what only a list, or another variable, shows
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--ipc=host", "ubuntu"]}, ["clearml_agent_extra_docker_arguments is ['--ipc=host', 'ubuntu']", "'ubuntu' is not an option"]),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--privilged"]}, ["--privilged is not an option of docker run"]),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--ulimit memlock=-1"]}, ["is one argument to docker run, with its spaces"]),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--shm-size"]}, ["--shm-size has no value"]),
    ("nodes", {"clearml_agent_default_docker_arguments": ["--ipc=host --privileged"]}, ["is one argument to docker run"]),
    ("nodes", {"clearml_agent_default_docker_arguments": ["--volume=/:/host"]}, ["--volume=/:/host: experiments would get a folder of the system"]),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--mount", "type=bind,source=/etc/ssh,target=/x"]}, ["it gives experiments the node itself"]),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["-v", "/data:/data", "-e", "A=b c", "--env=MSG=hello world", "--device=/dev/infiniband"]}, []),
    ("nodes", {"clearml_agent_forbidden_docker_args": ["priviledged"]}, ["clearml_agent_forbidden_docker_args[0] is 'priviledged'", "write for example privileged"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/data"}, {"source": "/other", "target": "/data"}]}, ["clearml_agent_extra_mounts[1] is mounted at '/data', where experiments have clearml_agent_extra_mounts[0]"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/srv/x", "target": "/dvc_cache"}]}, ["where experiments have the cache of DVC"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/opt/clearml"}]}, ["clearml_agent_extra_mounts[0].source is '/opt/clearml'", "keys and settings of the platform"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/opt/clearml/agent/ssh"}]}, ["keys and settings of the platform"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/opt/clearml/examples/digits.git"}, {"source": "/opt/clearml/agent/cache"}]}, []),
    ("nodes", {"clearml_agent_queue_descriptions": {5: "five"}}, ["clearml_agent_queue_descriptions has the key 5", "in quotes"]),
    ("nodes", {"clearml_agent_check_gpus": None}, ["clearml_agent_check_gpus is empty (null)", "write true or false"]),
    ("nodes", {"clearml_agent_workers": [{"name": "w 1"}]}, ["clearml_agent_workers has a worker named 'w 1'", "(set in hosts.yml:"]),
    ("nodes", {"clearml_agent_workers": [{"name": ""}]}, ["clearml_agent_workers[0].name is empty", "for example train01-big"]),
    ("nodes", {"clearml_agent_workers": [{"name": "x" * 300}]}, ["write at most 63 letters"]),
    ("nodes", {"clearml_agent_workers": [{"name": "wg1", "gpus": [100000]}]}, ["the GPU 100000"]),
    ("nodes", {"clearml_agent_common_queues": ["all gpus"]}, ["clearml_agent_common_queues: worker ", "serves the queue 'all gpus'"]),
    ("nodes", {"clearml_agent_gpus": [1, 1], "clearml_node_name": "twice"}, ["clearml_agent_gpus has GPU 1 twice"]),
    ("nodes", {"clearml_node_name": ""}, ["clearml_node_name is empty", "for example train01"]),
    ("nodes", {"clearml_node_name": "x" * 300}, ["write at most 63 letters"]),
    ("nodes", {"clearml_node_name": "all_gpus"}, ["and so is a queue of clearml_agent_common_queues"]),
    ("nodes", {"clearml_agent_git_ssh_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nhush\n-----END OPENSSH PRIVATE KEY-----\n", "clearml_agent_git_known_hosts": "g ssh-ed25519 AAAA"}, ["clearml_agent_git_ssh_key (value hidden)", "it is damaged or cut off"]),
    ("nodes", {"clearml_agent_api_url": "http://localhost:8008"}, ["clearml_agent_api_url is 'http://localhost:8008'", "the container itself"]),
    ("nodes", {"dataset_cache_pins": ["kitti@1.4.0"]}, ["dataset_cache_pins has 'kitti@1.4.0'"]),
    ("nodes", {"dataset_cache_pruner_host": "nobody"}, ["dataset_cache_pruner_host is 'nobody'"]),
    ("nodes", {"dataset_cache_mounts": ["/data"]}, ["dataset_cache_path is '/dvc_cache', which is not below any of dataset_cache_mounts", "dataset_cache_clearml_path is"]),
    ("nodes", {"dataset_cache_nfs": "nas.example.org:/x", "dataset_cache_pruner_enabled": False, "dataset_cache_keep_hours": 200}, ["dataset_cache_mounts has 0 entries"]),
    ("nodes", {"dataset_cache_group": "docker"}, ["dataset_cache_group is 'docker'", "the whole machine"]),
    ("nodes", {"docker_engine_daemon_extra": {"data_root": "/x"}}, ["docker_engine_daemon_extra has the key 'data_root'", "data-root"]),
    ("nodes", {"docker_engine_daemon_extra": {"data-root": "/x", "log-opts": {"max-size": "1g"}, "ip6tables": True}}, []),
    ("nodes", {"nvidia_container_toolkit_cuda": "latest"}, ["nvidia_container_toolkit_cuda is 'latest'", '"12.4"']),
    ("nodes", {"nvidia_container_toolkit_cuda": "9.0"}, ["nvidia_container_toolkit_cuda is '9.0'"]),
    ("nodes", {"nvidia_container_toolkit_version": "1.17 8"}, ["nvidia_container_toolkit_version is '1.17 8'"]),
    ("nodes", {"nvidia_container_toolkit_repository": "", "nvidia_container_toolkit_check_image": ""}, []),
    ("nodes", {"perception_images_matrix": [{"python": "3.11", "name": 5}]}, ["perception_images_matrix[0].name is 5"]),
    ("nodes", {"perception_images_release": "20261324"}, ["perception_images_release is '20261324'"]),
    ("nodes", {"ansible_user": ["a"]}, ["ansible_user is ['a']"]),
    ("nodes", {"ansible_user": ""}, ["ansible_user is empty", "for example deploy"]),
    ("nodes", {"ansible_connection": "shh"}, ["ansible_connection is 'shh'"]),
    ("nodes", {"ansible_become": "sure"}, ["ansible_become is 'sure'", "true or false"]),
    ("nodes", {"ansible_become_method": "sudoo"}, ["ansible_become_method is 'sudoo'"]),
    ("nodes", {"ansible_become_password": 47114711}, ["ansible_become_password (value hidden)", "in quotes"]),
    ("nodes", {"ansible_ssh_private_key_file": "/etc"}, ["ansible_ssh_private_key_file is '/etc'", "it is a folder"]),
    ("nodes", {"ansible_ssh_common_args": ["-J", "x"]}, ["ansible_ssh_common_args is ['-J', 'x']"]),
    ("nodes", {"ansible_timeout": "ten"}, ["ansible_timeout is 'ten'"]),
    ("nodes", {"ansible_port": ""}, ["ansible_port is empty", "for example 22"]),
    ("nodes", {"site_examples_repository": "/etc"}, ["site_examples_repository is '/etc'"]),
    ("nodes", {"site_verify_queue": "a b"}, ["site_verify_queue is 'a b'"]),
    ("nodes", {"site_verify_repository": "not a url"}, ["site_verify_repository is 'not a url'"]),
    ("nodes", {"site_name": ""}, ["site_name is empty", "for example bridge"]),
    ("nodes", {"site_no_proxy": "10.0.0.*"}, ["site_no_proxy is '10.0.0.*'", "10.0.0.0/8"]),
    # templates
    ("nodes", {"clearml_agent_workers": "{{ my_workers }}"}, ["clearml_agent_workers is '{{ my_workers }}' (hosts.yml:", "'my_workers' is undefined; define my_workers"]),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "{{ datadir }}"}]}, ["'datadir' is undefined"]),
    ("nodes", {"clearml_node_name": "{{ inventory_hostname_shrt }}"}, ["write inventory_hostname_short"]),
    ("nodes", {"ansible_host": "{{ ip }}"}, ["ansible_host is '{{ ip }}'", "'ip' is undefined"]),
    ("nodes", {"clearml_agent_git_token": "{{ vault_git_token }}", "clearml_agent_git_user": "x"}, ["clearml_agent_git_token (hosts.yml:", "'vault_git_token' is undefined"]),
    ("nodes", {"clearml_agent_task_shm_size": "{{ ansible_memtotal_mb // 2 }}m"}, ["write ansible_facts['memtotal_mb']"]),
    ("nodes", {"clearml_agent_task_shm_size": "{{ ansible_facts['memtotal_mb'] // 2 }}m"}, []),
    ("nodes", {"my_own": "{{ nobody_reads_this }}"}, []),
    ("nodes", {"one": "{{ two }}", "two": "{{ one }}", "site_no_proxy": "{{ one }}"}, ["it is made of itself"]),
    ("server", {"clearml_server_host": "{{ site_name }"}, ["clearml_server_host is '{{ site_name }'", "unexpected '}'"]),
    ("server", {"clearml_server_host": "{{ site_name | nofilter }}"}, ["No filter named 'nofilter'"]),
    ("server", {"clearml_server_host": "{{ groups['nogroup'][0] }}"}, ["there is no 'nogroup' in what it reads"]),
    ("server", {"clearml_server_host": "{{ lookup('file', '/no/file') }}"}, ["File not found"]),
    ("server", {"clearml_server_host": "{{ ansible_default_ipv4.address }}"}, ["write ansible_facts['default_ipv4']"]),
    ("server", {"clearml_server_host": "{{ ansible_facts['default_ipv4']['address'] }}"}, []),
    ("server", {"clearml_users": "{{ my_people }}"}, ["clearml_users is '{{ my_people }}'", "'my_people' is undefined"]),
    ("server", {"clearml_users": [{"username": "alice", "name": "A", "password": "{{ vault_alice }}"}]}, ["'vault_alice' is undefined"]),
    # the server, across its variables
    ("server", {"clearml_users": [{"username": "al ice", "name": "A", "password": "hush-hush-hush"}]}, ["clearml_users[0].username is 'al ice'"]),
    ("server", {"clearml_users": [{"username": "alice", "name": "A", "passwordhash": "hush"}]}, ["write password_hash"]),
    ("server", {"clearml_users": [{"username": "alice", "name": "a\nb", "password": "hush-hush-hush"}]}, ["clearml_users[0] (alice).name is 'a\\nb'"]),
    ("server", {"clearml_server_users": [{"username": "bob", "name": "B", "password_hash": "$2b$12$hush"}]}, ["clearml_server_users[0] (bob).password_hash (value hidden) is not", "base64 of a bcrypt hash"]),
    ("server", {"clearml_server_users": [{"username": "bob", "name": "B", "password_hash": ""}]}, ["clearml_server_users[0] (bob).password_hash is missing"]),
    ("server", {"vault_clearml_agent_credentials": "hush"}, ["vault_clearml_agent_credentials (value hidden)", "write a mapping"]),
    ("server", {"clearml_server_credentials": {"apiserver": "hush"}}, ["clearml_server_credentials.apiserver (value hidden)", "write a mapping"]),
    ("server", {"clearml_server_credentials": {}}, ["clearml_server_credentials.apiserver.key is missing, and so are"]),
    ("server", {"clearml_users_folder": "users"}, ["clearml_users_folder is 'users'", "write its whole path"]),
    ("server", {"clearml_server_version": "9.9"}, ["clearml_server_version is '9.9'", "write one of"]),
    ("server", {"clearml_server_images": {"nope": "mongo:7.0.22"}}, ["clearml_server_images has 'nope'"]),
    ("server", {"clearml_server_flavor": "official", "clearml_server_image_source": "bundle"}, ["clearml_server_bundle is empty"]),
    ("server", {"clearml_server_tls": "files"}, ["clearml_server_tls is 'files', but clearml_server_domain is empty"]),
    ("server", {"clearml_server_api_port": 22}, ["clearml_server_api_port is 22, and so is ansible_port"]),
    ("server", {"clearml_server_accounts": {"agent x": {"key": "Key-long-enough", "secret": "Secret-long-enough"}}}, ["clearml_server_accounts has the key 'agent x'"]),
    ("server", {"clearml_server_accounts": {"apiserver": {"key": "Key-long-enough", "secret": "Secret-long-enough"}}}, ["clearml_server_accounts has 'apiserver', which the server has itself"]),
    ("server", {"clearml_server_flavor": "official", "clearml_server_memory_mb": 4096, "clearml_server_elasticsearch_heap_mb": 4096}, ["clearml_server_elasticsearch_heap_mb is 4096", "write at most 1024"]),
    ("server", {"clearml_server_flavor": "official", "clearml_server_elasticsearch_heap_mb": 16384}, []),
    ("server", {"clearml_server_elasticsearch_watermarks": {"lo": "85%"}}, ["three rising percentages"]),
    ("server", {"clearml_server_s3": [{"bucket": "b"}]}, ["clearml_server_s3 has no key or no secret"]),
    ("server", {"clearml_server_mongo_uri": "mongodb://u:hush@w@h/"}, ["clearml_server_mongo_uri (value hidden)", "%40"]),
    ("registry", {"image_registry_address": "0.0.0.0"}, ["image_registry_address is '0.0.0.0'"]),
]  # fmt: skip

GROUP = {"nodes": "clearml_nodes", "server": "clearml_server", "registry": "clearml_registry"}
# What is compared with other variables has a host for itself.
ALONE = {"clearml_agent_git_token", "clearml_agent_gpus", "clearml_agent_root", "clearml_users", "dataset_cache_path"}
ALONE |= {
    "perception_images_matrix",
    "perception_images_systems",
    "site_ca_bundle",
    "clearml_server_host",
    "clearml_server_web_port",
    "clearml_agent_common_queues",
    "clearml_agent_extra_mounts",
    "clearml_agent_workers",
    "clearml_server_domain",
    "clearml_server_images",
    "clearml_server_token_secret",
    "clearml_server_version",
    "clearml_node_name",
    "clearml_server_flavor",
    "dataset_cache_mounts",
    "dataset_cache_nfs",
    "site_no_proxy",
    "clearml_server_accounts",
    "clearml_server_credentials",
    "clearml_server_users",
    "vault_clearml_agent_credentials",
}


def packed() -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the host of each case, and the hosts with the wrong variables of up to four cases."""
    names, hosts = [], {}
    for group, variables, _ in CASES:
        room = (
            name
            for name, given in hosts.items()
            if name.startswith(group) and len(given) < 4 and not given.keys() & variables.keys()
            if not ALONE & (given.keys() | variables.keys())
        )
        name = next(room, f"{group}-{len(hosts):03}")
        hosts.setdefault(name, {}).update(variables)
        names.append(name)
    return names, hosts


NAMES, HOSTS = packed()


def base(group: str, number: int) -> dict[str, Any]:
    more: dict[str, Any] = {
        "ansible_host": f"10.1.{number // 200}.{number % 200 + 1}",
        "clearml_server_host": "10.0.0.5",
    }
    if group == "registry":
        users = [{"name": "trainyard", "password": "long-enough-password"}]
        more |= {"image_registry_address": "registry.example.org", "image_registry_users": users}
    return more


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One inventory with a host for each case, checked once."""
    folder = tmp_path_factory.mktemp("site") / "spoilt"
    hosts = {name: {**base(name.partition("-")[0], n), **given} for n, (name, given) in enumerate(HOSTS.items())}
    groups = {full: [name for name in HOSTS if name.startswith(short)] for short, full in GROUP.items()}
    inventories.write(folder, hosts, groups, inventories.secrets())
    return inventories.check(folder)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_mistakes_of_an_inventory_are_told(found: list[str], number: int) -> None:
    name, (_, variables, words) = NAMES[number], CASES[number]
    said = [line for line in found if line.startswith(f"{name}: ") and any(variable in line for variable in variables)]
    assert bool(said) == bool(words), (variables, said)
    for word in words:
        assert any(word in line for line in said), (variables, said)
    assert not any(secret in " ".join(said) for secret in ("hush", "47114711"))
    # One mistake, a few sentences at most: what only follows from it is not told.
    assert len(said) <= 3, said


def test_no_type_of_any_variable_is_more_than_a_sentence(tmp_path: Path) -> None:
    """Every variable of every role with every type that YAML has: a filter that met one would end in Python's words."""
    shapes: list[Any] = ["text", 5, None, [], {}, [None], ["x"], {"x": 1}, [["x"]], [{"x": 1}], True]
    names = [name for role in ROLES for name in trainyard_values.augment(options(role), {})]
    hosts = {f"shape-{number}": dict.fromkeys([*names, "clearml_users"], shape) for number, shape in enumerate(shapes)}
    groups = {group: list(hosts) for group in GROUP.values()}
    inventories.write(tmp_path / "site", hosts, groups, inventories.secrets())
    said = inventories.check(tmp_path / "site", facts=True)
    for name in hosts:
        assert len([line for line in said if line.startswith(f"{name}: ")]) > 80, name
    assert not [line for line in said if "Traceback" in line or "object has no" in line]


@pytest.mark.parametrize("site", sorted(path.name for path in (ROOT / "inventory").iterdir() if path.is_dir()))
def test_the_inventories_of_the_project_pass(site: str, tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "inventory" / site, tmp_path / site, ignore=shutil.ignore_patterns("vault.yml", ".vault*", "users")
    )
    (tmp_path / site / "group_vars/all/vault.yml").write_text(yaml.safe_dump(inventories.secrets()))
    assert inventories.check(tmp_path / site) == []


# group, variables of one host that are unusual and good: nothing may be said of them
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("nodes", {"clearml_agent_workers": [{"name": "a1b", "gpus": ["GPU-12345678-1234-1234-1234-123456789abc"]}]}),
    ("nodes", {"clearml_agent_workers": [{"name": "svc1", "services": 4}]}),
    ("nodes", {"clearml_agent_workers": [{"name": "m1g", "gpus": ["MIG-12345678-1234-1234-1234-123456789abc"], "memory": "1.5t", "cpus": 0.5, "shm_size": "64MB"}]}),
    ("nodes", {"clearml_agent_workers": [{"name": "q11", "gpus": [], "queues": ["big", "q11"], "image": "nvcr.io/nvidia/pytorch:25.01-py3"}]}),
    ("nodes", {"clearml_agent_gpus": [], "clearml_agent_task_network": "host", "clearml_agent_poll_seconds": "1.5", "clearml_agent_check_gpus": "no"}),
    ("nodes", {"clearml_agent_gpus": "{{ [3, 1] }}", "clearml_agent_task_memory": "", "clearml_agent_task_python": "", "clearml_agent_drain_seconds": 86400}),
    ("nodes", {"clearml_agent_default_docker_image": "localhost:5000/x:1", "clearml_agent_task_memory": "60GiB", "clearml_agent_reaper_keep_images": ["*"]}),
    ("nodes", {"clearml_agent_default_docker_image": "10.0.0.5:5000/team/a/b:1_2-x", "clearml_agent_docker_args_filters": []}),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["-v", "/data:/data", "--ulimit=memlock=-1", "-e", "A=b c", "--privileged", "-eX=1", "--gpus", "all"]}),
    ("nodes", {"clearml_agent_extra_docker_arguments": ["--mount", "type=bind,source=/data,target=/data", "--cap-add", "IPC_LOCK"]}),
    ("nodes", {"clearml_agent_forbidden_docker_args": ["-v", "--privileged", "net", "cap-add"]}),
    ("nodes", {"clearml_agent_extra_mounts": [{"source": "/data"}, {"source": "/mnt/nas", "target": "/nas", "read_only": False}, {"source": "/etc/localtime"}, {"source": "/dev/shm"}]}),
    ("nodes", {"clearml_agent_root": "/srv/clearml/agent", "clearml_agent_cache": "/scratch/clearml-cache"}),
    ("nodes", {"clearml_agent_cache": "/fast/cache", "dataset_cache_sdk_path": "/fast/cache/sdk-cache"}),
    ("nodes", {"clearml_agent_dvc_cache": "", "clearml_agent_client_cache": ""}),
    ("nodes", {"clearml_node_name": "LARGE-GPU-7"}),
    ("nodes", {"clearml_node_name": "{{ inventory_hostname_short }}b"}),
    ("nodes", {"clearml_agent_git_user": "oauth2", "clearml_agent_git_token": "ghp_xxxxxxxxxxxx"}),
    ("nodes", {"clearml_agent_http_proxy": "http://user:p%40ss@proxy.example.org:3128", "clearml_agent_no_proxy": "localhost, ::1,.example.org,10.0.0.0/8,*.corp"}),
    ("nodes", {"clearml_agent_api_url": "https://clearml.example.org/api/", "clearml_agent_web_url": "http://[2001:db8::5]:8080"}),
    ("nodes", {"dataset_cache_mounts": ["/data"], "dataset_cache_path": "/data/dvc", "dataset_cache_clearml_path": "/data/clearml"}),
    ("nodes", {"dataset_cache_nfs": "[2001:db8::1]:/x", "dataset_cache_mounts": ["/data"], "dataset_cache_path": "/data/d", "dataset_cache_clearml_path": "/data/c", "dataset_cache_keep_hours": 200, "dataset_cache_pruner_enabled": False}),
    ("nodes", {"dataset_cache_min_free": "", "dataset_cache_max_size": "1.5t", "dataset_cache_keep_hours": 0, "dataset_cache_pins": [f"clearml-{'0' * 32}", f"dvc-{'a' * 32}"], "dataset_cache_members": ["alice", "_svc"]}),
    ("nodes", {"docker_engine_daemon_extra": {"data-root": "/data/docker", "default-address-pools": [{"base": "10.200.0.0/16", "size": 24}], "bip": "10.1.0.1/24"}, "docker_engine_install": False}),
    ("nodes", {"nvidia_container_toolkit_enabled": False, "nvidia_container_toolkit_cuda": "12.4", "nvidia_container_toolkit_version": "1.17.8-1"}),
    ("nodes", {"nvidia_container_toolkit_repository_key": "/usr/share/keyrings/nv.gpg", "nvidia_container_toolkit_mode": "cdi"}),
    ("nodes", {"perception_images_matrix": [{"python": "3.8"}, {"python": "3.13", "variant": "cuda", "groups": ["torch", "core"]}, {"python": "3.11", "name": "lidar", "groups": ["lidar"], "provider": "uv"}]}),
    ("nodes", {"perception_images_registry": "registry.example.com:5000/team", "perception_images_registry_username": "bot@x", "perception_images_registry_password": "p", "perception_images_release": "20261124T0930"}),
    ("nodes", {"perception_images_systems": {"3.11": {"suite": "bookworm", "image": "m.example.org/debian:bookworm-slim", "mirror": "http://m.example.org/debian"}}}),
    ("nodes", {"team": "vision", "our_gateway": "10.0.0.1", "ntp_servers": ["a"], "users": [{"a": 1}], "monitoring": {"port": 9100}, "mine": "{{ nobody_reads_this }}"}),
    ("nodes", {"ansible_host": "fe80::1%eth0"}),
    ("nodes", {"ansible_host": "my_alias", "ansible_user": "DOMAIN\\me", "ansible_port": "2222", "ansible_become": "yes", "ansible_become_method": "su", "ansible_python_interpreter": "python3", "ansible_ssh_private_key_file": "~/.ssh/none", "ansible_ssh_common_args": "-J bastion"}),
    ("nodes", {"ansible_connection": "community.docker.docker", "ansible_become_password": "{{ vault_become | default('') }}"}),
    ("nodes", {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}),
    ("server", {"clearml_server_host": "{{ ansible_host }}"}),
    ("server", {"clearml_server_host": "{{ ansible_facts['default_ipv4']['address'] }}"}),
    ("server", {"clearml_server_flavor": "official", "clearml_server_mongo_uri": "mongodb://u:p%40w@h1:27017,h2/?replicaSet=rs0", "clearml_server_redis_url": "rediss://r.x.org:6380", "clearml_server_elasticsearch_url": "https://es.x.org:9200", "clearml_server_elasticsearch_user": "trainyard"}),
    ("server", {"clearml_server_flavor": "official", "clearml_server_images": {"mongo": f"m.example.org/mongo@sha256:{'b' * 64}"}, "clearml_server_elasticsearch_heap_mb": 16384}),
    ("server", {"clearml_server_domain": "clearml.example.org", "clearml_server_tls": "acme", "clearml_server_acme_email": "ops@example.org", "clearml_server_acme_ca": "https://ca.internal:9000/acme/acme/directory"}),
    ("server", {"clearml_server_bind_address": "127.0.0.1", "clearml_server_web_port": "80", "clearml_server_api_port": 18008, "clearml_server_root": "/home/clearml/data"}),
    ("server", {"clearml_server_accounts": {"agent_ci": {"key": "Key-long-enough", "secret": "Secret-long-enough"}}, "clearml_server_s3": [{"host": "s3.x.org:9000", "key": "k", "secret": "s", "secure": False}]}),
    ("server", {"clearml_users": [{"username": "b.o-b@x.org", "name": "Bob Ü", "password": "hush-hush-hush!"}], "clearml_users_folder": "/home/me/my sites/users", "clearml_users_rotate": "alice,bob"}),
    ("server", {"site_name": "team.a_b-1", "site_ca_bundle": "", "site_http_proxy": "", "site_no_proxy": "", "registry_mirror": "https://m.example.org:5000", "site_verify_repository": "git@git.example.org:team/x.git"}),
    ("registry", {"image_registry_address": "10.0.0.9", "image_registry_port": 443, "image_registry_root": "/data/registry"}),
]  # fmt: skip


def test_unusual_and_good_values_pass(tmp_path: Path) -> None:
    hosts: dict[str, dict[str, Any]] = {}
    for number, (group, variables) in enumerate(RIGHT):
        hosts[f"{group}-{number:03}"] = {**base(group, number), **variables}
    groups = {full: [name for name in hosts if name.startswith(short)] for short, full in GROUP.items()}
    inventories.write(tmp_path / "site", hosts, groups, inventories.secrets())
    assert inventories.check(tmp_path / "site") == []


def test_a_name_that_is_no_address_is_told_where_it_is_one(tmp_path: Path) -> None:
    hosts: dict[str, dict[str, Any]] = {
        "10.0.0.256": {},
        "root@train02": {},
        "10.0.0.257": {"ansible_host": "10.0.0.7"},
    }
    hosts["10.0.0.258"] = {"ansible_connection": "local"}
    for number, name in enumerate(hosts):
        hosts[name] |= {"clearml_node_name": f"node{number}", "clearml_server_host": "10.0.0.5"}
    inventories.write(tmp_path / "site", hosts, {"clearml_nodes": list(hosts)}, inventories.secrets())
    said = inventories.check(tmp_path / "site")
    assert [line.split(":")[0] for line in said] == ["10.0.0.256", "root@train02"], said
    assert "without ansible_host its name is its address: it is not an IPv4 address" in said[0]


def test_the_queue_of_make_verify_is_served(tmp_path: Path) -> None:
    hosts: dict[str, dict[str, Any]] = {"one": {"clearml_agent_gpus": [0], "site_verify_queue": "big_gpus"}}
    hosts["one"] |= {"clearml_server_host": "10.0.0.5"}
    inventories.write(tmp_path / "site", hosts, {"clearml_nodes": list(hosts)}, inventories.secrets())
    (said,) = inventories.check(tmp_path / "site")
    assert said.startswith("one: site_verify_queue is 'big_gpus', which no worker serves")
    assert "write one of all_gpus, one, one-1" in said


def test_two_hosts_with_one_address_are_one_machine(tmp_path: Path) -> None:
    hosts: dict[str, dict[str, Any]] = {
        "alpha": {"ansible_host": "10.0.0.7"},
        "beta": {"ansible_host": "10.0.0.7"},
        "10.0.0.7": {},
        "other-port": {"ansible_host": "10.0.0.7", "ansible_port": 2222},
        "local-a": {"ansible_host": "10.0.0.7", "ansible_connection": "local"},
        "local-b": {"ansible_host": "10.0.0.7", "ansible_connection": "local"},
        "Gamma.example.org": {},
        "gamma": {"ansible_host": "gamma.example.org"},
    }
    for number, name in enumerate(hosts):
        hosts[name] |= {"clearml_node_name": f"node{number}", "clearml_server_host": "10.0.0.5"}
    inventories.write(tmp_path / "site", hosts, {"clearml_nodes": list(hosts)}, inventories.secrets())
    said = inventories.check(tmp_path / "site")
    assert [line.split(":")[0] for line in said] == ["alpha", "beta", "gamma"], said
    assert "alpha: ansible_host is '10.0.0.7', which 10.0.0.7 has too: they are one machine" in said[0]


def test_a_run_tells_all_at_once_before_any_connection(tmp_path: Path) -> None:
    """The hosts cannot be reached: what is wrong is told all the same."""
    hosts = {
        "one": {"clearml_server_host": "10.0.0.999", "clearml_agent_workers": "w01"},
        "two": {"clearml_agent_lost_experiments": "retry", "clearml_agent_wait_seconds": "long"},
        "three": {"dataset_cache_max_size": "10 GB"},
    }
    unreachable = {"ansible_connection": "ssh", "ansible_ssh_common_args": "-o ProxyCommand=false"}
    hosts = {name: {"ansible_host": f"{name}.invalid", **unreachable, **given} for name, given in hosts.items()}
    groups = {"clearml_server": ["one"], "clearml_nodes": list(hosts)}
    inventories.write(tmp_path / "site", hosts, groups, inventories.secrets())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "2000"}
    playbook = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [playbook, "-i", str(tmp_path / "site"), str(ROOT / "ansible/preflight.yml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "unreachable=0" in said
    for words in (
        "one: clearml_server_host is ''10.0.0.999'' (hosts.yml:",
        "one: clearml_agent_workers is ''w01'' (hosts.yml:",
        "two: clearml_agent_lost_experiments is ''retry'' (hosts.yml:",
        "two: clearml_agent_wait_seconds is ''long'' (hosts.yml:",
        "three: dataset_cache_max_size is ''10 GB'' (hosts.yml:",
    ):
        assert words in said or words.replace("''", "'") in said, said


def test_a_role_alone_checks_its_own_values(tmp_path: Path) -> None:
    """A playbook that has no preflight: the role says the same, with the variables that it is given there."""
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": [
            {
                "ansible.builtin.include_role": {"name": "image_registry", "tasks_from": "validate.yml"},
                "vars": {
                    "image_registry_memory_limit": "lots",
                    "image_registry_users": [{"name": "a", "password": "hush"}],
                },
            }
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "localhost,",
        "-c",
        "local",
        str(tmp_path / "play.yml"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "localhost: image_registry_memory_limit is" in said
    assert "localhost: image_registry_users[0].password (value hidden) has 4 characters" in said
    assert "hush" not in said
