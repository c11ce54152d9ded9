"""What a repository says of itself: ``[tool.clearml_client]`` in its ``pyproject.toml``."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, Optional

from ._errors import ClearmlClientError
from ._images import check_image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["IMAGE_VARIABLE", "Settings", "image_for", "load", "script_folder"]

IMAGE_VARIABLE = "CLEARML_CLIENT_IMAGE"
"""The site's image for repositories that name none, such as ``trainyard/perception:{python}-cpu``."""
_VERSION = re.compile(r"^3\.\d+$")


@dataclass(frozen=True)
class Settings:
    """The table, checked; an empty one where there is none."""

    team: Optional[str] = None
    """First part of the project's path."""
    kind: str = "training"
    """Second part of the project's path."""
    project: Optional[str] = None
    """The whole path, instead of team and kind."""
    queue: Optional[str] = None
    """Queue that runs go to; without it they run where they are started."""
    image: Optional[str] = None
    """Image of runs in a queue."""
    images: Dict[str, str] = field(default_factory=dict)
    """Image by Python version, such as ``{"3.11": "trainyard/perception:3.11-cuda"}``."""
    python: Optional[str] = None
    """Python version of the repository, such as ``3.11``."""
    dataset_project: str = "datasets"
    """Project of the datasets in ClearML."""
    dvc_repo: Optional[str] = None
    """Git repository of the DVC data, when it is not this one."""
    dvc_rev: Optional[str] = None
    """Its branch, tag or commit."""
    path: Optional[Path] = field(default=None, compare=False)
    """The file that was read."""


def script_folder() -> Path:
    """Return the folder of the script that runs; the working directory when there is no script."""
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if script is not None and script.is_file() and script.suffix == ".py":
        return script.resolve().parent
    return Path.cwd()


def load(folder: Optional[Path] = None) -> Settings:
    """Read the nearest ``pyproject.toml`` at or above a folder (the script's by default).

    Raises:
        ClearmlClientError: It is no TOML, or the table has something unknown or of the wrong form.
    """
    start = folder or script_folder()
    for parent in (start, *start.parents):
        path = parent / "pyproject.toml"
        if path.is_file():
            return _checked(path)
        if (parent / ".git").exists():
            break
    return Settings()


def image_for(settings: Settings, folder: Optional[Path] = None) -> Optional[str]:
    """Return the image for a repository's Python version; ``None`` leaves it to the queue's workers.

    Raises:
        ClearmlClientError: The site's images have names that need a version, and it cannot be told, or the site's
            image is not one.
    """
    if settings.image:
        return settings.image
    template = os.environ.get(IMAGE_VARIABLE, "")
    if not settings.images and "{python}" not in template:
        return check_image(IMAGE_VARIABLE, template) if template else None
    python = _python(settings, folder or script_folder())
    if python in settings.images:
        return settings.images[python]
    if settings.images and not template:
        raise ClearmlClientError(
            "{}: [tool.clearml_client] images has none for Python {}; it has {}".format(
                settings.path, python, ", ".join(sorted(settings.images))
            )
        )
    return check_image(IMAGE_VARIABLE, template.replace("{python}", python))


def _python(settings: Settings, folder: Path) -> str:
    """Return the Python version that the repository is written for, such as ``3.11``."""
    if settings.python:
        return settings.python
    for parent in (folder, *folder.parents):
        path = parent / ".python-version"
        if path.is_file():
            match = re.match(r"\s*(?:cpython-)?(3\.\d+)", path.read_text())
            if match:
                return match.group(1)
        if (parent / ".git").exists():
            break
    return "{}.{}".format(*sys.version_info[:2])


def _checked(path: Path) -> Settings:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("clearml_client", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClearmlClientError("{}: {}".format(path, error)) from error
    known = {item.name for item in fields(Settings)} - {"path"}
    for key, value in table.items():
        where = "{}: [tool.clearml_client] {}".format(path, key)
        if key not in known:
            raise ClearmlClientError("{} is unknown; there are {}".format(where, ", ".join(sorted(known))))
        _check(where, key, value)
    return Settings(path=path, **table)


def _check(where: str, key: str, value: Any) -> None:
    if key == "images":
        if not isinstance(value, dict) or not all(isinstance(image, str) and image for image in value.values()):
            raise ClearmlClientError('{} is {!r}; write {{"3.11" = "IMAGE"}}'.format(where, value))
        for version, image in value.items():
            if not _VERSION.match(version):
                raise ClearmlClientError("{} has the version {!r}; write it like 3.11".format(where, version))
            check_image("{} for {}".format(where, version), image)
        return
    if not isinstance(value, str) or not value.strip():
        raise ClearmlClientError("{} is {!r}; write a text in quotes".format(where, value))
    if key == "image":
        check_image(where, value)
    if key == "python" and not _VERSION.match(value):
        raise ClearmlClientError("{} is {!r}; write a version in quotes, such as '3.11'".format(where, value))
    if key in ("team", "kind") and "/" in value:
        raise ClearmlClientError("{} is {!r}; it is one part of a path, without a slash".format(where, value))
