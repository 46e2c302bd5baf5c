"""Fixtures of the unit tests."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from reco_ray.models.dense import DenseModels


@pytest.fixture(scope="session")
def models() -> "DenseModels":
    """The dense models of `mini`, in float32."""
    from reco_ray.config import load_settings
    from reco_ray.models.dense import DenseModels  # here, as most tests do not need PyTorch

    return DenseModels.load(load_settings("mini", overrides=["models.precision=fp32"]).models)
