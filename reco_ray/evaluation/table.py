"""Results as a Markdown table, to read in a terminal and to put into a document."""

from typing import Any


def as_table(results: dict[str, Any]) -> str:
    """One row a variant with mIoU and pixel accuracy, then one row a class; percent with one decimal."""
    variants: dict[str, Any] = results["variants"]
    lines = [f"{results['benchmark']}, {results['images']} images, preset {results['settings']['preset']}", ""]
    lines += _rows(["variant", "mIoU", "pixel accuracy"])
    lines += [f"| {name} | {_percent(v['miou'])} | {_percent(v['pixel_accuracy'])} |" for name, v in variants.items()]
    lines += ["", *_rows(["IoU", *variants])]
    for concept in next(iter(variants.values()))["iou"]:
        cells = " | ".join(_percent(v["iou"][concept]) for v in variants.values())
        lines.append(f"| {concept} | {cells} |")
    return "\n".join(lines)


def _rows(headings: list[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
