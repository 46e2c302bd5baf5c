"""How much each key may ask for in a time."""

import math
import time
from dataclasses import dataclass

from reco_ray.serving.problems import Problem


@dataclass
class TokenBucket:
    """At most `burst` at once, refilled at `rate` a second."""

    rate: float
    burst: int

    def __post_init__(self) -> None:
        self._tokens, self._filled_at = float(self.burst), time.monotonic()

    def take(self, count: int = 1) -> float:
        """Takes `count`, or nothing; how many seconds to wait until they will be there, 0 if taken.

        More than `burst` at once are taken when the bucket is full; the next ones wait for longer.
        """
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
        needed = min(count, self.burst)
        if self._tokens < needed:
            return (needed - self._tokens) / self.rate
        self._tokens -= count
        return 0.0


class RateLimiter:
    """Counts requests and images of every owner: at most `burst` at once, `rate` a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, owner: str, count: int = 1) -> None:
        """Counts `count` of them.

        Raises:
            Problem: 429, too many in too little time.
        """
        bucket = self._buckets.setdefault(owner, TokenBucket(self._rate, self._burst))
        if wait := bucket.take(count):
            raise Problem(
                429, f"more than {self._rate:g} requests a second with this key", retry_after=math.ceil(wait)
            )
