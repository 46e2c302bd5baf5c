"""In which precision a model runs when nobody says."""

import pytest
import torch

from reco_ray.models import runtime
from reco_ray.models.runtime import resolve_runtime


@pytest.mark.parametrize(
    ("vendor", "avx512_bf16", "amx", "network", "transformer"),
    [
        ("GenuineIntel", True, False, torch.bfloat16, torch.float32),
        ("GenuineIntel", True, True, torch.bfloat16, torch.bfloat16),
        ("AuthenticAMD", True, False, torch.bfloat16, torch.bfloat16),
        ("AuthenticAMD", False, False, torch.float32, torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_it_gains(monkeypatch, vendor, avx512_bf16, amx, network, transformer):
    monkeypatch.setattr(runtime, "_cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_runtime("cpu").dtype == resolve_runtime("cpu", "int8").dtype == network
    assert resolve_runtime("cpu", transformer=True).dtype == transformer
    assert resolve_runtime("cpu", "bf16", transformer=True).dtype == torch.bfloat16
    assert resolve_runtime("cpu", "fp32").dtype == torch.float32
