"""COCO panoptic: `annotations/panoptic_train.json`, segment ids as `annotations/panoptic_train/*.png`.

A concept is one segment of an image, all of it "stuff": masks of a semantic segmenter tell no instances apart. The
background is COCO's void, 0.
"""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from reco_ray.mask_export.coco_objects import categories, category_id, image_object
from reco_ray.mask_export.formats.coco import info
from reco_ray.mask_export.json_pieces import dump, json_object
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter

FILE, FOLDER = "annotations/panoptic_train.json", "annotations/panoptic_train"


class CocoPanoptic(MaskFormat):
    """COCO's panoptic segments."""

    title = "COCO panoptic"
    objects = "segments"
    image_folder = "images/train"
    streams = ("images", "annotations")

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a picture of segment ids for every image, and keeps images and segments for the one file."""
        for image in images:
            ids = np.maximum(image.labels - plan.first + 1, 0).astype(np.uint32)
            file_name = f"{image.name}.png"
            out.write(f"{FOLDER}/{file_name}", _png(ids))
            segments = [_segment(image, label, plan.first) for label in image.concepts(plan)]
            annotation = {"image_id": image.number, "file_name": file_name, "segments_info": segments}
            out.add("images", dump(image_object(image.number, image.file_name, image.size)))
            out.add("annotations", dump(annotation))
            out.count(len(segments))

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the file."""
        fields = {
            "info": info(plan),
            "licenses": [],
            "categories": categories(plan.concepts, plan.concept_colours(), panoptic=True),
        }
        out.write(FILE, json_object(fields, {name: out.lines(name) for name in self.streams}))


def _png(ids: np.ndarray) -> bytes:
    """Segment ids (H, W) as COCO stores them: red + 256 green + 65,536 blue."""
    colours = np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG")
    return buffer.getvalue()


def _segment(image: MaskedImage, label: int, first: int) -> dict[str, Any]:
    number = category_id(label, first)
    run = coco_mask.encode(np.asfortranarray(image.labels == label, dtype=np.uint8))
    segment: dict[str, Any] = {
        "id": number,
        "category_id": number,
        "area": int(coco_mask.area(run)),
        "bbox": coco_mask.toBbox(run).astype(int).tolist(),
        "iscrowd": 0,
    }
    return segment if label not in image.scores else {**segment, "score": round(image.scores[label], 4)}


FORMAT = CocoPanoptic()
