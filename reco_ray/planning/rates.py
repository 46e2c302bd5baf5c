"""Rates: how long an item keeps a core or a GPU busy, as measured, and for which settings that holds."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reco_ray import storage
from reco_ray.errors import RecoError, reason

# What a stage is counted in.
ITEMS = {
    "embed": "images",
    "index": "images",
    "references": "concepts",
    "segment": "images",
    "label": "images",
    "train": "steps",
}


class Rate(BaseModel):
    """Of a stage with some settings on a kind of device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    preset: str | None = Field(default=None, description="of the run; what counts are the settings")
    device: str = Field(pattern="^(cpu|cuda)$")
    settings: dict[str, Any] = Field(description="the rate holds for these only")
    compute_seconds: float = Field(ge=0, description="of one core (cpu) or one GPU (cuda), an item")
    threads: int = Field(default=1, ge=1, description="of a worker of the run")
    reader_seconds: float = Field(default=0.0, ge=0, description="of one reader, by the clock, an item")
    reader_cpu_seconds: float = Field(default=0.0, ge=0, description="of its processor")
    fixed_seconds: float = Field(default=0.0, ge=0, description="that do not grow: start of workers, models")
    bytes_per_item: float = Field(default=0.0, ge=0, description="of an index without the vectors' codes")
    fixed_bytes: float = Field(default=0.0, ge=0)
    dim: int | None = Field(default=None, ge=1, description="of the vectors that embed makes")
    training_core_seconds: float | None = Field(
        default=None, ge=0, description="of an index: a Tflop of k-means, on one core"
    )
    source: str = Field(description="the runs that were measured")
    machine: str | None = None


def read_rates(file: str) -> list[Rate]:
    """The rates of a file, as `reco-ray rate` prints them.

    Raises:
        RecoError: unreadable, or not a list of rates.
    """
    try:
        return TypeAdapter(list[Rate]).validate_python(yaml.safe_load(storage.read_bytes(file)))
    except (OSError, yaml.YAMLError) as error:
        raise RecoError(
            f"{file}: the rates cannot be read: {reason(error)}: name a file that `reco-ray rate` made with --rates"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecoError(f"{file}: rate{place and ' '}{place}: {first['msg'].lower()}") from error


def as_yaml(rates: list[Rate]) -> str:
    """What `read_rates` reads."""
    entries = [rate.model_dump(exclude_none=False, exclude_defaults=True) for rate in rates]
    return yaml.safe_dump(entries, sort_keys=False, width=110, allow_unicode=True)
