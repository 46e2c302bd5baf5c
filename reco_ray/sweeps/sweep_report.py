"""Results of a sweep: a table of its trials, an HTML report with parallel coordinates, the best settings as YAML."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from reco_ray.config import load_settings
from reco_ray.evaluation.results_table import markdown
from reco_ray.files import storage
from reco_ray.presentation.html import render_page
from reco_ray.sweeps.run_trial import TrialRecord
from reco_ray.sweeps.sweep_file import LOWER_IS_BETTER, VOCABULARY
from reco_ray.sweeps.sweep_plan import SweepPlan

_WIDTH, _HEIGHT, _MARGIN = 1160, 420, 60  # of the plot, in SVG units


def write_results(plan: SweepPlan, out: str, records: list[TrialRecord]) -> list[TrialRecord]:
    """Writes `trials.parquet`, `report/index.html` and, if a trial finished, `best.yaml`.

    trials.parquet has one row per trial, ranked, with the columns `trial`, `rank` (null unless finished), `state`,
    `images`, `used` (images that could be read), the scores, `seconds`, `reason`, and one column per varied setting (as
    JSON if its values have several types).

    Returns:
        The records, ranked.
    """
    ranked = rank(plan, records)
    storage.write_table(storage.join(out, "trials.parquet"), _as_arrow(plan, ranked))
    finished = [record for record in ranked if record.state == "finished"]
    page = render_page(
        "sweep.html",
        title=plan.sweep.benchmark or plan.sweep.images,
        provenance=provenance(plan),
        objective=plan.objective,
        count=len(ranked),
        states={state: sum(r.state == state for r in ranked) for state in ("finished", "stopped", "failed")},
        headings=[*plan.sweep.vary, *plan.measured, "images", "state"],
        rows=[(_row(plan, record), record.reason) for record in ranked],
        spearman=rank_correlations(plan, ranked),
        plot=_plot(plan, [r for r in ranked if r.rungs]),
    )
    storage.write_bytes(storage.join(out, "report", "index.html"), page)
    if finished:
        storage.write_bytes(storage.join(out, "best.yaml"), _best(plan, finished).encode())
    return ranked


def rank(plan: SweepPlan, records: list[TrialRecord]) -> list[TrialRecord]:
    """Sorts finished trials by the objective, then those stopped early by the number of images, then all others."""
    sign = 1 if plan.objective in LOWER_IS_BETTER else -1
    order = {"finished": 0, "stopped": 1}

    def place(record: TrialRecord) -> tuple[float, ...]:
        if not record.rungs:
            return (3,)
        last = record.rungs[-1]
        value = last.figures[plan.objective]
        return (order.get(record.state, 2), -last.images, sign * (value or 0.0))

    return sorted(records, key=place)


def provenance(plan: SweepPlan) -> str:
    """How the best settings were chosen, to be shown with their figures."""
    if plan.objective == "miou":
        return "tuned on labels"
    return f"chosen without labels, by {plan.objective}"


def as_table(plan: SweepPlan, ranked: list[TrialRecord]) -> str:
    """The ranked trials as a Markdown table and, with labels, the correlation of each label-free score with mIoU."""
    images = f"{len(plan.images)} images"
    lines = [f"{plan.sweep.benchmark or plan.sweep.images}, {images}, {provenance(plan)}", ""]
    lines += markdown(
        [*plan.sweep.vary, *plan.measured, "images", "state"], [_row(plan, record) for record in ranked]
    )
    if correlations := rank_correlations(plan, ranked):
        rows = [[name, "-" if value is None else f"{value:+.2f}"] for name, value in correlations.items()]
        lines += ["", *markdown(["label-free score", "Spearman correlation with miou"], rows)]
    return "\n".join(lines)


def summary(plan: SweepPlan, record: TrialRecord) -> str:
    """One trial in one line."""
    chosen = ", ".join(f"{key}={_text(value)}" for key, value in record.values.items())
    if not record.rungs or record.state == "failed":
        return f"{record.state}: {record.reason}   {chosen}"
    last = record.rungs[-1]
    value = last.figures[plan.objective]
    return f"{record.state} at {last.images} images: {plan.objective} {_number(value)}   {chosen}"


def rank_correlations(plan: SweepPlan, records: list[TrialRecord]) -> dict[str, float | None]:
    """Spearman's correlation of each label-free score with mIoU over the finished trials; empty without labels.

    Scores of which lower is better are negated, so that 1 always means a perfect ranking. None if a score or mIoU is
    constant.
    """
    if "miou" not in plan.measured:
        return {}
    found = [record.rungs[-1].figures for record in records if record.state == "finished"]
    correlations: dict[str, float | None] = {}
    for name in plan.measured:
        pairs = [(f[name], f["miou"]) for f in found if f[name] is not None]
        if name != "miou":
            sign = -1.0 if name in LOWER_IS_BETTER else 1.0
            columns = np.array(pairs, np.float64).reshape(-1, 2)
            correlations[name] = spearman(sign * columns[:, 0], columns[:, 1])
    return correlations


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation of two float (n,), ties having their mean rank; None if either is constant or n < 2."""
    first, second = _ranks(a), _ranks(b)
    if len(a) < 2 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values have their mean rank."""
    below = (values[:, None] > values[None]).sum(axis=1)
    equal = (values[:, None] == values[None]).sum(axis=1)
    return np.asarray(below + (equal - 1) / 2)


def _as_arrow(plan: SweepPlan, ranked: list[TrialRecord]) -> pa.Table:
    last = [record.rungs[-1] if record.rungs else None for record in ranked]
    finished = iter(range(1, len(ranked) + 1))
    columns: dict[str, pa.Array] = {
        "trial": pa.array([record.id for record in ranked], pa.string()),
        "rank": pa.array([next(finished) if r.state == "finished" else None for r in ranked], pa.int32()),
        "state": pa.array([record.state for record in ranked], pa.string()),
        "images": pa.array([0 if rung is None else rung.images for rung in last], pa.int32()),
        "used": pa.array([0 if rung is None else rung.used for rung in last], pa.int32()),
    }
    for name in plan.measured:
        columns[name] = pa.array(
            [None if rung is None else rung.figures[name] for rung in last], pa.float64()
        )
    columns["seconds"] = pa.array([record.seconds for record in ranked], pa.float64())
    columns["reason"] = pa.array([record.reason for record in ranked], pa.string())
    for key, values in plan.sweep.vary.items():
        chosen = [record.values[key] for record in ranked]
        alike = len({type(value) for value in values}) == 1 and isinstance(
            values[0], str | bool | int | float
        )
        columns[key] = pa.array(chosen if alike else [json.dumps(value) for value in chosen])
    return pa.table(columns)


def _best(plan: SweepPlan, finished: list[TrialRecord]) -> str:
    """The text of a settings file with the fields of the best trial that differ from the preset."""
    trial = plan.trial(finished[0].choice)
    chosen = trial.settings.model_dump(mode="json")
    preset = load_settings(plan.sweep.preset).model_dump(mode="json")
    changed: dict[str, object] = {}
    for section, fields in chosen.items():
        if isinstance(fields, dict):
            different = {key: value for key, value in fields.items() if value != preset[section][key]}
            changed |= {section: different} if different else {}
        elif fields != preset[section]:
            changed[section] = fields
    value = finished[0].rungs[-1].figures[plan.objective]
    vocabulary = trial.values.get(VOCABULARY, plan.sweep.vocabulary)
    lines = [
        f"# The best of {len(finished)} finished trials, {provenance(plan)}: {plan.objective} {_number(value)} "
        f"on {finished[0].rungs[-1].used} images.",
        f"# reco-ray run --preset {plan.sweep.preset} --settings best.yaml"
        + (f" --vocabulary {vocabulary}" if vocabulary is not None else ""),
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(changed, sort_keys=False)


# --- text and plot ---------------------------------------------------------------------------------------------


def _row(plan: SweepPlan, record: TrialRecord) -> list[str]:
    figures = record.rungs[-1].figures if record.rungs else {}
    return [
        *(_text(value) for value in record.values.values()),
        *(_number(figures.get(name)) for name in plan.measured),
        str(record.rungs[-1].images if record.rungs else 0),
        record.state,
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plot(plan: SweepPlan, records: list[TrialRecord]) -> dict[str, object]:
    """Parallel coordinates: one axis per varied setting, its values evenly spaced, and one for the objective.

    Returns:
        `width` and `height`; `axes` with `name`, `x` and `ticks` (y, text); `lines`, worst first, with `points`,
        `share` (1 for the best), `stopped` and `text`.
    """
    names = [*plan.sweep.vary, plan.objective]
    step = (_WIDTH - 2 * _MARGIN) / (len(names) - 1)
    xs = [_MARGIN + number * step for number in range(len(names))]
    values = [record.rungs[-1].figures[plan.objective] or 0.0 for record in records]
    low, high = min(values, default=0.0), max(values, default=1.0)
    axes = []
    for x, key in zip(xs, plan.sweep.vary, strict=False):
        count = len(plan.sweep.vary[key])
        ticks = [(_height(_share(n, count)), _text(value)) for n, value in enumerate(plan.sweep.vary[key])]
        axes.append({"name": key.rpartition(".")[2], "x": x, "ticks": ticks})
    ends = [(_height(0.0), f"{low:.4f}"), (_height(1.0), f"{high:.4f}")]
    axes.append({"name": plan.objective, "x": xs[-1], "ticks": ends if high > low else ends[:1]})
    lines = []
    for record, value in zip(records, values, strict=True):
        share = (value - low) / (high - low) if high > low else 0.0
        heights = [_share(record.choice[key], len(plan.sweep.vary[key])) for key in plan.sweep.vary]
        points = zip(xs, (_height(h) for h in [*heights, share]), strict=True)
        good = 1 - share if plan.objective in LOWER_IS_BETTER else share
        lines.append(
            {
                "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
                "share": round(good, 3),
                "stopped": record.state != "finished",
                "text": summary(plan, record),
            }
        )
    return {"width": _WIDTH, "height": _HEIGHT, "axes": axes, "lines": lines[::-1]}


def _share(number: int, count: int) -> float:
    return number / (count - 1) if count > 1 else 0.5


def _height(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
