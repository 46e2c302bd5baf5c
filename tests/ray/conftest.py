"""Ray for the tests: one small local cluster a module, started and stopped here."""

from collections.abc import Iterator

import pytest
from clusters import local_ray


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Two logical CPUs; `session()` of the code under test joins it."""
    with local_ray(2):
        yield
