"""The segment stage with trained segmenters: masks of the images of a source, by one or several in one pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import Settings
from reco_ray.contents import MasksContent, SegmenterContent
from reco_ray.corpus.load import ImageLoader, ToPixels, pixels_of
from reco_ray.corpus.read import list_images
from reco_ray.errors import SettingError
from reco_ray.files import artifacts
from reco_ray.outcome import Outcome
from reco_ray.segmentation.mask_run import MaskJob, MaskPlan, make_masks, masks_writer, plan_masks
from reco_ray.segmentation.mask_worker import LabelledRow, Labeller
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.refine import require_refinement
from reco_ray.training.segmenter import Segmenter

RATE = "segment-trained"  # the stage's name among rates
# Settings of references, which a trained segmenter has no use for.
_OF_REFERENCES = ("image_size", "use", "calibrate", "prefilter")
_GPU_BATCH, _GPU_LOGITS = 32, 1 << 30  # images of a pass on a GPU, and bytes of their logits, at most


@dataclass(frozen=True)
class ChosenSegmenter:
    """A segmenter that is to make masks.

    Attributes:
        name: by which the user tells it from others.
        segmenter: opened on the CPU.
        digest: of its files.
        settings: of the run, with architecture and image size of the segmenter.
    """

    name: str
    segmenter: Segmenter
    digest: str
    settings: Settings

    @property
    def background(self) -> bool:
        """Whether label 0 of its masks is the background."""
        wish = self.settings.segment.background
        return self.segmenter.background if wish is None else wish

    @property
    def labels(self) -> list[str]:
        """Names of the label ids of its masks."""
        return self.segmenter.label_names(self.background)


def choose_segmenters(uris: dict[str, str], settings: Settings) -> list[ChosenSegmenter]:
    """Opens segmenters, so that a missing or damaged one, or a missing package, is found before the work begins.

    Args:
        uris: of the segmenters, by name.
        settings: of the run.

    Raises:
        RecoError: one cannot be opened, or cannot be used with the settings.
    """
    require_refinement(settings.segment.refine)
    return [_choose(name, uri, settings) for name, uri in uris.items()]


def _choose(name: str, uri: str, settings: Settings) -> ChosenSegmenter:
    manifest = artifacts.read_manifest(uri, SegmenterContent)
    # On the CPU of the driver, where not every precision of the workers' devices can be had.
    segmenter = Segmenter.from_artifact(uri, precision="fp32")
    wish = settings.segment
    if wish.background and not segmenter.background and not wish.background_threshold:
        raise SettingError(
            f"{uri}: was trained without a background, so that segment.background needs a threshold: set "
            "segment.background_threshold, such as 0.5, or train a segmenter with segment.background=true"
        )
    known = {"segmenter": manifest.content.architecture, "image_size": segmenter.image_size}
    own = settings.model_copy(update={"train": settings.train.model_copy(update=known)})
    digest = manifest.checksums.sha256 if manifest.checksums else manifest.made_at
    return ChosenSegmenter(name, segmenter, digest, own)


def segment_trained(
    chosen: Sequence[ChosenSegmenter],
    images: str,
    outs: Sequence[str],
    settings: Settings,
    *,
    renew: bool = False,
    report: bool = False,
) -> list[Outcome]:
    """Segments all images of a source with trained segmenters, on the connected Ray cluster.

    Images are read and decoded once for all segmenters; those that take another size resize the same decoded image.

    Args:
        chosen: the segmenters, of `choose_segmenters`.
        images: URI of the source.
        outs: URI of the masks artifact of each.
        settings: of the run.
        renew: as `plan_masks`.
        report: write a page into every artifact.

    Returns:
        Outcomes in the order of the segmenters.

    Raises:
        RecoError: no images, none usable, or unwritable output.
    """
    listing = list_images(images, image_column=settings.image_column)
    plans: dict[str, MaskPlan] = {}
    finished: dict[str, Outcome] = {}
    for one, out in zip(chosen, outs, strict=True):
        made_with = {
            "segmenter": one.segmenter.uri,
            "segmenter_digest": one.digest,
            **settings.named("segment", without=_OF_REFERENCES),
        }
        writer = masks_writer(out, images, listing, settings, made_with)
        plan = plan_masks(writer, listing, settings, renew=renew)
        if isinstance(plan, artifacts.Manifest):
            finished[one.name] = Outcome("segment", writer.uri, plan, new=False, name=one.name)
        else:
            plans[one.name] = plan
    pending = [one for one in chosen if one.name in plans]
    formats = list(dict.fromkeys(_format(one.segmenter) for one in pending))
    jobs = [_job(one, plans[one.name], formats.index(_format(one.segmenter))) for one in pending]
    if jobs:
        load = _loader([one.segmenter for one in pending], settings)
        made = make_masks(jobs, images, listing, load, settings, report=report)
        finished |= {outcome.name: outcome for outcome in made}
    return [finished[one.name] for one in chosen]


def _job(one: ChosenSegmenter, plan: MaskPlan, version: int) -> MaskJob:
    labels = one.labels
    colours = palette(len(labels), background=one.background).tolist()
    content = MasksContent(labels=labels, palette=colours, segmenter=one.segmenter.uri)
    labeller = TrainedLabeller(one.segmenter.uri, one.settings, version, len(labels))
    return MaskJob(plan, labeller, content, RATE, one.settings, one.name)


def _format(segmenter: Segmenter) -> tuple[str, int, int]:
    """Segmenters of one format take the same pixels."""
    network = segmenter.network
    return network.transform.interpolation, segmenter.image_size, network.stride


def _loader(segmenters: Sequence[Segmenter], settings: Settings) -> ImageLoader:
    """Loads every image once, in each of the formats, in the order in which they occur."""
    formats: dict[tuple[str, int, int], ToPixels] = {}
    for segmenter in segmenters:
        formats.setdefault(_format(segmenter), segmenter.to_pixels)
    first, *further = formats.values()
    largest = max(segmenter.image_size for segmenter in segmenters)
    return ImageLoader(first, short_side=largest, max_pixels=settings.segment.max_pixels, further=further)


class TrainedLabeller(Labeller):
    """Labels images with a trained segmenter.

    Args:
        segmenter: URI.
        settings: of the run.
        version: which version of the loaded pixels it takes, as of `pixels_of`.
        labels: number of label ids.
    """

    def __init__(self, segmenter: str, settings: Settings, version: int, labels: int) -> None:
        self._uri, self._settings, self._version, self._labels = segmenter, settings, version, labels

    def set_up(self, device: str) -> None:
        """Loads the network."""
        precision = self._settings.models.precision
        self._segmenter = Segmenter.from_artifact(self._uri, device=device, precision=precision)
        self._gpu = device.startswith("cuda")

    def label(self, images: pa.Table) -> Iterator[LabelledRow]:
        """Labels images of one size together on a GPU; on a CPU a batch gains nothing, and takes more memory."""
        options = self._settings.segment
        sizes = list(zip(images["height"].to_pylist(), images["width"].to_pylist(), strict=True))
        alike: dict[tuple[int, ...], list[int]] = {}
        for row in range(images.num_rows):
            alike.setdefault(pixels_of(images, row, self._version).shape, []).append(row)
        for shape, rows in alike.items():
            size = self._batch_size(shape)
            for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
                stacked = np.stack([pixels_of(images, row, self._version) for row in batch])
                pixels = torch.from_numpy(stacked)
                logits = self._segmenter.logits(pixels)
                for number, row in enumerate(batch):
                    found = self._segmenter.label(
                        logits[number], pixels[number], sizes[row], options, options.background
                    )
                    yield LabelledRow.of(row, stacked[number], found, self._labels)

    def _batch_size(self, shape: tuple[int, ...]) -> int:
        if not self._gpu:
            return 1
        logits = 4 * len(self._segmenter.labels) * shape[0] * shape[1]
        return max(1, min(_GPU_BATCH, _GPU_LOGITS // logits))
