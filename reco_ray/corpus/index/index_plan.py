"""Which index fits a corpus, what it costs, and how the work is cut: decided before anything is built."""

import math
import re
from dataclasses import dataclass

from reco_ray import storage
from reco_ray.config import IndexSettings
from reco_ray.corpus.index.faiss_library import empty_index, inverted_file
from reco_ray.corpus.index.vectors import Part, list_parts
from reco_ray.errors import RecoError

FLAT_UP_TO = 250_000  # exact search of 1 GB at most: milliseconds a query, nothing to train or to lose
SCALAR_UP_TO = 100_000_000  # one byte a dimension: 50-80 GB, mapped from one disk
FLAT_CENTROIDS_UP_TO = 16_384  # more of them are themselves searched through a graph
FEWEST_FOR_LISTS = 1000  # of fewer, recall cannot be measured
SAMPLE_A_CENTROID = 64  # FAISS asks for 39 at least and uses 256 at most
KMEANS_ITERATIONS = 10  # FAISS's for inverted lists
SHARD_SIZE = 1_000_000
MOST_SHARDS = 64  # each one costs a search: a larger corpus has larger shards
CODE_BITS = 2  # a dimension, beyond SCALAR_UP_TO


@dataclass(frozen=True)
class Shard:
    """What one task adds: the rows `start` to `start + rows` of the corpus, from `parts`."""

    name: str
    start: int
    rows: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class IndexPlan:
    """An index to build. bytes_a_vector: codes and ids. fixed_bytes: centroids, which stay in memory."""

    images: int
    dim: int
    factory: str
    automatic: bool
    centroids: int
    sample: int
    bytes_a_vector: int
    fixed_bytes: int
    shards: tuple[Shard, ...]
    settings: IndexSettings

    @property
    def exact(self) -> bool:
        return self.factory == "Flat"

    @property
    def needs_cluster(self) -> bool:
        """One flat shard is copied in seconds: starting Ray would take longer."""
        return not self.exact or len(self.shards) > 1

    @property
    def training_operations(self) -> float:
        """Of k-means for the lists, which compares every vector of the sample with every centroid."""
        return 2.0 * KMEANS_ITERATIONS * self.sample * self.centroids * self.dim

    @property
    def kind(self) -> str:
        """The factory without the number of lists: what an added vector costs hardly depends on it."""
        return re.sub(r"(?<=IVF)\d+", "", self.factory)

    @property
    def expected_recall(self) -> float | None:
        """What to expect of recall@50; None if codes or a fixed nprobe limit it, by how much only building tells.

        A byte a dimension loses next to nothing, so nprobe decides, and it is chosen for the target. Two bits reach
        what they reached with a million vectors (docs/results.md), if no more is asked for.
        """
        if self.exact:
            return 1.0
        if self.settings.nprobe:
            return None
        reached = {"SQ8": 1.0, f"RaBitQ{CODE_BITS}": 0.8}.get(self.factory.rpartition(",")[2])
        return None if reached is None else min(reached, self.settings.target_recall)


def choose_factory(images: int, dim: int) -> str:
    """Flat while exact search is cheap, then inverted lists of bytes, then of two bits a dimension.

    The number of lists is the power of two next to 4 sqrt(images), as the FAISS guidelines have it. Two bits are
    RaBitQ's (Gao et al., SIGMOD 2024 and 2025) after a random rotation: product quantisation in nearly as many bytes
    finds fewer neighbours, more slowly (docs/results.md).
    """
    if images <= FLAT_UP_TO:
        return "Flat"
    centroids = 2 ** round(math.log2(4 * math.sqrt(images)))
    lists = f"IVF{centroids}" + ("_HNSW32" if centroids > FLAT_CENTROIDS_UP_TO else "")
    if images <= SCALAR_UP_TO:
        return f"{lists},SQ8"
    return f"RR{dim},{lists},RaBitQ{CODE_BITS}"


def plan_index(embeddings: str, settings: IndexSettings) -> IndexPlan:
    """Plans the index of an embeddings artifact; builds nothing.

    Raises:
        RecoError: no such artifact, its files do not add up, or an index.factory that cannot be.
    """
    source = storage.read_manifest(embeddings, "embeddings")
    parts = list_parts(embeddings, source)
    images = sum(part.rows for part in parts)
    if images != source.counts["embedded"]:
        raise RecoError(
            f"{embeddings}: its files hold {images:,} rows, its manifest says {source.counts['embedded']:,}: "
            "embed the corpus again"
        )
    return make_plan(images, source.content["dim"], settings, parts)


def make_plan(images: int, dim: int, settings: IndexSettings, parts: list[Part]) -> IndexPlan:
    """The plan for so many images in these files.

    Raises:
        RecoError: an index.factory that cannot be, or that is no use for so few images.
    """
    factory = choose_factory(images, dim) if settings.factory == "auto" else settings.factory
    index = empty_index(factory, dim)  # owns what follows
    ivf = inverted_file(index)
    centroids = 0 if ivf is None else ivf.nlist
    if centroids and images < max(centroids, FEWEST_FOR_LISTS):
        raise RecoError(
            f"setting index.factory: {images:,} images are too few for {factory!r}: leave it at auto"
        )
    if settings.sample is not None and settings.sample < centroids:
        raise RecoError(f"setting index.sample: {factory!r} needs {centroids:,} vectors at least")
    graph = 256 if "_HNSW" in factory else 0  # two lists of 32 neighbours a centroid
    return IndexPlan(
        images=images,
        dim=dim,
        factory=factory,
        automatic=settings.factory == "auto",
        centroids=centroids,
        sample=min(images, settings.sample or SAMPLE_A_CENTROID * centroids) if centroids else 0,
        bytes_a_vector=(4 * dim if ivf is None else ivf.code_size) + 8,
        fixed_bytes=0 if ivf is None else centroids * (4 * ivf.d + graph),
        shards=_cut(parts, settings.shard_size or max(SHARD_SIZE, -(-images // MOST_SHARDS))),
        settings=settings,
    )


def _cut(parts: list[Part], size: int) -> tuple[Shard, ...]:
    """Whole files together until they have `size` rows; always the same shards for the same files."""
    groups: list[list[Part]] = [[]]
    for part in parts:
        if part.rows and sum(other.rows for other in groups[-1]) >= size:
            groups.append([])
        groups[-1].append(part)
    shards, start = [], 0
    for number, group in enumerate(groups):
        rows = sum(part.rows for part in group)
        shards.append(Shard(f"{number:06d}", start, rows, tuple(group)))
        start += rows
    return tuple(shards)
