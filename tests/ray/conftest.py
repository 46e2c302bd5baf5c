"""Ray for the tests: one small local cluster a module, started and stopped here."""

from collections.abc import Iterator

import pytest
from clusters import local_ray


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """`session()` of the code under test joins it. One logical CPU, so one worker: each costs seconds to start."""
    with local_ray(1):
        yield
