"""Protocols: what of an image is seen, what of its truth is counted."""

import numpy as np
import pytest
from PIL import Image

from reco_ray.config import load_settings
from reco_ray.errors import RecoError
from reco_ray.evaluation.evaluation_protocol import PROTOCOL_NAMES, choose_protocol

SEGMENT = load_settings("mini", overrides=["segment.image_size=96"]).segment


def test_short_sides() -> None:
    sides = {name: choose_protocol(name, None, SEGMENT).short_side for name in PROTOCOL_NAMES}
    assert sides == {"whole": 96, "reco": 320, "mmseg": 448}
    assert {choose_protocol(name, 64, SEGMENT).short_side for name in PROTOCOL_NAMES} == {64}


def test_wrong_choices_are_named() -> None:
    with pytest.raises(RecoError, match="unknown protocol 'half': choose one of whole, reco, mmseg"):
        choose_protocol("half", None, SEGMENT)
    with pytest.raises(RecoError, match="short side 8"):
        choose_protocol("whole", 8, SEGMENT)


@pytest.mark.parametrize("name", ["whole", "mmseg"])
def test_whole_images_stay_as_they_are(name: str) -> None:
    protocol = choose_protocol(name, None, SEGMENT)
    truth = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert protocol.cut_truth(truth) is truth
    image = Image.fromarray(truth)
    assert protocol.cut_image(image) is image


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (37, 20), (20, 20), (81, 40)])
def test_the_centre_crop_takes_the_same_pixels_of_image_and_truth(width: int, height: int) -> None:
    protocol = choose_protocol("reco", 40, SEGMENT)
    truth = np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)
    image = Image.merge("RGB", [Image.fromarray(truth)] * 3)
    seen, counted = np.asarray(protocol.cut_image(image)), protocol.cut_truth(truth)
    assert counted.shape == (40, 40)
    np.testing.assert_array_equal(seen[..., 1], counted)


def test_the_centre_crop_by_hand() -> None:
    protocol = choose_protocol("reco", 32, SEGMENT)
    truth = np.repeat(np.repeat(np.arange(8, dtype=np.uint8)[None], 4, axis=0), 4, axis=1)  # (4, 32)
    # 4 x 32 becomes 32 x 256, every pixel an 8 x 8 block; columns 112 to 144 of that are pixels 14 to 18
    np.testing.assert_array_equal(
        np.unique(protocol.cut_truth(truth), return_counts=True), [[3, 4], [512, 512]]
    )
