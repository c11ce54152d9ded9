"""What the tests of the experiments' images share, and their benchmark: the Docker client, locks, a build."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "docker" / "locks"
GROUPS = ROOT / "docker" / "groups"
# 2025-01-01, as docker/docker-bake.hcl has it.
EPOCH = 1735689600
# What `make lock` says, without --upgrade: what a lock has stays as far as it fits.
COMPILE = (
    "uv", "pip", "compile", "--quiet", "--python-platform", "x86_64-manylinux_2_28", "--generate-hashes",
    "--no-emit-index-url", "--custom-compile-command", "make lock",
)  # fmt: skip


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None, given: bytes = b"") -> str:
    """Run a program and return its standard output; all that it said is in the error when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **(env or {})}, input=given, capture_output=True)
    told = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{' '.join(words)}: exit status {done.returncode}\n{told}"
    return done.stdout.decode(errors="replace").strip()


def load(path: Path) -> ModuleType:
    """Import a program of the repository, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cut(lock: str, groups: Sequence[str]) -> str:
    """Return what groups need of a lock of this checkout, such as "3.11-cpu"."""
    return str(load(LOCKS / "split.py").cut((LOCKS / f"{lock}.txt").read_text(), groups))


def pins(requirements: str) -> dict[str, str]:
    """Return the version of each package of a list, by its normal name."""
    found = {}
    for line in requirements.splitlines():
        name, equal, version = line.split(";")[0].partition("==")
        if equal and not line.startswith((" ", "#")):
            found[normal(name.split("[")[0])] = version.strip(" \\")
    return found


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 writes it."""
    return name.strip().lower().replace("_", "-").replace(".", "-")


def declared(group: str) -> list[str]:
    """Return the packages that a group names, without extras."""
    lines = [line.split("#")[0].strip() for line in (GROUPS / f"{group}.in").read_text().splitlines()]
    return [normal(line.split("[")[0].split(";")[0]) for line in lines if line]


def compile_lock(python: str, target: Path, root: Path = ROOT) -> None:
    """Resolve all groups of a checkout into a lock; the target's old content is what is preferred."""
    inputs = sorted(path.relative_to(root) for path in (root / "docker" / "groups").glob("*.in"))
    tool = ROOT / ".venv" / "bin" / COMPILE[0]
    command: list[str | Path] = [tool, *COMPILE[1:], "--python-version", python, *inputs, "--output-file", target]
    run(*command, cwd=root, env={"UV_SYSTEM_CERTS": "true"})


def site_files(folder: Path, mark: str = "") -> Path:
    """Write the site's secrets of a build, each with a comment when one is given, and return their folder."""
    folder.mkdir(parents=True)
    authorities = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    shutil.copyfile(authorities, folder / "ca.pem")
    with (folder / "ca.pem").open("a") as file:
        file.write(f"\n# {mark}\n")
    (folder / "pip.conf").write_text(f"# {mark}\n[global]\ncert = /run/site-ca.pem\n")
    (folder / "apt.conf").write_text(f'// {mark}\nAcquire::https::CaInfo "/run/site-ca.pem";\n')
    (folder / "uv.toml").write_text(f"# {mark}\n")
    return folder


def build(dockerfile: Path, tag: str, site: Path, arguments: Mapping[str, str], *options: str) -> None:
    """Build an image; the folder above docker/ is what the Dockerfile sees."""
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    files = {"ca": "ca.pem", "pip": "pip.conf", "apt": "apt.conf", "uv": "uv.toml"}
    secrets = [word for name, file in files.items() for word in ("--secret", f"id={name},src={site / file}")]
    root = next(folder.parent for folder in dockerfile.parents if folder.name == "docker")
    command: list[str | Path] = [
        "docker",
        "buildx",
        "build",
        "--progress",
        "plain",
        "--load",
        "-f",
        dockerfile,
        "-t",
        tag,
    ]
    run(*command, *given, *secrets, *options, root, env={"DOCKER_BUILDKIT": "1"})


def arguments_of(python: str, suite: str, system: str, groups: str, epoch: int = EPOCH) -> dict[str, str]:
    """Return the arguments that docker/perception/Dockerfile wants."""
    return {
        "SYSTEM_IMAGE": system,
        "APT_SUITE": suite,
        "FILES_EPOCH": str(epoch),
        "LOCK": f"{python}-cpu",
        "PYTHON": python,
        "PACKAGE_GROUPS": groups,
    }
