import argparse

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.repvit import RepVggDw
from torch import nn

from reco_ray.errors import RecoError
from reco_ray.models import DenseEncoder, load_dense_encoder, weights
from reco_ray.models.dense_encoders.timm import RELEASED, LayerFeatures
from reco_ray.models.runtime import fold_batch_norms

pytestmark = pytest.mark.usefixtures("own_cache")
# Every kind of encoder the presets and guides name: input size of its transform, channels, stride.
KINDS = {
    "deit_small_distilled_patch16_224.sin": (224, 384, 16),
    "vit_small_patch16_224.dino": (224, 384, 16),
    "vit_small_patch14_dinov2.lvd142m": (518, 384, 14),
    "vit_small_patch14_reg4_dinov2.lvd142m": (518, 384, 14),
    "vit_small_patch16_dinov3.lvd1689m": (256, 384, 16),
    "convnext_tiny.dinov3_lvd1689m": (224, 768, 32),
    "resnet18": (224, 512, 32),
    "swin_tiny_patch4_window7_224": (224, 768, 32),
    "regnety_002": (224, 368, 32),
}
# Tokens before those of the patches, by kind: class and distillation; class and registers; the same with
# rotations and projections with and without biases; class alone, with rotations.
PREFIXED = {
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_tiny_patch16_dinov3_qkvb": 5,
    "vit_small_patch16_dinov3": 5,
    "eva02_tiny_patch14_224": 1,
}


def load(name, **options):
    return load_dense_encoder(f"timm:{name}", precision="fp32", **options)


def images(height, width, batch=1, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def network(name, **options):
    """timm's own kind of transformer, small."""
    small = {"embed_dim": 96, "num_heads": 3, "depth": 6}
    with weights.seeded(0):
        return timm.create_model(name, dynamic_img_size=True, **small, **options).eval()


def drawn(net):
    """Every parameter drawn anew: fresh biases and layer scales are next to nothing, and hide mistakes."""
    with weights.seeded(1):
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_a_map_of_the_whole_image(name):
    side, channels, stride = KINDS[name]
    encoder = load(f"{name}/random")
    assert isinstance(encoder, DenseEncoder)
    assert (encoder.transform.size, encoder.channels, encoder.stride) == (side, channels, stride)
    features = encoder.encode(images(4 * stride, 3 * stride, batch=2))
    assert features.shape == (2, channels, 4, 3)
    assert features.dtype == torch.float32
    assert encoder.encode(images(4 * stride + 5, 3 * stride - 5)).shape == (1, channels, 4, 3)


@pytest.mark.parametrize("name", PREFIXED)
def test_no_prefix_token_shifts_the_map(name):
    """What changes in the picture changes most where it is; one token too many or too few would move it."""
    features = LayerFeatures(network(name), layer=0)
    stride = features.stride
    before = images(5 * stride, 4 * stride)
    for row, column in ((0, 0), (4, 3), (2, 1)):
        after = before.clone()
        after[..., row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] *= -2
        with torch.inference_mode():
            change = (features(after) - features(before)).norm(dim=1)[0]
        assert divmod(int(change.argmax()), 4) == (row, column)
        largest, second = change.flatten().topk(2).values.tolist()
        assert largest > 2 * second


@pytest.mark.parametrize("name", PREFIXED)
def test_tokens_are_the_networks_own_without_its_prefix(name):
    net = drawn(network(name))
    stride = net.patch_embed.patch_size[0]
    batch = images(3 * stride, 2 * stride, batch=2)
    with torch.inference_mode():
        expected = net.forward_features(batch)[:, PREFIXED[name] :].transpose(1, 2).unflatten(2, (3, 2))
        assert torch.allclose(LayerFeatures(net)(batch), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PREFIXED), ("eva02_tiny_patch14_224", {"qkv_fused": False})],
    ids=[*PREFIXED, "eva02_separate"],
)
@pytest.mark.parametrize("output", ["q", "k", "v"])
def test_queries_keys_and_values_are_projections_of_the_normalised_tokens(name, options, output):
    net = drawn(network(name, **options))
    layer, stride = 4, net.patch_embed.patch_size[0]
    batch = images(3 * stride, 2 * stride, batch=2)
    attention, part = net.blocks[layer].attn, "qkv".index(output)
    seen = []
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net.forward_features(batch)
    hook.remove()
    if attention.qkv is None:
        projection = (attention.q_proj, attention.k_proj, attention.v_proj)[part]
        expected = projection(seen[0])
    else:
        bias = attention.qkv.bias
        if bias is None and attention.q_bias is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        expected = F.linear(seen[0], attention.qkv.weight, bias).chunk(3, dim=2)[part]
    expected = expected[:, PREFIXED[name] :].transpose(1, 2).unflatten(2, (3, 2))
    features = LayerFeatures(net, layer, output)
    with torch.inference_mode():
        assert torch.allclose(features(batch), expected, atol=1e-4)
    assert features.channels == expected.shape[1]
    assert len(features.net.blocks) == layer + 1  # nothing behind the chosen layer is computed


@pytest.mark.parametrize("layer", [0, 2, -1, -6])
def test_a_layer_of_a_transformer_is_chosen(layer):
    net = network("deit_tiny_distilled_patch16_224")
    batch = images(64, 48)
    with torch.inference_mode():
        expected = net.forward_intermediates(batch, norm=True, intermediates_only=True)[layer]
        assert torch.allclose(LayerFeatures(net, layer)(batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "channels", "stride"), [(-1, 512, 32), (3, 256, 16), (-3, 128, 8), (0, 64, 2)]
)
def test_a_level_of_a_pyramid_is_chosen(layer, channels, stride):
    encoder = load(f"resnet18/random@layer={layer}")
    pyramid = timm.create_model("resnet18", features_only=True, out_indices=(layer % 5,)).eval()
    assert (encoder.channels, encoder.stride) == (channels, stride)
    assert (pyramid.feature_info.channels(), pyramid.feature_info.reduction()) == ([channels], [stride])
    with weights.seeded(0):
        reference = timm.create_model("resnet18").eval()
    pyramid.load_state_dict(reference.state_dict(), strict=False)
    batch = images(96, 64)
    with torch.inference_mode():
        assert torch.allclose(encoder.encode(batch), pyramid(batch)[0], atol=1e-4)


def test_random_weights_are_reproducible_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first, second, other = (load("resnet10t/random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert torch.equal(first.encode(images(64, 64)), second.encode(images(64, 64)))


def test_the_fingerprint_tells_layers_and_outputs_apart():
    names = ("", "@layer=3", "@output=k", "@layer=3,output=k", "@output=v,layer=3")
    encoders = [load(f"test_vit/random{'' if name == '' else name.replace('3', '1')}") for name in names]
    assert len({encoder.fingerprint for encoder in encoders}) == len(names)
    assert load("test_vit/random@layer=-1,output=tokens").fingerprint == encoders[0].fingerprint


def test_bfloat16_is_close_to_float32():
    batch = images(64, 64)
    for name in ("test_vit/random@output=k", "eva02_tiny_patch14_224/random@layer=5", "resnet10t/random"):
        exact = load(name).encode(batch)
        quick = load_dense_encoder(f"timm:{name}", precision="bf16").encode(batch)
        assert quick.dtype == torch.float32
        assert F.cosine_similarity(exact, quick, dim=1).min() > 0.98


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal_patch16_224/random", "did you mean vit_small_patch16_224"),
        ("resnet18.nope", "timm:resnet18 has no weights 'nope': choose of a1_in1k"),
        ("cspresnet50d", "timm:cspresnet50d was never released with weights"),
        ("test_vit/random@layer=12", "layer 12: test_vit has 0 to 5, or -6 to -1"),
        ("resnet10t/random@output=k", "output k: resnet10t has no such attention, take output=tokens"),
        ("test_efficientnet/random@output=q", "has no such attention"),
        (
            "test_vit/random@output=query",
            "timm option 'output=query': expected layer=N or output=tokens|q|k|v",
        ),
        ("test_vit/random@layer=last", "timm option 'layer=last'"),
        ("test_vit/random@depth=3", "timm option 'depth=3'"),
    ],
)
def test_bad_names_are_explained(name, message):
    with pytest.raises(RecoError) as caught:
        load(name)
    assert message in str(caught.value)


# --- weights from files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """The tensors of a distilled DeiT as its authors save them, classifiers included, and its features."""
    with weights.seeded(8):
        net = timm.create_model("deit_tiny_distilled_patch16_224").eval()
    expected = load("deit_tiny_distilled_patch16_224/random", seed=8).encode(images(64, 64))
    return net.state_dict(), expected


def test_a_checkpoint_of_training_code_is_loaded(trained, tmp_path):
    state, expected = trained
    checkpoint = {"model": state, "args": argparse.Namespace(model="deit"), "epoch": 299}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    encoder = load("deit_tiny_distilled_patch16_224", weights=str(tmp_path / "checkpoint.pth"))
    assert torch.equal(encoder.encode(images(64, 64)), expected)
    assert "state_dict" not in encoder.module.net.pretrained_cfg
    weights.write_state_dict(state, tmp_path / "converted")
    converted = load(
        "deit_tiny_distilled_patch16_224/pretrained", weights=str(tmp_path / "converted.safetensors")
    )
    assert converted.fingerprint == encoder.fingerprint


def test_released_checkpoints_are_fetched_pulled_and_found(trained, tmp_path, monkeypatch):
    state, expected = trained
    torch.save({"model": state}, tmp_path / "released.pth")
    name = "deit_tiny_distilled_patch16_224.sin"
    monkeypatch.setitem(RELEASED, name, (tmp_path / "released.pth").as_uri())
    assert torch.equal(load(name).encode(images(64, 64)), expected)
    pulled = weights.pull(f"timm:{name}@layer=3", tmp_path / "weights")
    assert pulled.path == tmp_path / "weights" / "timm" / f"{name}.safetensors"
    monkeypatch.setitem(RELEASED, name, (tmp_path / "gone.pth").as_uri())
    local = load(name, weights=str(tmp_path / "weights"))
    assert torch.equal(local.encode(images(64, 64)), expected)


def test_the_encoder_of_the_paper_is_released_by_its_authors():
    assert RELEASED["deit_small_distilled_patch16_224.sin"].startswith("https://github.com/Muzammal-Naseer/")
    assert RELEASED["deit_small_distilled_patch16_224.sin"].endswith("deit_s_sin_dist.pth")


def test_an_incomplete_checkpoint_is_refused(trained, tmp_path):
    state, _ = trained
    path = weights.write_state_dict({k: v for k, v in state.items() if k != "dist_token"}, tmp_path / "torn")
    with pytest.raises(RecoError, match=r"does not hold the weights of timm:deit_tiny.*dist_token"):
        load("deit_tiny_distilled_patch16_224", weights=str(path))


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = weights.write_state_dict(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet")
    with pytest.raises(RecoError, match=r"resnet\.safetensors: does not hold the weights of timm:test_vit"):
        load("test_vit", weights=str(path))


# --- folded batch norms -------------------------------------------------------------------------------------


def randomize_norms(module):
    with weights.seeded(0):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_mean, -0.2, 0.2)
                for tensor in (norm.running_var, norm.weight, norm.bias):
                    nn.init.uniform_(tensor, 0.5, 1.0)
    return module.eval()


@pytest.mark.parametrize("name", ["resnet10t", "regnety_002", "mobilenetv3_small_050"])
def test_folding_keeps_what_a_network_computes(name):
    with weights.seeded(0):
        net = randomize_norms(timm.create_model(name))
    batch = images(64, 64)
    with torch.inference_mode():
        expected = net(batch)
        before = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        folded = fold_batch_norms(net)
        after = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert torch.allclose(folded(batch), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert after <= before * 0.55


def test_a_norm_after_a_sum_is_not_folded_into_the_convolution_beside_it():
    with weights.seeded(0):
        block = randomize_norms(RepVggDw(8, 3))
    batch = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = block(batch)
        assert torch.allclose(fold_batch_norms(block)(batch), expected, atol=1e-5)
