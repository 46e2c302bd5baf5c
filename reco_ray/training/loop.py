"""The training loop of one segmenter, run by every worker of a Ray Train run.

All random numbers (crops, dropout) depend on the seed and the step only, so that a resumed run gives the same result.
Checkpoints are selected by their agreement with held-out pseudo-labels; ground truth is never read.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ray.train.torch import get_device, prepare_model
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reco_ray.config import Settings
from reco_ray.contents import LabelsContent
from reco_ray.errors import NoRoomError, RecoError, SettingError, out_of_memory, pack, reason
from reco_ray.files import storage
from reco_ray.models.runtime import resolve_runtime
from reco_ray.training import checkpoint
from reco_ray.training.checkpoint import TrainingState
from reco_ray.training.examples import examples_sheet
from reco_ray.training.feed import feed
from reco_ray.training.measure import Measure, fold_calibration
from reco_ray.training.network import Network, build_network
from reco_ray.training.pseudo_labels import IGNORE
from reco_ray.training.records import TrainingLog
from reco_ray.training.samples import SOFT_PIXELS, Frames, sampling_plan, split

SHARPENING = 2.0  # power of the labels' probabilities: the inverse of a temperature
TIMING = "timing.json"  # steps and seconds since the last start of a run; deleted when it is committed


@dataclass(frozen=True)
class Job:
    """Everything that determines a run.

    Attributes:
        name: of the run.
        labels_uri: URI of the pseudo-labels.
        labels: what their manifest holds.
        out: URI of the Segmenter to write.
        settings: of the run.
        threads: of torch, per worker.
        feeders: actors per worker that prepare crops.
        environment: environment variables of the workers.
    """

    name: str
    labels_uri: str
    labels: LabelsContent
    out: str
    settings: Settings
    threads: int
    feeders: int
    environment: dict[str, str]


def train_worker(config: dict[str, Job]) -> None:
    """Entry point of every worker of Ray Train; `config["job"]` is a Job.

    An error that a retry cannot fix is written to `failed.json` beside the checkpoints, for the retries and the driver.
    """
    job = config["job"]
    failed = storage.join(job.out, "failed.json")
    if storage.exists(failed):
        return
    try:
        _Training(job).run()
    except Exception as error:
        if (why := permanent_failure(error)) is None:
            raise
        storage.write_bytes(failed, pack(type(why)(f"{job.name}: {why}")).encode())
        if ray.train.get_context().get_world_size() > 1:
            raise  # other workers may be waiting for this one's gradients


def permanent_failure(error: Exception) -> RecoError | None:
    """Returns the error with which a retry would fail again, or None if it might succeed."""
    if isinstance(error, RecoError):
        return type(error)(reason(error))
    if "does not have a deterministic implementation" in str(error):
        operation = reason(error).partition(" does not have")[0]
        return SettingError(
            f"the network uses {operation}, which has no deterministic form on this device: set "
            "train.deterministic=false, or take another train.segmenter"
        )
    if out_of_memory(error):
        return NoRoomError(
            "out of memory in a step: lower train.batch_size or train.crop, or raise train.accumulate"
        )
    return None


class _Training:
    def __init__(self, job: Job) -> None:
        self.job, self.options = job, job.settings.train
        self.rank, self.world = (
            ray.train.get_context().get_world_rank(),
            ray.train.get_context().get_world_size(),
        )
        torch.set_num_threads(job.threads)
        torch.use_deterministic_algorithms(self.options.deterministic)
        self.device = get_device()
        models = job.settings.models
        self.frozen = not self.options.encoder_learning_rate
        self.dtype = _training_dtype(self.device.type, models.precision, self.frozen)
        self.network: Network = build_network(
            self.options.segmenter,
            len(job.labels.labels),
            initial=self.options.initial,
            weights_folder=models.weights,
            seed=job.settings.seed,
        )
        self.frames = Frames.open(
            job.labels.frames, job.labels_uri, len(job.labels.labels) if job.labels.soft else 0
        )
        rows, held_out = split(self.frames.sizes, self.options.held_out, job.settings.seed)
        self.plan = sampling_plan(rows, self.options.steps * self.options.batch_size, job.settings.seed)
        if self.frozen:
            self.network.encoder.requires_grad_(False)
        # Before the optimiser, whose state must be on the device of the parameters.
        module = self.network.module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(
            self.network,
            self.options.learning_rate,
            self.options.encoder_learning_rate,
            self.options.weight_decay,
        )
        self.measure = Measure(
            self.network,
            self.frames,
            rows,
            held_out,
            labels=len(job.labels.labels),
            device=self.device,
            dtype=self.dtype,
            rank=self.rank,
            world=self.world,
        )
        self.state = TrainingState()
        if (last := ray.train.get_checkpoint()) is not None:
            with last.as_directory() as folder:
                self.state = checkpoint.load(
                    Path(folder), self.network.module, self.optimizer, self.options.segmenter
                )
        self.model = prepare_model(module)

    def run(self) -> None:
        """Trains from the last checkpoint to the last step, then writes the files of the Segmenter."""
        options, state = self.options, self.state
        records = TrainingLog(self.job.out, self.job.name, enabled=self.rank == 0)
        losses: list[float] = []
        batches = feed(
            self.frames,
            self.plan,
            options,
            start=state.step,
            rank=self.rank,
            world=self.world,
            feeders=self.job.feeders,
        )
        started, first = time.monotonic(), state.step
        for step in range(first, options.steps):
            losses.append(self._step(step, batches))
            state.step = step + 1
            if state.step % options.checkpoint_every == 0 or state.step == options.steps:
                self._checkpoint(float(np.mean(losses)), records)
                losses.clear()
            elif self.rank == 0:
                records.progress(state.step, options.steps, losses[-1], state.best)
        if self.rank == 0:
            self._write_results()
            timing = {"steps": options.steps - first, "seconds": round(time.monotonic() - started, 3)}
            storage.write_json(storage.join(self.job.out, TIMING), timing)
            records.close()

    def _step(self, step: int, batches: Iterator[dict[str, np.ndarray]]) -> float:
        """Updates the weights once; returns the loss, averaged over all workers."""
        for group, base in zip(self.optimizer.param_groups, _rates(self.options), strict=True):
            group["lr"] = base * (1 - step / self.options.steps) ** self.options.power
        generator = np.random.default_rng([self.job.settings.seed, step, self.rank])
        torch.manual_seed(int(generator.integers(2**31)))
        self.model.train()
        if self.frozen:
            self.network.encoder.eval()  # norms and dropout as in inference
        total, seen = torch.zeros((), device=self.device), []
        for part in range(1, self.options.accumulate + 1):
            batch = next(batches)
            seen += batch["id"].tolist()
            sync: Any = nullcontext()
            if part < self.options.accumulate and isinstance(self.model, DistributedDataParallel):
                sync = self.model.no_sync()  # gradients are exchanged once per step
            with sync:
                loss = self._loss(batch) / self.options.accumulate
                loss.backward()
            total += loss.detach()
        if self.world > 1:
            dist.all_reduce(total)
            total /= self.world
        if not total.isfinite():
            raise RecoError(
                f"the loss is {total.item()} at step {step + 1}, whose {self._describe_batch(seen)}: lower "
                "train.learning_rate, or set models.precision=fp32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _describe_batch(self, seen: list[int]) -> str:
        """Describes the batch of a step over all workers: positions in the plan, and names of the images."""
        if self.world > 1:
            mine = torch.tensor(seen, device=self.device)
            gathered = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(gathered, mine)
            seen = torch.cat(gathered).tolist()
        uris = [self.frames.uri(*self.plan[position, :2].tolist()) for position in sorted(seen)]
        return f"crops {min(seen)}-{max(seen)} are of {', '.join(uri.rpartition('/')[2] for uri in uris)}"

    def _loss(self, batch: dict[str, np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(batch["image"]).to(self.device, non_blocking=True)
        labels = torch.from_numpy(batch["label"]).to(self.device, non_blocking=True).long()
        images = self.network.transform.normalize(pixels.permute(0, 2, 3, 1))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(images)
        if "soft" in batch:
            return soft_cross_entropy(logits[..., SOFT_PIXELS, SOFT_PIXELS], torch.from_numpy(batch["soft"]))
        # The loss is 0, not NaN, if all pixels of the batch are ignored.
        # Pixels as rows: the loss of maps has no deterministic form on GPUs.
        rows = logits.float().movedim(1, 3).flatten(0, 2)
        summed = F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        return summed / (labels != IGNORE).sum().clamp_min(1)

    def _checkpoint(self, loss: float, records: TrainingLog) -> None:
        """Measures the agreement with the held-out pseudo-labels and saves a checkpoint."""
        state = self.state
        module = self._module().eval()
        self.measure.broadcast_buffers()
        labels = self.job.labels
        # Standardised, the background would be as rare as each of the concepts.
        calibrated = self.measure.calibration(module) if labels.soft and not labels.background else None
        agreement, shown = self.measure.agreement(module, calibrated)
        entry = {"step": state.step, "loss": loss, "agreement": agreement}
        state.curve.append(entry)
        if agreement > state.best:
            state.best = agreement
            state.best_weights = checkpoint.detached(
                fold_calibration(self.network, calibrated) if calibrated else module.state_dict()
            )
        if self.rank:
            ray.train.report(entry)
            return
        sheet = examples_sheet(shown, len(self.job.labels.labels), self.job.labels.background)
        records.checkpoint(entry, self.options.steps, state.best, sheet)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), state, self._module(), self.optimizer, self.options.segmenter)
            ray.train.report(entry, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _module(self) -> nn.Module:
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def _write_results(self) -> None:
        weights = save_tensors(self.state.best_weights)
        storage.write_bytes(storage.join(self.job.out, "weights.safetensors"), weights)
        storage.write_table(
            storage.join(self.job.out, "curve.parquet"), pa.Table.from_pylist(self.state.curve)
        )


def soft_cross_entropy(logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Cross entropy with sharpened probabilities as labels, averaged over the pixels that are not ignored.

    Sharpening (Berthelot et al., NeurIPS 2019, eq. 7) has the network decide where its labels lean to one side.

    Args:
        logits: (b, m, H, W).
        soft: probabilities x 255, uint8 (b, m, H, W); all 0 at ignored pixels.
    """
    target = (soft.to(logits.device, non_blocking=True).float() / 255) ** SHARPENING
    target /= target.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    summed = -(target * logits.float().log_softmax(dim=1)).sum()
    return summed / target.sum().clamp_min(1)  # 0, not NaN, if all pixels are ignored


def _optimizer(network: Network, rate: float, encoder_rate: float, decay: float) -> torch.optim.Optimizer:
    encoder = {id(p) for p in network.encoder.parameters()}
    groups: list[list[nn.Parameter]] = [[], []]
    for parameter in network.module.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in encoder].append(parameter)
    named = [{"params": groups[0], "lr": rate}, {"params": groups[1], "lr": encoder_rate}]
    return torch.optim.Adam(named, weight_decay=decay)


def _training_dtype(device: str, precision: str, frozen: bool) -> torch.dtype:
    """As in inference, but on CPUs float32 unless bfloat16 is requested or the encoder is frozen.

    The backward pass of depthwise convolutions has no fast bfloat16 kernel on CPUs: a step of EfficientNet takes 1.7
    times as long.
    """
    if device == "cpu" and precision in ("auto", "int8") and not frozen:
        return torch.float32
    dtype = resolve_runtime(device, precision).dtype
    return torch.float32 if dtype == torch.float16 else dtype  # its gradients would need scaling


def _rates(options: Any) -> tuple[float, float]:
    return options.learning_rate, options.encoder_learning_rate
