"""Work that several trials need, done once: Ray futures by what they were made from.

A trial only asks. The first to ask for something has it submitted, all who ask later get the same future, also while it
is still being computed. Results stay in Ray's object store, which spills to disk, as long as the sweep runs.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import ray
import torch

from reco_ray import storage
from reco_ray.cluster import Workers
from reco_ray.config import Settings
from reco_ray.sweep import work
from reco_ray.sweep.work import PlannedReferences, View
from reco_ray.vocabulary import Vocabulary

BATCH = 16  # images a task: activations near 100 MB at 448 px
Future: TypeAlias = ray.ObjectRef


class Shared:
    """The futures; one actor of it serves a sweep, and answers at once. A future is returned in a list, because Ray
    would replace a bare one by its result."""

    def __init__(self, workers: Workers) -> None:
        self._futures: dict[str, Future] = {}
        self._workers = workers
        self._encoded = 0

    def encoded(self, view: View, uris: list[str]) -> list[Future]:
        """Of every image its `Encoded`."""
        keys = {uri: storage.digest("encoded", view.models.model_dump(), *view[1:], uri) for uri in uris}
        missing = [uri for uri, key in keys.items() if key not in self._futures]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            futures = self._submit(work.encode, view, batch, self._workers.device, results=len(batch))
            self._futures |= {keys[uri]: future for uri, future in zip(batch, futures, strict=True)}
        self._encoded += len(missing)
        return [self._futures[keys[uri]] for uri in uris]

    def planned(self, settings: Settings, vocabulary: Vocabulary, index: str) -> list[Future]:
        """The `PlannedReferences` of a vocabulary."""
        depends_on = {
            "models": settings.models.model_dump(),
            "references": settings.references.model_dump(),
            "vocabulary": vocabulary.model_dump(),
            "index": index,
        }
        key = storage.digest("planned", depends_on)
        return self._once(key, work.plan_trial_references, settings, vocabulary, index)

    def bank(self, settings: Settings, planned: PlannedReferences) -> list[Future]:
        """The `Bank` of a plan; its references are shared with every other plan that has them."""
        view, device, futures = work.exemplar_view(settings), self._workers.device, dict[str, Future]()
        for step in planned.plan.steps:
            if step.same_as is None:
                uris = planned.evidence.exemplars[step.id]["uri"].to_pylist()
                context = [futures[each] for each in step.context]
                inputs = [*context, *self.encoded(view, uris)]
                text = planned.evidence.texts[step.id]
                arguments = [settings, text, device, len(context), *inputs]
                (futures[step.id],) = self._once(step.id, work.build_reference, *arguments)
        key = storage.digest("bank", planned.plan.made_from)
        return self._once(key, work.build_bank, planned, *futures.values())

    def tally(self, key: str, arguments: list[Any], images: list[Future]) -> list[Future]:
        """The `Tally` of a trial's images: a searcher may ask for the same trial twice."""
        return self._once(key, work.tally, *arguments, self._workers.device, *images)

    def encoded_count(self) -> int:
        """How many images were encoded so far, each view for itself."""
        return self._encoded

    def _once(self, key: str, function: Callable[..., Any], *arguments: Any) -> list[Future]:
        if key not in self._futures:
            self._futures[key] = self._submit(function, *arguments, results=1)[0]
        return [self._futures[key]]

    def _submit(self, function: Callable[..., Any], *arguments: Any, results: int) -> list[Future]:
        task = _run.options(num_cpus=self._workers.cpus, num_gpus=self._workers.gpus, num_returns=results)
        futures = task.remote(function, self._workers.threads, results, *arguments)
        return [futures] if results == 1 else futures


@ray.remote
def _run(function: Callable[..., Any], threads: int, results: int, *arguments: Any) -> Any:
    torch.set_num_threads(threads)
    result = function(*arguments)
    return result[0] if results == 1 and isinstance(result, list) else result
