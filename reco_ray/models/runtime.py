"""Where and in which precision a module runs: device, autocast, memory format, folded batch norms."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reco_ray.errors import RecoError


@dataclass(frozen=True)
class Runtime:
    """A device and the dtype of its matrix arithmetic (float32 = no autocast)."""

    device: torch.device
    dtype: torch.dtype

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and autocast to `dtype`. Entered at every call: torch's grad mode is thread-local."""
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            yield

    def prepare(self, module: nn.Module) -> nn.Module:
        """Puts `module` in evaluation mode on the device, batch norms folded, channels-last."""
        module = fold_batch_norms(module.eval()).requires_grad_(False)
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def resolve_runtime(device: str = "cpu", precision: str = "auto", *, transformer: bool = False) -> Runtime:
    """Chooses the runtime for `device` ("auto", "cpu", "cuda", "cuda:1") and `precision` of `models.precision`.

    "auto" precision is bfloat16 where the hardware multiplies it natively, else float32; for a `transformer`, whose
    time is that of large matrix products, where it also multiplies them faster. "int8" is as "auto" here: it is
    another form of some modules (`int8`), which they take themselves.

    Raises:
        RecoError: a CUDA device is asked for and there is none. Never falls back to the CPU in silence.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecoError(
            f"device {device!r} was asked for, but torch sees no CUDA GPU: use --device cpu or auto"
        )
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise RecoError(f"precision {precision!r} is unknown: choose auto, fp32, bf16 or int8")
    gains = has_fast_bf16_products(device) if transformer else has_native_bf16(device)
    bf16 = precision == "bf16" or (precision in ("auto", "int8") and gains)
    return Runtime(torch.device(device), torch.bfloat16 if bf16 else torch.float32)


def has_native_bf16(device: str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware (AVX512-BF16 or AMX on CPUs, Ampere or later on CUDA)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_fast_bf16_products(device: str) -> bool:
    """Whether large bfloat16 matrices are multiplied faster than float32 ones.

    An Intel core without AMX, or with AMX hidden by a hypervisor, has AVX512-BF16 but takes nearly twice as long with
    it (78 against 140 Gflop/s at 1600 x 768 x 3072, torch 2.14); its convolutions are as fast. AMD's cores multiply
    bfloat16 at twice the rate by design (Zen 4 and later).
    """
    if device.startswith("cuda"):
        return has_native_bf16(device)
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and _cpu_vendor() == "AuthenticAMD"


def _cpu_vendor() -> str:
    """As the kernel names it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Folds every batch norm that directly follows a convolution into it, in place (1.4x on EfficientNet-Lite0, CPU).

    timm's BatchNormAct2d carries the activation, which stays. Order is that of registration, so only a convolution
    without a bias is taken to be made for the norm after it: RepViT's have one, and are summed before their norm.
    """
    for parent in module.modules():
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and conv.bias is None and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    return module


def fingerprint(spec: str, *parts: nn.Module | torch.Tensor | str) -> str:
    """A short digest of what determines a model's outputs: its spec, its weights and any settings given as text.

    Artifacts carry it, so that an index made with one model is never searched with another.
    """
    digest = hashlib.sha256(spec.encode())
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
            continue
        tensors = part.state_dict() if isinstance(part, nn.Module) else {"": part}
        for name, tensor in tensors.items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{spec}#{digest.hexdigest()[:12]}"
