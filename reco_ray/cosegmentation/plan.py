"""Which references a vocabulary needs, in which order, and the name under which each is stored. No Ray, no files.

The one place that decides the order of the context concepts, what a reference depends on, and the recipe of the
ReferenceBank. The stage, the server, training of many vocabularies and sweeps all build what a plan says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reco_ray.config import Settings
from reco_ray.storage import digest
from reco_ray.vocabulary import Concept, Vocabulary


@dataclass(frozen=True)
class Step:
    """One reference.

    id: digest of all that determines it, and its name in a `ConceptStore`. context: ids of the context references that
    weigh its exemplars, in order. same_as: id of the context reference that an alias takes over; only its text
    embedding is its own. None if the reference is co-segmented.
    """

    id: str
    concept: Concept
    context: tuple[str, ...] = ()
    same_as: str | None = None


@dataclass(frozen=True)
class ReferencePlan:
    """The references of a vocabulary.

    made_from: all that determines the ReferenceBank, as its manifest keeps it. model: fingerprint of the dense models.
    steps: each reference once, after those it depends on: context concepts, then the vocabulary's other concepts.
    ids: of the vocabulary's concepts, in its order. context: names of the context concepts. context_ids: theirs.
    """

    vocabulary: Vocabulary
    made_from: dict[str, Any]
    model: str
    steps: tuple[Step, ...]
    ids: tuple[str, ...]
    context: tuple[str, ...]
    context_ids: tuple[str, ...]

    @property
    def content(self) -> dict[str, Any]:
        """What the manifest of the ReferenceBank says of its files."""
        return {
            "vocabulary": self.vocabulary.model_dump(),
            "context": list(self.context),
            "model": self.model,
        }

    @property
    def key(self) -> str:
        """Digest of the references; vocabularies that differ only in having a background share it."""
        recipe = {key: value for key, value in self.made_from.items() if key != "vocabulary"}
        names = sorted(zip(self.vocabulary.names, self.ids, strict=True))
        return digest(recipe, self.vocabulary.model_dump(exclude={"background"}), names)


def plan_references(
    vocabulary: Vocabulary, settings: Settings, index: str, index_made_at: str, retrieval: str, dense: str
) -> ReferencePlan:
    """Plans the references of a vocabulary (ReCo, section 3.3).

    The context concepts come first, in their order, each with those before it as its context; every other concept has
    all of them. A concept that is itself a context concept uses that reference.

    Args:
        vocabulary: concepts and the names of their context concepts.
        settings: `models.templates` and `references`.
        index: URI of the index.
        index_made_at: when it was made, from its manifest.
        retrieval: fingerprint of the retrieval model.
        dense: fingerprint of the dense models.
    """
    recipe: dict[str, Any] = {
        "index": index,
        "index_made_at": index_made_at,
        "models": f"{retrieval} + {dense}",
        "models.templates": settings.models.templates,
        **settings.named("references"),
    }
    own = {concept.name: concept for concept in vocabulary.concepts}
    context = list(vocabulary.context) if settings.references.context_elimination else []
    concepts = [own.get(name, Concept(name=name)) for name in context]
    words = [list(concept.words) for concept in concepts]
    context_ids = tuple(digest(recipe, "context", words[: number + 1]) for number in range(len(context)))
    steps = {
        each: Step(each, concept, context_ids[:number])
        for number, (each, concept) in enumerate(zip(context_ids, concepts, strict=True))
    }
    of_context = dict(zip(context, context_ids, strict=True))
    ids = []
    for concept in vocabulary.concepts:
        source = of_context.get(vocabulary.context_of(concept) or "")
        if source is None:
            step = Step(digest(recipe, words, list(concept.words)), concept, context_ids)
        elif concept.name == vocabulary.context_of(concept):
            step = steps[source]
        else:
            step = Step(digest(recipe, "alias", source, list(concept.words)), concept, same_as=source)
        steps.setdefault(step.id, step)
        ids.append(step.id)
    return ReferencePlan(
        vocabulary=vocabulary,
        made_from={**recipe, "vocabulary": vocabulary.model_dump()},
        model=dense,
        steps=tuple(steps.values()),
        ids=tuple(ids),
        context=tuple(context),
        context_ids=context_ids,
    )


def unique_steps(plans: Iterable[ReferencePlan]) -> dict[str, Step]:
    """The steps of several plans by id, each once, after those it depends on."""
    return {step.id: step for plan in plans for step in plan.steps}


def sequences(steps: Iterable[Step]) -> tuple[dict[str, list[Step]], list[Step]]:
    """Splits co-segmented steps into those that other steps depend on and all others.

    Returns:
        The context steps, in sequences that are independent of each other, by the id of their first; the others, each
        of which can be built by itself once the sequences are.
    """
    built = [step for step in steps if step.same_as is None]
    needed = {each for step in built for each in step.context}
    context: dict[str, list[Step]] = {}
    for step in built:
        if step.id in needed:
            context.setdefault((*step.context, step.id)[0], []).append(step)
    return context, [step for step in built if step.id not in needed]
