"""Training one segmenter: what every worker of a Ray Train run does.

Batches come from Ray Data, whose tasks decode and augment wherever the cluster has cores, in an order that follows from
the seed and the step alone. Steps are compared by their agreement with pseudo-labels that were held out; no label of a
person is ever opened.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ray.data import DataContext
from ray.train.torch import get_device, prepare_model
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors
from torch import nn

from reco_ray import storage
from reco_ray.cluster import READER_CPUS
from reco_ray.config import Settings
from reco_ray.errors import RecoError
from reco_ray.models.runtime import resolve_runtime
from reco_ray.streaming import stream_context
from reco_ray.training.examples import examples_sheet
from reco_ray.training.network import Network, build_network
from reco_ray.training.pseudo_labels import IGNORE
from reco_ray.training.records import Records
from reco_ray.training.samples import Crops, Frames, augmentation, order, split

CROPS_A_TASK = 16
MOST_HELD_OUT = 64  # frames: enough to compare steps, few enough to do it often


@dataclass(frozen=True)
class Job:
    """Everything that determines a run. labels: names of the label ids. out: URI of the Segmenter to be."""

    name: str
    frames: str
    labels_uri: str
    labels: list[str]
    background: bool
    out: str
    settings: Settings
    threads: int


@dataclass
class _State:
    """What a checkpoint holds."""

    step: int = 0
    best: float = -1.0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker; `config["job"]` is a Job.

    An error that trying again cannot mend is written to `failed.json` beside the checkpoints, where the run's retries
    and its driver find it.
    """
    job: Job = config["job"]
    failed = storage.join(job.out, "failed.json")
    if storage.exists(failed):
        return
    try:
        _Training(job).run()
    except RecoError as error:
        storage.write_bytes(failed, json.dumps({"reason": str(error)}).encode())
    except RuntimeError as error:  # torch.OutOfMemoryError is one, as is what the CPU's allocator raises
        if "out of memory" not in str(error).lower() and "allocate memory" not in str(error).lower():
            raise
        text = "out of memory in a step: lower train.batch_size or train.crop, or raise train.accumulate"
        storage.write_bytes(failed, json.dumps({"reason": text}).encode())


class _Training:
    def __init__(self, job: Job) -> None:
        self.job, self.options = job, job.settings.train
        self.rank, self.world = (
            ray.train.get_context().get_world_rank(),
            ray.train.get_context().get_world_size(),
        )
        torch.set_num_threads(job.threads)
        self.device = get_device()
        models = job.settings.models
        self.dtype = _training_dtype(self.device.type, models.precision)
        self.network: Network = build_network(
            self.options.segmenter,
            len(job.labels),
            initial=self.options.initial,
            weights_folder=models.weights,
            seed=job.settings.seed,
        )
        self.frames = Frames.open(job.frames, job.labels_uri)
        self.train_rows, held_out = split(self.frames.sizes, self.options.held_out, job.settings.seed)
        self.held_out = held_out[:MOST_HELD_OUT]
        module = self.network.module.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(
            self.network,
            self.options.learning_rate,
            self.options.encoder_learning_rate,
            self.options.weight_decay,
        )
        self.state = _State()
        self._restore()
        self.model = prepare_model(module)

    def run(self) -> None:
        """Trains from the last checkpoint to the last step, then writes the Segmenter's files."""
        options, state = self.options, self.state
        records = Records(self.job.out, self.job.name, enabled=self.rank == 0)
        losses: list[float] = []
        batches = self._batches(state.step)
        for step in range(state.step, options.steps):
            losses.append(self._step(step, batches))
            state.step = step + 1
            if state.step % options.checkpoint_every == 0 or state.step == options.steps:
                self._checkpoint(float(np.mean(losses)), records)
                losses.clear()
            elif self.rank == 0:
                records.progress(state.step, options.steps, losses[-1], state.best)
        if self.rank == 0:
            self._write_results()
            records.close()

    def _step(self, step: int, batches: Iterator[dict[str, np.ndarray]]) -> float:
        """One update of the weights; returns its loss, the mean over all workers."""
        for group, base in zip(self.optimizer.param_groups, _rates(self.options), strict=True):
            group["lr"] = base * (1 - step / self.options.steps) ** self.options.power
        self.model.train()
        total, seen = torch.zeros((), device=self.device), []
        for _ in range(self.options.accumulate):
            batch = next(batches)
            seen += batch["id"].tolist()
            loss = self._loss(batch) / self.options.accumulate
            loss.backward()
            total += loss.detach()
        if self.world > 1:
            dist.all_reduce(total, dist.ReduceOp.AVG if self.device.type == "cuda" else dist.ReduceOp.SUM)
            total = total if self.device.type == "cuda" else total / self.world
        if not total.isfinite():
            raise RecoError(
                f"{self.job.name}: the loss is {total.item()} at step {step + 1}, samples {seen}: lower "
                "train.learning_rate, or set models.precision=fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _loss(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(batch["image"]).to(self.device, non_blocking=True)
        labels = torch.from_numpy(batch["label"]).to(self.device, non_blocking=True).long()
        images = self.network.transform.normalize(pixels.permute(0, 2, 3, 1))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(images)
        # A batch in which every pixel is ignored has a loss of zero, not of NaN.
        summed = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
        return summed / (labels != IGNORE).sum().clamp_min(1)

    def _batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
        """This worker's part of every step's batch from step `start` on, in the plan's order."""
        options = self.options
        plan = order(self.train_rows, options.steps * options.batch_size, self.job.settings.seed)
        mine = np.arange(start * options.batch_size, len(plan))[self.rank :: self.world]
        if not len(mine):
            return
        context = stream_context()
        context.execution_options.preserve_order = True
        crops = Crops(self.frames, plan, augmentation(options.image_size, options.crop, options.scale))
        with DataContext.current(context):
            # from_items makes its blocks here; range and from_arrow have tasks do it, which each want a whole core.
            items = [{"id": position} for position in mine.tolist()]
            tasks = -(-len(mine) // CROPS_A_TASK)
            dataset = ray.data.from_items(items, override_num_blocks=tasks).map_batches(
                crops, batch_size=None, batch_format="numpy", num_cpus=READER_CPUS
            )
            yield from dataset.iter_batches(
                batch_size=options.batch_size // self.world // options.accumulate,
                batch_format="numpy",
                prefetch_batches=2,
            )

    def _checkpoint(self, loss: float, records: Records) -> None:
        """Measures the agreement with the held-out pseudo-labels and commits the run's state."""
        state = self.state
        agreement, shown = self._agreement()
        entry = {"step": state.step, "loss": loss, "agreement": agreement}
        state.curve.append(entry)
        if agreement > state.best:
            state.best = agreement
            state.best_weights = {k: v.detach().cpu().clone() for k, v in self._module().state_dict().items()}
        if self.rank:
            ray.train.report(entry)
            return
        sheet = examples_sheet(shown, len(self.job.labels), self.job.background)
        records.checkpoint(entry, self.options.steps, state.best, sheet)
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder))
            ray.train.report(entry, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _agreement(self) -> tuple[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Mean IoU between predictions and held-out pseudo-labels over the labels that occur; some of the frames,
        with their labels and predictions."""
        count = len(self.job.labels)
        matrix = torch.zeros(count * count, dtype=torch.long, device=self.device)
        shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        module = self._module().eval()
        for shard, row in self.held_out[self.rank :: self.world]:
            image, label = self.frames.read(int(shard), int(row))
            predicted = self._predict(module, image)
            truth = torch.from_numpy(label.copy()).to(self.device).long()
            counted = truth != IGNORE
            matrix += torch.bincount(truth[counted] * count + predicted[counted], minlength=count * count)
            if len(shown) < 3:
                shown.append((image, label, predicted.cpu().numpy()))
        if self.world > 1:
            dist.all_reduce(matrix)
        square = matrix.view(count, count).double()
        union = square.sum(0) + square.sum(1) - square.diag()
        return float((square.diag()[union > 0] / union[union > 0]).mean()) if union.any() else 0.0, shown

    def _predict(self, module: nn.Module, image: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(image.copy())[None].to(self.device)
        height, width = image.shape[:2]
        stride = self.network.stride
        images = self.network.transform.normalize(pixels)
        padded = F.pad(images, (0, -width % stride, 0, -height % stride))
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            return module(padded)[0, :, :height, :width].float().argmax(0)

    def _module(self) -> nn.Module:
        """The network itself, without what distributes it."""
        return (
            self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        )

    def _save(self, folder: Path) -> None:
        save_file(_contiguous(self._module().state_dict()), folder / "last.safetensors")
        save_file(_contiguous(self.state.best_weights), folder / "best.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        state = {
            "step": self.state.step,
            "best": self.state.best,
            "curve": self.state.curve,
            "architecture": self.options.segmenter,
        }
        (folder / "state.json").write_text(json.dumps(state))

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as path:
            folder = Path(path)
            state = json.loads((folder / "state.json").read_text())
            if state["architecture"] != self.options.segmenter:
                raise RecoError(
                    f"the checkpoint holds a {state['architecture']}, not a {self.options.segmenter}: "
                    "choose another --out"
                )
            self.network.module.load_state_dict(load_file(folder / "last.safetensors"))
            self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
            self.state = _State(
                state["step"], state["best"], load_file(folder / "best.safetensors"), state["curve"]
            )

    def _write_results(self) -> None:
        weights = save_tensors(_contiguous(self.state.best_weights))
        storage.write_bytes(storage.join(self.job.out, "weights.safetensors"), weights)
        storage.write_table(
            storage.join(self.job.out, "curve.parquet"), pa.Table.from_pylist(self.state.curve)
        )


def _optimizer(network: Network, rate: float, encoder_rate: float, decay: float) -> torch.optim.Optimizer:
    """Adam, the encoder's parameters in a group of their own."""
    encoder = {id(p) for p in network.encoder.parameters()}
    groups: list[list[nn.Parameter]] = [[], []]
    for parameter in network.module.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in encoder].append(parameter)
    named = [{"params": groups[0], "lr": rate}, {"params": groups[1], "lr": encoder_rate}]
    return torch.optim.Adam(named, weight_decay=decay)


def _training_dtype(device: str, precision: str) -> torch.dtype:
    """As in inference, but float32 on a CPU unless bfloat16 is asked for: the backward pass of depthwise convolutions
    has no fast bfloat16 kernel there, a step of the mini preset takes 1.7 times as long."""
    if device == "cpu" and precision == "auto":
        return torch.float32
    return resolve_runtime(device, precision).dtype


def _rates(options: Any) -> tuple[float, float]:
    return options.learning_rate, options.encoder_learning_rate


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
