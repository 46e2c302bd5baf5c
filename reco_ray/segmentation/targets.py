"""Targets of a ReferenceBank, with or without a background."""

from dataclasses import replace
from typing import Protocol

import torch

from reco_ray.config import SegmentSettings
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.errors import UnfinishedError
from reco_ray.models.dense import DenseFeatures
from reco_ray.segmentation.evidence import calibrate
from reco_ray.segmentation.target_set import BACKGROUND, Targets
from reco_ray.vocabulary import Vocabulary


class HasVocabulary(Protocol):
    """A ReferenceBank, or another object with a vocabulary."""

    @property
    def vocabulary(self) -> Vocabulary: ...


def has_background(bank: HasVocabulary, settings: SegmentSettings) -> bool:
    """Whether label 0 is a background; as `wants_background`."""
    return wants_background(bank.vocabulary, settings)


def wants_background(vocabulary: Vocabulary, settings: SegmentSettings) -> bool:
    """Whether masks of a vocabulary have a background, by the settings or else the vocabulary.

    A single concept always has one by default, since it would otherwise cover every image.
    """
    if settings.background is not None:
        return settings.background
    return vocabulary.background or len(vocabulary.concepts) == 1


def label_names(bank: HasVocabulary, settings: SegmentSettings) -> list[str]:
    """Names of the label ids, in order."""
    names = bank.vocabulary.names
    return ["background", *names] if has_background(bank, settings) else names


def targets_of(
    bank: ReferenceBank, settings: SegmentSettings, sample: DenseFeatures | None = None
) -> Targets:
    """The concepts of the vocabulary, and with a background the context concepts outside the vocabulary as background.

    For example, a location more similar to a road than to any concept of the vocabulary is background.

    Args:
        bank: of the vocabulary.
        settings: of the segmentation.
        sample: features of a sample of the images to segment, for `segment.calibrate`; None: that of the corpus.

    Raises:
        UnfinishedError: scores are to be calibrated, but the bank has no sample of the corpus.
    """
    targets = _uncalibrated(bank, settings)
    if not settings.calibrate:
        return targets
    sample = bank.sample if sample is None else sample
    if sample is None:
        raise UnfinishedError(
            f"{bank.uri}: made without segment.calibrate, which this run asks for: build the references anew, or "
            "set segment.calibrate=0"
        )
    return replace(targets, calibration=calibrate(sample, targets, settings.use))


def _uncalibrated(bank: ReferenceBank, settings: SegmentSettings) -> Targets:
    count = len(bank.vocabulary.concepts)
    if not has_background(bank, settings):
        return Targets(bank.references, bank.text_embeddings, torch.arange(count))
    taken = {bank.vocabulary.context_of(concept) for concept in bank.vocabulary.concepts}
    free = [number for number, name in enumerate(bank.context_names) if name not in taken]
    labels = torch.cat([torch.arange(1, count + 1), torch.full((len(free),), BACKGROUND)])
    return Targets(
        torch.cat([bank.references, bank.context_references[free]]),
        torch.cat([bank.text_embeddings, bank.context_text_embeddings[free]]),
        labels,
        background=True,
    )
