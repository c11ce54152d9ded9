"""What an image of experiments promises: its packages, a training without a network, nothing of its build."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tomllib

import pytest
from conftest import NONE, Image, images, sizes_key
from perception import LOCKS, ROOT, cut, declared, normal, pins, run
from testinfra.host import Host  # type: ignore[import-untyped]

if not images():
    pytest.skip(NONE, allow_module_level=True)

# MB, each measured and then about 15 % more. All images are Debian or Ubuntu with Python, and have the client.
BUDGET_MB = {"base": 665, "runtime": 340, "core": 700, "eval": 150, "lidar": 8, "torch": 8500}
# numpy and scipy, which the others need where core did not bring them.
WITHOUT_CORE_MB = 260
# What the distribution or uv brings of its own accord.
OWN = {"pip", "setuptools", "wheel", "clearml-client"}
LABELS = {
    "io.trainyard.python": r"3\.\d+",
    "io.trainyard.variant": r"cpu|cuda",
    "io.trainyard.groups": r"[a-z]+( [a-z]+)*",
    "io.trainyard.inputs": r"[0-9a-f]{64}",
    "io.trainyard.lock": r"[0-9a-f]{64}",
    "org.opencontainers.image.title": r".*\S.*",
    "org.opencontainers.image.revision": r"([0-9a-f]{40}(-dirty)?)?",
    "org.opencontainers.image.licenses": r"Apache-2\.0",
}
CREDENTIALS = r"https?://[^/[:space:]\"'@:]+:[^/[:space:]\"'@]+@"


def ok(host: Host, command: str, user: str = "") -> str:
    """Run a command in the container, as root or as that user, and return what it printed."""
    words = f"su {user} -s /bin/bash -c {shlex.quote(command)}" if user else command
    done = host.run(words)
    assert done.rc == 0, f"{command}: exit status {done.rc}\n{done.stdout}{done.stderr}"
    return str(done.stdout).strip()


@pytest.fixture(scope="session")
def installed(host: Host) -> dict[str, tuple[str, str, list[str]]]:
    """Version, folder and modules of every distribution in the image."""
    return {name: tuple(about) for name, about in json.loads(ok(host, "python3 /mnt/inside/packages.py")).items()}


# ---------------------------------------------------------------- what is in it


def test_python(host: Host, facts: Image) -> None:
    script = "import sys; print(sys.executable, *sys.version_info[:2])"
    assert facts.environment["LOCAL_PYTHON"] == "/usr/bin/python3"
    assert ok(host, "command -v python3") == "/usr/bin/python3"
    assert ok(host, f"$LOCAL_PYTHON -c '{script}'").split() == ["/usr/bin/python3", *facts.python.split(".")]


def test_declared_packages_import(host: Host, facts: Image) -> None:
    names = [name for group in facts.groups for name in declared(group)]
    assert len(names) >= len(declared("runtime"))
    assert ok(host, f"python3 /mnt/inside/packages.py clearml-client {' '.join(names)}") == ""


def test_imports_ask_nobody(host: Host, facts: Image) -> None:
    """A package that looks for updates when it is imported costs each experiment seconds behind a firewall."""
    names = [name for group in facts.groups for name in declared(group)]
    done = host.run(f"python3 /mnt/inside/packages.py {' '.join(names)}")
    assert not re.findall(r".*(?:urlopen|name resolution|Connection).*", done.stderr)


def test_lists_are_those_of_the_lock(host: Host, facts: Image) -> None:
    lock = f"{facts.python}-{facts.variant}"
    assert (LOCKS / f"{lock}.txt").exists()
    names = sorted(ok(host, "ls /opt/trainyard/locks").split())
    assert names == sorted(f"{group}.txt" for group in facts.groups)
    for group in facts.groups:
        assert host.file(f"/opt/trainyard/locks/{group}.txt").content_string == cut(lock, [group])
    assert facts.labels["io.trainyard.lock"] == hashlib.sha256(cut(lock, facts.groups).encode()).hexdigest()


def test_installed_are_those_of_the_lists(host: Host, installed: dict[str, tuple[str, str, list[str]]]) -> None:
    wanted = pins(ok(host, "cat /opt/trainyard/locks/*.txt"))
    there = {name: version for name, (version, _, _) in installed.items()}
    assert {name: there.get(name) for name in wanted} == wanted
    extra = {name for name, (_, folder, _) in installed.items() if not folder.startswith("/usr/lib/python3/")}
    assert {normal(name) for name in extra} - set(wanted) <= OWN


def test_requirements_are_met(host: Host) -> None:
    assert "No broken requirements" in ok(host, "python3 -m pip check")


def test_libraries_of_opencv(host: Host) -> None:
    names = ["libGL.so.1", "libgthread-2.0.so.0", "libSM.so.6", "libXext.so.6", "libXrender.so.1", "libgomp.so.1"]
    ok(host, f"python3 -c 'import ctypes; [ctypes.CDLL(name) for name in \"{' '.join(names)}\".split()]'")


# ---------------------------------------------------------------- what runs in it


def test_training(host: Host, facts: Image) -> None:
    groups = [group for group in facts.groups if group != "runtime"]
    told = ok(host, f"python3 /mnt/inside/train.py {' '.join(groups)}")
    assert told.splitlines() == [f"{group} trained" for group in groups]


@pytest.mark.parametrize("user", ["", "trainer"], ids=["root", "trainer"])
def test_experiment(host: Host, user: str) -> None:
    command = "cd && CLEARML_OFFLINE_MODE=1 python3 /mnt/inside/experiment.py"
    told = ok(host, command, user)
    assert "REPORTED 0.125" in told
    assert "session" in told


def test_agent(host: Host) -> None:
    assert ok(host, "python3 -m clearml_agent --version").startswith("CLEARML-AGENT version ")
    assert ok(host, "git --version").startswith("git version ")
    ok(host, "ssh -V")


def test_dvc_links_into_the_cache(host: Host) -> None:
    def add(folder: str, text: str, user: str) -> str:
        return ok(host, f"sh /mnt/inside/dvc_cache.sh {folder} {text}", user)

    group = ok(host, "id -gn trainer")
    # Texts whose hashes begin alike: their files share a folder, which one made and the other must write into.
    first, second, third = alike(3)
    places = [
        add("/tmp/of-root", first, ""),
        add("/tmp/of-trainer", second, "trainer"),
        add("/tmp/of-root", third, ""),
        add("/tmp/of-trainer", first, "trainer"),
    ]
    assert places[3] == places[0]
    first, second = (f"x{text}" for text in alike(2, "x"))
    places += [add("/tmp/of-trainer", first, "trainer"), add("/tmp/of-root", second, "")]
    assert {place.rsplit("/", 1)[0] for place in places[:3]} == {places[0].rsplit("/", 1)[0]}
    for place in places:
        assert place.startswith("/dvc_cache/files/md5/") or place.startswith("/dvc_cache/"), place
        file = host.file(place)
        # DVC takes everybody's right to write from what links lead to; the folders are what must be open.
        assert (file.group, file.mode & 0o444) == (group, 0o444)
    closed = ok(host, f"find /dvc_cache -type d '(' -not -perm -2770 -o -not -group {group} ')'")
    assert closed == ""


def alike(count: int, prefix: str = "") -> list[str]:
    """Return texts whose MD5 hashes begin with the same two digits, when the prefix stands before them."""
    found: dict[str, list[str]] = {}
    for number in range(10_000):
        texts = found.setdefault(hashlib.md5(f"{prefix}{number}".encode()).hexdigest()[:2], [])
        texts.append(str(number))
        if len(texts) == count:
            return texts
    raise AssertionError("no such texts")


# ---------------------------------------------------------------- what is not in it


def test_no_compiler(host: Host) -> None:
    for name in ("gcc", "cc", "g++", "c++", "clang", "make", "nvcc"):
        assert not host.exists(name), name


def test_nobody_gets_more_rights(host: Host) -> None:
    assert ok(host, "find / -xdev -type f -perm /6000") == ""
    assert ok(host, "find / -xdev -type f -perm -0002 -not -path '/proc/*'") == ""


def test_user(host: Host) -> None:
    user = host.user("trainer")
    assert (user.uid, user.home) == (1000, "/home/trainer")
    assert ok(host, "touch ~/mine && stat -c %U ~/mine && rm ~/mine", "trainer") == "trainer"


def test_nothing_of_the_build(facts: Image) -> None:
    # In a container of its own: the other tests leave files in theirs.
    def find(*words: str) -> list[str]:
        return run("docker", "run", "--rm", "--network", "none", "--entrypoint", "find", facts.name, *words).split()

    empty = ["/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/apt/lists", "/var/cache/apt"]
    assert find(*empty, "-type", "f", "-size", "+0", "-not", "-name", ".containerenv") == []
    gone = ["/root/.cache", "/etc/pip.conf", "/opt/uv", "/opt/lists"]
    names = ["site-ca.pem", "pip.conf", "uv.toml", "uv_cache.json", ".netrc", ".pypirc", "apt.conf", ".git-credentials"]
    these = [word for path in gone for word in ("-path", path, "-o")]
    these += [word for name in names for word in ("-name", name, "-o")][:-1]
    assert find("/", "-xdev", "-path", "/usr/share/doc", "-prune", "-o", "(", *these, ")", "-print") == []


def test_no_credentials(host: Host, facts: Image) -> None:
    places = "/etc /root /home /opt /var/lib/dpkg/info $(find / -xdev -name direct_url.json)"
    assert ok(host, f"grep -rIlE {shlex.quote(CREDENTIALS)} {places} || test $? = 1") == ""
    history = run("docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", facts.name)
    config = run("docker", "image", "inspect", "--format", "{{json .Config}}", facts.name)
    assert not re.search(CREDENTIALS.replace("[:space:]", r"\s"), history + config)


# ---------------------------------------------------------------- what it says of itself


def test_labels(facts: Image) -> None:
    wrong = {name: facts.labels.get(name) for name, form in LABELS.items()
             if not re.fullmatch(form, facts.labels.get(name, "missing"))}  # fmt: skip
    assert not wrong
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert facts.labels["org.opencontainers.image.version"] == version
    assert facts.groups[0] == "runtime"
    for part in (facts.python, facts.variant):
        assert part in facts.labels["org.opencontainers.image.title"]


def test_size(facts: Image, pytestconfig: pytest.Config) -> None:
    shared = 0 if "core" in facts.groups or facts.groups == ["runtime"] else WITHOUT_CORE_MB
    budget = float(sum(BUDGET_MB[part] for part in ["base", *facts.groups]) + shared)
    rows = pytestconfig.stash.setdefault(sizes_key, [])
    rows.append((facts.name, " ".join(facts.groups), facts.size_mb, budget))
    assert facts.size_mb < budget
