"""The HTTP interface as data: what the server answers and takes, and what the client reads. Imports pydantic alone.

The fields stand in the order in which they are sent.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProblemDetails(_Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Label(_Answer):
    """A label id. id: of its concept, for `/v1/concepts`; null for the background and for trained segmenters."""

    label: int
    id: str | None
    name: str
    colour: str = Field(pattern="^#[0-9a-f]{6}$")


class RunLengths(_Answer):
    """COCO's compressed run lengths, down the columns. size: [height, width]."""

    size: tuple[int, int]
    counts: str


class Region(Label):
    """A label that is present. area: pixels. share: of the image. score: mean over its pixels."""

    area: int
    share: float
    score: float
    rle: RunLengths


class SegmentationResource(_Answer):
    """width, height: of the mask, in pixels. concepts: those present, the largest first. legend: all labels."""

    request_id: str
    model: str
    vocabulary: str | None
    width: int
    height: int
    background: bool
    concepts: tuple[Region, ...]
    legend: tuple[Label, ...]
    seconds: float


class _OfBatch(_Answer):
    id: str


class BatchFailure(_OfBatch):
    """An image of a batch that could not be segmented."""

    error: ProblemDetails


class BatchSegmentation(SegmentationResource, _OfBatch):  # the fields of the last base come first
    """One image of a batch."""


class Batch(_Answer):
    """In the order of the request."""

    results: tuple[BatchSegmentation | BatchFailure, ...]


class Progress(_Answer):
    """Concepts that are made, of all that the vocabulary needs, context concepts included."""

    done: int
    total: int


class VocabularyResource(_Answer):
    """serving: concepts that requests get, those before while others are built. mine: the caller may replace and
    delete it."""

    name: str
    kind: Literal["zero-shot", "segmenter"]
    status: Literal["building", "ready", "failed"]
    concepts: tuple[str, ...]
    concept_ids: tuple[str, ...]
    progress: Progress
    error: str | None
    serving: tuple[str, ...] | None
    mine: bool


class Vocabularies(_Answer):
    """All that the caller may use."""

    vocabularies: tuple[VocabularyResource, ...]


class NamedConcept(BaseModel):
    """synonyms: what the model reads instead of the name; several are averaged."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    synonyms: list[str] = Field(default=[], max_length=20)


class VocabularyRequest(BaseModel):
    """context: usual surroundings, which references avoid."""

    model_config = ConfigDict(extra="forbid")

    concepts: list[str | NamedConcept] = Field(min_length=1)
    background: bool = False
    context: list[str] | None = Field(default=None, max_length=20)


class SearchHit(_Answer):
    """score: cosine similarity. uri_name: the last part of the image's URI."""

    image_id: str
    score: float
    uri_name: str
    thumbnail: str


class SearchHits(_Answer):
    """The best first."""

    hits: tuple[SearchHit, ...]


class Exemplar(_Answer):
    """seed: [row, column] in the support map, which is best there. support: its value."""

    rank: int
    image_id: str
    similarity: float
    seed: tuple[int, int]
    support: float
    thumbnail: str


class ConceptResource(_Answer):
    """words: what the model reads. exemplars: the nearest images of the index, in order."""

    id: str
    name: str
    words: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]


class ExampleResource(_Answer):
    """A photograph to try."""

    id: str
    name: str
    url: str


class Index(_Answer):
    """The corpus."""

    images: int


class LimitsInfo(_Answer):
    """What a request may hold."""

    bytes: int
    pixels: int
    concepts: int
    concept_length: int
    batch: int
    max_side: int
    seconds: float


class Info(_Answer):
    """What this server has and allows."""

    version: str
    preset: str
    model: str
    index: Index | None
    refine: tuple[str, ...]
    refine_titles: dict[str, str]
    limits: LimitsInfo
    keys_required: bool
    examples: tuple[ExampleResource, ...]


class ServerState(_Answer):
    """Of the server."""

    status: str
