"""Builds concepts, each once however many requests ask for it: retrieve, load, co-segment, store."""

import asyncio
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from ray.serve.handle import DeploymentHandle

from reco_ray.config import Settings
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import ImageLoader
from reco_ray.cosegmentation.build import require_readable
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan, Step, plan_references
from reco_ray.cosegmentation.retrieve import retrieve
from reco_ray.errors import RecoError
from reco_ray.serving.deployment_calls import call
from reco_ray.serving.serving_metrics import VocabularyMetrics
from reco_ray.vocabulary import Vocabulary


class ConceptBuilder:
    """Builds the concepts that are missing from a store.

    Args:
        models: handle of the deployment that embeds words and co-segments.
        load: reads exemplars.
        dense: fingerprint of the dense models.
        at_once: maximum number of concepts built concurrently.
    """

    def __init__(
        self,
        settings: Settings,
        index: CorpusIndex,
        store: ConceptStore,
        models: DeploymentHandle,
        load: ImageLoader,
        dense: str,
        metrics: VocabularyMetrics,
        at_once: int,
    ) -> None:
        self._settings, self._index, self._store, self._models = settings, index, store, models
        self._load, self._dense, self._metrics = load, dense, metrics
        self._slots = asyncio.Semaphore(at_once)
        self._making: dict[str, asyncio.Task[None]] = {}

    def plan(self, vocabulary: Vocabulary) -> ReferencePlan:
        """Plans the references of a vocabulary."""
        manifest = self._index.manifest
        retrieval = manifest.content.model
        return plan_references(
            vocabulary, self._settings, self._index.uri, manifest.made_at, retrieval, self._dense
        )

    @property
    def being_made(self) -> set[str]:
        """Ids of the concepts that are being built."""
        return set(self._making)

    def missing(self, plan: ReferencePlan) -> list[str]:
        """Ids of the concepts that are not in the store."""
        return [step.id for step in plan.steps if not self._store.has(step.id)]

    async def make(self, plan: ReferencePlan, on_progress: Callable[[int], None] = lambda done: None) -> None:
        """Builds the missing concepts; `on_progress` is called with the number of concepts done.

        Raises:
            RecoError: unreadable words, more exemplars than images, or an exemplar that no longer exists.
        """
        tasks: dict[str, asyncio.Task[None]] = {}
        for step in plan.steps:
            needed = step.context if step.same_as is None else (step.same_as,)
            tasks[step.id] = self._task(step, [tasks[each] for each in needed])
        for done, task in enumerate(asyncio.as_completed(tasks.values()), 1):
            await task
            on_progress(done)

    def _task(self, step: Step, before: list[asyncio.Task[None]]) -> asyncio.Task[None]:
        """The task that builds a concept. Requests share it; it continues if they are cancelled."""
        task = self._making.get(step.id)
        if task is None:
            task = asyncio.create_task(self._make_one(step, before))
            self._making[step.id] = task
            task.add_done_callback(lambda ended: self._forget(step.id, ended))
        return task

    def _forget(self, concept_id: str, task: asyncio.Task[None]) -> None:
        del self._making[concept_id]
        if not task.cancelled():
            task.exception()  # marks it as retrieved; callers that still wait get it, too

    async def _make_one(self, step: Step, before: list[asyncio.Task[None]]) -> None:
        if await asyncio.to_thread(self._store.has, step.id):
            return
        if before:
            await asyncio.gather(*before)
        async with self._slots:
            retrieval, dense = await call(self._models.embed_words, [list(step.concept.words)])
            if step.same_as is not None:
                await asyncio.to_thread(self._store.write_alias, step, torch.from_numpy(dense[0].copy()))
                return
            exemplars = await asyncio.to_thread(self._retrieve, step.id, retrieval)
            context = await asyncio.to_thread(self._references, step.context) if step.context else None
            tensors = await call(self._models.build, exemplars, dense[0], context)
            await asyncio.to_thread(self._store.write_bytes, step, exemplars, tensors)
            self._metrics.built()

    def _retrieve(self, name: str, embedding: np.ndarray) -> pa.Table:
        with self._metrics.search():
            k = self._settings.references.exemplars
            exemplars = retrieve(self._index, [name], torch.from_numpy(embedding.copy()), k)
        loaded = self._load(exemplars)
        require_readable(loaded)
        return loaded

    def _references(self, context: tuple[str, ...]) -> np.ndarray:
        return np.stack([self._store.read(each)["reference"].numpy() for each in context])


def client_message(error: Exception) -> str:
    """The text of an error for clients: a RecoError's message, else no details."""
    return str(error) if isinstance(error, RecoError) else "the server failed: its log says why"
