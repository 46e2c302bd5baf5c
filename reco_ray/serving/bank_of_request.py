"""References to a vocabulary's concepts, as sent from the ingress to the models."""

from dataclasses import dataclass

from reco_ray.contents import SegmenterContent
from reco_ray.cosegmentation.bank import ReferenceBank, assemble_bank
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan
from reco_ray.cosegmentation.sample import open_sample
from reco_ray.errors import MissingError, RecoError
from reco_ray.files import artifacts
from reco_ray.vocabulary import Vocabulary


@dataclass(frozen=True)
class BankRef:
    """Identifies the references of a vocabulary, or a trained segmenter, without loading them.

    key: digest of everything that determines the references; the name of a segmenter.
    ids: concept ids, in the vocabulary's order.
    uri: of the `ConceptStore` if `plan` is set, else of a ReferenceBank or a segmenter.
    plan: for references that are read from a `ConceptStore`, else None.
    labels: label names of a segmenter.
    background: whether a segmenter's label 0 is the background.
    """

    key: str
    vocabulary: Vocabulary
    ids: tuple[str, ...]
    uri: str
    plan: ReferencePlan | None = None
    segmenter: bool = False
    labels: tuple[str, ...] = ()
    background: bool = False


def open_bank(ref: BankRef, model: str) -> ReferenceBank:
    """The references of a zero-shot vocabulary.

    Raises:
        RecoError: gone, damaged, or made with other models than `model`.
    """
    if ref.plan is None:
        return ReferenceBank.open(ref.uri, model)
    store = ConceptStore(ref.uri)
    try:
        concepts = {each: store.read(each) for each in (*ref.plan.ids, *ref.plan.context_ids)}
        sample_id = ref.plan.sample_id
        sample = None if sample_id is None else open_sample(store.sample_uri(sample_id))
        return assemble_bank(ref.plan, concepts, sample)
    except RecoError as error:
        raise MissingError("references of these concepts are gone") from error


def open_segmenter(name: str, uri: str) -> BankRef:
    """Reads the manifest of a trained segmenter, without its weights.

    Raises:
        RecoError: missing, unfinished, of another kind.
    """
    content = artifacts.read_manifest(uri, SegmenterContent).content
    return BankRef(
        name,
        content.vocabulary,
        (),
        uri,
        segmenter=True,
        labels=tuple(content.labels),
        background=content.background,
    )
