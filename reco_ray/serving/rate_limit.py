"""Rate limits per API key."""

import math
import time
from dataclasses import dataclass

from reco_ray.serving.problems import Problem


@dataclass
class TokenBucket:
    """A token bucket of capacity `burst`, refilled at `rate` tokens per second."""

    rate: float
    burst: int

    def __post_init__(self) -> None:
        self._tokens, self._filled_at = float(self.burst), time.monotonic()

    def take(self, count: int = 1) -> float:
        """Takes `count` tokens if available; returns 0, or the seconds until they will be.

        More than `burst` are granted when the bucket is full, and leave it negative.
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
    """Limits the requests and images of each owner to `rate` per second, with bursts of `burst`."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, owner: str, count: int = 1) -> None:
        """Counts `count` requests or images of an owner.

        Raises:
            Problem: 429, the limit is exceeded.
        """
        bucket = self._buckets.setdefault(owner, TokenBucket(self._rate, self._burst))
        if wait := bucket.take(count):
            raise Problem(
                429, f"more than {self._rate:g} requests a second with this key", retry_after=math.ceil(wait)
            )
