"""Which images show a concept: the corpus images nearest to its words, all concepts in one search."""

import numpy as np
import pyarrow as pa
import torch

from reco_ray.corpus.index import CorpusIndex


def retrieve(index: CorpusIndex, names: list[str], text_embeddings: torch.Tensor, k: int) -> pa.Table:
    """The k exemplars of every concept.

    Args:
        index: over the corpus.
        names: m concepts.
        text_embeddings: (m, d) unit rows of the retrieval model.
        k: exemplars a concept.

    Returns:
        `concept`, `rank` (from 0), `image_id`, `uri`, `similarity` (cosine); k rows a concept, in the order of `names`.

    Raises:
        RecoError: k is larger than the corpus.
    """
    similarities, rows = index.search(text_embeddings.cpu().numpy(), k)
    found = index.images.take(rows)
    return pa.table(
        {
            "concept": pa.array(np.repeat(np.array(names, dtype=object), k), pa.string()),
            "rank": pa.array(np.tile(np.arange(k, dtype=np.int32), len(names))),
            "image_id": found["image_id"],
            "uri": found["uri"],
            "similarity": pa.array(similarities.reshape(-1).astype(np.float32)),
        }
    )
