"""The deployment with the index and the state: vocabularies, concepts, search, thumbnails.

One replica. A replica that replaces it restores its state from the state directory.
"""

import asyncio
import logging
import threading
from typing import Any

from ray.serve.handle import DeploymentHandle

from reco_ray.contents import ReferencesContent
from reco_ray.corpus.index import CorpusIndex
from reco_ray.cosegmentation.bank import write_bank
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan
from reco_ray.cosegmentation.retrieve import EXAMPLE, RETRIEVED
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage
from reco_ray.serving import contract
from reco_ray.serving.answers import InputSpec
from reco_ray.serving.bank_of_request import BankRef, open_segmenter
from reco_ray.serving.builder import ConceptBuilder, client_message
from reco_ray.serving.deployment_calls import call, return_errors
from reco_ray.serving.example_store import ExampleStore
from reco_ray.serving.lru import ByteLRU
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.pictures import PictureCache, list_examples
from reco_ray.serving.problems import Problem
from reco_ray.serving.serving_metrics import VocabularyMetrics
from reco_ray.serving.vocabulary_store import VocabularyRecord, VocabularyStore
from reco_ray.vocabulary import Concept, Vocabulary
from reco_ray.vocabulary.chosen_images import Chosen, ChosenImage
from reco_ray.vocabulary.curation import validation_message, with_chosen

logger = logging.getLogger("ray.serve")
_BUILD_RETRY = 5  # seconds after which a client may ask again for concepts that are being made


class VocabularyService:
    """Manages vocabularies and concepts; its methods are called by the routes (`routes.py`)."""

    def __init__(self, options: ServeOptions, models: DeploymentHandle, at_once: int) -> None:
        self._options, self._models, self._at_once = options, models, at_once
        self._settings = options.load()
        self._metrics = VocabularyMetrics()
        self._concepts = ConceptStore(storage.join(options.state, "concepts"))
        self._records = VocabularyStore(storage.join(options.state, "vocabularies"))
        self._segmenters = {name: open_segmenter(name, uri) for name, uri in options.segmenters.items()}
        self._own_images = ExampleStore(storage.join(options.state, "examples"), options.limits.own_examples)
        self._known = {(record.owner, record.name): record for record in self._records.load()}
        self._banks_lock = threading.Lock()
        self._progress: dict[tuple[str, str], int] = {}
        self._jobs: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._searches: ByteLRU[Any] = ByteLRU(16_000_000)
        self._examples = list_examples(options.examples)
        self._pictures = PictureCache(self._settings.embed.max_pixels)
        self._builder: ConceptBuilder | None = None
        self._index: CorpusIndex | None = None
        self._opening = asyncio.Lock()

    @return_errors
    async def start(self) -> tuple[contract.Index | None, tuple[contract.ExampleResource, ...]]:
        """Opens the index and resumes builds; called until it succeeds. Returns the index and examples available.

        Raises:
            OtherModelError: the index was made with other models.
        """
        async with self._opening:
            if self._options.index is not None and self._builder is None:
                retrieval, pixels = await call(self._models.describe)
                self._index = await asyncio.to_thread(
                    CorpusIndex, self._options.index, retrieval, self._settings.references.duplicates
                )
                self._builder = self._make_builder(self._index, pixels)
                self._warm = asyncio.create_task(self._prepare())
                for record in list(self._known.values()):
                    if record.status == "building":
                        self._begin(record)
        examples = tuple(
            contract.ExampleResource(id=each.id, name=each.name, url=f"/v1/examples/{each.id}")
            for each in self._examples.values()
        )
        return None if self._index is None else contract.Index(images=len(self._index)), examples

    async def _prepare(self) -> None:
        """Builds what most vocabularies need before one is requested."""
        try:
            assert self._builder is not None
            await self._builder.prepare()
        except Exception:
            logger.exception("what most vocabularies need could not be made")

    def _make_builder(self, index: CorpusIndex, pixels: InputSpec) -> ConceptBuilder:
        return ConceptBuilder(
            self._settings,
            index,
            self._concepts,
            self._models,
            pixels,
            self._metrics,
            self._at_once,
        )

    # --- banks ------------------------------------------------------------------------------------------------

    @return_errors
    async def bank_of(self, owner: str, name: str) -> BankRef:
        """The references of a vocabulary, or of its previous version while it is built.

        Raises:
            Problem: 404 no such vocabulary, 503 still building, 409 the build failed.
        """
        if name in self._segmenters:
            return self._segmenters[name]
        record = self._record(owner, name)
        if record.status != "ready" and record.before is not None:
            return self._bank(record.before)
        if record.status == "building":
            raise Problem(503, f"vocabulary {name!r} is being built", retry_after=_BUILD_RETRY)
        if record.status == "failed":
            raise Problem(409, f"vocabulary {name!r} could not be built: {record.error}")
        return self._bank(record)

    @return_errors
    async def bank_for(self, vocabulary: Vocabulary, seconds: float) -> BankRef:
        """The references of concepts named in a request, built if needed. A build continues after the timeout.

        Raises:
            Problem: 409 there is no index, 422 unreadable words, 503 timeout.
        """
        plan = self._plan(vocabulary)
        missing = await asyncio.to_thread(self._require_builder().missing, plan)
        if missing:
            making = asyncio.ensure_future(self._require_builder().make(plan))
            try:
                await asyncio.wait_for(asyncio.shield(making), seconds)
            except TimeoutError:
                making.add_done_callback(_retrieve_exception)
                raise Problem(
                    503, "the concepts are still being built: ask again", retry_after=_BUILD_RETRY
                ) from None
            except RecoError as error:
                raise Problem(422, str(error)) from None
            await asyncio.to_thread(self._prune, plan)
        return BankRef(plan.key, vocabulary, plan.ids, self._concepts.folder, plan)

    def _plan(self, vocabulary: Vocabulary) -> ReferencePlan:
        return self._require_builder().plan(vocabulary)

    def _require_builder(self) -> ConceptBuilder:
        if self._options.index is None:
            raise Problem(
                409, "this server has no index to find concepts in: name one of its vocabularies instead"
            )
        if self._builder is None:
            raise Problem(503, "the server is starting", retry_after=_BUILD_RETRY)
        return self._builder

    def _bank(self, record: VocabularyRecord) -> BankRef:
        uri = self._records.bank_uri(record)
        return BankRef(uri, record.vocabulary, tuple(record.concept_ids), uri)

    # --- vocabularies -----------------------------------------------------------------------------------------

    async def vocabularies(self, owner: str) -> list[contract.VocabularyResource]:
        """Describes the vocabularies of an owner, and the trained segmenters."""
        own = [self._resource(record) for record in self._known.values() if record.owner == owner]
        trained = [_describe_segmenter(name, bank) for name, bank in self._segmenters.items()]
        return sorted(own, key=lambda each: each.name) + trained

    @return_errors
    async def vocabulary(self, owner: str, name: str) -> contract.VocabularyResource:
        """Describes one vocabulary or segmenter.

        Raises:
            Problem: 404, no such vocabulary.
        """
        if name in self._segmenters:
            return _describe_segmenter(name, self._segmenters[name])
        return self._resource(self._record(owner, name))

    @return_errors
    async def put(
        self, owner: str, name: str, vocabulary: Vocabulary, images: dict[str, bytes]
    ) -> tuple[contract.VocabularyResource, bool]:
        """Starts building a vocabulary, which replaces one of that name; also returns whether it is already ready.

        Args:
            owner: of the vocabulary.
            name: of the vocabulary.
            vocabulary: the concepts; images that were chosen for them are named by their ids.
            images: own examples that are not known yet, by id.

        Raises:
            Problem: 409 there is no index, or the owner has the maximum number of vocabularies; 422 a chosen image
                cannot be used.
        """
        self._refuse_segmenter(name)
        builder = self._require_builder()
        with self._own_images.arriving(images):
            plan = await asyncio.to_thread(self._plan_chosen, builder, owner, vocabulary, images)
            vocabulary = plan.vocabulary
            key = storage.digest(plan.key, vocabulary.model_dump())
            old = self._known.get((owner, name))
            if old is not None and old.key == key and old.status != "failed":
                return self._resource(old), old.status == "ready"
            own = sum(record.owner == owner for record in self._known.values())
            if old is None and own >= self._options.limits.vocabularies:
                raise Problem(409, f"{own} vocabularies are as many as one key may have: delete one")
            record = VocabularyRecord(
                owner=owner,
                name=name,
                vocabulary=vocabulary,
                key=key,
                concept_ids=list(plan.ids),
                steps=list(plan.entries),
                before=_last_ready(old),
            )
            await asyncio.to_thread(self._records.save, record)
            self._known[owner, name] = record
        self._begin(record)
        return self._resource(record), False

    @return_errors
    async def patch(
        self, owner: str, name: str, chosen: dict[str, Chosen], images: dict[str, bytes]
    ) -> tuple[contract.VocabularyResource, bool]:
        """As `put`, for a vocabulary that is there, with other images chosen for some of its concepts.

        Args:
            owner: of the vocabulary.
            name: of the vocabulary.
            chosen: by name of the concept, in place of all that were chosen for it before.
            images: as of `put`.

        Raises:
            Problem: 404 no such vocabulary, 422 it has no such concept; and as `put`.
        """
        self._refuse_segmenter(name)
        vocabulary = self._record(owner, name).vocabulary
        try:
            changed = with_chosen(vocabulary, chosen)
        except ValueError as error:
            raise Problem(422, validation_message(error)) from None
        return await self.put(owner, name, changed, images)

    def _plan_chosen(
        self, builder: ConceptBuilder, owner: str, vocabulary: Vocabulary, images: dict[str, bytes]
    ) -> ReferencePlan:
        """Keeps the own examples, and plans the references; raises Problem 422 if an image cannot be used."""
        try:
            return builder.plan(self._own_images.keep(owner, vocabulary, images))
        except RecoError as error:
            raise Problem(422, self._own_images.without_folder(owner, str(error))) from None

    @return_errors
    async def delete(self, owner: str, name: str) -> None:
        """Deletes a vocabulary.

        Raises:
            Problem: 404 no such vocabulary, 409 it is a trained segmenter.
        """
        self._refuse_segmenter(name)
        record = self._record(owner, name)
        del self._known[owner, name]
        if job := self._jobs.pop((owner, name), None):
            job.cancel()
        await asyncio.to_thread(self._delete, record)
        await asyncio.to_thread(self._own_images.prune, owner, list(self._known.values()))

    def _refuse_segmenter(self, name: str) -> None:
        if name in self._segmenters:
            raise Problem(409, f"{name!r} is a trained segmenter of this server: choose another name")

    def _record(self, owner: str, name: str) -> VocabularyRecord:
        record = self._known.get((owner, name))
        if record is None:
            raise Problem(404, f"there is no vocabulary {name!r}")
        return record

    def _resource(self, record: VocabularyRecord) -> contract.VocabularyResource:
        total = len(record.steps)
        done = total if record.status == "ready" else self._progress.get((record.owner, record.name), 0)
        served = _last_ready(record)
        return contract.VocabularyResource(
            name=record.name,
            kind="zero-shot",
            status=record.status,
            concepts=tuple(record.vocabulary.names),
            concept_ids=tuple(record.concept_ids),
            progress=contract.Progress(done=done, total=total),
            error=record.error,
            serving=None if served is None else tuple(served.vocabulary.names),
            mine=True,
            chosen={
                concept.name: _describe_chosen(concept)
                for concept in record.vocabulary.concepts
                if concept.chosen
            },
        )

    def _begin(self, record: VocabularyRecord) -> None:
        place = (record.owner, record.name)
        if job := self._jobs.pop(place, None):
            job.cancel()
        self._progress[place] = 0
        self._jobs[place] = asyncio.create_task(self._build(record))

    async def _build(self, record: VocabularyRecord) -> None:
        place = (record.owner, record.name)
        try:
            builder = self._require_builder()
            plan = await asyncio.to_thread(builder.plan, record.vocabulary)
            await builder.make(plan, lambda done: self._progress.__setitem__(place, done))
            await asyncio.to_thread(self._assemble, record, plan)
            record.status, record.before = "ready", None
        except Exception as error:
            logger.exception("building vocabulary %s failed", record.name)
            message = self._own_images.without_folder(record.owner, client_message(error))
            record.status, record.error = "failed", message
        if self._known.get(place) is record:
            await asyncio.to_thread(self._records.save, record)
            served = record.before or record
            await asyncio.sleep(
                self._options.limits.seconds
            )  # until requests that use the previous bank have ended
            await asyncio.to_thread(self._delete_banks, record, {record.key, served.key})
            await asyncio.to_thread(self._own_images.prune, record.owner, list(self._known.values()))

    # A thread goes on when the task that waits for it is cancelled: without the lock, a bank would be written into a
    # folder that is being deleted.

    def _assemble(self, record: VocabularyRecord, plan: ReferencePlan) -> None:
        """Writes the bank as an artifact, like `reco-ray references`; not if the vocabulary is gone or replaced."""
        with self._banks_lock:
            if self._known.get((record.owner, record.name)) is not record:
                return
            writer = artifacts.ArtifactWriter(
                self._records.bank_uri(record), ReferencesContent, plan.made_from
            )
            if not writer.finished():
                writer.commit(write_bank(writer, plan, self._concepts), plan.content)

    def _delete(self, record: VocabularyRecord) -> None:
        with self._banks_lock:
            self._records.delete(record)

    def _delete_banks(self, record: VocabularyRecord, keep: set[str]) -> None:
        with self._banks_lock:
            if self._known.get((record.owner, record.name)) is record:
                self._records.delete_banks(record, keep)

    def _prune(self, plan: ReferencePlan) -> None:
        """Deletes what neither vocabularies nor `plan` need."""
        assert self._builder is not None
        keep = {*plan.entries, *(each for record in self._known.values() for each in record.steps)}
        self._concepts.prune(keep | self._builder.being_made, self._options.limits.cached_concepts)

    # --- concepts, search and images --------------------------------------------------------------------------

    @return_errors
    async def concept(self, concept_id: str) -> contract.ConceptResource:
        """Words and exemplars of a concept.

        Raises:
            Problem: 404, no such concept.
        """
        described = await asyncio.to_thread(self._concepts.describe, concept_id)
        if described is None:
            raise Problem(404, f"there is no concept {concept_id!r}")
        part = await asyncio.to_thread(self._concepts.read, concept_id)
        seeds, supports = part["seed_locations"].tolist(), part["support"].float()
        return contract.ConceptResource(
            id=concept_id,
            name=described["name"],
            words=tuple(described["words"]),
            exemplars=tuple(
                contract.Exemplar(
                    rank=row["rank"],
                    image_id=row["image_id"],
                    similarity=row["similarity"],
                    seed=seed,
                    support=float(support[seed[0], seed[1]]),
                    thumbnail=_thumbnail(row["image_id"]),
                    source=row.get("source", RETRIEVED),
                    width=row.get("width"),
                    height=row.get("height"),
                    picture=f"/v1/concepts/{concept_id}/exemplars/{row['rank']}",
                    uri_name="" if row.get("source") == EXAMPLE else row["uri"].rpartition("/")[2],
                )
                for row, seed, support in zip(described["exemplars"], seeds, supports, strict=True)
            ),
        )

    @return_errors
    async def sheet(self, concept_id: str) -> bytes:
        """The contact sheet of a concept, a JPEG.

        Raises:
            Problem: 404, no such concept.
        """
        if await asyncio.to_thread(self._concepts.describe, concept_id) is None:
            raise Problem(404, f"there is no concept {concept_id!r}")
        part = await asyncio.to_thread(self._concepts.read, concept_id)
        return part["sheet"].numpy().tobytes()

    @return_errors
    async def exemplar(self, concept_id: str, rank: int) -> bytes:
        """The photograph of an exemplar, a JPEG.

        Raises:
            Problem: 404, no such concept or exemplar, or its file is missing.
        """
        described = await asyncio.to_thread(self._concepts.describe, concept_id)
        if described is None or rank >= len(described["exemplars"]):
            raise Problem(404, f"concept {concept_id!r} has no exemplar {rank}")
        row = described["exemplars"][rank]
        return await asyncio.to_thread(self._pictures.exemplar, row["image_id"], row["uri"])

    @return_errors
    async def search(self, words: str, k: int) -> tuple[contract.SearchHit, ...]:
        """The `k` images nearest to `words`.

        Raises:
            Problem: 409 there is no index, 422 unreadable words.
        """
        self._require_builder()
        assert self._index is not None
        embedding = self._searches.get(words)
        if embedding is None:
            try:
                embedding, _ = await call(self._models.embed_words, [[words]])
            except RecoError as error:
                raise Problem(422, str(error)) from None
            self._searches.put(words, embedding, embedding.nbytes)
        with self._metrics.search():
            similarities, rows = await asyncio.to_thread(
                self._index.search, embedding, min(k, len(self._index))
            )
        found = (await asyncio.to_thread(self._index.images.take, rows[0])).to_pylist()
        return tuple(
            contract.SearchHit(
                image_id=each["image_id"],
                score=float(score),
                uri_name=each["uri"].rpartition("/")[2],
                thumbnail=_thumbnail(each["image_id"]),
            )
            for each, score in zip(found, similarities[0], strict=True)
        )

    @return_errors
    async def thumbnail(self, image_id: str) -> bytes:
        """A JPEG thumbnail of an image of the corpus.

        Raises:
            Problem: 404, no such image, or its file is missing.
        """
        self._require_builder()
        assert self._index is not None
        return await asyncio.to_thread(self._pictures.thumbnail, self._index.images, image_id)

    @return_errors
    async def example(self, example_id: str) -> bytes:
        """An example photograph, a JPEG.

        Raises:
            Problem: 404, no such example.
        """
        example = self._examples.get(example_id)
        if example is None:
            raise Problem(404, f"there is no example {example_id!r}")
        return await asyncio.to_thread(self._pictures.example, example)


def _last_ready(record: VocabularyRecord | None) -> VocabularyRecord | None:
    """The version of a vocabulary that is served: the record itself or its previous version."""
    return record if record is None or record.status == "ready" else record.before


def _describe_chosen(concept: Concept) -> contract.ChosenExemplars:
    def described(each: ChosenImage) -> contract.ChosenExemplar:
        boxes, points = ([list(mark) for mark in marks] for marks in (each.boxes, each.points))
        return contract.ChosenExemplar(image_id=str(each.image_id), boxes=tuple(boxes), points=tuple(points))

    return contract.ChosenExemplars(
        rejected=tuple(str(each.image_id) for each in concept.rejected),
        pinned=tuple(described(each) for each in concept.pinned),
        examples=tuple(described(each) for each in concept.examples),
        only_chosen=concept.only_chosen,
    )


def _retrieve_exception(task: "asyncio.Future[None]") -> None:
    if not task.cancelled():
        task.exception()


def _thumbnail(image_id: str) -> str:
    return f"/v1/images/{image_id}/thumbnail"


def _describe_segmenter(name: str, bank: BankRef) -> contract.VocabularyResource:
    concepts = tuple(bank.vocabulary.names)
    return contract.VocabularyResource(
        name=name,
        kind="segmenter",
        status="ready",
        concepts=concepts,
        concept_ids=(),
        progress=contract.Progress(done=len(concepts), total=len(concepts)),
        error=None,
        serving=concepts,
        mine=False,
    )
