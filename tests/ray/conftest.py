"""Shared by the tests of the stages."""

from collections.abc import Iterator

import pytest
from in_process import stages_in_process


@pytest.fixture
def in_process() -> Iterator[None]:
    """For a test about what a stage does, rather than how it is distributed."""
    with stages_in_process():
        yield


@pytest.fixture(scope="module")
def all_in_process() -> Iterator[None]:
    """For a file of such tests, with its fixtures."""
    with stages_in_process():
        yield
