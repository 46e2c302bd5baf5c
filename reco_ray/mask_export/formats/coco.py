"""COCO instances: `annotations/instances_train.json`, images in `images/train/`.

Every connected component of a concept is an annotation with compressed run lengths, which pycocotools reads like
polygons. `score` is the mean probability of the concept in the image.
"""

from collections.abc import Iterable

from reco_ray.mask_export.coco_objects import categories, image_object, instance_objects
from reco_ray.mask_export.json_pieces import dump, json_object, with_ids
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter

FILE = "annotations/instances_train.json"


class Coco(MaskFormat):
    """COCO's instances."""

    title = "COCO instances"
    has_instances = True
    image_folder = "images/train"
    streams = ("images", "annotations")

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Keeps images and annotations for the one file."""
        for image in images:
            out.add("images", dump(image_object(image.number, image.file_name, image.size)))
            objects = 0
            for found in instance_objects(
                image.labels, plan.first, image.scores, image.number, plan.min_area
            ):
                out.add("annotations", dump(found))
                objects += 1
            out.count(objects)

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the file."""
        fields = {
            "info": info(plan),
            "licenses": [],
            "categories": categories(plan.concepts, plan.concept_colours()),
        }
        arrays = {"images": out.lines("images"), "annotations": with_ids(out.lines("annotations"))}
        out.write(FILE, json_object(fields, arrays))


def info(plan: ExportPlan) -> dict[str, str]:
    """What COCO's files say about themselves."""
    return {
        "description": "Masks that no person has checked",
        "version": "1.0",
        "contributor": plan.model_version,
    }


FORMAT = Coco()
