"""What a vocabulary's references are made from, in which order, and how several vocabularies share them."""

from dataclasses import asdict

import pyarrow as pa
import pytest
import torch

from reco_ray.config import load_settings
from reco_ray.contents import ReferencesContent
from reco_ray.cosegmentation.bank import ReferenceBank, write_bank
from reco_ray.cosegmentation.concept_store import ConceptStore
from reco_ray.cosegmentation.reference_plan import ReferencePlan, plan_references, sequences, unique_steps
from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.files.artifacts import ArtifactWriter
from reco_ray.models.dense import DenseFeatures
from reco_ray.models.feature_sample import to_bytes
from reco_ray.vocabulary import Concept, Vocabulary


def plan(*concepts: Concept, context: tuple[str, ...] = ("sky", "road"), **other: str) -> ReferencePlan:
    fields = {"index": "x", "index_made_at": "now", "retrieval": "r", "dense": "d"} | other
    return plan_references(Vocabulary(concepts=concepts, context=context), load_settings("mini"), **fields)


def ids(*concepts: Concept, context: tuple[str, ...] = ("sky", "road")) -> dict[str, str]:
    found = plan(*concepts, context=context)
    return dict(zip(found.vocabulary.names, found.ids, strict=True))


def test_a_concept_is_known_by_its_words_and_surroundings_not_by_its_name() -> None:
    plain = ids(Concept(name="sofa"), Concept(name="sky"))
    assert ids(Concept(name="sofa")) == {"sofa": plain["sofa"]}
    assert ids(Concept(name="my seat", synonyms=("sofa",)))["my seat"] == plain["sofa"]
    assert ids(Concept(name="sofa", synonyms=("couch",)))["sofa"] != plain["sofa"]
    assert ids(Concept(name="sofa"), context=("sky",))["sofa"] != plain["sofa"]
    # The first context concept does not know of those after it.
    assert ids(Concept(name="sky"), context=("sky",))["sky"] == plain["sky"]
    assert ids(Concept(name="road"))["road"] != ids(Concept(name="road"), context=("road",))["road"]
    # A vocabulary's own words for a context concept change what the others avoid.
    assert ids(Concept(name="sofa"), Concept(name="sky", synonyms=("clouds",)))["sofa"] != plain["sofa"]


@pytest.mark.parametrize("changed", ["index", "index_made_at", "retrieval", "dense"])
def test_another_index_or_model_makes_other_concepts(changed: str) -> None:
    sofa = Concept(name="sofa")
    assert not set(plan(sofa).ids) & set(plan(sofa, **{changed: "other"}).ids)


def test_context_concepts_come_first_each_with_those_before_it() -> None:
    found = plan(Concept(name="dog"), Concept(name="road", synonyms=("street",)))
    assert [step.concept.name for step in found.steps] == ["sky", "road", "dog"]
    assert found.steps[1].concept.words == ("street",)
    sky, road, dog = found.steps
    assert (sky.context, road.context, dog.context) == ((), (sky.id,), (sky.id, road.id))
    assert found.ids == (dog.id, road.id)
    assert found.context_ids == (sky.id, road.id)


def test_an_alias_takes_the_reference_of_a_context_concept_and_its_own_words() -> None:
    found = plan(Concept(name="clouds", alias="sky"), Concept(name="dog"))
    alias = next(step for step in found.steps if step.concept.name == "clouds")
    assert alias.same_as == found.context_ids[0]
    assert alias.id != alias.same_as
    context, others = sequences(found.steps)
    assert [step.concept.name for step in others] == ["dog"]
    assert [[step.concept.name for step in each] for each in context.values()] == [["sky", "road"]]


def test_without_context_elimination_an_alias_has_a_reference_of_its_own() -> None:
    settings = load_settings("mini", overrides=["references.context_elimination=false"])
    vocabulary = Vocabulary(concepts=(Concept(name="clouds", alias="sky"),), context=("sky",))
    found = plan_references(vocabulary, settings, "x", "now", "r", "d")
    assert [(step.same_as, step.context) for step in found.steps] == [(None, ())]
    assert found.context == ()


def test_many_vocabularies_have_their_context_once() -> None:
    plans = [plan(Concept(name=name), Concept(name="road")) for name in ("dog", "cat", "sofa")]
    plans.append(plan(Concept(name="dog"), context=("tree",)))
    plans.append(plan(Concept(name="dog"), Concept(name="road", synonyms=("street",))))
    steps = unique_steps(plans)
    context, others = sequences(steps.values())
    names = sorted([step.concept.words[0] for step in each] for each in context.values())
    assert names == [["sky", "road", "street"], ["tree"]]
    assert len(others) == 5


def concept(store: ConceptStore, step: object, seed: int) -> None:
    tensors = {
        "reference": torch.full((3,), float(seed)),
        "prototypes": torch.full((3,), float(seed)),
        "text_embedding": torch.full((2,), float(seed)),
        "seed_locations": torch.tensor([[0, 1], [1, 0]]),
        "support": torch.arange(8).reshape(2, 2, 2).half(),
        "sheet": torch.zeros(4, dtype=torch.uint8),
    }
    rows = [{"rank": n, "image_id": f"i{n}", "uri": f"u{n}", "similarity": 0.5} for n in range(2)]
    store.write(step, pa.Table.from_pylist(rows), tensors)  # type: ignore[arg-type]


def test_a_bank_is_written_from_the_store_and_is_what_memory_holds(tmp_path: object) -> None:
    found = plan(Concept(name="dog"), Concept(name="clouds", alias="sky"))
    store = ConceptStore(f"{tmp_path}/concepts")
    for number, step in enumerate(found.steps):
        if step.same_as is None:
            concept(store, step, number)
        else:
            store.write_alias(step, torch.full((2,), 9.0))
    assert store.missing([step.id for step in found.steps] + ["other"]) == {"other"}
    assert found.sample_id is not None
    writer = ArtifactWriter(f"{tmp_path}/bank", ReferencesContent, found.made_from)
    with pytest.raises(RecoError, match=r"\.sample: missing"):
        store.read_sample(found.sample_id)
    sample = DenseFeatures(torch.ones(1, 3, 1, 4), torch.ones(1, 2, 1, 4), image=torch.ones(1, 2))
    storage.write_bytes(store.sample_uri(found.sample_id), to_bytes([sample]))
    assert writer.finished() is None
    writer.commit(write_bank(writer, found, store), found.content)
    bank = ReferenceBank.open(f"{tmp_path}/bank", "d")
    assert bank.vocabulary == found.vocabulary
    assert bank.references[:, 0].tolist() == [2.0, 0.0]
    assert bank.text_embeddings[:, 0].tolist() == [2.0, 9.0]  # the alias keeps its own words
    assert bank.context_references[:, 0].tolist() == [0.0, 1.0]
    assert bank.sample is not None
    assert torch.equal(bank.sample.visual, sample.visual)
    rows = bank.exemplars().to_pylist()
    assert [(row["concept"], row["rank"], row["support"]) for row in rows] == [
        ("dog", 0, 1.0), ("dog", 1, 6.0), ("clouds", 0, 1.0), ("clouds", 1, 6.0)
    ]  # fmt: skip


def test_a_damaged_or_missing_concept_is_one_line(tmp_path: object) -> None:
    store = ConceptStore(f"{tmp_path}/concepts")
    (step,) = plan(Concept(name="dog"), context=()).steps
    with pytest.raises(RecoError, match="missing or damaged"):
        store.exemplars(step.id)
    concept(store, step, 1)
    with open(store.uri(step.id), "wb") as file:
        file.write(b"half")
    with pytest.raises(RecoError, match="damaged"):
        store.read(step.id)


def test_calibrated_references_need_a_sample_of_their_index_and_size() -> None:
    def calibrated(count: int, index: str = "x", dense: str = "d", size: int = 448) -> ReferencePlan:
        overrides = [f"segment.calibrate={count}", f"segment.image_size={size}"]
        vocabulary = Vocabulary(concepts=(Concept(name="dog"),))
        return plan_references(
            vocabulary, load_settings("mini", overrides=overrides), index, "now", "r", dense
        )

    found, plain = calibrated(64), calibrated(0)
    assert plain.sample_id is None
    assert plain.entries == tuple(step.id for step in plain.steps)
    assert found.sample_id is not None
    assert found.entries == (*(step.id for step in found.steps), found.sample_id)
    assert found.ids == plain.ids  # references themselves are shared
    assert found.key != plain.key
    others = (calibrated(32), calibrated(64, index="y"), calibrated(64, dense="e"), calibrated(64, size=320))
    assert found.sample_id not in {other.sample_id for other in others}


def test_the_oldest_concepts_are_pruned_first_but_none_in_use(tmp_path: object) -> None:
    import os

    store = ConceptStore(f"{tmp_path}/concepts")
    steps = plan(*(Concept(name=name) for name in ("dog", "cat", "sofa", "bus")), context=()).steps
    for age, step in enumerate(steps):
        concept(store, step, age)
        os.utime(store.uri(step.id), ns=(age * 10**9, age * 10**9))
    assert store.prune(keep={steps[0].id}, max_others=1) == 2
    assert [store.has(step.id) for step in steps] == [True, False, False, True]
    storage.write_bytes(store.sample_uri("used"), b"sample")
    storage.write_bytes(store.sample_uri("of-another-index"), b"sample")
    assert store.prune(keep={steps[0].id, steps[3].id, "used"}, max_others=1) == 0
    assert [store.has_sample(name) for name in ("used", "of-another-index")] == [True, False]
    assert store.describe(steps[1].id) is None
    assert asdict(steps[0])["same_as"] is None
