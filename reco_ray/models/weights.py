"""Where weights come from: the hub by default; a file, a folder or a URL for machines without a network.

A folder holds one file a model, named after its spec: `open_clip:ViT-B-16/openai` is
`open_clip/ViT-B-16/openai` with one of `SUFFIXES`. `pull` fills it. Only tensors are ever read, from
safetensors or by `torch.load(weights_only=True)`. Families with `pull` and `prefetch` have weights on a hub.
"""

import argparse
import hashlib
import os
import pickle
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reco_ray import storage
from reco_ray.errors import RecoError
from reco_ray.models import registry
from reco_ray.models.text_cache import cache_directory

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class LocalWeights:
    """One model's weights on this machine."""

    spec: str
    path: Path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    @property
    def sha256(self) -> str:
        """Checksum of the file, read whole at every call."""
        return checksum(self.path)

    def __str__(self) -> str:
        return f"{self.spec}  {self.size / 1e6:,.0f} MB  sha256 {self.sha256}  {self.path}"


def pull(spec: str, directory: str | Path) -> LocalWeights:
    """Downloads a model's weights into `directory`, to be carried to a machine without a network.

    Args:
        spec: as for `load_language_image_model` or `load_dense_encoder`; options after `@` do not matter.
        directory: the folder later given as `weights`, or as RECO_WEIGHTS.

    Raises:
        RecoError: the hub cannot be reached, or the model's weights do not come from one.
    """
    family, name = _family_and_name(spec)
    source = registry.family_with("pull", family)
    if source is None:
        raise RecoError(f"{spec}: nothing to pull, {family} models do not come from a hub")
    if name.endswith("/random"):
        raise RecoError(f"{spec}: random weights are made, not pulled")
    stem = Path(directory) / relative_path(f"{family}:{name}")
    return LocalWeights(f"{family}:{name}", source.pull(name, stem))


def needed(specs: Iterable[str]) -> list[str]:
    """Those of the models whose weights come from a hub, or from a folder that `pull` filled."""
    return [
        spec
        for spec in specs
        if not spec.partition("@")[0].endswith("/random")
        and registry.family_with("prefetch", spec.partition(":")[0]) is not None
    ]


def prefetch(specs: Iterable[str], weights: str | None = None) -> None:
    """Has the weights of models on this machine, downloading them if need be; builds no model.

    Args:
        specs: models; those whose weights are not `needed` are passed over.
        weights: as for `local_file`.

    Raises:
        RecoError: some are neither here nor to be had; the message says what to do.
    """
    for spec in needed(specs):
        family, name = _family_and_name(spec)
        source = registry.family_with("prefetch", family)
        assert source is not None, "`needed` keeps only these"
        source.prefetch(name, weights)


def is_here(spec: str, weights: str | None = None) -> bool:
    """Whether `prefetch` would succeed without a network."""
    was_offline = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = True
    try:
        prefetch([spec], weights)
    except RecoError:
        return False
    finally:
        hub_constants.HF_HUB_OFFLINE = was_offline
    return True


def list_local(directory: str | Path) -> list[LocalWeights]:
    """What `pull` or a hand has put into `directory`, by spec."""
    found = []
    for folder in sorted(path for path in Path(directory).glob("*") if path.is_dir()):
        family = folder.name
        if registry.family_with("pull", family) is None:
            continue
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                name = path.relative_to(folder).as_posix().removesuffix(path.suffix)
                found.append(LocalWeights(f"{family}:{unquote(name)}", path))
    return sorted(found, key=lambda local: local.spec)


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative_path(spec: str) -> str:
    """Where a folder of weights keeps `spec`, without the suffix."""
    family, _, name = spec.partition(":")
    return f"{family}/{quote(name, safe='/')}"


def local_file(spec: str, weights: str | None = None) -> Path | None:
    """The file with the weights of `spec`; None if they are to come from the hub.

    Args:
        spec: without options.
        weights: a file or a folder, local or a URI; None = the environment variable RECO_WEIGHTS, and without
            that the hub.

    Raises:
        RecoError: the file is not there, or the folder has none for `spec`.
    """
    weights = weights or os.environ.get("RECO_WEIGHTS")
    if not weights:
        return None
    is_file = weights.endswith(SUFFIXES)
    candidates = [weights] if is_file else [storage.join(weights, relative_path(spec) + s) for s in SUFFIXES]
    for uri in candidates:
        if storage.exists(uri):
            try:
                return fetch(uri)
            except OSError as error:
                raise RecoError(f"{uri}: cannot be downloaded: {error.strerror or error}") from error
    if is_file:
        raise RecoError(f"{weights}: no such file: --weights takes a file or a folder of weights")
    raise RecoError(
        f"{weights} has no weights of {spec}: run `reco-ray weights pull {spec} --weights {weights}` "
        f"where there is a network, or put them at {relative_path(spec)}.safetensors in it; "
        "or take the preset mini, which needs none"
    )


def fetch(uri: str, *, offline: bool = False) -> Path:
    """A local path as it is; anything else is downloaded once into the cache.

    Raises:
        OSError: it cannot be read, or `offline` and it was not downloaded before.
    """
    if "://" not in uri:
        return Path(uri).expanduser()
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    target = cache_directory() / "weights" / f"{digest}-{uri.rpartition('/')[2]}"
    if not target.exists():
        if offline:
            raise FileNotFoundError(f"{uri} was never downloaded")
        target.parent.mkdir(parents=True, exist_ok=True)
        filesystem, path = storage.resolve(uri)
        source = filesystem.open_input_stream(path)
        with source, _atomic(target) as temporary, open(temporary, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without the dictionaries and prefixes that training code puts around them.

    Raises:
        RuntimeError, UnpicklingError, SafetensorError: not a checkpoint, or one of more than tensors.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    # Namespace: DeiT and its descendants save their command line beside the model. It has no behaviour.
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        stored = stored.get(key, stored)
    return {name.removeprefix("module."): tensor for name, tensor in stored.items()}


def write_state_dict(state_dict: dict[str, torch.Tensor], stem: Path) -> Path:
    """Writes `stem`.safetensors atomically and returns its path."""
    path = stem.with_name(stem.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _atomic(path) as temporary:
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, temporary)
    return path


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator starts at `seed` inside, and afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def from_hub(spec: str) -> Iterator[bool]:
    """Around a download: what is cached is used without a network, and a failure becomes one line.

    Yields:
        Whether the user forbids downloads (HF_HUB_OFFLINE).

    Raises:
        RecoError: whatever went wrong; hubs and their clients raise dozens of kinds of error.
    """
    was_offline = hub_constants.HF_HUB_OFFLINE
    # Its client would retry for most of a minute before it looks into its cache or gives up.
    hub_constants.HF_HUB_OFFLINE = was_offline or not _hub_is_reachable()
    try:
        yield was_offline
    except Exception as error:
        raise unreachable(spec, error) from error
    finally:
        hub_constants.HF_HUB_OFFLINE = was_offline


@contextmanager
def from_file(path: Path, spec: str) -> Iterator[None]:
    """Around reading a checkpoint: one that is unreadable or does not fit becomes one line, a RecoError."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise RecoError(f"{path}: holds more than tensors, not opened: convert it to safetensors") from error
    except (RuntimeError, SafetensorError, KeyError, AttributeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecoError(f"{path}: does not hold the weights of {spec}: {reason}") from error


def unreachable(spec: str, error: Exception) -> RecoError:
    """What to tell the user when something of `spec` is neither here nor to be had from the hub."""
    return RecoError(
        f"the weights of {spec} are not here and cannot be downloaded ({type(error).__name__}): "
        f"run `reco-ray weights pull {spec} --weights DIR` where there is a network and give --weights DIR, "
        "or RECO_WEIGHTS=DIR, here; or take the preset mini, which needs no download"
    )


def _family_and_name(spec: str) -> tuple[str, str]:
    family, _, name = spec.partition("@")[0].partition(":")
    return family, name.removesuffix("/pretrained")


def _hub_is_reachable() -> bool:
    """One attempt to connect; with a proxy nobody but the proxy can tell."""
    endpoint = urlsplit(hub_constants.ENDPOINT)
    try:
        if not getproxies():
            socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def _atomic(path: Path) -> Iterator[str]:
    """A temporary name beside `path`, which takes its place at the end: no worker ever sees half a file."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
