"""The main job: four stages in sequence, each with a directory of its own, then the report; and a segmenter, if wished.

When it is run again, each stage keeps valid results, computes missing ones, and replaces those of other settings or
inputs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from reco_ray.config import Settings
from reco_ray.contents import (
    EmbeddingsContent,
    FramesContent,
    IndexContent,
    LabelsContent,
    MasksContent,
    ReferencesContent,
    SegmenterContent,
)
from reco_ray.corpus.index import build_index
from reco_ray.corpus.own_output import mark_output
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_references
from reco_ray.errors import RecoError, file_error, reason
from reco_ray.files.artifacts import ArtifactWriter, Content, read_manifest
from reco_ray.files.storage import join, local_path
from reco_ray.outcome import Outcome
from reco_ray.segmentation.report import write_report
from reco_ray.segmentation.stage import segment_images
from reco_ray.vocabulary import Vocabulary

_LOCK = ".run.lock"
# Folders in the output of the main job, and what they hold.
_FOLDERS: dict[str, type[Content]] = {
    "embeddings": EmbeddingsContent,
    "index": IndexContent,
    "references": ReferencesContent,
    "masks": MasksContent,
}
_TRAINED: dict[str, type[Content]] = {
    "frames": FramesContent,
    "labels": LabelsContent,
    "segmenter": SegmenterContent,
    "segmenter-masks": MasksContent,
}


def run_all(
    corpus: str, images: str, vocabulary: Vocabulary, out: str, settings: Settings
) -> Iterator[Outcome]:
    """Runs the main job on the connected Ray cluster.

    The stages embed, index, reference and segment, and the page `report/index.html`. With `train.in_run` also label and
    train, masks of the segmenter for the same images, and a page about these, `segmenter-report/index.html`.

    Yields:
        The outcome of each stage, when it ends.

    Raises:
        RecoError: a stage failed (finished artifacts are kept), another run writes into `out`, or `out` has other
            content.
    """
    # Fails before hours of embedding if there are no images, or the segmenter cannot be trained.
    listing = list_images(images, image_column=settings.image_column)
    train = settings.train.in_run
    if train:
        _require_trainable(vocabulary, listing.table.num_rows, settings)
    mark_output(out)
    for name, kind in (_FOLDERS | _TRAINED if train else _FOLDERS).items():
        ArtifactWriter(join(out, name), kind, {}).stored()  # raises for other content
    embeddings, index, references, masks = (join(out, name) for name in _FOLDERS)
    with _locked(out):
        yield embed_corpus(corpus, embeddings, settings, renew=True)
        yield build_index(embeddings, index, settings.index, renew=True)
        yield build_references(index, vocabulary, references, settings, renew=True)
        yield segment_images(references, images, masks, settings, renew=True)
        write_report(masks, read_manifest(masks, MasksContent), join(out, "report"))
        if train:
            yield from _train(references, images, out, settings)


def _require_trainable(vocabulary: Vocabulary, images: int, settings: Settings) -> None:
    from reco_ray.training.label import require_few_labels
    from reco_ray.training.stage import require_trainer

    require_few_labels("run", vocabulary, settings)
    require_trainer(1, settings)
    if images < 2:
        raise RecoError(
            "a segmenter is trained on two images at least, and --images has one: name a folder of more"
        )


def _train(references: str, images: str, out: str, settings: Settings) -> Iterator[Outcome]:
    """Labels the images, trains a segmenter on them, and segments them with it."""
    from reco_ray.training.label import label_images
    from reco_ray.training.label_worker import LabelSet
    from reco_ray.training.segment import choose_segmenters, segment_trained
    from reco_ray.training.stage import train_segmenters

    frames, labels, segmenter, masks = (join(out, name) for name in _TRAINED)
    sets = {"segmenter": LabelSet(references, labels)}
    yield from label_images(sets, images, frames, settings, renew=True)
    (trained,) = train_segmenters({"segmenter": labels}, {"segmenter": segmenter}, settings, renew=True)
    if trained.error is not None:
        raise trained.error
    yield trained
    of_trained = settings.of_trained()
    chosen = choose_segmenters({"segmenter": segmenter}, of_trained)
    yield from segment_trained(chosen, images, [masks], of_trained, renew=True)
    page = join(out, "segmenter-report")
    write_report(masks, read_manifest(masks, MasksContent), page, references)


@contextmanager
def _locked(out: str) -> Iterator[None]:
    """Locks a local directory against other runs on this machine; stores have no locks.

    The operating system releases the lock of a killed process.
    """
    path = local_path(out)
    if path is None:
        yield
        return
    try:
        os.makedirs(path, exist_ok=True)
        lock = FileLock(join(path, _LOCK), timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RecoError(
            f"{out}: another reco-ray run is writing there: wait until it ends, or choose another --out"
        ) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise file_error(f"{out}: cannot be written: {reason(error)}", error, RecoError) from error
    try:
        yield
    finally:
        lock.release()
