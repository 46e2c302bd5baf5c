"""Draws the README's picture from a finished demo: `make demo && .venv/bin/python docs/picture.py`.

Shows only photographs that may be passed on: scikit-image's chelsea, coffee and rocket (CC0), astronaut (public
domain).
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file

from reco_ray.cosegmentation.contact_sheet import heat_overlay

CORPUS = ("skimage-chelsea.png", "skimage-coffee.png", "skimage-rocket.jpg", "skimage-astronaut.png")
CONCEPTS = {"cat": "skimage-chelsea.png", "cup": "skimage-coffee.png"}
INK, SOFT, PAGE = "#1b1f24", "#5b6470", "#f5f6f8"
TILE, GAP, TOP = (216, 144), 14, 92


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=Path("reco-demo"), help="output of `reco-ray demo`")
    parser.add_argument("--out", type=Path, default=Path("docs/picture.jpg"))
    options = parser.parse_args()
    exemplars = pq.read_table(options.demo / "references" / "exemplars.parquet").to_pylist()
    supports = load_file(options.demo / "references" / "supports.safetensors")

    height = TOP + len(CONCEPTS) * (TILE[1] + GAP) + 6
    canvas = Image.new("RGB", (4 * (TILE[0] + GAP) + TILE[0] + GAP, height), PAGE)
    headings = (
        (0, "words + photographs without labels", "cat, cup, ..."),
        (2, "retrieve, co-segment", "o is an exemplar's seed"),
        (3, "reference", "the seeds' mean"),
        (4, "masks", "on any image"),
    )
    for column, title, note in headings:
        _text(canvas, (_left(column), 24), title, 19, INK)
        _text(canvas, (_left(column), 52), note, 14, SOFT)
    for number, name in enumerate(CORPUS):
        _paste(canvas, Image.open(options.demo / "photographs" / name), number % 2, number // 2)
    for row, (concept, target) in enumerate(CONCEPTS.items()):
        best = next(e for e in exemplars if e["concept"] == concept and Path(e["uri"]).name in CORPUS)
        slug = next(name for name in supports if name.endswith(f"-{concept}"))
        support = supports[slug][best["rank"]].astype(np.float32)
        low = np.quantile(support, 0.4)
        photo = _fitted(Image.open(best["uri"]))
        heat = heat_overlay(photo, (support - low) / (support.max() - low))
        x = (best["seed_col"] + 0.5) / support.shape[1] * heat.width
        y = (best["seed_row"] + 0.5) / support.shape[0] * heat.height
        ImageDraw.Draw(heat).ellipse((x - 9, y - 9, x + 9, y + 9), outline="white", width=3)
        _paste(canvas, heat, 2, row)
        _arrow(canvas, row, concept)
        overlay = Image.open(options.demo / "masks" / "overlays" / f"{target}.jpg")
        width, full = Image.open(options.demo / "masks" / "masks" / f"{target}.png").size
        _paste(canvas, overlay.crop((0, 0, overlay.width, round(overlay.width * full / width))), 4, row)
    canvas.save(options.out, quality=88)


def _left(column: int) -> int:
    # The fourth column holds arrows only and is narrower.
    return GAP + column * (TILE[0] + GAP) + (40 if column >= 2 else 0) - (40 if column == 4 else 0)


def _fitted(image: Image.Image) -> Image.Image:
    """The centre of an image, at the tile's aspect and size."""
    image = image.convert("RGB")
    scale = max(TILE[0] / image.width, TILE[1] / image.height)
    width, height = min(image.width, TILE[0] / scale), min(image.height, TILE[1] / scale)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize(TILE, Image.Resampling.LANCZOS, box=box)


def _paste(canvas: Image.Image, image: Image.Image, column: int, row: int) -> None:
    canvas.paste(_fitted(image), (_left(column), TOP + row * (TILE[1] + GAP)))


def _arrow(canvas: Image.Image, row: int, concept: str) -> None:
    draw = ImageDraw.Draw(canvas)
    x, y = _left(3), TOP + row * (TILE[1] + GAP) + TILE[1] // 2
    _text(canvas, (x + 8, y - 34), concept, 20, INK)
    draw.line((x, y, x + 140, y), fill=SOFT, width=3)
    draw.polygon([(x + 140, y - 8), (x + 156, y), (x + 140, y + 8)], fill=SOFT)


def _text(canvas: Image.Image, place: tuple[int, int], text: str, size: int, colour: str) -> None:
    ImageDraw.Draw(canvas).text(place, text, fill=colour, font=ImageFont.load_default(size=size))


if __name__ == "__main__":
    main()
