"""Offline mode: what the SDK needs to keep its word there."""

from __future__ import annotations

from clearml import OutputModel

__all__ = ["make_models_storable"]


def make_models_storable() -> None:
    """Let ``OutputModel.update_weights`` work without a server.

    It first asks whether the model is published, and SDK 2.1 looks that up in a record that only a
    server can have (AttributeError: 'DummyModel' object has no attribute 'locked'). A model of an offline
    session was never on a server, so it is not published.
    """
    OutputModel.published = property(_not_published)  # type: ignore[method-assign,assignment]


def _not_published(_: OutputModel) -> bool:
    return False
