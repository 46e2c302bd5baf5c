"""A cache of the Ray tasks that the trials of a sweep share, keyed by their inputs.

The first request for a result submits its task; later requests return the same future, also while the task is running.
Results stay in Ray's object store, which spills to disk, until the sweep ends.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import ray
import torch

from reco_ray.config import Settings
from reco_ray.distributed.workers import Workers
from reco_ray.files import storage
from reco_ray.sweeps.encoded_images import View, encode, exemplar_view
from reco_ray.sweeps.tally import tally
from reco_ray.sweeps.trial_references import (
    PlannedReferences,
    build_bank,
    build_reference,
    plan_trial_references,
)
from reco_ray.sweeps.trial_sample import take_sample
from reco_ray.vocabulary import Vocabulary

BATCH = 16  # images per task: about 100 MB of activations at 448 px
Future: TypeAlias = ray.ObjectRef


class SharedTasks:
    """The cache. A sweep has one actor of this class, whose methods only submit tasks and return at once.

    Futures are returned in a list because Ray resolves a bare future to its result.
    """

    def __init__(self, workers: Workers) -> None:
        self._futures: dict[str, Future] = {}
        self._workers = workers
        # Resources are given here, not in `options`: only then does Ray end a process that had a GPU after its task.
        # A process that is used again keeps its first GPU and the memory on it.
        self._run: Any = ray.remote(
            num_cpus=workers.cpus, num_gpus=workers.gpus, resources=workers.resources
        )(_run)
        self._encoded = 0

    def encoded(self, view: View, uris: list[str]) -> list[Future]:
        """The `Encoded` of every image."""
        keys = {uri: storage.digest("encoded", view.models.model_dump(), *view[1:], uri) for uri in uris}
        missing = [uri for uri, key in keys.items() if key not in self._futures]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            futures = self._submit(encode, view, batch, self._workers.device, results=len(batch))
            self._futures |= {keys[uri]: future for uri, future in zip(batch, futures, strict=True)}
        self._encoded += len(missing)
        return [self._futures[keys[uri]] for uri in uris]

    def planned(self, settings: Settings, vocabulary: Vocabulary, index: str) -> list[Future]:
        """The `PlannedReferences` of a vocabulary."""
        depends_on = {
            "models": settings.models.model_dump(),
            "references": settings.references.model_dump(),
            "calibrate": settings.segment.calibrate,
            "vocabulary": vocabulary.model_dump(),
            "index": index,
        }
        key = storage.digest("planned", depends_on)
        return self._once(key, plan_trial_references, settings, vocabulary, index)

    def bank(self, settings: Settings, planned: PlannedReferences) -> list[Future]:
        """The `TrialBank` of a plan. References that several plans contain are built once."""
        view, device, futures = exemplar_view(settings), self._workers.device, dict[str, Future]()
        for step in planned.plan.steps:
            if step.same_as is None:
                exemplars = planned.evidence.exemplars[step.id]
                uris, regions = exemplars["uri"].to_pylist(), exemplars["region"].to_pylist()
                context = [futures[each] for each in step.context]
                inputs = [*context, *self.encoded(view, uris)]
                text = planned.evidence.texts[step.id]
                arguments = [settings, text, regions, device, len(context), *inputs]
                (futures[step.id],) = self._once(step.id, build_reference, *arguments)
        key = storage.digest("bank", planned.plan.made_from)
        return self._once(key, build_bank, planned, *futures.values())

    def sample(self, view: View, uris: list[str]) -> list[Future]:
        """The feature sample of images, from `take_sample`."""
        key = storage.digest("sample", view.models.model_dump(), *view[1:], uris)
        return self._once(key, take_sample, view, self._workers.device, *self.encoded(view, uris))

    def tally(self, key: str, arguments: list[Any], images: list[Future]) -> list[Future]:
        """The `Tally` of a trial's images; cached, as a searcher may try the same trial twice."""
        return self._once(key, tally, *arguments, self._workers.device, *images)

    def encoded_count(self) -> int:
        """Number of images encoded so far, counting each view."""
        return self._encoded

    def _once(self, key: str, function: Callable[..., Any], *arguments: Any) -> list[Future]:
        if key not in self._futures:
            self._futures[key] = self._submit(function, *arguments, results=1)[0]
        return [self._futures[key]]

    def _submit(self, function: Callable[..., Any], *arguments: Any, results: int) -> list[Future]:
        task = self._run.options(num_returns=results)
        futures = task.remote(function, self._workers.threads, results, *arguments)
        return [futures] if results == 1 else futures


def _run(function: Callable[..., Any], threads: int, results: int, *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    result = function(*arguments)
    return result[0] if results == 1 and isinstance(result, list) else result
