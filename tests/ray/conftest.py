"""Ray for the tests: one small local cluster a module, started and stopped here."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reco_ray.cluster import session


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A cluster of this process with `cpus` logical CPUs, whatever the machine has."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Two logical CPUs; `session()` of the code under test joins it."""
    with local_ray(2), session():
        yield
