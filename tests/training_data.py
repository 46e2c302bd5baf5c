"""Pseudo-labels of photographs as the label stage writes them, made from brightness: no model has to run for them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from images import encoded, photograph
from PIL import Image
from safetensors.torch import save_file

from reco_ray.config import load_settings
from reco_ray.contents import FramesContent, LabelsContent, SegmenterContent
from reco_ray.files import artifacts, storage
from reco_ray.segmentation.calibration import Calibration
from reco_ray.training.measure import fold_calibration
from reco_ray.training.network import build_network
from reco_ray.training.pseudo_labels import FRAMES_SCHEMA, IGNORE, LABELS_SCHEMA
from reco_ray.vocabulary import parse_concepts


def write_pseudo_labels(
    folder: Path,
    count: int = 8,
    *,
    concepts: str = "shadow,light",
    shard_size: int = 4,
    ignored: bool = False,
) -> str:
    """Writes `count` frames, 64 pixels high, and their labels -> URI of the labels; half-bright pixels are ignored."""
    vocabulary = parse_concepts(concepts)
    rows = []
    for number in range(count):
        frame = photograph(number).resize((80, 64))
        grey = np.asarray(frame.convert("L"))
        label = np.where(grey > 140, 1, np.where(grey < 110, 0, IGNORE)).astype(np.uint8)
        label = np.full_like(label, IGNORE) if ignored else label
        rows.append((f"/photographs/{number:03d}.jpg", frame, label))
    total = np.zeros(256, np.int64)
    for start in range(0, count, shard_size):
        part = rows[start : start + shard_size]
        name = f"{start // shard_size:06d}.parquet"
        frames = [
            {"uri": uri, "width": 80, "height": 64, "frame": encoded(frame, quality=95)}
            for uri, frame, _ in part
        ]
        pixels = np.bincount(np.concatenate([label.reshape(-1) for *_, label in part]), minlength=256)
        labels = [
            {"uri": uri, "label": encoded(Image.fromarray(label), "PNG"), "score": b"", "soft": None}
            for uri, _, label in part
        ]
        metadata = {"pixels": json.dumps(pixels.tolist())}
        for kind, table in (
            ("frames", pa.Table.from_pylist(frames, schema=FRAMES_SCHEMA)),
            ("labels", pa.Table.from_pylist(labels, schema=LABELS_SCHEMA.with_metadata(metadata))),
        ):
            storage.write_table(str(folder / kind / kind / name), table)
        total += pixels
    storage.remove(str(folder / "frames" / "manifest.json"))
    names = vocabulary.names
    content = LabelsContent(
        labels=names,
        background=False,
        vocabulary=vocabulary,
        references="",
        frames=str(folder / "frames"),
        soft=False,
        pixels=dict(zip(names, total.tolist(), strict=False)),
    )
    for where, each in (("frames", FramesContent()), ("labels", content)):
        writer = artifacts.ArtifactWriter(str(folder / where), type(each), {"made": "by a test"})
        writer.commit({"images": count}, each)
    return str(folder / "labels")


def write_segmenter(
    folder: Path,
    labels: int,
    *,
    stored: int | None = None,
    spec: str | None = None,
    image_size: int = 64,
    background: bool = False,
) -> str:
    """Writes a Segmenter with random weights -> its URI; every label wins somewhere in a photograph.

    stored: how many labels its weights have.
    """
    spec = spec or load_settings("mini").train.segmenter
    network = build_network(spec, stored or labels, initial="random", seed=1)
    network.module.eval()
    pixels = torch.from_numpy(np.asarray(photograph(0).resize((96, 64))).copy())[None]
    with torch.inference_mode():
        logits = network.module(network.transform.normalize(pixels))[0].flatten(1)
    balanced = fold_calibration(network, Calibration(logits.mean(1)[None], logits.std(1)[None] + 1e-6))
    writer = artifacts.ArtifactWriter(str(folder), SegmenterContent, {"made": "by a test"})
    writer.finished()
    state = {name: tensor.contiguous() for name, tensor in balanced.items()}
    save_file(state, folder / "weights.safetensors")
    content = SegmenterContent(
        architecture=spec,
        labels=[*(["background"] if background else []), *map(str, range(background, labels))],
        background=background,
        vocabulary=parse_concepts("a,b,c"),
        image_size=image_size,
    )
    writer.commit({}, content)
    return str(folder)
