"""The server's work in a plain loop of one process, which knows all photographs beforehand."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reco_ray.config import load_settings
from reco_ray.cosegmentation.bank import ReferenceBank
from reco_ray.models.dense import DenseModels
from reco_ray.segmentation.segment import segment
from reco_ray.segmentation.targets import targets_of
from reco_ray.serving.answers import InputSpec, Legend, Picture, as_json, decode
from reco_ray.serving.bank_of_request import BankRef
from reco_ray.serving.segment_task import LabelledImage

_BATCHES = (1, 2, 4, 8)


class Loop:
    """Labels photographs with a vocabulary's references, torch on every core, in the batches that are fastest.

    Args:
        bank: ReferenceBank made by preset `mini`.
        photographs: folder of JPEGs.
        overrides: settings of models and segmentation that differ from the preset, as `key=value`; the server's.
    """

    def __init__(self, bank: str, photographs: Path, overrides: list[str]) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        settings = load_settings("mini", overrides=overrides)
        self._settings = settings.segment
        self._models = DenseModels.load(settings.models, device="cpu", seed=settings.seed)
        found = ReferenceBank.open(bank, self._models.fingerprint)
        self._targets = targets_of(found, self._settings)
        ids = tuple(found.vocabulary.names)
        self._legend = Legend(BankRef("", found.vocabulary, ids, bank), self._settings)
        encoder = self._models.encoder
        self._wanted = InputSpec("", encoder.transform, encoder.stride, self._settings.image_size)
        self._photographs = [file.read_bytes() for file in sorted(photographs.glob("*.jpg"))]
        by_size: dict[tuple[int, int], list[bytes]] = defaultdict(list)
        for photograph in self._photographs:
            by_size[self._decode(photograph).size].append(photograph)
        self._by_size = list(by_size.values())
        self.batch = max(_BATCHES, key=lambda batch: self._rate(self._label, 4.0, batch))

    def rates(self, seconds: float) -> dict[str, float]:
        """Images a second."""
        return {
            "model": self._rate(self._pass, seconds, self.batch, decoded=True),
            "loop": self._rate(self._label, seconds, self.batch),
            "loop_answering": self._rate(self._answer, seconds, self.batch),
        }

    def per_cpu_second(self, seconds: float) -> float:
        """Images that `loop` labels in a second of CPU time with one thread: what other work on the machine hardly
        changes, and the most that any arrangement of processes could reach on every core."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            wall, before = time.perf_counter(), time.process_time()
            rate = self._rate(self._label, seconds, self.batch)
            return rate * (time.perf_counter() - wall) / (time.process_time() - before)
        finally:
            torch.set_num_threads(threads)

    def _rate(
        self, work: Callable[[list], object], seconds: float, batch: int, *, decoded: bool = False
    ) -> float:
        batches = []
        for photographs in self._by_size:
            repeated = (photographs * batch)[: -(-len(photographs) // batch) * batch]
            some = [self._decode(each) for each in repeated] if decoded else repeated
            batches += [some[first : first + batch] for first in range(0, len(some), batch)]
        work(batches[0])
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + seconds:
            work(batches[done // batch % len(batches)])
            done += batch
        return done / (time.perf_counter() - started)

    def _decode(self, photograph: bytes) -> Picture:
        return decode(photograph, self._wanted, 10**8, None, False)

    @torch.inference_mode()
    def _pass(self, pictures: list[Picture]) -> list[LabelledImage]:
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
        sizes = [picture.size for picture in pictures]
        found = segment(self._models, self._targets, pixels, sizes, self._settings)
        return [LabelledImage.of(each, int(self._targets.labels.max()) + 1) for each in found]

    def _label(self, photographs: list[bytes]) -> list[LabelledImage]:
        return self._pass([self._decode(photograph) for photograph in photographs])

    def _answer(self, photographs: list[bytes]) -> list[str]:
        answers = [
            as_json(found, self._legend, request_id="", model="", vocabulary=None, started=0.0)
            for found in self._label(photographs)
        ]
        return [json.dumps(answer.model_dump()) for answer in answers]
