"""The exemplars of concepts: images that a person chose, then the images of the corpus nearest to their words."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from reco_ray.config import ReferenceSettings
from reco_ray.corpus.chosen import places_left
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.regions import crop_regions
from reco_ray.errors import SettingError
from reco_ray.vocabulary import Concept
from reco_ray.vocabulary.chosen_images import ChosenImage

# Where an exemplar comes from.
RETRIEVED: Literal["retrieved"] = "retrieved"
PINNED: Literal["pinned"] = "pinned"
EXAMPLE: Literal["example"] = "example"
# concept: id of its step. rank: from 0. similarity: cosine of image and words; null if it is not known.
# region: see `regions.Region`; null if the whole image is allowed.
EXEMPLAR_SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("rank", pa.int32()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("similarity", pa.float32()),
        ("source", pa.string()),
        ("region", pa.list_(pa.list_(pa.float64()))),
    ]
)


def retrieve_exemplars(
    index: CorpusIndex,
    names: Sequence[str],
    concepts: Sequence[Concept],
    text_embeddings: torch.Tensor,
    settings: ReferenceSettings,
) -> dict[str, pa.Table]:
    """The exemplars of every concept: own examples, pinned images, then the ranking without those that were rejected.

    Args:
        index: of the corpus.
        names: of the m concepts, unique.
        concepts: of the same; the images that were chosen for them are opened.
        text_embeddings: (m, d) unit rows of the retrieval model; not used for a concept without words.
        settings: `exemplars` and `geometry` are used.

    Returns:
        By name, EXEMPLAR_SCHEMA in order of rank: `settings.exemplars` rows, or as many as were chosen if that is
        more, or if the concept has no words.

    Raises:
        SettingError: the corpus has too few images.
    """
    k = settings.exemplars
    plain = [n for n, concept in enumerate(concepts) if not concept.chosen]
    found: dict[str, pa.Table] = {}
    if plain:
        ranking = search_by_words(index, [names[n] for n in plain], text_embeddings[plain], k)
        found = {names[n]: ranking.slice(place * k, k) for place, n in enumerate(plain)}
    for name, concept, text in zip(names, concepts, text_embeddings, strict=True):
        if concept.chosen:
            found[name] = _of_chosen(index, name, concept, text, settings)
    return found


def search_by_words(index: CorpusIndex, names: list[str], text_embeddings: torch.Tensor, k: int) -> pa.Table:
    """Retrieves the k images nearest to every concept in one search.

    Args:
        index: of the corpus.
        names: m concepts.
        text_embeddings: (m, d) unit rows of the retrieval model.
        k: images per concept.

    Returns:
        EXEMPLAR_SCHEMA, k rows per concept, in the order of `names`.

    Raises:
        SettingError: the corpus has fewer than k images.
    """
    return _exemplar_table(index, names, *index.search_distinct(text_embeddings.cpu().numpy(), k))


def _exemplar_table(
    index: CorpusIndex, names: list[str], similarities: np.ndarray, rows: np.ndarray
) -> pa.Table:
    """EXEMPLAR_SCHEMA of search results, (m, k)."""
    found = index.images.take(rows)
    k = rows.shape[1]
    count = len(names) * k
    columns = {
        "concept": pa.array(np.repeat(np.array(names, dtype=object), k), pa.string()),
        "rank": pa.array(np.tile(np.arange(k, dtype=np.int32), len(names))),
        "image_id": found["image_id"],
        "uri": found["uri"],
        "similarity": pa.array(similarities.reshape(-1).astype(np.float32)),
        "source": pa.array([RETRIEVED] * count, pa.string()),
        "region": pa.nulls(count, EXEMPLAR_SCHEMA.field("region").type),
    }
    return pa.table(columns, schema=EXEMPLAR_SCHEMA)


def _of_chosen(
    index: CorpusIndex, name: str, concept: Concept, text: torch.Tensor, settings: ReferenceSettings
) -> pa.Table:
    wanted = places_left(concept, settings.exemplars)
    chosen = [str(each.image_id) for each in (*concept.rejected, *concept.pinned, *concept.examples)]
    ranking, kept = _ranking(index, name, text, set(chosen), wanted) if concept.words else ([], [])
    similarity = {row["image_id"]: row["similarity"] for row in ranking}

    def row(each: ChosenImage, source: str) -> dict[str, object]:
        return {
            "image_id": each.image_id,
            "uri": each.image,
            "similarity": similarity.get(each.image_id),
            "source": source,
            "region": crop_regions(each, settings.geometry),
        }

    rows = [row(each, EXAMPLE) for each in concept.examples] + [row(each, PINNED) for each in concept.pinned]
    rows += kept
    numbered = [{**each, "concept": name, "rank": rank} for rank, each in enumerate(rows)]
    return pa.Table.from_pylist(numbered, schema=EXEMPLAR_SCHEMA)


def _ranking(
    index: CorpusIndex, name: str, text: torch.Tensor, chosen: set[str], wanted: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images nearest to words, and `wanted` of them that are neither chosen nor near-duplicates of others.

    Raises:
        SettingError: there are too few.
    """
    count = min(wanted + len(chosen), len(index))
    while True:
        ranking = _exemplar_table(index, [name], *index.search(text[None].cpu().numpy(), count)).to_pylist()
        seen = set(index.group_names(sorted(chosen)))
        kept = []
        for row, group in zip(ranking, index.group_names([row["image_id"] for row in ranking]), strict=True):
            if group not in seen:
                kept.append(row)
                seen.add(group)
        if len(kept) >= wanted:
            return ranking, kept[:wanted]
        if count == len(index):
            raise SettingError(
                f"{index.uri}: {wanted} exemplars are asked for beside those that were chosen, but it has {len(kept)} "
                "other images: use fewer --exemplars, or reject fewer"
            )
        count = min(2 * count, len(index))
