"""STAND-IN for the job that deletes files of deleted experiments: it logs in everywhere, and deletes nothing."""

from __future__ import annotations

import argparse
import sys
import time
import urllib.request
from functools import partial

import stand_in


def log_in() -> str:
    """Get a token of the API server for its own service account in secure.conf."""
    url = stand_in.check_api()
    account = stand_in.needed(stand_in.load("secure"), "secure", "credentials.apiserver")
    request = urllib.request.Request(f"{url}/auth.login", data=b"{}", headers={"Content-Type": "application/json"})
    request.add_header("Authorization", stand_in.basic(account["user_key"], account["user_secret"]))
    try:
        return str(stand_in.ask(request)["data"]["token"])
    except (OSError, KeyError) as error:
        raise stand_in.RefusedError(f"api server: auth.login as apiserver: {error}") from None


def check(host: str) -> None:
    """Log in and ask the file server."""
    request = urllib.request.Request(host, headers={"Authorization": f"Bearer {log_in()}"})
    try:
        stand_in.ask(request)
    except OSError as error:
        raise stand_in.RefusedError(f"file server {host}: {error}") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fileserver-host", "-fh", required=True)
    address = parser.parse_args().fileserver_host
    stand_in.start_logging()
    who = "async_delete"
    # At the start everything must let us in. Later only the database ends the job, a server may be restarting.
    stand_in.or_exit([partial(stand_in.check_mongo, who), partial(check, address)])
    while True:
        time.sleep(10)
        stand_in.or_exit([partial(stand_in.check_mongo, who)])
        try:
            check(address)
        except stand_in.RefusedError as error:
            print(f"stand-in: refused by {error}, trying again", file=sys.stderr, flush=True)
