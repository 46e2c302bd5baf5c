"""What a run is measured by at its checkpoints: frames on whose pseudo-labels it was not trained."""

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

MOST_FRAMES = 64  # of each kind: enough to compare steps, few enough to do it often


@dataclass(frozen=True)
class Measure:
    """Measures a network in training; with several workers each takes its share, and all get the same result.

    trained, held_out: rows of `frames`, int64 (n, 2) of (shard, row). labels: how many there are.
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

    def share_norms(self) -> None:
        """The statistics of norms are each worker's own; those of the first one are kept."""
        if self.world > 1:
            for buffer in self.network.module.buffers():
                dist.broadcast(buffer, 0)

    def calibration(self, module: nn.Module) -> Calibration:
        """Of the labels' logits, over frames that it was trained on, spread evenly.

        A student of soft labels is unsure of what its teacher is unsure of, and the more so of some labels than of
        others: those it would hardly ever choose. Labels compete on equal terms again as the scores they came from do.
        """
        rows = np.linspace(0, len(self.trained) - 1, min(MOST_FRAMES, len(self.trained))).round().astype(int)
        total = torch.zeros(3, 1, self.labels, dtype=torch.double, device=self.device)
        for shard, row in self.trained[rows][self.rank :: self.world]:
            total += moments([self.logits(module, self.frames.read(int(shard), int(row))[0])])
        if self.world > 1:
            dist.all_reduce(total)
        return calibration(total)

    def agreement(
        self, module: nn.Module, calibrated: Calibration | None
    ) -> tuple[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Mean IoU between predictions and held-out pseudo-labels over the labels that occur; and some of the frames,
        with their labels and predictions."""
        count = self.labels
        matrix = torch.zeros(count * count, dtype=torch.long, device=self.device)
        shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for shard, row in self.held_out[:MOST_FRAMES][self.rank :: self.world]:
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
        """uint8 (H, W, 3) -> float32 (1, m, H, W)."""
        pixels = torch.from_numpy(image.copy())[None].to(self.device)
        height, width = image.shape[:2]
        stride = self.network.stride
        padded = F.pad(self.network.transform.normalize(pixels), (0, -width % stride, 0, -height % stride))
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return module(padded)[:, :, :height, :width].float()


def folded(network: Network, calibrated: Calibration) -> dict[str, torch.Tensor]:
    """A network's weights, changed so that its logits come out standardised.

    All that follows the last layer is a resize, which leaves a channel's mean and scale as they are.
    """
    names = (name for name, module in network.module.named_modules() if module is network.classifier)
    prefix, state = next(names), network.module.state_dict()
    (means,), (deviations,) = calibrated.means, calibrated.deviations
    return state | {
        f"{prefix}.weight": state[f"{prefix}.weight"] / deviations.view(-1, 1, 1, 1),
        f"{prefix}.bias": (state[f"{prefix}.bias"] - means) / deviations,
    }
