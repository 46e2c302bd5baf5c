"""The sweep stage, on Ray Tune: trials run in parallel, poor ones are stopped early, common work is done once.

Tune schedules and searches. State is kept in `trials/<id>.json` of the output rather than in Tune's own files, so that
a killed sweep can be resumed from plain JSON. A trial's process only submits tasks and waits; the tasks run on the
whole cluster (`shared_tasks.py`).
"""

import io
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any

# Must be set before Tune is imported: disables its TensorBoard files and its own handling of Ctrl-C.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from reco_ray.contents import SweepContent
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus
from reco_ray.distributed.workers import plan_workers, report_missing_resources
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage
from reco_ray.models.weights import prefetch
from reco_ray.outcome import SweepResult
from reco_ray.presentation.console import progress
from reco_ray.sweeps.run_trial import (
    METRIC,
    RESOURCE,
    TrialRecord,
    read_record,
    read_records,
    run_trial,
    write_record,
)
from reco_ray.sweeps.shared_tasks import SharedTasks
from reco_ray.sweeps.sweep_plan import SweepPlan
from reco_ray.sweeps.sweep_report import write_results
from reco_ray.vocabulary import slug

_TRIAL_CPUS = 0.01  # a trial's process only waits


def run_sweep(
    plan: SweepPlan, out: str, on_trial_end: Callable[[TrialRecord], None] = lambda record: None
) -> SweepResult:
    """Runs the trials of a plan on the connected Ray cluster and writes the results.

    Args:
        plan: The sweep.
        out: URI of the output.
        on_trial_end: Called with the record of each trial when it ends.

    Raises:
        RecoError: If the output cannot be written or no trial finished.
    """
    writer = artifacts.ArtifactWriter(out, SweepContent, plan.made_from())
    if manifest := writer.finished():
        ranked = write_results(plan, writer.uri, read_records(writer.uri))
        return _result(plan, writer.uri, ranked, manifest, new=False)
    workers = plan_workers(plan.base.models.device, placement=plan.base.placement.sweep)
    report_missing_resources(workers)
    indexes = _indexes(plan, writer.uri)
    shared: Any = ray.remote(num_cpus=0)(SharedTasks).remote(workers)
    try:
        _tune(plan, writer.uri, indexes, shared, workers.count, on_trial_end)
        encoded = ray.get(shared.encoded_count.remote())
    finally:
        ray.kill(shared)
    records = read_records(writer.uri)
    states = {state: sum(r.state == state for r in records) for state in ("finished", "stopped", "failed")}
    if not states["finished"]:
        reasons = [record.reason for record in records if record.reason]
        raise RecoError(
            f"none of the {len(records)} trials finished (the first: {next(iter(reasons), 'killed')})"
        )
    ranked = write_results(plan, writer.uri, records)
    if any(not record.ended for record in records):
        return _result(plan, writer.uri, ranked, None)
    manifest = writer.commit({"trials": len(records), **states, "encoded": encoded}, SweepContent())
    return _result(plan, writer.uri, ranked, manifest)


def _result(
    plan: SweepPlan,
    out: str,
    ranked: list[TrialRecord],
    manifest: artifacts.Manifest | None,
    new: bool = True,
) -> SweepResult:
    report, best = storage.join(out, "report", "index.html"), storage.join(out, "best.yaml")
    return SweepResult("sweep", out, manifest, new, plan=plan, ranked=ranked, report=report, best=best)


def _indexes(plan: SweepPlan, out: str) -> dict[str, str]:
    """Retrieval model -> URI of the corpus's index with it, or "error: " and why it could not be built."""
    vary, models = plan.sweep.vary, plan.base.models
    dense = [s for key in ("models.language", "models.encoder") for s in vary.get(key, [])]
    for spec in filter(None, [*models.specs, *dense]):
        with suppress(RecoError):  # the trials concerned fail with this error
            prefetch([spec], models.weights)
    varied = vary.get("models.retrieval", [models.retrieval])
    found: dict[str, str] = {}
    for number, spec in enumerate(varied):
        settings = plan.base.model_copy(update={"models": models.model_copy(update={"retrieval": spec})})
        if plan.index is not None:
            found[spec] = plan.index
            continue
        name = slug(number, spec)
        embeddings, index = storage.join(out, "embeddings", name), storage.join(out, "index", name)
        try:
            prefetch([spec], models.weights)
            embed_corpus(str(plan.corpus), embeddings, settings)
            build_index(embeddings, index, settings.index)
            found[spec] = index
        except RecoError as error:
            found[spec] = f"error: {error}"
    return found


def _tune(
    plan: SweepPlan,
    out: str,
    indexes: dict[str, str],
    shared: Any,
    at_once: int,
    on_trial_end: Callable[[TrialRecord], None],
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are stored in the records
    stopping = plan.sweep.early_stopping
    scheduler = None
    if stopping is not None and len(plan.rungs) > 1:
        scheduler = ASHAScheduler(
            time_attr=RESOURCE,
            max_t=plan.rungs[-1],
            grace_period=plan.rungs[0],
            reduction_factor=stopping.factor,
        )
    trainable = tune.with_parameters(run_trial, plan=plan, out=out, indexes=indexes, shared=shared)
    space, searcher, samples = _search(plan, out)
    expected = samples if searcher is not None else len(space["grid_search"])
    if not expected:
        return
    with (
        tempfile.TemporaryDirectory(prefix="reco-ray-") as folder,
        progress("sweep", expected) as advance,
        redirect_stdout(io.StringIO()),  # suppresses Tune's own table
    ):
        tune.Tuner(
            tune.with_resources(trainable, {"CPU": _TRIAL_CPUS}),
            param_space={"choice": space},
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                scheduler=scheduler,
                search_alg=searcher,
                num_samples=samples,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                callbacks=[_RecordKeeper(plan, out, advance, on_trial_end)],
            ),
        ).fit()


def _search(plan: SweepPlan, out: str) -> tuple[Any, Searcher | None, int]:
    """The search space, the searcher (None for a grid) and `num_samples` for Tune."""
    records = read_records(out)
    if plan.sweep.search != "optuna":
        choices = plan.choices()
        if plan.sweep.early_stopping is None:  # else the scheduler needs the figures of ended trials too
            ended = {record.id for record in records if record.ended}
            choices = [choice for choice in choices if storage.digest(plan.values(choice)) not in ended]
        return tune.grid_search(choices), None, 1
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Known trials come first; they report their figures without computing them again.
    known = [{f"choice/{key}": n for key, n in record.choice.items()} for record in records]
    space = {key: tune.choice(range(len(values))) for key, values in plan.sweep.vary.items()}
    searcher = OptunaSearch(points_to_evaluate=known or None, seed=plan.sweep.seed)
    return space, searcher, int(plan.sweep.trials or 1)


class _RecordKeeper(tune.Callback):
    """Completes the records of trials that the scheduler stopped or whose process died."""

    def __init__(
        self,
        plan: SweepPlan,
        out: str,
        advance: Callable[[int], None],
        on_trial_end: Callable[[TrialRecord], None],
    ) -> None:
        self._plan, self._out, self._advance, self._on_trial_end = plan, out, advance, on_trial_end

    def __getstate__(self) -> dict[str, object]:
        """Empty: Tune pickles its callbacks, and the terminal's progress bar cannot be pickled."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "failed", "its process died")

    def _end(self, trial: Any, state: Any, reason: str | None) -> None:
        choice = trial.config["choice"]
        values = self._plan.values(choice)
        name = storage.digest(values)
        record = read_record(self._out, name) or TrialRecord(id=name, values=values, choice=choice)
        if record.state == "running":
            record = record.model_copy(update={"state": state, "reason": reason})
            write_record(self._out, record)
        self._advance(1)
        self._on_trial_end(record)
