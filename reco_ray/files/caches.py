"""The directory for files that later runs can reuse."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$RECO_CACHE`, else `reco-ray` in the user's cache directory. Deleting it is always safe."""
    base = os.environ.get("XDG_CACHE_HOME") or Path(home(), ".cache")
    return Path(os.environ.get("RECO_CACHE") or Path(base, "reco-ray"))


def home() -> str:
    """The user's home directory; "/" for a user who has none, as in a container that runs under any number."""
    found = os.path.expanduser("~")
    return "/" if found == "~" else found
