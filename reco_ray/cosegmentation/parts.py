"""One concept's share of a bank while it is being built, and the bank's files made of all of them. No Ray."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reco_ray import storage
from reco_ray.config import ReferenceSettings, Settings
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.cosegmentation.bank import EXEMPLARS_SCHEMA
from reco_ray.cosegmentation.contact_sheet import contact_sheet
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.cosegmentation.references import co_reference
from reco_ray.errors import RecoError
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.vocabulary import Concept, Vocabulary, slug


def context_first(vocabulary: Vocabulary, context: list[str]) -> list[Concept]:
    """The context concepts in their order (with the vocabulary's words for them, if it has any), then all others."""
    own = {concept.name: concept for concept in vocabulary.concepts}
    return [own.get(name, Concept(name=name)) for name in context] + [
        c for c in own.values() if c.name not in context
    ]


def source_of(vocabulary: Vocabulary, concept: Concept, context: list[str]) -> str:
    """The concept whose reference this one uses: a context concept that it is or is an alias of, else itself."""
    shared = vocabulary.context_of(concept)
    return shared if shared in context else concept.name


class LoadExemplars:
    """Exemplars of a shard, as squares: co-segmentation needs one size. Whole ones, unless the settings say crop:
    that could cut the concept off, but is what the paper does."""

    def __init__(self, transform: ImageTransform, settings: Settings) -> None:
        whole = settings.references.geometry == "whole"
        self._to_square = transform.stretch if whole else transform.crop
        self._size = settings.references.image_size
        self._max_pixels = settings.embed.max_pixels

    def __call__(self, shard: pa.Table) -> pa.Table:
        loaded = load_images(
            shard["uri"].to_pylist(),
            lambda image: self._to_square(image, self._size),
            max_pixels=self._max_pixels,
            short_side=self._size,
        )
        return loaded.append_column("concept", shard["concept"])


def require_readable(exemplars: pa.Table) -> None:
    """Raises RecoError if a loaded exemplar has no pixels."""
    unreadable = exemplars.filter(exemplars["reason"].is_valid())
    if unreadable.num_rows:
        first = unreadable.slice(0, 1).to_pylist()[0]
        raise RecoError(
            f"{first['uri']}: {first['reason']}, though it is in the index: embed the corpus again"
        )


def concept_part(
    models: DenseModels,
    exemplars: pa.Table,
    text_embedding: torch.Tensor,
    context_references: torch.Tensor | None,
    settings: ReferenceSettings,
) -> dict[str, torch.Tensor]:
    """Co-segments the exemplars of one concept.

    Args:
        exemplars: as `LoadExemplars` loads them, in order of retrieval.
        text_embedding: (d,), context_references: (r, c) or None, both on the models' device.

    Returns:
        On the CPU: `reference` (c,), `prototypes` (c,) or (p, c), `seed_locations` int64 (n, 2), `support` float16
        (n, h, w), `sheet` uint8, the bytes of the contact sheet.
    """
    pixels = np.stack([pixels_of(exemplars, row) for row in range(exemplars.num_rows)])
    aspects = exemplars["width"].to_numpy() / exemplars["height"].to_numpy()
    if settings.geometry == "crop":
        aspects = np.ones(exemplars.num_rows)
    batch = torch.from_numpy(pixels).to(text_embedding.device)
    result = co_reference(models, batch, text_embedding, context_references, settings)
    sheet = contact_sheet(pixels, aspects, result.support.cpu().numpy(), result.seed_locations.cpu().numpy())
    part = {
        "reference": result.reference,
        "prototypes": prototypes(result, settings.prototypes).clone(),  # safetensors refuses aliases
        "seed_locations": result.seed_locations,
        "support": result.support.half(),
        "sheet": torch.frombuffer(bytearray(sheet), dtype=torch.uint8),
    }
    return {key: value.cpu().contiguous() for key, value in part.items()}


def read_part(uri: str) -> dict[str, torch.Tensor]:
    """A part as it was written, in safetensors."""
    return load_tensors(storage.read_bytes(uri))


def assemble(
    out: str,
    vocabulary: Vocabulary,
    context: list[str],
    parts: dict[str, str],
    exemplars: pa.Table,
    texts: dict[str, np.ndarray],
) -> None:
    """One file of each kind from the concepts' parts, in the vocabulary's order."""
    references, text_embeddings, tables, supports = [], [], [], {}
    for number, concept in enumerate(vocabulary.concepts):
        source = source_of(vocabulary, concept, context)
        part = read_part(parts[source])
        references.append(part["prototypes"])
        text_embeddings.append(torch.from_numpy(texts[concept.name]))
        supports[slug(number, concept.name)] = part["support"]
        storage.write_bytes(
            storage.join(out, "sheets", f"{slug(number, concept.name)}.jpg"), part["sheet"].numpy().tobytes()
        )
        found = exemplars.filter(pc.equal(exemplars["concept"], source))
        rows, cols = part["seed_locations"].int().numpy().T
        support = part["support"].float().numpy()[np.arange(len(rows)), rows, cols]
        columns = [pa.array([concept.name] * found.num_rows), *found.columns[1:]]
        columns += [pa.array(rows), pa.array(cols), pa.array(support)]
        tables.append(pa.Table.from_arrays(columns, schema=EXEMPLARS_SCHEMA))
    context_parts = [read_part(parts[name]) for name in context]
    tensors = {
        "references": torch.stack(references),
        "text_embeddings": torch.stack(text_embeddings),
        "context_references": _stack_like([part["prototypes"] for part in context_parts], references[0]),
        "context_text_embeddings": _stack_like(
            [torch.from_numpy(texts[n]) for n in context], text_embeddings[0]
        ),
    }
    storage.write_bytes(storage.join(out, "references.safetensors"), save_tensors(tensors))
    storage.write_bytes(storage.join(out, "supports.safetensors"), save_tensors(supports))
    storage.write_table(storage.join(out, "exemplars.parquet"), pa.concat_tables(tables))


def _stack_like(rows: list[torch.Tensor], example: torch.Tensor) -> torch.Tensor:
    """The rows as one tensor; an empty one of the example's row shape if there are none."""
    return torch.stack(rows) if rows else example.new_zeros(0, *example.shape)
