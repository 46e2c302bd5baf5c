"""The sweep file `sweep.yaml`: its fields, and the checks that need no other file."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reco_ray.errors import SettingError, file_error, reason
from reco_ray.files import storage

Score = Literal["miou", "seed_agreement", "support_margin", "prediction_entropy", "augmentation_agreement"]
LOWER_IS_BETTER: frozenset[str] = frozenset({"prediction_entropy"})
VOCABULARY = "vocabulary"  # can be varied like a setting
SECTIONS = ("models", "references", "segment")  # sections whose fields influence the scores


class EarlyStopping(BaseModel):
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), images being the resource.

    A trial is scored on `first` images, then on `factor` times as many, and so on. It continues past such a rung only
    if it is among the best 1 / factor of the trials that reached the rung so far.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(default=32, ge=1)
    factor: int = Field(default=3, ge=2)


class Sweep(BaseModel):
    """The fields of a sweep file. Relative paths are relative to the file's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "mini"
    settings: str | None = Field(default=None, description="settings file that every trial starts from")
    set: dict[str, Any] = Field(default={}, description="section.field: value, the same in every trial")
    vary: dict[str, Any] = Field(description="section.field, or vocabulary: list of values")
    vocabulary: str | None = None
    curation: str | None = Field(
        default=None, description="file of images to reject, pin or add, for every vocabulary"
    )
    corpus: str | None = Field(
        default=None, description="unlabelled images that references are retrieved from"
    )
    index: str | None = Field(default=None, description="an index of them, in place of corpus")
    images: str | None = Field(default=None, description="unlabelled images to score on")
    benchmark: str | None = Field(default=None, description="a labelled data set in their place, with data")
    data: str | None = None
    sample: int | None = Field(default=None, ge=1, description="score on this many of the images; None = all")
    objective: Score | None = Field(
        default=None, description="what to rank by; None = miou with labels, augmentation_agreement without"
    )
    measure: tuple[Score, ...] = Field(default=(), description="what else to compute; not ranked by")
    search: Literal["grid", "random", "optuna"] = "grid"
    trials: int | None = Field(
        default=None, ge=1, description="how many settings a random or optuna search tries"
    )
    early_stopping: EarlyStopping | None = None
    seed: int = 0


def read_sweep(uri: str) -> Sweep:
    """Reads a sweep file.

    Raises:
        RecoError: If it cannot be read, or a field is unknown or of the wrong type.
    """
    try:
        fields = yaml.safe_load(storage.read_bytes(uri))
    except (OSError, yaml.YAMLError) as error:
        raise file_error(f"{uri}: the sweep cannot be read: {reason(error)}", error) from error
    if not isinstance(fields, dict):
        raise SettingError(f"{uri}: expected a mapping such as 'vary: {{references.exemplars: [8, 16]}}'")
    try:
        return Sweep.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        raise SettingError(
            f"{uri}: {place}: {'there is no such field' if unknown else first['msg'].lower()}"
        ) from error


def problems(sweep: Sweep) -> Iterator[str]:
    """Yields a message for every contradiction between the fields."""
    if (sweep.corpus is None) == (sweep.index is None):
        yield "give either corpus with unlabelled images or index with an index of them"
    if (sweep.images is None) == (sweep.benchmark is None):
        yield "give either images to score on without labels or benchmark with data"
    if (sweep.benchmark is None) != (sweep.data is None):
        yield "benchmark and data: give both or neither"
    if not sweep.vary:
        yield "vary: nothing to vary"
    for key, values in sweep.vary.items():
        if not isinstance(values, list) or not values:
            yield f"vary.{key}: expected a list of at least one value, got {json.dumps(values, default=str)}"
            return
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            yield f"vary.{key}: a value is given twice"
        if key in sweep.set:
            yield f"{key}: both in set and in vary"
    for key in (*sweep.vary, *sweep.set):
        if key != VOCABULARY and key.partition(".")[0] not in SECTIONS:
            yield f"{key}: only fields of {', '.join(SECTIONS)} change what a sweep scores"
    if VOCABULARY in sweep.set:
        yield "set.vocabulary: name it as vocabulary, beside set"
    if VOCABULARY in sweep.vary and sweep.vocabulary is not None:
        yield "vocabulary: both given and varied"
    if sweep.benchmark is None:
        if "miou" in (sweep.objective, *sweep.measure):
            yield "miou: needs labels, give benchmark and data"
        if VOCABULARY not in sweep.vary and sweep.vocabulary is None:
            yield "vocabulary: name the file with the concepts"
    if (sweep.search == "grid") != (sweep.trials is None):
        yield (
            "trials: a grid tries everything, leave it out"
            if sweep.search == "grid"
            else f"trials: say how many settings a {sweep.search} search may try"
        )
    if sweep.search == "optuna" and find_spec("optuna") is None:
        yield 'search: optuna is not installed: pip install "reco-ray[sweep]"'
