"""Draws masks over images, with a legend."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.55
_LINE = 22  # height of a line of the legend in pixels
_PADDING = 8


def overlay(pixels: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Blends the colours of labels over an image and draws borders between them.

    Args:
        pixels: uint8 (H, W, 3).
        labels: int (H, W).
        colours: uint8 (m, 3).

    Returns:
        uint8 (H, W, 3).
    """
    mixed = (1 - OPACITY) * pixels + OPACITY * colours[labels]
    border = np.zeros(labels.shape, bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    mixed[border] = 255
    return mixed.round().astype(np.uint8)


def highlight(pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Tints one mask, darkens everything else, and draws the border between them.

    Args:
        pixels: uint8 (H, W, 3).
        mask: bool (H, W).
        colour: uint8 (3,).

    Returns:
        uint8 (H, W, 3).
    """
    tinted = 0.65 * pixels + 0.35 * colour
    shown = np.where(mask[..., None], tinted, 0.35 * pixels)
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    shown[border] = 255
    return shown.round().astype(np.uint8)


def with_legend(picture: np.ndarray, entries: list[tuple[str, tuple[int, int, int], float]]) -> bytes:
    """Adds a legend below an image.

    Args:
        picture: uint8 (H, W, 3).
        entries: (name, RGB colour, share of the image in [0, 1]), in order.

    Returns:
        JPEG bytes.
    """
    font = ImageFont.load_default(size=13)
    height, width = picture.shape[:2]
    texts = [f"{name} {share:.0%}" for name, _, share in entries]
    cells = [int(font.getlength(text)) + 34 for text in texts]
    lines: list[list[int]] = [[]]
    for number, cell in enumerate(cells):
        if lines[-1] and sum(cells[n] for n in lines[-1]) + cell > width - 2 * _PADDING:
            lines.append([])
        lines[-1].append(number)
    sheet = Image.new("RGB", (width, height + len(lines) * _LINE + 2 * _PADDING), "white")
    sheet.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        x, y = _PADDING, height + _PADDING + row * _LINE
        for number in line:
            draw.rectangle((x, y + 3, x + 14, y + 17), fill=entries[number][1], outline="#444")
            draw.text((x + 20, y + 2), texts[number], fill="#222", font=font)
            x += cells[number]
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
