"""reco-ray: concept names and unlabelled images in, a semantic segmenter out.

    import reco_ray

    made = reco_ray.run(corpus="photos", concepts=["cat", "dog"], images="photos/garden", out="first-run")
    print(made.report)

Every stage is a function whose parameters are the options of the command of its name; all return what became of their
artifacts and raise a `RecoError` with one line for bad input, whose subclass says what kind of trouble it is
(`MissingError`, `OtherModelError`, ...).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from reco_ray.client import Client
    from reco_ray.errors import (
        MissingError,
        MissingPackageError,
        NoRoomError,
        OtherModelError,
        RecoError,
        SettingError,
        UnfinishedError,
        UnreadableError,
        UsageError,
    )
    from reco_ray.files.retries import StoreUnavailable
    from reco_ray.stages import (
        duplicates,
        embed,
        evaluate,
        export,
        export_masks,
        index,
        label,
        references,
        review,
        run,
        search,
        segment,
        serve,
        sweep,
        train,
    )
    from reco_ray.training import Segmenter

# What `import reco_ray` offers -> the module that has it, imported when it is first used.
_MODULES = {
    "Client": "reco_ray.client",
    "Segmenter": "reco_ray.training",
    "StoreUnavailable": "reco_ray.files.retries",
    **dict.fromkeys(
        (
            "RecoError", "UsageError", "SettingError", "MissingError", "UnfinishedError", "OtherModelError",
            "UnreadableError", "NoRoomError", "MissingPackageError",
        ),
        "reco_ray.errors",
    ),
    **dict.fromkeys(
        (
            "run", "embed", "index", "duplicates", "references", "segment", "review", "label", "train", "export",
            "export_masks", "evaluate", "sweep", "search", "serve",
        ),
        "reco_ray.stages",
    ),
}  # fmt: skip

__all__ = [
    "Client",
    "MissingError",
    "MissingPackageError",
    "NoRoomError",
    "OtherModelError",
    "RecoError",
    "Segmenter",
    "SettingError",
    "StoreUnavailable",
    "UnfinishedError",
    "UnreadableError",
    "UsageError",
    "duplicates",
    "embed",
    "evaluate",
    "export",
    "export_masks",
    "index",
    "label",
    "references",
    "review",
    "run",
    "search",
    "segment",
    "serve",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'reco_ray' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
