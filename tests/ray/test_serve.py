"""The server, as clients meet it: a real one on loopback, with real models, that is killed and started again."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import torch
from artifacts import files
from clusters import local_ray
from images import encoded, photograph, write_photographs
from in_process import stages_in_process
from other_package import ENDPOINT, install
from PIL import Image
from pycocotools import mask as coco_mask
from servers import BYTES, Server, await_vocabulary, write_segmenter

from reco_ray.config import load_settings
from reco_ray.corpus.decode import decode_image
from reco_ray.corpus.index import CorpusIndex, build_index
from reco_ray.corpus.load import whole_image_loader
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.sample import sample_loaded, sample_rows
from reco_ray.models.dense import DenseModels, load_retrieval_model
from reco_ray.models.feature_sample import from_bytes
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import targets_of
from reco_ray.serving.keys import new_key
from reco_ray.training.segmenter import Segmenter

pytestmark = pytest.mark.timeout(600)
SET = ("references.exemplars=2", "references.image_size=96", "segment.image_size=96")
PHOTO = encoded(photograph(0, 96))
CONCEPTS = ["dog", "beetle", "cup"]
SEGMENTERS = ("street", "lane", "rail")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster, and on it an index of 20 photographs, keys, a segmenter; a package with an endpoint is installed."""
    folder = tmp_path_factory.mktemp("serve")
    install(folder, ENDPOINT, ["reco_ray.endpoints"])
    write_photographs(folder / "corpus", 20)
    for name in SEGMENTERS:
        write_segmenter(folder / name, "sky, road")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with local_ray(4):
            settings = load_settings("mini", overrides=list(SET))
            with stages_in_process():
                embed_corpus(str(folder / "corpus"), str(folder / "embeddings"), settings)
            build_index(str(folder / "embeddings"), str(folder / "index"))
            yield folder


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    made = {name: new_key(name) for name in ("anna", "ben")}
    (folder / "keys").write_text("\n".join(line for _, line in made.values()))
    return {name: key for name, (key, _) in made.items()}


@pytest.fixture(scope="module")
def server(folder: Path, keys: dict[str, str]) -> Iterator[Server]:
    options = ["--index", str(folder / "index"), "--state", str(folder / "state")]
    options += ["--keys", str(folder / "keys"), "--examples", str(folder / "corpus")]
    for name in SEGMENTERS:
        options += ["--segmenter", f"{name}={folder / name}"]
    weights = (folder / "street" / "weights.safetensors").stat().st_size
    limits = (f"limits.bytes={BYTES}", "limits.pixels=1000000", "limits.concepts=6", "limits.batch=4")
    room = f"scale.segmenter_bytes={int(2.5 * weights)}"  # for two of them
    for each in (*SET, *limits, "limits.rate=1000", "limits.burst=1000", room):
        options += ["--set", each]
    running = Server(folder, *options)
    yield running
    running.kill()


@pytest.fixture
def anna(server: Server, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with server.client(keys["anna"]) as client:
        yield client


@pytest.fixture
def ben(server: Server, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with server.client(keys["ben"]) as client:
        yield client


@pytest.fixture(scope="module")
def animals(server: Server, keys: dict[str, str]) -> str:
    """A vocabulary of anna's that is ready."""
    with server.client(keys["anna"]) as client:
        answer = client.put("/v1/vocabularies/animals", json={"concepts": CONCEPTS})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == "/v1/vocabularies/animals"
        found = await_vocabulary(client, "animals")
        assert found["status"] == "ready", found
    return "animals"


def labels_of(found: dict[str, Any]) -> np.ndarray:
    """The label map that an answer's run lengths say."""
    labels = np.full((found["height"], found["width"]), -1)
    for concept in found["concepts"]:
        rle = {"size": concept["rle"]["size"], "counts": concept["rle"]["counts"].encode()}
        labels[coco_mask.decode(rle) == 1] = concept["label"]
    assert (labels >= 0).all()
    return labels


def is_problem(answer: httpx.Response, status: int) -> bool:
    kind = answer.headers["content-type"] == "application/problem+json"
    return kind and answer.status_code == status == answer.json()["status"]


# --- segmentation -------------------------------------------------------------------------------------------


def test_all_forms_of_a_request_are_answered_alike(anna: httpx.Client, animals: str) -> None:
    query = {"vocabulary": animals}
    raw = anna.post("/v1/segment", params=query, content=PHOTO, headers={"content-type": "image/jpeg"})
    form = anna.post("/v1/segment", data=query, files={"image": ("../../etc/passwd", PHOTO, "image/jpeg")})
    sent = anna.post("/v1/segment", json={**query, "image": base64.b64encode(PHOTO).decode()})
    answers = [answer.json() for answer in (raw, form, sent)]
    assert [answer.status_code for answer in (raw, form, sent)] == [200] * 3, raw.text
    maps = [labels_of(answer) for answer in answers]
    assert all(np.array_equal(each, maps[0]) for each in maps)
    first = answers[0]
    assert first["vocabulary"] == animals
    assert [each["name"] for each in first["legend"]] == CONCEPTS
    assert (first["width"], first["height"]) == photograph(0, 96).size
    assert sum(each["share"] for each in first["concepts"]) == pytest.approx(1)
    areas = [each["area"] for each in first["concepts"]]
    assert areas == sorted(areas, reverse=True)
    assert first["request_id"] == raw.headers["x-request-id"]
    png = anna.post("/v1/segment", params=query, content=PHOTO, headers={"accept": "image/png"})
    with Image.open(io.BytesIO(png.content)) as mask:
        assert np.array_equal(np.asarray(mask), maps[0])
    jpeg = anna.post("/v1/segment", params=query, content=PHOTO, headers={"accept": "image/jpeg"})
    with Image.open(io.BytesIO(jpeg.content)) as picture:
        assert picture.format == "JPEG"
        assert picture.width == first["width"]


@pytest.mark.parametrize("refine", ["none", "pamr", "superpixels", "crf"])
def test_a_mask_is_what_the_library_computes(
    anna: httpx.Client, animals: str, folder: Path, refine: str
) -> None:
    settings = load_settings("mini", overrides=[*SET, f"segment.refine={refine}"])
    models = DenseModels.load(settings.models)
    (uri,) = [each.parent for each in (folder / "state/vocabularies/anna/animals").glob("*/manifest.json")]
    bank = ReferenceBank.open(str(uri), models.fingerprint)
    image, width, height = decode_image(PHOTO, max_pixels=10**6, short_side=96)
    pixels = models.encoder.transform.fit(image, 96, models.encoder.stride)
    batch = torch.from_numpy(pixels.copy())[None]
    with torch.inference_mode():
        expected = segment(
            models, targets_of(bank, settings.segment), batch, [(height, width)], settings.segment
        )[0]
    answer = anna.post("/v1/segment", params={"vocabulary": animals, "refine": refine}, content=PHOTO)
    assert np.mean(labels_of(answer.json()) == expected.labels.numpy()) > 0.995


def test_options_change_the_answer(anna: httpx.Client, animals: str) -> None:
    def ask(**options: Any) -> dict[str, Any]:
        return anna.post("/v1/segment", params={"vocabulary": animals, **options}, content=PHOTO).json()

    assert max(ask(max_side=40)["width"], ask(max_side=40)["height"]) == 40
    background = ask(background="true", threshold=1)
    assert [each["name"] for each in background["legend"]] == ["background", *CONCEPTS]
    assert [each["name"] for each in background["concepts"]] == ["background"]


def test_concepts_nobody_named_before_are_built_inside_the_request(anna: httpx.Client, folder: Path) -> None:
    answer = anna.post("/v1/segment", params={"concepts": "strawberry, castle"}, content=PHOTO)
    found = answer.json()
    assert answer.status_code == 200, answer.text
    assert found["vocabulary"] is None
    assert [each["name"] for each in found["legend"]] == ["strawberry", "castle"]
    before = files(folder / "state" / "concepts")
    again = anna.post("/v1/segment", params={"concepts": "castle,strawberry"}, content=PHOTO).json()
    assert files(folder / "state" / "concepts") == before  # nothing was built twice
    assert {each["id"] for each in again["legend"]} == {each["id"] for each in found["legend"]}


def test_vocabularies_and_words_of_requests_are_calibrated_over_the_same_images(
    anna: httpx.Client, animals: str, folder: Path
) -> None:
    query = {"concepts": ",".join(CONCEPTS)}
    for options in ({}, {"background": "true"}, {"background": "true", "refine": "none"}):
        by_words = anna.post("/v1/segment", params={**query, **options}, content=PHOTO).json()
        by_name = anna.post("/v1/segment", params={"vocabulary": animals, **options}, content=PHOTO).json()
        assert by_words["concepts"] == by_name["concepts"]
    (sample,) = (folder / "state" / "concepts").glob("*.sample")
    (own,) = (folder / "state/vocabularies/anna" / animals).glob("*/sample.safetensors")
    assert own.read_bytes() == sample.read_bytes()
    settings = load_settings("mini", overrides=list(SET))
    models = DenseModels.load(settings.models)
    index = CorpusIndex(str(folder / "index"), load_retrieval_model(settings.models).fingerprint)
    rows = sample_rows(index, settings.segment.calibrate)
    load = whole_image_loader(models.encoder.transform, models.encoder.stride, settings.segment)
    expected = from_bytes(sample_loaded(models, load(rows), "cpu") or b"")
    found = from_bytes(sample.read_bytes())
    assert found.visual.shape[0] == 20
    for name in ("visual", "language", "logits", "image"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=0.02, rtol=0.02)


def test_a_batch_has_an_outcome_for_every_image(anna: httpx.Client, animals: str) -> None:
    good = base64.b64encode(PHOTO).decode()
    images = [
        good,
        {"id": "broken", "image": base64.b64encode(PHOTO[:300]).decode()},
        {"id": "x", "image": "%"},
    ]
    answer = anna.post("/v1/segment:batch", json={"images": images, "vocabulary": animals})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [each["id"] for each in results] == ["0", "broken", "x"]
    assert [each.get("error", {}).get("status") for each in results] == [None, 422, 422]
    labels_of(results[0])
    form = anna.post(
        "/v1/segment:batch",
        data={"vocabulary": animals},
        files=[("images", ("a", PHOTO, "image/jpeg")), ("images", ("b", b"no", "image/jpeg"))],
    )
    assert ["error" in each for each in form.json()["results"]] == [False, True]
    assert is_problem(anna.post("/v1/segment:batch", json={"images": [good] * 5, "vocabulary": animals}), 422)


def test_a_trained_segmenter_answers_beside_vocabularies(anna: httpx.Client, folder: Path) -> None:
    answer = anna.post("/v1/segment", params={"vocabulary": "street"}, content=PHOTO)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [each["name"] for each in found["legend"]] == ["background", "sky", "road"]
    image, _, _ = decode_image(PHOTO, max_pixels=10**6, short_side=96)
    expected, _ = Segmenter.from_artifact(str(folder / "street")).predict(image)
    below = 0.45  # the preset's threshold of a background
    assert set(np.unique(labels_of(found))) <= set(np.unique(expected)) | {0}, below
    refined = anna.post("/v1/segment", params={"vocabulary": "street", "refine": "pamr"}, content=PHOTO)
    assert refined.status_code == 200
    listed = anna.get("/v1/vocabularies/street").json()
    assert (listed["kind"], listed["status"], listed["mine"]) == ("segmenter", "ready", False)
    assert is_problem(anna.delete("/v1/vocabularies/street"), 409)
    assert is_problem(anna.put("/v1/vocabularies/street", json={"concepts": ["cat"]}), 409)


# --- vocabularies and what is behind them -------------------------------------------------------------------


def test_a_vocabulary_belongs_to_its_key(anna: httpx.Client, ben: httpx.Client, animals: str) -> None:
    assert anna.get(f"/v1/vocabularies/{animals}").json()["mine"]
    listed = ben.get("/v1/vocabularies").json()["vocabularies"]
    assert [each["name"] for each in listed] == list(SEGMENTERS)
    for answer in (
        ben.get(f"/v1/vocabularies/{animals}"),
        ben.delete(f"/v1/vocabularies/{animals}"),
        ben.post("/v1/segment", params={"vocabulary": animals}, content=PHOTO),
    ):
        assert is_problem(answer, 404)
    assert ben.put(f"/v1/vocabularies/{animals}", json={"concepts": ["beetle"]}).status_code == 202
    assert await_vocabulary(ben, animals)["concepts"] == ["beetle"]
    assert anna.get(f"/v1/vocabularies/{animals}").json()["concepts"] == CONCEPTS
    assert ben.delete(f"/v1/vocabularies/{animals}").status_code == 204
    assert is_problem(ben.get(f"/v1/vocabularies/{animals}"), 404)


def test_the_same_vocabulary_again_is_ready_at_once(anna: httpx.Client, animals: str, folder: Path) -> None:
    before = files(folder / "state" / "vocabularies")
    answer = anna.put(f"/v1/vocabularies/{animals}", json={"concepts": CONCEPTS})
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert files(folder / "state" / "vocabularies") == before


def test_a_vocabulary_is_served_until_the_next_of_its_name_is_built(anna: httpx.Client, animals: str) -> None:
    def legend() -> list[str]:
        answer = anna.post("/v1/segment", params={"vocabulary": "changing"}, content=PHOTO)
        assert answer.status_code == 200, answer.text
        return [each["name"] for each in answer.json()["legend"]]

    anna.put("/v1/vocabularies/changing", json={"concepts": CONCEPTS[:2]})
    assert await_vocabulary(anna, "changing")["serving"] == CONCEPTS[:2]
    for concepts, status in ((["lamp", "spoon"], "ready"), (["\u043a\u043e\u0442"], "failed")):
        before = legend()
        answer = anna.put("/v1/vocabularies/changing", json={"concepts": concepts})
        assert (answer.json()["status"], answer.json()["serving"]) == ("building", before)
        assert legend() in (before, concepts)
        found = await_vocabulary(anna, "changing")
        assert (found["status"], found["concepts"]) == (status, concepts)
        assert legend() == found["serving"] == (concepts if status == "ready" else before)
    assert anna.delete("/v1/vocabularies/changing").status_code == 204


def test_a_vocabulary_that_cannot_be_built_says_why(anna: httpx.Client) -> None:
    assert anna.put("/v1/vocabularies/cyrillic", json={"concepts": ["\u043a\u043e\u0442"]}).status_code == 202
    found = await_vocabulary(anna, "cyrillic")
    assert found["status"] == "failed"
    assert "English" in found["error"]
    answer = anna.post("/v1/segment", params={"vocabulary": "cyrillic"}, content=PHOTO)
    assert is_problem(answer, 409)
    answer = anna.post("/v1/segment", params={"concepts": "\u043a\u043e\u0442"}, content=PHOTO)
    assert is_problem(answer, 422)
    assert anna.delete("/v1/vocabularies/cyrillic").status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"concepts": []},
        {"concepts": ["cat", "Cat"]},
        {"concepts": [""]},
        {"concepts": ["a\u0000b"]},
        {"concepts": ["x" * 101]},
        {"concepts": [str(n) for n in range(7)]},
        {"concepts": "cat"},
        {"concepts": ["cat"], "uri": "s3://bucket"},
        {"concepts": [{"name": "cat", "file": "/etc/passwd"}]},
        {"concepts": ["cat"], "context": ["x"] * 21},
    ],
)
def test_vocabularies_that_cannot_be_are_refused(anna: httpx.Client, body: dict[str, Any]) -> None:
    assert is_problem(anna.put("/v1/vocabularies/refused", json=body), 422)
    assert is_problem(anna.get("/v1/vocabularies/refused"), 404)


def test_a_mask_can_be_asked_why(anna: httpx.Client, animals: str) -> None:
    found = anna.post("/v1/segment", params={"vocabulary": animals}, content=PHOTO).json()
    concept_id = found["legend"][0]["id"]
    assert anna.get(f"/v1/vocabularies/{animals}").json()["concept_ids"][0] == concept_id
    concept = anna.get(f"/v1/concepts/{concept_id}").json()
    assert (concept["name"], concept["words"]) == ("dog", ["dog"])
    assert [each["rank"] for each in concept["exemplars"]] == [0, 1]
    for exemplar in concept["exemplars"]:
        thumbnail = anna.get(exemplar["thumbnail"])
        with Image.open(io.BytesIO(thumbnail.content)) as picture:
            assert max(picture.size) <= 256
    sheet = anna.get(f"/v1/concepts/{concept_id}/exemplars")
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.format == "JPEG"
    hits = anna.get("/v1/search", params={"q": "dog", "k": 3}).json()["hits"]
    assert [hit["image_id"] for hit in hits[:2]] == [each["image_id"] for each in concept["exemplars"]]
    assert hits == sorted(hits, key=lambda hit: -hit["score"])
    assert hits[0]["uri_name"].endswith(".jpg")
    nearest = anna.get("/v1/extensions/grey/nearest", params={"words": "dog"})  # of another package
    assert nearest.json() == [hits[0]["uri_name"]]
    for path in ("/v1/concepts/0123456789abcdef", f"/v1/images/{'0' * 64}/thumbnail", "/v1/examples/none"):
        assert is_problem(anna.get(path), 404)


def test_the_server_says_what_it_is(server: Server) -> None:
    with server.client() as nobody:
        info = nobody.get("/v1/info").json()
        assert info["index"] == {"images": 20}
        assert info["refine_default"] == load_settings("mini").segment.refine
        assert (info["preset"], info["keys_required"], info["limits"]["batch"]) == ("mini", True, 4)
        example = nobody.get(info["examples"][0]["url"])
        assert example.headers["content-type"] == "image/jpeg"
        assert nobody.get("/healthz").status_code == 200
        page = nobody.get("/", follow_redirects=True)
        assert page.headers["content-type"].startswith("text/html")
        assert nobody.get("/docs").status_code == 401
        for path in ("/v1/vocabularies", "/v1/search?q=cat", "/v1/extensions/grey/nearest?words=cat"):
            assert is_problem(nobody.get(path), 401)


def test_wrong_paths_and_methods_are_problems(anna: httpx.Client) -> None:
    assert is_problem(anna.get("/v1/nothing"), 404)
    assert is_problem(anna.get("/v1/segment"), 405)
    assert is_problem(anna.get("/page/none.js"), 404)
    for name in ("..%2f..%2fetc", "UPPER", "a" * 64, "a.b"):
        assert anna.get(f"/v1/vocabularies/{name}").status_code in (404, 422)
    assert anna.get("/page/..%2f..%2foptions.py").status_code == 404
    assert is_problem(anna.get("/v1/search"), 422)
    assert is_problem(anna.get("/v1/search", params={"q": "cat", "k": 10**9}), 422)


# --- what operators see -------------------------------------------------------------------------------------


def test_prometheus_has_the_figures_and_segmenters_beyond_their_bytes_are_gone(
    anna: httpx.Client, animals: str
) -> None:
    for name in (animals, "street", "lane", "rail", "street"):
        assert anna.post("/v1/segment", params={"vocabulary": name}, content=PHOTO).status_code == 200
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = (
        "reco_requests",
        "reco_labelled_images",
        "reco_batch_images",
        "reco_stage_ms",
        "reco_retrieval_ms",
    )
    deadline = time.monotonic() + 60
    while True:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        # Room for two: rail drove out street, which was used first, and street drove out lane.
        loaded = dict(re.findall(r'registered_multiplexed_model_id{.*model_id="(\w+)".*} ([01])', text))
        there = all(name in text for name in wanted) and 'vocabulary="animals"' in text
        calibrated = re.findall(r'reco_stage_ms_count{.*stage="calibrate".*} (.*)', text)
        if there and loaded == {"street": "1", "lane": "0", "rail": "1"}:
            break
        assert time.monotonic() < deadline, (loaded, [name for name in wanted if name not in text])
        time.sleep(1)
    assert sum(map(float, calibrated)) == 3  # the 20 images once, in parts of 8, for all vocabularies
    lines = [line for line in text.splitlines() if "reco_requests" in line and "/v1/segment" in line]
    assert any('code="200"' in line for line in lines)


# --- losses and ends; the last tests, which leave the server stopped -----------------------------------------


def test_a_stop_finishes_what_was_begun_and_a_start_brings_all_back(
    server: Server, anna: httpx.Client, animals: str
) -> None:
    before = labels_of(anna.post("/v1/segment", params={"vocabulary": animals}, content=PHOTO).json())
    sent = threading.Semaphore(0)

    def trace(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.release()

    def ask(_: int) -> int:
        with server.client() as own:
            own.headers = anna.headers
            query = {"vocabulary": animals, "refine": "crf"}
            extensions = {"trace": trace}
            return own.post("/v1/segment", params=query, content=PHOTO, extensions=extensions).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = pool.map(ask, range(8))
        for _ in range(8):
            assert sent.acquire(timeout=60)
        time.sleep(0.2)  # from the socket into the server
        assert server.stop() == 0, server.log
        assert set(codes) <= {200, 503}  # every request is answered
    assert "Traceback" not in server.log
    server.start()
    listed = anna.get("/v1/vocabularies").json()["vocabularies"]
    assert {each["name"]: each["status"] for each in listed}[animals] == "ready"
    after = anna.post("/v1/segment", params={"vocabulary": animals}, content=PHOTO).json()
    assert np.array_equal(labels_of(after), before)
    assert json.loads(json.dumps(after))["vocabulary"] == animals
