"""Which concepts a request is about: everything that ingress and models need to know of a vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch

from reco_ray import storage
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.cosegmentation.parts import read_part, source_of
from reco_ray.errors import RecoError
from reco_ray.vocabulary import Vocabulary


@dataclass(frozen=True)
class BankRef:
    """Names a set of references without holding them.

    key: digest of all that determines the references. ids: of the concepts, in the vocabulary's order. context: names
    of the context concepts; context_ids: theirs. uri: of a ReferenceBank, else of the folder of concepts. segmenter: of
    a trained one, which then has `labels` of its own, `background` among
    them or not.
    """

    key: str
    vocabulary: Vocabulary
    ids: tuple[str, ...]
    context: tuple[str, ...]
    context_ids: tuple[str, ...]
    uri: str
    assembled: bool = False
    segmenter: bool = False
    labels: tuple[str, ...] = ()
    background: bool = False


def concept_ids(
    recipe: dict[str, Any], vocabulary: Vocabulary, context: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Ids of concepts and of context concepts: a digest of what a reference depends on, its words among them.

    Args:
        recipe: index, models and settings.
        context: names of the context concepts in use.
    """
    own = {concept.name: list(concept.words) for concept in vocabulary.concepts}
    words = [own.get(name, [name]) for name in context]
    of_context = {
        name: storage.digest(recipe, "context", words[: number + 1]) for number, name in enumerate(context)
    }
    ids = {}
    for concept in vocabulary.concepts:
        source = source_of(vocabulary, concept, context)
        ids[concept.name] = of_context.get(source) or storage.digest(recipe, words, list(concept.words))
    return ids, of_context


def part_uri(folder: str, concept_id: str) -> str:
    """Where a concept's tensors are kept."""
    return storage.join(folder, f"{concept_id}.safetensors")


def open_bank(ref: BankRef, model: str) -> ReferenceBank:
    """The references of a zero-shot vocabulary.

    Raises:
        RecoError: gone, damaged, or made with other models than `model`.
    """
    if ref.assembled:
        return ReferenceBank.open(ref.uri, model)
    try:
        parts = [read_part(part_uri(ref.uri, each)) for each in ref.ids]
        context = [read_part(part_uri(ref.uri, each)) for each in ref.context_ids]
    except Exception as error:  # safetensors has no common base for its errors
        raise RecoError("references of these concepts are gone") from error

    def rows(found: list[dict[str, torch.Tensor]], key: str) -> torch.Tensor:
        return (
            torch.stack([part[key] for part in found])
            if found
            else parts[0][key].new_zeros(0, *parts[0][key].shape)
        )

    return ReferenceBank(
        ref.uri,
        ref.vocabulary,
        rows(parts, "prototypes"),
        rows(parts, "text_embedding"),
        list(ref.context),
        rows(context, "prototypes"),
        rows(context, "text_embedding"),
        model,
        "",
    )


def open_segmenter(name: str, uri: str) -> BankRef:
    """What is to be known of a trained segmenter without loading it.

    Raises:
        RecoError: missing, unfinished, of another kind.
    """
    content = storage.read_manifest(uri, "segmenter").content
    return BankRef(
        name,
        Vocabulary(**content["vocabulary"]),
        (),
        (),
        (),
        uri,
        segmenter=True,
        labels=tuple(content["labels"]),
        background=content["background"],
    )
