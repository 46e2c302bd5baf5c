"""Networks that are trained on pseudo-labels, by name; torch, segmentation-models-pytorch and timm only.

- `smp:ARCHITECTURE/ENCODER[@option=value,...]`: segmentation-models-pytorch, encoders of timm as `tu-NAME`; the options
  are the architecture's keyword arguments
- `frozen:ENCODER`: a small head on one of our dense encoders, which stays as it is (DINOv2, section 7.4, in spirit)
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from reco_ray.errors import RecoError, reason
from reco_ray.models import load_dense_encoder, weights
from reco_ray.models.efficientnet_lite import TRANSFORM as PACKAGED_TRANSFORM
from reco_ray.models.efficientnet_lite import packaged_state_dict
from reco_ray.models.image import ImageTransform

PACKAGED = "tu-tf_efficientnet_lite0"
STRIDE = 32  # sides of images are multiples of it: the deepest level of the usual encoders


@dataclass(frozen=True)
class Network:
    """module: normalised (b, 3, H, W), sides multiples of `stride`, -> logits (b, m, H, W). encoder: the part of it
    that was there before. classifier: its last layer with weights. transform: how it wants its pixels."""

    module: nn.Module
    encoder: nn.Module
    classifier: nn.Conv2d
    transform: ImageTransform
    stride: int = STRIDE


def build_network(
    spec: str, classes: int, *, initial: str, weights_folder: str | None = None, seed: int = 0
) -> Network:
    """Builds a network; new layers have seeded random weights.

    Args:
        classes: m, number of labels. initial: weights of an `smp:` encoder: "packaged" (EfficientNet-Lite0 of the mini
            preset), "imagenet" (timm's, from the hub or `weights_folder`) or "random", e.g. to be loaded afterwards.

    Raises:
        RecoError: unknown spec, missing package or weights.
    """
    family, _, name = spec.partition(":")
    with weights.seeded(seed):
        if family == "smp":
            return _smp(name, classes, initial, weights_folder)
        if family == "frozen":
            return _frozen(name, classes, initial, weights_folder)
    raise RecoError(
        f"unknown segmenter {spec!r}: expected smp:ARCHITECTURE/ENCODER, such as smp:FPN/tu-resnet50, or "
        "frozen:DENSE_ENCODER"
    )


class FrozenEncoderHead(nn.Module):
    """A dense encoder that is not trained, and two convolutions over its features, upsampled."""

    def __init__(self, encoder: nn.Module, channels: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(width, classes, 1)

    def train(self, mode: bool = True) -> "FrozenEncoderHead":
        """The encoder's norms and dropouts stay as in inference."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) -> (b, m, H, W)."""
        with torch.no_grad():
            features = self.encoder(images)
        return F.interpolate(
            self.classifier(self.head(features)), images.shape[2:], mode="bilinear", align_corners=False
        )


def _frozen(name: str, classes: int, initial: str, weights_folder: str | None) -> Network:
    random = (
        initial == "random" and name.startswith("timm:") and not name.partition("@")[0].endswith("/random")
    )
    architecture, at, options = name.partition("@")
    spec = f"{architecture}/random{at}{options}" if random else name
    encoder = load_dense_encoder(spec, weights=weights_folder, precision="fp32")
    module = FrozenEncoderHead(encoder.module, encoder.channels, classes)
    return Network(module, module.encoder, module.classifier, encoder.transform, encoder.stride)


def _smp(name: str, classes: int, initial: str, weights_folder: str | None) -> Network:
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise RecoError('training needs more packages: pip install "reco-ray[train]"') from error
    architecture, _, rest = name.partition("/")
    encoder_name, _, text = rest.partition("@")
    try:
        module: Any = smp.create_model(
            architecture, encoder_name, encoder_weights=None, classes=classes, **_options(text)
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecoError(f"segmenter smp:{name}: cannot be built: {reason(error)}") from error
    transform = _transform(encoder_name)
    if initial == "packaged":
        if encoder_name != PACKAGED:
            raise RecoError(
                f"train.initial: only {PACKAGED} comes with a package; take imagenet or random for {encoder_name}"
            )
        _load_encoder(module.encoder.model, packaged_state_dict())
        transform = PACKAGED_TRANSFORM
    elif initial == "imagenet":
        if not encoder_name.startswith("tu-"):
            raise RecoError(f"train.initial=imagenet needs an encoder of timm, such as tu-{encoder_name}")
        _load_encoder(module.encoder.model, _pretrained(encoder_name.removeprefix("tu-"), weights_folder))
    elif encoder_name == PACKAGED:
        transform = PACKAGED_TRANSFORM
    return Network(module, module.encoder, module.segmentation_head[0], transform)


def _options(text: str) -> dict[str, Any]:
    """ "a=1,b=x" -> keyword arguments, values as in YAML."""
    parts = (part.partition("=") for part in filter(None, text.split(",")))
    return {key: yaml.safe_load(value) for key, _, value in parts}


def _transform(encoder_name: str) -> ImageTransform:
    """How timm says an encoder wants its pixels; those of ImageNet for encoders that are not timm's."""
    config = timm.get_pretrained_cfg(encoder_name.removeprefix("tu-"))
    if config is None:
        return ImageTransform(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = ((v[0], v[1], v[2]) for v in (config.mean, config.std))
    return ImageTransform(config.input_size[-1], mean, std)


def _pretrained(name: str, weights_folder: str | None) -> dict[str, torch.Tensor]:
    spec = f"timm:{name}"
    path = weights.local_file(spec, weights_folder)
    if path is None:
        with weights.from_hub(spec):
            return timm.create_model(name, features_only=True, pretrained=True).state_dict()
    with weights.from_file(path, spec):
        overlay = {"state_dict": weights.read_state_dict(path)}
        net = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay)
        return net.state_dict()


def _load_encoder(encoder: nn.Module, state: dict[str, torch.Tensor]) -> None:
    missing, _ = encoder.load_state_dict(state, strict=False)  # a classifier's last layers have no use here
    if missing:
        raise RecoError(f"the weights lack {len(missing)} tensors of the encoder, the first is {missing[0]}")
