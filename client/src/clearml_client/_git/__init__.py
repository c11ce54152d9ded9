"""Whether the code of a run can be had again: what git knows of the script's repository, and what its remote has."""

from __future__ import annotations

from ._code import Code, at_remote, differs, holds, on_this_machine, read, reasons_not_reproducible
from ._run import git, own_repository

__all__ = [
    "Code",
    "at_remote",
    "differs",
    "git",
    "holds",
    "on_this_machine",
    "own_repository",
    "read",
    "reasons_not_reproducible",
]
