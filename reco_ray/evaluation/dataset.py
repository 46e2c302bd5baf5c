"""A labelled data set: its classes, and pairs of an image and a label file."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reco_ray.errors import RecoError, UnreadableError, file_error, reason
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.label_file import read_ids, read_mask
from reco_ray.files import storage
from reco_ray.vocabulary import Vocabulary

BACKGROUND = "background"


@dataclass(frozen=True)
class Sample:
    """An image and its label file.

    Attributes:
        image: URI of the image.
        label: URI of the label file.
        binary_of: Class of the bright pixels of a binary mask, whose other pixels are ignored; None if the label file
            holds ids.
    """

    image: str
    label: str
    binary_of: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name: Name of the benchmark.
        classes: Names of the classes, at most 255; class 0 is the background if the vocabulary has one.
        vocabulary: Concepts to segment.
        class_of: Class of every label that segmenting with the vocabulary returns; several may map to one class.
        samples: The samples.
        label_ids: Id in the label files -> class, or IGNORE. Any other id is an error.
        colours: uint8 (classes, 3), colours of the classes in pictures.
        first_channel: Whether label files are RGB with the ids in the red channel.
    """

    name: str
    classes: list[str]
    vocabulary: Vocabulary
    class_of: list[int]
    samples: list[Sample] = field(repr=False)
    label_ids: dict[int, int] = field(repr=False)
    colours: np.ndarray = field(repr=False)
    first_channel: bool = False

    @cached_property
    def binary(self) -> bool:
        """Whether every label file is a binary mask."""
        return all(sample.binary_of is not None for sample in self.samples)

    @property
    def classes_with_background(self) -> list[str] | None:
        """Names of the classes with the background first; None if the labels do not show where the background is.

        They are `classes` if the vocabulary has a background. Binary masks show it, too: it is what is no mask.
        """
        if self.vocabulary.background:
            return self.classes
        return [BACKGROUND, *self.classes] if self.binary else None

    def add_background(self, classes: np.ndarray) -> np.ndarray:
        """Turns classes of a binary data set into numbers of `classes_with_background`.

        Args:
            classes: Integer, any shape; IGNORE becomes the background.

        Returns:
            int64, the same shape.
        """
        return np.where(classes == IGNORE, 0, classes.astype(np.int64) + 1)

    def truth(self, sample: Sample, size: tuple[int, int]) -> np.ndarray:
        """Reads the classes of a sample.

        Args:
            sample: The sample.
            size: (height, width) of its image.

        Returns:
            uint8 (H, W), IGNORE where nothing is counted.

        Raises:
            RecoError: If the label file is missing, damaged, of the wrong format (`read_ids`) or size, or holds an
                unknown id.
        """
        try:
            data = storage.read_bytes(sample.label)
            ids = read_mask(data) if sample.binary_of is not None else read_ids(data, self.first_channel)
        except OSError as error:
            raise file_error(
                f"{sample.label}: the label file cannot be read: {reason(error)}", error
            ) from error
        except RecoError as error:
            raise UnreadableError(f"{sample.label}: {error}") from error
        if ids.shape != size:
            found = f"{ids.shape[1]} x {ids.shape[0]}"
            raise UnreadableError(f"{sample.label}: {found} pixels, but its image has {size[1]} x {size[0]}")
        if sample.binary_of is not None:
            return np.where(ids, sample.binary_of, IGNORE).astype(np.uint8)
        inside = (ids >= 0) & (ids < len(self._table))
        truth = np.where(inside, self._table[ids.clip(0, len(self._table) - 1)], -1)
        if (truth < 0).any():
            raise UnreadableError(
                f"{sample.label}: label id {int(ids[truth < 0].min())} is none of {self.name} ({self.ids_in_words})"
            )
        return truth.astype(np.uint8)

    @property
    def ids_in_words(self) -> str:
        """The valid label ids, for messages."""
        counted = sorted(number for number, one in self.label_ids.items() if one != IGNORE)
        ignored = sorted(number for number, one in self.label_ids.items() if one == IGNORE)
        few = [f"{number} = {self.classes[self.label_ids[number]]}" for number in counted[:3]]
        words = ", ".join(few) + (f", ... {counted[-1]}" if len(counted) > 3 else "")
        return words + (f"; {', '.join(map(str, ignored[-3:]))} = not counted" if ignored else "")

    @cached_property
    def _table(self) -> np.ndarray:
        """int16, id -> class, -1 for unknown ids."""
        table = np.full(max(self.label_ids) + 1, -1, np.int16)
        table[list(self.label_ids)] = list(self.label_ids.values())
        return table
