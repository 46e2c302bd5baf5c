"""The worker of the export: writes the files of a part, and what the format keeps of it for its last files."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from reco_ray.corpus.decode import DecodeError
from reco_ray.corpus.stage import write_rejected
from reco_ray.distributed.parts import Report, Worker
from reco_ray.files import storage
from reco_ray.mask_export.image_files import image_file
from reco_ray.mask_export.load import damaged
from reco_ray.mask_export.mask_format import ExportPlan, MaskedImage, MaskFormat, PartWriter
from reco_ray.registry import MASK_FORMATS
from reco_ray.segmentation.masks import decode_png, mask_file

PARTS = "parts"
_LINES = pa.large_list(pa.large_string())


def lines_of(stream: str) -> str:
    """The column of a part's table with the lines of a stream."""
    return f"lines:{stream}"


class ExportWorker(Worker[Report]):
    """Converts the loaded masks of a part.

    Args:
        form: name of the format.
        plan: of the export.
        masks, out: URIs of both artifacts.
    """

    report = Report

    def __init__(self, form: str, plan: ExportPlan, masks: str, out: str) -> None:
        self._form, self._plan, self._masks, self._out = form, plan, masks, out

    def set_up(self, device: str) -> None:
        """Imports the format."""
        self._format: MaskFormat = MASK_FORMATS.get(self._form).FORMAT

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes the files of the images, the rejected rows, and last the table of the part, which commits it."""
        written = PartWriter(self._out, self._format.streams)
        reasons: list[str | None] = rows["reason"].to_pylist()
        self._format.write_part(name, self._images(rows, reasons), self._plan, written)
        rejected = rows.select(["uri"]).append_column("reason", pa.array(reasons, pa.string()))
        write_rejected(self._out, name, rejected)
        counts = {"images": pa.array([written.images]), "objects": pa.array([written.objects])}
        lines = {lines_of(stream): pa.array([kept], _LINES) for stream, kept in written.lines.items()}
        file = storage.join(self._out, PARTS, f"{name}.parquet")
        storage.write_table(file, pa.table({**counts, **lines}))
        return Report(rows.num_rows)

    def _images(self, rows: pa.Table, reasons: list[str | None]) -> Iterator[MaskedImage]:
        """The images that can be used, each with its file written; `reasons` gets the reason of any other."""
        for number in range(rows.num_rows):
            if reasons[number] is not None:
                continue
            row = rows.slice(number, 1).to_pylist()[0]
            image = self._masked_image(row)
            if row["image"] is not None:
                try:
                    data, suffix = image_file(row["image"], image.size, self._format.image_kinds)
                except DecodeError as error:
                    reasons[number] = str(error)
                    continue
                image = replace(image, image=data, file_name=f"{image.name}{suffix}")
                if self._format.image_folder is not None:
                    place = storage.join(self._out, self._format.image_folder, image.file_name)
                    storage.write_bytes(place, data)
            yield image

    def _masked_image(self, row: dict[str, Any]) -> MaskedImage:
        labels = self._labels(row)
        scores = dict(zip(row["labels"], row["scores"], strict=True)) if self._plan.probabilities else {}
        return MaskedImage(row["number"], row["uri"], row["stem"], row["name"], labels, scores)

    def _labels(self, row: dict[str, Any]) -> np.ndarray:
        file = mask_file(row["name"])
        try:
            labels = decode_png(row["mask"])
        except Exception as error:  # Pillow's plugins raise a dozen kinds
            raise damaged(self._masks, file, "cannot be decoded") from error
        if labels.shape != (row["height"], row["width"]) or labels.max() >= len(self._plan.labels):
            raise damaged(self._masks, file, "is not the mask that its table describes")
        return labels
