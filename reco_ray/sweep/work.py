"""What a trial is made of: encoded images, references, scores. Pure functions; `shared.py` runs them on Ray.

Encoding is what costs, and depends on little: the dense models, the size, and how an image is cut. So it is apart from
all that settings change more often.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from reco_ray.config import ModelSettings, SegmentSettings, Settings
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.cosegmentation.bank import ReferenceBank, bank_of
from reco_ray.cosegmentation.build import Evidence, find_evidence, unreadable_exemplar
from reco_ray.cosegmentation.plan import ReferencePlan, plan_references
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.cosegmentation.references import co_reference_of
from reco_ray.errors import RecoError
from reco_ray.evaluation.dataset import Dataset
from reco_ray.evaluation.metrics import confusion_matrix, scores
from reco_ray.models import load_language_image_model
from reco_ray.models.dense import DenseFeatures, DenseModels
from reco_ray.segmentation.score import concept_scores
from reco_ray.segmentation.segment import Targets, score_factors, segment
from reco_ray.segmentation.targets import label_names, targets_of
from reco_ray.sweep.scores import (
    chance_corrected_agreement,
    label_counts,
    prediction_entropy,
    seed_agreement,
    support_margin,
)
from reco_ray.vocabulary import Vocabulary

AUGMENTED_SCALE = 0.75  # of the size at which images are segmented


# --- encoded images -----------------------------------------------------------------------------------------


class View(NamedTuple):
    """All that determines the features of an image.

    shape: "whole" or "crop", exemplars as in `references.geometry`; "fit", images to segment. size: pixels.
    """

    models: ModelSettings
    seed: int
    shape: Literal["whole", "crop", "fit"]
    size: int
    max_pixels: int
    mirrored: bool = False


def exemplar_view(settings: Settings) -> View:
    """How exemplars are seen."""
    options = settings.references
    return View(
        _dense(settings), settings.seed, options.geometry, options.image_size, settings.embed.max_pixels
    )


def image_view(settings: Settings) -> View:
    """How the images to segment are seen."""
    options = settings.segment
    return View(_dense(settings), settings.seed, "fit", options.image_size, options.max_pixels)


def augmented_view(settings: Settings) -> View:
    """The same images mirrored, at three quarters of the size: nothing that is in them has changed."""
    view = image_view(settings)
    return view._replace(size=max(32, round(view.size * AUGMENTED_SCALE)), mirrored=True)


def _dense(settings: Settings) -> ModelSettings:
    """The models without what dense features do not depend on: the corpus's model and the prompts."""
    language = settings.models.language or settings.models.retrieval
    return settings.models.model_copy(
        update={"retrieval": language, "language": language, "templates": "plain"}
    )


@dataclass(frozen=True)
class Encoded:
    """One image. size: (height, width) of the original. visual, language: float16 (c, h, w), at half the memory of
    float32. pixels: uint8 (H, W, 3), as the models saw them; none of an exemplar. reason: why there is nothing else."""

    uri: str
    size: tuple[int, int] = (0, 0)
    visual: np.ndarray | None = None
    language: np.ndarray | None = None
    pixels: np.ndarray | None = None
    reason: str | None = None


def encode(view: View, uris: list[str], device: str) -> list[Encoded]:
    """Reads and encodes images; one that cannot be used has a reason instead.

    Raises:
        RecoError: the models cannot be loaded.
    """
    models = _models(view.models, view.seed, device)
    transform, stride = models.encoder.transform, models.encoder.stride

    def to_pixels(image: Image.Image) -> np.ndarray:
        image = ImageOps.mirror(image) if view.mirrored else image
        if view.shape == "fit":
            return transform.fit(image, view.size, stride)
        return (transform.stretch if view.shape == "whole" else transform.crop)(image, view.size)

    rows = load_images(uris, to_pixels, max_pixels=view.max_pixels, short_side=view.size)
    found = [Encoded(uri, reason=why) for uri, why in zip(uris, rows["reason"].to_pylist(), strict=True)]
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in (row for row, image in enumerate(found) if image.reason is None):
        alike[pixels_of(rows, row).shape].append(row)
    for numbers in alike.values():
        pixels = [pixels_of(rows, row).copy() for row in numbers]
        features = models.encode(torch.from_numpy(np.stack(pixels)).to(device))
        visual, language = (maps.half().cpu().numpy() for maps in (features.visual, features.language))
        for place, row in enumerate(numbers):
            found[row] = Encoded(
                uris[row],
                (rows["height"][row].as_py(), rows["width"][row].as_py()),
                visual[place].copy(),
                language[place].copy(),
                pixels[place] if view.shape == "fit" else None,
            )
    return found


@lru_cache(maxsize=1)
def _models(models: ModelSettings, seed: int, device: str) -> DenseModels:
    """Kept by the worker process from one task to the next."""
    return DenseModels.load(models, device=device, seed=seed)


def _features(images: list[Encoded], device: str) -> DenseFeatures:
    visual, language = (
        torch.from_numpy(np.stack([getattr(image, name) for image in images])).to(device).float()
        for name in ("visual", "language")
    )
    return DenseFeatures(visual, language)


# --- references ---------------------------------------------------------------------------------------------


class PlannedReferences(NamedTuple):
    """The plan of a vocabulary's references, with what they are to be built from."""

    plan: ReferencePlan
    evidence: Evidence


def plan_trial_references(settings: Settings, vocabulary: Vocabulary, index_uri: str) -> PlannedReferences:
    """Plans the references of a vocabulary and finds their exemplars, as the stage of references does.

    Raises:
        RecoError: unfit index, more exemplars than images.
    """
    models = settings.models
    dense = _models(models, settings.seed, "cpu")
    retrieval = dense.language
    if models.language is not None:
        retrieval = load_language_image_model(models.retrieval, weights=models.weights, seed=settings.seed)
    index = CorpusIndex(index_uri, retrieval.fingerprint)
    plan = plan_references(
        vocabulary, settings, index.uri, index.manifest.made_at, retrieval.fingerprint, dense.fingerprint
    )
    return PlannedReferences(plan, find_evidence(plan, index, retrieval, dense.language, settings))


@dataclass(frozen=True)
class TrialReference:
    """One reference in memory, and its scores that need no other image.

    tensors: `reference`, `prototypes`, `text_embedding`, as of `build_concept`. seed_agreement: None with a single
    exemplar.
    """

    tensors: dict[str, torch.Tensor]
    seed_agreement: float | None
    support_margin: float


def build_reference(
    settings: Settings, text: np.ndarray, device: str, context: int, *inputs: Any
) -> TrialReference:
    """Co-segments the encoded exemplars of one concept, as the stage of references does.

    Args:
        settings: of the trial.
        text: float32 (d,), the text embedding of the dense language model.
        device: to compute on.
        context: how many of the inputs are context references.
        inputs: that many `TrialReference`s, then the concept's exemplars, `Encoded`, in order of rank.

    Raises:
        RecoError: an exemplar cannot be read any more.
    """
    known, exemplars = inputs[:context], list(inputs[context:])
    for image in exemplars:
        if image.reason is not None:
            raise unreadable_exemplar(image.uri, image.reason)
    result = co_reference_of(
        _features(exemplars, device),
        torch.from_numpy(text.copy()).to(device),
        torch.stack([each.tensors["reference"].to(device) for each in known]) if known else None,
        settings.references,
    )
    tensors = {
        "reference": result.reference.cpu(),
        "prototypes": prototypes(result, settings.references.prototypes).cpu(),
        "text_embedding": torch.from_numpy(text.copy()),
    }
    agreement = seed_agreement(result.seed_features) if len(exemplars) > 1 else None
    return TrialReference(tensors, agreement, support_margin(result.support))


@dataclass(frozen=True)
class Bank:
    """References in memory, and their scores that need no other image, means over the concepts.

    seed_agreement: None with a single exemplar.
    """

    references: ReferenceBank
    seed_agreement: float | None
    support_margin: float


def build_bank(planned: PlannedReferences, *built: TrialReference) -> Bank:
    """Gathers the references of a vocabulary.

    Args:
        planned: the plan.
        built: in the order of its steps that are co-segmented.
    """
    plan = planned.plan
    own = [step for step in plan.steps if step.same_as is None]
    found = {step.id: reference for step, reference in zip(own, built, strict=True)}
    for step in plan.steps:
        if step.same_as is not None:
            source = found[step.same_as]
            text = torch.from_numpy(planned.evidence.texts[step.id].copy())
            found[step.id] = replace(source, tensors={**source.tensors, "text_embedding": text})
    concepts = [found[each] for each in plan.ids]
    agreements = [each.seed_agreement for each in concepts if each.seed_agreement is not None]
    return Bank(
        bank_of(plan, {each: reference.tensors for each, reference in found.items()}),
        float(np.mean(agreements)) if agreements else None,
        float(np.mean([each.support_margin for each in concepts])),
    )


# --- scores -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """What was counted on some images; tallies of other images are added to it.

    images: how many could be used. entropy: the sum of theirs, None where there is a single target. confusion: int64
    (m, m + 1), None without labels. agreement: int64 (l, l) by label, of the images and their augmented views, None
    where those were not asked for.
    """

    images: int
    entropy: float | None
    confusion: np.ndarray | None
    agreement: np.ndarray | None

    def __add__(self, other: "Tally") -> "Tally":
        def total(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else mine + theirs

        return Tally(*(total(name) for name in ("images", "entropy", "confusion", "agreement")))


def tally(
    settings: Settings, bank: Bank, labels: Dataset | None, augmented: bool, device: str, *encoded: Encoded
) -> Tally:
    """Segments images and counts what the scores are made of.

    Args:
        labels: its samples are the images, in their order. augmented: whether the images are followed by their
            augmented views.

    Raises:
        RecoError: an image of a labelled data set cannot be used, or a label file does not match it. Unlabelled images
            that cannot be used are left out.
    """
    options = settings.segment
    targets = targets_of(bank.references, options).to(device)
    count = len(label_names(bank.references, options))
    images = encoded[: len(encoded) // 2] if augmented else encoded
    classes = 0 if labels is None else len(labels.classes)
    confusion = np.zeros((classes, classes + 1), np.int64)
    agreement = torch.zeros(count, count, dtype=torch.int64)
    used, entropy = 0, 0.0
    for number, image in enumerate(images):
        if image.reason is not None or image.pixels is None:
            if labels is not None:
                raise RecoError(f"{image.uri}: {image.reason}: every image of a benchmark is needed")
            continue
        truth = None
        if labels is not None:
            truth = labels.truth(labels.samples[number], image.size)
        size = image.pixels.shape[:2] if truth is None else truth.shape
        features = _features([image], device)
        used += 1
        if len(targets.labels) > 1:
            entropy += prediction_entropy(concept_scores(**score_factors(features, targets, options))[0])
        if truth is None and not augmented:
            continue
        predicted = _labels(image, features, targets, size, options)
        if labels is not None and truth is not None:
            found = np.array(labels.class_of)[predicted.numpy()]
            confusion += confusion_matrix(truth, found, classes)
        if augmented:
            view = encoded[len(images) + number]
            again = _labels(view, _features([view], device), targets, size, options)
            agreement += label_counts(predicted, again.flip(1), count)
    return Tally(
        used,
        entropy if len(targets.labels) > 1 else None,
        confusion if labels is not None else None,
        agreement.numpy() if augmented else None,
    )


def _labels(
    image: Encoded, features: DenseFeatures, targets: Targets, size: tuple[int, int], options: SegmentSettings
) -> torch.Tensor:
    """int64 (H, W), label ids, on the CPU."""
    assert image.pixels is not None, "an image to segment keeps its pixels"
    pixels = torch.from_numpy(image.pixels.copy())[None].to(features.visual.device)
    return segment(_Known(features), targets, pixels, [size], options)[0].labels.long().cpu()


@dataclass(frozen=True)
class _Known:
    """An image's features in place of the models that made them."""

    features: DenseFeatures

    def encode(self, pixels: torch.Tensor) -> DenseFeatures:
        """The features, whatever the pixels."""
        return self.features


def figures(bank: Bank, counted: Tally, measured: list[str]) -> dict[str, float | None]:
    """The scores by name; None where one has no meaning: one exemplar, one concept, or no image that can be used."""
    found: dict[str, float | None] = {
        "seed_agreement": bank.seed_agreement,
        "support_margin": bank.support_margin,
        "prediction_entropy": None,
        "miou": None,
        "augmentation_agreement": None,
    }
    if counted.images:
        if counted.entropy is not None:
            found["prediction_entropy"] = counted.entropy / counted.images
        if counted.confusion is not None:
            found["miou"] = scores(counted.confusion)["miou"]
        if counted.agreement is not None:
            found["augmentation_agreement"] = chance_corrected_agreement(torch.from_numpy(counted.agreement))
    return {name: found[name] for name in measured}
