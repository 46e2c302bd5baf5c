"""Request and response bodies of the HTTP interface, for server and client. Imports only pydantic.

Fields are sent in the order of their definition.
"""

from typing import Annotated, Literal

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
    """A label. id: concept id for `/v1/concepts`, or null for the background and for trained segmenters."""

    label: int
    id: str | None
    name: str
    colour: str = Field(pattern="^#[0-9a-f]{6}$")


class RunLengths(_Answer):
    """A mask in COCO's compressed run-length encoding (column-major). size: [height, width]."""

    size: tuple[int, int]
    counts: str


class Region(Label):
    """A label that is present. area: pixels. share: fraction of the image. score: mean over its pixels."""

    area: int
    share: float
    score: float
    rle: RunLengths


class SegmentationResource(_Answer):
    """width, height: of the mask, pixels. probabilities: whether scores are probabilities of the labels, which sum to 1
    at every pixel. concepts: those present, by decreasing area. legend: all labels."""

    request_id: str
    model: str
    vocabulary: str | None
    width: int
    height: int
    background: bool
    probabilities: bool = False
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
    """Results in the order of the request."""

    results: tuple[BatchSegmentation | BatchFailure, ...]


class Progress(_Answer):
    """What is built, and what is to be built in total: concepts, context concepts, and, for calibrated scores, the
    statistics of the corpus."""

    done: int
    total: int


ImageId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Coordinate = Annotated[float, Field(ge=0, le=1_000_000)]
BoxOf = Annotated[list[_Coordinate], Field(min_length=4, max_length=4)]
PointOf = Annotated[list[_Coordinate], Field(min_length=2, max_length=2)]


class ChosenExemplar(_Answer):
    """An image that was chosen for a concept. boxes: [left, top, right, bottom], points: [x, y], where the concept
    is; in pixels of the upright image."""

    image_id: ImageId
    boxes: tuple[BoxOf, ...] = ()
    points: tuple[PointOf, ...] = ()


class ChosenExemplars(_Answer):
    """Images that were chosen for a concept. rejected: no exemplars. pinned: of the corpus, exemplars in any case.
    examples: own images. only_chosen: whether these are all; nothing is retrieved."""

    rejected: tuple[ImageId, ...] = ()
    pinned: tuple[ChosenExemplar, ...] = ()
    examples: tuple[ChosenExemplar, ...] = ()
    only_chosen: bool = False


class VocabularyResource(_Answer):
    """serving: concepts of the served version, or the previous one. mine: the caller may replace and delete it.
    chosen: by concept, the images that were chosen for it."""

    name: str
    kind: Literal["zero-shot", "segmenter"]
    status: Literal["building", "ready", "failed"]
    concepts: tuple[str, ...]
    concept_ids: tuple[str, ...]
    progress: Progress
    error: str | None
    serving: tuple[str, ...] | None
    mine: bool
    chosen: dict[str, ChosenExemplars] = {}


class Vocabularies(_Answer):
    """The vocabularies and segmenters that the caller may use."""

    vocabularies: tuple[VocabularyResource, ...]


class PinnedImage(BaseModel):
    """An image of the index that is an exemplar in any case. boxes: [left, top, right, bottom], points: [x, y],
    where the concept is; in pixels of the upright image."""

    model_config = ConfigDict(extra="forbid")

    image_id: ImageId
    boxes: list[BoxOf] = Field(default=[], max_length=100)
    points: list[PointOf] = Field(default=[], max_length=100)


class ExampleImage(BaseModel):
    """An own image. image: in base64, or as a data URL; or image_id: of one that a vocabulary of the caller has
    already. boxes,
    points: as of a pinned image."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    image_id: ImageId | None = None
    boxes: list[BoxOf] = Field(default=[], max_length=100)
    points: list[PointOf] = Field(default=[], max_length=100)


class ConceptImages(BaseModel):
    """Images that are chosen for a concept. rejected: of the index, no exemplars. pinned: of the index, exemplars in
    any case.
    examples: own images, exemplars before all others."""

    model_config = ConfigDict(extra="forbid")

    rejected: list[ImageId] = Field(default=[], max_length=1000)
    pinned: list[PinnedImage] = Field(default=[], max_length=1000)
    examples: list[ExampleImage] = Field(default=[], max_length=1000)
    only_chosen: bool = False


class VocabularyPatch(BaseModel):
    """concepts: by name, the images that are chosen, in place of all that were chosen for the concept before."""

    model_config = ConfigDict(extra="forbid")

    concepts: dict[str, ConceptImages] = Field(min_length=1)


class NamedConcept(ConceptImages):
    """synonyms: embedded instead of the name; the embeddings of several are averaged. A concept with examples and
    without synonyms has no words."""

    name: str = Field(min_length=1, max_length=100)
    synonyms: list[str] = Field(default=[], max_length=20)


class VocabularyRequest(BaseModel):
    """context: context concepts, whose regions are excluded from references."""

    model_config = ConfigDict(extra="forbid")

    concepts: list[str | NamedConcept] = Field(min_length=1)
    background: bool = False
    context: list[str] | None = Field(default=None, max_length=20)


class SearchHit(_Answer):
    """An image that was found. score: cosine similarity. uri_name: the last part of its URI."""

    image_id: str
    score: float
    uri_name: str
    thumbnail: str


class SearchHits(_Answer):
    """Search results by decreasing score."""

    hits: tuple[SearchHit, ...]


class Exemplar(_Answer):
    """similarity: null if it is not known. seed: [row, column] of the maximum of the support map. support: its value.
    source: whether it was retrieved by the words, pinned, or is an own example. width, height: of the upright image,
    null for references of earlier versions. picture: the photograph, larger than the thumbnail. uri_name: the last
    part of its URI, empty for an own example."""

    rank: int
    image_id: str
    similarity: float | None
    seed: tuple[int, int]
    support: float
    thumbnail: str
    source: Literal["retrieved", "pinned", "example"] = "retrieved"
    width: int | None = None
    height: int | None = None
    picture: str = ""
    uri_name: str = ""


class ConceptResource(_Answer):
    """words: the texts that are embedded. exemplars: the nearest images of the index, by rank."""

    id: str
    name: str
    words: tuple[str, ...]
    exemplars: tuple[Exemplar, ...]


class ExampleResource(_Answer):
    """An example photograph."""

    id: str
    name: str
    url: str


class Index(_Answer):
    """The index of the corpus. images: their number."""

    images: int


class LimitsInfo(_Answer):
    """Limits of a request."""

    bytes: int
    pixels: int
    concepts: int
    concept_length: int
    batch: int
    max_side: int
    seconds: float


class Info(_Answer):
    """Configuration and limits of the server. refine_default: the refinement of requests that name none."""

    version: str
    preset: str
    model: str
    index: Index | None
    refine: tuple[str, ...]
    refine_titles: dict[str, str]
    refine_default: str
    limits: LimitsInfo
    keys_required: bool
    examples: tuple[ExampleResource, ...]


class ServerState(_Answer):
    """State of the server."""

    status: str
