"""8-bit layers beside those that they replace."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from reco_ray.models.int8 import Int8Attention, Int8Linear, int8_tower, int8_unsupported_reason


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_off_by_a_percent(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 160, bias=bias), torch.randn(2, 5, 96)
    x[0, 1] *= 1000  # each token has a scale of its own, so one that is large spoils no other
    small = Int8Linear(layer.weight, layer.bias)
    with torch.inference_mode():
        for token in range(5):
            assert 0 < relative_error(small(x)[:, token], layer(x)[:, token]) < 0.02
    assert small.weight.dtype == torch.int8
    assert small.weight.abs().max() == 127


def test_a_token_of_zeros_gives_the_bias():
    layer = nn.Linear(32, 8)
    assert torch.equal(Int8Linear(layer.weight, layer.bias)(torch.zeros(1, 1, 32))[0, 0], layer.bias)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_the_original(masked):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x = torch.randn(2, 7, 64)
    mask = torch.full((7, 7), float("-inf")).triu(1) if masked else None
    with torch.inference_mode():
        expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        found = Int8Attention(attention)(x, x, x, need_weights=False, attn_mask=mask)[0]
    assert relative_error(found, expected) < 0.03


def test_the_tower_that_was_given_stays_as_it_was():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = nn.Module()
            self.transformer.resblocks = nn.ModuleList([ResidualAttentionBlock(64, 4) for _ in range(2)])

        def forward(self, x):
            for block in self.transformer.resblocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    tower, x = Tower().eval(), torch.randn(2, 5, 64)
    with torch.inference_mode():
        before = tower(x)
        small = int8_tower(tower)
        assert 0 < relative_error(small(x), before) < 0.02
        assert F.cosine_similarity(small(x).flatten(1), before.flatten(1)).min() > 0.9995
        assert torch.equal(tower(x), before)
    assert not any(isinstance(layer, nn.Linear) for layer in small.modules())
    assert int8_unsupported_reason(tower) is None


def test_other_towers_are_named():
    assert "Sequential" in int8_unsupported_reason(nn.Sequential())
