"""Images a second of the embed stage beside loops that a user could write, and beside clip-retrieval.

    python benchmarks/embed.py --corpus FOLDER [--images 600] [--rounds 3] [--clip-retrieval VENV]

One JSON line. In one run, on the same images, with the same randomly initialised open_clip model and batch size:

- loop:     the limit: one process, the model as reco-ray prepares it, threads that read and decode ahead; the best of
            one and two torch threads
- ours_1, ours_2: the embed stage with one worker and with as many as the machine has cores (it commits its results)
- int8:     the embed stage again, as many workers as cores, with models.precision=int8, which the others do not have
- clip_retrieval: `clip-retrieval inference` in a virtual environment of its own, which is made where VENV says if it
            is not there (several GB); left out without the option
- naive:    Ray Data as its guide shows it: read_images, float tensors, map_batches over an actor, write_parquet

Each is measured from the moment that its model is loaded and has seen a batch, and gets the whole machine; rounds are
taken in turn and medians given.

    python benchmarks/embed.py --corpus FOLDER --memory 1000 50000

The same stage over tars that repeat the photographs, small and each with bytes of its own: peak memory by process and
the sum of the counts, for each number of rows.
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import ray
import torch
from PIL import Image

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.decode import decode_image
from reco_ray.corpus.embed import embed_pixels
from reco_ray.corpus.generations import pending_units, record_generation
from reco_ray.corpus.listing import list_files
from reco_ray.corpus.load_parts import LoadParts
from reco_ray.corpus.read import read_image_bytes
from reco_ray.corpus.stage import EmbedWorker, embed_corpus
from reco_ray.distributed.parts import run_parts
from reco_ray.distributed.session import session
from reco_ray.distributed.workers import plan_workers
from reco_ray.files.read_ahead import prefetched
from reco_ray.models import load_language_image_model
from reco_ray.models.description import describe_retrieval_model

ARCHITECTURE = "ViT-B-32"
SPEC = f"open_clip:{ARCHITECTURE}/random"
PART = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="folder of photographs")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip-retrieval", metavar="VENV")
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS", help="measure memory instead")
    options = parser.parse_args()
    uris = list_files(options.corpus).table["uri"].to_pylist()
    # Evenly over the listing, which is ordered by size: the same mixture whatever the number.
    uris = [uris[int(n)] for n in np.linspace(0, len(uris) - 1, min(options.images, len(uris)))]
    result = _memory(uris, options.memory) if options.memory else _speed(uris, options)
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    print(json.dumps({"benchmark": "embed", **result, **machine}))


# --- speed --------------------------------------------------------------------------------------------------


def _speed(uris: list[str], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        folder.mkdir()
        for uri in uris:  # clip-retrieval takes a folder, so all do
            shutil.copy(uri, folder)
        files = [str(file) for file in sorted(folder.iterdir())]
        contenders = {
            "loop": lambda: max(_loop(files, options.batch_size, threads) for threads in (1, 2)),
            "ours_1": lambda: _ours(folder, options.batch_size, 1),
            "ours_2": lambda: _ours(folder, options.batch_size, None),
            "int8": lambda: _ours(folder, options.batch_size, None, "int8"),
            "naive": lambda: _naive(files, options.batch_size),
        }
        if options.clip_retrieval:
            python = _clip_retrieval_python(Path(options.clip_retrieval))
            checkpoint = Path(scratch, "random.pt")
            torch.manual_seed(0)
            torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), checkpoint)
            contenders["clip_retrieval"] = lambda: _clip_retrieval(
                python, folder, checkpoint, options.batch_size
            )
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, measure in contenders.items():
                rates[name].append(measure())
                print(f"{name}: {rates[name][-1]:.1f} images/s", file=sys.stderr)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    best = max(medians["ours_1"], medians["ours_2"])
    others = [name for name in medians if name not in ("ours_1", "ours_2", "int8")]
    return {
        "model": SPEC,
        "images": len(uris),
        "batch_size": options.batch_size,
        "images_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "ours_to": {name: round(best / medians[name], 2) for name in others},
        "int8_to": {name: round(medians["int8"] / medians[name], 2) for name in others},
        "all": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
    }


def _loop(files: list[str], batch_size: int, threads: int) -> float:
    """A single process that reads and decodes ahead on as many threads as there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model = load_language_image_model(SPEC)
    size = model.transform.size

    def load(file: str) -> np.ndarray:
        image, _, _ = decode_image(Path(file).read_bytes(), max_pixels=10**8, short_side=size)
        return model.transform.crop(image)

    embed_pixels(model, [load(file) for file in files[:batch_size]], batch_size)  # warm-up
    start = time.perf_counter()
    batch: list[np.ndarray] = []
    for pixels in prefetched(load, files, threads=os.cpu_count() or 1, ahead=4 * batch_size):
        batch.append(pixels)
        if len(batch) == batch_size:
            embed_pixels(model, batch, batch_size)
            batch = []
    if batch:
        embed_pixels(model, batch, batch_size)
    rate = len(files) / (time.perf_counter() - start)
    torch.set_num_threads(before)
    return rate


def _ours(folder: Path, batch_size: int, count: int | None, precision: str = "auto") -> float:
    """Images a second once every worker has finished a part."""
    settings = _settings(batch_size, precision)
    model = load_language_image_model(SPEC)
    found = list_files(str(folder))
    with session(), tempfile.TemporaryDirectory() as out:
        generations = [record_generation(out, found, found.table, [], PART)]
        workers = plan_workers(most=count)
        load = LoadParts(
            out,
            generations,
            model.transform.crop,
            short_side=model.transform.size,
            max_pixels=settings.embed.max_pixels,
            part_size=PART,
            frames_per_second=1,
        )
        worker = EmbedWorker(
            settings.models, 0, batch_size, out, describe_retrieval_model(settings.models, 0)
        )
        images, start = 0, 0.0
        units = pending_units(generations, [], PART)
        for finished, part in enumerate(run_parts(units, load, worker, workers), start=1):
            if finished <= workers.count:  # every worker is up only now
                start = time.perf_counter()
            else:
                images += part.items
        return images / (time.perf_counter() - start)


class _NaiveModel:
    """What a first version looks like: open_clip as it comes, float32 images."""

    def __init__(self) -> None:
        self.model = open_clip.create_model(ARCHITECTURE).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            images = torch.from_numpy(batch["image"].astype(np.float32) / 255).permute(0, 3, 1, 2)
            embedding = self.model.encode_image(images)
        return {
            "path": batch["path"],
            "embedding": embedding.numpy(),
            "finished": np.full(len(images), time.time()),
        }


def _naive(files: list[str], batch_size: int) -> float:
    with session(), tempfile.TemporaryDirectory() as out:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        images = ray.data.read_images(files, size=(224, 224), mode="RGB", include_paths=True)
        workers = max(1, (os.cpu_count() or 1) - 1)  # one for every core would starve the readers for ever
        images.map_batches(
            _NaiveModel, batch_size=batch_size, compute=ray.data.ActorPoolStrategy(size=workers)
        ).write_parquet(out)
        finished = np.sort(np.concatenate([table["finished"] for table in _tables(out)]))
    # From the end of the first batch to the end of the last: the model's loading is not in it.
    return (finished > finished[0]).sum() / (finished[-1] - finished[0])


def _tables(folder: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for file in sorted(Path(folder).glob("*.parquet")):
        yield pq.read_table(file).to_pandas()


def _clip_retrieval_python(venv: Path) -> Path:
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if subprocess.run([python, "-c", "import clip_retrieval"], check=False, capture_output=True).returncode:
        subprocess.run(
            # What it imports of setuptools, pkg_resources, went with version 81.
            [python, "-m", "pip", "install", "--quiet", "clip-retrieval", "setuptools<81"],
            check=True,
            stdout=sys.stderr,
        )
    return python


def _clip_retrieval(python: Path, folder: Path, checkpoint: Path, batch_size: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        arguments = {
            "input_dataset": str(folder),
            "output_folder": out,
            "batch_size": batch_size,
            "num_prepro_workers": os.cpu_count(),
            "enable_text": False,
            "clip_model": f"open_clip:{ARCHITECTURE}/{checkpoint}",
        }
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        call = _TIMED_CLIP_RETRIEVAL.format(arguments=arguments)
        done = subprocess.run([python, "-c", call], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"clip-retrieval failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])  # behind its own messages, which end in no new line


# Its own command, told when each batch has its embeddings; the first one, which waits for the loader, is the warm-up.
_TIMED_CLIP_RETRIEVAL = """
import time
from clip_retrieval.clip_inference import main, mapper
ends, embed = [], mapper.ClipMapper.__call__
def timed(self, batch):
    result = embed(self, batch)
    ends.append((time.perf_counter(), len(result["image_embs"])))
    return result
mapper.ClipMapper.__call__ = timed
main.main(**{arguments!r})
print(sum(count for _, count in ends[1:]) / (ends[-1][0] - ends[0][0]))
"""


def _settings(batch_size: int, precision: str) -> Settings:
    settings = load_settings("mini", overrides=[f"embed.batch_size={batch_size}", f"embed.shard_size={PART}"])
    models = settings.models.model_copy(update={"retrieval": SPEC, "precision": precision})
    return settings.model_copy(update={"models": models})


# --- memory -------------------------------------------------------------------------------------------------


def _memory(uris: list[str], sizes: list[int]) -> dict[str, Any]:
    settings = load_settings("mini")
    small = [_small(uri) for uri in uris]
    runs = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as scratch, session(), _watched() as peaks:
            _write_tars(Path(scratch, "tars"), small, rows)
            manifest = embed_corpus(str(Path(scratch, "tars")), str(Path(scratch, "out")), settings).manifest
            summary = json.loads(Path(scratch, "out", "summary.json").read_text())
        assert manifest is not None
        counts = manifest.counts
        assert counts["images"] == rows == sum(counts[k] for k in ("embedded", "rejected", "duplicates"))
        runs.append(
            {
                "rows": rows,
                "counts": counts,
                "peak_mb": peaks,
                "images_per_second": summary["this_run"]["images_per_second"],
            }
        )
        print(runs[-1], file=sys.stderr)
    return {"model": settings.models.retrieval, "runs": runs}


def _small(uri: str) -> bytes:
    image, _, _ = decode_image(read_image_bytes(uri), max_pixels=10**8, short_side=64)
    image.thumbnail((96, 96), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _write_tars(folder: Path, images: list[bytes], rows: int, together: int = 5000) -> None:
    folder.mkdir()
    for first in range(0, rows, together):
        with tarfile.open(folder / f"{first // together:05d}.tar", "w") as tar:
            for row in range(first, min(rows, first + together)):
                data = images[row % len(images)] + row.to_bytes(8, "little")  # JPEG decoders stop before it
                entry = tarfile.TarInfo(f"{row:08d}.jpg")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """Peaks of private memory by kind of process, and of the shared memory of the object store, in MB."""
    peaks: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for kind, megabytes in _usage().items():
                peaks[kind] = max(peaks.get(kind, 0), megabytes)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _usage() -> dict[str, float]:
    found: dict[str, float] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
            )
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if not _is_ours(int(process.name)) or "RssAnon" not in status:
            continue
        private, shared = (int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssShmem"))
        if int(process.name) == os.getpid():
            kind = "driver"
        elif "MapWorker" in title:
            kind = "model worker"
        elif title.startswith("ray::"):
            kind = "loader and others"
        else:
            kind = "raylet and services"
        found[kind] = max(found.get(kind, 0), round(private, 1))
        found["object store"] = max(found.get("object store", 0), round(shared, 1))
    return found


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
