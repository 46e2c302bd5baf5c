"""The main job: the four stages one after another, each into its own directory, then the report."""

from collections.abc import Iterator

from reco_ray.config import Settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.own_output import mark_output
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import STAGE, build_references
from reco_ray.outcome import Outcome
from reco_ray.report import write_report
from reco_ray.segmentation.stage import segment_images
from reco_ray.storage import join
from reco_ray.vocabulary import Vocabulary


def run_all(
    corpus: str, images: str, vocabulary: Vocabulary, out: str, settings: Settings
) -> Iterator[Outcome]:
    """Runs embed, index, reference and segment on the connected Ray cluster and writes `report/index.html`.

    Yields:
        What became of each stage's artifact, as it ends.

    Raises:
        RecoError: as the stages do; what was finished before stays.
    """
    # Before hours of embedding: are there any at all?
    list_images(images, image_column=settings.image_column)
    mark_output(out)
    embeddings, index = join(out, "embeddings"), join(out, "index")
    references, masks = join(out, "references"), join(out, "masks")
    yield Outcome("embed", embeddings, *embed_corpus(corpus, embeddings, settings))
    yield Outcome("index", index, *build_index(embeddings, index, settings.index))
    yield Outcome(STAGE, references, *build_references(index, vocabulary, references, settings))
    yield Outcome("segment", masks, *segment_images(references, images, masks, settings))
    write_report(references, masks, join(out, "report"))
