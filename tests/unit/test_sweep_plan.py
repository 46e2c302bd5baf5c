"""sweep.yaml: what is tried, in which order images are scored, and what a wrong file is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from images import write_photographs
from PIL import Image

from reco_ray.config import load_settings
from reco_ray.errors import RecoError
from reco_ray.sweeps import sweep_file
from reco_ray.sweeps.sweep_plan import SweepPlan, open_plan

GRID = {"references.exemplars": [2, 3, 4], "segment.refine": ["none", "pamr"]}
MINIMAL = {"corpus": "corpus", "images": "images", "vocabulary": "words.txt", "vary": GRID}
LABELLED = {"corpus": "corpus", "benchmark": "folder", "data": "labelled", "vary": GRID}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_photographs(folder / "corpus", 3)
    write_photographs(folder / "images", 20)
    labels = folder / "labelled" / "labels"
    labels.mkdir(parents=True)
    for file in write_photographs(folder / "labelled" / "images", 10):
        ids = np.zeros(Image.open(file).size[::-1], np.uint8)
        ids[0] = 1
        Image.fromarray(ids).save(labels / f"{file.stem}.png")
    (folder / "labelled" / "classes.txt").write_text("dog\ncar\n")
    (folder / "words.txt").write_text("dog\ncar\n")
    (folder / "synonyms.txt").write_text("dog: hound\ncar: automobile\n")
    (folder / "other.txt").write_text("car\ndog\n")
    (folder / "settings.yaml").write_text("references: {image_size: 64, exemplars: 9}\n")
    return folder


def opened(folder: Path, fields: dict[str, Any], **changes: Any) -> SweepPlan:
    """The plan of a file with these fields; a field that is changed to None is left out."""
    kept = {key: value for key, value in (fields | changes).items() if value is not None}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(kept, sort_keys=False))
    return open_plan(str(file))


def test_chosen_images_are_part_of_what_is_tried(folder: Path) -> None:
    plain = opened(folder, MINIMAL).made_from()
    (folder / "chosen.yaml").write_text(
        "concepts: {dog: {examples: [images/000.jpg], rejected: [corpus/001.jpg]}}"
    )
    plan = opened(folder, MINIMAL, curation="chosen.yaml")
    (vocabulary,) = plan.vocabularies.values()
    assert vocabulary.concepts[0].examples[0].image == str(folder / "images" / "000.jpg")
    assert vocabulary.concepts[0].examples[0].image_id is not None
    assert plan.made_from() != plain
    (folder / "wins.yaml").write_text("concepts: {car: {rejected: [corpus/001.jpg]}}")
    wins = open_plan(str(folder / "sweep.yaml"), str(folder / "wins.yaml"))
    assert [concept.chosen for concept in next(iter(wins.vocabularies.values())).concepts] == [False, True]
    (folder / "chosen.yaml").write_text("concepts: {dog: {examples: [images/gone.jpg]}}")
    with pytest.raises(RecoError, match=r"sweep.yaml: concept 'dog': examples: .*gone.jpg: cannot be read"):
        opened(folder, MINIMAL, curation="chosen.yaml")


# --- what is tried ------------------------------------------------------------------------------------------


def test_a_grid_tries_every_combination_once(folder: Path) -> None:
    plan = opened(folder, MINIMAL)
    trials = [plan.trial(choice) for choice in plan.choices()]
    found = {(t.settings.references.exemplars, t.settings.segment.refine) for t in trials}
    assert found == {(k, refine) for k in (2, 3, 4) for refine in ("none", "pamr")}
    assert len({trial.id for trial in trials}) == len(trials) == 6


def test_random_search_tries_different_settings_and_the_same_ones_again(folder: Path) -> None:
    plan = opened(folder, MINIMAL, search="random", trials=4)
    choices = plan.choices()
    assert len({plan.trial(choice).id for choice in choices}) == 4
    assert opened(folder, MINIMAL, search="random", trials=4).choices() == choices
    assert opened(folder, MINIMAL, search="random", trials=4, seed=1).choices() != choices
    assert len(opened(folder, MINIMAL, search="random", trials=99).choices()) == 6


def test_what_varies_wins_over_what_is_set_wins_over_the_file_wins_over_the_preset(folder: Path) -> None:
    changes: dict[str, Any] = {"settings": "settings.yaml", "set": {"segment.image_size": 96}}
    settings = (
        opened(folder, MINIMAL, **changes).trial({"references.exemplars": 1, "segment.refine": 1}).settings
    )
    assert settings.references.exemplars == 3
    assert settings.segment.refine == "pamr"
    assert settings.segment.image_size == 96
    assert settings.references.image_size == 64
    assert settings.models == load_settings("mini").models


def test_a_vocabulary_varies_like_a_setting(folder: Path) -> None:
    vary = {"vocabulary": ["words.txt", "synonyms.txt"], "references.exemplars": [2]}
    plan = opened(folder, MINIMAL, vocabulary=None, vary=vary)
    words = [plan.trial(choice).vocabulary.concepts[0].words for choice in plan.choices()]
    assert words == [("dog",), ("hound",)]


def test_a_benchmark_brings_its_vocabulary_and_takes_other_words(folder: Path) -> None:
    plan = opened(folder, LABELLED)
    assert plan.dataset is not None
    trial = plan.trial(plan.choices()[0])
    assert trial.vocabulary == plan.dataset.vocabulary
    assert trial.settings.segment.background is False
    other = opened(folder, LABELLED, vocabulary="synonyms.txt")
    assert other.trial(other.choices()[0]).vocabulary.concepts[1].words == ("automobile",)


# --- which images -------------------------------------------------------------------------------------------


def test_images_come_in_an_order_of_chance_that_a_seed_repeats(folder: Path) -> None:
    plan = opened(folder, MINIMAL)
    assert len(set(plan.images)) == 20
    assert plan.images != sorted(plan.images)
    assert opened(folder, MINIMAL).images == plan.images
    assert opened(folder, MINIMAL, seed=1).images != plan.images
    assert len(opened(folder, MINIMAL, sample=7).images) == 7


def test_labels_stay_with_their_images(folder: Path) -> None:
    plan = opened(folder, LABELLED, sample=6)
    assert plan.dataset is not None
    assert [sample.image for sample in plan.dataset.samples] == plan.images
    stems = [(Path(sample.image).stem, Path(sample.label).stem) for sample in plan.dataset.samples]
    assert len(stems) == 6
    assert all(image == label for image, label in stems)


@pytest.mark.parametrize(
    ("stopping", "rungs"),
    [
        (None, [20]),
        ({"first": 3, "factor": 2}, [3, 6, 12, 20]),
        ({"first": 20}, [20]),
        ({"first": 500}, [20]),
    ],
)
def test_rungs_grow_to_all_images(folder: Path, stopping: dict | None, rungs: list[int]) -> None:
    assert opened(folder, MINIMAL, early_stopping=stopping).rungs == rungs


def test_the_objective_is_miou_only_where_there_are_labels(folder: Path) -> None:
    assert opened(folder, LABELLED).objective == "miou"
    free = opened(folder, MINIMAL)
    assert free.objective == "augmentation_agreement"
    assert "miou" not in free.measured
    cheap = opened(folder, MINIMAL, objective="support_margin").measured
    assert cheap == ["seed_agreement", "support_margin", "prediction_entropy"]


def test_what_determines_the_figures_changes_with_the_images(folder: Path) -> None:
    before = opened(folder, MINIMAL).made_from()
    assert opened(folder, MINIMAL).made_from() == before
    assert opened(folder, MINIMAL, images="corpus").made_from()["listing"] != before["listing"]


# --- wrong files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "changes", "says"),
    [
        (MINIMAL, {"vary": {}}, "vary: nothing to vary"),
        (MINIMAL, {"vary": {"references.exemplars": []}}, r"vary\.references\.exemplars: expected a list"),
        (
            MINIMAL,
            {"vary": {"references.exemplars": 4}},
            r"vary\.references\.exemplars: expected a list .*got 4",
        ),
        (MINIMAL, {"vary": {"references.exemplars": [4, 4]}}, "a value is given twice"),
        (MINIMAL, {"vary": {"references.exemplar": [4]}}, r"references\.exemplar: there is no such setting"),
        (
            MINIMAL,
            {"vary": {"references.exemplars": [4, 0]}},
            r"references\.exemplars: .*greater than or equal",
        ),
        (
            MINIMAL,
            {"vary": {"train.steps": [4]}},
            r"train\.steps: only fields of models, references, segment",
        ),
        (MINIMAL, {"set": {"segment.refine": "crf"}}, r"segment\.refine: both in set and in vary"),
        (MINIMAL, {"set": {"segment.refined": "crf"}}, r"segment\.refined: there is no such setting"),
        (MINIMAL, {"set": {"vocabulary": "words.txt"}}, r"set\.vocabulary: name it as vocabulary"),
        (MINIMAL, {"varry": GRID}, "varry: there is no such field"),
        (MINIMAL, {"search": "bayes"}, "search: input should be 'grid', 'random' or 'optuna'"),
        (MINIMAL, {"search": "random"}, "trials: say how many settings a random search"),
        (MINIMAL, {"trials": 3}, "trials: a grid tries everything"),
        (MINIMAL, {"objective": "miou"}, "miou: needs labels"),
        (MINIMAL, {"measure": ["miou"]}, "miou: needs labels"),
        (MINIMAL, {"objective": "beauty"}, "objective: input should be 'miou'"),
        (MINIMAL, {"vocabulary": None}, "vocabulary: name the file"),
        (MINIMAL, {"vocabulary": "gone.txt"}, r"gone\.txt: the vocabulary cannot be read"),
        (MINIMAL, {"vary": {"vocabulary": ["words.txt"]}}, "vocabulary: both given and varied"),
        (MINIMAL, {"corpus": None}, "either corpus .* or index"),
        (MINIMAL, {"corpus": "gone"}, "gone: no such file or folder"),
        (MINIMAL, {"corpus": None, "index": "gone"}, "gone: this index artifact is not there"),
        (MINIMAL, {"images": "gone"}, "gone: no such file or folder"),
        (MINIMAL, {"images": None}, "either images .* or benchmark"),
        (MINIMAL, {"data": "labelled"}, "benchmark and data: give both or neither"),
        (MINIMAL, {"preset": "huge"}, "unknown preset 'huge'"),
        (MINIMAL, {"settings": "gone.yaml"}, r"gone\.yaml: the settings cannot be read"),
        (MINIMAL, {"early_stopping": {"factor": 1}}, r"early_stopping\.factor: .*greater than or equal to 2"),
        (LABELLED, {"data": "corpus"}, "does not exist, but folder has its files there"),
        (LABELLED, {"benchmark": "nothing"}, "unknown benchmark 'nothing'"),
        (LABELLED, {"vocabulary": "other.txt"}, r"other\.txt: its concepts must be those of folder"),
    ],
)
def test_wrong_files_get_one_line(folder: Path, fields: dict, changes: dict, says: str) -> None:
    with pytest.raises(RecoError, match=says) as caught:
        opened(folder, fields, **changes)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(str(folder / "sweep.yaml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [("- a\n", "expected a mapping"), ("a: [", "cannot be read"), ("corpus: corpus\n", "vary: ")],
)
def test_files_that_are_no_sweep(folder: Path, text: str, says: str) -> None:
    (folder / "odd.yaml").write_text(text)
    with pytest.raises(RecoError, match=says):
        open_plan(str(folder / "odd.yaml"))
    with pytest.raises(RecoError, match=r"gone\.yaml: the sweep cannot be read"):
        open_plan(str(folder / "gone.yaml"))


def test_a_missing_searcher_is_named_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_file, "find_spec", lambda name: None)
    with pytest.raises(RecoError, match=r'optuna is not installed: pip install "reco-ray\[sweep\]"'):
        opened(folder, MINIMAL, search="optuna", trials=3)
