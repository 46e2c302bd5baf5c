"""Commands for the stages, created from their requests."""

from typing import Any

from reco_ray.cli.from_request import add_command
from reco_ray.cli.terminal import Terminal
from reco_ray.outcome import EvaluateResult, RunResult, SearchResult, SweepResult
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
    elif isinstance(result, EvaluateResult):
        from reco_ray.evaluation.results_table import as_table

        print(as_table(result.results))
        console.print(f"report     {result.report}")
        console.print(f"results    {result.file}")
    elif isinstance(result, SearchResult):
        print("rank  similarity  uri")
        for hit in result.hits:
            print(f"{hit['rank']:>4}  {hit['similarity']:>10.4f}  {hit['uri']}")
        console.print(f"sheet      {result.sheet}")
    elif isinstance(result, SweepResult):
        from reco_ray.sweeps.sweep_report import as_table as trials_table

        print(trials_table(result.plan, result.ranked))
        if result.manifest is None:
            failed = sum(record.state == "failed" for record in result.ranked)
            console.print(f"sweep      {failed} trials failed: the same command tries them again")
        console.print(f"report     {result.report}")
        console.print(f"best       {result.best}")


for _name in STAGES:
    _command(_name)
