"""Networks that are trained on pseudo-labels, by name."""

from dataclasses import dataclass

from torch import nn

from reco_ray.models import weights
from reco_ray.models.image import ImageTransform
from reco_ray.registry import SEGMENTER_NETWORKS

STRIDE = 32  # sides of images are multiples of it: the deepest level of the usual encoders


@dataclass(frozen=True)
class Network:
    """A network and what training needs to know of it.

    module: normalised (b, 3, H, W), sides multiples of `stride`, -> logits (b, m, H, W). encoder: the part of it that
    has pretrained weights. classifier: its last layer with weights. transform: how it wants its pixels.
    """

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
        spec: `family:name`, such as smp:FPN/tu-resnet50 or frozen:timm:vit_small_patch14_dinov2.lvd142m.
        classes: m, number of labels.
        initial: weights of an `smp:` encoder: "packaged" (EfficientNet-Lite0 of the mini preset), "imagenet" (timm's,
            from the hub or `weights_folder`) or "random", e.g. to be loaded afterwards.
        weights_folder: as for `load_dense_encoder`.
        seed: of random weights.

    Raises:
        RecoError: unknown spec, missing package or weights.
    """
    family, _, name = spec.partition(":")
    with weights.seeded(seed):
        return SEGMENTER_NETWORKS.get(family, spec).build(
            name, classes, initial=initial, weights_folder=weights_folder
        )
