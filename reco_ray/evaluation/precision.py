"""Precision of masks from a person's verdicts, with Wilson's interval (Wilson, JASA 1927)."""

import math
from collections.abc import Iterable
from dataclasses import asdict

from reco_ray.files import storage
from reco_ray.outcome import Precision, VerdictsResult
from reco_ray.segmentation.verdicts import Verdict, read_verdicts

_Z = 1.959963984540054  # 0.975 quantile of the normal distribution


def evaluate_verdicts(file: str, out: str) -> VerdictsResult:
    """Counts the verdicts of a file, and writes the figures to `verdicts.json`.

    Args:
        file: URI of the verdicts.
        out: URI of the folder to write to.

    Raises:
        RecoError: the file cannot be read, or has other columns or values.
    """
    verdicts = read_verdicts(file)
    random = [each for each in verdicts if each.sample == "random"]
    concepts = sorted({each.concept for each in random})
    target = storage.join(storage.absolute(out), "verdicts.json")
    result = VerdictsResult(
        sample=precision(random),
        concepts={name: precision(each for each in random if each.concept == name) for name in concepts},
        chosen=precision(each for each in verdicts if each.sample == "unsure"),
        file=target,
    )
    storage.write_json(target, {"verdicts": storage.absolute(file), **asdict(result)})
    return result


def precision(verdicts: Iterable[Verdict]) -> Precision:
    """The share of good masks among those that were judged good or bad; None if there are none."""
    given = [each.verdict for each in verdicts]
    good, bad, unsure = (given.count(kind) for kind in ("good", "bad", "unsure"))
    if not good + bad:
        return Precision(good, bad, unsure, None, None, None)
    low, high = wilson(good, good + bad)
    return Precision(good, bad, unsure, good / (good + bad), low, high)


def wilson(good: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share, of `good` among `total` > 0 independent trials."""
    share, z2 = good / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def as_table(result: VerdictsResult) -> str:
    """The figures as Markdown."""
    rows = [("all masks, drawn at random", result.sample)]
    rows += list(result.concepts.items())
    if result.chosen.good + result.chosen.bad + result.chosen.unsure:
        rows.append(("those the model is least sure of (no estimate)", result.chosen))
    lines = [
        "| masks | good | bad | unsure | precision | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in rows:
        share, interval = "-", "-"
        if found.precision is not None and found.low is not None and found.high is not None:
            share = f"{100 * found.precision:.1f}"
            interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        lines.append(f"| {name} | {found.good} | {found.bad} | {found.unsure} | {share} | {interval} |")
    return "\n".join(lines)
