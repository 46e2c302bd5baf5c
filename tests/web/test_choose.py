"""Choosing exemplars: over HTTP, on the page, and in the report."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import TIMEOUT, canvas_pixels, sideways_scroll, watched_page
from images import encoded, photograph
from in_process import stages_in_process
from page_steps import CAT, segment
from playwright.sync_api import Browser, Locator, Page, expect
from servers import Server, await_vocabulary

from reco_ray.client import Client
from reco_ray.config import load_settings
from reco_ray.cosegmentation.stage import build_references
from reco_ray.segmentation.report import write_report
from reco_ray.segmentation.stage import segment_images
from reco_ray.vocabulary import parse_concepts
from reco_ray.vocabulary.curation import curated

pytestmark = [pytest.mark.cpus(4), pytest.mark.timeout(600)]

OWN = encoded(photograph(CAT, 120))
PHONE = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def exemplars(client: httpx.Client, name: str, concept: int = 0) -> list[dict[str, Any]]:
    state = await_vocabulary(client, name)
    assert state["status"] == "ready", state
    return client.get(f"/v1/concepts/{state['concept_ids'][concept]}").json()["exemplars"]


def test_a_vocabulary_takes_other_exemplars(client: httpx.Client, server: Server) -> None:
    client.put("/v1/vocabularies/chosen", json={"concepts": ["dog", "cup"]})
    before = exemplars(client, "chosen")
    untouched = await_vocabulary(client, "chosen")["concept_ids"][1]
    first, second = (each["image_id"] for each in before)
    own = {"image": base64.b64encode(OWN).decode(), "boxes": [[10, 10, 60, 60]]}
    dog = {"rejected": [first], "pinned": [{"image_id": second, "points": [[5, 5]]}], "examples": [own]}
    answer = client.patch("/v1/vocabularies/chosen", json={"concepts": {"dog": dog}})
    assert answer.status_code == 202, answer.text
    assert answer.json()["serving"] == ["dog", "cup"]  # until the next is built
    after = exemplars(client, "chosen")
    own_id = hashlib.sha256(OWN).hexdigest()
    assert [each["image_id"] for each in after] == [own_id, second]
    assert [each["source"] for each in after] == ["example", "pinned"]
    assert (after[0]["similarity"], after[0]["width"]) == (None, photograph(CAT, 120).width)
    state = client.get("/v1/vocabularies/chosen").json()
    assert state["concept_ids"][1] == untouched
    assert state["chosen"]["dog"]["rejected"] == [first]
    assert state["chosen"]["dog"]["examples"] == [
        {"image_id": own_id, "boxes": [[10, 10, 60, 60]], "points": []}
    ]
    for each in after:
        picture = client.get(each["picture"])
        assert picture.headers["content-type"] == "image/jpeg"
    assert client.get(after[0]["picture"].replace("/0", "/9")).status_code == 404
    # The image that was sent is known by its id; the same choice again is nothing new.
    dog["examples"] = [{"image_id": own_id, "boxes": [[10, 10, 60, 60]]}]
    assert client.patch("/v1/vocabularies/chosen", json={"concepts": {"dog": dog}}).status_code == 200
    # Chosen images go with the next choice, the file of the example with the vocabulary.
    assert client.patch("/v1/vocabularies/chosen", json={"concepts": {"dog": {}}}).status_code == 202
    assert exemplars(client, "chosen") == before
    assert client.delete("/v1/vocabularies/chosen").status_code == 204
    answer = client.put(
        "/v1/vocabularies/chosen", json={"concepts": [{"name": "x", "examples": [{"image_id": own_id}]}]}
    )
    assert answer.status_code == 422, "the file is deleted"


def test_a_concept_of_examples_alone_is_segmented(server: Server, photo: Path) -> None:
    with Client(server.url) as client:
        picture = photograph(CAT, 120)
        box = [20, 20, picture.width - 20, picture.height - 10]
        tom = {"name": "Tom", "examples": [{"image": picture, "boxes": [box]}]}
        state = client.build("toms", [tom, "cup"], background=True)
        assert state.chosen["Tom"].examples[0].boxes == (box,)
        found = client.segment(photo, vocabulary="toms")
        assert found.concepts[0].name in ("background", "Tom")
        assert max(found.concepts, key=lambda each: each.area * (each.name != "background")).name == "Tom"
        again = client.choose("toms", {"cup": {"examples": [{"image": OWN}]}})
        assert again.concept_ids[0] == state.concept_ids[0] != again.concept_ids[1]
        client.delete("toms")


def chosen(**fields: Any) -> dict[str, Any]:
    return {"concepts": {"dog": fields}}


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such concept": ({"concepts": {"horse": {}}}, 422, "horse"),
    "a path": (chosen(pinned=[{"image": "/etc/passwd"}]), 422, "image_id"),
    "an address": (chosen(examples=[{"image": "http://127.0.0.1:1/x.jpg"}]), 422, "no http address"),
    "an id that is none": (chosen(rejected=["../x"]), 422, "pattern"),
    "not in the index": (chosen(rejected=["0" * 64]), 422, "not in the index"),
    "no image": (chosen(examples=[{"image": base64.b64encode(b"hello").decode()}]), 422, "not an image"),
    "an SVG": (chosen(examples=[{"image": "data:image/svg+xml,<svg xmlns='x'/>"}]), 415, "SVG"),
    "unknown": (chosen(examples=[{"image_id": "0" * 64}]), 422, "no such example"),
    "neither": (chosen(examples=[{"boxes": [[1, 2, 3, 4]]}]), 422, "either"),
    "no box": (chosen(examples=[{"image": base64.b64encode(OWN).decode(), "boxes": [[9, 2, 3, 4]]}]), 422, "no box"),
    "outside": (
        chosen(examples=[{"image": base64.b64encode(OWN).decode(), "boxes": [[0, 0, 999, 4]]}]), 422, "outside"
    ),
    "three numbers": (chosen(pinned=[{"image_id": "0" * 64, "boxes": [[1, 2, 3]]}]), 422, "boxes"),
    "nothing": ({"concepts": {}}, 422, "concepts"),
    "another field": ({"concepts": {"dog": {}}, "x": 1}, 422, "no such option"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_chosen_is_refused(client: httpx.Client, name: str) -> None:
    body, status, says = REFUSED[name]
    client.put("/v1/vocabularies/refusing", json={"concepts": ["dog"]})
    answer = client.patch("/v1/vocabularies/refusing", json=body)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert says in detail
    assert "/" not in detail  # no paths of the server's
    assert client.patch("/v1/vocabularies/nothing", json=chosen()).status_code == 404
    assert client.get("/v1/vocabularies/refusing").json()["chosen"] == {}


# --- the page -----------------------------------------------------------------------------------------------


def why(page: Page, photo: Path) -> Locator:
    segment(page, photo, "cat")
    page.get_by_role("button", name="Why cat").click()
    cards = page.locator(".exemplar")
    expect(cards).to_have_count(2)
    return cards


def drag(page: Page, layer: Locator) -> None:
    layer.scroll_into_view_if_needed()
    box = layer.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"], steps=4)
    page.mouse.up()


def test_exemplars_are_chosen_on_the_page_and_built_again(
    page: Page, photo: Path, client: httpx.Client
) -> None:
    cards = why(page, photo)
    build = page.get_by_role("button", name="Build again")
    expect(build).to_be_disabled()
    cards.nth(0).get_by_role("button", name="Reject").click()
    expect(cards.nth(0)).to_have_attribute("data-state", "rejected")
    cards.nth(1).get_by_role("button", name="Region").click()
    drag(page, page.locator(".region"))
    cards.nth(1).get_by_role("button", name="Use this region").click()
    expect(cards.nth(1)).to_have_attribute("data-state", "accepted")
    expect(cards.nth(1).locator(".mark")).to_be_visible()
    page.set_input_files(
        ".choose input[type=file]", {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": OWN}
    )
    expect(cards).to_have_count(3)
    build.click()
    expect(page.locator(".choose .status")).to_contain_text("Give the vocabulary a name")
    page.fill("#curate-name", "page-cats")
    with (
        page.expect_request(lambda request: request.method == "PUT") as put,
        page.expect_response("**/v1/segment"),
    ):
        build.click()
    (cat,) = put.value.post_data_json["concepts"]
    assert cat["synonyms"] == ["cat"]
    (box,) = cat["pinned"][0]["boxes"]
    state = await_vocabulary(client, "page-cats")
    (now,) = (client.get(f"/v1/concepts/{each}").json()["exemplars"] for each in state["concept_ids"])
    assert [each["source"] for each in now] == ["example", "pinned"]
    width, height = now[1]["width"], now[1]["height"]
    for found, part, side in zip(box, (0.25, 0.25, 0.75, 0.75), (width, height, width, height), strict=True):
        assert found == pytest.approx(part * side, abs=0.03 * side)
    # What was built is used, and knows what was chosen.
    expect(page.locator("#vocabulary")).to_have_value("page-cats")
    page.wait_for_selector("#legend li")
    page.get_by_role("button", name="Why cat").click()
    expect(cards.nth(0)).to_have_attribute("data-state", "example")
    expect(cards.nth(1)).to_have_attribute("data-state", "accepted")
    expect(page.get_by_role("button", name="Take back")).to_have_count(1)
    cards.nth(0).get_by_role("button", name="Take away").click()
    with (
        page.expect_request(lambda request: request.method == "PATCH") as patch,
        page.expect_response("**/v1/segment"),
    ):
        build.click()
    assert patch.value.post_data_json["concepts"]["cat"]["examples"] == []
    client.delete("/v1/vocabularies/page-cats")


def test_regions_by_keys_alone(page: Page, photo: Path) -> None:
    cards = why(page, photo)
    cards.nth(0).get_by_role("button", name="Region").focus()
    page.keyboard.press("Enter")
    layer = page.locator(".region")
    expect(layer).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    expect(page.locator(".gallery [aria-live]").first).to_contain_text("Region from 27 %, 25 %, 77 %, 77 %")
    page.keyboard.press("Enter")
    expect(cards.nth(0)).to_have_attribute("data-state", "accepted")
    expect(cards.nth(0).get_by_role("button", name="Region")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(layer).to_have_count(0)
    cards.nth(1).get_by_role("button", name="Reject").focus()
    page.keyboard.press("Space")
    expect(cards.nth(1).get_by_role("button", name="Reject")).to_be_focused()
    expect(cards.nth(1)).to_have_attribute("data-state", "rejected")
    page.keyboard.press("Space")
    expect(cards.nth(1)).to_have_attribute("data-state", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_choosing_is_accessible_and_fits_a_phone(
    browser: Browser, service: str, photo: Path, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    def violations(page: Page) -> list[str]:
        found = Axe().run(page, options=RULES).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found]

    with watched_page(browser, service, color_scheme=scheme, reduced_motion="reduce", **PHONE) as page:
        cards = why(page, photo)
        cards.nth(0).get_by_role("button", name="Reject").tap()
        cards.nth(1).get_by_role("button", name="Region").tap()
        assert violations(page) == []
        assert sideways_scroll(page) == 0
        layer = page.locator(".region")
        layer.scroll_into_view_if_needed()
        box = layer.bounding_box()
        assert box is not None
        touch = page.context.new_cdp_session(page)

        def send(kind: str, *parts: float) -> None:
            points = [
                {"x": box["x"] + part * box["width"], "y": box["y"] + part * box["height"]} for part in parts
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        send("touchStart", 0.3)
        send("touchMove", 0.5)
        send("touchMove", 0.7)
        send("touchEnd")
        expect(page.locator(".region.drawn")).to_be_visible()
        page.get_by_role("button", name="Use this region").click()
        expect(cards.nth(1)).to_have_attribute("data-state", "accepted")
        assert violations(page) == []


# --- the report ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over the corpus of the server; the cat has an example of its own already."""
    folder = tmp_path_factory.mktemp("report")
    corpus = Path(server._options[server._options.index("--index") + 1]).parent / "corpus"
    index = str(corpus.parent / "index")
    (folder / "mine.jpg").write_bytes(OWN)
    (folder / "given.yaml").write_text(
        "concepts: {cat: {examples: [{image: mine.jpg, box: [9, 9, 60, 60]}]}}"
    )
    small = ["references.exemplars=3", "references.image_size=128", "segment.image_size=128"]
    settings = load_settings("mini", overrides=small)
    vocabulary = curated(parse_concepts("cat, dog"), str(folder / "given.yaml"))
    references, masks = str(folder / "references"), str(folder / "masks")
    with stages_in_process():
        build_references(index, vocabulary, references, settings)
        made = segment_images(references, str(corpus.parent / "examples"), masks, settings)
    assert made.manifest is not None
    write_report(masks, made.manifest, str(folder / "report"), references)
    return folder


def test_the_report_saves_what_was_chosen(browser: Browser, report: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((report / "report" / "index.html").as_uri())
    page.get_by_text("Choose the exemplars of dog").click()
    cards = page.locator("#concept-2 .exemplar")
    expect(cards).to_have_count(3)
    assert canvas_pixels(page, "#concept-2 .exemplar canvas")[..., :3].std() > 10
    cards.nth(0).get_by_role("button", name="Reject").click()
    cards.nth(2).get_by_role("button", name="Region").click()
    drag(page, page.locator(".region"))
    page.get_by_role("button", name="Use this region").click()
    page.set_input_files(
        "#concept-2 input[type=file]", {"name": "rex.jpg", "mimeType": "image/jpeg", "buffer": OWN}
    )
    expect(page.locator("#save-beside")).to_be_visible()
    found = Axe().run(page, options=RULES).response["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html']}" for v in found] == []
    with page.expect_download() as download:
        page.get_by_role("button", name="Save curation.yaml").click()
    (report / "rex.jpg").write_bytes(OWN)
    file = report / download.value.suggested_filename
    download.value.save_as(file)
    context.close()
    assert not complaints, complaints
    cat, dog = curated(parse_concepts("cat, dog"), str(file)).concepts
    assert cat.examples[0].image == str(report / "mine.jpg")
    assert cat.examples[0].boxes == ((9, 9, 60, 60),)
    assert [len(each) for each in (dog.rejected, dog.pinned, dog.examples)] == [1, 1, 1]
    assert dog.pinned[0].boxes
    assert dog.examples[0].image == str(report / "rex.jpg")
    # It is taken as it is.
    settings = load_settings("mini", overrides=["references.exemplars=3", "references.image_size=128"])
    index = json.loads((report / "references" / "manifest.json").read_text())["made_from"]["index"]
    with stages_in_process():
        again = build_references(
            index, curated(parse_concepts("cat, dog"), str(file)), str(report / "again"), settings
        )
    assert again.error is None
