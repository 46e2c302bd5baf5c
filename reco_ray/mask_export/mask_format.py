"""The interface of a format of masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from reco_ray.errors import SettingError, UsageError
from reco_ray.files import storage
from reco_ray.files.streamed_writes import write_chunks


@dataclass(frozen=True)
class ExportPlan:
    """What is the same for all images of an export.

    Attributes:
        labels: names by label id of the masks.
        palette: RGB of each label.
        background: whether label 0 is the background, which is no concept.
        min_area: instances of fewer pixels are left out, in formats that have instances.
        with_images: whether the images are written, too.
        probabilities: whether the masks have any; else images have no scores.
        model_version: names what made the masks, in one line.
        origin: what made the masks: settings and models, as the manifest of the masks names them.
    """

    labels: list[str]
    palette: list[tuple[int, int, int]]
    background: bool = False
    min_area: int = 0
    with_images: bool = True
    probabilities: bool = False
    model_version: str = ""
    origin: dict[str, object] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The label id of the first concept."""
        return int(self.background)

    @cached_property
    def concepts(self) -> list[str]:
        """The names of all labels but the background."""
        return self.labels[self.first :]

    def concept_colours(self) -> list[tuple[int, int, int]]:
        """RGB of each concept, all different and none of them black, as tools that tell labels by colour need them."""
        colours: list[tuple[int, int, int]] = []
        taken = {(0, 0, 0)}
        for red, green, blue in self.palette[self.first :]:
            value = (red << 16) | (green << 8) | blue
            while (colour := (value >> 16, (value >> 8) & 255, value & 255)) in taken:
                value = (value + 1) % (1 << 24)
            taken.add(colour)
            colours.append(colour)
        return colours


@dataclass(frozen=True)
class MaskedImage:
    """An image and its mask.

    Attributes:
        number: from 1; the same in every run over the same masks.
        uri: of the image.
        name: path for the files of this image, without suffix; no two images have the same, in either case of letters.
        file_name: of the image as the format names it: `name` and a suffix, or where the images are not written the
            image's path below its source.
        labels: label ids, int (height, width).
        scores: label id -> mean probability of its pixels; empty if the masks have no probabilities.
        image: the encoded image; None if the images are not written.
    """

    number: int
    uri: str
    name: str
    file_name: str
    labels: np.ndarray
    scores: dict[int, float]
    image: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.labels.shape
        return height, width

    def concepts(self, plan: ExportPlan) -> list[int]:
        """The label ids of the concepts that the image shows, ascending."""
        present = np.flatnonzero(np.bincount(self.labels.ravel()))
        return [int(label) for label in present if label >= plan.first]


class PartWriter:
    """Takes what a format writes for one part of the images.

    Args:
        out: URI of the export.
        streams: of the format.
    """

    def __init__(self, out: str, streams: Iterable[str]) -> None:
        self._out = out
        self.lines: dict[str, list[str]] = {stream: [] for stream in streams}
        self.images = self.objects = 0

    def write(self, path: str, data: bytes) -> None:
        """Writes a file; path: relative to the export."""
        storage.write_bytes(storage.join(self._out, path), data)

    def add(self, stream: str, line: str) -> None:
        """Keeps a line for `finish`."""
        self.lines[stream].append(line)

    def count(self, objects: int) -> None:
        """Counts an image that was written, and its instances, segments or polygons."""
        self.images += 1
        self.objects += objects


class Finisher:
    """Gives a format what its parts have kept, and takes the files that are about all images.

    Args:
        out: URI of the export.
        lines: of a stream, over all parts in order; called anew for every pass.
        images, objects: counts of all parts.
    """

    def __init__(self, out: str, lines: Callable[[str], Iterator[str]], images: int, objects: int) -> None:
        self._out, self.lines, self.images, self.objects = out, lines, images, objects

    def write(self, path: str, chunks: Iterable[str]) -> None:
        """Writes a text file piece by piece; path: relative to the export."""
        write_chunks(storage.join(self._out, path), (chunk.encode() for chunk in chunks))


class MaskFormat(ABC):
    """A format of masks.

    Attributes:
        title: what it is, for people.
        objects: what it counts in an image, in the plural.
        has_instances: whether its objects are connected components, of which `min_area` leaves out small ones.
        image_folder: where its images lie, relative to the export; None if it puts them elsewhere.
        image_kinds: Pillow's formats in which its tools read images; others are written as JPEG.
        flat: whether its tools want all files of a kind in one folder.
        streams: names of the lines that `write_part` keeps for `finish`.
        most_labels: that its files can hold, without a background; None = any number.
    """

    title: str
    objects: str = "instances"
    has_instances: bool = False
    image_folder: str | None = None
    image_kinds: tuple[str, ...] = ("JPEG", "PNG")
    flat: bool = False
    streams: tuple[str, ...] = ()
    most_labels: int | None = None

    def require(self, plan: ExportPlan) -> None:
        """Checks that the format can hold these masks and that its packages are installed, before anything is written.

        Raises:
            RecoError: it cannot, or they are not.
        """
        if plan.min_area and not self.has_instances:
            raise UsageError(
                f"--min-area: {self.title} has no instances that could be left out: leave the option out"
            )
        if self.most_labels is not None and len(plan.concepts) > self.most_labels:
            raise SettingError(
                f"{self.title} holds at most {self.most_labels} concepts, these masks have {len(plan.concepts)}: "
                "choose another --format, such as coco, cvat or huggingface"
            )

    @abstractmethod
    def write_part(self, part: str, images: Iterable[MaskedImage], plan: ExportPlan, out: PartWriter) -> None:
        """Writes the files of some images, in a worker. A second call writes the same files again.

        Args:
            part: its name, of digits; no other part has it.
            images: of the part; they are decoded one by one.
            plan: of the export.
            out: takes files, lines and counts.
        """

    def finish(self, plan: ExportPlan, out: Finisher) -> None:  # noqa: B027 (not every format has such files)
        """Writes what is about all images, once all parts are written."""
