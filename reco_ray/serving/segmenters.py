"""The deployment of trained segmenters, multiplexed: replicas keep the most recently used networks in memory."""

import asyncio
from typing import Any

import torch
from ray import serve

from reco_ray.distributed import ray_private
from reco_ray.files import storage
from reco_ray.models.runtime import resolve_runtime
from reco_ray.serving.answers import InputSpec
from reco_ray.serving.batcher import Batcher
from reco_ray.serving.deployment_calls import return_errors
from reco_ray.serving.heap_trimming import start_heap_trimming
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.segment_task import LabelledImage, SegmentTask, TaskFailure, label_batch
from reco_ray.serving.serving_metrics import ModelMetrics
from reco_ray.training.segmenter import Segmenter


class Segmenters:
    """Labels images with trained networks. Each has `scale.segmenter_bytes` of them loaded, and at least one."""

    def __init__(self, options: ServeOptions, lanes: int) -> None:
        settings = options.load()
        self._settings, self._uris = settings.of_trained().segment, options.segmenters
        self._precision = settings.models.precision
        self._device = str(resolve_runtime(settings.models.device).device)
        torch.set_num_threads(options.scale.threads)
        start_heap_trimming()
        self._loaded: ByteLRU[Segmenter] = ByteLRU(options.scale.segmenter_bytes)
        self._loading = asyncio.Lock()
        self._metrics = ModelMetrics()
        self._batcher = Batcher(self._label_all, _kind, largest=options.scale.batch, lanes=lanes)

    @return_errors
    async def describe(self, name: str) -> InputSpec:
        """The input format of a segmenter."""
        segmenter = await self.load(name)
        network = segmenter.network
        return InputSpec(f"segmenter {name}", network.transform, network.stride, segmenter.image_size)

    @return_errors
    async def label(self, task: SegmentTask) -> LabelledImage | TaskFailure:
        """Labels an image, in a batch with others for the same network.

        Raises:
            RecoError: the artifact is missing or damaged.
        """
        return await self._batcher((await self.load(task.bank.key), task))

    async def load(self, name: str) -> Segmenter:
        """A segmenter, from memory where it is loaded; room is made for it, in bytes, before it is."""
        await self._announce(name)
        if (found := self._loaded.get(name)) is not None:
            return found
        async with self._loading:
            if (found := self._loaded.get(name)) is None:
                uri = self._uris[name]
                for unloaded in self._loaded.make_room(await asyncio.to_thread(_weights_size, uri)):
                    await ray_private.unload_multiplexed(self, str(unloaded))
                found = await asyncio.to_thread(
                    Segmenter.from_artifact, uri, device=self._device, precision=self._precision
                )
                self._loaded.put(name, found, found.bytes)
        return found

    @serve.multiplexed(max_num_models_per_replica=-1)
    async def _announce(self, name: str) -> str:
        """Serve remembers the name, and tells the routers that this replica has the segmenter."""
        return name

    def _label_all(self, items: list[tuple[Segmenter, SegmentTask]]) -> list[LabelledImage | TaskFailure]:
        segmenter = items[0][0]  # the same for all, by `_kind`

        def label(
            task: SegmentTask, logits: torch.Tensor, number: int, pixels: torch.Tensor
        ) -> LabelledImage:
            settings = task.applied_to(self._settings)
            with self._metrics.timed("score" if settings.refine == "none" else settings.refine):
                result = segmenter.label(logits[number], pixels, task.size, settings)
            return LabelledImage.of(result, len(segmenter.labels))

        return label_batch([task for _, task in items], segmenter.logits, label, self._metrics)


def _kind(item: tuple[Segmenter, SegmentTask]) -> tuple[Any, ...]:
    """Only images of one shape, for one network, share a batch."""
    return (item[0].uri, *item[1].pixels.shape)


def _weights_size(uri: str) -> int:
    return storage.file_size(storage.join(uri, "weights.safetensors")) or 0
