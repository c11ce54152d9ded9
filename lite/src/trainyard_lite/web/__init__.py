"""The web page of port 8080: experiments, workers and queues, and one experiment.

Rendered here, from what the API answers to the person who is logged in: the page can show nothing that its reader could
not ask the API for.  The paths are those that the SDK prints.
"""

from ._app import create_web

__all__ = ["create_web"]
