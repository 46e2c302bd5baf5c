"""The plan of a sweep: what is varied, on which images, ranked by which score; checked before any work."""

import json
import random
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import get_args

from reco_ray.config import Settings, load_settings
from reco_ray.contents import IndexContent
from reco_ray.corpus.chosen import open_examples
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.read import list_images
from reco_ray.errors import RecoError, SettingError
from reco_ray.evaluation.benchmark import open_benchmark
from reco_ray.evaluation.check import require_countable
from reco_ray.evaluation.dataset import Dataset
from reco_ray.files import artifacts, storage
from reco_ray.sweeps.sweep_file import VOCABULARY, Score, Sweep, problems, read_sweep
from reco_ray.vocabulary import Vocabulary, load_vocabulary
from reco_ray.vocabulary.curation import curated


@dataclass(frozen=True)
class Trial:
    """One combination of the varied settings.

    Attributes:
        id: Digest of `values`.
        values: Name in the sweep file -> value.
        settings: All settings of the trial.
        vocabulary: The trial's vocabulary.
    """

    id: str
    values: dict[str, object]
    settings: Settings
    vocabulary: Vocabulary


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with its inputs opened.

    Attributes:
        sweep: The sweep file.
        folder: URI of the folder of the file.
        base: Settings before anything is varied.
        vocabularies: Name in the sweep file -> vocabulary; a benchmark's own has the name "".
        images: URIs in the order in which they are scored.
        dataset: Labels of the images, its samples in the same order; None without labels.
        listing: Fingerprint of the images and the corpus.
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
        """URI of the unlabelled images; None if an index is given."""
        return None if self.sweep.corpus is None else _path(self.folder, self.sweep.corpus)

    @property
    def index(self) -> str | None:
        """URI of the index; None if a corpus is given."""
        return None if self.sweep.index is None else _path(self.folder, self.sweep.index)

    @property
    def objective(self) -> Score:
        """The score that trials are ranked by."""
        return self.sweep.objective or ("augmentation_agreement" if self.dataset is None else "miou")

    @property
    def measured(self) -> list[str]:
        """The scores to compute: those that were asked for, and those that cost almost nothing."""
        asked = {self.objective, *self.sweep.measure}
        free = {"seed_agreement", "support_margin", "prediction_entropy"}
        return [name for name in get_args(Score) if name in asked | free]

    @cached_property
    def rungs(self) -> list[int]:
        """Numbers of images at which trials report; the last is all images."""
        count, stopping = len(self.images), self.sweep.early_stopping
        sizes: list[int] = []
        size = count if stopping is None else stopping.first
        while stopping is not None and size < count:
            sizes.append(size)
            size *= stopping.factor
        return [*sizes, count]

    def choices(self) -> list[dict[str, int]]:
        """The trials of a grid or random search; each maps every varied setting to the position of its value."""
        sizes = {key: len(values) for key, values in self.sweep.vary.items()}
        total = prod(sizes.values())
        if self.sweep.search == "grid":
            return [
                dict(zip(sizes, numbers, strict=True)) for numbers in product(*map(range, sizes.values()))
            ]
        drawn = random.Random(self.sweep.seed).sample(range(total), min(self.sweep.trials or total, total))
        return [_mixed_radix(number, sizes) for number in drawn]

    def trial(self, choice: dict[str, int]) -> Trial:
        """The trial of a choice.

        Raises:
            SettingError: If the values contradict each other.
        """
        values = self.values(choice)
        chosen = {key: value for key, value in values.items() if key != VOCABULARY}
        settings = _settings(self.sweep, self.folder, chosen)
        if self.dataset is not None:  # as in evaluate, there is a background only if the benchmark has one
            segmenting = {"background": self.dataset.vocabulary.background}
            settings = settings.model_copy(update={"segment": settings.segment.model_copy(update=segmenting)})
        name = str(values.get(VOCABULARY, next(iter(self.vocabularies))))
        return Trial(storage.digest(values), values, settings, self.vocabularies[name])

    def values(self, choice: dict[str, int]) -> dict[str, object]:
        """The values of a choice, by the names in the sweep file."""
        return {key: values[choice[key]] for key, values in self.sweep.vary.items()}

    def made_from(self) -> dict[str, object]:
        """Everything that determines the trials' figures."""
        return {
            "sweep": self.sweep.model_dump(mode="json"),
            "folder": self.folder,
            "settings": self.base.model_dump(mode="json", exclude={"placement"}),
            "vocabularies": {n: v.model_dump(mode="json") for n, v in self.vocabularies.items()},
            "listing": self.listing,
        }


def open_plan(uri: str, curation: str | None = None) -> SweepPlan:
    """Reads a sweep file and opens its inputs without computing anything.

    Args:
        uri: The sweep file.
        curation: A curation file, in place of that of the sweep file.

    Raises:
        RecoError: If the file cannot be read, a field, setting or value is invalid, data is missing, or a vocabulary
            does not have the benchmark's classes. The message names the field.
    """
    uri = storage.absolute(uri)
    folder = uri.rpartition("/")[0]
    sweep = read_sweep(uri)
    if curation is not None:
        sweep = sweep.model_copy(update={"curation": storage.absolute(curation)})
    try:
        for problem in problems(sweep):
            raise SettingError(problem)
        base = _settings(sweep, folder, {})
        _require_settings(sweep, folder)
        dataset = None
        if sweep.benchmark is not None:
            dataset = open_benchmark(sweep.benchmark, _path(folder, str(sweep.data)))
        vocabularies = {
            name: _curated(sweep, folder, vocabulary, base)
            for name, vocabulary in _vocabularies(sweep, folder, dataset).items()
        }
        images, dataset = _ordered(sweep, folder, dataset, base.image_column)
        if dataset is not None:
            require_countable(dataset, base.segment.max_pixels)
        source = [*images, *_corpus(sweep, folder, base.image_column)]
    except RecoError as error:
        raise type(error)(f"{uri}: {error}") from error
    return SweepPlan(sweep, folder, base, vocabularies, images, dataset, storage.digest(source))


def _require_settings(sweep: Sweep, folder: str) -> None:
    """Checks every value by itself; a contradiction between two values makes only that trial fail."""
    for key, values in sweep.vary.items():
        for value in values if key != VOCABULARY else []:
            _settings(sweep, folder, {key: value})


def _settings(sweep: Sweep, folder: str, chosen: dict[str, object]) -> Settings:
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
            raise SettingError(
                f"{name}: its concepts must be those of {dataset.name}, in the same order: "
                f"{', '.join(dataset.vocabulary.names[:4])}, ..."
            )
    return found or {"": dataset.vocabulary}


def _curated(sweep: Sweep, folder: str, vocabulary: Vocabulary, settings: Settings) -> Vocabulary:
    if sweep.curation is not None:
        vocabulary = curated(vocabulary, _path(folder, sweep.curation))
    return open_examples(vocabulary, settings)


def _ordered(
    sweep: Sweep, folder: str, dataset: Dataset | None, image_column: str | None
) -> tuple[list[str], Dataset | None]:
    """Shuffles the images, so that each rung is a random sample."""
    shuffle = random.Random(sweep.seed)
    if dataset is None:
        images = (
            list_images(_path(folder, str(sweep.images)), image_column=image_column).table["uri"].to_pylist()
        )
        return shuffle.sample(images, min(sweep.sample or len(images), len(images))), None
    samples = shuffle.sample(dataset.samples, min(sweep.sample or len(dataset.samples), len(dataset.samples)))
    return [sample.image for sample in samples], replace(dataset, samples=samples)


def _corpus(sweep: Sweep, folder: str, image_column: str | None) -> list[str]:
    if sweep.corpus is not None:
        return [list_files(_path(folder, sweep.corpus), image_column).fingerprint]
    return [artifacts.read_manifest(_path(folder, str(sweep.index)), IndexContent).made_at]


def _path(folder: str, uri: str) -> str:
    plain = "://" in uri or uri.startswith(("/", "~"))
    return storage.absolute(uri if plain else storage.join(folder, uri))


def _mixed_radix(number: int, sizes: dict[str, int]) -> dict[str, int]:
    """The coordinates of the cell with this number in a grid of these sizes."""
    place = {}
    for key, size in sizes.items():
        number, place[key] = divmod(number, size)
    return place
