"""Sampling of training data: crops of frames per step, as a function of the seed only. No Ray.

A resumed run is trained on the same crops as an uninterrupted one.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from reco_ray.files import storage
from reco_ray.training.pseudo_labels import IGNORE, decode

SAMPLED = 4  # every fourth pixel of a crop has soft labels: finer than their cells
SOFT_PIXELS = slice(SAMPLED // 2, None, SAMPLED)
NEIGHBOURS = 8  # shards whose rows are shuffled together; must fit into the memory of workers


@dataclass(frozen=True)
class Frames:
    """Frames and their pseudo-labels.

    Attributes:
        frames: URI of the frames.
        labels: URI of the pseudo-labels.
        names: of the shards.
        sizes: rows per shard.
        soft: number of labels with probabilities, 0 without soft labels.
    """

    frames: str
    labels: str
    names: list[str]
    sizes: list[int]
    soft: int = 0

    @classmethod
    def open(cls, frames: str, labels: str, soft: int = 0) -> "Frames":
        """Lists the shards, which are the same in both artifacts."""
        footers = storage.read_footers(storage.join(frames, "frames"))
        return cls(frames, labels, list(footers), [footer.num_rows for footer in footers.values()], soft)

    def read(self, shard: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads a frame, uint8 (H, W, 3), and its label ids, uint8 (H, W)."""
        frame = _column(storage.join(self.frames, "frames", self.names[shard]), "frame")[row].as_py()
        label = _column(storage.join(self.labels, "labels", self.names[shard]), "label")[row].as_py()
        return decode(frame), decode(label)

    def read_soft(self, shard: int, row: int) -> np.ndarray:
        """Reads probabilities x 255 of the whole frame at a lower resolution, uint8 (m, h, w)."""
        uri = storage.join(self.labels, "labels", self.names[shard])
        maps = decode(_column(uri, "soft")[row].as_py())
        return maps.reshape(self.soft, -1, maps.shape[1])

    def uri(self, shard: int, row: int) -> str:
        """URI of the image of a frame."""
        return _column(storage.join(self.frames, "frames", self.names[shard]), "uri")[row].as_py()


@lru_cache(maxsize=4 * NEIGHBOURS)
def _column(uri: str, name: str) -> pa.ChunkedArray:
    return storage.read_table(uri, [name])[name]


def split(sizes: list[int], held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows to train on and at least one held-out row, int64 (n, 2) of (shard, row) each."""
    shards = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum(sizes) - sizes
    rows = np.column_stack([shards, np.arange(len(shards)) - starts[shards]])
    order = np.random.default_rng([seed, 0]).permutation(len(rows))
    kept_back = max(1, round(held_out * len(rows)))
    return rows[np.sort(order[kept_back:])], rows[np.sort(order[:kept_back])]


def sampling_plan(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the first `count` samples of training, int64 (count, 3) of (shard, row, seed of the augmentation).

    Every epoch uses every row once. Shards are shuffled, then rows within groups of `NEIGHBOURS` consecutive shards, so
    that reads are local for corpora larger than memory.

    Args:
        rows: int64 (n, 2) of (shard, row), sorted, as `split` returns.
        count: number of samples.
        seed: of the order and the augmentations.
    """
    known, firsts = np.unique(rows[:, 0], return_index=True)
    of_shard = dict(zip(known.tolist(), np.split(rows, firsts[1:]), strict=True))
    parts: list[np.ndarray] = []
    taken = epoch = 0
    while taken < count:
        epoch += 1
        random = np.random.default_rng([seed, epoch])
        shards = random.permutation(known)
        for start in range(0, len(shards), NEIGHBOURS):
            near = np.concatenate([of_shard[n] for n in sorted(shards[start : start + NEIGHBOURS].tolist())])
            parts.append(random.permutation(near))
            taken += len(near)
    chosen = np.concatenate(parts)[:count]
    seeds = np.random.default_rng([seed, 2**31]).integers(2**31, size=len(chosen))
    return np.column_stack([chosen, seeds])


def positions(count: int, start: int, rank: int, world: int) -> np.ndarray:
    """Positions of one worker in a plan of `count` rows from `start` on, int64 (n,).

    Positions are interleaved, so that the rows of a step do not depend on the number of workers.
    """
    return np.arange(start, count)[rank::world]


class Crops:
    """Loads augmented crops of a sampling plan; runs in actors of Ray Data."""

    def __init__(self, frames: Frames, plan: np.ndarray, augment: v2.Compose) -> None:
        self._frames, self._plan, self._augment = frames, plan, augment

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Loads the crops at positions `id` of the plan.

        Returns:
            `id`; `image` uint8 (b, 3, crop, crop); `label` uint8 (b, crop, crop); for soft labels also `soft`,
            probabilities x 255 at `SOFT_PIXELS`, uint8 (b, m, crop / SAMPLED, crop / SAMPLED).
        """
        torch.set_num_threads(1)  # many actors share a node
        crops = [self._crop(*self._plan[position]) for position in batch["id"]]
        return {"id": batch["id"], **{key: np.stack([crop[key] for crop in crops]) for key in crops[0]}}

    def _crop(self, shard: int, row: int, seed: int) -> dict[str, np.ndarray]:
        image, label = self._frames.read(int(shard), int(row))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            # The index in the frame of each pixel of the crop, by which labels and soft labels are cropped.
            places = torch.arange(label.size).view(1, *label.shape)
            pair: tuple[Any, Any] = self._augment(
                tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1)), tv_tensors.Mask(places)
            )
        places = pair[1].as_subclass(torch.Tensor)[0]
        labels = torch.from_numpy(label.copy()).flatten()[places.clamp_min(0)].masked_fill(places < 0, IGNORE)
        crop = {"image": pair[0].numpy(), "label": labels.numpy()}
        if self._frames.soft:
            soft = torch.from_numpy(self._frames.read_soft(int(shard), int(row)).copy())
            found = _sampled(soft, places[SOFT_PIXELS, SOFT_PIXELS], label.shape)
            crop["soft"] = found.masked_fill(labels[SOFT_PIXELS, SOFT_PIXELS] == IGNORE, 0).numpy()
        return crop


def _sampled(soft: torch.Tensor, places: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Samples maps uint8 (m, h, w) of a frame of `size` at pixel indices `places` (H, W): uint8 (m, H, W)."""
    height, width = size
    rows, columns = places.clamp_min(0) // width, places.clamp_min(0) % width
    grid = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=-1) * 2 - 1
    read = F.grid_sample(soft[None].float(), grid[None], padding_mode="border", align_corners=False)
    return read[0].round().to(torch.uint8)


def augmentation(short_side: int, crop: int, scale: tuple[float, float]) -> v2.Compose:
    """Random resize, crop, horizontal flip and colour jitter of torchvision (paper, section 3.5).

    Args:
        short_side: of the frames, in pixels.
        crop: side of the result in pixels.
        scale: range of the resize.
    """
    sides = [round(short_side * factor) for factor in scale]
    return v2.Compose(
        [
            v2.RandomResize(min_size=sides[0], max_size=sides[1] + 1, antialias=True),
            v2.RandomCrop(
                (crop, crop), pad_if_needed=True, fill={tv_tensors.Image: 127, tv_tensors.Mask: -1}
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        ]
    )
