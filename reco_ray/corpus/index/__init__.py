"""The index over a corpus: nearest images to an embedding, by cosine, with FAISS (Douze et al., 2024).

`choice` picks the kind by the corpus' size, `vectors` reads embeddings file by file, `build` trains once and adds
shards in parallel, `recall` says how far the result is from exact search, `search` opens it.
"""

from reco_ray.corpus.index.corpus_index import CorpusIndex
from reco_ray.corpus.index.faiss_library import KIND, load_faiss
from reco_ray.corpus.index.index_plan import IndexPlan, plan_index
from reco_ray.corpus.index.stage import build_index

__all__ = ["KIND", "CorpusIndex", "IndexPlan", "build_index", "load_faiss", "plan_index"]
