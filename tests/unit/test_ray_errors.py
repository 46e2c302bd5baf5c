"""Ray's errors that a user can mend, in the words that he sees."""

import pytest
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayTaskError

from reco_ray.distributed.ray_errors import explain_ray_error
from reco_ray.errors import out_of_memory


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OutOfDiskError("full"), "a node: Ray's object store is full, and so is the disk"),
        (ObjectStoreFullError("full"), "a node: Ray's object store is full, and so is the disk"),
        (OutOfMemoryError("killed"), "a node: Ray killed workers because its memory is nearly used up"),
        (ExecutionTimeoutError("no progress"), "nothing was finished for 30 minutes: no node has room"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_can_mend_is_one_line_that_says_how(error: Exception, says: str) -> None:
    line = explain_ray_error(error)
    assert line is not None
    assert line.startswith(says)
    assert line.endswith("; the same command goes on where it stopped")
    assert "\n" not in line


def test_an_error_out_of_a_task_names_its_node() -> None:
    raised = RayTaskError("load", "ray::load() (pid=1, ip=10.0.0.7)\nTraceback", OutOfDiskError("full"))
    line = explain_ray_error(raised.as_instanceof_cause())
    assert line is not None
    assert line.startswith("node 10.0.0.7: Ray's object store is full")


def test_a_bug_gets_no_explanation() -> None:
    assert explain_ray_error(KeyError("pixels")) is None
    assert (
        explain_ray_error(RayTaskError("load", "Traceback", KeyError("pixels")).as_instanceof_cause()) is None
    )


def test_what_runs_out_of_memory_is_told_from_other_errors() -> None:
    for text in ("CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory"):
        assert out_of_memory(RuntimeError(text))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shape mismatch"))
    assert not out_of_memory(ValueError("out of memory"))
