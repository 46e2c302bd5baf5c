"""Live table of all training runs, from the `progress.json` of each."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.live import Live
from rich.table import Table

from reco_ray.errors import RecoError
from reco_ray.files import storage
from reco_ray.presentation.console import console


class LiveTable:
    """One row per run: state, step, loss, agreement with the held-out pseudo-labels."""

    def __init__(self, outs: dict[str, str], steps: int) -> None:
        self._outs, self._steps = outs, steps
        self._states = dict.fromkeys(outs, "waiting")
        self._progress: dict[str, dict[str, float]] = {}
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def refresh(self) -> None:
        """Reads the progress of every run that has not ended, and redraws the table."""
        for name, out in self._outs.items():
            if self._states[name] in ("waiting", "training"):
                with suppress(OSError, ValueError, RecoError):
                    self._progress[name] = json.loads(storage.read_bytes(storage.join(out, "progress.json")))
                    self._states[name] = "training"
        self.live.update(self._table(), refresh=True)

    def end(self, name: str, state: str) -> None:
        """Sets the final state of a run."""
        self._states[name] = state
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table("vocabulary", "state", "step", "loss", "agreement", box=None)
        for name, state in self._states.items():
            progress = self._progress.get(name)
            figures = ("", "", "")
            if progress:
                step = self._steps if state == "done" else int(progress["step"])
                figures = (
                    f"{step:,} / {self._steps:,}",
                    f"{progress['loss']:.3f}",
                    f"{progress['agreement']:.1%}",
                )
            table.add_row(name, state, *figures)
        return table


@contextmanager
def live_table(outs: dict[str, str], steps: int) -> Iterator[LiveTable]:
    """Shows the table while the runs last if stderr is a terminal."""
    table = LiveTable(outs, steps)
    if outs and sys.stderr.isatty():
        with table.live:
            yield table
    else:
        yield _HiddenTable(outs, steps)


class _HiddenTable(LiveTable):
    """Shows nothing, without a terminal."""

    def refresh(self) -> None:
        """Does nothing."""

    def end(self, name: str, state: str) -> None:
        """Does nothing."""
