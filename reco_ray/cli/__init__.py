"""The command line: parses options and runs stages.

Stages are imported when their command runs, so that `--help` is fast.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from reco_ray.cli.commands import app
from reco_ray.errors import RecoError, UsageError
from reco_ray.files.caches import home

# Importing a module registers its commands, in the order of `--help`.
# isort: off
from reco_ray.cli import stage_commands  # noqa: F401
from reco_ray.cli import pipeline_command  # noqa: F401
from reco_ray.cli import planning_commands  # noqa: F401
from reco_ray.cli import tools  # noqa: F401
# isort: on

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits 0 (done), 1 (failed) or 2 (wrong usage), without a traceback."""
    os.environ.setdefault("HOME", home())  # else libraries create a folder "~" in the working directory
    with _one_line_errors():
        words = list(sys.argv[1:] if arguments is None else arguments)
        status = app(args=words or ["--help"], standalone_mode=False)
        if status == _INTERRUPTED:  # typer's status for Ctrl-C
            raise KeyboardInterrupt
        if status:
            sys.exit(status)


_INTERRUPTED = 130  # as shells count it: 128 + SIGINT
# The base of what typer raises for wrong options: click's exception, of the package or of typer's own copy.
_ClickException: Any = typer.BadParameter.__mro__[2]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _ClickException as error:
        status, message = 2, f"{error.format_message()} (see --help)"
    except UsageError as error:
        status, message = 2, str(error)
    except RecoError as error:
        status, message = 1, str(error)
    except (KeyboardInterrupt, typer.Abort):
        status, message = _INTERRUPTED, "interrupted: the same command goes on where it stopped"
    except Exception as error:
        if os.environ.get("RECO_DEBUG"):
            raise
        # Ray's message is a worker's traceback; show the first line that names an exception.
        lines = (str(error).strip() or "no message").splitlines()
        first = next((line for line in lines if re.match(r"\w*(Error|Exception): \S", line)), lines[0])
        status, message = 1, f"unexpected {type(error).__name__}: {first} (RECO_DEBUG=1 shows where)"
    else:
        return
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(status)
