"""The page in a real browser: what a person does on it after an experiment has run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from browser import log_in, open_browser
from clearml_api import ClearmlApi
from conftest import EPOCHS, QUEUE
from harness import Platform, Worker, create, enqueue, epochs_of, get, wait_for_epoch, wait_for_status
from playwright.sync_api import Page, expect

USER = "admin"


@pytest.fixture
def errors() -> list[str]:
    """What the browser complained about."""
    return []


@pytest.fixture
def browser(errors: list[str]) -> Iterator[Page]:
    """A browser that nobody has logged in with."""
    with open_browser(errors) as page:
        yield page


@pytest.fixture
def page(browser: Page, errors: list[str], platform: Platform) -> Iterator[Page]:
    """A browser that the administrator has logged in with, on the list of experiments."""
    log_in(browser, platform.server.urls["web"], USER, platform.server.password)
    expect(browser.get_by_role("heading", name="Experiments")).to_be_visible()
    yield browser
    assert not errors


def drawn_colors(page: Page, chart: int) -> int:
    """Count the colours that a chart's canvas was painted in, besides white and transparent."""
    return int(
        page.locator("#charts canvas")
        .nth(chart)
        .evaluate(
            """canvas => {
                const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                const seen = new Map();
                for (let i = 0; i < data.length; i += 4)
                    if (data[i + 3] === 255) {
                        const colour = `${data[i]},${data[i + 1]},${data[i + 2]}`;
                        seen.set(colour, (seen.get(colour) ?? 0) + 1);
                    }
                // A curve is hundreds of pixels of one saturated colour; text and grid are grey.
                return [...seen].filter(([colour, count]) => {
                    const rgb = colour.split(",").map(Number);
                    return count > 100 && Math.max(...rgb) - Math.min(...rgb) > 60;
                }).length;
            }"""
        )
    )


def test_a_wrong_password_is_refused(browser: Page, platform: Platform) -> None:
    log_in(browser, platform.server.urls["web"], USER, "not the password")
    expect(browser.get_by_role("alert")).to_contain_text("Wrong user or password")
    browser.goto(f"{platform.server.urls['web']}/workers")
    expect(browser.get_by_role("heading", name="Log in")).to_be_visible()


def test_a_finished_experiment_is_read(page: Page, trained: str, api: ClearmlApi) -> None:
    page.locator(f"td.name a[href*='{trained}']").click()
    expect(page.locator("#status")).to_have_text("completed")
    console = page.get_by_role("log")
    expect(console).to_contain_text(f"epoch {EPOCHS}/{EPOCHS}")
    expect(console).to_contain_text("final validation accuracy")

    page.get_by_role("link", name="Scalars").click()
    expect(page.locator("#charts .card")).to_have_count(2)
    for chart, title in enumerate(("accuracy", "loss")):
        card = page.locator("#charts .card").nth(chart)
        expect(card).to_contain_text(title)
        expect(card).to_have_attribute("data-points", str(EPOCHS))
        assert drawn_colors(page, chart) == 2, "one line for train, one for validation"
    accuracy = get(api, trained)["last_metrics"]
    (value,) = (v["value"] for m in accuracy.values() for v in m.values() if v["metric"] == "Summary")
    expect(page.locator("#singles")).to_contain_text(f"{value:.4g}")

    page.get_by_role("link", name="Plots").click()
    expect(page.locator("[data-plot]")).to_contain_text("predicted")
    page.get_by_role("link", name="Debug samples").click()
    expect(page.locator("figure img")).to_have_count(8)
    shown = "images => images.every(image => image.complete && image.naturalWidth > 0)"
    page.locator("figure img").last.scroll_into_view_if_needed()
    page.wait_for_function(f"({shown})([...document.images])")
    page.get_by_role("link", name="Parameters").click()
    expect(page.get_by_role("row", name=re.compile("^epochs"))).to_contain_text(str(EPOCHS))
    page.get_by_role("link", name="Artifacts").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="weights", exact=True).click()
    assert download.value.path().stat().st_size > 10_000


def test_a_running_experiment_is_followed_and_aborted(
    page: Page, platform: Platform, worker: Worker, digits: str, api: ClearmlApi
) -> None:
    task = create(api, "followed", digits, "train.py", epochs=100_000)
    enqueue(api, task, QUEUE)
    wait_for_epoch(api, task, 2, 120)
    page.get_by_role("link", name="Workers and queues").click()
    row = page.get_by_role("row").filter(has_text=worker.name)
    expect(row).to_contain_text("busy")
    row.get_by_role("link", name="followed").click()
    console = page.get_by_role("log")
    expect(console).to_contain_text("epoch 3/100000")
    lines = console.locator("div").count()
    expect(console.locator("div").nth(lines + 5)).to_be_attached(timeout=30_000)  # it goes on by itself
    page.get_by_role("button", name="Abort").click()
    wait_for_status(api, task, "stopped", 60)
    page.goto(f"{platform.server.urls['web']}/workers")
    # The page loads itself again, and the worker tells the server when it has cleaned up.
    expect(page.get_by_role("row").filter(has_text=worker.name)).to_contain_text("free", timeout=60_000)


def test_a_person_makes_a_key_and_repeats_an_experiment(
    page: Page, worker: Worker, trained: str, api: ClearmlApi
) -> None:
    page.get_by_role("link", name="Administrator").click()
    page.get_by_label("What it is for").fill("a laptop")
    page.get_by_role("button", name="Make a key pair").click()
    expect(page.locator("#conf")).to_contain_text("secret_key")
    row = page.get_by_role("row").filter(has_text="a laptop")
    row.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("a laptop")).to_have_count(0)

    page.get_by_role("link", name="Experiments").click()
    page.locator(f"td.name a[href*='{trained}']").click()
    page.get_by_role("button", name="Clone").click()
    page.get_by_role("link", name="Parameters").click()
    page.get_by_label("epochs").fill("3")
    page.get_by_role("button", name="Save").click()
    page.get_by_label("Queue").select_option(label=QUEUE)
    page.get_by_role("button", name="Enqueue").click()
    expect(page.locator("#status")).to_have_text("completed", timeout=120_000)
    clone = page.locator("#task").get_attribute("data-task")
    assert clone
    assert {tuple(points) for points in epochs_of(api, clone).values()} == {(1, 2, 3)}


def test_the_path_that_the_sdk_prints_leads_there_after_the_login(
    browser: Page, platform: Platform, trained: str, api: ClearmlApi
) -> None:
    project = get(api, trained)["project"]
    for form in ("tasks", "experiments"):
        browser.context.clear_cookies()
        url = f"{platform.server.urls['web']}/projects/{project}/{form}/{trained}/output/log"
        log_in(browser, url, USER, platform.server.password)
        expect(browser.get_by_role("log")).to_contain_text("final validation accuracy")
