"""The main job and its stages: embed, index, references, segment."""

from contextlib import nullcontext
from typing import Annotated

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import (
    Address,
    Concepts,
    Corpus,
    Device,
    Exemplars,
    ImageColumn,
    Images,
    MaxRejected,
    Out,
    Preset,
    Refine,
    Set,
    SettingsFile,
    VocabularyFile,
    Weights,
    report,
    settings_of,
    tell,
    vocabulary_of,
)
from reco_ray.console import console
from reco_ray.errors import UsageError
from reco_ray.storage import absolute, join


@app.command()
def run(
    corpus: Corpus,
    images: Images,
    out: Out,
    concepts: Concepts = None,
    vocabulary: VocabularyFile = None,
    image_column: ImageColumn = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    exemplars: Exemplars = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """The whole job: embed the corpus, index it, build references, segment the images, write a report."""
    words = vocabulary_of(concepts, vocabulary)
    chosen = settings_of(
        preset,
        settings,
        set_,
        exemplars=exemplars,
        refine=refine,
        device=device,
        weights=weights,
        image_column=image_column,
    )
    from reco_ray.cluster import session
    from reco_ray.models.weights import prefetch
    from reco_ray.run import run_all

    prefetch(chosen.models.specs, chosen.models.weights)  # before hours of embedding, not after them
    tell(words)
    with session(address):
        for stage, uri, manifest, new in run_all(corpus, images, words, out, chosen):
            report(stage, uri, manifest, new)
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")


@app.command()
def embed(
    corpus: Corpus,
    out: Out,
    follow: Annotated[bool, typer.Option("--follow", help="embed what is new in the corpus since")] = False,
    max_rejected: MaxRejected = None,
    image_column: ImageColumn = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Embeds every image of a corpus once."""
    chosen = settings_of(
        preset,
        settings,
        set_,
        device=device,
        weights=weights,
        image_column=image_column,
        max_rejected=max_rejected,
    )
    from reco_ray.cluster import session
    from reco_ray.corpus.stage import embed_corpus

    with session(address):
        report("embed", out, *embed_corpus(corpus, out, chosen, follow))


@app.command()
def index(
    embeddings: Annotated[str, typer.Option(help="an embeddings artifact")],
    out: Annotated[str | None, typer.Option(help="directory to make; not needed with --explain")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="print choice, size, plan and expected recall; build nothing")
    ] = False,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    address: Address = None,
) -> None:
    """Builds the search index of an embeddings artifact: exact for small corpora, compressed for large ones."""
    chosen = settings_of(preset, settings, set_).index
    if out is None and not explain:
        raise UsageError("give --out DIR, or --explain to build nothing")
    from reco_ray.corpus.index import build_index, plan_index

    plan = plan_index(embeddings, chosen)
    if explain or out is None:
        from reco_ray.corpus.index.explain import explain as in_words

        print(in_words(plan))
        return
    from reco_ray.cluster import session

    with session(address) if plan.needs_cluster else nullcontext():
        manifest, new = build_index(embeddings, out, chosen, plan)
    report("index", out, manifest, new)


@app.command()
def references(
    index: Annotated[str, typer.Option(help="an index artifact")],
    out: Out,
    concepts: Concepts = None,
    vocabulary: VocabularyFile = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    exemplars: Exemplars = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Retrieves exemplars of every concept and co-segments them into references."""
    words = vocabulary_of(concepts, vocabulary)
    chosen = settings_of(preset, settings, set_, exemplars=exemplars, device=device, weights=weights)
    from reco_ray.cluster import session
    from reco_ray.cosegmentation.stage import build_references

    tell(words)
    with session(address):
        report("reference", out, *build_references(index, words, out, chosen))


@app.command()
def segment(
    references: Annotated[str, typer.Option(help="a references artifact")],
    images: Images,
    out: Out,
    image_column: ImageColumn = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Segments images with references that were built before."""
    chosen = settings_of(
        preset, settings, set_, refine=refine, device=device, weights=weights, image_column=image_column
    )
    from reco_ray.cluster import session
    from reco_ray.cosegmentation.bank import ReferenceBank
    from reco_ray.segmentation.stage import segment_images

    tell(ReferenceBank.open(references).vocabulary)
    with session(address):
        report("segment", out, *segment_images(references, images, out, chosen))


@app.command()
def demo(out: Out = "reco-demo", address: Address = None) -> None:
    """The whole job on photographs that come inside Python packages; needs the extra `demo`, no download."""
    from reco_ray.cluster import session
    from reco_ray.corpus.own_output import mark_output
    from reco_ray.demo import prepare_demo
    from reco_ray.run import run_all

    mark_output(out)
    prepared = prepare_demo(join(out, "photographs"))
    tell(prepared.vocabulary)
    with session(address):
        for stage, uri, manifest, new in run_all(
            prepared.corpus, prepared.images, prepared.vocabulary, out, prepared.settings
        ):
            report(stage, uri, manifest, new)
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")
