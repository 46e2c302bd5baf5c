"""The presets' files: the paper's constants are in them, and every model they name exists."""

import open_clip
import pytest
import timm

from reco_ray.config import load_settings, preset_names
from reco_ray.models.dense_encoders.timm import RELEASED
from reco_ray.models.prompts import prompt_templates


def test_there_are_three():
    assert preset_names() == ["mini", "modern", "paper"]


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_every_model_is_one_that_its_library_has_weights_for(preset):
    models = load_settings(preset).models
    for spec in models.specs:
        family, _, name = spec.partition(":")
        if family == "open_clip":
            architecture, _, tag = name.partition("/")
            assert open_clip.get_pretrained_cfg(architecture, tag), spec
        else:
            assert name in RELEASED or timm.is_model_pretrained(name), spec
    assert len(prompt_templates(models.templates)) >= 80


def test_the_papers_constants():
    settings = load_settings("paper")
    assert settings.models.specs == [
        "open_clip:ViT-L-14-336/openai",
        "open_clip:RN50x16/openai",
        "timm:deit_small_distilled_patch16_224.sin",
    ]
    references, segment = settings.references, settings.segment
    assert (references.exemplars, references.image_size, references.geometry) == (50, 224, "crop")
    assert (references.reduction, references.pairing, references.prototypes) == ("mean", "exact", 1)
    assert references.language_attention
    assert references.context_elimination
    assert (segment.image_size, segment.use, segment.refine) == (320, "both", "crf")


def test_modern_images_fit_both_patch_sizes():
    settings = load_settings("modern")
    assert settings.references.image_size % (14 * 16) == settings.segment.image_size % (14 * 16) == 0
    assert settings.models.affinity == "proxyclip"


def test_a_preset_is_changed_by_a_file_and_by_words(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("models: {affinity: dinoiser}\nreferences: {exemplars: 20}\n")
    chosen = load_settings("modern", str(file), ["references.exemplars=5", "segment.refine=pamr"])
    assert (chosen.models.affinity, chosen.references.exemplars, chosen.segment.refine) == (
        "dinoiser",
        5,
        "pamr",
    )
    assert chosen.models.encoder == load_settings("modern").models.encoder
