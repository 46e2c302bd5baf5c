"""Builds what vocabularies need, each part once however many requests ask for it.

Concepts are retrieved, loaded, co-segmented and stored. For calibrated scores the features of a sample of the corpus
are measured and stored as well, once per index and settings.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.serve.handle import DeploymentHandle

from reco_ray.config import Settings
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import whole_image_loader
from reco_ray.cosegmentation.build import exemplar_loader, plan_for_index, require_readable
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan, Step
from reco_ray.cosegmentation.retrieve import retrieve_exemplars
from reco_ray.cosegmentation.sample import SHARD, join_samples, sample_rows
from reco_ray.distributed.parts import cut
from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.serving.answers import InputSpec
from reco_ray.serving.deployment_calls import call
from reco_ray.serving.serving_metrics import VocabularyMetrics
from reco_ray.vocabulary import CONTEXT_CONCEPTS, Concept, Vocabulary


class ConceptBuilder:
    """Builds the concepts and the feature sample that are missing from a store.

    Args:
        models: handle of the deployment that embeds words, co-segments and samples features.
        pixels: what the dense models take.
        at_once: maximum number of concepts built concurrently.
    """

    def __init__(
        self,
        settings: Settings,
        index: CorpusIndex,
        store: ConceptStore,
        models: DeploymentHandle,
        pixels: InputSpec,
        metrics: VocabularyMetrics,
        at_once: int,
    ) -> None:
        self._settings, self._index, self._store, self._models = settings, index, store, models
        self._dense, self._metrics = pixels.model, metrics
        self._load = exemplar_loader(pixels.transform, settings)
        self._load_whole = whole_image_loader(pixels.transform, pixels.stride, settings.segment)
        self._slots = asyncio.Semaphore(at_once)
        self._making: dict[str, asyncio.Task[None]] = {}

    def plan(self, vocabulary: Vocabulary) -> ReferencePlan:
        """Plans the references of a vocabulary; opens the images that were chosen for it.

        Raises:
            RecoError: as `plan_for_index`.
        """
        return plan_for_index(vocabulary, self._index, self._settings, self._dense)

    @property
    def being_made(self) -> set[str]:
        """Ids of what is being built."""
        return set(self._making)

    def missing(self, plan: ReferencePlan) -> list[str]:
        """Ids of what is not in the store."""
        missing = [step.id for step in plan.steps if not self._store.has(step.id)]
        if plan.sample_id is not None and not self._store.has_sample(plan.sample_id):
            missing.append(plan.sample_id)
        return missing

    async def prepare(self) -> None:
        """Builds what most vocabularies need: the usual context concepts, and the feature sample."""
        usual = self.plan(Vocabulary(concepts=tuple(Concept(name=name) for name in CONTEXT_CONCEPTS)))
        if self._settings.references.context_elimination:
            await self.make(usual)
        elif usual.sample_id is not None:
            await self._task(usual.sample_id, partial(self._make_sample, usual.sample_id))

    async def make(self, plan: ReferencePlan, on_progress: Callable[[int], None] = lambda done: None) -> None:
        """Builds what is missing; `on_progress` is called with the number of `plan.entries` that are there.

        Raises:
            RecoError: unreadable words, more exemplars than images, an exemplar that no longer exists, or no readable
                image to calibrate on.
        """
        tasks: dict[str, asyncio.Task[None]] = {}
        for step in plan.steps:
            needed = step.context if step.same_as is None else (step.same_as,)
            before = [tasks[each] for each in needed]
            tasks[step.id] = self._task(step.id, partial(self._make_one, step, before))
        if plan.sample_id is not None:
            tasks[plan.sample_id] = self._task(plan.sample_id, partial(self._make_sample, plan.sample_id))
        for done, task in enumerate(asyncio.as_completed(tasks.values()), 1):
            await task
            on_progress(done)

    def _task(self, name: str, make: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """The task that builds what has this id. Requests share it; it continues if they are cancelled."""
        task = self._making.get(name)
        if task is None:
            task = asyncio.create_task(make())
            self._making[name] = task
            task.add_done_callback(lambda ended: self._forget(name, ended))
        return task

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        del self._making[name]
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
            exemplars = await asyncio.to_thread(self._retrieve, step, retrieval)
            context = await asyncio.to_thread(self._references, step.context) if step.context else None
            tensors = await call(self._models.build, exemplars, dense[0], context)
            await asyncio.to_thread(self._store.write_bytes, step, exemplars, tensors)
            self._metrics.built()

    async def _make_sample(self, sample_id: str) -> None:
        """Measures the feature sample of the corpus; images that cannot be read are passed over."""
        if await asyncio.to_thread(self._store.has_sample, sample_id):
            return
        rows = await asyncio.to_thread(sample_rows, self._index, self._settings.segment.calibrate)
        shards = cut(rows, SHARD).values()
        found = await asyncio.gather(*(self._sample(shard) for shard in shards))
        sample = await asyncio.to_thread(join_samples, [part for part in found if part is not None], rows)
        await asyncio.to_thread(storage.write_bytes, self._store.sample_uri(sample_id), sample)

    async def _sample(self, images: pa.Table) -> bytes | None:
        async with self._slots:  # a slot for each shard, so that concepts are built meanwhile
            return await call(self._models.sample, await asyncio.to_thread(self._load_whole, images))

    def _retrieve(self, step: Step, embedding: np.ndarray) -> pa.Table:
        with self._metrics.search():
            text = torch.from_numpy(embedding.copy())
            found = retrieve_exemplars(
                self._index, [step.id], [step.concept], text, self._settings.references
            )
        loaded = self._load(found[step.id])
        require_readable(loaded)
        return loaded

    def _references(self, context: tuple[str, ...]) -> np.ndarray:
        return np.stack([self._store.read(each)["reference"].numpy() for each in context])


def client_message(error: Exception) -> str:
    """The text of an error for clients: a RecoError's message, else no details."""
    return str(error) if isinstance(error, RecoError) else "the server failed: its log says why"
