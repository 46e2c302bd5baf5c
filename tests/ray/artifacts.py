"""What the tests read out of an embeddings artifact."""

from pathlib import Path
from typing import Any

import numpy as np

from reco_ray.files import storage


def rows(out: Path | str, folder: str) -> list[dict[str, Any]]:
    """All rows of one of the artifact's tables; none if it has no such table."""
    uri = storage.join(str(out), folder)
    return storage.read_table(uri).to_pylist() if storage.list_names(uri, ".parquet") else []


def embeddings(out: Path | str) -> dict[str, np.ndarray]:
    """image_id -> embedding."""
    table = rows(out, "embeddings")
    found = {row["image_id"]: np.array(row["embedding"], np.float32) for row in table}
    assert len(found) == len(table), "an image is embedded twice"
    return found


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its content and when it was written."""
    return {
        str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns)
        for f in folder.rglob("*")
        if f.is_file()
    }
