"""Retrieval: the images of the corpus nearest to the text embeddings of concepts."""

import numpy as np
import pyarrow as pa
import torch

from reco_ray.corpus.index import CorpusIndex


def retrieve(index: CorpusIndex, names: list[str], text_embeddings: torch.Tensor, k: int) -> pa.Table:
    """Retrieves the k exemplars of every concept in one search.

    Args:
        index: of the corpus.
        names: m concepts.
        text_embeddings: (m, d) unit rows of the retrieval model.
        k: exemplars per concept.

    Returns:
        `concept`, `rank` (from 0), `image_id`, `uri`, `similarity` (cosine); k rows per concept, in the order of
        `names`.

    Raises:
        SettingError: the corpus has fewer than k images.
    """
    similarities, rows = index.search_distinct(text_embeddings.cpu().numpy(), k)
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
