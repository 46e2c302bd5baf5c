"""Any file -> an upright RGB picture, or a DecodeError; never another exception."""

import random

import numpy as np
import pytest
from images import encoded, photograph, png_header_only, png_of_zeros
from PIL import Image, ImageDraw

from reco_ray.corpus.decode import DecodeError, decode_image

LIMIT = 100_000_000
Transpose = Image.Transpose

# What a camera stores for each EXIF orientation: the transform that undoes the one a viewer applies.
STORED_AS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def quadrants(width: int, height: int) -> Image.Image:
    """Four colours, so that every flip and rotation is told apart."""
    image = Image.new("RGB", (width, height), "red")
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), fill="lime")
    draw.rectangle((0, height // 2, width // 2 - 1, height), fill="blue")
    draw.rectangle((width // 2, height // 2, width, height), fill="white")
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours at the middle of the four quadrants, rounded to 0 or 255."""
    width, height = image.size
    places = [(width // 4, height // 4), (3 * width // 4, height // 4)]
    places += [(width // 4, 3 * height // 4), (3 * width // 4, 3 * height // 4)]
    return [tuple(255 * round(value / 255) for value in image.getpixel(place)) for place in places]


UPRIGHT = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48)])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_exif_orientation_is_applied_and_the_size_is_of_the_upright_original(orientation, size, kind):
    upright = quadrants(*size)
    transform = STORED_AS[orientation]
    stored = upright if transform is None else upright.transpose(transform)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, width, height = decode_image(encoded(stored, kind, exif=exif), max_pixels=LIMIT)
    assert (width, height) == size == image.size
    assert corners(image) == UPRIGHT


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(1600, 800), (801, 1601), (1601, 1602)])
def test_draft_mode_shrinks_but_keeps_geometry_and_reports_the_original_size(size, orientation):
    transform = STORED_AS[orientation]
    stored = quadrants(*size) if transform is None else quadrants(*size).transpose(transform)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, width, height = decode_image(encoded(stored, exif=exif), max_pixels=LIMIT, short_side=64)
    assert (width, height) == size
    assert corners(image) == UPRIGHT
    assert 128 <= min(image.size) < min(size)
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_draft_mode_shows_the_same_photograph():
    data = encoded(photograph(20, 512), quality=95)
    full, *_ = decode_image(data, max_pixels=LIMIT)
    draft, *_ = decode_image(data, max_pixels=LIMIT, short_side=32)
    assert draft.size < full.size
    small = [np.asarray(image.resize((32, 32)), dtype=float) for image in (full, draft)]
    assert np.abs(small[0] - small[1]).mean() < 4


def test_no_draft_below_twice_the_short_side():
    image, *_ = decode_image(encoded(photograph(0, 96)), max_pixels=LIMIT, short_side=64)
    assert image.size == photograph(0, 96).size


def test_cmyk_becomes_rgb():
    rgb = quadrants(64, 32)
    image, *_ = decode_image(encoded(rgb.convert("CMYK"), "JPEG", quality=95), max_pixels=LIMIT)
    assert image.mode == "RGB"
    assert corners(image) == UPRIGHT


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        image, *_ = decode_image(encoded(Image.fromarray(ramp), kind), max_pixels=LIMIT)
        assert image.mode == "RGB"
        values = np.asarray(image)[..., 0]
        assert np.abs(values.astype(float) - ramp / 257).max() <= 1
        assert len(np.unique(values)) == 256


def test_floats_are_scaled_to_their_largest_value():
    ramp = np.linspace(0, 7, 256, dtype=np.float32).reshape(16, 16)
    image, *_ = decode_image(encoded(Image.fromarray(ramp), "TIFF"), max_pixels=LIMIT)
    assert np.asarray(image).min() == 0
    assert np.asarray(image).max() == 255


def test_transparency_goes_over_white():
    alpha = Image.new("L", (64, 32), 255)
    ImageDraw.Draw(alpha).rectangle(
        (0, 0, 31, 15), fill=0
    )  # the red quadrant is transparent, its colour hidden
    over_white = [(255, 255, 255), *UPRIGHT[1:]]

    rgba = quadrants(64, 32)
    rgba.putalpha(alpha)
    assert corners(decode_image(encoded(rgba, "PNG"), max_pixels=LIMIT)[0]) == over_white

    grey = Image.new("L", (64, 32), 0)
    grey.putalpha(alpha)
    image = decode_image(encoded(grey, "PNG"), max_pixels=LIMIT)[0]
    assert corners(image) == [(255, 255, 255), (0, 0, 0), (0, 0, 0), (0, 0, 0)]

    palette = quadrants(64, 32).quantize(8)
    red = palette.getpixel((0, 0))
    image = decode_image(encoded(palette, "PNG", transparency=red), max_pixels=LIMIT)[0]
    assert image.mode == "RGB"
    assert corners(image) == over_white


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_other_modes_become_rgb(mode):
    image, width, height = decode_image(encoded(photograph(3).convert(mode), "PNG"), max_pixels=LIMIT)
    assert image.mode == "RGB"
    assert (width, height) == photograph(3).size == image.size
    assert np.asarray(image).std() > 10


def test_animated_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    image, *_ = decode_image(data, max_pixels=LIMIT)
    assert image.getpixel((5, 5)) == (255, 0, 0)


def test_the_many_picture_jpegs_of_phones_give_their_first_picture():
    data = encoded(quadrants(64, 32), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 32))])
    image, width, height = decode_image(data, max_pixels=LIMIT, short_side=8)
    assert (width, height) == (64, 32)
    assert corners(image) == UPRIGHT


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(kind):
    data = encoded(photograph(0), kind)
    with pytest.raises(DecodeError, match=r"damaged|not an image"):
        decode_image(data[: len(data) // 2], max_pixels=LIMIT)


def test_empty_file_and_text_are_refused():
    with pytest.raises(DecodeError, match=r"^empty file$"):
        decode_image(b"", max_pixels=LIMIT)
    with pytest.raises(DecodeError, match=r"^not an image that can be decoded$"):
        decode_image(b"I am a text file named photo.jpg\n" * 20, max_pixels=LIMIT)


def test_formats_that_run_programs_are_refused():
    """Pillow hands EPS to Ghostscript; nothing but photographs' formats may be opened."""
    eps = encoded(photograph(0), "EPS")
    with pytest.raises(DecodeError, match="not an image"):
        decode_image(eps, max_pixels=LIMIT)


def test_too_many_pixels_are_refused_by_the_header():
    with pytest.raises(DecodeError, match="too large"):
        decode_image(png_header_only(50_000, 50_000), max_pixels=LIMIT)
    with pytest.raises(DecodeError, match="too large"):
        decode_image(png_of_zeros(50_000, 50_000), max_pixels=LIMIT)
    with pytest.raises(DecodeError, match="too large: 100 x 100 pixels, the limit is 9999"):
        decode_image(encoded(Image.new("RGB", (100, 100))), max_pixels=9_999)
    assert decode_image(encoded(Image.new("RGB", (100, 100))), max_pixels=10_000)[1:] == (100, 100)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_are_decoded(size):
    image, *_ = decode_image(encoded(Image.new("RGB", size, "red"), "PNG"), max_pixels=LIMIT, short_side=224)
    assert image.size == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_bytes_never_raise_anything_else(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    original = encoded(photograph(1, 48), kind, **options)
    rng = random.Random(0)
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), rng.choice((64, 400, len(data)))))] = rng.randrange(256)
        reason = "fine"
        try:
            image, *_ = decode_image(bytes(data), max_pixels=1_000_000, short_side=16)
            assert image.mode == "RGB"
        except DecodeError as error:
            reason = str(error)
        assert reason.strip()
        assert len(reason.splitlines()) == 1
