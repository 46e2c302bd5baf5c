"""The page of a review in a browser: keys and buttons, kept over a reload, saved, and against the rules of WCAG."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import sideways_scroll, watched_page
from mask_artifacts import write_masks
from playwright.sync_api import Browser, Page, expect

import reco_ray

pytestmark = pytest.mark.cpus(4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("review")
    write_masks(
        folder, [[0.9, 0.3 + 0.05 * n, 0.8 - 0.05 * n] for n in range(6)], ["background", "cat", "dog"]
    )
    made = reco_ray.review(masks=folder / "masks", sample=4, unsure=6, out=folder / "out")
    return Path(made.page).as_uri()


@pytest.fixture
def page(browser: Browser, written: str) -> Iterator[Page]:
    with watched_page(browser, written) as opened:
        yield opened


def saved(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.locator("#save").click()
    with open(download.value.path(), newline="") as file:
        return list(csv.DictReader(file))


def test_verdicts_by_keys_and_buttons_are_saved(page: Page) -> None:
    expect(page.locator("#count")).to_have_text("1 of 10; 0 good, 0 bad, 0 unsure")
    page.keyboard.press("g")
    page.keyboard.press("B")
    expect(page.locator("#count")).to_have_text("3 of 10; 1 good, 1 bad, 0 unsure")
    page.locator("[data-verdict=unsure]").click()
    concept = page.locator("#title").inner_text()
    page.locator("#instead button", has_text="something else").click()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#title")).to_have_text(concept)
    expect(page.locator("[data-verdict=bad]")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(page.locator("#count")).to_have_text("5 of 10; 1 good, 2 bad, 1 unsure")
    rows = saved(page)
    assert [row["verdict"] for row in rows] == ["good", "bad", "unsure", "bad"]
    assert [row["instead"] for row in rows] == ["", "", "", "something else"]
    assert {row["sample"] for row in rows} == {"random"}
    page.locator("#filter").select_option("unsure")
    expect(page.locator("#about")).to_contain_text("the model is unsure")
    for _ in range(6):
        page.keyboard.press("g")
    expect(page.locator("#end")).to_contain_text("reco-ray evaluate --verdicts")
    page.keyboard.press("g")  # nothing is shown: nothing is judged
    rows = saved(page)
    assert len(rows) == 10
    assert sum(row["sample"] == "unsure" for row in rows) == 6


def test_the_verdicts_of_the_page_are_read(page: Page, tmp_path: Path) -> None:
    page.keyboard.press("g")
    with page.expect_download() as download:
        page.locator("#save").click()
    result = reco_ray.evaluate(verdicts=download.value.path(), out=tmp_path)
    assert (result.sample.good, result.sample.bad) == (1, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_the_rules(browser: Browser, written: str, scheme: str) -> None:
    phone = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
    for options in ({}, phone):
        with watched_page(browser, written, color_scheme=scheme, **options) as page:
            assert sideways_scroll(page) == 0
            assert Axe().run(page).response["violations"] == []
            page.locator("[data-verdict=bad]").click()
            assert Axe().run(page).response["violations"] == []
