"""What every training script of a Trainyard site starts with.

    from clearml_client import DvcApi, Logger, init_clearml

    task = init_clearml("digits")
    dvc = DvcApi()
    images = dvc.dvc_pull(dvc.dvc_path / "data/images")

Exceptions::

    Exception
      └── ClearmlClientError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clearml import Logger, Task

from . import _command_line, _errors
from ._errors import ClearmlClientError
from ._init import init_clearml
from ._logging import ClearmlHandler

if TYPE_CHECKING:
    from ._dvc import DvcApi
    from ._lookup import datasets_of, models_of
    from .datasets import open_dataset, upload_dataset

__all__ = [
    "ClearmlClientError",
    "ClearmlHandler",
    "DvcApi",
    "Logger",
    "datasets_of",
    "init_clearml",
    "models_of",
    "open_dataset",
    "upload_dataset",
]

# Read when they are asked for: a script that only reports pays for nothing else.
_LATER = {
    "DvcApi": "._dvc",
    "datasets_of": "._lookup",
    "models_of": "._lookup",
    "open_dataset": ".datasets",
    "upload_dataset": ".datasets",
}


_errors.print_as_one_sentence()

# Before anything reads the command line; in a queue this may start the process again.
if Task.running_locally():
    _command_line.watch()
else:
    from ._restored import restore

    restore()


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
