"""A small head on a frozen dense encoder (after DINOv2, section 7.4): `frozen:ENCODER`."""

import torch
import torch.nn.functional as F
from torch import nn

from reco_ray.models import load_dense_encoder
from reco_ray.training.network import Network


class FrozenEncoderHead(nn.Module):
    """A frozen dense encoder, two convolutions over its features, and bilinear upsampling.

    The first convolution also sees the mean of all locations (after ParseNet, Liu et al., ICLR 2016 workshop), which
    says what the image is of.
    """

    def __init__(self, encoder: nn.Module, channels: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.standardise = nn.BatchNorm2d(channels)
        self.local = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.whole = nn.Conv2d(channels, width, 1, bias=False)
        self.activate = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.classifier = nn.Conv2d(width, classes, 1)

    def train(self, mode: bool = True) -> "FrozenEncoderHead":
        """Sets the mode of the head; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits: (b, 3, H, W) -> (b, m, H, W)."""
        with torch.no_grad():
            features = self.encoder(images)
        features = self.standardise(features)
        hidden = self.activate(self.local(features) + self.whole(features.mean((2, 3), keepdim=True)))
        return F.interpolate(self.classifier(hidden), images.shape[2:], mode="bilinear", align_corners=False)


def build(name: str, classes: int, *, initial: str, weights_folder: str | None) -> Network:
    """Registry factory; `name` is the spec of a dense encoder."""
    random = (
        initial == "random" and name.startswith("timm:") and not name.partition("@")[0].endswith("/random")
    )
    architecture, at, options = name.partition("@")
    spec = f"{architecture}/random{at}{options}" if random else name
    encoder = load_dense_encoder(spec, weights=weights_folder, precision="fp32")
    module = FrozenEncoderHead(encoder.module, encoder.channels, classes)
    return Network(module, module.encoder, module.classifier, encoder.transform, encoder.stride)
