"""Which images a masks artifact has, in which part each is committed, and how images leave it. No Ray.

`images.parquet` is written before the work begins. An image keeps its part as long as neither its URI, its size nor
its mask's name changes, so a run over more images segments the new ones only, in new parts.
"""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.cosegmentation.bank import SAMPLE
from reco_ray.files import storage
from reco_ray.segmentation.masks import mask_file, overlay_file

IMAGES = "images.parquet"
REPORT = "report"  # folder of the page, of the masks that `segment` makes
# size: bytes as listed, -1 = unknown. part: name of the files in regions/ and rejected/ that tell of the image.
SCHEMA = pa.schema([("uri", pa.string()), ("name", pa.string()), ("size", pa.int64()), ("part", pa.string())])
# While images are being taken out there is a further column: whether files of the row may be deleted already.
LEAVING = "leaving"
_FILES = re.compile(
    rf"{re.escape(IMAGES)}|(regions|rejected)/\d{{6,}}\.parquet"
    rf"|{REPORT}/index\.html|{re.escape(SAMPLE)}(\.parts/\d{{6,}}\.safetensors)?"
)
_AT_ONCE = 16


def read_images(out: str) -> pa.Table | None:
    """The images that the run before was to segment; None if there was none."""
    file = storage.join(out, IMAGES)
    return storage.read_table(file) if storage.exists(file) else None


def plan_parts(
    images: pa.Table, recorded: pa.Table | None, part_size: int
) -> tuple[pa.Table, pa.Table | None]:
    """Gives every image its part: the one that it has, or a new one.

    Args:
        images: `uri`, `name`, `size`, each URI once.
        recorded: as `read_images`.
        part_size: images of a new part.

    Returns:
        SCHEMA, in the order of `images`; and `recorded` with a column `leaving`: which rows leave. None if none does.
    """
    rows = [] if recorded is None else recorded.to_pylist()
    staying = {_key(row): row["part"] for row in rows if not row.get(LEAVING)}
    wanted = images.select(["uri", "name", "size"]).to_pylist()
    first = 1 + max((int(row["part"]) for row in rows), default=-1)
    new = 0
    for row in wanted:
        part = staying.pop(_key(row), None)
        if part is None:
            part = f"{first + new // part_size:06d}"
            new += 1
        row["part"] = part
    planned = pa.Table.from_pylist(wanted, SCHEMA)
    leaving = pa.array([bool(row.get(LEAVING)) or _key(row) in staying for row in rows], pa.bool_())
    if recorded is None or not pc.any(leaving).as_py():
        return planned, None
    return planned, recorded.select(SCHEMA.names).append_column(LEAVING, leaving)


def take_out(out: str, recorded: pa.Table) -> None:
    """Deletes what is there of images that leave: their masks, overlays and rows. Can be done again after a kill.

    Args:
        recorded: as `plan_parts` gives it.
    """
    storage.write_table(storage.join(out, IMAGES), recorded)
    leaving = recorded.filter(recorded[LEAVING])
    names = leaving["name"].to_pylist()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        files = [file(name) for name in names for file in (mask_file, overlay_file)]
        list(pool.map(lambda file: storage.remove(storage.join(out, file)), files))
    left = set(recorded.filter(pc.invert(recorded[LEAVING]))["part"].to_pylist())
    for part in sorted(set(leaving["part"].to_pylist())):
        uris = leaving.filter(pc.equal(leaving["part"], part))["uri"].combine_chunks()
        for folder in ("rejected", "regions"):
            file = storage.join(out, folder, f"{part}.parquet")
            if part not in left:
                storage.remove(file)
            elif storage.exists(file):
                table = storage.read_table(file)
                storage.write_table(file, table.filter(pc.invert(pc.is_in(table["uri"], uris))))


def pending_parts(out: str, planned: pa.Table) -> dict[str, pa.Table]:
    """The parts that are not committed, each with its images; reasons of an attempt that was killed are deleted."""
    committed = set(storage.list_names(storage.join(out, "regions"), ".parquet"))
    for name in storage.list_names(storage.join(out, "rejected"), ".parquet"):
        if name not in committed:
            storage.remove(storage.join(out, "rejected", name))
    done = pa.array([name.removesuffix(".parquet") for name in committed], pa.string())
    rows = planned.filter(pc.invert(pc.is_in(planned["part"], done)))
    parts = rows["part"].unique().to_pylist()
    return {part: rows.filter(pc.equal(rows["part"], part)).drop_columns(["part"]) for part in sorted(parts)}


def is_own(out: str) -> Callable[[str], bool]:
    """Whether a path inside a masks artifact is one that the stage wrote."""
    images = read_images(out)
    names = [] if images is None else images["name"].to_pylist()
    own = {file(name) for name in names for file in (mask_file, overlay_file)}
    return lambda path: path in own or _FILES.fullmatch(path) is not None


def _key(row: dict[str, object]) -> tuple[object, ...]:
    return row["uri"], row["name"], row["size"]
