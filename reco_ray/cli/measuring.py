"""Measuring: evaluate, sweep."""

from typing import Annotated, Any

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import (
    Address,
    Device,
    Exemplars,
    Out,
    Preset,
    Refine,
    Set,
    SettingsFile,
    Weights,
    report,
    settings_of,
    tell,
)
from reco_ray.console import console
from reco_ray.errors import UsageError
from reco_ray.storage import absolute, join


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Argument(help="name of the benchmark")],
    data: Annotated[str, typer.Option(help="the data set in its official folder layout")],
    corpus: Annotated[str | None, typer.Option(help="unlabelled images, in the forms of `run`")] = None,
    index: Annotated[str | None, typer.Option(help="an index artifact, in place of --corpus")] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="a segmenter trained for the benchmark's classes, scored beside ReCo")
    ] = None,
    out: Out = "reco-evaluation",
    protocol: Annotated[str, typer.Option(help="whole, reco (320 centre crop) or mmseg (windows)")] = "whole",
    short_side: Annotated[
        int | None, typer.Option(help="pixels; default: the protocol's, or segment.image_size")
    ] = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    exemplars: Exemplars = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Scores ReCo and its ablations on a labelled data set; the labels measure, they choose nothing."""
    if (corpus is None) == (index is None):
        raise UsageError("give either --corpus with unlabelled images or --index with an index of them")
    chosen = settings_of(
        preset, settings, set_, exemplars=exemplars, refine=refine, device=device, weights=weights
    )
    from reco_ray.cluster import session
    from reco_ray.corpus.index import build_index
    from reco_ray.corpus.stage import embed_corpus
    from reco_ray.evaluation.benchmark import open_benchmark
    from reco_ray.evaluation.check import require_countable
    from reco_ray.evaluation.protocols import choose_protocol
    from reco_ray.evaluation.stage import evaluate as run_evaluation
    from reco_ray.evaluation.stage import trained_for
    from reco_ray.evaluation.table import as_table
    from reco_ray.models.weights import prefetch

    way = choose_protocol(protocol, short_side, chosen.segment)
    dataset = open_benchmark(benchmark, absolute(data))
    require_countable(dataset, chosen.segment.max_pixels, way.cut_truth)
    trained = trained_for(segmenter, dataset) if segmenter else None
    prefetch(chosen.models.specs, chosen.models.weights)
    tell(dataset.vocabulary)
    with session(address):
        if corpus is not None:
            embeddings, index = join(out, "embeddings"), join(out, "index")
            report("embed", embeddings, *embed_corpus(corpus, embeddings, chosen))
            report("index", index, *build_index(embeddings, index, chosen.index))
        results = run_evaluation(dataset, data, str(index), out, chosen, way, trained)
    print(as_table(results))
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")
    console.print(f"results    {join(absolute(out), 'results.json')}")


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="what to vary, on which images (docs/sweeps.md)")],
    out: Out = "reco-sweep",
    address: Address = None,
) -> None:
    """Tries many settings side by side and ranks them, by labels where there are any, else by scores without."""
    from reco_ray.sweep.plan import open_plan

    plan = open_plan(file)
    from reco_ray.cluster import session
    from reco_ray.sweep.report import as_table, summary
    from reco_ray.sweep.stage import run_sweep

    for name, vocabulary in plan.vocabularies.items():
        tell(vocabulary, name)

    def tell_trial(record: Any) -> None:
        console.print(summary(plan, record))

    with session(address):
        manifest, new, ranked = run_sweep(plan, out, tell_trial)
    print(as_table(plan, ranked))
    if manifest is not None:
        report("sweep", out, manifest, new)
    else:
        failed = sum(record.state == "failed" for record in ranked)
        console.print(f"sweep      {failed} trials failed: the same command tries them again")
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")
    console.print(f"best       {join(absolute(out), 'best.yaml')}")
