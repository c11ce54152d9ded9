"""What every training script of a Trainyard site starts with.

    from clearml_client import init_clearml

    task = init_clearml("digits", project="perception/training")

Exceptions::

    Exception
      └── ClearmlClientError
"""

from ._errors import ClearmlClientError
from ._init import init_clearml

__all__ = ["ClearmlClientError", "init_clearml"]
