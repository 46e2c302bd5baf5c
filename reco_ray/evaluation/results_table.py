"""Results of an evaluation as Markdown tables."""

from typing import Any


def as_table(results: dict[str, Any]) -> str:
    """Figures of the variants and of the classes; for binary masks also the Jaccard index of co-segmentation.

    Percent with one decimal.
    """
    variants: dict[str, Any] = results["variants"]
    protocol, preset = results["protocol"], results["settings"]["preset"]
    heading = (
        f"{results['benchmark']}, {results['images']} images, preset {preset}, protocol {protocol['name']}"
    )
    lines = [f"{heading} at {protocol['short_side']} px", ""]
    columns = figure_columns(variants)
    lines += markdown(
        ["variant", *columns],
        [[name, *(percent(figures[key]) for key in columns.values())] for name, figures in variants.items()],
    )
    for figure, by_class in class_tables(variants).items():
        lines += ["", *_by_class(figure, by_class)]
    if measured := results.get("cosegmentation"):
        lines += [
            "",
            *markdown(
                ["co-segmentation", "Jaccard"], [[n, percent(v["jaccard"])] for n, v in measured.items()]
            ),
        ]
        lines += ["", *_by_class("Jaccard", {name: v["classes"] for name, v in measured.items()})]
    return "\n".join(lines)


def figure_columns(variants: dict[str, Any]) -> dict[str, str]:
    """Heading -> key of the figures that an evaluation has one of per variant."""
    columns = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"}
    if classes := next(iter(variants.values()))["iou_with_background"]:
        columns[f"mIoU of {len(classes)} classes"] = "miou_with_background"
    return {**columns, "mask Jaccard": "mask_jaccard"}


def class_tables(variants: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Heading -> variant -> class -> figure. IoU with the background is left out where it is the same as IoU."""
    first = next(iter(variants.values()))
    keys = {"IoU": "iou"}
    if (classes := first["iou_with_background"]) and classes.keys() != first["iou"].keys():
        keys[f"IoU of {len(classes)} classes"] = "iou_with_background"
    keys["mask Jaccard"] = "mask_jaccard_by_class"
    return {heading: {name: v[key] for name, v in variants.items()} for heading, key in keys.items()}


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
