"""What a person sees in the terminal: a progress bar while it works, one line when a stage ends."""

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

# Paths are printed as they are: none of their characters means anything, and none is broken over two lines.
console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


@lru_cache(maxsize=256)
def say_once(line: str) -> None:
    """A line on standard error, however many stages of a run have it to say."""
    console.print(line)


_LATELY = 600  # seconds over which the rate is taken: a part may well need a minute


class _Rate(ProgressColumn):
    """Images a second, lately."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "")


class _Left(TimeRemainingColumn):
    """The time that is left, once the rate is known."""

    def render(self, task: Task) -> Text:
        known = task.total is not None and task.time_remaining is not None
        return Text.assemble("left ", super().render(task)) if known else Text("")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says on standard error what is being done, as long as it takes; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with console.status(Text(what)):
        yield


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error with rate and remaining time; yields a function that advances it.

    Without a `total` it moves, and tells no remaining time.
    In a log file there is no bar, only the closing line of the stage.
    """
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        _Left(),
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
