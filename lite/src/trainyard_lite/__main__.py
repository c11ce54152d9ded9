"""Command line: ``trainyard-lite serve`` and ``trainyard-lite healthcheck``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from . import __version__
from ._settings import ConfigError, Settings, load_settings, proxies

_OPTIONS = {
    "config-dir": ("/opt/clearml/config", "folder of apiserver.conf, secure.conf and services.conf"),
    "data-dir": ("/opt/clearml/data", "folder of the database and the files"),
    "host": ("0.0.0.0", "address to listen on"),  # noqa: S104
    "api-port": ("8008", "port of the API"),
    "web-port": ("8080", "port of the web page"),
    "files-port": ("8081", "port of the file server"),
    "api-url": ("", "URL of the API as clients see it"),
    "web-url": ("", "URL of the web page as clients see it"),
    "files-url": ("", "URL of the file server as clients see it"),
    "trusted-proxies": ("", "addresses, networks or names of proxies whose X-Forwarded-For counts, with commas"),
}
_WATCHDOG_SEC = "TRAINYARD_LITE_WATCHDOG_SEC"  # how long nothing may get on; 0: no watchdog
_PAUSE_SEC = "TRAINYARD_LITE_PAUSE_SEC"  # before the exit of a start that failed: set in the image
_UNUSABLE = 3  # exit status: the data folder cannot be used


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trainyard-lite", description="The lite ClearML server.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("serve", "run the server"), ("healthcheck", "exit 0 when all three ports answer")):
        command = commands.add_parser(name, help=text)
        for option, (default, what) in _OPTIONS.items():
            variable = "TRAINYARD_LITE_" + option.upper().replace("-", "_")
            value = os.environ.get(variable, default)
            kind = int if option.endswith("port") else str
            command.add_argument(f"--{option}", default=value, type=kind, help=f"{what} [{variable}]")
    command = commands.add_parser("salvage", help="read what can be read of a damaged database into a new one")
    command.add_argument("--data-dir", required=True, help=_OPTIONS["data-dir"][1])
    command.add_argument("--to", required=True, help="the new database: a file that is not there yet")
    return parser


async def _serve(settings: Settings) -> None:
    # Late: the health check must not pay for these imports.
    import uvicorn

    from ._app import Background, create_state
    from ._data import lock_folder
    from ._files import create_files
    from ._http import create_api
    from ._server import GuardedProtocol, end_slow_clients, raise_file_limit
    from ._watchdog import Watchdog
    from .domain.life import watchdog
    from .domain.workers import expire_workers
    from .web import create_web

    raise_file_limit()
    lock = lock_folder(settings.data_dir)
    state = create_state(settings)
    apps = (
        (create_api(state), settings.api_port),
        (create_files(state), settings.files_port),
        (create_web(state), settings.web_port),
    )
    servers = []
    # Agents poll every few seconds on a connection that they keep: closing it just then (uvicorn's 5 s) would
    # reset their next call.
    for app, port in apps:
        config = uvicorn.Config(
            state.answers.wrap(app), http=GuardedProtocol, ws="none", host=settings.host, port=port, log_config=None,
            access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=5, timeout_keep_alive=75,
        )  # fmt: skip
        server = uvicorn.Server(config)
        # one handler below stops all three
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        servers.append(server)
    jobs = [Background("worker expiry", 30, lambda: expire_workers(state))]
    if settings.watchdog_enabled:
        jobs.append(Background("watchdog", settings.watchdog_interval_sec, lambda: watchdog(state)))

    if state.proxies.names:
        state.proxies.resolve()
        jobs.append(Background("proxy names", 15, state.proxies.resolve))

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    # What is loaded now stays: the collector need not walk through it whenever a long list is answered.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    for job in jobs:
        job.start()
    limit = float(os.environ.get(_WATCHDOG_SEC, "120"))
    hang = Watchdog(loop, state.db, limit) if limit > 0 else None
    if hang:
        hang.start()
    try:
        # A port that is taken ends its server at once: then the others end too.
        tasks = [asyncio.create_task(server.serve()) for server in servers]
        watch = asyncio.create_task(end_slow_clients(servers))
        await asyncio.wait([*tasks, watch], return_when=asyncio.FIRST_COMPLETED)
        stop()
        await asyncio.gather(*tasks)
        if watch.done():
            watch.result()  # its error ends the process
        watch.cancel()
    finally:
        if hang:
            hang.stop()
        for job in jobs:
            job.stop()
        state.db.close()
        lock.close()


def _healthcheck(api: int, web: int, files: int) -> int:
    for name, url in (
        ("api", f"http://127.0.0.1:{api}/debug.ping"),
        ("web", f"http://127.0.0.1:{web}/login"),
        ("files", f"http://127.0.0.1:{files}/"),
    ):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (fixed http URLs)
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            print(f"{name} does not answer at {url}: {error}", file=sys.stderr)
            return 1
    return 0


def _salvage(folder: Path, target: Path) -> int:
    # Late, as in _serve.
    from ._data import DataError, lock_folder
    from ._salvage import salvage

    try:
        with lock_folder(folder):
            counts = salvage(folder / "lite.db", target)
    except (DataError, OSError, sqlite3.Error) as error:
        print(f"trainyard-lite: {target}: {error}", file=sys.stderr)
        return _UNUSABLE
    for table, (rows, problems) in sorted(counts.items()):
        print(f"{table}: {rows} rows" + (f", {problems} places cannot be read" if problems else ""))
    print(f"Put it in place with lite stopped: mv {target} {folder / 'lite.db'} (and remove lite.db-wal, lite.db-shm)")
    return 0


def _failed(message: object, status: int) -> int:
    """Report why the server does not start; wait, so that a restart policy does not try it in a tight loop."""
    print(f"trainyard-lite: {message}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(status))
    time.sleep(float(os.environ.get(_PAUSE_SEC, "0")))
    return status


def main(argv: list[str] | None = None) -> int:
    """Run the command line; answers the exit status."""
    args = _parser().parse_args(argv)
    if args.command == "healthcheck":
        return _healthcheck(args.api_port, args.web_port, args.files_port)
    if args.command == "salvage":
        return _salvage(Path(args.data_dir), Path(args.to))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    addresses = {
        name: getattr(args, name)
        for name in ("host", "api_port", "web_port", "files_port", "api_url", "web_url", "files_url")
    }
    try:
        addresses["trusted_proxies"] = proxies(args.trusted_proxies)
        settings = load_settings(Path(args.config_dir), Path(args.data_dir), **addresses)
    except ConfigError as error:
        return _failed(error, 2)
    os.umask(0o077)  # database and files hold keys and data of people: of this user alone
    from ._data import DataError  # late, as all that the health check does without

    try:
        asyncio.run(_serve(settings))
    except DataError as error:
        return _failed(error, _UNUSABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
