"""Any file -> an upright RGB picture, or a DecodeError; never another exception."""

import io
import random

import numpy as np
import pytest
from images import encoded, heic, photograph, png_header_only, png_of_samples, png_of_zeros
from PIL import Image, ImageCms, ImageDraw, TiffImagePlugin

from reco_ray.corpus import heic as heic_format
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


def shown(data: bytes) -> np.ndarray:
    """What an image is decoded to, uint8 (H, W, 3)."""
    image, *_ = decode_image(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image)


def ramp(largest: float, dtype: type = np.uint16) -> np.ndarray:
    """(64, 64), from 0 to `largest`."""
    return np.linspace(0, largest, 64 * 64).reshape(64, 64).astype(dtype)


def assert_shows_a_ramp(data: bytes) -> None:
    values = shown(data).astype(float)
    assert np.abs(values - ramp(255, float)[..., None]).max() <= 3


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_fewer_bits_in_a_container_of_16_are_not_dark(kind, bits):
    assert_shows_a_ramp(encoded(Image.fromarray(ramp(2**bits - 1)), kind))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_scaled_like_grey(channels, bits):
    colours = [ramp(2**bits - 1)] * (1 if channels == 2 else 3)
    opaque = [np.full((64, 64), 65_535, np.uint16)] if channels in (2, 4) else []
    assert_shows_a_ramp(png_of_samples(np.stack([*colours, *opaque], axis=2)))


def test_the_white_that_a_file_states_wins():
    """A dark image stays dark if the file says how bright it could be."""
    dark = Image.fromarray(ramp(700))
    assert shown(encoded(dark, "TIFF")).max() == pytest.approx(255 * 700 / 1023, abs=1)
    for stated in (4095, 2000):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[281] = stated
        assert shown(encoded(dark, "TIFF", tiffinfo=tags)).max() == pytest.approx(255 * 700 / stated, abs=1)
    png = png_of_samples(ramp(700)[..., None], significant_bits=12)
    assert shown(png).max() == pytest.approx(255 * 700 / 4095, abs=1)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 65_535  # what most programs write, whatever the data are
    assert_shows_a_ramp(encoded(Image.fromarray(ramp(4095)), "TIFF", tiffinfo=tags))


def test_white_is_zero_is_no_negative():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    data = encoded(Image.fromarray(65_535 - ramp(65_535)), "TIFF", tiffinfo=tags)
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    assert_shows_a_ramp(data)


@pytest.mark.parametrize("largest", [255, 4095, 65_535, 100_000, 2**31 - 1])
def test_integers_of_32_bits_are_scaled(largest):
    assert_shows_a_ramp(encoded(Image.fromarray(ramp(largest, np.int32)), "TIFF"))


def test_signed_integers_are_spread_from_their_least_to_their_largest():
    assert_shows_a_ramp(encoded(Image.fromarray(ramp(4000, np.int32) - 1000), "TIFF"))


@pytest.mark.parametrize("largest", [1e-4, 0.5, 1, 7, 200, 255, 3000, 1e8])
@pytest.mark.parametrize("strange", [None, np.nan, np.inf, -np.inf, -3.4e38])
def test_floats_are_scaled_whatever_their_range(largest, strange):
    values = ramp(largest, np.float32)
    if strange is not None:
        values[:2] = strange
    image = shown(encoded(Image.fromarray(values), "TIFF")).astype(float)
    expected = {0.5: 128, 200: 200}.get(largest, 255)
    assert image.max() == pytest.approx(expected, abs=1)
    assert np.abs(image[2:, :, 0] - ramp(expected, float)[2:]).max() <= (4 if strange is None else 10)
    if strange is not None:
        assert image[:2].max() == 0


def test_floats_around_zero_and_one_bright_pixel_are_not_black():
    values = ramp(3, np.float32) - 1.5
    values[0, 0] = 1e6
    assert 100 < shown(encoded(Image.fromarray(values), "TIFF")).mean() < 155


def test_an_image_of_nothing_but_nan_is_refused():
    data = encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")
    with pytest.raises(DecodeError, match=r"^no pixels: every value is NaN or infinite$"):
        decode_image(data, max_pixels=LIMIT)


def test_lab_and_ycbcr_become_rgb():
    rgb = photograph(3)
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    for image in (lab, rgb.convert("YCbCr"), rgb.convert("CMYK")):
        assert np.abs(shown(encoded(image, "TIFF")).astype(float) - np.asarray(rgb)).mean() < 2


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


# --- files that break off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_torn_files_are_refused(kind, share):
    data = encoded(photograph(0), kind)
    with pytest.raises(DecodeError, match=r"damaged|not an image"):
        decode_image(data[: int(len(data) * share)], max_pixels=LIMIT)


@pytest.mark.parametrize("short_side", [None, 32])
@pytest.mark.parametrize("lost", [1, 2, 4, 20, 100])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0, "restart_marker_rows": 1}),
        ("MPO", {"save_all": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
def test_a_few_missing_bytes_cost_a_few_pixels(kind, options, lost, short_side):
    for number in range(2):
        photo = photograph(number, 256)
        data = encoded(photo, kind, **options)
        whole, *_ = decode_image(data, max_pixels=LIMIT, short_side=short_side)
        image, width, height = decode_image(data[:-lost], max_pixels=LIMIT, short_side=short_side)
        assert (width, height) == photo.size
        assert image.size == whole.size
        differences = np.abs(np.asarray(image).astype(int) - np.asarray(whole)).max(axis=2)
        assert (differences > 30).mean() < 0.05


def test_a_download_whose_reserved_space_was_not_filled():
    data = encoded(photograph(0, 256))
    for share, usable in ((0.98, True), (0.5, False)):
        kept = int(len(data) * share)
        file = data[:kept] + bytes(len(data) - kept)
        if usable:
            decode_image(file, max_pixels=LIMIT)
        else:
            with pytest.raises(DecodeError, match="damaged"):
                decode_image(file, max_pixels=LIMIT)


def test_progressive_jpegs_need_their_last_scan():
    data = encoded(photograph(0, 256), progressive=True)
    last = data.rindex(b"\xff\xda")
    decode_image(data[: last + 20], max_pixels=LIMIT)
    with pytest.raises(DecodeError, match="damaged"):
        decode_image(data[: last - 4], max_pixels=LIMIT)


def test_truncated_files_keep_their_orientation_and_black_pixels():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = quadrants(128, 64).transpose(STORED_AS[6])
    for kind in ("JPEG", "PNG"):
        data = encoded(stored, kind, exif=exif)
        image, *size = decode_image(data[:-15], max_pixels=LIMIT)
        assert size == [128, 64]
        assert corners(image) == UPRIGHT
    night = Image.fromarray(np.zeros((200, 200, 3), np.uint8))
    image, *_ = decode_image(encoded(night, "BMP")[:-4], max_pixels=LIMIT)
    assert np.asarray(image).max() == 0


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


# --- damaged EXIF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_sound_pixels_with_damaged_exif_are_used(kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132], exif[0x011A], exif[0x0128] = 1, "Maker", "2020:01:01", 72.0, 2
    exif.get_ifd(0x8769).update({0x9000: b"0230", 0xA002: 96, 0x829A: (1, 50)})
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0)})
    rng = random.Random(0)
    block = exif.tobytes()
    for number in range(300):
        photo = photograph(number % 28, 40)
        # The block is one of the file's segments: its length stays, all that it holds may change.
        damaged = bytearray(block)
        for _ in range(rng.randint(1, 12)):
            damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
        image, width, height = decode_image(encoded(photo, kind, exif=bytes(damaged)), max_pixels=LIMIT)
        assert {width, height} == set(photo.size)
        assert image.size == (width, height)


# --- HEIC ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", STORED_AS)
def test_heic_is_read_and_its_orientation_applied_once(orientation):
    transform = STORED_AS[orientation]
    stored = quadrants(128, 64) if transform is None else quadrants(128, 64).transpose(transform)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for short_side in (None, 16):
        image, width, height = decode_image(heic(stored, exif=exif), max_pixels=LIMIT, short_side=short_side)
        assert (width, height) == (128, 64) == image.size
        assert corners(image) == UPRIGHT


def test_heic_is_the_same_photograph_and_obeys_the_limit():
    photo = photograph(0, 128)
    image, *_ = decode_image(heic(photo), max_pixels=LIMIT)
    assert np.abs(np.asarray(image).astype(float) - np.asarray(photo)).mean() < 6
    with pytest.raises(DecodeError, match="too large"):
        decode_image(heic(photo), max_pixels=1000)
    see_through = photo.copy()
    see_through.putalpha(0)
    assert np.asarray(decode_image(heic(see_through), max_pixels=LIMIT)[0]).min() > 250


def test_damaged_heic_never_raises_anything_else():
    original = heic(photograph(1, 64))
    rng = random.Random(0)
    for number in range(200):
        data = bytearray(original)
        if number % 2:
            del data[rng.randrange(20, len(data)) :]
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            image, *_ = decode_image(bytes(data), max_pixels=1_000_000)
            assert image.mode == "RGB"
        except DecodeError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_heic_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr(heic_format, "_PACKAGES", ())
    heic_format.register.cache_clear()
    with pytest.raises(DecodeError, match=r'^HEIC needs the extra heic: pip install "reco-ray\[heic\]"$'):
        decode_image(heic(photograph(0)), max_pixels=LIMIT)
    heic_format.register.cache_clear()


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
