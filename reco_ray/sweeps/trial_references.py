"""References of a trial, built in memory from encoded exemplars. Pure functions; `shared_tasks.py` runs them on Ray."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from reco_ray.config import Settings
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.regions import Region
from reco_ray.cosegmentation.bank import ReferenceBank, assemble_bank
from reco_ray.cosegmentation.build import (
    ReferenceInputs,
    plan_for_index,
    prepare_inputs,
    unreadable_exemplar,
)
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.cosegmentation.reference_plan import ReferencePlan
from reco_ray.cosegmentation.references import reference_from_features
from reco_ray.cosegmentation.sample import sample_rows
from reco_ray.models.dense import load_retrieval_model
from reco_ray.sweeps.encoded_images import cached_models, features_of
from reco_ray.sweeps.scores import seed_agreement, support_margin
from reco_ray.vocabulary import Vocabulary


class PlannedReferences(NamedTuple):
    """The plan of a vocabulary's references, with their exemplars and text embeddings.

    Attributes:
        plan: The plan.
        evidence: Exemplars and text embeddings.
        corpus: URIs of images of the index to calibrate over; empty with `segment.calibrate=0`.
    """

    plan: ReferencePlan
    evidence: ReferenceInputs
    corpus: list[str]


def plan_trial_references(settings: Settings, vocabulary: Vocabulary, index_uri: str) -> PlannedReferences:
    """Plans the references of a vocabulary and retrieves their exemplars, as the references stage does.

    Raises:
        RecoError: If the index was made with another model or holds fewer images than exemplars are needed.
    """
    models = settings.models
    dense = cached_models(models, settings.seed, "cpu")
    retrieval = load_retrieval_model(models, seed=settings.seed, dense=dense)
    index = CorpusIndex(index_uri, retrieval.fingerprint, settings.references.duplicates)
    plan = plan_for_index(vocabulary, index, settings, dense.fingerprint)
    calibrate = settings.segment.calibrate
    corpus = sample_rows(index, calibrate)["uri"].to_pylist() if calibrate else []
    return PlannedReferences(plan, prepare_inputs(plan, index, retrieval, dense.language, settings), corpus)


@dataclass(frozen=True)
class TrialReference:
    """One reference in memory, with the scores that come from its co-segmentation.

    Attributes:
        tensors: `reference`, `prototypes` and `text_embedding`, as `build_concept` returns them.
        seed_agreement: None if there is a single exemplar.
        support_margin: See `reco_ray.sweeps.scores`.
    """

    tensors: dict[str, torch.Tensor]
    seed_agreement: float | None
    support_margin: float


def build_reference(
    settings: Settings,
    text: np.ndarray,
    regions: list[Region | None],
    device: str,
    context: int,
    *inputs: Any,
) -> TrialReference:
    """Co-segments the encoded exemplars of one concept, as the references stage does.

    Args:
        settings: Settings of the trial.
        text: float32 (d,), text embedding of the dense language model.
        regions: Where the seed of each exemplar may lie; None for anywhere.
        device: Torch device.
        context: Number of context references at the start of `inputs`.
        *inputs: `TrialReference` of each context concept, then `Encoded` of each exemplar by rank.

    Raises:
        UnreadableError: If an exemplar can no longer be read.
    """
    known, exemplars = inputs[:context], list(inputs[context:])
    for image in exemplars:
        if image.reason is not None:
            raise unreadable_exemplar(image.uri, image.reason)
    result = reference_from_features(
        features_of(exemplars, device),
        torch.from_numpy(text.copy()).to(device),
        torch.stack([each.tensors["reference"].to(device) for each in known]) if known else None,
        settings.references,
        regions,
    )
    tensors = {
        "reference": result.reference.cpu(),
        "prototypes": prototypes(result, settings.references.prototypes).cpu(),
        "text_embedding": torch.from_numpy(text.copy()),
    }
    agreement = seed_agreement(result.seed_features) if len(exemplars) > 1 else None
    return TrialReference(tensors, agreement, support_margin(result.support))


@dataclass(frozen=True)
class TrialBank:
    """The references of a vocabulary in memory, with their scores averaged over the concepts.

    Attributes:
        references: The bank to segment with.
        seed_agreement: None if there is a single exemplar.
        support_margin: See `reco_ray.sweeps.scores`.
    """

    references: ReferenceBank
    seed_agreement: float | None
    support_margin: float


def build_bank(planned: PlannedReferences, *built: TrialReference) -> TrialBank:
    """Collects the references of a vocabulary.

    Args:
        planned: The plan.
        *built: The references of the steps that are co-segmented, in the order of the plan.
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
    return TrialBank(
        assemble_bank(plan, {each: reference.tensors for each, reference in found.items()}),
        float(np.mean(agreements)) if agreements else None,
        float(np.mean([each.support_margin for each in concepts])),
    )
