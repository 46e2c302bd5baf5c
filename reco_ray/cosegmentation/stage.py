"""The reference stage on Ray: builds all concepts of one or many vocabularies, each once and committed separately.

The context concepts come first, in sequence, each with those before it as its context (ReCo, section 3.3); all other
concepts then need only theirs and are built in parallel.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from reco_ray.config import Settings
from reco_ray.contents import ReferencesContent
from reco_ray.corpus.index import CorpusIndex
from reco_ray.corpus.load import whole_image_loader
from reco_ray.cosegmentation.bank import write_bank
from reco_ray.cosegmentation.build import (
    ReferenceInputs,
    build_concept,
    exemplar_loader,
    plan_for_index,
    prepare_inputs,
)
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan, Step, sequences, unique_steps
from reco_ray.cosegmentation.sample import measure_sample, sample_rows
from reco_ray.distributed.parts import Report, Worker
from reco_ray.distributed.pool import Pool, stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.errors import RecoError, pack, unpack
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated
from reco_ray.models.dense import DenseModels, load_retrieval_model
from reco_ray.outcome import Outcome
from reco_ray.vocabulary import Vocabulary

STAGE = "reference"
_CONCEPTS = "concepts"
_OWN = re.compile(
    r"(references|supports|sample)\.safetensors|exemplars\.parquet|sheets/\d{3,}-[^/]*\.jpg"
    rf"|{_CONCEPTS}/[0-9a-f]+\.(json|safetensors|sample(\.parts/\d{{6,}}\.safetensors)?)"
)


def build_references(
    index: str, vocabulary: Vocabulary, out: str, settings: Settings, renew: bool = False
) -> Outcome:
    """Builds the ReferenceBank of a vocabulary from an index, on the connected Ray cluster.

    Args:
        index: URI of an index artifact.
        vocabulary: concepts to build, with the images that a person chose for them, if any.
        out: URI of the ReferenceBank.
        settings: of the run.
        renew: replace references in `out` of another index, vocabulary or other settings.

    Raises:
        RecoError: an index of other models, more exemplars than images, a missing or chosen image that cannot be used,
            or unwritable output.
    """
    concepts = storage.join(out, _CONCEPTS)
    (built,) = build_many_references(index, {"": vocabulary}, {"": out}, settings, concepts, renew)
    if built.error is not None:
        raise built.error
    return built


def build_many_references(
    index_uri: str,
    vocabularies: Mapping[str, Vocabulary],
    outs: Mapping[str, str],
    settings: Settings,
    concepts: str,
    renew: bool = False,
) -> list[Outcome]:
    """Builds the ReferenceBanks of several vocabularies; concepts that they share are built once.

    Args:
        index_uri: an index artifact.
        vocabularies: by name.
        outs: URIs of the ReferenceBanks, by name.
        settings: of the run.
        concepts: URI of the folder for all concepts.
        renew: replace references in `outs` of another index, vocabulary or other settings. `concepts` must then be
            inside `outs`; concepts that are still needed are kept.

    Returns:
        Outcomes in the order of the vocabularies. A failed one does not stop the others.

    Raises:
        OtherModelError: an index of other models.
    """
    models = settings.models
    dense = DenseModels.load(models, seed=settings.seed)
    retrieval = load_retrieval_model(models, seed=settings.seed, dense=dense)
    index = CorpusIndex(index_uri, retrieval.fingerprint, settings.references.duplicates)
    outcomes: dict[str, Outcome] = {}
    plans: dict[str, tuple[ReferencePlan, artifacts.ArtifactWriter[ReferencesContent]]] = {}
    evidence = ReferenceInputs({}, {})
    for name, vocabulary in vocabularies.items():
        out = storage.absolute(outs[name])
        try:
            plan = plan_for_index(vocabulary, index, settings, dense.fingerprint)
            writer = artifacts.ArtifactWriter(out, ReferencesContent, plan.made_from)
            if renew:
                clear_outdated(writer, STAGE, lambda path: _OWN.fullmatch(path) is not None, keep=_CONCEPTS)
            if manifest := writer.finished():
                outcomes[name] = Outcome(STAGE, out, manifest, new=False, name=name)
                continue
            found = prepare_inputs(plan, index, retrieval, dense.language, settings)
        except RecoError as error:
            outcomes[name] = Outcome(STAGE, out, name=name, error=error)
            continue
        plans[name] = plan, writer
        # A shared concept is built from the inputs of the first vocabulary that has it.
        evidence = ReferenceInputs(
            {**found.texts, **evidence.texts}, {**found.exemplars, **evidence.exemplars}
        )
    store = ConceptStore(storage.absolute(concepts))
    samples = {plan.sample_id for plan, _ in plans.values() if plan.sample_id is not None}
    for sample_id in samples:  # one: plans of one index and the same settings share it
        rows = sample_rows(index, settings.segment.calibrate)
        load = whole_image_loader(dense.encoder.transform, dense.encoder.stride, settings.segment)
        measure_sample(store.sample_uri(sample_id), rows, load, settings, settings.placement.references)
    builder = _Builder(store, dense, settings)
    failed = builder.build(unique_steps(plan for plan, _ in plans.values()), evidence)
    for name, (plan, writer) in plans.items():
        reasons = [failed[step.id] for step in plan.steps if step.id in failed]
        if reasons:
            outcomes[name] = Outcome(STAGE, writer.uri, name=name, error=unpack(reasons[0]))
            continue
        counts = write_bank(writer, plan, store)
        if renew:
            store.prune(set(plan.entries), max_others=0)
        built = {"concepts": sum(step.same_as is None for step in plan.steps)}
        write_summary(writer.uri, "references", built, builder.run, settings)
        outcomes[name] = Outcome(STAGE, writer.uri, writer.commit(counts, plan.content), name=name)
    return [outcomes[name] for name in vocabularies]


@dataclass(frozen=True)
class ReferenceReport(Report):
    """failed: by id, the errors of concepts that could not be built, packed by `errors.pack`."""

    failed: dict[str, str]


class _Builder:
    """Builds concepts into a store; sets `run` to the statistics of the run."""

    def __init__(self, store: ConceptStore, dense: DenseModels, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._load = exemplar_loader(dense.encoder.transform, settings)
        self.run: dict[str, object] = {}

    def build(self, steps: Mapping[str, Step], evidence: ReferenceInputs) -> dict[str, str]:
        """Builds the steps that are not in the store.

        Returns:
            Reasons, by id, of steps that failed or depend on a failed one.
        """
        missing = self._store.missing(steps)
        context, others = sequences(steps.values())
        in_sequence = {name: [step for step in each if step.id in missing] for name, each in context.items()}
        alone = {step.id: [step] for step in others if step.id in missing}
        total = sum(step.same_as is None for step in steps.values())
        pending = sum(map(len, in_sequence.values())) + len(alone)
        worker = ReferenceWorker(self._settings, steps, evidence.texts, self._store.folder)
        device, placement = self._settings.models.device, self._settings.placement.references
        with stage_pool("reference", device, placement, total, total - pending) as pool:
            failed = self._run(pool, in_sequence, evidence, worker)
            context_seconds = pool.meter.work_seconds
            failed |= {name: failed[each] for name in alone for each in steps[name].context if each in failed}
            ready = {name: each for name, each in alone.items() if name not in failed}
            failed |= self._run(pool, ready, evidence, worker)
            self.run = {
                "concepts": pending,
                **pool.statistics(),
                "context_seconds": round(context_seconds, 3),
            }
        for step in steps.values():
            if step.same_as is not None and step.same_as in failed:
                failed[step.id] = failed[step.same_as]
            elif step.same_as is not None and step.id in missing:
                self._store.write_alias(step, torch.from_numpy(evidence.texts[step.id]))
        return failed

    def _run(
        self,
        pool: Pool,
        shards: Mapping[str, list[Step]],
        evidence: ReferenceInputs,
        worker: "ReferenceWorker",
    ) -> dict[str, str]:
        """Builds shards in parallel, and the steps of a shard in sequence; returns reasons of failed ones."""
        tables = {
            name: pa.concat_tables(evidence.exemplars[step.id] for step in sequence)
            for name, sequence in shards.items()
            if sequence
        }
        failed: dict[str, str] = {}
        for report in pool.shards(tables, self._load, worker):
            failed |= report.failed
        return failed


class ReferenceWorker(Worker[ReferenceReport]):
    """Co-segments the exemplars of concepts and commits each concept."""

    report = ReferenceReport

    def __init__(
        self, settings: Settings, steps: Mapping[str, Step], texts: Mapping[str, np.ndarray], folder: str
    ) -> None:
        self._settings, self._steps, self._texts, self._folder = settings, steps, texts, folder

    def set_up(self, device: str) -> None:
        """Loads the dense models."""
        self._models = DenseModels.load(self._settings.models, device=device, seed=self._settings.seed)
        self._device, self._store = device, ConceptStore(self._folder)
        self._context = lru_cache(maxsize=16)(self._read_context)

    def work(self, name: str, rows: pa.Table) -> ReferenceReport:
        """Builds the concepts of a shard in order; reports failed ones and those that depend on them."""
        failed: dict[str, str] = {}
        concepts = rows["concept"].unique().to_pylist()
        for concept_id in concepts:
            step = self._steps[concept_id]
            try:
                known = [failed[each] for each in step.context if each in failed]
                if known:
                    raise unpack(known[0])
                text = torch.from_numpy(self._texts[concept_id]).to(self._device)
                exemplars = rows.filter(pc.equal(rows["concept"], concept_id))
                context = self._context(step.context) if step.context else None
                tensors = build_concept(self._models, exemplars, text, context, self._settings.references)
                self._store.write(step, exemplars, tensors)
            except RecoError as error:
                failed[concept_id] = pack(error)
        return ReferenceReport(len(concepts), failed)

    def _read_context(self, ids: tuple[str, ...]) -> torch.Tensor:
        return torch.stack([self._store.read(each)["reference"] for each in ids]).to(self._device)
