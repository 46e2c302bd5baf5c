"""The stages as functions: a request in, what became of its artifacts out. `reco_ray.embed` and the others are these.

Heavy modules are imported when a stage is called, so that `import reco_ray` and `--help` answer at once.
"""

import functools
import inspect
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pydantic import ValidationError

from reco_ray.errors import RecoError, UsageError
from reco_ray.files.checksums import MANIFEST
from reco_ray.files.storage import absolute, exists, join, write_bytes
from reco_ray.outcome import (
    DuplicatesResult,
    EvaluateResult,
    Outcome,
    ReviewResult,
    RunResult,
    SearchResult,
    SweepResult,
    TrainedResult,
    VerdictsResult,
)
from reco_ray.requests import (
    DemoRequest,
    DuplicatesRequest,
    EmbedRequest,
    EvaluateRequest,
    ExportMasksRequest,
    ExportRequest,
    IndexRequest,
    LabelRequest,
    ReferencesRequest,
    Request,
    ReviewRequest,
    RunRequest,
    SearchRequest,
    SegmentRequest,
    ServeRequest,
    SweepRequest,
    TrainRequest,
    usage_error,
)
from reco_ray.vocabulary import Vocabulary
from reco_ray.vocabulary.curation import curated

if TYPE_CHECKING:
    from reco_ray.config import IndexSettings, Settings
    from reco_ray.sweeps.run_trial import TrialRecord
    from reco_ray.sweeps.sweep_plan import SweepPlan

P = ParamSpec("P")
R = TypeVar("R", bound=Request)
Result = TypeVar("Result")


class Listener:
    """Is told how a stage gets on; this one ignores it."""

    def vocabulary(self, vocabulary: Vocabulary, name: str = "") -> None:
        """Concepts were read, of the vocabulary `name` where there are several."""

    def outcome(self, outcome: Outcome) -> None:
        """An artifact is finished, or failed."""

    def pushed(self, address: str) -> None:
        """An export was pushed to a hub."""

    def trial(self, plan: "SweepPlan", record: "TrialRecord") -> None:
        """A trial of a sweep has ended."""


@dataclass(frozen=True)
class Stage(Generic[R, Result]):
    """A stage by name: the class of its requests, and the function that carries one out."""

    request: type[R]
    carry_out: Callable[[R, Listener], Result]


def _run(request: RunRequest, listener: Listener) -> RunResult:
    vocabulary, settings = request.load_vocabulary(), request.load_settings()
    from reco_ray.corpus.chosen import open_examples, require_files
    from reco_ray.models.description import require_dense_models
    from reco_ray.segmentation.refine import require_refinement

    # Before hours of embedding, not after them.
    require_refinement(settings.segment.refine)
    vocabulary = open_examples(vocabulary, settings)
    require_files(vocabulary, settings)
    require_dense_models(settings)
    return _main_job(request.corpus, request.images, vocabulary, settings, request, listener)


def _demo(request: DemoRequest, listener: Listener) -> RunResult:
    from reco_ray.corpus.own_output import mark_output
    from reco_ray.demo import prepare_demo

    mark_output(request.out)
    demo = prepare_demo(join(request.out, "photographs"))
    return _main_job(demo.corpus, demo.images, demo.vocabulary, demo.settings, request, listener)


def _main_job(
    corpus: str,
    images: str,
    vocabulary: Vocabulary,
    settings: "Settings",
    request: RunRequest | DemoRequest,
    listener: Listener,
) -> RunResult:
    from reco_ray.distributed.session import session
    from reco_ray.main_job import run_all

    listener.vocabulary(vocabulary)
    made: dict[str, list[Outcome]] = {}
    with session(request.address):
        for outcome in run_all(corpus, images, vocabulary, request.out, settings):
            made.setdefault(outcome.stage, []).append(_notify(listener, outcome))
    out = absolute(request.out)
    trained = None
    if "train" in made:
        page = join(out, "segmenter-report", "index.html")
        trained = TrainedResult(made["train"][0], made["segment"][-1], page)
    embed, index, reference, segment = (
        made[stage][0] for stage in ("embed", "index", "reference", "segment")
    )
    return RunResult(embed, index, reference, segment, join(out, "report", "index.html"), trained)


def _embed(request: EmbedRequest, listener: Listener) -> Outcome:
    settings = request.load_settings()
    from reco_ray.corpus.stage import embed_corpus
    from reco_ray.distributed.session import session

    with session(request.address):
        return _notify(listener, embed_corpus(request.corpus, request.out, settings, request.follow))


def _index(request: IndexRequest, listener: Listener) -> Outcome | str:
    """The index; with `explain`, what would be built, in words."""
    settings = request.load_settings().index
    if request.out is None and not request.explain:
        raise UsageError("give --out DIR, or --explain to build nothing")
    if request.follow and request.explain:
        raise UsageError("--explain describes a new index: give either it or --follow")
    from reco_ray.corpus.index import build_index, plan_index

    if request.follow and request.out is not None and exists(join(request.out, MANIFEST)):
        return _notify(listener, _follow_index(request.embeddings, request.out, settings, request.address))
    plan = plan_index(request.embeddings, settings)
    if request.explain or request.out is None:
        from reco_ray.corpus.index.explain import explain

        return explain(plan)
    from reco_ray.distributed.session import session

    with session(request.address) if plan.needs_cluster else nullcontext():
        return _notify(listener, build_index(request.embeddings, request.out, settings, plan))


def _follow_index(embeddings: str, out: str, settings: "IndexSettings", address: str | None) -> Outcome:
    from reco_ray.contents import IndexContent
    from reco_ray.corpus.index import follow_index, plan_follow
    from reco_ray.distributed.session import session
    from reco_ray.files.artifacts import read_manifest

    plan = plan_follow(embeddings, out, settings)
    if plan is None:
        return Outcome("index", absolute(out), read_manifest(out, IndexContent), new=False)
    with session(address) if plan.needs_cluster else nullcontext():
        return follow_index(embeddings, out, plan)


def _duplicates(request: DuplicatesRequest, listener: Listener) -> DuplicatesResult:
    from reco_ray.corpus.duplicates import find_duplicates, needs_cluster
    from reco_ray.distributed.session import session

    with session(request.address) if needs_cluster(request.index) else nullcontext():
        found = find_duplicates(request.index, request.similarity, request.out)
    listener.outcome(found)
    return found


def _references(request: ReferencesRequest, listener: Listener) -> Outcome:
    vocabulary, settings = request.load_vocabulary(), request.load_settings()
    from reco_ray.corpus.chosen import open_examples
    from reco_ray.cosegmentation.stage import build_references
    from reco_ray.distributed.session import session

    vocabulary = open_examples(vocabulary, settings)
    listener.vocabulary(vocabulary)
    with session(request.address):
        return _notify(listener, build_references(request.index, vocabulary, request.out, settings))


def _segment(request: SegmentRequest, listener: Listener) -> Outcome | list[Outcome]:
    """The masks; of several segmenters, a list in their order, each in a folder of its name below `out`."""
    settings = request.load_settings()
    if request.references is None:
        return _segment_trained(request, settings, listener)
    from reco_ray.cosegmentation.bank import ReferenceBank
    from reco_ray.distributed.session import session
    from reco_ray.segmentation.refine import require_refinement
    from reco_ray.segmentation.stage import segment_images

    require_refinement(settings.segment.refine)
    listener.vocabulary(ReferenceBank.open(request.references).vocabulary)
    with session(request.address):
        made = segment_images(request.references, request.images, request.out, settings, report=True)
        return _notify(listener, made)


def _segment_trained(
    request: SegmentRequest, settings: "Settings", listener: Listener
) -> Outcome | list[Outcome]:
    names = _names(request.segmenter)
    from reco_ray.distributed.session import session
    from reco_ray.training.segment import choose_segmenters, segment_trained

    if not any(each.startswith("segment.refine=") for each in request.overrides):
        settings = settings.of_trained()
    chosen = choose_segmenters(dict(zip(names, request.segmenter, strict=True)), settings)
    several = len(chosen) > 1
    for one in chosen:
        listener.vocabulary(one.segmenter.vocabulary, one.name if several else "")
    outs = [join(request.out, name) if several else request.out for name in names]
    with session(request.address):
        made = segment_trained(chosen, request.images, outs, settings, report=True)
        told = [_notify(listener, one) for one in made]
    return told if several else told[0]


def _review(request: ReviewRequest, listener: Listener) -> ReviewResult:
    from reco_ray.segmentation.review_page import write_review

    return write_review(
        request.masks, request.out, sample=request.sample, unsure=request.unsure, seed=request.seed
    )


def _bad_images(verdicts: str | None) -> list[str]:
    """URIs of the images that verdicts leave out."""
    if verdicts is None:
        return []
    from reco_ray.segmentation.verdicts import bad_images, read_verdicts

    return bad_images(read_verdicts(verdicts))


def _label(request: LabelRequest, listener: Listener) -> list[Outcome]:
    settings = request.load_settings()
    from reco_ray.cosegmentation.bank import ReferenceBank
    from reco_ray.distributed.session import session
    from reco_ray.segmentation.refine import require_refinement
    from reco_ray.training.label import label_images
    from reco_ray.training.label_worker import LabelSet

    require_refinement(settings.segment.refine)
    without = _bad_images(request.verdicts)
    names = _names(request.references)
    sets = {
        name: LabelSet(absolute(uri), join(request.out, name, "labels"))
        for name, uri in zip(names, request.references, strict=True)
    }
    for name, one in sets.items():
        listener.vocabulary(ReferenceBank.open(one.bank).vocabulary, name)
    with session(request.address):
        made = label_images(sets, request.images, join(request.out, "frames"), settings, without=without)
        return [_notify(listener, one) for one in made]


def _train(request: TrainRequest, listener: Listener) -> list[Outcome]:
    """The outcomes of all stages; raises if any vocabulary failed, after all others are done."""
    settings = request.load_settings()
    if request.labels and (request.index or request.images):
        raise UsageError("give either --labels or --index with --images")
    if not request.labels and not (request.vocabulary and request.index and request.images):
        raise UsageError("give --vocabulary, --index and --images, or --labels")
    if request.labels and request.verdicts:
        raise UsageError(
            "--verdicts leave images out when labels are made: give them to `label`, or --images here"
        )
    if request.labels and request.curation:
        raise UsageError(
            "--curation: changes references, and --labels are made already: give it with --index"
        )
    without = _bad_images(request.verdicts)
    from reco_ray.corpus.chosen import open_examples
    from reco_ray.distributed.session import session
    from reco_ray.segmentation.refine import require_refinement
    from reco_ray.training.stage import train_segmenters
    from reco_ray.training.vocabularies import require_distinct, train_vocabularies
    from reco_ray.vocabulary_sets import curate, load_vocabularies

    if not request.labels:
        require_refinement(settings.segment.refine)
    vocabularies = curate(load_vocabularies(request.vocabulary), request.curation)
    vocabularies = {name: open_examples(each, settings) for name, each in vocabularies.items()}
    require_distinct(vocabularies)
    for name, vocabulary in vocabularies.items():
        listener.vocabulary(vocabulary, name)
    done = []
    with session(request.address):
        if request.labels:
            names = _names(request.labels)
            if vocabularies and len(vocabularies) != len(names):
                raise UsageError(
                    f"{len(vocabularies)} vocabularies for {len(names)} --labels: give one each, in order"
                )
            outs = {name: join(request.out, name, "segmenter") for name in names}
            known = dict(zip(names, vocabularies.values(), strict=True)) if vocabularies else None
            outcomes = train_segmenters(dict(zip(names, request.labels, strict=True)), outs, settings, known)
        else:
            outcomes = train_vocabularies(
                vocabularies, str(request.index), str(request.images), request.out, settings, without
            )
        done = [_notify(listener, outcome) for outcome in outcomes]
    failed = [outcome for outcome in done if outcome.manifest is None]
    if failed:
        count = len(vocabularies) or len(request.labels)
        kind = type(failed[0].error or RecoError())
        raise kind(f"{len(failed)} of {count} vocabularies failed: {failed[0].error}")
    return done


def _export(request: ExportRequest, listener: Listener) -> Outcome:
    from reco_ray.training.export import export_segmenter

    return _notify(listener, export_segmenter(request.segmenter, request.out, request.format))


def _export_masks(request: ExportMasksRequest, listener: Listener) -> Outcome:
    from reco_ray.distributed.session import session
    from reco_ray.mask_export.push import push, require_push
    from reco_ray.mask_export.stage import export_masks, find_format, plan_export

    form = find_format(request.format)
    if request.push_to is not None:
        require_push(request.push_to, request.format, request.out)
    plan = plan_export(request.masks, min_area=request.min_area, with_images=not request.without_images)
    form.require(plan)
    with session(request.address):
        outcome = _notify(listener, export_masks(request.masks, request.out, request.format, plan))
    if request.push_to is not None:
        listener.pushed(push(outcome.uri, request.push_to))
    return outcome


def _evaluate(request: EvaluateRequest, listener: Listener) -> EvaluateResult | VerdictsResult:
    if request.verdicts is not None:
        from reco_ray.evaluation.precision import evaluate_verdicts

        return evaluate_verdicts(request.verdicts, request.out)
    settings = request.load_settings()
    from reco_ray.corpus.chosen import open_examples
    from reco_ray.corpus.index import build_index
    from reco_ray.corpus.stage import embed_corpus
    from reco_ray.distributed.session import session
    from reco_ray.evaluation.benchmark import open_benchmark
    from reco_ray.evaluation.check import require_countable
    from reco_ray.evaluation.evaluation_protocol import choose_protocol
    from reco_ray.evaluation.stage import evaluate as measure
    from reco_ray.evaluation.stage import trained_for
    from reco_ray.models.description import require_dense_models
    from reco_ray.segmentation.refine import require_refinement

    require_refinement(settings.segment.refine)
    protocol = choose_protocol(request.protocol, request.short_side, settings.segment)
    data = str(request.data)
    dataset = open_benchmark(str(request.benchmark), absolute(data))
    if request.curation is not None:
        vocabulary = open_examples(curated(dataset.vocabulary, request.curation), settings)
        dataset = replace(dataset, vocabulary=vocabulary)
    require_countable(dataset, settings.segment.max_pixels, protocol.cut_truth)
    trained = trained_for(request.segmenter, dataset) if request.segmenter else None
    require_dense_models(settings)
    listener.vocabulary(dataset.vocabulary)
    index = request.index
    with session(request.address):
        if request.corpus is not None:
            embeddings, index = join(request.out, "embeddings"), join(request.out, "index")
            _notify(listener, embed_corpus(request.corpus, embeddings, settings))
            _notify(listener, build_index(embeddings, index, settings.index))
        return measure(dataset, data, str(index), request.out, settings, protocol, trained)


def _sweep(request: SweepRequest, listener: Listener) -> SweepResult:
    from reco_ray.sweeps.sweep_plan import open_plan

    plan = open_plan(request.file, request.curation)
    from reco_ray.distributed.session import session
    from reco_ray.sweeps.stage import run_sweep

    for name, vocabulary in plan.vocabularies.items():
        listener.vocabulary(vocabulary, name)
    with session(request.address):
        result = run_sweep(plan, request.out, lambda record: listener.trial(plan, record))
    if result.manifest is not None:
        listener.outcome(result)
    return result


def _search(request: SearchRequest, listener: Listener) -> SearchResult:
    words = (request.words or "").strip() or None
    if (words is None) == (request.image is None):
        raise UsageError('give either words, such as "a rusty fire hydrant", or --image FILE')
    settings = request.load_settings()
    from reco_ray.corpus.export_hits import export_hits, require_free
    from reco_ray.corpus.search import hits_sheet, search_corpus

    export = None if request.export is None else absolute(request.export)
    if export is not None:
        require_free(export)

    prefix = request.prefix
    if prefix is not None and "://" not in prefix:
        # As the index has it, with the slash at its end that tells a/b/ from a/bc.
        prefix = absolute(prefix) + ("/" if prefix.endswith("/") else "")
    hits = search_corpus(
        request.index, settings, words=words, image=request.image, k=request.k, prefix=prefix
    )
    what = words or str(request.image).rpartition("/")[2]
    name = re.sub(r"\W+", "-", what.lower()).strip("-")[:60] or "hits"
    sheet = join(request.out, f"{name}.jpg")
    write_bytes(sheet, hits_sheet(hits, settings.embed.max_pixels))
    exported = 0 if export is None else export_hits(hits, export)
    return SearchResult(hits.to_pylist(), absolute(sheet), export, exported)


def _serve(request: ServeRequest, listener: Listener) -> None:
    from reco_ray.distributed.session import session
    from reco_ray.segmentation.refine import require_refinement
    from reco_ray.serving.options import ServeOptions, split_overrides
    from reco_ray.serving.server import require_keys, run_server
    from reco_ray.serving.task_images import require_prefixes

    serving, stages = split_overrides(request.overrides)
    options = ServeOptions(
        preset=request.preset,
        settings=request.settings,
        set=stages,
        index=request.index,
        state=request.state,
        segmenters=_pairs(request.segmenter),
        examples=request.examples,
        keys=request.keys,
        label_studio=request.label_studio,
        fetch=request.fetch,
        **serving,
    )
    require_keys(request.host, options)
    require_prefixes(options.label_studio, options.fetch)
    require_refinement(options.load().segment.refine)
    local = not (request.address or os.environ.get("RAY_ADDRESS"))
    with session(request.address):
        run_server(options, request.host, request.port, local=local)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, uri = text.partition("=")
        if not (name and equals and uri):
            raise UsageError(f"--segmenter {text!r}: expected NAME=URI")
        if name in pairs:
            raise UsageError(f"--segmenter {text!r}: the name is given twice")
        pairs[name] = uri
    return pairs


def _notify(listener: Listener, outcome: Outcome) -> Outcome:
    listener.outcome(outcome)
    return outcome


def _names(uris: list[str]) -> list[str]:
    """What to call artifacts: the last part of their URI that is not the name of a kind, such as `references`."""
    parts = [
        [p for p in absolute(uri).split("/") if p not in ("", "references", "labels", "segmenter")]
        for uri in uris
    ]
    names = [part[-1] for part in parts]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two artifacts are named {max(names, key=names.count)!r}: rename one of their folders"
        )
    return names


# In the order of `--help`.
STAGES: dict[str, Stage[Any, Any]] = {
    "run": Stage(RunRequest, _run),
    "embed": Stage(EmbedRequest, _embed),
    "index": Stage(IndexRequest, _index),
    "duplicates": Stage(DuplicatesRequest, _duplicates),
    "references": Stage(ReferencesRequest, _references),
    "segment": Stage(SegmentRequest, _segment),
    "review": Stage(ReviewRequest, _review),
    "demo": Stage(DemoRequest, _demo),
    "label": Stage(LabelRequest, _label),
    "train": Stage(TrainRequest, _train),
    "export": Stage(ExportRequest, _export),
    "export-masks": Stage(ExportMasksRequest, _export_masks),
    "evaluate": Stage(EvaluateRequest, _evaluate),
    "sweep": Stage(SweepRequest, _sweep),
    "search": Stage(SearchRequest, _search),
    "serve": Stage(ServeRequest, _serve),
}


def _function(request: Callable[P, R], carry_out: Callable[[R, Listener], Result]) -> Callable[P, Result]:
    """A stage as a function whose parameters are the fields of its request."""

    @functools.wraps(request, updated=())
    def call(*args: P.args, **fields: P.kwargs) -> Result:
        try:
            made = request(*args, **fields)
        except ValidationError as error:
            raise usage_error(error) from error
        return carry_out(made, Listener())

    kind: Any = request
    entries = [f"    {name}: {field.description}." for name, field in kind.model_fields.items()]
    raised = "Raises:\n    RecoError: bad input; its line says what, where and what to do."
    call.__doc__ = "\n".join([f"{kind.__doc__}\n\nArgs:", *entries, "", raised])
    call.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return call


run = _function(RunRequest, _run)
embed = _function(EmbedRequest, _embed)
index = _function(IndexRequest, _index)
duplicates = _function(DuplicatesRequest, _duplicates)
references = _function(ReferencesRequest, _references)
segment = _function(SegmentRequest, _segment)
review = _function(ReviewRequest, _review)
label = _function(LabelRequest, _label)
train = _function(TrainRequest, _train)
export = _function(ExportRequest, _export)
export_masks = _function(ExportMasksRequest, _export_masks)
evaluate = _function(EvaluateRequest, _evaluate)
sweep = _function(SweepRequest, _sweep)
search = _function(SearchRequest, _search)
serve = _function(ServeRequest, _serve)
