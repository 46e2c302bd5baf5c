"""One trial: builds references, then computes scores on a growing number of images.

Scores are reported to Ray Tune and stored in a record. When a sweep is resumed, a trial that ended reports the figures
in its record again, so that the scheduler and the searcher know them, and computes nothing.
"""

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import ray
from pydantic import BaseModel, ValidationError
from ray import tune
from ray.actor import ActorHandle

from reco_ray.errors import RecoError, reason
from reco_ray.files import storage
from reco_ray.sweeps.encoded_images import augmented_view, image_view
from reco_ray.sweeps.shared_tasks import BATCH, Future
from reco_ray.sweeps.sweep_file import LOWER_IS_BETTER
from reco_ray.sweeps.sweep_plan import SweepPlan, Trial
from reco_ray.sweeps.tally import Tally, figures
from reco_ray.sweeps.trial_references import PlannedReferences
from reco_ray.sweeps.trial_sample import images_of_sample

METRIC, RESOURCE = "objective", "images"  # names for Tune, which maximises the metric
TrialState = Literal["running", "finished", "stopped", "failed"]


class Rung(BaseModel):
    """The scores of a trial on its first images.

    Attributes:
        images: Number of images up to this rung.
        used: How many of them could be read.
        figures: Scores on these, by name.
    """

    images: int
    used: int
    figures: dict[str, float | None]


class TrialRecord(BaseModel):
    """State and scores of a trial.

    Attributes:
        id: Digest of `values`.
        values: What is varied -> value.
        choice: What is varied -> position of the value in the sweep file, as `SweepPlan.trial` takes it.
        state: "stopped" means stopped early because other trials scored better.
        rungs: Scores so far.
        seconds: Time since the start of the trial at the last rung.
        reason: Why the trial failed.
    """

    id: str
    values: dict[str, object]
    choice: dict[str, int]
    state: TrialState = "running"
    rungs: list[Rung] = []
    seconds: float = 0.0
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the trial is complete; failed and running trials are tried again."""
        return self.state in ("finished", "stopped")


def read_records(out: str) -> list[TrialRecord]:
    """The readable records of a sweep, sorted by id."""
    found = []
    for name in storage.list_names(storage.join(out, "trials"), ".json"):
        with suppress(OSError, ValidationError):
            found.append(
                TrialRecord.model_validate_json(storage.read_bytes(storage.join(out, "trials", name)))
            )
    return found


def write_record(out: str, record: TrialRecord) -> None:
    """Stores a record, replacing an earlier one of the same trial."""
    storage.write_bytes(_record_uri(out, record.id), record.model_dump_json(indent=1).encode())


def read_record(out: str, name: str) -> TrialRecord | None:
    """The record of the trial with this id; None if missing or damaged."""
    with suppress(OSError, ValidationError):
        return TrialRecord.model_validate_json(storage.read_bytes(_record_uri(out, name)))
    return None


def run_trial(
    config: dict[str, dict[str, int]],
    *,
    plan: SweepPlan,
    out: str,
    indexes: dict[str, str],
    shared: ActorHandle,
) -> None:
    """The function that Ray Tune runs. A failure is stored in the record and does not stop other trials.

    Args:
        config: Its `choice` is an argument of `SweepPlan.trial`.
        plan: The sweep.
        out: URI of the sweep's output.
        indexes: Retrieval model -> URI of its index, or "error: " and why there is none.
        shared: Actor of `SharedTasks`.
    """
    choice = config["choice"]
    record = TrialRecord(id="", values={}, choice=choice)
    try:
        trial = plan.trial(choice)
        record = read_record(out, trial.id) or record
        if not record.ended:
            record = TrialRecord(id=trial.id, values=trial.values, choice=choice)
            write_record(out, record)
            _compute(trial, record, plan, out, indexes, shared)
            return
    except Exception as error:
        values = plan.values(choice)
        record = record.model_copy(update={"id": storage.digest(values), "values": values})
        write_record(out, record.model_copy(update={"state": "failed", "reason": _why(error)}))
        # With 0 images the scheduler does not compare it. Raising would restart the process, which takes seconds.
        tune.report({RESOURCE: 0, METRIC: float("nan")})
        return
    for rung in record.rungs:
        _report(plan, rung)


def _compute(
    trial: Trial, record: TrialRecord, plan: SweepPlan, out: str, indexes: dict[str, str], shared: ActorHandle
) -> None:
    started = time.monotonic()
    settings = trial.settings
    index = indexes[settings.models.retrieval]
    if index.startswith("error: "):
        raise RecoError(index.removeprefix("error: "))
    planned: PlannedReferences = _get(shared.planned, settings, trial.vocabulary, index)
    bank: Future = ray.get(shared.bank.remote(settings, planned))[0]
    sample: Future | None = None
    if count := settings.segment.calibrate:
        uris = images_of_sample(plan.images, planned.corpus, count)
        sample = ray.get(shared.sample.remote(image_view(settings), uris))[0]
    augmented = "augmentation_agreement" in plan.measured
    total: Tally | None = None
    done = 0
    for images in plan.rungs:
        tallies = []
        for start in range(done, images, BATCH):
            chunk = slice(start, min(start + BATCH, images))
            encoded = ray.get(shared.encoded.remote(image_view(settings), plan.images[chunk]))
            if augmented:
                encoded += ray.get(shared.encoded.remote(augmented_view(settings), plan.images[chunk]))
            labels = None
            if plan.dataset is not None and "miou" in plan.measured:
                labels = replace(plan.dataset, samples=plan.dataset.samples[chunk])
            key = storage.digest("tally", trial.id, chunk.start, chunk.stop)
            tallies += ray.get(shared.tally.remote(key, [settings, bank, labels, augmented, sample], encoded))
        for counted in ray.get(tallies):
            total = counted if total is None else total + counted
        done = images
        assert total is not None, "a rung has images"
        rung = Rung(images=images, used=total.images, figures=figures(ray.get(bank), total, plan.measured))
        if rung.figures[plan.objective] is None:
            raise RecoError(_undefined(plan, rung))
        record.rungs.append(rung)
        record.seconds = round(time.monotonic() - started, 2)
        if images == plan.rungs[-1]:
            record.state = "finished"
        write_record(out, record)
        _report(plan, rung)


def _report(plan: SweepPlan, rung: Rung) -> None:
    value = rung.figures[plan.objective]
    assert value is not None, "an undefined objective is a failure"
    tune.report({RESOURCE: rung.images, METRIC: -value if plan.objective in LOWER_IS_BETTER else value})


def _undefined(plan: SweepPlan, rung: Rung) -> str:
    if not rung.used:
        return f"none of the first {rung.images} images can be used"
    needs = {
        "miou": "one pixel that counts",
        "seed_agreement": "two exemplars",
        "prediction_entropy": "two concepts",
    }
    return f"{plan.objective}: needs at least {needs.get(plan.objective, 'one image')}"


def _get(method: Any, *arguments: Any) -> Any:
    (future,) = ray.get(method.remote(*arguments))
    return ray.get(future)


def _why(error: Exception) -> str:
    """The error in one line; Ray stores a task's own error as `cause`."""
    cause = getattr(error, "cause", None) or error
    return reason(cause) if isinstance(cause, RecoError) else f"{type(cause).__name__}: {reason(cause)}"


def _record_uri(out: str, name: str) -> str:
    return storage.join(out, "trials", f"{name}.json")
