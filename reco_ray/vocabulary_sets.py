"""Several vocabularies by name: files, folders of files, and those of benchmarks."""

from reco_ray.errors import UsageError
from reco_ray.files.storage import join, list_names
from reco_ray.vocabulary import Vocabulary, load_vocabulary
from reco_ray.vocabulary.curation import curated
from reco_ray.vocabulary.list_formats import SUFFIXES

_BENCHMARK = "benchmark:"


def load_vocabularies(sources: list[str]) -> dict[str, Vocabulary]:
    """Vocabulary files, or all of a folder, by the files' names without suffix; `benchmark:NAME` for a benchmark's.

    Raises:
        UsageError: two have the same name.
        RecoError: one cannot be read.
    """
    found: dict[str, Vocabulary] = {}
    for source in sources:
        for name, uri in _named(source):
            if name in found:
                raise UsageError(f"two vocabularies are named {name!r}: rename one, results are kept by name")
            found[name] = _load(uri)
    return found


def curate(vocabularies: dict[str, Vocabulary], curations: list[str]) -> dict[str, Vocabulary]:
    """The vocabularies with the images that curation files choose.

    Args:
        vocabularies: by name.
        curations: files; `NAME=FILE` for one of several vocabularies.

    Raises:
        UsageError: it is not clear which vocabulary a file is for, or two are for the same.
        RecoError: as `curated`.
    """
    found = dict(vocabularies)
    seen = set()
    for text in curations:
        name, equals, uri = text.partition("=")
        if not (equals and name in vocabularies):
            if len(vocabularies) != 1:
                names = ", ".join(list(vocabularies)[:5])
                raise UsageError(
                    f"--curation {text}: say for which vocabulary it is, as NAME=FILE, of {names}"
                )
            name, uri = next(iter(vocabularies)), text
        if name in seen:
            raise UsageError(f"--curation {text}: vocabulary {name!r} has one already")
        seen.add(name)
        found[name] = curated(found[name], uri)
    return found


def _named(source: str) -> list[tuple[str, str]]:
    if source.startswith(_BENCHMARK):
        return [(source.removeprefix(_BENCHMARK), source)]
    if source.lower().endswith(SUFFIXES):
        uris = [source]
    else:
        inside = [name for name in list_names(source) if name.lower().endswith(SUFFIXES)]
        uris = [join(source, name) for name in inside] or [source]
    return [(uri.rpartition("/")[2].rpartition(".")[0], uri) for uri in uris]


def _load(uri: str) -> Vocabulary:
    if not uri.startswith(_BENCHMARK):
        return load_vocabulary(uri)
    from reco_ray.evaluation.benchmark import benchmark_vocabulary

    return benchmark_vocabulary(uri.removeprefix(_BENCHMARK))
