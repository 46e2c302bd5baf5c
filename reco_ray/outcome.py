"""What stages return."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from reco_ray.errors import RecoError
from reco_ray.files.artifacts import Manifest

if TYPE_CHECKING:
    from reco_ray.sweeps.plan import SweepPlan
    from reco_ray.sweeps.trial import TrialRecord


@dataclass(frozen=True)
class Outcome:
    """What became of one output of a stage.

    Attributes:
        stage: that was asked for it.
        uri: of the output.
        manifest: of the artifact; None if it failed, and for `evaluate`, whose output is no artifact.
        new: whether anything was computed.
        name: of its vocabulary, where a stage makes several artifacts; one that fails stops no other.
        error: why it failed.
    """

    stage: str
    uri: str
    manifest: Manifest[Any] | None = None
    new: bool = True
    name: str = ""
    error: RecoError | None = None


@dataclass(frozen=True)
class TrainedResult:
    """What the main job made with `train`. masks: those of the segmenter. report: path of the page about them."""

    segmenter: Outcome
    masks: Outcome
    report: str


@dataclass(frozen=True)
class RunResult:
    """What the main job made. report: path of its HTML page. trained: None without `train`."""

    embeddings: Outcome
    index: Outcome
    references: Outcome
    masks: Outcome
    report: str
    trained: TrainedResult | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(Outcome):
    """results: as in the JSON file of path `file`. report: path of its HTML page."""

    results: dict[str, Any]
    report: str
    file: str


@dataclass(frozen=True, kw_only=True)
class SweepResult(Outcome):
    """Of a sweep; its manifest is None while trials that failed can be tried again.

    ranked: the records of all trials, the best first. report, best: paths of the HTML page and of the best settings.
    """

    plan: "SweepPlan"
    ranked: list["TrialRecord"]
    report: str
    best: str


@dataclass(frozen=True, kw_only=True)
class DuplicatesResult(Outcome):
    """groups: URIs of the images of the largest groups, the one that would be kept first."""

    groups: list[list[str]]


@dataclass(frozen=True)
class ReviewResult:
    """page: path of the HTML page. masks: number of masks of concepts. drawn: of them at random; unsure: by score."""

    page: str
    masks: int
    drawn: int
    unsure: int


@dataclass(frozen=True)
class Precision:
    """Verdicts on masks. low, high: 95 % interval of the share of good ones among good and bad (Wilson, 1927)."""

    good: int
    bad: int
    unsure: int
    precision: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class VerdictsResult:
    """What verdicts say.

    sample: of masks drawn at random. concepts: of the same, by concept. chosen: of masks that were shown because the
    model is unsure of them, which is no estimate. file: path of the JSON file with the same.
    """

    sample: Precision
    concepts: dict[str, Precision]
    chosen: Precision
    file: str


class FoundImage(TypedDict):
    """An image of the corpus. rank: from 1. similarity: cosine. image_id: SHA-256 of its bytes, hex."""

    rank: int
    similarity: float
    image_id: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class SearchResult:
    """Of a search.

    hits: the most similar first. sheet: path of the contact sheet, a JPEG. export: of the folder or tar with the
    images, if there is one; exported: how many are in it.
    """

    hits: list[FoundImage]
    sheet: str
    export: str | None = None
    exported: int = 0
