"""Measures a sample of dense features on images, on Ray: once, and kept in one file."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import Settings, StagePlacement
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import pixels_of
from reco_ray.distributed.parts import Report, Worker, cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.errors import UnreadableError
from reco_ray.files import storage
from reco_ray.models.dense import DenseFeatures, DenseModels
from reco_ray.models.feature_sample import from_bytes, sample_features, to_bytes

# Images per part; a multiple of `feature_sample.PATTERNS`, so that places do not depend on how images are cut.
SHARD = 8


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Rows of at most `count` of `total` images, evenly spaced, int64."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def sample_rows(index: CorpusIndex, count: int) -> pa.Table:
    """The images of an index over which scores are calibrated: `uri`, at most `count` rows."""
    return index.images.first_by_id(count).select(["uri"])


def sample_loaded(models: DenseModels, rows: pa.Table, device: str) -> bytes | None:
    """The feature sample of loaded images, as of `feature_sample.to_bytes`; None if none of them is usable."""
    samples = []
    for row in np.flatnonzero(rows["pixels"].is_valid()).tolist():
        pixels = torch.from_numpy(pixels_of(rows, row).copy())[None].to(device)
        samples.append(sample_features(models.encode(pixels), row))
    return to_bytes(samples) if samples else None


def join_samples(parts: list[bytes], images: pa.Table) -> bytes:
    """Joins the samples of parts of the images.

    Raises:
        UnreadableError: none of the images is usable.
    """
    if not parts:
        raise UnreadableError(f"{images['uri'][0]}: none of {images.num_rows} images can be used")
    return to_bytes([from_bytes(part) for part in parts])


def measure_sample(
    uri: str,
    rows: pa.Table,
    load: Callable[[pa.Table], pa.Table],
    settings: Settings,
    placement: StagePlacement,
) -> None:
    """Samples the features of images, unless an earlier run left the sample.

    Args:
        uri: of the file.
        rows: of the images, as `load` takes them; those that cannot be read are passed over.
        load: reads whole images at the size at which they are segmented.
        settings: of the run.
        placement: of the workers.

    Raises:
        UnreadableError: none of the images is usable.
    """
    if not _measured(uri, rows, load, settings, placement):
        raise UnreadableError(f"{rows['uri'][0]}: none of {rows.num_rows} images can be used")


def _measured(
    uri: str,
    rows: pa.Table,
    load: Callable[[pa.Table], pa.Table],
    settings: Settings,
    placement: StagePlacement,
) -> bool:
    """Writes the sample, if it is not there; False if none of the images is usable."""
    if storage.exists(uri):
        return True
    parts = f"{uri}.parts"
    for name in storage.list_names(parts, ".safetensors"):  # of a run that was killed
        storage.remove(storage.join(parts, name))
    with stage_pool("calibrate", settings.models.device, placement, rows.num_rows) as pool:
        pool.run(cut(rows, SHARD), load, SampleWorker(settings, parts))
    # In the order of the shards, so that results do not depend on the order of execution.
    names = sorted(storage.list_names(parts, ".safetensors"))
    if not names:
        return False
    found = [storage.read_bytes(storage.join(parts, name)) for name in names]
    storage.write_bytes(uri, join_samples(found, rows))
    for name in names:
        storage.remove(storage.join(parts, name))
    return True


def sample_of_images(
    uri: str,
    images: pa.Table,
    load: Callable[[pa.Table], pa.Table],
    settings: Settings,
    placement: StagePlacement,
) -> str | None:
    """Samples the features of images that are to be scored, unless the sample is there; arguments as `measure_sample`.

    Args:
        images: all of them, of which `segment.calibrate` evenly spaced ones are measured.

    Returns:
        `uri`; None if scores are not calibrated, there are fewer images, or none of those measured is usable: then the
        sample of the corpus serves.
    """
    count = settings.segment.calibrate
    if not count or images.num_rows < count:
        return None
    rows = images.take(evenly_spaced(images.num_rows, count))
    return uri if _measured(uri, rows, load, settings, placement) else None


def open_sample(uri: str) -> DenseFeatures:
    """Reads a sample.

    Raises:
        UnreadableError: the file is missing or damaged.
    """
    try:
        return from_bytes(storage.read_bytes(uri))
    except Exception as error:  # safetensors has no common base for its errors
        raise UnreadableError(f"{uri}: missing or damaged ({error}): delete it and run again") from error


class SampleWorker(Worker[Report]):
    """Samples the features of the loaded images of a shard."""

    report = Report

    def __init__(self, settings: Settings, folder: str) -> None:
        self._settings, self._folder = settings, folder

    def set_up(self, device: str) -> None:
        """Loads the dense models."""
        self._models = DenseModels.load(self._settings.models, device=device, seed=self._settings.seed)
        self._device = device

    def work(self, name: str, rows: pa.Table) -> Report:
        """Writes the sample of a shard, if any of its images is usable."""
        sample = sample_loaded(self._models, rows, self._device)
        if sample is not None:
            storage.write_bytes(storage.join(self._folder, f"{name}.safetensors"), sample)
        return Report(rows.num_rows)
