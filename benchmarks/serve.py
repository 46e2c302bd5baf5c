"""What the server can do, beside the same models in a plain loop. Prints one JSON line; everything stays on loopback.

Parts, each on the real application with preset `mini` and photographs of 640 x 480 pixels:

- throughput: images a second at saturation, JSON and PNG, beside those of one process that labels the same photographs
  in batches: `loop` decodes, runs the models and scores; `loop_answering` also encodes JSON; `model` neither. Loop and
  server in turn on the same cores, medians. `per_cpu_second`: by the CPU time of all processes; the loop has one
  thread then
- latency: at half of that throughput, requests of independent clients
- batching: throughput with batches of at most 8, 4 and 1 images; `gain` is that of 4
- vocabularies: time to build 50, throughput over all of them in turn, memory
- soak: twice as many requests as the server can answer; statuses, and whether memory grows

The load comes from a process on the same cores (`serve_load.py`); what it takes is given in cores.

    python benchmarks/serve.py [--index URI | --corpus FOLDER] [--parts throughput latency] [--soak-seconds 600]
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from serve_loop import Loop
from serve_server import Server, memory

from reco_ray.config import load_settings
from reco_ray.corpus.decode import decode_image
from reco_ray.corpus.index import build_index
from reco_ray.corpus.read import list_images, read_image_bytes
from reco_ray.corpus.stage import embed_corpus
from reco_ray.demo import CONCEPTS, prepare_demo
from reco_ray.distributed.session import session

PARTS = ("throughput", "latency", "batching", "vocabularies", "soak")
USUAL = [name.strip() for name in CONCEPTS.split(",")]
WORDS = (
    "dog cat bird horse cow sheep fish rabbit bear lion beetle butterfly car bus truck bicycle motorcycle train boat "
    "airplane cup bottle plate bowl spoon knife table chair sofa bed lamp clock book window door house building "
    "bridge road river lake mountain tree flower grass strawberry apple banana bread cheese coffee person"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", help="index artifact of preset `mini`; default: one of --corpus")
    parser.add_argument("--corpus", help="folder of photographs; default: those of the extra `demo`")
    parser.add_argument("--images", help="photographs to send; default: those of the extra `demo`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=20, help="of every measurement but the soak")
    parser.add_argument("--rounds", type=int, default=3, help="of loop and server in turn")
    parser.add_argument("--soak-seconds", type=float, default=600)
    parser.add_argument("--vocabularies", type=int, default=50)
    parser.add_argument("--set", action="append", default=[], help="of the server, as `reco-ray serve --set`")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that whoever ends this ends the server, too
    with tempfile.TemporaryDirectory(prefix="reco-ray-") as folder:
        report = Bench(Path(folder), options).run()
    print(
        json.dumps(
            {
                "benchmark": "serve",
                **report,
                "set": options.set,
                "cpus": len(os.sched_getaffinity(0)),
                "machine": platform.machine(),
                "torch": torch.__version__,
                "commit": subprocess.run(
                    ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
                ).stdout.strip(),
            }
        )
    )


class Bench:
    """All parts on one folder of photographs and one index."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        demo = prepare_demo(str(folder / "demo")).corpus
        self._photographs = folder / "photographs"
        _write_photographs(options.images or demo, self._photographs)
        self._index = options.index or self._built_index(options.corpus or demo)
        self._capacity: float | None = None

    def run(self) -> dict[str, Any]:
        """The parts that were asked for, with the server started for them."""
        report: dict[str, Any] = {}
        parts = {
            "throughput": self._throughput,
            "latency": self._latency,
            "vocabularies": self._vocabularies,
            "soak": self._soak,
        }
        started = time.monotonic()
        server = self._started("--set", "limits.vocabularies=1000")
        report["seconds_to_ready"] = round(time.monotonic() - started, 1)
        try:
            server.put({"usual": USUAL})
            for name, part in parts.items():
                if name in self._options.parts:
                    report[name] = part(server)
                    _tell(name, report[name])
        finally:
            server.stop()
        if "batching" in self._options.parts:
            report["batching"] = self._batching()
            _tell("batching", report["batching"])
        return report

    def _throughput(self, server: Server) -> dict[str, Any]:
        (bank,) = Path(self._folder, "state/vocabularies/local/usual").iterdir()
        overrides = [each for each in self._options.set if each.startswith(("models.", "segment."))]
        loop = Loop(str(bank), self._photographs, overrides)
        rates: dict[str, list[float]] = {}
        sent: dict[str, Any] = {}
        for _ in range(self._options.rounds):
            for name, rate in loop.rates(self._options.seconds).items():
                rates.setdefault(name, []).append(rate)
            rates.setdefault("loop_per_cpu_second", []).append(loop.per_cpu_second(self._options.seconds))
            for name, accept in (("json", "application/json"), ("png", "image/png")):
                before = server.cpu_seconds()
                started = time.monotonic()
                sent[name] = self._send(server, "--accept", accept)
                seconds = time.monotonic() - started
                after = server.cpu_seconds()
                cores = {kind: (after[kind] - before[kind]) / seconds for kind in before if kind in after}
                sent[name]["cores"] = {kind: round(used, 3) for kind, used in cores.items()}
                rate = sent[name]["images_per_second"] / sum(cores.values())
                rates.setdefault(f"{name}_per_cpu_second", []).append(rate)
                rates.setdefault(name, []).append(sent[name]["images_per_second"])
        median = {name: statistics.median(values) for name, values in rates.items()}
        self._capacity = median["json"]
        return {
            **{name: round(rate, 2) for name, rate in median.items()},
            "json_to_loop": round(median["json"] / median["loop"], 3),
            "png_to_loop": round(median["png"] / median["loop"], 3),
            "json_to_loop_answering": round(median["json"] / median["loop_answering"], 3),
            "json_to_loop_per_cpu_second": round(
                median["json_per_cpu_second"] / median["loop_per_cpu_second"], 3
            ),
            "loop_batch": loop.batch,
            "all": {name: [round(rate, 2) for rate in values] for name, values in rates.items()},
            "last_json": sent["json"],
            "last_png": sent["png"],
        }

    def _latency(self, server: Server) -> dict[str, Any]:
        rate = self._measured_capacity(server) / 2
        return {"rate": round(rate, 2), **self._send(server, "--rate", str(rate), seconds=60)}

    def _batching(self) -> dict[str, Any]:
        rates: dict[int, float] = {}
        for batch in (8, 4, 1):
            server = self._started("--set", f"scale.batch={batch}")
            try:
                server.put({"usual": USUAL})
                rates[batch] = self._send(server)["images_per_second"]
            finally:
                server.stop()
        return {
            **{f"at_most_{batch}": rate for batch, rate in rates.items()},
            "gain": round(rates[4] / rates[1], 3),
        }

    def _vocabularies(self, server: Server) -> dict[str, Any]:
        many = {
            f"many-{n}": [WORDS[(n + step) % len(WORDS)] for step in (0, 1, 2, 7)]
            for n in range(self._options.vocabularies)
        }
        one = {"one": next(iter(many.values()))}
        server.put(one)
        started = time.monotonic()
        server.put(many)
        built = time.monotonic() - started
        rates: dict[str, list[float]] = {"one": [], "many": []}
        with server.watched() as samples:
            for _ in range(2):
                for name, names in (("one", one), ("many", many)):
                    sent = self._send(server, vocabularies=list(names))
                    rates[name].append(sent["images_per_second"])
        return {
            "vocabularies": len(many),
            "concepts": len({concept for concepts in many.values() for concept in concepts}),
            "seconds_to_build": round(built, 1),
            "one_images_per_second": statistics.mean(rates["one"]),
            "many_images_per_second": statistics.mean(rates["many"]),
            "many_to_one": round(statistics.mean(rates["many"]) / statistics.mean(rates["one"]), 3),
            "memory": memory(samples),
        }

    def _soak(self, server: Server) -> dict[str, Any]:
        rate = 2 * self._measured_capacity(server)
        with server.watched() as samples:
            sent = self._send(server, "--rate", str(rate), seconds=self._options.soak_seconds)
        return {
            "seconds": self._options.soak_seconds,
            "rate": round(rate, 2),
            "only_200_and_503": set(sent["statuses"]) <= {"200", "503"},
            **sent,
            "memory": memory(samples),
        }

    def _measured_capacity(self, server: Server) -> float:
        if self._capacity is None:
            self._capacity = self._send(server)["images_per_second"]
        return self._capacity

    def _send(
        self,
        server: Server,
        *arguments: str,
        vocabularies: Sequence[str] = ("usual",),
        seconds: float | None = None,
    ) -> dict[str, Any]:
        command = [sys.executable, str(Path(__file__).with_name("serve_load.py")), server.url]
        command += ["--images", str(self._photographs), "--vocabularies", ",".join(vocabularies)]
        command += ["--seconds", str(seconds or self._options.seconds), *arguments]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)

    def _started(self, *arguments: str) -> Server:
        places = ["--index", self._index, "--state", f"{self._folder}/state"]
        own = [word for setting in self._options.set for word in ("--set", setting)]
        return Server(self._folder, [*places, *own, *arguments])

    def _built_index(self, corpus: str) -> str:
        embeddings, index = str(self._folder / "embeddings"), str(self._folder / "index")
        with session():
            embed_corpus(corpus, embeddings, load_settings("mini"))
            build_index(embeddings, index)
        return index


def _write_photographs(source: str, folder: Path, most: int = 32) -> None:
    """Photographs as cameras and web sites make them: JPEGs of 640 x 480 or 480 x 640 pixels."""
    folder.mkdir()
    for number, uri in enumerate(sorted(list_images(source).table["uri"].to_pylist())[:most]):
        image, _, _ = decode_image(read_image_bytes(uri), max_pixels=10**8)
        size = (640, 480) if image.width >= image.height else (480, 640)
        fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        fitted.save(folder / f"{number:03d}.jpg", quality=90)


def _tell(part: str, report: dict[str, Any]) -> None:
    print(f"{part}: {json.dumps(report)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
