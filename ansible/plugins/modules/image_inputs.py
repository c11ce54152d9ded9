#!/usr/bin/python
# Part of Trainyard.
"""Hash what an image is made of, and pack it as a build context."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: image_inputs
short_description: Hash what each image is made of, and pack all of it as one build context
description:
  - Runs on the controller. Two runs over the same files give the same hashes and the same archive, whoever owns
    the files and whenever they were written. Changes nothing but the archive.
options:
  root:
    description: The repository's root.
    type: path
    required: true
  images:
    description:
      - Image name to C(paths) (files and folders below I(root)) and C(salt) (further text that must rebuild it).
        An image with C(parent) is rebuilt when that one is. Of C(lock), a lock file, only what C(groups) need counts.
    type: dict
    required: true
  archive:
    description: Where the build context is written, as a tar file.
    type: path
    required: true
"""

RETURN = r"""
hashes:
  description: Image name to the hash of its inputs.
  type: dict
  returned: always
locks:
  description: Image name to the hash of what it has of its lock; empty without one.
  type: dict
  returned: always
revisions:
  description: Image name to the last commit that changed its inputs. C(-dirty) if they differ; empty without git.
  type: dict
  returned: always
"""

LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "build", "dist"}


def files_below(root: Path, entry: str) -> list[Path]:
    """List the files of a path below the root, sorted, without caches.

    Raises:
        FileNotFoundError: if there is no such path.
    """
    path = root / entry
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: the images are built from it")
    return sorted(p for p in path.rglob("*") if p.is_file() and not LEFT_OUT.intersection(p.relative_to(root).parts))


def cut_lock(root: Path, lock: str, groups: list[str]) -> bytes:
    """Give the part of a lock that groups need, as the build cuts it.

    Raises:
        OSError: if that fails, as for a group that the lock does not have.
    """
    command = [sys.executable, str(root / "docker/locks/split.py"), str(root / lock), "--groups", *groups]
    done = subprocess.run(command, capture_output=True)  # noqa: S603
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip())
    return done.stdout


def revision(root: Path, paths: list[str]) -> str:
    """Name the last commit that changed these paths; nothing without git or its folder."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments, "--", *paths], capture_output=True, text=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        commit, changed = git("log", "-1", "--format=%H"), git("status", "--porcelain")
    except OSError:
        return ""
    return commit + "-dirty" if commit and changed else commit


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "images": {"type": "dict", "required": True},
            "archive": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    root, images = Path(module.params["root"]), module.params["images"]
    hashes: dict[str, str] = {}
    locks: dict[str, str] = {}
    revisions: dict[str, str] = {}
    packed: dict[str, bytes] = {}
    try:
        for name, image in images.items():
            digest = hashlib.sha256(f"{image.get('salt', '')}\0{hashes.get(image.get('parent', ''), '')}".encode())
            for path in (file for entry in image["paths"] for file in files_below(root, entry)):
                inside, content = str(path.relative_to(root)), path.read_bytes()
                packed[inside] = content
                digest.update(f"\0{inside}\0{len(content)}\0".encode() + content)
            locks[name] = ""
            if lock := image.get("lock"):
                packed[lock] = (root / lock).read_bytes()
                content = cut_lock(root, lock, image["groups"])
                locks[name] = hashlib.sha256(content).hexdigest()
                digest.update(b"\0" + content)
            hashes[name] = digest.hexdigest()
            revisions[name] = revision(root, [*image["paths"], *([image["lock"]] if "lock" in image else [])])
        archive = Path(module.params["archive"])
        archive.parent.mkdir(parents=True, exist_ok=True)
        # mtime, owner and mode are left at tarfile's zeros and defaults: the archive depends on names and content alone
        with tarfile.open(archive, "w") as tar:
            for inside, content in sorted(packed.items()):
                info = tarfile.TarInfo(inside)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    except (OSError, FileNotFoundError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, hashes=hashes, locks=locks, revisions=revisions)


if __name__ == "__main__":
    main()
