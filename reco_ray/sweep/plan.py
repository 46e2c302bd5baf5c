"""sweep.yaml: what is varied, on which images, and by which score settings are ranked; checked before any work."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reco_ray import storage
from reco_ray.config import Settings, load_settings
from reco_ray.corpus.index import KIND as INDEX_KIND
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import list_images
from reco_ray.errors import RecoError, reason
from reco_ray.evaluation.benchmark import open_benchmark
from reco_ray.evaluation.check import require_countable
from reco_ray.evaluation.dataset import Dataset
from reco_ray.vocabulary import Vocabulary, load_vocabulary

Score = Literal["miou", "seed_agreement", "support_margin", "prediction_entropy", "augmentation_agreement"]
LOWER_IS_BETTER: frozenset[str] = frozenset({"prediction_entropy"})
VOCABULARY = "vocabulary"  # may be varied like a setting
SECTIONS = ("models", "references", "segment")  # whose fields change what is scored


class EarlyStopping(BaseModel):
    """ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), images being the resource.

    A trial is scored on `first` images, then on `factor` times as many, and so on; at each of these rungs it goes on
    only while it is among the best 1 / factor of those that got there before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int = Field(default=32, ge=1)
    factor: int = Field(default=3, ge=2)


class Sweep(BaseModel):
    """The file. Paths in it are relative to its own folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str = "mini"
    settings: str | None = Field(default=None, description="settings file that every trial starts from")
    set: dict[str, Any] = Field(default={}, description="section.field: value, the same in every trial")
    vary: dict[str, Any] = Field(description="section.field, or vocabulary: list of values")
    vocabulary: str | None = None
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


@dataclass(frozen=True)
class Trial:
    """One setting of everything that is varied. id: a digest of `values`."""

    id: str
    values: dict[str, Any]
    settings: Settings
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Plan:
    """A sweep whose inputs were opened.

    images: URIs in the order in which they are scored. dataset: their labels, its samples in the same order. base: the
    settings before anything is varied. vocabularies: by the name they have in the file; the only one may be "".
    listing: a fingerprint of the images and the corpus.
    """

    sweep: Sweep
    folder: str
    base: Settings
    vocabularies: dict[str, Vocabulary]
    images: list[str]
    dataset: Dataset | None
    listing: str

    @property
    def corpus(self) -> str | None:
        """URI of the unlabelled images, if they are to be indexed."""
        return None if self.sweep.corpus is None else _path(self.folder, self.sweep.corpus)

    @property
    def index(self) -> str | None:
        """URI of an index of them, if there is one."""
        return None if self.sweep.index is None else _path(self.folder, self.sweep.index)

    @property
    def objective(self) -> Score:
        """What trials are ranked by."""
        return self.sweep.objective or ("augmentation_agreement" if self.dataset is None else "miou")

    @property
    def measured(self) -> list[str]:
        """The scores that are computed: what costs next to nothing, and what was asked for."""
        asked = {self.objective, *self.sweep.measure}
        free = {"seed_agreement", "support_margin", "prediction_entropy"}
        return [name for name in get_args(Score) if name in asked | free]

    @cached_property
    def rungs(self) -> list[int]:
        """Numbers of images at which trials report, the last being all of them."""
        count, stopping = len(self.images), self.sweep.early_stopping
        sizes: list[int] = []
        size = count if stopping is None else stopping.first
        while stopping is not None and size < count:
            sizes.append(size)
            size *= stopping.factor
        return [*sizes, count]

    def choices(self) -> list[dict[str, int]]:
        """What grid or random search tries: for everything that is varied, the number of its value."""
        sizes = {key: len(values) for key, values in self.sweep.vary.items()}
        total = prod(sizes.values())
        if self.sweep.search == "grid":
            return [
                dict(zip(sizes, numbers, strict=True)) for numbers in product(*map(range, sizes.values()))
            ]
        drawn = random.Random(self.sweep.seed).sample(range(total), min(self.sweep.trials or total, total))
        return [_mixed_radix(number, sizes) for number in drawn]

    def trial(self, choice: dict[str, int]) -> Trial:
        """The settings of a choice.

        Raises:
            RecoError: values that do not go together.
        """
        values = self.values(choice)
        chosen = {key: value for key, value in values.items() if key != VOCABULARY}
        settings = _settings(self.sweep, self.folder, chosen)
        if self.dataset is not None:  # as for evaluate: a background only where the benchmark has one
            segmenting = {"background": self.dataset.vocabulary.background}
            settings = settings.model_copy(update={"segment": settings.segment.model_copy(update=segmenting)})
        name = str(values.get(VOCABULARY, next(iter(self.vocabularies))))
        return Trial(identity(values), values, settings, self.vocabularies[name])

    def values(self, choice: dict[str, int]) -> dict[str, Any]:
        """What a choice chooses, by the names in the file."""
        return {key: values[choice[key]] for key, values in self.sweep.vary.items()}

    def made_from(self) -> dict[str, Any]:
        """All that determines the trials' figures."""
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "folder": self.folder,
            "settings": self.base.model_dump(mode="json", exclude={"placement"}),
            "vocabularies": {n: v.model_dump(mode="json") for n, v in self.vocabularies.items()},
            "listing": self.listing,
        }


def identity(values: dict[str, Any]) -> str:
    """The id of the trial of these values."""
    return storage.digest(values)


def open_plan(uri: str) -> Plan:
    """Reads a sweep file and opens what it names; nothing is computed.

    Raises:
        RecoError: an unreadable file, an unknown field, setting, value or search, nothing to vary, missing data,
            vocabularies that do not fit the benchmark; names the field.
    """
    uri = storage.absolute(uri)
    folder = uri.rpartition("/")[0]
    sweep = _read(uri)
    try:
        for problem in _problems(sweep):
            raise RecoError(problem)
        base = _settings(sweep, folder, {})
        _require_settings(sweep, folder)
        dataset = None
        if sweep.benchmark is not None:
            dataset = open_benchmark(sweep.benchmark, _path(folder, str(sweep.data)))
        vocabularies = _vocabularies(sweep, folder, dataset)
        images, dataset = _ordered(sweep, folder, dataset, base.image_column)
        if dataset is not None:
            require_countable(dataset, base.segment.max_pixels)
        source = [*images, *_corpus(sweep, folder, base.image_column)]
    except RecoError as error:
        raise RecoError(f"{uri}: {error}") from error
    return Plan(sweep, folder, base, vocabularies, images, dataset, storage.digest(source))


def _read(uri: str) -> Sweep:
    try:
        fields = yaml.safe_load(storage.read_bytes(uri))
    except (OSError, yaml.YAMLError) as error:
        raise RecoError(f"{uri}: the sweep cannot be read: {reason(error)}") from error
    if not isinstance(fields, dict):
        raise RecoError(f"{uri}: expected a mapping such as 'vary: {{references.exemplars: [8, 16]}}'")
    try:
        return Sweep.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        raise RecoError(
            f"{uri}: {place}: {'there is no such field' if unknown else first['msg'].lower()}"
        ) from error


def _problems(sweep: Sweep) -> Iterator[str]:
    """What is wrong with the file itself."""
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


def _require_settings(sweep: Sweep, folder: str) -> None:
    """Every value by itself; what does not go together with another one is a trial that fails."""
    for key, values in sweep.vary.items():
        for value in values if key != VOCABULARY else []:
            _settings(sweep, folder, {key: value})


def _settings(sweep: Sweep, folder: str, chosen: dict[str, Any]) -> Settings:
    file = None if sweep.settings is None else _path(folder, sweep.settings)
    overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in (sweep.set | chosen).items()]
    return load_settings(sweep.preset, file, overrides)


def _vocabularies(sweep: Sweep, folder: str, dataset: Dataset | None) -> dict[str, Vocabulary]:
    names = sweep.vary.get(VOCABULARY) or ([sweep.vocabulary] if sweep.vocabulary is not None else [])
    found = {str(name): load_vocabulary(_path(folder, str(name))) for name in names}
    if dataset is None:
        return found
    for name, vocabulary in found.items():
        # The labels' classes are counted by position, so only words, context and aliases may differ.
        if vocabulary.names != dataset.vocabulary.names:
            raise RecoError(
                f"{name}: its concepts must be those of {dataset.name}, in the same order: "
                f"{', '.join(dataset.vocabulary.names[:4])}, ..."
            )
    return found or {"": dataset.vocabulary}


def _ordered(
    sweep: Sweep, folder: str, dataset: Dataset | None, image_column: str | None
) -> tuple[list[str], Dataset | None]:
    """The images in an order of chance, so that each rung is a fair sample."""
    shuffle = random.Random(sweep.seed)
    if dataset is None:
        images = (
            list_images(_path(folder, str(sweep.images)), image_column=image_column).table["uri"].to_pylist()
        )
        return shuffle.sample(images, min(sweep.sample or len(images), len(images))), None
    samples = shuffle.sample(dataset.samples, min(sweep.sample or len(dataset.samples), len(dataset.samples)))
    return [sample.image for sample in samples], replace(dataset, samples=samples)


def _corpus(sweep: Sweep, folder: str, image_column: str | None) -> list[str]:
    """What identifies the corpus."""
    if sweep.corpus is not None:
        return [list_files(_path(folder, sweep.corpus), image_column).fingerprint]
    return [storage.read_manifest(_path(folder, str(sweep.index)), INDEX_KIND).made_at]


def _path(folder: str, uri: str) -> str:
    plain = "://" in uri or uri.startswith(("/", "~"))
    return storage.absolute(uri if plain else storage.join(folder, uri))


def _mixed_radix(number: int, sizes: dict[str, int]) -> dict[str, int]:
    """The place of a number in a grid of these sizes."""
    place = {}
    for key, size in sizes.items():
        number, place[key] = divmod(number, size)
    return place
