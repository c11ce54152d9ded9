"""The API's errors: code, subcode and message as clients of ClearML know them.

A handler raises ``errors.INVALID_TASK_ID(id="...")``; the dispatcher turns it into the envelope.
Codes and subcodes are the ClearML API's (read in its server's error table).
"""

from __future__ import annotations

from typing import Any

__all__ = ["ApiError", "ErrorKind"]


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        code: HTTP status.
        subcode: the API's finer code.
        message: text for ``meta.result_msg``.
        data: JSON-able details for ``meta.error_data``.
        headers: extra HTTP headers, such as Retry-After.
    """

    def __init__(
        self,
        code: int,
        subcode: int,
        message: str,
        data: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.subcode = subcode
        self.message = message
        self.data = data or {}
        self.headers = headers or {}


class ErrorKind:
    """One row of the error table; calling it makes the exception."""

    def __init__(self, code: int, subcode: int, message: str) -> None:
        self.code = code
        self.subcode = subcode
        self.message = message

    def __call__(self, extra: str | None = None, /, *, replacement: str = "", **details: Any) -> ApiError:
        """Make the exception: ``message (extra): key=value, ...``, the form that ClearML prints."""
        text = (replacement or self.message).capitalize()
        if extra:
            text += f" ({extra})"
        if details:
            text += ": " + ", ".join(f"{key}={_format(value)}" for key, value in details.items())
        return ApiError(self.code, self.subcode, text, details)


def _format(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        return f"({', '.join(str(item) for item in value)})"
    return str(value)


# 400: the request is wrong
BAD_REQUEST = ErrorKind(400, 0, "bad request")
NOT_SUPPORTED = ErrorKind(400, 1, "endpoint is not supported")
INVALID_HEADERS = ErrorKind(400, 5, "invalid headers")
IMPERSONATION_ERROR = ErrorKind(400, 6, "impersonation error")
INVALID_ID = ErrorKind(400, 10, "invalid object id")
MISSING_REQUIRED_FIELDS = ErrorKind(400, 11, "missing required fields")
VALIDATION_ERROR = ErrorKind(400, 12, "validation error")
FIELDS_NOT_ALLOWED_FOR_ROLE = ErrorKind(400, 13, "fields not allowed for role")
INVALID_FIELDS = ErrorKind(400, 14, "fields not defined for object")
FIELDS_LOOKUP_ERROR = ErrorKind(400, 14, "lookup error (probably an invalid field name or unsupported nested field)")
FIELDS_CONFLICT = ErrorKind(400, 15, "conflicting fields")
FIELDS_VALUE_ERROR = ErrorKind(400, 16, "invalid value for fields")
BATCH_CONTAINS_NO_ITEMS = ErrorKind(400, 17, "batch request contains no items")
BATCH_VALIDATION_ERROR = ErrorKind(400, 18, "batch request validation error")
FIELDS_TYPE_ERROR = ErrorKind(400, 20, "invalid type for fields")
INVALID_REGEX_ERROR = ErrorKind(400, 21, "malformed regular expression")
INVALID_ACCESS_KEY = ErrorKind(400, 75, "access key not found")
TASK_ERROR = ErrorKind(400, 100, "general task error")
INVALID_TASK_ID = ErrorKind(400, 101, "invalid task id")
TASK_VALIDATION_ERROR = ErrorKind(400, 102, "task validation error")
INVALID_TASK_STATUS = ErrorKind(400, 110, "invalid task status")
TASK_NOT_STARTED = ErrorKind(400, 111, "task not started (invalid task status)")
TASK_IN_PROGRESS = ErrorKind(400, 112, "task in progress (invalid task status)")
TASK_PUBLISHED = ErrorKind(400, 113, "task published (invalid task status)")
TASK_STATUS_UNKNOWN = ErrorKind(400, 114, "task unknown (invalid task status)")
FAILED_CHANGING_TASK_STATUS = ErrorKind(400, 121, "failed changing task status. probably someone changed it before you")
MISSING_TASK_FIELDS = ErrorKind(400, 122, "task is missing expected fields")
TASK_CANNOT_BE_DELETED = ErrorKind(400, 123, "task cannot be deleted")
INVALID_TASK_TYPE = ErrorKind(400, 126, "invalid task type for this operations")
INVALID_TASK_INPUT = ErrorKind(400, 127, "invalid task output")
TASK_PUBLISH_IN_PROGRESS = ErrorKind(400, 129, "Task publish in progress")
TASK_NOT_FOUND = ErrorKind(400, 130, "task not found")
EVENTS_NOT_ADDED = ErrorKind(400, 131, "events not added")
MODEL_ERROR = ErrorKind(400, 200, "general task error")
INVALID_MODEL_ID = ErrorKind(400, 201, "invalid model id")
MODEL_NOT_READY = ErrorKind(400, 202, "model is not ready")
MODEL_IS_READY = ErrorKind(400, 203, "model is ready")
INVALID_MODEL_URI = ErrorKind(400, 204, "invalid model URI")
MODEL_IN_USE = ErrorKind(400, 205, "model is used by tasks")
MODEL_CREATING_TASK_EXISTS = ErrorKind(400, 206, "task that created this model exists")
INVALID_USER = ErrorKind(400, 300, "invalid user")
INVALID_USER_ID = ErrorKind(400, 301, "invalid user id")
USER_ID_EXISTS = ErrorKind(400, 302, "user id already exists")
INVALID_PREFERENCES_UPDATE = ErrorKind(400, 305, "Malformed key and/or value")
INVALID_PROJECT_ID = ErrorKind(400, 401, "invalid project id")
PROJECT_HAS_TASKS = ErrorKind(400, 402, "project has associated tasks")
PROJECT_NOT_FOUND = ErrorKind(400, 403, "project not found")
PROJECT_HAS_MODELS = ErrorKind(400, 405, "project has associated models")
PROJECT_HAS_DATASETS = ErrorKind(400, 406, "project has associated non-empty datasets")
INVALID_PROJECT_NAME = ErrorKind(400, 407, "invalid project name")
CANNOT_UPDATE_PROJECT_LOCATION = ErrorKind(400, 408, "Cannot update project location. Use projects.move instead")
PROJECT_PATH_EXCEEDS_MAX = ErrorKind(400, 409, "Project path exceed the maximum allowed depth")
PROJECT_SOURCE_AND_DESTINATION_ARE_THE_SAME = ErrorKind(400, 410, "Project has the same source and destination paths")
PROJECT_CANNOT_BE_MOVED_UNDER_ITSELF = ErrorKind(
    400, 411, "Project can not be moved under itself in the projects hierarchy"
)
PROJECT_CANNOT_BE_MERGED_INTO_ITS_CHILD = ErrorKind(400, 412, "Project can not be merged into its own child")
INVALID_QUEUE_ID = ErrorKind(400, 701, "invalid queue id")
QUEUE_NOT_EMPTY = ErrorKind(400, 702, "queue is not empty")
INVALID_QUEUE_OR_TASK_NOT_QUEUED = ErrorKind(400, 703, "invalid queue id or task not in queue")
REMOVED_DURING_REPOSITION = ErrorKind(400, 704, "task was removed by another party during reposition")
TASK_ALREADY_QUEUED = ErrorKind(400, 706, "failed adding task to queue since task is already queued")
NO_DEFAULT_QUEUE = ErrorKind(400, 707, "no queue is tagged as the default queue for this company")
MULTIPLE_DEFAULT_QUEUES = ErrorKind(400, 708, "more than one queue is tagged as the default queue for this company")
DATA_VALIDATION_ERROR = ErrorKind(400, 800, "data validation error")
EXPECTED_UNIQUE_DATA = ErrorKind(
    400, 801, "value combination already exists (unique field already contains this value)"
)
INVALID_WORKER_ID = ErrorKind(400, 1001, "invalid worker id")
WORKER_REGISTRATION_FAILED = ErrorKind(400, 1002, "worker registration failed")
WORKER_REGISTERED = ErrorKind(400, 1003, "worker is already registered")
WORKER_NOT_REGISTERED = ErrorKind(400, 1004, "worker is not registered")
INVALID_SCROLL_ID = ErrorKind(400, 1104, "Invalid scroll id")

# 401: who are you
UNAUTHORIZED = ErrorKind(401, 0, "unauthorized")
BAD_AUTH_TYPE = ErrorKind(401, 10, "unauthorized (bad authentication header type)")
NO_CREDENTIALS = ErrorKind(401, 20, "unauthorized (missing credentials)")
BAD_CREDENTIALS = ErrorKind(401, 21, "unauthorized (malformed credentials)")
INVALID_CREDENTIALS = ErrorKind(401, 22, "unauthorized (invalid credentials)")
INVALID_TOKEN = ErrorKind(401, 30, "invalid token")

# 403: you may not
ROLE_NOT_ALLOWED = ErrorKind(403, 20, "forbidden (not allowed for role)")

FOREIGN_PAGE = ErrorKind(403, 0, "forbidden")

# Other statuses
NOT_FOUND = ErrorKind(404, 0, "not found")
REQUEST_TIMEOUT = ErrorKind(408, 0, "request body came too slowly")
PAYLOAD_TOO_LARGE = ErrorKind(413, 0, "request body is too large")
UNSUPPORTED_ENCODING = ErrorKind(415, 0, "content encoding is not supported")
TOO_MANY_REQUESTS = ErrorKind(429, 0, "too many failed logins, try again later")
SERVER_BUSY = ErrorKind(503, 0, "server is busy, try again later")
GENERAL_ERROR = ErrorKind(500, 0, "general server error")
NOT_IMPLEMENTED = ErrorKind(500, 9999, "action is not yet implemented")
