"""Reads the masks of an artifact, and their images, part by part."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.corpus.load import read_or_error
from reco_ray.errors import UnreadableError, reason
from reco_ray.files import storage
from reco_ray.files.read_ahead import prefetched
from reco_ray.files.retries import StoreUnavailable
from reco_ray.segmentation.masks import mask_file

# labels, scores: of the regions. mask, image: encoded; image is null if it is not read or has a reason.
LOADED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("name", pa.string()),
        ("stem", pa.string()),
        ("number", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float32())),
        ("mask", pa.large_binary()),
        ("image", pa.large_binary()),
        ("reason", pa.string()),
    ]
)


def damaged(masks: str, file: str, why: str) -> UnreadableError:
    """The error for a masks artifact that is not as it was committed."""
    return UnreadableError(
        f"{masks}: damaged, {file}: {why}: `reco-ray verify` lists what differs; make the masks again"
    )


class MaskLoader:
    """Yields the parts of a unit, for `run_parts`. Images without a mask (rejected ones) have no row.

    Args:
        masks: URI of the artifact.
        with_images: read the images, too.
    """

    def __init__(self, masks: str, *, with_images: bool) -> None:
        self._masks, self._with_images = masks, with_images

    def __call__(self, unit: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """unit: `uri`, `name`, `stem`, `number`, `part`, ordered by part."""
        for part in unit["part"].unique().to_pylist():
            rows = unit.filter(pc.equal(unit["part"], part)).drop_columns(["part"])
            yield part, self._load(part, rows.to_pylist())

    def _load(self, part: str, images: list[dict[str, Any]]) -> pa.Table:
        regions = self._regions(part)
        rows = [row | regions[row["uri"]] for row in images if row["uri"] in regions]
        masks = prefetched(self._read_mask, [row["name"] for row in rows])
        pictures = prefetched(read_or_error, [row["uri"] for row in rows]) if self._with_images else None
        for row, mask in zip(rows, masks, strict=True):
            row["mask"] = mask
            if pictures is None:
                continue
            image = next(pictures)
            if isinstance(image, OSError):
                row["reason"] = f"cannot be read: {reason(image)}"
            else:
                row["image"] = image
        return pa.Table.from_pylist(rows, schema=LOADED_SCHEMA)

    def _regions(self, part: str) -> dict[str, dict[str, Any]]:
        """Size, labels and scores of the images of a part, by URI."""
        file = f"regions/{part}.parquet"
        try:
            table = storage.read_table(
                storage.join(self._masks, file), ["uri", "width", "height", "label", "score"]
            )
        except StoreUnavailable:
            raise
        except (OSError, pa.ArrowInvalid) as error:
            raise damaged(self._masks, file, reason(error)) from error
        found: dict[str, dict[str, Any]] = {}
        for row in table.to_pylist():
            size = {"width": row["width"], "height": row["height"]}
            image = found.setdefault(row["uri"], {**size, "labels": [], "scores": []})
            image["labels"].append(row["label"])
            image["scores"].append(row["score"])
        return found

    def _read_mask(self, name: str) -> bytes:
        file = mask_file(name)
        try:
            return storage.read_bytes(storage.join(self._masks, file))
        except StoreUnavailable:
            raise
        except OSError as error:
            raise damaged(self._masks, file, reason(error)) from error
