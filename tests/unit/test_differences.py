"""What the line of a refused artifact says of two runs' settings."""

import pytest

from reco_ray.files.differences import describe_differences, differences
from reco_ray.vocabulary import Concept, Vocabulary, parse_concepts

LONG = "conse(efficientnet-lite0, all-minilm-l6-v2, top 10) weights 0123456789abcdef + timm/deit-small"


@pytest.mark.parametrize(
    ("stored", "wanted", "said"),
    [
        ({"references.exemplars": 16}, {"references.exemplars": 20}, ["references.exemplars = 16, now 20"]),
        ({"a": 1, "b": True}, {"a": 1, "b": None}, ["b = yes, now none"]),
        ({"references": {"exemplars": 16, "x": 1}}, {"references": {"exemplars": 5, "x": 1}},
         ["references.exemplars = 16, now 5"]),
        ({"frames": [1, 2]}, {"frames": [2, 3, 4]}, ["frames: no longer 1, now also 3, 4"]),
        ({"frames": [1, 2]}, {"frames": [2, 1]}, ["frames: in another order"]),
        ({"listing": "0f"}, {"listing": "1f"}, ["listing: images came, went or changed"]),
        ({"model": f"{LONG}#1"}, {"model": f"{LONG}#2"},
         ["model = ...f + timm/deit-small#1, now ...f + timm/deit-small#2"]),
        ({"new": 1}, {}, ["new = 1, now none"]),
    ],
)  # fmt: skip
def test_every_difference_is_named_with_both_values(stored, wanted, said):
    assert differences(stored, wanted) == said


def test_halves_of_a_cut_line_are_never_equal():
    for place in range(len(LONG)):
        other = f"{LONG[:place]}~{LONG[place + 1 :]}"
        (phrase,) = differences({"model": LONG}, {"model": other})
        first, second = phrase.removeprefix("model = ").split(", now ")
        assert first != second
    (phrase,) = differences({"model": LONG}, {"model": f"{LONG}, more"})
    assert phrase.endswith(", more")


def test_concepts_are_named_with_their_words():
    before = parse_concepts("cat, dog, sofa")
    now = Vocabulary(
        concepts=(Concept(name="cat"), Concept(name="dog", synonyms=("puppy", "hound"))), background=True
    )
    assert differences(
        {"vocabulary": before.model_dump(mode="json")}, {"vocabulary": now.model_dump(mode="json")}
    ) == [
        "vocabulary.background = no, now yes",
        "vocabulary.concepts: no longer dog, sofa, now also dog (puppy, hound)",
    ]


def test_very_many_are_counted():
    said = describe_differences(
        {f"setting{n:02d}": 1 for n in range(20)}, {f"setting{n:02d}": 2 for n in range(20)}
    )
    assert said.startswith("setting00 = 1, now 2; setting01")
    assert said.endswith("; and 12 more")
