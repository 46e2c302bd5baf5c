"""Formats estimates as text."""

from collections.abc import Sequence

from reco_ray.planning.estimate import Estimate

_HEAD = ("stage", "items", "workers", "hours", "GPU-hours", "GB", "bottleneck")


def as_table(images: int, estimates: Sequence[Estimate]) -> str:
    """A table with aligned columns: the stages and their total."""
    rows = [_HEAD, *(_row(each) for each in estimates), _total(estimates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, len(_HEAD) - 1)), row[-1]]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"{images:,} images", *lines])


def _row(one: Estimate) -> tuple[str, ...]:
    items = "-" if one.items is None else f"{one.items:,}"
    workers = "-" if one.workers is None else f"{one.workers:,}"
    figures = [_figure(value) for value in (one.hours, one.gpu_hours, one.gigabytes)]
    return one.name, items, workers, *figures, one.bottleneck


def _total(estimates: Sequence[Estimate]) -> tuple[str, ...]:
    """Sums of the known values, with ">" if a value is unknown."""
    figures = []
    for column in ("hours", "gpu_hours", "gigabytes"):
        known = [value for one in estimates if (value := getattr(one, column)) is not None]
        text = _figure(sum(known)) if known else "-"
        figures.append(f">{text}" if known and len(known) < len(estimates) else text)
    missing = [one.name for one in estimates if one.hours is None]
    return "total", "", "", *figures, f"without {', '.join(missing)}" if missing else ""


def _figure(value: float | None) -> str:
    """Three significant digits, or all digits before the decimal point."""
    if value is None:
        return "-"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
