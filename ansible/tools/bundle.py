"""Carry a site's images to hosts without a network: one archive with the images and what they must hash to.

    bundle.py save ARCHIVE --version 2.3 IMAGE...   pull what is missing, save all (needs Docker)
    bundle.py check ARCHIVE                         print the archive's manifest, or say what is wrong with it

Exit status: 0; 1 with the reason when an image cannot be had or the archive is not what was saved.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MANIFEST, IMAGES = "manifest.json", "images.tar"
CHUNK = 1 << 20


class BundleError(Exception):
    """An image cannot be had, or an archive is not what was saved."""


def save(archive: Path, version: str, images: list[str]) -> dict[str, object]:
    """Write the archive in the place of an older one; a run that breaks off leaves none.

    Raises:
        BundleError: if an image is neither here nor in its registry, or cannot be saved, or if there is something else
            in the archive's place.
    """
    if os.path.lexists(archive) and not _is_bundle(archive):
        raise BundleError(f"{archive} is there, and is not a bundle: write another path, or move it away")
    for image in images:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            pulled = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, check=False)
            if pulled.returncode:
                raise BundleError(f"{image} is not here and cannot be pulled: {pulled.stderr.strip()}")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        stream, whole = Path(folder) / IMAGES, Path(folder) / "whole.tar"
        saved = subprocess.run(
            ["docker", "save", "--output", str(stream), *images], capture_output=True, text=True, check=False
        )
        if saved.returncode:
            raise BundleError(f"docker save: {saved.stderr.strip()}")
        with stream.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest: dict[str, object] = {"version": version, "images": images, "sha256": digest}
        with tarfile.open(whole, "w") as tar:
            text = json.dumps(manifest, indent=2).encode()
            entry = tarfile.TarInfo(MANIFEST)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            tar.add(stream, IMAGES)
        whole.replace(archive)
    return manifest


def _is_bundle(archive: Path) -> bool:
    """Return whether there is an archive that ``save`` wrote, of whatever images."""
    try:
        with tarfile.open(archive) as tar:
            first = tar.next()
            return first is not None and first.name == MANIFEST
    except (OSError, tarfile.TarError):
        return False


def check(archive: Path) -> dict[str, object]:
    """Read the manifest and compare it with the archive's content.

    Raises:
        BundleError: if the archive cannot be read, or its images are not those that were saved.
    """
    try:
        with tarfile.open(archive) as tar:
            manifest_file, images_file = tar.extractfile(MANIFEST), tar.extractfile(IMAGES)
            assert manifest_file is not None
            assert images_file is not None
            manifest: dict[str, object] = json.load(manifest_file)
            digest = hashlib.sha256()
            while chunk := images_file.read(CHUNK):
                digest.update(chunk)
    except (OSError, KeyError, ValueError, tarfile.TarError, AssertionError) as error:
        raise BundleError(f"{archive} cannot be read as a bundle: {error}; make it with ansible/bundle.yml") from error
    if digest.hexdigest() != manifest["sha256"]:
        raise BundleError(
            f"{archive} has images with the checksum {digest.hexdigest()}, but {manifest['sha256']} was saved: "
            "it was changed or cut off on its way; copy it again"
        )
    return manifest


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="write an archive")
    saving.add_argument("archive", type=Path)
    saving.add_argument("--version", required=True, help="the version set")
    saving.add_argument("images", nargs="+")
    checking = commands.add_parser("check", help="print an archive's manifest")
    checking.add_argument("archive", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "save":
            manifest = save(options.archive, options.version, options.images)
        else:
            manifest = check(options.archive)
    except BundleError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(manifest) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
