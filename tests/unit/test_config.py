"""Settings: a preset, changed by a file, changed by the command line."""

import pytest

from reco_ray.config import load_settings, preset_names
from reco_ray.errors import RecoError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name):
    settings = load_settings(name)
    assert settings.preset == name
    assert settings.models.retrieval
    assert settings.references.exemplars >= 1


def test_mini_is_the_default():
    assert load_settings() == load_settings("mini")


def test_command_line_wins_over_file_wins_over_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("references: {exemplars: 5, image_size: 64}\nseed: 7\n")
    settings = load_settings("mini", str(file), ["references.exemplars=9", "segment.refine=pamr"])
    preset = load_settings("mini")
    assert settings.references.exemplars == 9
    assert settings.references.image_size == 64
    assert settings.seed == 7
    assert settings.segment.refine == "pamr"
    assert settings.references.reduction == preset.references.reduction
    assert settings.models == preset.models


def test_values_are_yaml():
    settings = load_settings(overrides=["models.weights=null", "segment.overlays=false", "seed=3"])
    assert settings.models.weights is None
    assert settings.segment.overlays is False
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["references.exemplar=3"], r"setting references\.exemplar: there is no such setting"),
        (["exemplars=3"], r"setting exemplars: there is no such setting"),
        (["references.exemplars=0"], r"setting references\.exemplars: .*greater than or equal to 1"),
        (["references.exemplars=many"], r"setting references\.exemplars: .*integer"),
        (["segment.refine=best"], r"setting segment\.refine: .*none, crf, pamr, superpixels"),
        (["embed.max_pixels=999999999999"], r"setting embed\.max_pixels: .*less than or equal"),
        (["models=3"], r"setting models: "),
        (["references"], r"--set 'references': expected section\.field=value"),
        (["=3"], r"expected section\.field=value"),
        (["references.exemplars=["], r"--set 'references\.exemplars=\[': the value is not valid YAML"),
        (["references..exemplars=3"], r"there is no such setting"),
    ],
)
def test_bad_overrides_are_named(overrides, says):
    with pytest.raises(RecoError, match=says) as caught:
        load_settings(overrides=overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(RecoError, match=r"unknown preset 'huge': choose one of .*mini"):
        load_settings("huge")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected a mapping"),
        ("- a\n- b\n", "expected a mapping"),
        ("references: [", "the settings cannot be read"),
        ("1: 2\n", "setting 1"),
        ("references: {unheard: 1}", r"setting references\.unheard: there is no such setting"),
    ],
)
def test_bad_settings_files_are_named(tmp_path, text, says):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(RecoError, match=says) as caught:
        load_settings(file=str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_missing_settings_file():
    with pytest.raises(RecoError, match=r"/nowhere/settings\.yaml: the settings cannot be read"):
        load_settings(file="/nowhere/settings.yaml")


def test_the_preset_is_chosen_by_its_own_option(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("preset: mini\nseed: 1\n")
    with pytest.raises(RecoError, match="choose it with --preset"):
        load_settings("mini", str(file))
    with pytest.raises(RecoError, match="choose it with --preset"):
        load_settings(overrides=["preset=mini"])
