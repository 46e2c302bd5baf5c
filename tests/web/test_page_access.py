"""The page by keyboard alone, on a phone, in both colour schemes, against the rules of WCAG."""

import json
from pathlib import Path

import numpy as np
import pytest
from answer_pixels import inner_point
from chromium import sideways_scroll, watched_page
from page_steps import point_at, segment, tab_to
from playwright.sync_api import Browser, Page, Route, expect

PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}


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


def test_below_a_path_of_a_front_proxy(browser: Browser, service: str, photo: Path) -> None:
    """The page asks for its files and for answers beside itself, not at the root of the host."""
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def forward(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/behind/", "/")))

    page.route("**/behind/**", forward)
    page.goto(f"{service}behind/")
    page.wait_for_selector("html[data-ready=true]")
    segment(page, photo, "cat", "dog")
    page.get_by_role("button", name="Why").first.click()
    page.wait_for_selector(".sheet canvas")
    context.close()
    assert [url for url in asked if not url.startswith((f"{service}behind/", "blob:"))] == []
