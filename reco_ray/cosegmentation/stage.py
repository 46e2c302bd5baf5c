"""The reference stage on Ray: retrieval for all concepts at once, then one co-segmentation a concept in parallel.

The context concepts come first, in their order, each with those before it as its own context (ReCo, section 3.3);
every other concept then needs only theirs. A concept's result is committed by itself.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save as save_tensors

from reco_ray import storage
from reco_ray.cluster import count_readers, plan_workers
from reco_ray.config import Settings
from reco_ray.console import progress
from reco_ray.corpus.index import CorpusIndex
from reco_ray.cosegmentation.bank import KIND
from reco_ray.cosegmentation.parts import (
    LoadExemplars,
    assemble,
    concept_part,
    context_first,
    read_part,
    require_readable,
    source_of,
)
from reco_ray.cosegmentation.retrieve import retrieve
from reco_ray.meter import Meter, write_summary
from reco_ray.models import load_language_image_model
from reco_ray.models.dense import DenseModels
from reco_ray.models.prompts import encode_prompts
from reco_ray.shards import run_shards
from reco_ray.vocabulary import Vocabulary

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
            "models.templates": models.templates,
            **settings.named("references"),
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
    load = LoadExemplars(dense.encoder.transform, settings)
    missing = {name for name, part in parts.items() if not storage.exists(part)}
    meter = Meter()
    with progress("reference", len(names), len(names) - len(missing)) as advance:
        if missing & set(context):
            shard = pa.concat_tables(tables[name] for name in context)
            for done in run_shards(
                {CONTEXT_SHARD: shard},
                load,
                ReferenceWorker,
                kwargs,
                plan_workers(models.device, 1, settings.placement.references),
                meter,
            ):
                advance(done["concepts"])
        one_by_one = meter.work_seconds
        pending = {name: tables[name] for name in names if name in missing and name not in context}
        references = (
            np.stack([read_part(parts[n])["reference"].numpy() for n in context]) if context else None
        )
        workers = plan_workers(models.device, max(1, len(pending)), settings.placement.references)
        for done in run_shards(
            pending, load, ReferenceWorker, {**kwargs, "context_references": references}, workers, meter
        ):
            advance(done["concepts"])
    assemble(writer.uri, vocabulary, context, parts, exemplars, kwargs["text_embeddings"])
    run = {"concepts": len(missing), **meter.run(workers, count_readers(workers))}
    run["context_seconds"] = round(one_by_one, 3)  # one worker's, which builds them in turn
    write_summary(writer.uri, "references", {"concepts": len(names)}, run, settings)
    content = {"vocabulary": vocabulary.model_dump(), "context": context, "model": dense.fingerprint}
    counts = {"concepts": len(vocabulary.concepts), "exemplars": exemplars.num_rows}
    return writer.commit(counts, content), True


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
            require_readable(chosen)
            reference = self._build(concept, chosen)
            if name == CONTEXT_SHARD:
                grown = (
                    reference[None] if self._context is None else torch.cat([self._context, reference[None]])
                )
                self._context = grown
        return {"concepts": len(concepts)}

    def _build(self, concept: str, rows: pa.Table) -> torch.Tensor:
        text = torch.from_numpy(self._texts[concept]).to(self._device)
        part = concept_part(self._models, rows, text, self._context, self._settings)
        storage.write_bytes(self._parts[concept], save_tensors(part))
        return part["reference"].to(self._device)
