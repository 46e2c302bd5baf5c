"""Ray Data as all our pipelines run it: silent, and without its scheduler spinning."""

import copy
import time
from typing import Any

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

STEP_SECONDS = 0.02


def stream_context() -> DataContext:
    """A copy of the current context for one pipeline; use it as `with DataContext.current(context)`."""
    context = copy.deepcopy(DataContext.get_current())
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Unhurried]
    return context


class Unhurried(ExecutionCallback):
    """Lets the scheduler sleep between its steps.

    While the consumer is slower than the producers, Ray 2.60's loop finds tasks that are ready but may not be read yet,
    and turns at once: half a core, in the process that is to compute. Every step handles all that is ready, so that
    steps 20 ms apart delay nothing that takes longer.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray after each step of the scheduler."""
        time.sleep(STEP_SECONDS)
