"""List all packages of an image (CycloneDX), and their known vulnerabilities as far as somebody can be asked.

    python ansible/tools/sbom.py trainyard/perception:3.11-cpu --folder build/sbom

Writes NAME.python.cdx.json (cyclonedx-py, from the pinned lists that the image keeps) and NAME.debian.cdx.json
(debsbom, from the image's dpkg database).  pip-audit asks the package index for vulnerabilities, and trivy, when it is
installed, knows those of the distribution.  Needs Docker; runs nothing of the image but ``cat``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> str:
    """Run a command and give what it prints.

    Raises:
        RuntimeError: if it fails, with its last words.
    """
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)  # noqa: S603
    if done.returncode != 0:
        # Docker ends with an advice to look into its help.
        words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and "--help'" not in line]
        raise RuntimeError(f"{Path(str(command[0])).name} {command[1]}: {(words or ['no word'])[-1]}")
    return done.stdout


def python_list(image: str, folder: Path) -> Path:
    """Write the image's pinned Python packages, each once, with its hashes."""
    spec = importlib.util.spec_from_file_location("split", ROOT / "docker/locks/split.py")
    assert spec
    assert spec.loader
    split = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(split)
    text = run(
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "sh",
        image,
        "-c",
        "cat /opt/trainyard/locks/*.txt",
    )
    path = folder / "requirements.txt"
    path.write_text("".join(lines for lines, _ in split.read(text).values()))
    return path


def debian_root(image: str, folder: Path) -> Path:
    """Copy the image's package database out of it."""
    root = folder / "root"
    (root / "var/lib").mkdir(parents=True)
    (root / "etc").mkdir()
    container = run("docker", "create", image).strip()
    try:
        run("docker", "cp", f"{container}:/var/lib/dpkg", root / "var/lib")
        run("docker", "cp", "--follow-link", f"{container}:/etc/os-release", root / "etc")
    finally:
        run("docker", "rm", "--force", container)
    return root


def vulnerabilities(requirements: Path) -> str:
    """Ask the package index for known vulnerabilities, and say what came of it."""
    command = [
        str(BIN / "pip-audit"),
        "--requirement",
        str(requirements),
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
    ]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)  # noqa: S603
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (
            "Python: nobody could be asked for vulnerabilities: "
            + (done.stderr.strip().splitlines() or ["no answer"])[-1]
        )
    asked = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {weakness['id']}, "
        f"mended in {', '.join(weakness['fix_versions']) or 'no release yet'}"
        for package in asked
        for weakness in package["vulns"]
    ]
    head = f"Python: {len(found)} known vulnerabilities in {len(asked)} packages that the index knows about"
    left = len(packages) - len(asked)
    return "\n  ".join([head + (f"; of {left} it knows nothing" if left else ""), *found])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="List all packages of an image.")
    parser.add_argument("image")
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    name = asked.image.rpartition("/")[2].replace(":", "-")
    python, debian = (asked.folder / f"{name}.{kind}.cdx.json" for kind in ("python", "debian"))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            listed = python_list(asked.image, Path(scratch))
            run(BIN / "cyclonedx-py", "requirements", listed, "--output-reproducible", "--of", "JSON", "-o", python)
            root = debian_root(asked.image, Path(scratch))
            run(
                BIN / "debsbom",
                "generate",
                "--sbom-type",
                "cdx",
                "--root",
                root,
                "--out",
                debian.with_suffix("").with_suffix(""),
            )
            said = vulnerabilities(listed)
    except (OSError, RuntimeError) as error:
        print(f"{asked.image}: {error}", file=sys.stderr)
        return 1
    for path in (python, debian):
        print(f"{path}: {len(json.loads(path.read_text())['components'])} components")
    print(said)
    if trivy := shutil.which("trivy"):
        print(run(trivy, "image", "--quiet", "--pkg-types", "os", asked.image))
    else:
        print("Debian: trivy is not installed here, so nobody was asked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
