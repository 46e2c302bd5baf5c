"""Image of held-out frames with their pseudo-labels and predictions."""

import io

import numpy as np
from PIL import Image

from reco_ray.segmentation.overlay import overlay
from reco_ray.segmentation.palette import palette
from reco_ray.training.pseudo_labels import IGNORE

HEIGHT = 180  # of a row, in pixels


def examples_sheet(
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]], labels: int, background: bool
) -> bytes:
    """Draws rows of frame, pseudo-label and prediction; returns JPEG bytes.

    Args:
        shown: frames uint8 (H, W, 3), pseudo-labels (H, W) and predictions (H, W).
        labels: number of labels.
        background: whether label 0 is the background.
    """
    colours = np.full((256, 3), 255, np.uint8)  # ignored pixels are white
    colours[:labels] = palette(labels, background=background)[:IGNORE]
    rows = []
    for frame, label, predicted in shown:
        cells = [frame, overlay(frame, label, colours), overlay(frame, predicted, colours)]
        width = round(frame.shape[1] * HEIGHT / frame.shape[0])
        rows.append([Image.fromarray(cell).resize((width, HEIGHT)) for cell in cells])
    sheet = Image.new(
        "RGB", (max(3 * row[0].width for row in rows) + 8, (HEIGHT + 4) * len(rows) - 4), "white"
    )
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * (cell.width + 4), number * (HEIGHT + 4)))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
