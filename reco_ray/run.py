"""The main job: the four stages one after another, each into its own directory, then the report."""

from collections.abc import Iterator

from reco_ray.config import Settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.own_output import mark_output
from reco_ray.corpus.read import list_images
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_references
from reco_ray.report import write_report
from reco_ray.segmentation.stage import segment_images
from reco_ray.storage import Manifest, join
from reco_ray.vocabulary import Vocabulary


def run_all(
    corpus: str, images: str, vocabulary: Vocabulary, out: str, settings: Settings
) -> Iterator[tuple[str, str, Manifest, bool]]:
    """Runs embed, index, reference and segment on the connected Ray cluster and writes `report/index.html`.

    Yields:
        (stage, artifact's URI, its manifest, whether there was anything to do) as each stage ends.

    Raises:
        RecoError: as the stages do; what was finished before stays.
    """
    # Before hours of embedding: are there any at all?
    list_images(images, image_column=settings.image_column)
    mark_output(out)
    embeddings, index = join(out, "embeddings"), join(out, "index")
    references, masks = join(out, "references"), join(out, "masks")
    yield "embed", embeddings, *embed_corpus(corpus, embeddings, settings)
    yield "index", index, *build_index(embeddings, index, settings.index)
    yield "reference", references, *build_references(index, vocabulary, references, settings)
    yield "segment", masks, *segment_images(references, images, masks, settings)
    write_report(references, masks, join(out, "report"))
