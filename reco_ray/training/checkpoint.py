"""Checkpoints of training: weights, optimiser state and training curve. No pickle.

Files: weights in `last.safetensors` and `best.safetensors`; `optimizer.safetensors` with tensors `<parameter>.<name>`;
`state.json`.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reco_ray.errors import OtherModelError


@dataclass
class TrainingState:
    """State of a run besides network and optimiser.

    Attributes:
        step: number of completed steps.
        best: highest agreement with the held-out pseudo-labels.
        best_weights: weights of that checkpoint.
        curve: step, loss and agreement of each checkpoint.
    """

    step: int = 0
    best: float = -1.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)


def save(
    folder: Path, state: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer, architecture: str
) -> None:
    """Writes the files of a checkpoint into an empty folder."""
    save_file(detached(module.state_dict()), folder / "last.safetensors")
    save_file(detached(state.best_weights), folder / "best.safetensors")
    moments = optimizer.state_dict()["state"]
    flat = {f"{number}.{key}": tensor for number, kept in moments.items() for key, tensor in kept.items()}
    save_file(detached(flat), folder / "optimizer.safetensors")
    numbers = {"step": state.step, "best": state.best, "curve": state.curve, "architecture": architecture}
    (folder / "state.json").write_text(json.dumps(numbers))


def load(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, architecture: str
) -> TrainingState:
    """Loads a checkpoint into module and optimiser.

    Raises:
        OtherModelError: it has another architecture or number of labels.
    """
    numbers = json.loads((folder / "state.json").read_text())
    if numbers["architecture"] != architecture:
        raise OtherModelError(
            f"the checkpoint holds a {numbers['architecture']}, not a {architecture}: choose another --out"
        )
    try:
        module.load_state_dict(load_file(folder / "last.safetensors"))
    except RuntimeError as error:
        raise OtherModelError("the checkpoint has another number of labels: choose another --out") from error
    moments: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        number, _, key = name.partition(".")
        moments[int(number)][key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": dict(moments)})
    best = load_file(folder / "best.safetensors")
    return TrainingState(numbers["step"], numbers["best"], best, numbers["curve"])


def detached(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies of tensors on the CPU, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
