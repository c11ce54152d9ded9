"""Routes and pages."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import parse_qsl, quote, urlsplit

import jinja2
import jinja2.ext
import re2  # type: ignore[import-untyped]
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .. import API_VERSION
from .._bounds import dumps, loads, whole_number
from .._clock import read_time
from .._edge import is_foreign
from .._errors import ApiError
from .._rpc import Call, State, invoke, resolve
from .._store import Doc
from ..domain.life import STATUSES

_HERE = Path(__file__).parent
_log = logging.getLogger("trainyard_lite.web")
_PAGE_SIZE = 50
_MAX_SHOWN = 200  # characters of a name
_MAX_LONG = 100_000  # characters of a text such as a diff
_MAX_FORM_BYTES = 262_144
_MAX_LOGIN_BYTES = 16_384
# Lite sets the other two only where a client asks for it: they are not offered as a filter.
_STATUSES = tuple(status for status in STATUSES if status not in ("publishing", "unknown"))
_TABS = {
    "console": "Console",
    "scalars": "Scalars",
    "plots": "Plots",
    "samples": "Debug samples",
    "parameters": "Parameters",
    "artifacts": "Artifacts",
    "info": "Info",
}
# The paths of the official page, as the SDK prints them -> our tabs.
_TAB_PATHS = {
    "output/log": "console",
    "log": "console",
    "output/metrics/scalar": "scalars",
    "scalars": "scalars",
    "output/metrics/plots": "plots",
    "plots": "plots",
    "output/debugImages": "samples",
    "debugImages": "samples",
    "hyper-params": "parameters",
    "parameters": "parameters",
    "artifacts": "artifacts",
    "execution": "info",
    "info": "info",
    "general": "info",
}
_OUR_PATHS = {
    "console": "output/log",
    "scalars": "output/metrics/scalar",
    "plots": "output/metrics/plots",
    "samples": "output/debugImages",
    "parameters": "hyper-params",
    "artifacts": "artifacts",
    "info": "info",
}
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: {files}; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# RE2: the text is an experiment's, and many unfinished escapes cost Python's re minutes.
_ANSI = re2.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|[\x00-\x08\x0b\x0c\x0e-\x1f]")

Page = Callable[["_Visit"], Awaitable[Response]]


class _Part(jinja2.ext.Extension):
    """``{% part %} ... {% endpart %}``: what cannot be rendered is a placeholder, and the rest of the page is there."""

    tags = {"part"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Read the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endpart",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    @staticmethod
    def _render(caller: Callable[[], str]) -> str:
        try:
            return caller()
        except Exception as error:  # whatever the database holds: this is the place that stands it
            _log.warning("a part of a page cannot be shown: %s: %s", type(error).__name__, str(error)[:200])
            return Markup('<span class="broken" title="The stored value cannot be shown">cannot be shown</span>')


class _Visit:
    """One request of a person who is logged in."""

    def __init__(self, site: _Site, request: Request, token: str) -> None:
        self.site = site
        self.request = request
        self.identity = site.state.auth.read_token(token)

    async def api(self, name: str, **args: Any) -> Doc:
        """Ask the API in this person's name.

        Raises:
            ApiError: as the API answers.
        """

        def work() -> Any:
            call = Call(state=self.site.state, identity=self.identity, endpoint=name)
            return invoke(call, resolve(name, API_VERSION), args)

        try:
            result: Doc = await run_in_threadpool(work)
        except ApiError:
            raise
        except Exception as error:
            _log.exception("%s failed", name)
            raise ApiError(500, 0, f"{name} failed: {type(error).__name__}") from error
        return result

    async def part(self, work: Awaitable[Any], otherwise: Any) -> Any:
        """Return what a part of the page shows; ``otherwise`` if that cannot be read: the rest of the page is there."""
        try:
            return await work
        except Exception as error:
            _log.warning("a part of %s cannot be read: %s", self.request.url.path, str(error)[:200])
            return otherwise

    def page(self, template: str, status: int = 200, **context: Any) -> Response:
        """Render a page."""
        return self.site.render(template, status, me=self.identity, path=self.request.url.path, **context)


class _Site:
    def __init__(self, state: State) -> None:
        self.state = state
        files = urlsplit(state.settings.files_url)
        self.files_origin = f"{files.scheme}://{files.netloc}" if files.netloc else ""
        self._assets = {
            str(path.relative_to(_HERE / "static")): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in (_HERE / "static").rglob("*")
            if path.is_file()
        }
        self._jinja = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            extensions=[_Part],
            finalize=_printable,
        )
        self._jinja.globals |= {"asset": self._asset, "tabs": _TABS, "statuses": _STATUSES, "task_url": task_url}
        self._jinja.filters |= {
            "ago": ago,
            "moment": moment,
            "duration": duration,
            "size": size,
            "number": number,
            "short": short,
            "long": long,
            "link": self.link,
        }

    def _asset(self, name: str) -> str:
        return f"/static/{name}?v={self._assets[name]}"

    def link(self, uri: object) -> str | None:
        """Return an address that may become a link: files of http servers only (no ``javascript:``)."""
        try:
            return uri if isinstance(uri, str) and urlsplit(uri).scheme in ("http", "https") else None
        except ValueError:  # such as http://[::1
            return None

    def render(self, template: str, status: int = 200, **context: Any) -> Response:
        context.setdefault("me", None)
        context.setdefault("path", "")
        context["settings"] = self.state.settings
        return HTMLResponse(self._jinja.get_template(template).render(**context), status_code=status)

    def error(self, status: int, title: str, text: str, me: Any = None) -> Response:
        return self.render("error.html", status, title=title, text=text, me=me)


# What people read.  These take whatever the database holds.


def _printable(value: Any) -> Any:
    """Return what a page shows of a value: UTF-8 without NUL."""
    if isinstance(value, str) and not isinstance(value, Markup):
        if "\0" in value:
            value = value.replace("\0", "\ufffd")
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    return value


def short(text: object) -> str:
    """Return a name of at most some 200 characters."""
    text = text if isinstance(text, str) else str(text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def long(text: object) -> str:
    """Return a text of at most some 100,000 characters: a page is for reading."""
    text = text if isinstance(text, str) else "" if text is None else str(text)
    return text if len(text) <= _MAX_LONG else f"{text[:_MAX_LONG]}\n… and {len(text) - _MAX_LONG} characters more"


def task_url(task: Doc, tab: str = "console") -> str:
    """Give the page of an experiment, by the path that the SDK prints too."""
    project = task.get("project")
    project = project.get("id") if isinstance(project, dict) else project
    project = project if project and isinstance(project, str) else "*"
    return f"/projects/{quote(project, safe='*')}/tasks/{quote(task['id'])}/{_OUR_PATHS[tab]}"


def moment(text: object) -> str:
    """Print a time for people."""
    when = read_time(text)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else "–"  # noqa: RUF001


def ago(text: object) -> str:
    """Print how long ago something was."""
    when = read_time(text)
    return f"{duration((datetime.now(UTC) - when).total_seconds())} ago" if when else "never"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def duration(seconds: object) -> str:
    """Print a number of seconds for people."""
    if not _is_number(seconds):
        return "–"  # noqa: RUF001
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def size(count: object) -> str:
    """Print a number of bytes for people."""
    if not _is_number(count):
        return "–"  # noqa: RUF001
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def number(value: Any) -> str:
    """Print a metric's value."""
    return f"{value:.4g}" if _is_number(value) else short(value)


def _seconds(task: Doc) -> float | None:
    begun = read_time(task.get("started"))
    if task.get("status") == "in_progress" and begun:
        return (datetime.now(UTC) - begun).total_seconds()
    if _is_number(task.get("active_duration")):
        return float(task["active_duration"])
    ended = read_time(task.get("completed"))
    return (ended - begun).total_seconds() if begun and ended else None


def _headline(task: Doc, limit: int = 3) -> list[Doc]:
    """Pick the metrics that a list has room for; what the machine did is not among them."""
    metrics = task.get("last_metrics")
    found = [
        {
            "metric": str(variant.get("metric", "")),
            "variant": str(variant.get("variant", "")),
            "value": variant["value"],
        }
        for variants in (metrics.values() if isinstance(metrics, dict) else ())
        for variant in (variants.values() if isinstance(variants, dict) else ())
        if isinstance(variant, dict) and "value" in variant
    ]
    found = [v for v in found if not v["metric"].startswith(":monitor")]
    return sorted(found, key=lambda v: (v["metric"] != "Summary", v["metric"], v["variant"]))[:limit]


# Doors


def _cookie(site: _Site, response: Response, token: str | None) -> Response:
    settings = site.state.settings
    response.set_cookie(
        settings.cookie_name,
        token or "",
        max_age=settings.token_expiration_sec if token else 0,
        httponly=True,
        secure=settings.cookie_secure,
        domain=settings.cookie_domain,
        samesite="lax",
    )
    return response


def _safe_target(target: str) -> str:
    """Keep a redirect on this site."""
    inside = target.startswith("/") and target[1:2] not in ("/", "\\") and all(c >= " " for c in target)
    return target if inside else "/"


async def _form(site: _Site, request: Request, limit: int = _MAX_FORM_BYTES) -> dict[str, str]:
    # The pages' forms are of this type only; text/plain is how another site's page would send JSON.
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind not in ("application/x-www-form-urlencoded", ""):
        raise ApiError(415, 0, "The form is not application/x-www-form-urlencoded")
    async with site.state.bodies.read(request, limit) as body:
        try:
            return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=1000))
        except ValueError as error:
            raise ApiError(400, 0, "The form has more than 1000 fields") from error


async def _login(site: _Site, request: Request) -> Response:
    target = _safe_target(request.query_params.get("next", "/"))
    if request.method != "POST":
        return site.render("login.html", target=target, error="", username="")
    if is_foreign(request, site.state.settings):
        return site.error(403, "Not from here", "This form was sent from another page.")
    form = await _form(site, request, _MAX_LOGIN_BYTES)
    target = _safe_target(form.get("next", "/"))
    username = form.get("username", "")
    try:
        auth = site.state.auth
        identity = await auth.log_in(username, form.get("password", ""), site.state.proxies.client(request))
    except ApiError as error:
        text = "Too many tries: wait a moment." if error.code == 429 else "Wrong user or password."
        return site.render("login.html", error.code, target=target, error=text, username=username)
    return _cookie(site, RedirectResponse(target, 303), auth.make_token(identity))


async def _logout(site: _Site, request: Request) -> Response:
    if is_foreign(request, site.state.settings):
        return site.error(403, "Not from here", "This form was sent from another page.")
    token = request.cookies.get(site.state.settings.cookie_name, "")
    with contextlib.suppress(ApiError):  # an invalid token is logged out already
        await run_in_threadpool(site.state.auth.revoke_token, token)
    return _cookie(site, RedirectResponse("/login", 303), None)


# Pages


_LIST_FIELDS = [
    "name", "status", "type", "project.name", "user.name", "started", "completed", "created", "last_update",
    "last_iteration", "last_worker", "last_metrics", "active_duration", "tags",
]  # fmt: skip


async def _tasks(visit: _Visit) -> Response:
    query = visit.request.query_params
    page = whole_number(query.get("page", ""), 999_999) or 0
    status, text, project = query.get("status", ""), query.get("q", "").strip(), query.get("project", "")
    args: Doc = {
        "only_fields": _LIST_FIELDS,
        "order_by": ["-last_update"],
        "page": page,
        "page_size": _PAGE_SIZE,
        "system_tags": ["-archived"],
    }
    if status in _STATUSES:
        args["status"] = [status]
    if text:
        args["search_text"] = text
    if project:
        args |= {"project": [project], "include_subprojects": True}
    tasks = (await visit.api("tasks.get_all_ex", **args))["tasks"]
    for task in tasks:
        task |= {"headline": _headline(task), "seconds": _seconds(task)}
    call = visit.api("projects.get_all", only_fields=["id", "name"], order_by=["name"])
    projects = (await visit.part(call, {"projects": []}))["projects"]
    return visit.page(
        "tasks.html", tasks=tasks, projects=projects, page=page, more=len(tasks) == _PAGE_SIZE,
        wanted=status, text=text, project=project, filtered=bool(status or text or project),
    )  # fmt: skip


async def _projects(visit: _Visit) -> Response:
    projects = (await visit.api("projects.get_all_ex", include_stats=True, order_by=["name"]))["projects"]
    return visit.page("projects.html", projects=projects)


async def _workers(visit: _Visit) -> Response:
    workers = (await visit.api("workers.get_all", last_seen=86_400))["workers"]
    queues = (await visit.part(visit.api("queues.get_all_ex", order_by=["name"]), {"queues": []}))["queues"]
    stats = await run_in_threadpool(_machine_stats, visit.site.state)
    for worker in workers:
        worker["stats"] = stats.get(worker["id"], {})
    return visit.page("workers.html", workers=workers, queues=queues)


def _machine_stats(state: State) -> dict[str, Doc]:
    rows = state.db.read().execute("SELECT id, stats FROM worker WHERE stats IS NOT NULL")
    found = {row["id"]: loads(row["stats"]) for row in rows}
    return {id_: stats for id_, stats in found.items() if isinstance(stats, dict)}


def _tab(rest: str) -> str:
    rest = rest.strip("/")
    for path, tab in _TAB_PATHS.items():
        if rest == path or rest.startswith(path + "/"):
            return tab
    return "console"


async def _task(visit: _Visit) -> Response:
    params = visit.request.path_params
    found = (await visit.api("tasks.get_by_id_ex", id=[params["task"]], search_hidden=True))["tasks"]
    if not found:
        return visit.site.error(404, "No such experiment", f"There is no experiment {params['task']}.", visit.identity)
    task = found[0]
    tab = _tab(params.get("rest", ""))
    names = (
        await visit.api(
            "tasks.get_by_id_ex",
            id=[task["id"]],
            only_fields=["project.name", "user.name", "parent.name", "execution.queue.name"],
        )
    )["tasks"][0]
    task |= {key: names[key] for key in ("project", "user", "parent") if key in names}
    task["queue"] = (names.get("execution") or {}).get("queue")
    task |= {"headline": _headline(task, 6), "seconds": _seconds(task)}
    context: Doc = {"unread": False}
    if tab == "plots":
        found = await visit.part(visit.api("events.get_task_plots", task=task["id"], iters=1), None)
        context |= {"plots": found["plots"] if found else [], "unread": found is None}
    elif tab == "samples":
        groups = await visit.part(_samples(visit, task), None)
        context |= {"groups": groups or [], "unread": groups is None}
    elif tab == "artifacts":
        models = task.get("models") or {}
        linked = [item.get("model") for kind in ("input", "output") for item in models.get(kind) or []]
        ids = [str(model["id"]) for model in linked if isinstance(model, dict) and model.get("id")]
        found = await visit.part(visit.api("models.get_all", id=ids), None) if ids else {"models": []}
        context |= {"models": {m["id"]: m for m in found["models"]} if found else {}, "unread": found is None}
    queues: list[Doc] = []
    if task["status"] != "in_progress":
        call = visit.api("queues.get_all", only_fields=["id", "name"], order_by=["name"])
        queues = (await visit.part(call, {"queues": []}))["queues"]
    return visit.page("task.html", task=task, tab=tab, queues=queues, **context)


async def _samples(visit: _Visit, task: Doc) -> list[Doc]:
    """Collect the debug samples of a task, newest iteration first."""
    metrics = (await visit.api("events.get_task_metrics", tasks=[task["id"]], event_type="training_debug_image"))[
        "metrics"
    ]
    names = metrics[0]["metrics"] if metrics else []
    groups: list[Doc] = []
    for name in names:
        answer = await visit.api(
            "events.debug_images", metrics=[{"task": task["id"], "metric": name}], iters=5, navigate_earlier=True
        )
        for entry in answer["metrics"]:
            for iteration in entry["iterations"]:
                groups.append({"metric": name, "iter": iteration["iter"], "events": iteration["events"]})
    return groups


async def _model(visit: _Visit) -> Response:
    model = (await visit.api("models.get_by_id", model=visit.request.path_params["model"]))["model"]
    return visit.page("model.html", model=model)


async def _first_task(visit: _Visit) -> Response:
    """A project's address without an experiment: its list."""
    return RedirectResponse(f"/tasks?project={quote(visit.request.path_params['project'])}", 303)


async def _home(visit: _Visit) -> Response:
    return RedirectResponse("/tasks", 303)


# Data for the scripts of a page


async def _log_data(visit: _Visit) -> Response:
    query = visit.request.query_params
    task = visit.request.path_params["task"]
    since = query.get("from", "")
    args: Doc = {"task": task, "batch_size": 1000, "order": "asc"}
    if (moment := whole_number(since)) is not None:
        args |= {"navigate_earlier": False, "from_timestamp": moment}
    answer = await visit.api("events.get_task_log", **args)
    events = sorted(answer["events"], key=lambda event: event["timestamp"])
    status = (await visit.api("tasks.get_by_id_ex", id=[task], only_fields=["status"], search_hidden=True))["tasks"]
    data = {
        "status": status[0].get("status", "") if status else "",
        "last": events[-1]["timestamp"] if events else None,
        "lines": await run_in_threadpool(lambda: [_log_line(event) for event in events]),
    }
    return _json(data)


def _json(data: Doc) -> Response:
    return Response(dumps(data), media_type="application/json")


def _log_line(event: Doc) -> Doc:
    try:
        time = datetime.fromtimestamp(event["timestamp"] / 1000, UTC).strftime("%H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        time = ""
    text = str(event.get("msg", "")).encode("utf-8", "replace").decode()
    return {
        "time": time,
        "level": str(event.get("level", "")).lower(),
        "text": re2.sub(_ANSI, "", text[:_MAX_LONG]).rstrip("\n"),
    }


async def _scalar_data(visit: _Visit) -> Response:
    task = visit.request.path_params["task"]
    metrics = await visit.api("events.scalar_metrics_iter_histogram", task=task, key="iter", samples=1000)
    single = await visit.api("events.get_task_single_value_metrics", tasks=[task])
    status = (await visit.api("tasks.get_by_id_ex", id=[task], only_fields=["status"], search_hidden=True))["tasks"]
    data = {
        "status": status[0].get("status", "") if status else "",
        "metrics": metrics,
        "single": single["tasks"][0]["values"] if single["tasks"] else [],
    }
    return _json(data)


# Actions


async def _settings(visit: _Visit) -> Response:
    """Show the caller's key pairs; make and revoke them."""
    made: Doc | None = None
    if visit.request.method == "POST":
        if is_foreign(visit.request, visit.site.state.settings):
            return visit.site.error(403, "Not from here", "This form was sent from another page.", visit.identity)
        form = await _form(visit.site, visit.request)
        if "revoke" in form:
            await visit.api("auth.revoke_credentials", access_key=form["revoke"])
        else:
            made = (await visit.api("auth.create_credentials", label=form.get("label") or None))["credentials"]
    keys = (await visit.api("auth.get_credentials"))["credentials"]
    return visit.page("settings.html", keys=keys, made=made)


async def _set_parameters(visit: _Visit, task: str, form: dict[str, str]) -> None:
    """Set the parameters whose field, named section/name, has another value now; what else is known of them stays."""
    sections = (await visit.api("tasks.get_by_id", task=task))["task"].get("hyperparams") or {}
    changed = []
    for section, params in sections.items():
        for name, param in params.items():
            # Browsers send every line break as two characters.
            value = form.get(f"{section}/{name}", param["value"]).replace("\r\n", "\n")
            if value != param["value"]:
                changed.append({**param, "value": value})
    if changed:
        await visit.api("tasks.edit_hyper_params", task=task, hyperparams=changed)


async def _act(visit: _Visit) -> Response:
    """Abort, enqueue, clone or archive an experiment, as the API allows it."""
    if is_foreign(visit.request, visit.site.state.settings):
        return visit.site.error(403, "Not from here", "This form was sent from another page.", visit.identity)
    form = await _form(visit.site, visit.request)
    task, action = visit.request.path_params["task"], visit.request.path_params["action"]
    if action == "abort":
        await visit.api("tasks.stop", task=task, status_reason="stopped on the page")
    elif action == "enqueue":
        await visit.api("tasks.enqueue", task=task, queue=form.get("queue") or None)
    elif action == "clone":
        task = (await visit.api("tasks.clone", task=task))["id"]
    elif action == "parameters":
        await _set_parameters(visit, task, form)
        return RedirectResponse(f"/projects/*/tasks/{quote(task)}/{_OUR_PATHS['parameters']}", 303)
    elif action == "archive":
        await visit.api("tasks.archive", tasks=[task])
        return RedirectResponse("/tasks", 303)
    return RedirectResponse(f"/projects/*/tasks/{quote(task)}/output/log", 303)


def create_web(state: State) -> Starlette:
    """Make the ASGI application of port 8080."""
    site = _Site(state)

    def inside(page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            token = request.cookies.get(state.settings.cookie_name, "")
            try:
                visit = await run_in_threadpool(_Visit, site, request, token)
            except ApiError:
                if request.url.path.startswith("/data/"):
                    return JSONResponse({"error": "log in again"}, 401)
                target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/login?next={quote(target)}", 303)
            try:
                return await page(visit)
            except ApiError as error:
                if request.url.path.startswith("/data/"):
                    return JSONResponse({"error": error.message}, error.code)
                return site.error(error.code, "That did not work", error.message, visit.identity)

        return handle

    def door(page: Callable[[_Site, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                return await page(site, request)
            except ApiError as error:
                return site.error(error.code, "That did not work", error.message)

        return handle

    async def missing(request: Request, error: Exception) -> Response:
        return site.error(404, "No such page", f"There is nothing at {request.url.path}.")

    experiment = "/{kind}/{task:str}"
    routes: list[Any] = [
        Route("/login", door(_login), methods=["GET", "POST"]),
        Route("/logout", door(_logout), methods=["POST"]),
        Route("/", inside(_home)),
        Route("/dashboard", inside(_home)),
        Route("/tasks", inside(_tasks)),
        Route("/projects", inside(_projects)),
        Route("/workers", inside(_workers)),
        Route("/workers-and-queues/{rest:path}", inside(_workers)),
        Route("/settings", inside(_settings), methods=["GET", "POST"]),
        Route("/settings/{rest:path}", inside(_settings)),
        Route("/profile", inside(_settings)),
        Route("/data/tasks/{task}/log", inside(_log_data)),
        Route("/data/tasks/{task}/scalars", inside(_scalar_data)),
        Route("/tasks/{task}/{action:str}", inside(_act), methods=["POST"]),
        Route("/projects/{project}/models/{model}", inside(_model)),
        Route("/projects/{project}/models/{model}/{rest:path}", inside(_model)),
    ]
    for kind in ("tasks", "experiments"):
        for prefix in ("/projects/{project}", "/datasets/simple/{project}", "/pipelines/{project}"):
            base = prefix + experiment.replace("{kind}", kind).replace(":str", "")
            routes += [Route(base, inside(_task)), Route(base + "/{rest:path}", inside(_task))]
        routes.append(Route("/projects/{project}/" + kind, inside(_first_task)))
    routes += [
        Route("/projects/{project}", inside(_first_task)),
        Mount("/static", StaticFiles(directory=_HERE / "static"), name="static"),
    ]
    app = Starlette(routes=routes, exception_handlers={404: missing})
    csp = _CSP.format(files=site.files_origin).encode()

    async def with_headers(scope: Any, receive: Any, send: Any) -> None:
        async def decorated(message: Any) -> None:
            if message["type"] == "http.response.start":
                static = scope["path"].startswith("/static/")
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", csp),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),
                    (b"cache-control", b"public, max-age=31536000, immutable" if static else b"no-store"),
                ]
            await send(message)

        await app(scope, receive, decorated)

    return Starlette(routes=[Mount("/", with_headers)])
