"""The masks artifact: pictures, regions and names."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from reco_ray.segmentation.masks import decode_png, encode_png, regions
from reco_ray.segmentation.overlay import overlay, with_legend
from reco_ray.segmentation.palette import palette


@pytest.mark.parametrize(("labels", "mode"), [(3, "P"), (256, "P"), (300, "I;16")])
def test_png_keeps_every_label(labels: int, mode: str) -> None:
    ids = np.arange(20 * 30).reshape(20, 30) % labels
    data = encode_png(ids, palette(labels))
    assert Image.open(io.BytesIO(data)).mode == mode
    np.testing.assert_array_equal(decode_png(data), ids)


def test_indexed_png_shows_the_palette() -> None:
    colours = palette(4)
    shown = np.asarray(Image.open(io.BytesIO(encode_png(np.array([[0, 3]]), colours))).convert("RGB"))
    np.testing.assert_array_equal(shown[0], colours[[0, 3]])


def test_palette_is_distinct_and_its_background_black() -> None:
    colours = palette(200, background=True)
    assert colours[0].tolist() == [0, 0, 0]
    assert len(np.unique(colours, axis=0)) == 200
    np.testing.assert_array_equal(palette(10), palette(20)[:10])


def test_regions_say_area_score_and_shape() -> None:
    labels = np.array([[0, 0, 2], [0, 2, 2]])
    scores = np.array([[0.1, 0.2, 0.5], [0.3, 0.7, 0.6]], np.float32)
    first, second = regions(labels, scores)
    assert (first["label"], first["area"], second["label"], second["area"]) == (0, 3, 2, 3)
    assert first["score"] == pytest.approx(0.2)
    assert second["score"] == pytest.approx(0.6)
    decoded = coco_mask.decode({"size": [2, 3], "counts": second["rle"]})
    np.testing.assert_array_equal(decoded, labels == 2)


def test_overlay_colours_regions_and_draws_their_border() -> None:
    pixels = np.full((4, 6, 3), 100, np.uint8)
    labels = np.repeat([[0, 0, 0, 1, 1, 1]], 4, axis=0)
    colours = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    shown = overlay(pixels, labels, colours)
    assert shown[0, 0].tolist() == [155, 45, 45]
    assert shown[0, 3].tolist() == [255, 255, 255]
    assert shown[0, 5].tolist() == [45, 45, 155]


def test_legend_stands_under_the_picture_and_wraps() -> None:
    picture = np.zeros((40, 160, 3), np.uint8)
    entries = [(f"concept {n}", (255, 0, 0), 0.1) for n in range(6)]
    sheet = Image.open(io.BytesIO(with_legend(picture, entries)))
    one = Image.open(io.BytesIO(with_legend(picture, entries[:1])))
    assert sheet.width == 160
    assert sheet.height > one.height > 40
