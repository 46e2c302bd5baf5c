"""Images that callers have in memory: every usual shape and dtype is the same photograph, all others are one line."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encoded, photograph
from PIL import Image
from training_data import write_segmenter

from reco_ray.client import Client
from reco_ray.corpus.arrays import picture_of
from reco_ray.errors import RecoError
from reco_ray.training import Segmenter

PHOTO = photograph(0, 96)
RGB = np.asarray(PHOTO)
GREY = np.asarray(PHOTO.convert("L"))
HALF = np.full(GREY.shape, 128, np.uint8)
OPAQUE = np.full(GREY.shape, 255, np.uint8)
OVER_WHITE = np.asarray(Image.composite(PHOTO, Image.new("RGB", PHOTO.size, "white"), Image.fromarray(HALF)))
CHW = np.ascontiguousarray(RGB.transpose(2, 0, 1))


class Lazy:
    """What other libraries' arrays are to NumPy."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return RGB


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (CHW, RGB),
        (RGB[None], RGB),
        (RGB.tolist(), RGB),
        (Lazy(), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB.astype(np.float16) / np.float16(255), RGB),
        (RGB / 255 * 1.004, np.minimum(RGB * 1.004, 255)),  # a little beyond, as after resizing
        (RGB.astype(np.int64), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.uint16) * 16, RGB),  # 12 bits
        (torch.from_numpy(CHW), RGB),
        (torch.from_numpy(RGB.copy()), RGB),
        (torch.from_numpy(CHW)[None] / 255, RGB),
        ((torch.from_numpy(CHW) / 255).requires_grad_(), RGB),
        (torch.from_numpy(CHW).to(torch.bfloat16), RGB),
        (GREY, np.stack([GREY] * 3, -1)),
        (GREY[..., None], np.stack([GREY] * 3, -1)),
        (GREY[None], np.stack([GREY] * 3, -1)),
        (torch.from_numpy(GREY.copy()), np.stack([GREY] * 3, -1)),
        (GREY > 127, np.stack([(GREY > 127) * 255] * 3, -1)),
        (np.dstack([RGB, OPAQUE]), RGB),
        (np.dstack([RGB, HALF]), OVER_WHITE),
        (np.dstack([GREY, OPAQUE]), np.stack([GREY] * 3, -1)),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (RGB[..., ::-1], RGB[..., ::-1]),
        (np.asfortranarray(RGB), RGB),
        (np.zeros((7, 5)), np.zeros((7, 5, 3))),
        (RGB[:3, :3], RGB[:3, :3]),  # the last axis of an array holds the channels
        (torch.from_numpy(CHW[:, :3, :3].copy()), RGB[:3, :3]),  # the first of a tensor
    ],
)
def test_an_array_is_the_picture(image: Any, expected: np.ndarray) -> None:
    found = picture_of(image)
    assert found.mode == "RGB"
    difference = np.abs(np.asarray(found).astype(int) - expected)
    assert difference.shape == expected.shape
    assert difference.max() <= 1.01


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_pictures_of_every_mode_are_taken(mode: str) -> None:
    source = PHOTO.convert("L") if mode in ("I;16", "PA") else PHOTO
    picture = source.convert("LA").convert("PA") if mode == "PA" else source.convert(mode)
    found = picture_of(picture)
    assert (found.mode, found.size) == ("RGB", PHOTO.size)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((5, 7, 9), np.uint8), r"shape \(5, 7, 9\), dtype uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\), dtype uint8.*one image at a time"),
        (np.zeros(9), r"shape \(9,\), dtype float64"),
        (np.zeros((0, 7, 3)), r"shape \(0, 7, 3\)"),
        (5, r"shape \(\)"),
        (None, r"dtype object"),
        (np.full((4, 4, 3), -1.5), "values from -1.5 to -1.5.*normalisation"),
        (np.full((4, 4, 3), 300.0), "values from 300 to 300"),
        (np.full((4, 4), 70_000), "values from 70000 to 70000"),
        (np.full((4, 4), np.nan), "no finite numbers"),
        (np.zeros((4, 4), np.complex64), "dtype complex64"),
        (np.array([["a", "b"], ["c", "d"]]), "dtype <U1"),
        ([[1, 2], [3]], "no array can be made of a list"),
        (torch.zeros(2, 8, 8, 5), r"shape \(2, 8, 8, 5\)"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
    ],
)
def test_what_is_no_picture_is_one_line_with_its_shape_and_dtype(image: Any, said: str) -> None:
    with pytest.raises(RecoError, match=said) as error:
        picture_of(image)
    assert "\n" not in str(error.value)


def test_a_segmenter_takes_what_a_user_has(tmp_path: Path) -> None:
    segmenter = Segmenter.from_artifact(write_segmenter(tmp_path / "s", 3))
    expected = segmenter.predict(PHOTO)
    data = encoded(PHOTO, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    forms: list[Any] = [RGB, RGB / 255, torch.from_numpy(CHW), RGB.tolist(), data, bytearray(data)]
    for image in (*forms, io.BytesIO(data), str(tmp_path / "a.png"), tmp_path / "a.png"):
        labels, scores = segmenter.predict(image)
        assert (labels.dtype, scores.dtype) == (np.int64, np.float32)
        assert np.mean(labels == expected[0]) > 0.999
        assert np.abs(scores - expected[1]).max() < 1e-2
    assert segmenter.predict(GREY)[0].shape == GREY.shape
    for wrong, said in (
        (tmp_path / "none.png", r"none\.png: the image cannot be read: No such file"),
        (b"text", "image: not an image"),
        (b"", "image: empty"),
        (np.zeros((5, 2, 7)), r"shape \(5, 2, 7\), dtype float64"),
    ):
        with pytest.raises(RecoError, match=said):
            segmenter.predict(wrong)


def test_the_client_says_what_is_wrong_before_it_sends() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(RecoError, match=r"shape \(5, 2, 7\), dtype float64"):
            client.segment(np.zeros((5, 2, 7)), concepts=["cat"])
        with pytest.raises(RecoError, match="give a list"):
            client.build("pets", "cat, dog")
        with pytest.raises(RecoError, match="name of a vocabulary is empty"):
            client.vocabulary("")
