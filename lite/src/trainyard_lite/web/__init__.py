"""The web page of port 8080."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from .._rpc import State

__all__ = ["create_web"]


def create_web(state: State) -> Starlette:
    """Make the ASGI application of port 8080."""

    async def login(request: Request) -> Response:
        return HTMLResponse("<!doctype html><title>Trainyard</title><p>Log in")

    async def home(request: Request) -> Response:
        return RedirectResponse("/login", status_code=303)

    return Starlette(routes=[Route("/login", login), Route("/", home)])
