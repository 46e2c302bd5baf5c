"""Writes masks in the format of another tool: part by part on Ray, resumable, never all of them in memory.

A part of the masks artifact is a part of the export. `parts/<part>.parquet` marks it as written and holds what the
format needs for files that are about all images, such as COCO's JSON; these are put together when all parts are there,
and `parts/` is deleted. `summary.json` is written between the two, so that a run that was killed there goes on with
the commit.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.config import StagePlacement
from reco_ray.contents import MaskExportContent, MasksContent
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.distributed.workers import count_readers, plan_workers
from reco_ray.errors import UnreadableError
from reco_ray.files import storage
from reco_ray.files.artifacts import SUMMARY, ArtifactWriter, Manifest, read_manifest
from reco_ray.files.filesystems import delete_folder
from reco_ray.files.read_ahead import prefetched
from reco_ray.mask_export.file_names import stems
from reco_ray.mask_export.load import MaskLoader, damaged
from reco_ray.mask_export.mask_format import ExportPlan, Finisher, MaskFormat
from reco_ray.mask_export.worker import PARTS, ExportWorker, lines_of
from reco_ray.outcome import Outcome
from reco_ray.registry import MASK_FORMATS
from reco_ray.segmentation.image_parts import IMAGES, read_images

STAGE = "export"
REJECTED = "rejected"
_MOST_UNITS = 1024  # each is an object in the cluster's store
_OF_THE_IMAGES = ("images", "listing", "image_column")


def find_format(name: str) -> MaskFormat:
    """A format by its name; raises SettingError if there is none."""
    return MASK_FORMATS.get(name).FORMAT


def plan_export(masks: str, *, min_area: int = 0, with_images: bool = True) -> ExportPlan:
    """What is the same for all images of a masks artifact.

    Raises:
        RecoError: it is missing, unfinished or damaged.
    """
    manifest = read_manifest(masks, MasksContent)
    content, made_from = manifest.content, manifest.made_from
    recipe = {name: value for name, value in made_from.items() if name not in _OF_THE_IMAGES}
    origin = {name: value for name, value in recipe.items() if value is not None and "://" not in str(value)}
    return ExportPlan(
        labels=_distinct(content.labels),
        palette=[(red, green, blue) for red, green, blue in content.palette],
        background=content.palette[0] == [0, 0, 0],  # no concept is black
        min_area=min_area,
        with_images=with_images,
        probabilities=content.holds_probabilities(made_from),
        model_version=f"{manifest.made_by} {storage.digest(recipe)[:8]}",
        origin={
            "made by": manifest.made_by,
            "made at": manifest.made_at,
            **{name: value for name, value in origin.items() if not str(value).startswith("/")},
        },
    )


def _distinct(labels: list[str]) -> list[str]:
    """Names that tools can tell apart: a concept may be called as the background is."""
    return [f"{name} (concept)" if name in labels[:label] else name for label, name in enumerate(labels)]


def export_masks(masks: str, out: str, form: str, plan: ExportPlan) -> Outcome:
    """Writes all masks of an artifact in a format, on the connected Ray cluster.

    Args:
        masks: URI of the masks artifact.
        out: URI of the export.
        form: name of the format.
        plan: of `plan_export`.

    Raises:
        RecoError: damaged masks, no image that can still be read, other content in `out`, or unwritable output.
    """
    masks, format_ = storage.absolute(masks), find_format(form)
    manifest = read_manifest(masks, MasksContent)
    writer = ArtifactWriter(
        out,
        MaskExportContent,
        {
            "masks": masks,
            "masks_digest": manifest.checksums.sha256 if manifest.checksums else manifest.made_at,
            "format": form,
            "min_area": plan.min_area,
            "with_images": plan.with_images,
        },
    )
    if finished := writer.finished():
        return Outcome(STAGE, writer.uri, finished, new=False)
    if not storage.exists(storage.join(writer.uri, SUMMARY)):
        _write_all(masks, writer.uri, form, format_, plan)
    return Outcome(STAGE, writer.uri, _commit(writer, form, plan))


def _write_all(masks: str, out: str, form: str, format_: MaskFormat, plan: ExportPlan) -> None:
    """Writes the parts that are missing, then the files about all images, then the summary."""
    images = _images(masks, format_.flat)
    parts = storage.join(out, PARTS)
    written = [name.removesuffix(".parquet") for name in storage.list_names(parts, ".parquet")]
    for name in storage.list_names(storage.join(out, REJECTED), ".parquet"):
        if name.removesuffix(".parquet") not in written:  # of a part that was killed
            storage.remove(storage.join(out, REJECTED, name))
    pending = images.filter(pc.invert(pc.is_in(images["part"], pa.array(written, pa.string()))))
    done = images.num_rows - pending.num_rows
    with stage_pool(STAGE, "cpu", StagePlacement(), images.num_rows, done) as pool:
        units = _units(pending)
        if units:
            workers = plan_workers("cpu", len(units))
            load = MaskLoader(masks, with_images=plan.with_images)
            worker = ExportWorker(form, plan, masks, out)
            for _ in pool.parts(units, load, worker, workers, count_readers(workers)):
                pass
        run = {"images": pending.num_rows, **pool.statistics()}
    names = storage.list_names(parts, ".parquet")
    counted = pa.concat_tables(_read_parts(parts, names, ["images", "objects"]))
    count, objects = (pc.sum(counted[column]).as_py() for column in ("images", "objects"))
    rejected = _rejected(out)
    if not count:
        for folder in (PARTS, REJECTED):  # so that the same command tries anew
            delete_folder(storage.join(out, folder))
        why = (
            f"the first: {rejected[0]['uri']}: {rejected[0]['reason']}" if rejected else "they have no masks"
        )
        raise UnreadableError(
            f"{masks}: none of its {images.num_rows} images can be exported ({why}): put them back where they "
            "were, or export with --without-images"
        )
    format_.finish(plan, Finisher(out, partial(_lines, parts, names), count, objects))
    counts = {"images": count, format_.objects: objects, "rejected": len(rejected)}
    write_summary(out, STAGE, counts, run, {"format": form})


def _commit(
    writer: ArtifactWriter[MaskExportContent], form: str, plan: ExportPlan
) -> Manifest[MaskExportContent]:
    """Deletes what was kept for the last files, and completes the artifact."""
    delete_folder(storage.join(writer.uri, PARTS))
    summary = json.loads(storage.read_bytes(storage.join(writer.uri, SUMMARY)))
    content = MaskExportContent(format=form, labels=plan.labels, concepts=plan.concepts)
    return writer.commit(summary["counts"], content)


def _images(masks: str, flat: bool) -> pa.Table:
    """The images of an artifact, ordered by part: `uri`, `name`, `part`, `stem`, `number`."""
    images = read_images(masks)
    if images is None:
        raise damaged(masks, IMAGES, "missing")
    names = pa.array(stems(images["name"].to_pylist(), flat), pa.string())
    numbers = pa.array(np.arange(1, images.num_rows + 1))
    images = images.select(["uri", "name", "part"]).append_column("stem", names)
    return images.append_column("number", numbers).sort_by([("part", "ascending"), ("number", "ascending")])


def _units(images: pa.Table) -> list[pa.Table]:
    """The images in at most _MOST_UNITS tables of whole parts."""
    parts = images["part"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, parts[1:] != parts[:-1])) if len(parts) else np.array([], int)
    step = max(1, -(-len(starts) // _MOST_UNITS))
    bounds = [*starts[::step].tolist(), images.num_rows]
    return [images.slice(a, b - a).combine_chunks() for a, b in pairwise(bounds)]


def _read_parts(parts: str, names: list[str], columns: list[str]) -> Iterator[pa.Table]:
    return prefetched(
        lambda name: storage.read_table(storage.join(parts, name), columns), names, threads=16, ahead=32
    )


def _lines(parts: str, names: list[str], stream: str) -> Iterator[str]:
    for table in _read_parts(parts, names, [lines_of(stream)]):
        for lines in table[0].to_pylist():
            yield from lines


def _rejected(out: str) -> list[dict[str, str]]:
    folder = storage.join(out, REJECTED)
    return storage.read_table(folder).to_pylist() if storage.list_names(folder, ".parquet") else []
