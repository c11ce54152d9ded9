"""Data that DVC tracks: pulled once per node, verified, and linked to where a script looks for it."""

from ._api import DvcApi

__all__ = ["DvcApi"]
