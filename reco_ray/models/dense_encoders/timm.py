"""Any network of timm (Wightman, 2019) as a dense encoder, with a choice of layer and output.

Names are timm's with their pretrained tag. Common choices for co-segmentation:

- `deit_small_distilled_patch16_224.sin`: DeiT-S/16 distilled (Touvron et al., ICML 2021), trained on stylised
  ImageNet (Naseer et al., "Intriguing Properties of Vision Transformers", NeurIPS 2021), the encoder of ReCo.
- `vit_small_patch16_224.dino` (Caron et al., ICCV 2021), `vit_*_patch14_dinov2.lvd142m` (Oquab et al., TMLR
  2024), with registers `vit_*_patch14_reg4_dinov2.lvd142m` (Darcet et al., ICLR 2024).
- `vit_*_patch16_dinov3.lvd1689m`, `convnext_*.dinov3_lvd1689m` (Simeoni et al., 2025).
- `resnet50.a1_in1k` and any other network with feature maps.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.data import resolve_data_config
from timm.models import is_model_in_modules
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn

from reco_ray.errors import MissingPackageError, SettingError
from reco_ray.models import weights as weight_files
from reco_ray.models.image import ImageTransform
from reco_ray.models.runtime import Runtime, fingerprint, resolve_runtime
from reco_ray.models.sliding import fit_to_stride

OUTPUTS = ("tokens", "q", "k", "v")

# Checkpoints that timm does not list: name -> URL of the authors' release.
RELEASED = {
    "deit_small_distilled_patch16_224.sin": "https://github.com/Muzammal-Naseer/"
    "Intriguing-Properties-of-Vision-Transformers/releases/download/v0/deit_s_sin_dist.pth",
}


class TimmEncoder:
    """A DenseEncoder; see `load` for the accepted names."""

    def __init__(
        self,
        name: str,
        *,
        layer: int = -1,
        output: str = "tokens",
        random: bool = False,
        weights: str | None = None,
        device: str = "cpu",
        seed: int = 0,
        precision: str = "auto",
    ) -> None:
        self.runtime: Runtime = resolve_runtime(device, precision, transformer=_is_transformer(name))
        net = _random(name, seed) if random else _pretrained(name, weights)
        self.transform = _image_transform(net)
        features = LayerFeatures(net, layer, output)
        self.channels = features.channels
        self.stride = features.stride
        spec = f"timm:{name}{'/random' if random else ''}@layer={features.layer},output={output}"
        self.fingerprint = fingerprint(spec, features, str(self.transform))
        self.module = self.runtime.prepare(features)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Encodes images: (b, 3, H, W) normalised -> (b, c, H / stride, W / stride) float32, not normalised.

        H and W are resized to the nearest multiples of the stride first.
        """
        with self.runtime.inference():
            return self.module(fit_to_stride(images.to(self.runtime.device), self.stride)).float()


class LayerFeatures(nn.Module):
    """A timm network truncated after one layer; class, distillation and register tokens are dropped.

    Args:
        net: a network of timm.
        layer: index of a transformer block or feature level; negative values count from the end.
        output: "tokens", for transformers after their final norm as in DINO and DINOv2; or "q", "k" or "v", the
            queries, keys or values of the block's attention, before any rotary embedding or query and key norm.

    Raises:
        RecoError: the network has no such layer or output.
    """

    def __init__(self, net: Any, layer: int = -1, output: str = "tokens") -> None:
        super().__init__()
        levels = net.feature_info
        if not -len(levels) <= layer < len(levels):
            raise SettingError(
                f"layer {layer}: {_name(net)} has 0 to {len(levels) - 1}, or -{len(levels)} to -1"
            )
        self.layer = layer % len(levels)
        self.channels = int(levels[self.layer]["num_chs"])
        self.stride = int(levels[self.layer]["reduction"])
        # The final norm of a convolutional network does not fit the other levels.
        self.norm = output == "tokens" and hasattr(net, "blocks") and hasattr(net, "num_prefix_tokens")
        if output != "tokens":
            blocks = getattr(net, "blocks", None)
            if blocks is None or not isinstance(blocks[self.layer], Block | EvaBlock):
                raise SettingError(f"output {output}: {_name(net)} has no such attention, take output=tokens")
            blocks[self.layer] = AttentionProjection(blocks[self.layer], output)
            self.channels = len(blocks[self.layer].weight)
        net.prune_intermediate_layers([self.layer], prune_norm=not self.norm, prune_head=True)
        self.net: Any = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes features: (b, 3, H, W) -> (b, c, H / stride, W / stride)."""
        return self.net.forward_intermediates(
            images, indices=[self.layer], norm=self.norm, intermediates_only=True
        )[0]


class AttentionProjection(nn.Module):
    """Replaces a transformer block and returns the queries, keys or values of its attention."""

    def __init__(self, block: nn.Module, output: str) -> None:
        super().__init__()
        attention: Any = block.attn
        self.norm1: Any = block.norm1
        part = "qkv".index(output)
        if attention.qkv is None:  # EVA-02 has three separate layers, keys without bias
            layer = (attention.q_proj, attention.k_proj, attention.v_proj)[part]
            weight, bias = layer.weight, layer.bias
        else:
            weight, bias = attention.qkv.weight.chunk(3)[part], attention.qkv.bias
            if bias is not None:
                bias = bias.chunk(3)[part]
            elif getattr(attention, "q_bias", None) is not None:  # EVA stores the biases separately
                bias = (attention.q_bias, attention.k_bias, attention.v_bias)[part]
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, tokens: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """(b, n, c) -> (b, n, c); other arguments of a block (rotations, masks) concern its attention only."""
        return F.linear(self.norm1(tokens), self.weight, self.bias)


def load(name: str, *, weights: str | None, device: str, seed: int, precision: str) -> TimmEncoder:
    """Registry factory for `NAME[.TAG][/random | /pretrained][@layer=-1,output=tokens]`."""
    name, _, text = name.partition("@")
    options = _parse_options(text)
    random = name.endswith("/random")
    return TimmEncoder(
        name.removesuffix("/random").removesuffix("/pretrained"),
        **options,
        random=random,
        weights=weights,
        device=device,
        seed=seed,
        precision=precision,
    )


def pull(name: str, stem: Path) -> Path:
    """Downloads the weights of `name` to `stem`.safetensors; implements `weights.pull`."""
    return weight_files.write_state_dict(_from_network(name).state_dict(), stem)


def prefetch(name: str, weights: str | None) -> None:
    """Downloads the weights of `name` into the cache if timm lists a file; implements `weights.prefetch`."""
    if weight_files.local_file(f"timm:{name}", weights) is not None:
        return
    architecture = _architecture(name)
    if name in RELEASED:
        _fetch_release(name)
    elif (config := timm.get_pretrained_cfg(architecture)) and config.hf_hub_id:
        with weight_files.from_hub(f"timm:{name}"):
            _fetch_from_hub(config.hf_hub_id)


def _parse_options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key == "layer" and value.removeprefix("-").isdigit():
            options[key] = int(value)
        elif key == "output" and value in OUTPUTS:
            options[key] = value
        else:
            raise SettingError(f"timm option {part!r}: expected layer=N or output={'|'.join(OUTPUTS)}")
    return options


def _random(name: str, seed: int) -> nn.Module:
    with weight_files.seeded(seed):
        return _create(_architecture(name))


def _pretrained(name: str, weights: str | None) -> nn.Module:
    path = weight_files.local_file(f"timm:{name}", weights)
    return _from_network(name) if path is None else _from_file(name, path)


def _from_network(name: str) -> nn.Module:
    spec = f"timm:{name}"
    architecture = _architecture(name)
    if name in RELEASED:
        return _from_file(name, _fetch_release(name))
    if "/" not in name and not _tags(architecture.partition(".")[0]):
        raise MissingPackageError(
            f"{spec} was never released with weights: give --weights FILE, or take {name}/random"
        )
    with weight_files.from_hub(spec):
        return _create(architecture, pretrained=True)


def _fetch_release(name: str) -> Path:
    with weight_files.from_hub(f"timm:{name}") as offline:
        return weight_files.fetch(RELEASED[name], offline=offline)


def _fetch_from_hub(repository: str) -> None:
    """Downloads to the hub's cache, where timm finds it; prefers safetensors, as timm does."""
    try:
        hf_hub_download(repository, "model.safetensors")
    except EntryNotFoundError:
        hf_hub_download(repository, "pytorch_model.bin")


def _from_file(name: str, path: Path) -> nn.Module:
    with weight_files.from_file(path, f"timm:{name}"):
        # timm maps the tensor names of each architecture's authors, and checks every tensor as the classifier is kept.
        overlay = {"state_dict": weight_files.read_state_dict(path)}
        net = _create(_architecture(name), pretrained=True, pretrained_cfg_overlay=overlay)
    del net.pretrained_cfg["state_dict"]  # type: ignore[union-attr, operator]  # frees a second copy
    return net


def _create(architecture: str, **options: Any) -> nn.Module:
    """Builds a network for any image size; depending on the network, timm takes either keyword or none."""
    any_size: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    for keywords in any_size:
        try:
            return timm.create_model(architecture, **keywords, **options)
        except TypeError:
            continue
    return timm.create_model(architecture, **options)


def _architecture(name: str) -> str:
    """The name in timm; raises RecoError with suggestions if it is unknown."""
    architecture, _, tag = name.partition(".")
    if "/" in name:  # a hub repository
        return name
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise SettingError(f"unknown timm model {name!r}: did you mean {' or '.join(close)}?")
    if name in RELEASED:
        return architecture
    if tag and tag not in _tags(architecture):
        known = ", ".join(_tags(architecture))
        raise SettingError(f"timm:{architecture} has no weights {tag!r}: choose of {known}, or /random")
    return name


def _is_transformer(name: str) -> bool:
    architecture = _architecture(name).partition(".")[0]
    return is_model_in_modules(architecture, ["vision_transformer", "deit", "eva"])


def _tags(architecture: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def _image_transform(net: nn.Module) -> ImageTransform:
    config: Mapping[str, Any] = resolve_data_config(model=net)
    return ImageTransform(
        size=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _name(net: nn.Module) -> str:
    config: Any = net.pretrained_cfg
    return config["architecture"]
