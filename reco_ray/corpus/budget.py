"""Limit of the number of rejected images."""

from collections import Counter
from collections.abc import Mapping

from reco_ray.errors import UnreadableError

_JUDGED_FROM = 1000  # images; shares of fewer are not judged while the total is unknown


class RejectBudget:
    """Counts rejected images, and fails a run that has too many.

    Args:
        allowed: percentage of the corpus, such as "1%", or a number of images.
        total: images in the corpus. None if unknown until it is read: a percentage is then of the images seen, from
            1,000 on.
        rejected: counts of earlier runs, by reason.
    """

    def __init__(self, allowed: str, total: int | None, rejected: Mapping[str, int]) -> None:
        self._allowed, self._total = allowed, total
        self._rejected = Counter(rejected)
        self._seen = 0

    def add(self, images: int, rejected: Mapping[str, int], corpus: str, out: str) -> None:
        """Counts a part.

        Raises:
            UnreadableError: more images are rejected than allowed.
        """
        self._seen += images
        self._rejected.update(rejected)
        count = self._rejected.total()
        if count <= self._limit():
            return
        of = f" of {self._total:,}" if self._total is not None else ""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self._rejected.most_common(4))
        raise UnreadableError(
            f"{corpus}: {count:,}{of} images were rejected ({reasons}), more than the setting "
            f"embed.max_rejected={self._allowed} allows: see {out}/rejected; with a larger one the run goes on"
        )

    def _limit(self) -> float:
        if not self._allowed.endswith("%"):
            return int(self._allowed)
        share = float(self._allowed[:-1]) / 100
        return share * (self._total if self._total is not None else max(self._seen, _JUDGED_FROM))
