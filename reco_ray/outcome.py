"""What became of an artifact that a stage was asked to make."""

from dataclasses import dataclass

from reco_ray.errors import RecoError
from reco_ray.files.artifacts import Manifest


@dataclass(frozen=True)
class Outcome:
    """One artifact of a stage.

    stage: that was asked for it. uri: of the artifact. manifest: None if it failed. new: whether there was anything to
    do. name: of its vocabulary, where a stage makes several artifacts; one that fails stops no other. error: why it
    failed.
    """

    stage: str
    uri: str
    manifest: Manifest | None = None
    new: bool = True
    name: str = ""
    error: RecoError | None = None
