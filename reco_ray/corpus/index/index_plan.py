"""Chooses the kind of index for a corpus, its parameters and its shards, before anything is built."""

import math
import re
from dataclasses import dataclass

from reco_ray.config import IndexSettings
from reco_ray.contents import EmbeddingsContent
from reco_ray.corpus.index.vectors import Part, list_parts
from reco_ray.errors import SettingError, UnreadableError
from reco_ray.faiss_library import empty_index, inverted_file
from reco_ray.files import artifacts

FLAT_UP_TO = 250_000  # at most 1 GB: exact search takes milliseconds per query and needs no training
SCALAR_UP_TO = 100_000_000  # one byte per dimension: 50-80 GB, memory-mapped from one disk
FLAT_CENTROIDS_UP_TO = 16_384  # more centroids are searched with an HNSW graph
FEWEST_FOR_LISTS = 1000  # images; with fewer, recall cannot be measured
SAMPLES_PER_CENTROID = 64  # FAISS recommends at least 39 and uses at most 256
KMEANS_ITERATIONS = 10  # FAISS's default for inverted lists
SHARD_SIZE = 1_000_000
MAX_SHARDS = 64  # each one is searched separately, so a larger corpus has larger shards
CODE_BITS = 2  # per dimension, for more than SCALAR_UP_TO images


@dataclass(frozen=True)
class Shard:
    """The rows `start` to `start + rows` of the corpus, read from `parts` and added by one task.

    Without parts it is in the index already.
    """

    name: str
    start: int
    rows: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class IndexPlan:
    """An index to build.

    Attributes:
        images: Number of vectors.
        dim: Number of dimensions.
        factory: FAISS factory string.
        automatic: Whether the factory was chosen by the number of images.
        centroids: Number of inverted lists; 0 for a flat index.
        sample: Number of vectors to train on.
        bytes_per_vector: Size of a code and an id.
        fixed_bytes: Size of the centroids, which are held in memory.
        shards: The shards, in row order.
        settings: The settings it was planned with.
    """

    images: int
    dim: int
    factory: str
    automatic: bool
    centroids: int
    sample: int
    bytes_per_vector: int
    fixed_bytes: int
    shards: tuple[Shard, ...]
    settings: IndexSettings

    @property
    def exact(self) -> bool:
        return self.factory == "Flat"

    @property
    def needs_cluster(self) -> bool:
        """False for a single flat shard to write, which is written faster than Ray starts."""
        return not self.exact or sum(bool(shard.parts) for shard in self.shards) > 1

    @property
    def training_operations(self) -> float:
        """Floating-point operations of k-means, which compares every sampled vector with every centroid."""
        return 2.0 * KMEANS_ITERATIONS * self.sample * self.centroids * self.dim

    @property
    def kind(self) -> str:
        """The factory without the number of lists, which hardly affects the cost of adding a vector."""
        return re.sub(r"(?<=IVF)\d+", "", self.factory)

    @property
    def expected_recall(self) -> float | None:
        """Expected recall@50; None if it is known only after building (other codes, or a fixed nprobe).

        With one byte per dimension recall is limited by nprobe only, which is chosen for the target. Two bits are
        expected to reach the recall measured on a million vectors (docs/results.md), or the target if that is lower.
        """
        if self.exact:
            return 1.0
        if self.settings.nprobe:
            return None
        reached = {"SQ8": 1.0, f"RaBitQ{CODE_BITS}": 0.8}.get(self.factory.rpartition(",")[2])
        return None if reached is None else min(reached, self.settings.target_recall)


def choose_factory(images: int, dim: int) -> str:
    """Chooses a flat index for few images, then inverted lists with one byte, then with two bits per dimension.

    The number of lists is the power of two nearest to 4 sqrt(images), following the FAISS guidelines. The two-bit codes
    are RaBitQ (Gao et al., SIGMOD 2024 and 2025) after a random rotation: product quantisation of nearly the same size
    has lower recall and is slower (docs/results.md).
    """
    if images <= FLAT_UP_TO:
        return "Flat"
    centroids = 2 ** round(math.log2(4 * math.sqrt(images)))
    lists = f"IVF{centroids}" + ("_HNSW32" if centroids > FLAT_CENTROIDS_UP_TO else "")
    if images <= SCALAR_UP_TO:
        return f"{lists},SQ8"
    return f"RR{dim},{lists},RaBitQ{CODE_BITS}"


def plan_index(embeddings: str, settings: IndexSettings) -> IndexPlan:
    """Plans the index of an embeddings artifact without building it.

    Raises:
        RecoError: If the artifact is missing or its files do not match its manifest, or as `make_plan`.
    """
    source = artifacts.read_manifest(embeddings, EmbeddingsContent)
    parts = list_parts(embeddings, source.content)
    images = sum(part.rows for part in parts)
    if images != source.counts["embedded"]:
        raise UnreadableError(
            f"{embeddings}: its files hold {images:,} rows, its manifest says {source.counts['embedded']:,}: "
            "delete it and embed the corpus again"
        )
    return make_plan(images, source.content.dim, settings, parts)


def make_plan(images: int, dim: int, settings: IndexSettings, parts: list[Part]) -> IndexPlan:
    """Plans the index of a number of images.

    Args:
        images: Number of images.
        dim: Number of dimensions of their embeddings.
        settings: Settings of the index.
        parts: Files of the embeddings, in row order.

    Raises:
        SettingError: If FAISS cannot build the index.factory, or it needs more images or a larger sample.
    """
    factory = choose_factory(images, dim) if settings.factory == "auto" else settings.factory
    index = empty_index(factory, dim)  # must outlive the parts extracted from it
    ivf = inverted_file(index)
    centroids = 0 if ivf is None else ivf.nlist
    if centroids and images < max(centroids, FEWEST_FOR_LISTS):
        raise SettingError(
            f"setting index.factory: {images:,} images are too few for {factory!r}: leave it at auto"
        )
    if settings.sample is not None and settings.sample < centroids:
        raise SettingError(f"setting index.sample: {factory!r} needs {centroids:,} vectors at least")
    graph = 256 if "_HNSW" in factory else 0  # bytes: two lists of 32 neighbours per centroid
    return IndexPlan(
        images=images,
        dim=dim,
        factory=factory,
        automatic=settings.factory == "auto",
        centroids=centroids,
        sample=min(images, settings.sample or SAMPLES_PER_CENTROID * centroids) if centroids else 0,
        bytes_per_vector=(4 * dim if ivf is None else ivf.code_size) + 8,
        fixed_bytes=0 if ivf is None else centroids * (4 * ivf.d + graph),
        shards=_make_shards(parts, settings.shard_size or max(SHARD_SIZE, -(-images // MAX_SHARDS))),
        settings=settings,
    )


def _make_shards(parts: list[Part], size: int) -> tuple[Shard, ...]:
    """Groups whole files into shards of at least `size` rows; deterministic."""
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
