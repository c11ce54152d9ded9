"""What the SDK does that a training must not suffer from; each read in its source and seen with SDK 2.1.12."""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import Any

from clearml import Task
from clearml.backend_api.utils import get_http_session_with_retry
from clearml.backend_interface.model import Model
from clearml.storage.helper import _HttpDriver
from clearml.utilities.check_updates import CheckPackageUpdates

from ._storable import storable

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
    _store_under_names_that_can_be_deleted()
    _log_in_again_for_uploads()
    if not Task.is_offline():
        _renew_connections_after_forks()


def _store_under_names_that_can_be_deleted() -> None:
    """Keep ``+ % # ?`` of projects, experiments and model files out of the paths on the file server.

    Artifacts, models and debug samples all lie below the path that the first method returns; the names of artifacts
    themselves the SDK writes so already.
    """
    suffix: Any = Task._get_output_destination_suffix
    upload: Any = Model._upload_model
    if getattr(suffix, "_storable", False):
        return

    @wraps(suffix)
    def storable_suffix(*args: Any, **kwargs: Any) -> str:
        return storable(suffix(*args, **kwargs))

    @wraps(upload)
    def storable_upload(
        self: Model, model_file: Any, async_enable: bool = False, target_filename: Any = None, cb: Any = None
    ) -> Any:
        name = storable(target_filename or Path(model_file).name)
        return upload(self, model_file, async_enable=async_enable, target_filename=name, cb=cb)

    storable_suffix._storable = True  # type: ignore[attr-defined]
    Task._get_output_destination_suffix = storable_suffix  # type: ignore[method-assign]
    Model._upload_model = storable_upload  # type: ignore[method-assign]


def _log_in_again_for_uploads() -> None:
    """Log in again when the file server rejects an upload's token, before the SDK tries the upload again.

    An operator may end all logins. Calls of the API then log in again by themselves, an upload does not: all its tries
    would use the old token, and the file would be lost.
    """
    upload: Any = _HttpDriver.upload_object_via_stream
    if getattr(upload, "_logs_in_again", False):
        return

    @wraps(upload)
    def logging_in(self: _HttpDriver, iterator: Any, container: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return upload(self, iterator, container, *args, **kwargs)
        except ValueError as error:
            session = getattr(container, "_default_backend_session", None)
            # The SDK's words: "Failed uploading object NAME to ADDRESS (401): ..."
            if session is not None and " (401): " in str(error):
                session.refresh_token()
            raise

    logging_in._logs_in_again = True  # type: ignore[attr-defined]
    _HttpDriver.upload_object_via_stream = logging_in  # type: ignore[method-assign]


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
