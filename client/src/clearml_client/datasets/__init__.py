"""Versioned datasets: stored once, named by version, shared on each machine.

from clearml_client.datasets import open_dataset, upload_dataset

upload_dataset("recordings", "kitti", version="1.4.0", parents=["kitti@1.3.0"])
folder = open_dataset("kitti@1.4.0")
"""

from __future__ import annotations

from ._interface import Store
from ._records import Change, Difference, Problem, Row, Tree, Version
from .store import ClearmlStore, default_project, open_dataset, upload_dataset

__all__ = [
    "Change",
    "ClearmlStore",
    "Difference",
    "Problem",
    "Row",
    "Store",
    "Tree",
    "Version",
    "default_project",
    "open_dataset",
    "upload_dataset",
]
