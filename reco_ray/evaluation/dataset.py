"""What a benchmark is to the evaluation: classes, and pairs of an image and how to read its truth."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyarrow.fs as pafs
from PIL import Image

from reco_ray import storage
from reco_ray.errors import RecoError
from reco_ray.evaluation.metrics import IGNORE
from reco_ray.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class Sample:
    """One image and its truth.

    label: URI of the label image. binary_of: the class that its non-zero pixels show, the rest being ignored;
    None where the label image holds ids.
    """

    image: str
    label: str
    binary_of: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A benchmark opened on disk.

    label_ids: id in the label files -> class index, or IGNORE; None where they hold class indices already.
    An id that is not in it is an error, never a guess.
    """

    name: str
    vocabulary: Vocabulary
    samples: list[Sample]
    label_ids: dict[int, int] | None = None

    def truth(self, sample: Sample) -> np.ndarray:
        """The class indices of a sample, uint8 (H, W), IGNORE where nothing is counted.

        Raises:
            RecoError: the file is missing, damaged, or holds an id that the benchmark does not know.
        """
        try:
            image = Image.open(io.BytesIO(storage.read_bytes(sample.label)))
            ids = np.asarray(image.convert("L") if sample.binary_of is not None else image)
        except (OSError, SyntaxError) as error:
            raise RecoError(f"{sample.label}: the label image cannot be read: {error}") from error
        if ids.ndim != 2:
            raise RecoError(f"{sample.label}: {ids.shape[-1]} channels, but a label image has one")
        if sample.binary_of is not None:
            return np.where(ids > 127, sample.binary_of, IGNORE).astype(np.uint8)
        known = self.label_ids or {**{index: index for index in range(len(self.vocabulary.names))}, IGNORE: IGNORE}
        table = np.full(max(65_536, int(ids.max(initial=0)) + 1), -1, np.int64)
        table[list(known)] = list(known.values())
        truth = table[ids]
        if (truth < 0).any():
            unknown = sorted(np.unique(ids[truth < 0]).tolist())
            raise RecoError(f"{sample.label}: unknown label id {unknown[0]} (known: {min(known)} to {max(known)})")
        return truth.astype(np.uint8)


Reader = Callable[[str], Dataset]


def packaged_vocabulary(name: str) -> Vocabulary:
    """The classes of a benchmark, from the file that ships with the package."""
    return load_vocabulary(str(files("reco_ray") / "evaluation" / "benchmarks" / name))


def require_folder(uri: str, benchmark: str) -> list[str]:
    """Names inside a folder that the benchmark's layout has.

    Raises:
        RecoError: it is not there, or empty.
    """
    filesystem, path = storage.resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    if not infos:
        raise RecoError(f"{uri}: not there or empty, but {benchmark} has its files there: is --data right?")
    return sorted(info.base_name for info in infos)
