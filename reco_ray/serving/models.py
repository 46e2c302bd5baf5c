"""The deployment with the models: one encoder pass per batch, shared by all its requests and concepts."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors

from reco_ray.config import Settings
from reco_ray.cosegmentation.build import build_concept, embed_words
from reco_ray.cosegmentation.sample import sample_loaded
from reco_ray.models.dense import DenseFeatures, DenseModels, load_retrieval_model
from reco_ray.models.runtime import resolve_runtime
from reco_ray.models.text_cache import keep_in_memory
from reco_ray.segmentation.segment import segment_features
from reco_ray.segmentation.target_set import Targets
from reco_ray.segmentation.targets import targets_of
from reco_ray.serving.answers import InputSpec
from reco_ray.serving.bank_of_request import open_bank
from reco_ray.serving.batcher import Batcher
from reco_ray.serving.deployment_calls import return_errors
from reco_ray.serving.heap_trimming import start_heap_trimming
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.segment_task import LabelledImage, SegmentTask, TaskFailure, label_batch
from reco_ray.serving.serving_metrics import ModelMetrics

_BANK_BYTES = 256_000_000  # references kept in memory: some 90,000 concepts of `mini`


def _shape(task: SegmentTask) -> tuple[int, ...]:
    """Only images of one shape share a batch: padding would change the network's input."""
    return task.pixels.shape


class Models:
    """Labels images, embeds words, co-segments exemplars and samples features. Stateless apart from caches."""

    def __init__(self, options: ServeOptions, lanes: int) -> None:
        settings = options.load()
        self._settings: Settings = settings
        self._device = str(resolve_runtime(settings.models.device).device)
        torch.set_num_threads(options.scale.threads)
        start_heap_trimming()
        self._dense = DenseModels.load(settings.models, device=self._device, seed=settings.seed)
        self._retrieval = load_retrieval_model(
            settings.models, device=self._device, seed=settings.seed, dense=self._dense
        )
        keep_in_memory()
        self._banks: ByteLRU[Targets] = ByteLRU(_BANK_BYTES)
        # A separate thread, so that images do not wait for concepts to be built.
        self._builder = ThreadPoolExecutor(1, "build")
        self._metrics = ModelMetrics()
        self._batcher = Batcher(self._label_all, _shape, largest=options.scale.batch, lanes=lanes)

    async def label(self, task: SegmentTask) -> LabelledImage | TaskFailure:
        """Labels an image, in a batch with images of other requests."""
        return await self._batcher(task)

    async def describe(self) -> tuple[str, InputSpec]:
        """The fingerprint of the retrieval model, and what the dense models take."""
        encoder, size = self._dense.encoder, self._settings.segment.image_size
        return self._retrieval.fingerprint, InputSpec(
            self._dense.fingerprint, encoder.transform, encoder.stride, size
        )

    @return_errors
    async def embed_words(self, words: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Embeds m lists of words, as `build.embed_words`: (m, d) of the retrieval model, (m, d') of the dense
        language model.

        Raises:
            SettingError: the model cannot read the words.
        """
        return await asyncio.get_running_loop().run_in_executor(self._builder, self._embed_words, words)

    @return_errors
    async def build(
        self, exemplars: pa.Table, text_embedding: np.ndarray, context_references: np.ndarray | None
    ) -> bytes:
        """Builds a concept from its loaded exemplars; returns its tensors as safetensors. Args as `build_concept`."""
        return await asyncio.get_running_loop().run_in_executor(
            self._builder, self._build, exemplars, text_embedding, context_references
        )

    async def sample(self, images: pa.Table) -> bytes | None:
        """Samples the features of loaded images, as `sample_loaded`."""
        return await asyncio.get_running_loop().run_in_executor(self._builder, self._sample, images)

    def _label_all(self, tasks: list[SegmentTask]) -> list[LabelledImage | TaskFailure]:
        return label_batch(tasks, self._encode, self._label_one, self._metrics)

    def _encode(self, pixels: torch.Tensor) -> DenseFeatures:
        return self._dense.encode(pixels.to(self._device))

    @torch.inference_mode()
    def _label_one(
        self, task: SegmentTask, encoded: DenseFeatures, number: int, pixels: torch.Tensor
    ) -> LabelledImage:
        one = encoded.select(number)
        settings = task.applied_to(self._settings.segment)
        key = (task.bank.key, settings.background)
        targets = self._banks.get(key)
        if targets is None:
            bank = open_bank(task.bank, self._dense.fingerprint)
            targets = targets_of(bank, settings).to(self._device)
            size = sum(t.nbytes for t in (targets.references, targets.text_embeddings, targets.labels))
            self._banks.put(key, targets, size)
        with self._metrics.timed("score" if settings.refine == "none" else settings.refine):
            result = segment_features(one, targets, pixels.to(self._device), task.size, settings)
        return LabelledImage.of(result, int(targets.labels.max()) + 1)

    def _sample(self, images: pa.Table) -> bytes | None:
        with self._metrics.timed("calibrate"):
            return sample_loaded(self._dense, images, self._device)

    def _embed_words(self, words: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        models = self._settings.models
        retrieval = embed_words(self._retrieval, words, models.templates).cpu().numpy()
        if models.language is None:
            return retrieval, retrieval
        return retrieval, embed_words(self._dense.language, words, models.templates).cpu().numpy()

    def _build(
        self, exemplars: pa.Table, text_embedding: np.ndarray, context_references: np.ndarray | None
    ) -> bytes:
        with self._metrics.timed("build"):
            text = torch.from_numpy(text_embedding.copy()).to(self._device)
            context = None if context_references is None else torch.from_numpy(context_references.copy())
            if context is not None:
                context = context.to(self._device)
            return save_tensors(
                build_concept(self._dense, exemplars, text, context, self._settings.references)
            )
