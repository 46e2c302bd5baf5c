"""YOLO segmentation: `labels/train/*.txt` with polygons, images in `images/train/`, `data.yaml`.

A line is a class and the polygon of an instance. Vertices lie at a quarter of a pixel, since some tools round to the
pixel that is meant and others cut the fraction off.
"""

from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np
import yaml

from reco_ray.errors import MissingPackageError
from reco_ray.mask_export.components import find_instances
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter

_INSIDE = 0.25  # of a pixel


class Yolo(MaskFormat):
    """YOLO's polygons."""

    title = "YOLO segmentation"
    has_instances = True
    image_folder = "images/train"
    flat = True  # its tools find a label by the first part of its path, and some look into one folder only

    def require(self, plan: ExportPlan) -> None:
        """Checks that OpenCV is there, which traces the polygons."""
        super().require(plan)
        if find_spec("cv2") is None:
            raise MissingPackageError(
                'yolo needs opencv-python-headless: pip install "reco-ray[export-masks]"'
            )

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a file of polygons for every image, an empty one where there is no concept."""
        for image in images:
            lines = list(_polygons(image, plan))
            out.write(f"labels/train/{image.name}.txt", "".join(lines).encode())
            out.count(len(lines))

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes `data.yaml`, whose paths are relative to itself."""
        content = {
            # A key that YOLO requires; masks that no person has checked are no measure, so there are no others.
            "train": "images/train",
            "val": "images/train",
            "names": dict(enumerate(plan.concepts)),
        }
        out.write("data.yaml", [yaml.safe_dump(content, allow_unicode=True, sort_keys=False)])


def _polygons(image: MaskedImage, plan: ExportPlan) -> Iterable[str]:
    from reco_ray.mask_export.polygons import outline

    height, width = image.size
    for instance in find_instances(image.labels, plan.first, plan.min_area):
        vertices = outline(instance.crop) + np.array(instance.box[:2]) + _INSIDE
        shares = (vertices / (width, height)).ravel()
        yield f"{instance.label - plan.first} {' '.join(f'{share:.7f}' for share in shares)}\n"


FORMAT = Yolo()
