"""Dense features of CLIP's image towers, in the space of the text embeddings. Pure torch.

CLIP is trained with one embedding per image. Dense features are obtained by changing the attention of the last layer:

- "value": no attention, each location keeps its own value vector (MaskCLIP: Zhou, Loy and Dai, ECCV 2022).
- "sclip": query-query plus key-key attention (SCLIP: Wang, Mei and Yuille, ECCV 2024).
- "naclip": key-key attention with a Gaussian bias towards near locations, without the last block's residual path and
  MLP (NACLIP: Hajimiri, Ben Ayed and Dolz, WACV 2025).
- "clearclip": query-query attention, also without residual path and MLP (ClearCLIP: Lan et al., ECCV 2024).

Residual networks support "value" only, by the projections of their attention pool.
"""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn

ATTENTIONS = ("value", "sclip", "naclip", "clearclip")
RESIDUAL_FREE = ("naclip", "clearclip")
NEIGHBOURHOOD_STD = 5.0  # of NACLIP's Gaussian, in patches; from the paper


def dense_unsupported_reason(visual: nn.Module, attention: str) -> str | None:
    """Returns why `visual` has no dense features with this attention, or None if it has."""
    if isinstance(visual, ModifiedResNet):
        return None if attention == "value" else f"a ResNet has no {attention} attention, only value"
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, whose attention cannot be reached"
    if visual.attn_pool is not None:
        return "its image tower ends in a pooling of its own, after which there are no locations"
    if not isinstance(visual.transformer.resblocks[-1], ResidualAttentionBlock):
        return f"its blocks are {type(visual.transformer.resblocks[-1]).__name__}, whose attention differs"
    return None


def output_stride(visual: nn.Module) -> int:
    """Pixels per location of the dense features."""
    return visual.patch_size[0] if isinstance(visual, VisionTransformer) else 32


def dense_features(visual: nn.Module, images: torch.Tensor, attention: str = "value") -> torch.Tensor:
    """Computes features in the space of the text embeddings at every location.

    Args:
        visual: image tower of open_clip, a ModifiedResNet or a VisionTransformer.
        images: (b, 3, H, W) normalised, of any size; H and W multiples of `output_stride(visual)`.
        attention: one of `ATTENTIONS`.

    Returns:
        (b, d, H / stride, W / stride), not normalised.

    Raises:
        ValueError: the tower does not support the attention, see `dense_unsupported_reason`.
    """
    if (unsupported := dense_unsupported_reason(visual, attention)) is not None:
        raise ValueError(unsupported)
    if isinstance(visual, ModifiedResNet):
        return resnet_value_features(visual, images)
    assert isinstance(visual, VisionTransformer)
    return vit_features(visual, images, attention)


def resnet_trunk(visual: ModifiedResNet, images: torch.Tensor) -> torch.Tensor:
    """Everything before the attention pool: (b, 3, H, W) -> (b, c, H / 32, W / 32)."""
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return x


def resnet_value_features(visual: ModifiedResNet, images: torch.Tensor) -> torch.Tensor:
    """Applies the pool's value and output projections at every location, without positional embedding."""
    pool = visual.attnpool
    x = resnet_trunk(visual, images).permute(0, 2, 3, 1)
    return pool.c_proj(pool.v_proj(x)).permute(0, 3, 1, 2)


def vit_features(visual: VisionTransformer, images: torch.Tensor, attention: str) -> torch.Tensor:
    """Runs all blocks, the last one with `attention`: (b, 3, H, W) -> (b, d, h, w)."""
    tokens, grid = vit_tokens(visual, images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    patches = visual.ln_post(last_block(last, tokens, grid, attention)[:, 1:])
    return (patches @ visual.proj).transpose(1, 2).unflatten(2, grid)


def vit_tokens(visual: VisionTransformer, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Returns the input of the first block, (b, 1 + h * w, c) with the class token first, and the grid (h, w)."""
    patches = visual.conv1(images)
    grid = (patches.shape[-2], patches.shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([class_token, patches], dim=1)
    return visual.ln_pre(tokens + positional_embedding(visual, grid).to(tokens.dtype)), grid


def positional_embedding(visual: VisionTransformer, grid: tuple[int, int]) -> torch.Tensor:
    """The learned embedding, interpolated bicubically to `grid`: (1 + h * w, c)."""
    learned = visual.positional_embedding
    if grid == tuple(visual.grid_size):
        return learned
    patches = learned[1:].unflatten(0, visual.grid_size).permute(2, 0, 1)[None]
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([learned[:1], patches[0].flatten(1).T])


def last_block(
    block: ResidualAttentionBlock, tokens: torch.Tensor, grid: tuple[int, int], attention: str
) -> torch.Tensor:
    """Runs a block with its attention replaced: (b, 1 + h * w, c) -> the same shape."""
    layer = block.attn
    query, key, value = (
        part.unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
        for part in F.linear(block.ln_1(tokens), layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=2)
    )
    mixed = block.ls_1(layer.out_proj(attend(query, key, value, grid, attention).transpose(1, 2).flatten(2)))
    if attention in RESIDUAL_FREE:
        return mixed
    tokens = tokens + mixed
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grid: tuple[int, int], attention: str
) -> torch.Tensor:
    """Attention over tokens; query, key, value and result are (b, heads, 1 + h * w, c / heads)."""
    if attention == "value":
        return value
    if attention == "clearclip":
        return F.scaled_dot_product_attention(query, query, value)
    if attention == "sclip":  # a sum, not a mean: weights add up to 2
        by_query = F.scaled_dot_product_attention(query, query, value)
        return by_query + F.scaled_dot_product_attention(key, key, value)
    if attention == "naclip":
        near = neighbourhood(grid, value.device).to(value.dtype)
        return F.scaled_dot_product_attention(key, key, value, attn_mask=near)
    raise ValueError(f"attention {attention!r} is none of {', '.join(ATTENTIONS)}")


def neighbourhood(grid: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """NACLIP's attention bias, (1 + h * w, 1 + h * w): a Gaussian of the distance, 0 for the class token."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in grid)
    positions = torch.cartesian_prod(rows, columns)
    squared = (positions[:, None] - positions[None]).square().sum(dim=2)
    return F.pad(torch.exp(-squared / (2 * NEIGHBOURHOOD_STD**2)), (1, 0, 1, 0))
