"""Builds the Serve application from the options: its deployments and the bounds of their autoscaling."""

import os
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from reco_ray.errors import SettingError
from reco_ray.serving.bank_of_request import open_segmenter
from reco_ray.serving.heap_trimming import KEEP_MEMORY
from reco_ray.serving.ingress import Ingress
from reco_ray.serving.keys import NAME, KeyRing
from reco_ray.serving.models import Models
from reco_ray.serving.options import ServeOptions
from reco_ray.serving.routes import require_endpoints
from reco_ray.serving.segmenters import Segmenters
from reco_ray.serving.task_images import require_prefixes
from reco_ray.serving.vocabulary_service import VocabularyService

_deployment: Any = serve.deployment
_MOST_LANES = 4
_LOGGING = {
    "enable_access_log": False
}  # `middleware.log_requests` writes one line per request, with more detail


def build(options: ServeOptions) -> Application:
    """The application of `serve.run`.

    Raises:
        RecoError: settings, keys, segmenters or endpoints of other packages that cannot be used.
    """
    require_endpoints()
    options = options.resolved()
    for name, uri in options.segmenters.items():
        if not NAME.fullmatch(name):
            raise SettingError(
                f"segmenter {name!r}: names are made of a-z, 0-9, - and _, 63 characters at most"
            )
        open_segmenter(name, uri)
    if options.keys:
        KeyRing(options.keys)
    require_prefixes(options.label_studio, options.fetch)
    settings = options.load()
    scale = options.scale
    gpu = _on_gpu(settings.models.device)
    lanes = scale.lanes or (2 if gpu else min(_MOST_LANES, os.cpu_count() or 1))
    # Options shared by the deployments that segment images.
    computing: dict[str, Any] = {
        # Logical CPUs: enough to spread replicas over nodes, few enough that all of them fit on a laptop's two cores.
        "ray_actor_options": {
            "num_cpus": 0.5,
            "num_gpus": _gpu_share(options) if gpu else 0,
            "runtime_env": {"env_vars": KEEP_MEMORY},
        },
        "max_ongoing_requests": 4 * options.limits.queue,
        "max_queued_requests": options.limits.queue,
        "graceful_shutdown_timeout_s": options.limits.seconds,
        "logging_config": _LOGGING,
    }
    models = (
        _deployment(Models)
        .options(**_replicas(scale.models, 2 * lanes * scale.batch), **computing)
        .bind(options, lanes)
    )
    segmenters = None
    if options.segmenters:
        segmenters = (
            _deployment(Segmenters)
            .options(**_replicas(scale.segmenters, 2 * lanes * scale.batch), **computing)
            .bind(options, lanes)
        )
    vocabulary_service = (
        _deployment(VocabularyService)
        .options(
            num_replicas=1,
            ray_actor_options={"num_cpus": 0.1},
            max_ongoing_requests=1000,
            logging_config=_LOGGING,
        )
        .bind(options, models, scale.models[1] + 1)
    )
    return (
        _deployment(serve.ingress()(Ingress))
        .options(
            **_replicas(scale.ingress, options.limits.queue),
            ray_actor_options={"num_cpus": 0.1},
            max_ongoing_requests=16 * options.limits.queue,
            max_queued_requests=options.limits.queue,
            backpressure_config={"status_code": 503, "retry_after_s": 1},
            graceful_shutdown_timeout_s=options.limits.seconds,
            logging_config=_LOGGING,
        )
        .bind(options, models, segmenters, vocabulary_service, min(_MOST_LANES, os.cpu_count() or 1))
    )


def describe_gpus(options: ServeOptions) -> str | None:
    """A line that says how many GPUs the replicas ask for and how many there are; None without GPUs."""
    if not _on_gpu(options.load().models.device):
        return None
    share, scale = _gpu_share(options), options.scale
    kinds = [("models", scale.models)] + ([("segmenters", scale.segmenters)] if options.segmenters else [])
    asked = ", ".join(f"{least} to {most} {name}" for name, (least, most) in kinds)
    available = ray.cluster_resources().get("GPU", 0)
    line = f"{share:g} GPU for each of {asked}; the cluster has {available:g} GPUs"
    # A replica does not span GPUs.
    if sum(least for _, (least, _) in kinds) > int(available) * int(1 / share + 1e-9):
        line += ": not enough, so the server waits until there are more, or set scale.gpus lower"
    return line


def _gpu_share(options: ServeOptions) -> float:
    """Share of a GPU of each replica that computes. By default one GPU suffices for one replica of each kind."""
    return options.scale.gpus or (0.5 if options.segmenters else 1.0)


def _on_gpu(device: str) -> bool:
    """Whether each replica takes a GPU: "cuda", or "auto" on a cluster with GPUs."""
    available = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1
    return device.startswith("cuda") or (device == "auto" and available)


def _replicas(bounds: tuple[int, int], target: int) -> dict[str, object]:
    """Options for a fixed number of replicas, or for autoscaling between two bounds.

    Args:
        bounds: least and most replicas.
        target: ongoing requests of a replica at full load.
    """
    least, most = bounds
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": max(1, target // 2),
            "upscale_delay_s": 10,
            "downscale_delay_s": 120,
        }
    }
