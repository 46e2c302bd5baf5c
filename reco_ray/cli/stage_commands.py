"""Commands for the stages, created from their requests."""

import re
import shlex
from typing import Any

from reco_ray.cli.from_request import add_command
from reco_ray.cli.terminal import Terminal
from reco_ray.outcome import (
    DuplicatesResult,
    EvaluateResult,
    ReviewResult,
    RunResult,
    SearchResult,
    SweepResult,
    VerdictsResult,
)
from reco_ray.presentation.console import console
from reco_ray.stages import STAGES


def _command(name: str) -> None:
    stage = STAGES[name]

    def run(request: Any) -> None:
        _print(stage.carry_out(request, Terminal()))

    add_command(stage.request, run, name)


def _print(result: Any) -> None:
    """Prints a stage's result, beside the lines for artifacts."""
    if isinstance(result, str):
        print(result)
    elif isinstance(result, RunResult):
        console.print(f"report     {result.report}")
        if result.trained is not None:
            console.print(f"report     {result.trained.report}")
            serve, call = how_to_serve(result.trained.segmenter.uri)
            # Not wrapped, so that the lines can be copied.
            print(f"serve it:  {serve}\ncall it:   {call}")
    elif isinstance(result, DuplicatesResult):
        for number, group in enumerate(result.groups):
            print(f"group {number}: {len(group)} images")
            print("\n".join(f"  {uri}" for uri in group[:_SHOWN]))
            if len(group) > _SHOWN:
                print(f"  and {len(group) - _SHOWN:,} more")
    elif isinstance(result, EvaluateResult):
        from reco_ray.evaluation.results_table import as_table

        print(as_table(result.results))
        console.print(f"report     {result.report}")
        console.print(f"results    {result.file}")
    elif isinstance(result, ReviewResult):
        chosen = f"{result.drawn} of {result.masks:,} masks at random, {result.unsure} that are least sure"
        console.print(f"review     {chosen}")
        console.print(f"page       {result.page}")
    elif isinstance(result, VerdictsResult):
        from reco_ray.evaluation.precision import as_table as verdicts_table

        print(verdicts_table(result))
        console.print(f"results    {result.file}")
    elif isinstance(result, SearchResult):
        print("rank  similarity  uri")
        for hit in result.hits:
            print(f"{hit['rank']:>4}  {hit['similarity']:>10.4f}  {hit['uri']}")
        console.print(f"sheet      {result.sheet}")
        if result.export is not None:
            console.print(f"export     {result.exported:,} images   {result.export}")
    elif isinstance(result, SweepResult):
        from reco_ray.sweeps.sweep_report import as_table as trials_table

        print(trials_table(result.plan, result.ranked))
        if result.manifest is None:
            failed = sum(record.state == "failed" for record in result.ranked)
            console.print(f"sweep      {failed} trials failed: the same command tries them again")
        console.print(f"report     {result.report}")
        console.print(f"best       {result.best}")


_SHOWN = 10  # images printed per group of near-duplicates


def how_to_serve(segmenter: str) -> tuple[str, str]:
    """The commands that serve a trained segmenter, and that ask the server for a mask.

    Args:
        segmenter: its URI; the name of its folder's parent becomes that of the segmenter.
    """
    parent = segmenter.rstrip("/").rpartition("/")[0].rpartition("/")[2]
    name = re.sub(r"[^a-z0-9_-]+", "-", parent.lower()).strip("-_")[:63] or "segmenter"
    given = shlex.quote(f"{name}={segmenter}")
    return (
        f"reco-ray serve --segmenter {given}",
        f"curl -s http://127.0.0.1:8000/v1/segment -F image=@photo.jpg -F vocabulary={name} -H 'Accept: image/png' "
        "-o mask.png",
    )


for _name in STAGES:
    _command(_name)
