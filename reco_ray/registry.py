"""Components by name: one module each in a package of reco-ray, or an entry point of another installed package.

A module of the package, or the object behind an entry point, is the component; it is imported when it is asked for, in
the driver and in every worker of Ray, where entry points are found again by the installed packages' metadata.

    # pyproject.toml of another package
    [project.entry-points."reco_ray.dense_encoders"]
    my_encoder = "my_package.encoder"
"""

import difflib
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from reco_ray.errors import MissingPackageError, SettingError


class Registry:
    """The components of one kind.

    Args:
        kind: what a component is, for error messages.
        group: entry-point group in which other packages offer theirs.
        package: package of reco-ray whose modules are components; names that begin with `_` are none. None if reco-ray
            has no component of this kind.
        hyphens: whether names have hyphens where the modules' have underscores.
    """

    def __init__(self, kind: str, group: str, package: str | None, *, hyphens: bool = False) -> None:
        self._kind, self._group, self._package = kind, group, package
        self._separator = "-" if hyphens else "_"

    @property
    def names(self) -> list[str]:
        """All names, "none" first, then those of reco-ray; nothing is imported to find them."""
        return [*self._own, *sorted(set(self._others) - set(self._own))]

    def get(self, name: str, spec: str | None = None) -> Any:
        """Imports a component.

        Args:
            name: of the component.
            spec: what the user wrote, for the error message; None = the name.

        Raises:
            RecoError: there is none of this name, or the package that offers it cannot be imported.
        """
        if name in self._own:
            return import_module(f"{self._package}.{name.replace(self._separator, '_')}")
        if name not in self._others:
            close = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SettingError(
                f"unknown {self._kind} {(spec or name)!r}: known are {', '.join(self.names)}{hint}"
            )
        entry = self._others[name]
        try:
            return entry.load()
        except Exception as error:  # whatever another package's import raises
            source = entry.dist.name if entry.dist else entry.value
            raise MissingPackageError(
                f"{self._kind} {name!r} of package {source} cannot be imported: {error}"
            ) from error

    @cached_property
    def _own(self) -> list[str]:
        if self._package is None:
            return []
        # From the files: importing the package could import torch, and the settings need only the names.
        folder = Path(__file__).parent.joinpath(*self._package.split(".")[1:])
        names = sorted(module.name for module in iter_modules([str(folder)]))
        shown = (name.replace("_", self._separator) for name in names if not name.startswith("_"))
        return sorted(shown, key=lambda name: name != "none")

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._group)}


# `load(name, *, weights, device, seed, precision)` -> model, `name` being what follows the colon of a spec; of families
# whose weights come from a hub also `pull(name, stem)` and `prefetch(name, weights)`, see `models/weights.py`. Where
# `NUMBERED` is true, a number at the end of the spec is the name: `my_encoder2` is `my_encoder` with "2".
LANGUAGE_IMAGE_MODELS = Registry(
    "language-image model", "reco_ray.language_image_models", "reco_ray.models.language_image"
)
DENSE_ENCODERS = Registry("dense encoder", "reco_ray.dense_encoders", "reco_ray.models.dense_encoders")
# `TITLE`, which a person reads, and `refine(scores, image)` as `segmentation.refine` describes; also `require()` where
# it needs a package that may be missing, which raises RecoError then.
REFINEMENTS = Registry("refinement", "reco_ray.refinements", "reco_ray.segmentation.refine")
# As `corpus.containers.Container` describes.
CONTAINERS = Registry("container of images", "reco_ray.containers", "reco_ray.corpus.containers")
# `build(name, classes, *, initial, weights_folder)` -> `training.network.Network`.
SEGMENTER_NETWORKS = Registry("segmenter", "reco_ray.segmenter_networks", "reco_ray.training.networks")
# `build_router(ingress)` -> fastapi.APIRouter, as `serving.routes` describes.
ENDPOINTS = Registry("HTTP endpoint", "reco_ray.endpoints", "reco_ray.serving.endpoints", hyphens=True)
# `FORMAT`, a `mask_export.mask_format.MaskFormat`.
MASK_FORMATS = Registry(
    "format of masks", "reco_ray.mask_formats", "reco_ray.mask_export.formats", hyphens=True
)
