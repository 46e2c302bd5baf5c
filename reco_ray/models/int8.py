"""int8 inference of open_clip's vision transformers on a CPU. Pure torch.

Linear layers are quantised symmetrically: weights once, per output channel; activations at every call, per token, as in
LLM.int8() (Dettmers et al., NeurIPS 2022, section 2) without its outlier columns. Norms, softmax and the products of
queries with keys stay in float32.
"""

import copy

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import nn


class Int8Linear(nn.Module):
    """`nn.Linear` with int8 products accumulated in int32: (..., c) float32 -> (..., d) float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        weight = weight.detach().float()
        scale = _scale(weight)
        self.weight: torch.Tensor  # (c, d)
        self.scale: torch.Tensor  # (d,)
        self.bias: torch.Tensor | None
        self.register_buffer("weight", (weight / scale).round().to(torch.int8).T.contiguous())
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., c) float32 -> (..., d) float32; a zero vector gives the bias."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)
        products = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight)
        out = products.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)
        return out.unflatten(0, x.shape[:-1])


class Int8Attention(nn.Module):
    """Replaces an `nn.MultiheadAttention` used for self-attention, batch first."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.projection = Int8Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Int8Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor | None = None, **__: object
    ) -> tuple[torch.Tensor, None]:
        """(b, n, c) -> ((b, n, c), None), as `nn.MultiheadAttention` with `need_weights=False`."""
        parts = self.projection(query).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


def int8_unsupported_reason(tower: nn.Module) -> str | None:
    """Returns why `tower` cannot be converted to int8, or None if it can."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None or not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        return f"its image tower is not one of open_clip's plain ViTs ({type(tower).__name__})"
    return None


def int8_tower(tower: nn.Module) -> nn.Module:
    """Returns a copy of a supported image tower of open_clip with int8 linear layers in its blocks."""
    tower = copy.deepcopy(tower)
    for block in tower.transformer.resblocks:  # type: ignore[union-attr]
        block.attn = Int8Attention(block.attn)
        for name in ("c_fc", "c_proj"):
            layer = getattr(block.mlp, name)
            setattr(block.mlp, name, Int8Linear(layer.weight, layer.bias))
    return tower


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """Quantisation step of each row: (n, c) -> (n, 1)."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12) / 127
