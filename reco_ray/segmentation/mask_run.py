"""A pass over the images of a source that makes one or several masks artifacts, resumable shard by shard.

What labels the images is a `Labeller`: references (`stage.py`) or trained segmenters (`training/segment.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.config import Settings
from reco_ray.contents import MasksContent
from reco_ray.corpus.listing import Listing
from reco_ray.corpus.load import ImageLoader
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.errors import UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated, print_status
from reco_ray.outcome import Outcome
from reco_ray.segmentation.image_parts import (
    IMAGES,
    LEAVING,
    REPORT,
    is_own,
    pending_parts,
    plan_parts,
    read_images,
    take_out,
)
from reco_ray.segmentation.mask_worker import Labeller, MaskSet, MaskWorker
from reco_ray.segmentation.names import add_names
from reco_ray.segmentation.report import write_report


def masks_writer(
    out: str, images: str, listing: Listing, settings: Settings, made_with: Mapping[str, object]
) -> artifacts.ArtifactWriter[MasksContent]:
    """The writer of a masks artifact.

    Args:
        out: URI of the artifact.
        images: URI of the source.
        listing: of the source.
        settings: of the run.
        made_with: what else determines the masks: the labeller and its settings.
    """
    source = {
        "images": storage.absolute(images),
        "listing": listing.fingerprint,
        "image_column": settings.image_column,
    }
    return artifacts.ArtifactWriter(out, MasksContent, {**made_with, **source})


@dataclass(frozen=True)
class MaskPlan:
    """An unfinished masks artifact and the images that it is to have.

    Attributes:
        writer: of the artifact.
        images: `uri`, `size` and `name`, each URI once.
        planned: the parts of the images, as of `plan_parts`.
        pending: the parts that are not committed, with their images.
    """

    writer: artifacts.ArtifactWriter[MasksContent]
    images: pa.Table
    planned: pa.Table
    pending: dict[str, pa.Table]

    @property
    def done(self) -> int:
        """Number of images that have masks, or a reason why not."""
        return self.images.num_rows - sum(shard.num_rows for shard in self.pending.values())

    @property
    def committed(self) -> frozenset[str]:
        """The parts that are committed."""
        return frozenset(self.planned["part"].unique().to_pylist()) - self.pending.keys()


def plan_masks(
    writer: artifacts.ArtifactWriter[MasksContent], listing: Listing, settings: Settings, *, renew: bool
) -> MaskPlan | artifacts.Manifest[MasksContent]:
    """Plans what is to be done for an artifact, and takes out images that have gone; its manifest if it is finished.

    Args:
        writer: of the artifact.
        listing: of the source.
        settings: of the run.
        renew: update masks of the same labeller and settings to the source; replace those of others.

    Raises:
        RecoError: the output has other content, or cannot be written.
    """
    if renew:
        _renew(writer)
    if manifest := writer.finished():
        return manifest
    table = add_names(listing.table, listing.root)
    recorded = read_images(writer.uri)
    planned, leaving = plan_parts(table, recorded, settings.segment.shard_size)
    if leaving is not None:
        take_out(writer.uri, leaving)
    storage.write_table(storage.join(writer.uri, IMAGES), planned)
    plan = MaskPlan(writer, table, planned, pending_parts(writer.uri, planned))
    if renew and recorded is not None:
        gone = 0 if leaving is None else pc.sum(leaving[LEAVING]).as_py()
        print_status(
            "segment",
            f"{table.num_rows - plan.done:,} to do, {gone:,} gone or changed since, {plan.done:,} kept",
        )
    return plan


def _renew(writer: artifacts.ArtifactWriter[MasksContent]) -> None:
    """Keeps masks if only the images have changed; clears those of other labellers or settings."""
    stored = writer.stored()
    if stored is None or stored == writer.made_from:
        return
    of_images = {"images": None, "listing": None}
    if {**stored, **of_images} == {**writer.made_from, **of_images} and read_images(writer.uri) is not None:
        writer.begin()
    else:
        clear_outdated(writer, "segment", is_own(writer.uri), last=IMAGES)


@dataclass(frozen=True)
class MaskJob:
    """Masks to make.

    Attributes:
        plan: of the artifact.
        labeller: labels its images.
        content: of its manifest.
        rate: what the summary calls the work, as of `decisive_settings`.
        settings: of the run, with those of the labeller.
        name: of the outcome.
    """

    plan: MaskPlan
    labeller: Labeller
    content: MasksContent
    rate: str
    settings: Settings
    name: str = field(default="")

    def as_set(self) -> MaskSet:
        """What workers need to know."""
        colours = np.array(self.content.palette, np.uint8)
        return MaskSet(self.plan.writer.uri, self.labeller, self.content.labels, colours, self.plan.committed)


def make_masks(
    jobs: Sequence[MaskJob],
    source: str,
    listing: Listing,
    load: ImageLoader,
    settings: Settings,
    *,
    report: bool,
) -> list[Outcome]:
    """Makes the masks of all jobs on the connected Ray cluster; images are read and decoded once for all of them.

    Args:
        jobs: their plans are all of the same source.
        source: URI of the images, for errors.
        listing: of the source.
        load: loads images for the labellers.
        settings: of the run.
        report: write a page into every artifact.

    Returns:
        Outcomes in the order of the jobs.

    Raises:
        UnreadableError: no image is usable.
    """
    pending = {name: shard for job in jobs for name, shard in job.plan.pending.items()}
    total = jobs[0].plan.images.num_rows
    to_do = sum(shard.num_rows for shard in pending.values())
    worker = MaskWorker([job.as_set() for job in jobs], overlays=settings.segment.overlays)
    with stage_pool(
        "segment", settings.models.device, settings.placement.segment, total, total - to_do
    ) as pool:
        pool.run(pending, load, worker)
        run = {"images": to_do, "sets": len(jobs), **pool.statistics()}
    return [_commit(job, source, listing, run, report=report) for job in jobs]


def _commit(
    job: MaskJob, source: str, listing: Listing, run: Mapping[str, object], *, report: bool
) -> Outcome:
    writer, images = job.plan.writer, job.plan.images.num_rows
    rejected = _rejected(writer.uri)
    counts = {
        "images": listing.table.num_rows,
        "segmented": images - len(rejected),
        "rejected": len(rejected),
    }
    if images < listing.table.num_rows:  # a list may name an image several times
        counts["listed again"] = listing.table.num_rows - images
    if not counts["segmented"]:
        raise UnreadableError(
            f"{source}: none of the {len(rejected)} images can be used (the first: {rejected[0]['reason']})"
        )
    write_summary(writer.uri, job.rate, counts, run, job.settings, {"left_out": listing.left_out})
    page = storage.join(writer.uri, REPORT)
    if report:
        write_report(writer.uri, writer.draft(counts, job.content), page)
    else:
        storage.remove(storage.join(page, "index.html"))  # of a run that wrote one
    return Outcome("segment", writer.uri, writer.commit(counts, job.content), name=job.name)


def _rejected(out: str) -> list[dict[str, str]]:
    folder = storage.join(out, "rejected")
    return storage.read_table(folder).to_pylist() if storage.list_names(folder, ".parquet") else []
