"""The page in a real browser over a real service: what is on the canvas is what the service answered."""

from pathlib import Path

import numpy as np
import pytest
from answer_pixels import inner_point, label_map, painted, region, rgb
from chromium import canvas_pixels
from page_steps import point_at, segment
from PIL import Image
from playwright.sync_api import Page, expect

from reco_ray.config import load_settings

pytestmark = pytest.mark.cpus(4)


def test_the_mask_on_the_canvas_is_the_answer(page: Page, photo: Path) -> None:
    answer = segment(page, photo, "cat", "dog")
    assert answer["probabilities"]
    expect(page.locator("#refine")).to_have_value(load_settings("mini").segment.refine)
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
        assert f"{round(100 * concept['score'])} % sure" in text


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
    for on in (False, True):  # the page begins with it
        with page.expect_response("**/v1/segment") as response:
            page.set_checked("#background", on)
        assert response.value.json()["background"] is on
    for refine in ("pamr", "superpixels"):
        with page.expect_response("**/v1/segment") as response:
            page.select_option("#refine", refine)
        answer = response.value.json()
        page.wait_for_selector("#go:enabled")
        page.mouse.move(5, 5)
        assert np.array_equal(canvas_pixels(page, "#mask-canvas"), painted(answer))
