"""The index over a corpus: nearest images to an embedding, by cosine, with FAISS (Douze et al., 2024).

`choice` picks the kind by the corpus' size, `vectors` reads embeddings file by file, `build` trains once and adds
shards in parallel, `recall` says how far the result is from exact search, `search` opens it.
"""

from reco_ray.corpus.index.build import build_index
from reco_ray.corpus.index.choice import Plan, plan_index
from reco_ray.corpus.index.library import KIND, load_faiss
from reco_ray.corpus.index.search import CorpusIndex

__all__ = ["KIND", "CorpusIndex", "Plan", "build_index", "load_faiss", "plan_index"]
