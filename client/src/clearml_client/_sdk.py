"""What the SDK does that a training must not suffer from; each read in its source and seen with SDK 2.1.12."""

from __future__ import annotations

import math
import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any, List, Optional, Set, Tuple

from clearml import OutputModel, Task
from clearml.backend_api.utils import get_http_session_with_retry
from clearml.backend_interface.metrics.events import MetricsEventAdapter, UploadEvent
from clearml.backend_interface.metrics.reporter import Reporter
from clearml.backend_interface.model import Model
from clearml.backend_interface.task.repo.detectors import GitDetector
from clearml.backend_interface.task.repo.scriptinfo import ScriptInfo
from clearml.storage.helper import _HttpDriver
from clearml.utilities.check_updates import CheckPackageUpdates

from ._errors import ClearmlClientError
from ._git import Code, own_repository, read
from ._given import SHORTEST
from ._storable import check_key, storable, storable_name

__all__ = ["correct"]

_renewing = False
_code: Optional[Code] = None


def correct(code: Optional[Code] = None) -> None:
    """Correct the SDK in this process; before ``Task.init``.

    Args:
        code: What the script's repository holds, where that has been read already.

    Raises:
        MissingConfigError, LoginError: as ``Task.init`` would.
    """
    global _code
    _code = code
    # It looks for the repository in a thread and forks beside it. Where the fork comes while git is being started,
    # it inherits a pipe of it; then the thread waits for ever, and so does the end of the run.
    Task._Task__detect_repo_async = False  # type: ignore[attr-defined]  # its private name
    # It tells clear.ml of this machine when it looks for a newer SDK: a site's own server is nobody else's matter.
    CheckPackageUpdates._package_version_checked = True
    _record_the_module_that_runs()
    _record_what_is_here()
    _store_under_names_that_can_be_deleted()
    _check_keys()
    _store_samples_under_names_that_can_be_read()
    _leave_gaps_in_curves()
    _log_in_again_for_uploads()
    if not Task.is_offline():
        _renew_connections_after_forks()


def _record_the_module_that_runs() -> None:
    """Look for the repository of ``python -m MODULE`` where the module is.

    For a module the SDK begins at the file that called ``Task.init``, which is one of this package: it would record
    the repository that this package is in, or none.
    """
    original: Any = ScriptInfo.get
    if getattr(original, "_begins_at_the_module", False):
        return

    @wraps(original)
    def get(filepaths: Optional[List[str]] = None, *args: Any, **kwargs: Any) -> Any:
        if filepaths and ScriptInfo.is_running_from_module():
            filepaths = [sys.argv[0], *filepaths]
        return original(filepaths, *args, **kwargs)

    get._begins_at_the_module = True  # type: ignore[attr-defined]
    ScriptInfo.get = get  # type: ignore[method-assign]


def _record_what_is_here() -> None:
    """Record the changes of the working directory, whatever git is configured to print, and whatever its files hold.

    The SDK takes what ``git diff HEAD`` prints, with colours or through an external program where somebody has set so,
    without what git was asked not to look at, and nothing at all if one byte of it is not UTF-8.
    """
    original: Any = GitDetector.get_info
    is_repository: Any = GitDetector._is_repo_type
    if getattr(original, "_reads_what_is_here", False):
        return

    @wraps(original)
    def get_info(self: GitDetector, path: Any, include_diff: bool = False, diff_from_remote: bool = False) -> Any:
        with own_repository():
            if not include_diff or diff_from_remote:
                return original(self, path, include_diff=include_diff, diff_from_remote=diff_from_remote)
            info = original(self, path)
            code = _code if _code is not None and str(_code.root) == info.root else read(Path(path), ask=False)[0]
            if code is None or code.commit != info.commit or not code.proved:
                return original(self, path, include_diff=True)
        info.diff = code.diff
        return info

    @wraps(is_repository)
    def is_own(self: GitDetector, path: Any) -> bool:
        with own_repository():
            return bool(is_repository(self, path))

    get_info._reads_what_is_here = True  # type: ignore[attr-defined]
    GitDetector.get_info = get_info  # type: ignore[method-assign]
    GitDetector._is_repo_type = is_own  # type: ignore[method-assign,assignment]


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
        name = storable_name(target_filename or Path(model_file).name)
        return upload(self, model_file, async_enable=async_enable, target_filename=name, cb=cb)

    storable_suffix._storable = True  # type: ignore[attr-defined]
    Task._get_output_destination_suffix = storable_suffix  # type: ignore[method-assign]
    Model._upload_model = storable_upload  # type: ignore[method-assign]


def _check_keys() -> None:
    """Refuse names of artifacts and models that would be stored and not found again, or not be registered."""
    upload: Any = Task.upload_artifact
    register: Any = Task.register_artifact
    model: Any = OutputModel.__init__
    if getattr(upload, "_checked", False):
        return

    @wraps(upload)
    def checked_upload(self: Task, name: Any, *args: Any, **kwargs: Any) -> Any:
        return upload(self, check_key("artifact", name), *args, **kwargs)

    @wraps(register)
    def checked_register(self: Task, name: Any, *args: Any, **kwargs: Any) -> Any:
        return register(self, check_key("artifact", name), *args, **kwargs)

    @wraps(model)
    def checked_model(
        self: OutputModel,
        task: Any = None,
        config_text: Any = None,
        config_dict: Any = None,
        label_enumeration: Any = None,
        name: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if name is not None:
            check_key("model", name)
            if len(name) < SHORTEST:
                raise ClearmlClientError("model: the server takes names from 3 characters on, got {!r}".format(name))
        model(self, task, config_text, config_dict, label_enumeration, name, *args, **kwargs)

    checked_upload._checked = True  # type: ignore[attr-defined]
    Task.upload_artifact = checked_upload  # type: ignore[method-assign]
    Task.register_artifact = checked_register  # type: ignore[method-assign]
    OutputModel.__init__ = checked_model  # type: ignore[method-assign]


def _store_samples_under_names_that_can_be_read() -> None:
    """Name the files of debug samples so that they are found again; title and series stay as they were given.

    A training does not end for the title of a picture, so nothing is refused here.
    """
    events: Any = UploadEvent
    original: Any = events._replace_slash
    if getattr(original, "_storable", False):
        return

    @wraps(original)
    def replaced(part: str) -> str:
        if part.strip("/") in ("", ".", ".."):
            return "".join("0x{:02x}".format(ord(char)) for char in part) or "0x00"
        return storable_name(original(part))

    replaced._storable = True  # type: ignore[attr-defined]
    events._replace_slash = staticmethod(replaced)


def _leave_gaps_in_curves() -> None:
    """Report nothing where a value is not a number or infinite: the SDK would report a zero.

    The server keeps finite numbers only. ``Logger.set_reporting_nan_value`` and ``set_reporting_inf_value`` hold.
    """
    report: Any = Reporter.report_scalar
    if getattr(report, "_leaves_gaps", False):
        return
    seen: Set[Tuple[str, str]] = set()

    @wraps(report)
    def report_scalar(self: Reporter, title: str, series: str, value: Any, iter: int) -> Any:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = 0.0  # the SDK's to refuse
        instead = MetricsEventAdapter.default_nan_value if math.isnan(number) else MetricsEventAdapter.default_inf_value
        if math.isfinite(number) or instead != 0.0:
            return report(self, title, series, value, iter)
        if (title, series) not in seen:
            seen.add((title, series))
            print(
                "clearml_client: {} / {} is {} at iteration {}: such values are left out, its curve has a gap".format(
                    title, series, number, iter
                ),
                file=sys.stderr,
            )
        return None

    report_scalar._leaves_gaps = True  # type: ignore[attr-defined]
    Reporter.report_scalar = report_scalar  # type: ignore[method-assign]


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
