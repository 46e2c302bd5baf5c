"""Contact sheet of a reference: each exemplar beside its support map, with the seed marked."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from reco_ray.corpus.regions import Region

TILE = 160  # side in pixels
GAP = 6
PAIRS_PER_ROW = 4


def contact_sheet(
    pixels: np.ndarray,
    aspects: np.ndarray,
    support: np.ndarray,
    seeds: np.ndarray,
    regions: Sequence[Region | None] | None = None,
) -> bytes:
    """Draws the exemplars of one concept in order of rank.

    Args:
        pixels: uint8 (n, H, W, 3), square.
        aspects: (n,), width / height of the original images, in which they are drawn.
        support: float (n, h, w).
        seeds: int (n, 2), row and column in the support map.
        regions: boxes in which the seeds had to lie, outlined on the photographs; None for none.

    Returns:
        JPEG bytes.
    """
    n = len(pixels)
    columns = min(n, PAIRS_PER_ROW)
    rows = -(-n // columns)
    sheet = Image.new("RGB", (columns * (2 * TILE + GAP) + GAP, rows * (TILE + GAP) + GAP), "white")
    for number in range(n):
        left, top, *shape = photo_place(number, n, aspects[number])
        photo = Image.fromarray(pixels[number]).resize((shape[0], shape[1]), Image.Resampling.LANCZOS)
        sheet.paste(_outlined(photo, (regions[number] if regions else None) or []), (left, top))
        # Each map is scaled by itself, above its 40 % quantile: maps show locations, and do not compare images.
        low, high = np.quantile(support[number], 0.4), support[number].max()
        heat = heat_overlay(photo, (support[number] - low) / (high - low + 1e-9))
        _mark_seed(heat, seeds[number], support.shape[1:])
        sheet.paste(heat, (left + TILE, top))
        _label(sheet, (left, top), str(number + 1))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def photo_place(number: int, count: int, aspect: float) -> tuple[int, int, int, int]:
    """Where on a sheet of `count` exemplars a photograph is: left, top, width and height in pixels.

    Args:
        number: of the exemplar, from 0.
        count: exemplars of the sheet.
        aspect: width / height of the original.
    """
    columns = min(count, PAIRS_PER_ROW)
    width, height = (max(1, min(TILE, round(side))) for side in (TILE * aspect, TILE / aspect))
    left = GAP + (number % columns) * (2 * TILE + GAP) + (TILE - width) // 2
    top = GAP + (number // columns) * (TILE + GAP) + (TILE - height) // 2
    return left, top, width, height


def heat_overlay(photo: Image.Image, heat: np.ndarray) -> Image.Image:
    """Blends a map (h, w) in [0, 1] over a photograph: dark where low, orange where high."""
    grey = np.asarray(photo.convert("L"), np.float32)[..., None] / 255
    smooth = Image.fromarray((heat.clip(0, 1) * 255).astype(np.uint8)).resize(
        photo.size, Image.Resampling.BICUBIC
    )
    strength = np.asarray(smooth, np.float32)[..., None] / 255
    colour = np.stack(
        [_ramp(strength, 0.0, 0.5), 0.85 * _ramp(strength, 0.35, 1.0), 0.35 * _ramp(strength, 0.85, 1.0)], -1
    )[..., 0, :]
    mixed = 0.5 * grey + 0.6 * colour
    return Image.fromarray((mixed.clip(0, 1) * 255).astype(np.uint8))


def _ramp(values: np.ndarray, start: float, end: float) -> np.ndarray:
    return ((values - start) / (end - start)).clip(0, 1)


def _mark_seed(image: Image.Image, seed: np.ndarray, shape: tuple[int, ...]) -> None:
    x = (seed[1] + 0.5) / shape[1] * image.width
    y = (seed[0] + 0.5) / shape[0] * image.height
    draw = ImageDraw.Draw(image)
    for radius, colour, width in ((8, "black", 4), (8, "white", 2)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)


def _outlined(photo: Image.Image, region: Region) -> Image.Image:
    """A copy of the photograph, with the boxes and points of a region outlined."""
    photo = photo.copy()
    draw = ImageDraw.Draw(photo)
    for box in region:
        left, right = (round(edge * (photo.width - 1)) for edge in (box[0], box[2]))
        top, bottom = (round(edge * (photo.height - 1)) for edge in (box[1], box[3]))
        if (left, top) == (right, bottom):  # a point
            left, top, right, bottom = left - 2, top - 2, right + 2, bottom + 2
        for colour, grow in (("black", 1), ("white", 0)):
            draw.rectangle((left - grow, top - grow, right + grow, bottom + grow), outline=colour)
    return photo


def _label(sheet: Image.Image, corner: tuple[int, int], text: str) -> None:
    draw = ImageDraw.Draw(sheet)
    left, top, right, bottom = draw.textbbox((corner[0] + 5, corner[1] + 3), text)
    draw.rectangle((left - 4, top - 2, right + 4, bottom + 3), fill="black")
    draw.text((corner[0] + 5, corner[1] + 3), text, fill="white")
