"""The content of manifests: what earlier runs wrote is read, and written again to the byte."""

import json

import pytest

from reco_ray.contents import (
    EmbeddingsContent,
    ExportContent,
    FramesContent,
    IndexContent,
    LabelsContent,
    MasksContent,
    ReferencesContent,
    SegmenterContent,
    SweepContent,
)
from reco_ray.files.artifacts import Content, Manifest

VOCABULARY = {
    "concepts": [
        {"name": "sofa", "synonyms": ["couch", "settee"], "alias": None},
        {"name": "wood", "synonyms": [], "alias": "tree"},
    ],
    "context": ["tree", "sky"],
    "background": True,
}
SHARD = {"name": "000000", "start": 0, "images": 3, "bytes": 9421, "fingerprint": "9f0c"}
LABELS = ["background", "sofa", "wood"]
PALETTE = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
WRITTEN: list[tuple[type[Content], dict]] = [
    (
        EmbeddingsContent,
        {
            "dim": 384,
            "model": "conse#1",
            "generation": 2,
            "shards": 4,
            "listing": "77b4",
            "rejected_by_reason": {"damaged": 1},
            "left_out": {},
            "gone": 0,
        },
    ),
    (
        IndexContent,
        {"dim": 8, "model": "m", "factory": "Flat", "shards": [SHARD], "recall": {"exact": True}},
    ),
    (
        IndexContent,
        {
            "dim": 8,
            "model": "m",
            "factory": "IVF16,SQ8",
            "shards": [SHARD],
            "nprobe": 4,
            "recall": {"k": 50, "queries": 128, "images": 1.0, "between": 0.9875},
        },
    ),
    (IndexContent, {"dim": 8, "model": "m", "factory": "Flat"}),  # of version 0.1
    (ReferencesContent, {"vocabulary": VOCABULARY, "context": ["tree", "sky"], "model": "m"}),
    (MasksContent, {"labels": LABELS, "palette": PALETTE, "references": "/out/references"}),
    (FramesContent, {}),
    (
        LabelsContent,
        {
            "labels": LABELS,
            "background": True,
            "vocabulary": VOCABULARY,
            "references": "/out/references",
            "frames": "/out/frames",
            "soft": False,
            "pixels": {"background": 7, "sofa": 0, "wood": 12},
        },
    ),
    (
        SegmenterContent,
        {
            "architecture": "smp:FPN/tu-tf_efficientnet_lite0",
            "labels": LABELS,
            "background": True,
            "vocabulary": VOCABULARY,
            "image_size": 448,
            "best_step": 200,
            "agreement": 0.8712,
        },
    ),
    (
        ExportContent,
        {
            "file": "segmenter.onnx",
            "labels": LABELS,
            "background": True,
            "palette": PALETTE,
            "image_size": 448,
            "stride": 32,
            "largest_difference": 3.814697265625e-06,
        },
    ),
    (SweepContent, {}),
]


@pytest.mark.parametrize(("kind", "content"), WRITTEN)
def test_content_is_written_again_to_the_byte(kind: type[Content], content: dict) -> None:
    manifest = Manifest(kind=kind.kind, made_from={}, content=kind.model_validate(content))
    assert json.dumps(json.loads(manifest.model_dump_json())["content"]) == json.dumps(content)
    assert json.dumps(manifest.content.model_dump(mode="json")) == json.dumps(content)
