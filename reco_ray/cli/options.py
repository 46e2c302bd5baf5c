"""Options that several commands share, and what they become."""

import json
from typing import Annotated

import typer

from reco_ray.config import Settings, load_settings
from reco_ray.console import console
from reco_ray.errors import UsageError
from reco_ray.registry import REFINEMENTS
from reco_ray.storage import Manifest, absolute, join
from reco_ray.vocabulary import Vocabulary, in_words, load_vocabulary, parse_concepts, remarks

Corpus = Annotated[
    str,
    typer.Option(
        help="unlabelled images: folder, glob, list of paths or URLs (.txt, .csv, .jsonl), Parquet, tars, videos; "
        "local, s3://, gs://, hf://"
    ),
]
Images = Annotated[str, typer.Option(help="images to segment, same forms as --corpus")]
Out = Annotated[str, typer.Option(help="directory to make; an unfinished run of the same command goes on")]
Concepts = Annotated[str | None, typer.Option(help="concept names, comma-separated; quotes keep a comma")]
VocabularyFile = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        help="file of concepts: lines, comma lists, CSV, YAML, JSON, YOLO, COCO (docs/vocabularies.md)",
    ),
]
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
ImageColumn = Annotated[
    str | None,
    typer.Option(
        help="column of Parquet tables that holds the images or names them; short for --set image_column="
    ),
]
Refine = Annotated[
    str | None, typer.Option(help=f"{', '.join(REFINEMENTS.names)}; short for --set segment.refine=")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for --set models.device=")]
Weights = Annotated[
    str | None,
    typer.Option(
        envvar="RECO_WEIGHTS", help="folder that `weights pull` filled; short for --set models.weights="
    ),
]
MaxRejected = Annotated[
    str | None,
    typer.Option(help="fail past so many unusable images: 1% or 500; short for --set embed.max_rejected="),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; default $RAY_ADDRESS, else Ray starts here")
]


def vocabulary_of(concepts: str | None, file: str | None) -> Vocabulary:
    if (concepts is None) == (file is None):
        raise UsageError("give the concepts either with --concepts a,b or with --vocabulary FILE")
    return parse_concepts(concepts) if concepts is not None else load_vocabulary(str(file))


def tell(vocabulary: Vocabulary, name: str = "") -> None:
    """Says which concepts were read, and which of their words say nothing to a model.

    Args:
        name: of the vocabulary, where there are several.
    """
    console.print(f"{name + ': ' if name else ''}{in_words(vocabulary)}")
    for line in remarks(vocabulary):
        console.print(f"remark     {line}")


def settings_of(
    preset: str,
    file: str | None,
    overrides: list[str] | None,
    *,
    exemplars: int | None = None,
    refine: str | None = None,
    device: str | None = None,
    weights: str | None = None,
    max_rejected: str | None = None,
    image_column: str | None = None,
) -> Settings:
    short = {
        "embed.max_rejected": max_rejected,
        "image_column": None if image_column is None else json.dumps(image_column),
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


def report(stage: str, uri: str, manifest: Manifest, new: bool) -> None:
    """What was made, in which time, and where it is, in a line; in another, where to read what was rejected."""
    counts = ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items())
    time = f"{manifest.seconds:.1f} s" if new else "nothing to do, made before"
    console.print(f"{stage:<10} {counts}   {time}   {absolute(uri)}")
    if new and manifest.counts.get("rejected"):
        reasons = manifest.content.get("rejected_by_reason", {})
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in reasons.items())
        console.print(
            f"{'rejected':<10} {kinds or 'each with its reason'}   {join(absolute(uri), 'rejected')}"
        )
