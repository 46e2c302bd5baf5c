"""Which part an image of the masks artifact is in, over several runs, and what leaves with an image."""

import pyarrow as pa
import pytest

from reco_ray.config import load_settings
from reco_ray.contents import MasksContent
from reco_ray.cosegmentation.bank import SAMPLE
from reco_ray.errors import RecoError
from reco_ray.files import artifacts, storage
from reco_ray.files.replacing import clear
from reco_ray.segmentation.image_parts import (
    IMAGES,
    LEAVING,
    is_own,
    pending_parts,
    plan_parts,
    read_images,
    take_out,
)
from reco_ray.segmentation.masks import mask_file, overlay_file
from reco_ray.segmentation.stage import _sample

ROWS = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def images(sizes: dict[str, int]) -> pa.Table:
    return pa.table({"uri": [f"/i/{n}" for n in sizes], "name": list(sizes), "size": list(sizes.values())})


def parts(planned: pa.Table) -> dict[str, str]:
    return {row["name"]: row["part"] for row in planned.to_pylist()}


def run(out: str, sizes: dict[str, int], but: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What a run does: masks for all parts that are pending but `but`; "b" cannot be read. The images it did."""
    planned, leaving = plan_parts(images(sizes), read_images(out), 2)
    if leaving is not None:
        take_out(out, leaving)
    storage.write_table(f"{out}/{IMAGES}", planned)
    pending = pending_parts(out, planned)
    for part, rows in pending.items():
        if part in but:
            continue
        for name in rows["name"].to_pylist():
            if name != "b":
                storage.write_bytes(f"{out}/{mask_file(name)}", b"mask")
                storage.write_bytes(f"{out}/{overlay_file(name)}", b"overlay")
        for folder, chosen in (("rejected", ["b"]), ("regions", [n for n in sizes if n != "b"])):
            table = rows.filter(pa.array([name in chosen for name in rows["name"].to_pylist()]))
            if table.num_rows or folder == "regions":
                storage.write_table(f"{out}/{folder}/{part}.parquet", table.select(["uri"]))
    return {part: rows["name"].to_pylist() for part, rows in pending.items()}


def masks(tmp_path, folder: str = "masks") -> list[str]:
    return sorted(file.name.partition(".")[0] for file in (tmp_path / folder).iterdir())


def told_of(tmp_path, folder: str) -> list[str]:
    names = storage.list_names(f"{tmp_path}/{folder}", ".parquet")
    return sorted(storage.read_table(f"{tmp_path}/{folder}")["uri"].to_pylist()) if names else []


def test_an_image_keeps_its_part(tmp_path):
    out = str(tmp_path)
    assert run(out, ROWS) == {"000000": ["a", "b"], "000001": ["c", "d"], "000002": ["e"]}
    assert run(out, dict(reversed(ROWS.items()))) == {}
    assert run(out, {"0": 9, **ROWS, "f": 6, "g": 7}) == {"000003": ["0", "f"], "000004": ["g"]}
    assert masks(tmp_path) == masks(tmp_path, "overlays") == ["0", "a", "c", "d", "e", "f", "g"]


def test_a_killed_run_goes_on_with_the_same_parts(tmp_path):
    out = str(tmp_path)
    run(out, ROWS, but=("000000", "000002"))
    assert run(out, ROWS) == {"000000": ["a", "b"], "000002": ["e"]}
    run(out, {**ROWS, "f": 6}, but=("000003",))
    assert run(out, {**ROWS, "f": 6}) == {"000003": ["f"]}


def test_what_is_gone_or_has_changed_leaves(tmp_path):
    out = str(tmp_path)
    run(out, ROWS)
    assert run(out, {"a": 1, "c": 30, "e": 5}) == {"000003": ["c"]}
    assert masks(tmp_path) == masks(tmp_path, "overlays") == ["a", "c", "e"]
    assert told_of(tmp_path, "regions") == ["/i/a", "/i/c", "/i/e"]
    assert told_of(tmp_path, "rejected") == []
    assert storage.list_names(f"{out}/regions") == ["000000.parquet", "000002.parquet", "000003.parquet"]
    assert run(out, {"b": 2, "d": 4}) == {"000004": ["b", "d"]}
    assert masks(tmp_path) == ["d"]
    assert told_of(tmp_path, "rejected") == ["/i/b"]
    assert read_images(out).column_names == ["uri", "name", "size", "part"]


def test_an_image_that_comes_back_while_it_was_leaving_is_made_again(tmp_path):
    out = str(tmp_path)
    run(out, ROWS)
    _, leaving = plan_parts(images({"a": 1}), read_images(out), 2)
    take_out(out, leaving)  # and then the run was killed
    assert run(out, ROWS) == {"000003": ["b", "c"], "000004": ["d", "e"]}
    assert masks(tmp_path) == ["a", "c", "d", "e"]
    assert LEAVING not in read_images(out).column_names


def test_only_files_of_the_artifact_are_cleared(tmp_path):
    out = str(tmp_path / "masks")
    writer = artifacts.ArtifactWriter(out, MasksContent, {"segment.refine": "none"})
    writer.finished()
    run(out, ROWS)
    writer.commit({}, MasksContent(labels=[], palette=[], references=""))
    other = artifacts.ArtifactWriter(out, MasksContent, {"segment.refine": "pamr"})
    for foreign in ("notes.txt", "masks/mine.png", "regions/mine.parquet", "manifest/manifest.json"):
        storage.write_bytes(f"{out}/{foreign}", b"mine")
        before = sorted(file for file in tmp_path.rglob("*"))
        with pytest.raises(RecoError, match=f"is not replaced, because {foreign} in it is no file of masks"):
            clear(other, is_own(out), last=IMAGES)
        assert sorted(tmp_path.rglob("*")) == before
        storage.remove(f"{out}/{foreign}")
    (tmp_path / "masks" / ".DS_Store").write_bytes(b"")
    for own in ("sample.safetensors", "sample.safetensors.parts/000001.safetensors"):
        storage.write_bytes(f"{out}/{own}", b"features")
    (tmp_path / "masks" / "masks" / "a.png.12345678.tmp").write_bytes(b"half a mask")
    (tmp_path / "masks" / "manifest").rmdir()
    clear(other, is_own(out), last=IMAGES)
    left = sorted(str(file.relative_to(out)) for file in tmp_path.rglob("*") if file.is_file())
    assert left == [".DS_Store", "started.json"]
    assert other.finished() is None


def test_masks_keep_to_the_sample_of_the_first_of_them(tmp_path):
    """However many images there are later; before the first mask, a sample of other images is of no use."""
    out, few = str(tmp_path), images(ROWS)
    settings = load_settings("mini")
    assert settings.segment.calibrate > len(ROWS)
    assert _sample(out, few, None, settings, begun=False) is None
    many = images({f"{n}": n for n in range(settings.segment.calibrate)})
    assert (
        _sample(out, many, None, settings, begun=True) is None
    )  # that of the corpus, as for the first masks
    storage.write_bytes(f"{out}/{SAMPLE}", b"features")
    assert _sample(out, few, None, settings, begun=True) == f"{out}/{SAMPLE}"
    off = load_settings("mini", overrides=["segment.calibrate=0"])
    assert _sample(out, few, None, off, begun=True) is None
    assert _sample(out, few, None, settings, begun=False) is None
    assert not storage.exists(f"{out}/{SAMPLE}")


def test_a_directory_that_was_being_cleared_is_cleared_to_its_end(tmp_path, monkeypatch):
    """Whatever was deleted already, neither the settings before nor the new ones take it for half their work."""
    remove = storage.remove
    for after in range(20):
        out = str(tmp_path / str(after))
        writer = artifacts.ArtifactWriter(out, MasksContent, {"segment.refine": "none"})
        writer.finished()
        run(out, ROWS)
        writer.commit({}, MasksContent(labels=[], palette=[], references=""))
        other = artifacts.ArtifactWriter(out, MasksContent, {"segment.refine": "pamr"})
        left = [after]

        def killed_or_removed(uri, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            remove(uri)

        for module in (storage, artifacts):
            monkeypatch.setattr(module, "remove", killed_or_removed)
        try:
            clear(other, is_own(out), last=IMAGES)
            return
        except KeyboardInterrupt:
            for module in (storage, artifacts):
                monkeypatch.setattr(module, "remove", remove)
        for each in (writer, other):
            if after == 0 and each is writer:
                assert each.finished() is not None  # nothing was deleted yet
                continue
            with pytest.raises(RecoError, match=r"made with|replaces it was stopped half-way"):
                each.finished()
        clear(other, is_own(out), last=IMAGES)
        assert other.finished() is None
        assert [path.name for path in (tmp_path / str(after)).iterdir()] == ["started.json"]
    raise AssertionError("20 files were not enough")
