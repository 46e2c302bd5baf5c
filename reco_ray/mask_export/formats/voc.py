"""Pascal VOC: class indices as PNG with a palette, in `VOCdevkit/VOC2012`, where VOC's readers look.

Index 0 is the background, the first concept is 1. `labelmap.txt` has their names and colours, as CVAT and Datumaro
write it.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter
from reco_ray.segmentation.masks import encode_png

FOLDER = "VOCdevkit/VOC2012"


class Voc(MaskFormat):
    """Pascal VOC's class maps."""

    title = "Pascal VOC"
    objects = "masks"
    image_folder = f"{FOLDER}/JPEGImages"
    image_kinds = ("JPEG",)
    streams = ("names",)
    most_labels = 254  # 0 is the background, 255 void

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a map of class indices for every image."""
        colours = np.array([(0, 0, 0), *plan.concept_colours()], np.uint8)
        for image in images:
            indices = np.maximum(image.labels - plan.first + 1, 0)
            out.write(f"{FOLDER}/SegmentationClass/{image.name}.png", encode_png(indices, colours))
            out.add("names", image.name)
            out.count(len(image.concepts(plan)))

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the list of images, and the names of the classes."""
        out.write(f"{FOLDER}/ImageSets/Segmentation/train.txt", (f"{name}\n" for name in out.lines("names")))
        out.write(f"{FOLDER}/labelmap.txt", _label_map(plan))


def _label_map(plan: ExportPlan) -> Iterator[str]:
    yield "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
    for name, colour in zip(plan.concepts, plan.concept_colours(), strict=True):
        # A colon ends the name, and a line that begins with # is a comment.
        shown = name.replace(":", ";")
        yield f"{'_' if shown.startswith('#') else ''}{shown}:{','.join(map(str, colour))}::\n"


FORMAT = Voc()
