"""The application of `reco-ray serve`, for `serve run serve.app:app index=URI state=URI` and serve/config.yaml."""

from ray.serve import Application

from reco_ray.serving.app import build
from reco_ray.serving.options import ServeOptions


def app(args: ServeOptions) -> Application:
    """Builds the application; `args` are the options of `reco-ray serve`."""
    return build(args)
