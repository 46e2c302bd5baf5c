"""What the page's tests do again and again."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

CAT = 21  # of tests/images.py


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


def tab_to(page: Page, selector: str, *, backwards: bool = False) -> None:
    """Presses Tab until the element, or one like it, has the focus; what has it can always be seen to."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never comes to {selector}")
