"""The page by keyboard alone, on a phone, in both colour schemes, against the rules of WCAG."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from answer_pixels import inner_point
from chromium import sideways_scroll, watched_page
from page_steps import point_at, segment, tab_to
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.cpus(4)

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


@contextmanager
def front_proxy(service: str) -> Iterator[str]:
    """A proxy that has the service below /behind/; its address there."""

    class Front(BaseHTTPRequestHandler):
        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            kept = {name: self.headers[name] for name in ("Content-Type", "Accept") if name in self.headers}
            url = service + self.path.removeprefix("/behind/")
            known = self.path.startswith("/behind/")
            answer = httpx.request(self.command, url, content=body, headers=kept, timeout=60)
            self.send_response(answer.status_code if known else 404)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = forward

        def log_message(self, *words: object) -> None:
            """Not on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Front) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/behind/"
        server.shutdown()


def test_below_a_path_of_a_front_proxy(browser: Browser, service: str, photo: Path) -> None:
    """The page asks for its files and for answers beside itself, never at the root of the host."""
    with front_proxy(service) as url, watched_page(browser, url) as page:
        segment(page, photo, "cat", "dog")
        page.get_by_role("button", name="Why").first.click()
        expect(page.locator(".sheet canvas")).to_be_visible()
