"""CVAT for images 1.1: `annotations.xml` with `<mask>` elements, `labels.json` for a new task, images in `images/`.

A concept is one mask of an image, so that an annotator corrects it as a whole.
"""

import json
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter


class Cvat(MaskFormat):
    """CVAT's own format."""

    title = "CVAT for images 1.1"
    objects = "masks"
    image_folder = "images"
    streams = ("images",)

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Keeps an `<image>` element for every image."""
        for image in images:
            present = image.concepts(plan)
            masks = [_mask(image, label, plan) for label in present]
            height, width = image.size
            opening = (
                f'<image id="{image.number - 1}" name={quoteattr(image.file_name)} '
                f'width="{width}" height="{height}">'
            )
            out.add("images", "\n".join([f"  {opening}", *masks, "  </image>"]))
            out.count(len(present))

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the annotations, and the labels as a task of CVAT takes them."""
        colours = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in plan.concept_colours()]
        labels = list(zip(plan.concepts, colours, strict=True))
        out.write("annotations.xml", _document(labels, out.images, out.lines("images")))
        score = {"name": "score", "input_type": "text", "mutable": False, "values": [""], "default_value": ""}
        raw = [
            {"name": name, "color": colour, "type": "mask", "attributes": [score]} for name, colour in labels
        ]
        out.write("labels.json", [json.dumps(raw, ensure_ascii=False, indent=2)])


def _mask(image: MaskedImage, label: int, plan: ExportPlan) -> str:
    """A `<mask>` element: row-major run lengths inside the box of the concept, beginning with those outside it."""
    mask = image.labels == label
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    high, wide = int(rows[-1]) - top + 1, int(columns[-1]) - left + 1
    pixels = mask[top : top + high, left : left + wide].ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=pixels.size).tolist()
    counts = ", ".join(map(str, [0, *runs] if pixels[0] else runs))
    opening = (
        f'    <mask label={quoteattr(plan.labels[label])} source="auto" occluded="0" rle="{counts}" '
        f'left="{left}" top="{top}" width="{wide}" height="{high}" z_order="0">'
    )
    score = image.scores.get(label)
    inner = "" if score is None else f'\n      <attribute name="score">{score:.4f}</attribute>'
    return f"{opening}{inner}\n    </mask>"


def _document(labels: list[tuple[str, str]], images: int, elements: Iterable[str]) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
    yield f"  <meta>\n    <task>\n      <name>reco-ray</name>\n      <size>{images}</size>\n      <labels>\n"
    for name, colour in labels:
        yield f"        <label><name>{escape(name)}</name><color>{colour}</color><type>mask</type><attributes>"
        yield "<attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
        yield "<default_value></default_value><values></values></attribute></attributes></label>\n"
    yield "      </labels>\n    </task>\n  </meta>\n"
    for element in elements:
        yield f"{element}\n"
    yield "</annotations>\n"


FORMAT = Cvat()
