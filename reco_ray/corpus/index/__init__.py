"""The index of a corpus: nearest images to an embedding by cosine similarity, with FAISS (Douze et al., 2024).

`index_plan` chooses the kind of index by the size of the corpus, `vectors` reads embeddings file by file, `stage`
trains once and adds shards in parallel, `follow` adds further ones later, `recall` compares the result with exact
search, `corpus_index` searches it.
"""

from reco_ray.corpus.index.corpus_index import CorpusIndex
from reco_ray.corpus.index.follow import follow_index, plan_follow
from reco_ray.corpus.index.index_plan import IndexPlan, plan_index
from reco_ray.corpus.index.stage import build_index

__all__ = ["CorpusIndex", "IndexPlan", "build_index", "follow_index", "plan_follow", "plan_index"]
