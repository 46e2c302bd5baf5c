"""Rates: the measured time that an item occupies a core or a GPU, and the settings it was measured with."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reco_ray.errors import UnreadableError, file_error, reason
from reco_ray.files import storage

# The items of each stage.
ITEMS = {
    "embed": "images",
    "index": "images",
    "references": "concepts",
    "segment": "images",
    "label": "images",
    "train": "steps",
    "segment-trained": "images",
}


class Rate(BaseModel):
    """The rate of a stage with some settings on a kind of device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    preset: str | None = Field(default=None, description="preset of the run, for information")
    device: str = Field(pattern="^(cpu|cuda)$")
    settings: dict[str, Any] = Field(description="settings for which the rate is valid")
    compute_seconds: float = Field(ge=0, description="seconds of one core (cpu) or one GPU (cuda) per item")
    threads: int = Field(default=1, ge=1, description="threads of a worker of the run")
    reader_seconds: float = Field(default=0.0, ge=0, description="wall-clock seconds of one reader per item")
    reader_cpu_seconds: float = Field(default=0.0, ge=0, description="CPU seconds of a reader per item")
    fixed_seconds: float = Field(default=0.0, ge=0, description="start of workers, loading of models")
    bytes_per_item: float = Field(default=0.0, ge=0, description="for an index without the codes")
    fixed_bytes: float = Field(default=0.0, ge=0)
    dim: int | None = Field(default=None, ge=1, description="dimensions of the embeddings")
    training_core_seconds: float | None = Field(
        default=None, ge=0, description="seconds of one core per Tflop of k-means, for an index"
    )
    source: str = Field(description="the measured runs")
    machine: str | None = None


def read_rates(file: str) -> list[Rate]:
    """Reads the rates of a file written by `reco-ray rate`.

    Raises:
        RecoError: If it cannot be read or is not a list of rates.
    """
    try:
        return TypeAdapter(list[Rate]).validate_python(yaml.safe_load(storage.read_bytes(file)))
    except (OSError, yaml.YAMLError) as error:
        raise file_error(
            f"{file}: the rates cannot be read: {reason(error)}: name a file that `reco-ray rate` made with --rates",
            error,
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UnreadableError(f"{file}: rate{place and ' '}{place}: {first['msg'].lower()}") from error


def as_yaml(rates: list[Rate]) -> str:
    """Formats rates for `read_rates`."""
    entries = [rate.model_dump(exclude_none=False, exclude_defaults=True) for rate in rates]
    return yaml.safe_dump(entries, sort_keys=False, width=110, allow_unicode=True)
