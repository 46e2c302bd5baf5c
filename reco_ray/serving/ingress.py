"""The HTTP deployment: decodes images, calls the other deployments, encodes answers. The event loop never computes."""

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from reco_ray import __version__
from reco_ray.errors import RecoError
from reco_ray.registry import REFINEMENTS
from reco_ray.serving import contract
from reco_ray.serving.access import limit_rate, refuse_when_draining, require_key, require_loopback
from reco_ray.serving.annotations import as_coco, as_label_studio
from reco_ray.serving.answers import (
    COCO,
    JPEG,
    JSON,
    LABEL_STUDIO,
    InputSpec,
    Legend,
    as_jpeg,
    as_json,
    as_png,
    decode,
)
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.bodies import Upload
from reco_ray.serving.deployment_calls import RETRY_SOON, call
from reco_ray.serving.keys import KeyRing
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.middleware import Check, add_middlewares
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.problems import Problem
from reco_ray.serving.rate_limit import RateLimiter
from reco_ray.serving.routes import build_routes
from reco_ray.serving.segment_task import LabelledImage, SegmentTask, TaskFailure
from reco_ray.serving.serving_metrics import IngressMetrics
from reco_ray.serving.uploads import Options, parse_vocabulary
from reco_ray.vocabulary import Vocabulary
from reco_ray.vocabulary.chosen_images import Chosen

logger = logging.getLogger("ray.serve")
_VOCABULARY_CACHE_SECONDS = 2.0  # for which a looked-up vocabulary is cached
_INFO_LIMITS = set(contract.LimitsInfo.model_fields)


@dataclass(frozen=True)
class Started:
    """What the other deployments tell when they have started. pixels: what the dense models take."""

    pixels: InputSpec
    index: contract.Index | None
    examples: tuple[contract.ExampleResource, ...]


class Ingress:
    """Implements the routes. `owner` is the name of the caller's API key, or `LOCAL_OWNER`."""

    def __init__(
        self,
        options: ServeOptions,
        models: DeploymentHandle,
        segmenters: DeploymentHandle | None,
        vocabulary_service: DeploymentHandle,
        threads: int,
    ) -> None:
        self.options, self.limits = options, options.limits
        self._settings = options.load()
        self._models, self._segmenters, self.vocabulary_service = models, segmenters, vocabulary_service
        self._keys = KeyRing(options.keys) if options.keys else None
        self._rates = RateLimiter(self.limits.rate, self.limits.burst)
        self._draining = False
        self._metrics = IngressMetrics()
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._started: Started | None = None
        self._banks: ByteLRU[tuple[BankRef, float]] = ByteLRU(4096)  # an entry counts as one byte
        self._input_specs: dict[str, InputSpec] = {}
        self._images = 0

    def __serve_build_asgi_app__(self) -> ASGIApp:
        draining = partial(refuse_when_draining, lambda: self._draining)
        if self._keys is None:
            checks: list[Check] = [draining, require_loopback]
        else:
            checks = [draining, partial(require_key, self._keys), partial(limit_rate, self._rates)]
        routes = build_routes(self, self._keys is not None)
        return add_middlewares(routes, self.limits, self._metrics, checks)

    async def drain(self) -> int:
        """Stops accepting requests; returns the number of images that wait or are computed."""
        self._draining = True
        return self._images

    # --- state ------------------------------------------------------------------------------------------------

    async def begin(self) -> str | None:
        """Loads models and opens the index; returns the error in one line, or None."""
        try:
            await asyncio.gather(call(self._models.describe), call(self.vocabulary_service.start))
        except (RecoError, Problem) as error:
            return str(error) if isinstance(error, RecoError) else error.detail
        return None

    def require_queue_space(self, images: int) -> None:
        """Raises Problem 503 if the queue has no space for `images` more."""
        if self._images + images > self.limits.queue:
            raise Problem(503, "the queue is full", retry_after=RETRY_SOON)

    async def ready(self) -> bool:
        """Whether the models are loaded and the index is open."""
        try:
            await self._start()
        except Problem:
            return False
        return True

    async def _start(self) -> Started:
        if self._started is None:
            try:
                (_, spec), (index, examples) = await asyncio.gather(
                    call(self._models.describe), call(self.vocabulary_service.start)
                )
            except RecoError as error:
                logger.error("the server cannot start: %s", error)
                raise Problem(503, "the server cannot start: its log says why", retry_after=10) from error
            self._started = Started(spec, index, examples)
        return self._started

    async def info(self) -> contract.Info:
        """What this server has and allows."""
        started = await self._start()
        return contract.Info(
            version=__version__,
            preset=self.options.preset,
            model=started.pixels.model,
            index=started.index,
            refine=tuple(REFINEMENTS.names),
            refine_titles={name: REFINEMENTS.get(name).TITLE for name in REFINEMENTS.names},
            refine_default=self._settings.segment.refine,
            # Without validation, which would turn whole numbers of seconds into floats.
            limits=contract.LimitsInfo.model_construct(**self.limits.model_dump(include=_INFO_LIMITS)),
            keys_required=self._keys is not None,
            examples=started.examples,
        )

    async def ask(self, method: DeploymentHandle, *arguments: Any) -> Any:
        """Calls a method of another deployment once the server has started; raises as `call` does."""
        await self._start()
        return await call(method, *arguments)

    # --- vocabularies -----------------------------------------------------------------------------------------

    async def vocabularies(self, owner: str) -> contract.Vocabularies:
        """Lists the vocabularies that an owner may use."""
        found = await self.ask(self.vocabulary_service.vocabularies, owner)
        for each in found:
            self._banks.drop((owner, each.name))
        return contract.Vocabularies(vocabularies=found)

    async def vocabulary(self, owner: str, name: str) -> contract.VocabularyResource:
        """Describes a vocabulary, and drops it from the cache, so that later requests use the reported state."""
        found = await self.ask(self.vocabulary_service.vocabulary, owner, name)
        self._banks.drop((owner, name))
        return found

    async def put(
        self, owner: str, name: str, vocabulary: Vocabulary, images: dict[str, bytes]
    ) -> tuple[contract.VocabularyResource, bool]:
        """Starts building a vocabulary with own examples, by id; also returns whether it is already ready."""
        try:
            return await self.ask(self.vocabulary_service.put, owner, name, vocabulary, images)
        finally:
            self._banks.drop((owner, name))

    async def patch(
        self, owner: str, name: str, chosen: dict[str, Chosen], images: dict[str, bytes]
    ) -> tuple[contract.VocabularyResource, bool]:
        """Starts building a vocabulary with other chosen images; also returns whether it is already ready."""
        try:
            return await self.ask(self.vocabulary_service.patch, owner, name, chosen, images)
        finally:
            self._banks.drop((owner, name))

    async def delete(self, owner: str, name: str) -> None:
        """Deletes a vocabulary."""
        try:
            await self.ask(self.vocabulary_service.delete, owner, name)
        finally:
            self._banks.drop((owner, name))

    async def _bank(self, owner: str, options: Options) -> BankRef:
        if options.vocabulary is not None:
            key: Any = (owner, options.vocabulary)
            known = self._banks.get(key)
            if known is None or known[1] < time.monotonic():
                bank = await self.ask(self.vocabulary_service.bank_of, owner, options.vocabulary)
                known = (bank, time.monotonic() + _VOCABULARY_CACHE_SECONDS)
                self._banks.put(key, known, 1)
            return known[0]
        vocabulary, _ = parse_vocabulary({"concepts": options.concepts}, self.limits)
        key = tuple(vocabulary.names)
        known = self._banks.get(key)
        if known is None:
            seconds = 0.9 * self.limits.seconds
            known = (await self.ask(self.vocabulary_service.bank_for, vocabulary, seconds), 0.0)
            self._banks.put(key, known, 1)
        return known[0]

    # --- images -----------------------------------------------------------------------------------------------

    async def segment(
        self, owner: str, request_id: str, upload: Upload, options: Options, kind: str
    ) -> contract.SegmentationResource | bytes:
        """Segments one image; `kind` is the media type of the answer."""
        with self._queued(1):
            bank = await self._bank(owner, options)
            return await self._segment(request_id, upload, options, bank, kind)

    async def segment_batch(
        self, owner: str, request_id: str, uploads: list[Upload], options: Options
    ) -> contract.Batch:
        """Segments several images; each has a result or an error of its own."""
        self.charge(owner, len(uploads) - 1)
        with self._queued(len(uploads)):
            bank = await self._bank(owner, options)

            async def one(upload: Upload) -> contract.BatchSegmentation | contract.BatchFailure:
                name = str(upload.id)
                try:
                    found = await self._segment(request_id, upload, options, bank, JSON)
                    assert isinstance(found, contract.SegmentationResource)
                    return contract.BatchSegmentation(id=name, **dict(found))
                except Problem as problem:
                    return contract.BatchFailure(id=name, error=problem.body(request_id))

            return contract.Batch(results=tuple(await asyncio.gather(*map(one, uploads))))

    def charge(self, owner: str, images: int) -> None:
        """Counts images beyond the first of a request; raises Problem 429 above the rate limit."""
        if self._keys is not None:
            self._rates.take(owner, images)

    @contextmanager
    def _queued(self, images: int) -> Iterator[None]:
        """Reserves queue space for images; raises Problem 503 if there is none."""
        self.require_queue_space(images)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def _count(self, change: int) -> None:
        self._images += change
        self._metrics.queue(self._images)

    async def _model_of(self, bank: BankRef) -> tuple[DeploymentHandle, InputSpec]:
        """The method that labels images with this bank, and its input format."""
        if not bank.segmenter:
            return self._models.label, (await self._start()).pixels
        assert self._segmenters is not None
        handle = self._segmenters.options(multiplexed_model_id=bank.key)
        if bank.key not in self._input_specs:
            try:
                self._input_specs[bank.key] = await call(handle.describe, bank.key)
            except RecoError as error:
                raise Problem(409, str(error)) from None
        return handle.label, self._input_specs[bank.key]

    async def _segment(
        self, request_id: str, upload: Upload, options: Options, bank: BankRef, kind: str
    ) -> contract.SegmentationResource | bytes:
        started = time.perf_counter()
        if isinstance(upload.data, Problem):
            raise upload.data
        method, pixels = await self._model_of(bank)
        loop = asyncio.get_running_loop()
        with_photo = kind == JPEG
        picture = await loop.run_in_executor(
            self._pool, decode, upload.data, pixels, self.limits.pixels, options.max_side, with_photo
        )
        task = SegmentTask(
            picture.pixels,
            picture.size,
            bank,
            time.time() + self.limits.seconds,
            options.refine,
            options.background,
            options.threshold,
        )
        try:
            labelled: LabelledImage | TaskFailure = await call(method, task)
        except RecoError as error:
            raise Problem(409, str(error)) from None
        if isinstance(labelled, TaskFailure):
            if labelled.status == 409 and bank.plan is not None:
                self._banks.drop(
                    tuple(bank.vocabulary.names)
                )  # its concepts were deleted from the cache: build them again
                raise Problem(503, "these concepts must be built again", retry_after=RETRY_SOON)
            raise Problem(
                labelled.status, labelled.reason, retry_after=RETRY_SOON if labelled.status == 503 else None
            )
        self._metrics.image(options.vocabulary or "ad-hoc")
        legend = Legend(bank, task.applied_to(self._settings.segment))
        if kind == JPEG:
            assert picture.photo is not None
            return await loop.run_in_executor(self._pool, as_jpeg, labelled, legend, picture.photo)
        version = f"reco-ray {__version__} {self.options.preset}"
        if kind == COCO:
            return await loop.run_in_executor(self._pool, as_coco, labelled, legend, version)
        if kind == LABEL_STUDIO:
            return await loop.run_in_executor(
                self._pool, as_label_studio, labelled, legend, version, picture.original
            )
        if kind != JSON:
            return await loop.run_in_executor(self._pool, as_png, labelled, legend)
        encode = partial(
            as_json,
            labelled,
            legend,
            request_id=request_id,
            model=pixels.model,
            vocabulary=options.vocabulary,
            started=started,
        )
        return await loop.run_in_executor(self._pool, encode)
