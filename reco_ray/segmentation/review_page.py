"""The page of a review: one mask at a time, keys for good, bad and unsure, and a file of the verdicts."""

from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from reco_ray.contents import MasksContent
from reco_ray.corpus.decode import DecodeError, decode_image
from reco_ray.corpus.read import read_image_bytes
from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import artifacts, storage
from reco_ray.outcome import ReviewResult
from reco_ray.presentation.html import css_colour, jpeg_uri, render_page
from reco_ray.segmentation.masks import decode_png, mask_file
from reco_ray.segmentation.overlay import highlight
from reco_ray.segmentation.review import Review, choose_masks

_SIDE = 640  # longest side of an embedded picture, pixels
_MAX_PIXELS = 178_956_970


def write_review(masks: str, out: str, *, sample: int, unsure: int, seed: int) -> ReviewResult:
    """Chooses masks of an artifact and writes `index.html` about them, one file without links to others.

    Args:
        masks: URI of the artifact.
        out: URI of the folder of the page.
        sample, unsure, seed: as `choose_masks`.

    Raises:
        RecoError: the artifact is missing or unfinished, has no masks of concepts, or an image of it is gone.
    """
    manifest = artifacts.read_manifest(masks, MasksContent)
    review = choose_masks(masks, manifest, sample=sample, unsure=unsure, seed=seed)
    page = render_page(
        "review.html",
        data={
            "masks": storage.absolute(masks),
            "made_at": manifest.made_at,
            "probabilities": manifest.content.holds_probabilities(manifest.made_from),
            "concepts": [name for name in manifest.content.labels if name != "background"],
            "total": review.masks,
            **_pictures(masks, manifest.content, review),
        },
        total=review.masks,
        made_by=manifest.made_by,
    )
    uri = storage.join(out, "index.html")
    storage.write_bytes(uri, page)
    drawn = sum(item.sample == "random" for item in review.items)
    return ReviewResult(storage.absolute(uri), review.masks, drawn, len(review.items) - drawn)


def _pictures(masks: str, content: MasksContent, review: Review) -> dict[str, object]:
    """`photos`, each once, and `items`, which name theirs by its number."""
    colours = np.array(content.palette, np.uint8)
    photos: dict[str, int] = {}
    encoded: list[str] = []
    opened = lru_cache(maxsize=1)(lambda uri, name: _open(masks, uri, name))
    items: list[dict[str, Any]] = []
    for item in review.items:
        photo, labels = opened(item.row["uri"], item.row["name"])
        if item.row["uri"] not in photos:
            photos[item.row["uri"]] = len(encoded)
            encoded.append(jpeg_uri(Image.fromarray(photo)))
        number = item.row["label"]
        shown = highlight(photo, labels == number, colours[number])
        items.append(
            {
                **_described(item.row, colours),
                "uri": item.row["uri"],
                "name": item.row["name"],
                "size": f"{item.row['width']} x {item.row['height']}",
                "sample": item.sample,
                "photo": photos[item.row["uri"]],
                "mask": jpeg_uri(Image.fromarray(shown)),
                "others": [_described(row, colours) for row in item.others[:8]],
            }
        )
    return {"photos": encoded, "items": items}


def _described(row: dict[str, Any], colours: np.ndarray) -> dict[str, object]:
    return {
        "concept": row["concept"],
        "label": row["label"],
        "colour": css_colour(colours[row["label"]]),
        "share": row["area"] / (row["width"] * row["height"]),
        "score": row["score"],
    }


def _open(masks: str, uri: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The photograph, uint8 (h, w, 3), and its mask at the same size, int32 (h, w)."""
    try:
        photo, _, _ = decode_image(read_image_bytes(uri), max_pixels=_MAX_PIXELS, short_side=_SIDE)
    except OSError as error:
        raise file_error(
            f"{uri}: cannot be read: {reason(error)}, though the masks are of it", error
        ) from error
    except DecodeError as error:
        raise UnreadableError(f"{uri}: {error}, though the masks are of it") from error
    photo.thumbnail((_SIDE, _SIDE))
    labels = Image.fromarray(decode_png(storage.read_bytes(storage.join(masks, mask_file(name)))))
    small = labels.resize(photo.size, Image.Resampling.NEAREST)
    return np.asarray(photo), np.asarray(small)
