"""All that is used of Ray beyond its public interface, each part with what is done where Ray does not have it.

A part is used with the versions that it was tried with (`TRIED`), and only if it is there; else the function does
without, and a line says once what is lost. `pyproject.toml` asks for the same versions; with another that is installed
all the same, reco-ray still runs. Nothing else here may use `ray._private`, `ray.data._internal` and the like: a test
looks for it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.data import DataContext

from reco_ray.presentation.console import console

TRIED = "2.60."

_lost: set[str] = set()


def _is_tried() -> bool:
    return ray.__version__.startswith(TRIED)


def report_missing_feature(what: str) -> None:
    """Says once what is done without where Ray lacks a part."""
    if what not in _lost:
        _lost.add(what)
        found = f"Ray {ray.__version__} differs from what reco-ray was tried with ({TRIED}x)"
        console.print(f"warning    {found}: {what}")


def print_ray_messages_with(printer: Callable[..., None]) -> None:
    """Has Ray give its messages (a mapping with `lines`, and options) to `printer` instead of printing them.

    Without: they stand between our lines on standard output.
    """
    try:
        import ray._private.worker as worker

        known = callable(worker.print_to_stdstream)
    except (ImportError, AttributeError):
        known = False
    if _is_tried() and known:
        setattr(worker, "print_to_stdstream", printer)  # noqa: B010 - it is declared as that very function
    else:
        report_missing_feature("its messages may stand between these lines")


def init(places: Mapping[str, str], **options: Any) -> bool:
    """`ray.init`, with the folders of a Ray that starts here, which it takes under names that may change.

    Without: Ray keeps its files and objects where it likes.

    Args:
        places: "temp_dir" and "plasma_directory", as far as they are to be chosen.
        options: public ones of `ray.init`.

    Returns:
        Whether Ray took the folders. Nothing is said here, as a caller may have standard error closed meanwhile.
    """
    private: dict[str, Any] = {f"_{name}": folder for name, folder in places.items()}
    try:
        ray.init(**options, **private)
    except (RuntimeError, TypeError) as error:
        if not (private and any(name in str(error) for name in private)):
            raise
        ray.init(**options)
        return False
    return True


def forbid_new_session() -> None:
    """Has Ray's functions fail where no session is open; by themselves they would start another one.

    Without: a thread that stands still in Ray may start one as the run ends.
    """
    try:
        from ray._private import auto_init_hook

        known = isinstance(auto_init_hook.enable_auto_connect, bool)
    except (ImportError, AttributeError):
        known = False
    if _is_tried() and known:
        auto_init_hook.enable_auto_connect = False
    else:
        report_missing_feature("what stands still may start another Ray as this run ends")


def slow_down_scheduler(context: DataContext, seconds: float) -> None:
    """Has Ray Data's scheduler sleep between its steps in pipelines of this context.

    While the consumer is slower than the producers, Ray 2.60's loop finds tasks that are ready but may not be read yet,
    and turns at once: half a core, in the process that is to compute. Without: that half core.
    """
    try:
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        classes = list(context.custom_execution_callback_classes)
    except (ImportError, AttributeError):
        report_missing_feature("its scheduler takes half a core of the process that starts the run")
        return
    if not _is_tried():
        report_missing_feature("its scheduler takes half a core of the process that starts the run")
        return

    class Pause(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(seconds)

    context.custom_execution_callback_classes = [*classes, Pause]


async def unload_multiplexed(owner: object, name: str) -> None:
    """Tells Serve that a replica has unloaded one of its multiplexed models.

    Without: requests for it go on coming to this replica, which loads it again.

    Args:
        owner: the object whose method is multiplexed.
        name: of the model; nothing happens where Serve does not know it.
    """
    loaded = getattr(owner, "__serve_multiplex_wrapper", None)
    try:
        if loaded is None or not _is_tried():
            raise AttributeError
        if name in loaded.models:
            loaded.models.move_to_end(name, last=False)
            await loaded.unload_model_lru()
    except AttributeError:
        report_missing_feature("requests for segmenters that were unloaded are not sent elsewhere")
