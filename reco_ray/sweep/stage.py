"""A sweep on Ray Tune: trials side by side, the bad ones stopped early, and everything that they share done once.

Tune schedules and searches, but keeps nothing: `trials/<id>.json` in the output has what became of every trial, so that
a killed sweep goes on without opening anything but plain text. A trial's own process only asks for work and waits; the
work runs as tasks over the whole cluster (`shared.py`).
"""

import io
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from typing import Any

# Before Tune is imported: no TensorBoard files of its own, and Ctrl-C ends a sweep as it ends every other stage.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from reco_ray import storage
from reco_ray.cluster import plan_workers
from reco_ray.console import progress
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus
from reco_ray.errors import RecoError
from reco_ray.models.weights import prefetch
from reco_ray.sweep.plan import Plan, identity
from reco_ray.sweep.report import write_results
from reco_ray.sweep.shared import Shared
from reco_ray.sweep.trial import METRIC, RESOURCE, Record, read_record, read_records, run_trial, write_record
from reco_ray.vocabulary import slug

KIND = "sweep"
_TRIAL_CPUS = 0.01  # it only waits


def run_sweep(
    plan: Plan, out: str, tell: Callable[[Record], None] = lambda record: None
) -> tuple[storage.Manifest | None, bool, list[Record]]:
    """Tries the settings of a plan on the connected Ray cluster and writes the results.

    Args:
        tell: called with the record of each trial as it ends.

    Returns:
        The manifest, None while there are failed trials, which the same sweep tries again; whether there was anything
        to do; and the records of all trials, the best first.

    Raises:
        RecoError: no corpus could be indexed, unwritable output, or every trial failed.
    """
    writer = storage.ArtifactWriter(out, KIND, plan.made_from())
    if manifest := writer.finished():
        return manifest, False, write_results(plan, writer.uri, read_records(writer.uri))
    workers = plan_workers(plan.base.models.device)
    indexes = _indexes(plan, writer.uri)
    shared: Any = ray.remote(num_cpus=0)(Shared).remote(workers)
    try:
        _tune(plan, writer.uri, indexes, shared, workers.count, tell)
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
        return None, True, ranked
    return writer.commit({"trials": len(records), **states, "encoded": encoded}), True, ranked


def _indexes(plan: Plan, out: str) -> dict[str, str]:
    """The index of the corpus for every retrieval model that trials use; "error: " and why, where there is none."""
    vary, models = plan.sweep.vary, plan.base.models
    dense = [s for key in ("models.language", "models.encoder") for s in vary.get(key, [])]
    for spec in filter(None, [*models.specs, *dense]):
        with suppress(RecoError):  # a trial without its weights says so itself
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
    plan: Plan,
    out: str,
    indexes: dict[str, str],
    shared: Any,
    at_once: int,
    tell: Callable[[Record], None],
) -> None:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the records
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
        redirect_stdout(io.StringIO()),  # Tune has a table of its own
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
                name="tune", storage_path=folder, verbose=0, callbacks=[_Keeper(plan, out, advance, tell)]
            ),
        ).fit()


def _search(plan: Plan, out: str) -> tuple[Any, Searcher | None, int]:
    """The search space, the searcher if there is one, and how many times Tune is to sample from it."""
    records = read_records(out)
    if plan.sweep.search != "optuna":
        choices = plan.choices()
        if plan.sweep.early_stopping is None:  # else the scheduler needs the figures of all
            ended = {record.id for record in records if record.ended}
            choices = [choice for choice in choices if identity(plan.values(choice)) not in ended]
        return tune.grid_search(choices), None, 1
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # What is known comes first, and is reported without being computed again.
    known = [{f"choice/{key}": n for key, n in record.choice.items()} for record in records]
    space = {key: tune.choice(range(len(values))) for key, values in plan.sweep.vary.items()}
    searcher = OptunaSearch(points_to_evaluate=known or None, seed=plan.sweep.seed)
    return space, searcher, int(plan.sweep.trials or 1)


class _Keeper(tune.Callback):
    """Sees trials end: one that the scheduler stopped, or whose process died, could not say so itself."""

    def __init__(
        self, plan: Plan, out: str, advance: Callable[[int], None], tell: Callable[[Record], None]
    ) -> None:
        self._plan, self._out, self._advance, self._tell = plan, out, advance, tell

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its callbacks, and a terminal cannot be copied."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It reported its last figure, or will not be asked for another."""
        self._end(trial, "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process ended without a word."""
        self._end(trial, "failed", "its process died")

    def _end(self, trial: Any, state: Any, reason: str | None) -> None:
        choice = trial.config["choice"]
        values = self._plan.values(choice)
        name = identity(values)
        record = read_record(self._out, name) or Record(id=name, values=values, choice=choice)
        if record.state == "running":
            record = record.model_copy(update={"state": state, "reason": reason})
            write_record(self._out, record)
        self._advance(1)
        self._tell(record)
