"""Debian's Chromium, headless, for the tests of the page and for the picture in README.

python tests/e2e/browser.py docs/lite-experiment.png    take the picture of the deployed site's last experiment
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("E2E_CHROMIUM", "/usr/bin/chromium")
# No sandbox of its own: root has none. No background traffic: nothing but the page is asked.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_browser(errors: list[str], height: int = 860) -> Iterator[Page]:
    """Open an empty page; what the browser complains about is added to `errors`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": height})
            page.on("console", lambda seen: errors.append(seen.text) if seen.type in {"error", "warning"} else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            yield page
        finally:
            browser.close()


def log_in(page: Page, url: str, user: str, password: str) -> None:
    """Fill the login form as a person does."""
    page.goto(url)
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def take_picture(target: Path, site: str) -> None:
    """Save what the page shows of the last experiment of a site that is deployed from here."""
    known = json.loads((ROOT / "build" / f"site-{site}.json").read_text())
    login = subprocess.run(["make", "login", f"SITE={site}"], cwd=ROOT, capture_output=True, text=True, check=True)
    password = login.stdout.split("password")[1].split()[0]
    errors: list[str] = []
    with open_browser(errors, height=720) as page:
        log_in(page, known["web_url"], known["user"], password)
        page.locator("td.name a").first.click()
        page.get_by_role("link", name="Scalars").click()
        expect(page.locator("#charts canvas")).to_have_count(2)
        page.screenshot(path=target)
    assert not errors, errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Take the picture for README of the deployed site's last experiment.")
    parser.add_argument("target", type=Path, help="where the PNG goes, e.g. docs/lite-experiment.png")
    parser.add_argument("--site", default="local", help="a folder below inventory/")
    options = parser.parse_args()
    take_picture(options.target, options.site)
    sys.stdout.write(f"{options.target}\n")
