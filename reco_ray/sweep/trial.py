"""One trial: its references, then its scores on more and more images, reported to Ray Tune and kept in a record.

The record of a trial that ended is all that a later run of the sweep needs: it reports the same figures again, so that
scheduler and searcher know them, and computes nothing.
"""

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import ray
from pydantic import BaseModel, ValidationError
from ray import tune
from ray.actor import ActorHandle

from reco_ray import storage
from reco_ray.errors import RecoError, reason
from reco_ray.sweep.plan import LOWER_IS_BETTER, Plan, Trial, identity
from reco_ray.sweep.shared import BATCH, Future
from reco_ray.sweep.work import PlannedReferences, Tally, augmented_view, figures, image_view

METRIC, RESOURCE = "objective", "images"  # as Tune knows them; the metric is always to be maximised
State = Literal["running", "finished", "stopped", "failed"]


class Rung(BaseModel):
    """images: how many were asked for so far; used: how many of them could be read. figures: the scores on these."""

    images: int
    used: int
    figures: dict[str, float | None]


class Record(BaseModel):
    """What became of a trial. stopped: early, as others did better. choice: as `Plan.trial` takes it."""

    id: str
    values: dict[str, Any]
    choice: dict[str, int]
    state: State = "running"
    rungs: list[Rung] = []
    seconds: float = 0.0
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do; failed trials are tried again."""
        return self.state in ("finished", "stopped")


def read_records(out: str) -> list[Record]:
    """The records that a sweep left so far, in the order of their names; a damaged one counts as none."""
    found = []
    for name in storage.list_names(storage.join(out, "trials"), ".json"):
        with suppress(OSError, ValidationError):
            found.append(Record.model_validate_json(storage.read_bytes(storage.join(out, "trials", name))))
    return found


def write_record(out: str, record: Record) -> None:
    """Keeps a record, in place of an earlier one of the same trial."""
    storage.write_bytes(_place(out, record.id), record.model_dump_json(indent=1).encode())


def read_record(out: str, name: str) -> Record | None:
    """The record of the trial with this id, if it has a readable one."""
    with suppress(OSError, ValidationError):
        return Record.model_validate_json(storage.read_bytes(_place(out, name)))
    return None


def run_trial(
    config: dict[str, Any], *, plan: Plan, out: str, indexes: dict[str, str], shared: ActorHandle
) -> None:
    """What Ray Tune runs. A trial that fails says so in its record and reports no figure; it stops no other.

    Args:
        config: `choice`, as `Plan.trial` takes it. indexes: by retrieval model, the index artifact, or after "error: "
            why there is none.
    """
    choice = config["choice"]
    record = Record(id="", values={}, choice=choice)
    try:
        trial = plan.trial(choice)
        record = read_record(out, trial.id) or record
        if not record.ended:
            record = Record(id=trial.id, values=trial.values, choice=choice)
            write_record(out, record)
            _compute(trial, record, plan, out, indexes, shared)
            return
    except Exception as error:
        values = plan.values(choice)
        record = record.model_copy(update={"id": identity(values), "values": values})
        write_record(out, record.model_copy(update={"state": "failed", "reason": _why(error)}))
        # No images: the scheduler compares it with nothing. Raising would end the process, which costs seconds.
        tune.report({RESOURCE: 0, METRIC: float("nan")})
        return
    for rung in record.rungs:
        _report(plan, rung)


def _compute(
    trial: Trial, record: Record, plan: Plan, out: str, indexes: dict[str, str], shared: ActorHandle
) -> None:
    started = time.monotonic()
    settings = trial.settings
    index = indexes[settings.models.retrieval]
    if index.startswith("error: "):
        raise RecoError(index.removeprefix("error: "))
    planned: PlannedReferences = _get(shared.planned, settings, trial.vocabulary, index)
    bank: Future = ray.get(shared.bank.remote(settings, planned))[0]
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
            tallies += ray.get(shared.tally.remote(key, [settings, bank, labels, augmented], encoded))
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


def _report(plan: Plan, rung: Rung) -> None:
    value = rung.figures[plan.objective]
    assert value is not None, "an undefined objective is a failure"
    tune.report({RESOURCE: rung.images, METRIC: -value if plan.objective in LOWER_IS_BETTER else value})


def _undefined(plan: Plan, rung: Rung) -> str:
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
    """One line; Ray's errors carry that of the task as their cause."""
    cause = getattr(error, "cause", None) or error
    return reason(cause) if isinstance(cause, RecoError) else f"{type(cause).__name__}: {reason(cause)}"


def _place(out: str, name: str) -> str:
    return storage.join(out, "trials", f"{name}.json")
