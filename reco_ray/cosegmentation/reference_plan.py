"""Plans the references of a vocabulary: their order, dependencies and content ids. No Ray, no files.

Used by the stage, the server, training of many vocabularies and sweeps, so that all build the same references.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from reco_ray.config import Settings
from reco_ray.contents import ReferencesContent
from reco_ray.files.storage import digest
from reco_ray.vocabulary import Concept, Vocabulary


@dataclass(frozen=True)
class Step:
    """One reference to build.

    Attributes:
        id: digest of everything that determines the reference; its key in a `ConceptStore`.
        concept: name, synonyms, and the images that were chosen.
        context: ids of the context references used for context elimination, in order.
        same_as: for an alias, the id of the context reference that it uses, with a text embedding of its own; None if
            the reference is co-segmented.
    """

    id: str
    concept: Concept
    context: tuple[str, ...] = ()
    same_as: str | None = None


@dataclass(frozen=True)
class ReferencePlan:
    """The references of a vocabulary.

    Attributes:
        vocabulary: the concepts.
        made_from: everything that determines the ReferenceBank, for its manifest.
        model: fingerprint of the dense models.
        steps: each reference once, after its dependencies: context concepts, then the other concepts.
        ids: of the concepts, in the order of the vocabulary.
        context: names of the context concepts.
        context_ids: of the context concepts.
        sample_id: digest of everything that determines the corpus' feature sample; None: scores are not calibrated.
    """

    vocabulary: Vocabulary
    made_from: dict[str, object]
    model: str
    steps: tuple[Step, ...]
    ids: tuple[str, ...]
    context: tuple[str, ...]
    context_ids: tuple[str, ...]
    sample_id: str | None = None

    @property
    def entries(self) -> tuple[str, ...]:
        """Ids of all that a `ConceptStore` must hold for the bank: the references, and the feature sample, if any."""
        steps = tuple(step.id for step in self.steps)
        return steps if self.sample_id is None else (*steps, self.sample_id)

    @property
    def content(self) -> ReferencesContent:
        """Content of the manifest of the ReferenceBank."""
        return ReferencesContent(vocabulary=self.vocabulary, context=list(self.context), model=self.model)

    @property
    def key(self) -> str:
        """Digest of the references; independent of whether the vocabulary has a background."""
        recipe = {key: value for key, value in self.made_from.items() if key != "vocabulary"}
        names = sorted(zip(self.vocabulary.names, self.ids, strict=True))
        return digest(recipe, self.vocabulary.model_dump(exclude={"background"}), names)


def plan_references(
    vocabulary: Vocabulary, settings: Settings, index: str, index_made_at: str, retrieval: str, dense: str
) -> ReferencePlan:
    """Plans the references of a vocabulary (ReCo, section 3.3).

    Context concepts come first, in order; the context of each is those before it. The context of every other concept is
    all of them. A concept that is itself a context concept uses that reference.

    Args:
        vocabulary: concepts and the names of their context concepts; the images that were chosen for them are opened.
        settings: `models.templates`, `references` and `segment` are used.
        index: URI of the index.
        index_made_at: time of the index's manifest.
        retrieval: fingerprint of the retrieval model.
        dense: fingerprint of the dense models.
    """
    recipe: dict[str, object] = {
        "index": index,
        "index_made_at": index_made_at,
        "models": f"{retrieval} + {dense}",
        "models.templates": settings.models.templates,
        # References made before there were groups of near-duplicates stay valid.
        **settings.named("references", without=() if settings.references.duplicates else ("duplicates",)),
    }
    sample = None
    if settings.segment.calibrate:
        of_pixels = settings.segment.image_size, settings.segment.calibrate
        sample = digest(index, index_made_at, dense, *of_pixels)
    own = {concept.name: concept for concept in vocabulary.concepts}
    context = list(vocabulary.context) if settings.references.context_elimination else []
    concepts = [own.get(name, Concept(name=name)) for name in context]
    words = [_determinants(concept) for concept in concepts]
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
            step = Step(digest(recipe, words, _determinants(concept)), concept, context_ids)
        elif concept.name == vocabulary.context_of(concept):
            step = steps[source]
        else:
            step = Step(digest(recipe, "alias", source, list(concept.words)), concept, same_as=source)
        steps.setdefault(step.id, step)
        ids.append(step.id)
    return ReferencePlan(
        vocabulary=vocabulary,
        made_from={**recipe, "vocabulary": vocabulary.model_dump(), **({"sample": sample} if sample else {})},
        model=dense,
        steps=tuple(steps.values()),
        ids=tuple(ids),
        context=tuple(context),
        context_ids=context_ids,
        sample_id=sample,
    )


def _determinants(concept: Concept) -> list[object]:
    """What a reference depends on besides index and settings: words, and the images that were chosen, by content."""
    words: list[object] = list(concept.words)
    if not concept.chosen:
        return words
    rejected = sorted(str(each.content["image"]) for each in concept.rejected)
    exemplars = {kind: [each.content for each in getattr(concept, kind)] for kind in ("pinned", "examples")}
    only = {"only_chosen": True} if concept.only_chosen else {}
    return [words, {"rejected": rejected, **exemplars, **only}]


def unique_steps(plans: Iterable[ReferencePlan]) -> dict[str, Step]:
    """The steps of several plans by id, each once, after its dependencies."""
    return {step.id: step for plan in plans for step in plan.steps}


def sequences(steps: Iterable[Step]) -> tuple[dict[str, list[Step]], list[Step]]:
    """Splits the co-segmented steps into context steps and others, for building them in parallel.

    Returns:
        Independent sequences of context steps, by the id of the first step of each; and the other steps, which are
        independent of each other once the sequences are built.
    """
    built = [step for step in steps if step.same_as is None]
    needed = {each for step in built for each in step.context}
    context: dict[str, list[Step]] = {}
    for step in built:
        if step.id in needed:
            context.setdefault((*step.context, step.id)[0], []).append(step)
    return context, [step for step in built if step.id not in needed]
