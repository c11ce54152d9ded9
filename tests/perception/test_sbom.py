"""The lists of an image's packages are complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_all_packages_are_listed(image: str, tmp_path: Path) -> None:
    said(sys.executable, str(ROOT / "ansible/tools/sbom.py"), image, "--folder", str(tmp_path))
    (python,) = tmp_path.glob("*.python.cdx.json")
    (debian,) = tmp_path.glob("*.debian.cdx.json")
    listed = {entry["name"].lower() for entry in json.loads(python.read_text())["components"]}
    pins = said("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", "cat /opt/trainyard/locks/*.txt")
    assert listed == {line.split("==")[0].split("[")[0].lower() for line in pins.splitlines() if "==" in line}
    query = ("dpkg-query", image, "--show", "--showformat", "${Package}\n")
    packages = said("docker", "run", "--rm", "--entrypoint", *query)
    assert set(packages.split()) <= {entry["name"] for entry in json.loads(debian.read_text())["components"]}
