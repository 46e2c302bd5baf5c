"""The embedded models on real photographs: they find what is asked for, in either precision."""

import sys
from pathlib import Path

import pytest
import torch
from images import photograph

from reco_ray.config import ModelSettings
from reco_ray.errors import RecoError
from reco_ray.models import DenseEncoder, LanguageImageModel, load_dense_encoder, load_language_image_model
from reco_ray.models.dense import DenseModels
from reco_ray.models.language_image.conse import ConSE, _SentenceEncoder
from reco_ray.models.protocols import DenseClassifier
from reco_ray.models.text_cache import TextCache

SPEC = "conse:efficientnet_lite0"
# What the photographs of `images.py` show: a concept -> the number of its best one.
SHOWN = {"coffee": 22, "cat": 21, "motorcycle": 24, "flower": 27, "building": 26, "beetle": 19, "bird": 14}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models() -> dict[str, ConSE]:
    return {precision: load_language_image_model(SPEC, precision=precision) for precision in ("fp32", "bf16")}


@pytest.fixture(scope="module")
def images(models) -> torch.Tensor:
    return torch.stack([models["fp32"].preprocess(photograph(number, 256)) for number in range(28)])


@pytest.fixture(scope="module")
def embeddings(models, images) -> dict[str, torch.Tensor]:
    return {precision: model.encode_images(images) for precision, model in models.items()}


def is_unit(vectors: torch.Tensor, dim: int) -> bool:
    return torch.allclose(vectors.norm(dim=dim), torch.ones(()), atol=1e-4)


def test_it_is_a_language_image_model(models):
    assert isinstance(models["fp32"], LanguageImageModel)
    assert isinstance(models["fp32"], DenseClassifier)
    assert models["fp32"].class_embeddings.shape == (1000, 384)
    assert is_unit(models["fp32"].class_embeddings, 1)
    assert isinstance(load_dense_encoder("efficientnet_lite0"), DenseEncoder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shapes_dtypes_and_unit_rows(models, images, embeddings, precision):
    model = models[precision]
    assert images.shape == (28, 3, 224, 224)
    assert embeddings[precision].shape == (28, model.embedding_dim) == (28, 384)
    assert embeddings[precision].dtype == torch.float32
    assert is_unit(embeddings[precision], 1)

    texts = model.encode_texts(["dog", "traffic light", "dog"])
    assert texts.shape == (3, 384)
    assert texts.dtype == torch.float32
    assert is_unit(texts, 1)
    assert torch.equal(texts[0], texts[2])

    dense = model.encode_dense(images[:2, :, :192, :])
    assert dense.shape == (2, 384, 6, 7)
    assert dense.dtype == torch.float32
    assert is_unit(dense, 1)


def test_no_gradients_are_kept(models, images):
    for output in (models["fp32"].encode_images(images[:1]), models["fp32"].encode_dense(images[:1])):
        assert not output.requires_grad
    assert not any(parameter.requires_grad for parameter in models["fp32"].module.parameters())


def test_words_find_the_photographs_that_show_them(models, embeddings):
    similarity = models["fp32"].encode_texts(list(SHOWN)) @ embeddings["fp32"].T
    assert dict(zip(SHOWN, similarity.argmax(dim=1).tolist(), strict=True)) == SHOWN
    dogs = (models["fp32"].encode_texts(["dog"]) @ embeddings["fp32"].T).topk(2).indices[0]
    assert set(dogs.tolist()) == {0, 16}


def test_bf16_retrieves_the_same_images(models, embeddings):
    words = models["fp32"].encode_texts([*SHOWN, "dog", "car", "person"])
    exact, fast = (words @ embeddings[precision].T for precision in ("fp32", "bf16"))
    k = 5
    assert torch.equal(exact.argmax(dim=1), fast.argmax(dim=1))
    found = fast.topk(k).indices
    agreeing = (found[:, :, None] == exact.topk(k).indices[:, None, :]).any(dim=2)
    assert agreeing.float().mean() >= 0.95
    # Where they differ, it is between images that suit the word equally well.
    worst = exact.topk(k).values[:, -1:]
    assert (exact.gather(1, found) >= worst - 0.03).all()
    neighbours = [(e @ e.T - 2 * torch.eye(len(e))).argmax(dim=1) for e in embeddings.values()]
    assert (neighbours[0] == neighbours[1]).float().mean() >= 0.95


def test_an_image_is_embedded_the_same_alone_and_in_a_batch(models, images, embeddings):
    alone = torch.cat([models["fp32"].encode_images(image[None]) for image in images[:3]])
    torch.testing.assert_close(alone, embeddings["fp32"][:3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trunk_is_shared_with_the_encoder(models, images, precision):
    model, encoder = models[precision], load_dense_encoder("efficientnet_lite0", precision=precision)
    assert encoder.fingerprint == model.trunk_fingerprint
    trunk = encoder.encode(images[:3])
    assert trunk.shape == (3, encoder.channels, 224 // encoder.stride, 224 // encoder.stride)
    assert trunk.dtype == torch.float32
    logits = model.dense_logits_from_trunk(trunk)
    assert logits.shape == (3, 1000, 7, 7)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.dense_logits(images[:3]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.combine(logits), model.encode_dense(images[:3]), atol=1e-5, rtol=0)


def test_dense_models_compute_the_trunk_once(models, images):
    settings = ModelSettings(retrieval=SPEC, encoder="efficientnet_lite0", precision="fp32")
    dense = DenseModels.load(settings)
    pixels = torch.randint(0, 256, (2, 64, 96, 3), generator=torch.Generator().manual_seed(0)).byte()
    calls = []
    dense.language.module.trunk.register_forward_hook(lambda *_: calls.append("language"))
    dense.encoder.module.register_forward_hook(lambda *_: calls.append("encoder"))
    features = dense.encode(pixels)
    assert calls == ["encoder"]
    assert features.visual.shape == (2, 320, 2, 3)
    assert features.language.shape == (2, 384, 2, 3)
    expected = models["fp32"].encode_dense(dense.language.transform.normalize(pixels))
    torch.testing.assert_close(features.language, expected, atol=1e-4, rtol=0)


def test_the_fingerprint_is_not_of_what_a_processor_computed(models, monkeypatch):
    encode = _SentenceEncoder.encode

    def rounded_otherwise(self: _SentenceEncoder, texts: list[str]) -> torch.Tensor:
        found = encode(self, texts)
        return found + 2e-7 * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(_SentenceEncoder, "encode", rounded_otherwise)
    elsewhere = ConSE("efficientnet_lite0", precision="fp32")
    assert not torch.equal(elsewhere.class_embeddings, models["fp32"].class_embeddings)
    assert elsewhere.fingerprint == models["fp32"].fingerprint


def test_the_fingerprint_names_the_model_not_how_it_is_run(models):
    assert models["fp32"].fingerprint == models["bf16"].fingerprint
    assert models["fp32"].fingerprint.startswith(f"{SPEC}#")
    assert ConSE("efficientnet_lite0", top=5).fingerprint != models["fp32"].fingerprint


@pytest.mark.parametrize("word", ["собака", "犬", "كلب", "dog собака"])
def test_other_scripts_are_refused_with_a_way_out(models, word):
    with pytest.raises(RecoError, match=rf"'{word}'.*give the concept an English synonym"):
        models["fp32"].encode_texts(["cat", word])
    assert models["fp32"].encode_texts(["café", "naïve", "Müller"]).shape == (3, 384)


def test_unknown_models_are_named():
    with pytest.raises(RecoError, match="unknown language-image model 'nothing:at all'"):
        load_language_image_model("nothing:at all")
    with pytest.raises(RecoError, match="unknown ConSE classifier 'resnet50'"):
        load_language_image_model("conse:resnet50")
    with pytest.raises(RecoError, match="unknown dense encoder 'nothing'"):
        load_dense_encoder("nothing")
    with pytest.raises(RecoError, match="precision 'fp8' is unknown"):
        load_dense_encoder("efficientnet_lite0", precision="fp8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_missing_gpu_is_never_replaced_in_silence():
    with pytest.raises(RecoError, match="torch sees no CUDA GPU"):
        load_language_image_model(SPEC, device="cuda")


def test_a_sentence_is_embedded_once_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("RECO_CACHE", str(tmp_path))
    sentences = ["a photo of a dog", "a photo of a cat"]
    first = _SentenceEncoder(CPU).encode(sentences)
    assert first.shape == (2, 384)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert [file.suffix for file in files] == [".safetensors"]

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # importing it now raises
    again = _SentenceEncoder(CPU).encode(sentences[::-1])
    assert torch.equal(again, first.flip(0))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == files
    with pytest.raises(ImportError):
        _SentenceEncoder(CPU).encode(["never seen"])


def test_with_the_class_names_cached_no_text_model_is_loaded(models, monkeypatch):
    models["fp32"].encode_texts(["zebra crossing"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    again = load_language_image_model(SPEC, precision="fp32")
    assert torch.equal(
        again.encode_texts(["zebra crossing"]), models["fp32"].encode_texts(["zebra crossing"])
    )


def test_a_cache_that_cannot_be_written_costs_time_not_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "file"))
    assert _SentenceEncoder(CPU).encode(["a dog"]).shape == (1, 384)


def test_a_damaged_cache_costs_time_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECO_CACHE", str(tmp_path))
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.ones(len(texts), 2)

    TextCache("m").lookup(["a"], encode, torch.device("cpu"))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert TextCache("m").lookup(["a"], encode, torch.device("cpu")).tolist() == [[1.0, 1.0]]
    assert TextCache("m").lookup(["a"], encode, torch.device("cpu")).tolist() == [[1.0, 1.0]]
    assert calls == [["a"], ["a"]]
