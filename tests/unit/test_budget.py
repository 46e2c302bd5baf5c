"""The budget for rejected images."""

import pytest

from reco_ray.config import load_settings
from reco_ray.corpus.budget import RejectBudget
from reco_ray.errors import RecoError


def spend(budget: RejectBudget, images: int, **rejected: int) -> None:
    budget.add(images, rejected, "/corpus", "/out")


def test_a_share_of_a_known_corpus():
    budget = RejectBudget("1%", 1000, {"damaged": 4})
    spend(budget, 100, damaged=6)
    with pytest.raises(RecoError) as caught:
        spend(budget, 100, gone=1)
    assert str(caught.value) == (
        "/corpus: 11 of 1,000 images were rejected (10 damaged, 1 gone), more than the setting "
        "embed.max_rejected=1% allows: see /out/rejected; with a larger one the run goes on"
    )


def test_a_number_of_images():
    spend(RejectBudget("3", None, {}), 10, damaged=3)
    with pytest.raises(RecoError, match="4 images were rejected"):
        spend(RejectBudget("3", None, {}), 10, damaged=4)


def test_a_share_of_an_unknown_corpus_is_not_judged_by_its_first_images():
    budget = RejectBudget("1%", None, {})
    spend(budget, 20, damaged=10)
    spend(budget, 3000, damaged=20)
    with pytest.raises(RecoError, match="31 images"):
        spend(budget, 10, damaged=1)


def test_everything_may_be_rejected_unless_told():
    spend(RejectBudget(load_settings().embed.max_rejected, 5, {}), 5, damaged=5)


@pytest.mark.parametrize("value", ["1%", "0.5%", "0", "500", 500])
def test_forms(value):
    settings = load_settings(overrides=[f"embed.max_rejected={value}"])
    assert settings.embed.max_rejected == str(value)


@pytest.mark.parametrize("value", ["-1", "1.5", "many", "1 %"])
def test_other_forms_are_refused(value):
    with pytest.raises(RecoError, match=r"setting embed\.max_rejected"):
        load_settings(overrides=[f"embed.max_rejected={value}"])
