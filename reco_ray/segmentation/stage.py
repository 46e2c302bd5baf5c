"""The segment stage with references: zero-shot masks of the images of a source."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import Settings
from reco_ray.contents import MasksContent
from reco_ray.corpus.load import ImageLoader, pixels_of, whole_image_loader
from reco_ray.corpus.read import list_images
from reco_ray.cosegmentation.bank import SAMPLE, ReferenceBank
from reco_ray.cosegmentation.sample import open_sample, sample_of_images
from reco_ray.files import artifacts, storage
from reco_ray.models.dense import DenseModels
from reco_ray.models.description import describe_dense_models
from reco_ray.outcome import Outcome
from reco_ray.segmentation.mask_run import MaskJob, make_masks, masks_writer, plan_masks
from reco_ray.segmentation.mask_worker import LabelledRow, Labeller
from reco_ray.segmentation.palette import palette
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import has_background, label_names, targets_of


def segment_images(
    references: str,
    images: str,
    out: str,
    settings: Settings,
    *,
    renew: bool = False,
    report: bool = False,
) -> Outcome:
    """Segments all images of a source with a ReferenceBank, on the connected Ray cluster.

    Args:
        references: URI of the ReferenceBank.
        images: URI of the source.
        out: URI of the masks artifact.
        settings: of the run.
        renew: update masks of the same references and settings to the source; replace those of others.
        report: write a page into the artifact.

    Raises:
        RecoError: a bank of other models, no images, none usable, or unwritable output.
    """
    dense = describe_dense_models(settings.models, settings.seed)
    bank = ReferenceBank.open(references, dense.fingerprint)
    listing = list_images(images, image_column=settings.image_column)
    made_with = {
        "references": bank.uri,
        "references_digest": bank.digest,
        "models": dense.fingerprint,
        **settings.named("segment"),
    }
    writer = masks_writer(out, images, listing, settings, made_with)
    plan = plan_masks(writer, listing, settings, renew=renew)
    if isinstance(plan, artifacts.Manifest):
        return Outcome("segment", writer.uri, plan, new=False)
    load = whole_image_loader(dense.transform, dense.stride, settings.segment)
    labels = label_names(bank, settings.segment)
    colours = palette(len(labels), background=has_background(bank, settings.segment)).tolist()
    content = MasksContent(labels=labels, palette=colours, references=bank.uri)
    sample = _sample(writer.uri, plan.images, load, settings, begun=plan.done > 0)
    labeller = ReferenceLabeller(settings, bank.uri, sample, len(labels))
    job = MaskJob(plan, labeller, content, "segment", settings)
    return make_masks([job], images, listing, load, settings, report=report)[0]


def _sample(out: str, images: pa.Table, load: ImageLoader, settings: Settings, *, begun: bool) -> str | None:
    """URI of the feature sample that the images are scored with; None: that of the corpus.

    Once there are masks, later ones are scored as they were, so that masks of a set of images that grows or shrinks
    stay comparable.
    """
    uri = storage.join(out, SAMPLE)
    if begun:
        return uri if settings.segment.calibrate and storage.exists(uri) else None
    storage.remove(uri)  # of a run that ended before its first mask; the images may be others now
    return sample_of_images(uri, images, load, settings, settings.placement.segment)


class ReferenceLabeller(Labeller):
    """Labels images with references.

    Args:
        settings: of the run.
        bank: URI of the references.
        sample: URI of the feature sample of the images; None: that of the corpus.
        labels: number of label ids.
    """

    def __init__(self, settings: Settings, bank: str, sample: str | None, labels: int) -> None:
        self._settings, self._bank, self._sample, self._labels = settings, bank, sample, labels

    def set_up(self, device: str) -> None:
        """Loads the dense models and the references."""
        settings = self._settings
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        bank = ReferenceBank.open(self._bank, self._models.fingerprint)
        sample = None if self._sample is None else open_sample(self._sample)
        self._targets = targets_of(bank, settings.segment, sample).to(device)
        self._device = device

    def label(self, images: pa.Table) -> Iterator[LabelledRow]:
        """Labels one image at a time, since features of many locations take much memory."""
        sizes = zip(images["height"].to_pylist(), images["width"].to_pylist(), strict=True)
        for row, size in enumerate(sizes):
            pixels: np.ndarray = pixels_of(images, row)
            batch = torch.from_numpy(pixels.copy())[None].to(self._device)
            (found,) = segment(self._models, self._targets, batch, [size], self._settings.segment)
            yield LabelledRow.of(row, pixels, found, self._labels)
