"""Where the data to measure on lies; it is not part of the repository."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> Path:
    """A path in $RECO_EVAL_DATA, or else in ../shared; the test is skipped where it does not exist."""
    path = Path(os.environ.get("RECO_EVAL_DATA") or _BESIDE_THE_REPOSITORY).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is missing: set RECO_EVAL_DATA to the folder of the evaluation data")
    return path
