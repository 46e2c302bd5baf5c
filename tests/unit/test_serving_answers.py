"""Label maps as clients get them."""

import io
import time

import numpy as np
import pytest
from images import encoded, heic, photograph, png_header_only, png_of_zeros
from PIL import Image
from pycocotools import mask as coco_mask

from reco_ray.config import SegmentSettings
from reco_ray.models.image import ImageTransform
from reco_ray.serving.answers import InputSpec, Legend, as_jpeg, as_json, as_png, choose_type, decode
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.contract import BatchSegmentation
from reco_ray.serving.problems import Problem
from reco_ray.serving.segment_task import LabelledImage
from reco_ray.vocabulary import parse_concepts

WANTED = InputSpec("test", ImageTransform(224, (0.5,) * 3, (0.5,) * 3), 32, 64)


def bank(text: str) -> BankRef:
    vocabulary = parse_concepts(text)
    ids = tuple(f"{number:016x}" for number in range(len(vocabulary.concepts)))
    return BankRef("key", vocabulary, ids, "")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/JPEG", "image/jpeg"),
        ("image/*", "image/png"),
        ("image/webp, image/*;q=0.8, application/json;q=0.5", "image/png"),
        ("text/html, application/json;q=0.1, */*;q=0.05", "application/json"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("application/json;q=nonsense, image/jpeg", "image/jpeg"),
    ],
)
def test_the_type_of_an_answer_is_what_the_client_likes_best(accept: str, chosen: str) -> None:
    assert choose_type(accept) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/webp", "application/json;q=0", "nonsense"])
def test_a_type_that_is_not_there_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        choose_type(accept)
    assert caught.value.status == 406


def test_json_says_what_is_where() -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 2:] = 2
    legend = Legend(bank("cat, dog, cow"), SegmentSettings())
    labelled = LabelledImage(labels, [(0, 8, 0.25), (2, 16, 0.5)])
    answer = as_json(
        labelled, legend, request_id="id", model="model", vocabulary="animals", started=time.perf_counter()
    )
    found = answer.model_dump()
    assert [each["name"] for each in found["legend"]] == ["cat", "dog", "cow"]
    assert [each["name"] for each in found["concepts"]] == ["cow", "cat"]
    assert (found["width"], found["height"], found["background"]) == (6, 4, False)
    cow = found["concepts"][0]
    assert (cow["label"], cow["id"], cow["area"], cow["share"], cow["score"]) == (
        2,
        f"{2:016x}",
        16,
        2 / 3,
        0.5,
    )
    decoded = coco_mask.decode({"size": cow["rle"]["size"], "counts": cow["rle"]["counts"].encode()})
    assert np.array_equal(decoded, labels == 2)
    assert cow["colour"] == found["legend"][2]["colour"]
    assert list(found)[:3] == ["request_id", "model", "vocabulary"]
    assert (found["request_id"], found["model"], found["vocabulary"]) == ("id", "model", "animals")
    of_batch = BatchSegmentation(id="0", **dict(answer))
    assert list(of_batch.model_dump().items()) == [("id", "0"), *found.items()]


def test_a_background_is_label_0_and_no_concept() -> None:
    legend = Legend(bank("cat, dog"), SegmentSettings(background=True))
    assert (legend.names, legend.ids) == (["background", "cat", "dog"], [None, f"{0:016x}", f"{1:016x}"])
    assert legend.entry(0).colour == "#000000"
    assert Legend(bank("cat"), SegmentSettings()).background  # one concept alone would cover everything


def test_png_and_jpeg_show_the_same_labels() -> None:
    labels = np.repeat(np.arange(2, dtype=np.uint8), 50)[None].repeat(60, 0)
    labelled = LabelledImage(labels, [(0, 3000, 0.5), (1, 3000, 0.5)])
    legend = Legend(bank("cat, dog"), SegmentSettings())
    with Image.open(io.BytesIO(as_png(labelled, legend))) as png:
        assert png.mode == "P"
        assert np.array_equal(np.asarray(png), labels)
        assert png.getpalette()[:6] == legend.colours.reshape(-1).tolist()
    with Image.open(io.BytesIO(as_jpeg(labelled, legend, np.zeros((60, 100, 3), np.uint8)))) as jpeg:
        assert jpeg.size[0] == 100
        assert jpeg.size[1] > 60  # the legend


def test_an_upload_is_shrunk_for_the_models_and_answered_at_its_own_size() -> None:
    picture = decode(encoded(photograph(0, 96)), WANTED, 10**6, None, with_photo=True)
    assert picture.pixels.shape[0] % 32 == picture.pixels.shape[1] % 32 == 0
    assert max(picture.size) == 96
    assert picture.photo is not None
    assert picture.photo.shape[:2] == picture.size
    assert max(decode(encoded(photograph(0, 96)), WANTED, 10**6, 48, with_photo=False).size) == 48


def test_uploads_may_be_heic_and_lack_their_last_bytes() -> None:
    for data in (heic(photograph(0, 96)), encoded(photograph(0, 96))[:-4]):
        picture = decode(data, WANTED, 10**6, None, with_photo=True)
        assert picture.size == picture.photo.shape[:2] == photograph(0, 96).size[::-1]


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"%PDF-1.4", png_header_only(64, 64), png_of_zeros(4000, 4000)]
)
def test_what_is_no_usable_image_is_422(data: bytes) -> None:
    with pytest.raises(Problem) as caught:
        decode(data, WANTED, 10**6, None, with_photo=False)
    assert caught.value.status == 422
