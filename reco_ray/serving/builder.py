"""Concepts made one by one, each once, however many requests ask for it: retrieve, load, co-segment, keep."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.serve.handle import DeploymentHandle

from reco_ray import storage
from reco_ray.config import Settings
from reco_ray.corpus.index import CorpusIndex
from reco_ray.cosegmentation.parts import LoadExemplars, context_first, require_readable, source_of
from reco_ray.cosegmentation.retrieve import retrieve
from reco_ray.errors import RecoError
from reco_ray.serving.bank import BankRef, concept_ids
from reco_ray.serving.calls import call
from reco_ray.serving.metrics import LibraryMetrics
from reco_ray.serving.store import ConceptStore
from reco_ray.vocabulary import Concept, Vocabulary


@dataclass(frozen=True)
class Plan:
    """A vocabulary's concepts, and which of them have to be made.

    steps: (id, concept, ids of the context references that it needs), context concepts first, in their order.
    """

    bank: BankRef
    steps: list[tuple[str, Concept, tuple[str, ...]]]


class ConceptBuilder:
    """Makes the concepts that are missing.

    Args:
        models: the deployment that embeds words and co-segments.
        load: reads exemplars.
        at_once: concepts made side by side.
    """

    def __init__(
        self,
        settings: Settings,
        index: CorpusIndex,
        store: ConceptStore,
        models: DeploymentHandle,
        load: LoadExemplars,
        dense: str,
        metrics: LibraryMetrics,
        at_once: int,
    ) -> None:
        self._settings, self._index, self._store, self._models = settings, index, store, models
        self._load, self._metrics = load, metrics
        self._slots = asyncio.Semaphore(at_once)
        self.dense = dense
        self._making: dict[str, asyncio.Task[None]] = {}
        self.recipe: dict[str, Any] = {
            "index": index.uri,
            "index_made_at": index.manifest.made_at,
            "models": f"{index.manifest.content['model']} + {dense}",
            "templates": settings.models.templates,
            **settings.references.model_dump(),
        }

    def plan(self, vocabulary: Vocabulary) -> Plan:
        """What a vocabulary needs, in the order in which it can be made."""
        context = list(vocabulary.context) if self._settings.references.context_elimination else []
        ids, of_context = concept_ids(self.recipe, vocabulary, context)
        all_context = tuple(of_context.values())
        steps = []
        for concept in context_first(vocabulary, context):
            if concept.name in of_context:
                number = context.index(concept.name)
                steps.append((of_context[concept.name], concept, all_context[:number]))
            elif source_of(vocabulary, concept, context) == concept.name:
                steps.append((ids[concept.name], concept, all_context))
        key = storage.digest(self.recipe, vocabulary.model_dump(exclude={"background"}), sorted(ids.items()))
        bank = BankRef(
            key,
            vocabulary,
            tuple(ids[name] for name in vocabulary.names),
            tuple(context),
            all_context,
            self._store.folder,
        )
        return Plan(bank, steps)

    @property
    def being_made(self) -> set[str]:
        """Ids of the concepts that are being made."""
        return set(self._making)

    def missing(self, plan: Plan) -> list[str]:
        """Ids of the concepts that have to be made."""
        return [concept_id for concept_id, _, _ in plan.steps if not self._store.has(concept_id)]

    async def make(self, plan: Plan, tell: Callable[[int], None] = lambda done: None) -> None:
        """Makes what is missing; `tell` hears how many are there.

        Raises:
            RecoError: words that the model cannot read, more exemplars than images, an exemplar that is gone.
        """
        tasks: dict[str, asyncio.Task[None]] = {}
        for concept_id, concept, context in plan.steps:
            tasks[concept_id] = self._task(concept_id, concept, context, [tasks[each] for each in context])
        for done, task in enumerate(asyncio.as_completed(tasks.values()), 1):
            await task
            tell(done)

    def _task(
        self, concept_id: str, concept: Concept, context: tuple[str, ...], before: list[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        """The one task that makes a concept: requests share it, and it goes on when they give up."""
        task = self._making.get(concept_id)
        if task is None:
            task = asyncio.create_task(self._make_one(concept_id, concept, context, before))
            self._making[concept_id] = task
            task.add_done_callback(lambda ended: self._forget(concept_id, ended))
        return task

    def _forget(self, concept_id: str, task: asyncio.Task[None]) -> None:
        del self._making[concept_id]
        if not task.cancelled():
            task.exception()  # seen: whoever still waits gets it as well

    async def _make_one(
        self, concept_id: str, concept: Concept, context: tuple[str, ...], before: list[asyncio.Task[None]]
    ) -> None:
        if await asyncio.to_thread(self._store.has, concept_id):
            return
        if before:
            await asyncio.gather(*before)
        async with self._slots:
            retrieval, dense = await call(self._models.embed_words, [list(concept.words)])
            exemplars, loaded = await asyncio.to_thread(self._retrieve, concept.name, retrieval)
            references = await asyncio.to_thread(self._references, context) if context else None
            part = await call(self._models.build, loaded, dense[0], references)
            described = {
                "name": concept.words[0],  # not what a client calls it: concepts are shared, by words
                "words": list(concept.words),
                "exemplars": exemplars.drop_columns(["concept"]).to_pylist(),
            }
            await asyncio.to_thread(self._store.write, concept_id, described, part)
            self._metrics.built()

    def _retrieve(self, name: str, embedding: np.ndarray) -> tuple[pa.Table, pa.Table]:
        with self._metrics.search():
            k = self._settings.references.exemplars
            exemplars = retrieve(self._index, [name], torch.from_numpy(embedding.copy()), k)
        loaded = self._load(exemplars)
        require_readable(loaded)
        return exemplars, loaded

    def _references(self, context: tuple[str, ...]) -> np.ndarray:
        return np.stack([self._store.part(each)["reference"].numpy() for each in context])


def one_line(error: Exception) -> str:
    """What a client may read of an error: a user's mistake in its own words, else only that there was one."""
    return str(error) if isinstance(error, RecoError) else "the server failed: its log says why"
