"""What the steps of a pipeline ask for: settings, concepts, vocabularies; not images, of which one plans any number."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reco_ray.config import Settings
from reco_ray.pipeline import Step, parameters
from reco_ray.vocabulary import Vocabulary

_SHORT = ("exemplars", "refine", "device", "weights")


@dataclass(frozen=True)
class Work:
    """A stage of a pipeline.

    name: as it is printed. concepts: references to build, the first `context` of each set one after another.
    sets: vocabularies: of references, of pseudo-labels, or segmenters.
    """

    name: str
    stage: str
    settings: Settings
    concepts: int = 0
    context: int = 0
    sets: int = 1


def works(steps: list[Step]) -> Iterator[Work]:
    """The stages of a pipeline in order; `train` from an index is three of them.

    Raises:
        RecoError: settings or vocabularies that cannot be read.
    """
    for step in steps:
        given = parameters(step)
        settings = _settings(step.stage, given)
        if step.stage == "references":
            yield _references("references", [_vocabulary(given)], settings)
        elif step.stage == "label":
            yield Work("label", "label", settings, sets=len(given["references"]))
        elif step.stage != "train":
            yield Work(step.stage, step.stage, settings)
        elif given["labels"]:
            yield Work("train", "train", settings, sets=len(given["labels"]))
        else:
            from reco_ray.cli.training import vocabularies_of

            vocabularies = list(vocabularies_of(given["vocabulary"] or []).values())
            yield _references("train: references", vocabularies, settings)
            yield Work("train: label", "label", settings, sets=len(vocabularies))
            yield Work("train", "train", settings, sets=len(vocabularies))


def _settings(stage: str, given: dict[str, Any]) -> Settings:
    from reco_ray.cli.options import settings_of

    overrides = [*(given.get("set_") or [])]
    if given.get("steps") is not None:
        overrides.append(f"train.steps={given['steps']}")
    short = {name: given[name] for name in _SHORT if name in given}
    return settings_of(given.get("preset") or "mini", given.get("settings"), overrides, **short)


def _vocabulary(given: dict[str, Any]) -> Vocabulary:
    from reco_ray.cli.options import vocabulary_of

    return vocabulary_of(given["concepts"], given["vocabulary"])


def _references(name: str, vocabularies: list[Vocabulary], settings: Settings) -> Work:
    concepts = context = 0
    for vocabulary in vocabularies:
        shared = vocabulary.context if settings.references.context_elimination else ()
        context += len(shared)
        concepts += len(shared) + sum(vocabulary.context_of(c) not in shared for c in vocabulary.concepts)
    return Work(name, "references", settings, concepts, context, len(vocabularies))
