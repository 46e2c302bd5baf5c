"""Groups of images that look nearly the same: formed from pairs, and looked up by the ids of images. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.contents import DuplicatesContent
from reco_ray.files import artifacts, storage

GROUPS = "groups.parquet"
# group: number, from the largest group. similarity: cosine to the most similar image of the group. kept: one per group,
# the one with the most pixels.
GROUPS_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("similarity", pa.float32()),
        ("kept", pa.bool_()),
    ]
)


def connected(pairs: np.ndarray) -> np.ndarray:
    """The smallest row that each row of some pairs is connected with, directly or through others.

    Args:
        pairs: int64 (n, 2), rows of the corpus.

    Returns:
        int64 (r, 2): each row that occurs, ascending, and the smallest row of its group.
    """
    parents: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parents.setdefault(row, row)) != row:
            parents[row] = parents[above]  # halves the path for the next search
            row = above
        return row

    for first, second in pairs.tolist():
        one, other = root(first), root(second)
        parents[max(one, other)] = min(one, other)
    rows = sorted(parents)
    return np.array([(row, root(row)) for row in rows], np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class ImageGroups:
    """The groups of a duplicates artifact.

    Attributes:
        uri: of the artifact.
        content: of its manifest.
        table: GROUPS_SCHEMA, without `width` and `height`.
    """

    uri: str
    content: DuplicatesContent
    table: pa.Table

    @classmethod
    def open(cls, uri: str) -> "ImageGroups":
        """Opens an artifact.

        Raises:
            RecoError: it is missing, unfinished or damaged.
        """
        content = artifacts.read_manifest(uri, DuplicatesContent).content
        file = storage.join(uri, GROUPS)
        with storage.explained_errors(file):
            table = storage.read_table(file, ["group", "image_id", "uri", "similarity", "kept"])
        return cls(storage.absolute(uri), content, table)

    def of(self, image_ids: Sequence[str]) -> dict[str, int]:
        """The groups of some images, by id; those that have no near-duplicate are left out."""
        wanted = pa.array(image_ids, pa.string())
        found = self.table.filter(pc.is_in(self.table["image_id"], value_set=wanted))
        return dict(zip(found["image_id"].to_pylist(), found["group"].to_pylist(), strict=True))

    def largest(self, count: int) -> list[list[str]]:
        """URIs of the images of the largest groups, the one that is kept first."""
        rows = self.table.filter(pc.less(self.table["group"], count)).to_pylist()
        groups: dict[int, list[str]] = {}
        for row in sorted(rows, key=lambda row: (row["group"], not row["kept"], row["uri"])):
            groups.setdefault(row["group"], []).append(row["uri"])
        return list(groups.values())
