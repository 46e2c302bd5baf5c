"""In which precision a model runs when nobody says."""

import pytest
import torch

from reco_ray.errors import SettingError
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


def test_gpus_compute_float32_in_one_way(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        for precision, mode, dtype in [
            ("fp32", "ieee", torch.float32),
            ("tf32", "tf32", torch.float32),
            ("fp16", "tf32", torch.float16),
            ("bf16", "tf32", torch.bfloat16),
            ("auto", "tf32", torch.float16),  # a GPU without bfloat16, such as T4 and V100
        ]:
            assert resolve_runtime("cuda", precision).dtype == dtype
            backends = torch.backends
            modes = {backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision}
            assert modes == {mode}
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_precisions_of_gpus_are_refused_on_a_cpu(precision):
    with pytest.raises(SettingError, match="is for GPUs"):
        resolve_runtime("cpu", precision)
