"""Reads exported masks with the libraries of the tools that they are for, in an environment of their own.

Their pins of NumPy, Pillow and others are older than what reco-ray runs with, so `make test` installs them into
`.venv/readers`. Called as a script there: `python format_readers.py READER FOLDER OUT.npz`. The file holds one array
per object, bool (height, width), and `found`: JSON of what it is.
"""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

READERS = Path(sys.prefix) / "readers"


class Found(NamedTuple):
    """An object that a tool has read: of the image, its concept's name, its probability, its pixels."""

    image: str
    concept: str
    score: float | None
    mask: np.ndarray


def read_with(reader: str, folder: Path, out: Path) -> tuple[list[str], list[Found]]:
    """What a reader of this file finds in an export: the names of its images without suffix, and its objects."""
    python = READERS / "bin" / "python"
    assert python.exists(), "the readers of other tools' formats are not installed: make test"
    done = subprocess.run(
        [str(python), __file__, reader, str(folder), str(out)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out, allow_pickle=False) as arrays:
        described = json.loads(str(arrays["found"]))
        objects = [
            Found(image, concept, score, arrays[f"mask{number}"])
            for number, (image, concept, score) in enumerate(described["objects"])
        ]
    return described["images"], objects


def _datumaro(folder: Path, form: str) -> Iterator[Any]:
    import datumaro as dm

    dataset = dm.Dataset.import_from(str(folder), form)
    names = [category.name for category in dataset.categories()[dm.AnnotationType.label]]
    for item in dataset:
        yield item.id, None
        for annotation in item.annotations:
            if annotation.type != dm.AnnotationType.mask:
                continue
            score = annotation.attributes.get("score")
            name = names[annotation.label]
            if name != "background":
                yield item.id, (name, score, np.asarray(annotation.image, bool))


def read_coco(folder: Path) -> Iterator[Any]:
    """COCO instances, by Datumaro."""
    yield from _datumaro(folder, "coco_instances")


def read_coco_panoptic(folder: Path) -> Iterator[Any]:
    """COCO panoptic, by Datumaro."""
    yield from _datumaro(folder, "coco_panoptic")


def read_cvat(folder: Path) -> Iterator[Any]:
    """CVAT for images, by Datumaro."""
    yield from _datumaro(folder, "cvat")


def read_voc(folder: Path) -> Iterator[Any]:
    """Pascal VOC, by Datumaro."""
    yield from _datumaro(folder / "VOCdevkit" / "VOC2012", "voc_segmentation")


def read_cvat_sdk(folder: Path) -> Iterator[Any]:
    """CVAT for images, the masks by CVAT's own package, which has no reader for the file around them."""
    from xml.etree import ElementTree

    from cvat_sdk.masks import decode_mask

    for image in ElementTree.parse(folder / "annotations.xml").getroot().iter("image"):
        name = image.attrib["name"].rpartition(".")[0]
        yield name, None
        size = {"image_width": int(image.attrib["width"]), "image_height": int(image.attrib["height"])}
        for mask in image.iter("mask"):
            left, top, wide, high = (int(mask.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = [int(run) for run in mask.attrib["rle"].split(",")]
            pixels = decode_mask([*runs, left, top, left + wide - 1, top + high - 1], **size)
            score = mask.find("attribute")
            yield name, (mask.attrib["label"], None if score is None else float(score.text), pixels)


def read_yolo(folder: Path) -> Iterator[Any]:
    """YOLO's polygons, by supervision."""
    import supervision as sv

    dataset = sv.DetectionDataset.from_yolo(
        str(folder / "images" / "train"),
        str(folder / "labels" / "train"),
        str(folder / "data.yaml"),
        force_masks=True,
    )
    for path, _, detections in dataset:
        name = Path(path).stem
        yield name, None
        for mask, kind in zip(detections.mask if len(detections) else [], detections.class_id, strict=True):
            yield name, (dataset.classes[kind], None, mask)


def read_yolo_training(folder: Path) -> Iterator[Any]:
    """YOLO's polygons as they become masks in training: vertices cut to whole pixels, filled by OpenCV."""
    import cv2
    import yaml
    from PIL import Image

    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    for file in sorted((folder / "images" / "train").iterdir()):
        yield file.stem, None
        with Image.open(file) as image:
            width, height = image.size
        for line in (folder / "labels" / "train" / f"{file.stem}.txt").read_text().splitlines():
            kind, *values = line.split()
            assert len(values) >= 6, "fewer are a box"
            vertices = np.array(values, np.float32).reshape(-1, 2) * np.array([width, height], np.float32)
            canvas = np.zeros((height, width), np.uint8)
            cv2.fillPoly(canvas, [vertices.astype(np.int32)], color=1)
            yield file.stem, (names[int(kind)], None, canvas.astype(bool))


def read_label_studio(folder: Path) -> Iterator[Any]:
    """Label Studio's brush regions, by its package; also checks that the configuration has their labels."""
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((folder / "label-config.xml").read_text())
    for file in sorted((folder / "tasks").glob("*.json")):
        for task in json.loads(file.read_text()):
            name = Path(task["data"]["uri"]).name
            yield name, None
            (prediction,) = task["predictions"]
            assert interface.validate_prediction(prediction), prediction
            for region in prediction["result"]:
                shape = region["original_height"], region["original_width"], 4
                with_alpha = decode_rle(region["value"]["rle"]).reshape(shape)
                (label,) = region["value"]["brushlabels"]
                yield name, (label, region.get("score"), with_alpha[..., 3] > 0)


def read_mmseg(folder: Path) -> Iterator[Any]:
    """MMSegmentation's label maps, as it loads them for training; the configuration is the export's own."""
    import types

    # Operators for networks, which mmcv-lite lacks and MMSegmentation imports with its data sets.
    sys.modules["mmcv.ops"] = types.SimpleNamespace(point_sample=None)  # type: ignore[assignment]
    from mmseg.datasets import BaseSegDataset, LoadAnnotations

    config = runpy.run_path(str(folder / "dataset.py"))["dataset"] | {"data_root": str(folder)}
    assert config.pop("type") == "BaseSegDataset"
    dataset = BaseSegDataset(**config, pipeline=[LoadAnnotations()])
    names = dataset.metainfo["classes"]
    for number in range(len(dataset)):
        item = dataset[number]
        name = str(Path(item["img_path"]).relative_to(folder / "img_dir" / "train").with_suffix(""))
        yield name, None
        for label in np.unique(item["gt_seg_map"]):
            if names[label] != "background":
                yield name, (names[label], None, item["gt_seg_map"] == label)


def _main(reader: str, folder: str, out: str) -> None:
    images, described, arrays = [], [], {}
    for image, found in globals()[f"read_{reader}"](Path(folder)):
        if found is None:
            images.append(image)
            continue
        concept, score, mask = found
        arrays[f"mask{len(described)}"] = mask
        described.append([image, concept, None if score is None else float(score)])
    np.savez_compressed(out, found=json.dumps({"images": images, "objects": described}), **arrays)


if __name__ == "__main__":
    _main(*sys.argv[1:])
