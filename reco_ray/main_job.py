"""The main job: four stages in sequence, each with a directory of its own, then the report.

When it is run again, each stage keeps valid results, computes missing ones, and replaces those of other settings or
inputs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from reco_ray.config import Settings
from reco_ray.contents import EmbeddingsContent, IndexContent, MasksContent, ReferencesContent
from reco_ray.corpus.index import build_index
from reco_ray.corpus.own_output import mark_output
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_references
from reco_ray.errors import RecoError, file_error, reason
from reco_ray.files.artifacts import ArtifactWriter, Content
from reco_ray.files.storage import join, local_path
from reco_ray.outcome import Outcome
from reco_ray.segmentation.report import write_report
from reco_ray.segmentation.stage import segment_images
from reco_ray.vocabulary import Vocabulary

_LOCK = ".run.lock"


def run_all(
    corpus: str, images: str, vocabulary: Vocabulary, out: str, settings: Settings
) -> Iterator[Outcome]:
    """Runs embed, index, reference and segment on the connected Ray cluster and writes `report/index.html`.

    Yields:
        The outcome of each stage, when it ends.

    Raises:
        RecoError: a stage failed (finished artifacts are kept), another run writes into `out`, or `out` has other
            content.
    """
    # Fails before hours of embedding if there are no images.
    list_images(images, image_column=settings.image_column)
    mark_output(out)
    embeddings, index = join(out, "embeddings"), join(out, "index")
    references, masks = join(out, "references"), join(out, "masks")
    kinds: dict[str, type[Content]] = {
        embeddings: EmbeddingsContent,
        index: IndexContent,
        references: ReferencesContent,
        masks: MasksContent,
    }
    for place, kind in kinds.items():
        ArtifactWriter(place, kind, {}).stored()  # raises for other content
    with _locked(out):
        yield embed_corpus(corpus, embeddings, settings, renew=True)
        yield build_index(embeddings, index, settings.index, renew=True)
        yield build_references(index, vocabulary, references, settings, renew=True)
        yield segment_images(references, images, masks, settings, renew=True)
        write_report(references, masks, join(out, "report"))


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
