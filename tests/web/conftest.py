"""One service and one browser for all tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ray"))  # its clusters.py and processes.py

from chromium import chromium, watched_page
from images import encoded, photograph, write_photographs
from live_service import running_service, tiny_index
from page_steps import CAT
from playwright.sync_api import Browser, Page


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, with a slash at the end."""
    folder = tmp_path_factory.mktemp("service")
    index = tiny_index(folder)
    write_photographs(folder / "examples", 3, long_side=200)
    with running_service(folder, "--index", str(index), "--examples", str(folder / "examples")) as url:
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The page at 1280 pixels; it must stay without errors and ask nobody else for anything."""
    with watched_page(browser, service) as opened:
        yield opened


@pytest.fixture(scope="package")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cat, 200 pixels wide."""
    file = tmp_path_factory.mktemp("photo") / "cat.jpg"
    file.write_bytes(encoded(photograph(CAT, 200), quality=92))
    return file
