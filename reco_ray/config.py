"""Settings: a preset's YAML, changed by a file, changed by the command line; typed and checked once."""

import re
from collections.abc import Collection
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from reco_ray.errors import SettingError, file_error, reason
from reco_ray.files import storage
from reco_ray.registry import REFINEMENTS


def _known_refinement(name: str) -> str:
    if name not in REFINEMENTS.names:
        raise ValueError(f"input should be one of {', '.join(REFINEMENTS.names)}")
    return name


# The name of a refinement; in settings and in requests to the server.
Refinement = Annotated[
    str,
    AfterValidator(_known_refinement),
    WithJsonSchema({"type": "string", "enum": REFINEMENTS.names}),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Section):
    """Which models, and where they run."""

    retrieval: str = Field(description="language-image model that embeds corpus and words")
    language: str | None = Field(
        default=None, description="language-image model of the dense features; None = retrieval's"
    )
    encoder: str = Field(description="dense encoder of the references")
    templates: str = Field(default="plain", description="prompt templates that are averaged")
    affinity: Literal["none", "proxyclip", "dinoiser"] = Field(
        default="none", description="pool the language features over what the encoder finds alike"
    )
    window: int | None = Field(
        default=None, ge=32, description="encode larger images in windows of this side, pixels"
    )
    window_step: int | None = Field(
        default=None, ge=16, description="from one window to the next, pixels; None = half a window"
    )
    weights: str | None = Field(default=None, description="folder of weights for machines without a network")
    device: str = Field(default="auto", description="cpu, cuda, or auto: GPUs where there are any")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = Field(
        default="auto",
        description="arithmetic of the models; auto = bf16 where the device multiplies it natively and faster, else "
        "fp16 on GPUs and fp32 on CPUs; on GPUs fp32 is IEEE's, tf32 is faster; int8 = whole images by open_clip's ViT "
        "models in 8 bits on a CPU, all else as auto",
    )

    @property
    def specs(self) -> list[str]:
        """The models that are named, each once, without what follows `@`: that changes no weights."""
        named = (self.retrieval, self.language, self.encoder)
        return list(dict.fromkeys(spec.partition("@")[0] for spec in named if spec))

    @model_validator(mode="after")
    def _windows_leave_no_gap(self) -> "ModelSettings":
        if self.window_step is not None and self.window_step > (self.window or 0):
            raise ValueError("window_step must not exceed window")
        return self


class EmbedSettings(_Section):
    """The corpus, read and embedded once."""

    shard_size: int = Field(default=256, ge=1, le=65_536, description="images committed together")
    batch_size: int = Field(default=32, ge=1, le=4096, description="images a forward pass")
    # Below Pillow's own limit of 178,956,970 pixels, which stays in force.
    max_pixels: int = Field(
        default=100_000_000, ge=1, le=178_956_970, description="larger images are rejected undecoded"
    )
    max_rejected: str = Field(
        default="100%",
        coerce_numbers_to_str=True,
        description="more rejected images than this, a share or a number, make the run fail",
    )
    frames_per_second: float = Field(default=1.0, gt=0, le=1000, description="frames taken from videos")

    @field_validator("max_rejected")
    @classmethod
    def _share_or_number(cls, allowed: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?%|\d+", allowed):
            raise ValueError(f"{allowed!r}: expected a share such as 1% or a number of images")
        return allowed


class IndexSettings(_Section):
    """The search index over the embeddings."""

    factory: str = Field(
        default="auto",
        min_length=1,
        description="auto = by size; Flat, or an inverted file in FAISS's notation",
    )
    sample: int | None = Field(default=None, ge=1, description="vectors to train on; None = 64 a list")
    shard_size: int | None = Field(
        default=None, ge=1, description="images a task adds; None = a million, or a 64th of a larger corpus"
    )
    nprobe: int | None = Field(
        default=None, ge=1, description="lists searched; None = as few as reach target_recall"
    )
    target_recall: float = Field(default=0.95, gt=0, le=1, description="of recall@50 against exact search")
    min_recall: float = Field(default=0.7, ge=0, le=1, description="an index with less is refused")


class ReferenceSettings(_Section):
    """Retrieval and co-segmentation."""

    exemplars: int = Field(default=50, ge=1, description="images retrieved per concept, k of the paper")
    image_size: int = Field(default=224, ge=32, description="side of the exemplars' squares, pixels")
    duplicates: str | None = Field(
        default=None, description="groups that `duplicates` found in the index: one exemplar of each is taken"
    )
    geometry: Literal["whole", "crop"] = Field(
        default="whole", description="exemplars squeezed into the square, or cropped to it as in the paper"
    )
    reduction: Literal["mean", "medoid", "rank_weighted"] = Field(
        default="mean",
        description="seeds to reference: mean, the seed most like the others, or weighted by rank",
    )
    pairing: Literal["exact", "as_released"] = Field(
        default="exact", description="images compared for a support map: the paper's, or its released code's"
    )
    prototypes: int = Field(
        default=1, ge=1, le=16, description="k-means centres of the seeds kept a concept, 1 = their reduction"
    )
    language_attention: bool = Field(
        default=True, description="weigh locations by the dense language features"
    )
    context_elimination: bool = Field(
        default=True, description="weigh locations by unlikeness to the context concepts"
    )


class SegmentSettings(_Section):
    """From references to masks."""

    image_size: int = Field(default=320, ge=32, description="short side at which images are encoded, pixels")
    max_pixels: int = Field(
        default=100_000_000, ge=1, le=178_956_970, description="larger images are rejected undecoded"
    )
    shard_size: int = Field(default=64, ge=1, le=65_536, description="images committed together")
    use: Literal["both", "references", "language"] = Field(
        default="both", description="score by references times language attention, or by one of them alone"
    )
    calibrate: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="images over which the scores of concepts are made comparable; 0 = the paper's products of scores",
    )
    refine: Refinement = Field(
        default="none",
        description="sharpen masks by colour: PAMR or superpixels (quick), or the paper's dense CRF",
    )
    background: bool | None = Field(
        default=None, description="label 0 for what shows no concept; None = as the vocabulary says"
    )
    background_threshold: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="lower scores are background, where there is one; calibrated scores need none",
    )
    prefilter: int = Field(
        default=0, ge=0, description="concepts an image may show, chosen by its best language match; 0 = all"
    )
    overlays: bool = Field(default=True, description="write a picture with the mask over the photograph")


class TrainSettings(_Section):
    """From masks to a segmenter: ReCo+ (paper, section 3.5)."""

    in_run: bool = Field(
        default=False, description="`run` also trains a segmenter on its images, and segments them with it"
    )
    segmenter: str = Field(
        default="smp:FPN/tu-tf_efficientnet_lite0", description="network to train, see docs/training.md"
    )
    initial: Literal["packaged", "imagenet", "random"] = Field(
        default="packaged", description="weights that the network's encoder starts from"
    )
    image_size: int = Field(default=320, ge=32, description="short side of images and labels, pixels")
    min_score: float = Field(
        default=0.0, ge=0, le=1, description="pseudo-labels with a lower score are ignored"
    )
    held_out: float = Field(
        default=0.1, gt=0, lt=1, description="share of the images on whose pseudo-labels steps are compared"
    )
    steps: int = Field(default=20_000, ge=1, description="updates of the weights")
    batch_size: int = Field(default=8, ge=2, description="crops an update, over all workers")
    accumulate: int = Field(default=1, ge=1, description="forward passes an update")
    crop: int = Field(default=320, ge=32, description="side of the crops, pixels")
    scale: tuple[float, float] = Field(default=(0.5, 2.0), description="range of the random resize")
    learning_rate: float = Field(default=5e-4, gt=0, description="of the new layers, at the start")
    encoder_learning_rate: float = Field(
        default=5e-5, ge=0, description="of the encoder, at the start; 0 = frozen"
    )
    weight_decay: float = Field(default=2e-4, ge=0, description="of all layers")
    power: float = Field(default=0.9, gt=0, description="of the polynomial decay of the learning rates")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    workers: int = Field(default=1, ge=1, description="processes that train one segmenter together")
    refine: Refinement = Field(
        default="none",
        description="refinement of a trained segmenter's masks, which learned from refined ones; see segment.refine",
    )
    deterministic: bool = Field(
        default=False,
        description="take only deterministic algorithms, which are slower on GPUs: the same weights to the last bit",
    )
    feeders: int | None = Field(
        default=None,
        ge=1,
        description="processes that prepare the crops of a worker; None = by the CPUs that each GPU has beside it",
    )
    retries: int = Field(default=3, ge=0, description="times that a run starts again after losing a worker")

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainSettings":
        if self.batch_size % (self.workers * self.accumulate):
            raise ValueError("batch_size must be a multiple of workers x accumulate")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two positive factors, the smaller one first")
        return self


class StagePlacement(_Section):
    """What the workers of one stage ask the cluster for."""

    workers: int | None = Field(
        default=None, ge=1, description="workers to ask for; None = as many as the cluster has room for now"
    )
    gpus_per_worker: float | None = Field(
        default=None,
        gt=0,
        description="0.25 = four workers share a GPU; None = a whole one, where there are any",
    )
    cpus_per_worker: float | None = Field(
        default=None, ge=0, description="None = chosen by the cluster's size"
    )
    worker_resources: dict[str, PositiveFloat] = Field(
        default={}, description="custom resources of a worker, such as {l4: 0.25}"
    )
    reader_resources: dict[str, PositiveFloat] = Field(
        default={}, description="custom resources of a task that reads and decodes, such as {decode: 1}"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _share_or_whole(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and gpus % 1:
            raise ValueError("gpus_per_worker must be a share of one GPU or a whole number of them")
        return gpus


class PlacementSettings(_Section):
    """Where the stages run; changes nothing in what they make. Of one training run, `train.workers` work together."""

    embed: StagePlacement = Field(default=StagePlacement(), description="workers that embed the corpus")
    references: StagePlacement = Field(default=StagePlacement(), description="workers that co-segment")
    segment: StagePlacement = Field(default=StagePlacement(), description="workers that make masks")
    label: StagePlacement = Field(default=StagePlacement(), description="workers that make pseudo-labels")
    train: StagePlacement = Field(
        default=StagePlacement(), description="workers of all training runs side by side"
    )
    evaluate: StagePlacement = Field(default=StagePlacement(), description="workers that score images")
    sweep: StagePlacement = Field(
        default=StagePlacement(), description="tasks that compute the trials of a sweep"
    )


class Settings(_Section):
    """Everything that determines what a run makes, except its inputs; under `placement`, where it is made."""

    preset: str = Field(description="chosen with --preset: models and settings that belong together")
    seed: int = Field(default=0, description="of everything drawn by chance")
    image_column: str | None = Field(
        default=None,
        min_length=1,
        description="column of Parquet tables with encoded images, paths or addresses; None = found by name and type",
    )
    models: ModelSettings
    embed: EmbedSettings = EmbedSettings()
    index: IndexSettings = IndexSettings()
    references: ReferenceSettings = ReferenceSettings()
    segment: SegmentSettings = SegmentSettings()
    train: TrainSettings = TrainSettings()
    placement: PlacementSettings = PlacementSettings()

    def of_trained(self) -> "Settings":
        """The settings of masks that a trained segmenter makes: refined as `train.refine` says."""
        refined = self.segment.model_copy(update={"refine": self.train.refine})
        return self.model_copy(update={"segment": refined})

    def named(self, section: str, *, without: Collection[str] = ()) -> dict[str, object]:
        """The fields of a section by the names that `--set` takes: "references.exemplars"; values as in JSON."""
        values = getattr(self, section).model_dump(mode="json", exclude=set(without))
        return {f"{section}.{field}": value for field, value in values.items()}


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _presets().iterdir() if f.name.endswith(".yaml"))


def load_settings(
    preset: str = "mini", file: str | None = None, overrides: list[str] | None = None
) -> Settings:
    """Builds the settings.

    Args:
        preset: one of `preset_names()`.
        file: a YAML file with any of the preset's fields; wins over the preset.
        overrides: "section.field=value" strings, values in YAML; win over both.

    Raises:
        RecoError: unknown preset, unreadable file, unknown field or a value out of range; names the field.
    """
    if preset not in preset_names():
        raise SettingError(f"unknown preset {preset!r}: choose one of {', '.join(preset_names())}")
    values = yaml.safe_load((_presets() / f"{preset}.yaml").read_text())
    if file:
        try:
            chosen = yaml.safe_load(storage.read_bytes(file))
        except (OSError, yaml.YAMLError) as error:
            raise file_error(f"{file}: the settings cannot be read: {reason(error)}", error) from error
        if not isinstance(chosen, dict):
            raise SettingError(f"{file}: expected a mapping such as 'references: {{exemplars: 20}}'")
        _merge(values, chosen)
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SettingError(
                f"--set {override!r}: expected section.field=value, such as references.exemplars=20"
            )
        try:
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingError(f"--set {override!r}: the value is not valid YAML") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(values, nested)
    if "preset" in values:
        raise SettingError(
            "setting preset: choose it with --preset, its models cannot be swapped by name here"
        )
    try:
        return Settings.model_validate({"preset": preset, **values})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] in ("extra_forbidden", "invalid_key")
        message = (
            "there is no such setting" if unknown else first["msg"].removeprefix("Value error, ").lower()
        )
        raise SettingError(f"setting {place}: {message}") from error


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _presets() -> Any:
    return files("reco_ray") / "presets"
