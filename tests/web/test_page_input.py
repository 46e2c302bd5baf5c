"""What goes into the page: photographs in every way, concepts, vocabularies, searches."""

import base64
import io
import re
from pathlib import Path

import pytest
from chromium import canvas_pixels, watched_page
from images import encoded, photograph
from page_steps import CAT, segment
from PIL import Image
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.cpus(4)


def test_concepts_are_chips(page: Page) -> None:
    page.locator("#concept").press_sequentially(
        "zebra,a very long concept name that has to fit, кошка,Zebra,"
    )
    names = page.locator("#chip-list bdi")
    assert names.all_inner_texts() == ["zebra", "a very long concept name that has to fit", "кошка"]
    expect(page.locator("#concept-live")).to_have_text("Zebra is there already.")
    page.get_by_role("button", name="Remove zebra").click()
    page.press("#concept", "Backspace")
    assert names.all_inner_texts() == ["a very long concept name that has to fit"]


def test_examples_and_pasting(page: Page, photo: Path) -> None:
    page.locator("#example-list button").first.click()
    expect(page.locator("#layers")).to_be_visible()
    before = canvas_pixels(page, "#photo-canvas")
    page.evaluate(
        """([data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const items = new DataTransfer();
            items.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: items, bubbles: true }));
        }""",
        [base64.b64encode(photo.read_bytes()).decode()],
    )
    width, height = Image.open(photo).size
    expect(page.locator("#photo-canvas")).to_have_attribute("width", str(width))  # as the example's is, too
    expect(page.locator("#photo-canvas")).to_have_attribute("height", str(height))
    after = canvas_pixels(page, "#photo-canvas")
    assert after.shape == (height, width, 4)
    assert after.shape != before.shape or (after != before).any()


def test_a_photograph_past_the_limits_is_scaled_down(browser: Browser, service: str, tmp_path: Path) -> None:
    with watched_page(browser, service) as page:
        info = page.evaluate("fetch('/v1/info').then((answer) => answer.json())")
        small = {**info, "limits": {**info["limits"], "pixels": 40_000}}
        page.route("**/v1/info", lambda route: route.fulfill(json=small))
        page.reload()
        page.wait_for_selector("html[data-ready=true]")
        large = tmp_path / "large.png"
        large.write_bytes(encoded(photograph(CAT, 400), "PNG"))
        answer = segment(page, large, "cat")
        assert answer["width"] * answer["height"] <= 40_000
        picture = io.BytesIO(page.locator("#layers").screenshot())
        assert Image.open(picture).width > 400  # the photograph is shown as large as ever


def test_a_vocabulary_is_built_watched_used_and_deleted(page: Page, photo: Path) -> None:
    page.click("nav a[href='#vocabularies']")
    expect(page.locator("#view-vocabularies h1")).to_be_focused()
    page.fill("#build-name", "page-pets")
    page.fill("#build-concepts", "bird\nlap dog: small dog, terrier")
    with page.expect_request(lambda request: request.method == "PUT") as put:
        page.click("#build-form button")
    assert put.value.post_data_json["concepts"] == [
        "bird",
        {"name": "lap dog", "synonyms": ["small dog", "terrier"]},
    ]
    row = page.locator("li[data-name=page-pets]")
    expect(row.locator("progress")).to_be_visible()
    expect(row.locator(".badge")).to_have_text("ready", timeout=60_000)
    expect(page.locator("#vocabulary-live")).to_have_text("page-pets is ready.")
    page.get_by_role("button", name="Use page-pets").click()
    expect(page.locator("#vocabulary-words")).to_have_text("bird, lap dog")
    with page.expect_response("**/v1/segment") as response:
        page.set_input_files("#file", photo)
    assert response.value.json()["vocabulary"] == "page-pets"
    page.wait_for_selector("#legend li")
    page.click("nav a[href='#vocabularies']")
    page.get_by_role("button", name="Delete page-pets").click()
    page.get_by_role("button", name="Really delete page-pets?").click()
    expect(row).to_have_count(0)


def test_search(page: Page) -> None:
    page.click("nav a[href='#search']")
    page.fill("#query", "a cat")
    page.press("#query", "Enter")
    expect(page.locator("#search-status")).to_contain_text("the nearest first")
    first = page.locator("#hits canvas").first
    assert "similarity" in (first.get_attribute("aria-label") or "")
    expect(first).to_have_attribute("width", re.compile(r"\d+"))  # drawn
    assert canvas_pixels(page, "#hits canvas")[..., :3].std() > 10
