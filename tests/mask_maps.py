"""Masks artifacts with given label maps, written as the segment stage writes them, without its models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from images import encoded, photograph

from reco_ray.contents import MasksContent
from reco_ray.files import storage
from reco_ray.files.artifacts import ArtifactWriter
from reco_ray.segmentation.image_parts import IMAGES, SCHEMA
from reco_ray.segmentation.masks import REGIONS_SCHEMA, encode_png, mask_file, regions
from reco_ray.segmentation.palette import palette

BACKGROUND = "background"


def write_masks(
    folder: Path,
    maps: Mapping[str, np.ndarray],
    labels: list[str],
    *,
    labeller: Literal["calibrated", "plain", "segmenter"] = "calibrated",
    images: Mapping[str, bytes] | None = None,
    part_size: int = 3,
) -> Path:
    """Writes photographs to `folder/photos` and their masks to `folder/masks`.

    Args:
        folder: that has both.
        maps: label ids by the path of an image below the photographs.
        labels: names; label 0 is a background if it is called so.
        labeller: references with calibrated scores or without, or a trained segmenter; "plain" has no probabilities.
        images: encoded images to use instead of photographs.
        part_size: images of a part.

    Returns:
        The artifact.
    """
    masks, photos = folder / "masks", folder / "photos"
    made_from = {"models": "m#1", "images": str(photos), "segment.refine": "superpixels"}
    if labeller == "segmenter":
        made_from |= {"segmenter": "/segmenter"}
    else:
        calibrate = 64 if labeller == "calibrated" else 0
        made_from |= {"references": "/refs", "references_digest": "d1", "segment.calibrate": calibrate}
    writer = ArtifactWriter(str(masks), MasksContent, made_from)
    assert writer.finished() is None
    colours = palette(len(labels), background=labels[0] == BACKGROUND)
    rows: list[dict[str, object]] = []
    parts: dict[str, list[dict[str, object]]] = {}
    for number, (name, ids) in enumerate(maps.items()):
        file, part = photos / name, f"{number // part_size:06d}"
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = ids.shape
        photo = photograph(number % 28).resize((width, height))
        kind = "PNG" if name.endswith(".png") else "JPEG"
        file.write_bytes((images or {}).get(name) or encoded(photo, kind))
        rows.append({"uri": str(file), "name": name, "size": file.stat().st_size, "part": part})
        storage.write_bytes(f"{masks}/{mask_file(name)}", encode_png(ids, colours))
        shared = {"uri": str(file), "name": name, "mask": mask_file(name), "width": width, "height": height}
        parts.setdefault(part, []).extend(
            {**shared, "concept": labels[found["label"]], **found} for found in regions(ids, score_map(ids))
        )
    storage.write_table(f"{masks}/{IMAGES}", pa.Table.from_pylist(rows, SCHEMA))
    for part, found in parts.items():
        storage.write_table(f"{masks}/regions/{part}.parquet", pa.Table.from_pylist(found, REGIONS_SCHEMA))
    maker = {"segmenter": "/segmenter"} if labeller == "segmenter" else {"references": "/refs"}
    content = MasksContent(labels=labels, palette=colours.tolist(), **maker)
    writer.commit({"images": len(maps), "segmented": len(maps), "rejected": 0}, content)
    return masks


def score_map(ids: np.ndarray) -> np.ndarray:
    """The scores of an artifact's pixels: 0.5 and a little for each label, float32 of the same shape."""
    return (0.5 + (ids % 40) / 100).astype(np.float32)
