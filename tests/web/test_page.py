"""The page in a real browser, over a real service: what is on the canvas is what the service answered."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import inner_point, label_map, painted, region, rgb
from browser import canvas_pixels, chromium, sideways_scroll, watched_page
from images import encoded, photograph
from PIL import Image
from playwright.sync_api import Browser, Page, expect

CAT = 21  # tests/images.py
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    with watched_page(browser, service) as opened:
        yield opened


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("photo") / "cat.jpg"
    file.write_bytes(encoded(photograph(CAT, 320), quality=92))
    return file


def segment(page: Page, photo: Path, *concepts: str) -> dict[str, Any]:
    """Chooses the photograph, types the concepts, waits for the mask; the service's answer."""
    page.set_input_files("#file", photo)
    for concept in concepts:
        page.fill("#concept", concept)
        page.press("#concept", "Enter")
    with page.expect_response("**/v1/segment") as response:
        page.click("#go")
    page.wait_for_selector("#legend li")
    page.wait_for_selector("#go:enabled")
    return response.value.json()


def point_at(page: Page, place: tuple[float, float], *, touch: bool = False) -> None:
    page.locator("#layers").scroll_into_view_if_needed()
    box = page.locator("#layers").bounding_box()
    assert box is not None
    at = (box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
    if touch:
        page.touchscreen.tap(*at)
    else:
        page.mouse.move(*at)


def test_the_mask_on_the_canvas_is_the_answer(page: Page, photo: Path) -> None:
    answer = segment(page, photo, "cat", "dog")
    assert {entry["name"] for entry in answer["legend"]} >= {"cat", "dog"}
    assert np.array_equal(canvas_pixels(page, "#mask-canvas"), painted(answer))
    shown = canvas_pixels(page, "#photo-canvas")[..., :3].astype(int)
    sent = np.asarray(Image.open(photo).convert("RGB")).astype(int)
    assert np.abs(shown - sent).mean() < 2  # two JPEG decoders
    rows = page.locator("#legend li")
    assert rows.count() == len(answer["concepts"])
    for row, concept in zip(rows.all(), answer["concepts"], strict=True):
        text = row.inner_text()
        assert concept["name"] in text
        assert f"{100 * concept['share']:.1f} %" in text
        assert f"{concept['score']:.2f}" in text


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


def test_pointing_names_the_concept(page: Page, photo: Path) -> None:
    answer = segment(page, photo, "cat", "dog")
    for concept in answer["concepts"]:
        point_at(page, inner_point(concept))
        expect(page.locator("#tip")).to_contain_text(concept["name"])
        expect(page.locator("#legend li.lit")).to_contain_text(concept["name"])
        alpha = canvas_pixels(page, "#mask-canvas")[..., 3]
        assert (alpha[region(concept)] == 255).all()
        assert (alpha[~region(concept)] < 128).all()
    page.mouse.move(5, 5)
    expect(page.locator("#tip")).to_be_hidden()
    assert np.array_equal(canvas_pixels(page, "#mask-canvas"), painted(answer))


def test_a_concept_can_be_switched_off(page: Page, photo: Path) -> None:
    answer = segment(page, photo, "cat", "dog")
    first = answer["concepts"][0]
    page.get_by_role("checkbox", name=first["name"]).uncheck()
    page.mouse.move(5, 5)
    page.locator("#query, h1").first.evaluate("() => document.activeElement.blur()")
    expected = painted(answer)
    expected[region(first)] = 0
    assert np.array_equal(canvas_pixels(page, "#mask-canvas"), expected)


def test_opacity_and_downloads(page: Page, photo: Path, tmp_path: Path) -> None:
    answer = segment(page, photo, "cat", "dog")
    page.fill("#opacity", "25")
    expect(page.locator("#mask-canvas")).to_have_css("opacity", "0.25")
    with page.expect_download() as overlay:
        page.click("#download-overlay")
    assert overlay.value.suggested_filename == "cat-overlay.png"
    overlay.value.save_as(tmp_path / "overlay.png")
    mixed = np.asarray(Image.open(tmp_path / "overlay.png").convert("RGB")).astype(float)
    plain = canvas_pixels(page, "#photo-canvas")[..., :3].astype(float)
    for concept in answer["concepts"]:
        where = region(concept)
        assert np.abs(mixed[where] - (0.75 * plain[where] + 0.25 * rgb(concept["colour"]))).max() <= 2
    with page.expect_download() as mask:
        page.click("#download-mask")
    assert mask.value.suggested_filename == "cat-mask.png"
    mask.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == "P"
        labels = np.asarray(saved)
    assert np.array_equal(labels, label_map(answer))


def test_why_shows_the_exemplars(page: Page, photo: Path) -> None:
    segment(page, photo, "cat", "dog")
    page.get_by_role("button", name="Why cat").click()
    sheet = page.get_by_role("img", name="Contact sheet of cat")
    expect(sheet).to_be_visible()
    expect(page.locator("#why-title")).to_be_focused()
    assert canvas_pixels(page, ".sheet canvas")[..., :3].std() > 10
    page.locator(".tabs").get_by_role("button", name="dog").click()
    expect(page.get_by_role("img", name="Contact sheet of dog")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#why")).to_be_hidden()


def test_background_and_refinement_ask_again(page: Page, photo: Path) -> None:
    segment(page, photo, "cat", "dog")
    with page.expect_response("**/v1/segment") as response:
        page.check("#background")
    answer = response.value.json()
    assert answer["background"] is True
    with page.expect_response("**/v1/segment") as response:
        page.select_option("#refine", "pamr")
    answer = response.value.json()
    page.wait_for_selector("#go:enabled")
    page.mouse.move(5, 5)
    assert np.array_equal(canvas_pixels(page, "#mask-canvas"), painted(answer))


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
    expect(page.locator("#photo-canvas")).to_have_attribute("width", str(width))
    after = canvas_pixels(page, "#photo-canvas")
    assert after.shape == (height, width, 4)
    assert after.shape != before.shape or (after != before).any()


def test_by_keyboard_alone(page: Page, photo: Path) -> None:
    """Every step with keys: the skip link, the file, the words, the photograph, the reasons."""
    page.on("filechooser", lambda chooser: chooser.set_files(photo))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    tab_to(page, "#choose")
    expect(page.locator("#choose")).to_have_css("outline-style", "solid")
    page.keyboard.press("Enter")
    expect(page.locator("#concept")).to_be_focused()
    page.keyboard.type("cat,dog")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # nothing typed: goes
    expect(page.locator("#status")).to_contain_text("found in")
    tab_to(page, "#layers", backwards=True)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#cross")).to_be_visible()
    expect(page.locator("#stage-live")).to_contain_text("of the photograph")
    page.keyboard.press("Escape")
    expect(page.locator("#cross")).to_be_hidden()
    tab_to(page, "#legend button")
    page.keyboard.press("Enter")
    expect(page.locator(".sheet canvas")).to_be_visible()


def tab_to(page: Page, selector: str, *, backwards: bool = False) -> None:
    """Presses Tab until the element, or one like it, has the focus; what has it can always be seen to."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never comes to {selector}")


def test_on_a_phone(browser: Browser, service: str, photo: Path) -> None:
    long_name = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    with watched_page(browser, service, **PHONE) as page:
        answer = segment(page, photo, "cat", "dog", long_name)
        assert sideways_scroll(page) == 0
        concept = answer["concepts"][0]
        point_at(page, inner_point(concept), touch=True)
        expect(page.locator("#tip")).to_contain_text(concept["name"])
        page.get_by_role("button", name="Why").first.click()
        expect(page.locator(".sheet canvas")).to_be_visible()
        assert sideways_scroll(page) == 0
        for view in ("search", "vocabularies"):
            page.click(f"nav a[href='#{view}']")
            assert sideways_scroll(page) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_both_schemes(browser: Browser, service: str, photo: Path, scheme: str) -> None:
    """axe-core's rules for WCAG 2.2 A and AA (contrast, names, roles, focus order), on every view."""
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}

    def violations(page: Page) -> list[str]:
        found = Axe().run(page, options=rules).response
        assert len(found["passes"]) > 20
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found["violations"]]

    with watched_page(browser, service, color_scheme=scheme, reduced_motion="reduce") as page:
        light = (
            np.array(
                json.loads(
                    page.evaluate(
                        "getComputedStyle(document.body).backgroundColor.replace(/rgb\\((.*)\\)/, '[$1]')"
                    )
                )
            ).mean()
            > 128
        )
        assert light == (scheme == "light")
        assert violations(page) == []
        segment(page, photo, "cat", "dog")
        page.get_by_role("button", name="Why cat").click()
        expect(page.locator(".sheet canvas")).to_be_visible()
        assert violations(page) == []
        page.click("nav a[href='#search']")
        page.fill("#query", "a cat")
        page.press("#query", "Enter")
        expect(page.locator("#hits li").first).to_be_visible()
        assert violations(page) == []
        page.click("nav a[href='#vocabularies']")
        assert violations(page) == []
        assert page.evaluate("document.getAnimations().length") == 0


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


def test_what_is_wrong_is_said(page: Page, tmp_path: Path, photo: Path) -> None:
    page.click("#go")
    expect(page.locator("#status")).to_have_text("Choose a photograph first.")
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    page.set_input_files("#file", text)
    expect(page.locator("#trouble")).to_contain_text("cannot open it")
    page.expected_status |= {400, 404, 409, 422}  # type: ignore[attr-defined]
    page.click("nav a[href='#vocabularies']")
    page.fill("#build-name", "twice")
    page.fill("#build-concepts", "cat\nCat")
    page.click("#build-form button")
    expect(page.locator("#build-trouble")).to_contain_text("twice")
    expect(page.locator("#build-trouble")).to_contain_text("Request")


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

    page.expected_status.add(503)  # type: ignore[attr-defined]
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
    page.expected_status.add(503)  # type: ignore[attr-defined]
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
    page.expected_status.add(0)  # type: ignore[attr-defined]
    page.context.set_offline(True)
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    page.set_input_files("#file", photo)
    page.fill("#concept", "cat,")
    page.click("#go")
    expect(page.locator("#trouble")).to_contain_text("Check the connection")
    page.context.set_offline(False)
    expect(page.locator("#banner")).to_be_hidden(timeout=15_000)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#legend li").first).to_be_visible()


def test_a_key_is_asked_for_kept_for_the_session_and_sent(browser: Browser, service: str) -> None:
    with watched_page(browser, service) as page:
        info = page.evaluate("fetch('v1/info').then((answer) => answer.json())")
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


def test_a_photograph_past_the_limits_is_scaled_down(browser: Browser, service: str, tmp_path: Path) -> None:
    with watched_page(browser, service) as page:
        info = page.evaluate("fetch('v1/info').then((answer) => answer.json())")
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
