"""The command `pipeline`: several stages from one file."""

from typing import Annotated

import typer

from reco_ray.cli.commands import ADDRESS_HELP, app
from reco_ray.cli.terminal import Terminal
from reco_ray.files.storage import absolute
from reco_ray.presentation.console import console


@app.command()
def pipeline(
    file: Annotated[str, typer.Argument(help="the stages and their options (docs/clusters.md)")],
    out: Annotated[str, typer.Option(help="summary to write, JSON")] = "reco-pipeline.json",
    address: Annotated[str | None, typer.Option(help=ADDRESS_HELP)] = None,
) -> None:
    """Runs the stages of a file one after another; the same command goes on where it stopped."""
    from reco_ray.distributed.session import session
    from reco_ray.pipeline import read_pipeline, run_pipeline

    steps = read_pipeline(file)
    with session(address):
        run_pipeline(file, steps, out, Terminal())
    console.print(f"summary    {absolute(out)}")
