"""Training batches: actors of Ray Data decode and augment on any node, in the order of the plan."""

from collections.abc import Iterator

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from reco_ray.config import TrainSettings
from reco_ray.distributed.streaming import stream_context
from reco_ray.distributed.workers import READER_CPUS
from reco_ray.training.samples import Crops, Frames, augmentation, positions

CROPS_PER_TASK = 16


def feed(
    frames: Frames,
    plan: np.ndarray,
    options: TrainSettings,
    *,
    start: int,
    rank: int,
    world: int,
    feeders: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of one worker from step `start` on, `options.accumulate` per step.

    Args:
        frames: frames and their pseudo-labels.
        plan: rows to train on, as `sampling_plan` returns.
        options: settings of training.
        start: first step.
        rank: of the worker.
        world: number of workers.
        feeders: number of actors that decode and augment for this worker.

    Yields:
        `id` int64 (b,), positions in the plan; `image` uint8 (b, 3, crop, crop); `label` uint8 (b, crop, crop); and
        `soft` as of `Crops`, for soft labels.
    """
    mine = positions(len(plan), start * options.batch_size, rank, world)
    if not len(mine):
        return
    context = stream_context()
    context.execution_options.preserve_order = True
    augment = augmentation(options.image_size, options.crop, options.scale)
    with DataContext.current(context):
        # from_items creates its blocks in this process; range and from_arrow use tasks that need a whole core each.
        items = [{"id": position} for position in mine.tolist()]
        tasks = -(-len(mine) // CROPS_PER_TASK)
        dataset = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
            Crops,
            fn_constructor_args=(frames, plan, augment),
            batch_size=None,
            batch_format="numpy",
            num_cpus=READER_CPUS,
            # A fixed pool: idle tasks and shrinking pools lose processes that have imported torch.
            compute=ActorPoolStrategy(size=min(feeders, tasks)),
        )
        yield from dataset.iter_batches(
            batch_size=options.batch_size // world // options.accumulate,
            batch_format="numpy",
            prefetch_batches=2,
        )
