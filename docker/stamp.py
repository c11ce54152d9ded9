"""Give images the date of their inputs instead of the date of their build: same inputs, same image ID and digest.

    python3 docker/stamp.py --epoch 1735689600 IMAGE...

The layers of our images are the same in every build already (docker/perception/tidy.sh), but engines before 23, and
`docker import` in all, write the hour of the build into the image's configuration.  BuildKit would take
SOURCE_DATE_EPOCH for that from version 0.11 on; where it did, nothing is left to do here.  The layers are not touched:
an archive with the new configuration alone is loaded, since the engine has all layers that it names.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any


def docker(*arguments: str, given: bytes = b"") -> str:
    """Run the Docker client.

    Raises:
        RuntimeError: if it fails; with its own words.
    """
    done = subprocess.run(("docker", *arguments), input=given, capture_output=True)  # noqa: S603, S607
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode().strip()


def stamped(config: dict[str, Any], date: str) -> dict[str, Any]:
    """Return an image's configuration with that date throughout."""
    return {**config, "created": date, "history": [{**entry, "created": date} for entry in config["history"]]}


def archive(config: bytes, image: str, layers: int) -> bytes:
    """Return what `docker load` takes: the configuration and the image's name, but no layers."""
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": [image], "Layers": [f"layer{n}" for n in range(layers)]}]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for inside, content in ((name, config), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(inside)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def stamp(image: str, epoch: int) -> str:
    """Stamp one image and return its ID."""
    found = docker("image", "inspect", "--format", "{{.Id}}", image)
    root, driver = docker("info", "--format", "{{.DockerRootDir}} {{.Driver}}").split()
    stored = Path(root, "image", driver, "imagedb", "content", "sha256", found.split(":")[1])
    if not stored.exists():
        # containerd's image store: its engines are new enough to have written the date themselves
        return found
    config = json.loads(stored.read_text())
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    changed = stamped(config, date)
    if changed != config:
        text = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        docker("load", "--quiet", given=archive(text, image, len(config["rootfs"]["diff_ids"])))
        if docker("image", "inspect", "--format", "{{len .RepoTags}}", found) == "0":
            # the configuration alone; its layers are the new one's too
            docker("image", "rm", "--no-prune", found)
    return docker("image", "inspect", "--format", "{{.Id}}", image)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Give images the date of their inputs.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--epoch", type=int, required=True, help="seconds since 1970")
    asked = parser.parse_args()
    try:
        for image in asked.images:
            print(image, stamp(image if ":" in image else image + ":latest", asked.epoch))
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
