"""Results of an evaluation as Markdown tables."""

from typing import Any


def as_table(results: dict[str, Any]) -> str:
    """mIoU and pixel accuracy of the variants and IoU of the classes and, if measured, the Jaccard index of
    co-segmentation; percent with one decimal."""
    variants: dict[str, Any] = results["variants"]
    protocol, preset = results["protocol"], results["settings"]["preset"]
    heading = (
        f"{results['benchmark']}, {results['images']} images, preset {preset}, protocol {protocol['name']}"
    )
    lines = [f"{heading} at {protocol['short_side']} px", ""]
    lines += markdown(
        ["variant", "mIoU", "pixel accuracy"],
        [[name, percent(v["miou"]), percent(v["pixel_accuracy"])] for name, v in variants.items()],
    )
    lines += ["", *_by_class("IoU", {name: v["iou"] for name, v in variants.items()})]
    if measured := results.get("cosegmentation"):
        lines += [
            "",
            *markdown(
                ["co-segmentation", "Jaccard"], [[n, percent(v["jaccard"])] for n, v in measured.items()]
            ),
        ]
        lines += ["", *_by_class("Jaccard", {name: v["classes"] for name, v in measured.items()})]
    return "\n".join(lines)


def markdown(headings: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table whose first column is text and whose other columns are numbers."""
    ruler = f"|---|{'---:|' * (len(headings) - 1)}"
    return [f"| {' | '.join(headings)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def percent(value: float | None) -> str:
    """A share as percent; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _of_class(value: float | None) -> str:
    return "absent" if value is None else percent(value)


def _by_class(figure: str, columns: dict[str, dict[str, float | None]]) -> list[str]:
    classes = next(iter(columns.values()))
    rows = [[name, *(_of_class(column[name]) for column in columns.values())] for name in classes]
    return markdown([figure, *columns], rows)
