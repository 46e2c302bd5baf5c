import open_clip
import pytest
import torch
import torch.nn.functional as F

from reco_ray.errors import RecoError
from reco_ray.models import load_language_image_model
from reco_ray.models.prompts import (
    SCENE_TEMPLATES,
    TEMPLATE_NAMES,
    encode_prompts,
    prompt_templates,
    require_latin,
)


@pytest.fixture(scope="module")
def conse():
    return load_language_image_model("conse:efficientnet_lite0")


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_every_template_has_one_place_for_the_words(name):
    templates = prompt_templates(name)
    assert templates
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


def test_clips_own_templates_come_from_open_clip():
    assert prompt_templates("imagenet") == [
        template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert len(prompt_templates("imagenet")) == 80
    assert prompt_templates("simple") == [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]


def test_sets_are_joined_in_order_and_without_repetition():
    assert prompt_templates("plain+scene") == ["{}", *SCENE_TEMPLATES]
    assert prompt_templates("imagenet+simple") == prompt_templates(
        "imagenet"
    )  # the simple ones are among them


@pytest.mark.parametrize("name", ["", "imagenett", "plain+", "plain,scene"])
def test_unknown_templates_are_named(name):
    with pytest.raises(RecoError, match="choose of plain, simple, imagenet, scene"):
        prompt_templates(name)


def test_a_concept_is_the_renormalised_mean_over_synonyms_and_templates(conse):
    embeddings = encode_prompts(conse, [["car", "automobile"], ["sky"]], "plain+scene")
    prompts = [
        template.replace("{}", name)
        for name in ("car", "automobile")
        for template in ("{}", *SCENE_TEMPLATES)
    ]
    expected = F.normalize(conse.encode_texts(prompts).mean(dim=0), dim=0)
    assert embeddings.shape == (2, conse.embedding_dim)
    assert torch.allclose(embeddings[0], expected, atol=1e-6)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2), atol=1e-6)


def test_all_prompts_are_encoded_in_one_call(conse, monkeypatch):
    calls = []
    encode = conse.encode_texts
    monkeypatch.setattr(conse, "encode_texts", lambda texts: calls.append(len(texts)) or encode(texts))
    encode_prompts(conse, [["cat"], ["dog", "hound"]], "plain")
    assert calls == [3]


def test_braces_in_a_name_are_just_characters(conse):
    assert encode_prompts(conse, [["{0} {x}"]], "scene").isfinite().all()


def test_a_concept_without_words_is_a_programming_error(conse):
    with pytest.raises(ValueError, match="at least one name"):
        encode_prompts(conse, [["cat"], []])


@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "café",
        "Straße",
        "smørrebrød",
        "żółw",
        "traffic light 2",
        "½ m²",
        "№ 1 — “x”",
        "\uff23\uff21\uff34",  # CAT in full width
        "",
        "🚗",
    ],
)
def test_latin_script_passes(text):
    require_latin([text], "some model")


@pytest.mark.parametrize(
    "text", ["кот", "猫", "ねこ", "고양이", "قطة", "חתול", "γάτα", "बिल्ली", "แมว", "cat кот"]
)
def test_other_scripts_are_refused_with_a_way_out(text):
    with pytest.raises(
        RecoError, match="some model reads English only: give the concept an English synonym"
    ) as caught:
        require_latin(["dog", text], "some model")
    assert repr(text) in str(caught.value)


def test_conse_refuses_other_scripts(conse):
    with pytest.raises(RecoError, match=r"'кот'.*English synonym"):
        conse.encode_texts(["cat", "кот"])
