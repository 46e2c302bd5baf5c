"""A pipeline's rows, whatever becomes of the pipeline."""

import itertools
import threading

import pytest
from ray._private import auto_init_hook
from ray.data.exceptions import ExecutionTimeoutError

from reco_ray.distributed.streaming import with_timeout


class Pipeline:
    """Yields numbers, and notes that it was closed."""

    def __init__(self, numbers):
        self._numbers = iter(numbers)
        self.closed = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._numbers)

    def close(self):
        self.closed.set()


def test_rows_come_as_they_are():
    pipeline = Pipeline([1, None, 3])
    assert list(with_timeout(pipeline, 60)) == [1, None, 3]
    assert pipeline.closed.is_set()


def test_an_error_comes_behind_the_rows_before_it():
    rows = with_timeout(Pipeline(1 // number for number in (1, 0)), -1)
    assert next(rows) == 1
    with pytest.raises(ZeroDivisionError):
        next(rows)


def test_whoever_stops_early_ends_the_pipeline():
    pipeline = Pipeline(itertools.count())
    rows = with_timeout(pipeline, 60)
    assert [next(rows), next(rows)] == [0, 1]
    rows.close()
    assert pipeline.closed.is_set()


def test_nothing_is_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    forever = threading.Event()
    rows = with_timeout(Pipeline(forever.wait() for _ in range(1)), 0.2)
    # The pipeline is stuck for longer than the limit, and can then be closed.
    threading.Timer(1, forever.set).start()
    with pytest.raises(ExecutionTimeoutError):
        next(rows)
    assert not auto_init_hook.enable_auto_connect  # what is stuck starts no Ray of its own
