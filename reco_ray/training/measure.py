"""Evaluation at checkpoints, on frames whose pseudo-labels are held out from training."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from reco_ray.segmentation.calibration import Calibration, calibration, moments
from reco_ray.training.network import Network
from reco_ray.training.pseudo_labels import IGNORE
from reco_ray.training.samples import Frames

MAX_FRAMES = 64  # of each kind: enough to compare checkpoints, few enough to evaluate often


@dataclass(frozen=True)
class Measure:
    """Evaluates a network in training. Workers share the frames, and all get the same result.

    Attributes:
        network: the network.
        frames: frames and their pseudo-labels.
        trained: rows of `frames` to train on, int64 (n, 2) of (shard, row).
        held_out: rows of `frames` to evaluate on, int64 (n, 2) of (shard, row).
        labels: number of labels m.
        device: of the network.
        dtype: of autocast.
        rank: of this worker.
        world: number of workers.
    """

    network: Network
    frames: Frames
    trained: np.ndarray
    held_out: np.ndarray
    labels: int
    device: torch.device
    dtype: torch.dtype
    rank: int
    world: int

    def broadcast_buffers(self) -> None:
        """Replaces the norm statistics of all workers by those of the first."""
        if self.world > 1:
            for buffer in self.network.module.buffers():
                dist.broadcast(buffer, 0)

    def calibration(self, module: nn.Module) -> Calibration:
        """Calibrates the logits over evenly spaced training frames.

        A network trained on soft labels reproduces their uncertainty, so that it would rarely predict the labels that
        are more uncertain than others. Standardised logits are comparable again, as the calibrated scores are.
        """
        rows = np.linspace(0, len(self.trained) - 1, min(MAX_FRAMES, len(self.trained))).round().astype(int)
        total = torch.zeros(3, 1, self.labels, dtype=torch.double, device=self.device)
        for shard, row in self.trained[rows][self.rank :: self.world]:
            total += moments([self.logits(module, self.frames.read(int(shard), int(row))[0])])
        if self.world > 1:
            dist.all_reduce(total)
        return calibration(total)

    def agreement(
        self, module: nn.Module, calibrated: Calibration | None
    ) -> tuple[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Computes the mean IoU between predictions and held-out pseudo-labels, over the labels that occur.

        Returns:
            The agreement, and up to three (frame, pseudo-label, prediction) per worker.
        """
        count = self.labels
        matrix = torch.zeros(count * count, dtype=torch.long, device=self.device)
        shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for shard, row in self.held_out[:MAX_FRAMES][self.rank :: self.world]:
            image, label = self.frames.read(int(shard), int(row))
            logits = self.logits(module, image)
            predicted = (calibrated.standardise(0, logits) if calibrated else logits)[0].argmax(0)
            truth = torch.from_numpy(label.copy()).to(self.device).long()
            counted = truth != IGNORE
            matrix += torch.bincount(truth[counted] * count + predicted[counted], minlength=count * count)
            if len(shown) < 3:
                shown.append((image, label, predicted.cpu().numpy()))
        if self.world > 1:
            dist.all_reduce(matrix)
        square = matrix.view(count, count).double()
        union = square.sum(0) + square.sum(1) - square.diag()
        return float((square.diag()[union > 0] / union[union > 0]).mean()) if union.any() else 0.0, shown

    def logits(self, module: nn.Module, image: np.ndarray) -> torch.Tensor:
        """Logits of an image: uint8 (H, W, 3) -> float32 (1, m, H, W)."""
        pixels = torch.from_numpy(image.copy())[None].to(self.device)
        height, width = image.shape[:2]
        stride = self.network.stride
        padded = F.pad(self.network.transform.normalize(pixels), (0, -width % stride, 0, -height % stride))
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return module(padded)[:, :, :height, :width].float()


def fold_calibration(network: Network, calibrated: Calibration) -> dict[str, torch.Tensor]:
    """Returns the weights of a network, with the standardisation of its logits folded into the last layer.

    The last layer is followed by a resize only, which preserves the mean and scale of each channel.
    """
    names = (name for name, module in network.module.named_modules() if module is network.classifier)
    prefix, state = next(names), network.module.state_dict()
    (means,), (deviations,) = calibrated.means, calibrated.deviations
    return state | {
        f"{prefix}.weight": state[f"{prefix}.weight"] / deviations.view(-1, 1, 1, 1),
        f"{prefix}.bias": (state[f"{prefix}.bias"] - means) / deviations,
    }
