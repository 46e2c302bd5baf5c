"""The documentation: it builds without a warning, every link leads somewhere, nothing is loaded from elsewhere."""

import re
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from documents import DOCS, ROOT, blocks, documents

import reco_ray.cosegmentation
import reco_ray.models
import reco_ray.segmentation
import reco_ray.training
from reco_ray.cli import app
from reco_ray.config import Settings

_LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\(([^)\s]+)\)")


class _Page(HTMLParser):
    """What a page links to, loads by itself, and can be linked to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.loads.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does: a warning is a failure."""
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    return {file: _Page(file) for file in site.rglob("*.html")}


def test_every_link_inside_the_site_leads_to_a_page_and_a_place_on_it(pages: dict[Path, _Page]) -> None:
    broken = []
    checked = 0
    for file, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            checked += 1
            anchors = pages[target].anchors if target in pages else {parts.fragment}
            if not target.is_file() or (parts.fragment and parts.fragment not in anchors):
                broken.append(f"{file.name}: {link}")
    assert not broken
    assert checked > 300


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, _Page]) -> None:
    foreign = [load for page in pages.values() for load in page.loads if urlsplit(load).netloc]
    assert not foreign
    assert sum(len(page.loads) for page in pages.values()) > 50
    for style in site.rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", style.read_text())
        assert not [url for url in loaded if urlsplit(url).netloc], style


def test_every_page_is_in_the_navigation(pages: dict[Path, _Page]) -> None:
    home = next(file for file in pages if file.name == "index.html")
    linked = {link.partition("#")[0] for link in pages[home].links}
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS).with_suffix(".html"))
        assert name in linked or name == "index.html", f"add {page.name} to the navigation in docs/index.md"


def test_the_reference_has_every_command_setting_and_public_name(site: Path) -> None:
    def text(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / "reference" / page).read_text())

    shown = text("cli.html")
    for command in app.registered_commands:
        name = command.name or str(command.callback.__name__)  # type: ignore[union-attr]
        assert f"$ reco-ray {name}" in shown
    assert "--corpus" in shown
    shown = text("settings.html")
    for section, field in Settings.model_fields.items():
        names = getattr(field.annotation, "model_fields", None)
        for name in [f"{section}.{each}" for each in names] if names else [section]:
            assert name in shown
    shown = text("api.html")
    for room in (
        reco_ray.cosegmentation,
        reco_ray.models,
        reco_ray.segmentation,
        reco_ray.training,
    ):
        for name in room.__all__:
            assert f"{room.__name__}.{name}(" in shown or f"{room.__name__}.{name}¶" in shown, name


def test_every_setting_says_what_it_is() -> None:
    for section, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        assert field.description or inner, section
        for name, each in inner.items():
            assert each.description, f"{section}.{name}"


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document.relative_to(ROOT)))
def test_relative_links_lead_to_files_of_the_repository(document: Path) -> None:
    for link in _LINK.findall(document.read_text()):
        if not urlsplit(link).scheme:
            target = document.parent / unquote(link.partition("#")[0])
            assert target.exists(), f"{document.name}: {link}"


def test_the_architecture_names_every_layer_and_room() -> None:
    page = (DOCS / "architecture.md").read_text()
    contract = ConfigParser()
    contract.read(ROOT / ".importlinter")
    layers = contract["importlinter:contract:rooms"]["layers"].replace("reco_ray.", "").strip().splitlines()
    shown = next(block.text for block in blocks(DOCS / "architecture.md") if block.text.startswith("cli "))
    assert [line.partition("  ")[0].strip() for line in shown.splitlines()] == layers
    for entry in (ROOT / "reco_ray").iterdir():
        if (entry / "__init__.py").exists() or entry.suffix == ".py":
            name = entry.stem if entry.suffix else f"**`{entry.name}/`**"
            assert name in page, f"say in docs/architecture.md what {entry.name} is for"
