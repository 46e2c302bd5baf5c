"""Options of a server, as plain data that can be sent to all replicas."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reco_ray.config import Settings, load_settings
from reco_ray.errors import SettingError
from reco_ray.files.storage import absolute


class _OptionsModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_OptionsModel):
    """Limits of a request and of the queue."""

    bytes: int = Field(default=20_000_000, ge=1_000, description="of a request's body")
    held: int = Field(
        default=500_000_000, ge=1_000, description="of all bodies in memory, per ingress replica"
    )
    pixels: int = Field(default=50_000_000, ge=1, le=178_956_970, description="of an image, by its header")
    concepts: int = Field(default=100, ge=1, le=65_535, description="of a request or a vocabulary")
    concept_length: int = Field(default=100, ge=1, le=100, description="characters of a concept's name")
    batch: int = Field(default=16, ge=1, description="images of one request")
    max_side: int = Field(default=2048, ge=16, description="of an answer's mask, pixels")
    seconds: float = Field(default=60, gt=0, description="until a request is answered")
    queue: int = Field(default=64, ge=1, description="images waiting or computed, per ingress replica")
    rate: float = Field(
        default=20, gt=0, description="requests (or images) a second and key, per ingress replica"
    )
    burst: int = Field(default=60, ge=1, description="of them at once")
    vocabularies: int = Field(default=100, ge=1, description="of one key")
    own_examples: int = Field(default=64, ge=0, description="own example images of a vocabulary")
    cached_concepts: int = Field(default=10_000, ge=1, description="kept on disk outside vocabularies")


class Scale(_OptionsModel):
    """Number and size of the replicas; Serve scales between the bounds."""

    ingress: tuple[int, int] = Field(default=(1, 1), description="least and most replicas that talk HTTP")
    models: tuple[int, int] = Field(default=(1, 1), description="least and most replicas with the models")
    segmenters: tuple[int, int] = Field(default=(1, 1), description="the same, with trained segmenters")
    gpus: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of a GPU per replica with models; None = 1, or 0.5 with trained segmenters",
    )
    lanes: int | None = Field(
        default=None, ge=1, description="batches computed at once in a replica; None = one a core, at most 4"
    )
    threads: int = Field(default=1, ge=1, description="torch threads a batch")
    batch: int = Field(default=4, ge=1, description="images of one encoder pass, at most; larger on GPUs")
    segmenter_bytes: int = Field(
        default=2_000_000_000, ge=1, description="weights of trained segmenters that a replica keeps loaded"
    )


class ServeOptions(_OptionsModel):
    """Options of `reco-ray serve`, and `args` of serve/config.yaml."""

    preset: str = "mini"
    settings: str | None = Field(default=None, description="YAML file whose fields win over the preset's")
    set: list[str] = Field(default=[], description="section.field=value, wins over both")
    index: str | None = Field(default=None, description="index artifact that concepts are looked up in")
    state: str = Field(default="reco-serve", description="directory of vocabularies and cached references")
    segmenters: dict[str, str] = Field(default={}, description="name -> artifact of a trained segmenter")
    examples: str | None = Field(default=None, description="images to try on the page")
    keys: str | None = Field(default=None, description="file of `name sha256` lines, one a key")
    label_studio: str | None = Field(
        default=None, description="address of the Label Studio whose images may be fetched"
    )
    fetch: list[str] = Field(
        default=[], description="further addresses below which images of annotation tasks may be fetched"
    )
    limits: Limits = Limits()
    scale: Scale = Scale()

    def resolved(self) -> "ServeOptions":
        """A copy with absolute paths, since replicas run in other directories."""
        places = {
            name: absolute(value)
            for name in ("settings", "index", "state", "examples", "keys")
            if (value := getattr(self, name)) is not None
        }
        segmenters = {name: absolute(uri) for name, uri in self.segmenters.items()}
        return self.model_copy(update={**places, "segmenters": segmenters})

    def load(self) -> Settings:
        """The settings of models and stages; raises as `load_settings` does."""
        return load_settings(self.preset, self.settings, self.set)


def split_overrides(overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits `--set` values into `limits` and `scale` of a server, and overrides of the stages' settings.

    Raises:
        SettingError: unknown limit, or a value out of range.
    """
    own: dict[str, dict[str, Any]] = {"limits": {}, "scale": {}}
    rest = []
    for override in overrides:
        section, dot, tail = override.partition(".")
        field, equals, text = tail.partition("=")
        if section in own and dot and equals:
            own[section][field] = yaml.safe_load(text)
        else:
            rest.append(override)
    try:
        return {"limits": Limits(**own["limits"]), "scale": Scale(**own["scale"])}, rest
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"--set {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
