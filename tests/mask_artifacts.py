"""Masks artifacts made without models: stripes of concepts, each with a score that the test chooses."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from images import write_photographs
from PIL import Image

from reco_ray.contents import MasksContent
from reco_ray.files import artifacts, storage
from reco_ray.segmentation.masks import REGIONS_SCHEMA, encode_png, mask_file, regions
from reco_ray.segmentation.palette import palette


def write_masks(folder: Path, scores: list[list[float]], labels: list[str], shard_size: int = 3) -> str:
    """Writes masks of photographs that it makes in `folder/images` -> URI of the artifact.

    Args:
        folder: to write to.
        scores: of each image, the score of each label, whose stripe is as wide as the others; 0 = it has none.
        labels: names of the label ids; "background" first, if there is one.
        shard_size: images per table of regions.
    """
    out = str(folder / "masks")
    files = write_photographs(folder / "images", len(scores), long_side=160)
    writer = artifacts.ArtifactWriter(out, MasksContent, {"segment.calibrate": 64, "segment.refine": "none"})
    writer.finished()
    colours = palette(len(labels), background=labels[0] == "background")
    rows = []
    for file, own in zip(files, scores, strict=True):
        with Image.open(file) as image:
            width, height = image.size
        present = [label for label, score in enumerate(own) if score]
        ids = np.array(present)[np.arange(width) * len(present) // width]
        mask = np.tile(ids, (height, 1))
        found = regions(mask, np.array(own, np.float32)[mask])
        name = file.name
        storage.write_bytes(storage.join(out, mask_file(name)), encode_png(mask, colours))
        shared = {"uri": str(file), "name": name, "mask": mask_file(name), "width": width, "height": height}
        rows.append([{**shared, "concept": labels[each["label"]], **each} for each in found])
    for number, start in enumerate(range(0, len(rows), shard_size)):
        part = [row for each in rows[start : start + shard_size] for row in each]
        table = pa.Table.from_pylist(part, schema=REGIONS_SCHEMA)
        storage.write_table(storage.join(out, "regions", f"{number:06d}.parquet"), table)
    counts = {"images": len(scores), "segmented": len(scores), "rejected": 0}
    writer.commit(counts, MasksContent(labels=labels, palette=colours.tolist(), references="r"))
    return out
