"""Planning: pipeline, plan, rate."""

from typing import Annotated

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import Address, Preset
from reco_ray.config import load_settings
from reco_ray.errors import UsageError

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}


@app.command()
def pipeline(
    file: Annotated[str, typer.Argument(help="the stages and their options (docs/planning.md)")],
    out: Annotated[str, typer.Option(help="summary to write, JSON")] = "reco-pipeline.json",
    address: Address = None,
) -> None:
    """Runs the stages of a file one after another; the same command goes on where it stopped."""
    from reco_ray.pipeline import run_pipeline

    run_pipeline(file, out, address)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="a pipeline's file")],
    nodes: Annotated[list[str], typer.Option(help="such as 4xCPU=8,GPU=1; repeatable")],
    images: Annotated[str, typer.Option(help="how many, comma-separated")] = "1M,100M,1B",
    concepts: Annotated[int, typer.Option(min=1, help="how many references")] = 20,
    rates: Annotated[str, typer.Option(help="measured rates, as `rate` prints them")] = "cluster/rates.yaml",
) -> None:
    """Says what a pipeline will take: hours, GPU-hours, storage and bottleneck of each stage, from measured rates."""
    from reco_ray.pipeline import read_pipeline
    from reco_ray.plan import estimate, parse_nodes, read_rates

    read, steps = read_pipeline(file)
    settings = load_settings(read.preset, read.settings)
    known, total = read_rates(rates), parse_nodes(nodes)
    print(f"{'images':>14}  {'stage':<11}{'items':>14}{'hours':>11}{'GPU-hours':>11}{'GB':>11}  bottleneck")
    for count in map(_number, images.split(",")):
        for one in estimate(steps, settings, read.preset, known, total, count, concepts):
            figures = [
                f"{'-' if f is None else f'{f:,.2f}':>11}" for f in (one.hours, one.gpu_hours, one.gigabytes)
            ]
            print(f"{count:>14,}  {one.stage:<11}{one.items:>14,}{''.join(figures)}  {one.bottleneck}")


@app.command()
def rate(
    artifact: Annotated[str, typer.Argument(help="what a run made")],
    workers: Annotated[int, typer.Option(min=1, help="that ran")],
    machine: Annotated[str, typer.Option(help="its processors and GPUs, in words")],
    preset: Preset = "mini",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    fixed_seconds: Annotated[float, typer.Option(min=0, help="of the run that do not grow with it")] = 0.0,
) -> None:
    """Prints the rate of the run that made an artifact, as `plan --rates` reads it."""
    import yaml

    from reco_ray.plan import measure

    found = measure(artifact, preset, workers, device, machine, fixed_seconds)
    print(yaml.safe_dump([found.model_dump()], sort_keys=False, width=110), end="")


def _number(text: str) -> int:
    unit = _UNITS.get(text.strip()[-1:].upper(), 1)
    try:
        return int(float(text.strip().rstrip("KMBkmb")) * unit)
    except ValueError as error:
        raise UsageError(f"--images {text!r}: expected numbers such as 500K, 1M, 1B") from error
