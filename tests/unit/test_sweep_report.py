"""A sweep's table, page and best setting, from records as trials leave them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from images import write_photographs

from reco_ray.config import load_settings
from reco_ray.sweeps.run_trial import Rung, TrialRecord, TrialState, read_records, write_record
from reco_ray.sweeps.sweep_plan import SweepPlan, open_plan
from reco_ray.sweeps.sweep_report import as_table, rank, rank_correlations, spearman, summary, write_results

SWEEP = {
    "corpus": "corpus",
    "images": "corpus",
    "vocabulary": "words.txt",
    "set": {"segment.image_size": 96},
    "vary": {"references.exemplars": [2, 3, 4, 5], "references.context_elimination": [True, False]},
}


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    return make_plan(tmp_path)


def make_plan(folder: Path, **changes: object) -> SweepPlan:
    write_photographs(folder / "corpus", 4)
    (folder / "words.txt").write_text("dog\ncar\n")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    return open_plan(str(folder / "sweep.yaml"))


def record(
    plan: SweepPlan, number: int, state: TrialState, value: float | None, images: int = 4
) -> TrialRecord:
    choice = plan.choices()[number]
    trial = plan.trial(choice)
    figures = dict.fromkeys(plan.measured, 0.25) | {plan.objective: value}
    rungs = [] if value is None else [Rung(images=images, used=images, figures=figures)]
    why = "too few images" if state == "failed" else None
    return TrialRecord(id=trial.id, values=trial.values, choice=choice, state=state, rungs=rungs, reason=why)


def records(plan: SweepPlan) -> list[TrialRecord]:
    return [
        record(plan, 0, "finished", 0.3),
        record(plan, 1, "failed", None),
        record(plan, 2, "stopped", 0.9, images=1),
        record(plan, 3, "finished", 0.5),
        record(plan, 4, "stopped", 0.1, images=2),
    ]


def test_finished_trials_come_first_then_those_that_came_far(plan: SweepPlan) -> None:
    states = [
        (r.state, r.rungs[-1].figures[plan.objective] if r.rungs else None) for r in rank(plan, records(plan))
    ]
    assert states == [
        ("finished", 0.5),
        ("finished", 0.3),
        ("stopped", 0.1),
        ("stopped", 0.9),
        ("failed", None),
    ]


def test_of_entropy_the_lowest_is_the_best(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, objective="prediction_entropy")
    ranked = rank(plan, [record(plan, 0, "finished", 0.9), record(plan, 1, "finished", 0.8)])
    assert [r.rungs[-1].figures["prediction_entropy"] for r in ranked] == [0.8, 0.9]


def test_the_table_of_trials(plan: SweepPlan, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    write_results(plan, out, records(plan))
    rows = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert [row["rank"] for row in rows] == [1, 2, None, None, None]
    assert [row["augmentation_agreement"] for row in rows] == [0.5, 0.3, 0.1, 0.9, None]
    assert [row["images"] for row in rows] == [4, 4, 2, 1, 0]
    assert rows[0]["references.exemplars"] == 3
    assert rows[0]["references.context_elimination"] is False
    assert rows[-1]["reason"] == "too few images"


def test_the_best_setting_is_a_settings_file(plan: SweepPlan, tmp_path: Path) -> None:
    write_results(plan, str(tmp_path / "out"), records(plan))
    file = tmp_path / "out" / "best.yaml"
    expected = plan.trial(plan.choices()[3]).settings
    assert load_settings("mini", str(file)) == expected
    assert expected.references.exemplars == 3
    text = file.read_text()
    assert "chosen without labels, by augmentation_agreement" in text
    assert "--vocabulary words.txt" in text


def test_without_a_finished_trial_there_is_no_best(plan: SweepPlan, tmp_path: Path) -> None:
    write_results(plan, str(tmp_path / "out"), records(plan)[1:3])
    assert (tmp_path / "out" / "trials.parquet").exists()
    assert not (tmp_path / "out" / "best.yaml").exists()


def test_the_page_is_one_file_with_a_line_for_every_trial_that_was_scored(
    plan: SweepPlan, tmp_path: Path
) -> None:
    write_results(plan, str(tmp_path / "out"), records(plan))
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "://" not in page
    assert page.count("<polyline") == 4
    assert page.count('class="stopped"') == 2
    for text in (
        "references.exemplars",
        "chosen without labels",
        "too few images",
        "2 finished, 2 stopped early",
    ):
        assert text in page


def test_the_printed_table_and_the_line_of_a_trial(plan: SweepPlan) -> None:
    table = as_table(plan, rank(plan, records(plan))).splitlines()
    assert table[2].startswith("| references.exemplars | references.context_elimination |")
    assert "| 0.5000 | 4 | finished |" in table[4]
    assert len(table) == 4 + 5
    assert summary(plan, records(plan)[0]).startswith("finished at 4 images: augmentation_agreement 0.3000")
    assert summary(plan, records(plan)[1]).startswith("failed: too few images")


def test_records_are_read_as_they_were_written(plan: SweepPlan, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for each in records(plan):
        write_record(out, each)
    (tmp_path / "out" / "trials" / "ffff.json").write_text("half a rec")
    assert sorted(read_records(out), key=lambda r: r.id) == sorted(records(plan), key=lambda r: r.id)


# --- rank correlation ---------------------------------------------------------------------------------------


def test_spearman_knows_ranks_only() -> None:
    values = np.array([3.0, 1.0, 2.0, 10.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)


def test_spearman_of_a_known_example_and_of_ties() -> None:
    # 1 - 6 * sum of squared differences / (n (n^2 - 1)), with differences 1, 1, 1, 1, 0
    assert spearman(np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])) == pytest.approx(1 - 24 / 120)
    # Pearson's of the ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        4.5 / (4.5 * 5) ** 0.5
    )
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None
    assert spearman(np.array([1.0]), np.array([1.0])) is None


def test_correlations_turn_the_sign_of_what_is_better_low(plan: SweepPlan) -> None:
    assert rank_correlations(plan, records(plan)) == {}
    labelled = SweepPlan(
        plan.sweep.model_copy(update={"objective": "miou"}),
        plan.folder,
        plan.base,
        plan.vocabularies,
        plan.images,
        None,
        plan.listing,
    )
    found = []
    for number, miou in enumerate([0.1, 0.2, 0.3]):
        figures = {"miou": miou, "seed_agreement": -miou, "support_margin": 0.5, "prediction_entropy": -miou}
        each = record(plan, number, "finished", 0.0)
        found.append(each.model_copy(update={"rungs": [Rung(images=4, used=4, figures=figures)]}))
    correlations = rank_correlations(labelled, found)
    assert correlations == {
        "seed_agreement": pytest.approx(-1),
        "support_margin": None,
        "prediction_entropy": pytest.approx(1),
    }
