"""The benchmarks by name: `benchmarks/<name>.yaml` says where the files lie, which classes there are, and by which ids.

torchvision's readers of some of them are not used: they read local folders only, and do not say which file is missing.
"""

from importlib.resources import files
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict

from reco_ray import storage
from reco_ray.errors import RecoError
from reco_ray.evaluation.confusion import IGNORE
from reco_ray.evaluation.dataset import Dataset, Sample
from reco_ray.evaluation.layout import Layout, Pair, find_pairs
from reco_ray.segmentation.palette import palette
from reco_ray.storage import join
from reco_ray.vocabulary import Concept, Vocabulary, load_vocabulary

BACKGROUND = "background"


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
    """A class that is counted. parts: concepts to look for in its place, each by itself; all count as this class."""

    ids: Ids | None = None
    parts: Concepts = ()


class Benchmark(BaseModel):
    """A benchmark's YAML file. `like: NAME` in it takes over the fields of another one that it does not have itself.

    roots: folders below the data where a download may have put it all; the first that exists counts, as does the first
    layout that fits. classes: in order, or the name of a vocabulary file in the data. ids: the label ids of the classes
    that do not give their own, one each. background: ids of all that is no class, which then is class 0. folders: one a
    class; the label files are binary masks and the folder says of what.
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
    """The benchmarks there are."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")
    )


def load_benchmark(name: str) -> Benchmark:
    """Reads a benchmark's YAML file.

    Raises:
        RecoError: there is no such benchmark.
    """
    if name not in benchmark_names():
        raise RecoError(f"unknown benchmark {name!r}: choose one of {', '.join(benchmark_names())}")
    return Benchmark.model_validate(_fields(name))


def open_benchmark(name: str, data: str) -> Dataset:
    """Opens a benchmark in its official folder layout.

    Raises:
        RecoError: unknown name, or files missing; says which.
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
    """The vocabulary of a benchmark whose classes are its own, without its data.

    Raises:
        RecoError: unknown name, or a benchmark whose classes come with the data.
    """
    benchmark = load_benchmark(name)
    if isinstance(benchmark.classes, str):
        raise RecoError(
            f"benchmark {name}: its classes are those of {benchmark.classes} in the data: give that file"
        )
    return _vocabulary(list(benchmark.classes), benchmark.background)


def _vocabulary(classes: list[BenchmarkClass], background: Ids) -> Vocabulary:
    concepts = [concept for entry in classes for concept in _concepts(entry)]
    return Vocabulary(concepts=tuple(concepts), background=bool(background))


def _concepts(entry: BenchmarkClass) -> tuple[Concept, ...]:
    """What a class is segmented as: itself, or its parts."""
    return entry.parts or (Concept(name=entry.name, synonyms=entry.synonyms, alias=entry.alias),)


def _where(benchmark: Benchmark, name: str, data: str) -> tuple[str, Layout]:
    """The root below the data and the layout that fit."""
    roots = (data if root == "." else join(data, root) for root in benchmark.roots)
    root = next((root for root in roots if storage.exists(root)), data)
    missing = [layout.missing(root) for layout in benchmark.layouts]
    if None not in missing:
        raise RecoError(f"{missing[0]}: not there, but {name} has its files there: is --data right?")
    return root, benchmark.layouts[missing.index(None)]


def _classes(benchmark: Benchmark, root: str) -> tuple[list[BenchmarkClass], Ids]:
    """The classes, and the label ids of the background; from the vocabulary file in the data if there is one."""
    if not isinstance(benchmark.classes, str):
        return list(benchmark.classes), benchmark.background
    uri = join(root, benchmark.classes)
    concepts = load_vocabulary(uri).concepts
    background = (0,) if concepts[0].name == BACKGROUND else ()
    classes = [BenchmarkClass.model_validate({**c.model_dump(), "ids": n}) for n, c in enumerate(concepts)]
    classes = classes[len(background) :]
    if not classes or len(concepts) > IGNORE:
        raise RecoError(f"{uri}: {len(classes)} classes beside the background: 1 to {IGNORE} can be counted")
    return classes, background


def _samples(pairs: list[Pair], folders: tuple[str, ...], pattern: str) -> list[Sample]:
    if not folders:
        return [Sample(pair.image, pair.label) for pair in pairs]
    there = {pair.fields["class"] for pair in pairs}
    for folder in set(folders) ^ there:
        problem = "is of no class" if folder in there else "no such files"
        raise RecoError(
            f"{pattern.replace('{class}', folder)}: {problem}, the classes are {', '.join(folders)}"
        )
    return [Sample(pair.image, pair.label, folders.index(pair.fields["class"])) for pair in pairs]


def _fields(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load((_folder() / f"{name}.yaml").read_text())
    like = fields.pop("like", None)
    return {**_fields(like), **fields} if like else fields


def _folder() -> Any:
    return files("reco_ray") / "evaluation" / "benchmarks"
