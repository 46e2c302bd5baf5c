"""What a benchmark is to the evaluation: classes, and pairs of an image and how to read its truth."""

import io
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from reco_ray import storage
from reco_ray.errors import RecoError, reason
from reco_ray.evaluation.metrics import IGNORE
from reco_ray.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sample:
    """One image and its truth.

    label: URI of the label file. binary_of: the class that its bright pixels show, the rest being ignored; None where
    the label file holds ids.
    """

    image: str
    label: str
    binary_of: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A benchmark opened on disk.

    classes: the names of what is counted, at most 255; with a background in the vocabulary, that is class 0.
    class_of: the class of every label id that segmenting with the vocabulary gives; several may count as one class.
    label_ids: id in the label files -> class, or IGNORE. An id that is not in it is an error, never a guess.
    first_channel: the label files are RGB with the ids in red. colours: uint8 (classes, 3), to show them in.
    """

    name: str
    classes: list[str]
    vocabulary: Vocabulary
    class_of: list[int]
    samples: list[Sample] = field(repr=False)
    label_ids: dict[int, int] = field(repr=False)
    colours: np.ndarray = field(repr=False)
    first_channel: bool = False

    def truth(self, sample: Sample, size: tuple[int, int]) -> np.ndarray:
        """The classes of a sample, uint8 (H, W), IGNORE where nothing is counted.

        Args:
            size: (height, width) of its image.

        Raises:
            RecoError: the file is missing, damaged, of another size, or holds an id that the benchmark does not know.
        """
        try:
            image = Image.open(io.BytesIO(storage.read_bytes(sample.label)))
            ids = np.asarray(image if sample.binary_of is None else image.convert("L"))
        except (OSError, SyntaxError) as error:
            raise RecoError(f"{sample.label}: the label file cannot be read: {reason(error)}") from error
        if ids.shape[:2] != size:
            found = f"{ids.shape[1]} x {ids.shape[0]}"
            raise RecoError(f"{sample.label}: {found} pixels, but its image has {size[1]} x {size[0]}")
        if sample.binary_of is not None:
            return np.where(ids > 127, sample.binary_of, IGNORE).astype(np.uint8)
        channels = 1 if ids.ndim == 2 else ids.shape[2]
        if channels != (3 if self.first_channel else 1):
            raise RecoError(
                f"{sample.label}: {channels} channels, label files of {self.name} have {4 - channels}"
            )
        ids = ids[..., 0] if self.first_channel else ids
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self._table):
            raise RecoError(f"{sample.label}: label id {int(ids.max())} is none of {self.name}")
        truth = self._table[ids.astype(np.int64)]
        if (truth < 0).any():
            raise RecoError(f"{sample.label}: label id {int(ids[truth < 0].min())} is none of {self.name}")
        return truth.astype(np.uint8)

    @cached_property
    def _table(self) -> np.ndarray:
        """id -> class, -1 for ids between the known ones."""
        table = np.full(max(self.label_ids) + 1, -1, np.int16)
        table[list(self.label_ids)] = list(self.label_ids.values())
        return table
