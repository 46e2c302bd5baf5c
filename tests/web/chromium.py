"""Headless Chromium for the tests, and a watch over what a page does."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
TIMEOUT = 60_000  # milliseconds that anything may take; a machine that is busy is no failure
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; the test is skipped where it is not installed."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page, started; fails if it logged an error or asked another server for anything.

    A test that provokes errors says so: `page.expected_status.add(404)`.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.set_default_timeout(TIMEOUT)
    expect.set_options(timeout=TIMEOUT)
    page = context.new_page()
    expected: set[int] = set()
    complaints: list[str] = []
    page.expected_status = expected

    def note_request(request: Request) -> None:
        if not request.url.startswith((url, "blob:")):  # blobs are the page's own
            complaints.append(f"asked {request.url}")

    def note_console(message: Any) -> None:
        failed_load = any(f"status of {status} " in message.text for status in expected)
        lost = 0 in expected and "net::ERR_" in message.text
        if message.type in ("error", "warning") and not failed_load and not lost:
            complaints.append(f"console {message.type}: {message.text}")

    page.on("request", note_request)
    page.on("console", note_console)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.goto(url)
    page.wait_for_selector("html[data-ready=true]")
    yield page
    context.close()
    assert not complaints, "; ".join(complaints)


def canvas_pixels(page: Page, selector: str) -> np.ndarray:
    """uint8 (H, W, 4) of a canvas."""
    width, height, data = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            const copy = new OffscreenCanvas(canvas.width, canvas.height)
                .getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let p = 0; p < data.length; p += 8192) text += String.fromCharCode(...data.subarray(p, p + 8192));
            return [canvas.width, canvas.height, btoa(text)];
        }""",
        selector,
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)


def sideways_scroll(page: Page) -> int:
    """Pixels that the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")
