"""Training: label, train."""

from collections.abc import Iterable
from typing import Annotated

import typer

from reco_ray.cli.app import app
from reco_ray.cli.options import (
    Address,
    Device,
    Exemplars,
    ImageColumn,
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
from reco_ray.errors import RecoError, UsageError
from reco_ray.storage import absolute, join, list_names
from reco_ray.vocabulary import Vocabulary, load_vocabulary
from reco_ray.vocabulary_files import SUFFIXES


@app.command()
def label(
    references: Annotated[list[str], typer.Option(help="a references artifact; repeatable")],
    images: Annotated[str, typer.Option(help="unlabelled images to train on, same forms as --corpus")],
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
    """Writes pseudo-labels to train on: `segment` with scores beside the labels, and unsure pixels ignored."""
    chosen = settings_of(
        preset, settings, set_, refine=refine, device=device, weights=weights, image_column=image_column
    )
    from reco_ray.cluster import session
    from reco_ray.cosegmentation.bank import ReferenceBank
    from reco_ray.training.label import label_images
    from reco_ray.training.label_worker import LabelSet

    names = _names(references)
    sets = {n: LabelSet(absolute(r), join(out, n, "labels")) for n, r in zip(names, references, strict=True)}
    for name, bank in sets.items():
        tell(ReferenceBank.open(bank.bank).vocabulary, name)
    with session(address):
        for name, made in label_images(sets, images, join(out, "frames"), chosen).items():
            report("label", sets[name].out, *made)


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
    """Trains a segmenter a vocabulary on pseudo-labels (ReCo+), many side by side; goes on where it stopped."""
    overrides = [*(set_ or []), *([f"train.steps={steps}"] if steps is not None else [])]
    chosen = settings_of(
        preset,
        settings,
        overrides,
        exemplars=exemplars,
        refine=refine,
        device=device,
        weights=weights,
        image_column=image_column,
    )
    if labels and (index or images):
        raise UsageError("give either --labels or --index with --images")
    if not labels and not (vocabulary and index and images):
        raise UsageError("give --vocabulary, --index and --images, or --labels")
    words = vocabularies_of(vocabulary or [])
    from reco_ray.cluster import session
    from reco_ray.outcome import Outcome
    from reco_ray.training.stage import train_segmenters
    from reco_ray.training.vocabularies import require_distinct, train_vocabularies

    require_distinct(words)
    for name, one in words.items():
        tell(one, name)
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
            outcomes: Iterable[Outcome] = train_segmenters(uris, outs, chosen, known)
        else:
            outcomes = train_vocabularies(words, str(index), str(images), out, chosen)
        for outcome in outcomes:
            if outcome.manifest is None:
                failed.append(outcome)
                console.print(f"{outcome.stage:<10} {outcome.error}")
            else:
                report(outcome.stage, outcome.uri, outcome.manifest, outcome.new)
    if failed:
        raise RecoError(
            f"{len(failed)} of {len(words) or len(labels or [])} vocabularies failed: {failed[0].error}"
        )


def vocabularies_of(sources: list[str]) -> dict[str, Vocabulary]:
    """Vocabulary files, or all of a folder, by the files' names without suffix; `benchmark:NAME` for a benchmark's."""
    found: dict[str, Vocabulary] = {}
    for source in sources:
        if source.startswith("benchmark:"):
            from reco_ray.evaluation.benchmark import benchmark_vocabulary

            files = {
                source.removeprefix("benchmark:"): benchmark_vocabulary(source.removeprefix("benchmark:"))
            }
        else:
            is_file = source.lower().endswith(SUFFIXES)
            inside = [] if is_file else [n for n in list_names(source) if n.lower().endswith(SUFFIXES)]
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
