"""Builds references and pseudo-labels and trains a segmenter for each of several vocabularies.

Layout of the output: `concepts/`, `frames/`, and per vocabulary `<name>/references`, `<name>/labels`,
`<name>/segmenter`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from reco_ray.config import Settings
from reco_ray.cosegmentation.stage import build_many_references
from reco_ray.errors import RecoError, UsageError
from reco_ray.files import storage
from reco_ray.outcome import Outcome
from reco_ray.training.label import label_images
from reco_ray.training.label_worker import LabelSet
from reco_ray.training.stage import require_trainer, train_segmenters
from reco_ray.vocabulary import Vocabulary


def train_vocabularies(
    vocabularies: dict[str, Vocabulary],
    index: str,
    images: str,
    out: str,
    settings: Settings,
    without: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Trains a segmenter per vocabulary from an index and unlabelled images, on the connected Ray cluster.

    Args:
        vocabularies: by name.
        index: URI of the index.
        images: URI of the images to train on.
        out: URI of the folder of all that is made.
        settings: of the run.
        without: URIs of images that are left out.

    Yields:
        Outcomes of all stages. A vocabulary that fails in one stage is left out of the next.

    Raises:
        RecoError: two vocabularies are equal, the network cannot be trained, or a stage fails for all vocabularies.
    """
    require_distinct(vocabularies)
    require_trainer(len(vocabularies), settings)
    uris = {name: storage.join(out, name, "references") for name in vocabularies}
    banks: dict[str, str] = {}
    concepts = storage.join(out, "concepts")
    for built in build_many_references(index, vocabularies, uris, settings, concepts):
        if built.manifest is None:
            kind = type(built.error or RecoError())
            yield replace(built, error=kind(f"{built.name}: {built.error}"))
            continue
        banks[built.name] = built.uri
        yield built
    if not banks:
        return
    sets = {name: LabelSet(uri, storage.join(out, name, "labels")) for name, uri in banks.items()}
    yield from label_images(sets, images, storage.join(out, "frames"), settings, without=without)
    labels = {name: one.out for name, one in sets.items()}
    outs = {name: storage.join(out, name, "segmenter") for name in sets}
    yield from train_segmenters(labels, outs, settings, vocabularies)


def require_distinct(vocabularies: dict[str, Vocabulary]) -> None:
    """Raises UsageError if two vocabularies are equal, as one of the runs would be redundant."""
    seen: dict[str, str] = {}
    for name, vocabulary in vocabularies.items():
        key = storage.digest(vocabulary.model_dump(mode="json"))
        if key in seen:
            raise UsageError(f"vocabularies {seen[key]} and {name} are the same: give each once")
        seen[key] = name
