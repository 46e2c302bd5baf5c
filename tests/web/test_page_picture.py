"""The README's picture of the page: what makes it (docs/page.py) does so from this service, too."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import requests
import skimage.data
from PIL import Image
from playwright.sync_api import Browser

pytestmark = pytest.mark.cpus(4)

SCRIPT = Path(__file__).parents[2] / "docs" / "page.py"


def test_the_picture_shows_a_mask_and_what_was_found(browser: Browser, service: str, tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    photograph = tmp_path / "chelsea.png"
    Image.fromarray(skimage.data.chelsea()).save(photograph)
    try:
        script["take_picture"](browser, service, photograph, tmp_path / "page.jpg")
    finally:
        requests.delete(f"{service}v1/vocabularies/demo", timeout=60)
    with Image.open(tmp_path / "page.jpg") as picture:
        assert picture.size == tuple(int(side * script["SCALE"]) for side in script["VIEWPORT"].values())
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        shipped = np.asarray(Image.open(SCRIPT.with_name("page.jpg")).convert("RGB")).astype(int)
    assert shipped.shape == pixels.shape
    # The same page in the same state: heading, form and buttons are where they are in the README's.
    assert (np.abs(pixels - shipped).max(axis=2) < 48)[:150].mean() > 0.9
    # The first concept's red lies over the photograph, which has none.
    photograph_shown = pixels[280:1110, 40:1290]
    assert (photograph_shown[..., 0] > photograph_shown[..., 1] + 90).mean() > 0.05
