"""What each stage can be asked for: one class per stage, from which everything else takes names, types and help.

The command line, pipeline files, the planner and the functions of `reco_ray` all make these; a field is named in no
other place. `short` fields stand for one setting, such as `exemplars` for `references.exemplars`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from reco_ray.config import Settings, load_settings
from reco_ray.errors import UsageError
from reco_ray.registry import REFINEMENTS
from reco_ray.storage import absolute
from reco_ray.vocabulary import Vocabulary, load_vocabulary, parse_concepts


class Request(BaseModel):
    """Base of all requests. A field's description is the help of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that the command line takes without a name

    address: str | None = Field(
        default=None, description="Ray cluster to join; default $RAY_ADDRESS, else Ray starts here"
    )

    @classmethod
    def checked(cls, **fields: Any) -> "Request":
        """Makes a request from untyped fields.

        Raises:
            UsageError: a field that there is not, that is missing, or of the wrong type; names it.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "?"
            raise UsageError(f"{name}: {_in_words(first)}") from error


def _in_words(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such option"
    if error["type"] == "missing":
        return "is needed"
    if error["type"] == "string_type" and isinstance(error["input"], list):
        return "takes one value, not a list"
    return error["msg"].removeprefix("Value error, ").lower()


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
    settings: str | None = Field(default=None, description="YAML file whose fields win over the preset's")
    set: Several = Field(default=[], description="section.field=value, wins over both; repeatable")

    def load_settings(self) -> Settings:
        """The settings of the run.

        Raises:
            RecoError: unknown preset or setting, a value out of range, an unreadable file.
        """
        return load_settings(self.preset, self.settings, [*self.set, *self._short_settings()])

    def _short_settings(self) -> list[str]:
        found = []
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            value = getattr(self, name)
            if isinstance(extra, dict) and "setting" in extra and value is not None:
                value = absolute(value) if name == "weights" else value
                found.append(f"{extra['setting']}={value}")
        return found


class WithModels(WithSettings):
    """A request whose stage loads models."""

    device: str | None = _short("models.device", "auto, cpu or cuda")
    weights: str | None = Field(
        default=None,
        description="folder that `weights pull` filled; short for --set models.weights=",
        json_schema_extra={"setting": "models.weights", "envvar": "RECO_WEIGHTS"},
    )


class WithConcepts(Request):
    """A request that names concepts, either directly or in a file."""

    concepts: str | None = Field(
        default=None, description="concept names, comma-separated; quotes keep a comma"
    )
    vocabulary: str | None = Field(
        default=None,
        description="file of concepts: lines, comma lists, CSV, YAML, JSON, YOLO, COCO (docs/vocabularies.md)",
    )

    def load_vocabulary(self) -> Vocabulary:
        """The concepts.

        Raises:
            UsageError: neither or both of the fields are given.
            RecoError: they cannot be read.
        """
        if (self.concepts is None) == (self.vocabulary is None):
            raise UsageError("give the concepts either with --concepts a,b or with --vocabulary FILE")
        if self.concepts is not None:
            return parse_concepts(self.concepts)
        return load_vocabulary(str(self.vocabulary))


_CORPUS = "unlabelled images: folder, glob, list of paths or URLs, Parquet, tars, videos; local, s3://, gs://, hf://"
_IMAGES = "images to segment, same forms as --corpus"
_OUT = "directory to make; an unfinished run of the same command goes on"
_REFINE = _short("segment.refine", ", ".join(REFINEMENTS.names))
_EXEMPLARS = _short("references.exemplars", "images retrieved a concept")


class RunRequest(WithModels, WithConcepts):
    """The whole job: embed the corpus, index it, build references, segment the images, write a report."""

    corpus: str = Field(description=_CORPUS)
    images: str = Field(description=_IMAGES)
    out: str = Field(description=_OUT)
    exemplars: int | None = _EXEMPLARS
    refine: str | None = _REFINE


class EmbedRequest(WithModels):
    """Embeds every image of a corpus once."""

    corpus: str = Field(description=_CORPUS)
    out: str = Field(description=_OUT)
    follow: bool = Field(default=False, description="embed what is new in the corpus since")
    max_rejected: str | None = _short("embed.max_rejected", "fail past so many unusable images: 1% or 500")


class IndexRequest(WithSettings):
    """Builds the search index of an embeddings artifact: exact for small corpora, compressed for large ones."""

    embeddings: str = Field(description="an embeddings artifact")
    out: str | None = Field(default=None, description="directory to make; not needed with --explain")
    explain: bool = Field(
        default=False, description="print choice, size, plan and expected recall; build nothing"
    )


class ReferencesRequest(WithModels, WithConcepts):
    """Retrieves exemplars of every concept and co-segments them into references."""

    index: str = Field(description="an index artifact")
    out: str = Field(description=_OUT)
    exemplars: int | None = _EXEMPLARS


class SegmentRequest(WithModels):
    """Segments images with references that were built before."""

    references: str = Field(description="a references artifact")
    images: str = Field(description=_IMAGES)
    out: str = Field(description=_OUT)
    refine: str | None = _REFINE


class LabelRequest(WithModels):
    """Writes pseudo-labels to train on: `segment` with scores beside the labels, and unsure pixels ignored."""

    references: Several = Field(description="a references artifact; repeatable")
    images: str = Field(description="unlabelled images to train on, same forms as --corpus")
    out: str = Field(description=_OUT)
    refine: str | None = _REFINE


class TrainRequest(WithModels):
    """Trains a segmenter a vocabulary on pseudo-labels (ReCo+), many side by side; goes on where it stopped."""

    out: str = Field(description=_OUT)
    vocabulary: Several = Field(default=[], description="file of concepts, or a folder of them; repeatable")
    index: str | None = Field(default=None, description="an index artifact to retrieve exemplars from")
    images: str | None = Field(default=None, description="unlabelled images to train on")
    labels: Several = Field(
        default=[], description="pseudo-labels that `label` made, in place of --index and --images"
    )
    steps: int | None = _short("train.steps", "updates of the weights")
    exemplars: int | None = _EXEMPLARS
    refine: str | None = _REFINE


class ExportRequest(Request):
    """Writes a segmenter as ONNX or torch.export: uint8 pixels in, logits out, labels and palette inside."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("segmenter",)

    segmenter: str = Field(description="a segmenter artifact, as `train` makes it")
    out: str = Field(description=_OUT)
    format: Literal["onnx", "torch-export"] = Field(
        default="onnx", description="onnx, or torch-export for a .pt2"
    )


class SweepRequest(Request):
    """Tries many settings side by side and ranks them, by labels where there are any, else by scores without."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("file",)

    file: str = Field(description="what to vary, on which images (docs/sweeps.md)")
    out: str = Field(default="reco-sweep", description=_OUT)


class EvaluateRequest(WithModels):
    """Scores ReCo and its ablations on a labelled data set; the labels measure, they choose nothing."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("benchmark",)

    benchmark: str = Field(description="name of the benchmark")
    data: str = Field(description="the data set in its official folder layout")
    corpus: str | None = Field(default=None, description="unlabelled images, in the forms of `run`")
    index: str | None = Field(default=None, description="an index artifact, in place of --corpus")
    segmenter: str | None = Field(
        default=None, description="a segmenter trained for the benchmark's classes, scored beside ReCo"
    )
    out: str = Field(default="reco-evaluation", description=_OUT)
    protocol: str = Field(default="whole", description="whole, reco (320 centre crop) or mmseg (windows)")
    short_side: int | None = Field(
        default=None, description="pixels; default: the protocol's, or segment.image_size"
    )
    exemplars: int | None = _EXEMPLARS
    refine: str | None = _REFINE
