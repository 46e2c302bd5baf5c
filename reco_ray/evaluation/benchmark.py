"""Benchmarks by name: `benchmarks/<name>.yaml` describes the folder layout, the classes and their label ids.

torchvision's data sets are not used because they read local folders only and do not name a missing file.
"""

from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from reco_ray.errors import MissingError, SettingError, UnreadableError
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import BACKGROUND, Dataset, Sample
from reco_ray.evaluation.layout import Layout, Pair, find_pairs
from reco_ray.files import storage
from reco_ray.files.storage import join
from reco_ray.segmentation.palette import palette
from reco_ray.vocabulary import Concept, Vocabulary, load_vocabulary


def _parse_ids(value: int | str) -> tuple[int, ...]:
    """ "0-2, 255" -> 0, 1, 2, 255."""
    ids: list[int] = []
    for part in str(value).split(","):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return tuple(ids)


def _named(value: Any) -> Any:
    return [{"name": entry} if isinstance(entry, str) else entry for entry in value]


Ids = Annotated[tuple[int, ...], BeforeValidator(_parse_ids)]
Words = Annotated[tuple[str, ...], BeforeValidator(str.split)]
Concepts = Annotated[tuple[Concept, ...], BeforeValidator(_named)]


class BenchmarkClass(Concept):
    """A class of a benchmark.

    Attributes:
        ids: Label ids of the class; None to take the next of the benchmark's `ids`.
        parts: Concepts that are segmented separately in place of the class and are all counted as it.
    """

    ids: Ids | None = None
    parts: Concepts = ()


class Benchmark(BaseModel):
    """The fields of a benchmark's YAML file. `like: NAME` inherits the fields of another benchmark.

    Attributes:
        roots: Folders below the data in which a download may be; the first that exists is used.
        layouts: Folder layouts; the first that fits is used.
        classes: The classes in order, or the name of a vocabulary file in the data.
        ids: Label ids of the classes that have no `ids` of their own, one each.
        ignore: Label ids of pixels that are not counted.
        background: Label ids of pixels of no class; if given, the background is class 0.
        first_channel: Whether label files are RGB with the ids in the red channel.
        folders: One per class if the label files are binary masks, whose folder determines the class.
        colours: Hexadecimal RGB of each class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    roots: tuple[str, ...]
    layouts: tuple[Layout, ...]
    classes: str | Annotated[tuple[BenchmarkClass, ...], BeforeValidator(_named)]
    ids: Ids | None = None
    ignore: Ids = ()
    background: Ids = ()
    first_channel: bool = False
    folders: Words = ()
    colours: Words = ()


def benchmark_names() -> list[str]:
    """The names of all benchmarks."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")
    )


def load_benchmark(name: str) -> Benchmark:
    """Reads a benchmark's YAML file.

    Raises:
        SettingError: If there is no such benchmark.
    """
    if name not in benchmark_names():
        raise SettingError(f"unknown benchmark {name!r}: choose one of {', '.join(benchmark_names())}")
    return Benchmark.model_validate(_fields(name))


def open_benchmark(name: str, data: str) -> Dataset:
    """Opens a benchmark in its official folder layout.

    Raises:
        RecoError: If the name is unknown or a file is missing; the message names it.
    """
    benchmark = load_benchmark(name)
    root, layout = _where(benchmark, name, data)
    classes, background = _classes(benchmark, root)
    names = [*([BACKGROUND] if background else []), *(entry.name for entry in classes)]
    label_ids = dict.fromkeys(benchmark.ignore, IGNORE) | dict.fromkeys(background, 0)
    class_of = [0] if background else []
    positional = iter(benchmark.ids or range(len(classes)))
    for number, entry in enumerate(classes, start=len(names) - len(classes)):
        class_of += [number] * len(_concepts(entry))
        label_ids |= dict.fromkeys(entry.ids or (next(positional),), number)
    colours = palette(len(names), background=bool(background))
    if benchmark.colours:
        colours[-len(classes) :] = [list(bytes.fromhex(colour)) for colour in benchmark.colours]
    return Dataset(
        name=name,
        classes=names,
        vocabulary=_vocabulary(classes, background),
        class_of=class_of,
        samples=_samples(find_pairs(root, layout), benchmark.folders, join(root, layout.labels)),
        label_ids=label_ids,
        colours=colours,
        first_channel=benchmark.first_channel,
    )


def benchmark_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a benchmark, without its data.

    Raises:
        SettingError: If the name is unknown, or the classes are defined by a file in the data.
    """
    benchmark = load_benchmark(name)
    if isinstance(benchmark.classes, str):
        raise SettingError(
            f"benchmark {name}: its classes are those of {benchmark.classes} in the data: give that file"
        )
    return _vocabulary(list(benchmark.classes), benchmark.background)


def _vocabulary(classes: list[BenchmarkClass], background: Ids) -> Vocabulary:
    concepts = [concept for entry in classes for concept in _concepts(entry)]
    return Vocabulary(concepts=tuple(concepts), background=bool(background))


def _concepts(entry: BenchmarkClass) -> tuple[Concept, ...]:
    """The concepts that are segmented for a class: its parts, or the class itself."""
    return entry.parts or (Concept(name=entry.name, synonyms=entry.synonyms, alias=entry.alias),)


def _where(benchmark: Benchmark, name: str, data: str) -> tuple[str, Layout]:
    """The URI of the root below the data, and the layout, that fit."""
    roots = (data if root == "." else join(data, root) for root in benchmark.roots)
    root = next((root for root in roots if storage.exists(root)), data)
    missing = [layout.missing(root) for layout in benchmark.layouts]
    if None not in missing:
        raise MissingError(f"{missing[0]}: does not exist, but {name} has its files there: check --data")
    return root, benchmark.layouts[missing.index(None)]


def _classes(benchmark: Benchmark, root: str) -> tuple[list[BenchmarkClass], Ids]:
    """The classes, from a vocabulary file in the data if named, and the label ids of the background."""
    if not isinstance(benchmark.classes, str):
        return list(benchmark.classes), benchmark.background
    uri = join(root, benchmark.classes)
    concepts = load_vocabulary(uri).concepts
    background = (0,) if concepts[0].name == BACKGROUND else ()
    classes = [BenchmarkClass.model_validate({**c.model_dump(), "ids": n}) for n, c in enumerate(concepts)]
    classes = classes[len(background) :]
    if not classes or len(concepts) > IGNORE:
        raise UnreadableError(
            f"{uri}: {len(classes)} classes beside the background: 1 to {IGNORE} can be counted"
        )
    return classes, background


def _samples(pairs: list[Pair], folders: tuple[str, ...], pattern: str) -> list[Sample]:
    if not folders:
        return [Sample(pair.image, pair.label) for pair in pairs]
    there = {pair.fields["class"] for pair in pairs}
    for folder in set(folders) ^ there:
        problem = "belongs to no class" if folder in there else "no such files"
        raise UnreadableError(
            f"{pattern.replace('{class}', folder)}: {problem}, the classes are {', '.join(folders)}"
        )
    return [Sample(pair.image, pair.label, folders.index(pair.fields["class"])) for pair in pairs]


def _fields(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((_folder() / f"{name}.yaml").read_text())
    like = fields.pop("like", None)
    return {**_fields(like), **fields} if like else fields


def _folder() -> Any:
    return files("reco_ray") / "evaluation" / "benchmarks"
