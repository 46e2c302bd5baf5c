"""Terminal output on standard error: lines, progress bars and a status while waiting."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Paths are printed unchanged: without markup, and not wrapped.
console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


@lru_cache(maxsize=256)
def say_once(line: str) -> None:
    """Prints a line, once per process."""
    console.print(line)


_LATELY = 600  # seconds over which the rate is averaged: a part may take a minute


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "")


class _RemainingColumn(TimeRemainingColumn):
    """Remaining time, once the rate is known."""

    def render(self, task: Task) -> Text:
        known = task.total is not None and task.time_remaining is not None
        return Text.assemble("left ", super().render(task)) if known else Text("")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows a status on the terminal while the block runs; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with console.status(Text(what)):
        yield


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and remaining time; yields a function that advances it.

    Without `total`, it shows no remaining time. Without a terminal, nothing is shown.
    """
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        _RemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
        speed_estimate_period=_LATELY,
    ) as bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda count: bar.advance(task, count)
