"""What the SDK does that a training must not suffer from; each read in its source and seen with SDK 2.1.12."""

from __future__ import annotations

import os
from typing import Any

from clearml import Task
from clearml.backend_api.utils import get_http_session_with_retry
from clearml.utilities.check_updates import CheckPackageUpdates

__all__ = ["correct"]

_renewing = False


def correct() -> None:
    """Correct the SDK in this process; before ``Task.init``.

    Raises:
        MissingConfigError, LoginError: as ``Task.init`` would.
    """
    # It looks for the repository in a thread and forks beside it. Where the fork comes while git is being started,
    # it inherits a pipe of it; then the thread waits for ever, and so does the end of the run.
    Task._Task__detect_repo_async = False  # type: ignore[attr-defined]  # its private name
    # It tells clear.ml of this machine when it looks for a newer SDK: a site's own server is nobody else's matter.
    CheckPackageUpdates._package_version_checked = True
    if not Task.is_offline():
        _renew_connections_after_forks()


def _renew_connections_after_forks() -> None:
    """Give each forked process connections of its own.

    The SDK forks a process that reports, as data loaders fork workers, and all of them go on with the parent's open
    connection: two requests that meet there are one broken one (HTTP 400), and what they should have reported is lost,
    or the run ends with an AttributeError.
    """
    global _renewing
    if _renewing or not hasattr(os, "register_at_fork"):
        return
    _renewing = True
    session: Any = Task._get_default_session()  # two of its attributes are private

    def renew() -> None:
        made = get_http_session_with_retry(**session._Session__http_retries_config)
        made.write_timeout = session._write_session_timeout
        made.request_size_threshold = session._write_session_data_size
        session._Session__http_session = made

    os.register_at_fork(after_in_child=renew)
