"""The commands `plan` and `rate`."""

import re
from typing import Annotated

import typer

from reco_ray.cli.commands import app
from reco_ray.errors import RecoError, UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="a pipeline, as `pipeline` runs it")],
    nodes: Annotated[list[str], typer.Option(help="nodes of the cluster: 4xCPU=8,GPU=1; repeatable")],
    images: Annotated[str, typer.Option(help="how many, comma-separated")] = "1M,100M,1B",
    rates: Annotated[str, typer.Option(help="measured rates, as `rate` prints them")] = "cluster/rates.yaml",
) -> None:
    """Says what a pipeline will take: hours, GPU-hours, storage and bottleneck of each stage, from measured rates."""
    from reco_ray.pipeline import read_pipeline
    from reco_ray.planning.estimate import estimate
    from reco_ray.planning.estimate_table import as_table
    from reco_ray.planning.nodes import parse_nodes
    from reco_ray.planning.rate_file import read_rates
    from reco_ray.planning.workload import workloads

    fleet = [parse_nodes(text) for text in nodes]
    counts = [_number(text) for text in images.split(",")]
    asked, known = list(workloads(read_pipeline(file))), read_rates(rates)
    tables = []
    for count in counts:
        estimates = [estimate(each, known, fleet, count) for each in asked]
        if all(one.hours is None and one.gigabytes is None for one in estimates):
            why = estimates[0].bottleneck
            raise RecoError(f"{rates}: has a rate for no stage of {file} ({estimates[0].name}: {why})")
        tables.append(as_table(count, estimates))
    print("\n\n".join(tables))


@app.command()
def rate(
    artifacts: Annotated[list[str], typer.Argument(help="what runs made: embeddings, index, masks, ...")],
    machine: Annotated[str | None, typer.Option(help="processors and GPUs of the workers, in words")] = None,
) -> None:
    """Prints the rates of the runs that made some artifacts, as `plan --rates` reads them."""
    from reco_ray.planning.measured_rates import measure
    from reco_ray.planning.rate_file import as_yaml

    print(as_yaml(measure(artifacts, machine)), end="")


def _number(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    count = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if not 0 < count <= 10**12:
        raise UsageError(f"--images {text!r}: expected numbers such as 500K, 1M or 1B")
    return count
