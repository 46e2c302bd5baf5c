"""What the manifest of each kind of artifact holds for its readers. Pydantic only: opening one loads no models.

A field that was added later has a default, so that older artifacts open.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from reco_ray.files.artifacts import Content
from reco_ray.vocabulary import Vocabulary


class EmbeddingsContent(Content):
    """Embeddings.

    dim: of an embedding. model: fingerprint. generation: number of listings. shards: of all of them. listing:
    fingerprint of the last one. rejected_by_reason, left_out: counts of files. gone: number of removed rows.
    """

    kind: ClassVar = "embeddings"
    dim: int
    model: str
    generation: int = 1
    shards: int
    listing: str = ""
    rejected_by_reason: dict[str, int] = Field(default={})
    left_out: dict[str, int] = Field(default={})
    gone: int = 0


class ShardRecord(BaseModel):
    """A shard of an index. start: its first row. bytes: of the FAISS file. fingerprint: of the trained index."""

    name: str
    start: int
    images: int
    bytes: int
    fingerprint: str


class Recall(BaseModel):
    """recall@k on held-out queries of both kinds, see `corpus/index/recall.py`. queries: their number."""

    k: int
    queries: int
    images: float
    between: float


class ExactRecall(BaseModel):
    """Of an index that compares with every image."""

    exact: Literal[True] = True


class IndexContent(Content):
    """An index.

    factory: of FAISS. shards: None for version 0.1, which has a single one. nprobe: None if every image is compared.
    """

    kind: ClassVar = "index"
    dim: int
    model: str
    factory: str
    shards: list[ShardRecord] | None = None
    nprobe: int | None = None
    recall: Recall | ExactRecall | None = None


class DuplicatesContent(Content):
    """Groups of near-duplicates.

    index: URI. index_made_at: time of its manifest. similarity: least cosine of a pair.
    """

    kind: ClassVar = "duplicates"
    index: str
    index_made_at: str
    similarity: float


class ReferencesContent(Content):
    """References. context: names of the context concepts. model: fingerprint of the dense models."""

    kind: ClassVar = "references"
    vocabulary: Vocabulary
    context: list[str]
    model: str


class MasksContent(Content):
    """Masks.

    labels: by label id. palette: RGB of each. references, segmenter: URI of the one that made them.
    """

    kind: ClassVar = "masks"
    labels: list[str]
    palette: list[list[int]]
    references: str | None = None
    segmenter: str | None = None

    def holds_probabilities(self, made_from: Mapping[str, object]) -> bool:
        """Whether the scores of the masks are probabilities: those of segmenters, and calibrated ones.

        Args:
            made_from: of the manifest. Masks of earlier versions do not have the setting.
        """
        return self.segmenter is not None or bool(made_from.get("segment.calibrate"))


class MaskExportContent(Content):
    """Masks in the format of another tool.

    format: its name. labels: by label id of the masks. concepts: those that the format has, in the order of its
    categories.
    """

    kind: ClassVar = "exported-masks"
    format: str
    labels: list[str]
    concepts: list[str]


class FramesContent(Content):
    """Frames for training."""

    kind: ClassVar = "frames"


class LabelsContent(Content):
    """Pseudo-labels.

    labels: by label id. background: whether label 0 is the background. references, frames: URIs. soft: whether
    there are probabilities. pixels: number of pixels by label.
    """

    kind: ClassVar = "pseudo-labels"
    labels: list[str]
    background: bool
    vocabulary: Vocabulary
    references: str
    frames: str
    soft: bool
    pixels: dict[str, int]


class SegmenterContent(Content):
    """A trained segmenter.

    architecture: of the network, as `train.segmenter`. labels, background: as of its pseudo-labels. image_size: short
    side, pixels. best_step, agreement: of the checkpoint that was kept.
    """

    kind: ClassVar = "segmenter"
    architecture: str
    labels: list[str]
    background: bool
    vocabulary: Vocabulary
    image_size: int
    best_step: int | None = None
    agreement: float | None = None


class ExportContent(Content):
    """An exported segmenter. palette: RGB of each label. largest_difference: to the logits of the segmenter."""

    kind: ClassVar = "exported-segmenter"
    file: str
    labels: list[str]
    background: bool
    palette: list[list[int]]
    image_size: int
    stride: int
    largest_difference: float | None = None


class SweepContent(Content):
    """A sweep."""

    kind: ClassVar = "sweep"
