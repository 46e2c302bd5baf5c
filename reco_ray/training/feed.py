"""The batches of a run: Ray Data's actors decode and augment wherever the cluster has cores, in the plan's order."""

from collections.abc import Iterator

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from reco_ray.cluster import READER_CPUS
from reco_ray.config import TrainSettings
from reco_ray.streaming import stream_context
from reco_ray.training.samples import Crops, Frames, augmentation, positions

CROPS_A_TASK = 16


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
    """One worker's part of every step's batch, from step `start` on; `options.accumulate` batches are a step.

    Args:
        plan: rows to train on, as `order` gives. rank, world: which worker of how many. feeders: processes that decode
            and augment for it.

    Yields:
        `id` int64 (b,), positions in the plan; `image` uint8 (b, 3, crop, crop); `label` uint8 (b, crop, crop).
    """
    mine = positions(len(plan), start * options.batch_size, rank, world)
    if not len(mine):
        return
    context = stream_context()
    context.execution_options.preserve_order = True
    augment = augmentation(options.image_size, options.crop, options.scale)
    with DataContext.current(context):
        # from_items makes its blocks here; range and from_arrow have tasks do it, which each want a whole core.
        items = [{"id": position} for position in mine.tolist()]
        tasks = -(-len(mine) // CROPS_A_TASK)
        dataset = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
            Crops,
            fn_constructor_args=(frames, plan, augment),
            batch_size=None,
            batch_format="numpy",
            num_cpus=READER_CPUS,
            # Actors that stay: a task that has to wait, or a pool that shrinks, loses a process that imported torch.
            compute=ActorPoolStrategy(size=min(feeders, tasks)),
        )
        yield from dataset.iter_batches(
            batch_size=options.batch_size // world // options.accumulate,
            batch_format="numpy",
            prefetch_batches=2,
        )
