"""What a benchmark is to the evaluation: classes, and pairs of an image and how to read its truth."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reco_ray import storage
from reco_ray.errors import RecoError, reason
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.label_file import read_ids, read_mask
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
            RecoError: the file is missing, damaged, no label file (`read_ids`), of another size, or holds an id
                that the benchmark does not know.
        """
        try:
            data = storage.read_bytes(sample.label)
            ids = read_mask(data) if sample.binary_of is not None else read_ids(data, self.first_channel)
        except OSError as error:
            raise RecoError(f"{sample.label}: the label file cannot be read: {reason(error)}") from error
        except RecoError as error:
            raise RecoError(f"{sample.label}: {error}") from error
        if ids.shape != size:
            found = f"{ids.shape[1]} x {ids.shape[0]}"
            raise RecoError(f"{sample.label}: {found} pixels, but its image has {size[1]} x {size[0]}")
        if sample.binary_of is not None:
            return np.where(ids, sample.binary_of, IGNORE).astype(np.uint8)
        inside = (ids >= 0) & (ids < len(self._table))
        truth = np.where(inside, self._table[ids.clip(0, len(self._table) - 1)], -1)
        if (truth < 0).any():
            raise RecoError(
                f"{sample.label}: label id {int(ids[truth < 0].min())} is none of {self.name} ({self.ids_in_words})"
            )
        return truth.astype(np.uint8)

    @property
    def ids_in_words(self) -> str:
        """Which ids label files may hold, for messages."""
        counted = sorted(number for number, one in self.label_ids.items() if one != IGNORE)
        ignored = sorted(number for number, one in self.label_ids.items() if one == IGNORE)
        few = [f"{number} = {self.classes[self.label_ids[number]]}" for number in counted[:3]]
        words = ", ".join(few) + (f", ... {counted[-1]}" if len(counted) > 3 else "")
        return words + (f"; {', '.join(map(str, ignored[-3:]))} = not counted" if ignored else "")

    @cached_property
    def _table(self) -> np.ndarray:
        """id -> class, -1 for ids between the known ones."""
        table = np.full(max(self.label_ids) + 1, -1, np.int16)
        table[list(self.label_ids)] = list(self.label_ids.values())
        return table
