"""The lite ClearML server: one process, one SQLite file, the ClearML API.

It speaks to the unmodified ``clearml`` SDK, ``clearml-agent`` and ``clearml-data``.  What it does not
implement it refuses with the API's own error envelope.
"""

__all__ = ["__version__"]
__version__ = "0.1.0"
