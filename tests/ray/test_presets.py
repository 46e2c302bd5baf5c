"""The presets `paper` and `modern` run whole: every stage, on small architectures with random weights.

What they find is noise; that every model finds its place, its size and its pixels is what is looked at.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from images import write_photographs
from PIL import Image
from safetensors.torch import load_file

from reco_ray.cli import main

# The same kinds of models as the presets name, small; whatever is not listed here is the preset's own.
PAPER = {
    "models.retrieval": "open_clip:ViT-S-32-alt/random",
    "models.language": "open_clip:RN50/random@value",
    "models.encoder": "timm:deit_tiny_distilled_patch16_224/random@layer=-1,output=tokens",
    "models.templates": "simple",
    "references.image_size": 96,
    "segment.image_size": 96,
}
MODERN = {
    "models.retrieval": "open_clip:ViT-S-16-alt/random@clearclip",
    "models.encoder": "timm:vit_small_patch14_reg4_dinov2/random",
    "models.templates": "simple",
    "references.image_size": 112,
    "segment.image_size": 112,
}
pytestmark = [pytest.mark.cpus(1), pytest.mark.usefixtures("all_in_process")]
VOCABULARY = "{concepts: [dog, car, sky], context: [sky, road]}"


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("paper"), "paper", PAPER)


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("modern"), "modern", MODERN)


def run(folder: Path, preset: str, changes: dict[str, object]) -> Path:
    """The whole job over twelve photographs, two of them segmented -> the folder with everything."""
    write_photographs(folder / "corpus", 12)
    write_photographs(folder / "images", 2)
    (folder / "words.yaml").write_text(VOCABULARY)
    places = ["--corpus", folder / "corpus", "--images", folder / "images", "--out", folder / "out"]
    command("run", preset, changes, *places, "--vocabulary", folder / "words.yaml", "--exemplars", 3)
    return folder


def command(name: str, preset: str, changes: dict[str, object], *options: object) -> None:
    changed = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    main([name, "--preset", preset, *map(str, options), *changed])


def manifest(artifact: Path) -> dict[str, Any]:
    return json.loads((artifact / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("preset", "channels", "words", "grid"),
    [
        pytest.param("paper", 192, 1024, (6, 6), marks=pytest.mark.chaos),  # for the minute it takes
        ("modern", 384, 256, (8, 8)),
    ],
)
def test_a_preset_runs_whole(
    preset: str, channels: int, words: int, grid: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(preset)
    out = folder / "out"
    assert manifest(out / "embeddings")["counts"]["embedded"] == 12
    # the concepts, and the context concept that is none of them
    assert manifest(out / "references")["counts"] == {"concepts": 3, "exemplars": 4 * 3}
    assert manifest(out / "masks")["counts"] == {"images": 2, "segmented": 2, "rejected": 0}

    bank = load_file(out / "references" / "references.safetensors")
    assert bank["references"].shape[-1] == channels
    torch.testing.assert_close(bank["references"].norm(dim=-1), torch.ones(bank["references"].shape[:-1]))
    assert bank["text_embeddings"].shape == (3, words)
    supports = load_file(out / "references" / "supports.safetensors")
    assert {support.shape[1:] for support in supports.values()} == {grid}
    for name in ("000", "001"):
        labels = np.asarray(Image.open(out / "masks" / "masks" / f"{name}.jpg.png"))
        assert labels.shape == np.asarray(Image.open(folder / "images" / f"{name}.jpg")).shape[:2]
        assert set(np.unique(labels)) <= {0, 1, 2}
    scores = pq.read_table(out / "masks" / "regions")["score"].to_numpy()
    assert np.isfinite(scores).all()


def test_the_manifests_record_each_models_weights(modern: Path) -> None:
    retrieval = manifest(modern / "out" / "embeddings")["made_from"]["model"]
    assert re.fullmatch(r"open_clip:ViT-S-16-alt/random#[0-9a-f]{12}", retrieval)
    made_with = manifest(modern / "out" / "references")["made_from"]["models"].split(" + ")
    assert made_with[:2] == [retrieval, f"{retrieval}@clearclip"]
    assert re.fullmatch(
        r"timm:vit_small_patch14_reg4_dinov2/random@layer=11,output=tokens#[0-9a-f]{12}", made_with[2]
    )
    assert made_with[3] == "affinity=proxyclip"
    assert manifest(modern / "out" / "masks")["made_from"]["models"].split(" + ") == made_with[1:]


def test_other_weights_under_the_same_name_are_noticed(
    paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checksum is that of the tensors: here another seed's."""
    places = ["--references", paper / "out" / "references", "--images", paper / "images"]
    with pytest.raises(SystemExit) as caught:
        command("segment", "paper", PAPER | {"seed": 1}, *places, "--out", tmp_path / "out")
    assert caught.value.code == 1
    assert "made with" in capsys.readouterr().err


def test_without_weights_a_preset_is_one_line_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RECO_WEIGHTS", raising=False)
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "paper", {})
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the weights of open_clip:ViT-L-14-336/openai are not here")
    for part in ("reco-ray weights pull", "--weights DIR", "RECO_WEIGHTS", "mini"):
        assert part in line
    assert not (tmp_path / "out").exists()


def test_the_doctor_names_what_the_presets_need_and_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RECO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RECO_WEIGHTS", raising=False)
    main(["doctor"])
    lines = {line[3:].partition("  ")[0]: line for line in capsys.readouterr().err.splitlines()}
    assert (
        "needs weights open_clip:ViT-L-14-336/openai, open_clip:RN50x16/openai, timm:deit"
        in lines["preset paper"]
    )
    assert "needs weights open_clip:ViT-B-16/openai, timm:vit_base" in lines["preset modern"]
    assert "reco-ray weights pull --preset modern" in lines["preset modern"]
    assert lines["preset mini"].startswith("ok")
