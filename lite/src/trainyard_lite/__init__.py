"""The lite ClearML server: one process, one SQLite file, the ClearML API.

It speaks to the unmodified ``clearml`` SDK, ``clearml-agent`` and ``clearml-data``.  What it does not
implement it refuses with the API's own error envelope.
"""

__all__ = ["API_VERSION", "SERVER_VERSION", "__version__"]
__version__ = "0.1.0"
API_VERSION = "2.34"
SERVER_VERSION = "2.3.0"  # the official server whose API is followed
