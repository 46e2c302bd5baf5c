"""One service and one browser for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium, watched_page
from image_host import ImageHost, image_host
from images import encoded, photograph, write_photographs
from in_process import stages_in_process
from page_steps import CAT
from playwright.sync_api import Browser, Page
from servers import BYTES, Server

from reco_ray.config import load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus

SMALL = ("references.exemplars=2", "references.image_size=128", "segment.image_size=192")


@pytest.fixture(scope="package")
def studio() -> Iterator[ImageHost]:
    """What the server takes for Label Studio, as far as it is asked for images."""
    with image_host() as host:
        yield host


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, studio: ImageHost) -> Iterator[Server]:
    """Without keys, with low limits, an index of 28 photographs and three examples."""
    folder = tmp_path_factory.mktemp("service")
    write_photographs(folder / "corpus", 28, long_side=160)
    write_photographs(folder / "examples", 3, long_side=200)
    corpus, index, embeddings = (str(folder / name) for name in ("corpus", "index", "embeddings"))
    limits = (f"limits.bytes={BYTES}", "limits.pixels=1000000", "limits.concepts=11", "limits.batch=4")
    settings = [word for setting in (*SMALL, *limits) for word in ("--set", setting)]
    places = ["--index", index, "--state", str(folder / "state"), "--examples", str(folder / "examples")]
    places += ["--label-studio", studio.url]
    with stages_in_process():
        embed_corpus(corpus, embeddings, load_settings("mini", overrides=list(SMALL)))
    build_index(embeddings, index)
    running = Server(folder, *places, *settings)
    yield running
    running.kill()


@pytest.fixture(scope="package")
def service(server: Server) -> str:
    """Its address, with a slash at the end."""
    return server.url + "/"


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
