"""A Ray cluster inside the test process."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A cluster of this process with `cpus` logical CPUs, whatever the machine has."""
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
