"""What each stage can be asked for: one class per stage, from which everything else takes names, types and help.

The command line, pipeline files, the planner and the functions of `reco_ray` all make these; a field is named in no
other place. `short` fields stand for one setting, such as `exemplars` for `references.exemplars`.
"""

import json
import os
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from reco_ray.config import Settings, load_settings
from reco_ray.errors import UsageError
from reco_ray.files.storage import absolute
from reco_ray.registry import MASK_FORMATS, REFINEMENTS
from reco_ray.vocabulary import Vocabulary, load_vocabulary, make_vocabulary, parse_concepts
from reco_ray.vocabulary.curation import curated


class Request(BaseModel):
    """Base of all requests. A field's description is the help of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that the command line takes without a name

    address: str | None = Field(
        default=None,
        description="Ray cluster to join, from one of its nodes: auto or HOST:PORT; default $RAY_ADDRESS, else Ray "
        "starts here",
    )


def usage_error(error: ValidationError) -> UsageError:
    """What is wrong with the fields of a request, in one line that names the first."""
    # A mistyped field comes before the one that is missing because of it.
    found = error.errors()
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    name = ".".join(map(str, first["loc"][:1]))
    known = {"extra_forbidden": "there is no such option", "missing": "is needed"}
    text = known.get(first["type"], first["msg"].removeprefix("Value error, ").lower())
    if first["type"] == "string_type" and isinstance(first["input"], list):
        text = "takes one value, not a list"
    return UsageError(f"{name}: {text}" if name else text)


def names_field(error: ValidationError) -> bool:
    """Whether the line of `usage_error` begins with the name of a field; else it is about several."""
    return bool(error.errors()[0]["loc"])


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _as_list(value: Any) -> Any:
    return [_as_text(each) for each in value] if isinstance(value, list | tuple) else [_as_text(value)]


Place = Annotated[str, BeforeValidator(_as_text)]  # a path or URI
Several = Annotated[list[str], BeforeValidator(_as_list)]  # one value stands for a list of one


def _short(setting: str, description: str) -> Any:
    """A field that stands for one setting; None leaves the setting as it is."""
    return Field(
        default=None,
        description=f"{description}; short for --set {setting}=",
        json_schema_extra={"setting": setting},
    )


class WithSettings(Request):
    """A request whose stage has settings: a preset, changed by a file, by `set`, and by short fields."""

    preset: str = Field(default="mini", description="models and settings that belong together")
    settings: Place | None = Field(default=None, description="YAML file whose fields win over the preset's")
    set: Several = Field(default=[], description="section.field=value, wins over both; repeatable")

    def load_settings(self) -> Settings:
        """The settings of the run.

        Raises:
            RecoError: unknown preset or setting, a value out of range, an unreadable file.
        """
        return load_settings(self.preset, self.settings, self.overrides)

    @property
    def overrides(self) -> list[str]:
        """`set` and the short fields, as "section.field=value"."""
        found = list(self.set)
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            value = getattr(self, name)
            if isinstance(extra, dict) and "setting" in extra and value is not None:
                value = absolute(value) if name in ("weights", "duplicates") else value
                found.append(f"{extra['setting']}={json.dumps(value)}")  # quoted, or YAML reads "no" as false
        return found


class WithModels(WithSettings):
    """A request whose stage loads models."""

    device: str | None = _short("models.device", "auto, cpu or cuda")
    weights: Place | None = Field(
        default=None,
        description="folder that `weights pull` filled; short for --set models.weights=",
        json_schema_extra={"setting": "models.weights", "envvar": "RECO_WEIGHTS"},
    )


_CURATION = "YAML file of images to reject, to pin or to add as examples (docs/curation.md)"


class WithConcepts(Request):
    """A request that names concepts, either directly or in a file."""

    concepts: str | list[str] | None = Field(
        default=None, description="concept names, comma-separated; quotes keep a comma"
    )
    vocabulary: Place | None = Field(
        default=None,
        description="file of concepts: lines, comma lists, CSV, YAML, JSON, YOLO, COCO (docs/vocabularies.md)",
    )
    curation: Place | None = Field(default=None, description=_CURATION)

    def load_vocabulary(self) -> Vocabulary:
        """The concepts, with the images that the curation chooses.

        Raises:
            UsageError: neither or both of `concepts` and `vocabulary` are given.
            RecoError: they cannot be read, or the curation does not fit them.
        """
        vocabulary = self._load_concepts()
        return vocabulary if self.curation is None else curated(vocabulary, self.curation)

    def _load_concepts(self) -> Vocabulary:
        if (self.concepts is None) == (self.vocabulary is None):
            raise UsageError("give the concepts either with --concepts a,b or with --vocabulary FILE")
        if isinstance(self.concepts, str):
            return parse_concepts(self.concepts)
        if self.concepts is not None:
            return make_vocabulary({"concepts": [{"name": name} for name in self.concepts]}, "concepts")
        return load_vocabulary(str(self.vocabulary))


_CORPUS = (
    "unlabelled images: folder, glob, list of paths or URLs (.txt, .csv, .jsonl), Parquet, tars, videos; "
    "local, s3://, gs://, hf://"
)
_IMAGES = "images to segment, same forms as --corpus"
_OUT = "directory to make; an unfinished run of the same command goes on"
_REFINE = _short("segment.refine", ", ".join(REFINEMENTS.names))
_EXEMPLARS = _short("references.exemplars", "images retrieved per concept")
_VERDICTS = Field(default=None, description="verdicts of a review: images with a bad mask are not trained on")
_DUPLICATES = _short("references.duplicates", "groups that `duplicates` found: one exemplar of each is taken")
_IMAGE_COLUMN = _short("image_column", "column of Parquet tables that holds the images or names them")


class RunRequest(WithModels, WithConcepts):
    """The whole job: embed the corpus, index it, build references, segment the images, write a report."""

    corpus: Place = Field(description=_CORPUS)
    images: Place = Field(description=_IMAGES)
    out: Place = Field(description=_OUT)
    train: bool | None = _short("train.in_run", "also train a segmenter on these images, and use it")
    exemplars: int | None = _EXEMPLARS
    refine: str | None = _REFINE
    image_column: str | None = _IMAGE_COLUMN


class EmbedRequest(WithModels):
    """Embeds every image of a corpus once."""

    corpus: Place = Field(description=_CORPUS)
    out: Place = Field(description=_OUT)
    follow: bool = Field(default=False, description="embed what is new in the corpus since")
    max_rejected: str | None = _short("embed.max_rejected", "fail past so many unusable images: 1% or 500")
    image_column: str | None = _IMAGE_COLUMN


class IndexRequest(WithSettings):
    """Builds the search index of an embeddings artifact: exact for small corpora, compressed for large ones."""

    embeddings: Place = Field(description="an embeddings artifact")
    out: Place | None = Field(default=None, description="directory to make; not needed with --explain")
    follow: bool = Field(
        default=False,
        description="add what was embedded since to the index in --out, without building it anew",
    )
    explain: bool = Field(
        default=False, description="print choice, size, plan and expected recall; build nothing"
    )


class DuplicatesRequest(Request):
    """Groups the images of an index that look nearly the same: copies in other sizes, crops, frames of one scene."""

    index: Place = Field(description="an index artifact")
    similarity: float = Field(
        default=0.97, ge=0.5, le=1, description="least cosine of the embeddings of two near-duplicates"
    )
    out: Place = Field(default="reco-duplicates", description=_OUT)


class ReferencesRequest(WithModels, WithConcepts):
    """Retrieves exemplars of every concept and co-segments them into references."""

    index: Place = Field(description="an index artifact")
    out: Place = Field(description=_OUT)
    exemplars: int | None = _EXEMPLARS
    duplicates: Place | None = _DUPLICATES


class SegmentRequest(WithModels):
    """Segments images with references that were built before, or with trained segmenters."""

    references: Place | None = Field(default=None, description="a references artifact")
    segmenter: Several = Field(
        default=[],
        description="a segmenter that `train` made, in place of --references; repeatable: images are decoded once",
    )
    images: Place = Field(description=_IMAGES)
    out: Place = Field(description=_OUT)
    refine: str | None = _REFINE
    image_column: str | None = _IMAGE_COLUMN

    @model_validator(mode="after")
    def _references_or_segmenter(self) -> "SegmentRequest":
        if (self.references is None) != bool(self.segmenter):
            raise ValueError(
                "give either --references with a references artifact or --segmenter with a trained one"
            )
        return self


class ReviewRequest(Request):
    """Writes a page on which a person says of masks whether they are good: some at random, and the least sure ones."""

    masks: Place = Field(description="a masks artifact")
    sample: int = Field(default=60, ge=0, le=1000, description="masks drawn at random, for an honest share")
    unsure: int = Field(default=60, ge=0, le=1000, description="masks that the model is least sure of")
    seed: int = Field(default=0, description="of the masks drawn at random")
    out: Place = Field(default="reco-review", description="directory of the page")


class LabelRequest(WithModels):
    """Writes pseudo-labels to train on: `segment` with scores beside the labels, and unsure pixels ignored."""

    references: Several = Field(description="a references artifact; repeatable")
    images: Place = Field(description="unlabelled images to train on, same forms as --corpus")
    out: Place = Field(description=_OUT)
    verdicts: Place | None = _VERDICTS
    refine: str | None = _REFINE
    image_column: str | None = _IMAGE_COLUMN


class TrainRequest(WithModels):
    """Trains one segmenter per vocabulary on pseudo-labels (ReCo+), many side by side; goes on where it stopped."""

    out: Place = Field(description=_OUT)
    vocabulary: Several = Field(default=[], description="file of concepts, or a folder of them; repeatable")
    index: Place | None = Field(default=None, description="an index artifact to retrieve exemplars from")
    images: Place | None = Field(default=None, description="unlabelled images to train on")
    labels: Several = Field(
        default=[], description="pseudo-labels that `label` made, in place of --index and --images"
    )
    verdicts: Place | None = _VERDICTS
    curation: Several = Field(
        default=[], description=f"{_CURATION}; NAME=FILE where there are several vocabularies; repeatable"
    )
    steps: int | None = _short("train.steps", "updates of the weights")
    exemplars: int | None = _EXEMPLARS
    duplicates: Place | None = _DUPLICATES
    refine: str | None = _REFINE
    image_column: str | None = _IMAGE_COLUMN


class ExportRequest(Request):
    """Writes a segmenter as ONNX or torch.export: uint8 pixels in, logits out, labels and palette inside."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("segmenter",)

    segmenter: Place = Field(description="a segmenter artifact, as `train` makes it")
    out: Place = Field(description=_OUT)
    format: Literal["onnx", "torch-export"] = Field(
        default="onnx", description="onnx, or torch-export for a .pt2"
    )


class ExportMasksRequest(Request):
    """Writes masks in the format of an annotation tool or a trainer, with the images beside them."""

    masks: Place = Field(description="a masks artifact")
    format: str = Field(description=", ".join(MASK_FORMATS.names))
    out: Place = Field(description=_OUT)
    min_area: int = Field(
        default=0, ge=0, description="pixels; smaller instances are left out (coco and yolo)"
    )
    without_images: bool = Field(
        default=False, description="write no images; they are named by their paths below the source"
    )
    push_to: str | None = Field(
        default=None, description="owner/name on the Hugging Face hub to push to, with --format huggingface"
    )


class SweepRequest(Request):
    """Tries many settings side by side and ranks them, by labels where there are any, else by scores without."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("file",)

    file: Place = Field(description="what to vary, on which images (docs/sweeps.md)")
    curation: Place | None = Field(default=None, description=f"{_CURATION}; in place of the file's")
    out: Place = Field(default="reco-sweep", description=_OUT)


class EvaluateRequest(WithModels):
    """Scores ReCo and its ablations on a labelled data set; the labels measure, they choose nothing."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("benchmark",)

    benchmark: str | None = Field(default=None, description="name of the benchmark")
    data: Place | None = Field(default=None, description="the data set in its official folder layout")
    verdicts: Place | None = Field(
        default=None,
        description="in place of a benchmark: a person's verdicts on masks, as the page of `review` saves them",
    )
    corpus: Place | None = Field(default=None, description="unlabelled images, in the forms of `run`")
    index: Place | None = Field(default=None, description="an index artifact, in place of --corpus")
    segmenter: Place | None = Field(
        default=None, description="a segmenter trained for the benchmark's classes, scored beside ReCo"
    )
    curation: Place | None = Field(default=None, description=_CURATION)
    out: Place = Field(default="reco-evaluation", description=_OUT)
    protocol: str = Field(default="whole", description="whole, reco (320 centre crop) or mmseg (windows)")
    short_side: int | None = Field(
        default=None, description="pixels; default: the protocol's, or segment.image_size"
    )
    exemplars: int | None = _EXEMPLARS
    refine: str | None = _REFINE

    @model_validator(mode="after")
    def _benchmark_or_verdicts(self) -> "EvaluateRequest":
        of_benchmark = (self.benchmark, self.data, self.corpus, self.index, self.segmenter)
        if self.verdicts is not None:
            if any(each is not None for each in of_benchmark):
                raise ValueError(
                    "verdicts are evaluated by themselves: give them without a benchmark and its data"
                )
        elif self.benchmark is None or self.data is None:
            raise ValueError(
                "give a benchmark and --data with its images, or --verdicts with those of a review"
            )
        elif (self.corpus is None) == (self.index is None):
            raise ValueError("give either --corpus with unlabelled images or --index with an index of them")
        return self


class SearchRequest(WithModels):
    """Finds the images of a corpus that words, or an image, describe; needs no cluster."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("words",)

    index: Place = Field(description="an index artifact")
    words: str | None = Field(default=None, description="what to look for")
    image: Place | None = Field(default=None, description="an image to find the like of, in place of words")
    k: int | None = Field(default=None, ge=1, description="how many hits; default 20, or all")
    prefix: Place | None = Field(default=None, description="only images whose path or URI begins with this")
    out: Place = Field(default="reco-search", description="directory for the contact sheet of the hits")
    export: Place | None = Field(
        default=None, description="folder, or file.tar, to write the found images to, with a manifest.csv"
    )


class ServeRequest(WithModels):
    """Serves any vocabulary over HTTP, with a page to try it; Ctrl-C finishes what was begun and stops."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; others than loopback need --keys"
    )
    port: int = Field(default=8000, ge=1, le=65_535, description="port to listen on")
    index: Place | None = Field(default=None, description="index artifact that concepts are looked up in")
    state: Place = Field(
        default="reco-serve",
        description="directory of vocabularies and cached references; they come back from it",
    )
    segmenter: Several = Field(default=[], description="NAME=URI of a trained segmenter; repeatable")
    examples: Place | None = Field(default=None, description="images to try on the page")
    keys: Place | None = Field(default=None, description="file of API keys, lines as `serve-key` prints them")
    label_studio: str | None = Field(
        default=None, description="address of a Label Studio, whose tasks' images may then be fetched"
    )
    fetch: Several = Field(
        default=[],
        description="address below which images of annotation tasks may be fetched; http, s3 or gs, repeatable",
    )


class DemoRequest(Request):
    """The whole job on photographs that come inside Python packages; needs the extra `demo`, no download."""

    out: Place = Field(default="reco-demo", description=_OUT)
