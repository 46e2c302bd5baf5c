"""Searches an index by words or by an image, and draws a contact sheet of the hits."""

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageDraw

from reco_ray.config import Settings
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.corpus.read import read_image_bytes
from reco_ray.errors import MissingError, SettingError, UnreadableError, reason
from reco_ray.models import LanguageImageModel
from reco_ray.models.dense import load_retrieval_model
from reco_ray.models.prompts import encode_prompts

DEFAULT_K = 20
TILE = 200  # pixels a side
GAP = 8
CAPTION = 16
COLUMNS = 5
MOST_ON_SHEET = 100


def search_corpus(
    index_uri: str,
    settings: Settings,
    *,
    words: str | None = None,
    image: str | None = None,
    k: int | None = None,
    prefix: str | None = None,
) -> pa.Table:
    """The images of an index nearest to words or to an image.

    Args:
        index_uri: an index artifact.
        settings: of models and prompts.
        words: query text, embedded with the prompt templates; either this or `image`.
        image: URI of a query image.
        k: number of hits; None = 20, or all images if there are fewer.
        prefix: only images whose URI begins with it.

    Returns:
        `rank` (from 1), `similarity` (cosine), `image_id`, `uri`, `width`, `height`; k rows, or as many as match
        `prefix`.

    Raises:
        RecoError: missing index, index of another model, unreadable query image, `k` larger than the index, no match.
    """
    models = settings.models
    model = load_retrieval_model(models, seed=settings.seed)
    index = CorpusIndex(index_uri, model.fingerprint)
    if k is None:
        k = min(DEFAULT_K, len(index))
    elif k > len(index):
        raise SettingError(f"--k {k}: {index_uri} has {len(index):,} images")
    if prefix is not None:
        matching = index.count(prefix)
        if not matching:
            raise MissingError(f"--prefix {prefix}: no image of {index_uri} has a URI that begins so")
        k = min(k, matching)
    query = (
        embed_words(model, str(words), models.templates)
        if image is None
        else _embed_image(model, image, settings)
    )
    similarities, rows = index.search(query[None], k, prefix)
    found = index.images.take(rows[0]).add_column(0, "similarity", pa.array(similarities[0]))
    return found.add_column(0, "rank", pa.array(np.arange(1, k + 1, dtype=np.int32)))


def embed_words(model: LanguageImageModel, words: str, templates: str) -> np.ndarray:
    """Embeds a text: float32 (d,), unit norm."""
    return encode_prompts(model, [[words]], templates)[0].cpu().numpy()


def _embed_image(model: LanguageImageModel, uri: str, settings: Settings) -> np.ndarray:
    """Embeds an image like the embed stage: float32 (d,).

    Raises:
        UnreadableError: the image cannot be read or decoded.
    """
    try:
        picture, _, _ = decode_image(
            read_image_bytes(uri), max_pixels=settings.embed.max_pixels, short_side=model.transform.size
        )
    except OSError as error:
        raise UnreadableError(f"--image {uri}: cannot be read: {reason(error)}") from error
    except DecodeError as error:
        raise UnreadableError(f"--image {uri}: {error}") from error
    with torch.inference_mode():
        return embed_pixels(model, [model.transform.crop(picture)], 1)[0].astype(np.float32)


def hits_sheet(hits: pa.Table, max_pixels: int) -> bytes:
    """Draws the first MOST_ON_SHEET hits with rank and similarity; unreadable images are grey tiles with the reason.

    Args:
        hits: returned by `search_corpus`.
        max_pixels: larger images are not decoded.

    Returns:
        A JPEG.
    """
    shown = hits.slice(0, MOST_ON_SHEET)
    loaded = load_images(shown["uri"].to_pylist(), _thumbnail, max_pixels=max_pixels, short_side=TILE)
    columns = min(COLUMNS, shown.num_rows)
    lines = -(-shown.num_rows // columns)
    step = TILE + GAP
    sheet = Image.new("RGB", (columns * step + GAP, lines * (step + CAPTION) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (rank, similarity) in enumerate(zip(shown["rank"], shown["similarity"], strict=True)):
        left, top = GAP + number % columns * step, GAP + number // columns * (step + CAPTION)
        if (why := loaded["reason"][number].as_py()) is None:
            photo = Image.fromarray(pixels_of(loaded, number))
        else:
            photo = Image.new("RGB", (TILE, TILE), "lightgrey")
            ImageDraw.Draw(photo).text((8, TILE // 2), why[:30], fill="black")
        sheet.paste(photo, (left + (TILE - photo.width) // 2, top + (TILE - photo.height) // 2))
        draw.text((left, top + TILE + 2), f"{rank}   {similarity.as_py():.3f}", fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _thumbnail(image: Image.Image) -> np.ndarray:
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
