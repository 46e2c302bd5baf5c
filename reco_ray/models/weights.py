"""Finds and downloads weights: from the hub, or from a file, folder or URI for machines without a network.

A folder, as `pull` fills it, has one file per model, named after its spec: `open_clip:ViT-B-16/openai` is
`open_clip/ViT-B-16/openai` with one of `SUFFIXES`. Only tensors are read, from safetensors or by
`torch.load(weights_only=True)`. Families with weights on a hub implement `pull` and `prefetch`.
"""

import argparse
import errno
import hashlib
import os
import pickle
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import torch
from huggingface_hub import constants as hub_constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from reco_ray.errors import (
    MissingError,
    MissingPackageError,
    NoRoomError,
    RecoError,
    SettingError,
    UnreadableError,
    file_error,
    reason,
)
from reco_ray.files import storage
from reco_ray.files.caches import cache_directory
from reco_ray.files.proxies import proxy_for
from reco_ray.models.load_model import family_with

# What the system says of a folder that takes no file.
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class LocalWeights:
    """One model's weights on this machine."""

    spec: str
    path: Path

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, computed at every call."""
        return checksum(self.path)

    def __str__(self) -> str:
        return f"{self.spec}  {self.size / 1e6:,.0f} MB  sha256 {self.sha256}  {self.path}"


def pull(spec: str, directory: str | Path) -> LocalWeights:
    """Downloads a model's weights into `directory`, to be copied to a machine without a network.

    Args:
        spec: as for `load_language_image_model` or `load_dense_encoder`; options after `@` are ignored.
        directory: folder to be given later as `weights`, or as RECO_WEIGHTS.

    Raises:
        RecoError: the hub cannot be reached, or does not have the model's weights.
    """
    family, name = _family_and_name(spec)
    source = family_with("pull", family)
    if source is None:
        raise SettingError(f"{spec}: nothing to pull, {family} models do not come from a hub")
    if name.endswith("/random"):
        raise SettingError(f"{spec}: random weights are made, not pulled")
    stem = Path(directory) / relative_path(f"{family}:{name}")
    return LocalWeights(f"{family}:{name}", source.pull(name, stem))


def needed(specs: Iterable[str]) -> list[str]:
    """Returns those models whose weights come from a hub, or from a folder that `pull` filled."""
    return [
        spec
        for spec in specs
        if not spec.partition("@")[0].endswith("/random")
        and family_with("prefetch", spec.partition(":")[0]) is not None
    ]


def prefetch(specs: Iterable[str], weights: str | None = None) -> None:
    """Downloads the weights of models that are not on this machine yet, without building the models.

    Args:
        specs: models; those that are not `needed` are skipped.
        weights: as for `local_file`.

    Raises:
        RecoError: weights are neither on this machine nor available from the hub.
    """
    for spec in needed(specs):
        family, name = _family_and_name(spec)
        source = family_with("prefetch", family)
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
    """Lists the weights in a folder, sorted by spec."""
    found = []
    for folder in sorted(path for path in Path(directory).glob("*") if path.is_dir()):
        family = folder.name
        if family_with("pull", family) is None:
            continue
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                name = path.relative_to(folder).as_posix().removesuffix(path.suffix)
                found.append(LocalWeights(f"{family}:{unquote(name)}", path))
    return sorted(found, key=lambda local: local.spec)


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative_path(spec: str) -> str:
    """Path of `spec` inside a folder of weights, without suffix."""
    family, _, name = spec.partition(":")
    return f"{family}/{quote(name, safe='/')}"


def local_file(spec: str, weights: str | None = None) -> Path | None:
    """Returns the file with the weights of `spec`, or None if they come from the hub.

    Args:
        spec: without options.
        weights: path or URI of a file or folder. Default: the environment variable RECO_WEIGHTS, then the hub.

    Raises:
        RecoError: the file is missing, or the folder has no weights of `spec`.
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
                place = f" to {error.filename} (RECO_CACHE)" if error.filename else ""
                raise file_error(f"{uri}: cannot be downloaded{place}: {reason(error)}", error) from error
    if is_file:
        raise MissingError(f"{weights}: no such file: --weights takes a file or a folder of weights")
    raise MissingPackageError(
        f"{weights} has no weights of {spec}: run `reco-ray weights pull {spec} --weights {weights}` "
        f"where there is a network, or put them at {relative_path(spec)}.safetensors in it; "
        "or take the preset mini, which needs none"
    )


def fetch(uri: str, *, offline: bool = False) -> Path:
    """Returns a local path unchanged; anything else is downloaded once into the cache.

    Raises:
        OSError: it cannot be read, or `offline` is set and it is not in the cache.
    """
    if "://" not in uri:
        return Path(uri).expanduser()
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    target = cache_directory() / "weights" / f"{digest}-{uri.rpartition('/')[2]}"
    if not target.exists():
        if offline:
            raise FileNotFoundError(f"{uri} was never downloaded")
        storage.download(uri, str(target))
    return target


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a checkpoint; unwraps the dictionaries and prefixes that training code adds.

    Raises:
        RuntimeError, UnpicklingError, SafetensorError: not a checkpoint, or one with other objects than tensors.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    # DeiT and related checkpoints contain their command line as a Namespace, which is harmless.
    with torch.serialization.safe_globals([argparse.Namespace]):
        stored = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        stored = stored.get(key, stored)
    return {name.removeprefix("module."): tensor for name, tensor in stored.items()}


def write_state_dict(state_dict: dict[str, torch.Tensor], stem: Path) -> Path:
    """Writes `stem`.safetensors atomically and returns its path."""
    path = stem.with_name(stem.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, temporary)
    return path


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator inside the context and restores its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def from_hub(spec: str) -> Iterator[bool]:
    """Context of a download: uses the cache if the hub cannot be reached, and converts all errors.

    Yields:
        Whether the user forbids downloads (HF_HUB_OFFLINE).

    Raises:
        RecoError: the download failed; hub clients raise many kinds of errors.
    """
    was_offline = hub_constants.HF_HUB_OFFLINE
    # The hub's client would retry for most of a minute before it uses its cache or fails.
    hub_constants.HF_HUB_OFFLINE = was_offline or not _hub_is_reachable()
    try:
        yield was_offline
    except Exception as error:
        raise unreachable(spec, error) from error
    finally:
        hub_constants.HF_HUB_OFFLINE = was_offline


@contextmanager
def from_file(path: Path, spec: str) -> Iterator[None]:
    """Context of reading a checkpoint: raises RecoError if it is unreadable or does not fit the model."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UnreadableError(
            f"{path}: holds more than tensors, not opened: convert it to safetensors"
        ) from error
    except (RuntimeError, SafetensorError, KeyError, AttributeError, EOFError) as error:
        why = " ".join(str(error).split())[:200]
        raise UnreadableError(f"{path}: does not hold the weights of {spec}: {why}") from error


def unreachable(spec: str, error: Exception) -> RecoError:
    """What to tell the user when something of `spec` is neither here nor to be had from the hub."""
    if isinstance(error, OSError) and error.errno in _NO_PLACE and error.filename:
        return NoRoomError(
            f"the weights of {spec} have no place here: {error.filename}: {reason(error)}: set HF_HOME (and "
            "TORCH_HOME) to a folder that can be written and has room, or give --weights DIR"
        )
    return MissingPackageError(
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
        if proxy_for(hub_constants.ENDPOINT) is None:
            socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def atomic(path: Path) -> Iterator[str]:
    """Yields a temporary name beside `path`, renamed to it at the end, so that readers see whole files only."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
