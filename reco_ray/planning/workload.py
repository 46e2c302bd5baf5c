"""The work in the steps of a pipeline: settings, concepts and vocabularies, but not the number of images."""

from collections.abc import Iterator
from dataclasses import dataclass

from reco_ray.config import Settings, load_settings
from reco_ray.contents import SegmenterContent
from reco_ray.corpus.chosen import open_examples
from reco_ray.errors import MissingError, UnfinishedError
from reco_ray.files.artifacts import read_manifest
from reco_ray.pipeline import PipelineStep
from reco_ray.requests import (
    LabelRequest,
    ReferencesRequest,
    SegmentRequest,
    TrainRequest,
    WithSettings,
)
from reco_ray.vocabulary import Concept, Vocabulary
from reco_ray.vocabulary.chosen_images import CHOICES
from reco_ray.vocabulary_sets import curate, load_vocabularies


@dataclass(frozen=True)
class Workload:
    """A stage of a pipeline.

    Attributes:
        name: Name as printed.
        stage: Name of the stage.
        settings: Settings of the step.
        concepts: Number of references to build.
        context: How many of them are context references, which are built one after another.
        sets: Number of vocabularies, sets of pseudo-labels or segmenters.
    """

    name: str
    stage: str
    settings: Settings
    concepts: int = 0
    context: int = 0
    sets: int = 1


def workloads(steps: list[PipelineStep]) -> Iterator[Workload]:
    """The stages of a pipeline in order; `train` from an index consists of three.

    Raises:
        RecoError: If settings or vocabularies cannot be read.
    """
    for step in steps:
        request = step.request
        settings = request.load_settings() if isinstance(request, WithSettings) else load_settings()
        if isinstance(request, ReferencesRequest):
            yield _references("references", [open_examples(request.load_vocabulary(), settings)], settings)
        elif isinstance(request, LabelRequest):
            yield Workload("label", "label", settings, sets=len(request.references))
        elif isinstance(request, SegmentRequest) and request.segmenter:
            yield from _trained(request.segmenter, settings)
        elif not isinstance(request, TrainRequest):
            yield Workload(step.stage, step.stage, settings)
        elif request.labels:
            yield Workload("train", "train", settings, sets=len(request.labels))
        else:
            named = curate(load_vocabularies(request.vocabulary), request.curation)
            vocabularies = [open_examples(vocabulary, settings) for vocabulary in named.values()]
            yield _references("train: references", vocabularies, settings)
            yield Workload("train: label", "label", settings, sets=len(vocabularies))
            yield Workload("train", "train", settings, sets=len(vocabularies))


def _trained(segmenters: list[str], settings: Settings) -> Iterator[Workload]:
    """Masks of trained segmenters, by network; those that are still to be trained are taken as the settings say."""
    counts: dict[tuple[str, int], int] = {}
    for uri in segmenters:
        try:
            content = read_manifest(uri, SegmenterContent).content
            network = content.architecture, content.image_size
        except (MissingError, UnfinishedError):
            network = settings.train.segmenter, settings.train.image_size
        counts[network] = counts.get(network, 0) + 1
    for (segmenter, image_size), sets in counts.items():
        train = settings.train.model_copy(update={"segmenter": segmenter, "image_size": image_size})
        own = settings.model_copy(update={"train": train})
        yield Workload("segment", "segment-trained", own, sets=sets)


def _references(name: str, vocabularies: list[Vocabulary], settings: Settings) -> Workload:
    """The references of several vocabularies; concepts that they share are built once."""
    concepts, context = set(), set()
    for vocabulary in vocabularies:
        own = {concept.name: _made_of(concept) for concept in vocabulary.concepts}
        used = vocabulary.context if settings.references.context_elimination else ()
        made_of = tuple(own.get(name, ((name,),)) for name in used)
        context |= {made_of[: number + 1] for number in range(len(made_of))}
        concepts |= {
            (made_of, _made_of(concept))
            for concept in vocabulary.concepts
            if vocabulary.context_of(concept) not in used
        }
    return Workload(
        name, "references", settings, len(concepts) + len(context), len(context), len(vocabularies)
    )


def _made_of(concept: Concept) -> tuple[object, ...]:
    """Words of a concept, and the images that a person chose for it: references that differ in either are built."""
    return (
        (concept.words, *(getattr(concept, kind) for kind in CHOICES)) if concept.chosen else (concept.words,)
    )
