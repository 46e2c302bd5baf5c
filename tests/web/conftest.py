"""One service and one browser for all tests of this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ray"))  # its clusters.py and servers.py

from chromium import chromium, watched_page
from clusters import local_ray
from images import encoded, photograph, write_photographs
from page_steps import CAT
from playwright.sync_api import Browser, Page
from servers import Server

from reco_ray.config import load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus

SMALL = ("references.exemplars=2", "references.image_size=128", "segment.image_size=192")


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, with a slash at the end."""
    folder = tmp_path_factory.mktemp("service")
    write_photographs(folder / "corpus", 28, long_side=160)
    write_photographs(folder / "examples", 3, long_side=200)
    corpus, index, embeddings = (str(folder / name) for name in ("corpus", "index", "embeddings"))
    settings = [word for setting in SMALL for word in ("--set", setting)]
    places = ["--index", index, "--state", str(folder / "state"), "--examples", str(folder / "examples")]
    with local_ray(4):
        embed_corpus(corpus, embeddings, load_settings("mini", overrides=list(SMALL)))
        build_index(embeddings, index)
        server = Server(folder, *places, *settings)
        try:
            yield server.url + "/"
        finally:
            server.kill()


@pytest.fixture(scope="package")
def browser(service: str) -> Iterator[Browser]:
    """Started after the service: Playwright keeps an event loop in this thread, and Ray would meet it."""
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
