"""The reference stage on Ray: retrieval for all concepts at once, then one co-segmentation a concept in parallel.

The context concepts come first, in their order, each with those before it as its own context (ReCo, section 3.3);
every other concept then needs only theirs. A concept's result is committed by itself.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import load_images, pixels_of
from reco_ray.cosegmentation.bank import EXEMPLARS_SCHEMA, KIND
from reco_ray.cosegmentation.contact_sheet import contact_sheet
from reco_ray.cosegmentation.prototypes import prototypes
from reco_ray.cosegmentation.references import co_reference
from reco_ray.cosegmentation.retrieve import retrieve
from reco_ray.errors import RecoError
from reco_ray.models import load_language_image_model
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.models.prompts import encode_prompts
from reco_ray.shards import run_shards
from reco_ray.vocabulary import Concept, Vocabulary, slug

CONTEXT_SHARD = "context"


def build_references(
    index_uri: str, vocabulary: Vocabulary, out: str, settings: Settings
) -> tuple[storage.Manifest, bool]:
    """Builds the ReferenceBank of a vocabulary from an index, on the connected Ray cluster.

    Returns:
        The manifest, and whether there was anything to do.

    Raises:
        RecoError: unfit index, more exemplars than images, an exemplar that is gone, unwritable output.
    """
    models = settings.models
    dense = DenseModels.load(models, seed=settings.seed)
    retrieval = (
        dense.language
        if models.language is None
        else load_language_image_model(models.retrieval, weights=models.weights, seed=settings.seed)
    )
    index = CorpusIndex(index_uri, retrieval.fingerprint)
    writer = storage.ArtifactWriter(
        out,
        KIND,
        {
            "index": index.uri,
            "index_made_at": index.manifest.made_at,
            "vocabulary": vocabulary.model_dump(),
            "models": f"{retrieval.fingerprint} + {dense.fingerprint}",
            "templates": models.templates,
            **settings.references.model_dump(),
        },
    )
    if manifest := writer.finished():
        return manifest, False

    context = list(vocabulary.context) if settings.references.context_elimination else []
    concepts = context_first(vocabulary, context)
    words = [list(concept.words) for concept in concepts]
    texts = encode_prompts(retrieval, words, models.templates).cpu()
    language_texts = (
        texts if models.language is None else encode_prompts(dense.language, words, models.templates).cpu()
    )

    built = [number for number, c in enumerate(concepts) if source_of(vocabulary, c, context) == c.name]
    names = [concepts[number].name for number in built]
    k = settings.references.exemplars
    exemplars = retrieve(index, names, texts[built], k)
    tables = {name: exemplars.slice(number * k, k) for number, name in enumerate(names)}
    parts = {
        name: storage.join(writer.uri, "concepts", f"{storage.digest(name)}.safetensors") for name in names
    }
    kwargs: dict[str, Any] = {
        "settings": settings,
        "text_embeddings": {c.name: row.numpy() for c, row in zip(concepts, language_texts, strict=True)},
        "parts": parts,
    }
    load = _Load(dense.encoder.transform, settings)
    missing = {name for name, part in parts.items() if not storage.exists(part)}
    with progress("reference", len(names), len(names) - len(missing)) as advance:
        if missing & set(context):
            shard = pa.concat_tables(tables[name] for name in context)
            for done in run_shards(
                {CONTEXT_SHARD: shard},
                load,
                ReferenceWorker,
                kwargs,
                plan_workers(models.device, 1, settings.placement.references),
            ):
                advance(done["concepts"])
        pending = {name: tables[name] for name in names if name in missing and name not in context}
        references = (
            np.stack([_read_part(parts[n])["reference"].numpy() for n in context]) if context else None
        )
        workers = plan_workers(models.device, max(1, len(pending)), settings.placement.references)
        for done in run_shards(
            pending, load, ReferenceWorker, {**kwargs, "context_references": references}, workers
        ):
            advance(done["concepts"])
    _assemble(writer.uri, vocabulary, context, parts, exemplars, kwargs["text_embeddings"])
    content = {"vocabulary": vocabulary.model_dump(), "context": context, "model": dense.fingerprint}
    counts = {"concepts": len(vocabulary.concepts), "exemplars": exemplars.num_rows}
    return writer.commit(counts, content), True


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


class _Load:
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
            drop_duplicates=False,
        )
        return loaded.append_column("concept", shard["concept"])


class ReferenceWorker:
    """Co-segments the exemplars of concepts and commits each concept."""

    def __init__(
        self,
        *,
        threads: int,
        device: str,
        settings: Settings,
        text_embeddings: dict[str, np.ndarray],
        parts: dict[str, str],
        context_references: np.ndarray | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._models = DenseModels.load(settings.models, device=device, seed=settings.seed)
        self._settings, self._texts, self._parts, self._device = (
            settings.references,
            text_embeddings,
            parts,
            device,
        )
        self._context = (
            None if context_references is None else torch.from_numpy(context_references).to(device)
        )

    def __call__(self, name: str, rows: pa.Table) -> dict[str, Any]:
        concepts = rows["concept"].unique().to_pylist()
        for concept in concepts:
            chosen = rows.filter(pc.equal(rows["concept"], concept))
            unreadable = chosen.filter(chosen["reason"].is_valid())
            if unreadable.num_rows:
                first = unreadable.slice(0, 1).to_pylist()[0]
                raise RecoError(
                    f"{first['uri']}: {first['reason']}, though it is in the index: embed the corpus again"
                )
            reference = self._build(concept, chosen)
            if name == CONTEXT_SHARD:
                grown = (
                    reference[None] if self._context is None else torch.cat([self._context, reference[None]])
                )
                self._context = grown
        return {"concepts": len(concepts)}

    def _build(self, concept: str, rows: pa.Table) -> torch.Tensor:
        pixels = np.stack([pixels_of(rows, row) for row in range(rows.num_rows)])
        aspects = rows["width"].to_numpy() / rows["height"].to_numpy()
        if self._settings.geometry == "crop":
            aspects = np.ones(rows.num_rows)
        text = torch.from_numpy(self._texts[concept]).to(self._device)
        batch = torch.from_numpy(pixels).to(self._device)
        result = co_reference(self._models, batch, text, self._context, self._settings)
        sheet = contact_sheet(
            pixels, aspects, result.support.cpu().numpy(), result.seed_locations.cpu().numpy()
        )
        part = {
            "reference": result.reference,
            "prototypes": prototypes(
                result, self._settings.prototypes
            ).clone(),  # safetensors refuses aliases
            "seed_locations": result.seed_locations,
            "support": result.support.half(),
            "sheet": torch.frombuffer(bytearray(sheet), dtype=torch.uint8),
        }
        storage.write_bytes(
            self._parts[concept], save_tensors({k: v.cpu().contiguous() for k, v in part.items()})
        )
        return result.reference


def _read_part(uri: str) -> dict[str, torch.Tensor]:
    return load_tensors(storage.read_bytes(uri))


def _assemble(
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
        part = _read_part(parts[source])
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
    context_parts = [_read_part(parts[name]) for name in context]
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
