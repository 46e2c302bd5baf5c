"""Which concepts a request is about: everything that ingress and models need to know of a vocabulary."""

from dataclasses import dataclass

from reco_ray.cosegmentation.bank import ReferenceBank, assemble_bank
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.plan import ReferencePlan
from reco_ray.errors import RecoError
from reco_ray.files import artifacts
from reco_ray.vocabulary import Vocabulary


@dataclass(frozen=True)
class BankRef:
    """Names a set of references without holding them.

    key: digest of all that determines the references. ids: of the concepts, in the vocabulary's order. plan: of
    references that are still concepts in a `ConceptStore`, else None. uri: of that store's folder, of a ReferenceBank,
    or of a trained segmenter, which then has `labels` of its own, `background` among them or not.
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
        return assemble_bank(
            ref.plan, {each: store.read(each) for each in (*ref.plan.ids, *ref.plan.context_ids)}
        )
    except RecoError as error:
        raise RecoError("references of these concepts are gone") from error


def open_segmenter(name: str, uri: str) -> BankRef:
    """What is to be known of a trained segmenter without loading it.

    Raises:
        RecoError: missing, unfinished, of another kind.
    """
    content = artifacts.read_manifest(uri, "segmenter").content
    return BankRef(
        name,
        Vocabulary(**content["vocabulary"]),
        (),
        uri,
        segmenter=True,
        labels=tuple(content["labels"]),
        background=content["background"],
    )
