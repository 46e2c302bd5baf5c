"""What became of an artifact that a stage was asked to make."""

from dataclasses import dataclass

from reco_ray.storage import Manifest


@dataclass(frozen=True)
class Outcome:
    """One artifact of a stage that makes several: one that fails stops no other.

    name: of its vocabulary. uri: of the artifact. manifest: None if it failed. new: whether there was anything to do.
    error: why it failed, one line.
    """

    name: str
    uri: str
    manifest: Manifest | None = None
    new: bool = True
    error: str | None = None
