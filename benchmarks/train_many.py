"""Segmenters side by side on a simulated cluster, a node killed, and one after another. Prints one JSON line.

Starts four nodes of one logical CPU on this machine, embeds the demo's photographs, labels them with small
vocabularies, trains a segmenter each side by side, and removes a node when the first checkpoint is there. Then as many
are trained one after another on the whole cluster again. Only training is timed.

    python benchmarks/train_many.py [--vocabularies 8] [--steps 60]

The nodes share the machine's real cores, so the ratio says what packing gains there, not what four machines would.
"""

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

# Before Ray is imported, as in reco_ray.distributed.session: no messages of its core between our lines.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
from ray.cluster_utils import Cluster

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_references
from reco_ray.demo import prepare_demo
from reco_ray.training.label import label_images
from reco_ray.training.label_worker import LabelSet
from reco_ray.training.stage import train_segmenters
from reco_ray.vocabulary import parse_concepts

CONCEPTS = "dog cat bird beetle car motorcycle cup strawberry building".split()
NODES = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of each segmenter")
    options = parser.parse_args()
    settings = load_settings(
        "mini",
        overrides=[
            "references.exemplars=2", "references.image_size=224", "segment.image_size=224", "train.image_size=128",
            "train.crop=128", "train.batch_size=4", "train.checkpoint_every=10", f"train.steps={options.steps}",
        ],
    )  # fmt: skip
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="reco-ray-") as folder:
        cluster, nodes = _cluster()
        try:
            labels = _labels(folder, options.vocabularies, settings)
            outs = {name: f"{folder}/together/{name}" for name in labels}
            killed_after: list[float] = []
            started = time.monotonic()
            killer = threading.Thread(
                target=_kill, args=(cluster, nodes, outs, started, killed_after), daemon=True
            )
            killer.start()
            together = list(train_segmenters(labels, outs, settings))
            seconds = time.monotonic() - started
            alive = sum(node["Alive"] for node in ray.nodes())
            cluster.add_node(num_cpus=1)
            started, alone = time.monotonic(), []
            for name, uri in labels.items():
                alone += list(train_segmenters({name: uri}, {name: f"{folder}/alone/{name}"}, settings))
            one_after_another = time.monotonic() - started
        finally:
            ray.shutdown()
            cluster.shutdown()
    errors = [outcome.error for outcome in (*together, *alone) if outcome.error]
    print(
        json.dumps(
            {
                "benchmark": "train_many",
                "vocabularies": len(labels),
                "steps": options.steps,
                "nodes": NODES,
                "nodes_left": alive,
                "real_cores": os.cpu_count(),
                "node_killed_after_seconds": [round(second, 1) for second in killed_after],
                "finished_together": sum(outcome.manifest is not None for outcome in together),
                "finished_alone": sum(outcome.manifest is not None for outcome in alone),
                "seconds_together_with_a_kill": round(seconds, 1),
                "seconds_one_after_another": round(one_after_another, 1),
                "ratio": round(one_after_another / seconds, 2),
                "errors": errors,
            }
        )
    )
    if errors or len(killed_after) != 1 or alive != NODES - 1:
        raise SystemExit(1)


def _cluster() -> tuple[Cluster, list[Any]]:
    """Four nodes; those that may be killed: not the first, where this process is."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES - 1)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    return cluster, nodes


def _labels(folder: str, count: int, settings: Settings) -> dict[str, str]:
    """Pseudo-labels of the demo's photographs in `count` vocabularies, each of two concepts."""
    photographs = prepare_demo(f"{folder}/photographs").corpus
    embed_corpus(photographs, f"{folder}/embeddings", settings)
    build_index(f"{folder}/embeddings", f"{folder}/index")
    sets = {}
    for number in range(count):
        first, second = CONCEPTS[number % len(CONCEPTS)], CONCEPTS[(number + 1) % len(CONCEPTS)]
        name = f"{number}-{first}"
        build_references(
            f"{folder}/index", parse_concepts(f"{first},{second}"), f"{folder}/references/{name}", settings
        )
        sets[name] = LabelSet(f"{folder}/references/{name}", f"{folder}/labels/{name}")
    label_images(sets, photographs, f"{folder}/frames", settings)
    return {name: one.out for name, one in sets.items()}


def _kill(
    cluster: Cluster, nodes: list[Any], outs: dict[str, str], started: float, killed_after: list[float]
) -> None:
    """Removes a node, with whatever runs there, as soon as any run has reached its first checkpoint."""
    while not any((Path(out) / "examples").is_dir() for out in outs.values()):
        time.sleep(0.1)
    cluster.remove_node(nodes[-1], allow_graceful=False)
    killed_after.append(time.monotonic() - started)


if __name__ == "__main__":
    main()
