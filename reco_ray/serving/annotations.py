"""Label maps as annotations of other tools: COCO's instances, and a prediction of Label Studio."""

import numpy as np

from reco_ray.mask_export.brush import prediction
from reco_ray.mask_export.coco_objects import categories, image_object, instance_objects
from reco_ray.mask_export.json_pieces import dump
from reco_ray.serving.answers import Legend
from reco_ray.serving.segment_task import LabelledImage


def as_coco(labelled: LabelledImage, legend: Legend, model_version: str) -> bytes:
    """COCO's JSON for one image, at the size of the answer; connected components are its annotations."""
    labels, first = labelled.labels.astype(np.int32), int(legend.background)
    found = instance_objects(labels, first, _scores(labelled, legend), image_id=1)
    document = {
        "info": {"description": "Masks that no person has checked", "contributor": model_version},
        "images": [image_object(1, "image", (labels.shape[0], labels.shape[1]))],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(found, 1)],
        "categories": categories(legend.names[first:], legend.colours[first:].tolist()),
    }
    return dump(document).encode()


def as_label_studio(
    labelled: LabelledImage, legend: Legend, model_version: str, size: tuple[int, int]
) -> bytes:
    """A prediction of Label Studio, as JSON.

    Args:
        labelled: of the image.
        legend: of the labels.
        model_version: what made them.
        size: height and width of the image, pixels: Label Studio draws a brush at no other.
    """
    rows = np.arange(size[0]) * labelled.labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labelled.labels.shape[1] // size[1]
    labels = labelled.labels[rows][:, columns]
    concepts = {
        label: legend.names[label] for label, _, _ in labelled.found if label or not legend.background
    }
    return dump(prediction(labels, concepts, _scores(labelled, legend), model_version)).encode()


def _scores(labelled: LabelledImage, legend: Legend) -> dict[int, float]:
    return {label: score for label, _, score in labelled.found} if legend.probabilities else {}
