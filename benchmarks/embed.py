"""Images a second of the embed stage, beside loops that a user could write by hand. Prints one JSON line.

In one run, on the same images with the same model and batch size:

- eager: one process, float32, channels-first, batch norms not folded, as a model comes out of timm
- loop:  one process, the model as reco-ray prepares it (folded, channels-last, bfloat16 where the CPU has it)
- ray:   the embed stage on a local Ray cluster, reading, decoding, embedding and committing shards

Starting Ray and loading models is kept out of the rates and given as `ray_startup_seconds`.

    python benchmarks/embed.py --corpus FOLDER [--images 1500]
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from reco_ray.cluster import plan_workers, session
from reco_ray.config import load_settings
from reco_ray.corpus.decode import decode_image
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.corpus.stage import EmbedWorker, LoadCrops
from reco_ray.models import load_language_image_model
from reco_ray.models.conse import ConSE
from reco_ray.models.efficientnet_lite import EfficientNetLite
from reco_ray.shards import cut, run_shards


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of photographs")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--eager-images", type=int, default=256, help="the slow loop sees this many")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="loop and ray in turn; medians are given")
    options = parser.parse_args()
    uris = list_images(options.corpus).table["uri"].to_pylist()
    # Evenly over the listing, which is ordered by size: the same mixture whatever the number.
    uris = [uris[int(n)] for n in np.linspace(0, len(uris) - 1, min(options.images, len(uris)))]

    loops, rays, startups = [], [], []
    eager = _rate(_eager(), uris[:: max(1, len(uris) // options.eager_images)], options.batch_size)
    model = load_language_image_model("conse:efficientnet_lite0")
    for _ in range(options.rounds):
        loops.append(
            _rate(lambda pixels: embed_pixels(model, pixels, options.batch_size), uris, options.batch_size)
        )
        rate, startup = _ray_rate(uris, options.batch_size)
        rays.append(rate)
        startups.append(startup)
    loop, ray = statistics.median(loops), statistics.median(rays)
    print(
        json.dumps(
            {
                "benchmark": "embed",
                "images": len(uris),
                "batch_size": options.batch_size,
                "eager_images_per_second": round(eager, 1),
                "loop_images_per_second": round(loop, 1),
                "ray_images_per_second": round(ray, 1),
                "ray_to_loop": round(ray / loop, 3),
                "ray_to_eager": round(ray / eager, 2),
                "ray_startup_seconds": round(statistics.median(startups), 1),
                "all_loop": [round(rate, 1) for rate in loops],
                "all_ray": [round(rate, 1) for rate in rays],
                "cpus": torch.get_num_threads(),
                "machine": platform.machine(),
                "torch": torch.__version__,
                "commit": subprocess.run(
                    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
                ).stdout.strip(),
            }
        )
    )


def _rate(embed: Callable[[list[np.ndarray]], object], uris: list[str], batch_size: int) -> float:
    """Images a second of a plain loop: read, decode, crop, embed, batch by batch."""
    transform = ConSE.transform

    def load(uri: str) -> np.ndarray:
        image, _, _ = decode_image(read_image_bytes(uri), max_pixels=10**8, short_side=transform.size)
        return transform.crop(image)

    embed([load(uri) for uri in uris[:batch_size]])  # warm-up
    start = time.perf_counter()
    for first in range(0, len(uris), batch_size):
        embed([load(uri) for uri in uris[first : first + batch_size]])
    return len(uris) / (time.perf_counter() - start)


def _eager() -> Callable[[list[np.ndarray]], object]:
    net = EfficientNetLite().eval()

    def embed(pixels: list[np.ndarray]) -> object:
        with torch.no_grad():
            batch = ConSE.transform.normalize(torch.from_numpy(np.stack(pixels))).contiguous()
            return net.logits(net.trunk(batch)).softmax(dim=1)

    return embed


def _ray_rate(uris: list[str], batch_size: int) -> tuple[float, float]:
    """(images a second once every worker has finished a shard, seconds until then)."""
    settings = load_settings("mini")
    transform = ConSE.transform
    shards = cut(pa.table({"uri": uris}), 64)
    begin = time.perf_counter()
    with session(), tempfile.TemporaryDirectory() as out:
        workers = plan_workers(most=len(shards))
        kwargs = {"models": settings.models, "seed": 0, "batch_size": batch_size, "out": out}
        load = LoadCrops(transform.crop, settings.embed.max_pixels, transform.size)
        images = 0
        start = begin
        for finished, shard in enumerate(run_shards(shards, load, EmbedWorker, kwargs, workers), start=1):
            if finished <= workers.count:  # every worker is up only now
                start = time.perf_counter()
            else:
                images += shard["images"]
        return images / (time.perf_counter() - start), start - begin


if __name__ == "__main__":
    main()
