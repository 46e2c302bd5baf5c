"""A shard's files -> pixels or a reason, one row each, in order."""

import hashlib

import numpy as np
import pytest
from images import encoded, photograph, png_header_only, write_photographs
from PIL import Image

from reco_ray.corpus.load import LOADED_SCHEMA, decode_images, load_images, pixels_of
from reco_ray.models.efficientnet_lite import TRANSFORMS


def crop(image):
    return TRANSFORMS["efficientnet_lite0"].crop(image, 32)


def load(uris, **options):
    options = {"max_pixels": 1_000_000, "short_side": 32, **options}
    return load_images([str(uri) for uri in uris], options.pop("to_pixels", crop), **options)


def decode(files, drop_duplicates):
    images = [(str(file), file.read_bytes()) for file in files]
    return decode_images(images, crop, max_pixels=1_000_000, short_side=32, drop_duplicates=drop_duplicates)


def test_every_file_is_a_row_and_every_bad_one_has_a_reason(tmp_path):
    good = write_photographs(tmp_path, 3)
    bad = {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"text", "not an image that can be decoded"),
        "cut.jpg": (good[0].read_bytes()[:800], "damaged: "),
        "huge.png": (png_header_only(50_000, 50_000), "too large"),
        "missing.jpg": (None, "cannot be read: No such file or directory"),
    }
    for name, (data, _) in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    uris = [good[0], *(tmp_path / name for name in bad), good[1], good[2]]
    table = load(uris)
    assert table.schema == LOADED_SCHEMA
    assert table["uri"].to_pylist() == [str(uri) for uri in uris]
    reasons = table["reason"].to_pylist()
    assert [reasons[0], *reasons[-2:]] == [None] * 3
    for reason, (_, expected) in zip(reasons[1:-2], bad.values(), strict=True):
        assert reason.startswith(expected)
    assert [pixels is not None for pixels in table["pixels"].to_pylist()] == [r is None for r in reasons]


def test_pixels_ids_and_sizes_are_those_of_the_file(tmp_path):
    files = write_photographs(tmp_path, 2)
    table = load(files)
    for row, file in enumerate(files):
        with Image.open(file) as image:
            size = image.size
            expected = crop(image.convert("RGB"))
        assert (table["width"][row].as_py(), table["height"][row].as_py()) == size
        assert table["image_id"][row].as_py() == hashlib.sha256(file.read_bytes()).hexdigest()
        pixels = pixels_of(table, row)
        assert pixels.shape == (32, 32, 3)
        np.testing.assert_array_equal(pixels, expected)


def test_pixels_may_differ_in_shape(tmp_path):
    wide, tall = tmp_path / "wide.png", tmp_path / "tall.png"
    wide.write_bytes(encoded(photograph(0).resize((90, 30)), "PNG"))
    tall.write_bytes(encoded(photograph(0).resize((30, 90)), "PNG"))
    table = load([wide, tall], to_pixels=lambda image: TRANSFORMS["efficientnet_lite0"].fit(image, 32, 16))
    assert pixels_of(table, 0).shape == (32, 96, 3)
    assert pixels_of(table, 1).shape == (96, 32, 3)


def test_duplicates_are_decoded_once_and_point_at_the_first(tmp_path):
    first, second = write_photographs(tmp_path, 2)
    again = tmp_path / "again.jpg"
    again.write_bytes(first.read_bytes())
    table = decode([first, second, again, first], drop_duplicates=True)
    assert table["duplicate_of"].to_pylist() == [None, None, str(first), str(first)]
    assert table["pixels"].null_count == 2
    assert table["reason"].null_count == 4
    kept = decode([first, second, again, first], drop_duplicates=False)
    assert kept["pixels"].null_count == kept["duplicate_of"].null_count - 4 == 0
    assert load([first, again])["pixels"].null_count == 0


def test_copies_of_a_bad_file_are_all_rejected(tmp_path):
    names = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for name in names:
        name.write_bytes(b"no image")
    table = decode(names, drop_duplicates=True)
    assert table["reason"].to_pylist() == ["not an image that can be decoded"] * 2
    assert table["duplicate_of"].to_pylist() == [None, None]


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_extreme_shapes_are_cropped(tmp_path, size):
    file = tmp_path / "thin.png"
    file.write_bytes(encoded(Image.new("RGB", size, (10, 200, 30)), "PNG"))
    pixels = pixels_of(load([file]), 0)
    assert pixels.shape == (32, 32, 3)
    assert (pixels == (10, 200, 30)).all()


def test_further_versions_are_made_of_the_same_decoded_image(tmp_path):
    (file,) = write_photographs(tmp_path, 1)
    (tmp_path / "text.jpg").write_bytes(b"text")

    def large(image):
        return TRANSFORMS["efficientnet_lite0"].crop(image, 40)

    def wide(image):
        return np.asarray(image.resize((9, 7)))

    table = load([file, tmp_path / "text.jpg"], further=[large, wide])
    with Image.open(file) as image:
        picture = image.convert("RGB")
    for version, make in enumerate((crop, large, wide)):
        np.testing.assert_array_equal(pixels_of(table, 0, version), make(picture))
    assert table["further"][1].as_py() is None
    alone = load([file])
    assert alone.schema == LOADED_SCHEMA
