"""The live table of all runs, from the word that each leaves beside its checkpoints."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.live import Live
from rich.table import Table

from reco_ray import storage
from reco_ray.console import console
from reco_ray.errors import RecoError


class LiveTable:
    """One row a run: state, step, loss, agreement with the held-out pseudo-labels."""

    def __init__(self, outs: dict[str, str], steps: int) -> None:
        self._outs, self._steps = outs, steps
        self._states = dict.fromkeys(outs, "waiting")
        self._words: dict[str, dict[str, float]] = {}
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def refresh(self) -> None:
        """Reads the word of every run that has not ended."""
        for name, out in self._outs.items():
            if self._states[name] in ("waiting", "training"):
                with suppress(OSError, ValueError, RecoError):
                    self._words[name] = json.loads(storage.read_bytes(storage.join(out, "progress.json")))
                    self._states[name] = "training"
        self.live.update(self._table(), refresh=True)

    def end(self, name: str, state: str) -> None:
        """A run is done or failed."""
        self._states[name] = state
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table("vocabulary", "state", "step", "loss", "agreement", box=None)
        for name, state in self._states.items():
            word = self._words.get(name)
            figures = ("", "", "")
            if word:
                step = self._steps if state == "done" else int(word["step"])
                figures = (f"{step:,} / {self._steps:,}", f"{word['loss']:.3f}", f"{word['agreement']:.1%}")
            table.add_row(name, state, *figures)
        return table


@contextmanager
def live_table(outs: dict[str, str], steps: int) -> Iterator[LiveTable]:
    """Shows the table on a terminal while the runs go on; in a log file there is only each run's closing line."""
    table = LiveTable(outs, steps)
    if outs and sys.stderr.isatty():
        with table.live:
            yield table
    else:
        yield _Unseen(outs, steps)


class _Unseen(LiveTable):
    """Nobody watches."""

    def refresh(self) -> None:
        """Nothing to show."""

    def end(self, name: str, state: str) -> None:
        """Nothing to show."""
