"""What a run tells while it trains: progress for the live table, TensorBoard files, MLflow, example pictures."""

import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from reco_ray import storage

SECONDS_BETWEEN = 3.0


class Records:
    """The first worker's notes; the others make one that does nothing (`enabled=False`)."""

    def __init__(self, out: str, name: str, *, enabled: bool) -> None:
        self._out, self._name, self._last = out, name, 0.0
        self._folder = Path(tempfile.mkdtemp(prefix="reco-ray-")) if enabled else None
        self._board = SummaryWriter(str(self._folder)) if enabled else None
        self._mlflow = _mlflow(name) if enabled and os.environ.get("MLFLOW_TRACKING_URI") else None

    def progress(self, step: int, steps: int, loss: float, agreement: float) -> None:
        """Leaves word for the live table, every few seconds at most."""
        if time.monotonic() - self._last < SECONDS_BETWEEN:
            return
        self._last = time.monotonic()
        entry = {"step": step, "steps": steps, "loss": loss, "agreement": max(agreement, 0.0)}
        storage.write_bytes(storage.join(self._out, "progress.json"), json.dumps(entry).encode())

    def checkpoint(self, entry: dict[str, Any], steps: int, best: float, sheet: bytes) -> None:
        """Writes a checkpoint's figures and its examples."""
        assert self._board is not None, "only the first worker checkpoints"
        step = entry["step"]
        self._last = 0.0
        self.progress(step, steps, entry["loss"], best)
        for key in ("loss", "agreement"):
            self._board.add_scalar(key, entry[key], step)
        picture = np.asarray(Image.open(io.BytesIO(sheet))).transpose(2, 0, 1)
        self._board.add_image("examples", picture, step)
        self._board.flush()
        self._copy_board()
        storage.write_bytes(storage.join(self._out, "examples", f"step-{step:06d}.jpg"), sheet)
        if self._mlflow is not None:
            self._mlflow.log_metrics({key: entry[key] for key in ("loss", "agreement")}, step=step)

    def close(self) -> None:
        """Ends the records."""
        if self._board is not None:
            self._board.close()
            self._copy_board()
        if self._mlflow is not None:
            self._mlflow.end_run()

    def _copy_board(self) -> None:
        """TensorBoard's writer knows local files only."""
        assert self._folder is not None, "only the first worker has a folder"
        for file in self._folder.iterdir():
            storage.write_bytes(storage.join(self._out, "tensorboard", file.name), file.read_bytes())


def _mlflow(name: str) -> Any:
    from ray.air.integrations.mlflow import setup_mlflow

    return setup_mlflow(experiment_name="reco-ray", run_name=name, create_experiment_if_not_exists=True)
