"""A Hugging Face data set: Parquet files with images and masks in `data/`, and the data set card.

`datasets.load_dataset` reads the folder as it is, or from the hub. A mask's pixels are label ids.
"""

import io
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from reco_ray.errors import MissingPackageError, UsageError
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskedImage, MaskFormat, PartWriter
from reco_ray.segmentation.masks import encode_grey_png

_SIZES = (
    (1000, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


class HuggingFace(MaskFormat):
    """A data set for the `datasets` library."""

    title = "Hugging Face data set"
    objects = "masks"

    def require(self, plan: ExportPlan) -> None:
        """Checks that `datasets` is there, and that the images are to be written."""
        super().require(plan)
        if find_spec("datasets") is None:
            raise MissingPackageError('huggingface needs datasets: pip install "reco-ray[export-masks]"')
        if not plan.with_images:
            raise UsageError("--without-images: a Hugging Face data set holds its images: leave it out")

    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes a Parquet file."""
        features = _features(plan)
        rows = []
        for image in images:
            present = image.concepts(plan)
            rows.append(
                {
                    "image": {"bytes": image.image, "path": image.file_name.rpartition("/")[2]},
                    "mask": {"bytes": encode_grey_png(image.labels, len(plan.labels)), "path": None},
                    "uri": image.uri,
                    "concepts": [
                        {
                            "label": label,
                            "area": int((image.labels == label).sum()),
                            "score": image.scores.get(label),
                        }
                        for label in present
                    ],
                }
            )
            out.count(len(present))
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        buffer = io.BytesIO()
        # Small row groups, of which the hub's viewer reads one at a time.
        pq.write_table(table, buffer, compression="zstd", row_group_size=16)
        # A folder for every thousand, as the hub takes ten thousand files a folder at most.
        out.write(f"data/{part[:-3]}/train-{part}.parquet", buffer.getvalue())

    def finish(self, plan: ExportPlan, out: Finisher) -> None:
        """Writes the data set card."""
        out.write("README.md", [_card(plan, out.images)])


def _features(plan: ExportPlan) -> Any:
    from datasets import ClassLabel, Features, Image, List, Value

    return Features(
        {
            "image": Image(),
            "mask": Image(),
            "uri": Value("string"),
            "concepts": List(
                {
                    "label": ClassLabel(names=plan.labels),
                    "area": Value("int64"),
                    "score": Value("float32"),
                }
            ),
        }
    )


def _card(plan: ExportPlan, images: int) -> str:
    metadata = {
        "pretty_name": "Masks made by reco-ray",
        "task_categories": ["image-segmentation"],
        "annotations_creators": ["machine-generated"],
        "tags": ["reco-ray", "pseudo-labels", "not-checked-by-people"],
        "size_categories": [next((name for size, name in _SIZES if images < size), "n>10M")],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*.parquet"}]}
        ],
    }
    labels = "\n".join(
        f"| {number} | {name.replace('|', chr(92) + '|')} |" for number, name in enumerate(plan.labels)
    )
    origin = "\n".join(f"{name}: {value}" for name, value in plan.origin.items())
    scores = (
        "`score` is the mean probability of the label over its pixels."
        if plan.probabilities
        else "The masks have no probabilities: `score` is null."
    )
    return f"""---
{yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)}---

# Masks made by reco-ray

{images:,} images with semantic masks. **No person has checked these masks.** {plan.model_version} made them from the
names of the concepts and unlabelled images, without any pixel label: they are pseudo-labels, with the errors of such.
Measure on masks that people have drawn.

- `image`: the photograph. Its rights are those of its source, `uri`.
- `mask`: label ids, of the size of the image; 8-bit grey, 16-bit above 256 labels.
- `concepts`: the labels in the image, with their area in pixels. {scores}

| id | label |
|---:|---|
{labels}

How they were made:

```
{origin}
```
"""


FORMAT = HuggingFace()
