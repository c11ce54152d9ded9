"""``debug.ping`` and ``server.*``: is it there, and what is it."""

from __future__ import annotations

from .. import API_VERSION, SERVER_VERSION, __version__
from .._rpc import ENDPOINTS, Call, OpenRequest, Request, endpoint
from .._store import Doc


@endpoint("debug.ping", auth=False, fast=True)
def ping(call: Call, request: OpenRequest) -> Doc:
    """Answer, with what was sent."""
    return {"msg": "ClearML server", **request.args()}


class _ConfigRequest(Request):
    path: str | None = None


@endpoint("server.info", since="2.8", fast=True)
def info(call: Call, request: Request) -> Doc:
    """Tell versions."""
    return {
        "version": SERVER_VERSION,
        "build": f"trainyard-lite-{__version__}",
        "commit": "trainyard-lite",
        "api_version": API_VERSION,
    }


@endpoint("server.config", since="2.1", roles=("system", "admin"), fast=True)
def config(call: Call, request: _ConfigRequest) -> Doc:
    """Tell the settings that are no secret."""
    settings = call.settings
    return {
        "workers": {"default_worker_timeout_sec": settings.worker_timeout_sec},
        "tasks": {
            "non_responsive_tasks_watchdog": {
                "enabled": settings.watchdog_enabled,
                "threshold_sec": settings.watchdog_threshold_sec,
                "watch_interval_sec": settings.watchdog_interval_sec,
            }
        },
    }


@endpoint("server.endpoints", since="2.1", fast=True)
def endpoints(call: Call, request: Request) -> Doc:
    """List the endpoints that lite has."""
    return {
        "endpoints": {
            name: [{"min_version": e.since, "required_fields": None, "request_data_model": e.request.__name__}]
            for name, e in sorted(ENDPOINTS.items())
        },
        "max_version": API_VERSION,
    }
