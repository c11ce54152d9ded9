"""What can go wrong, as one tree of exceptions."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["ClearmlClientError", "print_as_one_sentence"]

_PACKAGE = str(Path(__file__).resolve().parent)


class ClearmlClientError(Exception):
    """Root of everything this package raises; its text says what to change."""


def print_as_one_sentence() -> None:
    """Print an error of this package that nobody catches as its text and the script's line, without a traceback.

    Only where no experiment runs yet: from then on a whole traceback says more. A hook of somebody else stays.
    """
    if sys.excepthook is not sys.__excepthook__:
        return

    def hook(kind: Any, error: Any, trace: Any) -> None:
        from clearml import Task

        if not issubclass(kind, ClearmlClientError) or Task.current_task() is not None:
            sys.__excepthook__(kind, error, trace)
            return
        own = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith(_PACKAGE)]
        where = "{}:{}: ".format(own[-1].filename, own[-1].lineno) if own else ""
        print("{}clearml_client: {}".format(where, error), file=sys.stderr, flush=True)

    sys.excepthook = hook
