"""Images a second of `segment --segmenter` beside a bare loop over decoded batches.

    python benchmarks/segment_trained.py --corpus FOLDER [--images 240] [--rounds 3] [--segmenter URI]

One JSON line. In one run, on the same images (repeated if the folder has fewer), with the same network (random weights
without --segmenter; its speed does not depend on them) and the same refinement:

- loop:   the limit: as many processes as the machine has cores, each with one torch thread and the images decoded
          beforehand; the network, the labels, and masks, overlays and regions written as the stage writes them
- decode: seconds of a core that reading and decoding an image takes, which the loop is spared and the stage is not
- ours:   the segment stage, which reads, decodes and commits

`ours_to_loop` compares the stage with the loop plus the decoding, spread over the cores: what a bare loop over decoded
batches leaves to be had on this machine, where no other processors decode. `core_seconds` are those of all processes of
each an image, Ray's own among them, and `core_seconds_to_ours` the same comparison by them: it holds on a machine where
others compute, too. Each is measured from the moment that its workers are up and have seen a batch; rounds are taken in
turn and medians given.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from safetensors.torch import save_file

from reco_ray.config import Settings, load_settings
from reco_ray.contents import SegmenterContent
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.load import ImageLoader
from reco_ray.distributed.parts import cut, run_shards
from reco_ray.distributed.session import session
from reco_ray.distributed.workers import plan_workers
from reco_ray.files.artifacts import ArtifactWriter
from reco_ray.segmentation.mask_worker import MaskSet, MaskWorker
from reco_ray.segmentation.names import add_names
from reco_ray.segmentation.palette import palette
from reco_ray.training.network import build_network
from reco_ray.training.segment import TrainedLabeller
from reco_ray.training.segmenter import Segmenter
from reco_ray.vocabulary import parse_concepts

PART = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of photographs")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--segmenter", help="default: the network of `mini` with random weights")
    parser.add_argument("--refine", default="none")
    parser.add_argument("--no-overlays", action="store_true")
    options = parser.parse_args()
    settings = load_settings(
        overrides=[f"segment.refine={options.refine}", f"segment.overlays={not options.no_overlays}"]
    )
    listing = list_files(options.corpus)
    table = _repeated(add_names(listing.table, listing.root), options.images)
    with tempfile.TemporaryDirectory() as scratch:
        uri = options.segmenter or _random_segmenter(Path(scratch, "segmenter"), settings)
        result = _measure(uri, table, settings, options.rounds, Path(scratch))
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps({"benchmark": "segment_trained", **result, **machine, "commit": _commit()}))


def _repeated(table: pa.Table, count: int) -> pa.Table:
    """As many images, spread evenly over the listing, which is ordered by size; each has a mask of its own."""
    rows = np.linspace(0, table.num_rows - 1, min(count, table.num_rows)).astype(np.int64)
    chosen = table.take(np.resize(rows, count))
    names = [f"{number}/{name}" for number, name in enumerate(chosen["name"].to_pylist())]
    return chosen.set_column(chosen.schema.get_field_index("name"), "name", pa.array(names))


def _measure(uri: str, table: pa.Table, settings: Settings, rounds: int, scratch: Path) -> dict[str, Any]:
    segmenter = Segmenter.from_artifact(uri)
    load = ImageLoader(
        segmenter.to_pixels, short_side=segmenter.image_size, max_pixels=settings.segment.max_pixels
    )
    start = time.process_time()
    loaded = {name: load(shard) for name, shard in cut(table, PART).items()}
    decode = (time.process_time() - start) / table.num_rows
    rates: dict[str, list[float]] = {"loop": [], "ours": []}
    work: dict[str, list[float]] = {"loop": [], "ours": []}
    for number in range(rounds):
        for name in rates:
            out = scratch / f"{name}-{number}"
            made = _worker(segmenter, out, settings)
            rate, seconds = _loop(loaded, made) if name == "loop" else _ours(table, load, made)
            rates[name].append(rate)
            work[name].append(seconds)
            print(f"{name}: {rate:.2f} images/s, {seconds:.4f} core seconds an image", file=sys.stderr)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    seconds_of = {name: statistics.median(found) for name, found in work.items()}
    cores = os.cpu_count() or 1
    with_decoding = 1 / (1 / medians["loop"] + decode / cores)
    return {
        "images": table.num_rows,
        "image_size": segmenter.image_size,
        "refine": settings.segment.refine,
        "overlays": settings.segment.overlays,
        "images_per_second": {name: round(rate, 2) for name, rate in medians.items()},
        "decode_core_seconds": round(decode, 4),
        "loop_with_decoding": round(with_decoding, 2),
        "ours_to_loop": round(medians["ours"] / with_decoding, 3),
        "core_seconds": {name: round(seconds, 4) for name, seconds in seconds_of.items()},
        "core_seconds_to_ours": round((seconds_of["loop"] + decode) / seconds_of["ours"], 3),
        "all": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
    }


def _worker(segmenter: Segmenter, out: Path, settings: Settings) -> MaskWorker:
    labels = segmenter.labels
    labeller = TrainedLabeller(segmenter.uri, settings, 0, len(labels))
    colours = palette(len(labels), background=segmenter.background)
    return MaskWorker([MaskSet(str(out), labeller, labels, colours)], overlays=settings.segment.overlays)


def _ours(table: pa.Table, load: ImageLoader, worker: MaskWorker) -> tuple[float, float]:
    """Images a second, and core seconds an image, once every worker has finished a part."""
    with session():
        workers = plan_workers()
        images, start, before, after = 0, 0.0, 0.0, 0.0
        for finished, part in enumerate(run_shards(cut(table, PART), load, worker, workers), start=1):
            if finished <= workers.count:
                start, before = time.perf_counter(), _core_seconds()
            else:
                images += part.items
                end, after = time.perf_counter(), _core_seconds()  # before the pool is dismantled
        return images / (end - start), (after - before) / images


def _core_seconds() -> float:
    """What this process and all that it has started have computed; those that have ended since are not in it."""
    seconds = 0.0
    for process in [this := psutil.Process(), *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds


def _loop(loaded: dict[str, pa.Table], worker: MaskWorker) -> tuple[float, float]:
    """One process a core, each with its share of the decoded parts; the first part of each is its warm-up."""
    cores = os.cpu_count() or 1
    names = list(loaded)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(cores)
    results: Any = context.Queue()
    shares = [[(name, loaded[name]) for name in names[core::cores]] for core in range(cores)]
    processes = [
        context.Process(target=_loop_share, args=(share, worker, barrier, results)) for share in shares
    ]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    images = sum(count for count, *_ in spans)
    took = max(end for _, _, end, _ in spans) - min(start for _, start, _, _ in spans)
    return images / took, sum(seconds for *_, seconds in spans) / images


def _loop_share(share: list[tuple[str, pa.Table]], worker: MaskWorker, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    worker.set_up("cpu")
    (name, rows), *others = share
    worker.work(name, rows)
    barrier.wait()
    start, before = time.monotonic(), time.process_time()
    for name, rows in others:
        worker.work(name, rows)
    images = sum(rows.num_rows for _, rows in others)
    results.put((images, start, time.monotonic(), time.process_time() - before))


def _random_segmenter(folder: Path, settings: Settings) -> str:
    spec, concepts = settings.train.segmenter, parse_concepts("road, car, tree, sky, house")
    network = build_network(spec, len(concepts.names), initial="random")
    writer = ArtifactWriter(str(folder), SegmenterContent, {"made": "by a benchmark"})
    writer.finished()
    state = {name: tensor.contiguous() for name, tensor in network.module.state_dict().items()}
    save_file(state, folder / "weights.safetensors")
    content = SegmenterContent(
        architecture=spec,
        labels=concepts.names,
        background=False,
        vocabulary=concepts,
        image_size=settings.train.image_size,
    )
    writer.commit({}, content)
    return str(folder)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
