"""The label stage on Ray: pseudo-labels of images for one or many vocabularies, resumable shard by shard.

Every image is read, decoded and encoded once for all vocabularies.
"""

import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reco_ray.config import Settings
from reco_ray.contents import FramesContent, LabelsContent
from reco_ray.corpus.load import ImageLoader, whole_image_loader
from reco_ray.corpus.read import list_images
from reco_ray.cosegmentation.bank import SAMPLE, ReferenceBank
from reco_ray.cosegmentation.sample import sample_of_images
from reco_ray.distributed.parts import cut
from reco_ray.distributed.pool import stage_pool
from reco_ray.distributed.timing import write_summary
from reco_ray.errors import MissingError, SettingError, UnreadableError
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear_outdated
from reco_ray.models.description import describe_dense_models
from reco_ray.outcome import Outcome
from reco_ray.segmentation.targets import has_background, label_names, wants_background
from reco_ray.training.label_worker import LabelSet, LabelWorker
from reco_ray.training.pseudo_labels import IGNORE, MAX_LABELS
from reco_ray.vocabulary import Vocabulary

# Files of pseudo-labels and of frames, for their replacement.
_OWN = re.compile(r"(labels|frames|rejected)/\d{6,}\.parquet|samples/.+")


def label_images(
    sets: dict[str, LabelSet],
    images: str,
    frames: str,
    settings: Settings,
    *,
    renew: bool = False,
    without: Sequence[str] = (),
) -> list[Outcome]:
    """Labels every image of a source with each of several ReferenceBanks, on the connected Ray cluster.

    Args:
        sets: pseudo-labels to make, by name.
        images: URI of the images.
        frames: URI of the frames artifact, shared by all sets.
        settings: of the run.
        renew: replace frames and pseudo-labels of other images, references or settings.
        without: URIs of images that are left out.

    Returns:
        Outcomes in the order of the sets.

    Raises:
        RecoError: a bank was made with other models, there are more than 255 labels, no image is usable, or the output
            cannot be written.
    """
    # Workers may have another working directory.
    sets = {n: LabelSet(storage.absolute(one.bank), storage.absolute(one.out)) for n, one in sets.items()}
    dense = describe_dense_models(settings.models, settings.seed)
    listing = list_images(images, image_column=settings.image_column)
    source = {
        "images": storage.absolute(images),
        "listing": listing.fingerprint,
        "image_column": settings.image_column,
    }
    table = listing.table
    if without:
        table, source["without"] = _left_out(table, without, images)
    shape = {
        "train.image_size": settings.train.image_size,
        "segment.shard_size": settings.segment.shard_size,
    }
    frames_writer = artifacts.ArtifactWriter(frames, FramesContent, {**source, **shape})
    banks = {name: ReferenceBank.open(one.bank, dense.fingerprint) for name, one in sets.items()}
    writers = {
        name: artifacts.ArtifactWriter(
            one.out, LabelsContent, {**source, **shape, **_made_from(banks[name], settings)}
        )
        for name, one in sets.items()
    }
    for name, bank in banks.items():
        require_few_labels(name, bank.vocabulary, settings)
    if renew:
        outdated: list[artifacts.ArtifactWriter] = [frames_writer, *writers.values()]
        for each in outdated:
            clear_outdated(each, "label", lambda path: _OWN.fullmatch(path) is not None)
    frames_writer.finished()
    finished = {name: writer.finished() for name, writer in writers.items()}
    pending_sets = {name: sets[name] for name, manifest in finished.items() if manifest is None}
    run: dict[str, object] = {}
    if pending_sets:
        load = whole_image_loader(dense.transform, dense.stride, settings.segment)
        of_pixels = settings.segment.image_size, settings.segment.calibrate
        # Frames may serve labels of several models, each of which has a sample of its own.
        folder = storage.join(frames_writer.uri, "samples", storage.digest(dense.fingerprint, *of_pixels))
        sample = sample_of_images(
            storage.join(folder, SAMPLE), table, load, settings, settings.placement.label
        )
        run = _run(pending_sets, sample, frames_writer.uri, table, load, settings)
    total = table.num_rows
    if not storage.exists(storage.join(frames_writer.uri, artifacts.MANIFEST)):
        footers = storage.read_footers(storage.join(frames_writer.uri, "frames"))
        kept = sum(footer.num_rows for footer in footers.values())
        if not kept:
            raise UnreadableError(f"{images}: none of the {total} images can be used")
        frames_writer.commit({"images": total, "frames": kept, "rejected": total - kept}, FramesContent())
    return [
        Outcome(
            "label",
            writer.uri,
            finished[name]
            or _commit(writer, banks[name], frames_writer.uri, settings, run, listing.left_out),
            new=name in pending_sets,
            name=name,
        )
        for name, writer in writers.items()
    ]


def _left_out(table: pa.Table, without: Sequence[str], images: str) -> tuple[pa.Table, str]:
    """The images that remain, and a digest of those that are left out.

    Raises:
        RecoError: none is left out, or none remains.
    """
    leaving = pc.is_in(table["uri"], value_set=pa.array(without, pa.string()))
    kept = table.filter(pc.invert(leaving))
    if kept.num_rows == table.num_rows:
        raise MissingError(
            f"{images}: has none of the {len(without)} images with bad masks, such as {without[0]}: give the images "
            "that were reviewed"
        )
    if not kept.num_rows:
        raise MissingError(f"{images}: every image has a bad mask by the verdicts: none is left to train on")
    return kept, storage.digest(sorted(table.filter(leaving)["uri"].to_pylist()))


def require_few_labels(name: str, vocabulary: Vocabulary, settings: Settings) -> None:
    """Raises SettingError if a vocabulary has more labels than pseudo-labels can hold; `name` is for its line."""
    if wants_background(vocabulary, settings.segment) + len(vocabulary.concepts) > MAX_LABELS:
        raise SettingError(f"{name}: pseudo-labels hold at most {MAX_LABELS} labels: split the vocabulary")


def _made_from(bank: ReferenceBank, settings: Settings) -> dict[str, object]:
    return {
        "references": bank.uri,
        "references_made_at": bank.made_at,
        "train.min_score": settings.train.min_score,
        **settings.named("segment", without=("image_size", "overlays", "shard_size")),
    }


def _run(
    sets: dict[str, LabelSet],
    sample: str | None,
    frames: str,
    listing: pa.Table,
    load: ImageLoader,
    settings: Settings,
) -> dict[str, object]:
    """Labels the shards that are not committed; returns the resources used, for the summary."""
    folders = [storage.join(frames, "frames"), *(storage.join(one.out, "labels") for one in sets.values())]
    there = [set(storage.list_names(folder, ".parquet")) for folder in folders]
    shards = cut(listing, settings.segment.shard_size)
    pending = {n: shard for n, shard in shards.items() if any(f"{n}.parquet" not in names for names in there)}
    done = listing.num_rows - sum(shard.num_rows for shard in pending.values())
    worker = LabelWorker(settings, sets, sample, frames)
    device, placement = settings.models.device, settings.placement.label
    with stage_pool("label", device, placement, listing.num_rows, done) as pool:
        pool.run(pending, load, worker)
        return {"images": listing.num_rows - done, "sets": len(sets), **pool.statistics()}


def _commit(
    writer: artifacts.ArtifactWriter[LabelsContent],
    bank: ReferenceBank,
    frames: str,
    settings: Settings,
    run: dict[str, object],
    left_out: dict[str, int],
) -> artifacts.Manifest[LabelsContent]:
    names = label_names(bank, settings.segment)
    footers = storage.read_footers(storage.join(writer.uri, "labels"))
    pixels = sum(
        (np.array(json.loads(each.metadata[b"pixels"])) for each in footers.values()), np.zeros(256, int)
    )
    content = LabelsContent(
        labels=names,
        background=has_background(bank, settings.segment),
        vocabulary=bank.vocabulary,
        references=bank.uri,
        frames=frames,
        soft=settings.segment.calibrate > 0,
        pixels=dict(zip(names, pixels.tolist(), strict=False)),
    )
    images = sum(footer.num_rows for footer in footers.values())
    counts = {"images": images, "labels": len(names), "ignored_pixels": int(pixels[IGNORE])}
    write_summary(writer.uri, "label", counts, run, settings, {"left_out": left_out})
    return writer.commit(counts, content)
