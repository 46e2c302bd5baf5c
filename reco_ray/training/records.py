"""Logging of a training run: progress for the live table, TensorBoard, MLflow, example images."""

import io
import json
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from reco_ray.errors import MissingPackageError, RecoError, reason
from reco_ray.files import storage

PROGRESS_SECONDS = 3.0  # least time between two writes of `progress.json`
TRACKING = "MLFLOW_TRACKING_URI"


class TrainingLog:
    """Log of the first worker; the others use `enabled=False`, which logs nothing."""

    def __init__(self, out: str, name: str, *, enabled: bool) -> None:
        self._out, self._name, self._last = out, name, 0.0
        self._folder = tempfile.TemporaryDirectory(prefix="reco-ray-") if enabled else None
        self._board = SummaryWriter(self._folder.name) if self._folder else None
        self._mlflow = _mlflow(out, name) if enabled and os.environ.get(TRACKING) else None

    def progress(self, step: int, steps: int, loss: float, agreement: float) -> None:
        """Writes `progress.json` for the live table, every PROGRESS_SECONDS at most."""
        if time.monotonic() - self._last < PROGRESS_SECONDS:
            return
        self._last = time.monotonic()
        entry = {"step": step, "steps": steps, "loss": loss, "agreement": max(agreement, 0.0)}
        storage.write_bytes(storage.join(self._out, "progress.json"), json.dumps(entry).encode())

    def checkpoint(self, entry: dict[str, float], steps: int, best: float, sheet: bytes) -> None:
        """Logs the metrics and example images of a checkpoint."""
        assert self._board is not None, "only the first worker logs checkpoints"
        step = int(entry["step"])
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
        """Closes TensorBoard and MLflow."""
        if self._board is not None and self._folder is not None:
            self._board.close()
            self._copy_board()
            self._folder.cleanup()
        if self._mlflow is not None:
            self._mlflow.end_run()

    def _copy_board(self) -> None:
        """Copies TensorBoard's files to the output, as its writer supports local files only."""
        assert self._folder is not None, "only the first worker has a folder"
        for file in Path(self._folder.name).iterdir():
            storage.write_bytes(storage.join(self._out, "tensorboard", file.name), file.read_bytes())


def tracking_environment() -> dict[str, str]:
    """Environment variables with MLflow's address and credentials, for workers on other machines.

    Raises:
        MissingPackageError: a tracking server is configured, but MLflow is not installed.
    """
    found = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
    if not found.get(TRACKING):
        return {}
    if find_spec("mlflow") is None:
        raise MissingPackageError(
            f'{TRACKING} is set, but MLflow is not installed: pip install "reco-ray[mlflow]", or unset it'
        )
    return found | {TRACKING: storage.absolute(found[TRACKING])} if ":" not in found[TRACKING] else found


def _mlflow(out: str, name: str) -> Any:
    """Starts MLflow's run, or resumes the one whose id an interrupted run left in `out`."""
    from mlflow.exceptions import MlflowException
    from ray.air.integrations.mlflow import setup_mlflow

    kept = storage.join(out, "mlflow.json")
    if storage.exists(kept):
        os.environ["MLFLOW_RUN_ID"] = json.loads(storage.read_bytes(kept))["run_id"]  # start_run resumes it
    try:
        mlflow = setup_mlflow(
            tracking_uri=os.environ[TRACKING],
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "reco-ray"),
            run_name=name,
            create_experiment_if_not_exists=True,
        )
    except MlflowException as error:
        raise RecoError(
            f"MLflow at {os.environ[TRACKING]}: {reason(error)}: unset {TRACKING} to do without"
        ) from error
    run_id = mlflow.active_run().info.run_id
    storage.write_bytes(kept, json.dumps({"run_id": run_id}).encode())
    return mlflow
