"""Co-segmentation in strips against two forms of the plain formula over the full matrix: seconds and memory.

    python benchmarks/cosegment.py [--images 50] [--size 14] [--channels 384] [--repetitions 9] [--threads 2]

Prints one JSON line. "published" takes the maximum with torch.max, image by image, as the authors' released
code does; "plain" all at once with amax, the fastest way we know to write it down. All take turns, and their
medians are compared; the peak memory of each is measured in a fresh process, on Linux only.
"""

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reco_ray.cosegmentation import cosegment


def plain_support(features: Tensor, weights: Tensor) -> Tensor:
    unit = normalize(features, dim=1)
    similarity = torch.einsum("nchw,mcxy->nhwmxy", unit, unit) * weights
    return similarity.amax((4, 5)).mean(3)


def published_support(features: Tensor, weights: Tensor) -> Tensor:
    n, c, height, width = features.shape
    unit = normalize(features, dim=1).permute(0, 2, 3, 1).reshape(-1, c)
    similarity = (unit @ unit.T) * weights.flatten()
    maxima = [block.max(dim=1).values for block in similarity.split(height * width, dim=1)]
    return torch.stack(maxima).mean(0).view(n, height, width)


def streamed_support(features: Tensor, weights: Tensor) -> Tensor:
    return cosegment(features, weights).support  # seeds and reference too, which the plain form leaves out


CONTENDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "published": published_support,
    "plain": plain_support,
    "streamed": streamed_support,
}


def example(images: int, size: int, channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, channels, size, size, generator=generator)
    return features, torch.rand(images, size, size, generator=generator)


def median_seconds(features: Tensor, weights: Tensor, repetitions: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(1 + repetitions):
        for name, support in CONTENDERS.items():
            start = perf_counter()
            support(features, weights)
            seconds[name].append(perf_counter() - start)
    return {name: median(values[1:]) for name, values in seconds.items()}  # the first is a warm-up


def peak_memory_mb(name: str, images: int, size: int, channels: int, threads: int) -> float:
    """How far the process rises above what it held before the call: the growth of its resident set."""
    torch.set_num_threads(threads)
    features, weights = example(images, size, channels)
    CONTENDERS[name](features[:2], weights[:2])  # loads the kernels
    before = _status_mb("VmRSS")
    CONTENDERS[name](features, weights)
    return _status_mb("VmHWM") - before


def in_fresh_process(name: str, *arguments: int) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak_memory_mb, name, *arguments).result()


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) / 1024


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return run.stdout.strip() or "unknown"


def _processor() -> str:
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--size", type=int, default=14, help="height and width of the feature maps")
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    shape = options.images, options.size, options.channels

    memory = {name: in_fresh_process(name, *shape, options.threads) for name in CONTENDERS}
    torch.set_num_threads(options.threads)
    features, weights = example(*shape)
    difference = (plain_support(features, weights) - streamed_support(features, weights)).abs().max().item()
    seconds = median_seconds(features, weights, options.repetitions)
    report = {
        "benchmark": "cosegment",
        **vars(options),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "speedup": {name: round(seconds[name] / seconds["streamed"], 2) for name in ("published", "plain")},
        "peak_memory_mb": {name: round(value, 1) for name, value in memory.items()},
        "largest_difference": difference,
        "torch": torch.__version__,
        "processor": _processor(),
        "platform": platform.platform(),
        "commit": _commit(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
