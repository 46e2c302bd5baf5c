"""The deployment that talks HTTP: decodes, asks models and library, encodes; its event loop only ever waits."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from reco_ray import __version__
from reco_ray.errors import RecoError
from reco_ray.registry import REFINEMENTS
from reco_ray.serving.answers import JPEG, JSON, Legend, PixelsFor, as_jpeg, as_json, as_png, decode
from reco_ray.serving.bank import BankRef
from reco_ray.serving.bodies import Upload
from reco_ray.serving.calls import RETRY_SOON, call
from reco_ray.serving.gate import Gate
from reco_ray.serving.keys import KeyRing
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.metrics import IngressMetrics
from reco_ray.serving.middleware import HeadAsGet, TrailingSlash
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.problems import Problem
from reco_ray.serving.routes import build_routes
from reco_ray.serving.uploads import Options, parse_vocabulary
from reco_ray.serving.work import Labelled, Refused, Work

logger = logging.getLogger("ray.serve")
_NAMED_FOR = 2.0  # seconds that an ingress takes a vocabulary for what it was
_INFO_LIMITS = ("bytes", "pixels", "concepts", "concept_length", "batch", "max_side", "seconds")


class Ingress:
    """Implements `routes.Backend`."""

    def __init__(
        self,
        options: ServeOptions,
        models: DeploymentHandle,
        segmenters: DeploymentHandle | None,
        library: DeploymentHandle,
        threads: int,
    ) -> None:
        self._options, self.limits = options, options.limits
        self._settings = options.load()
        self._models, self._segmenters, self._library = models, segmenters, library
        self._keys = KeyRing(options.keys) if options.keys else None
        self._metrics = IngressMetrics()
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._started: dict[str, Any] = {}
        self._banks: ByteLRU[tuple[BankRef, float]] = ByteLRU(4096)  # an entry counts as one byte
        self._wanted: dict[str, PixelsFor] = {}
        self._images = 0

    def __serve_build_asgi_app__(self) -> ASGIApp:
        self._gate = Gate(build_routes(self, self._keys is not None), self.limits, self._keys, self._metrics)
        return HeadAsGet(TrailingSlash(self._gate))

    async def drain(self) -> int:
        """Takes no more requests; says how many images are still in the house."""
        self._gate.draining = True
        return self._images

    # --- state ------------------------------------------------------------------------------------------------

    async def begin(self) -> str | None:
        """Opens what the first request would open; what hinders it, in a line."""
        try:
            await asyncio.gather(call(self._models.describe), call(self._library.start))
        except (RecoError, Problem) as error:
            return str(error) if isinstance(error, RecoError) else error.detail
        return None

    def require_room(self, images: int) -> None:
        """Raises Problem 503 if so many more images have no place in the queue."""
        if self._images + images > self.limits.queue:
            raise Problem(503, "the queue is full", retry_after=RETRY_SOON)

    async def ready(self) -> bool:
        """Whether models are loaded and the index is open."""
        try:
            await self._start()
        except Problem:
            return False
        return True

    async def _start(self) -> dict[str, Any]:
        if not self._started:
            try:
                found = await asyncio.gather(call(self._models.describe), call(self._library.start))
            except RecoError as error:
                logger.error("the server cannot start: %s", error)
                raise Problem(503, "the server cannot start: its log says why", retry_after=10) from error
            self._started = {**found[0], **found[1]}
        return self._started

    async def info(self) -> dict[str, Any]:
        """What this server has and allows."""
        there = await self._start()
        return {
            "version": __version__,
            "preset": self._options.preset,
            "model": there["dense"],
            "index": None if there["images"] is None else {"images": there["images"]},
            "refine": REFINEMENTS.names,
            "refine_titles": {name: REFINEMENTS.get(name).TITLE for name in REFINEMENTS.names},
            "limits": {name: getattr(self.limits, name) for name in _INFO_LIMITS},
            "keys_required": self._keys is not None,
            "examples": [
                {"id": each, "name": name, "url": f"/v1/examples/{each}"} for each, name in there["examples"]
            ],
        }

    async def library(self, method: str, *arguments: Any) -> Any:
        """Asks the library."""
        await self._start()
        return await call(getattr(self._library, method), *arguments)

    # --- vocabularies -----------------------------------------------------------------------------------------

    async def vocabularies(self, owner: str) -> list[dict[str, Any]]:
        """All that an owner may use."""
        found = await self.library("vocabularies", owner)
        for each in found:
            self._banks.drop((owner, each["name"]))
        return found

    async def vocabulary(self, owner: str, name: str) -> dict[str, Any]:
        """One of them. Who hears that it is ready, is answered by it from then on."""
        found = await self.library("vocabulary", owner, name)
        self._banks.drop((owner, name))
        return found

    async def put(self, owner: str, name: str, fields: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Begins to build one."""
        vocabulary = parse_vocabulary(fields, self.limits)
        try:
            return await self.library("put", owner, name, vocabulary)
        finally:
            self._banks.drop((owner, name))

    async def delete(self, owner: str, name: str) -> None:
        """Deletes one."""
        try:
            await self.library("delete", owner, name)
        finally:
            self._banks.drop((owner, name))

    async def _bank(self, owner: str, options: Options) -> BankRef:
        if options.vocabulary is not None:
            key: Any = (owner, options.vocabulary)
            known = self._banks.get(key)
            if known is None or known[1] < time.monotonic():
                bank = await self.library("bank_of", owner, options.vocabulary)
                known = (bank, time.monotonic() + _NAMED_FOR)
                self._banks.put(key, known, 1)
            return known[0]
        fields = {"concepts": [{"name": name} for name in options.concepts or ()]}
        vocabulary = parse_vocabulary(fields, self.limits)
        key = tuple(vocabulary.names)
        known = self._banks.get(key)
        if known is None:
            seconds = 0.9 * self.limits.seconds
            known = (await self.library("bank_for", vocabulary, seconds), 0.0)
            self._banks.put(key, known, 1)
        return known[0]

    # --- images -----------------------------------------------------------------------------------------------

    async def segment(
        self, owner: str, request_id: str, upload: Upload, options: Options, kind: str
    ) -> dict[str, Any] | bytes:
        """One image, answered as `kind`."""
        with _House(self, 1):
            bank = await self._bank(owner, options)
            return await self._segment(request_id, upload, options, bank, kind)

    async def segment_batch(
        self, owner: str, request_id: str, uploads: list[Upload], options: Options
    ) -> dict[str, Any]:
        """Several images, each with its own outcome."""
        self._gate.take(owner, len(uploads) - 1)
        with _House(self, len(uploads)):
            bank = await self._bank(owner, options)

            async def one(upload: Upload) -> dict[str, Any]:
                try:
                    found = await self._segment(request_id, upload, options, bank, JSON)
                    assert isinstance(found, dict)
                    return {"id": upload.id, **found}
                except Problem as problem:
                    return {"id": upload.id, "error": problem.body(request_id)}

            return {"results": await asyncio.gather(*map(one, uploads))}

    async def _model_of(self, bank: BankRef) -> tuple[DeploymentHandle, PixelsFor]:
        """What labels images with this bank, and how it wants them."""
        if not bank.segmenter:
            there = await self._start()
            size = self._settings.segment.image_size
            return self._models.label, PixelsFor(there["dense"], there["transform"], there["stride"], size)
        assert self._segmenters is not None
        handle = self._segmenters.options(multiplexed_model_id=bank.key)
        if bank.key not in self._wanted:
            try:
                self._wanted[bank.key] = await call(handle.describe, bank.key)
            except RecoError as error:
                raise Problem(409, str(error)) from None
        return handle.label, self._wanted[bank.key]

    async def _segment(
        self, request_id: str, upload: Upload, options: Options, bank: BankRef, kind: str
    ) -> dict[str, Any] | bytes:
        started = time.perf_counter()
        if isinstance(upload.data, Problem):
            raise upload.data
        method, pixels = await self._model_of(bank)
        loop = asyncio.get_running_loop()
        with_photo = kind == JPEG
        picture = await loop.run_in_executor(
            self._pool, decode, upload.data, pixels, self.limits.pixels, options.max_side, with_photo
        )
        work = Work(
            picture.pixels,
            picture.size,
            bank,
            time.time() + self.limits.seconds,
            options.refine,
            options.background,
            options.threshold,
        )
        try:
            labelled: Labelled | Refused = await call(method, work)
        except RecoError as error:
            raise Problem(409, str(error)) from None
        if isinstance(labelled, Refused):
            if labelled.status == 409 and bank.plan is not None:
                self._banks.drop(tuple(bank.vocabulary.names))  # old concepts were deleted: make them again
                raise Problem(503, "these concepts must be built again", retry_after=RETRY_SOON)
            raise Problem(
                labelled.status, labelled.reason, retry_after=RETRY_SOON if labelled.status == 503 else None
            )
        self._metrics.image(options.vocabulary or "ad-hoc")
        legend = Legend(bank, work.applied_to(self._settings.segment))
        if kind == JPEG:
            assert picture.photo is not None
            return await loop.run_in_executor(self._pool, as_jpeg, labelled, legend, picture.photo)
        if kind != JSON:
            return await loop.run_in_executor(self._pool, as_png, labelled, legend)
        fields = await loop.run_in_executor(self._pool, as_json, labelled, legend)
        return {
            "request_id": request_id,
            "model": pixels.model,
            "vocabulary": options.vocabulary,
            **fields,
            "seconds": round(time.perf_counter() - started, 4),
        }


class _House:
    """Room for images that wait or are computed: who does not fit hears so at once."""

    def __init__(self, ingress: Any, images: int) -> None:
        self._ingress, self._count = ingress, images

    def __enter__(self) -> None:
        self._ingress.require_room(self._count)
        self._change(self._count)

    def __exit__(self, *error: object) -> None:
        self._change(-self._count)

    def _change(self, count: int) -> None:
        self._ingress._images += count
        self._ingress._metrics.queue(self._ingress._images)
