"""What the page says when something is wrong, and how it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from chromium import watched_page
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.cpus(4)


def test_what_is_wrong_is_said(page: Page, tmp_path: Path, photo: Path) -> None:
    page.click("#go")
    expect(page.locator("#status")).to_have_text("Choose a photograph first.")
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    page.set_input_files("#file", text)
    expect(page.locator("#error")).to_contain_text("cannot open it")
    page.expected_status |= {400, 404, 409, 422}
    page.click("nav a[href='#vocabularies']")
    page.fill("#build-name", "twice")
    page.fill("#build-concepts", "cat\nCat")
    page.click("#build-form button")
    expect(page.locator("#build-error")).to_contain_text("twice")
    expect(page.locator("#build-error")).to_contain_text("Request")


def test_a_busy_service_is_asked_again(page: Page, photo: Path) -> None:
    """The busy answers are made here, so that they come when they are wanted; all else is the service's."""
    problem = {"title": "Busy", "detail": "The references are still being built.", "status": 503}
    busy = [problem, problem]

    def answer(route: Any) -> None:
        if busy:
            body = json.dumps(busy.pop())
            route.fulfill(
                status=503, headers={"Retry-After": "2"}, content_type="application/problem+json", body=body
            )
        else:
            route.continue_()

    page.expected_status.add(503)
    page.route("**/v1/segment", answer)
    page.set_input_files("#file", photo)
    page.fill("#concept", "cat,dog,")
    page.click("#go")
    expect(page.locator("#status")).to_contain_text("still being built")
    expect(page.locator("#status .clock")).to_have_text("again in 2 s")
    expect(page.locator("#status .clock")).to_have_text("again in 1 s")
    expect(page.locator("#legend li").first).to_be_visible(timeout=30_000)
    assert busy == []


def test_waiting_can_be_stopped(page: Page, photo: Path) -> None:
    page.expected_status.add(503)
    page.route(
        "**/v1/segment", lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}, body="{}")
    )
    page.set_input_files("#file", photo)
    page.fill("#concept", "cat,")
    page.click("#go")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#go")).to_be_enabled()


def test_offline_and_back(page: Page, photo: Path) -> None:
    page.expected_status.add(0)
    page.context.set_offline(True)
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    page.set_input_files("#file", photo)
    page.fill("#concept", "cat,")
    page.click("#go")
    expect(page.locator("#error")).to_contain_text("Check the connection")
    page.context.set_offline(False)
    expect(page.locator("#banner")).to_be_hidden(timeout=15_000)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#legend li").first).to_be_visible()


def test_a_key_is_asked_for_kept_for_the_session_and_sent(browser: Browser, service: str) -> None:
    with watched_page(browser, service) as page:
        info = page.evaluate("fetch('/v1/info').then((answer) => answer.json())")
        page.route("**/v1/info", lambda route: route.fulfill(json={**info, "keys_required": True}))
        page.reload()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("a-key")
        with page.expect_request("**/v1/vocabularies") as request:
            page.keyboard.press("Enter")
        assert request.value.headers["authorization"] == "Bearer a-key"
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        page.reload()
        page.wait_for_selector("html[data-ready=true]")
        assert page.get_by_label("API key").input_value() == "a-key"
        assert "a-key" not in page.url
